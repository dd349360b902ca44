"""A custodian's secret randomness, from the operating system: ternary secrets, errors of ring-LWE, uniform masks, as integers.

All that a custodian draws is drawn here: its secrets never enter OpenFHE, whose generator an institution's encryption alone rests on.
(OpenFHE 1.6 also draws the errors of evaluation keys with deviation 1 instead of 3.19: docs/security-notes.md.)
"""

from __future__ import annotations

import functools
import math
import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from focal.ckks import native, ring
from focal.ckks.ring import Limb

ERROR = 3.19
"""Standard deviation of the errors of ring-LWE: OpenFHE's, and the standard's (8 / sqrt(2 pi))."""
_TAIL = 40
"""Errors beyond 12.5 deviations have probability 2^-115: the table ends here."""
_NARROW = 2.0**46
"""Gaussians of up to this deviation are rounded to single integers."""
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
    """``n`` uniform draws from -1, 0, 1: bytes below 243 = 3^5 modulo 3."""
    raw = np.frombuffer(secrets.token_bytes(n + n // 8 + 256), np.uint8)  # 5 % are thrown away
    kept = raw[raw < 243]
    return kept[:n].astype(np.int64) % 3 - 1 if len(kept) >= n else ternary(n)


def errors(n: int) -> NDArray[np.int64]:
    """``n`` discrete Gaussians of deviation :data:`ERROR`, by inversion of their distribution function (to 2^-52)."""
    words = np.frombuffer(secrets.token_bytes(8 * n), "<u8") >> np.uint64(1)
    return np.searchsorted(_cumulative(), words, side="right").astype(np.int64) - _TAIL


def uniform(n: int, bits: int) -> list[NDArray[np.uint64]]:
    """``n`` integers uniform in [0, 2^bits) as words of 56 bits, least first."""
    words = []
    for start in range(0, bits, _WORD):
        raw = np.frombuffer(secrets.token_bytes(8 * n), "<u8")
        words.append(raw >> np.uint64(64 - min(_WORD, bits - start)))
    return words


def residues(words: Sequence[NDArray[np.uint64]], offset: int, q: int) -> Limb:
    """(sum of words[i] 2^(56 i) + offset) mod q for q < 2^61."""
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
    """(sum of words[i] 2^(56 i) + offset) mod 2^64."""
    total: NDArray[np.uint64] = np.full(len(words[0]), offset % 2**64, np.uint64)
    for i, word in enumerate(words[:2]):
        total += word << np.uint64(_WORD * i)
    return total


def wide_gaussian(n: int, deviation: float, moduli: Sequence[int]) -> list[Limb]:
    """``n`` integers, residues modulo each of ``moduli``: rounded Gaussians with ``deviation``, however wide.

    float64 has 53 bits: beyond :data:`_NARROW` a rounded Gaussian would be a multiple of a power of two, and bare what it is added to below
    that. So a Gaussian times 2^k has its k low bits drawn apart, uniformly: steps of at most 2^-45 deviations in the density.
    """
    bits = max(0, math.ceil(math.log2(deviation / _NARROW)))
    whole = np.rint(gaussian(n, deviation / 2.0**bits)).astype(np.int64)
    (low,) = uniform(n, bits) if bits else [np.zeros(n, np.uint64)]
    out = []
    for q in moduli:
        high = ring.multiply((whole % q).astype(np.uint64), np.full(n, (1 << bits) % q, np.uint64), q)
        out.append(ring.add(high, low % np.uint64(q), q))
    return out


def gaussian(count: int, deviation: float) -> NDArray[np.float64]:
    """``count`` independent Gaussians with ``deviation``, from the system's randomness (Box and Muller 1958)."""
    words = np.frombuffer(secrets.token_bytes(16 * (-(-count // 2))), "<u8").reshape(2, -1) >> np.uint64(11)
    uniform = (words + 0.5) * 2.0**-53  # in (0, 1)
    pairs = np.sqrt(-2 * np.log(uniform[0])) * np.exp(2j * np.pi * uniform[1])
    return deviation * np.concatenate([pairs.real, pairs.imag])[:count]
