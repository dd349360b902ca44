"""Raw features of an institution's images: computed once, then kept in a private cache.

::

    rows --bytes, sha256--> cache (SQLite, one file per lower segment) --hit-----------------------> (n, dim) float32
                                |                                                                  ^
                               miss --decode the same bytes--> focal.training.extraction ----------+ stored batch by
                                                                       batch, so a killed process keeps what it finished

Lightning, which does the computing, takes seconds to import: whoever finds everything in the cache does without.

A file of the cache (:mod:`focal.data.kept`) is named by the hash of weights, cut and preprocessing: renamed images and
re-ordered tables hit, other weights never do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from focal.data.kept import Kept
from focal.data.slides import SlideImages
from focal.data.table import Table
from focal.errors import FocalError
from focal.files import canonical_json
from focal.manifest import LowerSpec
from focal.segments.lower import LowerSegment
from focal.telling import Progress


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


class FeatureCache(Kept):
    """Vectors by image content, for one lower segment."""

    def __init__(self, folder: Path, spec: LowerSpec) -> None:
        self.dim = spec.dim
        super().__init__(folder / f"features-v2-{hashlib.sha256(canonical_json(spec.said())).hexdigest()[:32]}.sqlite")

    def __contains__(self, key: str) -> bool:
        return self._vector(key) is not None

    def keys(self) -> frozenset[str]:
        """Of all images whose vectors are here, whole."""
        with self._explained():
            found = self._db.execute("SELECT image FROM kept WHERE length(value) = ?", (4 * self.dim,))
            return frozenset(key for (key,) in found)

    def put(self, keys: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Store (len(keys), dim) vectors in one transaction."""
        self.keep([(key, vector.tobytes()) for key, vector in zip(keys, vectors.astype("<f4"), strict=True)])

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
        value = self.value(key)
        return None if value is None or len(value) != 4 * self.dim else np.frombuffer(value, "<f4")
