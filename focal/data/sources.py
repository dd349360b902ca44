"""Images by row number, wherever they lie: files of a folder or a zip, or one array.

::

    zip or folder --bytes(name)--> decoded to RGB          read(i)      in any process or thread, on demand
    array (n, h, w[, 3]) ------->                          sha256(i)    of what is stored, not of what is shown
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from focal.errors import FocalError

DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes with more than 8 bits a channel."""


class ImageSource(Protocol):
    """Images by row number; safe to use from several threads,
    and from processes forked or spawned after it was made."""

    def read(self, i: int) -> Image.Image:
        """Row ``i`` decoded to RGB. Raises :class:`FocalError` when it cannot be read."""
        ...

    def sha256(self, i: int) -> str:
        """SHA-256 (hex) of the content of row ``i``, as stored: encoded bytes of a file, pixels of an array."""
        ...

    def keyed(self, i: int) -> tuple[str, Callable[[], Image.Image]]:
        """``sha256(i)``, and what decodes the very bytes that it is of: for who needs both, reads once."""
        ...

    def take(self, rows: NDArray[np.int64]) -> ImageSource:
        """The source of only these rows, in this order."""
        ...


UNREADABLE = (OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError)
"""What reading an image's bytes raises: no such file, a torn archive, a member that is damaged or encrypted
(RuntimeError), or packed in a way that Python's zipfile does not know (its subclass NotImplementedError)."""


@dataclass(frozen=True)
class EncodedImages:
    """Image files of a folder or a zip archive."""

    store: Folder | Archive
    names: NDArray[np.str_]

    def read(self, i: int) -> Image.Image:
        return self._decoded(i, self._bytes(i))

    def keyed(self, i: int) -> tuple[str, Callable[[], Image.Image]]:
        content = self._bytes(i)
        return hashlib.sha256(content).hexdigest(), lambda: self._decoded(i, content)

    def _decoded(self, i: int, content: bytes) -> Image.Image:
        try:
            image = Image.open(io.BytesIO(content))
            if image.mode not in DEEP_MODES:
                return image.convert("RGB")
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
            raise FocalError(
                f"{self.store.path}: image '{self.names[i]}' cannot be decoded ({reason(e)})",
                hint="replace the file, or remove its line from the table",
            ) from None
        raise FocalError(  # Pillow would clip to 255 and lose the picture; which window to keep is a medical choice
            f"{self.store.path}: image '{self.names[i]}' has more than 8 bits a pixel (mode {image.mode})",
            hint="convert it to 8 bits with the intensity window that your readers use",
        )

    def sha256(self, i: int) -> str:
        return hashlib.sha256(self._bytes(i)).hexdigest()

    def take(self, rows: NDArray[np.int64]) -> EncodedImages:
        return replace(self, names=self.names[rows])

    def _bytes(self, i: int) -> bytes:
        try:
            return self.store.bytes(str(self.names[i]))
        except UNREADABLE as e:
            raise FocalError(
                f"{self.store.path}: image '{self.names[i]}' cannot be read ({reason(e)})",
                hint="put the file back, or remove its line from the table",
            ) from None


@dataclass(frozen=True)
class ArrayImages:
    """Images as one uint8 array (n, h, w) or (n, h, w, 3)."""

    pixels: NDArray[np.uint8]

    def read(self, i: int) -> Image.Image:
        return Image.fromarray(self.pixels[i]).convert("RGB")

    def sha256(self, i: int) -> str:
        pixels = self.pixels[i]
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()

    def keyed(self, i: int) -> tuple[str, Callable[[], Image.Image]]:
        return self.sha256(i), lambda: self.read(i)

    def take(self, rows: NDArray[np.int64]) -> ArrayImages:
        return replace(self, pixels=self.pixels[rows])


@dataclass(frozen=True)
class Folder:
    """Files below a folder."""

    path: Path

    def bytes(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def missing(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if not (self.path / name).is_file()]


class Archive:
    """Members of a zip file. The handle belongs to one process: a fork would share its file position,
    and pickling it is impossible."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def bytes(self, name: str) -> bytes:
        return self._zip().read(name)

    def missing(self, names: Sequence[str]) -> list[str]:
        held = set(self._zip().namelist())
        return [name for name in names if name not in held]

    def _zip(self) -> zipfile.ZipFile:
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = (os.getpid(), zipfile.ZipFile(self.path))
            return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]


def reason(error: Exception) -> str:
    """Why, without the path that Python repeats in its messages."""
    return getattr(error, "strerror", None) or type(error).__name__
