"""Fifty joint steps: what an opening and the head carry of noise after them,
and how far they are from the plaintext twin."""

from __future__ import annotations

import numpy as np
import pytest
from joint import rehearsal
from joint_training import Training, noisy_batches, release_of
from twice import LAYOUT, noise_over_steps

from focal.heads.joint.twin import Update
from focal.heads.linear.rehearsal import Rehearsal


@pytest.fixture(scope="module")
def pair() -> tuple[Rehearsal, Rehearsal]:
    return rehearsal(LAYOUT, "opening one"), rehearsal(LAYOUT, "opening two")


@pytest.mark.timeout(1800)
def test_noise_over_fifty_steps(pair: tuple[Rehearsal, Rehearsal]) -> None:
    noise_over_steps(pair, 50)


@pytest.mark.timeout(1800)
def test_fifty_steps_follow_the_twin(pair: tuple[Rehearsal, Rehearsal]) -> None:
    """Losses within 1 %; logits and gradients within 1e-3 (of the largest) and six deviations of their smudging,
    together less than 3e-3 of the largest gradient once the head is not near 0 any more.

    And both heads that are released in the end, the last and the one before, come out of their release within 1e-3.
    """
    base = pair[0]
    run = Training(base, LAYOUT, Update(rate=0.5, momentum=0.9), noisy_batches(LAYOUT, 50))
    ours, twins = np.array(run.losses).T
    apart = np.abs(ours / twins - 1).max()
    print(
        f"50 steps: loss {twins[0]:.3f} to {twins[-1]:.3f}, at most {apart:.1e} apart (relative); "
        f"weights err by {run.error:.1e}, gradients by {max(run.relative[3:]):.1e} relative"
    )
    assert twins[-5:].mean() < 0.8 * twins[0], "nothing was learned"
    assert apart < 0.01
    assert max(run.relative[3:]) < 3e-3
    for ciphertext, wanted in ((run.weights.now, run.w), (run.weights.before, run.before)):
        assert np.abs(release_of(base, LAYOUT, ciphertext) - wanted).max() < 1e-3
