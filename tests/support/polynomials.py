"""From slots back to coefficients: the inverse of :func:`focal.ckks.ring.embed`."""

from __future__ import annotations

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
