"""Who may fetch which blob from the server, and who has sent it: on disk before anybody can."""

from __future__ import annotations

import collections
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from focal.net.store import Database, on_disk

FILE = "audience.sqlite"
"""In the folder of the blobs."""

AUDIENCES = ("server", "custodians", "all")
"""Who may fetch a blob, from the narrowest to the widest."""


class Audiences(Database):
    """Who may fetch which blob. A blob without an entry may be fetched by nobody."""

    schema = """
        CREATE TABLE IF NOT EXISTS audience (digest TEXT PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS sent (digest TEXT PRIMARY KEY, name TEXT NOT NULL, size INTEGER) WITHOUT ROWID"""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._known: dict[str, str] = {}
        """What was asked for before: every piece of a blob asks again. Nobody else writes to the file."""
        self._asked: collections.deque[tuple[str, str, str, int]] = collections.deque()
        """What the next commit takes along."""

    def widen(self, digests: Iterable[str], audience: str, sender: str = "", size: int = 0) -> None:
        """Allow ``audience`` all of ``digests``; never takes back what was allowed before. What several threads ask
        for while another one's commit is under way goes to the disk in one. ``sender``: the member that has sent them,
        of ``size`` each; none: the server has made them."""
        self._asked.extend((digest, audience, sender, size) for digest in digests)
        with self._lock:
            wider: dict[str, str] = {}
            asked = list(self._asked)
            sent = [(digest, sender, size) for digest, _, sender, size in asked if sender]
            for digest, wanted, *_ in asked:
                now = wider.get(digest) or self.of(digest)
                if now is None or AUDIENCES.index(wanted) > AUDIENCES.index(now):
                    wider[digest] = wanted
            if wider or sent:
                with on_disk(self.path):
                    self._db.execute("BEGIN")
                    with self._db:
                        self._db.executemany("INSERT OR REPLACE INTO audience VALUES (?, ?)", wider.items())
                        self._db.executemany("INSERT OR IGNORE INTO sent VALUES (?, ?, ?)", sent)
            self._known.update(wider)
            for _ in asked:  # last: what a failed commit did not take, is taken by the next one
                self._asked.popleft()

    def sent(self) -> list[tuple[str, str, int]]:
        """(member, digest, size) of every blob that a member has sent."""
        return [(str(n), str(d), int(str(size))) for n, d, size in self._run("SELECT name, digest, size FROM sent")]

    def of(self, digest: str) -> str | None:
        with self._lock:
            if digest not in self._known and (rows := self._run("SELECT name FROM audience WHERE digest = ?", digest)):
                self._known[digest] = str(rows[0][0])
            return self._known.get(digest)


def recorded_audiences(blobs: Path) -> dict[str, str]:
    """Who might fetch each blob of a run that is over, from the folder of its server's blobs; it is only read."""
    path = blobs / FILE
    with on_disk(path):
        db = sqlite3.connect(f"file:{path.absolute()}?mode=ro", uri=True)
        try:
            return {str(digest): str(name) for digest, name in db.execute("SELECT digest, name FROM audience")}
        finally:
            db.close()
