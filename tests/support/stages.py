"""One honest run of three custodians and three institutions, stopped and copied at the end of each phase:
where attacks begin.

::

    prepared -nonces-> gathered -keys, moments-> keyed -lists-> accepted -contributions-> uploaded -train-> trained
       |                  |                        |               |                         |                 |
       copy               copy                     copy            copy                      copy              copy

Copied is every party's folder. It runs once in a test session. A test puts one of the copies into its worker's folder,
and starts the few parties that it needs: the victims, and those that attack them. Workers do so side by side, each at a
port of its own. Every custodian but the first is ``verify: off``. In training the first one is killed with kill -9 and
started again, so that ``trained`` shows this too.
"""

from __future__ import annotations

import functools
import pickle
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from consortium import Consortium, elsewhere, free_port, runs
from shared import copy, once

TESTS = Path(__file__).parent
VICTIMS = ("custodian-1", "custodian-2")


def prelude(source: str) -> str:
    """Program text that runs ``source`` (a call of something in attacks.py) before focal's own main."""
    return f"import sys\nsys.path.insert(0, {str(TESTS)!r})\nimport attacks\nfrom attacks import *\n{source}\n"


def lying(server: str) -> str:
    """The prelude of a lying server, e.g. ``lying("TwoNonces()")``."""
    return prelude(f"attacks.install({server})")


# one block and two class groups: a refresh batch has two plan items
ATTACKED: dict[str, Any] = {
    "layout": {"class_lanes": 2},
    "consortium": {"institutions": 3, "custodians": 3, "share_blocks": True},
}


class Honest:
    """The run, stopped where all parties that a phase needs stand at its gate."""

    def __init__(self, made: Path) -> None:
        self.made = made
        with Consortium("attacked", folder=made / "runs", **ATTACKED) as self.run:
            c = self.run
            self._keep("prepared")
            c.start_all(prelude=prelude("attacks.gates()"))
            self._stop_at("gathered", [*c.custodians, *c.institutions])
            self._stop_at("keyed", [*c.custodians, *c.institutions])
            self._stop_at("accepted", c.custodians)
            self._stop_at("uploaded", [*c.custodians, "server"])
            c.processes["custodian-1"].reach_phase("train", done=1)
            c.processes["custodian-1"].kill()
            (made / "at-the-kill").write_bytes(pickle.dumps(c.ledger("custodian-1")))
            c.start("custodian-1", prelude=prelude("attacks.gates()"))
            self._stop_at("trained", [*c.custodians, "server"])

    def _stop_at(self, name: str, parties: list[str]) -> None:
        """Copy everything when all these parties stand at the gate, then open it."""
        processes, deadline = self.run.processes, time.monotonic() + 120
        while not all((self.run.folder(p) / f"at-{name}").exists() for p in parties):
            for p in processes.values():
                assert p.child.poll() is None, f"{p.name} ended on the way to '{name}': {p.errors}"
            assert time.monotonic() < deadline, f"nobody got to '{name}' in two minutes"
            time.sleep(0.05)
        for p in processes.values():
            p.child.send_signal(signal.SIGSTOP)
        self._keep(name)
        (self.run.run.folder / "parties" / f"open-{name}").touch()
        for p in processes.values():
            p.child.send_signal(signal.SIGCONT)

    def _keep(self, name: str) -> None:
        copy(self.run.run.folder / "parties", self.made / name)


class Stages:
    """The copies, and this worker's consortium, which begins at any of them."""

    def __init__(self) -> None:
        self.made = once("stages", Honest)
        self.verifier_ledger_at_the_kill: list[tuple[object, ...]] = pickle.loads(
            (self.made / "at-the-kill").read_bytes()
        )
        folder = runs() / "attacked"
        copy(self.made / "prepared", folder / "parties")
        for file in ("config.json", "manifest.json"):
            shutil.copy(self.made / "runs" / "attacked" / file, folder)
        self.run = Consortium("attacked", **ATTACKED)
        self.run.prelude = elsewhere(str(self.run.manifest.server.endpoint), f"tcp://127.0.0.1:{free_port()}")

    @contextmanager
    def at(self, name: str) -> Iterator[Consortium]:
        """The consortium as it stood at the end of phase ``name``; no process runs yet."""
        folder = self.run.run.folder / "parties"
        shutil.rmtree(folder)
        copy(self.made / name, folder)
        self.run.settle(*self.run.roles)
        self.run.processes = {}
        with self.run:
            yield self.run

    def restore(self, party: str, name: str) -> None:
        """One party's folder from another phase's copy: a restored backup."""
        folder = self.run.folder(party)
        shutil.rmtree(folder)
        copy(self.made / name / party, folder)
        self.run.settle(party)


@functools.cache
def stages() -> Stages:
    """The stages of this test session, for this worker."""
    return Stages()


def reason(c: Consortium, victim: str) -> str:
    """Why a victim refused to go on: the stable short name of :class:`focal.errors.Refused`."""
    process = c.processes[victim]
    assert process.end() == 1, f"{victim} ended well: {process.events[-3:]}"
    found = re.search(r"refused \(([a-z-]+)\)", process.errors)
    assert found, f"{victim} ended without a reason: {process.errors}"
    return found[1]


def shares(c: Consortium, name: str) -> list[tuple[str, str]]:
    """(protocol, plan item) of every share of a decryption that a custodian has made."""
    return [(str(protocol), str(item)) for protocol, item, *_ in c.ledger(name) if protocol != "input"]


def contributed(c: Consortium, name: str) -> bool:
    """Has a custodian made contributions to inputs, or committed to any?"""
    return any(protocol == "input" for protocol, *_ in c.ledger(name)) or "inputs/commit" in said(c, name)


def said(c: Consortium, sender: str) -> set[str]:
    """Topics under which a member's record is on the server's board."""
    return {topic for who, topic in c.board() if who == sender}
