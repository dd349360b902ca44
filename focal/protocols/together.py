"""All roles as threads of one process, on a board in its memory: for simulations, and for tests of what roles do.

::

    Together
      |-- server ---------- LocalHub: board and blobs <--+     the same roles, records, journals and ledgers
      |-- custodian-1 ----- LocalLink -------------------+     as in processes; no sockets, and nothing that keeps
      |-- hospital-a ------ LocalLink -------------------+     one party's secrets from another
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from focal.config import LocalConfig
from focal.errors import FocalError, ProtocolError
from focal.manifest import Manifest
from focal.net.local import LocalLink, LocalNetwork
from focal.protocols import of, start
from focal.protocols.common.party import Party
from focal.protocols.common.progress import Reporter
from focal.protocols.common.server import Server
from focal.telling import Show

Make = Callable[[LocalConfig, Reporter], Party]
"""Makes a party that is no server from its local file."""

WAIT_SECONDS = 60.0
"""How long a party looks for the server's thread."""
OTHERS_SECONDS = 5.0
"""After one party has failed and the others were told: how long they may take to end."""


class Together:
    """The members of one manifest in this process. Leaving the ``with`` ends them all.

    ``files`` are their local files; ``make`` makes parties that are not what :func:`focal.protocols.of`
    says. ``parties`` are those that were started last, for whoever wants to look into them.
    """

    def __init__(
        self, manifest: Manifest, files: Mapping[str, LocalConfig], show: Show, make: Mapping[str, Make] | None = None
    ) -> None:
        self.manifest, self.files, self.show, self.make = manifest, files, show, make or {}
        self.network = LocalNetwork()
        self.parties: dict[str, Party] = {}
        self.errors: dict[str, Exception] = {}
        """Member -> why its thread has ended, in the order in which they did."""
        self._links: dict[str, LocalLink] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()
        self._ending: set[str] = set()

    def start(self, *names: str) -> None:
        """Start these members, or all; one that has ended goes on where it stood."""
        for name in names or [m.name for m in self.manifest.members]:
            self.errors.pop(name, None)
            self._ending.discard(name)
            self._threads[name] = threading.Thread(target=self._live, args=(name,), name=name, daemon=True)
            self._threads[name].start()

    def finish(self, *names: str) -> None:
        """Wait until these members, or all, are done. Raises what the first of them has failed with.

        Where all are waited for, what speaks against the run is told to everybody first, and the others are ended.
        """
        if names:
            for name in names:
                self._threads[name].join()
                if name in self.errors:
                    raise self.errors[name]
            return
        while any(map(self.alive, self._threads)) and self._all_can_hear():
            self._join_one()
        if self.errors:
            deadline = time.monotonic() + OTHERS_SECONDS
            while time.monotonic() < deadline and any(map(self.alive, self._threads)):
                self._join_one()
            self.stop()
            failures = list(self.errors.values())
            raise next((e for e in failures if "ended the run:" not in str(e)), failures[0])

    def alive(self, name: str) -> bool:
        """Is this member still at work?"""
        return self._threads[name].is_alive()

    def _all_can_hear(self) -> bool:
        """Has nobody failed, or only with what is on the board, and the server shows it?"""
        told = all(isinstance(e, ProtocolError) for e in self.errors.values())
        return not self.errors or (told and self.alive(self.manifest.server.name))

    def _join_one(self) -> None:
        next(t for t in self._threads.values() if t.is_alive()).join(0.05)

    def stop(self, *names: str) -> None:
        """End these members, or all: each stops when it next has to do with the network. Waits for their threads."""
        ending = names or tuple(self._threads)
        with self._lock:
            self._ending |= set(ending)
            for name in ending:
                self._end(name)
        for name in ending:
            self._threads[name].join()

    def _end(self, name: str) -> None:
        """What a party that is to stop meets next: a closed link, or a server's failing hub."""
        party, link = self.parties.get(name), self._links.get(name)
        if isinstance(party, Server):
            party.hub.failure = FocalError(f"'{name}' was stopped")
        elif link is not None:
            link.close()

    def __enter__(self) -> Together:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _live(self, name: str) -> None:
        """One party's thread: what :func:`focal.protocols.start.run_role` is for a process."""
        local, role, party = self.files[name], self.manifest.member(name).role, None
        report = Reporter(name, Path(local.state) / "events.jsonl", self.show)
        try:
            party = self._made(name, role, local, report)
            start.check_not_ended(party)
            link = LocalLink(self.network, self.manifest, party.identity)
            with self._lock:
                self.parties[name], self._links[name] = party, link
                if name in self._ending:
                    self._end(name)
            if role == "server" or start.enter(party, link, WAIT_SECONDS):
                party.run()
        except Exception as e:
            self.errors[name] = e
            report.error(str(e))
            if party is not None:
                start.give_up(party, e)
        finally:
            if party is not None:
                party.leave()
                self._links[name].close()
                party.close()

    def _made(self, name: str, role: str, local: LocalConfig, report: Reporter) -> Party:
        if name in self.make:
            return self.make[name](local, report)
        made = of(self.manifest).part(role)
        return (
            made(self.manifest, local, report, self.network) if role == "server" else made(self.manifest, local, report)
        )
