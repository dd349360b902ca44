"""How the loss of an interactive run fell, beside its plaintext twin: from Lightning's CSV logs to running means.

::

    parties/NAME/lightning/**/metrics.csv --+-- mean over institutions, step by step --+-- running mean
    twin/NAME/**/metrics.csv ---------------+-- likewise ------------------------------+
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Losses = Mapping[int, float]
"""Joint step -> loss of one institution's batch."""

WINDOW = 10
"""Steps in a running mean at most; short runs take a tenth of their steps."""


def read_losses(folder: Path) -> dict[int, float]:
    """Joint step -> loss, from Lightning's CSV logs below ``folder``, restarts included; empty where there are none."""
    out: dict[int, float] = {}
    for path in sorted(folder.rglob("metrics.csv"), key=lambda p: p.stat().st_mtime):
        with path.open(newline="") as f:
            out |= {int(float(row["step"])): float(row["loss"]) for row in csv.DictReader(f) if row.get("loss")}
    return {step: loss for step, loss in out.items() if math.isfinite(loss)}  # a skipped step has none


def loss_difference(ours: Sequence[Losses], twin: Sequence[Losses]) -> float | None:
    """Largest relative difference over joint steps between the two running means;
    ``None`` when no step has a loss of everybody."""
    steps = shared(ours, twin)
    if not steps:
        return None
    a, b = (running_mean(logs, steps, min(WINDOW, len(steps))) for logs in (ours, twin))
    return float(np.abs(a / b - 1).max())


def shared(ours: Sequence[Losses], twin: Sequence[Losses]) -> list[int]:
    """The steps that all institutions took, in both."""
    return sorted(set.intersection(*(set(log) for log in (*ours, *twin)))) if ours else []


def running_mean(logs: Sequence[Losses], steps: Sequence[int], window: int) -> NDArray[np.float64]:
    """(len(steps) - window + 1,) means over institutions and ``window`` steps."""
    mean = np.array([np.mean([log[step] for log in logs]) for step in steps])
    return np.convolve(mean, np.ones(window) / window, "valid").astype(np.float64)
