"""How the loss of an interactive run fell, beside its plaintext twin,
as a figure (:mod:`focal.measure.losses` reads it).

A run's page shows means over institutions only; an institution's own page shows its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from focal.errors import FocalError
from focal.measure.losses import WINDOW, Losses, running_mean, shared
from focal.reporting.plots import BLUE, DPI, ORANGE, plain, save, title


def plot_losses(ours: Sequence[Losses], twin: Sequence[Losses], path: Path) -> None:
    """The mean of all institutions' losses, and that of their plaintext twins (which may be none),
    over the joint steps that all took.

    Raises :class:`FocalError` when there is no such step.
    """
    steps = shared(ours, twin)
    if not steps:
        raise FocalError(
            "no joint step has a loss of every institution", hint="the logs are below each institution's folder"
        )
    window = min(WINDOW, max(1, len(steps) // 10))
    at = np.array(steps[window - 1 :]) + 1  # each running mean at the last of its steps, counted from 1
    figure = Figure(figsize=(8, 3.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    plain(axes)
    if twin:
        axes.plot(at, running_mean(twin, steps, window), color=ORANGE, linewidth=3.2, label="plaintext twin")
    found = running_mean(ours, steps, window)
    axes.plot(at, found, color=BLUE, linewidth=1.4, label="encrypted")
    axes.set(xlabel="joint step", ylabel="loss")
    axes.legend(frameon=False, fontsize=8)
    context = "mean over institutions" + (f", running mean of {window} steps" if window > 1 else "")
    title(axes, f"Loss: {found[0]:.2f} at first, {found[-1]:.2f} in the end", context)
    save(figure, path)
