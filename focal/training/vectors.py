"""What every way of computing features keeps to: full precision, and only finite numbers are kept."""

from __future__ import annotations

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
def full_precision() -> Iterator[None]:
    """No TF32 in convolutions: its 10-bit mantissa would make a GPU's features differ from a CPU's by more
    than the consortium accepts."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False):
        yield
