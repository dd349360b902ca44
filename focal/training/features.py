"""Raw features of an institution's images: computed once, then kept in a private cache.

::

    rows --bytes, sha256--> cache (SQLite, one file per lower segment) --hit-----------------------> (n, dim) float32
                                |                                                                  ^
                               miss --decode the same bytes--> focal.training.extraction ----------+ stored batch by
                                                                  ^    batch, so a killed process keeps what it finished
    examine (all images, before a run) --decoded--> Learner ------+

Who looks at all images before a run hands over what it has decoded (:class:`Learner`). At the segment's size the images
wait in the memory until it is known that every one is good.

Lightning, which does the computing, takes seconds to import: whoever finds everything in the cache does without.

A file of the cache (:mod:`focal.data.kept`) is named by the hash of weights, cut and preprocessing: renamed images and
re-ordered tables hit, other weights never do.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from focal.data.kept import Kept
from focal.data.slides import SlideImages
from focal.data.table import Table
from focal.errors import FocalError
from focal.files import canonical_json
from focal.manifest import LowerSpec
from focal.segments.lower import LowerSegment, preprocess
from focal.telling import Progress
from focal.training.vectors import computing

ROOM: Final = 1 << 30
"""Bytes of images that wait for their features: 7000 of 224 x 224. What is more is computed while the look goes on."""


class Learner:
    """Computes the features of the table's ``rows`` from what :func:`focal.data.examine.examine` decodes.

    A context manager. ``threads`` compute (default: as many as there are cores), ``progress(done, total)`` counts.
    Raises as :func:`compute_features` does.
    """

    def __init__(
        self,
        segment: LowerSegment,
        table: Table,
        rows: ArrayLike,
        *,
        device: str,
        cache: Path,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.segment, self.threads = segment, threads
        self.seconds = 0.0
        """Spent on features so far."""
        self._accelerator = accelerator(device)
        # a slide is many pictures, read when they are computed: what a look shows of it is none of them
        slides = isinstance(table.images, SlideImages)
        self._rows = frozenset[int]() if slides else frozenset(np.asarray(rows, dtype=np.int64).tolist())
        self._report = progress or (lambda done, total: None)
        self._waiting: dict[str, Tensor] = {}
        self._store = FeatureCache(cache, segment.spec)
        self._known = self._store.keys()

    def __enter__(self) -> Learner:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def wants(self, row: int, key: str) -> bool:
        return row in self._rows and key not in self._known and key not in self._waiting

    def take(self, key: str, image: Image.Image) -> None:
        self._waiting[key] = preprocess(image, self.segment.spec)

    def rest(self) -> None:
        if len(self._waiting) * 3 * self.segment.spec.image_size**2 > ROOM:
            self._compute(lambda done: None)

    def finish(self) -> None:
        """Compute what waits, and keep it in the cache. Nothing waits any more."""
        total = len(self._waiting)
        if total:
            self._compute(lambda done: self._report(done, total))

    def _compute(self, report: Callable[[int], None]) -> None:
        from focal.training import extraction

        started, items = time.monotonic(), list(self._waiting.items())
        with computing(self.threads):
            extraction.extract(self.segment, items, self._store.put, self._accelerator, report)
        self.seconds += time.monotonic() - started
        self._known |= self._waiting.keys()
        self._waiting.clear()


def compute_features(
    segment: LowerSegment,
    table: Table,
    rows: ArrayLike,
    *,
    device: str,
    cache: Path,
    threads: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """(len(rows), dim) float32 features of the table's ``rows``, from ``cache`` where it has them.

    ``device`` is ``auto``, ``cpu`` or ``cuda``; ``threads`` as in :class:`Learner`; ``progress(done, total)`` counts
    rows. Raises :class:`FocalError` for an image that cannot be read, a feature that is not finite, a missing GPU,
    and a cache that cannot be written.
    """
    wanted = [int(row) for row in np.asarray(rows, dtype=np.int64)]
    report = progress or (lambda done, total: None)
    chosen = accelerator(device)
    with FeatureCache(cache, segment.spec) as store:
        known, keys = store.keys(), []
        for row in wanted:
            if (key := table.key(row)) not in known:
                break
            keys.append(key)
        report(len(keys), len(wanted))
        if len(keys) < len(wanted):
            found, left = len(keys), wanted[len(keys) :]

            def show(done: int) -> None:
                report(found + done, len(wanted))

            with computing(threads):
                if isinstance(table.images, SlideImages):
                    from focal.training import slides

                    keys += slides.extract(segment, table, left, known, store.put, chosen, show)
                else:
                    from focal.training import extraction

                    unread = extraction.Unread(table.images, left, segment.spec, known)
                    keys += extraction.extract(segment, unread, store.put, chosen, show)
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
