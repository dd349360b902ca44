"""One party of a run on several machines: its identity, a test of it, the party itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from focal.cli.common import app, cluster_app, console, epoch_app, keys_app, say, warn
from focal.cli.progress import Bar, Bars
from focal.errors import FocalError
from focal.extras import require

ManifestOption = Annotated[Path, typer.Option("--manifest", help="The signed manifest.")]
LocalOption = Annotated[Path, typer.Option("--local", help="This party's local file; it stays at home.")]
EventsOption = Annotated[bool, typer.Option("--events", hidden=True)]
WaitOption = Annotated[float, typer.Option("--wait", help="Seconds to look for the server.")]


@app.command()
def server(manifest: ManifestOption, local: LocalOption, events: EventsOption = False) -> None:
    """Serve a run: relay, store, compute on ciphertexts."""
    _role("server", manifest, local, events)


@app.command()
def custodian(
    manifest: ManifestOption, local: LocalOption, wait: WaitOption = 60.0, events: EventsOption = False
) -> None:
    """Hold one share of the secret key."""
    _role("custodian", manifest, local, events, wait)


@app.command()
def institution(
    manifest: ManifestOption, local: LocalOption, wait: WaitOption = 60.0, events: EventsOption = False
) -> None:
    """Contribute images' encrypted activations and receive the model."""
    require("site", "focal institution")
    _role("institution", manifest, local, events, wait)


def _role(role: str, manifest: Path, local: Path, events: bool, wait: float = 60.0) -> None:
    from focal.config import LocalConfig
    from focal.manifest import Manifest
    from focal.protocols.common.progress import json_lines
    from focal.protocols.start import run_role
    from focal.reading import read

    if events:
        sys.exit(run_role(role, manifest, local, json_lines, wait=wait, launched=True))
    from focal.runs import provision

    provision.who_verifies(read(Manifest, manifest), say, warn)
    with Bars() as board:
        status = run_role(role, manifest, local, board.show, wait=wait)
    result = read(LocalConfig, local).state / "summary.json"
    if status == 0 and role == "institution":
        from focal.reporting.pooled import plot_pooled

        plot_pooled(result.parent)
    if status == 0 and role == "institution" and result.exists():
        from focal.measure.summary import read_summary
        from focal.reporting.table import print_results

        print_results(read_summary(result), console)
        say(f"result: {result}, {result.with_name('model.pt')}")
    sys.exit(status)


@epoch_app.command("lost")
def epoch_lost(
    folder: Annotated[Path, typer.Argument(help="The server's state folder (the 'state' of its local file).")],
    names: Annotated[list[str], typer.Argument(help="The custodians that are lost, by their names in the manifest.")],
) -> None:
    """Tell the server to go on without these custodians: the key must be t-of-N, and they cannot come back."""
    from focal.protocols.common import approval

    if not (folder / "board.sqlite").exists():
        raise FocalError(f"{folder} is no server's state folder", hint="name the 'state' of the server's local file")
    lost = approval.declare_lost(folder, names)
    say(f"given up: {', '.join(lost)}; the server proposes to go on without, as far as the key's threshold allows it")


@epoch_app.command("sign")
def epoch_sign(
    folder: Annotated[Path, typer.Argument(help="This institution's state folder (the 'state' of its local file).")],
    names: Annotated[list[str], typer.Argument(help="All the custodians that are lost, whom you have asked.")],
) -> None:
    """Consent to go on without the custodians that are said to be lost. Ask them first.

    Whoever has more than two thirds of the institutions sign may choose which custodians answer.
    """
    from focal.protocols.common import approval

    signed = approval.sign_epoch(folder, names).epoch
    say(f"signed: epoch {signed.number} goes on with {', '.join(signed.active)}")


@app.command()
def close(
    folder: Annotated[
        Path, typer.Argument(help="A server's or custodian's state folder (the 'state' of its local file).")
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="All that it waits for, whom you have asked; without names it asks, where nobody has come."
        ),
    ] = None,
) -> None:
    """Let this party go on without the institutions whose uploads it waits for, whose proofs do not hold, or, after
    the release, whose test results are missing; shows who they are, founders first, and why.

    The server and every custodian must let it, unless the manifest's closing date is over; where a proof does not
    hold, every custodian must. Ask the institution first: its log says whether a custodian's share was wrong.
    """
    from focal.protocols.common import approval

    waiting = approval.awaited_closing(folder)
    for name, why in waiting.missing.items():
        say(f"{name}: {why}")
    if not names:
        names = waiting.nameless()
        typer.confirm(f"Let run {waiting.run_id[:16]} go on without {len(names)}?", abort=True)
    closed = approval.close_uploads(folder, names)
    what = "adds up test results" if closed.what == "results" else "goes on"
    say(f"closed: run {closed.run_id[:16]} {what} without {', '.join(closed.missing)}")


@keys_app.command("new")
def keys_new(
    name: Annotated[str, typer.Option(help="The party's name in the manifest.")],
    out: Annotated[Path, typer.Option(help="Folder for NAME.key.json (private, 0600) and NAME.public.json.")] = Path(
        "."
    ),
) -> None:
    """Make this party's identity. The private file stays on this machine; send the public one to the coordinator."""
    from focal.runs import provision

    private, public = provision.new_identity(name, out)
    say(f"private: {private} (keep it)\npublic:  {public} (send it)")


@app.command()
def check(manifest: ManifestOption, local: LocalOption, wait: WaitOption = 10.0) -> None:
    """Test this party's keys, data, weights and link without starting a run."""
    from focal.config import LocalConfig
    from focal.manifest import Manifest
    from focal.reading import read
    from focal.runs import provision

    with Bar("images") as progress:
        provision.check_party(read(Manifest, manifest), read(LocalConfig, local), local, wait, say, progress)


@cluster_app.command("check")
def cluster_check(
    local: Annotated[Path, typer.Argument(help="The local file of a server or verifying custodian: compute: ray.")],
    manifest: Annotated[Path | None, typer.Option("--manifest", help="Also: the memory that its layout needs.")] = None,
) -> None:
    """Test this party's Ray cluster: its token, and of each node versions, memory, files and limbs."""
    from focal.config import LocalConfig
    from focal.manifest import Manifest
    from focal.reading import read
    from focal.runs.cluster import check_cluster

    check_cluster(read(LocalConfig, local), local, read(Manifest, manifest) if manifest else None, say)
