"""Split training in milliseconds a step: a small segment on small images, and an upper segment that never learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from focal.config import InteractiveConfig, LowerConfig
from focal.data.table import Table
from focal.segments.lower import LowerSegment
from focal.segments.trainable import TrainableSegment
from focal.training.joint import Site
from focal.training.split import Batches, Loss, SplitSegment, Upper

Array = np.ndarray

# The last block of a small ResNet on small images: a joint step takes milliseconds.
LOWER = LowerConfig(model="resnet10t", image_size=32)
CONFIG = InteractiveConfig(steps=6, batch=8, features=32, trainable="norm", average_every=4, head_rate=0.3, rate=1e-3)


def sites(table: Table, k: int) -> dict[str, Site]:
    """Unequal parts of the train rows."""
    cuts = np.cumsum(np.arange(1, k + 1)) * len(table.train_rows) // (k * (k + 1) // 2)
    return {
        name: Site(table, rows) for name, rows in zip("abcdefgh", np.split(table.train_rows, cuts[:-1]), strict=False)
    }


class Fixed:
    """An upper segment that never learns: what comes back depends on the step's own values only."""

    def __init__(self, outputs: int, fault: Callable[[str, int], None] = lambda call, step: None) -> None:
        self.weights = np.random.default_rng(5).normal(size=(CONFIG.features, outputs))
        self.fault, self.calls = fault, []

    def logits(self, step: int, activations: Array) -> Array:
        self._note("logits", step)
        return activations @ self.weights

    def gradients(self, step: int, derivatives: Array) -> Array:
        self._note("gradients", step)
        return derivatives @ self.weights.T

    def average(self, round: int, parameters: Array, rows: int) -> Array:
        self._note("average", round)
        return parameters * 0.99

    def _note(self, call: str, at: int) -> None:
        self.calls.append((call, at))
        self.fault(call, at)


def institution(
    lower: LowerSegment, table: Table, upper: Upper, config: InteractiveConfig = CONFIG, **options: Any
) -> tuple[SplitSegment, Batches]:
    segment = TrainableSegment(lower, config)
    loss = Loss(table.task, table.labels[table.train_rows].sum(0), config)
    module = SplitSegment(segment, upper, loss, config, rows=len(table.train_rows))
    return module, Batches(table, table.train_rows, lower.spec, config, name="hospital-a", **options)
