"""What was found out about images, kept by their content, so that it is not found out again.

The key of a value is its image's hash: renamed images and re-ordered tables hit. What is kept describes patients: the
folder is 0700, the files 0600, and no file name is stored.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from focal.errors import FocalError

BUSY_S = 60.0
"""How long a process waits while another one writes to the same file."""

K = TypeVar("K", bound="Kept")


class Kept:
    """Bytes by image content, in one SQLite file. Several processes may read and write at once. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._explained():
            for folder in (*reversed(path.parent.parents), path.parent):  # mkdir's mode is the last one's only
                folder.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileExistsError):  # made here for its mode, which SQLite gives to its -wal and -shm files too
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
            self._enter_wal()
            self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may cost the last batches, never the file
            self._db.execute("CREATE TABLE IF NOT EXISTS kept (image TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def _enter_wal(self) -> None:
        """SQLite's own busy timeout does not cover this change, when several processes open a new file at once."""
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as e:
                if "locked" not in str(e) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def __enter__(self: K) -> K:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def values(self) -> dict[str, bytes]:
        """Everything."""
        with self._explained():
            return dict(self._db.execute("SELECT image, value FROM kept"))

    def value(self, key: str) -> bytes | None:
        """That of one image, where it is known."""
        with self._explained():
            row = self._db.execute("SELECT value FROM kept WHERE image = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def keep(self, values: Sequence[tuple[str, bytes]]) -> None:
        """Store (key, value) pairs in one transaction."""
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", values)
            self._db.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the file or the disk, as a line that names the file."""
        try:
            yield
        except (sqlite3.Error, OSError) as e:
            raise FocalError(
                f"{self.path}: the cache cannot be used ({getattr(e, 'strerror', None) or e})",
                hint="free disk space and check permissions; a damaged cache can be deleted, it will be made again",
            ) from None
