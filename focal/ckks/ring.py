"""Limb arithmetic in numpy: sums, public randomness, number-theoretic transform, canonical embedding.

A CKKS polynomial modulo Q = q_0 q_1 ... is kept as limbs, one row of N residues per prime, in the order of OpenFHE's
evaluation (NTT) form. Sums of shares and of key contributions are plain additions of such rows, so every
party can recompute them without a secret and without handing foreign bytes to a C++ deserializer.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Limb = NDArray[np.uint64]
"""N residues of one prime."""

Signed = NDArray[np.int64]

_SPLIT = 31
"""Factors of moduli beyond :data:`_ONE_QUOTIENT` are split here, so that every quotient stays far below float64's 53 bits."""
_ONE_QUOTIENT = 1 << 50
"""Below it a product's quotient by q fits into float64."""


def add(x: Limb, y: Limb, q: int) -> Limb:
    """(x + y) mod q for residues below q < 2^63."""
    total = x + y
    return np.where(total >= np.uint64(q), total - np.uint64(q), total)


def subtract(x: Limb, y: Limb, q: int) -> Limb:
    """(x - y) mod q for residues below q < 2^63."""
    return np.where(x >= y, x - y, x + np.uint64(q) - y)


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
    """(x * y) mod q for residues x, y and any q < 2^61.

    float64 gives the quotient, int64 the rest: the true rest is small, so that wrapping around 2^64 on the way does no harm.
    """
    rest = _signed_product(x.view(np.int64), y.view(np.int64), q)
    return np.where(rest < 0, rest + q, rest).view(np.uint64)


def _signed_product(x: Signed, y: Signed, q: int) -> Signed:
    """x y modulo q, in (-q, q), for 0 <= y < q and |x| < 2^63.

    q < 2^50 and |x| < q: the quotient is below 2^50 and errs by less than 3/8 before it is rounded. Otherwise y = 2^31 high + low, and
    both quotients are below 2^33: they err by less than 2^-17.
    """
    real, inverse = x.astype(np.float64), 1.0 / q
    if q < _ONE_QUOTIENT:
        return x * y - np.rint(real * y.astype(np.float64) * inverse).astype(np.int64) * q
    high, low = y >> _SPLIT, y & ((1 << _SPLIT) - 1)
    upper = x * high - np.rint(real * high.astype(np.float64) * inverse).astype(np.int64) * q
    quotient = np.rint((upper.astype(np.float64) * 2.0**_SPLIT + real * low.astype(np.float64)) * inverse)
    return (upper << _SPLIT) + x * low - quotient.astype(np.int64) * q


def bit_reversal(n: int) -> NDArray[np.int64]:
    """Permutation that reverses log2(n)-bit indices."""
    out: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
    while len(out) < n:
        out = np.concatenate([2 * out, 2 * out + 1])
    return out


class _Transform:
    """Both transforms modulo one prime: twiddles, and butterflies on signed residues that are reduced only when they grow.

    Every butterfly multiplies by a known w, so w / q is known too (Shoup). Residues are int64 in any range the quotients allow. A stage
    whose blocks are short would make numpy's inner loop short, so the last stages run on the transpose::

        (chunks, side)   blocks of side or more: half runs along a row          one transpose          (side, chunks)   a row is one
        | . . . . . . |  ------------------------------------------------>                             chunk's place j in all chunks
    """

    def __init__(self, q: int, root: int, n: int) -> None:
        power, powers = 1, np.empty(n, dtype=np.int64)
        for i in range(n):
            powers[i] = power
            power = power * root % q
        self.q, self.n, self.inverse = q, n, 1.0 / q
        self.side = 1 << (n.bit_length() - 1) // 2
        self.chunks = n // self.side
        self.twiddles = powers[bit_reversal(n)]
        self.small = q < _ONE_QUOTIENT
        self.patience = 6 if self.small else 2
        """Stages between two reductions: residues double in a stage, at most; they may reach 2^6 q < 2^56 or 4 q < 2^63."""

    def stages(self) -> list[tuple[tuple[int, ...], Signed, bool]]:
        """(shape, twiddles of that shape, on the transpose) of every stage, Cooley-Tukey's order."""
        out: list[tuple[tuple[int, ...], Signed, bool]] = []
        blocks = 1
        while blocks < self.n:
            w = self.twiddles[blocks : 2 * blocks]
            if blocks < self.chunks:
                out.append(((blocks, 2, self.n // (2 * blocks)), w[:, None], False))
            else:
                each = blocks // self.chunks
                shaped = np.ascontiguousarray(w.reshape(self.chunks, each).T)[:, None]
                out.append(((each, 2, self.side // (2 * each), self.chunks), shaped, True))
            blocks *= 2
        return out

    @functools.cached_property
    def planned(self) -> list[tuple[tuple[int, ...], tuple[Any, ...], bool]]:
        """The stages with what a product by their twiddles needs."""
        out = []
        for shape, w, turned in self.stages():
            if self.small:
                factors: tuple[Any, ...] = (w, w.astype(np.float64) * self.inverse)
            else:
                high, low = w >> _SPLIT, w & ((1 << _SPLIT) - 1)
                factors = (high, low, high.astype(np.float64) * self.inverse, low.astype(np.float64) * self.inverse)
            out.append((shape, factors, turned))
        return out

    def product(self, x: Signed, factors: tuple[Any, ...]) -> Signed:
        """x w modulo q, in (-q, q)."""
        if self.small:
            w, ratio = factors
            return x * w - np.rint(x * ratio).astype(np.int64) * self.q
        high, low, ratio_high, ratio_low = factors
        upper = x * high - np.rint(x * ratio_high).astype(np.int64) * self.q
        quotient = np.rint(upper * (2.0**_SPLIT * self.inverse) + x * ratio_low)
        return (upper << _SPLIT) + x * low - quotient.astype(np.int64) * self.q

    def reduced(self, x: Signed) -> Signed:
        """x modulo q, in [-q / 2, q / 2] up to rounding."""
        return x - np.rint(x * self.inverse).astype(np.int64) * self.q

    def turned(self, x: Signed, back: bool = False) -> Signed:
        shape = (self.side, self.chunks) if back else (self.chunks, self.side)
        return np.ascontiguousarray(x.reshape(shape).T)

    def residues(self, x: Signed) -> Limb:
        x = self.reduced(x).reshape(self.n)
        return np.where(x < 0, x + self.q, x).view(np.uint64)

    def forward(self, coefficients: Limb) -> Limb:
        a, transposed = self.reduced(coefficients.astype(np.int64)), False
        for number, (shape, factors, turned) in enumerate(self.planned):
            if turned and not transposed:
                a, transposed = self.turned(a), True
            elif number % self.patience == 0 and number:
                a = self.reduced(a)
            v = a.reshape(shape)
            product = self.product(v[:, 1], factors)
            np.subtract(v[:, 0], product, out=v[:, 1])
            v[:, 0] += product
        return self.residues(self.turned(a, back=True) if transposed else a)

    def backward(self, values: Limb) -> Limb:
        """With the transform of the inverse root: Gentleman-Sande's order, without the division by n."""
        a, transposed = self.reduced(values.astype(np.int64)), True
        if self.planned[-1][2]:
            a = self.turned(a)
        for number, (shape, factors, turned) in enumerate(reversed(self.planned)):
            if transposed and not turned:
                a, transposed = self.turned(a, back=True), False
            if number % self.patience == 0 and number:
                a = self.reduced(a)
            v = a.reshape(shape)
            difference = v[:, 0] - v[:, 1]
            v[:, 0] += v[:, 1]
            v[:, 1] = self.product(difference, factors)
        return self.residues(self.turned(a, back=True) if transposed and self.planned[0][2] else a)


@functools.lru_cache(maxsize=32)
def _transform(q: int, root: int, n: int) -> _Transform:
    return _Transform(q, root, n)


def ntt(coefficients: Limb, q: int, root: int) -> Limb:
    """Evaluation form of a polynomial modulo X^N + 1: entry j is its value at root^(2 rev(j) + 1).

    ``root`` is the primitive 2N-th root of unity that OpenFHE uses (Cooley-Tukey butterflies, as in Longa and Naehrig 2016,
    Algorithm 1).
    """
    return _transform(q, root, len(coefficients)).forward(coefficients)


def inverse_ntt(limb: Limb, q: int, root: int) -> Limb:
    """Coefficients of a polynomial modulo X^N + 1 from its evaluation form: the inverse of :func:`ntt`.

    Gentleman-Sande butterflies, bit-reversed input, as in Longa and Naehrig 2016, Algorithm 2.
    """
    n = len(limb)
    values = _transform(q, pow(root, -1, q), n).backward(limb)
    return multiply(values, np.full(n, pow(n, -1, q), dtype=np.uint64), q)


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
