"""The part of a run that several parties compute: the server, every verifying custodian, and an auditor.

All get the same uploads and the same refresh answers, so all get the same limbs. Each link of the chain is::

    chain_0     = H(upload lists)
    chain_{t+1} = H(chain_t || digests of the weights before || digests of the weights after)

Uploads may be larger than the memory. The engine scans the blocks in ascending order, over and over:
a cache of the most recent ones would never hold the next one, so the first blocks stay and the others stream::

    in memory     | blocks 0 1 ... k-1 |  k  | k+1 |    a step reads k, k+1, ... twice: forward, backward
    on disk       | blocks k, k+1, ..., made once      ^     ^
                  | every chunk of every institution                      one in use, one on its way
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focal import framing
from focal.ckks import codec
from focal.ckks.scheme import Scheme
from focal.config import CkksConfig
from focal.extras import require
from focal.heads.linear.cost import BLOCK_MEMORY
from focal.heads.linear.demand import kept_blocks, worker_bytes
from focal.heads.linear.engine import Block, Shard, Shards
from focal.heads.linear.layout import DATA_LIMBS
from focal.heads.masks import OwnerMasks
from focal.heads.moves import Refresh
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.net.encoding import encode
from focal.net.store import Blobs
from focal.protocols.blind.gathering import Gathering
from focal.protocols.blind.plan import Layout, engine, scalars_of
from focal.protocols.blind.scratch import Scratch
from focal.protocols.blind.uploads import ROUND, Place, Placed, inputs, live, span
from focal.protocols.common import ceremony
from focal.protocols.common.inputs import combined
from focal.protocols.common.voice import Fetch, Given, Voice
from focal.telling import Say


class BlindCompute:
    """Encrypted training from signed upload lists and what the custodians gave for them.
    ``fetch`` yields masked rows and contributions; they are checked here.

    ``memory``: bytes that blocks may take. What does not fit is kept in ``folder`` and read in every pass
    (:class:`focal.protocols.blind.scratch.Scratch`); without a folder it is made again: slower, with the same limbs.
    The data of two blocks are there in any case, and without a folder the targets of all.
    """

    def __init__(
        self,
        manifest: Manifest,
        scheme: Scheme,
        layout: Layout,
        seed: bytes,
        lists: dict[str, msg.Upload],
        digest: str,
        given: Given,
        fetch: Fetch,
        threads: int,
        memory: int = BLOCK_MEMORY,
        folder: Path | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        # whom the custodians left out has rows in no block
        self.lists = {name: upload for name, upload in lists.items() if name not in given.left_out}
        self.layout = layout = live(layout, self.lists.values())
        self.manifest, self.scheme, self.fetch = manifest, scheme, fetch
        self.seed, self.digest = seed, digest
        self.total = manifest.training.steps
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="blocks")
        self.kept = kept_blocks(layout, memory)
        streams = self.kept < len(layout.live_blocks)
        self.scratch = Scratch(scheme, codec.ciphertext(DATA_LIMBS), folder) if folder and streams else None
        self.row_table = {name: span(upload) for name, upload in self.lists.items()}
        self._placed: dict[Place, list[tuple[Placed, list[tuple[str, str]]]]] = {}
        """Place -> its inputs, each with what every custodian gave for it."""
        for i, placed in enumerate(inputs(layout, lists)):
            if placed.owner in self.lists:
                self._placed.setdefault(placed.place, []).append(
                    (placed, [(name, blobs[i]) for name, blobs in given.blobs.items()])
                )
        self._made: dict[int, list[Any]] = {}
        self._blocks: dict[int, Block | None] = {}
        """Those that were read; None for one that streams."""
        scalars = scalars_of(manifest, self.lists)
        shards = None
        if elsewhere is not None:
            again = functools.partial(
                BlindCompute, manifest, layout=layout, seed=seed, lists=lists, digest=digest, given=given, memory=memory
            )
            job = Job(again, layout, memory, manifest.ckks, elsewhere.joint, scheme.tag, elsewhere.blobs)
            shards = elsewhere.shards(job, scheme, threads)
        self.engine = engine(scheme, layout, scalars, self.block, threads, shards)
        self.masks = OwnerMasks(scheme, layout, self.engine.rate)

    def close(self) -> None:
        self.engine.close()
        self.pool.shutdown()
        if self.scratch is not None:
            self.scratch.close()

    def steps(
        self, voice: Voice, done: Sequence[msg.StepDone] = (), fetch: Fetch | None = None
    ) -> Iterator[msg.StepDone]:
        """Take every step that follows after ``done``, whose outputs ``fetch`` yields from the own disk;
        yield each one's statement."""
        weights, chain = self.start()
        if done and fetch is not None:
            weights, chain = self.load(done[-1].outputs, fetch), done[-1].chain
        for step in range(len(done), self.total):
            weights, statement, data = self.step(step, weights, chain, voice.refresh)
            voice.done(step, statement, data)
            chain = statement.chain
            yield statement

    def start(self) -> tuple[list[Any], str]:
        """Weights before the first step, and the chain's beginning."""
        chain = framing.digest(b"focal/chain/v1", *map(encode, self.lists.values())).hex()
        return self.engine.start(), chain

    def step(
        self, step: int, weights: list[Any], chain: str, ask: Refresh
    ) -> tuple[list[Any], msg.StepDone, list[bytes]]:
        """One step; returns the new weights, the statement of it, and the new weights' bytes
        (their digests are its outputs)."""
        before = tuple(codec.digest(b) for b in self.dump(weights))
        weights = self.engine.step(step, weights, ask)
        dumped = self.dump(weights)
        after = tuple(codec.digest(b) for b in dumped)
        link = framing.digest(b"focal/link/v1", *map(bytes.fromhex, (chain, *before, *after))).hex()
        return weights, msg.StepDone(step=step, inputs=before, outputs=after, chain=link), dumped

    def dump(self, weights: list[Any]) -> list[bytes]:
        """Canonical bytes of weight ciphertexts."""
        return [codec.pack(self.scheme, self.engine.kind, self.scheme.evaluator.limbs(w)) for w in weights]

    def load(self, digests: tuple[str, ...], fetch: Fetch) -> list[Any]:
        """Weight ciphertexts from bytes that this party wrote itself."""
        kind = self.engine.kind
        return [self.scheme.evaluator.load(codec.unpack(self.scheme, kind, fetch(d), "the own disk")) for d in digests]

    # ----------------------------------------------------------------- blocks

    def block(self, b: int) -> Block:
        """Block b. All of it is read when it is first asked for: no share is given before every chunk
        was found well formed."""
        if b not in self._blocks:
            keeps = len(list(filter(None, self._blocks.values()))) < self.kept
            data, targets = self._data(b, not keeps), self._targets(b, not keeps)
            self._blocks[b] = Block(data, targets) if keeps else None
            if not keeps and self.scratch is None:
                self._made[b] = targets
        return self._blocks[b] or StreamedBlock(lambda: self._made.get(b) or self._targets(b), lambda: self._data(b))

    def _targets(self, b: int, streams: bool = True) -> list[Any]:
        """Block b's targets, by class group. Where there is no room on the disk, those that were made once stay."""
        return self._read([(b, "target", u, 0) for u in range(self.layout.class_groups)], streams)

    def _data(self, b: int, streams: bool = True) -> list[list[Any]]:
        """Block b's data ciphertexts, [g][h]. Of one that ``streams`` they are read again in every pass."""
        giants, babies = self.layout.giants, self.layout.babies
        flat = self._read([(b, "data", g, h) for g in range(giants) for h in range(babies)], streams)
        return [flat[g * babies : (g + 1) * babies] for g in range(giants)]

    def _read(self, places: list[Place], streams: bool = False) -> list[Any]:
        return list(self.pool.map(self._streamed if streams else self._ciphertext, places))

    def _streamed(self, place: Place) -> Any:
        """As the first pass has left it on the own disk, where there is room for it."""
        if self.scratch is None:
            return self._ciphertext(place)
        if place not in self.scratch:
            self.scratch.put(place, self._ciphertext(place))
        return self.scratch.get(place)

    def _ciphertext(self, place: Place) -> Any:
        """What the owners may write at this place, added up (4 limbs)."""
        block, what, index, _ = place
        kept = self.masks.data if what == "data" else self.masks.targets
        # one after the other: of many owners no more than two ciphertexts are there at a time
        made = ((placed.owner, self._combined(placed, given)) for placed, given in self._placed[place])
        return kept(made, self.row_table, block, index)

    def _combined(self, placed: Placed, given: list[tuple[str, str]]) -> Any:
        uploads = [(f"'{placed.owner}'", self.fetch(placed.chunk))]
        return self.scheme.evaluator.load(
            combined(self.scheme, self.seed, self.digest, placed.input, uploads, given, self.fetch)
        )


class StreamedBlock(Block):
    """A block for one pass, whose data and targets are read when the engine looks at them: often at one of the two."""

    def __init__(self, targets: Callable[[], list[Any]], data: Callable[[], list[list[Any]]]) -> None:
        self._read, self._lock = {"targets": targets, "data": data}, threading.Lock()

    def __getattr__(self, name: str) -> Any:
        """Python asks here for an attribute that is not there: what was not read yet. Several threads may ask
        at once."""
        if name not in ("data", "targets"):
            raise AttributeError(name)
        with self._lock:
            if name not in self.__dict__:
                self.__dict__[name] = self._read[name]()
        return self.__dict__[name]


# --------------------------------------------------------------------------- on a party's cluster


@dataclass(frozen=True)
class Job:
    """What a worker of :mod:`focal.cluster` computes with: what everybody who verifies has, and no secret.
    ``compute``: a :class:`BlindCompute` but for what each process has of its own; ``tag``: the run id; ``blobs``: where
    the party's blobs lie, on every node."""

    compute: Callable[..., BlindCompute]
    layout: Layout
    memory: int
    params: CkksConfig
    joint: msg.JointKeys
    tag: str
    blobs: Path

    def shard(self, threads: int, blocks: int) -> Shard:
        """Of a party without a voice, in this process: its engine never takes a step."""
        fetch, scheme = Blobs(self.blobs).get, Scheme(self.params, self.tag)
        ceremony.install(scheme, bytes.fromhex(self.tag), self.joint, fetch)
        compute = self.compute(scheme=scheme, fetch=fetch, threads=threads)
        compute.kept = kept_blocks(self.layout, self.memory, blocks)
        shard = compute.engine.shards
        assert isinstance(shard, Shard)
        return shard


@dataclass(frozen=True)
class Elsewhere:
    """Where a party computes when its threads do not. ``address``: of its Ray cluster (``LocalConfig.ray_address``)."""

    address: str | None
    blobs: Path
    joint: msg.JointKeys
    warn: Say

    def shards(self, job: Job, scheme: Scheme, threads: int) -> Shards:
        """Workers on all nodes, checked. Raises :class:`FocalError` naming a node that may not compute."""
        require("ray", "compute: ray")
        from focal.cluster.nodes import Cluster
        from focal.cluster.shards import RayShards

        cluster = Cluster(self.address, threads)
        try:
            need = functools.partial(worker_bytes, job.layout, job.memory)
            key = self.joint.relinearisation_b
            file = self.blobs / key[:2] / key[2:]
            nodes = cluster.checked(cluster.nodes(scheme.params, file), scheme.params, file, need)
            return RayShards(cluster, nodes, job, job.layout, scheme, need, self.warn)
        except BaseException:
            cluster.close()
            raise


def computing(
    party: Gathering, joint: msg.JointKeys, lists: dict[str, msg.Upload], digest: str, given: Given, fetch: Fetch
) -> BlindCompute:
    """As a server or a custodian computes: with the memory, threads and nodes that its local file names."""
    local, elsewhere = party.local, None
    if local.compute == "ray":
        elsewhere = Elsewhere(local.ray_address, party.blobs.folder.absolute(), joint, party.report.warn)
    return BlindCompute(
        party.manifest,
        party.scheme,
        party.layout,
        party.seed(ROUND),
        lists,
        digest,
        given,
        fetch,
        party.threads,
        int(local.memory_gb * 1e9),
        party.folder,
        elsewhere,
    )
