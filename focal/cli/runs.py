"""Whole runs on this machine, and what is done with a finished run: calls of the functions of :mod:`focal.api`.

Without such a function: ``simulate`` (a crowd that is made up), ``reproduce``, ``clean``, ``approve``.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

import focal
from focal.cli.common import JsonOption, RunsOption, app, resumable, say
from focal.cli.progress import Bar, Bars
from focal.errors import FocalError
from focal.extras import require

# --------------------------------------------------------------------------- local runs


@app.command()
def demo(runs: RunsOption = Path("runs")) -> None:
    """The main job on generated images: nothing to download, three institutions, a few minutes."""
    run_and_show("demo", runs)


@app.command()
def train(
    config: Annotated[
        str, typer.Option(help="A run configuration: one that comes with focal (demo, retina, ...) or a file.")
    ],
    runs: RunsOption = Path("runs"),
) -> None:
    """Start (or continue) a whole consortium on this machine and follow it to its result."""
    run_and_show(config, runs)


def run_and_show(config: str | Path, runs: Path) -> None:
    """Train, with bars and results on the terminal."""
    with resumable(), Bars() as board:
        focal.train(config, runs=runs, say=board.line, show=board.show, done=board.done)


@app.command("simulate")
def simulate_clinics(
    clinics: Annotated[int, typer.Option(min=1, max=1000, help="Institutions that come once.")] = 500,
    rows: Annotated[str, typer.Option(help="Fewest and most of a clinic: 20..2000.")] = "20..2000",
    loss: Annotated[float, typer.Option(help="Share of clinics that die in their upload and never come back.")] = 0.05,
    late: Annotated[float, typer.Option(help="Share that die in their upload and come back in time.")] = 0.1,
    founders: Annotated[int, typer.Option(min=3, max=10)] = 3,
    custodians: Annotated[int, typer.Option(min=2, max=8)] = 3,
    steps: Annotated[int, typer.Option(min=2, max=50)] = 5,
    seed: Annotated[int, typer.Option(help="Draws rows, features and fates.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for summary, timeline and every party's files.")] = Path(
        "runs/crowd"
    ),
) -> None:
    """The whole protocol with hundreds of clinics in this process: real keys and records, features that are made up."""
    from focal.runs.crowd import Crowd, describe, simulate_crowd

    low, _, high = rows.partition("..")
    if not (low.isdigit() and high.isdigit()):
        raise FocalError(f"--rows is '{rows}'", hint="write it as 20..2000")
    crowd = Crowd(
        clinics=clinics,
        rows=(int(low), int(high)),
        loss=loss,
        late=late,
        founders=founders,
        custodians=custodians,
        steps=steps,
        seed=seed,
    )
    with Bars() as board:
        found = simulate_crowd(crowd, out, board.show, board.line)
    say(describe(found))
    say(f"result: {out / 'summary.json'}, {out / 'timeline.png'}, {out / 'crowd.json'}")


# --------------------------------------------------------------------------- a finished run


WindowOption = Annotated[
    tuple[float, float] | None, typer.Option(help="Black and white of images of more than 8 bits, as in training.")
]
PageOption = Annotated[int | None, typer.Option(min=1, help="Of files that hold several, as in training.")]


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    table: Annotated[Path, typer.Option(help="CSV with filename,label,patient[,split].")],
    images: Annotated[Path, typer.Option(help="Folder or zip with the images.")],
    labels: Annotated[
        Path | None,
        typer.Option(help="YAML 'labels: {theirs: ours}': their words (null leaves out); also columns, window, page."),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Also subgroups: a column (sex, institution) or bands of one (age:50,65). Repeatable."),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Lower segment's weights, when they moved.")] = None,
    group: Annotated[str, typer.Option(help="Column whose rows belong together; none: no two do.")] = "patient",
    allow_seen: Annotated[bool, typer.Option("--allow-seen", help="Score images that trained the model too.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    pool: Annotated[
        Path | None,
        typer.Option(
            help="Folder with all sites' NAME.public.json: one ROC curve over all, and no site's scores shown."
        ),
    ] = None,
    key: Annotated[Path | None, typer.Option(help="--pool: this site's NAME.key.json.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Score a finished run on new data: another hospital's, by site and by subgroup."""
    with Bar("features") as progress:
        result = focal.evaluate(
            run,
            table,
            images,
            labels=labels,
            by=by or (),
            weights=weights,
            group=group,
            allow_seen=allow_seen,
            device=device,
            pool=pool,
            key=key,
            progress=progress,
        )
    low, high = result["auroc_ci95"]
    say(
        f"{result['dataset']}: macro AUROC {result['auroc']:.3f} (95 % interval {low:.3f} to {high:.3f}) "
        f"on {result['n']} images"
    )
    if result["trained_on"]:
        say(f"  {result['trained_on']} of these images trained the model: the scores are too good")
    if result["left_out"]:
        say(f"  {result['left_out']} rows of the table are left out: their labels have no counterpart")
    for name, value in result["auroc_per_class"].items():
        say(f"  {name:<12} {'not scorable' if value is None else f'{value:.3f}'}")
    for name, measure in result["measures"].items():
        if name != "auroc":
            low, high = measure["ci95"]
            say(f"{name.replace('_', ' ')}: {measure['macro']:.3f} ({low:.3f} to {high:.3f})")
    for split, parts in result["subgroups"].items():
        say(f"AUROC by {split}")
        for name, part in parts.items():
            say(f"  {name:<16} {_subgroup(part)}")
    if pool is not None:
        say(_pooled(result["pooled"], pool))
    if as_json:
        print(json.dumps(result))


def _pooled(found: dict[str, Any], folder: Path) -> str:
    head = (
        f"exchange {found['fingerprint']} of {', '.join(found['sites'])}: "
        "compare these digits with the other sites by telephone"
    )
    if found["missing"]:
        waiting = ", ".join(f"{name}.counts" for name in found["missing"])
        return (
            f"{head}\n  give your .counts file in {folder} to the others; not here yet: {waiting}. "
            "Then the same command again"
        )
    if found["auroc"] is None:
        return f"{head}\n  over all sites every class has one outcome only, so there is no ROC curve"
    auroc, picture = f"{found['auroc']:.4f} +- {found['bound']:.4f}", folder / "pooled_roc.png"
    return f"{head}\n  macro AUROC over all {len(found['sites'])} sites: {auroc} ({picture})"


def _subgroup(part: dict[str, Any]) -> str:
    size = f"{part['n']} images of {part['patients']} patients"
    if part["auroc"] is None:
        return f"not scorable: every class has one outcome only ({size})"
    interval = "no interval" if part["auroc_ci95"] is None else "{:.3f} to {:.3f}".format(*part["auroc_ci95"])
    without = [name for name, value in part["auroc_per_class"].items() if value is None]
    return f"{part['auroc']:.3f} ({interval}) on {size}" + (f", without {', '.join(without)}" if without else "")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    images: Annotated[Path, typer.Option(help="Folder or zip with the images.")],
    out: Annotated[Path, typer.Option(help="CSV to write (0600).")] = Path("predictions.csv"),
    table: Annotated[Path | None, typer.Option(help="CSV whose filename column chooses the images.")] = None,
    weights: Annotated[str | None, typer.Option(help="Lower segment's weights, when they moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    window: WindowOption = None,
    page: PageOption = None,
) -> None:
    """Write the probability of every class for every image."""
    with Bar("features") as progress:
        found = focal.predict(
            run,
            images,
            out,
            table=table,
            weights=weights,
            device=device,
            window=window,
            page=page,
            progress=progress,
        )
    say(f"{len(found.filenames)} images: {out}")


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    images: Annotated[Path, typer.Option(help="Folder or zip with the images.")],
    label: Annotated[
        str | None, typer.Option("--class", help="The class to explain; default: each image's most probable one.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="CSV whose filename column chooses the images.")] = None,
    weights: Annotated[str | None, typer.Option(help="Lower segment's weights, when they moved.")] = None,
    window: WindowOption = None,
    page: PageOption = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many images.")] = 32,
    check: Annotated[bool, typer.Option(help="Compare the maps with those of a randomised model.")] = True,
) -> None:
    """Draw where the model looks (RUN/explanations), and check that this depends on what it has learned."""
    with Bar("explanations") as progress:
        found = focal.explain(
            run,
            images,
            label=label,
            table=table,
            weights=weights,
            window=window,
            page=page,
            limit=limit,
            check=check,
            progress=progress,
        )
    say(f"{found.folder}: overlays, index.json; they are patients' images")
    for step in found.steps:
        correlation = "-" if step.correlation is None else f"{step.correlation:.2f}"
        say(f"  random down to {step.randomised:<16} rank correlation {correlation}")
    if found.verdict is not None:
        say(found.verdict.text)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A finished run's folder, or an institution's state folder.")],
    out: Annotated[Path | None, typer.Option(help="The page to write (0600); default: RUN/report.html.")] = None,
    images: Annotated[bool, typer.Option(help="Show explanations on patients' images.")] = True,
) -> None:
    """Write one self-contained HTML page about a run."""
    path = focal.report(run, out, images=images, say=say)
    say(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB"
        + ("; it may show patients' images (--no-images leaves them out)" if images else "")
    )


@app.command()
def reproduce(
    budget: Annotated[float, typer.Option(min=0, help="Minutes; they decide how many seeds each table gets.")] = 60.0,
    out: Annotated[Path, typer.Option(help="Folder for cells, tables and pictures; the same one continues.")] = Path(
        "experiments/results"
    ),
) -> None:
    """The paper's tables on public data: every method beside the encrypted blind head."""
    require("study", "focal reproduce")
    from focal import configs
    from focal.attacks.beside import write_beside
    from focal.reproduce.study import reproduce as study

    with resumable():
        study(budget, out, configs.FOLDER, say)
        if (page := write_beside(out)) is not None:
            say(f"accuracy, cost and leak: {page}")


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(help="A finished run's folder, or the manifest with --from.")],
    store: Annotated[
        Path | None, typer.Option("--from", help="The server's state folder, where it lies elsewhere.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Worker threads; default: all processors.")] = None,
    ray: Annotated[
        str | None, typer.Option(help="Take the steps on a Ray cluster: auto, host:port, or local for this machine.")
    ] = None,
) -> None:
    """Run a finished run again from its signed messages and ciphertexts and compare every digest."""
    started = time.monotonic()
    chain = focal.audit(run, store=store, threads=threads, ray=ray, say=say)
    say(f"every digest is the same; chain {chain}, {time.monotonic() - started:.0f} s")


@app.command()
def clean(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    cache: Annotated[bool, typer.Option("--cache", help="Also the features that runs share (RUNS/cache).")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also a run that is not finished; it can then not go on.")
    ] = False,
) -> None:
    """Remove features, keys, ciphertexts and per-patient rows of a run; summary, plots and model stay."""
    from focal.runs.local import clean as clean_run

    for path in clean_run(run, cache, force):
        say(f"removed {path}")


@app.command()
def approve(
    run: Annotated[Path, typer.Argument(help="A local run's folder, or one custodian's state folder.")],
) -> None:
    """Let the custodians (of a run with ``approve: human``) make the release that they wait with."""
    from focal.protocols.common.approval import approve as approve_custodian

    if not (run / "parties").is_dir():
        if not (run / "journal.sqlite").exists():
            raise FocalError(
                f"{run} is no custodian's state folder",
                hint="name the run folder of a local run, or the 'state' of the custodian's local file",
            )
        say(f"approved: {run} (run {approve_custodian(run).short})")
        return
    approved, waiting_not = [], []
    for folder in sorted(p for p in (run / "parties").iterdir() if p.name.startswith("custodian")):
        try:
            approved.append(f"approved: {folder} (run {approve_custodian(folder).short})")
        except FocalError:
            waiting_not.append(folder.name)
    if not approved:
        raise FocalError(
            f"{run}: no release waits for approval there",
            hint="when training is done a custodian says 'the release waits for'",
        )
    for line in approved:
        say(line)
    if waiting_not:
        say(f"not yet waiting: {', '.join(waiting_not)}; give the same command again when they do")
