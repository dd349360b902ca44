"""One picture per table: what each method reaches, and what an institution pays for it in bytes and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from focal.reporting.plots import BLUE, DPI, GREY, INK, ORANGE, literal, plain, save, title
from focal.reproduce.cases import PaperTable
from focal.reproduce.methods import ASIDE, BLIND, HEADS

if TYPE_CHECKING:
    from focal.reproduce.tables import Part, Row


def plot_table(paper: PaperTable, shown: Sequence[tuple[Part, Sequence[Row]]], path: Path) -> None:
    """A line of three panels for each way of dealing: AUROC with intervals, AUROC against an institution's
    bytes, against seconds."""
    heights = [1.3 + 0.26 * len(made) for _, made in shown]
    figure = Figure(figsize=(13, sum(heights) + 0.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shown), 3, squeeze=False, height_ratios=heights, width_ratios=[1.3, 1, 1])
    for (reached, by_bytes, by_seconds), (part, made) in zip(panels, shown, strict=True):
        for axes in (reached, by_bytes, by_seconds):
            plain(axes)
        _intervals(reached, made)
        title(reached, _finding(made), literal(f"{paper.title.partition(':')[0]}, {part.dealing.title}"))
        _cost(by_bytes, made, 0, "MB of an institution, both ways", 1e6)
        _cost(by_seconds, made, 1, "seconds", 1.0)
    save(figure, path)


def _colour(row: Row) -> str:
    """The encrypted blind heads stand out, then what is federated; what needs data in one place,
    or shares none, is grey."""
    return BLUE if row.method.name in HEADS else ORANGE if any(row.institution) else GREY


def _intervals(axes: Axes, made: Sequence[Row]) -> None:
    at = range(len(made))[::-1]
    for y, row in zip(at, made, strict=True):
        axes.plot(row.ci95, [y, y], color=_colour(row), linewidth=2)
        axes.plot(row.auroc, y, "o", color=_colour(row), markersize=5)
    blind = [row.auroc for row in made if row.method.name == BLIND]
    if blind:
        axes.axvline(blind[0], color=BLUE, linewidth=0.8, linestyle=":")
    numbers = [f"{chr(ord('a') + i)}  {literal(row.title)}  {row.auroc:.3f}" for i, row in enumerate(made)]
    axes.set(yticks=list(at), yticklabels=numbers, xlabel="macro AUROC, 95 % interval by patient")
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.spines["left"].set_visible(False)


def _cost(axes: Axes, made: Sequence[Row], which: int, label: str, unit: float) -> None:
    """AUROC after each round against what was paid until then; letters are those of the first panel."""
    for i, row in enumerate(made):
        points = [(p[which] / unit, p[2]) for p in row.curve if p[which] > 0]
        if not points:
            continue
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=_colour(row), linewidth=1.0, alpha=0.8)
        axes.plot(x[-1], y[-1], "o", color=_colour(row), markersize=4)
        axes.annotate(
            chr(ord("a") + i), (x[-1], y[-1]), xytext=(4, 2), textcoords="offset points", fontsize=8, color=INK
        )
    axes.set(xlabel=f"{label} (logarithmic)", ylabel="macro AUROC")
    if axes.lines:
        axes.set_xscale("log")


def _finding(made: Sequence[Row]) -> str:
    blind = next((row for row in made if row.method.name == BLIND), None)
    if blind is None:
        return "The encrypted blind head is missing"
    others = [row for row in made if row.method.name not in HEADS + ASIDE and any(row.institution)]
    below = [row for row in others if row.auroc > blind.auroc]
    if not others:
        return f"Encrypted blind head: AUROC {blind.auroc:.3f}"
    return (
        f"Encrypted blind head {blind.auroc:.3f}: "
        f"at or above {len(others) - len(below)} of {len(others)} federated methods"
    )
