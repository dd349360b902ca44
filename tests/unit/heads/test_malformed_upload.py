"""What an institution gets that uploads no encryption, and pools what it knows with others: three answers, one for each coalition.

Nothing proves that an uploaded ciphertext is an encryption. Here the targets of a block are (0, 2^135), which decrypt to 2^135 s; the
first residual is the target, and every custodian in lockstep finds the request equal to its own computation. Recorded, so that SECURITY.md
("The guard", "What is not protected") cannot say less than is true::

    with everybody but the guard       nothing of the joint secret: the guard's share never comes. The others' own shares are lost
    with the guard                     the joint secret: the guard sees 2^135 s behind masks of 98 bits
    in a run that nobody guards        what masks of 147 bits leave: a coefficient here and there, not the secret
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from recover import composed

from focal.ckks import codec, ring
from focal.ckks.scheme import REFRESH_LIMBS
from focal.custody import refresh
from focal.errors import FocalError
from focal.heads.linear.engine import Block, Engine, zero_weights
from focal.heads.linear.layout import Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars

SHIFT = 135
"""Bits: far above the others' masks (98), below the modulus of a request (150)."""
LAYOUT = Layout(8192, 32, 1, 40, 1, 1, 8)


class Malformed:
    """A rehearsal whose first refresh is of (0, 2^135), caught as the server would ask for it."""

    def __init__(self) -> None:
        self.run = Rehearsal(LAYOUT, custodians=2)
        self.scheme = self.run.scheme
        self.primes = self.scheme.moduli[:REFRESH_LIMBS]
        honest = self.run.block(np.zeros((40, 32)), np.zeros((40, 1)), 0)
        constant = [np.full(self.scheme.n, (1 << SHIFT) % q, dtype=np.uint64) for q in self.primes]
        self.block = Block(honest.data, [self.scheme.evaluator.load([self.scheme.zero(REFRESH_LIMBS), constant])])
        self.c1 = constant
        self.bounds = refresh.guard(self.scheme, 2)
        self.secrets = [s.secret for s in self.run.secrets]

    def h0(self, custodian: int, bits: int) -> list[ring.Limb]:
        a = refresh.common_random(self.scheme, self.run.run_id, "item", "00" * 32)
        made = refresh.share(self.scheme, self.run.secrets[custodian].limbs, self.c1, a, bits)[0]
        return codec.unpack(self.scheme, codec.REFRESH_H0, made, "")[0]

    def product(self, custodian: int) -> list[ring.Limb]:
        return [ring.multiply(s, c, q) for s, c, q in zip(self.run.secrets[custodian].limbs, self.c1, self.primes, strict=False)]

    def read(self, *parts: Sequence[ring.Limb]) -> np.ndarray:
        """The nearest multiples of 2^135 to what these add up to."""
        value = composed(self.scheme, ring.total(list(map(list, parts)), self.primes), self.primes)
        return np.array([int(v + (1 << SHIFT - 1)) >> SHIFT for v in value])


@pytest.fixture(scope="module")
def malformed() -> Malformed:
    return Malformed()


def test_the_guard_refuses_it(malformed: Malformed) -> None:
    engine = Engine(malformed.scheme, LAYOUT, Scalars.derive(3, 1.0, 0.1, 40), lambda b: malformed.block, 1)
    with pytest.raises(FocalError, match="the guard refuses what is to be refreshed"):
        engine.step(0, zero_weights(malformed.scheme, LAYOUT), malformed.run.refresh)
    engine.close()


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
    """h0 / 2^135 is s blurred by 2^12: it points at -1, 0 or 1 no better than chance but where the mask comes to its edge."""
    read = malformed.read(malformed.h0(1, malformed.bounds.alone_bits))
    widest = 1 << malformed.bounds.alone_bits - 1 - SHIFT
    certain = np.abs(read) > widest - 1  # only s = +-1 reaches here
    print(f"without a guard: {int(certain.sum())} of {malformed.scheme.n} coefficients of a share are certain to be not 0")
    assert certain.sum() < 40 and np.abs(np.corrcoef(read, malformed.secrets[1])[0, 1]) < 6 / malformed.scheme.n**0.5
