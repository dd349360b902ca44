"""The blocks of a run dealt to workers on Ray, as one :class:`focal.heads.linear.engine.Shards`.

How a backward pass gets from sums of some blocks to gradients of all, with three workers (u: class group, h: baby)::

    worker 1   sums of its blocks  | part 1 | part 2 | part 3 |        all (u, h) in order, cut into as many parts as
    worker 2   sums of its blocks  | part 1 | part 2 | part 3 |        there are workers; a part is about 1.6 MB an
    worker 3   sums of its blocks  | part 1 | part 2 | part 3 |        (u, h) at N = 2^14
                                        |        |        |            part i goes to worker i, from each of them
                                        v        v        v
                                     added,   added,   added,          modulo q: exact
                                     relin.   relin.   relin.          at the same time
                                        <--------<-------- turned onto each other, from the last part to the first:
                                                           what hangs over is one ciphertext
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray

from focal.ckks import ring
from focal.ckks.evaluator import Ciphertext
from focal.ckks.scheme import Scheme
from focal.cluster.nodes import Cluster, Node, on_node
from focal.errors import FocalError
from focal.heads.linear.engine import Shard
from focal.heads.linear.layout import Layout
from focal.telling import Say

REPEATS = 5
"""How often workers may be lost within one call before it is given up."""
RESTART_SECONDS = 1.0

Limbs = NDArray[np.uint64]
"""(polynomials, limbs, N): a ciphertext on its way."""
T = TypeVar("T")
Part = range
"""Places of the list of all (class group, h)."""


class Job(Protocol):
    """What a worker needs to know of a run. It is pickled: nothing secret may be in it."""

    def shard(self, threads: int, blocks: int) -> Shard:
        """Keys installed, blocks ready to be read, so many of them by this worker; in the worker's process.
        Raises :class:`FocalError`."""


# --------------------------------------------------------------------------- in the worker's process


class Worker:
    """A shard of the run in a process of its own. Every call is a function of its arguments and of files."""

    def __init__(self) -> None:
        self.shard: Any  # a Shard, once it has begun

    def begin(self, job: Job, threads: int, blocks: int) -> int:
        """Install keys; returns the process id."""
        self.shard = job.shard(threads, blocks)
        return os.getpid()

    def alive(self) -> int:
        return os.getpid()

    def seconds(self) -> float:
        """Processor time of this process so far."""
        return time.process_time()

    def forward(self, blocks: list[int], weights: Limbs) -> Any:
        """[block][class group] logits."""
        return self._by_block(blocks, self.shard.forward(self._loaded(weights), blocks))

    def residuals(self, blocks: list[int], *logits: Limbs) -> Any:
        """[block][class group], of polynomials that refresh them."""
        return self._by_block(blocks, self.shard.residuals(self._refreshed(logits), blocks))

    def sums(self, blocks: list[int], parts: list[Part], residuals: bool, *refreshed: Limbs) -> Any:
        """[part] (places, 3, limbs, N): products of these blocks, not relinearised. ``refreshed``, by block: logits
        or ``residuals``; nothing before the first step."""
        given = self._refreshed(refreshed)
        made = self.shard.sums(None if residuals else given, given if residuals else None, blocks)
        return _several([self._shown([made[i] for i in part]) for part in parts])

    def relinearised(self, *sums: Limbs) -> Limbs:
        """(places, 2, limbs, N): the same places of all workers added up, and relinearised."""
        primes = self.shard.scheme.moduli[: sums[0].shape[2]]

        def total(*parts: Limbs) -> Ciphertext:
            rows = [ring.total(polynomials, primes) for polynomials in zip(*parts, strict=True)]
            return self.shard.scheme.evaluator.load(rows, degree=2)

        return self._shown(self.shard.relinearised(list(self.shard.pool.map(total, *sums))))

    def turned(self, part: Part, flat: Limbs, carried: Limbs | None) -> Any:
        """The class groups that end in this part, from the last to the first, (groups, 2, limbs, N); and what hangs
        over to the part before."""
        babies, load = self.shard.layout.babies, functools.partial(self.shard.scheme.evaluator.load, degree=2)
        over = None if carried is None else load(carried)
        groups = [list(places) for _, places in itertools.groupby(part, lambda place: place // babies)]

        def one(places: list[int]) -> Ciphertext:
            own = [load(flat[place - part.start]) for place in places]
            return self.shard.horner(own, over if places is groups[-1] else None)

        made = list(self.shard.pool.map(one, groups))
        over = made.pop(0) if groups[0][0] % babies else None
        return self._shown(made[::-1]), None if over is None else self._shown([over])[0]

    # ----------------------------------------------------------------- limbs

    def _shown(self, ciphertexts: Sequence[Ciphertext]) -> Limbs:
        return shown(self.shard.scheme, ciphertexts)

    def _by_block(self, blocks: list[int], ciphertexts: list[Ciphertext]) -> Any:
        groups = self.shard.layout.class_groups
        return _several([self._shown(ciphertexts[i * groups : (i + 1) * groups]) for i in range(len(blocks))])

    def _loaded(self, limbs: Limbs) -> list[Ciphertext]:
        return list(map(self.shard.scheme.evaluator.load, limbs))

    def _refreshed(self, by_block: Sequence[Limbs]) -> list[Ciphertext] | None:
        return [ct for limbs in by_block for ct in self._loaded(limbs)] or None


def shown(scheme: Scheme, ciphertexts: Sequence[Ciphertext]) -> Limbs:
    """(ciphertexts, polynomials, limbs, N)"""
    return np.array([scheme.evaluator.limbs(ct) for ct in ciphertexts], np.uint64)


def _several(results: list[Any]) -> Any:
    """As a call with ``num_returns`` gives them: one is itself."""
    return results if len(results) != 1 else results[0]


# --------------------------------------------------------------------------- in the driver


@dataclass
class _Seat:
    """A worker that is there, and what was dealt to it."""

    node: Node
    threads: int
    actor: Any
    pid: int = 0
    """0: it has no keys yet."""
    blocks: list[int] = field(default_factory=list)


class RayShards:
    """The blocks of ``layout`` on the nodes of ``cluster``, dealt in proportion to their processors.

    ``per_node``: workers on each node; one, with threads inside, shares its keys and the weights' rotations best.
    ``need(nodes)``: bytes that the worker of each node needs, when so many share the work. Raises :class:`FocalError`
    when workers are lost again and again, or a worker meets an error of its party's.
    """

    def __init__(
        self,
        cluster: Cluster,
        nodes: Sequence[Node],
        job: Job,
        layout: Layout,
        scheme: Scheme,
        need: Callable[[int], int],
        warn: Say,
        per_node: int = 1,
    ) -> None:
        self.cluster, self.layout, self.scheme = cluster, layout, scheme
        self.need, self.warn, self.per_node = need, warn, per_node
        self.nodes = {node.id: node for node in nodes}
        self.job = ray.put(job)
        self.seats: list[_Seat] = []
        self.lost = 0
        """Workers that were lost so far."""
        self._repeated(self._alive)

    def close(self) -> None:
        self.dismiss()
        self.cluster.close()

    def dismiss(self) -> None:
        """End all workers; the cluster stays."""
        with contextlib.suppress(ray.exceptions.RayError):  # what is gone needs no end
            for seat in self.seats:
                ray.kill(seat.actor)
        self.seats = []

    # ----------------------------------------------------------------- the three calls

    def forward(self, weights: list[Ciphertext]) -> list[Ciphertext]:
        sent = ray.put(shown(self.scheme, weights))
        return self._by_block("forward", lambda seat: [sent])

    def residuals(self, logits: list[Ciphertext] | None) -> list[Ciphertext]:
        sent = self._sent(logits)
        return self._by_block("residuals", lambda seat: self._of(seat, sent))

    def backward(self, logits: list[Ciphertext] | None, residuals: list[Ciphertext] | None) -> list[Ciphertext]:
        sent, high = self._sent(residuals or logits), residuals is not None

        def attempt() -> list[Ciphertext]:
            parts = cut(self.layout.class_groups * self.layout.babies, [seat.threads for seat in self.seats])
            taken = [(seat, part) for seat, part in zip(self.seats, parts, strict=True) if part]
            parts = [part for _, part in taken]
            sums = [
                _refs(
                    seat.actor.sums.options(num_returns=len(parts)).remote(
                        seat.blocks, parts, high, *self._of(seat, sent)
                    )
                )
                for seat in self.seats
                if seat.blocks
            ]
            flat = [seat.actor.relinearised.remote(*own) for (seat, _), own in zip(taken, zip(*sums), strict=True)]  # noqa: B905
            done, over = [], None
            for (seat, part), own in reversed(list(zip(taken, flat, strict=True))):
                ended, over = seat.actor.turned.options(num_returns=2).remote(part, own, over)
                done.append(ended)
            last_first = [ct for limbs in self._got(done) for ct in limbs]
            return [self.scheme.evaluator.load(limbs, degree=2) for limbs in reversed(last_first)]

        return self._repeated(attempt)

    # ----------------------------------------------------------------- limbs by block

    def _sent(self, ciphertexts: list[Ciphertext] | None) -> dict[int, Any]:
        """By block, or nothing at all: put where workers fetch it from."""
        if ciphertexts is None:
            return {}
        groups = self.layout.class_groups
        return {
            b: ray.put(shown(self.scheme, ciphertexts[i * groups : (i + 1) * groups]))
            for i, b in enumerate(self.layout.live_blocks)
        }

    def _of(self, seat: _Seat, sent: dict[int, Any]) -> list[Any]:
        return [sent[b] for b in seat.blocks] if sent else []

    def _by_block(self, call: str, given: Callable[[_Seat], list[Any]]) -> list[Ciphertext]:
        """What each worker returns for its blocks, in the order of the blocks; one block's limbs at a time."""

        def attempt() -> list[Ciphertext]:
            made: dict[int, Any] = {}
            for seat in (seat for seat in self.seats if seat.blocks):
                method = getattr(seat.actor, call).options(num_returns=len(seat.blocks))
                made |= dict(zip(seat.blocks, _refs(method.remote(seat.blocks, *given(seat))), strict=True))
            blocks = self.layout.live_blocks
            return [self.scheme.evaluator.load(limbs) for b in blocks for limbs in self._got([made.pop(b)])[0]]

        return self._repeated(attempt)

    # ----------------------------------------------------------------- workers that are lost

    def _got(self, refs: list[Any]) -> list[Any]:
        return ray.get(refs)

    def _repeated(self, attempt: Callable[[], T]) -> T:
        """What ``attempt`` gives, made again when a worker was lost on the way. It is a function of what the driver
        and the disk have, so it gives the same."""
        for _ in range(REPEATS):
            try:
                self._seat()
                return attempt()
            except ray.exceptions.RayTaskError as e:
                if not isinstance(e.cause, ray.exceptions.RayError):  # the worker's own error, not Ray's
                    raise e.cause from None
                reason = str(e.cause)
            except ray.exceptions.RayError as e:
                reason = str(e)
            self.warn(f"{self.cluster.name}: a worker was lost ({_line(reason)}); its part is made again")
            self._keep_living()
        raise FocalError(
            f"{self.cluster.name}: workers were lost {REPEATS} times in one call, the last time: {_line(reason)}",
            hint="look for what ends processes there (memory?), then give the same command again: "
            "it goes on from the last finished step",
        )

    def _alive(self) -> list[int]:
        return self._got([seat.actor.alive.remote() for seat in self.seats])

    def _keep_living(self) -> None:
        """Keep the workers that answer, once they have done what they were asked for."""
        asked = [(seat, seat.actor.alive.remote()) for seat in self.seats]
        self.seats = []
        for seat, answer in asked:
            try:
                self._got([answer])
            except ray.exceptions.RayError:
                seat.pid = 0
            if seat.pid:
                self.seats.append(seat)
            else:  # dead, or never begun
                self.lost += 1
                ray.kill(seat.actor)
        time.sleep(RESTART_SECONDS)

    def _seat(self) -> None:
        """A worker on every node that is alive, and every block dealt to one."""
        alive = self.cluster.alive()
        there = [node for id, node in self.nodes.items() if id in alive]
        if not there:
            raise FocalError(f"{self.cluster.name}: no node is left", hint="start Ray there, then the same command")
        new = []
        for node in there:
            for _ in range(sum(seat.node is node for seat in self.seats), self.per_node):
                threads = max(1, node.cores // self.per_node)
                actor = ray.remote(Worker).options(
                    num_cpus=threads, scheduling_strategy=on_node(node.id), max_restarts=0, max_task_retries=0
                ).remote()  # fmt: skip
                new.append(_Seat(node, threads, actor))
        self.seats += new
        self._deal()
        begun = [seat.actor.begin.remote(self.job, seat.threads, len(seat.blocks)) for seat in new]
        for seat, answer in zip(new, begun, strict=True):
            (seat.pid,) = self._got([answer])

    def _deal(self) -> None:
        """Blocks that nobody has go to those who have least for their threads. Who has some keeps them: they are in
        its memory."""
        had = {b for seat in self.seats for b in seat.blocks}
        for b in sorted(set(self.layout.live_blocks) - had):
            min(self.seats, key=lambda seat: (len(seat.blocks) + 1) / seat.threads).blocks.append(b)
        need = self.need(len({seat.node.id for seat in self.seats}))
        for seat in self.seats:
            seat.blocks.sort()
            if seat.node.memory < need:
                raise FocalError(
                    f"{self.cluster.name}: with {len(self.seats)} workers left, each needs {need / 1e9:.1f} GB; "
                    f"node {seat.node.name} has {seat.node.memory / 1e9:.1f}",
                    hint="bring nodes back, then give the same command again: it goes on from the last finished step",
                )


def cut(places: int, weights: Sequence[int]) -> list[Part]:
    """``places`` in as many ranges as there are ``weights``, and in proportion to them."""
    edges = [round(places * sum(weights[:i]) / sum(weights)) for i in range(len(weights) + 1)]
    return list(itertools.starmap(range, itertools.pairwise(edges)))


def _refs(returned: Any) -> list[Any]:
    return returned if isinstance(returned, list) else [returned]


def _line(reason: str) -> str:
    return (reason.strip().splitlines() or ["no reason given"])[0][:200]
