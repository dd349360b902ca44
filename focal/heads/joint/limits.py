"""What bounds a joint step: who takes part, how long one key trains, and how large an institution's values may be.

An opening hides noise up to :data:`focal.custody.opening.NOISE` (root mean square). The noise inside grows with steps,
momentum, activations and weights, so all of these are bounded here; and with the openings of two steps an owner has the
others' summed gradient, so there must be others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from focal.custody import opening
from focal.errors import FocalError, Refused
from focal.heads.joint.layout import OPENED, SCALE, InteractiveLayout
from focal.heads.joint.twin import RATE_BITS, Update, row_rate

MIN_CONTRIBUTORS = 3
"""With two, each would learn the other's head gradient by differencing two heads."""
HEAD_NOISE = 2.0**16
"""t of the release of a head (focal/custody/release.py): four times that of the blind protocol's, on weights
released four times larger. What is inside is a rounding, 2^6.4 with 8 custodians, and 2^-14 of the noise that the
head is carried with: kappa is 49."""
CARRIED_NOISE = opening.NOISE * SCALE / OPENED
"""2^14: what a head may carry, so that openings have no more inside than they are smudged for."""
MIN_RATE = 16
"""Of :func:`focal.heads.joint.twin.row_rate`: rounded by 3 % at most."""
REFRESHED_NOISE = 2.0**2.6
"""What a refresh adds, per coefficient, with 3 custodians: errors of 3.19 of each, and roundings of 16 copies."""
TURNED_NOISE = 2.0**8.8
"""Noise of derivatives after their rotations, per coefficient, with 3 custodians
(measured in test_interactive_kernel.py)."""
MAX_ACTIVATION = 2.01
"""Largest root mean square of an institution's activations in one step:
where a bottleneck clips every norm to 2 sqrt(R), and a bias."""
MAX_DERIVATIVE = 2.0
"""Largest root mean square of its derivatives, over rows and class lanes:
at most 1 each but for the weights of rare classes."""
MAX_WEIGHT = 2.0
"""Largest size of the head, as the ratio of an activation gradient's root mean square to its derivative's length."""


def check_contributors(rows: Mapping[str, int], batches: Mapping[str, int], min_rows_of_others: int) -> int:
    """All rows of a step in which each institution of ``rows`` takes part with so many;
    ``batches``: how many each may bring at most.

    What the server and every custodian ask before anything is opened, from the signed headers of the uploads. An
    owner that knows two heads subtracts its own gradient and has the sum of the others'. Raises :class:`Refused`:
    ``owner`` for an unknown one, ``contributors`` below three, ``rows`` for a wrong number or fewer than
    ``min_rows_of_others`` beside somebody.
    """
    unknown = [name for name in rows if name not in batches]
    if unknown:
        raise Refused("owner", f"{unknown[0]} has no rows in this run's joint batch")
    if len(rows) < MIN_CONTRIBUTORS:
        raise Refused(
            "contributors",
            f"{len(rows)} of {len(batches)} institutions take part; a step needs {MIN_CONTRIBUTORS}",
            hint="wait until more institutions are back; the step is repeated with them",
        )
    total = sum(rows.values())
    for name, own in rows.items():
        if not 1 <= own <= batches[name]:
            raise Refused("rows", f"{name} declares {own} rows; its batch has 1 to {batches[name]}")
        if total - own < min_rows_of_others:
            raise Refused(
                "rows",
                f"beside {name} there are {total - own} rows in this step; min_rows_of_others is {min_rows_of_others}",
                hint="use larger batches, or wait for more institutions",
            )
    return total


def head_noise(update: Update, steps: int, rows: int, custodians: int) -> float:
    """Expected noise of the head after ``steps`` steps of ``rows`` rows, root mean square over the coefficients.

    What step s adds has been passed on (1 - b^(T - s)) / (1 - b) times at step T. For activations of root mean
    square 1. The noise of the derivatives is what counts: with a smaller one, this is smaller.
    """
    each = custodians / 3 * (REFRESHED_NOISE**2 + (TURNED_NOISE * update.rate) ** 2 / rows)
    b = update.momentum
    return math.sqrt(each * sum(((1 - b**k) / (1 - b)) ** 2 for k in range(1, steps + 1)))


def request_size(update: Update, layout: InteractiveLayout, fewest: int) -> float:
    """Bound on a slot of the head that is handed to the refresh, before the sum over its copies;
    ``fewest``: rows of a step at least.

    One copy sums over its own rows, and the rate of all is on them: 2^58 / copies (w + rate 2 sqrt(R) m / n) for
    weights of size 1, derivatives of at most 1 and activations of at most 2 sqrt(R) (their norm where a bottleneck
    clips it). What the others' masks hide of it: :attr:`focal.custody.refresh.Guard.hiding` is for 2^59 (``PHASE_BITS``
    of layout.py): rate 0.5, 33 of 128 rows, 16 copies.
    """
    return layout.moved * SCALE * (1 + update.rate * 2 * layout.features**0.5 * layout.rows / fewest)


def check_steps(update: Update, steps: int, rows: int, custodians: int) -> None:
    """Raise :class:`FocalError` when a head would carry more noise after so many steps than openings are smudged for,
    or when its rate is too small to be a multiple of 2^-18 a row.

    What openings carry of a head's noise is, over a run, about as much (root mean square).
    """
    if row_rate(update, rows) < MIN_RATE:
        raise FocalError(
            f"interactive: a head_rate of {update.rate:g} over {rows} rows is {row_rate(update, rows)} times "
            f"2^-{RATE_BITS} a row; {MIN_RATE} at least",
            hint=f"use a head_rate of {MIN_RATE * rows / 2**RATE_BITS:.2g} or more, or fewer rows in a step",
        )
    noise = head_noise(update, steps, rows, custodians)
    if noise > CARRIED_NOISE:
        raise FocalError(
            f"interactive: after {steps} steps with momentum {update.momentum:g} the head would carry noise of "
            f"2^{math.log2(noise):.1f}; openings are smudged for 2^{math.log2(CARRIED_NOISE):.0f}",
            hint="fewer steps under one key, a smaller momentum or a smaller head_rate",
        )


def check_activations(x: NDArray[np.float64]) -> None:
    """Raise :class:`FocalError` when activations (n, R) are not finite or too large for the noise bound of openings."""
    size = float(np.sqrt(np.mean(np.square(x))))
    if not size <= MAX_ACTIVATION:
        raise FocalError(
            f"interactive: activations have a root mean square of {size:.3g}; "
            f"openings are smudged for at most {MAX_ACTIVATION:g}",
            hint="normalise before the cut, or train with a smaller rate",
        )


def check_derivatives(delta: NDArray[np.float64], lanes: int) -> None:
    """Raise :class:`FocalError` when derivatives (n, C) on ``lanes`` class lanes are not finite or larger
    than can be proven."""
    size = float(np.sqrt(np.sum(np.square(delta)) / (len(delta) * lanes)))
    if not size <= MAX_DERIVATIVE:
        raise FocalError(
            f"interactive: the loss's derivatives have a root mean square of {size:.3g}; "
            f"{MAX_DERIVATIVE:g} is the most that a step takes",
            hint="weigh rare classes less (class_weights)",
        )


def check_head(dx: NDArray[np.float64], delta: NDArray[np.float64]) -> None:
    """Raise :class:`Refused` (``head``) when the gradients (n, R) that were opened for derivatives
    (n, C) tell of too large a head.

    dx = delta W': over the rows, the root mean square of dx is at most that of W times the length of delta.
    """
    length = float(np.sqrt(np.mean(np.sum(np.square(delta), axis=1))))
    size = float(np.sqrt(np.mean(np.square(dx))))
    if not size <= MAX_WEIGHT * length + 1e-3:
        raise Refused(
            "head",
            f"interactive: the head has grown to {size / max(length, 1e-9):.3g} a weight; "
            f"openings are smudged for {MAX_WEIGHT:g} at most",
            hint="train with a smaller head_rate or momentum",
        )
