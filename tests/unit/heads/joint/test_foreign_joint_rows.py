"""One owner of a joint step alone, every ciphertext a proper encryption, that writes into the others' rows and into
lanes without a class.

Owner d puts activations and derivatives of 1000 times the usual size into a's rows. Without the masks on uploads a's
logits, a's gradients and the head would be d's; with them they stay what they are, to the tolerance of a step
(test_interactive_kernel.py). Everything is opened exactly: no smudging hides anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from joint import SLOTS, answers, encrypted, engine, moved_weights, problem, rehearsal, uploads
from masked import encrypt_any
from opened import Opened
from polynomials import polynomial

from focal.ckks import codec, precise, ring
from focal.ckks.scheme import LIMBS
from focal.custody import opening, refresh, release
from focal.heads import released
from focal.heads.joint.engine import InteractiveEngine, Weights
from focal.heads.joint.layout import FACTOR, MASK_BITS, SCALE, InteractiveLayout
from focal.heads.joint.limits import HEAD_NOISE
from focal.heads.joint.twin import Update, twin_step
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.masks import only_classes

LAYOUT = InteractiveLayout(SLOTS, 64, 5)
FILLED, ROWS, UPDATE = dict.fromkeys("abcd", 32), range(32), Update(0.5)


@pytest.fixture(scope="module")
def base() -> Iterator[Rehearsal]:
    yield rehearsal(LAYOUT, "foreign joint rows", custodians=2)


@dataclass
class Step:
    """Errors of what a, an honest owner, is opened, and of the head, against the twin;
    and the head's lanes that hold no class."""

    logits: float
    gradients: float
    head: float
    idle: float


def step(base: Rehearsal, run: InteractiveEngine, size: float) -> Step:
    """A joint step in which d writes values of ``size`` into a's rows, and into the derivatives' idle lanes there."""
    opened, ev, rng = Opened(base), base.scheme.evaluator, np.random.default_rng(3)
    x, delta, w = problem(LAYOUT)
    weights, up, down = encrypted(base, LAYOUT, w, w), uploads(base, run, x, FILLED), answers(base, run, delta, FILLED)
    wide = InteractiveLayout(SLOTS, LAYOUT.features, LAYOUT.lanes)
    up["d"] = ev.add(
        up["d"],
        encrypt_any(base, LAYOUT.activation_slots(size * rng.choice([-1, 1], (32, 64)), ROWS.start), factor=FACTOR),
    )
    bad = wide.derivative_slots(size * rng.choice([-1, 1], (32, LAYOUT.lanes)), ROWS.start)
    down["d"] = ev.add(down["d"], encrypt_any(base, bad, factor=FACTOR))
    forward = run.forward(weights, up)
    backward = run.backward(weights, forward, down, FILLED)
    run.close()
    head = moved_weights(wide, opened, backward.weights)
    return Step(
        float(np.abs(LAYOUT.logits(opened.slots(forward.logits["a"]), ROWS) - (x @ w)[:32]).max()),
        float(np.abs(LAYOUT.gradients(opened.slots(backward.gradients["a"]), ROWS) - (delta @ w.T)[:32]).max()),
        float(np.abs(moved_weights(LAYOUT, opened, backward.weights) - twin_step(w, w, x, delta, UPDATE)).max()),
        float(np.abs(head[:, LAYOUT.outputs :]).max()),
    )


@pytest.mark.parametrize("size", [1e3, 2.0**17])
def test_what_an_owner_writes_into_others_rows_moves_nothing(base: Rehearsal, size: float) -> None:
    """2^-38 of it at most in each slot, of which the sums over 64 features and 32 rows make less than 2^-34;
    beside a step's tolerance."""
    found = step(base, engine(base, LAYOUT, UPDATE), size)
    print(f"{size:g} in a's rows: {found}")
    assert max(found.logits, found.gradients, found.head, found.idle) < 4e-6 + size * 2**-34


def test_without_the_masks_it_would(base: Rehearsal) -> None:
    run = engine(base, LAYOUT, UPDATE)
    for masks in (run.activation_masks, run.derivative_masks):
        for own, rows in zip(masks, LAYOUT.row_sets, strict=True):
            own["d"] = base.scheme.evaluator.encode(rows, LIMBS)
    found = step(base, run, 10.0)
    print(
        f"without masks 10 in a's rows: a's logits err by {found.logits:.1e}, "
        f"gradients {found.gradients:.1e}, head {found.head:.1e}"
    )
    assert min(found.logits, found.gradients, found.head, found.idle) > 0.1


def test_a_released_head_is_zero_where_no_class_is(base: Rehearsal) -> None:
    """2^50 in the three idle lanes of eight (2^20 where the classes' own lanes are looked at:
    encoding errs by 2^-53 of the largest)."""
    w = problem(LAYOUT)[2]
    wide, opened = InteractiveLayout(SLOTS, LAYOUT.features, LAYOUT.lanes), Opened(base)
    for size in (2.0**20, 2.0**50):
        hostile = encrypt_any(base, wide.weight_slots(np.hstack([w, np.full((64, 3), size)])))
        kept = only_classes(base.scheme, LAYOUT, 0, hostile)
        lanes = wide.read_weights(opened.slots(kept)) / 16
        assert np.abs(lanes[:, 5:]).max() < 1e-7
        if size == 2.0**20:
            assert np.abs(lanes[:, :5] - w).max() < 1e-6
            shares = [
                (str(i), release.share(base.scheme, s.limbs, kept, i == 0, HEAD_NOISE))
                for i, s in enumerate(base.secrets)
            ]
            assert np.abs(released.weights(LAYOUT, [release.open_slots(base.scheme, shares)]) - w).max() < 1e-3
    assert np.abs(wide.read_weights(opened.slots(only_classes(base.scheme, wide, 0, hostile)))[:, 5:]).min() > 1e3, (
        "all lanes hold classes"
    )
    masks = LAYOUT.class_mask()
    assert masks is not None and np.array_equal(masks, LAYOUT.weight_slots(np.ones((64, 5))) / SCALE)


def test_a_lying_custodian_and_an_honest_encryption_read_other_rows_activations() -> None:
    """What masks leave of others' logits, 2^-48, times a lie of 2^48 a weight in the head's h1,
    far below what a guard refuses.

    Owner a brings zeros, honestly encrypted; each class lane of its one opening then shows a feature of all other rows.
    Custodians are assumed not to lie (SECURITY.md, "What is not protected").
    """
    layout = InteractiveLayout(SLOTS, 64, 8)
    base = rehearsal(layout, "lying custodian")
    scheme, rng = base.scheme, np.random.default_rng(0)
    x, weights = np.clip(rng.standard_normal((layout.rows, 64)), -2, 2), 0.3 * rng.standard_normal((64, 8))
    run = engine(base, layout, Update(0.5, 0.9))
    own = len(run.owners["a"])
    brought = np.vstack([np.zeros((own, 64)), x[own:]])
    features, size, lie = [5 * c + 3 for c in range(8)], 2.0**48, np.zeros((64, 8))
    lie[features, range(8)] = size
    added = polynomial(layout.weight_slots(lie), scheme.n)
    assert max(map(abs, added)) * layout.moved < refresh.guard(scheme, 3, layout.refresh_map("")).limit
    limbs = [ring.ntt(np.array([v % q for v in added], np.uint64), q, scheme.roots[q]) for q in scheme.moduli]
    head = encrypted(base, layout, weights, weights)
    c0, c1 = scheme.evaluator.limbs(head.now)
    forward = run.forward(
        Weights(scheme.evaluator.load([ring.total([c0, limbs], scheme.moduli), c1]), head.before),
        uploads(base, run, brought, run.batches),
    )
    shares = [(str(i), opening.share(scheme, s.limbs, forward.logits["a"], i == 0)) for i, s in enumerate(base.secrets)]
    opened = release.open_slots(scheme, shares, codec.OPENING_SHARE)
    bits = 45 + MASK_BITS  # public: what the mask has in the place of its zeros, which is what rounding has added
    exact = [part * 2.0**bits / scheme.n for part in precise._unembedded(layout.logit_mask(run.owners["a"]))]
    rounded = precise.coefficients(layout.logit_mask(run.owners["a"]), bits)
    mask = (
        ring.embed((rounded - np.rint(exact[0]).astype(np.int64)) - ((exact[0] - np.rint(exact[0])) + exact[1]))
        / 2.0**bits
    )
    read = layout.logits((opened / mask).real / size, range(own, layout.rows))
    error = np.abs(read - x[own:][:, features])
    print(f"{error.size} activations of others from one opening: median error {np.median(error):.1e}")
    assert np.median(error) < 1e-2 and (error < 0.05).mean() > 0.9
