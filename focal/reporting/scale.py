"""A picture of a model of scale: seconds of a step over machines, by what they are spent on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from focal.reporting.plots import BLUE, GREEN, ORANGE, blank, save, title

COLOURS = {"compute": BLUE, "refresh": ORANGE, "between machines": GREEN}


def plot_scale(steps: Sequence[tuple[int, int, Mapping[str, float]]], context: str, path: Path) -> None:
    """``steps``: (rows, machines, seconds by part)."""
    drawn, axes = blank(8.0, 4.0)
    for x, (_, _, parts) in enumerate(steps):
        bottom = 0.0
        for name, colour in COLOURS.items():
            axes.bar(x, parts[name], bottom=bottom, color=colour, width=0.7, label=name if x == 0 else None)
            bottom += parts[name]
        axes.text(x, bottom, f"{bottom:.1f}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(steps)), [f"{rows:,}\n{machines}" for rows, machines, _ in steps])
    axes.set_xlabel("rows, machines of each party")
    axes.set_ylabel("seconds a step (model)")
    axes.legend(frameon=False, fontsize=8)
    last = [sum(parts.values()) for rows, _, parts in steps if rows == steps[-1][0]]
    title(axes, f"{len(last)} sizes of cluster: {last[0]:.1f} to {min(last):.1f} s a step", context)
    save(drawn, path)
