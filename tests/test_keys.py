"""A key that nobody holds: contributions are what the formulas say, they add up, and one missing share decrypts nothing."""

from __future__ import annotations

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from conftest import Opened

from focal.ckks import keys, ring, wire
from focal.ckks.context import LIMBS, Scheme
from focal.config import CkksConfig
from focal.errors import Refused

RUN = hashlib.sha256(b"test_keys").digest()
ROTATIONS = [-7, 1]


class Ceremony:
    """Both rounds of three custodians, kept message by message. It looks like a Rehearsal to :class:`Opened`."""

    def __init__(self) -> None:
        self.scheme = Scheme(CkksConfig(), RUN.hex())
        self.secrets = [keys.SecretShare.draw(self.scheme, RUN) for _ in range(3)]
        with ThreadPoolExecutor(1) as pool:
            self.first = [dict(zip(self.names, s.first_round(ROTATIONS, pool), strict=True)) for s in self.secrets]
        kinds = dict(keys.first_round_kinds(ROTATIONS))
        self.sums = {name: self.added(kinds[name], [part[name] for part in self.first]) for name in self.names}
        self.second = [s.second_round(self.sums["switching"])[0] for s in self.secrets]
        multiplication = self.added(wire.SWITCHING_AB, self.second)
        keys.install(self.scheme, RUN, multiplication, ROTATIONS, lambda r: self.sums[f"rotation/{r}"])
        self.public = keys.joint_public_key(self.scheme, RUN, self.sums["public"])

    names = [name for name, _ in keys.first_round_kinds(ROTATIONS)]

    def added(self, kind: wire.Kind, parts: list[bytes]) -> bytes:
        return keys.add_up(self.scheme, kind, [(f"custodian-{i}", p) for i, p in enumerate(parts)])

    def encrypt(self, slots: np.ndarray) -> Any:
        return self.scheme.cc.Encrypt(self.public, self.scheme.encode(slots))


@pytest.fixture(scope="module")
def ceremony() -> Ceremony:
    return Ceremony()


def test_encrypt_multiply_rotate_and_decrypt_with_all_shares(ceremony: Ceremony) -> None:
    scheme, opened = ceremony.scheme, Opened(ceremony)  # type: ignore[arg-type]
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, scheme.slots))
    a, b = ceremony.encrypt(x), ceremony.encrypt(y)
    error = opened.fresh_error
    assert np.abs(opened.slots(a) - x).max() < error
    for r in ROTATIONS:
        assert np.abs(opened.slots(scheme.cc.EvalRotate(a, r)) - np.roll(x, -r)).max() < error + opened.switching_bias
    # both factors are at most 1 and bring their noise; the rescaling takes its prime for 2^45
    drift = max(abs(q / scheme.scale - 1) for q in scheme.moduli[1:])
    assert np.abs(opened.slots(scheme.cc.Rescale(scheme.cc.EvalMult(a, b))) - x * y).max() < 2 * error + drift


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_one_missing_share_decrypts_nothing(ceremony: Ceremony, missing: int) -> None:
    """c0 + c1 (s - s_i) is uniform modulo q_0: its values spread over all of 2^60, against a message of 2^45."""
    without = Opened(ceremony)  # type: ignore[arg-type]
    scheme = ceremony.scheme
    without.secret = ring.total([scheme.limbs(s.key)[0] for i, s in enumerate(ceremony.secrets) if i != missing], scheme.moduli)[0]
    x = np.random.default_rng(1).uniform(-1, 1, scheme.slots)
    ct = ceremony.encrypt(x)
    coefficients, found = without.coefficients(ct), without.slots(ct)
    # the standard deviation of a uniform value is q_0 / sqrt(12), estimated from 16384 within 3 %
    assert abs(coefficients.std() / (scheme.moduli[0] / 12**0.5) - 1) < 0.03
    assert abs(np.corrcoef(found, x)[0, 1]) < 6 / scheme.slots**0.5


def noise(scheme: Scheme, b: ring.Limb, a: ring.Limb, secret: ring.Limb, j: int) -> np.ndarray:
    """b + a s modulo q_j as signed coefficients: e, if b = e - a s."""
    q = scheme.moduli[j]
    return ring.centred(ring.inverse_ntt(ring.add(b, ring.multiply(a, secret, q), q), q, scheme.roots[q]), q)


def plain(scheme: Scheme, secret: list[ring.Limb]) -> np.ndarray:
    """Coefficients of a share."""
    q = scheme.moduli[0]
    return ring.centred(ring.inverse_ntt(secret[0], q, scheme.roots[q]), q)


@pytest.mark.parametrize("custodian", [0, 1])
def test_contributions_are_made_with_the_derived_randomness(ceremony: Ceremony, custodian: int) -> None:
    """b_i + a s_i is a small error for both custodians: the same ``a``, expanded by us, was used by each. sigma = 3.19; 8 of them.

    Of the switching key, digit 0 carries P g s_i on the limbs of its own digit (q_0, q_1) only, so q_5
    shows the bare error.
    """
    scheme, parts = ceremony.scheme, ceremony.first[custodian]
    secret = scheme.limbs(ceremony.secrets[custodian].key)[0]
    (a,) = keys.public_random(scheme, RUN, "public", 1, extended=False)
    (b,) = wire.unpack(scheme, wire.PUBLIC_B, parts["public"], "")
    for j in range(LIMBS):
        e = noise(scheme, b[j], a[j], secret[j], j)
        assert 2 < e.std() < 4.5 and np.abs(e).max() < 8 * 3.19
    a_digits, b_digits = keys.public_random(scheme, RUN, "switching", 3), wire.unpack(scheme, wire.SWITCHING_B, parts["switching"], "")
    assert np.abs(noise(scheme, b_digits[0][5], a_digits[0][5], secret[5], 5)).max() < 8 * 3.19
    q = scheme.moduli[0]
    (special,) = ring.centred(np.array([math.prod(scheme.extended[LIMBS:]) % q], np.uint64), q)
    own = noise(scheme, b_digits[0][0], a_digits[0][0], secret[0], 0) - special * plain(scheme, secret)
    assert np.abs(own).max() < 8 * 3.19, "on the digit's own limb stands P s_i beside the error"


def test_shares_are_ternary_and_differ(ceremony: Ceremony) -> None:
    scheme = ceremony.scheme
    drawn = [plain(scheme, scheme.limbs(s.key)[0]) for s in ceremony.secrets]
    for s in drawn:
        assert set(np.unique(s)) == {-1, 0, 1}
        assert np.abs(np.bincount(s + 1) / scheme.n - 1 / 3).max() < 6 * (2 / 9 / scheme.n) ** 0.5
    assert not np.array_equal(drawn[0], drawn[1])


def test_public_randomness_depends_on_run_label_and_index(ceremony: Ceremony) -> None:
    scheme, label = ceremony.scheme, "rotation/1"
    base = keys.public_random(scheme, RUN, label, 2)
    assert len(base[0]) == len(scheme.extended)
    others = [base[1], keys.public_random(scheme, RUN, "rotation/-7", 1)[0], keys.public_random(scheme, bytes(32), label, 1)[0]]
    assert not any(np.array_equal(base[0][0], other[0]) for other in others)
    again = keys.public_random(scheme, RUN, label, 2)
    assert all(np.array_equal(x, y) for p, q in zip(base, again, strict=True) for x, y in zip(p, q, strict=True))


@pytest.mark.parametrize("spoil", [lambda d: d[:-1], lambda d: b"X" + d[1:], lambda d: d[:-1] + b"\xff"])
def test_a_malformed_contribution_is_refused_by_name(ceremony: Ceremony, spoil: Any) -> None:
    parts = [("north", ceremony.first[0]["public"]), ("south", spoil(ceremony.first[1]["public"]))]
    with pytest.raises(Refused, match="south"):
        keys.add_up(ceremony.scheme, wire.PUBLIC_B, parts)


def test_sums_do_not_depend_on_the_order(ceremony: Ceremony) -> None:
    parts = [part["switching"] for part in ceremony.first]
    assert ceremony.added(wire.SWITCHING_B, parts[::-1]) == ceremony.sums["switching"]


def test_a_share_survives_its_file(ceremony: Ceremony) -> None:
    scheme, share = ceremony.scheme, ceremony.secrets[0]
    loaded = keys.SecretShare.load(scheme, RUN, share.dump())
    assert loaded.public_b == share.public_b
    assert all(np.array_equal(x, y) for x, y in zip(scheme.limbs(share.key)[0], scheme.limbs(loaded.key)[0], strict=True))
    other = keys.SecretShare.draw(scheme, RUN)
    assert other.public_b != share.public_b, "a second draw must be another secret"


def test_sizes_are_announced_rightly(ceremony: Ceremony) -> None:
    sent = sum(len(b) for b in ceremony.first[0].values()) + len(ceremony.second[0])
    assert keys.contribution_bytes(ceremony.scheme, len(ROTATIONS)) == sent


def test_a_second_scheme_leaves_the_first_ones_keys_alone(ceremony: Ceremony) -> None:
    Scheme(CkksConfig(), "ff" * 32)
    assert ceremony.scheme.cc.EvalRotate(ceremony.encrypt(np.zeros(ceremony.scheme.slots)), 1) is not None
