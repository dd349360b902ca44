"""Collective encryption: what it decrypts to, what its noise is, and what each party's part of it can and cannot do."""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recover import composed

from focal.ckks import codec, ring, sampling
from focal.ckks.scheme import LIMBS, Scheme
from focal.config import CkksConfig
from focal.custody import inputs
from focal.custody.keys import SecretShare
from focal.errors import FocalError, ProtocolError, Refused

RUN = b"inputs.." * 4
ITEM, LISTS = "0/data/1/1/-", hashlib.sha256(b"lists").hexdigest()
HOSPITALS, CUSTODIANS = ("a", "b"), ("one", "two", "three")


class Parties:
    """Two hospitals and three custodians; what each of them would send for one input."""

    def __init__(self) -> None:
        self.scheme = Scheme(CkksConfig(), RUN.hex())
        self.shares = {name: SecretShare.draw(self.scheme, RUN) for name in CUSTODIANS}
        self.private = {name: inputs.new_key() for name in (*HOSPITALS, *CUSTODIANS)}
        self.messages = {h: inputs.message(self.scheme, slots(h, self.scheme.slots)) for h in HOSPITALS}
        self.labels = {h: inputs.label(self.private[h], ITEM, m.tobytes()) for h, m in self.messages.items()}

    def masks(self, hospital: str, custodian: str, seen_by: str = "hospital") -> inputs.Words:
        own, other = (hospital, custodian) if seen_by == "hospital" else (custodian, hospital)
        key = inputs.pair_key(self.private[own], inputs.public_key(self.private[other]), RUN, hospital, custodian)
        return inputs.mask(key, self.labels[hospital], ITEM, self.scheme.n)

    @cached_property
    def uploads(self) -> dict[str, bytes]:
        return {
            h: inputs.masked(self.scheme, m, [self.masks(h, c) for c in CUSTODIANS]) for h, m in self.messages.items()
        }

    @property
    def a(self) -> list[ring.Limb]:
        return inputs.public_random(self.scheme, RUN, LISTS, ITEM, LIMBS)

    def contribution(self, custodian: str) -> bytes:
        own = [self.masks(h, custodian, "custodian") for h in HOSPITALS]
        return inputs.contribution(self.scheme, self.shares[custodian].limbs, self.a, own)

    @cached_property
    def given(self) -> dict[str, bytes]:
        return {c: self.contribution(c) for c in CUSTODIANS}

    def phase(self, uploads: dict[str, bytes], given: dict[str, bytes]) -> list[int]:
        """c0 + c1 s over the integers."""
        c0, c1 = inputs.combine(self.scheme, self.a, list(uploads.items()), list(given.items()))
        secret = [
            ring.total([[s.limbs[i]] for s in self.shares.values()], [q])[0] for i, q in enumerate(self.scheme.moduli)
        ]
        parts = zip(c0, c1, secret, self.scheme.moduli, strict=True)
        return [
            int(v)
            for v in composed(
                self.scheme, [ring.add(x, ring.multiply(y, s, q), q) for x, y, s, q in parts], self.scheme.moduli
            )
        ]

    @cached_property
    def total(self) -> list[int]:
        return [int(v) for v in sum(self.messages.values())]


def slots(hospital: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(HOSPITALS.index(hospital))
    return rng.uniform(-1, 1, count) + 1j * rng.uniform(-1, 1, count)


@pytest.fixture(scope="module")
def parties() -> Parties:
    return Parties()


def test_it_is_an_encryption_of_the_sum_with_the_noise_of_the_custodians_alone(parties: Parties) -> None:
    noise = np.array([p - m for p, m in zip(parties.phase(parties.uploads, parties.given), parties.total, strict=True)])
    expected = sampling.ERROR * len(CUSTODIANS) ** 0.5
    assert np.abs(noise).max() < 10 * expected
    # of 16384 draws the deviation is known to 0.6 %; six times that
    assert abs(np.sqrt(np.mean(noise**2)) / expected - 1) < 6 / (2 * parties.scheme.n) ** 0.5
    read = ring.embed(np.array(parties.phase(parties.uploads, parties.given), float) / parties.scheme.scale)
    wanted = sum(slots(h, parties.scheme.slots) for h in HOSPITALS)
    # two roundings and the noise, each over N coefficients: sqrt(N (3 x 3.19^2 + 2 / 12)) / scale, six of these
    assert np.abs(read - wanted).max() < 6 * np.sqrt(parties.scheme.n * (expected**2 + 1 / 6)) / parties.scheme.scale


def test_both_sides_of_a_pair_have_one_mask_and_nobody_else_has_it(parties: Parties) -> None:
    ours, theirs = (parties.masks("a", "one", side) for side in ("hospital", "custodian"))
    assert np.array_equal(ours, theirs)
    others = [parties.masks("a", "two"), parties.masks("b", "one")]
    assert not any(np.array_equal(ours, other) for other in others)
    # uniform over 124 bits: the top bit is set in half of them, no bit is above it
    top = ours[:, 1] >> np.uint64(inputs.MASK_BITS - 64 - 1)
    assert top.max() == 1 and abs(top.mean() - 0.5) < 6 / (4 * parties.scheme.n) ** 0.5


def test_any_bytes_are_somebodys_known_message_and_nothing_else(parties: Parties) -> None:
    """All that a hospital can send: the phase is its message, which it knows, plus the custodians' noise.
    c1 is not its choice."""
    anything = np.random.default_rng(5).bytes(16 * parties.scheme.n)
    sent = codec.header(parties.scheme, codec.MASKED) + anything
    known = [
        int.from_bytes(anything[16 * i : 16 * i + 16], "little") - (1 << inputs.OFFSET_BITS) - r
        for i, r in enumerate(_masks(parties, "b"))
    ]
    phase = parties.phase({"a": parties.uploads["a"], "b": sent}, parties.given)
    q = np.prod([int(q) for q in parties.scheme.moduli], dtype=object)
    rest = [(p - int(m) - k + q // 2) % q - q // 2 for p, m, k in zip(phase, parties.messages["a"], known, strict=True)]
    assert max(map(abs, rest)) < 10 * sampling.ERROR * len(CUSTODIANS) ** 0.5


def test_one_changed_coefficient_changes_the_message_by_just_that(parties: Parties) -> None:
    words = codec.unpack_masked(parties.scheme, parties.uploads["b"], "b").copy()
    words[7, 1] += np.uint64(1)
    changed = {**parties.uploads, "b": codec.pack_masked(parties.scheme, words)}
    before, after = (parties.phase(u, parties.given) for u in (parties.uploads, changed))
    assert [y - x for x, y in zip(before, after, strict=True)] == [
        1 << 64 if i == 7 else 0 for i in range(parties.scheme.n)
    ]


def test_a_copy_of_anothers_masked_rows_is_noise(parties: Parties) -> None:
    """Under the copier's own masks they are m + r_a - r_b: nothing of m is left in what the sum gains."""
    phase = parties.phase({"a": parties.uploads["a"], "b": parties.uploads["a"]}, parties.given)
    gained = [p - int(m) for p, m in zip(phase, parties.messages["a"], strict=True)]
    # differences of uniform masks of 124 bits: their size is that of the masks, and they do not follow m
    assert 2.0**123 < np.std(np.array(gained, float)) < 2.0**125.5
    spread = np.corrcoef(np.array(gained, float), parties.messages["a"].astype(float))[0, 1]
    assert abs(spread) < 6 / parties.scheme.n**0.5


def test_masked_rows_are_the_same_again_and_other_rows_have_other_masks(parties: Parties) -> None:
    """What a restart sends, and why a restored backup does not send two messages under one mask."""
    again = inputs.masked(parties.scheme, parties.messages["a"], [parties.masks("a", c) for c in CUSTODIANS])
    assert again == parties.uploads["a"]
    other = parties.messages["a"].copy()
    other[0] += 1
    label = inputs.label(parties.private["a"], ITEM, other.tobytes())
    assert label != parties.labels["a"]
    key = inputs.pair_key(parties.private["a"], inputs.public_key(parties.private["one"]), RUN, "a", "one")
    assert not np.array_equal(inputs.mask(key, label, ITEM, 64), inputs.mask(key, parties.labels["a"], ITEM, 64))


def test_labels_do_not_tell_equal_rows_of_two_hospitals(parties: Parties) -> None:
    assert inputs.label(parties.private["a"], ITEM, b"rows") != inputs.label(parties.private["b"], ITEM, b"rows")
    assert inputs.label(parties.private["a"], ITEM, b"ro", b"ws") != inputs.label(
        parties.private["a"], ITEM, b"row", b"s"
    )


def test_a_contribution_is_a_sample_of_ring_lwe_minus_masks_and_another_one_each_time(parties: Parties) -> None:
    """To the owners, who know their masks: - (s a + e). With one ``a`` and two e the difference would be small:
    the ledger's matter."""
    scheme, share = parties.scheme, parties.shares["one"]
    (b,) = codec.unpack(scheme, codec.input_b(LIMBS), parties.given["one"], "one")
    (again,) = codec.unpack(scheme, codec.input_b(LIMBS), parties.contribution("one"), "one")
    q, root = scheme.moduli[1], scheme.roots[scheme.moduli[1]]
    bare = b[1]
    for h in HOSPITALS:
        r = np.array([v % q for v in _mask(parties, h, "one")], np.uint64)
        bare = ring.add(bare, ring.ntt(r, q, root), q)
    e = ring.centred(ring.inverse_ntt(ring.add(bare, ring.multiply(share.limbs[1], parties.a[1], q), q), q, root), q)
    assert 0 < np.abs(e).max() < 13 * sampling.ERROR
    difference = ring.centred(ring.inverse_ntt(ring.subtract(b[1], again[1], q), q, root), q)
    assert 0 < np.abs(difference).max() < 26 * sampling.ERROR


def test_what_is_too_large_is_not_masked(parties: Parties) -> None:
    values = np.zeros(parties.scheme.slots)
    for bad in (inputs.MAX_SLOT * 1.01, np.nan, np.inf):
        values[3] = bad
        with pytest.raises(FocalError, match="is to be encrypted"):
            inputs.message(parties.scheme, values)
    values[3] = inputs.MAX_SLOT
    assert np.abs(inputs.message(parties.scheme, values)).max() <= inputs.MAX_SLOT * parties.scheme.scale


def test_a_key_that_everybody_knows_is_refused(parties: Parties) -> None:
    with pytest.raises(ProtocolError, match="between 'a' and 'one' is not a usable"):
        inputs.pair_key(parties.private["one"], "00" * 32, RUN, "a", "one")


def test_malformed_bytes_name_who_sent_them(parties: Parties) -> None:
    odd = parties.given["two"][:-6] + b"\xff" * 6
    good = parties.uploads["a"]
    for uploads, contributions, reason, who in (
        ({"a": good[:-1]}, parties.given, "length", "a"),
        ({"a": b"X" + good[1:]}, parties.given, "header", "a"),
        ({"a": good}, {"two": odd}, "coefficient", "two"),
        ({"a": good}, {"two": good}, "length", "two"),
    ):
        with pytest.raises(Refused, match=f"{who}: ") as e:
            inputs.combine(parties.scheme, parties.a, list(uploads.items()), list(contributions.items()))
        assert e.value.reason == reason


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(-(2**59), 2**59), min_size=1, max_size=4),
    st.lists(st.integers(0, 2**inputs.MASK_BITS - 1), min_size=1, max_size=inputs.MAX_CUSTODIANS),
)
def test_sums_carry_over_all_128_bits(parties: Parties, messages: list[int], masks: list[int]) -> None:
    """y = m + sum of masks + 2^120, exactly, for messages of either sign and masks up to the last bit."""
    n = parties.scheme.n
    message = np.zeros(n, np.int64)
    message[: len(messages)] = messages
    words = [np.tile(np.array([r & (2**64 - 1), r >> 64], np.uint64), (n, 1)) for r in masks]
    found = _integers(codec.unpack_masked(parties.scheme, inputs.masked(parties.scheme, message, words), ""))[:5]
    assert found == [int(m) + sum(masks) + (1 << inputs.OFFSET_BITS) for m in message[:5]]


def test_how_well_masks_hide(parties: Parties) -> None:
    """N messages of up to 2^56 a coefficient under masks of 124 bits, as SECURITY.md says."""
    assert inputs.hiding(parties.scheme, 64) == pytest.approx(56 - 124 + 14 + 6)


def test_more_custodians_than_fit_are_refused(parties: Parties) -> None:
    masks = [parties.masks("a", "one")] * (inputs.MAX_CUSTODIANS + 1)
    with pytest.raises(FocalError, match="9 custodians do not fit"):
        inputs.masked(parties.scheme, parties.messages["a"], masks)


def _mask(parties: Parties, hospital: str, custodian: str) -> list[int]:
    return _integers(parties.masks(hospital, custodian))


def _integers(words: inputs.Words) -> list[int]:
    return [int(low) | int(high) << 64 for low, high in words]


def _masks(parties: Parties, hospital: str) -> list[int]:
    return [sum(r) for r in zip(*(_mask(parties, hospital, c) for c in CUSTODIANS), strict=True)]
