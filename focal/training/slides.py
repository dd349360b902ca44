"""Features of whole slides: the mean over a slide's tiles, computed tile by tile and kept like an image's.

::

    tiles(i) --32 at a time--> lower segment --> (32, dim) --sum--> mean (dim,) --> feature cache
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from focal.data.slides import SlideImages
from focal.errors import FocalError
from focal.segments.lower import LowerSegment, preprocess

BATCH = 32


class Store(Protocol):
    """Where vectors are kept (:class:`focal.training.features.FeatureCache`)."""

    def put(self, keys: list[str], vectors: NDArray[np.float32]) -> None: ...


def pool_slides(
    segment: LowerSegment,
    slides: SlideImages,
    missing: dict[str, int],
    store: Store,
    device: str,
    report: Callable[[int], None],
) -> None:
    """Compute the slides in ``missing`` (content hash -> row) on torch's ``device`` and put their (dim,) means into
    ``store``, each as soon as it is there. ``report`` counts slides. Raises :class:`FocalError`."""
    segment.to(device)
    for done, (key, row) in enumerate(missing.items(), start=1):
        store.put([key], _mean(segment, slides, row, device)[None])
        report(done)
    segment.cpu()


def _mean(segment: LowerSegment, slides: SlideImages, row: int, device: str) -> NDArray[np.float32]:
    total, count = np.zeros(segment.spec.dim), 0
    for batch in _batches(preprocess(tile, segment.spec) for tile in slides.tiles(row)):
        with torch.inference_mode():
            found = segment(torch.stack(batch).to(device)).cpu().numpy()
        total, count = total + found.sum(0, dtype=np.float64), count + len(found)
    mean = (total / count).astype(np.float32)
    if not np.isfinite(mean).all():
        raise FocalError(
            "the lower segment gives features that are not finite numbers",
            hint="check its weights and 'lower.mean' and 'lower.std'; half-precision weights may be damaged",
        )
    return mean


def _batches(tensors: Iterator[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    while batch := list(islice(tensors, BATCH)):
        yield batch
