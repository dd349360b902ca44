"""Hundreds of clinics in one process: the protocol's own code for all parties, real keys and records, made-up features.

::

    server, custodians, founders   threads to the end (focal.protocols.together)
    clinic 1, 2, ... 500           one visit after the other: mask, upload, leave
        some are interrupted in the middle of it: a part comes back before the uploads close, the others never do
    (uploads close: people say so)
    clinic 1, 2, ... 500           come for the model, and hand in the counts of their test rows

What a visit costs is measured in its own thread: everything of the protocol, the answers of the in-process network
included, but no backbone, as features are there. Seconds on a link are not measured: bytes over a stated speed.
"""

from __future__ import annotations

import functools
import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from focal.config import ConsortiumConfig, LayoutConfig, LocalConfig, ProjectionConfig, TrainingConfig
from focal.errors import FocalError
from focal.files import private_write
from focal.manifest import Manifest
from focal.measure import histogram
from focal.measure.metrics import bootstrap_ci, macro_auroc
from focal.measure.summary import Auroc, AurocInterval, build_summary, write_summary
from focal.measure.traffic import merge
from focal.protocols import of
from focal.protocols.blind import plan, roster
from focal.protocols.common import approval
from focal.protocols.common.audit import board_records, recorded
from focal.protocols.common.facts import phase_seconds
from focal.protocols.common.party import Audience
from focal.protocols.common.progress import Reporter, timeline
from focal.protocols.common.server import Server
from focal.protocols.together import Together
from focal.runs.simulate import ArrayInstitution, _agreed
from focal.telling import Say, Show

T = TypeVar("T")
FOUNDER_ROWS = 400
TEST_ROWS = 4000
SETTLING = 300.0
"""Seconds that a party may take until it waits for the uploads to close."""
POOLED = 3
"""Test results are added up where so many clinics have the model."""
Outcome = Literal["once", "came back", "lost"]


@dataclass(frozen=True)
class Crowd:
    """Who takes part, and how many of them fail."""

    clinics: int = 500
    rows: tuple[int, int] = (20, 2000)
    """Fewest and most of a clinic; as many small ones as large ones, by orders of magnitude."""
    loss: float = 0.05
    """Share of clinics whose visit is interrupted and who never come back."""
    late: float = 0.1
    """Share of those whose visit is interrupted, and who come again before the uploads close."""
    founders: int = 3
    custodians: int = 3
    features: Literal[32, 64, 128, 256] = 64
    classes: int = 8
    steps: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.rows
        if not (1 <= low <= high and self.clinics >= 1 and self.founders >= 3 and self.classes >= 2):
            raise FocalError(
                f"a crowd of {self.founders} founders and {self.clinics} clinics with {low} to {high} rows, "
                f"{self.classes} classes: at least three founders, one clinic, one row and two classes"
            )
        if not (self.loss >= 0 and self.late >= 0 and self.loss + self.late <= 1):
            raise FocalError(f"loss {self.loss:g} and late {self.late:g} are shares of all clinics: at most 1 together")


@dataclass
class Visit:
    """What one clinic did, and what it cost."""

    rows: int
    outcome: Outcome
    seconds: float = 0.0
    """CPU of its complete visit, without a backbone."""
    back: float = 0.0
    """CPU of its coming back for the model."""
    up: int = 0
    down: int = 0


class Inline(Executor):
    """Work in the thread that asks for it, whose CPU time then is all of it."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as e:
            future.set_exception(e)
        return future


class Visitor(ArrayInstitution):
    """A clinic whose CPU time is measured."""

    spent = 0.0

    def workers(self) -> Executor:
        return Inline()

    def run(self) -> None:
        begun = time.thread_time()
        super().run()
        self.spent = time.thread_time() - begun


class Interrupted(Visitor):
    """A clinic that dies when half of its rows are sent."""

    def send_stored(self, digests: list[str], audience: Audience) -> None:
        super().send_stored(digests[: len(digests) // 2], audience)
        raise FocalError(f"'{self.me.name}': the simulation ends its visit here")


class _Simulation:
    """One run of a crowd."""

    def __init__(self, crowd: Crowd, folder: Path, show: Show, say: Say) -> None:
        self.crowd, self.folder, self.say = crowd, folder, say
        deal = random.Random(crowd.seed)
        low, high = crowd.rows
        self.counts = {f"founder-{i + 1}": FOUNDER_ROWS for i in range(crowd.founders)}
        clinics = [f"clinic-{i + 1}" for i in range(crowd.clinics)]
        self.counts |= {name: round(low * (high / low) ** deal.random()) for name in clinics}
        fate = deal.sample(clinics, len(clinics))
        lost, late = round(crowd.loss * len(clinics)), round(crowd.late * len(clinics))
        self.lost, self.late = set(fate[:lost]), set(fate[lost : lost + late])
        self.visits = {
            name: Visit(
                self.counts[name], "lost" if name in self.lost else "came back" if name in self.late else "once"
            )
            for name in clinics
        }
        consortium = ConsortiumConfig(
            institutions=tuple(n for n in self.counts if n not in self.visits),
            clinics=tuple(clinics),
            custodians=crowd.custodians,
            share_blocks=True,
            pooled_roc=len(clinics) - lost >= POOLED,
            pooled_least=POOLED,
        )
        names = tuple(str(c) for c in range(crowd.classes))
        manifest, files = _agreed(
            folder, self.counts, self.width, names, "multiclass", consortium,
            ProjectionConfig(features=crowd.features), TrainingConfig(steps=crowd.steps),
        )  # fmt: skip
        (folder / "clinics").mkdir()
        self.manifest: Manifest = manifest
        self.kinds: dict[str, type[ArrayInstitution]] = {n: Interrupted for n in self.lost | self.late}
        self.report = Reporter("clinics", folder / "clinics" / "events.jsonl", show)
        self.parties = Together(manifest, files, self._shown, dict.fromkeys(self.counts, self._made))
        self._show = show

    @property
    def width(self) -> int:
        return self.crowd.features

    def given(self, name: str, count: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Features (n, d) around one point a class, moved and stretched a little by each site, and labels (n, K): the
        same at each call."""
        site = np.random.default_rng([self.crowd.seed, *name.encode()])
        centres = np.random.default_rng(self.crowd.seed).normal(size=(self.crowd.classes, self.width))
        labels = site.integers(self.crowd.classes, size=count)
        noise = 4 * site.normal(size=(count, self.width)) * site.uniform(0.8, 1.25, self.width)
        features = centres[labels] + noise + 0.3 * site.normal(size=self.width)
        return features.astype(np.float32), np.eye(self.crowd.classes, dtype=np.uint8)[labels]

    def _shown(self, event: dict[str, Any]) -> None:
        """What clinics say is too much to read."""
        if event["party"] not in self.visits:
            self._show(event)

    def _made(self, local: LocalConfig, report: Reporter) -> ArrayInstitution:
        name = local.name
        kind = self.kinds.get(name, Visitor if name in self.visits else ArrayInstitution)
        made = kind(self.manifest, *self.given(name, self.counts[name]), local, report)
        made.tested = self.tested(name)
        return made

    def tested(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Test rows of a site: a quarter as many."""
        return self.given(f"{name}/test", max(1, self.counts[name] // 4))

    # ----------------------------------------------------------------- the run

    def run(self) -> None:
        openers = [m.name for m in self.manifest.members if not m.clinic]
        with self.parties as parties:
            parties.start(*openers)
            with self.report.phase("upload"):
                self._visit(self.visits, "visits")
                for name in self.late:
                    self.kinds[name] = Visitor
                self._visit([name for name in self.visits if name in self.late], "visits that were interrupted")
                self._close([name for name in self.visits if name in self.lost])
            with self.report.phase("train"):
                first = self.manifest.founders[0].name
                self._wait(lambda: "weights" in parties.parties[first].__dict__, math.inf)
            self.attending = [n for n in self.counts if n not in self.lost]
            self.weights = self._weights(first)
            with self.report.phase("release"):
                self._visit([n for n in self.attending if n in self.visits], "models fetched", fetch=True)
                parties.finish(*(name for name in openers if name != self.manifest.server.name))
            parties.finish(self.manifest.server.name)

    def _visit(self, names: Iterable[str], what: str, fetch: bool = False) -> None:
        """Let these come, as many at a time as there are processors."""
        wanted = list(names)
        self.say(f"{len(wanted)} {what}")
        with ThreadPoolExecutor(os.cpu_count() or 1) as doors:
            for i, _ in enumerate(doors.map(lambda name: self._come(name, fetch), wanted)):
                self.report.progress(i + 1, len(wanted))

    def _come(self, name: str, fetch: bool) -> None:
        self.parties.start(name)
        try:
            self.parties.finish(name)
        except FocalError:
            if self.kinds.get(name) is not Interrupted:
                raise
        party = self.parties.parties.pop(name)  # its records and rows are of no use any more
        assert isinstance(party, Visitor)
        if fetch and not np.array_equal(party.weights, self.weights):
            raise FocalError(f"'{name}' decoded other weights than the others from the same shares", hint="report this")
        if fetch:
            self.visits[name].back = party.spent
        else:
            self.visits[name].seconds = party.spent

    def _close(self, missing: Sequence[str]) -> None:
        """``focal close`` at the server and at all custodians, once they wait for these."""
        for party in (self.manifest.server, *self.manifest.custodians) if missing else ():
            self._wait(functools.partial(self._let_go, self.folder / party.name, missing), SETTLING)

    @staticmethod
    def _let_go(folder: Path, missing: Sequence[str]) -> bool:
        try:
            approval.close_uploads(folder, missing)
        except FocalError:
            return False
        return True

    def _wait(self, there: Callable[[], bool], seconds: float) -> None:
        """Until something is so; raises what has gone wrong."""
        deadline = time.monotonic() + seconds
        while not there():
            if wrong := self.parties.errors.keys() - set(self.visits):
                self.parties.finish(*wrong)
            if time.monotonic() > deadline:
                raise FocalError("a party of the simulation does not go on", hint="report this")
            time.sleep(0.1)

    def _weights(self, name: str) -> NDArray[np.float64]:
        party = self.parties.parties[name]
        assert isinstance(party, ArrayInstitution)
        self.projection, self.scheme = party.projection, party.scheme
        return party.weights

    # ----------------------------------------------------------------- what is left

    def result(self, seconds: float) -> dict[str, Any]:
        """Write summary, visits and timeline; returns what is told."""
        from focal.reporting.plots import plot_timeline

        m, server = self.manifest, self.parties.parties[self.manifest.server.name]
        assert isinstance(server, Server)
        exact, present = self._twin()
        traffic = server.members_traffic()
        for name, visit in self.visits.items():
            visit.up, visit.down = (sum(both[way] for both in traffic[name].values()) for way in ("up", "down"))
        columns, labels = self._columns("test", TEST_ROWS)
        encrypted, own = columns @ self.weights, np.arange(TEST_ROWS).astype(str)
        auroc = macro_auroc(labels, encrypted, m.task), macro_auroc(labels, columns @ exact, m.task)
        interval = bootstrap_ci(labels, encrypted, own, m.task, repeats=200, seed=0)
        facts = of(m).plan.facts(m, self.scheme)
        facts["params"] |= {"rows": present, "clinics": len(self.visits)}
        facts["left_out"] = roster.of_board(m, recorded(m, server.folder))
        facts["params"].pop("lower")  # there is none
        error = float(np.abs(self.weights - exact).max())
        phases = {**phase_seconds(self.folder / server.me.name), "total": seconds}
        summary = build_summary(
            protocol=m.protocol, dataset="generated", auroc=Auroc(encrypted=auroc[0]),
            auroc_ci95=AurocInterval(encrypted=interval), seconds=phases, traffic=traffic, **facts,
        )  # fmt: skip
        write_summary(summary, self.folder)
        visits = {name: asdict(visit) for name, visit in self.visits.items()}
        openers = [x.name for x in m.members if not x.clinic]
        spans = [
            (name, e["phase"], e["start"], e["start"] + e["seconds"])
            for name in ("clinics", *openers)
            for e in timeline(self.folder / name)
            if e["phase"] != "gather"  # they wait for others
        ]
        begin = min(start for _, _, start, _ in spans)
        together = merge(*(traffic[name] for name in self.visits))
        shown = {"clinics": together, **{n: traffic[n] for n in openers if n != server.me.name}}
        plot_timeline([(n, p, s - begin, e - begin) for n, p, s, e in spans], shown, self.folder / "timeline.png")
        board = sum(map(len, board_records(server.folder)))
        told = self._told(traffic, error, present, board, auroc, phases) | self._pooled()
        private_write(self.folder / "crowd.json", json.dumps({**told, "visits": visits}, indent=1).encode())
        return told

    def _told(
        self,
        traffic: dict[str, dict[str, dict[str, int]]],
        error: float,
        present: int,
        board: int,
        auroc: tuple[float, float],
        phases: dict[str, float],
    ) -> dict[str, Any]:
        came = [visit for visit in self.visits.values() if visit.outcome != "lost"]
        link = LayoutConfig().link_mbyte_s
        worst = max(visit.up + visit.down for visit in came)
        return {
            "rows": present,
            "came": len(came),
            "lost": len(self.lost),
            "server_out_gb": sum(both["down"] for own in traffic.values() for both in own.values()) / 1e9,
            "server_in_gb": sum(both["up"] for own in traffic.values() for both in own.values()) / 1e9,
            "board_mb": board / 1e6,
            "visit_cpu_s": max(visit.seconds for visit in came),
            "visit_mb": worst / 1e6,
            "smallest_up_mb": min(came, key=lambda visit: visit.rows).up / 1e6,
            "visit_link_s": worst / 1e6 / link,
            "error": error,
            "auroc": auroc[0],
            "auroc_twin": auroc[1],
            "seconds": phases,
        }

    def _pooled(self) -> dict[str, Any]:
        """What a founder has of everybody's test rows, and the same without histograms."""
        path = self.folder / self.manifest.founders[0].name / histogram.FILE
        if not path.exists():
            return {}
        found = json.loads(path.read_text())
        rows = [self.tested(name) for name in self.attending]
        outputs = self.projection.apply(np.concatenate([x for x, _ in rows])) @ self.weights
        exact = macro_auroc(np.concatenate([y for _, y in rows]), outputs, self.manifest.task)
        figures = {key: found[key] for key in ("sites", "clinics", "rows", "auroc", "bound")}
        return {"pooled": {**figures, "exact": exact, "back_cpu_s": max(v.back for v in self.visits.values())}}

    def _columns(self, name: str, count: int) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
        features, labels = self.given(name, count)
        return self.projection.apply(features), labels

    def _twin(self) -> tuple[NDArray[np.float64], int]:
        """The weights of the same training in plaintext on the rows of all who came, and how many rows these are."""
        parts = [self._columns(name, self.counts[name]) for name in self.attending]
        columns = np.concatenate([x for x, _ in parts])
        labels = np.concatenate([y for _, y in parts])
        return plan.trained_in_clear(self.manifest, self.projection.eta, columns, labels), len(columns)


def simulate_crowd(crowd: Crowd, folder: Path, show: Show, say: Say) -> dict[str, Any]:
    """Run a crowd's whole protocol; write ``summary.json``, ``crowd.json`` and ``timeline.png`` into ``folder``, which
    also keeps every party's files. Returns what is told of it, by name.

    Raises :class:`FocalError` for a folder that is not empty, and for whatever ends the run.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FocalError(f"{folder} holds something already", hint="name another folder, or delete it")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    simulation, begun = _Simulation(crowd, folder, show, say), time.monotonic()
    rows = sum(simulation.counts.values())
    say(of(simulation.manifest).plan.describe(simulation.manifest).splitlines()[1])
    say(
        f"{crowd.founders} founders, {crowd.clinics} clinics with {rows} rows together; {len(simulation.lost)} will be "
        f"lost, {len(simulation.late)} interrupted"
    )
    needed, free = plan.stored(simulation.manifest), shutil.disk_usage(folder).free
    say(f"all parties' files take about {needed / 1e9:.1f} GB of disk; there are {free / 1e9:.1f}")
    if needed > free:
        raise FocalError(
            f"{folder}: about {needed / 1e9:.0f} GB are needed there, and {free / 1e9:.0f} are free",
            hint="fewer --clinics, --rows or --steps, or --out on a larger disk",
        )
    simulation.run()
    return simulation.result(time.monotonic() - begun)


def describe(found: dict[str, Any]) -> str:
    """What a simulated crowd took, in lines that say which figure is measured."""
    seconds, pooled = found["seconds"], found.get("pooled")
    curve = (
        f"pooled    AUROC {pooled['auroc']:.4f} +- {pooled['bound']:.4f} over the {pooled['rows']} test rows of "
        f"{pooled['sites']} sites, {pooled['clinics']} clinics among them, from counts that nobody saw; "
        f"{pooled['exact']:.4f} from all scores in one place; a clinic that comes back: at most "
        f"{pooled['back_cpu_s']:.1f} s of CPU"
        if pooled
        else "pooled    too few clinics for a curve over all test rows"
    )
    return "\n".join(
        (
            f"came      {found['came']} clinics, {found['lost']} were lost; {found['rows']} rows in the model",
            f"result    weights within {found['error']:.1e} of the plaintext twin of these rows; AUROC "
            f"{found['auroc']:.4f}, the twin's {found['auroc_twin']:.4f}",
            curve,
            f"measured  a clinic: at most {found['visit_cpu_s']:.1f} s of CPU and {found['visit_mb']:.1f} MB, the "
            f"smallest sends {found['smallest_up_mb']:.1f} MB; server: {found['server_out_gb']:.2f} GB out, "
            f"{found['server_in_gb']:.2f} GB in, board {found['board_mb']:.1f} MB",
            f"          all parties on this machine: keys {seconds['keys']:.0f} s, uploads {seconds['upload']:.0f} s, "
            f"training {seconds['train']:.0f} s, release {seconds['release']:.0f} s",
            f"model     a clinic's link at {LayoutConfig().link_mbyte_s:g} MB/s: {found['visit_link_s']:.1f} s",
        )
    )
