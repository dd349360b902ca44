"""The collective refresh: the message survives, ``a`` is nobody's choice, and no share is dispensable."""

from __future__ import annotations

import hashlib
import itertools
import struct
from typing import Any

import numpy as np
import pytest
from opened import Opened
from recover import composed

from focal.ckks import codec, ring
from focal.ckks.scheme import LIMBS, REFRESH_LIMBS
from focal.custody import refresh
from focal.custody.refresh import Map
from focal.errors import Refused
from focal.heads.linear.layout import Layout
from focal.heads.linear.rehearsal import Rehearsal

ITEM = "train/0/item/0/0/-"
KIND = codec.ciphertext(REFRESH_LIMBS)
SIGMA = 3.19
"""Standard deviation of OpenFHE's fresh errors."""

Shares = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def message(rehearsal: Rehearsal) -> np.ndarray:
    return np.random.default_rng(5).uniform(-1, 1, rehearsal.scheme.slots)


@pytest.fixture(scope="module")
def ciphertext(rehearsal: Rehearsal, message: np.ndarray) -> Any:
    return rehearsal.encrypt(message, REFRESH_LIMBS)


@pytest.fixture(scope="module")
def asked(rehearsal: Rehearsal, ciphertext: Any) -> bytes:
    return refresh.request(rehearsal.scheme, ciphertext)


@pytest.fixture(scope="module")
def a(rehearsal: Rehearsal, asked: bytes) -> list[ring.Limb]:
    return refresh.common_random(rehearsal.scheme, rehearsal.run_id, ITEM, codec.digest(asked))


@pytest.fixture(scope="module")
def shares(rehearsal: Rehearsal, asked: bytes, a: list[ring.Limb]) -> Shares:
    c1 = codec.unpack(rehearsal.scheme, KIND, asked, "server")[1]
    bounds = refresh.guard(rehearsal.scheme, 3)
    widths = (bounds.guard_bits, bounds.others_bits, bounds.others_bits)
    made = (refresh.share(rehearsal.scheme, s.limbs, c1, a, w) for s, w in zip(rehearsal.secrets, widths, strict=True))
    return [(f"custodian-{i}", share) for i, share in enumerate(made)]


def digest_of(run: Rehearsal, ciphertext: Any) -> str:
    return codec.digest(codec.pack(run.scheme, codec.ciphertext(LIMBS), run.scheme.evaluator.limbs(ciphertext)))


def test_the_message_survives_with_all_limbs(
    rehearsal: Rehearsal, opened: Opened, ciphertext: Any, asked: bytes, a: list[ring.Limb], shares: Shares
) -> None:
    """What a refresh adds is one error of sigma 3.19 from each of three custodians,
    and nothing else: 2^-33 of a slot."""
    refreshed = refresh.combine(rehearsal.scheme, asked, a, shares)
    c0, c1 = rehearsal.scheme.evaluator.limbs(refreshed)
    assert len(c0) == LIMBS
    assert all(np.array_equal(x, y) for x, y in zip(c1, a, strict=True)), "the new c1 is the derived a"
    added = opened.coefficients(refreshed) - opened.coefficients(ciphertext)
    expected = SIGMA * 3**0.5
    assert 0.9 * expected < added.std() < 1.1 * expected  # 16384 samples: 0.6 % standard error
    assert np.abs(added).max() < 8 * expected
    slots = np.abs(opened.slots(refreshed) - opened.slots(ciphertext)).max()
    assert slots < 8 * expected * (rehearsal.scheme.n / 2) ** 0.5 / rehearsal.scheme.scale < 2**-31


def mapped(how: Map, slots: np.ndarray, n: int) -> np.ndarray:
    """The map's plaintext twin on slots: X -> X^k moves slot i + r to slot i for k = 5^r,
    and conjugates for k = 2N - 1."""
    powers = {pow(5, r, 2 * n): r for r in range(n // 2)}
    for k in how.automorphisms:
        slots = slots + (slots.conj() if k == 2 * n - 1 else np.roll(slots, -powers[k]))
    return slots / 2.0**how.shift


@pytest.mark.parametrize("item", ["train/3/logits/0/0/-", "train/3/weights/-/0/-", "train/3/residual/0/0/-"])
def test_the_message_passes_the_map_of_its_item(rehearsal: Rehearsal, opened: Opened, item: str) -> None:
    """Three feature lanes and complex slots. What is added: L of three roundings and of the input's noise;
    and a fresh error."""
    scheme, how = rehearsal.scheme, Layout(8192, 64, 8, 300, 8, 4, 4).refresh_map(item)
    rng = np.random.default_rng(3)
    slots = rng.uniform(-1, 1, scheme.slots) + 1j * rng.uniform(-1, 1, scheme.slots)
    ciphertext = rehearsal.encrypt(slots, REFRESH_LIMBS)
    made, sent = refresh.together(
        scheme, rehearsal.run_id, rehearsal.consortium.limbs, item, refresh.request(scheme, ciphertext), how
    )
    assert scheme.evaluator.count(made) == how.limbs
    assert set(sent.values()) == {codec.size(scheme, codec.refresh_share(REFRESH_LIMBS, how.limbs))}
    found, exact = opened.complex_slots(made), mapped(how, opened.complex_slots(ciphertext), scheme.n)
    # four roundings of variance 1/12, each in 2^(number of automorphisms) places that add up;
    # a fresh error of 3.19 sqrt(3)
    rounding = (4 / 12) ** 0.5 * 2 ** len(how.automorphisms) if how.shift else 0.0
    bound = 8 * (rounding + SIGMA * 3**0.5) * (scheme.n / 2) ** 0.5 / scheme.scale
    assert np.abs(found - exact).max() < bound < 2**-28
    if "logits" in item:
        assert np.abs(found.imag).max() < 8 * SIGMA * 3**0.5 * (scheme.n / 2) ** 0.5 / scheme.scale, (
            "logits are real but for e"
        )


def test_the_fresh_error_is_outside_the_map(rehearsal: Rehearsal) -> None:
    """h1 + s a - L(mask / 2^k) is an error of deviation 3.19 on every coefficient;
    L of one would be twice as large, and symmetric."""
    scheme, share, how = rehearsal.scheme, rehearsal.secrets[0], Map(4, 8, (2 * rehearsal.scheme.n - 1,))
    asked = refresh.request(scheme, rehearsal.encrypt(np.ones(scheme.slots), REFRESH_LIMBS))
    a = refresh.common_random(scheme, rehearsal.run_id, ITEM, codec.digest(asked), how.limbs)
    c1 = codec.unpack(scheme, KIND, asked, "")[1]
    h0, h1 = codec.unpack(scheme, refresh.kind(how), refresh.share(scheme, share.limbs, c1, a, 98, how), "")
    primes, q = scheme.moduli[:REFRESH_LIMBS], scheme.moduli[0]
    mask = [
        ring.subtract(ring.multiply(s, x, p), h, p) for s, x, h, p in zip(share.limbs, c1, h0, primes, strict=False)
    ]
    small = [(m + 128 >> 8) % q for m in composed(scheme, mask, primes)]
    lifted = how.linear(ring.ntt(np.array(small, np.uint64), q, scheme.roots[q]), q)
    left = ring.subtract(h1[0], lifted, q)
    left = ring.add(left, ring.multiply(share.limbs[0], a[0], q), q)
    error = ring.centred(ring.inverse_ntt(left, q, scheme.roots[q]), q)
    assert 2.9 < error.std() < 3.5
    assert abs(np.corrcoef(error[1:], -error[:0:-1])[0, 1]) < 0.06, (
        "conjugation takes X^i to -X^(N - i): L(e) would repeat itself"
    )


def test_messages_far_larger_than_one_survive(rehearsal: Rehearsal, opened: Opened) -> None:
    """16 logits and 16 weights reach some hundreds: requests may be 2^11 in a slot."""
    values = np.linspace(-1000, 1000, rehearsal.scheme.slots, dtype=np.float64)
    ct = rehearsal.encrypt(values, REFRESH_LIMBS)
    (refreshed,) = rehearsal.refresh([ITEM], [ct])
    assert np.abs(opened.slots(refreshed) - opened.slots(ct)).max() < 2**-31


def test_combining_is_deterministic_and_in_no_order(
    rehearsal: Rehearsal, asked: bytes, a: list[ring.Limb], shares: Shares
) -> None:
    digests = {
        digest_of(rehearsal, refresh.combine(rehearsal.scheme, asked, a, list(p)))
        for p in itertools.permutations(shares)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_without_one_share_nothing_of_the_message_is_left(
    rehearsal: Rehearsal,
    opened: Opened,
    asked: bytes,
    a: list[ring.Limb],
    shares: Shares,
    message: np.ndarray,
    missing: int,
) -> None:
    """The masks M_i do not cancel. Correlation of 8192 independent slots: 1 / sqrt(8192), six of them."""
    broken = refresh.combine(rehearsal.scheme, asked, a, [s for i, s in enumerate(shares) if i != missing])
    found = opened.slots(broken)
    assert abs(np.corrcoef(found, message)[0, 1]) < 6 / len(message) ** 0.5
    assert np.abs(found - message).min() < np.abs(found - message).max() and np.median(np.abs(found)) > 2**8


def test_the_same_share_given_twice_does_not_stand_in_for_another(
    rehearsal: Rehearsal, opened: Opened, asked: bytes, a: list[ring.Limb], shares: Shares, message: np.ndarray
) -> None:
    doubled = refresh.combine(rehearsal.scheme, asked, a, [shares[0], shares[0], shares[2]])
    assert np.median(np.abs(opened.slots(doubled) - message)) > 2**8


def test_a_share_hides_the_secret_product(rehearsal: Rehearsal, a: list[ring.Limb], asked: bytes) -> None:
    """Two shares of one custodian for one request differ on every coefficient:
    the mask is drawn anew (and the ledger gives only one)."""
    scheme = rehearsal.scheme
    c1 = codec.unpack(scheme, KIND, asked, "server")[1]
    made = (refresh.share(scheme, rehearsal.secrets[0].limbs, c1, a, 98) for _ in range(2))
    one, two = (codec.unpack(scheme, refresh.kind(refresh.IDENTITY), data, "")[0] for data in made)
    assert (one[0] != two[0]).mean() > 0.999


# --------------------------------------------------------------------- a


def test_a_depends_on_run_item_and_digest(rehearsal: Rehearsal) -> None:
    scheme = rehearsal.scheme
    base = (bytes(32), "item/1", "00" * 32)
    run, item, digest = base
    variants = [
        base,
        (bytes(31) + b"\1", item, digest),
        (run, "item/2", digest),
        (run, "item/", digest),
        (run, item, "00" * 31 + "01"),
    ]
    made = [refresh.common_random(scheme, *v)[0].tobytes() for v in variants]
    assert len(set(made)) == len(made)
    assert made[0] == refresh.common_random(scheme, *base)[0].tobytes()


def test_a_is_its_definition(rehearsal: Rehearsal) -> None:
    """SHAKE-256 of 'focal/refresh/v2', run id, item and digest, each after its length, every limb below its prime."""
    fields = (b"focal/refresh/v2", bytes(32), b"item/1", bytes(range(32)))
    seed = b"".join(struct.pack("<Q", len(field)) + field for field in fields)
    made = refresh.common_random(rehearsal.scheme, bytes(32), "item/1", bytes(range(32)).hex())
    assert len(made) == LIMBS
    for i, (limb, q) in enumerate(zip(made, rehearsal.scheme.moduli, strict=True)):
        raw = np.frombuffer(hashlib.shake_256(seed + i.to_bytes(4, "little")).digest(8 * 64), "<u8") & np.uint64(
            (1 << q.bit_length()) - 1
        )
        words = [int(w) for w in raw if int(w) < q][:16]
        assert limb[:16].tolist() == words
        assert int(limb.max()) < q


@pytest.mark.parametrize(("element", "limb", "at"), [(0, 0, 0), (0, 2, 16383), (1, 0, 0), (1, 2, 16383)])
def test_the_requester_moves_a_only_by_what_it_asks_for(
    rehearsal: Rehearsal, asked: bytes, element: int, limb: int, at: int
) -> None:
    """One more in any coefficient of c0 or c1 is another digest and another ``a``; the same limbs, sent again,
    are the same ``a``."""
    scheme = rehearsal.scheme
    limbs = [[x.copy() for x in p] for p in codec.unpack(scheme, KIND, asked, "server")]
    again = codec.digest(codec.pack(scheme, KIND, limbs))
    assert again == codec.digest(asked)
    limbs[element][limb][at] = (int(limbs[element][limb][at]) + 1) % scheme.moduli[limb]
    other = codec.digest(codec.pack(scheme, KIND, limbs))
    made = [refresh.common_random(scheme, rehearsal.run_id, ITEM, d)[0] for d in (codec.digest(asked), other)]
    assert (made[0] != made[1]).mean() > 0.999


# --------------------------------------------------------------------- refusals


@pytest.mark.parametrize("limbs", [1, 2, 4, LIMBS])
def test_another_limb_count_is_refused(rehearsal: Rehearsal, a: list[ring.Limb], limbs: int) -> None:
    ct = rehearsal.encrypt(np.zeros(rehearsal.scheme.slots), limbs)
    with pytest.raises(ValueError, match="exactly 3 limbs"):
        refresh.request(rehearsal.scheme, ct)
    with pytest.raises(ValueError, match="exactly 3 limbs"):
        refresh.share(rehearsal.scheme, rehearsal.secrets[0].limbs, rehearsal.scheme.evaluator.limbs(ct)[1], a, 98)


def test_an_unrescaled_ciphertext_is_refused(rehearsal: Rehearsal, ciphertext: Any) -> None:
    with pytest.raises(ValueError, match="scale degree 1"):
        refresh.request(rehearsal.scheme, rehearsal.scheme.evaluator.times(ciphertext, 0.5))


HALF = 128 + 16384 * (8 + 2 * 6)
"""Bytes of a share up to the end of h0: a header and three limbs."""


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d[:-1],
        lambda d: d[:64] + b"0" * 64 + d[128:],
        lambda d: d[: HALF - 1] + b"\xff" + d[HALF:],
        lambda d: d[:-1] + b"\xff",
        lambda d: b"",
    ],
    ids=["short", "of another run", "residue of h0", "residue of h1", "nothing"],
)
def test_a_malformed_share_names_its_custodian(
    rehearsal: Rehearsal, asked: bytes, a: list[ring.Limb], shares: Shares, spoil: Any
) -> None:
    """Whoever adds shares up, and the guard before it answers: h1, of which it needs nothing, as well as h0."""
    scheme, (name, data) = rehearsal.scheme, shares[1]
    bounds, own = refresh.guard(scheme, 3), rehearsal.secrets[0].limbs
    assert refresh.small_enough(scheme, bounds, own, asked, shares[1:])
    with pytest.raises(Refused, match="custodian-1"):
        refresh.combine(scheme, asked, a, [shares[0], (name, spoil(data)), shares[2]])
    with pytest.raises(Refused, match="custodian-1"):
        refresh.small_enough(scheme, bounds, own, asked, [(name, spoil(data)), shares[2]])


def test_a_malformed_request_is_refused(rehearsal: Rehearsal, asked: bytes, a: list[ring.Limb], shares: Shares) -> None:
    with pytest.raises(Refused, match="refresh request"):
        refresh.combine(rehearsal.scheme, asked[:-1], a, shares)
