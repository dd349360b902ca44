"""What an owner gets in the interactive protocol that encrypts dishonestly, from its own openings alone: slots of the joint secret.

Nothing proves that an upload is an encryption. (c0, c1) = (0, P) decrypts to P s, slot by slot; with P = 0 outside its own rows it
disturbs nobody, and with activations of 0 on these rows the head does not change either. Custodians, verifying or not, see a
ciphertext like any other (the owner adds an encryption of zero to it). The opened gradients of a row are then, for each q, K sums of K
slots of the secret, weighted by the head, which the same opening shows in a few honest rows. The tests perform it and record the yield, so
that SECURITY.md cannot say less than is true. The day uploads carry a proof of well-formedness, they must fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import Opened
from joint import SLOTS, answers, encrypted, engine, problem, rehearsal, uploads

from focal.ckks import ring
from focal.ckks.scheme import LIMBS
from focal.heads.joint.layout import DERIVATIVES, GRADIENT_OPENED, MOVED_BITS, OPENED, SCALE, InteractiveLayout
from focal.heads.joint.twin import Update
from focal.heads.linear.rehearsal import Rehearsal

LAYOUT = InteractiveLayout(SLOTS, 64, 8)
ROWS, HONEST = range(32), range(8)
"""Owner a's rows, and those of them that it fills honestly to learn the head."""
FACTOR = 2.0**18
"""Slots of P: it is carried like the values that it stands for, and what is opened stays below 64."""
FILLED = dict.fromkeys("abcd", 32)


@pytest.fixture(scope="module")
def base() -> Iterator[Rehearsal]:
    yield rehearsal(LAYOUT, "malformed activations")


def times_secret(base: Rehearsal, honest: Any, slots: np.ndarray, limbs: int) -> Any:
    """``honest`` plus (0, P), P the encoding of ``slots``."""
    scheme = base.scheme
    p = scheme.evaluator.plain_limbs(scheme.evaluator.encode(slots, limbs))
    c0, c1 = scheme.evaluator.limbs(honest)
    return scheme.evaluator.load([c0, ring.total([c1, p], scheme.moduli[:limbs])])


def secret_slots(base: Rehearsal) -> np.ndarray:
    """(S,) complex slots of the joint secret: the truth, which nobody holds."""
    q = base.scheme.moduli[0]
    coefficients = ring.centred(ring.inverse_ntt(Opened(base).secret, q, base.scheme.roots[q]), q)
    return ring.embed(coefficients.astype(float))


def opened(base: Rehearsal, ciphertext: Any) -> np.ndarray:
    """(S,) complex: an attacker keeps the imaginary parts too."""
    return base.open(ciphertext)


def test_malformed_derivatives_show_a_slot_of_the_secret_for_every_opened_value(base: Rehearsal) -> None:
    run, k, q = engine(base, LAYOUT, Update(0.5, 0.9)), LAYOUT.lanes, LAYOUT.lane
    x, delta, w = problem(LAYOUT)
    w = 3 * w
    bad = np.zeros((LAYOUT.rows, LAYOUT.features))
    bad[HONEST.stop : ROWS.stop] = FACTOR
    x[HONEST.stop : ROWS.stop] = 0  # so that the head, which the others see, learns nothing of it
    delta[ROWS.start : ROWS.stop] = 0
    delta[HONEST.start : HONEST.stop] = 8 * np.eye(8)  # no honest derivative is as large, and the head shows the better

    weights = encrypted(base, LAYOUT, w, w)
    forward = run.forward(weights, uploads(base, run, x, FILLED))
    down = answers(base, run, delta, FILLED)
    clean = run.backward(weights, forward, down, FILLED).weights
    down["a"] = times_secret(base, down["a"], bad.reshape(-1), DERIVATIVES.limbs)
    backward = run.backward(weights, forward, down, FILLED)
    run.close()
    moved = np.abs(Opened(base).slots(backward.weights) - Opened(base).slots(clean)).max() * LAYOUT.copies / 2**MOVED_BITS
    assert moved / SCALE < 1e-4, "the head would tell"

    gradients = opened(base, backward.gradients["a"]).reshape(LAYOUT.rows, k, q) / GRADIENT_OPENED
    head = gradients[HONEST.start : HONEST.stop].real.reshape(8, -1).T / 8  # (R, C)
    found = np.zeros((LAYOUT.rows, k, q), dtype=complex)
    for i in range(HONEST.stop, ROWS.stop):
        for at in range(q):
            sums = np.array([[head[r * q + at, (lane - i) % k] for lane in range(k)] for r in range(k)])
            found[i, :, at] = np.linalg.solve(sums, gradients[i, :, at])
    read = found.reshape(-1) * SCALE / FACTOR
    wanted = (bad > 0).reshape(-1)
    truth = secret_slots(base)
    error = np.abs(read - truth)[wanted] / np.sqrt(np.mean(np.abs(truth) ** 2))
    right = int((error < 0.01).sum())
    print(
        f"one opening after malformed derivatives yields {right} of {SLOTS} complex slots of the joint secret to 1 % "
        f"({2 * right} linear equations for its {2 * SLOTS} coefficients; median error {np.median(error):.1e}); "
        f"two openings, the honest rows exchanged, {len(ROWS) * LAYOUT.features} slots"
    )
    assert wanted.sum() == 24 * 64
    assert right > 0.95 * wanted.sum()


def test_malformed_activations_show_a_sum_of_slots_for_every_logit(base: Rehearsal) -> None:
    """Logits of a row are C sums of R slots each: fewer numbers, but one whole step earlier."""
    run = engine(base, LAYOUT, Update(0.5, 0.9))
    x, _, w = problem(LAYOUT)
    bad = FACTOR * LAYOUT.gradient_mask(ROWS)
    x[ROWS.start : ROWS.stop] = 0
    up = uploads(base, run, x, FILLED)
    up["a"] = times_secret(base, up["a"], bad, LIMBS)
    forward = run.forward(encrypted(base, LAYOUT, w, w), up)
    run.close()
    rows = (opened(base, forward.logits["a"]) * (SCALE / FACTOR / OPENED)).reshape(LAYOUT.rows, LAYOUT.lanes, LAYOUT.lane)[
        ROWS.start : ROWS.stop, :, 0
    ]
    truth = secret_slots(base).reshape(LAYOUT.rows, -1)[ROWS.start : ROWS.stop] @ w
    classes = (np.arange(8) - np.arange(32)[:, None]) % 8
    expected = np.take_along_axis(truth, classes, axis=1)
    error = np.abs(rows - expected) / np.sqrt(np.mean(np.abs(truth) ** 2))
    right = int((error < 0.01).sum())
    print(f"one opening after malformed activations yields {right} complex sums of {LAYOUT.features} slots each, to 1 %")
    assert right == 32 * 8
