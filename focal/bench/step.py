"""Training steps over rows that are streamed from disk, by the code that a server runs, in one process.

::

    made here   masked rows and custodians' contributions, every one another --> files, named by their SHA-256
    step 0      files --checked, added up--> ciphertexts --> one unnamed file      (focal.protocols.blind.scratch)
    step 1      the unnamed file --read, checked--> forward --refresh--> residuals, products, sums --refresh--> W
                                                                       (read again)
    in the end  W is released, and compared with the plaintext twin of all rows

Step 1 is a run's every later step; before it weights are zero and there is no forward pass. No wire: custodians answer
in this process, with real shares of a real key, and what they spend is counted apart. Nothing is kept: the folder is
temporary and goes with the command, also when that is interrupted.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal import framing
from focal.bench.refresh import CpuClock, consortium
from focal.ckks import codec
from focal.custody import inputs, refresh
from focal.errors import FocalError
from focal.heads.linear import twin
from focal.heads.linear.cost import blob_bytes, masked_bytes
from focal.heads.linear.demand import worker_bytes
from focal.heads.linear.layout import DATA_LIMBS, Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.net.store import Blobs
from focal.protocols.blind import plan, uploads
from focal.protocols.blind.compute import BlindCompute
from focal.protocols.common import refreshing
from focal.protocols.common.voice import Given
from focal.telling import Progress

LABEL, LISTS, NOTHING = "1a" * 32, "2b" * 32, "0" * 64
ETA = 2.0
"""Step size of whitened rows: 1 / (1 / 4 + ridge), and some room."""
PREPARED, COMBINED, ENGINE = 0.045, 0.012, 0.035
"""CPU seconds: to make an input, to add one up, and a pair of a block and a class group in a step, refresh included.
For the estimate before a run only."""
BESIDE = 300e6
"""Bytes of this process beside what the engine needs: rows in plaintext, twin, custodians."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """What one step took: CPU seconds over all threads, but ``wall``."""

    wall: float
    cpu: float
    """All but the custodians' shares."""
    forward: float
    """Without reading."""
    backward: float
    """Residuals, products, sums; without reading."""
    reading: float
    """Encrypted rows: from disk, checked, into the evaluator; in the first step they are added up before."""
    refreshing: float
    """At the server: requests, and adding up what the custodians gave."""
    custodians: float
    """Shares of all of them, the guard's check among it."""


@dataclass(frozen=True)
class Measured:
    manifest: Manifest
    layout: Layout
    file_bytes: int
    steps: tuple[Step, ...]
    peak_bytes: int
    """Most memory of this process in any of the steps."""
    error: float
    """Largest difference of a released weight from the twin's."""


class Problem:
    """``rows`` of two institutions, x ``features`` x ``classes``, and where they lie in blocks.
    ``babies``: of a layout of other rows than these."""

    def __init__(
        self, rows: int, features: int, classes: int, custodians: int, class_lanes: int = 1, babies: int | None = None
    ) -> None:
        names = [f"custodian-{i + 1}" for i in range(custodians)]
        whole = consortium({"north": rows}, custodians, features, classes, class_lanes)[0]
        block = plan.layout(whole).block_rows
        north = max(1, rows // block // 2) * block if rows > block else max(1, rows // 2)
        counts = {"north": north, "south": rows - north}
        self.manifest = consortium(counts, custodians, features, classes, class_lanes)[0]
        layout = plan.layout(self.manifest)
        self.layout = layout if babies is None else replace(layout, babies=babies)
        self.custodians = names

    @property
    def pairs(self) -> int:
        """Blocks times class groups: what is refreshed in a step, but for the weights."""
        return self.layout.blocks * self.layout.class_groups

    @property
    def inputs(self) -> int:
        return self.layout.blocks * (self.layout.lane + self.layout.class_groups)

    @property
    def upload_bytes(self) -> int:
        """What all institutions send."""
        return self.inputs * masked_bytes(self.manifest.ckks.ring)

    @property
    def contribution_bytes(self) -> int:
        """What one custodian gives for it."""
        n, layout = self.manifest.ckks.ring, self.layout
        data, target = (blob_bytes(n, layout.chunk_limbs(what), 1) for what in ("data", "target"))
        return layout.blocks * (layout.lane * data + layout.class_groups * target)

    @property
    def scratch_bytes(self) -> int:
        """Ciphertexts that are read in every pass."""
        return self.layout.blocks * self.layout.lane * blob_bytes(self.manifest.ckks.ring, DATA_LIMBS, 2)

    @property
    def disk_bytes(self) -> int:
        return self.upload_bytes + len(self.custodians) * self.contribution_bytes + self.scratch_bytes

    @property
    def seconds(self) -> float:
        """CPU seconds of preparation and two steps, roughly."""
        return self.inputs * (PREPARED + COMBINED) + 2 * self.pairs * (ENGINE + 0.012 * len(self.custodians))

    def memory_bytes(self, memory: int) -> float:
        """Roughly, with so many bytes for encrypted rows."""
        return worker_bytes(self.layout, memory, 1, copies=1) + BESIDE

    def describe(self, memory: int, threads: int) -> str:
        """What it will take, before anything is begun."""
        shape, (north, south) = self.layout, self.manifest.row_counts.values()
        return (
            f"{north + south} x {shape.features} x {shape.outputs}: {shape.blocks} blocks x {shape.class_groups} class "
            f"groups, {self.inputs} ciphertexts of rows; {self.upload_bytes / 1e9:.2f} GB of masked rows, "
            f"{len(self.custodians)} x {self.contribution_bytes / 1e9:.2f} GB of contributions, "
            f"{self.scratch_bytes / 1e9:.2f} GB of sums on disk; memory about "
            f"{self.memory_bytes(memory) / 1e9:.1f} GB; {self.seconds / threads / 60:.1f} minutes on a machine "
            "that does nothing else"
        )

    def rows_of(self, block: int) -> tuple[Array, Array]:
        """Features (n, R) and targets (n, C) of the rows in one block, the same at every call."""
        shape, x, t = self.layout, [], []
        for owned in plan.row_table(self.manifest, shape).values():
            first, last = max(owned[0], block * shape.block_rows), min(owned[1], (block + 1) * shape.block_rows)
            if first < last:
                rng = np.random.default_rng(first)
                own = np.clip(rng.standard_normal((last - first, shape.features)), -3, 3)
                true = np.random.default_rng(0).standard_normal((shape.features, shape.outputs))
                x.append(own)
                t.append(0.5 - np.eye(shape.outputs)[(own @ true).argmax(1)])
        return np.vstack(x), np.vstack(t)


@contextmanager
def folder_for(problem: Problem, where: Path) -> Iterator[Path]:
    """A folder of this command alone, in ``where``. Raises :class:`FocalError` where there is no room."""
    free = shutil.disk_usage(where).free
    if free < 1.05 * problem.disk_bytes:
        raise FocalError(
            f"{where}: {free / 1e9:.1f} GB are free, {1.05 * problem.disk_bytes / 1e9:.1f} GB are needed",
            hint="name a folder on a larger disk (--folder), or fewer rows",
        )
    with tempfile.TemporaryDirectory(prefix="focal-step-", dir=where) as name:
        yield Path(name)


def measure(problem: Problem, where: Path, memory: int, threads: int, progress: Progress, steps: int = 2) -> Measured:
    """Make the inputs, take the steps, compare with the twin."""
    with folder_for(problem, where) as folder:
        run = Rehearsal(problem.layout, custodians=len(problem.custodians), threads=threads, run=str(folder))
        try:
            return _measured(problem, run, folder, memory, threads, progress, steps)
        finally:
            run.pool.shutdown(cancel_futures=True)
            run.scheme.forget()


def _measured(
    problem: Problem, run: Rehearsal, folder: Path, memory: int, threads: int, progress: Progress, steps: int
) -> Measured:
    layout, done = problem.layout, 0
    expected = problem.inputs * 2 + problem.pairs * (4 * steps - 2)

    def count(more: int) -> None:
        nonlocal done
        done = min(done + more, expected - 1)
        progress(done, expected)

    blobs = Blobs(folder)
    lists, given, written = _inputs(problem, run, blobs, count)
    compute = BlindCompute(
        problem.manifest, run.scheme, layout, run.run_id, lists, LISTS, given, blobs.get, threads, memory, folder
    )
    try:
        taken, peak, weights = _steps(run, compute, steps, count)
    finally:
        compute.close()
    released = run.release(weights)
    x, targets = (np.vstack(part) for part in zip(*map(problem.rows_of, range(layout.blocks)), strict=True))
    exact = twin.train(x, targets, plan.scalars_of(problem.manifest, lists), steps)[0]
    progress(expected, expected)
    return Measured(problem.manifest, layout, written, taken, peak, float(np.abs(released - exact).max()))


# --------------------------------------------------------------------------- what is on disk


def _inputs(
    problem: Problem, run: Rehearsal, blobs: Blobs, count: Callable[[int], None]
) -> tuple[dict[str, msg.Upload], Given, int]:
    """Upload lists, what the custodians gave, and the bytes of all files: as institutions and custodians make them,
    one pair of keys after the other."""
    layout, scheme, secrets = (
        problem.layout,
        run.scheme,
        dict(zip(problem.custodians, run.consortium.limbs.values(), strict=True)),
    )
    lists, blobs_of, written = dict[str, msg.Upload](), {name: list[str]() for name in secrets}, 0
    kept: dict[int, tuple[Array, Array]] = {}

    def keep(data: bytes) -> str:
        """Where :class:`Blobs` looks for it; not forced to disk, as it is nobody's."""
        digest = codec.digest(data)
        (blobs.folder / digest[:2]).mkdir(exist_ok=True)
        (blobs.folder / digest[:2] / digest[2:]).write_bytes(data)
        return digest

    def rows(block: int) -> tuple[Array, Array]:
        if block not in kept:
            kept.clear()
            kept[block] = problem.rows_of(block)
        return kept[block]

    def made(name: str, place: uploads.Place) -> tuple[str, list[str], int]:
        block, what, g, h = place
        values = kept[block][0 if what == "data" else 1]
        slots = layout.data_slots(values, g, h) if what == "data" else layout.target_slots(values, g)
        item = uploads.item(layout, place, name)
        keys = {own: framing.digest(b"focal/bench/v1", name.encode(), own.encode()) for own in secrets}
        masks = {own: inputs.mask(key, LABEL, item, scheme.n) for own, key in keys.items()}
        a = inputs.public_random(scheme, run.run_id, LISTS, item, layout.chunk_limbs(what))
        up = inputs.masked(scheme, inputs.message(scheme, slots), list(masks.values()))
        parts = [inputs.contribution(scheme, secret, a, [masks[own]]) for own, secret in secrets.items()]
        return keep(up), [keep(part) for part in parts], len(up) + sum(map(len, parts))

    for name, (start, stop) in plan.row_table(problem.manifest, layout).items():
        places, chunks = layout.chunks(start, stop), list[str]()
        for block in layout.touched(start, stop):
            rows(block)
            own = [place for place in places if place[0] == block]
            for up, parts, size in run.pool.map(lambda place, name=name: made(name, place), own):
                chunks.append(up)
                for custodian, part in zip(secrets, parts, strict=True):
                    blobs_of[custodian].append(part)
                written += size
            count(len(own))
        lists[name] = msg.Upload(
            joint_keys=NOTHING, projection=NOTHING, eta_hex=ETA.hex(), rows=stop - start, first_row=start,
            mask_keys=NOTHING, label=LABEL, chunks=tuple(chunks), proofs=(NOTHING, NOTHING),
        )  # fmt: skip
    return lists, Given(blobs_of), written


# --------------------------------------------------------------------------- steps


def _steps(
    run: Rehearsal, compute: BlindCompute, steps: int, count: Callable[[int], None]
) -> tuple[tuple[Step, ...], int, list[Any]]:
    shard: Any = compute.engine.shards
    reading, shares = CpuClock(), CpuClock()
    reading.watch(compute, True, "_ciphertext", "_streamed")
    spent = {"forward": 0.0, "backward": 0.0, "refreshing": 0.0}
    layout = compute.layout

    def watch(name: str, where: str, per_block: int) -> None:
        call = getattr(shard, name)

        def timed(*given: Any) -> Any:
            cpu, read = time.process_time(), reading.spent
            out = call(*given)
            spent[where] += time.process_time() - cpu - (reading.spent - read)
            count(per_block * layout.blocks)
            return out

        setattr(shard, name, timed)

    watch("forward", "forward", 0)
    watch("backward", "backward", 0)
    block = shard.block

    def counted(b: int) -> Any:
        count(layout.class_groups)
        return block(b)

    shard.block = counted

    def ask(items: list[str], ciphertexts: list[Any]) -> list[Any]:
        cpu, theirs = time.process_time(), shares.spent
        out = []
        for i, item in enumerate(items):
            out += run.refresh([item], refreshing.taken(ciphertexts, slice(i, i + 1)))
            count(1)
        spent["refreshing"] += time.process_time() - cpu - (shares.spent - theirs)
        return out

    taken: list[Step] = []
    _forget_peak()
    weights, chain = compute.start()
    with _watched(shares, refresh, "share", "small_enough"):
        for step in range(steps):
            before = {**spent, "reading": reading.spent, "custodians": shares.spent}
            wall, cpu = time.perf_counter(), time.process_time()
            weights, said, _ = compute.step(step, weights, chain, ask)
            chain = said.chain
            now = {**spent, "reading": reading.spent, "custodians": shares.spent}
            own = {name: now[name] - value for name, value in before.items()}
            used = time.process_time() - cpu - own["custodians"]
            taken.append(Step(wall=time.perf_counter() - wall, cpu=used, **own))
    return tuple(taken), peak_bytes(), weights


@contextmanager
def _watched(clock: CpuClock, where: Any, *names: str) -> Iterator[None]:
    before = {name: getattr(where, name) for name in names}
    clock.watch(where, True, *names)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(where, name, function)


def _forget_peak() -> None:
    """Have the kernel forget this process's largest size so far (proc(5), clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # a system without it: the peak is that of the whole process
        return


def peak_bytes() -> int:
    """Largest resident size of this process, since it was forgotten."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
