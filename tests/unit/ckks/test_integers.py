"""Wide integers as residues, against Python's own."""

from __future__ import annotations

import math

import numpy as np
import pytest

from focal.ckks import integers, sampling

PRIMES = (1152921504606584833, 35184372744193, 35184373006337)
OTHERS = (35184371138561, 1152921504606683137)
Q = math.prod(PRIMES)


def residues(values: list[int], q: int) -> np.ndarray:
    return np.array([v % q for v in values], np.uint64)


@pytest.fixture(scope="module")
def values() -> list[int]:
    rng = np.random.default_rng(0)
    drawn = [int.from_bytes(rng.bytes(19), "little") % Q - Q // 2 for _ in range(200)]
    edges = [
        0,
        1,
        -1,
        Q // 2,
        -(Q // 2),
        PRIMES[0],
        -PRIMES[0],
        PRIMES[0] * PRIMES[1],
        1 - PRIMES[0] * PRIMES[1],
        2**148,
        -(2**148),
    ]
    return drawn + edges + [v >> s for v, s in zip(drawn, range(200), strict=True)]


def test_digits_and_comparison_are_exact(values: list[int]) -> None:
    raised = [v + Q // 2 for v in values]
    digits = integers.digits([residues(raised, q) for q in PRIMES], PRIMES)
    back = [int(a) + int(b) * PRIMES[0] + int(c) * PRIMES[0] * PRIMES[1] for a, b, c in zip(*digits, strict=True)]
    assert back == raised
    for bound in (1, 2**40, PRIMES[0], Q // 3, Q // 2 + 1, Q - 1, *raised[:20]):
        assert integers.less(digits, PRIMES, bound).tolist() == [r < bound for r in raised], bound


def test_a_centred_number_modulo_anything(values: list[int]) -> None:
    centred = integers.Centred([residues(values, q) for q in PRIMES], PRIMES)
    for q in (*PRIMES, *OTHERS):
        assert np.array_equal(centred.residue(q), residues(values, q)), q
    assert centred.low.tolist() == [v % 2**64 for v in values]


@pytest.mark.parametrize("shift", [0, 1, 8, 45, 62])
def test_division_rounds_to_the_nearest_and_halves_up(values: list[int], shift: int) -> None:
    low = np.array([v % 2**64 for v in values], np.uint64)
    expected = [(v + (1 << shift >> 1)) >> shift for v in values]
    for q in (*PRIMES, *OTHERS):
        assert np.array_equal(integers.divided(residues(values, q), low, shift, q), residues(expected, q)), q


def test_rounded_numbers_lose_nothing_but_their_last_bits(values: list[int]) -> None:
    centred = integers.Centred([residues(values, q) for q in PRIMES], PRIMES)
    for found, value in zip(centred.rounded, values, strict=True):
        assert abs(int(found) - value) <= abs(value) >> 51
    (q,) = PRIMES[:1]
    assert np.array_equal(
        integers.Centred([residues(values[:50], q)], (q,)).rounded,
        [float((v + q // 2) % q - q // 2) for v in values[:50]],
    )


@pytest.mark.parametrize("deviation", [2.0**20, 2.0**46, 2.0**77.5, 2.0**90])
def test_a_wide_gaussian_has_its_deviation_and_all_its_bits(deviation: float) -> None:
    """50000 draws know a deviation to 0.3 %, asked to 2 %; their fourth moment, 3, to 2 %, asked to 12 %.
    Their low 8 bits are uniform: chi-square of 256 cells lies within eight of its deviations but once in 10^9."""
    limbs = sampling.wide_gaussian(50000, deviation, PRIMES)
    drawn = integers.Centred(limbs, PRIMES)
    scaled = drawn.rounded / deviation
    assert abs(scaled.std() - 1) < 0.02 and abs((scaled**4).mean() - 3) < 0.36 and abs(scaled.mean()) < 8 / 50000**0.5
    counts = np.bincount((drawn.low & np.uint64(255)).astype(np.int64), minlength=256)
    expected = 50000 / 256
    assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 8 * (2 * 255) ** 0.5
    with pytest.raises(ValueError, match="1024 at least"):
        sampling.wide_gaussian(3, 1.0, PRIMES)


@pytest.mark.parametrize("deviation", [2.0**10, 2.0**13.3, 2.0**30.8, 2.0**77.5])
def test_the_digits_of_a_wide_gaussian_smooth_each_other(deviation: float) -> None:
    """What is below a digit has twice its step's deviation, so that the sum is a Gaussian on all integers:
    the condition of the theorem."""
    steps = sampling._steps(deviation)
    for i, step in enumerate(steps[1:], 1):
        below = 128 * sum(s * s for s in steps[:i]) ** 0.5
        assert step <= 64.1 / 128 * below
    assert 1 <= 128 * sum(s * s for s in steps) ** 0.5 / deviation < 1 + 1 / 64


def test_a_digit_is_a_discrete_gaussian() -> None:
    """A million words in place of random ones, one in each of as many equal parts:
    every count is within one of its probability's."""
    n = 1 << 20
    found = sampling._digits(n, lambda count: (np.arange(count, dtype=np.uint64) << np.uint64(43)) + np.uint64(1 << 42))
    weights = np.exp(-(np.arange(-13 * 128, 13 * 128 + 1) ** 2) / (2 * 128**2))
    counts = np.bincount(found + 13 * 128, minlength=len(weights))
    assert np.abs(counts - n * weights / weights.sum()).max() < 1.01


def test_the_digits_are_those_of_a_search_in_the_whole_table() -> None:
    """At every place of the table, just before and after it, and at both ends of every bucket."""
    upper, bucket = sampling._digit_table()[0].astype(object), 1 << 63 - sampling._BUCKETS
    ends = range(0, 1 << 63, bucket)
    drawn = sorted({0, (1 << 63) - 1, *upper, *(upper - 1), *(upper + 1), *ends, *(e + bucket - 1 for e in ends)})
    known = np.array([v for v in drawn if 0 <= v < 1 << 63], np.uint64)
    given = iter([known])
    found = sampling._digits(len(known), lambda n: next(given, np.full(n, (1 << 63) - 1, np.uint64)))
    assert (found == np.searchsorted(sampling._digit_table()[0], known, side="right") - 13 * sampling._DIGIT).all()
    assert 0 < sampling._digit_buckets()[2].mean() < 0.01


def test_a_digit_on_the_edge_of_two_is_decided_by_lower_bits() -> None:
    (upper, lower), at = sampling._digit_table(), 13 * 128 + 5
    for below in (True, False):
        given = iter([upper[at : at + 1], np.array([int(lower[at]) - below], np.uint64)])
        assert sampling._digits(1, lambda n, given=given: next(given))[0] == 5 + (not below)


@pytest.mark.parametrize("bits", [30, 98, 148, 193])
def test_the_low_word_of_a_mask(bits: int) -> None:
    words, offset = sampling.uniform(1000, bits), -(1 << bits - 1)
    whole = [sum(int(w[i]) << 56 * j for j, w in enumerate(words)) + offset for i in range(1000)]
    assert sampling.low_words(words, offset).tolist() == [v % 2**64 for v in whole]
    assert min(whole) < 0 < max(whole) and all(abs(v) <= 2 ** (bits - 1) for v in whole)
