"""Limb arithmetic: sums, public randomness, number-theoretic transform, canonical embedding.

A CKKS polynomial modulo Q = q_0 q_1 ... is kept as limbs, one row of N residues per prime, in the order of OpenFHE's
evaluation (NTT) form. Sums of shares and of key contributions are plain additions of such rows, so every
party can recompute them without a secret and without handing foreign bytes to a C++ deserializer.

Everything is written in numpy here. Where the native kernels are installed (:mod:`focal.ckks.native`), products,
sums and transforms are theirs: the same residues, sooner.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal.ckks import native

Limb = NDArray[np.uint64]
"""N residues of one prime."""

Signed = NDArray[np.int64]

_SPLIT = 31
"""Factors of moduli beyond :data:`_ONE_QUOTIENT` are split here, so that every quotient stays far
below float64's 53 bits."""
_ONE_QUOTIENT = 1 << 50
"""Below it a product's quotient by q fits into float64."""


def _kernels(*limbs: NDArray[Any]) -> native.Library | None:
    """The native kernels, if they are there and take such arrays: contiguous words, of one shape."""
    first = limbs[0].shape
    return native.library if all(x.itemsize == 8 and x.flags.c_contiguous and x.shape == first for x in limbs) else None


def add(x: Limb, y: Limb, q: int) -> Limb:
    """(x + y) mod q for residues below q < 2^63."""
    if kernels := _kernels(x, y):
        return kernels.add(x, y, q)
    total = x + y
    return np.minimum(total, total - np.uint64(q), out=total)  # below q the difference wraps around, and is huge


def subtract(x: Limb, y: Limb, q: int) -> Limb:
    """(x - y) mod q for residues below q < 2^63."""
    if kernels := _kernels(x, y):
        return kernels.subtract(x, y, q)
    difference = x - y
    return np.minimum(
        difference, difference + np.uint64(q), out=difference
    )  # a negative one wraps around, and comes back with q


def total(parts: Sequence[Sequence[Limb]], moduli: Sequence[int]) -> list[Limb]:
    """Limb-wise sum of several polynomials (each a sequence of limbs) modulo ``moduli``."""
    out = list(parts[0])
    for part in parts[1:]:
        out = [add(x, y, q) for x, y, q in zip(out, part, moduli, strict=True)]
    return out


def expand(seed: bytes, moduli: Sequence[int], n: int) -> list[Limb]:
    """Public randomness: one uniform limb per modulus from SHAKE-256.

    Limb i is read from SHAKE-256(seed || i as 4 bytes): successive 64-bit little-endian words, masked to the bit length
    of q_i, those not below q_l skipped. Anyone who knows the seed gets the same limbs; nobody can choose them.
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

    float64 gives the quotient, int64 the rest: the true rest is small, so that wrapping around 2^64
    on the way does no harm.
    """
    if kernels := _kernels(x, y):
        return kernels.multiply(x, y, q)
    rest = _signed_product(x.view(np.int64), y.view(np.int64), q).view(np.uint64)
    return np.minimum(rest, rest + np.uint64(q), out=rest)  # as in a difference


def scaled(x: Limb, factor: int, q: int) -> Limb:
    """(``factor`` x) mod q for residues x and any factor."""
    return x if factor == 1 else multiply(x, np.full(len(x), factor % q, np.uint64), q)


def _signed_product(x: Signed, y: Signed, q: int) -> Signed:
    """x y modulo q, in (-q, q), for 0 <= y < q and |x| < 2^63.

    q < 2^50 and |x| < q: the quotient is below 2^50 and errs by less than 3/8 before it is rounded.
    Otherwise y = 2^31 high + low, and both quotients are below 2^33: they err by less than 2^-17.
    """
    real, inverse = x.astype(np.float64), 1.0 / q
    if q < _ONE_QUOTIENT:
        return _less(x * y, real * y.astype(np.float64) * inverse, q)
    high, low = y >> _SPLIT, y & ((1 << _SPLIT) - 1)
    upper = _less(x * high, real * high.astype(np.float64) * inverse, q)
    quotient = (upper.astype(np.float64) * 2.0**_SPLIT + real * low.astype(np.float64)) * inverse
    return _less((upper << _SPLIT) + x * low, quotient, q)


def _less(product: Signed, quotient: NDArray[np.floating], q: int) -> Signed:
    """product - round(quotient) q, in ``product``'s own memory; ``quotient`` is used up too."""
    whole = np.rint(quotient, out=quotient).astype(np.int64)
    whole *= q
    product -= whole
    return product


def bit_reversal(n: int) -> NDArray[np.int64]:
    """Permutation that reverses log2(n)-bit indices."""
    out: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
    while len(out) < n:
        out = np.concatenate([2 * out, 2 * out + 1])
    return out


class _Transform:
    """Both transforms modulo one prime: twiddles, and butterflies on signed residues
    that are reduced only when they grow.

    Every butterfly multiplies by a known w, so w / q is known too (Shoup). Residues are int64 in any range the
    quotients allow. A stage of Cooley and Tukey's order pairs places that are further apart the earlier it comes; here
    its outcomes are written interleaved, so that every stage pairs the two halves of its input and numpy's loops are as
    long as they (constant geometry, Pease 1968)::

        | u0 u1 u2 ... | v0 v1 v2 ... |  ----->  | u0 + w v0   u0 - w v0   u1 + w v1   u1 - w v1   ... |

    An index then loses its top bit, which half, and gains it as its lowest:
    after log2(n) stages all are where they were.
    """

    def __init__(self, q: int, root: int, n: int) -> None:
        power, powers = 1, np.empty(n, dtype=np.int64)
        for i in range(n):
            powers[i] = power
            power = power * root % q
        self.q, self.n, self.inverse = q, n, 1.0 / q
        self.twiddles = powers[bit_reversal(n)]
        self.small = q < _ONE_QUOTIENT
        self.patience = 6 if self.small else 2
        """Stages between two reductions: residues double in a stage, at most;
        they may reach 2^6 q < 2^56 or 4 q < 2^63."""

    @functools.cached_property
    def stages(self) -> list[tuple[Any, ...]]:
        """Of every stage: twiddles of all n / 2 butterflies, with what products by them need."""
        out: list[tuple[Any, ...]] = []
        blocks = 1
        while blocks < self.n:
            w = np.tile(self.twiddles[blocks : 2 * blocks], self.n // (2 * blocks))
            if self.small:
                out.append((w, w.astype(np.float64) * self.inverse))
            else:
                high, low = w >> _SPLIT, w & ((1 << _SPLIT) - 1)
                out.append((high, low, high.astype(np.float64) * self.inverse, low.astype(np.float64) * self.inverse))
            blocks *= 2
        return out

    def product(self, x: Signed, factors: tuple[Any, ...]) -> Signed:
        """x w modulo q, in (-q, q)."""
        real = x.astype(np.float64)
        if self.small:
            w, ratio = factors
            return _less(x * w, np.multiply(real, ratio, out=real), self.q)
        high, low, ratio_high, ratio_low = factors
        upper = _less(x * high, real * ratio_high, self.q)
        quotient = upper.astype(np.float64)
        quotient *= 2.0**_SPLIT * self.inverse
        quotient += np.multiply(real, ratio_low, out=real)
        upper <<= _SPLIT
        upper += x * low
        return _less(upper, quotient, self.q)

    def reduced(self, x: Signed) -> Signed:
        """x modulo q, in [-q / 2, q / 2] up to rounding, in the memory of ``x``."""
        return _less(x, x * self.inverse, self.q)

    def residues(self, x: Signed) -> Limb:
        residues = self.reduced(x).view(np.uint64)
        return np.minimum(residues, residues + np.uint64(self.q), out=residues)  # a negative one is huge

    def forward(self, a: Signed) -> Limb:
        """Of signed coefficients, at most q / 2 up to rounding; their memory is used up."""
        half, spare = self.n // 2, np.empty_like(a)
        for number, factors in enumerate(self.stages):
            if number % self.patience == 0 and number:
                a = self.reduced(a)
            product = self.product(a[half:], factors)
            np.add(a[:half], product, out=spare[0::2])
            np.subtract(a[:half], product, out=spare[1::2])
            a, spare = spare, a
        return self.residues(a)

    def backward(self, values: Limb) -> Limb:
        """With the transform of the inverse root: Gentleman-Sande's order, without the division by n."""
        half, a = self.n // 2, self.reduced(values.astype(np.int64))
        spare = np.empty_like(a)
        for number, factors in enumerate(reversed(self.stages)):
            if number % self.patience == 0 and number:
                a = self.reduced(a)
            even, odd = a[0::2], a[1::2]
            np.add(even, odd, out=spare[:half])
            spare[half:] = self.product(even - odd, factors)
            a, spare = spare, a
        return self.residues(a)


@functools.lru_cache(maxsize=32)
def _transform(q: int, root: int, n: int) -> _Transform:
    return _Transform(q, root, n)


def ntt(coefficients: Limb, q: int, root: int) -> Limb:
    """Evaluation form of a polynomial modulo X^N + 1: entry j is its value at root^(2 rev(j) + 1).

    ``root`` is the primitive 2N-th root of unity that OpenFHE uses (Cooley-Tukey butterflies,
    as in Longa and Naehrig 2016, Algorithm 1).
    """
    if (kernels := _kernels(coefficients)) and (prime := kernels.prime(q, root, len(coefficients))):
        return kernels.forward(prime, coefficients)
    transform = _transform(q, root, len(coefficients))
    return transform.forward(transform.reduced(coefficients.astype(np.int64)))


def ntt_signed(coefficients: Signed, q: int, root: int) -> Limb:
    """:func:`ntt` of signed coefficients of at most q / 2: secrets and errors, which are small."""
    if (kernels := _kernels(coefficients)) and (prime := kernels.prime(q, root, len(coefficients))):
        return kernels.forward(prime, coefficients)
    return _transform(q, root, len(coefficients)).forward(coefficients.copy())


def inverse_ntt(limb: Limb, q: int, root: int) -> Limb:
    """Coefficients of a polynomial modulo X^N + 1 from its evaluation form: the inverse of :func:`ntt`.

    Gentleman-Sande butterflies, bit-reversed input, as in Longa and Naehrig 2016, Algorithm 2.
    """
    n = len(limb)
    if (kernels := _kernels(limb)) and (prime := kernels.prime(q, root, n)):
        return kernels.inverse(prime, limb)
    values = _transform(q, pow(root, -1, q), n).backward(limb)
    return multiply(values, np.full(n, pow(n, -1, q), dtype=np.uint64), q)


def exponent(n: int, rotation: int) -> int:
    """The k of X -> X^k that rotates the slots by ``rotation``: 5^rotation modulo 2N.
    2N - 1, OpenFHE's number for complex conjugation, is that already."""
    return rotation if rotation == 2 * n - 1 else pow(5, rotation % (n // 2), 2 * n)


@functools.lru_cache(maxsize=256)
def automorphism(n: int, k: int) -> NDArray[np.int64]:
    """(N,) where a polynomial's evaluation form has the values of the same at X^k, for odd k:
    entry j is that at root^(2 rev(j) + 1)."""
    reverse = bit_reversal(n)
    places = reverse[((2 * reverse + 1) * k % (2 * n) - 1) // 2]
    places.flags.writeable = False  # everybody gets the same array
    return places


def centred(coefficients: Limb, q: int) -> NDArray[np.int64]:
    """(N,) residues as signed integers in (-q/2, q/2]."""
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
