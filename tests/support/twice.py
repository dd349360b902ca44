"""The same joint steps under two independent keys: half the energy of their difference is the noise of one."""

from __future__ import annotations

import math

import numpy as np
from joint import SLOTS, answers, derivative, engine, uploads
from opened import Opened
from polynomials import rms

from focal.ckks import ring
from focal.heads.joint.engine import Backward, Forward, Weights, zero_weights
from focal.heads.joint.layout import OPENED, SCALE, InteractiveLayout
from focal.heads.joint.limits import CARRIED_NOISE, head_noise
from focal.heads.joint.twin import Update, twin_step
from focal.heads.linear.rehearsal import Rehearsal

LAYOUT = InteractiveLayout(SLOTS, 64, 8)
FILLED = dict.fromkeys("abcd", 32)


class Twice:
    """The same joint steps under two independent keys."""

    def __init__(self, pair: tuple[Rehearsal, Rehearsal], update: Update) -> None:
        self.pair, self.opened = pair, [Opened(run) for run in pair]
        self.engines = [engine(run, LAYOUT, update) for run in pair]

    def step(self, weights: list[Weights], x: np.ndarray, delta: np.ndarray) -> tuple[list[Forward], list[Backward]]:
        forward, backward = [], []
        for base, run, w in zip(self.pair, self.engines, weights, strict=True):
            forward.append(run.forward(w, uploads(base, run, x, FILLED)))
            backward.append(run.backward(w, forward[-1], answers(base, run, delta, FILLED), FILLED))
        return forward, backward

    def noise(self, ciphertexts: list[object]) -> float:
        """Of one, per coefficient. Messages need not fit the first limb: their difference does."""
        one, two = (opened.coefficients(ct) for opened, ct in zip(self.opened, ciphertexts, strict=True))
        q = self.opened[0].q
        return rms(ring.centred(((one - two) % q).astype(np.uint64), q)) / math.sqrt(2)

    def openings(self, forward: list[Forward], backward: list[Backward]) -> tuple[float, float]:
        """Noise of owner a's logits and gradients, as it was before they were carried larger and masked."""
        inside = (self.noise([f.logits["a"] for f in forward]), self.noise([b.gradients["a"] for b in backward]))
        return inside[0] * SCALE / OPENED, inside[1] * SCALE / OPENED

    def close(self) -> None:
        for run in self.engines:
            run.close()


def noise_over_steps(pair: tuple[Rehearsal, Rehearsal], steps: int) -> None:
    """Head and openings over ``steps`` steps of training, against :func:`head_noise`
    and the docstring of opening.py."""
    rng, twice = np.random.default_rng(1), Twice(pair, update := Update(0.5, 0.9))
    labels_of = 0.3 * rng.standard_normal((64, 8))
    w = before = np.zeros((64, 8))
    weights, openings = [zero_weights(run.scheme) for run in pair], []
    for step in range(steps):
        x = rng.standard_normal((128, 64))
        delta = derivative(x @ w, (x @ labels_of + rng.gumbel(size=(128, 8))).argmax(1))
        forward, backward = twice.step(weights, x, delta)
        if step > 0:  # at the first step the head is the all-zero ciphertext: nothing to open, nothing inside
            openings.append(twice.openings(forward, backward))
        weights = [
            r.finish(step, v, b, p.refresh) for r, v, b, p in zip(twice.engines, weights, backward, pair, strict=True)
        ]
        w, before = twin_step(w, before, x, delta, update), w
    head, expected = twice.noise([v.now for v in weights]), head_noise(update, steps, 128, 3)
    twice.close()
    z, dx = openings[-1]
    print(
        f"after {steps} steps, weights of {rms(w):.2f}: noise of the head 2^{math.log2(head):.1f} (expected "
        f"2^{math.log2(expected):.1f}), of opened logits 2^{math.log2(z):.1f}, of gradients 2^{math.log2(dx):.1f}"
    )
    assert expected / 4 < head < 2 * expected  # it depends on the keys drawn
    assert z < 2 * (2**0.8 * expected + 2**9.3 * math.sqrt(1 + 5 * rms(w) ** 2))
    assert dx < 2 * (2**0.8 * expected + 2**10.6 * math.sqrt(1 + 3 * rms(w) ** 2))
    assert rms(np.array(openings)) < CARRIED_NOISE
