"""Features of whole slides: the mean over a slide's tiles, computed tile by tile and kept like an image's.

::

    tiles(i) --32 at a time--> lower segment --> (32, dim) --sum--> mean (dim,) --> feature cache
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from focal.data.slides import SlideImages
from focal.data.table import Table
from focal.segments.lower import LowerSegment, preprocess
from focal.training.vectors import Keep, finite, full_precision

BATCH = 32


def extract(
    segment: LowerSegment,
    table: Table,
    rows: Sequence[int],
    known: frozenset[str],
    keep: Keep,
    accelerator: str,
    report: Callable[[int], None],
) -> list[str]:
    """The keys of ``rows``, whole slides, in their order; the features of those that are not ``known`` were given to
    ``keep``, each mean as soon as it was there."""
    slides = table.images
    assert isinstance(slides, SlideImages)
    device = "cuda" if accelerator == "gpu" else "cpu"
    segment.to(device)
    keys: list[str] = []
    with full_precision():
        for row in rows:
            key = table.key(row)
            if key not in known and key not in keys:
                keep([key], finite(_mean(segment, slides, row, device))[None])
            keys.append(key)
            report(len(keys))
    segment.cpu()
    return keys


def _mean(segment: LowerSegment, slides: SlideImages, row: int, device: str) -> NDArray[np.float32]:
    total, count = np.zeros(segment.spec.dim), 0
    for batch in _batches(preprocess(tile, segment.spec) for tile in slides.tiles(row)):
        with torch.inference_mode():
            found = segment(torch.stack(batch).to(device)).cpu().numpy()
        total, count = total + found.sum(0, dtype=np.float64), count + len(found)
    return (total / count).astype(np.float32)


def _batches(tensors: Iterator[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    while batch := list(islice(tensors, BATCH)):
        yield batch
