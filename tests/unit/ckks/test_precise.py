"""Encoding in double-double arithmetic against integers of 256 bits, and against OpenFHE's where float64 is enough."""

from __future__ import annotations

import math

import numpy as np
import pytest
from polynomials import rms, slot_errors

from focal.ckks import precise, ring


@pytest.mark.parametrize("scale_bits", [45, 58])
def test_slots_err_by_the_rounding_of_coefficients_alone(scale_bits: int) -> None:
    """sqrt(N / 12) / scale; of 64 complex slots the root mean square is known to 6 %, asked to 25 %."""
    slots = np.random.default_rng(0).integers(-8, 9, 512).astype(float)
    errors = np.abs(
        slot_errors(precise.coefficients(slots, scale_bits).tolist(), slots, scale_bits, list(range(0, 512, 8)))
    )
    assert rms(errors) * 2.0**scale_bits / math.sqrt(1024 / 12) == pytest.approx(1, abs=0.25)


def test_more_than_float64_matters_here() -> None:
    """At 2^58 the same slots by one FFT of float64 err by more."""
    slots = np.random.default_rng(0).integers(-8, 9, 512).astype(float)
    at_odd, power = np.empty(1024), 1
    for slot in slots:
        at_odd[(power - 1) // 2] = at_odd[(2047 - power) // 2] = slot
        power = power * 5 % 2048
    plain = np.fft.fft(at_odd) / 1024 * np.exp(-1j * np.pi * np.arange(1024) / 1024)
    rough = [int(x) for x in np.rint(plain.real * 2.0**58)]
    which = list(range(0, 512, 8))
    exact = rms(np.abs(slot_errors(precise.coefficients(slots, 58).tolist(), slots, 58, which)))
    assert rms(np.abs(slot_errors(rough, slots, 58, which))) > 3 * exact


def test_limbs_are_those_of_the_coefficients() -> None:
    q, n = 1099510054913, 2048  # 1 modulo 2 n
    root = next(w for w in (pow(g, (q - 1) // (2 * n), q) for g in range(2, 100)) if pow(w, n, q) == q - 1)
    slots = np.random.default_rng(1).standard_normal(n // 2)
    (limb,) = precise.encode(slots, 56, (q,), {q: root})
    found = ring.inverse_ntt(limb, q, root).astype(np.int64)
    assert ((found - precise.coefficients(slots, 56)) % q == 0).all()
    assert np.abs(precise.coefficients(slots, 56)).max() > q, "these would fit one limb anyway"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit 62 bits at scale 2"):
        precise.coefficients(np.full(16, 2.0**10), 56)
