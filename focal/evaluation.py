"""How good a released model is: on a local run's test rows against its baselines, and on new data on its own.

::

    local run      rows of every institution --+-- train --> logistic regression alone / pooled
                   released W, twin W ---------+-- test, all institutions together --> AUROC of each, 95 % interval by patient
    evaluate       runs/NAME/model.pt + a labelled table    --> every measure, by site and subgroup
    predict        runs/NAME/model.pt + images              --> probabilities per image

Every model is scored on its linear outputs, one column per class (binary: the positive class), on the same rows with the same resamples.
Rows of features and labels exist where this module runs: on a machine that may see them.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from focal.baselines.logistic import LogisticModel, fit_logistic
from focal.config import DatasetConfig, Model, Task
from focal.errors import FocalError
from focal.files import private_write
from focal.report.metrics import auroc_per_class, bootstrap_ci, macro_auroc, measure_all
from focal.report.subgroups import Split, score_subgroup, subgroups
from focal.report.summary import Auroc, AurocInterval

if TYPE_CHECKING:
    from focal.data.table import Archive, Folder, Table
    from focal.segments.projection import Projection
    from focal.segments.upper import ModelMeta, UpperHead

Floats = NDArray[np.float64]
Progress = Callable[[int, int], None]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


# --------------------------------------------------------------------------- a local run


@dataclass(frozen=True)
class InstitutionRows:
    """One institution's rows as a local run may see them."""

    features: NDArray[np.float32]
    """(n, dim) raw features of the lower segment, before the projection."""
    labels: NDArray[np.uint8]
    """(n, K) one-hot or multi-hot."""
    groups: NDArray[np.str_]
    """(n,) patient ids."""
    split: NDArray[np.str_]
    """(n,) ``train``, ``val`` or ``test``."""

    def take(self, rows: NDArray[np.bool_]) -> InstitutionRows:
        """Only the rows marked in (n,) ``rows``."""
        return InstitutionRows(self.features[rows], self.labels[rows], self.groups[rows], self.split[rows])


@dataclass(frozen=True)
class LocalScores:
    """What :func:`score_local_run` found: the numbers of the summary, and what the plots need."""

    auroc: Auroc
    auroc_ci95: AurocInterval
    max_abs_weight_error: float
    labels: NDArray[np.uint8]
    """(n, K) of the test rows, for the ROC curves."""
    encrypted: Floats
    """(n, C) linear outputs of the released head on the test rows."""
    per_class: dict[str, Floats]
    """Model (``encrypted``, ``pooled_plaintext``, each institution) -> (C,) AUROC of every class; NaN where undefined."""


def score_local_run(
    rows: Mapping[str, InstitutionRows],
    projection: Projection,
    weights: ArrayLike,
    twin: ArrayLike,
    task: Task,
    *,
    seed: int = 0,
    repeats: int = 1000,
) -> LocalScores:
    """Score released weights (R, C) and their plaintext twin (R, C) beside the baselines.

    All on the union of the institutions' test rows (``val`` where there is no test row at all); only ``train`` rows train. Raises
    :class:`FocalError` when there is nothing to score.
    """
    released, exact = np.asarray(weights, dtype=np.float64), np.asarray(twin, dtype=np.float64)
    columns = projection.apply(test_rows(rows).features)
    error = float(np.abs(released - exact).max())
    return compare_scores(rows, columns @ released, columns @ exact, error, task, seed=seed, repeats=repeats)


def compare_scores(
    rows: Mapping[str, InstitutionRows],
    encrypted: Floats,
    in_clear: Floats,
    weight_error: float,
    task: Task,
    *,
    seed: int = 0,
    repeats: int = 1000,
) -> LocalScores:
    """Linear outputs (n, C) on :func:`test_rows` of a released model and of its plaintext twin, scored beside the baselines."""
    test = test_rows(rows)
    pooled, alone = baseline_scores(rows, task, seed=seed)

    def auroc(scores: Floats) -> float:
        return macro_auroc(test.labels, scores, task)

    def interval(scores: Floats) -> tuple[float, float]:
        return bootstrap_ci(test.labels, scores, test.groups, task, repeats=repeats, seed=seed)

    return LocalScores(
        auroc=Auroc(
            encrypted=auroc(encrypted),
            plaintext_twin=auroc(in_clear),
            institutions={name: auroc(scores) for name, scores in alone.items()},
            pooled_plaintext=auroc(pooled),
        ),
        auroc_ci95=AurocInterval(
            encrypted=interval(encrypted),
            plaintext_twin=interval(in_clear),
            institutions={name: interval(scores) for name, scores in alone.items()},
            pooled_plaintext=interval(pooled),
        ),
        max_abs_weight_error=weight_error,
        labels=test.labels,
        encrypted=encrypted,
        per_class={
            name: auroc_per_class(test.labels, scores, task)
            for name, scores in {"encrypted": encrypted, "pooled_plaintext": pooled, **alone}.items()
        },
    )


def baseline_scores(rows: Mapping[str, InstitutionRows], task: Task, *, seed: int = 0) -> tuple[Floats, dict[str, Floats]]:
    """Linear outputs (n, C) of scikit-learn's logistic regression on :func:`test_rows`: pooled, and each institution alone, by name."""
    test, everyone = test_rows(rows).features, _union(rows)
    alone = {name: _fit(own, task, seed, name).scores(test) for name, own in rows.items()}
    return _fit(everyone, task, seed, "pooled").scores(test), alone


def _fit(own: InstitutionRows, task: Task, seed: int, name: str) -> LogisticModel:
    train = own.split == "train"
    return fit_logistic(own.features[train], own.labels[train], own.groups[train], task, seed, name=name)


def test_rows(rows: Mapping[str, InstitutionRows]) -> InstitutionRows:
    """What is scored: the test rows of all institutions (``val`` where there is no test row at all), in the order of ``rows``."""
    everyone = _union(rows)
    return everyone.take(everyone.split == _test_name(everyone.split))


test_rows.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it by its name


def read_rows(party: Path) -> tuple[InstitutionRows, Floats]:
    """What an institution keeps of a finished run in its folder (``rows.npz``): its rows, and the released weights (R, C).

    Raises :class:`FocalError` when there is none, or it is damaged.
    """
    path = party / "rows.npz"
    try:
        with np.load(path) as f:
            rows = InstitutionRows(f["features"], f["labels"], f["groups"], f["split"])
            return rows, np.asarray(f["weights"], dtype=np.float64)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as e:
        why = getattr(e, "strerror", None) or "damaged"
        raise FocalError(f"{path}: cannot be read ({why})", hint="'focal clean' removes it; the summary stays") from None


def score_outputs(
    labels: NDArray[np.uint8], scores: Floats, groups: NDArray[np.str_], task: Task, *, seed: int = 0, repeats: int = 1000
) -> tuple[Auroc, AurocInterval]:
    """What one institution can say on its own, on several machines: a released model's linear outputs (n, C) on its test rows."""
    interval = bootstrap_ci(labels, scores, groups, task, repeats=repeats, seed=seed)
    return Auroc(encrypted=macro_auroc(labels, scores, task)), AurocInterval(encrypted=interval)


def _union(rows: Mapping[str, InstitutionRows]) -> InstitutionRows:
    """All institutions' rows; equal patient ids of two institutions are two patients."""
    return InstitutionRows(
        features=np.concatenate([own.features for own in rows.values()]),
        labels=np.concatenate([own.labels for own in rows.values()]),
        groups=np.concatenate([np.char.add(f"{name}/", own.groups.astype(str)) for name, own in rows.items()]),
        split=np.concatenate([own.split for own in rows.values()]),
    )


def _test_name(split: NDArray[np.str_]) -> str:
    for name in ("test", "val"):
        if (split == name).any():
            return name
    raise FocalError("there are no test rows to score", hint="mark rows 'test' in the table's split column, or leave the column out")


# --------------------------------------------------------------------------- a finished run on new data


class LabelMap(Model):
    """Another hospital's labels in the run's words: ``labels: {DR: D, "healthy eye": N, blurred: null}`` as YAML or JSON."""

    labels: dict[str, str | None]
    """Their label -> our class; ``null``: rows with it are not scored. Labels that are ours already need no entry."""


def evaluate(
    run: Path | str,
    table_csv: Path | str,
    images: Path | str,
    *,
    labels: LabelMap | None = None,
    by: Sequence[str] = (),
    weights: str | None = None,
    group: str = "patient",
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
    pool: Path | None = None,
    key: Path | None = None,
    repeats: int = 1000,
    slow_repeats: int = 200,
) -> dict[str, Any]:
    """Score a finished run on a labelled table, another hospital's too; an interactive run with the lower segment that it fine-tuned.

    Returns ``{"auroc", "auroc_per_class", "auroc_ci95", "n", "left_out", "dataset", "measures", "subgroups", "pooled"}``: ``measures`` has
    ``{"macro", "ci95", "per_class"}`` of every measure of :data:`focal.report.metrics.MEASURES`, ``subgroups`` has
    :func:`focal.report.subgroups.score_subgroup` of each part of every split in ``by`` (``sex``, ``age:50,65``, ``institution``).

    Scored are the table's ``test`` rows (``val`` where there is none), so that a run's own data is never scored on rows that trained it;
    a table without a ``split`` column is scored whole. ``labels`` translates its labels; ``group`` names the column for the intervals;
    ``weights`` is the lower segment's source (default: the recorded one); ``cache`` keeps features. ``pool`` and ``key`` add this site's
    counts to those of others (:class:`focal.pooling.Pool`; otherwise ``pooled`` is ``None``). A class that cannot be scored is ``None``.
    Raises :class:`FocalError` when the table's labels are not the run's classes, and for an empty subgroup.
    """
    from focal.segments import upper

    head, meta = upper.load(run)
    exchange = None
    if pool is not None and key is not None:
        from focal.pooling import Pool

        exchange = Pool(pool, key, meta)
    whole = _labelled_table(meta, Path(table_csv), Path(images), group, labels)
    table = whole.take(whole.test_rows)
    splits = {text: subgroups(split, _cells(table, split.column, Path(table_csv))) for text in by if (split := Split.parse(text))}
    scores = _logits(head, meta, table, weights, device, cache or _default_cache(run), progress)
    names = meta.classes[-1:] if meta.task == "binary" else meta.classes
    measured = measure_all(table.labels, scores, table.groups, meta.task, repeats=repeats, slow_repeats=slow_repeats)
    if exchange is not None:
        from focal.report.histogram import score_histogram

        exchange.add(score_histogram(table.labels, scores, meta.task))

    def by_name(values: Floats) -> dict[str, float | None]:
        return {name: None if np.isnan(v) else float(v) for name, v in zip(names, values, strict=True)}

    return {
        "auroc": measured["auroc"].macro,
        "auroc_per_class": by_name(measured["auroc"].per_class),
        "auroc_ci95": list(measured["auroc"].ci95),
        "n": len(table),
        "left_out": _left_out(Path(table_csv), labels),
        "dataset": table.name,
        "measures": {name: {"macro": m.macro, "ci95": list(m.ci95), "per_class": by_name(m.per_class)} for name, m in measured.items()},
        "subgroups": {
            text: {
                name: score_subgroup(table.labels[at], scores[at], table.groups[at], meta.task, names, repeats)
                for name, at in parts.items()
            }
            for text, parts in splits.items()
        },
        "pooled": None if exchange is None else exchange.result(),
    }


def predict(
    run: Path | str,
    images: Path | str,
    out_csv: Path | str,
    *,
    table_csv: Path | str | None = None,
    weights: str | None = None,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> int:
    """Write ``filename`` and the probability of each class for every image; returns how many.

    ``images`` is a folder or zip; ``table_csv`` (only its ``filename`` column is read) chooses and orders, otherwise every image below
    ``images`` is predicted, sorted by name. The file is 0600: it names patients' images.
    """
    import torch

    from focal.segments import upper

    head, meta = upper.load(run)
    table = open_images(meta, Path(images), None if table_csv is None else Path(table_csv))
    logits = _logits(head, meta, table, weights, device, cache or _default_cache(run), progress)
    probabilities = upper.class_probabilities(torch.from_numpy(logits), meta.task).numpy()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["filename", *meta.classes])
    writer.writerows([name, *(f"{p:.6f}" for p in row)] for name, row in zip(table.filenames, probabilities, strict=True))
    private_write(Path(out_csv), text.getvalue().encode())
    return len(table)


def _logits(
    head: UpperHead, meta: ModelMeta, table: Table, weights: str | None, device: str, cache: Path, progress: Progress | None
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


def _column(path: Path, name: str) -> list[str]:
    """One column of a CSV. Raises :class:`FocalError` when the file or the column is not there."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            rows = list(csv.reader(f, skipinitialspace=True))
    except OSError as e:
        raise FocalError(f"{path}: cannot be read ({e.strerror})", hint="--table names a CSV file") from None
    except (UnicodeDecodeError, csv.Error):
        raise FocalError(f"{path}: is not a CSV table", hint="write it as UTF-8, comma separated") from None
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if name not in header:
        raise FocalError(f"{path}: has no column '{name}' (found: {', '.join(header) or 'nothing'})", hint=f"add a column '{name}'")
    at = header.index(name)
    return [row[at].strip() for row in rows[1:] if len(row) > at]


def _labelled_table(meta: ModelMeta, path: Path, images: Path, group: str, labels: LabelMap | None) -> Table:
    """The table with its labels translated to the run's classes, without rows that have no counterpart.

    ::

        their labels (n, theirs)  x  who becomes whom (theirs, ours)  =  (n, ours)
    """
    from focal.data import load_for_scoring

    ours = {**{name: name for name in meta.classes}, **(labels.labels if labels else {})}
    _check_labels(meta, path, ours)
    theirs = tuple(sorted(ours))
    table = load_for_scoring(DatasetConfig(kind="table", table=path, images=images, classes=theirs, task="multilabel", group=group))
    becomes = np.array([[ours[name] == target for target in meta.classes] for name in theirs])
    translated = (table.labels.astype(np.int64) @ becomes > 0).astype(np.uint8)
    scored = ~table.labels[:, [ours[name] is None for name in theirs]].any(axis=1)
    several = np.flatnonzero(scored & (translated.sum(axis=1) != 1))
    if meta.task != "multilabel" and len(several):
        raise FocalError(
            f"{path}: line {several[0] + 2}: needs exactly one of the classes {', '.join(meta.classes)}",
            hint="this run tells classes apart of which an image has one; leave out rows with none or several",
        )
    table = replace(table, labels=translated, classes=meta.classes, task=meta.task).take(np.flatnonzero(scored))
    if not len(table):
        raise FocalError(f"{path}: no row has a label that the run knows", hint="the label map turns every one of them into null")
    if not len(table.test_rows):
        raise FocalError(f"{path}: every row is marked 'train'", hint="leave the 'split' column out to score every row")
    return table


def _check_labels(meta: ModelMeta, path: Path, ours: Mapping[str, str | None]) -> None:
    """Raise :class:`FocalError` with both sets when the table has a label without a class, or the map names a class that the run lacks."""
    labels = {label.strip() for cell in _column(path, "label") for label in cell.split(";")} - {""}
    classes = ", ".join(meta.classes)
    if not labels <= set(ours):
        raise FocalError(
            f"{path}: its labels are {', '.join(sorted(labels))}, but the run's classes are {classes}"
            + (f"; not translated: {', '.join(sorted(labels - set(ours)))}" if labels & set(ours) else ""),
            hint="translate them with a label map (--labels FILE), or evaluate a run that was trained on these labels",
        )
    unknown = {target for target in ours.values() if target is not None} - set(meta.classes)
    if unknown:
        raise FocalError(
            f"the label map leads to {', '.join(sorted(unknown))}, but the run's classes are {classes}",
            hint="the right-hand sides are classes of the run, or null for rows that are not scored",
        )


def _left_out(path: Path, labels: LabelMap | None) -> int:
    """Rows that the map leaves out: those with a label without a counterpart."""
    without = {name for name, target in labels.labels.items() if target is None} if labels else set()
    return sum(any(label.strip() in without for label in cell.split(";")) for cell in _column(path, "label"))


def _cells(table: Table, column: str, path: Path) -> NDArray[np.str_]:
    """(n,) the cells of a column to split by."""
    if column == "institution" and table.institution is not None:
        return table.institution
    if column not in table.columns:
        known = [*(["institution"] if table.institution is not None else []), *table.columns]
        raise FocalError(f"{path}: has no column '{column}' to split by", hint=f"its other columns are: {', '.join(known) or 'none'}")
    return table.columns[column]


def open_images(meta: ModelMeta, images: Path, table_csv: Path | None) -> Table:
    """Images as a table without labels: those in the table's ``filename`` column, in its order, or every one below ``images`` by name."""
    from focal.data.table import EncodedImages, Table

    names = None if table_csv is None else _column(table_csv, "filename")
    store, held = _open(images)
    missing = [] if names is None else store.missing(names)
    if missing:
        raise FocalError(f"{images}: {len(missing)} of {len(names or [])} images are missing, the first is '{missing[0]}'")
    chosen = np.array(held if names is None else names, dtype=np.str_)
    if not len(chosen):
        raise FocalError(f"{images}: holds no images", hint=f"expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return Table(
        name=images.stem,
        classes=meta.classes,
        task=meta.task,
        labels=np.zeros((len(chosen), len(meta.classes)), np.uint8),
        groups=chosen,
        split=np.full(len(chosen), "test"),
        institution=None,
        filenames=chosen,
        columns={},
        images=EncodedImages(store, chosen),
    )


def _open(images: Path) -> tuple[Folder | Archive, list[str]]:
    """The folder or zip and the names of the images in it, sorted."""
    from focal.data.table import Archive, Folder

    if images.is_dir():
        names = [str(p.relative_to(images)) for p in images.rglob("*") if p.is_file()]
        store: Folder | Archive = Folder(images)
    elif zipfile.is_zipfile(images):
        store = Archive(images)
        with zipfile.ZipFile(images) as z:
            names = z.namelist()
    else:
        raise FocalError(f"{images}: is neither a folder nor a zip", hint="--images names the folder or zip with the images")
    return store, sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES))
