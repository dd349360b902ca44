"""The ledger of given shares: what was answered once is answered with the same bytes for ever, and nothing else.

Two shares for one ciphertext carry independent noise and publish an average; two ciphertexts under one plan item let a
server pick what ``a`` is used with. So every row is unique twice over, by plan item and by digest: a request that
matches both gets the stored bytes, one that matches only one is refused. The row is on disk before the share leaves.

A refresh share has a megabyte. Its row has its SHA-256, its bytes lie in a file beside, which only grows::

    make --> ledger-RUN.shares, at its end, synced --> rows of a group, in one transaction --> the shares leave
                    a kill leaves bytes that no row knows ^        ^ from here on these bytes, or none
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from focal import framing
from focal.errors import FocalError, Refused
from focal.files import sync_folder, write_at

_SAID = "number NOT IN (SELECT number FROM unsaid)"
_RESTORE = "restore the newest copy of this folder; what was given once is never made anew"
_PLACE = struct.Struct("<32sQQ")
"""What a row has of a large share: its SHA-256, where it begins in the file, how long it is."""


@dataclass(frozen=True)
class Large:
    """A share whose bytes lie in the file."""

    digest: str
    data: bytes

    @classmethod
    def of(cls, data: bytes) -> Large:
        return cls(hashlib.sha256(data).hexdigest(), data)


class Ledger:
    """Given shares of one custodian in one run, for the protocols ``refresh``, ``open`` (interactive) and ``release``.

    Raises :class:`FocalError` when ``path`` cannot be opened, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.with_suffix(".shares")
        """Where the bytes of large shares lie."""
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute(
                "PRAGMA synchronous=EXTRA"
            )  # FULL leaves the end of the journal to the next sync: a power cut undoes it
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS shares (number INTEGER PRIMARY KEY, protocol TEXT NOT NULL, "
                "item TEXT NOT NULL, digest TEXT NOT NULL, share BLOB NOT NULL, "
                "UNIQUE (protocol, item), UNIQUE (protocol, digest))"
            )
            self._db.execute("CREATE TABLE IF NOT EXISTS pins (topic TEXT PRIMARY KEY, digest TEXT NOT NULL)")
            self._db.execute("CREATE TABLE IF NOT EXISTS unsaid (number INTEGER PRIMARY KEY)")
            entered = self._db.execute("SELECT item FROM shares WHERE protocol = 'epoch'").fetchall()
            self.epoch: int = max((int(item) for (item,) in entered), default=0)
            """The newest that this custodian has agreed to."""
        except (OSError, sqlite3.Error) as e:
            raise FocalError(
                f"{path}: the ledger cannot be opened ({e})",
                hint="without its ledger a custodian must not go on: start a new run",
            ) from None

    def enter(self, epoch: int, digest: str, said: Sequence[tuple[str, str, str]]) -> None:
        """From here on nothing new is given in an older epoch (:mod:`focal.protocols.common.epochs`).

        It counts as a share given does. What was made and is not in ``said`` (protocol, item, digest) was never said,
        and never will be: it stays, lest it be made anew, but peers know nothing of it.

        Raises :class:`Refused` (``second-digest``) when another epoch of this number was entered before.
        """
        if epoch > self.epoch:
            self._set_aside(set(said))
        self.answer("epoch", str(epoch), digest, lambda: b"")
        self.epoch = max(self.epoch, epoch)

    def was_said(self, said: Sequence[tuple[str, str, str]]) -> None:
        """After all: the server had not shown it."""
        with self._lock:
            for row in said:
                self._db.execute(
                    "DELETE FROM unsaid WHERE number IN "
                    "(SELECT number FROM shares WHERE protocol = ? AND item = ? AND digest = ?)",
                    row,
                )

    def _set_aside(self, said: set[tuple[str, str, str]]) -> None:
        with self._lock:
            rows = self._db.execute("SELECT number, protocol, item, digest FROM shares").fetchall()
            unsaid = [(number,) for number, *row in rows if tuple(row) not in said]
            self._db.executemany("INSERT OR IGNORE INTO unsaid (number) VALUES (?)", unsaid)

    def answer(
        self,
        protocol: str,
        item: str,
        digest: str,
        make: Callable[[], bytes],
        limit: int | None = None,
        epoch: int | None = None,
    ) -> bytes:
        """The share for (item, digest): made now and stored, or the bytes that were stored before.

        Raises :class:`Refused`: ``second-digest``, ``second-item`` when either was answered together with another;
        ``limit`` when this protocol has given ``limit`` shares; ``old-epoch`` for a new one in an ``epoch`` (default:
        the newest) before one that was entered.
        """
        return self.answers(protocol, [(item, digest)], lambda missing: [make()], limit, epoch)[0]

    def answers(
        self,
        protocol: str,
        asked: Sequence[tuple[str, str]],
        make: Callable[[list[int]], list[bytes]],
        limit: int | None = None,
        epoch: int | None = None,
    ) -> list[bytes]:
        """The shares for a batch of (item, digest), all of them on disk in one transaction. ``make``: those that are
        missing, by their places in ``asked``. Raises as :meth:`answer` does, and stores nothing then."""
        with self._lock:
            _check_distinct(asked)
            shares = [self._find(protocol, item, digest) for item, digest in asked]
            missing = [i for i, share in enumerate(shares) if share is None]
            if missing and epoch is not None and epoch < self.epoch:
                raise Refused("old-epoch", f"a share in epoch {epoch} is asked for, {self.epoch} was entered")
            if limit is not None and missing and self._given(protocol) + len(missing) > limit:
                raise Refused(
                    "limit", f"{limit} shares were given in '{protocol}', which is all that this key may give"
                )
            if not missing:
                return [bytes(share) for share in shares if share is not None]
            rows = [(protocol, *asked[i], share) for i, share in zip(missing, make(missing), strict=True)]
            try:
                self._db.execute("BEGIN")
                with self._db:
                    self._db.executemany("INSERT INTO shares (protocol, item, digest, share) VALUES (?, ?, ?, ?)", rows)
            except sqlite3.OperationalError as e:
                raise FocalError(
                    f"{self.path}: the ledger cannot be written ({e})",
                    hint="free space on this disk, then give the same command again",
                ) from None
            for i, (*_, share) in zip(missing, rows, strict=True):
                shares[i] = share
            return [bytes(share) for share in shares if share is not None]

    def large(
        self,
        protocol: str,
        asked: Sequence[tuple[str, str]],
        make: Callable[[list[int]], list[Large]],
        epoch: int | None = None,
    ) -> list[Large]:
        """:meth:`answers` for shares of a megabyte, which are in the file before a row names them.

        Raises :class:`FocalError` besides when the file has lost what a row names: nothing is made in its place.
        """
        made: dict[int, Large] = {}

        def write(missing: list[int]) -> list[bytes]:
            made.update(zip(missing, make(missing), strict=True))
            return self._append([made[i] for i in missing])

        rows = self.answers(protocol, asked, write, epoch=epoch)
        return [made[i] if i in made else self._read(row) for i, row in enumerate(rows)]

    def _append(self, shares: Sequence[Large]) -> list[bytes]:
        """Put shares at the end of the file, on disk; returns their rows. Under the lock."""
        rows = []
        try:
            fd = os.open(self.file, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                first = at = os.fstat(fd).st_size
                for share in shares:
                    rows.append(_PLACE.pack(bytes.fromhex(share.digest), at, len(share.data)))
                    write_at(fd, share.data, at)
                    at += len(share.data)
                os.fsync(fd)
            finally:
                os.close(fd)
            if first == 0:  # the file's name too
                sync_folder(self.file.parent)
        except OSError as e:
            raise FocalError(
                f"{self.file}: the ledger cannot be written ({e.strerror})",
                hint="free space on this disk, then give the same command again",
            ) from None
        return rows

    def _read(self, row: bytes) -> Large:
        """A share that was given before."""
        digest, start, length = _PLACE.unpack(row)
        try:
            with open(self.file, "rb") as file:
                file.seek(start)
                found = Large.of(file.read(length))
        except OSError as e:
            raise FocalError(f"{self.file}: cannot be read ({e.strerror})", hint=_RESTORE) from None
        if found.digest != digest.hex():
            raise FocalError(f"{self.file}: holds other bytes than were given", hint=_RESTORE)
        return found

    def check(self, protocol: str, asked: Sequence[tuple[str, str]]) -> None:
        """Raise as :meth:`answers` would for the whole of a batch that is to be answered in parts."""
        with self._lock:
            _check_distinct(asked)
            for item, digest in asked:
                self._find(protocol, item, digest)

    def pin(self, topic: str, digest: str) -> None:
        """Remember, before an answer is weighed, what is weighed under ``topic``: whoever is refused may not try
        again with something else.

        Raises :class:`Refused` (``second-answers``) when something else was weighed under it before.
        """
        with self._lock:
            try:
                self._db.execute("INSERT OR IGNORE INTO pins (topic, digest) VALUES (?, ?)", (topic, digest))
            except sqlite3.OperationalError as e:
                raise FocalError(
                    f"{self.path}: the ledger cannot be written ({e})",
                    hint="free space on this disk, then give the same command again",
                ) from None
            (stored,) = self._db.execute("SELECT digest FROM pins WHERE topic = ?", (topic,)).fetchone()
        if stored != digest:
            raise Refused(
                "second-answers", f"other requests or shares are shown under '{topic}' than were weighed before"
            )

    def _find(self, protocol: str, item: str, digest: str) -> bytes | None:
        rows = self._db.execute(
            "SELECT item, digest, share FROM shares WHERE protocol = ? AND (item = ? OR digest = ?)",
            (protocol, item, digest),
        ).fetchall()
        for stored_item, stored_digest, share in rows:
            if stored_item != item:
                raise Refused(
                    "second-item", f"this ciphertext was answered as '{stored_item}', now it is presented as '{item}'"
                )
            if stored_digest != digest:
                raise Refused("second-digest", f"plan item '{item}' was answered for another ciphertext")
            return bytes(share)
        return None

    @property
    def count(self) -> int:
        """Number of shares given."""
        with self._lock:
            return int(self._db.execute(f"SELECT count(*) FROM shares WHERE {_SAID}").fetchone()[0])

    def _given(self, protocol: str) -> int:
        return int(self._db.execute("SELECT count(*) FROM shares WHERE protocol = ?", (protocol,)).fetchone()[0])

    def digest(self, first: int) -> str:
        """Digest over the ``first`` shares given: what peers are asked about after a restart."""
        with self._lock:
            return ledger_digest(
                self._db.execute(
                    f"SELECT protocol, item, digest FROM shares WHERE {_SAID} ORDER BY number LIMIT ?", (first,)
                )
            )

    def close(self) -> None:
        self._db.close()


def _check_distinct(asked: Sequence[tuple[str, str]]) -> None:
    """Within a batch, too, an item and a ciphertext go together once."""
    by_item: dict[str, str] = {}
    by_digest: dict[str, str] = {}
    for item, digest in asked:
        if by_digest.setdefault(digest, item) != item:
            raise Refused("second-item", f"this ciphertext is presented as '{by_digest[digest]}' and as '{item}'")
        if item in by_item:
            raise Refused("second-digest", f"plan item '{item}' is asked for twice")
        by_item[item] = digest


def ledger_digest(shares: Iterable[tuple[str, str, str]]) -> str:
    """Digest over (protocol, plan item, ciphertext digest) of shares in the order in which they were given."""
    running = framing.Digest(b"focal/ledger/v1")
    for row in shares:
        running.add(*(field.encode() for field in row))
    return running.hexdigest()
