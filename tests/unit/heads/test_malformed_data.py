"""What a hospital gets that uploads malformed *data*, alone, from the release: thousands of coefficients of the joint secret.

Found by an independent reader. One data ciphertext of its own block is (0, c1) with c1 = 2^6 (1 + 7 X + ... + 7^5 X^5), which
decrypts to c1 s: no larger than honest data, so the guard has nothing to refuse. All its targets are one constant, so that the first
gradient is a multiple of c1 s, folded; the fold keeps every I-th coefficient, R C of them, and each holds six coefficients of s as digits::

    bits of a released coefficient        0 ............ 31 | 32 ............ 40 | 43 ......................... 59
                                          smudging          | honest weights     | s_j + 7 s_(j-1) + ... + 7^5 s_(j-5)

Honest weights fill every slot with complex numbers, and so every coefficient that is released: of the 28 bits above the smudging
a third is theirs after one step, half when they are trained (while slots were real, half of the coefficients were empty of them). Whoever
knows them, all other institutions in league, has nine or ten coefficients of s in each.

No bound on sizes can stop this alone: it takes uploads that cannot be malformed. Nor do these: the second test reads slots of the secret
with proper encryptions of rows that are too large. SECURITY.md ("What is not protected") says what follows. The day it is closed, these
tests must fail.
"""

from __future__ import annotations

import numpy as np

from focal.ckks import codec, ring
from focal.ckks.scheme import Scheme
from focal.custody import release
from focal.heads.linear.engine import Block, Engine, rate, zero_weights
from focal.heads.linear.layout import DATA_LIMBS, Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars
from focal.heads.masks import OwnerMasks

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


def remainder(limbs: list[ring.Limb], factor: ring.Limb, scheme: Scheme) -> np.ndarray:
    """What a rescaling of ``limbs`` times an encoded plaintext leaves out: the product's last limb, centred, over its prime."""
    q = scheme.moduli[len(limbs) - 1]
    product = ring.inverse_ntt(ring.multiply(limbs[-1], factor, q), q, scheme.roots[q])
    return ring.embed(ring.centred(product, q) / q)


def test_rows_of_extraordinary_size_show_slots_of_the_secret_after_one_step() -> None:
    """All ciphertexts are proper encryptions: targets of zero, one chunk with 2^46 on the first group of rows, zeros in all others.

    The residual of that block is then its masked target: its phase is -(r0 + r0') - (r1 + r1') s, where the r are what the masks'
    two rescalings left out. Whoever has the upload computes them. The released weights hold 2^46 times that phase.
    """
    run = Rehearsal(LAYOUT, custodians=3, threads=2, run="large rows")
    scheme, ev = run.scheme, run.scheme.evaluator
    scalars, size, group = Scalars.derive(3, 1.0, 0.1, LAYOUT.rows), 2.0**46, slice(LAYOUT.half * CLASSES)
    rng = np.random.default_rng(1)
    x, targets = np.zeros((LAYOUT.rows, FEATURES)), np.zeros((LAYOUT.rows, CLASSES))
    x[ATTACKER:] = np.clip(rng.normal(size=(HONEST, FEATURES)), -4, 4)
    targets[ATTACKER:] = 0.5 - rng.integers(0, 2, (HONEST, CLASSES))
    large, nothing = np.zeros(scheme.slots, complex), np.zeros(scheme.slots, complex)
    large[group] = size
    data = [[run.encrypt(large if g == h == 0 else nothing, DATA_LIMBS) for h in range(LAYOUT.babies)] for g in range(LAYOUT.giants)]
    uploaded, masks = run.encrypt(nothing), OwnerMasks(scheme, LAYOUT, rate(LAYOUT, scalars))
    owned = LAYOUT.row_table({"a": ATTACKER, "b": HONEST})["a"]
    blocks = [Block(data, [masks.keep(uploaded, owned, 0, 0)]), run.block(x, targets, 1, scalars)]
    engine = Engine(scheme, LAYOUT, scalars, blocks.__getitem__, 2)
    weights = engine.step(0, zero_weights(scheme, LAYOUT), run.refresh)  # the guard lets the refresh pass
    engine.close()
    opened = run.consortium.open(release.share, weights[0]).reshape(LAYOUT.copies, -1).mean(0) * scheme.scale

    # what the institution computes from its own upload
    first, second = masks._encoded(*masks._key(owned, 0, 0))
    between = ev.rescale(ev.times(uploaded, first))
    left = [
        [remainder(polynomial, ev.plain_limbs(mask)[-1], scheme)[group] for polynomial in ev.limbs(ct)]
        for ct, mask in ((uploaded, first), (between, second))
    ]
    constant, factor = left[0][0] + left[1][0], left[0][1] + left[1][1]
    read = -(constant - opened / size) / factor
    truth = ring.embed(np.sum([s.secret for s in run.secrets], axis=0).astype(float))[group]
    error = np.abs(read - truth) / np.sqrt(np.mean(np.abs(truth) ** 2))
    print(f"{len(truth)} slots of the joint secret, median error {np.median(error):.1e} of their size")
    assert np.median(error) < 0.02
