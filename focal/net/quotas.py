"""What a member may say and send, and how much: as much of the server's disk and board as the run needs of it, which
follows from the manifest. A blob is counted by its announced size, and what a file takes besides, when its first piece
comes, whether or not the rest does."""

from __future__ import annotations

import collections
import re
import threading
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from focal.errors import Refused
from focal.net import messages as msg

CLINICS = {
    "inputs/key": msg.InputKey,
    "upload": msg.Upload,
    "results/handed": msg.ResultsHanded,
    "finished": msg.Finished,
    "abort": msg.Abort,
}
"""What a clinic says, once in each epoch: all others keep it in memory."""
LAST, LAST_BYTES = ("finished", "abort"), 2048
"""What anybody may say, whatever it has said before, and how long that is at most."""
FILE = 4096
"""Bytes that a blob takes besides its own: a block of the disk, rows, memory. Else a quota would be as many files, of
one byte each."""
EPOCH = re.compile(r"(?<=key|oad)/e[1-8]$")


class Quota(NamedTuple):
    """Bytes of one member."""

    blobs: int
    """Of all its blobs together, and :data:`FILE` of each."""
    board: int
    """Of all its signed records together: each has some 250 at least."""


class Sent:
    """What each member has sent of blobs. ``before``: (member, digest, bytes) of all that is on the disk already."""

    def __init__(self, quotas: Mapping[str, Quota], before: Iterable[tuple[str, str, int]]) -> None:
        self._quotas = quotas
        self._lock = threading.Lock()
        self._sizes: dict[str, dict[str, int]] = {name: {} for name in quotas}
        self._total = dict.fromkeys(quotas, 0)
        for name, digest, size in before:
            if name in quotas:
                self._count(name, digest, size)

    def take(self, name: str, digest: str, size: int) -> None:
        """Count one more blob of ``name``, or the same one again. Raises :class:`Refused` (``quota``) naming the
        member where it is more than the run needs of it."""
        if (quota := self._quotas.get(name)) is None:
            return
        with self._lock:
            more = self._more(name, digest, size)
            if more > 0 and self._total[name] + more > quota.blobs:
                raise Refused(
                    "quota",
                    f"'{name}' sends {self._total[name] + more} bytes of blobs, this run needs {quota.blobs} of it",
                    hint="its rows need no more: look at what was started there in its name",
                )
            self._count(name, digest, size)

    def _count(self, name: str, digest: str, size: int) -> None:
        more = self._more(name, digest, size)
        self._sizes[name][digest] = self._sizes[name].get(digest, 0) + more
        self._total[name] += more

    def _more(self, name: str, digest: str, size: int) -> int:
        """What this blob takes that was not counted yet."""
        return max(0, FILE + size - self._sizes[name].get(digest, 0))


class Said:
    """What each member has said: everybody reads the board, and keeps it in memory."""

    def __init__(self, quotas: Mapping[str, Quota]) -> None:
        self._quotas = quotas
        self._bytes: collections.Counter[str] = collections.Counter()

    def count(self, name: str, size: int) -> None:
        """One record more, of ``size`` bytes."""
        self._bytes[name] += size

    def check(self, record: msg.Record, size: int) -> None:
        """Raise :class:`Refused` (``quota``) naming the member where it says more than the run needs of it. Whoever
        does may still say that it ends."""
        name, quota = record.sender, self._quotas.get(record.sender)
        if quota is None or (record.topic in LAST and size < LAST_BYTES):
            return
        if self._bytes[name] + size > quota.board:
            raise Refused(
                "quota",
                f"'{name}' says {self._bytes[name] + size} bytes in all, this run needs {quota.board} of it",
            )
