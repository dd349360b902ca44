"""One joint step in plaintext."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from focal.errors import FocalError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Update:
    """SGD with momentum; both stay constant over a run (the momentum is read off the last two weights)."""

    rate: float
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not (0.0 < self.rate < 100.0 and 0.0 <= self.momentum < 1.0):
            raise FocalError(f"interactive: rate {self.rate} and momentum {self.momentum}", hint="a rate above 0, a momentum in [0, 1)")


def twin_step(weights: Array, before: Array, x: Array, delta: Array, update: Update) -> Array:
    """Weights (R, C) after one step on the n rows present: x (n, R), delta (n, C) = d loss / d logit of each row's own loss."""
    return weights + update.momentum * (weights - before) - update.rate / len(x) * (x.T @ delta)
