"""Differencing: what an owner learns that does nothing but read its own openings.

Its activation gradients are dX = delta W', and it knows delta: that is the head. From the heads of three successive
steps it has what the step in between did, rate / n times the gradient of all rows; its own part subtracted, the
summed head gradient of the others is left. SECURITY.md says so; this test performs it and records the yield,
without and with ``dp_head_noise``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from joint import SLOTS, engine, opened_step, rehearsal

from focal.heads.joint.engine import zero_weights
from focal.heads.joint.layout import InteractiveLayout
from focal.heads.joint.twin import Update
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.moves import Refresh

LAYOUT = InteractiveLayout(SLOTS, 64, 8)
UPDATE = Update(rate=0.5, momentum=0.9)
OWN = slice(0, 32)
"""Rows of owner a, the attacker."""


@pytest.fixture(scope="module")
def base() -> Iterator[Rehearsal]:
    yield rehearsal(LAYOUT, "differencing")


@dataclass
class Recovered:
    """Relative errors (root mean square) and correlations with the truth."""

    head: float
    gradient: float
    correlation: float
    size: float
    """Root mean square of the others' summed gradient."""


def attack(base: Rehearsal, refresh: Refresh) -> Recovered:
    """Four steps of training; from its openings of steps 1 to 3 owner a computes what the others did in step 2."""
    rng, run = np.random.default_rng(3), engine(base, LAYOUT, UPDATE)
    labels_of = 0.3 * rng.standard_normal((64, 8))
    weights, heads, gradients, deltas, xs = zero_weights(base.scheme), [], [], [], []
    for step in range(4):
        x = rng.standard_normal((128, 64))
        y = (x @ labels_of + rng.gumbel(size=(128, 8))).argmax(1)
        carried = weights.now
        weights, _, delta, dx = opened_step(base, run, step, weights, x, y, refresh)
        heads.append(base.release([carried]))
        xs.append(x), deltas.append(delta), gradients.append(dx)
    run.close()

    # what owner a sees of it: its own rows. Those of delta sum to 0, so it sees the head but for each feature's mean
    # over the classes, which changes no probability; gradients have none, noise has
    seen = [np.linalg.lstsq(deltas[t][OWN], gradients[t][OWN], rcond=1e-6)[0].T for t in (1, 2, 3)]
    step = seen[2] - seen[1] - UPDATE.momentum * (seen[1] - seen[0])
    others = -step * 128 / UPDATE.rate - xs[2][OWN].T @ deltas[2][OWN]

    truth = xs[2][32:].T @ deltas[2][32:]
    centred = heads[3] - heads[3].mean(1, keepdims=True)
    relative = lambda found, true: float(np.linalg.norm(found - true) / np.linalg.norm(true))  # noqa: E731
    correlation = float(np.corrcoef(others.ravel(), truth.ravel())[0, 1])
    return Recovered(
        relative(seen[2], centred), relative(others, truth), correlation, float(np.sqrt(np.mean(truth**2)))
    )


def test_an_owner_reads_the_head_and_the_summed_gradient_of_the_others(base: Rehearsal) -> None:
    """The openings' smudging, 2^-13.2 per gradient, is no protection here: it is there for the key."""
    found = attack(base, base.refresh)
    print(
        f"differencing: the head to {found.head:.1e}, "
        f"the others' summed head gradient to {found.gradient:.1e} (relative), correlation {found.correlation:.5f}"
    )
    assert found.head < 2e-3
    assert found.gradient < 0.05
    assert found.correlation > 0.999


@pytest.mark.parametrize("deviation", [1e-3, 1e-2])
def test_noise_on_the_head_hides_the_gradient_by_as_much_as_it_weighs(base: Rehearsal, deviation: float) -> None:
    """Each custodian's noise on w, sqrt(3) times ``deviation`` together, is n / rate = 256 times as large
    on the summed gradient.

    Seven eighths of its energy count, what is not the mean over the classes. 448 numbers: the error is known to 3 %,
    asked to 20 %; the correlation that is left is 1 / sqrt(1 + error^2).
    """
    found = attack(base, base.noisy_refresh(lambda: LAYOUT.noise_slots(deviation)))
    expected = math.sqrt(3 * 7 / 8) * deviation * 128 / UPDATE.rate / found.size
    print(
        f"differencing with dp_head_noise {deviation}: the head to {found.head:.1e}, the others' summed head gradient "
        f"to {found.gradient:.2f} (relative; expected {expected:.2f}), correlation {found.correlation:.3f}"
    )
    assert found.head < 2e-3, "the head itself stays known: it is what everybody works with"
    assert found.gradient == pytest.approx(expected, rel=0.2)
    assert found.correlation == pytest.approx(1 / math.sqrt(1 + expected**2), abs=0.1)
