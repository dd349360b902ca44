"""The plaintext twin of the encrypted training, step by step in float64, and the constants both share.

For targets t = 1/2 - y, n rows, eta the signed step size and p the sigmoid's odd polynomial::

    z = X W          delta = p(z) + t          W <- (1 - eta ridge) W - (eta / n) X' delta

Ridge 0.1 keeps the logits inside the fit's range; with ridge 0.01 the cubic leaves it after about 12 steps and
diverges (docs/kernels.md). :func:`train` reports the largest |z| so that a test, not a hospital, notices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from focal.errors import FocalError

Array = NDArray[np.float64]

RANGE = 8.0
"""The sigmoid polynomials are least-squares fits on [-8, 8]."""

SIGMOID: dict[int, tuple[float, ...]] = {
    3: (1.5010702185e-01, -1.5925292188e-03),
    5: (1.9129230724e-01, -4.5948727038e-03, 4.2209906738e-05),
    7: (2.1688579476e-01, -8.1930582390e-03, 1.6586664866e-04, -1.1957858600e-06),
}
"""Degree -> coefficients of z, z^3, z^5, z^7 of sigmoid(z) - 1/2: literals, so that every party has the same bits."""


@dataclass(frozen=True)
class Scalars:
    """Every scalar of a step, derived by one fixed sequence of IEEE operations."""

    coefficients: tuple[float, ...]
    rate: float
    """eta / n"""
    decay: float
    """1 - eta ridge"""

    @classmethod
    def derive(cls, degree: int, eta: float, ridge: float, rows: int) -> Scalars:
        if not 0.0 < eta * ridge < 1.0:
            raise FocalError(
                f"training: eta {eta:.3g} times ridge {ridge:.3g} must lie between 0 and 1",
                hint="choose a smaller ridge",
            )
        return cls(SIGMOID[degree], eta / float(rows), 1.0 - eta * ridge)


def polynomial(z: Array, coefficients: tuple[float, ...]) -> Array:
    """sigmoid(z) - 1/2 of every entry, as the encrypted pass computes it: z c_0 + z^3 c_1 + ..."""
    square = z * z
    out = np.zeros_like(z)
    for c in reversed(coefficients):
        out = out * square + c
    return out * z


def step(weights: Array, x: Array, targets: Array, scalars: Scalars) -> Array:
    """One full-batch step: weights (R, C), x (n, R), targets (n, C) = 1/2 - y."""
    delta = polynomial(x @ weights, scalars.coefficients) + targets
    return scalars.decay * weights - scalars.rate * (x.T @ delta)


def train(x: Array, targets: Array, scalars: Scalars, steps: int) -> tuple[Array, float]:
    """Weights (R, C) after ``steps`` steps from zero, and the largest |z| met on the way."""
    weights: Array = np.zeros((x.shape[1], targets.shape[1]))
    largest = 0.0
    for _ in range(steps):
        largest = max(largest, float(np.abs(x @ weights).max()))
        weights = step(weights, x, targets, scalars)
    return weights, largest
