"""The pictures: what they say is what the numbers say, nothing is cut off, and the files are private PNGs."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from places import PACKAGE

from focal.errors import FocalError
from focal.measure import histogram
from focal.measure.metrics import auroc_per_class, calibration_error_per_class, macro_auroc, probabilities
from focal.measure.summary import Phase
from focal.reporting import plots
from focal.reporting.plots import Span, plot_per_class, plot_reliability, plot_roc, plot_timeline
from focal.reporting.pooled import plot_pooled
from focal.reproduce import figures

CLASSES = ("normal", "diabetic retinopathy", "glaucoma", "never in the test rows")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures as they were saved."""
    figures: list[Figure] = []
    save = plots.save

    def keep(figure: Figure, path: Path) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "save", keep)
    return figures


def scored(n: int = 240) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.eye(4, dtype=np.uint8)[rng.integers(0, 3, n)]
    return labels, labels * 1.5 + rng.normal(0, 1, (n, 4))


def check_png(path: Path, figure: Figure) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and np.asarray(image.convert("L")).std() > 5
    width, height = figure.bbox.width, figure.bbox.height
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box is not None and box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, (
            "text is cut off"
        )


def test_roc(tmp_path: Path, drawn: list[Figure]) -> None:
    labels, scores = scored()
    plot_roc(labels, scores, CLASSES, "multiclass", tmp_path / "roc.png")
    check_png(tmp_path / "roc.png", drawn[0])
    title = drawn[0].axes[0].get_title(loc="left")
    assert f"of 3 classes: {macro_auroc(labels, scores, 'multiclass'):.3f}" in title
    texts = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    values = auroc_per_class(labels, scores, "multiclass")
    assert sorted(texts) == sorted(f"{CLASSES[c]}  {values[c]:.2f}  ({labels[:, c].sum()})" for c in range(3))


def test_roc_of_a_binary_task_names_the_positive_class(tmp_path: Path, drawn: list[Figure]) -> None:
    labels, scores = scored()
    plot_roc(labels[:, :2], scores[:, 1:2], ("normal", "pneumonia"), "binary", tmp_path / "roc.png")
    assert "'pneumonia'" in drawn[0].axes[0].get_title(loc="left")
    with pytest.raises(FocalError, match="one class only"):
        plot_roc(np.eye(2)[[0, 0, 0]], np.ones((3, 1)), ("normal", "pneumonia"), "binary", tmp_path / "never.png")


def test_per_class_counts_the_classes_it_wins_and_leaves_out_undefined_ones(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    nan = np.nan
    per_class = {
        "encrypted": np.array([0.9, 0.45, 0.7, nan]),  # below chance too
        "pooled_plaintext": np.array([0.95, 0.6, 0.7, nan]),
        "hospital-a": np.array([0.8, 0.5, 0.7, nan]),
        "hospital-b": np.array([0.85, 0.5, 0.5, nan]),
    }
    plot_per_class(CLASSES, per_class, tmp_path / "per_class.png")
    check_png(tmp_path / "per_class.png", drawn[0])
    axes = drawn[0].axes[0]
    assert "in 2 of 3 classes" in axes.get_title(loc="left")
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        "diabetic retinopathy  0.45",
        "glaucoma  0.70",
        "normal  0.90",
    ]
    assert [bar.get_x() + bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)] == pytest.approx(
        [0.45, 0.7, 0.9]
    )
    assert axes.get_xlim()[0] < 0.45


def test_reliability_has_a_panel_for_each_class_that_can_be_scored(tmp_path: Path, drawn: list[Figure]) -> None:
    labels, scores = scored(800)
    plot_reliability(labels, scores, CLASSES, "multiclass", tmp_path / "reliability.png")
    check_png(tmp_path / "reliability.png", drawn[0])
    panels = [axes for axes in drawn[0].axes if axes.get_visible()]
    errors = calibration_error_per_class(labels, scores, "multiclass")
    assert [axes.get_title(loc="left") for axes in panels] == [f"{CLASSES[c]}  error {errors[c]:.2f}" for c in range(3)]
    p = probabilities(scores, "multiclass")
    for c, axes in enumerate(panels):
        predicted, observed = (np.asarray(v) for v in axes.lines[1].get_data())
        assert len(predicted) == plots.RELIABILITY_BINS and (np.diff(predicted) > 0).all()
        # bins of equally many rows: the mean of their means is the mean of all rows
        assert predicted.mean() == pytest.approx(p[:, c].mean(), rel=0.02) and observed.mean() == pytest.approx(
            labels[:, c].mean(), rel=0.02
        )
    plot_reliability(labels[:, :2], scores[:, 1:2], ("normal", "pneumonia"), "binary", tmp_path / "binary.png")
    assert [axes.get_title(loc="left")[:9] for axes in drawn[1].axes] == ["pneumonia"]
    with pytest.raises(FocalError, match="one class only"):
        plot_reliability(
            np.eye(2)[[0, 0, 0]], np.ones((3, 1)), ("normal", "pneumonia"), "binary", tmp_path / "never.png"
        )


def test_timeline(tmp_path: Path, drawn: list[Figure]) -> None:
    spans = [Span("server", "train", 10, 30), ("hospital-a", "upload", 2, 10), ("custodian-1", "refresh", 10, 30)]
    traffic = {
        "server": {"upload": {"up": 0, "down": 30_000_000}},
        "hospital-a": {"upload": {"up": 30_000_000, "down": 0}},
        "custodian-1": {"refresh": {"up": 5_000_000, "down": 5_000_000}},
    }
    plot_timeline(spans, traffic, tmp_path / "timeline.png")
    check_png(tmp_path / "timeline.png", drawn[0])
    clock, wire = drawn[0].axes
    assert clock.get_title(loc="left") == "Longest phase: train, 20 of 30 seconds"
    assert (
        wire.get_title(loc="left") == "Most bytes: upload, 75%"
    )  # 30 of 40 MB; the server's view of the same bytes is not counted again
    assert [tick.get_text() for tick in clock.get_yticklabels()] == list(traffic)
    assert [text.get_text() for text in wire.texts] == ["0 B", "30.0 MB", "30.0 MB", "0 B", "5.0 MB", "5.0 MB"]


def named_phases() -> set[str]:
    """Phases of bytes that a summary has; and what the code calls those of seconds (``report.phase``, ``spent``) and of
    bytes (``enter``, ``.phase =``)."""
    found: set[str] = set(get_args(Phase))
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("phase", "spent", "enter"):
                values = node.args[:1]
            elif isinstance(node, ast.Assign) and any(getattr(at, "attr", "") == "phase" for at in node.targets):
                values = [node.value]
            else:
                continue
            found |= {v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)}
    return found


def test_every_phase_has_its_colour_and_its_entry_in_the_legend(tmp_path: Path, drawn: list[Figure]) -> None:
    """Of seconds and of bytes. The refreshes' bytes are training's."""
    phases = sorted(named_phases() - {"gather", "setup"})  # waiting, which is not drawn; and what counts as keys
    assert {"score", "average", "train", "keys"} < set(phases)
    spans = [Span("server", phase, i, i + 1) for i, phase in enumerate(phases)]
    plot_timeline(spans, {"server": {p: {"up": 10**6, "down": 0} for p in phases}}, tmp_path / "timeline.png")
    legend = drawn[0].legends[0]
    lines, labels = legend.get_lines(), [text.get_text() for text in legend.get_texts()]
    colours = {label: to_hex(line.get_color()) for label, line in zip(labels, lines, strict=True)}
    assert sorted(phase for label in labels for phase in label.split(" / ")) == phases
    assert [label for label in labels if "/" in label] == ["train / refresh"]
    assert len(set(colours.values())) == len(labels)
    by_phase = {phase: colour for label, colour in colours.items() for phase in label.split(" / ")}
    clock, wire = drawn[0].axes
    assert [to_hex(bar.get_facecolor()) for bar in clock.patches] == [by_phase[p] for p in phases]
    sent = {to_hex(bar.get_facecolor()) for bar in wire.patches if bar.get_width() > 0}
    assert sent == set(colours.values())


def test_bytes_before_the_first_phase_count_as_keys(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_timeline([], {"server": {"setup": {"up": 10**6, "down": 0}}}, tmp_path / "timeline.png")
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["keys"]
    assert [text.get_text() for text in drawn[0].axes[1].texts] == ["1.0 MB", "0 B"]


def test_timeline_of_nothing(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_timeline([], {"server": {}}, tmp_path / "timeline.png")
    check_png(tmp_path / "timeline.png", drawn[0])


ODD = ("$\\frac{1}$", "_^{$", "costs 5$ and 6$", "a\\$b", "_hidden")
"""Class and institution names that are formulae to matplotlib, broken ones or none,
or that a legend would leave out."""


def shown(figure: Figure) -> str:
    """All text of a figure as it is drawn."""
    texts = [t for axes in figure.axes for t in (*axes.get_yticklabels(), axes.title, axes._left_title)]  # type: ignore[attr-defined]
    texts += [t for legend in figure.legends for t in legend.get_texts()] + (
        [figure._suptitle] if figure._suptitle else []
    )  # type: ignore[attr-defined]
    drawn = [t._preprocess_math(t.get_text()) for t in texts]
    assert not any(math for _, math in drawn), "a name is drawn as a formula"
    return "\n".join(text for text, _ in drawn)


def test_names_are_drawn_letter_by_letter(tmp_path: Path, drawn: list[Figure], monkeypatch: pytest.MonkeyPatch) -> None:
    """In every picture that shows names of classes, institutions or methods."""
    rng = np.random.default_rng(0)
    labels = np.eye(5, dtype=np.uint8)[rng.integers(0, 5, 400)]
    scores = labels * 1.5 + rng.normal(0, 1, labels.shape)
    plot_roc(labels, scores, ODD, "multiclass", tmp_path / "a.png")
    for name in ODD:
        plot_roc(labels[:, :2], scores[:, 1:2], ("normal", name), "binary", tmp_path / "b.png")
    plot_reliability(labels, scores, ODD, "multiclass", tmp_path / "c.png")
    per_class = {name: rng.uniform(0.5, 1, 5) for name in ("encrypted", "pooled_plaintext", *ODD)}
    plot_per_class(ODD, per_class, tmp_path / "d.png")
    traffic = {name: {"upload": {"up": 10, "down": 20}} for name in ODD}
    plot_timeline([(name, "upload", 0, 1) for name in ODD], traffic, tmp_path / "e.png")
    counts = histogram.score_histogram(labels, scores, "multiclass")
    histogram.write_pooled(histogram.pooled_roc(counts), ODD, 3, tmp_path)
    plot_pooled(tmp_path)
    roc, *binary, reliability, classes, timeline, pooled = map(shown, drawn)
    for figure in (roc, reliability, classes, timeline, pooled):
        for name in ODD:
            assert name in figure
    for name, figure in zip(ODD, binary, strict=True):
        assert f"'{' ' if name[0] == '_' else ''}{name}'" in figure
    assert len(drawn[0].legends[0].get_texts()) == 5, "the legend left a class out"


def test_tables_of_a_study_draw_their_names_letter_by_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: (drawn.append(figure), plots.save(figure, path)))
    for name in ODD:
        method = SimpleNamespace(name="fedavg")
        row = SimpleNamespace(
            method=method, title=name, ci95=(0.6, 0.8), auroc=0.7, institution=(1, 1), curve=[(1.0, 1.0, 0.7)]
        )
        part: Any = SimpleNamespace(dealing=SimpleNamespace(title=name))
        paper: Any = SimpleNamespace(title=f"{name}: retina")
        figures.plot_table(paper, [(part, [row])], tmp_path / "t.png")  # type: ignore[list-item]
        assert shown(drawn[-1]).count(name) == 3
