"""Start one role as this process: connect, run, and turn whatever ends it into one clear line."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

from focal.ckks import native
from focal.config import LocalConfig, printable
from focal.errors import FocalError, LeftOut, ProtocolError
from focal.extras import require
from focal.files import private_write
from focal.manifest import Manifest
from focal.net.local import LocalLink
from focal.net.transport import Link
from focal.protocols import of
from focal.protocols.common.party import Party
from focal.protocols.common.progress import Reporter
from focal.reading import read
from focal.telling import Show

CONNECT_SECONDS = 60.0
"""How long a party looks for the server before it says what may be wrong."""
LEFT_OUT = 3
"""Exit status of a party without which the others go on."""
PASSING = ("disk", "internal", "manifest", "name", "version")
"""Refusals by the server that say nothing against the run: when their cause is gone, the same command goes on."""


def run_role(
    role: str,
    manifest_file: Path,
    local_file: Path,
    sink: Show,
    *,
    wait: float = CONNECT_SECONDS,
    launched: bool = False,
) -> int:
    """Run a role to its end; returns the exit status. ``launched``: by the local launcher, whose end is our end."""
    os.umask(0o077)
    signal.signal(signal.SIGTERM, _interrupt)
    if launched:
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    name, party = local_file.stem, None
    try:
        manifest, local = read(Manifest, manifest_file), read(LocalConfig, local_file)
        name = local.name
        check_compute(role, manifest, local)
        report = Reporter(name, Path(local.state) / "events.jsonl", sink)
        if not launched:  # the launcher has said it
            report.say(f"native kernels: {native.description}")
        party = of(manifest).part(role)(manifest, local, report)
        check_not_ended(party)
        _go(party, wait)
        return 0
    except FocalError as e:
        for interruption in (signal.SIGTERM, signal.SIGINT):  # or secrets might stay of a run that was ended
            signal.signal(interruption, signal.SIG_IGN)
        told = printable(str(e), keep="\n")  # it may quote another member
        sink({"party": name, "event": "error", "phase": "", "text": told})
        print(f"{name}: {told}", file=sys.stderr)
        if party is not None:
            give_up(party, e)
        return LEFT_OUT if isinstance(e, LeftOut) else 1
    except OSError as e:  # a file outside the stores, such as the key share or the model
        text = f"{e.filename or (party.folder if party is not None else local_file)}: {e.strerror or type(e).__name__}"
        hint = "free space or check the folder, then give the same command again"
        sink({"party": name, "event": "error", "phase": "", "text": f"{text}\n  -> {hint}"})
        print(f"{name}: {text}\n  -> {hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command continues the run", file=sys.stderr)
        return 130
    finally:
        if party is not None:
            party.leave()


def check_compute(role: str, manifest: Manifest, local: LocalConfig) -> None:
    """Raise when this party's local file asks for a cluster that it has no use for, or no Ray."""
    if local.compute == "ray":
        if of(manifest).joint or role not in ("server", "custodian"):
            raise FocalError(
                f"'{local.name}': compute: ray is for the server and for verifying custodians of a blind run",
                hint="leave 'compute' out of this local file",
            )
        require("ray", f"'{local.name}': compute: ray")


def check_not_ended(party: Party) -> None:
    """Raise when the run in this party's folder was ended for good. What is secret goes, should it still be there."""
    if (party.folder / "aborted").exists():
        party.forget_secrets()
        raise FocalError(
            f"'{party.me.name}': this run was ended: {(party.folder / 'aborted').read_text().strip()}",
            hint="start a new run in a new state folder: nothing of this one may be used again",
        )


def give_up(party: Party, error: Exception) -> None:
    """What speaks against the run ends it for good: secrets are deleted, it is remembered in the party's folder,
    and told to the others."""
    if isinstance(error, ProtocolError) and getattr(error, "reason", "") not in PASSING:
        with contextlib.suppress(OSError):
            party.forget_secrets()
        with contextlib.suppress(OSError):
            private_write(party.folder / "aborted", f"{printable(str(error), keep=chr(10))}\n".encode())
        party.abort(error)


def _go(party: Party, wait: float) -> None:
    if party.role == "server" or enter(party, Link(party.manifest, party.identity), wait):
        party.run()


def enter(party: Party, link: Link | LocalLink, wait: float) -> bool:
    """Join the session and prepare; False when the party has finished it before."""
    link.phase = "keys"
    try:
        party.opened(link, link.open(wait).session)
    except FocalError as e:
        if isinstance(e, ProtocolError) or not party.finished:
            raise
        party.report.say(f"{party.me.name}: the run was finished before, and the server is gone")
        return False
    if party.finished:
        party.finish_again(wait)
        party.report.say(f"{party.me.name}: the run was finished before")
        return False
    party.prepare()
    return True


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _end_with_launcher() -> None:
    os.read(
        0, 1
    )  # returns when the launcher's end of the pipe is gone; unbuffered, or shutdown would wait for the buffer's lock
    os.kill(os.getpid(), signal.SIGTERM)
