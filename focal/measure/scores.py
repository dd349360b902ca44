"""What one institution can say of a released model on its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from focal.measure.metrics import Floats, bootstrap_ci, macro_auroc
from focal.measure.summary import Auroc, AurocInterval
from focal.task import Task


def score_outputs(
    labels: NDArray[np.uint8],
    scores: Floats,
    groups: NDArray[np.str_],
    task: Task,
    *,
    seed: int = 0,
    repeats: int = 1000,
) -> tuple[Auroc, AurocInterval]:
    """Macro AUROC and its interval of a released model's linear outputs (n, C) on an institution's own test rows."""
    interval = bootstrap_ci(labels, scores, groups, task, repeats=repeats, seed=seed)
    return Auroc(encrypted=macro_auroc(labels, scores, task)), AurocInterval(encrypted=interval)
