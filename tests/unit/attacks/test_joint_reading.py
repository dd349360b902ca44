"""What institutions of an interactive run read of the others: joint steps in plaintext, with the noise of openings."""

from __future__ import annotations

import numpy as np
import pytest

from focal.attacks import features, joint
from focal.attacks.scores import told_apart
from focal.attacks.view import View
from focal.heads.joint.twin import Update, twin_step

R, C, ROWS, STEPS = 16, 4, 24, 5
UPDATE = Update(rate=0.3, momentum=0.8)
NOISE = 2.0**-11
"""Of an opened activation gradient (SECURITY.md)."""


class Run:
    """Joint steps of three institutions with as many rows each; the last one is the victim."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.x = [np.hstack([rng.standard_normal((3 * ROWS, R - 1)), np.ones((3 * ROWS, 1))]) for _ in range(STEPS)]
        self.labels = [rng.integers(0, C, 3 * ROWS) for _ in range(STEPS)]
        self.heads: list[np.ndarray] = [np.zeros((R, C))]
        self.read: list[np.ndarray] = [np.zeros((R, C))]
        self.delta: list[np.ndarray] = []
        before = self.heads[0]
        for x, labels in zip(self.x, self.labels, strict=True):
            now = self.heads[-1]
            self.delta.append(joint.derivatives(x @ now, labels))
            opened = self.delta[-1] @ now.T + NOISE * rng.standard_normal(x.shape)
            if len(self.delta) > 1:
                self.read.append(joint.head_of(self.delta[-1][: 2 * ROWS], opened[: 2 * ROWS]))
            self.heads.append(twin_step(now, before, x, self.delta[-1], UPDATE))
            before = now

    def of_last(self, step: int) -> np.ndarray:
        """Its summed gradient, as the two others read it."""
        x, delta = self.x[step][: 2 * ROWS], self.delta[step][: 2 * ROWS]
        return joint.summed_gradient(UPDATE, self.read, step, 3 * ROWS) - x.T @ delta


@pytest.fixture(scope="module")
def run() -> Run:
    return Run()


def test_a_coalition_has_the_last_ones_summed_gradient(run: Run) -> None:
    for step in range(STEPS - 1):
        true = run.x[step][2 * ROWS :].T @ run.delta[step][2 * ROWS :]
        assert np.corrcoef(run.of_last(step).ravel(), true.ravel())[0, 1] > 0.99
        assert np.abs(run.of_last(step) - true).max() < 0.5 < np.abs(true).max()


def test_its_bias_says_which_classes_were_there(run: Run) -> None:
    sent = joint.as_batch(run.of_last(0))
    read = features.from_head(View("coalition", sent, {}, {}), ROWS)
    assert read.shape == (int((run.of_last(0)[-1] < 0).sum()), R - 1) and len(read) >= 1


@pytest.mark.parametrize("theirs", [True, False])
def test_members_of_a_batch_are_told_from_others_and_only_by_their_own_batch(run: Run, theirs: bool) -> None:
    rng, members, strangers = np.random.default_rng(1), list[np.ndarray](), list[np.ndarray]()
    for step in range(STEPS - 1):

        def of(x: np.ndarray, labels: np.ndarray, step: int = step) -> np.ndarray:
            return joint.own_gradients(x, labels, run.read[step])

        public = np.hstack([rng.standard_normal((600, R - 1)), np.ones((600, 1))])
        labels = rng.integers(0, C, 600)
        base = of(public[:300], labels[:300])
        own = slice(0, ROWS)
        seen = run.of_last(step) if theirs else run.x[step][own].T @ run.delta[step][own]
        last = of(run.x[step][2 * ROWS :], run.labels[step][2 * ROWS :])
        for out, candidates in ((members, last), (strangers, of(public[300:], labels[300:]))):
            out.append(joint.matched(seen.ravel(), candidates, base, ROWS))
    told = told_apart(np.concatenate(members), np.concatenate(strangers))
    assert told.auc > 0.72 if theirs else abs(told.auc - 0.5) < 0.15  # measured: 0.80


def test_a_bottlenecks_change_is_read_from_behind_the_rest_of_what_trains() -> None:
    matrix, offset = np.arange(12.0).reshape(3, 4), np.ones(3)
    moved = np.concatenate([np.full(7, -1.0), matrix.ravel(), offset])
    np.testing.assert_array_equal(joint.bottleneck_part(moved, 4, 4), matrix)


def test_directions_are_those_in_which_it_moved() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal(20)
    wanted /= np.linalg.norm(wanted)
    moved = np.outer(rng.standard_normal(6), wanted) + 0.01 * rng.standard_normal((6, 20))
    found = joint.directions(moved, np.zeros(20), 2.0, 2)
    assert found.shape == (2, 20) and np.abs(found @ wanted).min() > 1.9
    assert np.abs(joint.directions(rng.standard_normal((6, 20)), np.zeros(20), 2.0, 2) @ wanted).max() < 1.9
