"""How good a released model is: on a local run's test rows against its baselines, and on new data on its own.

::

    local run      rows of every institution --+-- train --> logistic regression alone / pooled
                   released W, twin W ---------+-- test, all institutions together --> AUROC of each, 95 % interval by patient
    evaluate       runs/NAME/model.pt + a labelled table    --> AUROC            predict: + images --> probabilities per image

Every model is scored on its linear outputs, one column per class (binary: the positive class), on the same rows with the same resamples.
Rows of features and labels exist where this module runs: on a machine that may see them.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from focal.baselines.logistic import fit_logistic
from focal.config import DatasetConfig, Task, private_write
from focal.errors import FocalError
from focal.report.metrics import auroc_per_class, bootstrap_ci, macro_auroc
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
    everyone = _union(rows)
    held, train = everyone.split == _test_name(everyone.split), everyone.split == "train"
    test, labels, groups = everyone.features[held], everyone.labels[held], everyone.groups[held]
    columns = projection.apply(test)

    alone = {}
    for name, own in rows.items():
        mine = own.split == "train"
        alone[name] = fit_logistic(own.features[mine], own.labels[mine], own.groups[mine], task, seed, name=name).scores(test)
    pooled = fit_logistic(everyone.features[train], everyone.labels[train], everyone.groups[train], task, seed).scores(test)
    encrypted, in_clear = columns @ released, columns @ exact

    def auroc(scores: Floats) -> float:
        return macro_auroc(labels, scores, task)

    def interval(scores: Floats) -> tuple[float, float]:
        return bootstrap_ci(labels, scores, groups, task, repeats=repeats, seed=seed)

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
        max_abs_weight_error=float(np.abs(released - exact).max()),
        labels=labels,
        encrypted=encrypted,
        per_class={
            name: auroc_per_class(labels, scores, task)
            for name, scores in {"encrypted": encrypted, "pooled_plaintext": pooled, **alone}.items()
        },
    )


def score_site(
    own: InstitutionRows, projection: Projection, weights: ArrayLike, task: Task, *, seed: int = 0, repeats: int = 1000
) -> tuple[Auroc, AurocInterval]:
    """What one institution can say on its own, on several machines: the released weights (R, C) on its own test rows."""
    held = own.split == _test_name(own.split)
    scores = projection.apply(own.features[held]) @ np.asarray(weights, dtype=np.float64)
    interval = bootstrap_ci(own.labels[held], scores, own.groups[held], task, repeats=repeats, seed=seed)
    return Auroc(encrypted=macro_auroc(own.labels[held], scores, task)), AurocInterval(encrypted=interval)


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


def evaluate(
    run: Path | str,
    table_csv: Path | str,
    images: Path | str,
    *,
    weights: str | None = None,
    group: str = "patient",
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
    repeats: int = 1000,
) -> dict[str, Any]:
    """Score a finished run on a labelled table: ``{"auroc", "auroc_per_class", "auroc_ci95", "n", "dataset"}``.

    Scored are the table's ``test`` rows (``val`` where there is none), so that a run's own data is never scored on rows that trained it;
    a table without a ``split`` column is scored whole. ``group`` names the column for the interval; ``weights`` is the lower segment's
    source (default: the recorded one); ``cache`` keeps features. A class that cannot be scored is ``None`` in ``auroc_per_class``.
    Raises :class:`FocalError` when the table's labels are not the run's classes.
    """
    from focal.data import load_for_scoring
    from focal.segments import upper

    head, meta = upper.load(run)
    _check_labels(meta, Path(table_csv))
    config = DatasetConfig(kind="table", table=Path(table_csv), images=Path(images), classes=meta.classes, task=meta.task, group=group)
    table = load_for_scoring(config)
    if not len(table.test_rows):
        raise FocalError(f"{table_csv}: every row is marked 'train'", hint="leave the 'split' column out to score every row")
    table = table.take(table.test_rows)
    scores = _logits(head, meta, table, weights, device, cache or _default_cache(run), progress)
    per_class = auroc_per_class(table.labels, scores, meta.task)
    names = meta.classes[-1:] if meta.task == "binary" else meta.classes
    return {
        "auroc": macro_auroc(table.labels, scores, meta.task),
        "auroc_per_class": {name: None if np.isnan(v) else float(v) for name, v in zip(names, per_class, strict=True)},
        "auroc_ci95": list(bootstrap_ci(table.labels, scores, table.groups, meta.task, repeats=repeats)),
        "n": len(table),
        "dataset": table.name,
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
    table = _unlabelled(meta, Path(images), None if table_csv is None else _column(Path(table_csv), "filename"))
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

    segment = lower_segment(meta, weights)
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


def _check_labels(meta: ModelMeta, path: Path) -> None:
    """Raise :class:`FocalError` with both sets when the table has a label that the run's classes lack."""
    labels = {label.strip() for cell in _column(path, "label") for label in cell.split(";")} - {""}
    if not labels <= set(meta.classes):
        raise FocalError(
            f"{path}: its labels are {', '.join(sorted(labels))}, but the run's classes are {', '.join(meta.classes)}",
            hint="write the run's class names into the label column, or evaluate a run that was trained on these labels",
        )


def _unlabelled(meta: ModelMeta, images: Path, names: list[str] | None) -> Table:
    """Images to be predicted as a table without labels: ``names``, or every image below ``images``."""
    from focal.data.table import EncodedImages, Table

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
