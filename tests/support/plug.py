"""Pull the plug on a party of one process before and after each of its durable writes, one after the other.

A life of the party ends at the first write that no earlier life has ended at: before it, then (another life) after it.
So every state that a kill -9 can leave on its disk within the watched part of a run is there once, whatever the machine
is doing, and the same party goes on from it::

    life 1    write a |
    life 2            write a   |
    life 3            (a is there)  write b |           ...  until a life ends by itself

Writes are known by what they are called (a key of the journal, a row of the ledger, a key file, a record on the board):
what is drawn anew in each life has another content under the same name. A dead party writes nothing and says nothing;
its threads end as soon as they try to.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from patience import PATIENCE
from rosters import Consortium

from focal.custody.ledger import Ledger
from focal.net.audiences import recorded_audiences
from focal.net.local import LocalHub, LocalLink
from focal.net.store import Journal
from focal.protocols.common.server import Server, _OwnBoard

CONNECT = sqlite3.connect
HEX = re.compile(r"[0-9a-f]{16,}")
OFTEN = ("traffic", "members", "entered")
"""What a journal keeps of a party's whereabouts: no life ends there."""


class Pulled(BaseException):
    """This party's process is gone."""


class Unsynced(sqlite3.Connection):
    """Waits for no disk: here only processes die, and what they wrote is there for the next one."""

    def execute(self, sql: str, *values: Any) -> Any:
        return super().execute("PRAGMA synchronous=OFF" if sql.startswith("PRAGMA synchronous") else sql, *values)


class Plug:
    """One party's. ``watched``: of which writes, by name, lives end. ``lost``: others, who may fail."""

    def __init__(self, run: Consortium, name: str, watched: Callable[[str], bool], lost: Sequence[str] = ()) -> None:
        self.run, self.name, self.watched, self.lost = run, name, watched, lost
        self.folder = str(run.files[name].state)
        self.ends: list[str] = []
        """Where lives have ended."""
        self.given: list[tuple[Any, ...]] = []
        """What the ledger held at the last end."""
        self.dead = False
        self.making = ""
        """What the journal remembers once it is made."""
        self._blobs = Counter[str]()
        self._open: list[sqlite3.Connection] = []

    def write(self, called: str, act: Callable[[], Any]) -> Any:
        """A durable write of this party."""
        if self.dead:
            raise Pulled
        if called == "blob":  # of many that are made together, the first and the second
            called = f"blob {min(self._blobs[self.making] + 1, 2)} of {self.making}"
            self._blobs[self.making] += 1
        for when in ("before", "after") if self.watched(called) else ():
            if (end := f"{when} {called}") not in self.ends:
                self.ends.append(end)
                if when == "after":
                    act()
                self._die()
                raise Pulled
        return act()

    def _die(self) -> None:
        self.dead = True
        party, link = self.run.parties.get(self.name), self.run._links.get(self.name)
        if isinstance(party, Server):
            with self.run.network.changed:
                party.hub._stopping, self.run.network.hub = True, None
                self.run.network.changed.notify_all()
        elif link is not None:
            link.close()

    def buried(self) -> None:
        """What a process's end does: connections and files are let go of."""
        party, link = self.run.parties.get(self.name), self.run._links.get(self.name)
        if isinstance(party, Server):
            party.hub.stop()
        if link is not None:
            link.close()
        if party is not None:
            party.close()
        for connection in self._open:
            connection.close()
        self._open.clear()
        rows = self.rows()
        assert rows[: len(self.given)] == self.given, f"{self.name}: a share changed, {self.ends[-1]}"
        self.given = rows

    def rows(self) -> list[tuple[Any, ...]]:
        """The ledger's, in order."""
        for path in Path(self.folder).glob("ledger-*.sqlite"):
            with contextlib.closing(CONNECT(path)) as db:
                if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'shares'").fetchone():
                    return db.execute("SELECT protocol, item, digest, share FROM shares ORDER BY number").fetchall()
        return []

    def live(self) -> None:
        """Life after life, until one ends by itself."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self.dead, self.making = False, ""
            self._blobs.clear()
            self.run.start(self.name)
            thread = self.run._threads[self.name]
            while thread.is_alive():
                thread.join(0.2)
                others = {n: e for n, e in self.run.errors.items() if n not in (self.name, *self.lost)}
                assert time.monotonic() < deadline and not others, (self.ends[-1:], others)
            if not self.dead:
                break
        assert self.name not in self.run.errors, (self.ends[-1:], self.run.errors)
        rows = self.rows()
        assert rows[: len(self.given)] == self.given
        for column in (1, 2):
            assert len({(row[0], row[column]) for row in rows}) == len(rows), f"{self.name} made two shares for one"

    # ----------------------------------------------------------------- where writes are met

    @contextlib.contextmanager
    def plugged(self) -> Iterator[Plug]:
        plug, replace, connect, unlink = self, os.replace, sqlite3.connect, Path.unlink

        def own(path: Any) -> bool:
            return str(path).startswith(f"{plug.folder}/")

        def replaced(source: Any, target: Any, **more: Any) -> None:
            if not own(target):
                return replace(source, target, **more)
            inside = Path(target).relative_to(plug.folder)
            called = "blob" if inside.parts[0] == "blobs" else f"file {HEX.sub('*', inside.name)}"
            plug.write(called, lambda: replace(source, target, **more))

        def unlinked(path: Path, *more: Any, **others: Any) -> None:
            if not own(path) or not path.name.endswith(".key"):
                return unlink(path, *more, **others)
            plug.write(f"unlink {HEX.sub('*', path.name)}", lambda: unlink(path, *more, **others))

        class Connection(Unsynced):
            called = ""

            def execute(self, sql: str, *values: Any) -> Any:
                act = super().execute
                if not sql.startswith(("INSERT", "DELETE", "CREATE", "UPDATE")) or self.in_transaction:
                    return act(sql, *values)
                words = [v for v in (values[0] if values else ()) if isinstance(v, str)]
                called = HEX.sub("*", " ".join(["row of", sql.split()[-2][:9], *words]))
                if any(f" {word}" in called for word in OFTEN) and not plug.dead:
                    return act(sql, *values)
                return plug.write(called, lambda: act(sql, *values))

            def executemany(self, sql: str, rows: Any) -> Any:
                rows, act = list(rows), super().executemany
                self.called = HEX.sub("*", f"rows of {' '.join(map(str, rows[0][:2]))}") if rows else "no row"
                if self.in_transaction:
                    return act(sql, rows)
                return plug.write(self.called, lambda: act(sql, rows))

            def __exit__(self, *error: Any) -> Any:
                if error[0] is not None:
                    return super().__exit__(*error)
                commit = super().commit
                try:
                    return plug.write(self.called, commit)
                finally:
                    self.rollback()

        def connected(path: Any, *more: Any, **others: Any) -> Any:
            if not own(path) or str(path).endswith("audience.sqlite"):
                return connect(path, *more, factory=Unsynced, **others)
            made = connect(path, *more, factory=Connection, **others)
            plug._open.append(made)
            return made

        append, answer, submit, wait = Ledger._append, LocalHub.answer, LocalLink._submit, _OwnBoard.wait
        remember = Journal.once

        def once(journal: Journal, key: str, make: Callable[[], bytes]) -> bytes:
            if not own(journal.path):
                return remember(journal, key, make)

            def made() -> bytes:
                outer, plug.making = plug.making, HEX.sub("*", key)
                try:
                    return make()
                finally:
                    plug.making = outer

            return remember(journal, key, made)

        def appended(ledger: Ledger, shares: Any) -> Any:
            if not own(ledger.path):
                return append(ledger, shares)
            made: list[bytes] = []
            plug.write(f"bytes of {len(shares)} shares", lambda: made.extend(append(ledger, shares)))
            return made

        def answered(hub: LocalHub, *asked: Any) -> Any:
            try:
                return answer(hub, *asked)
            except Pulled:  # in a member's thread: the server is gone, the member waits for the next one
                return None

        def submitted(link: LocalLink, *asked: Any, **more: Any) -> Any:
            if plug.dead and link.name == plug.name:
                raise Pulled
            return submit(link, *asked, **more)

        def waited(board: Any, *asked: Any) -> Any:
            if plug.dead and plug.name == "server":
                raise Pulled
            return wait(board, *asked)

        with (
            mock.patch("os.replace", replaced),
            mock.patch("os.fsync", lambda fd: None),
            mock.patch.object(Path, "unlink", unlinked),
            mock.patch("sqlite3.connect", connected),
            mock.patch.object(Ledger, "_append", appended),
            mock.patch.object(Journal, "once", once),
            mock.patch.object(LocalHub, "answer", answered),
            mock.patch.object(LocalLink, "_submit", submitted),
            mock.patch.object(_OwnBoard, "wait", waited),
        ):
            yield self


class Pluggable(Consortium):
    """Parties of one process that can be killed."""

    plug: Plug | None = None

    def _live(self, name: str) -> None:
        try:
            super()._live(name)
        except Pulled:
            assert self.plug is not None
            self.plug.buried()


def unnamed(run: Consortium) -> set[str]:
    """Blobs that a member, or the server, gave to others and that no record names: what was made twice is there."""
    named = {digest for data in run.board() for digest in re.findall(rb"[0-9a-f]{64}", data)}
    return {digest for digest in recorded_audiences(run.folder / "server" / "blobs") if digest.encode() not in named}
