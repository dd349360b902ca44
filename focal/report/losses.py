"""How the loss of an interactive run fell, beside its plaintext twin: from Lightning's CSV logs to one figure.

::

    parties/NAME/lightning/**/metrics.csv --+-- mean over institutions, step by step --+-- running mean --> figure
    twin/NAME/**/metrics.csv ---------------+-- likewise ------------------------------+

A run's page shows means over institutions only; an institution's own page shows its own.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from focal.errors import FocalError
from focal.report.plots import BLUE, DPI, ORANGE, plain, save, title

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


def plot_losses(ours: Sequence[Losses], twin: Sequence[Losses], path: Path) -> None:
    """The mean of all institutions' losses, and that of their plaintext twins (which may be none), over the joint steps that all took.

    Raises :class:`FocalError` when there is no such step.
    """
    steps = _shared(ours, twin)
    if not steps:
        raise FocalError("no joint step has a loss of every institution", hint="the logs are below each institution's folder")
    window = min(WINDOW, max(1, len(steps) // 10))
    at = np.array(steps[window - 1 :]) + 1  # each running mean at the last of its steps, counted from 1
    figure = Figure(figsize=(8, 3.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    plain(axes)
    if twin:
        axes.plot(at, _running_mean(twin, steps, window), color=ORANGE, linewidth=3.2, label="plaintext twin")
    found = _running_mean(ours, steps, window)
    axes.plot(at, found, color=BLUE, linewidth=1.4, label="encrypted")
    axes.set(xlabel="joint step", ylabel="loss")
    axes.legend(frameon=False, fontsize=8)
    context = "mean over institutions" + (f", running mean of {window} steps" if window > 1 else "")
    title(axes, f"Loss: {found[0]:.2f} at first, {found[-1]:.2f} in the end", context)
    save(figure, path)


def loss_difference(ours: Sequence[Losses], twin: Sequence[Losses]) -> float | None:
    """Largest relative difference over joint steps between the two running means; ``None`` when no step has a loss of everybody."""
    steps = _shared(ours, twin)
    if not steps:
        return None
    a, b = (_running_mean(logs, steps, min(WINDOW, len(steps))) for logs in (ours, twin))
    return float(np.abs(a / b - 1).max())


def _shared(ours: Sequence[Losses], twin: Sequence[Losses]) -> list[int]:
    """The steps that all institutions took, in both."""
    return sorted(set.intersection(*(set(log) for log in (*ours, *twin)))) if ours else []


def _running_mean(logs: Sequence[Losses], steps: Sequence[int], window: int) -> NDArray[np.float64]:
    """(len(steps) - window + 1,) means over institutions and ``window`` steps."""
    mean = np.array([np.mean([log[step] for log in logs]) for step in steps])
    return np.convolve(mean, np.ones(window) / window, "valid").astype(np.float64)
