"""What must survive: blobs, the board of records, and a party's private memory. Everything is 0600 under one folder.

::

    Blobs    folder/ab/cdef...           large data, named by its SHA-256; complete or not there
             folder/partial/<owner>/...  what has arrived so far of a blob: only ever appended to
    Board    board.sqlite                signed records 1 2 3 ..., one per (sender, topic)
    Journal  journal.sqlite              what this party has done once and must never do again

A write has reached the disk when its method returns. A full disk raises :class:`DiskError` and leaves everything
that was acknledged before as it was. A database is open in one process at a time: two processes that share a
journal could each make 'the one' share of a key.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from focal.config import ANEW, VERSION, earlier
from focal.errors import FocalError, ProtocolError, Refused
from focal.files import sync_folder, write_at
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.net.identity import open_record
from focal.net.quotas import CLINICS, EPOCH, Quota, Said
from focal.net.recent import Recent

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DIGEST = re.compile(r"[0-9a-f]{64}")


class DiskError(FocalError):
    """The disk is full, gone, or holds something else than was written."""


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Turn what the system says about its disk into one line that names the folder and the way out."""
    again = "free space, then give the same command again"
    try:
        yield
    except OSError as e:
        if e.errno in _FULL:
            raise DiskError(f"{path}: the disk is full", hint=again) from None
        raise DiskError(
            f"{path}: cannot be used ({e.strerror})", hint="check that the folder is there and yours"
        ) from None
    except sqlite3.ProgrammingError:  # used after close: a mistake of ours, not of the disk
        raise
    except sqlite3.DatabaseError as e:
        text = str(e)
        if "full" in text or "disk I/O" in text:
            raise DiskError(f"{path.parent}: the disk is full or failing", hint=again) from None
        if "locked" in text:
            raise DiskError(
                f"{path}: is in use by another process", hint="stop the other process that was started on this folder"
            ) from None
        raise DiskError(
            f"{path}: is damaged ({text})", hint="begin a new run; only a server may go on from a copy of its folder"
        ) from None


# --------------------------------------------------------------------------- blobs


class Blobs:
    """Content-addressed files. A blob is there whole, with the right digest, or it is not there.

    ``recent``: bytes of the last ones that stay in memory besides.
    """

    def __init__(self, folder: Path, recent: int = 0) -> None:
        self.folder = Path(folder)
        self._recent = Recent(recent)
        self._making = threading.Lock()
        self._root = str(self.folder)  # a Path is three times as slow to make as the file is to look for
        with on_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.folder / "partial").mkdir(exist_ok=True, mode=0o700)
            self._owners = {entry.name for entry in os.scandir(self.folder / "partial") if entry.is_dir()}
            """Who has sent something, and has a folder in ``partial``."""

    def __contains__(self, digest: str) -> bool:
        return self._recent.get(digest) is not None or os.path.exists(self._path(digest))

    def put(self, data: bytes, digest: str | None = None) -> str:
        """Store ``data``; returns its SHA-256 in hex, which is ``digest`` where the caller has computed it.
        At once when it is stored already."""
        digest = digest or hashlib.sha256(data).hexdigest()
        if digest in self:
            return digest
        with on_disk(self.folder):
            fd, name = tempfile.mkstemp(dir=self.folder / "partial")
            try:
                write_at(fd, data, 0)
                os.fsync(fd)
                self._publish(name, digest)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
                raise
            finally:
                os.close(fd)
        self._recent.add(digest, data)
        return digest

    def get(self, digest: str) -> bytes:
        """The blob's bytes, checked. Raises :class:`DiskError` when it is missing or no longer what was written."""
        if (kept := self._recent.get(digest)) is not None:
            return kept
        path = Path(self._path(digest))
        with on_disk(path):
            data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise DiskError(
                f"{path}: the disk returns other bytes than were written",
                hint="check the disk; delete the file and give the same command again",
            )
        self._recent.add(digest, data)
        return data

    def size(self, digest: str) -> int:
        """Bytes of a complete blob."""
        if (kept := self._recent.get(digest)) is not None:
            return len(kept)
        path = self._path(digest)
        with on_disk(Path(path)):
            return os.stat(path).st_size

    def read_piece(self, digest: str, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset`` on, unchecked: the reader checks the digest of the whole."""
        if (kept := self._recent.get(digest)) is not None:
            return kept[offset : offset + length]
        path = self._path(digest)
        with on_disk(Path(path)), open(path, "rb") as f:
            f.seek(offset)
            return f.read(length)

    def stored(self, digest: str, owner: str = "") -> int:
        """Bytes that have arrived of ``owner``'s transfer of this blob; 0: none, -1: the blob is complete."""
        if digest in self:
            return -1
        try:
            return os.stat(self._partial(digest, owner)).st_size
        except FileNotFoundError:
            return 0

    def begun(self) -> list[tuple[str, str, int]]:
        """(owner, digest, bytes) of all that has arrived in part."""
        found = []
        for owner in self._owners - {"self"}:
            with contextlib.suppress(FileNotFoundError), os.scandir(f"{self._root}/partial/{owner}") as entries:
                found += [(owner, entry.name, entry.stat().st_size) for entry in entries]
        return found

    def write_piece(
        self,
        digest: str,
        size: int,
        offset: int,
        data: bytes,
        *,
        owner: str = "",
        before: Callable[[], None] | None = None,
    ) -> int:
        """Append a piece of a blob of ``size`` bytes; returns like :meth:`stored`.

        Bytes that are stored already are acknowledged and not written again. ``owner`` keeps the transfers of two
        members apart, so that nobody can spoil another's. ``before`` runs when the digest was found right, before
        the blob can be seen. A partial transfer is not forced to disk; a complete blob is.

        Raises:
            Refused: ``offset`` (a gap), ``size`` (beyond the end), ``digest`` (the whole has another one:
            it is deleted).
        """
        if digest in self:
            return -1
        if offset + len(data) > size:
            raise Refused("size", f"a piece of blob {digest[:12]} reaches beyond its {size} bytes")
        path = self._partial(digest, owner)
        with on_disk(self.folder):
            if (owner or "self") not in self._owners:
                os.makedirs(os.path.dirname(path), exist_ok=True, mode=0o700)
                self._owners.add(owner or "self")
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                stored, new = self._append(fd, offset, data, digest)
                if stored < size:
                    return stored
                os.fsync(fd)
            finally:
                os.close(fd)
            whole = data if len(data) == size and new == size else None  # all of it came in this piece
            if (_sha256(path) if whole is None else hashlib.sha256(whole).hexdigest()) != digest:
                os.unlink(path)
                raise Refused(
                    "digest",
                    f"the {size} bytes that arrived are not blob {digest[:12]}",
                    hint="send it again from the start",
                )
            if before is not None:
                before()
            self._publish(path, digest)
            for other in self._owners.difference([owner or "self"]):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._partial(digest, other))
        if whole is not None:
            self._recent.add(digest, whole)
        return -1

    @staticmethod
    def _append(fd: int, offset: int, data: bytes, digest: str) -> tuple[int, int]:
        """Bytes that are stored now, and how many of them are new."""
        stored = os.fstat(fd).st_size
        if offset > stored:
            raise Refused("offset", f"a piece of blob {digest[:12]} starts at {offset}, only {stored} bytes are stored")
        new = data[stored - offset :]
        try:
            write_at(fd, new, stored)
        except OSError:
            os.ftruncate(fd, stored)
            raise
        return stored + len(new), len(new)

    def _path(self, digest: str) -> str:
        if not _DIGEST.fullmatch(digest):
            raise ProtocolError("a blob's name is not a SHA-256 digest")
        return f"{self._root}/{digest[:2]}/{digest[2:]}"

    def _partial(self, digest: str, owner: str) -> str:
        return f"{self._root}/partial/{owner or 'self'}/{digest}"

    def _publish(self, written: str, digest: str) -> None:
        path, folder = self._path(digest), f"{self._root}/{digest[:2]}"
        with self._making:  # who comes second must not go on before the first one's folder is on disk
            if not os.path.exists(folder):
                os.mkdir(folder, mode=0o700)
                sync_folder(self._root)
        os.replace(written, path)
        sync_folder(folder)


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --------------------------------------------------------------------------- databases


def check_format(path: Path, db: sqlite3.Connection) -> bool:
    """Is there nothing in ``db`` yet? Raises :class:`FocalError` when it is of a run of an earlier version.

    Every database has its version in ``user_version``; those of version 1 have 0.
    """
    if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return True
    if why := earlier(db.execute("PRAGMA user_version").fetchone()[0] or 1):
        raise FocalError(f"{path}: {why}", hint=ANEW)
    return False


class Database:
    """One SQLite file of this process alone; autocommit, and a commit is on disk (WAL, synchronous=FULL).

    Raises :class:`FocalError` when the file is of a run of an earlier version.
    """

    schema = ""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        with on_disk(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL, 0o600))
            self._db = sqlite3.connect(self.path, timeout=1, isolation_level=None, check_same_thread=False)
            try:
                for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
                    self._db.execute(f"PRAGMA {pragma}")
                if check_format(
                    self.path, self._db
                ):  # tables and format together, or neither: a kill leaves nothing that looks old
                    self._db.executescript(f"BEGIN; {self.schema}; PRAGMA user_version = {VERSION}; COMMIT")
            except (sqlite3.Error, FocalError):
                self._db.close()
                raise

    def _run(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        with self._lock, on_disk(self.path):
            return self._db.execute(sql, values).fetchall()

    def close(self) -> None:
        """Let another process open the file."""
        with self._lock:
            self._db.close()


class Board(Database):
    """The consortium's records in the order in which the server stored them: 1, 2, 3, ..., none ever changed.

    A clinic is shown those of founders, custodians, server and its own, numbered 1, 2, 3, ... too: what it reads does
    not grow with the number of clinics.
    """

    schema = (
        "CREATE TABLE IF NOT EXISTS record (\n        seq INTEGER PRIMARY KEY, sender TEXT NOT NULL, "
        "topic TEXT NOT NULL, data BLOB NOT NULL, UNIQUE (sender, topic))"
    )

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        check: Callable[[msg.Record], None] = lambda record: None,
        quotas: Mapping[str, Quota] | None = None,
    ) -> None:
        """``check`` raises :class:`Refused` for what no member may say; ``quotas``: how much of it."""
        super().__init__(path)
        self._manifest, self._check, self._said = manifest, check, Said(quotas or {})
        self._grown = threading.Condition(self._lock)
        self._listeners: list[Callable[[], None]] = []
        self._clinics = {m.name for m in manifest.clinics}
        self._common: list[int] = []
        """Numbers of all records that are no clinic's."""
        self._own: dict[str, list[int]] = {name: [] for name in self._clinics}
        self._length = 0
        for sender, size in self._run("SELECT sender, length(data) FROM record ORDER BY seq"):
            self._count(str(sender), int(str(size)))

    def __len__(self) -> int:
        return self._length

    def length(self, reader: str) -> int:
        """How many records there are for this member."""
        return len(self._common) + len(self._own[reader]) if reader in self._clinics else self._length

    def _count(self, sender: str, size: int) -> int:
        """Take one more record into account; returns its number."""
        self._length += 1
        self._said.count(sender, size)
        self._own.get(sender, self._common).append(self._length)
        return self._length

    def append(self, data: bytes, sender: str | None, after: int | None = None) -> int:
        """Store one encoded signed record; returns its number, the same one for the same bytes.

        Args:
            sender: who the transport says is speaking; ``None`` for records of this process.
            after: store it only where so many records are there; 0 is returned where there are more.

        Raises:
            ProtocolError: malformed, not by a member, or wrongly signed.
            Refused: ``sender`` (posted by another than its author) or ``second-record`` (the author said something
                else under this topic).
        """
        record = open_record(self._manifest, data)
        if sender is not None and sender != record.sender:
            raise Refused("sender", f"'{sender}' posted a record of '{record.sender}'")
        if record.sender in self._clinics and CLINICS.get(EPOCH.sub("", record.topic)) is not type(record.body):
            raise Refused("topic", f"'{record.sender}' is a clinic, which says no such thing under '{record.topic}'")
        self._check(record)
        with self._grown:
            if record.sender in self._clinics and (epoch := EPOCH.search(record.topic)):
                self._check_proposed(record, int(epoch[0].removeprefix("/e")))
            before = self._run(
                "SELECT seq, data FROM record WHERE sender = ? AND topic = ?", record.sender, record.topic
            )
            if before:
                seq, old = before[0]
                if old != data:
                    raise Refused(
                        "second-record", f"'{record.sender}' has already said something else under '{record.topic}'"
                    )
                return int(seq)  # type: ignore[call-overload]
            if after is not None and after != self._length:
                return 0
            self._said.check(record, len(data))
            self._run("INSERT INTO record VALUES (?, ?, ?, ?)", self._length + 1, record.sender, record.topic, data)
            seq = self._count(record.sender, len(data))
            self._grown.notify_all()
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()
        return seq

    def _check_proposed(self, record: msg.Record, epoch: int) -> None:
        """A clinic masks its rows anew where that was asked for: what it says stays in everybody's memory."""
        proposals = "SELECT seq FROM record WHERE sender = ? AND topic = ?"
        if not self._run(proposals, self._manifest.server.name, f"epoch/{epoch}"):
            raise Refused("topic", f"'{record.sender}' says something in epoch {epoch}, which nobody has proposed")

    def since(self, seq: int, limit_bytes: int, reader: str = "") -> list[bytes]:
        """Records after number ``seq`` in order, as ``reader`` counts them: as many as fit into ``limit_bytes``,
        at least one when there is one."""
        found: list[bytes] = []
        room, shown = limit_bytes, None
        with self._lock, on_disk(self.path):
            if reader in self._clinics:
                shown = set(sorted([*self._common, *self._own[reader]])[seq:])
                seq = min(shown, default=self._length + 1) - 1
            for number, data in self._db.execute("SELECT seq, data FROM record WHERE seq > ? ORDER BY seq", (seq,)):
                if shown is not None and number not in shown:
                    continue
                room -= len(data) + 8
                if found and room < 0:
                    break
                found.append(data)
        return found

    def wait(self, seq: int, seconds: float) -> bool:
        """Wait until there is a record after ``seq``; False when there is none within ``seconds``."""
        with self._grown:
            return self._grown.wait_for(lambda: self._length > seq, seconds)

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after every new record, in the thread that appended it."""
        with self._lock:
            self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        with self._lock:
            self._listeners.remove(listener)


class Journal(Database):
    """A party's private memory.

    ``once``/``get``: things made one time and for ever (nonces, shares, uploads).
    ``set``/``read``: where this party stands; overwritten as it goes.
    """

    schema = """
        CREATE TABLE IF NOT EXISTS once (key TEXT PRIMARY KEY, value BLOB NOT NULL);
        CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value BLOB NOT NULL);"""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._making: dict[str, threading.Lock] = {}

    def once(self, key: str, make: Callable[[], bytes]) -> bytes:
        """The bytes that ``make`` gave the first time, on disk before anybody sees them.

        ``make`` runs again only when its bytes never reached the disk, and so nobody has seen them. It may call
        ``once`` under other keys.
        """
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            value = self.get(key)
            if value is None:
                value = bytes(make())
                self._run("INSERT INTO once VALUES (?, ?)", key, value)
            return value

    def get(self, key: str) -> bytes | None:
        """What was made under ``key``, if anything."""
        return self._value("once", key)

    def set(self, key: str, value: bytes) -> None:
        """Remember ``value``, replacing what was there."""
        self._run("INSERT OR REPLACE INTO state VALUES (?, ?)", key, bytes(value))

    def read(self, key: str) -> bytes | None:
        """What was last ``set`` under ``key``, if anything."""
        return self._value("state", key)

    def _value(self, table: str, key: str) -> bytes | None:
        rows = self._run(f"SELECT value FROM {table} WHERE key = ?", key)
        return rows[0][0] if rows else None  # type: ignore[return-value]
