"""Measurements on this machine."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from focal.cli.common import JsonOption, RunsOption, bench_app, say
from focal.cli.progress import Bar
from focal.cli.runs import run_and_show
from focal.extras import require
from focal.files import private_write

TEMPORARY = Path(tempfile.gettempdir())


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
    from focal.bench.head import head

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
    from focal.bench.joint import interactive

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
    from focal.bench.refresh import refreshes

    result = refreshes(items, custodians)
    say(result.text)
    if as_json:
        print(json.dumps(result.numbers))


@bench_app.command("scale")
def bench_scale(
    rows: Annotated[
        int | None, typer.Option(min=8, help="Take a step over so many rows, streamed from disk, and measure that.")
    ] = None,
    features: Annotated[int, typer.Option(help="R: 32, 64, 128, 256 or 512.")] = 64,
    classes: Annotated[int, typer.Option(min=2)] = 8,
    custodians: Annotated[int, typer.Option(min=2, max=8)] = 3,
    threads: Annotated[int, typer.Option(min=1, help="With --rows: of this machine.")] = 1,
    memory_gb: Annotated[float, typer.Option(min=0, help="For rows; with --rows 0 streams all of them.")] = 2.0,
    cores: Annotated[int, typer.Option(min=1, help="Of each machine of the model.")] = 16,
    link_mbyte_s: Annotated[float, typer.Option(help="Model: between server and custodians.")] = 125.0,
    inner_mbyte_s: Annotated[float, typer.Option(help="Model: between the machines of one party.")] = 1250.0,
    folder: Annotated[Path, typer.Option(help="For temporary files, which are removed.")] = TEMPORARY,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this .json, and a picture beside it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Unit costs measured here, and a model of 10^5 and 10^6 rows on 1 to 8 machines; or a step over --rows."""
    from focal.bench import scale as bench

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C does: temporary files go
    wish = bench.Wish(features, classes, custodians, cores, link_mbyte_s, inner_mbyte_s, memory_gb)
    steps = []
    with Bar("measuring") as progress:
        if rows is not None:
            result = bench.compared(rows, wish, folder, threads, int(memory_gb * 1e9), say, progress)
        else:
            result, found = bench.scale(wish, folder, say, progress)
            steps = [(one.rows, one.machines, one.parts) for one in found]
    say(result.text)
    if out is not None:
        private_write(out, (json.dumps(result.numbers, indent=2) + "\n").encode())
        if steps and find_spec("matplotlib") is not None:
            from focal.reporting.scale import plot_scale

            plot_scale(steps, f"{cores} cores a machine, {link_mbyte_s:g} MB/s", out.with_suffix(".png"))
            say(f"result: {out}, {out.with_suffix('.png')}")
        else:
            say(f"result: {out}")
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
    from focal.bench.sockets import split

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
    from focal.bench.gpu import check, missing, parts

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
    from focal.bench.everything import everything

    started = time.monotonic()
    everything(reference, interactive_reference, runs, configs.FOLDER, say, run_and_show)
    say(f"all measured in {time.monotonic() - started:.0f} s")
