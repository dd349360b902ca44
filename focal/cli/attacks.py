"""What each party's view is worth to an attacker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from focal.cli.common import JsonOption, app, resumable, say
from focal.extras import require


@app.command()
def attack(
    targets: Annotated[
        list[str] | None, typer.Argument(help="A finished run's folder, or methods (fedsgd, focal, ...); default: all.")
    ] = None,
    parties: Annotated[str, typer.Option("--as", help="Who attacks together: server,hospital-b")] = "",
    attacks: Annotated[str, typer.Option(help="Only these attacks: imprint,features")] = "",
    config: Annotated[str, typer.Option(help="Whose images: a blind run's configuration.")] = "attack",
    threat: Annotated[Path | None, typer.Option(help="YAML: what attackers know, instead of what comes along.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=20)] = 5,
    budget: Annotated[float, typer.Option(min=0, help="Minutes; seed 0 of everything is run in any case.")] = 30.0,
    out: Annotated[Path | None, typer.Option(help="Folder for cells, table, pictures; the same one continues.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Draw originals and reconstructions: patients' images.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Only say which attacks there are.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Attack what each party of each method sees, FOCAL's too, and count the images that leak."""
    require("study", "focal attack")
    from focal import configs
    from focal.attacks import study
    from focal.attacks import threat as threats
    from focal.config import RunConfig
    from focal.errors import FocalError
    from focal.reading import read

    runs = [Path(one) for one in targets or [] if (Path(one) / "manifest.json").exists()]
    methods = [one for one in targets or [] if not (Path(one) / "manifest.json").exists()]
    if len(runs) > 1:
        raise FocalError("one run at a time", hint=f"give {runs[0]} alone, then {runs[1]}")
    run = runs[0] if runs else None
    known = None if threat is None else threats.find(threat)
    settings = study.config_of(run) if run is not None else read(RunConfig, configs.find(config))
    if run is not None and not methods:
        methods = [study.method_of(settings)]
    named = study.roles(tuple(filter(None, parties.split(","))), settings) or (known.who if known is not None else ())
    active = None if known is None else known.active
    chosen = study.choose(methods, named, tuple(filter(None, attacks.split(","))), active)
    if listed:
        for one in chosen:
            say(f"{one.name:<30} {one.threat:<22} {one.title} ({one.assumes})")
        return
    with resumable():
        found = study.attack(
            chosen,
            settings,
            out or study.default_out(run),
            say,
            run=run,
            seeds=seeds,
            budget=budget,
            knows=None if known is None else known.knows,
            show=show,
        )
    if as_json:
        print(found.model_dump_json())
