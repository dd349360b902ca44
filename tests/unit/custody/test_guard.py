"""The guard's bounds, and its question: exact at the edge, never refused in an honest run,
always where a request would show a secret. A thousand honest ones: test_guard_often.py."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from consortium import cli, said
from manifests import MEMBERS, manifest
from recover import composed

from focal.ckks import codec, ring, sampling
from focal.ckks.scheme import LIMBS, REFRESH_LIMBS, Scheme
from focal.config import CkksConfig
from focal.custody import refresh
from focal.custody.ledger import Ledger
from focal.errors import ConfigError, FocalError, Refused
from focal.heads.joint.layout import InteractiveLayout
from focal.heads.linear.rehearsal import Rehearsal
from focal.manifest import Member

KIND = codec.ciphertext(REFRESH_LIMBS)
JOINT = InteractiveLayout(8192, 64, 8).refresh_map("train/0/weights/-/merged/-")
MAPS = pytest.mark.parametrize("how", [refresh.IDENTITY, JOINT], ids=["blind", "joint-head"])


@pytest.fixture(scope="module")
def scheme(rehearsal: Rehearsal) -> Scheme:
    return rehearsal.scheme


def asked(scheme: Scheme, c0: list[int] | np.ndarray, count: int = REFRESH_LIMBS) -> bytes:
    """A request (c0, 0): the guard then sees c0 and the others' h0 alone."""
    limbs = [ring.ntt(np.array([int(v) % q for v in c0], np.uint64), q, scheme.roots[q]) for q in scheme.moduli[:count]]
    return codec.pack(scheme, codec.ciphertext(count), [limbs, scheme.zero(count)])


# --------------------------------------------------------------------- bounds


@pytest.mark.parametrize("custodians", [2, 3, 8])
@pytest.mark.parametrize(
    ("how", "widths"), [(refresh.IDENTITY, (97, 60, 148)), (JOINT, (145, 108, 193))], ids=["blind", "joint-head"]
)
def test_bounds_hold_what_the_conditions_ask(
    scheme: Scheme, custodians: int, how: refresh.Map, widths: tuple[int, int, int]
) -> None:
    """findings: 2^-30 an item for the guard, 2^-40 a coefficient for the others, T < q / 8N,
    and no sum of masks wraps."""
    b = refresh.guard(scheme, custodians, how)
    b.check()
    assert b.leak <= -30 and b.hiding <= -40
    assert 8 * scheme.n * b.limit < b.q
    assert 2 ** (b.guard_bits - 1) + (custodians - 1) * 2 ** (b.others_bits - 1) + b.phase < b.q // 2
    assert custodians * 2 ** (b.alone_bits - 1) + b.phase < b.q // 2
    assert (custodians - 1) * 2 ** (b.others_bits - 1) + b.phase <= b.limit, "an honest request can never be refused"
    # by hand, for the default parameters: N T / 2^148, N T / 2^193
    others, slack, own = widths
    assert b.leak == pytest.approx(14 + math.log2((custodians - 1) * 2.0**others + 2.0**slack) - own)
    facts = b.facts(100)
    assert facts["leak_bits"] == pytest.approx(b.leak + math.log2(100)) and facts["answers_bits"] == pytest.approx(
        math.log2(101)
    )


@pytest.mark.parametrize(
    ("how", "custodians", "widths", "limit", "leak", "alone"),
    [
        (refresh.IDENTITY, 3, (56, 98, 148), 98.0, -36.0, 146),
        (refresh.IDENTITY, 8, (56, 98, 148), 99.8, -34.2, 145),
        (JOINT, 3, (104, 146, 193), 146.0, -33.0, 191),
        (JOINT, 8, (104, 146, 193), 147.8, -31.2, 190),
    ],
)
def test_the_bounds_are_those_of_the_page(
    scheme: Scheme,
    how: refresh.Map,
    custodians: int,
    widths: tuple[int, int, int],
    limit: float,
    leak: float,
    alone: int,
) -> None:
    """The table of SECURITY.md, "The guard", and the widths without one."""
    b = refresh.guard(scheme, custodians, how)
    assert (math.log2(b.phase), b.others_bits, b.guard_bits) == widths and b.alone_bits == alone
    assert math.log2(b.limit) == pytest.approx(limit, abs=0.05) and b.leak == pytest.approx(leak, abs=0.05)
    assert math.log2(b.q / (8 * b.n)) == pytest.approx({3: 133, 4: 178}[how.request], abs=0.01)
    assert b.hiding == -42 and b.hiding + math.log2(b.n) == -28


def test_moduli_that_are_too_small_for_both_bounds_are_refused() -> None:
    small = Scheme(CkksConfig(scale_bits=40, first_bits=55), "ab" * 32)
    with pytest.raises(
        FocalError, match=r"the guard's answers would leak 2\^-26.0 an item(?s:.*)first_bits 60 and scale_bits 45"
    ):
        refresh.guard(small, 3).check()


# --------------------------------------------------------------------- the question


@pytest.mark.parametrize("where", [0, 5000, 16383])
@MAPS
def test_it_is_exact_at_the_edge(scheme: Scheme, where: int, how: refresh.Map) -> None:
    """|w| < T to the last unit, in a single coefficient among zeros."""
    b = refresh.guard(scheme, 3, how)
    for value, passes in (
        (0, True),
        (b.limit - 1, True),
        (1 - b.limit, True),
        (b.limit, False),
        (-b.limit, False),
        (b.q // 2, False),
    ):
        c0 = np.zeros(scheme.n, dtype=object)
        c0[where] = value
        assert refresh.small_enough(scheme, b, scheme.zero(LIMBS), asked(scheme, c0, how.request), []) is passes, value


def test_others_shares_and_the_own_secret_are_in_it(rehearsal: Rehearsal) -> None:
    """An honest request passes with everybody's shares and the own secret, and with nothing less."""
    scheme, b = rehearsal.scheme, refresh.guard(rehearsal.scheme, 3)
    request = refresh.request(scheme, rehearsal.encrypt(np.linspace(-1000, 1000, scheme.slots), REFRESH_LIMBS))
    c1 = codec.unpack(scheme, KIND, request, "")[1]
    a = refresh.common_random(scheme, rehearsal.run_id, "item", codec.digest(request))
    first, *rest = rehearsal.secrets
    others = [(str(i), refresh.share(scheme, s.limbs, c1, a, b.others_bits)) for i, s in enumerate(rest)]
    assert refresh.small_enough(scheme, b, first.limbs, request, others)
    assert not refresh.small_enough(scheme, b, first.limbs, request, others[:1])
    assert not refresh.small_enough(scheme, b, rest[0].limbs, request, others)
    wide = [others[0], ("1", refresh.share(scheme, rest[1].limbs, c1, a, b.others_bits + 6))]
    assert not refresh.small_enough(scheme, b, first.limbs, request, wide), "a mask that is wider than was agreed"


@pytest.mark.parametrize(
    ("how", "bits"), [(refresh.IDENTITY, 110), (refresh.IDENTITY, 135), (JOINT, 160), (JOINT, 180)]
)
def test_what_would_show_the_secret_is_refused(rehearsal: Rehearsal, how: refresh.Map, bits: int) -> None:
    """c1 constant, by itself and on top of an honest ciphertext."""
    scheme, b = rehearsal.scheme, refresh.guard(rehearsal.scheme, 3, how)
    kind, encrypted = codec.ciphertext(how.request), rehearsal.encrypt(np.ones(scheme.slots), how.request)
    honest = codec.unpack(scheme, kind, refresh.request(scheme, encrypted, how), "")
    constant = [np.full(scheme.n, (1 << bits) % q, np.uint64) for q in b.moduli]
    for c0, c1, small in (
        (scheme.zero(how.request), constant, False),
        (honest[0], [ring.add(x, y, q) for x, y, q in zip(honest[1], constant, scheme.moduli, strict=False)], False),
        (*honest, True),
    ):
        request = codec.pack(scheme, kind, [c0, c1])
        a = refresh.common_random(scheme, rehearsal.run_id, "item", codec.digest(request), how.limbs)
        first, *rest = rehearsal.secrets
        others = [(str(i), refresh.share(scheme, s.limbs, c1, a, b.others_bits, how)) for i, s in enumerate(rest)]
        assert refresh.small_enough(scheme, b, first.limbs, request, others, how) is small


# --------------------------------------------------------------------- what is drawn


def test_masks_are_uniform_over_their_bits(scheme: Scheme) -> None:
    """Of 16384 draws over 2^148 the top word is uniform (chi-square over 16 cells: below 60 but for 10^-6),
    and residues are theirs."""
    words = sampling.uniform(scheme.n, 148)
    value = sum(w.astype(object) << 56 * i for i, w in enumerate(words))
    assert all(0 <= v < 1 << 148 for v in value)
    cells = np.bincount([int(v >> 144) for v in value], minlength=16)
    assert ((cells - scheme.n / 16) ** 2 / (scheme.n / 16)).sum() < 60
    for q in scheme.moduli[:2]:
        assert sampling.residues(words, -(1 << 147), q).tolist() == [(int(v) - (1 << 147)) % q for v in value]


def test_errors_are_gaussians_of_the_standards_deviation() -> None:
    e = sampling.errors(1 << 18)
    assert abs(e.std() / 3.19 - 1) < 0.01 and abs(e.mean()) < 0.04 and np.abs(e).max() < 8 * 3.19
    expected = math.erf(3.5 / 3.19 / 2**0.5)  # at most 3 in magnitude
    assert abs((np.abs(e) <= 3).mean() - expected) < 0.01


def test_a_share_is_what_the_formula_says(rehearsal: Rehearsal) -> None:
    """h0 + h1 = s (c1 - a) + e: the mask cancels, the error has deviation 3.19;
    and s c1 - h0 is as wide as the mask."""
    scheme, share = rehearsal.scheme, rehearsal.secrets[1]
    request = refresh.request(scheme, rehearsal.encrypt(np.ones(scheme.slots), REFRESH_LIMBS))
    c1 = codec.unpack(scheme, KIND, request, "")[1]
    a = refresh.common_random(scheme, rehearsal.run_id, "item", codec.digest(request))
    made = refresh.share(scheme, share.limbs, c1, a, 98)
    h0, h1 = codec.unpack(scheme, refresh.kind(refresh.IDENTITY), made, "")
    q, s = scheme.moduli[2], share.limbs[2]
    left = ring.subtract(ring.add(h0[2], h1[2], q), ring.multiply(s, ring.subtract(c1[2], a[2], q), q), q)
    error = ring.centred(ring.inverse_ntt(left, q, scheme.roots[q]), q)
    assert 2.9 < error.std() < 3.5
    primes = scheme.moduli[:REFRESH_LIMBS]
    mask = [
        ring.subtract(ring.multiply(x, y, p), h, p) for x, y, h, p in zip(share.limbs, c1, h0, primes, strict=False)
    ]
    values = np.abs(composed(scheme, mask, primes))
    assert 2.0**96.9 < max(values) <= 2**97


# --------------------------------------------------------------------- who guards


def with_custodians(*policies: tuple[str, bool]) -> object:
    keep = [m for m in MEMBERS if m.role != "custodian"]
    made = [m for m in MEMBERS if m.role == "custodian"]
    return manifest(
        members=(
            *keep,
            *(Member(**{**m.model_dump(), "verify": v, "guard": g}) for m, (v, g) in zip(made, policies, strict=True)),
        )
    )


def test_one_guard_and_no_more() -> None:
    with_custodians(("lockstep", True), ("lockstep", False)).check_complete()  # type: ignore[attr-defined]
    with_custodians(("off", False), ("off", False)).check_complete()  # type: ignore[attr-defined]
    with pytest.raises(
        ConfigError, match="first-custodian and second-custodian are both marked as guard; a run has one"
    ):
        with_custodians(("lockstep", True), ("lockstep", True)).check_complete()  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="second-custodian verifies, but no custodian is the guard"):
        with_custodians(("off", False), ("lockstep", False)).check_complete()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="a guard is a custodian with verify: lockstep"):
        with_custodians(("off", True), ("lockstep", False))


def test_the_ledger_pins_what_is_weighed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.pin("refresh/0/residual", "aa")
    ledger.pin("refresh/0/residual", "aa")
    ledger.close()
    again = Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(Refused, match="second-answers"):
        again.pin("refresh/0/residual", "bb")
    again.pin("refresh/0/weights", "bb")
    assert again.count == 0, "a pin is no share: peers are not asked about it"


def test_manifest_check_prints_the_bounds_and_add_chooses_the_guard(tmp_path: Path) -> None:
    from consortium import Consortium

    with Consortium("guarded", consortium={"custodians": 3}) as c:
        text = said(cli("manifest", "check", c.run.manifest_file))
    assert "custodian-1 verify: lockstep, guard" in text
    assert (
        "custodian-1 answers every refresh last: the others' masks (2^98) hide a request to 2^-42 a coefficient" in text
    )
    assert "accepted below T = 2^98.0; its own mask (2^148) hides what passed to 2^-36.0 an item" in text
