"""Two institutions' rows for the network that learns from pixels (:mod:`focal.baselines.scratch`)."""

from __future__ import annotations

import numpy as np

from focal.baselines.scratch import Site
from focal.data.rows import InstitutionRows
from focal.heads.two_layer import INPUTS

OUTPUTS = 3
ROWS = {"a": 11, "b": 5}
"""A full chunk, and parts of two; the other rows of those are nobody's."""


def site(seed: int, n: int, steps: int = 1) -> Site:
    rng = np.random.default_rng(seed)
    labels = np.eye(OUTPUTS)[rng.integers(0, OUTPUTS, n)]
    return Site(rng.uniform(-1, 1, (n, INPUTS)), 0.5 - labels, np.tile(np.arange(n), (steps, 1)))


def institution(seed: int, n: int, width: int = INPUTS) -> InstitutionRows:
    """Every third row is a test row."""
    rng = np.random.default_rng(seed)
    labels = np.eye(OUTPUTS, dtype=np.uint8)[rng.integers(0, OUTPUTS, n)]
    split = np.array(["test" if i % 3 == 2 else "train" for i in range(n)])
    return InstitutionRows(rng.uniform(-1, 1, (n, width)).astype(np.float32), labels, np.arange(n).astype(str), split)
