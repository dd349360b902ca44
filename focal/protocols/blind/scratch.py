"""Ciphertexts that were made from uploads once, on the own disk: a pass that comes again reads limbs and computes none.

::

    owners' masked rows, custodians' contributions --masks, sums--> ciphertext --> | slot 0 | slot 1 | ...   each pass
                       checked, once                                                 canonical bytes   SHA-256 in memory

The file has no name: it is gone with the process, whatever ends that.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from focal.ckks import codec
from focal.ckks.codec import Kind
from focal.ckks.scheme import Scheme
from focal.errors import FocalError
from focal.files import write_at


class Scratch:
    """Ciphertexts of one ``kind`` by any name, in a file on the disk of ``folder``; any thread may call.

    Raises :class:`FocalError` when the disk is full, or gives other bytes than were written.
    """

    def __init__(self, scheme: Scheme, kind: Kind, folder: Path) -> None:
        self.scheme, self.kind, self.folder = scheme, kind, folder
        self._size = codec.size(scheme, kind)
        self._slots: dict[Hashable, tuple[int, str]] = {}
        self._used, self._lock = 0, threading.Lock()
        self._file = tempfile.TemporaryFile(dir=folder)  # 0600  # noqa: SIM115 (it stays open)

    def __contains__(self, name: Hashable) -> bool:
        return name in self._slots

    def put(self, name: Hashable, ciphertext: Any) -> None:
        """Keep ``ciphertext``; once under one name."""
        data = codec.pack(self.scheme, self.kind, self.scheme.evaluator.limbs(ciphertext))
        with self._lock:
            slot, self._used = self._used, self._used + 1
        try:
            write_at(self._file.fileno(), data, slot * self._size)
        except OSError as e:
            raise FocalError(
                f"{self.folder}: blocks that do not fit the memory cannot be kept here ({e.strerror})",
                hint="free space, or raise memory_gb in the local file; then give the same command again",
            ) from None
        self._slots[name] = slot, codec.digest(data)

    def get(self, name: Hashable) -> Any:
        """The ciphertext that was kept under ``name``, limb for limb."""
        slot, digest = self._slots[name]
        data = os.pread(self._file.fileno(), self._size, slot * self._size)
        if codec.digest(data) != digest:
            raise FocalError(
                f"{self.folder}: the disk returns other bytes than were written",
                hint="check the disk, then give the same command again",
            )
        return self.scheme.evaluator.load(codec.unpack(self.scheme, self.kind, data, "the own disk"))

    def close(self) -> None:
        self._file.close()
