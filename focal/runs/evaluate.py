"""A released model on new data: another hospital's table, scored; or images alone, with the probability of every class.

::

    evaluate       runs/NAME/model.pt + a labelled table    --> every measure, by site and subgroup
    predict        runs/NAME/model.pt + images              --> probabilities per image

A model is scored by its probabilities, one column per class (binary: the positive class).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from focal.config import DatasetConfig, Model
from focal.data.begun import seen
from focal.data.sheet import Sheet
from focal.data.table import open_sheet
from focal.errors import FocalError
from focal.files import private_write
from focal.measure.metrics import Floats, Measured, measure_all
from focal.measure.subgroups import Split, score_subgroup, subgroups
from focal.task import scored_classes
from focal.telling import Progress

if TYPE_CHECKING:
    from focal.data.table import Table
    from focal.segments.upper import ModelMeta, UpperHead


class LabelMap(Model):
    """Another hospital's labels in the run's words: ``labels: {DR: D, "healthy eye": N, blurred: null}``
    as YAML or JSON."""

    labels: dict[str, str | None] = {}
    """Their label -> our class; ``null``: rows with it are not scored. Labels that are ours already need no entry."""
    columns: dict[str, str] = {}
    """Their columns, as in a configuration: ``{filename: image, patient: Patient ID}``."""
    unlabelled_is_negative: bool = False
    """As in a configuration, like the next two."""
    window: tuple[float, float] | None = None
    page: int | None = Field(None, ge=1)


def evaluate(
    run: Path | str,
    table_csv: Path | str,
    images: Path | str,
    *,
    labels: LabelMap | None = None,
    by: Sequence[str] = (),
    weights: str | None = None,
    group: str = "patient",
    allow_seen: bool = False,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
    pool: Path | None = None,
    key: Path | None = None,
    repeats: int = 1000,
    slow_repeats: int = 200,
) -> dict[str, Any]:
    """Score a finished run on a labelled table, another hospital's too;
    an interactive run with the lower segment that it fine-tuned.

    Returns ``{"auroc", "auroc_per_class", "auroc_ci95", "n", "left_out", "trained_on", "dataset", "measures",
    "subgroups", "pooled"}``: ``measures`` has ``{"macro", "ci95", "per_class"}`` of every measure of
    :data:`focal.measure.metrics.MEASURES`, ``subgroups`` has :func:`focal.measure.subgroups.score_subgroup` of each
    part of every split in ``by`` (``sex``, ``age:50,65``, ``institution``).

    Scored are the table's ``test`` rows (``val`` where there is none); a table without a ``split`` column is scored
    whole. Images that trained the model, as far as the run's folder still knows them, are refused unless
    ``allow_seen``; ``trained_on`` counts them. ``labels`` translates its labels; ``group``
    names the column for the intervals; ``weights`` is the lower segment's source (default: the recorded one); ``cache``
    keeps features. ``pool`` and ``key`` add this site's counts to those of others (:class:`focal.runs.pooling.Pool`;
    otherwise ``pooled`` is ``None``). A class that cannot be scored is ``None``. Raises :class:`FocalError` when the
    table's labels are not the run's classes, and for an empty subgroup.
    """
    from focal.segments import upper

    head, meta = upper.load(run)
    exchange = None
    if pool is not None and key is not None:
        from focal.runs.pooling import Pool

        exchange = Pool(pool, key, meta)
    whole, left_out = _labelled_table(meta, Path(table_csv), Path(images), group, labels)
    table = whole.take(whole.test_rows)
    trained_on = _trained_on(Path(run), table, Path(table_csv), allow_seen)
    splits = {
        text: subgroups(split, _cells(table, split.column, Path(table_csv)))
        for text in by
        if (split := Split.parse(text))
    }
    scores = _logits(head, meta, table, weights, device, cache or _default_cache(run), progress)
    names = scored_classes(meta.classes, meta.task)
    measured = measure_all(table.labels, scores, table.groups, meta.task, repeats=repeats, slow_repeats=slow_repeats)
    if exchange is not None:
        from focal.measure.histogram import score_histogram

        exchange.add(score_histogram(table.labels, scores, meta.task))

    measures = {name: _told(m, names) for name, m in measured.items()}
    auroc = measures["auroc"]
    return {
        "auroc": auroc["macro"],
        "auroc_per_class": auroc["per_class"],
        "auroc_ci95": auroc["ci95"],
        "n": len(table),
        "left_out": left_out,
        "trained_on": trained_on,
        "dataset": table.name,
        "measures": measures,
        "subgroups": {
            text: {
                name: score_subgroup(table.labels[at], scores[at], table.groups[at], meta.task, names, repeats)
                for name, at in parts.items()
            }
            for text, parts in splits.items()
        },
        "pooled": None if exchange is None else exchange.result(),
    }


def _trained_on(run: Path, table: Table, csv: Path, allow: bool) -> int:
    """How many images of the table trained the model. Raises :class:`FocalError` for any, unless ``allow``."""
    count = seen(run, table, range(len(table)))
    if count and not allow:
        raise FocalError(
            f"{csv}: {count} of the {len(table)} scored images trained this model: its scores would be too good",
            hint="mark these rows 'train' in a 'split' column, remove them, or say --allow-seen",
        )
    return count


def _told(measure: Measured, names: Sequence[str]) -> dict[str, Any]:
    """A measure as JSON has it; ``None`` for a class that cannot be scored."""
    values = zip(names, measure.per_class, strict=True)
    per_class = {name: None if np.isnan(v) else float(v) for name, v in values}
    return {"macro": measure.macro, "ci95": list(measure.ci95), "per_class": per_class}


@dataclass(frozen=True)
class Predictions:
    """What a released model says of images."""

    filenames: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: Floats
    """(n, K), in the order of ``filenames`` and ``classes``."""

    def write(self, path: Path) -> None:
        """As CSV: ``filename`` and the probability of each class. The file is 0600: it names patients' images."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["filename", *self.classes])
        rows = zip(self.filenames, self.probabilities, strict=True)
        writer.writerows([name, *(f"{p:.6f}" for p in row)] for name, row in rows)
        private_write(path, text.getvalue().encode())


def predict(
    run: Path | str,
    images: Path | str,
    out_csv: Path | str | None = None,
    *,
    table_csv: Path | str | None = None,
    weights: str | None = None,
    window: tuple[float, float] | None = None,
    page: int | None = None,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """The probability of each class for every image; written to ``out_csv`` too where it is given.

    ``images`` is a folder or zip; ``table_csv`` (only its ``filename`` column is read) chooses and orders,
    otherwise every image below ``images`` is predicted, sorted by name. ``window`` and ``page`` are those of
    :class:`focal.config.DatasetConfig`: what the model was trained with.
    """
    import torch

    from focal.data.images import open_images
    from focal.data.pictures import Reading
    from focal.segments import upper

    if out_csv is not None and Path(out_csv).is_dir():
        raise FocalError(f"{out_csv} is a folder", hint="--out names the file to write")
    head, meta = upper.load(run)
    chosen = None if table_csv is None else Path(table_csv)
    table = open_images(Path(images), meta.classes, meta.task, chosen, Reading.declared(window, page))
    logits = _logits(head, meta, table, weights, device, cache or _default_cache(run), progress)
    probabilities = upper.class_probabilities(torch.from_numpy(logits), meta.task).numpy()
    found = Predictions(tuple(map(str, table.filenames)), meta.classes, probabilities)
    if out_csv is not None:
        found.write(Path(out_csv))
    return found


def _logits(
    head: UpperHead,
    meta: ModelMeta,
    table: Table,
    weights: str | None,
    device: str,
    cache: Path,
    progress: Progress | None,
) -> Floats:
    """(n, C): lower segment, then head, on every row of ``table``."""
    import torch

    from focal.segments.upper import lower_segment
    from focal.training.features import compute_features

    segment = lower_segment(meta, weights, head.trained)
    features = compute_features(segment, table, np.arange(len(table)), device=device, cache=cache, progress=progress)
    with torch.inference_mode():
        return head(torch.from_numpy(features)).numpy().astype(np.float64)


def _default_cache(run: Path | str) -> Path:
    path = Path(run)
    return (path if path.is_dir() else path.parent) / "cache"


def _labelled_table(
    meta: ModelMeta, path: Path, images: Path, group: str, labels: LabelMap | None
) -> tuple[Table, int]:
    """The table with its labels translated to the run's classes, without rows that have no counterpart,
    and how many these are.

    ::

        their labels (n, theirs)  x  who becomes whom (theirs, ours)  =  (n, ours)
    """
    from focal.data import load_for_scoring

    ours = {**{name: name for name in meta.classes}, **(labels.labels if labels else {})}
    theirs = tuple(sorted(ours))
    config = DatasetConfig(
        kind="table",
        table=path,
        images=images,
        classes=theirs,
        task="multilabel",
        group=group,
        columns=labels.columns if labels else {},
        window=labels.window if labels else None,
        page=labels.page if labels else None,
        # of what has exactly one label below, an empty cell is refused there
        unlabelled_is_negative=meta.task != "multilabel" or (labels is not None and labels.unlabelled_is_negative),
    )
    sheet = open_sheet(config)
    _check_labels(meta, sheet, ours)
    table = load_for_scoring(config)
    becomes = np.array([[ours[name] == target for target in meta.classes] for name in theirs])
    translated = (table.labels.astype(np.int64) @ becomes > 0).astype(np.uint8)
    scored = ~table.labels[:, [ours[name] is None for name in theirs]].any(axis=1)
    several = np.flatnonzero(scored & (translated.sum(axis=1) != 1))
    if meta.task != "multilabel" and len(several):
        raise FocalError(
            f"{path}: line {sheet.lines[several[0]]}: needs exactly one of the classes {', '.join(meta.classes)}",
            hint="this run tells classes apart of which an image has one; leave out rows with none or several",
        )
    table = replace(table, labels=translated, classes=meta.classes, task=meta.task).take(np.flatnonzero(scored))
    if not len(table):
        raise FocalError(
            f"{path}: no row has a label that the run knows", hint="the label map turns every one of them into null"
        )
    if not len(table.test_rows):
        raise FocalError(f"{path}: every row is marked 'train'", hint="leave the 'split' column out to score every row")
    return table, int((~scored).sum())


def _check_labels(meta: ModelMeta, sheet: Sheet, ours: Mapping[str, str | None]) -> None:
    """Raise :class:`FocalError` with both sets when the table has a label without a class,
    or the map names a class that the run lacks."""
    labels = {label.strip() for cell in sheet.column("label") for label in cell.split(";")} - {""}
    classes = ", ".join(meta.classes)
    if not labels <= set(ours):
        raise FocalError(
            f"{sheet.path}: its labels are {', '.join(sorted(labels))}, but the run's classes are {classes}"
            + (f"; not translated: {', '.join(sorted(labels - set(ours)))}" if labels & set(ours) else ""),
            hint="translate them with a label map (--labels FILE), or evaluate a run that was trained on these labels",
        )
    unknown = {target for target in ours.values() if target is not None} - set(meta.classes)
    if unknown:
        raise FocalError(
            f"the label map leads to {', '.join(sorted(unknown))}, but the run's classes are {classes}",
            hint="the right-hand sides are classes of the run, or null for rows that are not scored",
        )


def _cells(table: Table, column: str, path: Path) -> NDArray[np.str_]:
    """(n,) the cells of a column to split by."""
    if column == "institution" and table.institution is not None:
        return table.institution
    if column not in table.columns:
        known = [*(["institution"] if table.institution is not None else []), *table.columns]
        raise FocalError(
            f"{path}: has no column '{column}' to split by", hint=f"its other columns are: {', '.join(known) or 'none'}"
        )
    return table.columns[column]
