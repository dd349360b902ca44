"""A custodian's secret randomness, from the operating system: ternary secrets, errors of ring-LWE,
uniform masks, as integers.

All that a custodian draws is drawn here: its secrets never enter OpenFHE, whose generator an institution's
encryption alone rests on. (OpenFHE 1.6 also draws the errors of evaluation keys with deviation 1 instead
of 3.19: docs/security-notes.md.)
"""

from __future__ import annotations

import functools
import math
import secrets
from collections.abc import Callable, Sequence
from decimal import Context, Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

from focal.ckks import native, ring
from focal.ckks.ring import Limb

ERROR = 3.19
"""Standard deviation of the errors of ring-LWE: OpenFHE's, and the standard's (8 / sqrt(2 pi))."""
_TAIL = 40
"""Errors beyond 12.5 deviations have probability 2^-115: the table ends here."""
_WORD = 56
"""Bits of one word of a mask: eight of them may be added to a mask's sign without leaving int64."""


@functools.lru_cache(maxsize=1)
def _cumulative() -> NDArray[np.uint64]:
    """2^63 times the probabilities that a discrete Gaussian is at most -40, -39, ..., 39."""
    weights = [math.exp(-(k**2) / (2 * ERROR**2)) for k in range(-_TAIL, _TAIL + 1)]
    total, running, out = math.fsum(weights), 0.0, []
    for w in weights[:-1]:
        running += w / total
        out.append(int(running * 2**63))
    return np.array(out, dtype=np.uint64)


def ternary(n: int) -> NDArray[np.int64]:
    """(n,) uniform draws from -1, 0, 1: bytes below 243 = 3^5 modulo 3."""
    raw = np.frombuffer(secrets.token_bytes(n + n // 8 + 256), np.uint8)  # 5 % are thrown away
    kept = raw[raw < 243]
    return kept[:n].astype(np.int64) % 3 - 1 if len(kept) >= n else ternary(n)


def errors(n: int) -> NDArray[np.int64]:
    """(n,) discrete Gaussians of deviation :data:`ERROR`, by inversion of their distribution function (to 2^-52)."""
    words = np.frombuffer(secrets.token_bytes(8 * n), "<u8") >> np.uint64(1)
    return np.searchsorted(_cumulative(), words, side="right").astype(np.int64) - _TAIL


def uniform(n: int, bits: int) -> list[NDArray[np.uint64]]:
    """``n`` integers uniform in [0, 2^bits) as words of 56 bits, (n,) each, the least first."""
    words = []
    for start in range(0, bits, _WORD):
        raw = np.frombuffer(secrets.token_bytes(8 * n), "<u8")
        words.append(raw >> np.uint64(64 - min(_WORD, bits - start)))
    return words


def residues(words: Sequence[NDArray[np.uint64]], offset: int, q: int) -> Limb:
    """(n,) sums of words[i] 2^(56 i), plus ``offset``, modulo q < 2^61."""
    if native.library:
        return native.library.residues(words, _WORD, offset, q)
    n = len(words[0])
    total: Limb = np.full(n, offset % q, np.uint64)
    for i, word in enumerate(words):
        place = pow(2, _WORD * i, q)
        value = word % np.uint64(q)
        total = ring.add(total, value if place == 1 else ring.multiply(value, np.full(n, place, np.uint64), q), q)
    return total


def low_words(words: Sequence[NDArray[np.uint64]], offset: int) -> NDArray[np.uint64]:
    """(n,) sums of words[i] 2^(56 i), plus ``offset``, modulo 2^64."""
    total: NDArray[np.uint64] = np.full(len(words[0]), offset % 2**64, np.uint64)
    for i, word in enumerate(words[:2]):
        total += word << np.uint64(_WORD * i)
    return total


_DIGIT = 128
"""Deviation of one digit of a wide Gaussian."""
_RADIX = 64
_TOGETHER = 8
"""Digits whose sum fits a word: 64^7 x 13 x 128 < 2^53."""
_BUCKETS = 14
"""Bits of a draw that say where in the table it is, but for one place, in 99 % of all draws."""


@functools.lru_cache(maxsize=1)
def _digit_table() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """2^126 times the probabilities that a digit is at most -13, ... 13 deviations:
    upper and lower 63 bits, exact to 2^-126."""
    reach = 13 * _DIGIT
    with localcontext(Context(prec=60)):
        weights = [(Decimal(-k * k) / (2 * _DIGIT**2)).exp() for k in range(-reach, reach + 1)]
        total, running, out = sum(weights), Decimal(0), []
        for w in weights[:-1]:
            running += w
            out.append(int(running / total * 2**126))
    return np.array([v >> 63 for v in out], np.uint64), np.array([v & (1 << 63) - 1 for v in out], np.uint64)


@functools.lru_cache(maxsize=1)
def _digit_buckets() -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.bool_]]:
    """For the first 14 bits of a draw: where in the table a search for it begins, what stands there, and whether it may
    end more than one place further on."""
    starts = np.arange(1 << _BUCKETS, dtype=np.uint64) << np.uint64(63 - _BUCKETS)
    ends = starts + np.uint64((1 << 63 - _BUCKETS) - 1)
    upper = _digit_table()[0]
    first, last = (np.searchsorted(upper, edge, side="right") for edge in (starts, ends))
    return first, np.append(upper, np.uint64(1 << 63))[first], last - first > 1


def _digits(n: int, words: Callable[[int], NDArray[np.uint64]]) -> NDArray[np.int64]:
    """``n`` discrete Gaussians of deviation :data:`_DIGIT`, by inversion; ``words(n)``: uniform over 63 bits."""
    upper, lower = _digit_table()
    first, there, several = _digit_buckets()
    drawn = words(n)
    bucket = drawn >> np.uint64(63 - _BUCKETS)
    found = first[bucket] + (there[bucket] <= drawn)
    rare = np.flatnonzero(several[bucket])
    found[rare] = np.searchsorted(upper, drawn[rare], side="right")
    for i in np.flatnonzero((found > 0) & (upper[found - 1] == drawn)):  # once in 2^51: the lower bits decide
        found[i] -= int(words(1)[0] < lower[found[i] - 1])
    return found - 13 * _DIGIT


def _words(n: int) -> NDArray[np.uint64]:
    return np.frombuffer(secrets.token_bytes(8 * n), "<u8") >> np.uint64(1)


def _steps(deviation: float) -> list[int]:
    """1, 64, 64^2, ..., K: what the digits of a wide Gaussian are multiplied by."""
    steps, lower = [1], 1
    while _DIGIT**2 * (lower + (_RADIX * steps[-1]) ** 2) <= deviation**2:
        steps.append(_RADIX * steps[-1])
        lower += steps[-1] ** 2
    return [*steps, max(1, math.ceil(math.sqrt(deviation**2 / _DIGIT**2 - lower)))]


def wide_gaussian(n: int, deviation: float, moduli: Sequence[int]) -> list[Limb]:
    """``n`` discrete Gaussians of ``deviation`` (2^10 at least) or up to 1/64 more, modulo each of ``moduli``.

    A sum of digits g_0 + 64 g_1 + 64^2 g_2 + ... + K g_last, each a discrete Gaussian of deviation 128: what a digit
    leaves out below its step is smooth, for all below it have twice the step's deviation, so that the sum is a discrete
    Gaussian to within 2^-110 in every probability (Peikert, CRYPTO 2010, theorem 3.1; Micciancio and Walter, CRYPTO
    2017). Nothing of it is rounded: a Gaussian that was drawn with 53 bits, by radius and angle, lies on rings that can
    be told apart, and bares what it is added to.
    """
    if deviation < 1 << 10:
        raise ValueError(f"a wide Gaussian has a deviation of 1024 at least, not {deviation:g}")
    out: list[Limb] = [np.zeros(n, np.uint64) for _ in moduli]
    *powers, last = _steps(deviation)
    for start in (*range(0, len(powers), _TOGETHER), len(powers)):
        steps = powers[start : start + _TOGETHER] or [last]
        digits = np.zeros(n, np.int64)
        for step in steps:
            digits += _digits(n, _words) * (step // steps[0])
        for i, q in enumerate(moduli):
            place = np.full(n, steps[0] % q, np.uint64)
            out[i] = ring.add(out[i], ring.multiply((digits % q).astype(np.uint64), place, q), q)
    return out


def gaussian(count: int, deviation: float) -> NDArray[np.float64]:
    """``count`` independent Gaussians with ``deviation``, from the system's randomness (Box and Muller 1958)."""
    words = np.frombuffer(secrets.token_bytes(16 * (-(-count // 2))), "<u8").reshape(2, -1) >> np.uint64(11)
    uniform = (words + 0.5) * 2.0**-53  # in (0, 1)
    pairs = np.sqrt(-2 * np.log(uniform[0])) * np.exp(2j * np.pi * uniform[1])
    return deviation * np.concatenate([pairs.real, pairs.imag])[:count]
