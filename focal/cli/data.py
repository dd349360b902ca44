"""A data set, before anything is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from focal.cli.common import data_app, say, warn
from focal.cli.progress import Bar
from focal.extras import require


@data_app.command("check")
def data_check(
    table: Annotated[Path | None, typer.Argument(help="CSV or .xlsx with filename,label,patient[,split].")] = None,
    images: Annotated[Path | None, typer.Argument(help="Folder or zip with the images.")] = None,
    config: Annotated[
        str | None, typer.Option(help="A run configuration, whose data set says columns, classes, window ...")
    ] = None,
    local: Annotated[Path | None, typer.Option(help="An institution's local file, likewise.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that remembers what was decoded: runs/cache is that of focal train.")
    ] = None,
) -> None:
    """Read a table and decode all its images: every problem at once, and what a manifest has to declare."""
    require("site", "focal data check")
    from focal.runs import provision

    data, seed = provision.data_set(config, local, table, images)
    with Bar("images") as progress:
        found = provision.look_at(data, seed, cache, progress)
    for line in found.lines():
        say(line)
    for line in found.warnings():
        warn(f"note      {line}")
    rows = found.declared(data.bad_images)
    if found.problems:
        warn(f"note      {len(found.problems)} images cannot be read and are left out:")
        for error in found.problems.values():
            warn(f"          {error.message}")
    say(f"declare   --rows {rows}")
