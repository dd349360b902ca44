"""Two institutions' rows for the network that learns from pixels (:mod:`focal.baselines.scratch`)."""

from __future__ import annotations

import numpy as np

from focal.baselines.scratch import Site
from focal.heads.two_layer import INPUTS

OUTPUTS = 3
ROWS = {"a": 11, "b": 5}
"""A full chunk, and parts of two; the other rows of those are nobody's."""


def site(seed: int, n: int, steps: int = 1) -> Site:
    rng = np.random.default_rng(seed)
    labels = np.eye(OUTPUTS)[rng.integers(0, OUTPUTS, n)]
    return Site(rng.uniform(-1, 1, (n, INPUTS)), 0.5 - labels, np.tile(np.arange(n), (steps, 1)))
