"""One joint step in plaintext."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from focal.errors import FocalError

RATE_BITS = 18
"""The rate of one row is a multiple of 2^-18: what an encrypted step multiplies its gradient by is an integer."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Update:
    """SGD with momentum; both stay constant over a run (the momentum is read off the last two weights)."""

    rate: float
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not (0.0 < self.rate < 100.0 and 0.0 <= self.momentum < 1.0):
            raise FocalError(
                f"interactive: rate {self.rate} and momentum {self.momentum}",
                hint="a rate above 0, a momentum in [0, 1)",
            )


def row_rate(update: Update, rows: int) -> int:
    """2^18 times what a step of so many ``rows`` multiplies the sum of their gradients by:
    rate / rows, rounded to an integer."""
    return round(update.rate / rows * 2**RATE_BITS)


def twin_step(weights: Array, before: Array, x: Array, delta: Array, update: Update) -> Array:
    """Weights (R, C) after one step on the n rows present: x (n, R), delta (n, C) = d loss / d logit
    of each row's own loss.

    The rate is that of :func:`row_rate`: at rate 0.1 and 128 rows 0.1001.
    """
    return weights + update.momentum * (weights - before) - row_rate(update, len(x)) / 2**RATE_BITS * (x.T @ delta)
