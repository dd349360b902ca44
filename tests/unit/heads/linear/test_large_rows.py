"""What an institution gets from the release, alone, whose rows are of extraordinary size: slots of the joint secret.

Found by an independent reader. Uploads cannot be malformed (:mod:`focal.custody.inputs`); a message may be large.
SECURITY.md ("What is not protected") says what bounds it.
"""

from __future__ import annotations

import numpy as np
from masked import encrypt_any

from focal.ckks import ring
from focal.ckks.scheme import Scheme
from focal.custody import release
from focal.heads.linear.engine import Block, Engine, rate, zero_weights
from focal.heads.linear.layout import DATA_LIMBS, Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars
from focal.heads.masks import OwnerMasks

ATTACKER, HONEST, FEATURES, CLASSES = 1024, 400, 32, 8
LAYOUT = Layout(8192, FEATURES, CLASSES, ATTACKER + HONEST, CLASSES, 1, 8, (ATTACKER, HONEST))


def remainder(limbs: list[ring.Limb], scheme: Scheme) -> np.ndarray:
    """What a rescaling of ``limbs`` leaves out: the last limb, centred, over its prime."""
    q = scheme.moduli[len(limbs) - 1]
    return ring.embed(ring.centred(ring.inverse_ntt(limbs[-1], q, scheme.roots[q]), q) / q)


def test_rows_of_extraordinary_size_show_slots_of_the_secret_after_one_step() -> None:
    """All ciphertexts are proper encryptions: targets of zero, one chunk with 2^46 on the first group of rows,
    zeros in all others.

    The residual of that block is then its masked target: its phase is -r0 - r1 s, where the r are what
    the last of the masks' two rescalings left out. Whoever has the upload computes them. The released
    weights hold 2^46 times that phase.
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
    rows = [[large if g == h == 0 else nothing for h in range(LAYOUT.babies)] for g in range(LAYOUT.giants)]
    data = [[encrypt_any(run, slots, DATA_LIMBS) for slots in row] for row in rows]
    uploaded, masks = run.encrypt(nothing), OwnerMasks(scheme, LAYOUT, rate(LAYOUT, scalars))
    owned = LAYOUT.row_table({"a": ATTACKER, "b": HONEST})["a"]
    blocks = [Block(data, [masks.targets([("a", uploaded)], {"a": owned}, 0, 0)]), run.block(x, targets, 1, scalars)]
    engine = Engine(scheme, LAYOUT, scalars, blocks.__getitem__, 2)
    weights = engine.step(0, zero_weights(scheme, LAYOUT), run.refresh)  # the guard lets the refresh pass
    engine.close()
    opened = run.consortium.open(release.share, weights[0]).reshape(LAYOUT.copies, -1).mean(0) * scheme.scale

    # what the institution computes from its own upload
    first, second = masks._encoded(*masks._key(owned, 0, 0))
    between = ev.rescale(ev.times(ev.times(uploaded, first), second))
    constant, factor = (remainder(polynomial, scheme)[group] for polynomial in ev.limbs(between))
    read = -(constant - opened / size) / factor
    truth = ring.embed(np.sum([s.secret for s in run.secrets], axis=0).astype(float))[group]
    error = np.abs(read - truth) / np.sqrt(np.mean(np.abs(truth) ** 2))
    print(f"{len(truth)} slots of the joint secret, median error {np.median(error):.1e} of their size")
    assert np.median(error) < 0.02
