"""Exact samples of the discrete Gaussian on the integers, from fair coins and integer arithmetic alone.

Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020: algorithm 1 (Bernoulli of
exp(-x)), 2 (discrete Laplace), 3 (discrete Gaussian). Nothing is rounded on the way: a Gaussian in float64 ends 53
bits below its size, and leaves the low bits of whatever it is added to bare.

The time that a draw takes depends on what is drawn. Sampling is local and done before anything is sent; whoever could
time it on the institution's own machine is not defended against (SECURITY.md, "Side channels").
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

Below = Callable[[int], int]
"""``below(n)``: uniform in [0, n), independent at each call."""

_POOL = 1024
"""Bits that are asked of the operating system at a time: a question for each of a sample's fifteen draws takes three
times as long."""


class SystemBelow:
    """``below`` on the operating system's randomness, or another source of bits, for one thread.
    No bit is used twice."""

    def __init__(self, bits: Callable[[int], int] | None = None) -> None:
        self._bits, self._pool, self._left = bits or secrets.randbits, 0, 0

    def __call__(self, n: int) -> int:
        bits = (n - 1).bit_length()
        while True:
            if self._left < bits:
                size = max(_POOL, bits)
                self._pool, self._left = self._bits(size), size
            found = self._pool & ((1 << bits) - 1)
            self._pool >>= bits
            self._left -= bits
            if found < n:
                return found


def integer_gaussian(sigma: int, below: Below) -> int:
    """One integer x with probability proportional to exp(-x^2 / (2 sigma^2)), for an integer sigma > 0."""
    while True:
        x = _laplace(sigma, below)
        if _bernoulli_exp((abs(x) - sigma) ** 2, 2 * sigma**2, below):
            return x


def _laplace(scale: int, below: Below) -> int:
    """x with probability proportional to exp(-|x| / scale)."""
    while True:
        low = below(scale)
        if not _bernoulli_exp(low, scale, below):
            continue
        high = 0
        while _bernoulli_exp(1, 1, below):
            high += 1
        magnitude, negative = low + scale * high, below(2)
        if magnitude or not negative:  # zero has one sign only
            return -magnitude if negative else magnitude


def _bernoulli_exp(numerator: int, denominator: int, below: Below) -> bool:
    """True with probability exp(-numerator / denominator)."""
    while numerator > denominator:
        if not _bernoulli_exp(1, 1, below):
            return False
        numerator -= denominator
    k = 1  # the first k coins, of probability x, x / 2, ..., x / k, all show heads with probability x^k / k!
    while below(k * denominator) < numerator:
        k += 1
    return k % 2 == 1
