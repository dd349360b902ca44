"""Three institutions with the same rows, two custodians, three classes, every role a thread: the smallest blind run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from focal.config import ConsortiumConfig, ProjectionConfig, TrainingConfig
from focal.protocols.together import Together
from focal.runs.simulate import ArrayInstitution, _agreed
from focal.telling import Show


def three(
    folder: Path, rows: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], steps: int = 2, show: Show = lambda _: None
) -> Together:
    """As :func:`focal.runs.simulate.simulate` makes them; each has ``rows`` (n, d) of classes ``labels`` (n,)."""
    manifest, files = _agreed(
        folder, dict.fromkeys("abc", len(rows)), rows.shape[1], ("x", "y", "z"), "multiclass",
        ConsortiumConfig(institutions=("a", "b", "c"), custodians=2),
        ProjectionConfig(features=32), TrainingConfig(steps=steps),
    )  # fmt: skip
    given = np.eye(3, dtype=np.uint8)[labels]
    make = {n: lambda local, report: ArrayInstitution(manifest, rows, given, local, report) for n in "abc"}
    return Together(manifest, files, show, make)
