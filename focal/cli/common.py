"""The command, its groups, and the options that several commands share."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import focal

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Hospitals train one model on encrypted activations."
)
keys_app = typer.Typer(no_args_is_help=True, help="This party's identity.")
manifest_app = typer.Typer(no_args_is_help=True, help="What a consortium agrees on and signs.")
data_app = typer.Typer(no_args_is_help=True, help="A data set, before anything is trained on it.")
bench_app = typer.Typer(no_args_is_help=True, help="Measurements on this machine.")
epoch_app = typer.Typer(no_args_is_help=True, help="A run that goes on without custodians that are lost.")
cluster_app = typer.Typer(no_args_is_help=True, help="This party's own machines.")
app.add_typer(cluster_app, name="cluster")
app.add_typer(epoch_app, name="epoch")
app.add_typer(keys_app, name="keys")
app.add_typer(manifest_app, name="manifest")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
console = Console(highlight=False)

RunsOption = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as the last line, as JSON.")]


def say(text: str) -> None:
    """Print as it is: no markup, no control characters, and long lines are the terminal's to wrap."""
    from focal.config import printable

    console.print(printable(text, keep="\n\t"), markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """A line that must be read, like :func:`say`: names of files may look like markup."""
    from focal.config import printable

    console.print(printable(text, keep="\n\t"), markup=False, soft_wrap=True, style="bold yellow")


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C inside ends the command with its own words; typer would end it without one."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; give the same command again to continue", file=sys.stderr)
        sys.exit(130)


def _version(asked: bool) -> None:
    if asked:
        print(f"focal {focal.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...
