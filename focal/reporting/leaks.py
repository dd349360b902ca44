"""What attacks recovered, as a table and as pictures: every count beside its baselines, and accuracy, cost and leak of
every method in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from focal.measure.leaks import Counted, Leak, Leaks
from focal.reporting.plots import BLUE, DPI, GREY, INK, ORANGE, literal, plain, save, title

ALL_KEYS = "all-keys"
"""The threat model of controls: whoever holds every key sees everything."""

HEAD = """# What each party's view is worth to an attacker

`focal attack` on {data}; {made}. An image **leaks** if the reconstruction's nearest neighbour among all the \
institution's images (of its label, where the attacker
says which row it is) is the true one, and PSNR >= 19 dB or SSIM >= 0.5. Counts have Wilson's 95 % interval; 0 of n is \
"at most". *Mean image* and *random* are
the counts of somebody who has public images and no view; *control* is the same attack on messages that depend on no \
image. **Bold**: above both baselines
beyond chance. The second number of AUC is the control's.

"""


class Line(NamedTuple):
    """One attack, all its seeds."""

    first: Leak
    seeds: int
    images: str
    spread: str
    """Fewest and most images over the seeds."""
    mean: str
    random: str
    control: str
    quality: str
    separated: str


def lines(found: Leaks) -> list[Line]:
    """A line for each attack; seeds are added up."""
    out = []
    for name in dict.fromkeys(leak.name for leak in found.leaks):
        own = [leak for leak in found.leaks if leak.name == name]
        first, several = own[0], len(own) > 1
        counts = [leak.images.k for leak in own if leak.images is not None]
        text = "" if first.images is None else first.images.text
        told = [leak.separated for leak in own if leak.separated is not None]
        control = [leak.control_separated.auc for leak in own if leak.control_separated is not None]
        separated = ""
        if told:
            auc, tpr = np.mean([t.auc for t in told]), np.mean([t.tpr for t in told])
            separated = f"AUC {auc:.3f} / {np.mean(control):.3f}, TPR at 1 % FPR {100 * tpr:.1f} %"
        if first.relations is not None:
            separated = first.relations.text
        quality = [] if first.psnr is None or first.ssim is None else [f"{first.psnr:.1f} dB, {first.ssim:.2f}"]
        if why := found.evidence(first):
            text = f"{text} ({why})"
        quality += [] if first.correlation is None else [f"features {first.correlation:.2f}"]
        out.append(
            Line(
                first,
                len(own),
                f"**{text}**" if first.beats else text,
                f"{min(counts)} to {max(counts)}" if counts and several else "",
                _short(first.mean),
                _short(first.random),
                _short(first.control),
                "; ".join(quality),
                separated,
            )
        )
    return out


def markdown(found: Leaks) -> str:
    """The table."""
    head = (
        "attack",
        "who",
        "images that leak",
        "over seeds",
        "mean image",
        "random",
        "control",
        "PSNR, SSIM; features",
        "rows told apart",
        "assumes",
        "s",
    )
    text = [HEAD.format(data=found.data, made=found.made), "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for line in lines(found):
        who = line.first.threat + (", active" if line.first.active else "")
        seeds = f"{line.spread} ({line.seeds} seeds)" if line.spread else ""
        cells = (line.first.title, who, line.images, seeds, line.mean, line.random, line.control, line.quality,
                 line.separated, line.first.assumes, f"{line.first.seconds:.0f}")  # fmt: skip
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join([*text, ""])


def _short(count: Counted | None) -> str:
    return "" if count is None else f"{count.k} of {count.n}"


# --------------------------------------------------------------------------- pictures


def plot_leaks(found: Leaks, path: Path) -> None:
    """Share of images that leak with its interval, one line an attack; a tick where the better baseline stands."""
    shown = [line.first for line in lines(found) if line.first.images is not None]
    if not shown:
        return
    figure = Figure(figsize=(9, 1.0 + 0.3 * len(shown)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    plain(axes)
    for y, leak in zip(range(len(shown))[::-1], shown, strict=True):
        assert leak.images is not None
        colour = ORANGE if leak.beats else BLUE
        axes.plot([leak.images.low, leak.images.high], [y, y], color=colour, linewidth=2)
        axes.plot(leak.images.k / leak.images.n, y, "o", color=colour, markersize=5)
        base = max(c.k / c.n for c in (leak.mean, leak.random) if c is not None)
        axes.plot(base, y, "|", color=GREY, markersize=10)
    names = [f"{literal(leak.title)}  {leak.images.k} of {leak.images.n}" for leak in shown if leak.images is not None]
    axes.set(yticks=range(len(shown))[::-1], yticklabels=names, xlim=(-0.02, 1.02), xlabel="share of images that leak")
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.spines["left"].set_visible(False)
    attacks, controls = ([leak for leak in shown if (leak.threat == ALL_KEYS) == own] for own in (False, True))
    counted = [f"{sum(leak.beats for leak in attacks)} of {len(attacks)} attacks recover images"]
    counted += [f"with all keys {sum(leak.beats for leak in controls)} of {len(controls)}"] if controls else []
    said = "; ".join(counted) + "\ngrey: the better of mean image and random images"
    figure.suptitle(said, fontsize=11, color=INK, x=0.01, ha="left")
    save(figure, path)


def plot_pairs(leak: Leak, originals: NDArray[np.float32], claimed: NDArray[np.float32], path: Path) -> None:
    """Originals above, what the attack made of them below; (k, 3, s, s) in [0, 1]. These may be patients' images."""
    if not len(originals):
        return
    figure = Figure(figsize=(1.3 * len(originals) + 0.2, 3.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(originals), squeeze=False)
    for column in range(len(originals)):
        for row, images in enumerate((originals, claimed)):
            panels[row][column].imshow(images[column].transpose(1, 2, 0).clip(0, 1))
            panels[row][column].set_axis_off()
    assert leak.images is not None
    figure.suptitle(f"{literal(leak.title)}: {leak.images.text}", fontsize=9, color=INK, x=0.01, ha="left")
    save(figure, path)


class Method(NamedTuple):
    """One method in the figure of accuracy, cost and leak."""

    title: str
    auroc: float
    bytes: float
    """Of an institution, both ways."""
    leak: float
    """Largest share of images that any attack on it recovered."""
    high: float
    """Upper end of its interval."""


def plot_methods(methods: Sequence[Method], path: Path) -> None:
    """AUROC against leak; areas are bytes."""
    figure = Figure(figsize=(8, 5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    plain(axes)
    largest = max(m.bytes for m in methods) or 1.0
    for m in methods:
        colour = BLUE if m.leak < 0.05 else ORANGE
        axes.plot([m.leak, m.high], [m.auroc, m.auroc], color=colour, linewidth=1)
        axes.scatter(m.leak, m.auroc, s=30 + 600 * m.bytes / largest, color=colour, alpha=0.5)
        note = f"{literal(m.title)}, {m.bytes / 1e6:.3g} MB"
        axes.annotate(note, (m.leak, m.auroc), xytext=(6, 6), textcoords="offset points", fontsize=8, color=INK)
    axes.set(xlim=(-0.03, 1.3), xlabel="share of images that leak to the strongest attack", ylabel="macro AUROC")
    title(axes, "Accuracy, cost and leak of every method", "areas: bytes of an institution, both ways")
    save(figure, path)
