"""Measurements on this machine."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from focal.cli.common import JsonOption, RunsOption, bench_app, say
from focal.cli.runs import run_and_show
from focal.extras import require


@bench_app.command("head")
def bench_head(
    rows: int = 1024,
    features: int = 64,
    classes: int = 8,
    threads: int = 1,
    steps: int = 3,
    class_lanes: Annotated[int | None, typer.Option(help="k; default: all classes")] = None,
    feature_lanes: int = 1,
    degree: int = 3,
    reference: Annotated[
        Path | None, typer.Option(envvar="FOCAL_REFERENCE", help="A reference script to run in turn and compare with.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time the encrypted training step, all custodians in one process."""
    from focal.bench import head

    result = head(rows, features, classes, threads, steps, class_lanes, feature_lanes, degree, reference)
    say(result.text)
    if as_json:
        print(json.dumps(result.numbers))


@bench_app.command("interactive")
def bench_interactive(
    features: int = 64,
    classes: int = 8,
    owners: int = 4,
    threads: int = 2,
    steps: int = 3,
    reference: Annotated[
        Path | None,
        typer.Option(envvar="FOCAL_INTERACTIVE_REFERENCE", help="A reference script to run in turn and compare with."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time the encrypted joint step of interactive training, owners and custodians in one process."""
    from focal.bench import interactive

    result = interactive(features, classes, owners, threads, steps, reference)
    say(result.text)
    if as_json:
        print(json.dumps(result.numbers))


@bench_app.command("refresh")
def bench_refresh(
    items: Annotated[int, typer.Option(min=8, help="Ciphertexts, a multiple of 8.")] = 64,
    custodians: Annotated[int, typer.Option(min=2, max=8)] = 3,
    as_json: JsonOption = False,
) -> None:
    """CPU of server and custodians in a collective refresh beside its arithmetic, as processes over sockets."""
    from focal.bench_refresh import refreshes

    result = refreshes(items, custodians)
    say(result.text)
    if as_json:
        print(json.dumps(result.numbers))


@bench_app.command("split")
def bench_split(
    config: Annotated[str, typer.Option(help="An interactive run configuration.")] = "finetune-retina",
    steps: int = 8,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Time interactive training over sockets, encrypted and in plaintext."""
    require("site", "focal bench split")
    from focal import configs
    from focal.bench import split

    result = split(configs.find(config), runs, steps)
    say(result.text)
    if as_json:
        print(json.dumps(result.numbers))


@bench_app.command("gpu")
def bench_gpu(
    page: Annotated[Path, typer.Option(help="Where the figures are written.")] = Path("docs/gpu.md"),
    runs: RunsOption = Path("runs"),
) -> None:
    """Features, throughput, a demo and fine-tuning on the GPU of this machine; without one nothing is done."""
    require("site", "focal bench gpu")
    from focal.bench_gpu import check, missing, parts

    if (why := missing()) is not None:
        say(f"GPU check: skipped, {why}. Nothing was measured, and {page} is as it was")
    elif not check("cuda", parts("cuda", runs), page, say):
        raise typer.Exit(1)


@bench_app.command("all")
def bench_all(
    reference: Annotated[
        Path | None, typer.Option(envvar="FOCAL_REFERENCE", help="A reference script to run in turn and compare with.")
    ] = None,
    interactive_reference: Annotated[
        Path | None, typer.Option(envvar="FOCAL_INTERACTIVE_REFERENCE", help="Likewise for the joint step.")
    ] = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Every layout of the head, the joint step, then whole runs on the data here; targets beside what was measured."""
    require("site", "focal bench all")
    from focal import configs
    from focal.bench import everything

    started = time.monotonic()
    everything(reference, interactive_reference, runs, configs.FOLDER, say, run_and_show)
    say(f"all measured in {time.monotonic() - started:.0f} s")
