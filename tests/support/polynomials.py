"""From slots back to coefficients: the inverse of :func:`focal.ckks.ring.embed`."""

from __future__ import annotations

import math

import numpy as np


def coefficients(slots: np.ndarray) -> np.ndarray:
    """Inverse of :func:`ring.embed`: the N real coefficients of a polynomial from its N/2 slots."""
    n = 2 * len(slots)
    index = (np.array([pow(5, j, 2 * n) for j in range(n // 2)]) - 1) // 2
    at_odd = np.empty(n, dtype=complex)
    at_odd[index], at_odd[n - 1 - index] = slots, np.conj(slots)
    return (np.fft.fft(at_odd) / n * np.exp(-1j * np.pi * np.arange(n) / n)).real


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=float))))


def polynomial(slots: np.ndarray, n: int) -> list[int]:
    """Integer coefficients with these slots, times 2^45: the inverse of ring.embed."""
    power, odd = 1, np.zeros(n, dtype=complex)
    for value in slots:
        odd[(power - 1) // 2] = value
        odd[n - 1 - (power - 1) // 2] = np.conj(value)
        power = power * 5 % (2 * n)
    return [round(v * 2.0**45) for v in (np.fft.fft(odd) / n * np.exp(-1j * np.pi * np.arange(n) / n)).real]


def slot_errors(coefficients: list[int], slots: np.ndarray, scale_bits: int, which: list[int]) -> np.ndarray:
    """Complex errors of some slots of a polynomial at scale 2^scale_bits, by integers of 256 bits:
    nothing is rounded on the way."""
    n, one = len(coefficients), 1 << 256
    cos, sin = 0, one  # of pi / 2, then of pi / n
    for _ in range(n.bit_length() - 2):
        cos, sin = math.isqrt((one + cos) * one // 2), math.isqrt((one - cos) * one // 2)
    table = [(one, 0)]
    for _ in range(2 * n - 1):
        x, y = table[-1]
        table.append(((x * cos - y * sin) >> 256, (x * sin + y * cos) >> 256))
    out = []
    for k in which:
        power = pow(5, k, 2 * n)
        roots = [table[power * j % (2 * n)] for j in range(n)]
        real = sum(c * x for c, (x, _) in zip(coefficients, roots, strict=True)) - (int(slots[k]) << scale_bits + 256)
        out.append(
            complex(
                real / (one << scale_bits),
                sum(c * y for c, (_, y) in zip(coefficients, roots, strict=True)) / (one << scale_bits),
            )
        )
    return np.array(out)
