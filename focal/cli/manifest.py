"""What a consortium agrees on and signs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from focal.cli.common import console, manifest_app, say, warn
from focal.cli.progress import Bar
from focal.errors import FocalError
from focal.extras import require

if TYPE_CHECKING:
    from focal.manifest import Manifest

ManifestArgument = Annotated[Path, typer.Argument(help="The manifest.")]


@manifest_app.command("new")
def manifest_new(
    config: Annotated[
        str, typer.Option(help="A run configuration; its dataset needs 'classes' and 'task' unless the data is here.")
    ],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("manifest.json"),
) -> None:
    """Begin a manifest: model, training, parameters; no members yet. Needs the lower segment's weights to pin them."""
    require("site", "focal manifest new")
    from focal import configs
    from focal.config import RunConfig
    from focal.reading import read
    from focal.runs import provision

    made, source = provision.begin(read(RunConfig, configs.find(config)), out)
    say(f"{out}: lower segment {made.lower}, {source}; now add the members (focal manifest add)")


@manifest_app.command("add")
def manifest_add(
    manifest: ManifestArgument,
    role: Annotated[
        Literal["server", "institution", "custodian"], typer.Option(help="server, institution or custodian")
    ],
    public: Annotated[Path, typer.Option(help="The member's NAME.public.json.")],
    rows: Annotated[int | None, typer.Option(help="Institution: its number of training rows.")] = None,
    local: Annotated[
        Path | None, typer.Option(help="Institution whose data are here: its local file; rows are counted.")
    ] = None,
    clinic: Annotated[
        bool, typer.Option("--clinic", help="Institution: comes once, with at most so many rows, or not at all.")
    ] = False,
    endpoint: Annotated[str | None, typer.Option(help="Server: tcp://host:port that the others dial.")] = None,
    verify: Annotated[
        Literal["off", "lockstep"], typer.Option(help="Custodian: whether it re-runs every step.")
    ] = "off",
    guard: Annotated[
        bool | None, typer.Option(help="Custodian: answers last (default: the first that verifies).")
    ] = None,
    threshold: Annotated[int | None, typer.Option(help="How many custodians suffice to use the key.")] = None,
    class_lanes: Annotated[int | None, typer.Option(help="Override the planner.")] = None,
    feature_lanes: Annotated[int | None, typer.Option(help="Override the planner.")] = None,
) -> None:
    """Add a member and plan the layout again. Signatures given before are void."""
    from focal.config import LayoutConfig
    from focal.manifest import Manifest
    from focal.reading import read
    from focal.runs import provision

    before = read(Manifest, manifest)
    if local is not None:
        rows = _counted(before, local, rows)
    wish = LayoutConfig(class_lanes=class_lanes, feature_lanes=feature_lanes)
    grown = provision.add_member(
        before,
        manifest,
        public,
        role,
        rows=rows,
        clinic=clinic,
        endpoint=endpoint,
        verify=verify,
        guard=guard,
        threshold=threshold,
        wish=wish,
        say=say,
    )
    void = "; earlier signatures are void" if before.signatures else ""
    say(f"{manifest}: {', '.join(f'{x.name} ({x.role})' for x in grown.members)}{void}")


@manifest_app.command("sign")
def manifest_sign(
    manifest: ManifestArgument,
    keys: Annotated[Path, typer.Option(help="This party's NAME.key.json.")],
) -> None:
    """Sign the manifest as it stands; then pass the file on to the next member."""
    from focal.runs import provision

    signed = provision.sign(manifest, keys)
    left = [x.name for x in signed.members if x.name not in signed.signatures and not x.clinic]
    state = f"still to sign: {', '.join(left)}" if left else "signed by all"
    say(f"{manifest}: hash {signed.hash.hex()[:16]}, {state}")


@manifest_app.command("check")
def manifest_check(manifest: ManifestArgument) -> None:
    """What is about to be signed or run: members, parameters, bytes, memory, time, who verifies, who has signed."""
    from focal.manifest import Manifest
    from focal.reading import read
    from focal.runs import provision

    m = read(Manifest, manifest)
    provision.describe(m, say, warn)
    missing = [x.name for x in m.members if x.name not in m.signatures and not x.clinic]
    if missing:
        console.print(f"[yellow]still to sign: {', '.join(missing)}[/] (focal manifest sign)")


def _counted(manifest: Manifest, local: Path, declared: int | None) -> int:
    """Training rows of an institution's data set, every image of it decoded."""
    from focal.runs import provision

    require("site", "focal manifest add --local")
    data, seed = provision.data_set(None, local, None, None)
    data = data.model_copy(update={"classes": manifest.classes, "task": manifest.task})
    with Bar("images") as progress:
        found = provision.look_at(data, seed, None, progress)
    for line in (*found.lines(), *found.warnings()):
        say(line)
    rows = found.declared(data.bad_images)
    if declared not in (None, rows):
        raise FocalError(f"{local}: {rows} training rows, not {declared}", hint="leave --rows out, or correct it")
    return rows
