"""``focal report RUN``: one HTML page that holds everything a reader of a run needs, and fetches nothing.

::

    summary.json ----------------> models, seconds, bytes, release, who verified      always
    *.png -----------------------> ROC, per class, timeline                           always, as data URIs
    parties/*/rows.npz + model.pt > every measure, paired tests, sites, calibration   blind: until `focal clean`
    parties/*/rows.txt + model.pt +
      the data set, cached features > the same                                        interactive: until `focal clean`
    parties/*/lightning, twin/ ---> loss by joint step                                interactive: until `focal clean`
    explanations/, or the data set > overlays and their sanity check                   unless `images=False`
    attacks/leaks.json ----------> what `focal attack` recovered, counts only         where it was run
    config.json -----------------> configuration                                      file names without their folders

Without overlays the page holds aggregates only: no file name, no patient id, no value of a single row. With them it
shows patients' images and says so. It is 0600 like the rest of the run. A Content-Security-Policy in the page
forbids every request and script.
"""

from __future__ import annotations

import base64
import io
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from focal.baselines.logistic import baseline_scores
from focal.config import RunConfig
from focal.data.begun import check_unchanged
from focal.data.rows import FILE as ROWS
from focal.data.rows import InstitutionRows, read_kept
from focal.errors import FocalError
from focal.files import private_write
from focal.measure.leaks import FOLDER as ATTACKS
from focal.measure.leaks import read_leaks
from focal.measure.losses import read_losses
from focal.measure.metrics import Measured, Paired, measure_all, paired_bootstrap
from focal.measure.subgroups import score_subgroup
from focal.measure.summary import Summary, read_summary
from focal.measure.traffic import human_bytes
from focal.protocols import of
from focal.reading import read
from focal.reporting import plots
from focal.reporting.leaks import Line
from focal.reporting.leaks import lines as leak_lines
from focal.reporting.losses import plot_losses
from focal.reporting.table import model_rows
from focal.task import scored_classes
from focal.telling import Say

if TYPE_CHECKING:
    from focal.reporting.explain import Explained, SanityStep, Verdict
    from focal.segments.lower import LowerSegment
    from focal.segments.upper import ModelMeta, UpperHead


FILE = "report.html"
REPEATS = 1000
SLOW_REPEATS = 200
"""Resamples of the measures whose rows are copied; a tenth of a second each."""

MEASURE_NAMES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "sensitivity_at_90_specificity": "sensitivity at 90 % specificity",
    "balanced_accuracy": "balanced accuracy",
    "calibration_error": "calibration error",
}


class Overlay(NamedTuple):
    """One explanation on the page."""

    uri: str
    caption: str


@dataclass(frozen=True)
class Overlays:
    """All explanations on the page."""

    method: str
    shown: list[Overlay]
    sanity: list[SanityStep]

    @property
    def verdict(self) -> Verdict:
        """What the sanity check allows the reader to conclude."""
        from focal.reporting.explain import verdict

        return verdict(self.sanity)


@dataclass(frozen=True)
class Scored:
    """What the rows of a run still at hand say beyond its summary."""

    classes: tuple[str, ...]
    """Names of the scored columns."""
    positives: list[int]
    """Test rows of each."""
    rows: int
    patients: int
    measured: dict[str, Measured]
    against: dict[str, Paired]
    """Other model -> the encrypted one minus it; empty where one institution reports on its own."""
    sites: dict[str, dict[str, Any]]
    """Institution -> its training rows, and the encrypted model on its own test rows."""
    roc: str
    reliability: str
    """Figures, as data URIs."""


def write_report(
    run: Path | str,
    out: Path | None = None,
    *,
    images: bool = True,
    repeats: int = REPEATS,
    slow_repeats: int = SLOW_REPEATS,
    say: Say = lambda text: None,
) -> Path:
    """Write the page of a finished run (default: ``RUN/report.html``), whole or not at all; returns its path.

    ``run`` is a local run's folder, or one institution's ``state`` folder on several machines.
    Raises :class:`FocalError` when the run has no summary. Whatever else is missing is left out, and the page says so.
    """
    folder = Path(run)
    summary = read_summary(folder)
    config = read(RunConfig, folder / "config.json") if (folder / "config.json").exists() else None
    seed = config.seed if config else 0
    scored, unscored = _scored(folder, summary, config, seed, repeats, slow_repeats, say)
    overlays, absent = _overlays(folder, config, say) if images else (None, "left out on request")
    if scored is None:
        say(f"{unscored}; the page shows what the summary has")
    page = _template().render(
        name=config.name if config else folder.resolve().name,
        unit=f"{config.dataset.group}s" if config else "patients",  # what is never split, and resampled as a whole
        summary=summary,
        joint=of(summary).joint,
        models=list(model_rows(summary)),
        scale=_scale(summary),
        scored=scored,
        unscored=unscored,
        measure_names=MEASURE_NAMES,
        figures={name: _png_file(folder / f"{name}.png") for name in ("roc", "per_class", "timeline")},
        losses=_losses(folder),
        leaks=_leaks(folder),
        overlays=overlays,
        overlays_absent=absent,
        verdict=overlays.verdict if overlays else None,
        config=_flat(config.model_dump()) if config else {},
        params=_flat(summary.params),
        pinned=_pinned(folder),
        version=version("focal"),
    )
    path = out or folder / FILE
    private_write(path, page.encode())
    return path


def _leaks(folder: Path) -> list[Line]:
    """What attacks on this run's views recovered; none where nobody attacked it."""
    found = read_leaks(folder / ATTACKS)
    return [] if found is None else leak_lines(found)


# --------------------------------------------------------------------------- what the rows say


Rows = Mapping[str, InstitutionRows]
"""Institution -> its rows."""


def _scored(
    folder: Path, summary: Summary, config: RunConfig | None, seed: int, repeats: int, slow_repeats: int, say: Say
) -> tuple[Scored, str] | tuple[None, str]:
    """What can be computed from rows and model, or why nothing can."""
    from focal.segments import upper

    if not (folder / upper.FILE).is_file():
        return None, "the released model is not in this folder"
    head, meta = upper.load(folder)
    try:
        if meta.tuned:
            rows, tuned = _computed_rows(folder, summary, config, head, meta, say)
        else:
            rows = tuned = _kept_rows(folder, summary)
        return _measured(rows, tuned, head, meta, seed, repeats, slow_repeats, say), ""
    except FocalError as e:
        return None, e.message  # rows were cleaned away, images are elsewhere, no test rows, or rows of one class only


def _measured(
    rows: Rows, tuned: Rows, head: UpperHead, meta: ModelMeta, seed: int, repeats: int, slow_repeats: int, say: Say
) -> Scored:
    """``rows`` have the features that baselines learn from; ``tuned`` those that the released head reads,
    of the test rows at least."""
    say("measuring the released model on the test rows ...")
    test = InstitutionRows.union(tuned).scored
    scores = _logits(head, test)
    names = scored_classes(meta.classes, meta.task)
    against = {}
    if len(rows) > 1:
        say("comparing it with every institution alone and with pooled plaintext ...")
        pooled, alone = baseline_scores(rows, meta.task, seed=seed)
        others = {"pooled plaintext": pooled, **{f"{name} alone": value for name, value in alone.items()}}
        against = {
            name: paired_bootstrap(test.labels, scores, other, test.groups, meta.task, repeats=repeats, seed=seed)
            for name, other in others.items()
        }
    train = {name: int((own.split == "train").sum()) for name, own in rows.items()}
    return Scored(
        classes=names,
        positives=[int(count) for count in test.labels.sum(axis=0)[-len(names) :]],
        rows=len(test.labels),
        patients=len(np.unique(test.groups)),
        measured=measure_all(
            test.labels, scores, test.groups, meta.task, repeats=repeats, slow_repeats=slow_repeats, seed=seed
        ),
        against=against,
        sites={name: {"train": train[name], **_site(own, head, meta, names, repeats)} for name, own in tuned.items()},
        roc=_drawn(lambda path: plots.plot_roc(test.labels, scores, meta.classes, meta.task, path)),
        reliability=_drawn(lambda path: plots.plot_reliability(test.labels, scores, meta.classes, meta.task, path)),
    )


CLEANED = "the institutions' rows are no longer on this machine (focal clean)"


def _kept_rows(folder: Path, summary: Summary) -> Rows:
    """What institutions keep where lower segments stay as they are: every party of a local run,
    or the one whose state folder this is."""
    if (folder / ROWS).exists():
        return {folder.resolve().name: read_kept(folder)[0]}
    parties = {name: folder / "parties" / name for name in summary.auroc.institutions or {}}
    if not parties or not all((path / ROWS).exists() for path in parties.values()):
        raise FocalError(CLEANED)
    return {name: read_kept(path)[0] for name, path in parties.items()}


def _computed_rows(
    folder: Path, summary: Summary, config: RunConfig | None, head: UpperHead, meta: ModelMeta, say: Say
) -> tuple[Rows, Rows]:
    """All rows with the features before training, and the test rows with those of the fine-tuned segment,
    of every institution.

    A run that trains lower segments keeps neither. Both are computed from the images again,
    as far as the run's own comparison did not cache them.
    """
    from focal.data import load
    from focal.segments.lower import build_lower
    from focal.segments.upper import lower_segment
    from focal.training.features import compute_features

    if config is None:
        raise FocalError(
            "an interactive run keeps no rows; measure its model with: "
            "focal evaluate RUN --table CSV --images FOLDER_OR_ZIP"
        )
    dealt = {name: folder / "parties" / name / "rows.txt" for name in summary.auroc.institutions or {}}
    if not dealt or not all(path.exists() for path in dealt.values()):
        raise FocalError(CLEANED)
    say("reading features before and after fine-tuning; what no cache holds is computed ...")
    whole = config.dataset.model_copy(update={"classes": meta.classes, "task": meta.task})
    tables = {name: load(whole.model_copy(update={"rows": path}), config.seed) for name, path in dealt.items()}
    for name, table in tables.items():
        check_unchanged(dealt[name].parent, table)
    held = "test" if any((table.split == "test").any() for table in tables.values()) else "val"
    shared = folder.resolve().parent / "cache"

    def rows(segment: LowerSegment, *split: str) -> Rows:
        out = {}
        for name, table in tables.items():
            at = np.flatnonzero(np.isin(table.split, split))
            features = compute_features(
                segment, table, at, device=config.device, cache=shared if shared.is_dir() else folder / "cache"
            )
            out[name] = InstitutionRows(features, table.labels[at], table.groups[at], table.split[at])
        return out

    before, _ = build_lower(meta.lower, meta.weights)
    return rows(before, "train", "val", "test"), rows(lower_segment(meta, trained=head.trained), held)


def _logits(head: UpperHead, rows: InstitutionRows) -> NDArray[np.float64]:
    """(n, C) in double precision, as the run itself scored them."""
    import torch

    with torch.inference_mode():
        return (head.project(torch.from_numpy(rows.features)) @ head.weights).numpy()


def _site(
    own: InstitutionRows, head: UpperHead, meta: ModelMeta, names: tuple[str, ...], repeats: int
) -> dict[str, Any]:
    """The released model on an institution's own test rows, if it has any."""
    try:
        test = InstitutionRows.union({"": own}).scored
    except FocalError:
        return {"n": 0, "patients": 0, "auroc": None, "auroc_ci95": None, "missing": list(names)}
    found = score_subgroup(test.labels, _logits(head, test), test.groups, meta.task, names, repeats)
    return {**found, "missing": [name for name, value in found["auroc_per_class"].items() if value is None]}


def _losses(folder: Path) -> str:
    """The loss by joint step as a data URI; empty when its logs were cleaned away, or no step was taken by all."""
    parties = [folder / "lightning"] if (folder / "lightning").is_dir() else folder.glob("parties/*/lightning")
    ours, twin = ([log for path in paths if (log := read_losses(path))] for paths in (parties, folder.glob("twin/*")))
    try:
        return _drawn(lambda path: plot_losses(ours, twin, path))
    except FocalError:
        return ""


# --------------------------------------------------------------------------- explanations


def _overlays(folder: Path, config: RunConfig | None, say: Say) -> tuple[Overlays | None, str]:
    """What ``focal explain`` drew, or one test image of every class; or why there are none."""
    from focal.reporting import explain

    stored = folder / explain.FOLDER
    if (stored / explain.INDEX).exists():
        index = json.loads((stored / explain.INDEX).read_text())
        shown = [
            Overlay(
                _uri((stored / entry["file"]).read_bytes(), "image/png"),
                f"explained for {entry['class']}, probability {entry['probability']:.2f}",
            )
            for entry in index
        ]
        steps = [explain.SanityStep(**step) for step in json.loads((stored / explain.CHECK).read_text())]
        return Overlays(index[0]["method"], shown, steps), ""
    if config is None:
        return None, "draw them with: focal explain RUN --images FOLDER_OR_ZIP"
    say("drawing explanations and checking them against a random model ...")
    try:
        return _drawn_overlays(folder, config), ""
    except FocalError as e:
        return None, f"could not be drawn here: {e.message}"


def _drawn_overlays(folder: Path, config: RunConfig) -> Overlays:
    """One test image of each class, chosen by the run's seed and not by how well it is recognised."""
    from focal.data import load
    from focal.reporting.explain import check_images, explain_images
    from focal.segments.upper import ReleasedModel

    model = ReleasedModel.load(folder)
    table = load(config.dataset, config.seed)
    order = np.random.default_rng(config.seed).permutation(table.test_rows)
    first = {name: order[table.labels[order, k] == 1][:1] for k, name in enumerate(table.classes)}
    chosen = {name: int(rows[0]) for name, rows in first.items() if len(rows)}
    images = [table.images.read(row) for row in chosen.values()]
    found = explain_images(model, images)
    shown = [
        Overlay(_jpeg(one), f"labelled {label}; explained for {one.label}, probability {one.probability:.2f}")
        for label, one in zip(chosen, found, strict=True)
    ]
    return Overlays(found[0].method, shown, check_images(model, images, found))


# --------------------------------------------------------------------------- the page


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(bytes=human_bytes, number=_number, signed=lambda value: _minus(f"{value:+.3f}"))
    return environment.get_template("report.html")


def _number(value: float | None, digits: int = 3) -> str:
    return "\N{EN DASH}" if value is None or np.isnan(value) else _minus(f"{value:.{digits}f}")


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _scale(summary: Summary) -> tuple[float, float]:
    """Limits of the axis on which the models' intervals are drawn: all of them, rounded outwards to 0.05."""
    ends = [end for _, score, interval, _, _ in model_rows(summary) for end in (score, *(interval or ()))]
    low, high = np.floor(min(ends) * 20) / 20, np.ceil(max(ends) * 20) / 20
    return float(low), float(max(high, low + 0.05))


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as ``a.b`` -> text; folders are nobody's business, so paths keep their last part;
    unset ones are left out."""
    out: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            out |= _flat(item, f"{prefix}{key}.")
        elif item is not None:
            out[prefix + key] = _setting(item)
    return out


def _setting(item: Any) -> str:
    if isinstance(item, list | tuple):
        return ", ".join(_setting(part) for part in item)
    if isinstance(item, float):
        return f"{item:g}"
    text = str(item)
    return Path(text).name if isinstance(item, Path) or text.startswith(("/", ".")) else text


def _pinned(folder: Path) -> dict[str, str]:
    """What identifies run and model, and what trained of it, from ``model.pt``."""
    from focal.segments import upper

    if not (folder / upper.FILE).is_file():
        return {}
    head, meta = upper.load(folder)
    trained = {}
    if (tuned := meta.tuned) is not None:
        values = sum(value.numel() for value in head.trained.values())
        trained = {"trained in the lower segment": f"{values} values ({tuned.trainable})"}
    return {
        "run id": meta.run_id,
        "manifest": meta.manifest_hash,
        "lower segment's weights" + (" before training" if trained else ""): meta.lower.weights_sha256,
        **trained,
        "released model": upper.released_digest(folder),
        "classes": ", ".join(meta.classes),
        "task": meta.task,
    }


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _png_file(path: Path) -> str:
    """A figure of the run as a data URI; empty when there is none."""
    return _uri(path.read_bytes(), "image/png") if path.is_file() else ""


def _drawn(draw: Callable[[Path], None]) -> str:
    """What ``draw`` writes, as a data URI."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        draw(path)
        return _png_file(path)


def _jpeg(one: Explained) -> str:
    """Photographs as JPEG: a tenth of the size."""
    buffer = io.BytesIO()
    picture: Image.Image = one.picture
    picture.save(buffer, "JPEG", quality=88)
    return _uri(buffer.getvalue(), "image/jpeg")
