"""The range check of uploads: honest vectors pass, long ones do not, whatever one party alone changes is seen, p
tells nothing.

Small rings do for most: a projection takes any number of coefficients that 16 divides.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from decimal import Decimal

import numpy as np
import pytest
from frequencies import chi_square, gaussian_weights

from focal.ckks import native, ring
from focal.ckks.scheme import Scheme
from focal.config import CkksConfig
from focal.custody import projections
from focal.custody.inputs import MASK_BITS, OFFSET_BITS
from focal.custody.integer_gaussian import SystemBelow, integer_gaussian
from focal.custody.projections import CANDIDATES, MODULUS, ROWS, SIGMA, Attempt, Proof, Statement
from focal.errors import FocalError, Refused

NAMES = ("north", "south", "west")


def words(values: list[int]) -> np.ndarray:
    """(n, 2) unsigned words of integers below 2^128."""
    assert min(values) >= 0 and max(values) < 1 << 128
    return np.array([[x & (2**64 - 1), x >> 64] for x in values], np.uint64)


def integers(y: np.ndarray) -> list[int]:
    return [int(low) + (int(high) << 64) for low, high in y]


class Case:
    """One institution's messages (any integers), their masks and uploads, and what everybody makes of them."""

    def __init__(self, messages: list[list[int]], norm: int, seed: int = 0) -> None:
        self.messages, source = messages, random.Random(seed)
        self.keys = [source.randbytes(32) for _ in NAMES]
        self.masks = [[words([source.getrandbits(MASK_BITS) for _ in m]) for m in messages] for _ in NAMES]
        self.uploads = []
        for place, m in enumerate(messages):
            masks = [integers(own[place]) for own in self.masks]
            self.uploads.append(words([sum(parts) + (1 << OFFSET_BITS) for parts in zip(m, *masks, strict=True)]))
        digests = tuple(hashlib.sha256(y.tobytes()).hexdigest() for y in self.uploads)
        self.statement = Statement(b"run", "hospital-a", "data", digests, norm)
        self.stored: dict[str, Attempt] = {}
        self.coins = random.Random(seed + 1)

    def attempt(self, item: str) -> Attempt:
        """Fixed randomness in the place of a key's."""
        if item not in self.stored:
            self.stored[item] = Attempt.draw(self.statement.sigma, self.coins.randrange)
        return self.stored[item]

    def prove(self) -> Proof:
        return projections.prove(
            self.statement, self.keys, lambda: [np.array(m, np.int64) for m in self.messages], self.attempt
        )

    def projected(self, proof: Proof) -> tuple[list[int], list[list[int]]]:
        """Pi (y - 2^120) and every Pi r_i, all at once."""
        places = zip(self.uploads, *self.masks, strict=True)
        lanes = ((projections.upload_lanes(y), *map(projections.mask_lanes, rs)) for y, *rs in places)
        uploads, *masks = projections.project(self.statement, proof.challenge(self.statement), lanes)
        return uploads, masks

    def shares(self, proof: Proof) -> list[tuple[str, bytes]]:
        _, masks = self.projected(proof)
        made = (projections.share(self.statement, proof, key, r) for key, r in zip(self.keys, masks, strict=True))
        return list(zip(NAMES, made, strict=True))

    def check(self, proof: Proof, shares: list[tuple[str, bytes]] | None = None) -> None:
        projections.check(
            self.statement, proof, self.projected(proof)[0], self.shares(proof) if shares is None else shares
        )

    def forced(self) -> Proof:
        """What an institution would send that leaves out every question about its own messages: attempt 0, candidate
        0."""
        attempt = self.attempt("forced")
        masked = projections.masked_mu(self.statement, self.keys, 0, attempt)
        empty = Proof(0, 0, masked, (0,) * ROWS)
        key = empty.challenge(self.statement)
        pieces = [
            [[x >> 30 * k & (2**30 - 1) for x in m] for m in self.messages] for k in range(4)
        ]  # numbers of any size, 30 bits each
        pieces.append([[x >> 120 for x in m] for m in self.messages])
        columns = [projections.project(self.statement, key, ((lanes(m),) for m in piece))[0] for piece in pieces]
        long = [sum(x << 30 * k for k, x in enumerate(row)) for row in zip(*columns, strict=True)]
        return dataclasses.replace(empty, p=tuple(v + mu for v, mu in zip(long, attempt.mu[0], strict=True)))


def lanes(m: list[int]) -> np.ndarray:
    return projections.message_lanes(np.array(m, np.int64))


def honest(seed: int, places: int = 3, n: int = 64) -> Case:
    """Messages as long as the norm allows."""
    rng = np.random.default_rng(seed)
    m = np.rint(rng.normal(size=(places, n)) * 2.0 ** (20 + seed % 30))
    return Case(m.astype(np.int64).tolist(), math.ceil(np.linalg.norm(m)) + 1, seed)


# --------------------------------------------------------------------------- passes and is refused


@pytest.mark.parametrize("seed", range(40))
def test_honest_messages_pass(seed: int) -> None:
    case = honest(seed)
    proof = case.prove()
    case.check(Proof.load(proof.dump(), "hospital-a"))
    squares = [projections.squared_norm(np.array(m)) for m in case.messages]
    assert projections.admits(case.statement.norm, squares) and not projections.admits(case.statement.norm - 2, squares)


def test_honest_messages_pass_with_the_systems_randomness() -> None:
    case = honest(100)
    case.attempt = lambda item: Attempt.draw(case.statement.sigma)  # type: ignore[method-assign]
    case.check(case.prove())


def refused(reason: str, call: Callable[[], object], says: str = "hospital-a") -> None:
    with pytest.raises(Refused, match=says) as e:
        call()
    assert e.value.reason == reason


def test_an_honest_institution_stops_before_anything_is_shown_when_its_rows_are_too_large() -> None:
    case = honest(1)
    case.statement = dataclasses.replace(case.statement, norm=case.statement.norm // 2)
    with pytest.raises(FocalError, match="hospital-a: its 'data' are 2.00 times as large"):
        case.prove()


def test_one_coefficient_of_2_to_the_80_is_refused() -> None:
    messages = honest(2).messages
    messages[1][17] = 1 << 80
    case = Case(messages, honest(2).statement.norm)
    proof = case.forced()
    refused("range-size", lambda: case.check(proof, []))
    refused("range-size", lambda: projections.share(case.statement, proof, case.keys[0], [0] * ROWS))
    attempt = case.stored["forced"]
    for p in (attempt.mu[0], (0,) * ROWS, tuple(x % (1 << 30) for x in proof.p)):
        small = dataclasses.replace(proof, p=p)
        refused("range-sum", lambda small=small: case.check(small))


def test_one_slot_of_2_to_the_30_is_refused() -> None:
    """At the real ring, with data of rms 1.5 in every other slot of two chunks."""
    n, scale, rng = 1 << 14, 2.0**45, np.random.default_rng(3)
    k = np.arange(n)
    slot = np.rint(scale * 2.0**30 * 2 / n * np.cos(np.pi * k / n)).astype(np.int64)  # the slot at zeta^1
    assert abs(ring.embed(slot.astype(np.float64))[0] / scale / 2.0**30 - 1) < 1e-9
    noise = np.rint(rng.normal(size=(2, n)) * scale * 1.4 / math.sqrt(n)).astype(np.int64)
    norm = projections.norm_bound(scale, n, 2, 1.5)
    fine, bad = Case(noise.tolist(), norm), Case((noise + [slot, 0 * slot]).tolist(), norm)
    fine.check(fine.prove())
    with pytest.raises(FocalError):
        bad.prove()
    refused("range-size", lambda: bad.check(bad.forced(), []))
    cut = dataclasses.replace(bad.forced(), p=fine.prove().p)
    refused("range-sum", lambda: bad.check(cut))


@pytest.mark.parametrize("bit", [0, 63, 64, 127])
def test_one_flipped_bit_of_an_upload_is_seen(bit: int) -> None:
    """Even where the digest was that of the other one."""
    case = honest(4)
    proof = case.prove()
    shares = case.shares(proof)
    case.check(proof, shares)
    case.uploads[2][5, bit // 64] ^= np.uint64(1 << bit % 64)
    refused("range-sum", lambda: case.check(proof, shares), "north, south, west")


def test_a_wrong_share_is_seen() -> None:
    case = honest(5)
    proof = case.prove()
    good = case.shares(proof)
    (name, data), *others = good
    wrong = [
        bytes([data[0] ^ 1]) + data[1:],
        data[:-1] + bytes([data[-1] ^ 128]),
        others[0][1],
        bytes(len(data)),
        data[24:] + data[:24],
    ]
    for share in wrong:
        refused("range-sum", lambda share=share: case.check(proof, [(name, share), *others]))
    refused("range-sum", lambda: case.check(proof, others))
    refused("range-sum", lambda: case.check(proof, [*good, good[0]]))
    for cut in (data[:-1], data + b"\0"):
        refused("length", lambda cut=cut: case.check(proof, [(name, cut), *others]), "north")
    case.check(proof, good)


def test_another_attempt_candidate_key_or_statement_is_seen() -> None:
    case = honest(6)
    proof = case.prove()
    _, masks = case.projected(proof)
    good, st = case.shares(proof), case.statement

    def with_first(share: bytes) -> list[tuple[str, bytes]]:
        return [("north", share), *good[1:]]

    others = [
        projections.share(st, dataclasses.replace(proof, number=proof.number + 1), case.keys[0], masks[0]),
        projections.share(
            st, dataclasses.replace(proof, candidate=(proof.candidate + 1) % CANDIDATES), case.keys[0], masks[0]
        ),
        projections.share(st, proof, case.keys[1], masks[0]),
        projections.share(st, proof, case.keys[0], masks[1]),
    ]
    changed = [("institution", "hospital-b"), ("name", "targets"), ("run_id", b"another"), ("norm", st.norm + 1)]
    changed.append(("digests", (*st.digests[1:], st.digests[0])))
    for field, value in changed:
        statement = dataclasses.replace(st, **{field: value})
        others.append(projections.share(statement, proof, case.keys[0], masks[0]))
        assert proof.challenge(statement) != proof.challenge(st)
    assert len({*others, good[0][1]}) == len(others) + 1
    for share in others:
        refused("range-sum", lambda share=share: case.check(proof, with_first(share)))
    for changed_proof in (
        dataclasses.replace(proof, number=proof.number + 1),
        dataclasses.replace(proof, candidate=(proof.candidate + 1) % CANDIDATES),
        dataclasses.replace(proof, masked=bytes([proof.masked[0] ^ 1]) + proof.masked[1:]),
        dataclasses.replace(proof, p=(proof.p[0] + 1, *proof.p[1:])),
    ):
        assert (
            changed_proof.p != proof.p
            or changed_proof.challenge(st) != proof.challenge(st)
            or changed_proof.candidate != proof.candidate
        )
        refused("range-sum", lambda proof=changed_proof: case.check(proof, good))
        refused("range-sum", lambda proof=changed_proof: case.check(proof))


def test_a_custodian_that_lies_for_the_institution_makes_anything_pass() -> None:
    """What the check does not prove."""
    case = Case([[1 << 90] * 64], 1000)
    proof = dataclasses.replace(case.forced(), p=(0,) * ROWS)
    (_, t0), (_, t1), _ = case.shares(proof)
    uploads, _ = case.projected(proof)
    masked = projections._numbers(proof.masked)[:ROWS]
    parts = zip(uploads, masked, projections._numbers(t0), projections._numbers(t1), strict=True)
    forged = projections._residues(y + mu - a - b for y, mu, a, b in parts)
    case.check(proof, [("north", t0), ("south", t1), ("west", forged)])


# --------------------------------------------------------------------------- attempts


def rejecting(attempt: Attempt) -> Attempt:
    return dataclasses.replace(attempt, coins=((1 << 256) - 1,) * CANDIDATES)


def test_the_first_candidate_whose_coin_allows_it_is_taken_and_the_same_attempts_give_the_same_proof() -> None:
    case = honest(7)
    for number in range(2):
        case.stored[f"range/data/{case.statement.hash.hex()}/{number}"] = rejecting(case.attempt("other"))
    accepting = dataclasses.replace(
        Attempt.draw(case.statement.sigma, case.coins.randrange), coins=((1 << 256) - 1, 0, 0, 0)
    )
    case.stored[f"range/data/{case.statement.hash.hex()}/2"] = accepting
    proof, before = case.prove(), dict(case.stored)
    assert (proof.number, proof.candidate) == (2, 1)
    case.check(proof)
    assert case.prove() == proof and case.stored == before


def test_the_first_attempt_is_there_before_anything_is_made_of_the_messages() -> None:
    case, events = honest(8), []

    def attempt(item: str) -> Attempt:
        events.append("attempt")
        return case.attempt(item)

    def messages() -> list[np.ndarray]:
        events.append("projected")
        return [np.array(m) for m in case.messages]

    def fails(item: str) -> Attempt:
        raise OSError("no key")

    projections.prove(case.statement, case.keys, messages, attempt)
    assert events == ["attempt", "projected"] * (len(events) // 2)
    with pytest.raises(OSError):
        projections.prove(case.statement, case.keys, messages, fails)
    assert events[-1] == "projected" and len(events) % 2 == 0


def test_another_list_of_uploads_has_other_masks_and_other_attempts() -> None:
    """Were they the same, (Pi - Pi') m would be public."""
    case = honest(9)
    attempt = case.attempt("one")
    other = dataclasses.replace(case.statement, digests=case.statement.digests[::-1])
    found = [
        projections.masked_mu(st, case.keys, number, attempt) for st in (case.statement, other) for number in (0, 1)
    ]
    assert len(set(found)) == 4
    items: list[str] = []

    def accepting(item: str) -> Attempt:
        items.append(item)
        return dataclasses.replace(attempt, coins=(0,) * CANDIDATES)

    for statement in (case.statement, other):
        projections.prove(statement, case.keys, lambda: [np.array(m) for m in case.messages], accepting)
    assert len(set(items)) == 2


def test_bytes_of_proofs() -> None:
    proof = honest(10).prove()
    assert Proof.load(proof.dump(), "hospital-a") == proof
    for data in (b"", proof.dump()[:-1], proof.dump() + b"\0"):
        refused("length", lambda data=data: Proof.load(data, "hospital-a"))
    data = bytearray(proof.dump())
    data[8] = CANDIDATES
    refused("range-form", lambda: Proof.load(bytes(data), "hospital-a"))


def test_what_is_no_statement_is_not_made() -> None:
    for digests, norm in (((), 1), (("00",), 0), (("00",), 1 << 128)):
        with pytest.raises(ValueError):
            Statement(b"run", "a", "data", digests, norm)


# --------------------------------------------------------------------------- projections


def signs(key: bytes, index: int, n: int) -> np.ndarray:
    """(256, n) of -1 and 1, read from the stream one by one."""
    stream = projections._stream(key, index, ROWS * n // 8)
    return np.array([[2 * (stream[ROWS * (i // 8) + j] >> i % 8 & 1) - 1 for i in range(n)] for j in range(ROWS)])


def test_a_projection_is_the_product_with_the_matrix_that_the_stream_spells() -> None:
    case = honest(11, places=2, n=32)
    key = bytes(range(32))
    extreme = [[(1 << 128) - 1, 0, (1 << OFFSET_BITS), (1 << 128) - (1 << OFFSET_BITS)] * 8, [1 << 127] * 32]
    small = [[-(1 << 63), (1 << 63) - 1, 0, -1] * 8, [5] * 32]
    matrix = np.concatenate([signs(key, 0, 32), signs(key, 1, 32)], axis=1)
    places = (
        (projections.upload_lanes(words(y)), projections.mask_lanes(words(y)), lanes(m))
        for y, m in zip(extreme, small, strict=True)
    )
    found = projections.project(case.statement, key, places)
    offsets, flat, signed = [x - (1 << OFFSET_BITS) for x in sum(extreme, [])], sum(extreme, []), sum(small, [])
    for sums, vector in zip(found, (offsets, flat, signed), strict=True):
        assert sums == [sum(int(s) * x for s, x in zip(row, vector, strict=True)) for row in matrix]


def test_signs_are_fair_and_differ_by_place_and_key() -> None:
    n = 256
    first, second, other = (signs(bytes([k] * 32), i, n) for k, i in ((1, 0), (1, 1), (2, 0)))
    for matrix in (first, second, other):
        assert abs(matrix.sum()) < 4 * math.sqrt(ROWS * n)
        gram = matrix @ matrix.T / math.sqrt(n)
        assert abs(gram[np.triu_indices(ROWS, 1)]).max() < 5.5, "rows are independent"
        assert abs((matrix.T @ matrix)[np.triu_indices(n, 1)]).max() < 5.5 * math.sqrt(ROWS), "and columns"
    for a, b in itertools.combinations((first, second, other), 2):
        assert abs((a * b).sum()) < 4 * math.sqrt(ROWS * n)


def test_projections_are_the_same_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.library is None:
        pytest.skip(f"kernels: {native.description}")
    n, rng = 1 << 14, np.random.default_rng(12)
    case = honest(12, places=2, n=16)
    ys = [rng.integers(0, 1 << 64, (n, 2), dtype=np.uint64), np.full((n, 2), (1 << 64) - 1, np.uint64)]
    ms = [rng.integers(-(1 << 60), 1 << 60, n), np.full(n, -(1 << 60))]
    found = []
    for used in (native.library, None):
        monkeypatch.setattr(native, "library", used)
        places = ((projections.upload_lanes(y), projections.message_lanes(m)) for y, m in zip(ys, ms, strict=True))
        found.append(projections.project(case.statement, bytes(32), places))
    assert found[0] == found[1] and max(map(abs, found[0][0])) > 1 << 128


def test_places_that_do_not_fit_the_statement_are_not_projected() -> None:
    case = honest(13, places=2, n=32)
    fine, longer = lanes([1] * 32), lanes([1] * 48)
    for places in ([], [fine], [fine] * 3, [fine, longer], [lanes([1] * 24)] * 2, [fine[:, :3]] * 2):
        with pytest.raises(ValueError):
            projections.project(case.statement, bytes(32), ((x,) for x in places))
    with pytest.raises(ValueError):
        projections.project(case.statement, bytes(32), [(fine,), (fine, fine)])
    many = dataclasses.replace(case.statement, digests=("00",) * ((1 << 26) + 1))
    with pytest.raises(ValueError, match="are not projected"):
        projections.project(many, bytes(32), [(lanes([1] * 16),)])


# --------------------------------------------------------------------------- bounds


def test_the_norm_of_encoded_slots_is_below_its_bound_and_near() -> None:
    scheme = Scheme(CkksConfig(), "projections".ljust(64, "-"))
    q, rng = scheme.moduli[0], np.random.default_rng(14)
    real = rng.normal(size=scheme.slots)
    for values in (real, real + 1j * rng.normal(size=scheme.slots), np.ones(scheme.slots)):
        (limb,) = scheme.evaluator.plain_limbs(scheme.evaluator.encode(values, 1))
        m = ring.centred(ring.inverse_ntt(limb, q, scheme.roots[q]), q)
        assert np.allclose(ring.embed(m.astype(np.float64)) / scheme.scale, values, atol=1e-9)
        rms = math.sqrt(np.mean(np.abs(values) ** 2))
        found, bound = (
            math.sqrt(2 * projections.squared_norm(m)),
            projections.norm_bound(scheme.scale, scheme.n, 2, rms),
        )
        assert 0.9999 * bound < found <= bound
    assert projections.norm_bound(scheme.scale, scheme.n, 1, 0.0) >= math.sqrt(scheme.n) / 2, (
        "what rounding leaves of nothing"
    )


def test_the_whole_budget_in_one_slot_is_what_is_said() -> None:
    n, scale, k = 1 << 14, 2.0**45, np.arange(1 << 14)
    st = Statement(b"run", "a", "data", ("00",), projections.norm_bound(scale, n, 68, 1.5))
    assert st.proven**2 * 81 * 256 > 320 * 4 * 256 * st.sigma**2 > (st.proven - 1) ** 2 * 81 * 256
    assert abs(math.log2(st.proven / st.norm) - 11) < 0.02
    wave = np.exp(1j * np.pi * 5**3 * k / n)  # one slot, at zeta^(5^3), and its conjugate
    for phase in (1, 1j, np.exp(0.3j)):
        m = 2 / n * (phase * wave.conj()).real
        m *= st.proven / np.linalg.norm(m)
        slots = np.abs(ring.embed(m)) / scale
        assert abs(slots[3] / st.slot(n, scale) - 1) < 1e-6 and np.delete(slots, 3).max() < 1e-6 * slots[3]


def h(s: float) -> float:
    """E |cos(sqrt(2 / s) g)|^s by Riemann's sum."""
    g = np.linspace(-12, 12, 200_001)
    density = np.exp(-(g**2) / 2) / math.sqrt(2 * math.pi)
    return float(np.sum(np.abs(np.cos(math.sqrt(2 / s) * g)) ** s * density) * (g[1] - g[0]))


def test_the_constants_of_soundness() -> None:
    """Every number in the proof of (1), and that it bounds what it should."""
    long = sum(math.exp(-(math.pi**2) * k * k / 3) for k in range(-9, 10)) / math.sqrt(3)
    pieces = []
    for a, b in itertools.pairwise((1, 1.1, 1.3, 1.6, 2)):
        first, second = 2 / math.pi + 4 / (3 * math.pi) * math.exp(-4 / b), (1 + math.exp(-4 / b)) / 2
        pieces.append((a, b, first ** (2 - a) * second ** (a - 1)))
    assert long < 0.621 and max(bound for *_, bound in pieces) < 0.6479
    assert 81 / 4 + ROWS * math.log(0.6479) < -131 * math.log(2)
    for a, b, bound in pieces:
        assert max(h(s) for s in np.linspace(a, b, 9)) < bound
    assert max(h(s) for s in (2, 2.5, 3, 5, 10, 100, 1e4)) < long


@pytest.mark.parametrize("weights", [[1], [1, 1], [3, 1], [1] * 9, [8, 4, 2, 1], [5, 4, 3, 3, 2, 1, 1, 1]])
def test_no_shift_brings_a_row_nearer_to_zero_than_soundness_says(weights: list[int]) -> None:
    """All signs of some short vectors, at every shift: E exp(-(X + c)^2) <= 0.6479."""
    w = np.array(weights) / np.linalg.norm(weights)
    x = np.array(list(itertools.product((-1, 1), repeat=len(w)))) @ w
    shifts = np.linspace(-2 * len(w), 2 * len(w), 4001)
    assert np.exp(-((x[:, None] + shifts) ** 2)).mean(axis=0).max() < 0.6479


def test_the_constants_of_zero_knowledge() -> None:
    """|Pi m| <= 25 norm (Chernoff, subgaussian rows), and the ratio of the densities of p (discrete Gaussians are
    subgaussian)."""
    ratio = 25**2 / ROWS
    assert ROWS / 2 * (math.log(ratio) + 1 - ratio) < -101 * math.log(2)
    shift = 25 / SIGMA
    tail = (math.log(9 / 5) - shift**2 / 2) / shift
    assert -(tail**2) / 2 < -104 * math.log(2)


# --------------------------------------------------------------------------- p tells nothing


def rate(sigma: int, p: int, v: int) -> float:
    return float(projections.threshold(sigma, [p], [v]) / Decimal(1 << 256))


@pytest.mark.parametrize("v", [0, 1, 250, -250])
def test_what_is_accepted_has_the_gaussians_weights_whatever_is_added(v: int) -> None:
    """D(p - v) x acceptance = 5/9 D(p), exactly, as far as 12 deviations; 250 / 5120 is the largest v of an honest
    institution."""
    sigma = 5120
    for p in range(-12 * sigma, 12 * sigma + 1, 997):
        shifted = math.exp((p**2 - (p - v) ** 2) / (2 * sigma**2)) * rate(sigma, p, v)
        assert abs(shifted - 5 / 9) < 1e-9
    if abs(v) == 250:
        against = -1 if v > 0 else 1
        assert rate(sigma, 14 * against * sigma, v) == rate(sigma, 10**9 * against * sigma, v) == 1.0, "capped beyond"
        assert rate(sigma, -(10**9) * against * sigma, v) < 1e-300


def test_p_has_one_distribution_with_a_message_and_without() -> None:
    """And another one where nothing is rejected: fixed seeds, the largest honest v in one coordinate."""
    sigma, v, draws = 20, 1, 60_000  # v / sigma as 25 / 512, to 3 %
    source = random.Random(15)
    accepted, nothing, all_of_them = Counter[int](), Counter[int](), Counter[int]()
    for _ in range(draws):
        mu, coin = integer_gaussian(sigma, source.randrange), source.getrandbits(256)
        all_of_them[mu + v] += 1
        if coin < projections.threshold(sigma, [mu + v], [v]):
            accepted[mu + v] += 1
        if source.getrandbits(256) < projections.threshold(sigma, [mu], [0]):
            nothing[mu] += 1
    means = {}
    for name, found in (("accepted", accepted), ("nothing", nothing), ("all", all_of_them)):
        count = found.total()
        means[name] = sum(p * k for p, k in found.items()) / count / (sigma / math.sqrt(count))
    assert abs(accepted.total() / draws - 5 / 9) < 0.01 and abs(nothing.total() / draws - 5 / 9) < 0.01
    for found in (accepted, nothing):
        assert abs(chi_square(found, gaussian_weights(sigma), found.total())) < 4
    assert abs(means["accepted"]) < 3 and abs(means["nothing"]) < 3
    assert means["all"] > 9, "without rejection the mean shows v"


def uniform(data: bytes) -> float:
    return abs(chi_square(Counter(data), dict.fromkeys(range(256), 1 / 256), len(data)))


def test_what_leaves_beside_p_is_uniform() -> None:
    """y_mu, and t_i of everybody but one, byte by byte; without rho the upper bytes of Pi r_i would show."""
    case = honest(16)
    proof = case.prove()
    shares = [data for _, data in case.shares(proof)]
    bare = projections._residues(case.projected(proof)[1][0])
    assert uniform(bare) > 50
    for data in (proof.masked, *shares):
        assert uniform(data) < 4
    for place in range(24):
        nibbles = Counter(byte >> 4 for data in shares for byte in data[place::24])
        assert abs(chi_square(nibbles, dict.fromkeys(range(16), 1 / 16), nibbles.total())) < 4.5


def test_every_choice_of_p_has_shares_that_fit() -> None:
    """Somebody without the message makes y, y_mu and p, and the honest custodian's share from the equation: nobody
    could tell."""
    case = honest(17)
    source = random.Random(18)
    masked = source.randbytes(CANDIDATES * ROWS * 24)
    case.uploads = [words([source.getrandbits(MASK_BITS) + (1 << OFFSET_BITS) for _ in y]) for y in case.uploads]
    p = tuple(integer_gaussian(case.statement.sigma, source.randrange) for _ in range(ROWS))
    proof = Proof(0, 0, masked, p)
    uploads, _ = case.projected(proof)
    others = [(name, source.randbytes(ROWS * 24)) for name in NAMES[1:]]
    known = [projections._numbers(data) for _, data in others]
    parts = zip(uploads, projections._numbers(masked)[:ROWS], p, *known, strict=True)
    left = projections._residues((y + mu - x - sum(ts)) % MODULUS for y, mu, x, *ts in parts)
    case.check(proof, [(NAMES[0], left), *others])
    assert uniform(left) < 4


def test_an_attempt_follows_from_a_secret_alone() -> None:
    """So an institution that was restored from a copy makes the same proof again, and never two under one rho."""
    attempts = [Attempt.draw(1 << 60, SystemBelow(projections.derived(bytes([i]) * 32))) for i in (1, 1, 2)]
    assert attempts[0] == attempts[1] != attempts[2]
    assert len(set(attempts[0].mu[0])) == ROWS and attempts[0].mu[0] != attempts[0].mu[1]
