"""Scale: unit costs that are measured here, and from them a model of runs that this machine could not take.

::

    measured   steps over few blocks, streamed from disk, by a server's code (step.py)     CPU seconds of a thing
               refreshes by real processes over sockets (refresh.py)                  what is beside arithmetic
               this disk
    exact      bytes of every message, from the format
    model      all of it for 10^5 and 10^6 rows, on 1, 2, 4 and 8 machines (focal.heads.linear.demand)

Or one step over so many rows, measured, beside one over 65,536.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from focal.bench.refresh import refreshes
from focal.bench.result import Result
from focal.bench.step import Measured, Problem, Step, measure
from focal.ckks import native
from focal.heads.linear.demand import PASSES, Demand, Machine, Prices, demand
from focal.telling import Progress, Say

ROWS = (100_000, 1_000_000)
MACHINES = (1, 2, 4, 8)
BLOCKS = (2, 6)
"""Measured are steps over so many: what does not depend on their number is told from what does."""
BASE = 65_536
"""Rows of the step that a larger one is compared with."""
ITEMS = 64
DISK_BYTES = 256 << 20


@dataclass(frozen=True)
class Wish:
    """What the model is asked for."""

    features: int = 64
    classes: int = 8
    custodians: int = 3
    cores: int = 16
    link_mbyte_s: float = 125.0
    """Between server and custodians."""
    inner_mbyte_s: float = 1250.0
    """Between the machines of one party."""
    memory_gb: float = 2.0
    """Of each machine, for encrypted rows."""


# --------------------------------------------------------------------------- measured


def unit_costs(wish: Wish, folder: Path, say: Say, progress: Progress) -> tuple[Prices, dict[str, Any]]:
    """Prices of the layout of 10^6 rows, and what else was measured."""
    whole = Problem(ROWS[-1], wish.features, wish.classes, wish.custodians)
    few, many = (
        Problem(blocks * whole.layout.block_rows, wish.features, wish.classes, wish.custodians, 1, whole.layout.babies)
        for blocks in BLOCKS
    )
    say(f"measures steps over {BLOCKS[0]} and {BLOCKS[1]} blocks: {few.describe(0, 1)}; {many.describe(0, 1)}")
    found = []
    for i, problem in enumerate((few, many)):
        half = _part(progress, i, 2)
        found.append((problem, measure(problem, folder, 0, 1, half)))
    beside = refreshes(ITEMS, wish.custodians).numbers
    prices = prices_of(found, beside)
    disk = disk_speed(folder)
    errors = [measured.error for _, measured in found]
    return prices, {"disk_bytes_per_second": disk, "refresh": beside, "largest_weight_error": max(errors)}


def prices_of(found: list[tuple[Problem, Measured]], beside: dict[str, Any]) -> Prices:
    """From steps over few and over many blocks, and from a refresh by processes."""
    (few, _), (many, measured) = found
    groups, blocks = many.layout.class_groups, [problem.layout.blocks for problem, _ in found]
    engine = [m.steps[1].forward + m.steps[1].backward for _, m in found]
    pair = max(0.0, (engine[1] - engine[0]) / ((blocks[1] - blocks[0]) * groups))
    last, items = measured.steps[1], many.pairs + groups

    def besides(role: str) -> float:
        return (beside[role]["encryption_cpu_ms"] + beside[role]["rest_cpu_ms"]) / 1e3

    return Prices(
        added=measured.steps[0].reading / many.inputs,
        read=last.reading / (PASSES * blocks[1] * many.layout.lane),
        group=max(0.0, engine[0] / groups - blocks[0] * pair),
        pair=pair,
        asked=last.refreshing / items,
        answered=last.custodians / items / len(many.custodians),
        beside_server=besides("server"),
        beside_custodian=besides("guard"),
    )


def disk_speed(folder: Path) -> float:
    """Bytes a second of one file in ``folder`` that is read from the disk and not from the system's memory, as far as
    the system lets go of it."""
    piece = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(DISK_BYTES >> 20):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        began = time.perf_counter()
        while file.read(1 << 20):
            pass
        return DISK_BYTES / (time.perf_counter() - began)


def _part(progress: Progress, i: int, of: int) -> Progress:
    return lambda done, total: progress(i * total + done, of * total)


# --------------------------------------------------------------------------- model


@dataclass(frozen=True)
class Modelled:
    rows: int
    machines: int
    server: Demand
    custodian: Demand

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of a step: the slower of server and custodian in each, who wait for each other."""
        both = (self.server, self.custodian)
        return {
            "compute": max(d.compute_seconds for d in both),
            "refresh": max(d.refresh_seconds for d in both),
            "between machines": max(d.inner_seconds for d in both),
        }

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    def line(self) -> str:
        own, theirs, gb = self.server, self.custodian, 1e9
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.parts.items())
        machines = f"{self.machines} machine{'s' if self.machines > 1 else ' '}"
        return (
            f"  {self.rows:>9,} rows, {machines}: {self.seconds:5.1f} s a step "
            f"({parts}); before it {max(own.once_seconds, theirs.once_seconds):.0f} s\n"
            f"    memory {own.memory_bytes / gb:.1f} GB each; "
            f"disk: server {own.disk_bytes / gb:.1f} GB and {own.step_disk_bytes / gb:.2f} a step, "
            f"custodian {theirs.disk_bytes / gb:.1f} and {theirs.step_disk_bytes / gb:.2f}; "
            f"link of the custodian {theirs.once_bytes / gb:.1f} GB once and {theirs.step_bytes / gb:.2f} a step; "
            f"between a party's machines {theirs.inner_bytes / gb:.2f} GB a step"
        )


def model(wish: Wish, prices: Prices, disk: float) -> list[Modelled]:
    """A step of every size in :data:`ROWS` on as many machines as :data:`MACHINES` says; ``disk``: bytes a second."""
    machine = Machine(wish.cores, int(wish.memory_gb * 1e9), disk, wish.link_mbyte_s * 1e6, wish.inner_mbyte_s * 1e6)
    out = []
    for rows in ROWS:
        p = Problem(rows, wish.features, wish.classes, wish.custodians)
        m = p.manifest
        for count in MACHINES:
            server, custodian = (
                demand(
                    p.layout, m.ckks, m.row_counts, wish.custodians, m.training.degree, prices, machine, count, is_it
                )
                for is_it in (True, False)
            )
            out.append(Modelled(rows, count, server, custodian))
    return out


def scale(wish: Wish, folder: Path, say: Say, progress: Progress) -> tuple[Result, list[Modelled]]:
    """Measure the unit costs, and model the rest."""
    prices, measured = unit_costs(wish, folder, say, progress)
    found = model(wish, prices, measured["disk_bytes_per_second"])
    ms = {name: 1e3 * value for name, value in asdict(prices).items()}
    lines = [
        f"measured  here ({os.cpu_count()} cores, kernels {native.description}), CPU ms: a ciphertext of rows added up "
        f"{ms['added']:.1f}, read again {ms['read']:.2f}; in a step a class group {ms['group']:.0f}, a block and class "
        f"group {ms['pair']:.1f}",
        f"          a refresh: server {ms['asked']:.1f} and {ms['beside_server']:.1f} beside arithmetic, custodian "
        f"{ms['answered']:.1f} and {ms['beside_custodian']:.1f} (the guard); disk "
        f"{measured['disk_bytes_per_second'] / 1e6:.0f} MB/s; weights err by {measured['largest_weight_error']:.1e}",
        f"exact     bytes of messages and files; {wish.custodians} custodians, R = {wish.features}, C = {wish.classes}",
        f"model     all below, for machines of {wish.cores} such cores, a link of {wish.link_mbyte_s:g} MB/s, "
        f"{wish.inner_mbyte_s:g} MB/s between a party's machines, {wish.memory_gb:g} GB of each for rows; "
        "server and verifying custodian have as many. Not in it: waiting for each other's messages",
        *(one.line() for one in found),
    ]
    numbers = {
        "wish": asdict(wish),
        "measured": {"cpu_seconds": asdict(prices), **measured},
        "model": [
            {"rows": one.rows, "machines": one.machines, "step_seconds": one.seconds, "parts": one.parts}
            | {"server": asdict(one.server), "custodian": asdict(one.custodian)}
            for one in found
        ],
    }
    return Result("\n".join(lines), numbers), found


# --------------------------------------------------------------------------- one step over many rows


def compared(rows: int, wish: Wish, folder: Path, threads: int, memory: int, say: Say, progress: Progress) -> Result:
    """A step over ``rows``, and one over 65,536 (or a quarter, of fewer), with their CPU seconds a row."""
    few = min(BASE, max(1, rows // 4))
    problems = [Problem(n, wish.features, wish.classes, wish.custodians) for n in (few, rows)]
    for problem in problems:
        say(problem.describe(memory, threads))
    found = []
    for i, problem in enumerate(problems):
        found.append(measure(problem, folder, memory, threads, _part(progress, i, 2)))
        say(_line(problem, found[-1]))
    per_row = [1e6 * m.steps[1].cpu / sum(m.manifest.row_counts.values()) for m in found]
    numbers = {
        "threads": threads,
        "memory_for_rows": memory,
        "microseconds_per_row": per_row,
        "ratio": per_row[1] / per_row[0],
        "steps": [
            {
                "rows": sum(m.manifest.row_counts.values()),
                "blocks": m.layout.blocks,
                "class_groups": m.layout.class_groups,
                "file_bytes": m.file_bytes,
                "peak_bytes": m.peak_bytes,
                "weight_error": m.error,
                "cpu_seconds": [asdict(step) for step in m.steps],
            }
            for m in found
        ],
    }
    text = (
        f"CPU a row in a step: {per_row[0]:.0f} us of {few:,} rows, {per_row[1]:.0f} us of {rows:,}, "
        f"ratio {numbers['ratio']:.2f} (target: at most 1.1); memory {found[1].peak_bytes / 1e9:.2f} GB (target: 4)"
    )
    return Result(text, numbers)


def _line(problem: Problem, found: Measured) -> str:
    first, step = found.steps
    return (
        f"{sum(problem.manifest.row_counts.values()):,} rows: {_spent(step)}; the first step {_spent(first)}; "
        f"peak {found.peak_bytes / 1e9:.2f} GB; released weights err by {found.error:.1e}"
    )


def _spent(step: Step) -> str:
    return (
        f"{step.cpu:.1f} s of CPU, {step.wall:.1f} s of wall time (forward {step.forward:.1f}, backward "
        f"{step.backward:.1f}, rows {step.reading:.1f}, refresh {step.refreshing:.1f}; custodians besides "
        f"{step.custodians:.1f})"
    )
