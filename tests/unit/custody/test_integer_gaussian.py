"""Exact integer Gaussians: their frequencies under fixed coins, their low bits, and coins that are used once."""

from __future__ import annotations

import math
import random
import secrets
from collections import Counter

import numpy as np
import pytest
from frequencies import chi_square, gaussian_weights

from focal.custody.integer_gaussian import SystemBelow, _bernoulli_exp, integer_gaussian


@pytest.mark.parametrize("sigma", [1, 2, 3, 10])
def test_frequencies_are_those_of_the_discrete_gaussian(sigma: int) -> None:
    draws, below = 20_000, random.Random(sigma).randrange
    found = Counter(integer_gaussian(sigma, below) for _ in range(draws))
    assert abs(chi_square(found, gaussian_weights(sigma), draws)) < 4
    assert chi_square(found, gaussian_weights(1.1 * sigma), draws) > 8, "a deviation of 10 % would be seen"
    assert chi_square(found, {k + 1: p for k, p in gaussian_weights(sigma).items()}, draws) > 8


@pytest.mark.parametrize("sigma", [12345, 1 << 40, (1 << 69) + 12345])
def test_moments_at_the_sizes_of_a_proof(sigma: int) -> None:
    draws, below = 8_000, random.Random(sigma).randrange
    x = np.array([integer_gaussian(sigma, below) / sigma for _ in range(draws)])
    moments = [
        (x.mean(), 0, 1),
        (np.mean(x**2), 1, 2),
        (np.mean(x**3), 0, 15),
        (np.mean(x**4), 3, 96),
    ]  # found, expected, variance
    for found, expected, variance in moments:
        assert abs(found - expected) < 4 * math.sqrt(variance / draws)
    assert 3.5 < np.abs(x).max() < 5.5


def test_no_low_bit_is_bare() -> None:
    """Of a float64 Gaussian this large the low 16 bits are zero."""
    sigma, below = 1 << 69, random.Random(5).randrange
    low = Counter(integer_gaussian(sigma, below) & 15 for _ in range(8000))
    assert abs(chi_square(low, dict.fromkeys(range(16), 1 / 16), 8000)) < 4
    assert all(int(x) & 0xFFFF == 0 for x in np.random.default_rng(5).normal(size=100) * 2.0**69 if abs(x) >= 2.0**69)


@pytest.mark.parametrize(
    ("numerator", "denominator"), [(0, 5), (1, 1), (1, 3), (7, 9), (3, 2), (9, 3), (10**30, 3 * 10**30)]
)
def test_a_coin_of_probability_exp_minus_x(numerator: int, denominator: int) -> None:
    draws, below = 10_000, random.Random(numerator).randrange
    heads = sum(_bernoulli_exp(numerator, denominator, below) for _ in range(draws))
    p = math.exp(-numerator / denominator)
    assert abs(heads - draws * p) <= 4 * math.sqrt(draws * p * (1 - p))


def test_the_systems_bits_are_used_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    source, given = random.Random(1), []

    def bits(k: int) -> int:
        given.append((k, source.getrandbits(k)))
        return given[-1][1]

    monkeypatch.setattr(secrets, "randbits", bits)
    below = SystemBelow()
    assert below(1) == 0 and not given, "nothing to choose"
    found = [below(1 << 200) for _ in range(12)]
    assert [k for k, _ in given] == [1024] * 3
    pools = [pool >> 200 * i & ((1 << 200) - 1) for _, pool in given for i in range(5)]
    assert found == pools[:12]
    assert below(1 << 3000) == given[-1][1] and given[-1][0] == 3000


def test_the_systems_choices_are_uniform_below_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "randbits", random.Random(2).getrandbits)
    below = SystemBelow()
    found = Counter(below(11) for _ in range(20_000))
    assert set(found) == set(range(11)) and abs(chi_square(found, dict.fromkeys(range(11), 1 / 11), 20_000)) < 4
