"""Limb arithmetic in numpy: sums, public randomness, number-theoretic transform, canonical embedding.

A CKKS polynomial modulo Q = q_0 q_1 ... is kept as limbs, one row of N residues per prime, in the order of OpenFHE's
evaluation (NTT) form. Sums of shares and of key contributions are plain additions of such rows, so every
party can recompute them without a secret and without handing foreign bytes to a C++ deserializer.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from focal.errors import FocalError

Limb = NDArray[np.uint64]
"""N residues of one prime."""

if np.finfo(np.longdouble).nmant < 63:  # multiply() would return wrong residues, and nothing would notice
    raise FocalError(
        f"this machine's long double has {np.finfo(np.longdouble).nmant} bits after the point, the limb arithmetic needs 63",
        hint="use x86-64 Linux, whose long double has 80 bits",
    )


def add(x: Limb, y: Limb, q: int) -> Limb:
    """(x + y) mod q for residues below q < 2^63."""
    total = x + y
    return np.where(total >= np.uint64(q), total - np.uint64(q), total)


def total(parts: Sequence[Sequence[Limb]], moduli: Sequence[int]) -> list[Limb]:
    """Limb-wise sum of several polynomials (each a sequence of limbs) modulo ``moduli``."""
    out = list(parts[0])
    for part in parts[1:]:
        out = [add(x, y, q) for x, y, q in zip(out, part, moduli, strict=True)]
    return out


def expand(seed: bytes, moduli: Sequence[int], n: int) -> list[Limb]:
    """Public randomness: one uniform limb per modulus from SHAKE-256.

    Limb i is read from SHAKE-256(seed || i as 4 bytes): successive 64-bit little-endian words, masked to the bit length of
    q_i, those not below q_l skipped. Anyone who knows the seed gets the same limbs; nobody can choose them.
    """
    out = []
    for i, q in enumerate(moduli):
        bits = q.bit_length()
        mask = np.uint64((1 << bits) - 1)
        words = int(n * (1 << bits) / q * 1.05) + 256
        while True:
            raw = hashlib.shake_256(seed + i.to_bytes(4, "little")).digest(8 * words)
            candidates = np.frombuffer(raw, "<u8") & mask
            limb = candidates[candidates < np.uint64(q)]
            if len(limb) >= n:
                break
            words *= 2  # the stream's prefix stays the same, so this changes nothing but the length
        out.append(np.ascontiguousarray(limb[:n]))
    return out


def multiply(x: Limb, y: Limb, q: int) -> Limb:
    """(x * y) mod q for q < 2^61, by a quotient in extended precision and one wrapped subtraction.

    Two roundings to 64 significant bits: the quotient errs by at most 2^-2 before it is cut off, hence by at most one after.
    """
    quotient = (x.astype(np.longdouble) * y.astype(np.longdouble) / np.longdouble(q)).astype(np.uint64)
    rest = (x * y - quotient * np.uint64(q)).view(np.int64)
    rest = np.where(rest < 0, rest + q, rest)
    return np.where(rest >= q, rest - q, rest).view(np.uint64)


def bit_reversal(n: int) -> NDArray[np.int64]:
    """Permutation that reverses log2(n)-bit indices."""
    out: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
    while len(out) < n:
        out = np.concatenate([2 * out, 2 * out + 1])
    return out


@functools.lru_cache(maxsize=8)
def _twiddles(q: int, root: int, n: int) -> Limb:
    """Powers of ``root`` in bit-reversed order."""
    power, powers = 1, np.empty(n, dtype=np.uint64)
    for i in range(n):
        powers[i] = power
        power = power * root % q
    return powers[bit_reversal(n)]


def ntt(coefficients: Limb, q: int, root: int) -> Limb:
    """Evaluation form of a polynomial modulo X^N + 1: entry j is its value at root^(2 rev(j) + 1).

    ``root`` is the primitive 2N-th root of unity that OpenFHE uses (Cooley-Tukey butterflies, as in Longa and Naehrig 2016,
    Algorithm 1).
    """
    n = len(coefficients)
    twiddles, a = _twiddles(q, root, n), coefficients
    blocks = 1
    while blocks < n:
        half = n // (2 * blocks)
        v = a.reshape(blocks, 2, half)
        low = v[:, 0]
        high = multiply(v[:, 1], np.repeat(twiddles[blocks : 2 * blocks], half).reshape(blocks, half), q)
        a = np.stack([add(low, high, q), add(low, np.uint64(q) - high, q)], axis=1).reshape(n)  # high < q: no sum reaches 2q
        blocks *= 2
    return a


def inverse_ntt(limb: Limb, q: int, root: int) -> Limb:
    """Coefficients of a polynomial modulo X^N + 1 from its evaluation form: the inverse of :func:`ntt`.

    Gentleman-Sande butterflies, bit-reversed input, as in Longa and Naehrig 2016, Algorithm 2.
    """
    n = len(limb)
    twiddles, a = _twiddles(q, pow(root, -1, q), n), limb
    half = 1
    while half < n:
        blocks = n // (2 * half)
        v = a.reshape(blocks, 2, half)
        w = np.repeat(twiddles[blocks : 2 * blocks], half).reshape(blocks, half)
        low, high = v[:, 0], v[:, 1]
        difference = add(low, np.uint64(q) - high, q)  # high < q, so the result stays below 2q
        a = np.stack([add(low, high, q), multiply(difference, w, q)], axis=1).reshape(n)
        half *= 2
    return multiply(a, np.full(n, pow(n, -1, q), dtype=np.uint64), q)


def centred(coefficients: Limb, q: int) -> NDArray[np.int64]:
    """Residues as signed integers in (-q/2, q/2]."""
    return np.where(coefficients > np.uint64(q // 2), coefficients.astype(np.int64) - q, coefficients.astype(np.int64))


def embed(coefficients: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Canonical embedding: N real coefficients -> N/2 slots (value at zeta^(5^j), zeta = exp(i pi / N)).

    An FFT of the twisted coefficients evaluates at every odd power of zeta; the slots are those at the powers of 5.
    """
    n = len(coefficients)
    twisted = coefficients * np.exp(1j * np.pi * np.arange(n) / n)
    at_odd = np.fft.ifft(twisted) * n  # at_odd[j] = value at zeta^(2j + 1)
    power, index = 1, np.empty(n // 2, dtype=np.int64)
    for j in range(n // 2):
        index[j] = (power - 1) // 2
        power = power * 5 % (2 * n)
    return at_odd[index]
