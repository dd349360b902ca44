"""The whole study within a time budget: which repeats fit, in which order, and what is left for next time.

A *repeat* is all methods on one table, dealt one way with one seed: rows of one table part always rest on the same
seeds. The first repeat of everything is made whatever the budget says; further seeds are added while they fit,
cheap ones first, so that the longest are the first to go. A method is never left out for time. Minutes already
spent in a results folder count, so that the same command, given again after an interruption, completes the same
study and adds nothing to a finished one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from focal.errors import FocalError
from focal.reproduce.cases import TABLES, Case, Dealing, PaperTable, Source
from focal.reproduce.cells import Arrays, Cell, Key, Store, digest, measure
from focal.reproduce.methods import METHODS, Method
from focal.reproduce.tables import Part, write_results
from focal.telling import Say

SEEDS = 5
"""Repeats at most: more would narrow what seeds change, and the test patients stay the same."""
IMAGES_PER_SECOND = 60.0
"""Features on two cores, for the first estimate."""
ARITHMETIC = 2
"""Counts changes of what methods compute that no setting shows (2: encrypted sums on a grid):
older cells are of another configuration."""
SLACK = 1.1
"""By how much a repeat may take longer than the last one of its kind."""
ROWS = 4000
"""For which :attr:`Method.rough_seconds` holds."""


@dataclass(frozen=True)
class Repeat:
    """All methods on one table, dealt one way with one seed."""

    source: Source
    dealing: Dealing
    seed: int

    def key(self, method: Method) -> Key:
        return Key(self.source.paper.name, self.dealing.name, method.name, self.seed)

    def of(self, method: Method) -> Source:
        return self.source.small if method.small else self.source

    def configuration(self, method: Method) -> str:
        """Hash of everything that decides a cell's result, wherever its files lie."""
        source = self.of(method)
        config = source.run_config(self.dealing, self.seed).model_dump(mode="json")
        for field_ in ("table", "images", "file"):
            config["dataset"][field_] = None
        config["lower"]["weights"] = Path(config["lower"]["weights"]).name
        return digest([ARITHMETIC, config, source.fingerprint, method.name, method.settings])

    def __str__(self) -> str:
        return f"{self.source.paper.name}, {self.dealing.title}, seed {self.seed}"


@dataclass
class Study:
    """What is planned, what is finished, what failed."""

    sources: Sequence[Source]
    methods: Sequence[Method]
    store: Store
    cells: dict[Key, Cell] = field(default_factory=dict)
    failed: dict[Key, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for repeat in self.repeats(range(SEEDS)):
            for method in self.shown(repeat.source, repeat.dealing):
                key = repeat.key(method)
                if (cell := self.store.find(key, repeat.configuration(method))) is not None:
                    self.cells[key] = cell

    def shown(self, source: Source, dealing: Dealing) -> list[Method]:
        """The methods of one part of a paper table."""
        return [method for method in self.methods if method.belongs(source.paper.name, dealing.name)]

    def repeats(self, seeds: Sequence[int] | range) -> list[Repeat]:
        return [
            Repeat(source, dealing, seed)
            for seed in seeds
            for source in self.sources
            for dealing in source.paper.dealings
        ]

    @property
    def spent(self) -> float:
        """Seconds that the finished cells took."""
        return sum(cell.spent for cell in self.cells.values())

    def open(self, repeat: Repeat) -> list[Method]:
        """The methods that are not finished."""
        return [method for method in self.shown(repeat.source, repeat.dealing) if repeat.key(method) not in self.cells]

    def seconds(self, repeat: Repeat) -> float:
        """How long what is open will take: as another seed did, otherwise by rows."""
        total = 0.0
        for method in self.open(repeat):
            same = [c.spent for k, c in self.cells.items() if k[:3] == repeat.key(method)[:3]]
            total += (
                sum(same) / len(same)
                if same
                else method.rough_seconds * (0.2 + len(repeat.source.table.train_rows) / ROWS)
            )
        return total

    def plan(self, budget: float) -> tuple[list[Repeat], float]:
        """The repeats to make within ``budget`` seconds, spent ones counted,
        and the seconds expected for what is open."""
        chosen = [repeat for repeat in self.repeats([0]) if self.open(repeat)]
        fresh = {repeat.source.paper.name: repeat.source for repeat in chosen if not self._started(repeat.source)}
        expected = sum(map(self.seconds, chosen)) + sum(len(s.table) for s in fresh.values()) / IMAGES_PER_SECOND
        for seed in range(1, SEEDS):
            for repeat in sorted(self.repeats([seed]), key=self.seconds):
                cost = self.seconds(repeat)
                if self.open(repeat) and self.spent + expected + cost <= budget:
                    chosen.append(repeat)
                    expected += cost
        return chosen, expected

    def _started(self, source: Source) -> bool:
        return any(key.table == source.paper.name for key in self.cells)

    def make(self, repeat: Repeat, say: Say) -> None:
        """Every open cell of a repeat. What a person can mend is noted and the others go on."""
        made: dict[bool, Case] = {}
        for method in self.open(repeat):
            key = repeat.key(method)
            try:
                if method.small not in made:
                    made[method.small] = repeat.of(method).case(repeat.dealing, repeat.seed)
                cell = self._cell(repeat, method, made[method.small])
            except FocalError as e:
                self.failed[key] = str(e).splitlines()[0]
                say(f"  {key}: failed: {e}")
                continue
            self.cells[key] = cell
            reached = [score.auroc for score in cell.models.values()]
            low, high = f"{min(reached):.3f}", f"{max(reached):.3f}"
            spread = low if low == high else f"{low} to {high}"
            say(f"  {method.title:<44} AUROC {spread:<14} {cell.seconds:7.1f} s")

    def _cell(self, repeat: Repeat, method: Method, case: Case) -> Cell:
        started = time.perf_counter()
        outcome = method.run(case)
        measured = {
            name: measure(case.labels, s, case.groups, case.task, case.classes) for name, s in outcome.scores.items()
        }
        key = repeat.key(method)
        cell = Cell(
            **key._asdict(),
            configuration=repeat.configuration(method),
            models={name: score for name, (score, _) in measured.items()},
            seconds=outcome.seconds,
            spent=max(
                time.perf_counter() - started, outcome.seconds
            ),  # an encrypted run may have begun before an interruption
            traffic=dict(outcome.traffic),
            curve=outcome.curve,
            facts=outcome.facts,
        )
        resamples = {name: drawn for name, (_, drawn) in measured.items()}
        self.store.keep(cell, Arrays(case.task, case.labels, outcome.scores, resamples))
        return cell

    def parts(self, source: Source) -> list[Part]:
        """What the tables show: for each dealing the seeds that every finished method has."""
        return [self._part(source, dealing) for dealing in source.paper.dealings]

    def _part(self, source: Source, dealing: Dealing) -> Part:
        name, methods = source.paper.name, self.shown(source, dealing)
        done = {m: {k.seed for k in self.cells if k[:3] == (name, dealing.name, m.name)} for m in methods}
        shared = sorted(set.intersection(*[seeds for seeds in done.values() if seeds] or [set()]))
        cells = {m: [self.cells[Key(name, dealing.name, m.name, s)] for s in shared] for m in methods if done[m]}
        absent = {
            m: self.failed.get(Key(name, dealing.name, m.name, 0), "not finished yet") for m in methods if not done[m]
        }
        return Part(dealing, shared, {m: own for m, own in cells.items() if own}, absent)


def reproduce(
    budget: float,
    out: Path,
    configs: Path,
    say: Say,
    *,
    tables: Sequence[PaperTable] = TABLES,
    methods: Sequence[Method] = METHODS,
) -> Path:
    """Make (or continue) the study within ``budget`` minutes and write ``results.md``,
    ``results.json`` and a picture per table to ``out``.

    Tables without data here are skipped with a line. Raises :class:`FocalError` when ``out`` holds another
    configuration's cells, when no table has data, and, with everything else done and written, when cells failed.
    """
    started = time.monotonic()
    sources, skipped = _sources(tables, configs, out / "runs", say)
    study = Study(sources, methods, Store(out))
    chosen, expected = study.plan(60 * budget)
    say(
        f"{len(study.cells)} cells are finished ({study.spent / 60:.1f} min); open: {len(chosen)} repeats, "
        f"about {expected / 60:.0f} min"
    )
    if chosen and study.spent + expected > 60 * budget:
        say(
            f"  more than the budget of {budget:g} min: "
            "one repeat of everything is made all the same, and no further ones"
        )
    before = study.spent
    try:
        for done, repeat in enumerate(chosen):
            used = before + time.monotonic() - started
            if repeat.seed > 0 and used + SLACK * study.seconds(repeat) > 60 * budget:
                say(f"[{done + 1}/{len(chosen)}] {repeat}: left out, it would not fit the budget")
                continue
            say(f"[{done + 1}/{len(chosen)}] {repeat}")
            study.make(repeat, say)
    finally:  # after an interruption too: what is finished is worth reading
        papers: Mapping[PaperTable, list[Part]] = {source.paper: study.parts(source) for source in sources}
        write_results(
            out,
            papers,
            skipped,
            study.store,
            f"{os.cpu_count()} cores, budget {budget:g} min, {study.spent / 60:.1f} min spent",
        )
    say(f"tables: {out / 'results.md'}, results.json, table-*.png")
    if study.failed:
        raise FocalError(
            f"{len(study.failed)} cells failed, see above", hint="give the same command again: only they are run"
        )
    return out / "results.md"


def _sources(
    tables: Sequence[PaperTable], configs: Path, runs: Path, say: Say
) -> tuple[list[Source], dict[PaperTable, str]]:
    sources: list[Source] = []
    skipped: dict[PaperTable, str] = {}
    for paper in tables:
        try:
            sources.append(Source(paper, configs, runs))
        except FocalError as e:
            skipped[paper] = str(e).splitlines()[0]
            say(f"Table {paper.number} is skipped: {e}")
    if not sources:
        raise FocalError("no table has its data on this machine", hint="set FOCAL_DATA to the folder that holds it")
    return sources, skipped
