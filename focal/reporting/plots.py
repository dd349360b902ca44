"""Pictures of a run: how it tells each disease apart, how that compares, what its probabilities are worth,
where seconds and bytes went.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; lines are labelled where they end and titles say
the finding. Figures are drawn without pyplot: nothing here touches a display or global state.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

from focal.errors import FocalError
from focal.files import private_write
from focal.measure.metrics import (
    auroc_per_class,
    calibration_error_per_class,
    macro_auroc,
    outcome_columns,
    probabilities,
)
from focal.measure.traffic import human_bytes, merge
from focal.task import Task, scored_classes

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY, WINE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#8C8C8C", "#882255",
)  # fmt: skip
INK = "#333333"
DPI = 150
CLASS_COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, "#000000", GREY)
CLASS_DASHES = ("-", "--", "-.", ":")
PHASE_COLOURS = {
    "keys": BLUE,
    "features": GREY,
    "moments": GREEN,
    "upload": ORANGE,
    "train": SKY,
    "refresh": SKY,
    "release": PURPLE,
    "openings": YELLOW,
    "average": RED,
    "score": WINE,
}
"""Training's seconds and the refreshes' bytes are one activity seen twice: one colour, one entry of the legend."""

PhaseBytes = Mapping[str, Mapping[str, Mapping[str, int]]]
"""Party -> phase -> ``{"up", "down"}``, bytes, as each party's journal has counted them."""


class Span(NamedTuple):
    """One party busy with one phase, in seconds since the run began."""

    party: str
    phase: str
    start: float
    end: float


# --------------------------------------------------------------------------- ROC curves


class Curve(NamedTuple):
    """One class's ROC curve."""

    name: str
    false_positive: NDArray[np.float64]
    true_positive: NDArray[np.float64]
    auroc: float
    """NaN where the rows hold one outcome only: not drawn."""
    rows: int
    """With the disease."""


def plot_roc(labels: ArrayLike, scores: ArrayLike, classes: Sequence[str], task: Task, path: Path) -> None:
    """ROC curve of each class of the encrypted model; ``labels`` (n, K), ``scores`` (n, C) of the test rows.

    Raises :class:`FocalError` when the rows hold one class only.
    """
    outcome, value = outcome_columns(labels, scores, task)
    aurocs, macro = auroc_per_class(labels, scores, task), macro_auroc(labels, scores, task)
    curves = []
    for c, name in enumerate(scored_classes(classes, task)):
        false_positive, true_positive, _ = (
            roc_curve(outcome[:, c], value[:, c]) if not np.isnan(aurocs[c]) else (np.empty(0),) * 3
        )
        curves.append(Curve(name, false_positive, true_positive, aurocs[c], int(outcome[:, c].sum())))
    plot_curves(curves, macro, f"encrypted training, {len(outcome)} test rows", path)


def plot_curves(curves: Sequence[Curve], macro: float, below: str, path: Path) -> None:
    """The classes' curves, the best first in the legend; ``below``: the line under the title,
    which states the ``macro`` AUROC."""
    figure, axes = blank(5.4 + 0.065 * max(len(curve.name) for curve in curves) + 0.6, 4.6)  # room for the names
    axes.set_box_aspect(1)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    entries = []
    for c in np.argsort([-np.nan_to_num(curve.auroc) for curve in curves]):
        curve = curves[c]
        if np.isnan(curve.auroc):
            continue
        colour, dashes = (
            CLASS_COLOURS[c % len(CLASS_COLOURS)],
            CLASS_DASHES[c // len(CLASS_COLOURS) % len(CLASS_DASHES)],
        )
        (line,) = axes.plot(curve.false_positive, curve.true_positive, color=colour, linestyle=dashes, linewidth=1.6)
        entries.append((line, f"{literal(curve.name)}  {curve.auroc:.2f}  ({curve.rows})"))
    handles, texts = zip(*entries, strict=True)
    heading = "class  AUROC  (rows)"
    figure.legend(
        handles,
        texts,
        title=heading,
        loc="outside right center",
        frameon=False,
        fontsize=8,
        title_fontsize=8,
        alignment="left",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.005), xlabel="false positive rate", ylabel="true positive rate")
    kind = f"AUROC of '{literal(curves[0].name)}'" if len(curves) == 1 else f"Macro AUROC of {len(entries)} classes"
    title(axes, f"{kind}: {macro:.3f}", below)
    save(figure, path)


# --------------------------------------------------------------------------- comparison by class


def plot_per_class(classes: Sequence[str], per_class: Mapping[str, NDArray[np.float64]], path: Path) -> None:
    """AUROC of each class: bars for the encrypted model from chance (0.5),
    marks for the pooled one and each institution.

    ``per_class``: ``encrypted``, ``pooled_plaintext`` and one or more institutions -> (C,) values,
    NaN where undefined: local runs only.
    """
    encrypted, pooled = per_class["encrypted"], per_class["pooled_plaintext"]
    alone = np.array([values for name, values in per_class.items() if name not in ("encrypted", "pooled_plaintext")])
    names = list(classes)[-len(encrypted) :]  # a binary task scores its positive class only
    shown = [c for c in np.argsort(encrypted) if not np.isnan(encrypted[c])]  # best on top
    figure, axes = blank(6.8, 1.7 + 0.42 * len(shown))
    at = np.arange(len(shown))
    axes.barh(at, encrypted[shown] - 0.5, left=0.5, height=0.62, color=SKY)
    for y, c in zip(at, shown, strict=True):
        axes.plot(
            alone[:, c], np.full(len(alone), y), "|", color=INK, markersize=11, markeredgewidth=1.6, clip_on=False
        )
        axes.plot(
            pooled[c], y, "D", color=RED, markerfacecolor="white", markersize=6, markeredgewidth=1.6, clip_on=False
        )
    marks = [
        Line2D([], [], color=SKY, linewidth=8, label="encrypted (and its number)"),
        Line2D([], [], color=RED, marker="D", markerfacecolor="white", linestyle="", label="pooled plaintext"),
        Line2D(
            [],
            [],
            color=INK,
            marker="|",
            markersize=11,
            markeredgewidth=1.6,
            linestyle="",
            label="each institution alone",
        ),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    lowest = float(np.nanmin([encrypted[shown].min(), np.nanmin(pooled), np.nanmin(alone)]))
    axes.set(
        yticks=at,
        yticklabels=[f"{literal(names[c])}  {encrypted[c]:.2f}" for c in shown],
        xlim=(min(0.5, lowest - 0.01), 1.0),
        xlabel="AUROC (0.5 is chance)",
    )
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    wins = int(sum(encrypted[c] >= np.nanmax(alone[:, c]) for c in shown))
    title(
        axes, f"At or above every single institution in {wins} of {len(shown)} classes", "encrypted training, test rows"
    )
    save(figure, path)


# --------------------------------------------------------------------------- calibration

RELIABILITY_BINS = 8
"""Of equally many rows each, so that every point means as much as its neighbour."""


def plot_reliability(labels: ArrayLike, scores: ArrayLike, classes: Sequence[str], task: Task, path: Path) -> None:
    """Observed against predicted frequency of each class, one panel a class; arguments as those of :func:`plot_roc`."""
    outcome, _ = outcome_columns(labels, scores, task)
    predicted = probabilities(scores, task)[:, -outcome.shape[1] :]
    errors = calibration_error_per_class(labels, scores, task)
    names = list(classes)[-outcome.shape[1] :]
    shown = [c for c in range(len(names)) if not np.isnan(errors[c])]
    if not shown:
        raise FocalError(
            "calibration is undefined: the test rows hold one class only", hint="score rows of at least two classes"
        )
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.35 * columns + 0.6, 2.3 * rows + 0.9), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, c in zip(panels, shown, strict=False):
        observed, mean = calibration_curve(outcome[:, c], predicted[:, c], n_bins=RELIABILITY_BINS, strategy="quantile")
        limit = 1.05 * max(observed.max(), mean.max())
        axes.plot([0, limit], [0, limit], color=GREY, linewidth=0.8, linestyle=":")
        axes.plot(mean, observed, "o-", color=BLUE, markersize=4, linewidth=1.4)
        axes.set(xlim=(0, limit), ylim=(0, limit))
        axes.set_box_aspect(1)
        axes.locator_params(nbins=4)
        plain(axes)
        axes.set_title(f"{literal(names[c])}  error {errors[c]:.2f}", loc="left", fontsize=9, color=INK)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    figure.supxlabel("predicted probability", fontsize=9, color=INK)
    figure.supylabel("observed frequency", fontsize=9, color=INK)
    worst = max(shown, key=lambda c: errors[c])
    figure.suptitle(f"Least well calibrated: {literal(names[worst])}", x=0.01, ha="left", fontsize=11, color=INK)
    save(figure, path)


# --------------------------------------------------------------------------- seconds and bytes


def plot_timeline(spans: Sequence[Span | tuple[str, str, float, float]], traffic: PhaseBytes, path: Path) -> None:
    """Left: when each party was busy with what. Right: bytes sent and received, by phase.

    ``spans``: (party, phase, start, end) in seconds; ``traffic``: party -> phase -> ``{"up", "down"}`` in bytes.
    """
    busy = [Span(*span) for span in spans]
    traffic = {party: _known(phases) for party, phases in traffic.items()}
    parties = list(dict.fromkeys([*traffic, *(span.party for span in busy)]))
    row = {party: len(parties) - 1 - i for i, party in enumerate(parties)}
    figure = Figure(figsize=(10, 1.9 + 0.42 * len(parties)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    clock, wire = figure.subplots(1, 2, width_ratios=[3, 2], sharey=True)
    for span in busy:
        clock.barh(
            row[span.party],
            span.end - span.start,
            left=span.start,
            height=0.6,
            color=PHASE_COLOURS.get(span.phase, INK),
        )
    for party, phases in traffic.items():
        _stack(wire, row[party] + 0.17, phases, "up", alpha=1.0)
        _stack(wire, row[party] - 0.17, phases, "down", alpha=0.55)
    for axes in (clock, wire):
        plain(axes)
        axes.set_ylim(-0.7, len(parties) - 0.3)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    clock.set(
        yticks=list(row.values()), yticklabels=[literal(party) for party in row], xlabel="seconds since the start"
    )
    clock.set_xlim(left=0)
    wire.set(
        xlabel="MB (upper bar: sent, lower: received)", xlim=(0, 1.2 * max(wire.get_xlim()[1], 1e-3))
    )  # room for the totals
    title(clock, _seconds_finding(busy))
    title(wire, _bytes_finding(traffic))
    used = {span.phase for span in busy} | {
        phase for phases in traffic.values() for phase, t in phases.items() if t["up"] + t["down"]
    }
    handles = [Line2D([], [], color=colour, linewidth=7, label=label) for label, colour in _phase_legend(used)]
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, len(handles)), frameon=False, fontsize=8)
    save(figure, path)


def _known(phases: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Bytes by phase, those before a party has named one with the keys', as in ``summary.json``."""
    return merge(*({phase if phase in PHASE_COLOURS else "keys": ways} for phase, ways in phases.items()))


def _stack(axes: Axes, y: float, phases: Mapping[str, Mapping[str, int]], direction: str, *, alpha: float) -> None:
    """One stacked bar of a party's bytes in one direction, its total written at the end."""
    left = 0.0
    for phase, colour in PHASE_COLOURS.items():
        width = phases.get(phase, {}).get(direction, 0) / 1e6
        axes.barh(y, width, left=left, height=0.3, color=colour, alpha=alpha)
        left += width
    axes.annotate(
        human_bytes(left * 1e6),
        (left, y),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
        color=INK,
    )


def _phase_legend(used: set[str]) -> list[tuple[str, str]]:
    """(label, colour), phases of one colour joined."""
    by_colour: dict[str, list[str]] = {}
    for phase in (*PHASE_COLOURS, *sorted(used - set(PHASE_COLOURS))):
        if phase in used:
            by_colour.setdefault(PHASE_COLOURS.get(phase, INK), []).append(phase)
    return [(" / ".join(phases), colour) for colour, phases in by_colour.items()]


def _seconds_finding(busy: Sequence[Span]) -> str:
    """The phase that lasts longest, from its first start to its last end over all parties."""
    if not busy:
        return "No times were recorded"
    extent = {
        phase: max(s.end for s in busy if s.phase == phase) - min(s.start for s in busy if s.phase == phase)
        for phase in dict.fromkeys(span.phase for span in sorted(busy, key=lambda s: s.party != "server"))
    }
    longest = max(extent, key=lambda phase: extent[phase])  # on a tie the server's word: training, not its refreshes
    return f"Longest phase: {longest}, {extent[longest]:.0f} of {max(span.end for span in busy):.0f} seconds"


def _bytes_finding(traffic: PhaseBytes) -> str:
    """The phase that moves most bytes, over all parties but the server (which sees each byte a second time)."""
    clients = [phases for party, phases in traffic.items() if party != "server"]
    totals = {phase: sum(sum(phases.get(phase, {}).values()) for phases in clients) for phase in PHASE_COLOURS}
    most = max(totals, key=lambda phase: totals[phase])
    return (
        f"Most bytes: {most}, {totals[most] / sum(totals.values()):.0%}" if totals[most] else "No bytes were recorded"
    )


# --------------------------------------------------------------------------- style


def literal(name: str) -> str:
    """``name`` for a figure, letter by letter: matplotlib would take what stands between dollar signs for a formula,
    and fail on one that is none; and it leaves entries that begin with an underscore out of a legend."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def blank(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    plain(axes)
    return figure, axes


def plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=9)


def title(axes: Axes, finding: str, context: str = "") -> None:
    axes.set_title(finding + (f"\n{context}" if context else ""), loc="left", fontsize=11, color=INK)


def save(figure: Figure, path: Path) -> None:
    """PNG, whole or not at all; 0600, as everything of a run."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    private_write(path, buffer.getvalue())
