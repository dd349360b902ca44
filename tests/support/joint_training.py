"""Joint training whose owners see smudged openings only, beside its plaintext twin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from joint import derivative, engine, exact_weights, opened_step
from opened import Opened

from focal.custody import opening, release
from focal.heads import released
from focal.heads.joint.engine import zero_weights
from focal.heads.joint.layout import GRADIENT_OPENED, OPENED, InteractiveLayout
from focal.heads.joint.limits import HEAD_NOISE
from focal.heads.joint.twin import Update, twin_step
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.masks import only_classes

LOGIT_ERROR = 6 * math.sqrt(3) * opening.SIGMA * 2**6.5 / 2**45 / OPENED
"""Six standard deviations of what three custodians' smudging does to an opened logit: 2^-8.6."""
GRADIENT_ERROR = LOGIT_ERROR * OPENED / GRADIENT_OPENED
"""The same of an activation gradient: 2^-10.6."""


class Training:
    """Steps from zero in which owners see smudged openings only, beside the plaintext twin,
    which sees its own logits."""

    def __init__(
        self, base: Rehearsal, layout: InteractiveLayout, update: Update, batches: list[tuple[np.ndarray, np.ndarray]]
    ) -> None:
        run = engine(base, layout, update)
        self.w = self.before = np.zeros((layout.features, layout.outputs))
        self.losses: list[tuple[float, float]] = []
        """Encrypted, twin."""
        self.relative: list[float] = []
        """Largest error of an activation gradient, over the largest activation gradient of the step."""
        weights = zero_weights(base.scheme)
        for step, (x, y) in enumerate(batches):
            weights, z, _, dx = opened_step(base, run, step, weights, x, y, base.refresh)
            exact = derivative(x @ self.w, y)
            wanted = exact @ self.w.T
            assert np.abs(z - x @ self.w).max() < 1e-3 + LOGIT_ERROR
            assert np.abs(dx - wanted).max() <= 1e-3 * np.abs(wanted).max() + GRADIENT_ERROR
            self.losses.append((cross_entropy(z, y), cross_entropy(x @ self.w, y)))
            self.relative.append(float(np.abs(dx - wanted).max() / max(np.abs(wanted).max(), 1e-9)))
            self.w, self.before = twin_step(self.w, self.before, x, exact, update), self.w
        run.close()
        opened = Opened(base)
        self.error = float(np.abs(exact_weights(layout, opened, weights.now) - self.w).max())
        self.error_before = float(np.abs(exact_weights(layout, opened, weights.before) - self.before).max())
        self.weights = weights


def cross_entropy(z: np.ndarray, y: np.ndarray) -> float:
    return float(torch.nn.functional.cross_entropy(torch.from_numpy(z), torch.from_numpy(y)))


def noisy_batches(layout: InteractiveLayout, steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows whose labels a linear head explains in part."""
    rng = np.random.default_rng(2)
    labels_of = 0.3 * rng.standard_normal((layout.features, layout.outputs))
    xs = [np.clip(rng.standard_normal((layout.rows, layout.features)), -3, 3) for _ in range(steps)]
    return [(x, (x @ labels_of + rng.gumbel(size=(layout.rows, layout.outputs))).argmax(1)) for x in xs]


def release_of(base: Rehearsal, layout: InteractiveLayout, ciphertext: Any) -> np.ndarray:
    """(R, C) weights by smudged shares, as an institution gets them."""
    kept = only_classes(base.scheme, layout, 0, ciphertext)
    shares = [
        (str(i), release.share(base.scheme, s.limbs, kept, i == 0, HEAD_NOISE)) for i, s in enumerate(base.secrets)
    ]
    return released.weights(layout, [release.open_slots(base.scheme, shares)])
