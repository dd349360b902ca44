"""``focal attack``: scenarios and seeds, one cell each, kept on disk; then the table and the pictures.

::

    OUT/cells/fedsgd.imprint.0.json   counts, baselines, control, seconds        a finished cell is not run again
    OUT/cells/fedsgd.imprint.0.npz    the best pairs of images, 0600             only with --show
    OUT/leaks.json  leaks.md  leaks.png  pictures/*.png

First seed 0 of everything, then further seeds of what takes the least time, while the budget lasts.
"""

from __future__ import annotations

import dataclasses
import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from focal.attacks import threat as threats
from focal.attacks.bench import PRIVATE, Bench
from focal.attacks.corpus import Corpus
from focal.attacks.scenarios import SCENARIOS, Found, Scenario
from focal.attacks.scores import Total, baselines, judge_all
from focal.attacks.threat import Knowledge, Threat
from focal.config import RunConfig
from focal.errors import FocalError
from focal.files import private_write
from focal.measure.leaks import FILE, FOLDER, Counted, Leak, Leaks, Separated
from focal.protocols import of
from focal.reading import read, write
from focal.reproduce.cells import digest, read_finished
from focal.telling import Say

SEEDS = 5
SHOWN = 8
"""Pairs of images in a picture."""
ARITHMETIC = 1
"""Counts changes of what attacks compute that no setting shows."""
SLACK = 1.1


@dataclass(frozen=True)
class Pairs:
    """Originals and reconstructions, (k, 3, s, s) in [0, 1], the best first."""

    originals: NDArray[np.float32]
    claimed: NDArray[np.float32]


class Study:
    """The cells of one folder of results."""

    def __init__(self, bench: Bench, out: Path, knows: Knowledge | None, show: bool) -> None:
        self.bench, self.out, self.knows, self.show = bench, out, knows, show
        self._run = "" if bench.given is None else digest([(bench.given / "manifest.json").read_text()])

    def threat(self, scenario: Scenario) -> Threat:
        """The scenario's own, or with what a person says that attackers know."""
        found = threats.find(scenario.threat)
        return found if self.knows is None else found.model_copy(update={"knows": self.knows})

    def configuration(self, scenario: Scenario) -> str:
        """Hash of what decides a cell, wherever files lie."""
        config = self.bench.config.model_dump(mode="json")
        for name in ("table", "images", "file"):
            config["dataset"][name] = None if config["dataset"][name] is None else Path(config["dataset"][name]).name
        config["lower"]["weights"] = Path(config["lower"]["weights"]).name
        threat = self.threat(scenario).model_dump(mode="json")
        return digest([ARITHMETIC, config, self._run, scenario.name, scenario.assumes, threat, PRIVATE])

    def path(self, scenario: Scenario, seed: int, suffix: str) -> Path:
        return self.out / "cells" / f"{scenario.name}.{seed}.{suffix}"

    def find(self, scenario: Scenario, seed: int) -> Leak | None:
        """The finished cell. With ``show``, one that has no picture yet is not finished."""
        leak = read_finished(self.path(scenario, seed, "json"), Leak, self.configuration(scenario))
        lacks = self.show and seed == 0 and leak is not None and leak.images is not None
        return None if lacks and not self.path(scenario, seed, "npz").exists() else leak

    def make(self, scenario: Scenario, seed: int) -> Leak:
        """Attack, score and keep."""
        started = time.perf_counter()
        found = scenario.run(self.bench, self.threat(scenario), seed)
        leak, total = self._scored(scenario, seed, found, started)
        if self.show and seed == 0 and total is not None:
            self._keep_pairs(scenario, seed, found, total)
        write(leak, self.path(scenario, seed, "json"))
        return leak

    def _scored(self, scenario: Scenario, seed: int, found: Found, started: float) -> tuple[Leak, Total | None]:
        threat = self.threat(scenario)
        fields: dict[str, Any] = {}
        total = None
        if found.trials:
            private = self._corpus(found).scored(found.trials[0].target, found.size)
            total = judge_all(found.trials, private)
            public = self.bench.public_images(found.size, threat.knows.public_images)
            without = baselines(found.trials, private, public, seed)
            fields = {
                "images": _counted(total),
                "mean": _counted(without["mean"]),
                "random": _counted(without["random"]),
                "control": _counted(judge_all(found.control, private)),
                "psnr": total.psnr,
                "ssim": total.ssim,
            }
        for name, told in (("separated", found.told), ("control_separated", found.control_told)):
            fields[name] = None if told is None else Separated(auc=told.auc, tpr=told.tpr, n=told.n)
        leak = Leak(
            name=scenario.name,
            method=scenario.method,
            title=scenario.title,
            threat=threat.name,
            active=threat.active,
            seed=seed,
            configuration=self.configuration(scenario),
            assumes=scenario.assumes,
            teeth=scenario.teeth,
            reproduced=scenario.reproduced,
            correlation=found.correlation,
            relations=found.relations,
            seconds=time.perf_counter() - started,
            **fields,
        )
        return leak, total

    def _corpus(self, found: Found) -> Corpus:
        """The images that claims are judged among."""
        corpus = self.bench.corpus
        return corpus if found.rows is None else dataclasses.replace(corpus, private=found.rows)

    def _keep_pairs(self, scenario: Scenario, seed: int, found: Found, total: Total) -> None:
        best = total.best[:SHOWN]
        corpus = self._corpus(found)
        images = corpus.read(corpus.private, found.size)
        claimed = [found.trials[t].claims.images[i].clamp(0, 1).numpy() for t, i, _ in best]
        buffer = io.BytesIO()
        shape = (0, 3, found.size, found.size)
        np.savez_compressed(
            buffer,
            originals=np.array([images[j].numpy() for _, _, j in best], np.float32).reshape(-1, *shape[1:]),
            claimed=np.array(claimed, np.float32).reshape(-1, *shape[1:]),
        )
        private_write(self.path(scenario, seed, "npz"), buffer.getvalue())

    def pairs(self, scenario: Scenario) -> Pairs | None:
        """Of seed 0, where they were kept and are to be shown."""
        path = self.path(scenario, 0, "npz")
        if not self.show or not path.exists():
            return None
        with np.load(path) as f:
            return Pairs(f["originals"], f["claimed"])


def _counted(total: Total) -> Counted:
    return Counted(**total.leaked._asdict())


# --------------------------------------------------------------------------- the command


def choose(
    targets: Sequence[str], parties: Sequence[str], attacks: Sequence[str], active: bool | None = None
) -> list[Scenario]:
    """The scenarios of ``targets`` (methods, or scenarios by name; none: all) for the roles ``parties``, those that
    deviate or those that do not where ``active`` says which.

    Raises :class:`FocalError` for a name that nobody has, and when nothing is left.
    """
    methods = sorted({one.method for one in SCENARIOS.values()})
    for target in targets:
        if not any(one.answers_to(target) for one in SCENARIOS.values()):
            raise FocalError(f"there is no method or attack '{target}'", hint=f"methods are {', '.join(methods)}")
    chosen = [
        one
        for one in SCENARIOS.values()
        if (not targets or any(map(one.answers_to, targets)))
        and (not parties or set(parties) == set(threats.find(one.threat).who))
        and (active is None or threats.find(one.threat).active == active)
        and (not attacks or one.name.partition(".")[2] in attacks)
    ]
    if not chosen:
        raise FocalError(
            f"no attack on {', '.join(targets) or 'any method'} as {', '.join(parties) or 'anybody'} is known",
            hint="'focal attack --list' shows all",
        )
    return chosen


def attack(
    scenarios: Sequence[Scenario],
    config: RunConfig,
    out: Path,
    say: Say,
    *,
    run: Path | None = None,
    seeds: int = SEEDS,
    budget: float = 30.0,
    knows: Knowledge | None = None,
    show: bool = False,
) -> Leaks:
    """Run ``scenarios`` on the data of ``config`` (of ``run``, where one is attacked) and write table and pictures.

    Every scenario is run once whatever the ``budget`` (minutes) says; further seeds while it lasts. Raises
    :class:`FocalError` when the data are not there, when ``out`` holds cells of another configuration, and, with
    everything else written, when an attack failed.
    """
    if run is None and of(config).joint:
        raise FocalError(
            f"'{config.name}' is an interactive run's configuration; attacks begin with a blind one's",
            hint="give a finished interactive run, or a blind configuration: the benchmark makes both runs of it",
        )
    started = time.monotonic()
    bench = Bench(config, out / "runs" if run is None else run.parent, run)
    study = Study(bench, out, knows, show)
    leaks = {(one.name, seed): leak for one in scenarios for seed in range(seeds) if (leak := study.find(one, seed))}
    failed = []
    try:
        for seed in range(seeds):
            for one in sorted(scenarios, key=lambda s: leaks[s.name, 0].seconds if seed else 0):
                if (one.name, seed) in leaks:
                    continue
                used = (time.monotonic() - started) / 60
                if seed and used + SLACK * leaks[one.name, 0].seconds / 60 > budget:
                    continue
                try:
                    leak = study.make(one, seed)
                except FocalError as e:
                    if seed:
                        raise
                    failed.append(one.name)
                    say(f"  {one.name}: failed: {e}")
                    continue
                leaks[one.name, seed] = leak
                say(f"  {one.name + ' ' + str(seed):<34} {verdict(leak):<44} {leak.seconds:6.1f} s")
            scenarios = [one for one in scenarios if (one.name, 0) in leaks]
    finally:  # after an interruption too
        every = _in_order(leaks)
        made = f"{os.cpu_count()} cores, {sum(leak.seconds for leak in every) / 60:.1f} min spent"
        found = Leaks(made=made, data=f"{bench.table.name}, {len(bench.corpus.private)} images", leaks=tuple(every))
        _write(found, study, out)
    say(f"table: {out / 'leaks.md'}, leaks.json, leaks.png" + (", pictures/" if show else ""))
    if failed:
        raise FocalError(f"{len(failed)} attacks failed: {', '.join(failed)}", hint="give the same command again")
    return found


def verdict(leak: Leak) -> str:
    """One line of what was found."""
    if leak.relations is not None:
        return leak.relations.text
    if leak.images is not None:
        return f"{leak.images.text}; mean image {leak.mean.k if leak.mean else 0}"
    assert leak.separated is not None
    return f"AUC {leak.separated.auc:.3f}, TPR at 1 % FPR {100 * leak.separated.tpr:.1f} %"


def _in_order(leaks: dict[tuple[str, int], Leak]) -> list[Leak]:
    """What was made now or found, in the order of the table."""
    order = {name: i for i, name in enumerate(SCENARIOS)}
    return sorted(leaks.values(), key=lambda leak: (order[leak.name], leak.seed))


def _write(found: Leaks, study: Study, out: Path) -> None:
    from focal.reporting import leaks as drawn

    write(found, out / FILE)
    private_write(out / "leaks.md", drawn.markdown(found).encode())
    drawn.plot_leaks(found, out / "leaks.png")
    for one in SCENARIOS.values():
        if (pairs := study.pairs(one)) is not None:
            first = next(leak for leak in found.leaks if leak.name == one.name)
            drawn.plot_pairs(first, pairs.originals, pairs.claimed, out / "pictures" / f"{one.name}.png")


def roles(parties: Sequence[str], config: RunConfig) -> tuple[str, ...]:
    """The role of each of ``parties``, members of a run of ``config`` or roles themselves. Raises
    :class:`FocalError` for a name that is neither."""
    consortium = config.consortium
    known: dict[str, str] = {role: role for role in get_args(threats.Role)}
    known |= dict.fromkeys(consortium.custodian_names(), "custodian")
    known |= dict.fromkeys(consortium.institution_names(), "hospital")
    for name in parties:
        if name not in known:
            raise FocalError(f"there is no party '{name}'", hint=f"there are {', '.join(known)}")
    return tuple(known[name] for name in parties)


def config_of(run: Path) -> RunConfig:
    """What a local run was made from."""
    return read(RunConfig, run / "config.json")


def method_of(config: RunConfig) -> str:
    """What a run of ``config`` is called among the methods."""
    return f"focal-{config.protocol}"


def default_out(run: Path | None) -> Path:
    """Where results go that nobody gave a folder for."""
    return Path("runs") / FOLDER if run is None else run / FOLDER
