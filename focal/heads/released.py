"""What a release says of a head: its weights from the opened slots, and how far these err."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from focal.ckks.evaluator import Slots
from focal.custody.release import SIGMA
from focal.heads.linear.layout import WEIGHT_SCALE
from focal.heads.moves import HeadLayout

MAX_ERROR = 1e-3
"""Largest error of a released weight that a layout may cause."""


def weights(layout: HeadLayout, slots: Sequence[Slots]) -> NDArray[np.float64]:
    """(R, C) weights W from the slots of every class group."""
    return np.hstack([layout.read_weights(s) for s in slots])[:, : layout.outputs] / WEIGHT_SCALE


def expected_error(slots: int, scale: float, layout: HeadLayout, custodians: int) -> float:
    """Expected largest error over all released weights (Gaussian, union over R x C).

    It holds for a head of the interactive protocol as well: the noise and the weights under it are four times larger.
    """
    one = SIGMA * math.sqrt(custodians) * math.sqrt(slots) / (scale * WEIGHT_SCALE * math.sqrt(layout.copies))
    return one * math.sqrt(2 * math.log(2 * layout.features * layout.outputs))


def precision_bits(slots: int, scale: float, layout: HeadLayout, custodians: int) -> float:
    """-log2 of :func:`expected_error`."""
    return -math.log2(expected_error(slots, scale, layout, custodians))
