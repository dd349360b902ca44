"""Images by row number, wherever they lie: files of a folder or a zip, or one array.

::

    zip or folder --bytes(name)--> decoded to RGB          read(i)      the picture, in any process or thread
      (focal.data.pictures)                                keyed(i)     hash and picture from one read of the bytes
    array (n, h, w[, 3]) ------->                          sha256(i)    of what is stored and what is declared of it
"""

from __future__ import annotations

import hashlib
import lzma
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from focal.config import DatasetConfig
from focal.data.pictures import ImageError, Picture, Reading, decode
from focal.errors import FocalError


class ImageSource(Protocol):
    """Images by row number; safe to use from several threads,
    and from processes forked or spawned after it was made."""

    def read(self, i: int) -> Image.Image:
        """Row ``i`` decoded to RGB. Raises :class:`FocalError` when it cannot be read."""
        ...

    def sha256(self, i: int) -> str:
        """SHA-256 (hex) of the content of row ``i``, as stored: encoded bytes of a file, pixels of an array; together
        with the window and page that are declared, where they are."""
        ...

    def keyed(self, i: int) -> tuple[str, Callable[[], Picture]]:
        """``sha256(i)``, and what decodes the very bytes that it is of: for who needs both, reads once. Decoders let
        other threads run. Decoding raises :class:`~focal.data.pictures.ImageError` when this one cannot be had,
        another :class:`FocalError` when a setting or a package is missing."""
        ...

    def take(self, rows: NDArray[np.int64]) -> ImageSource:
        """The source of only these rows, in this order."""
        ...


Bytes = bytes  # the stores have a method of that name
UNREADABLE = (OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError)
"""What reading an image's bytes raises: no such file, a torn archive, a member that is damaged or encrypted
(RuntimeError), or packed in a way that Python's zipfile does not know (its subclass NotImplementedError)."""


@dataclass(frozen=True)
class EncodedImages:
    """Image files of a folder or a zip archive."""

    store: Folder | Archive
    names: NDArray[np.str_]
    reading: Reading = Reading()

    def read(self, i: int) -> Image.Image:
        return self.keyed(i)[1]().image

    def keyed(self, i: int) -> tuple[str, Callable[[], Picture]]:
        content, where = self._bytes(i), f"{self.store.path}: image '{self.names[i]}'"
        return self.reading.key(hashlib.sha256(content).hexdigest()), lambda: decode(content, where, self.reading)

    def sha256(self, i: int) -> str:
        return self.reading.key(hashlib.sha256(self._bytes(i)).hexdigest())

    def take(self, rows: NDArray[np.int64]) -> EncodedImages:
        return replace(self, names=self.names[rows])

    def _bytes(self, i: int) -> bytes:
        try:
            return self.store.bytes(str(self.names[i]))
        except UNREADABLE as e:
            raise ImageError(
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

    def keyed(self, i: int) -> tuple[str, Callable[[], Picture]]:
        mode = "L" if self.pixels.ndim == 3 else "RGB"
        return self.sha256(i), lambda: Picture(self.read(i), "array", mode, 8)

    def take(self, rows: NDArray[np.int64]) -> ArrayImages:
        return replace(self, pixels=self.pixels[rows])


@dataclass(frozen=True)
class Folder:
    """Files below a folder."""

    path: Path

    def bytes(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def head(self, name: str, size: int) -> Bytes:
        """The first ``size`` bytes; of a file that cannot be read, none."""
        try:
            with (self.path / name).open("rb") as f:
                return f.read(size)
        except UNREADABLE:
            return b""

    def missing(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if not (self.path / name).is_file()]

    def files(self) -> list[str]:
        """Names of all that a person put there, sorted."""
        return _by_people(str(p.relative_to(self.path)) for p in self.path.rglob("*") if p.is_file())


class Archive:
    """Members of a zip file. The handle belongs to one process: a fork would share its file position,
    and pickling it is impossible."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def bytes(self, name: str) -> bytes:
        return self._zip().read(name)

    def head(self, name: str, size: int) -> Bytes:
        """The first ``size`` bytes; of a member that cannot be read, none."""
        try:
            with self._zip().open(name) as f:
                return f.read(size)
        except UNREADABLE:
            return b""

    def missing(self, names: Sequence[str]) -> list[str]:
        held = set(self._zip().namelist())
        return [name for name in names if name not in held]

    def files(self) -> list[str]:
        """Names of all that a person put there, sorted."""
        return _by_people(self._zip().namelist())

    def _zip(self) -> zipfile.ZipFile:
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = (os.getpid(), zipfile.ZipFile(self.path))
            return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]


def _by_people(names: Iterable[str]) -> list[str]:
    """Without what systems leave behind (hidden files, ``__MACOSX``, ``Thumbs.db``), sorted."""

    def left_behind(name: str) -> bool:
        parts = Path(name).parts
        return (
            name.endswith("/")
            or "__MACOSX" in parts
            or any(part.startswith(".") for part in parts)
            or parts[-1].lower() in ("thumbs.db", "desktop.ini", "dicomdir")
        )

    return sorted(name for name in names if not left_behind(name))


def image_source(config: DatasetConfig, store: Folder | Archive, names: NDArray[np.str_]) -> ImageSource:
    """The files ``names`` of ``store``, read as the data set declares. Raises :class:`FocalError` for zipped slides."""
    if config.kind != "slides":
        return EncodedImages(store, names, Reading.of(config))
    from focal.data.slides import SlideImages

    if isinstance(store, Archive):
        raise FocalError(f"{store.path}: slides cannot be read inside a zip", hint="unpack it, and name the folder")
    return SlideImages(store.path, names, config.slides)


def reason(error: Exception) -> str:
    """Why, without the path that Python repeats in its messages."""
    return getattr(error, "strerror", None) or type(error).__name__
