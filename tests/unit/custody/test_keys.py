"""A key that nobody holds: contributions are what the formulas say, they add up,
and one missing share decrypts nothing."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from opened import Opened
from patience import PATIENCE

from focal.ckks import codec, ring
from focal.ckks.scheme import LIMBS, Scheme
from focal.config import CkksConfig
from focal.custody import keys
from focal.errors import Refused

RUN = hashlib.sha256(b"test_keys").digest()
CONJUGATION = 2 * 16384 - 1
ROTATIONS = [-7, 1, CONJUGATION]


class Ceremony:
    """Both rounds of three custodians, kept message by message. It looks like a Rehearsal to :class:`Opened`."""

    def __init__(self) -> None:
        self.scheme = Scheme(CkksConfig(), RUN.hex())
        self.secrets = [keys.SecretShare.draw(self.scheme, RUN) for _ in range(3)]
        with ThreadPoolExecutor(1) as pool:
            self.first = [dict(zip(self.names, s.first_round(ROTATIONS, pool), strict=True)) for s in self.secrets]
        kinds = dict(keys.first_round_kinds(ROTATIONS))
        self.sums = {name: self.added(kinds[name], [part[name] for part in self.first]) for name in self.names}
        self.second = [
            s.second_round(self.sums["relinearisation/h0"], self.sums["relinearisation/h1"])[0] for s in self.secrets
        ]
        b = self.added(codec.SWITCHING_B, self.second)
        self.joint = {"relinearisation/h1": self.sums["relinearisation/h1"], "relinearisation/b": b}
        self.joint |= {f"rotation/{r}": self.sums[f"rotation/{r}"] for r in ROTATIONS}
        blobs = {codec.digest(data): data for data in self.joint.values()}
        self.install(self.scheme, blobs.__getitem__)
        parts = [(f"custodian-{i}", share.public()) for i, share in enumerate(self.secrets)]
        self.publics = [data for _, data in parts]
        self.public = keys.joint_public_key(self.scheme, RUN, keys.add_up(self.scheme, codec.PUBLIC_B, parts))

    def install(self, scheme: Scheme, fetch: Any, **others: bytes) -> None:
        """Install the joint keys, or ``others`` in the place of some."""
        digests = {name: codec.digest(data) for name, data in {**self.joint, **others}.items()}
        rotations = {r: digests[f"rotation/{r}"] for r in ROTATIONS}
        keys.install(scheme, RUN, digests["relinearisation/h1"], digests["relinearisation/b"], rotations, fetch)

    names = [name for name, _ in keys.first_round_kinds(ROTATIONS)]

    def added(self, kind: codec.Kind, parts: list[bytes]) -> bytes:
        return keys.add_up(self.scheme, kind, [(f"custodian-{i}", p) for i, p in enumerate(parts)])

    def encrypt(self, slots: np.ndarray) -> Any:
        return self.scheme.evaluator.load(codec.fresh(self.scheme, self.public, slots, LIMBS))


@pytest.fixture(scope="module")
def ceremony() -> Ceremony:
    return Ceremony()


def test_encrypt_multiply_rotate_and_decrypt_with_all_shares(ceremony: Ceremony) -> None:
    scheme, opened = ceremony.scheme, Opened(ceremony)  # type: ignore[arg-type]
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, scheme.slots))
    a, b = ceremony.encrypt(x), ceremony.encrypt(y)
    error = opened.public_error
    assert np.abs(opened.slots(a) - x).max() < error
    for r in (-7, 1):
        assert (
            np.abs(opened.slots(scheme.evaluator.rotate(a, r)) - np.roll(x, -r)).max() < error + opened.switching_bias
        )
    # both factors are at most 1 and bring their noise; the rescaling takes its prime for 2^45
    drift = max(abs(q / scheme.scale - 1) for q in scheme.moduli[1:])
    assert (
        np.abs(opened.slots(scheme.evaluator.rescale(scheme.evaluator.multiply(a, b))) - x * y).max()
        < 2 * error + drift
    )


def test_the_key_of_the_conjugation_conjugates(ceremony: Ceremony) -> None:
    """Each part of a slot errs by the noise of the fresh ciphertext and one key switch at most."""
    scheme, opened = ceremony.scheme, Opened(ceremony)  # type: ignore[arg-type]
    assert scheme.conjugation == CONJUGATION
    x, y = np.random.default_rng(8).uniform(-1, 1, (2, scheme.slots))
    conjugate = scheme.evaluator.rotate(ceremony.encrypt(x + 1j * y), CONJUGATION)
    found = ring.embed(opened.coefficients(conjugate) / scheme.scale)
    assert max(np.abs(found.real - x).max(), np.abs(found.imag + y).max()) < opened.public_error + opened.switching_bias


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_one_missing_share_decrypts_nothing(ceremony: Ceremony, missing: int) -> None:
    """c0 + c1 (s - s_i) is uniform modulo q_0: its values spread over all of 2^60, against a message of 2^45."""
    without = Opened(ceremony)  # type: ignore[arg-type]
    scheme = ceremony.scheme
    without.whole = ring.total([s.limbs for i, s in enumerate(ceremony.secrets) if i != missing], scheme.extended)
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
    """b_i + a s_i is a small error for both custodians: the same ``a``, expanded by us, was used by each.
    sigma = 3.19; 8 of them.

    Of the relinearisation key's h0, digit 0 carries P g s_i on the limbs of its own digit (q_0, q_1) only,
    so q_5 shows the bare error, and under u_i, not under s_i. h1 = a s_i + e has the same ``a``.
    """
    scheme, parts = ceremony.scheme, ceremony.first[custodian]
    secret, u = ceremony.secrets[custodian].limbs, ceremony.secrets[custodian].ephemeral
    assert u is not None and set(np.unique(u)) == {-1, 0, 1} and (u != ceremony.secrets[custodian].secret).any()
    u = [ring.ntt((u % q).astype(np.uint64), q, scheme.roots[q]) for q in scheme.extended]
    (a,) = keys.public_random(scheme, RUN, "public", 1, extended=False)
    (b,) = codec.unpack(scheme, codec.PUBLIC_B, ceremony.publics[custodian], "")
    for j in range(LIMBS):
        e = noise(scheme, b[j], a[j], secret[j], j)
        assert 2 < e.std() < 4.5 and np.abs(e).max() < 8 * 3.19
    a_digits = keys.public_random(scheme, RUN, "relinearisation", 3)
    h0, h1 = (codec.unpack(scheme, codec.SWITCHING_B, parts[f"relinearisation/{half}"], "") for half in ("h0", "h1"))
    assert np.abs(noise(scheme, h0[0][5], a_digits[0][5], u[5], 5)).max() < 8 * 3.19
    minus = [ring.subtract(np.zeros_like(x), x, q) for x, q in zip(secret, scheme.extended, strict=True)]
    assert np.abs(noise(scheme, h1[0][5], a_digits[0][5], minus[5], 5)).max() < 8 * 3.19
    q = scheme.moduli[0]
    (special,) = ring.centred(np.array([math.prod(scheme.extended[LIMBS:]) % q], np.uint64), q)
    own = noise(scheme, h0[0][0], a_digits[0][0], u[0], 0) - special * plain(scheme, secret)
    assert np.abs(own).max() < 8 * 3.19, "on the digit's own limb stands P s_i beside the error"


def test_the_relinearisation_key_is_one_of_the_joint_secret(ceremony: Ceremony) -> None:
    """b + h1 s = P g s^2 + s e + u e' + e'': outside the digit's own limbs the noise alone,
    and no larger than three secrets make it."""
    scheme, joint = ceremony.scheme, ring.total([s.limbs for s in ceremony.secrets], ceremony.scheme.extended)
    b = codec.unpack(scheme, codec.SWITCHING_B, ceremony.added(codec.SWITCHING_B, ceremony.second), "")
    h1 = codec.unpack(scheme, codec.SWITCHING_B, ceremony.sums["relinearisation/h1"], "")
    left = noise(scheme, b[0][5], h1[0][5], joint[5], 5)
    expected = 3.19 * math.sqrt(2 * 3 * 3 * scheme.n * 2 / 3)  # two products of sums of three
    assert 0.8 * expected < left.std() < 1.2 * expected


def test_nothing_is_made_with_an_erased_ephemeral_secret(ceremony: Ceremony) -> None:
    share = keys.SecretShare.load(ceremony.scheme, RUN, ceremony.secrets[0].dump())
    with pytest.raises(ValueError, match="erased"):
        share.second_round(ceremony.sums["relinearisation/h0"], ceremony.sums["relinearisation/h1"])
    again = keys.SecretShare.load(
        ceremony.scheme, RUN, ceremony.secrets[0].dump(), ceremony.secrets[0].dump_ephemeral()
    )
    assert again.ephemeral is not None and np.array_equal(again.ephemeral, ceremony.secrets[0].ephemeral)


def test_shares_are_ternary_and_differ(ceremony: Ceremony) -> None:
    scheme = ceremony.scheme
    drawn = [plain(scheme, s.limbs) for s in ceremony.secrets]
    for s in drawn:
        assert set(np.unique(s)) == {-1, 0, 1}
        assert np.abs(np.bincount(s + 1) / scheme.n - 1 / 3).max() < 6 * (2 / 9 / scheme.n) ** 0.5
    assert not np.array_equal(drawn[0], drawn[1])


def test_public_randomness_depends_on_run_label_and_index(ceremony: Ceremony) -> None:
    scheme, label = ceremony.scheme, "rotation/1"
    base = keys.public_random(scheme, RUN, label, 2)
    assert len(base[0]) == len(scheme.extended)
    others = [
        base[1],
        keys.public_random(scheme, RUN, "rotation/-7", 1)[0],
        keys.public_random(scheme, bytes(32), label, 1)[0],
    ]
    assert not any(np.array_equal(base[0][0], other[0]) for other in others)
    again = keys.public_random(scheme, RUN, label, 2)
    assert all(np.array_equal(x, y) for p, q in zip(base, again, strict=True) for x, y in zip(p, q, strict=True))


@pytest.mark.parametrize("spoil", [lambda d: d[:-1], lambda d: b"X" + d[1:], lambda d: d[:-1] + b"\xff"])
def test_a_malformed_contribution_is_refused_by_name(ceremony: Ceremony, spoil: Any) -> None:
    parts = [("north", ceremony.publics[0]), ("south", spoil(ceremony.publics[1]))]
    with pytest.raises(Refused, match="south"):
        keys.add_up(ceremony.scheme, codec.PUBLIC_B, parts)


def test_sums_do_not_depend_on_the_order(ceremony: Ceremony) -> None:
    parts = [part["relinearisation/h0"] for part in ceremony.first]
    assert ceremony.added(codec.SWITCHING_B, parts[::-1]) == ceremony.sums["relinearisation/h0"]


def test_a_share_survives_its_file(ceremony: Ceremony) -> None:
    scheme, share = ceremony.scheme, ceremony.secrets[0]
    loaded = keys.SecretShare.load(scheme, RUN, share.dump())
    assert len(share.dump()) == scheme.n
    assert all(np.array_equal(x, y) for x, y in zip(share.limbs, loaded.limbs, strict=True))
    other = keys.SecretShare.draw(scheme, RUN)
    assert (other.secret != share.secret).mean() > 0.6, "a second draw must be another secret"
    for spoilt in (b"", share.dump()[:-1], b"\2" + share.dump()[1:]):
        with pytest.raises(ValueError, match="ternary"):
            keys.SecretShare.load(scheme, RUN, spoilt)


def test_sizes_are_announced_rightly(ceremony: Ceremony) -> None:
    sent = sum(len(b) for b in ceremony.first[0].values()) + len(ceremony.second[0])
    assert keys.contribution_bytes(ceremony.scheme, len(ROTATIONS)) == sent


def test_a_second_scheme_leaves_the_first_ones_keys_alone(ceremony: Ceremony) -> None:
    Scheme(CkksConfig(), "ff" * 32)
    assert ceremony.scheme.evaluator.rotate(ceremony.encrypt(np.zeros(ceremony.scheme.slots)), 1) is not None


def test_parties_of_one_process_share_the_installed_keys(ceremony: Ceremony) -> None:
    """A second party of the run reads no rotation key again, and works with the first one's; other keys are refused."""

    def unread(digest: str) -> bytes:
        raise AssertionError("the keys are there")

    second = Scheme(CkksConfig(), RUN.hex())
    ceremony.install(second, unread)
    rebuilt = second.evaluator.load(ceremony.scheme.evaluator.limbs(ceremony.encrypt(np.zeros(second.slots))))
    assert second.evaluator.rotate(rebuilt, 1) is not None
    for other in ceremony.joint:
        with pytest.raises(Refused) as e:
            ceremony.install(second, unread, **{other: b"another sum"})
        assert e.value.reason == "joint-keys"


def test_keys_are_forgotten_with_the_last_tag_that_has_some() -> None:
    """In a process of its own: OpenFHE can only forget all of them."""
    program = """
from focal.ckks.scheme import Scheme
from focal.heads.linear.layout import Layout
from focal.heads.linear.rehearsal import Rehearsal
one, two = (Rehearsal(Layout(8192, 16, 8, 300, 8, 1, 4), custodians=2, run=name) for name in ("one", "two"))
rotation = one.layout.rotations[0]
def works(run):
    try:
        return run.scheme.evaluator.rotate(run.encrypt([0.0]), rotation) is not None
    except RuntimeError:
        return False
assert works(one) and works(two)
one.scheme.forget()
one.scheme.forget()
assert works(two) and set(Scheme.installed) == {two.scheme.tag}
two.scheme.forget()
assert not works(two) and not Scheme.installed
print("done")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert result.stdout == "done\n", result.stderr
