"""What every way of computing features keeps to: full precision, only finite numbers are kept; and by how
many threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from focal.errors import FocalError

Vectors = NDArray[np.float32]
Keep = Callable[[Sequence[str], Vectors], None]
"""Takes the keys of some images and their (n, dim) features."""


def finite(vectors: Vectors) -> Vectors:
    """The same ones. Raises :class:`FocalError` where one is not finite."""
    if not np.isfinite(vectors).all():
        raise FocalError(
            "the lower segment gives features that are not finite numbers",
            hint="check its weights and 'lower.mean' and 'lower.std'; half-precision weights may be damaged",
        )
    return vectors


@contextmanager
def computing(threads: int | None) -> Iterator[None]:
    """torch has so many threads (None: as many as there are cores). focal.ckks limits OpenMP, and with it torch, to
    one."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 in convolutions: its 10-bit mantissa would make a GPU's features differ from a CPU's by more
    than the consortium accepts."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False):
        yield
