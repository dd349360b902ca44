"""What an institution gets that uploads no encryption, and pools what it knows with others: three answers, one for each coalition.

Nothing proves that an uploaded ciphertext is an encryption. Here the targets of a full block are (0, C), C constant, which decrypt to C s,
and the first data ciphertext is a plain 1; both masks of the owner are constants, so the first gradient is 2^135 s, and every custodian in
lockstep finds the request equal to its own computation. Recorded, so that SECURITY.md ("The guard", "What is not protected") cannot say
less than is true::

    with everybody but the guard       nothing of the joint secret: the guard's share never comes. The others' own shares are lost
    with the guard                     the joint secret: the guard sees 2^135 s behind masks of 98 bits
    in a run that nobody guards        what masks of 147 bits leave: a coefficient here and there, not the secret
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from recover import composed

from focal.ckks import codec, ring
from focal.ckks.scheme import REFRESH_LIMBS
from focal.custody import refresh
from focal.errors import FocalError
from focal.heads.linear.engine import Block, Engine, chunk_kind, rate, zero_weights
from focal.heads.linear.layout import DATA_LIMBS, TARGET_SCALE, Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars
from focal.heads.masks import OwnerMasks

SHIFT = 135
"""Bits: far above the others' masks (98), below the modulus of a request (150)."""
LAYOUT = Layout(8192, 32, 1, 8192, 1, 1, 8)
SCALARS = Scalars.derive(3, 1.0, 0.1, LAYOUT.rows)


class Malformed:
    """A rehearsal whose first refresh is of (0, -2^135), caught as the server would ask for it."""

    def __init__(self) -> None:
        self.run = Rehearsal(LAYOUT, custodians=2)
        self.scheme, ev = self.run.scheme, self.run.scheme.evaluator
        self.primes = self.scheme.moduli[:REFRESH_LIMBS]
        factor, limbs = rate(LAYOUT, SCALARS), chunk_kind("target").limbs
        target = ev.load([self.scheme.zero(limbs), self.constant(round(2.0**SHIFT * TARGET_SCALE / factor), limbs)])
        one = ev.load([self.constant(round(self.scheme.scale), DATA_LIMBS), self.scheme.zero(DATA_LIMBS)])
        data = [[one if g == h == 0 else ev.zero(DATA_LIMBS) for h in range(LAYOUT.babies)] for g in range(LAYOUT.giants)]
        self.block = Block(data, [OwnerMasks(self.scheme, LAYOUT, factor).keep(target, (0, LAYOUT.rows), 0, 0)])
        asked: list[bytes] = []
        with pytest.raises(InterruptedError):
            self.first_step(lambda items, ciphertexts: self.interrupt(asked, ciphertexts))
        _, self.c1 = codec.unpack(self.scheme, codec.ciphertext(REFRESH_LIMBS), asked[0], "")
        value = composed(self.scheme, self.c1, self.primes)
        self.factor = int(value[0])
        assert not value[1:].any() and abs(self.factor / -(2.0**SHIFT) - 1) < 1e-6
        self.bounds = refresh.guard(self.scheme, 2)
        self.secrets = [s.secret for s in self.run.secrets]

    def constant(self, value: int, limbs: int) -> list[ring.Limb]:
        return [np.full(self.scheme.n, value % q, dtype=np.uint64) for q in self.scheme.moduli[:limbs]]

    def first_step(self, refreshed: Any) -> None:
        engine = Engine(self.scheme, LAYOUT, SCALARS, lambda b: self.block, 1)
        try:
            engine.step(0, zero_weights(self.scheme, LAYOUT), refreshed)
        finally:
            engine.close()

    def interrupt(self, asked: list[bytes], ciphertexts: list[Any]) -> list[Any]:
        asked += [refresh.request(self.scheme, ct) for ct in ciphertexts]
        raise InterruptedError

    def h0(self, custodian: int, bits: int) -> list[ring.Limb]:
        a = refresh.common_random(self.scheme, self.run.run_id, "item", "00" * 32)
        made = refresh.share(self.scheme, self.run.secrets[custodian].limbs, self.c1, a, bits)[0]
        return codec.unpack(self.scheme, codec.refresh_h0(REFRESH_LIMBS), made, "")[0]

    def product(self, custodian: int) -> list[ring.Limb]:
        return [ring.multiply(s, c, q) for s, c, q in zip(self.run.secrets[custodian].limbs, self.c1, self.primes, strict=False)]

    def read(self, *parts: Sequence[ring.Limb]) -> np.ndarray:
        """What these add up to, in units of the request's c1."""
        value = composed(self.scheme, ring.total(list(map(list, parts)), self.primes), self.primes)
        return np.array([(2 * int(v) + self.factor) // (2 * self.factor) for v in value])


@pytest.fixture(scope="module")
def malformed() -> Malformed:
    return Malformed()


def test_the_guard_refuses_it(malformed: Malformed) -> None:
    with pytest.raises(FocalError, match="the guard refuses what is to be refreshed"):
        malformed.first_step(malformed.run.refresh)


def test_with_everybody_but_the_guard_it_has_their_shares_and_nothing_of_the_joint_secret(malformed: Malformed) -> None:
    others = malformed.read(malformed.h0(1, malformed.bounds.others_bits))
    right = int((others == malformed.secrets[1]).sum())
    assert right == malformed.scheme.n, "the other custodian's own share is spelt out"
    assert np.abs(np.corrcoef(others, malformed.secrets[0])[0, 1]) < 6 / malformed.scheme.n**0.5


def test_together_with_the_guard_it_reads_the_joint_secret(malformed: Malformed) -> None:
    """What a guard weighs: the others' h0 and its own s c1. It is the custodian that must be honest."""
    read = malformed.read(malformed.h0(1, malformed.bounds.others_bits), malformed.product(0))
    right = int((read == malformed.secrets[0] + malformed.secrets[1]).sum())
    print(f"a malformed target, pooled with the guard's view, yields {right} of {malformed.scheme.n} coefficients of the joint secret")
    assert right == malformed.scheme.n


def test_without_a_guard_masks_leave_a_few_coefficients_of_a_share(malformed: Malformed) -> None:
    """h0 / c1 is s blurred by 2^12: it points at -1, 0 or 1 no better than chance but where the mask comes to its edge."""
    read = malformed.read(malformed.h0(1, malformed.bounds.alone_bits))
    widest = 1 << malformed.bounds.alone_bits - 1 - SHIFT
    certain = np.abs(read) > widest - 1  # only s = +-1 reaches here
    print(f"without a guard: {int(certain.sum())} of {malformed.scheme.n} coefficients of a share are certain to be not 0")
    assert certain.sum() < 40 and np.abs(np.corrcoef(read, malformed.secrets[1])[0, 1]) < 6 / malformed.scheme.n**0.5
