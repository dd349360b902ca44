"""What need not be read, sent or hashed anew (:class:`Recent`)."""

from __future__ import annotations

import collections
import threading


class Recent:
    """Blobs that passed a moment ago, in memory, the oldest out first:
    to whom they come again they need not be read, sent or hashed anew.

    ``room``: bytes that they may take, all together. Any thread may call.
    """

    def __init__(self, room: int) -> None:
        self._room, self._taken = room, 0
        self._kept: collections.OrderedDict[str, bytes] = collections.OrderedDict()
        self._lock = threading.Lock()

    def add(self, digest: str, data: bytes) -> None:
        """Keep ``data``, whose SHA-256 the caller has found to be ``digest``."""
        with self._lock:
            if digest in self._kept or len(data) > self._room:
                return
            self._kept[digest], self._taken = data, self._taken + len(data)
            while self._taken > self._room:
                self._taken -= len(self._kept.popitem(last=False)[1])

    def get(self, digest: str) -> bytes | None:
        return self._kept.get(digest)
