"""All institutions but one: what the pooled moments, which everybody was given, say about the last one.

::

    pooled sums of x and x x' over n rows  -  own sums  =  the last institution's mean and covariance, to the bit
        leverage of a candidate's features under that covariance              members lie inside what they span
        --> membership

With fewer rows than feature dimensions every member lies in the span, and nobody else does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from focal.segments.projection import Moments

Array = NDArray[np.float64]

FLOOR = 1e-3
"""Eigenvalues of a covariance below this part of their mean are raised to it: rounding and clipping."""


def last_one(pooled: Moments, own: Moments) -> Moments:
    """Moments of the rows that are not the coalition's."""
    n = pooled.n - own.n
    mean = (pooled.n * pooled.mean - own.n * own.mean) / n
    return Moments(n, mean, (pooled.n * pooled.second - own.n * own.second) / n)


def moments_of(features: Array) -> Moments:
    """Of own rows (n, dim), clipped as the run clips them."""
    return Moments(len(features), features.mean(axis=0), features.T @ features / len(features))


def leverage(moments: Moments, candidates: Array) -> Array:
    """(n,) minus the leverage of each candidate (n, dim): larger is more like a member."""
    values, vectors = np.linalg.eigh(moments.covariance)
    floor = FLOOR * values.mean()
    turned = (candidates - moments.mean) @ vectors
    return -(turned**2 / np.maximum(values, floor)).sum(axis=1) / moments.n
