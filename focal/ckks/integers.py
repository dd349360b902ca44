"""Integers wider than a machine word, as residues: centred values modulo q_0 q_1 q_2,
compared and divided exactly in numpy.

A residue number system adds and multiplies limb by limb; *how large* a number is shows only
in mixed radix (Garner 1959)::

    x  =  d_0  +  d_1 q_0  +  d_2 q_0 q_1          0 <= d_i < q_i          residues --Garner--> digits

From the digits everybody can tell exactly whether x is below a bound, whether it stands for a negative number,
and what it is modulo any other prime or modulo 2^64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from focal.ckks import ring
from focal.ckks.ring import Limb


def digits(residues: Sequence[Limb], primes: Sequence[int]) -> list[Limb]:
    """Mixed-radix digits of the numbers in [0, product of ``primes``) with these residues, one row each."""
    found: list[Limb] = []
    for value, q in zip(residues, primes, strict=True):
        for digit, prime in zip(found, primes, strict=False):
            value = ring.subtract(value, _below(digit, prime, q), q)
            value = ring.scaled(value, pow(prime, -1, q), q)
        found.append(value)
    return found


def less(found: Sequence[Limb], primes: Sequence[int], bound: int) -> NDArray[np.bool_]:
    """(N,) whether each number with these digits, (N,) each, is below ``bound``."""
    below: NDArray[np.bool_] = np.zeros(len(found[0]), bool)
    for digit, q in zip(found, primes, strict=True):  # from the least digit on: a larger one decides anew
        wanted = np.uint64(bound % q)
        below = (digit < wanted) | ((digit == wanted) & below)
        bound //= q
    return below


def within(residues: Sequence[Limb], primes: Sequence[int], bound: int) -> bool:
    """Whether all integers with these residues, centred, are below ``bound`` in magnitude. Exact: the digits of
    x + bound - 1 are compared with those of 2 bound - 1."""
    raised = [
        ring.add(x, np.full(len(x), (bound - 1) % q, np.uint64), q) for x, q in zip(residues, primes, strict=True)
    ]
    return bool(less(digits(raised, primes), primes, 2 * bound - 1).all())


class Centred:
    """The integers in (-Q / 2, Q / 2) with these residues modulo the ``primes`` of Q."""

    def __init__(self, residues: Sequence[Limb], primes: Sequence[int]) -> None:
        self.primes, self._own = tuple(primes), dict(zip(primes, residues, strict=True))
        self._digits = digits(residues, primes)
        self._negative = ~less(self._digits, primes, (math.prod(primes) + 1) // 2)

    def residue(self, q: int) -> Limb:
        """Modulo any prime below 2^61."""
        if q in self._own:
            return self._own[q]
        place, value = 1, np.zeros_like(self._digits[0])
        for digit, prime in zip(self._digits, self.primes, strict=True):
            value = ring.add(value, ring.scaled(_below(digit, prime, q), place % q, q), q)
            place *= prime
        return ring.subtract(value, np.where(self._negative, np.uint64(place % q), np.uint64(0)), q)

    @functools.cached_property
    def low(self) -> Limb:
        """Modulo 2^64."""
        place, value = 1, np.zeros_like(self._digits[0])
        for digit, prime in zip(self._digits, self.primes, strict=True):
            value += digit * np.uint64(place % 2**64)
            place *= prime
        return value - np.where(self._negative, np.uint64(place % 2**64), np.uint64(0))

    @property
    def rounded(self) -> NDArray[np.float64]:
        """The nearest float64, or a neighbour of it."""
        # of the magnitudes: nothing cancels in their digits
        residues = [np.where(self._negative, ring.subtract(np.zeros_like(x), x, q), x) for q, x in self._own.items()]
        place, value = 1, np.zeros(len(residues[0]))
        for digit, prime in zip(digits(residues, self.primes), self.primes, strict=True):
            value += digit * float(place)
            place *= prime
        return np.where(self._negative, -value, value)

    def divided(self, shift: int, q: int) -> Limb:
        """round(x / 2^shift) modulo q (:func:`divided`)."""
        return divided(self.residue(q), self.low, shift, q) if shift else self.residue(q)


def divided(residue: Limb, low: Limb, shift: int, q: int) -> Limb:
    """round(x / 2^shift) modulo q, of integers x with this ``residue`` modulo q and these ``low`` 64 bits;
    halves go up. shift < 63.

    x less its own low bits is a multiple of 2^shift, and by a multiple one may divide modulo q.
    """
    if shift == 0:
        return residue
    half, mask = np.uint64(1 << shift - 1), np.uint64((1 << shift) - 1)
    rest = ((low + half) & mask).astype(np.int64) - (1 << shift - 1)  # in [-2^(shift - 1), 2^(shift - 1))
    lifted = rest + np.where(rest < 0, q, 0) if 1 << shift - 1 < q else rest % q  # division is slow
    exact = ring.subtract(residue, lifted.view(np.uint64), q)
    return ring.scaled(exact, pow(1 << shift, -1, q), q)


def _below(digit: Limb, prime: int, q: int) -> Limb:
    """Residues modulo ``prime`` as residues modulo q."""
    return digit if prime <= q else digit % np.uint64(q)
