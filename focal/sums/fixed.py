"""Reals as 64-bit integers, so that a sum has the same bits in whatever order and on whatever machine it is added.

::

    value v  ->  round(v 2^f) modulo 2^64  (two's complement)        f = fraction bits

        63          53 52                   48                                         0
        | sign, room for | whole part of one |  f = 48 fraction bits                   |
        | 1024 summands  | contribution      |                                         |

One contribution stays strictly below 2^53 in magnitude: it is then an exact float64, and 1024 of them stay below
2^63, so the total never wraps. At f = 48 that means abs(v) < 32; pooled moments are scaled to at most 1.
Rounding costs each member at most 2^-(f+1), hence a sum over m members is off by at most m 2^-(f+1). Use f = 0
for counts, which are then exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from focal.errors import FocalError

FRACTION_BITS = 48
"""f of the pooled moments."""
MEMBERS = 1024
"""Most participants of one sum."""
_LIMIT_BITS = 53
"""MEMBERS * 2^53 = 2^63."""


def encode(values: ArrayLike, fraction_bits: int = FRACTION_BITS) -> NDArray[np.uint64]:
    """Round ``values`` (any shape, real) to multiples of 2^-fraction_bits, as uint64 modulo 2^64.

    Raises :class:`FocalError` when a value is NaN or infinite, or not below 2^(53 - fraction_bits) in magnitude. The
    message gives the position only: the value is private.
    """
    real = np.asarray(values, np.float64)
    limit = 2.0 ** (_LIMIT_BITS - fraction_bits)
    bad = ~(np.abs(real) < limit)  # NaN compares false
    if bad.any():
        raise FocalError(
            f"value {int(np.argmax(bad))} of {real.size} to be summed is not a finite "
            f"number below {limit:g} in magnitude",
            hint="look for NaN or unscaled values in what is summed",
        )
    return np.rint(np.ldexp(real, fraction_bits)).astype(np.int64).view(np.uint64)


def decode(total: NDArray[np.uint64], fraction_bits: int = FRACTION_BITS) -> NDArray[np.float64]:
    """The sum of encoded contributions as float64, same shape: one rounding (relative 2^-53),
    the same on every machine."""
    if total.dtype != np.uint64:
        raise TypeError(f"decode needs uint64, not {total.dtype}")
    return np.ldexp(total.view(np.int64).astype(np.float64), -fraction_bits)
