"""Raw features of an institution's images: computed once, then kept in a private cache.

::

    rows --bytes, sha256--> cache (SQLite, one file per lower segment) --hit-----------------------> (n, dim) float32
                                |                                                                  ^
                               miss --decode the same bytes--> focal.training.extraction ----------+ stored batch by
                                                                       batch, so a killed process keeps what it finished

Lightning, which does the computing, takes seconds to import: whoever finds everything in the cache does without.

The key of a vector is its image's content, and the file is named by the hash of weights, cut and preprocessing: renamed
images and re-ordered tables hit, other weights never do. Features describe patients: the folder is 0700, the files
0600, and no file name is stored.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from focal.data.slides import SlideImages
from focal.data.table import Table
from focal.errors import FocalError
from focal.files import canonical_json
from focal.manifest import LowerSpec
from focal.segments.lower import LowerSegment

BUSY_S = 60.0
"""How long a process waits while another one writes to the same cache."""

Progress = Callable[[int, int], None]


def compute_features(
    segment: LowerSegment, table: Table, rows: ArrayLike, *, device: str, cache: Path, progress: Progress | None = None
) -> NDArray[np.float32]:
    """(len(rows), dim) float32 features of the table's ``rows``, from ``cache`` where it has them.

    ``device`` is ``auto``, ``cpu`` or ``cuda``; ``progress(done, total)`` counts rows. Raises :class:`FocalError` for
    an image that cannot be read, a feature that is not finite, a missing GPU, and a cache that cannot be written.
    """
    wanted = [int(row) for row in np.asarray(rows, dtype=np.int64)]
    report = progress or (lambda done, total: None)
    chosen = accelerator(device)
    with FeatureCache(cache, segment.spec) as store:
        known, keys = store.keys(), []
        for row in wanted:
            if (key := table.images.sha256(row)) not in known:
                break
            keys.append(key)
        report(len(keys), len(wanted))
        if len(keys) < len(wanted):
            found, images, left = len(keys), table.images, wanted[len(keys) :]

            def show(done: int) -> None:
                report(found + done, len(wanted))

            if isinstance(images, SlideImages):
                from focal.training import slides

                keys += slides.extract(segment, images, left, known, store.put, chosen, show)
            else:
                from focal.training import extraction

                keys += extraction.extract(segment, images, left, known, store.put, chosen, show)
        return store.get(keys)


def accelerator(device: str) -> str:
    """Lightning's name for ``auto``, ``cpu`` or ``cuda``. Raises :class:`FocalError` for another device,
    or a GPU that is not there."""
    if device not in ("auto", "cpu", "cuda"):
        raise FocalError(f"device '{device}' is none of auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise FocalError(
            "device 'cuda': torch finds no usable GPU", hint="set 'device: auto', or check the driver (nvidia-smi)"
        )
    if device == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    return "gpu" if device == "cuda" else "cpu"


# --------------------------------------------------------------------------- the cache


class FeatureCache:
    """Vectors by image content, for one lower segment. Several processes may read and write at once.
    A context manager."""

    def __init__(self, folder: Path, spec: LowerSpec) -> None:
        self.dim = spec.dim
        self.path = folder / f"features-v2-{hashlib.sha256(canonical_json(spec.said())).hexdigest()[:32]}.sqlite"
        with self._explained():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileExistsError):  # made here for its mode, which SQLite gives to its -wal and -shm files too
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
            self._enter_wal()
            self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may cost the last batches, never the file
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS features (image TEXT PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID"
            )

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

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def __contains__(self, key: str) -> bool:
        return self._vector(key) is not None

    def keys(self) -> frozenset[str]:
        """Of all images whose vectors are here, whole."""
        with self._explained():
            found = self._db.execute("SELECT image FROM features WHERE length(vector) = ?", (4 * self.dim,))
            return frozenset(key for (key,) in found)

    def put(self, keys: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Store (len(keys), dim) vectors in one transaction."""
        little = vectors.astype("<f4")
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            rows = [(key, vector.tobytes()) for key, vector in zip(keys, little, strict=True)]
            self._db.executemany("INSERT OR REPLACE INTO features VALUES (?, ?)", rows)
            self._db.execute("COMMIT")

    def get(self, keys: Sequence[str]) -> NDArray[np.float32]:
        """(len(keys), dim) float32; every key must be present."""
        vectors = np.empty((len(keys), self.dim), np.float32)
        for i, key in enumerate(keys):
            vector = self._vector(key)
            if vector is None:
                raise FocalError(
                    f"{self.path}: lost a feature while it was being read",
                    hint="delete the file; it will be computed again",
                )
            vectors[i] = vector
        return vectors

    def _vector(self, key: str) -> NDArray[np.float32] | None:
        with self._explained():
            row = self._db.execute("SELECT vector FROM features WHERE image = ?", (key,)).fetchone()
        return np.frombuffer(row[0], "<f4") if row and len(row[0]) == 4 * self.dim else None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the file or the disk, as a line that names the file."""
        try:
            yield
        except (sqlite3.Error, OSError) as e:
            raise FocalError(
                f"{self.path}: the feature cache cannot be used ({getattr(e, 'strerror', None) or e})",
                hint="free disk space and check permissions; a damaged cache can be deleted, it will be computed again",
            ) from None
