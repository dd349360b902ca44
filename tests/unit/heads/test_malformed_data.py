"""What a hospital gets that uploads malformed *data*, alone, from the release: thousands of coefficients of the joint secret.

Found by an independent reader. One data ciphertext of its own block is (0, c1) with c1 = 2^6 (1 + 7 X + ... + 7^5 X^5), which
decrypts to c1 s: no larger than honest data, so the guard has nothing to refuse. All its targets are one constant, so that the first
gradient is a multiple of c1 s, folded; the fold keeps every I-th coefficient, R C of them, and each holds six coefficients of s as digits::

    bits of a released coefficient        0 ............ 31 | 32 ............ 40 | 43 ......................... 59
                                          smudging          | honest weights     | s_j + 7 s_(j-1) + ... + 7^5 s_(j-5)

Honest weights fill every slot with complex numbers, and so every coefficient that is released: of the 28 bits above the smudging
a third is theirs after one step, half when they are trained (while slots were real, half of the coefficients were empty of them). Whoever
knows them, all other institutions in league, has nine or ten coefficients of s in each.

No bound on sizes can stop this: it takes uploads that cannot be malformed. SECURITY.md ("What is not protected") says what follows.
The day it is closed, this test must fail.
"""

from __future__ import annotations

import numpy as np

from focal.ckks import codec, ring
from focal.custody import release
from focal.heads.linear.engine import Block, Engine, rate, zero_weights
from focal.heads.linear.layout import DATA_LIMBS, Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars

BASE, DIGITS, UNIT, FACTOR = 7, 6, 2.0**43, 64
"""A coefficient of three custodians' joint secret lies in [-3, 3]."""
ATTACKER, HONEST, FEATURES, CLASSES = 1024, 400, 32, 8
LAYOUT = Layout(8192, FEATURES, CLASSES, ATTACKER + HONEST, CLASSES, 1, 8, (ATTACKER, HONEST))


def test_malformed_data_show_six_coefficients_of_the_secret_in_every_number_that_is_released() -> None:
    run = Rehearsal(LAYOUT, custodians=3, threads=2, run="malformed data")
    scheme, copies, ev = run.scheme, LAYOUT.copies, run.scheme.evaluator
    scalars = Scalars.derive(3, 1.0, 0.1, LAYOUT.rows)
    malformed = np.zeros(scheme.n, dtype=np.int64)
    malformed[:DIGITS] = FACTOR * BASE ** np.arange(DIGITS)
    c1 = [ring.ntt((malformed % q).astype(np.uint64), q, scheme.roots[q]) for q in scheme.moduli[:DATA_LIMBS]]
    bad = ev.load([scheme.zero(DATA_LIMBS), c1])
    data = [[bad if g == h == 0 else ev.zero(DATA_LIMBS) for h in range(LAYOUT.babies)] for g in range(LAYOUT.giants)]

    rng = np.random.default_rng(0)
    x = np.zeros((LAYOUT.rows, FEATURES))
    x[ATTACKER:] = np.clip(rng.normal(size=(HONEST, FEATURES)), -4, 4)
    targets = np.full((LAYOUT.rows, CLASSES), UNIT / (rate(LAYOUT, scalars) * copies * FACTOR))  # proper ones, a large constant
    targets[ATTACKER:] = 0.5 - rng.integers(0, 2, (HONEST, CLASSES))
    own, honest = (run.block(x, targets, b, scalars) for b in (0, 1))
    engine = Engine(scheme, LAYOUT, scalars, [Block(data, own.targets), honest].__getitem__, 2)
    weights = engine.step(0, zero_weights(scheme, LAYOUT), run.refresh)  # the guard lets the refresh pass
    engine.close()

    q, n = scheme.moduli[0], scheme.n
    shares = [release.share(scheme, s.limbs, weights[0], i == 0) for i, s in enumerate(run.secrets)]
    (limb,) = ring.total([codec.unpack(scheme, codec.DECRYPTION, data, "")[0] for data in shares], [q])
    opened = ring.centred(ring.inverse_ntt(limb, q, scheme.roots[q]), q)[::copies]
    secret = np.sum([s.secret for s in run.secrets], axis=0)
    wrapped = np.concatenate([-secret[n - DIGITS :], secret])  # X^n = -1
    truth = np.stack([wrapped[DIGITS - d : DIGITS - d + n : copies] for d in range(DIGITS)], axis=1)
    read, rest = np.zeros_like(truth), -opened / UNIT
    for d in reversed(range(DIGITS)):
        read[:, d] = np.clip(np.rint(rest / BASE**d), -3, 3)
        rest -= read[:, d] * float(BASE**d)
    right = int((read == truth).sum())
    print(f"a malformed data ciphertext yields {right} of {truth.size} coefficients of the joint secret, from {FEATURES * CLASSES} numbers")
    print(f"honest weights and smudging: 2^{np.log2(np.abs(rest).max() * UNIT):.1f}")
    assert right == truth.size == DIGITS * FEATURES * CLASSES
