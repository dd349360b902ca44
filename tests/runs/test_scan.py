"""No small combination of what a run publishes: blind, interactive, encrypted baselines.
And the scan finds what it is there to find."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from consortium import finished
from scan import OWNERS, Published, captured, counted, read_run, scan, under_one_mask, unmasked

from focal.ckks import codec, ring, sampling
from focal.ckks.scheme import DIGITS, Scheme
from focal.config import CkksConfig
from focal.custody import inputs, keys, refresh
from focal.custody.refresh import Map

RUN = b"scan" * 8
ROTATIONS = [1, -4]


@pytest.fixture(scope="module")
def one() -> tuple[keys.SecretShare, Published]:
    """One custodian's contributions to a key ceremony."""
    scheme = Scheme(CkksConfig(), RUN.hex())
    share, out = keys.SecretShare.draw(scheme, RUN), Published(scheme, ROTATIONS)
    out.add_keys(RUN)
    with ThreadPoolExecutor(2) as pool:
        for (name, kind), data in zip(
            keys.first_round_kinds(ROTATIONS), share.first_round(ROTATIONS, pool), strict=True
        ):
            out.add("honest", name, kind, data)
    h0, h1 = (polynomials(scheme, out, f"relinearisation/{half}") for half in ("h0", "h1"))
    (data,) = share.second_round(h0, h1)
    out.add("honest", "relinearisation/b", codec.SWITCHING_B, data)
    return share, out


def polynomials(scheme: Scheme, published: Published, name: str) -> bytes:
    found = [limbs for n, limbs in published.families["honest"] if n.startswith(name)]
    return codec.pack(scheme, codec.SWITCHING_B, found)


def with_planted(published: Published, *planted: tuple[str, list[ring.Limb]]) -> Published:
    own = [*published.families["honest"], *planted]
    return Published(published.scheme, published.rotations, {"custodian": own}, published.public)


def small(scheme: Scheme) -> list[ring.Limb]:
    e = sampling.errors(scheme.n)
    return [ring.ntt((e % q).astype(np.uint64), q, scheme.roots[q]) for q in scheme.extended]


def test_a_ceremony_has_none(one: tuple[keys.SecretShare, Published]) -> None:
    assert scan(one[1], products=True, primes=[one[1].scheme.extended[i] for i in (0, 5, 7)]) == []


def test_the_old_relinearisation_key_is_found(one: tuple[keys.SecretShare, Published]) -> None:
    """P g s - a s + e in round 1 and a s + e' in round 2, as every version before 2 published them."""
    share, published = one
    old = codec.unpack(
        published.scheme, codec.SWITCHING_B, share._switching("relinearisation", share.limbs, share.limbs), ""
    )
    found = scan(with_planted(published, *((f"old b[{i}]", old[i]) for i in range(DIGITS))))
    assert any("old b[0]" in text and "relinearisation/h1[0]" in text for text in found)
    assert all("old b" in text for text in found)


@pytest.mark.parametrize("what", ["itself", "difference", "sum of three", "automorphism", "product"])
def test_what_is_planted_is_found(one: tuple[keys.SecretShare, Published], what: str) -> None:
    _, published = one
    scheme, primes = published.scheme, published.scheme.extended
    x, y, e = published.families["honest"][3][1], published.families["honest"][7][1], small(published.scheme)
    add = lambda *parts: ring.total(parts, primes)  # noqa: E731
    if what == "itself":
        planted = e
    elif what == "difference":
        planted = add(x, e)
    elif what == "sum of three":
        planted = add(x, y, e)
    elif what == "automorphism":
        k, n = pow(5, 1, 2 * scheme.n), scheme.n
        places = np.arange(n) * k % (2 * n)
        planted = []
        for limb, q, noise in zip(x, primes, e, strict=True):
            c, out = ring.inverse_ntt(limb, q, scheme.roots[q]), np.empty(n, np.uint64)
            out[places % n] = np.where(places < n, c, (np.uint64(q) - c) % np.uint64(q))
            planted.append(ring.add(ring.ntt(out, q, scheme.roots[q]), noise, q))
    else:
        a = published.public["a/rotation/1[0]"]
        planted = [ring.add(ring.multiply(u, v, q), w, q) for u, v, w, q in zip(x, a, e, primes, strict=True)]
    found = scan(with_planted(published, ("planted", planted)), products=what == "product", primes=[primes[5]])
    assert found and all("planted" in text for text in found)


def test_a_blind_run_has_none() -> None:
    """``focal train`` over the real wire: keys, masked rows, contributions (also without the masks),
    refreshes and releases."""
    published = read_run(finished().folder, finished().mask_keys)
    print(counted(published))
    for name in ("custodian-1", "custodian-2"):
        seen = [OWNERS in what for what, _ in published.families[name] if what.startswith("input/")]
        assert 2 * sum(seen) == len(seen) > 10
    assert {"custodian-1", "custodian-2", "hospital-a", "hospital-b", "hospital-c"} == set(published.families)
    assert scan(published) == [] and len(published.rows) > 8 and under_one_mask(published) == []
    assert {"logits", "weights"} == {item.split("/")[2] for item in published.maps} and unmasked(published) == []


@pytest.mark.parametrize("twice", [True, False])
def test_an_a_that_meets_two_contributions_is_found(one: tuple[keys.SecretShare, Published], twice: bool) -> None:
    """By the owners of both, whose masks are others each time."""
    share, published = one
    scheme, out, label = published.scheme, Published(published.scheme, ROTATIONS), "00" * 32
    for item in ("first", "second"):
        a = inputs.public_random(scheme, RUN, label, "same" if twice else item, 6)
        masks = [inputs.mask(bytes([i]) * 32, label, item, scheme.n) for i in range(2)]
        out.add_input("custodian", item, a, inputs.contribution(scheme, share.limbs, a, masks), masks)
    found = scan(out, primes=[scheme.moduli[i] for i in (0, 5)])
    ours = [text for text in found if "public" not in text]
    assert bool(ours) == bool(found) == twice and all(text.count(OWNERS) == 2 for text in ours)


@pytest.mark.parametrize("again", [True, False])
def test_a_mask_that_hides_two_messages_is_found(again: bool) -> None:
    scheme, out = Scheme(CkksConfig(), RUN.hex()), Published(Scheme(CkksConfig(), RUN.hex()), ROTATIONS)
    for i in range(2):
        mask = inputs.mask(bytes(32), "00" * 32, "same" if again else str(i), scheme.n)
        message = inputs.message(scheme, np.full(scheme.slots, 0.5 + i))
        out.add_rows("institution", str(i), inputs.masked(scheme, message, [mask]), 6)
    assert len(under_one_mask(out)) == again


FOLD = tuple(pow(5, 512 << x, 2 * 16384) for x in range(4))


@pytest.mark.parametrize(
    "how",
    [
        Map(6, 8, (2 * 16384 - 1,)),
        Map(4, 0, tuple(pow(5, 128 << x, 2 * 16384) for x in range(6))),
        Map(6, 38, FOLD, 4, 59),
    ],
    ids=["logits", "weights", "joint-head"],
)
def test_a_refresh_whose_a_is_missing_is_found(one: tuple[keys.SecretShare, Published], how: Map) -> None:
    """The mask cancels in L(h0) + 2^k h1. With an ``a`` of zero, and a c1 that does not matter,
    what is left is errors and roundings."""
    share, published = one
    scheme = published.scheme
    for a, found in ((scheme.zero(how.limbs), True), (ring.expand(b"a", scheme.moduli[: how.limbs], scheme.n), False)):
        out = Published(scheme, ROTATIONS)
        out.add_answer(
            "custodian", "train/0/x/-/-", refresh.share(scheme, share.limbs, scheme.zero(how.request), a, 98, how), how
        )
        assert bool(unmasked(out)) == found


def test_sums_of_fedavg_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from focal.baselines.encrypted import EncryptedSum

    made: list[EncryptedSum] = []

    def run() -> None:
        names = ("a", "b", "c")
        made.append(EncryptedSum(names))
        for i in range(4):
            made[0].add(f"round {i}", {n: np.full((4, 3), 0.1 * i) for n in names})

    published = captured(monkeypatch, lambda: (made[0].scheme, [], made[0].run_id), run)
    assert len(published.families) == 3 and scan(published, products=True) == []
