"""Limb arithmetic against plain Python integers and direct evaluation."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opened import Opened

from focal.ckks import ring
from focal.heads.linear.rehearsal import Rehearsal

PRIMES = (1152921504606748673, 35184373006337)
"""Both 1 modulo 2^15, as OpenFHE chooses them: 60 and 45 bits."""
N = 64


def root_of_unity(q: int, order: int) -> int:
    """A primitive ``order``-th root modulo the prime q (order a power of two)."""
    return next(r for g in range(2, 100) if pow(r := pow(g, (q - 1) // order, q), order // 2, q) == q - 1)


def limb(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


@given(st.integers(3, (1 << 61) - 1), st.data())
@settings(deadline=None, max_examples=200)
def test_sums_and_products_are_those_of_integers(q: int, data: st.DataObject) -> None:
    residues = st.lists(
        st.one_of(st.integers(0, q - 1), st.sampled_from([0, 1, q - 1, q // 2])), min_size=8, max_size=8
    )
    x, y = data.draw(residues), data.draw(residues)
    assert ring.add(limb(x), limb(y), q).tolist() == [(a + b) % q for a, b in zip(x, y, strict=True)]
    assert ring.multiply(limb(x), limb(y), q).tolist() == [a * b % q for a, b in zip(x, y, strict=True)]


def test_products_at_the_edges_of_the_largest_modulus() -> None:
    q = (1 << 61) - 1
    edge = [0, 1, 2, q // 2, q // 2 + 1, q - 2, q - 1]
    x, y = [a for a in edge for _ in edge], edge * len(edge)
    assert ring.multiply(limb(x), limb(y), q).tolist() == [a * b % q for a, b in zip(x, y, strict=True)]


def test_total_adds_limb_by_limb_and_leaves_its_input_alone() -> None:
    rng = random.Random(1)
    parts = [[limb([rng.randrange(q) for _ in range(N)]) for q in PRIMES] for _ in range(5)]
    before = [[x.copy() for x in part] for part in parts]
    for i, q in enumerate(PRIMES):
        assert ring.total(parts, PRIMES)[i].tolist() == [sum(int(p[i][j]) for p in parts) % q for j in range(N)]
    assert all(
        np.array_equal(x, y) for part, old in zip(parts, before, strict=True) for x, y in zip(part, old, strict=True)
    )
    with pytest.raises(ValueError):
        ring.total([parts[0], parts[1][:1]], PRIMES)


@pytest.mark.parametrize("q", [*PRIMES, 1125899904679937, 2305843009211662337])
@pytest.mark.parametrize("n", [2, 4, 8, 1 << 14])
def test_transforms_of_edges_are_inverse_and_multiply(q: int, n: int) -> None:
    """50 and 61 bits as well, the ends of both ways to a quotient; a product of evaluations is a negacyclic
    product of polynomials."""
    root, rng = root_of_unity(q, 2 * n), np.random.default_rng(n)
    edges = [0] * n, [q - 1] * n, [q // 2 + i % 2 for i in range(n)], [q - 1 if i % 2 else 0 for i in range(n)]
    for x in (*edges, rng.integers(0, q, n).tolist()):
        values = ring.ntt(limb(x), q, root)
        assert int(values.max()) < q and ring.inverse_ntt(values, q, root).tolist() == [int(v) for v in x]
        shifted = ring.multiply(values, ring.ntt(limb([0, 1] + [0] * (n - 2)), q, root), q)  # times X
        assert ring.inverse_ntt(shifted, q, root).tolist() == [(q - int(x[-1])) % q, *map(int, x[:-1])]


@pytest.mark.parametrize("q", PRIMES)
def test_transforms_are_direct_evaluation_and_its_inverse(q: int) -> None:
    root, rng = root_of_unity(q, 2 * N), random.Random(2)
    coefficients = [rng.randrange(q) for _ in range(N)]
    reversed_bits = [int(f"{j:06b}"[::-1], 2) for j in range(N)]
    assert ring.bit_reversal(N).tolist() == reversed_bits
    points = [pow(root, 2 * j + 1, q) for j in reversed_bits]
    values = [sum(c * pow(x, i, q) for i, c in enumerate(coefficients)) % q for x in points]
    assert ring.inverse_ntt(limb(values), q, root).tolist() == coefficients
    assert ring.ntt(limb(coefficients), q, root).tolist() == values


@pytest.mark.parametrize("k", [1, 5, 2 * N - 1, pow(5, -3, 2 * N)])
def test_an_automorphism_moves_evaluations(k: int) -> None:
    """As the polynomial with X^k put in the place of X is evaluated: X^n = -1 turns some signs."""
    q, root, rng = PRIMES[1], root_of_unity(PRIMES[1], 2 * N), random.Random(5)
    coefficients = [rng.randrange(q) for _ in range(N)]
    turned = [0] * N
    for i, c in enumerate(coefficients):
        at = i * k % (2 * N)
        turned[at % N] = c if at < N else (q - c) % q
    values = ring.ntt(limb(coefficients), q, root)
    assert values[ring.automorphism(N, k)].tolist() == ring.ntt(limb(turned), q, root).tolist()


@pytest.mark.parametrize("q", PRIMES)
def test_signed_coefficients_are_transformed_as_their_residues(q: int) -> None:
    root = root_of_unity(q, 2 * N)
    small = np.array([0, 1, -1, 40, -40, 2, -2, q // 2] * (N // 8), dtype=np.int64)
    before = small.copy()
    assert ring.ntt_signed(small, q, root).tolist() == ring.ntt((small % q).astype(np.uint64), q, root).tolist()
    assert np.array_equal(small, before)


def test_centred_at_its_edges() -> None:
    q = PRIMES[0]
    assert ring.centred(limb([0, 1, q // 2, q // 2 + 1, q - 1]), q).tolist() == [0, 1, q // 2, q // 2 + 1 - q, -1]


def test_embedding_evaluates_at_the_powers_of_five() -> None:
    c = np.random.default_rng(3).standard_normal(N)
    zeta = np.exp(1j * np.pi / N)
    direct = [sum(c[i] * zeta ** (i * pow(5, j, 2 * N)) for i in range(N)) for j in range(N // 2)]
    assert np.abs(ring.embed(c) - direct).max() < 1e-12 * N


def by_hand(seed: bytes, i: int, q: int, n: int) -> list[int]:
    """The definition of expand, word by word."""
    out: list[int] = []
    stream, at = hashlib.shake_256(seed + i.to_bytes(4, "little")).digest(64 * n), 0
    while len(out) < n:
        word = int.from_bytes(stream[8 * at : 8 * at + 8], "little") & ((1 << q.bit_length()) - 1)
        at += 1
        if word < q:
            out.append(word)
    return out


@pytest.mark.parametrize("q", [*PRIMES, (1 << 44) + 7, (1 << 45) - 1])
def test_expansion_is_its_definition_and_stays_below_the_modulus(q: int) -> None:
    """2^44 + 7 rejects nearly half of all words, 2^45 - 1 nearly none."""
    (got,) = ring.expand(b"seed", [q], 500)
    assert got.tolist() == by_hand(b"seed", 0, q, 500)
    assert int(got.max()) < q


def test_a_longer_expansion_begins_with_the_shorter_one() -> None:
    long, short = ring.expand(b"seed", PRIMES, 4096), ring.expand(b"seed", PRIMES[:1], 64)
    assert np.array_equal(long[0][:64], short[0])
    assert all(np.array_equal(a, b) for a, b in zip(long, ring.expand(b"seed", PRIMES, 4096), strict=True))


def test_expansion_draws_more_when_too_much_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try is cut to 8 bytes of stream for every 64 that are asked for,
    so it must fail and be repeated, to the same end."""
    real = hashlib.shake_256

    class Short:
        def __init__(self, seed: bytes) -> None:
            self.seed = seed

        def digest(self, length: int) -> bytes:
            return real(self.seed).digest(length // 8 // 8 * 8)

    monkeypatch.setattr(ring.hashlib, "shake_256", Short)
    assert ring.expand(b"seed", PRIMES[:1], 500)[0].tolist() == by_hand(b"seed", 0, PRIMES[0], 500)


def test_seeds_and_limbs_differ_and_values_are_spread_evenly() -> None:
    q, n = PRIMES[1], 1 << 16
    a, b = ring.expand(b"one", [q, q], n)
    (c,) = ring.expand(b"two", [q], n)
    assert not np.array_equal(a, b) and not np.array_equal(a, c)
    # 16 equal bins of 4096 expected values, standard deviation 62: six of them is 1 in 10^8, and the seed is fixed
    counts = np.bincount((a.astype(np.float64) / q * 16).astype(int), minlength=16)
    assert np.abs(counts - n / 16).max() < 6 * (n / 16 * 15 / 16) ** 0.5


def test_totals_are_what_openfhe_adds(rehearsal: Rehearsal, opened: Opened) -> None:
    """The same limbs as EvalAdd, and the numpy decryption reads what OpenFHE encrypted."""
    scheme, rng = rehearsal.scheme, np.random.default_rng(4)
    values = rng.uniform(-1, 1, (2, scheme.slots))
    one, two = (rehearsal.encrypt(v) for v in values)
    ours = [
        ring.total([a, b], scheme.moduli)
        for a, b in zip(scheme.evaluator.limbs(one), scheme.evaluator.limbs(two), strict=True)
    ]
    theirs = scheme.limbs(scheme.cc.EvalAdd(*(scheme.ciphertext(scheme.evaluator.limbs(ct)) for ct in (one, two))))
    assert all(np.array_equal(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))
    assert np.abs(opened.slots(scheme.evaluator.load(ours)) - values.sum(0)).max() < 2 * opened.fresh_error
