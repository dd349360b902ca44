"""Joint steps for the tests of the interactive protocol: an engine with four owners, their uploads,
and what they do with openings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from masked import encrypt_any
from opened import Opened

from focal.heads import released
from focal.heads.joint.engine import InteractiveEngine, Weights
from focal.heads.joint.layout import FACTOR, MOVED_BITS, RELEASED, SCALE, InteractiveLayout, row_table
from focal.heads.joint.twin import Update
from focal.heads.moves import Refresh
from focal.heads.rehearsal import AnyRehearsal

SLOTS = 8192


def rehearsal(layout: InteractiveLayout, run: str, custodians: int = 3) -> AnyRehearsal:
    return AnyRehearsal(layout, custodians=custodians, threads=2, run=run)


def engine(
    base: AnyRehearsal, layout: InteractiveLayout, update: Update, threads: int = 2, **options: int
) -> InteractiveEngine:
    quarter = layout.rows // 4
    return InteractiveEngine(
        base.scheme, layout, row_table(layout, dict.fromkeys("abcd", quarter)), update, threads, **options
    )


def problem(layout: InteractiveLayout, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations (m, R), derivatives (m, C), weights (R, C)."""
    rng = np.random.default_rng(seed)
    x = np.clip(rng.standard_normal((layout.rows, layout.features)), -3, 3)
    return (
        x,
        rng.uniform(-1, 1, (layout.rows, layout.outputs)),
        0.1 * rng.standard_normal((layout.features, layout.outputs)),
    )


def uploads(base: AnyRehearsal, run: InteractiveEngine, x: np.ndarray, filled: Mapping[str, int]) -> dict[str, Any]:
    """Each owner's activations, its first ``filled[owner]`` rows only."""
    starts = {name: run.owners[name].start for name in filled}
    return {
        n: base.encrypt(run.layout.activation_slots(x[s : s + filled[n]], s), factor=FACTOR) for n, s in starts.items()
    }


def answers(base: AnyRehearsal, run: InteractiveEngine, delta: np.ndarray, filled: Mapping[str, int]) -> dict[str, Any]:
    starts = {name: run.owners[name].start for name in filled}
    slots = {n: run.layout.derivative_slots(delta[s : s + filled[n]], s) for n, s in starts.items()}
    return {n: base.encrypt(v, factor=FACTOR) for n, v in slots.items()}


def encrypted(base: AnyRehearsal, layout: InteractiveLayout, now: np.ndarray, before: np.ndarray) -> Weights:
    return Weights(*(encrypt_any(base, layout.weight_slots(w)) for w in (now, before)))


def exact_weights(layout: InteractiveLayout, opened: Opened, ciphertext: Any) -> np.ndarray:
    """(R, C) of a head as it is carried between steps."""
    return released.weights(layout, [opened.slots(ciphertext) * (RELEASED / SCALE)])


def moved_weights(layout: InteractiveLayout, opened: Opened, ciphertext: Any) -> np.ndarray:
    """(R, C) of a head on its way to the refresh."""
    slots = opened.slots(ciphertext).reshape(layout.copies, -1).sum(0) / 2**MOVED_BITS
    return released.weights(layout, [np.tile(slots, layout.copies) * (RELEASED / SCALE)])


def derivative(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """d cross-entropy / d logits, row by row."""
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True) - np.eye(z.shape[1])[y]


def opened_step(
    base: AnyRehearsal,
    run: InteractiveEngine,
    step: int,
    weights: Weights,
    x: np.ndarray,
    y: np.ndarray,
    refresh: Refresh,
) -> tuple[Weights, np.ndarray, np.ndarray, np.ndarray]:
    """A joint step of full batches in which owners see smudged openings: weights, logits, derivatives,
    activation gradients."""
    layout, filled = run.layout, run.batches
    forward = run.forward(weights, uploads(base, run, x, filled))
    z = np.vstack([layout.logits(base.open(ct), run.owners[name]) for name, ct in forward.logits.items()])
    delta = derivative(z, y)
    backward = run.backward(weights, forward, answers(base, run, delta, filled), filled)
    dx = np.vstack([layout.gradients(base.open(ct), run.owners[name]) for name, ct in backward.gradients.items()])
    return run.finish(step, weights, backward, refresh), z, delta, dx
