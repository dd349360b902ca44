"""Encoding with 100 bits: the canonical embedding's inverse in double-double arithmetic,
for what float64 would leave bare.

OpenFHE encodes by an FFT of float64, at scale 2^45: in the place of a zero it leaves 2^-40. A mask between two owners'
values needs less than that, hence a larger scale, hence more than 53 bits on the way.

A number is the sum of two float64, of which the second is what the first has rounded away (Dekker 1971; Hida,
Li and Bailey 2001). Every operation is one of numpy's on float64, rounded as IEEE 754 says and fused with no
other: all machines get the same bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from focal.ckks import ring
from focal.ckks.ring import Limb

Array = NDArray[np.float64]
Double = tuple[Array, Array]
"""high + low"""
Complex = tuple[Double, Double]
"""real, imaginary"""

_HALF = float(2**27 + 1)
"""Splits a float64 into two of 26 bits."""
_BITS = 256
"""Of the fixed-point numbers from which roots of unity are made."""


def encode(slots: Array, scale_bits: int, moduli: tuple[int, ...], roots: dict[int, int]) -> list[Limb]:
    """The polynomial, in evaluation form modulo each of ``moduli``, whose slots are 2^``scale_bits`` times
    the real ``slots`` (S,).

    Its 2 S coefficients are rounded to integers, which leaves sqrt(2 S / 12) / 2^scale_bits in a slot
    (root mean square). ``roots``: those of :attr:`focal.ckks.scheme.Scheme.roots`. ValueError where a
    coefficient would not fit 62 bits.
    """
    whole = coefficients(slots, scale_bits)
    return [ring.ntt((whole % q).astype(np.uint64), q, roots[q]) for q in moduli]


def coefficients(slots: Array, scale_bits: int) -> NDArray[np.int64]:
    """(2 S,) the integers nearest to the coefficients of :func:`encode`."""
    n = 2 * len(slots)
    real = _unembedded(slots)
    high, low = (part * 2.0 ** (scale_bits - (n.bit_length() - 1)) for part in real)
    if np.abs(high).max() >= 2.0**62:
        raise ValueError(f"slots of up to {np.abs(slots).max():g} do not fit 62 bits at scale 2^{scale_bits}")
    whole = np.rint(high)
    return whole.astype(np.int64) + np.rint((high - whole) + low).astype(np.int64)


def _unembedded(slots: Array) -> Double:
    """N times the real coefficients of the polynomial with these real slots: ring.embed, backwards.

    c_j = zeta^-j / N sum over m of v_m exp(-2 pi i m j / N), v_m the value at zeta^(2 m + 1), zeta = exp(i pi / N):
    that of a slot at zeta^(5^k), and of its conjugate, which is the same, at zeta^-(5^k).
    """
    n = 2 * len(slots)
    values, power = np.empty(n), 1
    for slot in slots:
        values[(power - 1) // 2] = values[(2 * n - power - 1) // 2] = slot
        power = power * 5 % (2 * n)
    nothing = np.zeros(n)
    (real, imaginary), (cos, sin) = _transformed(((values, nothing), (nothing, nothing))), _roots(n)
    return _add(_multiply(real, cos), _multiply(imaginary, sin))  # the real part of a product by zeta^-j


def _transformed(x: Complex) -> Complex:
    """sum over m of x_m exp(-2 pi i m j / N), in order (Stockham's autosort, radix 2)."""
    n = len(x[0][0])
    cos, sin = _roots(n)
    length, width = n // 2, 1
    while length:
        step = n // length  # exp(-2 pi i k / (2 length)) = zeta^-(k step)
        c, s = (_each(lambda p, step=step: p[::step, None], part) for part in (cos, _negative(sin)))  # type: ignore[misc]
        a, b = _halves(x[0], length, width), _halves(x[1], length, width)
        real, imaginary = _add(a[0], _negative(a[1])), _add(b[0], _negative(b[1]))
        turned = (
            _add(_multiply(real, c), _negative(_multiply(imaginary, s))),
            _add(_multiply(real, s), _multiply(imaginary, c)),
        )
        x = _interleaved(_add(*a), turned[0]), _interleaved(_add(*b), turned[1])
        length, width = length // 2, 2 * width
    return x


def _each(f: Callable[[Array], Array], x: Double) -> Double:
    return f(x[0]), f(x[1])


def _halves(x: Double, length: int, width: int) -> tuple[Double, Double]:
    """The first and the second half, as rows of ``width``."""
    half = length * width
    return _each(lambda p: p[:half].reshape(length, width), x), _each(lambda p: p[half:].reshape(length, width), x)


def _interleaved(x: Double, y: Double) -> Double:
    """Rows of x and of y in turn, as one row."""
    return tuple(np.stack(p, axis=1).reshape(-1) for p in zip(x, y, strict=True))  # type: ignore[return-value]


@functools.lru_cache(maxsize=2)
def _roots(n: int) -> Complex:
    """cos and sin of pi j / n for j in [0, n), from integers: half angles down to pi / n, then its multiples."""
    one = 1 << _BITS
    c, s = 0, one  # of pi / 2
    for _ in range(n.bit_length() - 2):
        c, s = math.isqrt((one + c) * one // 2), math.isqrt((one - c) * one // 2)
    cos, sin = [one], [0]
    for _ in range(n - 1):
        x, y = cos[-1], sin[-1]
        cos.append((x * c - y * s) >> _BITS)
        sin.append((x * s + y * c) >> _BITS)
    return _doubles(cos), _doubles(sin)


def _doubles(fixed: list[int]) -> Double:
    high = [x / (1 << _BITS) for x in fixed]
    low = [(x - int(math.ldexp(h, 200)) * (1 << _BITS - 200)) / (1 << _BITS) for x, h in zip(fixed, high, strict=True)]
    return np.array(high), np.array(low)


def _negative(x: Double) -> Double:
    return -x[0], -x[1]


def _add(x: Double, y: Double) -> Double:
    total, error = _two_sum(x[0], y[0])
    return _renormalised(total, error + (x[1] + y[1]))


def _multiply(x: Double, y: Double) -> Double:
    product, error = _two_product(x[0], y[0])
    return _renormalised(product, error + (x[0] * y[1] + x[1] * y[0]))


def _renormalised(high: Array, low: Array) -> Double:
    total = high + low
    return total, low - (total - high)


def _two_sum(x: Array, y: Array) -> Double:
    """x + y, and what rounding took off it (Knuth)."""
    total = x + y
    part = total - x
    return total, (x - (total - part)) + (y - part)


def _two_product(x: Array, y: Array) -> Double:
    """x y, and what rounding took off it (Dekker and Veltkamp)."""
    product = x * y
    (a, b), (c, d) = _split(x), _split(y)
    return product, ((a * c - product) + a * d + b * c) + b * d


def _split(x: Array) -> Double:
    wide = _HALF * x
    high = wide - (wide - x)
    return high, x - high
