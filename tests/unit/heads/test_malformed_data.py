"""What a hospital gets that uploads malformed *data*, alone, from the release that it is sent: thousands of relations on the joint secret.

Found by an independent reader. One data ciphertext of its own block is (0, c1) with c1 = 2^6 (1 + 13 X + ... + 13^5 X^5), which
decrypts to c1 s: no larger than honest data, so the guard has nothing to refuse. All its targets are one constant, so that the first
gradient is a multiple of c1 s, folded; the fold keeps every I-th coefficient, and each holds six coefficients of s as digits. Honest
weights are real in all slots, so they cancel in the sums f_j + f_(D - j). Smudging of 2^31.6 under a modulus of 2^60 leaves 28 bits.

No bound on sizes can stop this: it takes uploads that cannot be malformed. SECURITY.md ("What is not protected") says what follows.
The day it is closed, this test must fail.
"""

from __future__ import annotations

import numpy as np

from focal.ckks import codec, ring
from focal.ckks.scheme import LIMBS
from focal.custody import release
from focal.heads.linear.engine import Block, Engine, zero_weights
from focal.heads.linear.layout import Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars

BASE, DIGITS, UNIT, FACTOR = 13, 6, 2.0**36, 64
"""A sum of two coefficients of three custodians' joint secret lies in [-6, 6]."""
LAYOUT = Layout(8192, 32, 8, 1024, 8, 1, 8)


def test_malformed_data_show_six_coefficients_of_the_secret_in_every_number_that_is_released() -> None:
    run = Rehearsal(LAYOUT, custodians=3, threads=2, run="malformed data")
    scheme, copies = run.scheme, LAYOUT.copies
    scalars = Scalars.derive(3, 1.0, 0.1, LAYOUT.rows)
    malformed = np.zeros(scheme.n, dtype=np.int64)
    malformed[:DIGITS] = FACTOR * BASE ** np.arange(DIGITS)
    c1 = [ring.ntt((malformed % q).astype(np.uint64), q, scheme.roots[q]) for q in scheme.moduli]
    zero = scheme.zero(LIMBS)
    data = [[scheme.evaluator.load([zero, c1 if g == h == 0 else zero]) for h in range(LAYOUT.babies)] for g in range(LAYOUT.giants)]
    size = UNIT / (16 * scalars.rate * LAYOUT.divisor * copies * FACTOR)
    honest = run.block(np.zeros((LAYOUT.rows, 32)), np.full((LAYOUT.rows, 8), size), 0)  # proper targets, a large constant
    engine = Engine(scheme, LAYOUT, scalars, lambda b: Block(data, honest.targets), 2)
    weights = engine.step(0, zero_weights(scheme, LAYOUT), run.refresh)  # the guard lets both refreshes pass
    engine.close()

    q, n = scheme.moduli[0], scheme.n
    shares = [release.share(scheme, s.limbs, weights[0], i == 0) for i, s in enumerate(run.secrets)]
    (limb,) = ring.total([codec.unpack(scheme, codec.DECRYPTION, data, "")[0] for data in shares], [q])
    opened = ring.centred(ring.inverse_ntt(limb, q, scheme.roots[q]), q)
    places = np.arange(1, n // (2 * copies))
    sums = -(opened[places * copies] + opened[n - places * copies]) / UNIT
    secret = np.sum([s.secret for s in run.secrets], axis=0)
    truth = np.array([[secret[j * copies - d] + secret[n - j * copies - d] for d in range(DIGITS)] for j in places])
    read, rest = np.zeros_like(truth), sums.copy()
    for d in reversed(range(DIGITS)):
        read[:, d] = np.clip(np.rint(rest / BASE**d), -6, 6)
        rest -= read[:, d] * float(BASE**d)
    right = int((read == truth).sum())
    print(f"a malformed data ciphertext yields {right} of {truth.size} relations on the joint secret, from {2 * 32 * 8} released numbers")
    assert right == truth.size == DIGITS * (32 * 8 - 1)
