"""One table of labelled images, whatever it came from, and the reader of the table that a hospital has.

A row is one image. Rows of one group (a patient, unless the configuration names another column) stay together:
they are never split between train and test, nor between institutions::

    retina.csv                                    Table
    filename,label,patient,split,age              labels (n, K) 0/1   groups   split   institution   columns
    0_left.jpg,C,0,train,69              ----->   images ---------------> images.read(i), images.sha256(i)
    0_right.jpg,N,0,train,69                              |
    retina.zip (or a folder)  <---------------------------+  decoded on demand, in any process or thread

File names and patient ids stay in this object; nothing in this package logs them.
"""

from __future__ import annotations

import csv
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from focal.config import DatasetConfig
from focal.data.sources import Archive, Folder, ImageSource, image_source, reason
from focal.errors import FocalError
from focal.task import Task, fits, infer

SPLITS = ("train", "val", "test")


# --------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Table:
    """n images with labels, groups and a split; rows are addressed by number."""

    name: str
    """The data file's stem; it names the set in results."""
    classes: tuple[str, ...]
    task: Task
    labels: NDArray[np.uint8]
    """(n, K) in class order: one-hot, or multi-hot for ``multilabel``; binary has two columns,
    the positive class last."""
    groups: NDArray[np.str_]
    """(n,) patient (or another group); a row without one is its own group."""
    split: NDArray[np.str_]
    """(n,) ``train``, ``val`` or ``test``. Where the whole set has no test row,
    its val rows are called ``test`` here."""
    institution: NDArray[np.str_] | None
    """(n,) the ``institution`` column, when there is one."""
    filenames: NDArray[np.str_]
    """(n,) for the predictions that the owner of the images asks for; never logged."""
    columns: dict[str, NDArray[np.str_]]
    """(n,) each: the other columns (age, sex), as written."""
    images: ImageSource

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def train_rows(self) -> NDArray[np.int64]:
        """Row numbers that train."""
        return np.flatnonzero(self.split == "train")

    @property
    def test_rows(self) -> NDArray[np.int64]:
        """Row numbers that are scored."""
        return np.flatnonzero(self.split == "test")

    def take(self, rows: ArrayLike) -> Table:
        """The table of only these row numbers (k,), in this order."""
        at = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            labels=self.labels[at],
            groups=self.groups[at],
            split=self.split[at],
            institution=None if self.institution is None else self.institution[at],
            filenames=self.filenames[at],
            columns={name: values[at] for name, values in self.columns.items()},
            images=self.images.take(at),
        )

    def check_trainable(self) -> Table:
        """Return the table; raise :class:`FocalError` unless it has train rows, test rows,
        disjoint groups and something to learn."""
        for rows, kind in ((self.train_rows, "train"), (self.test_rows, "test or val")):
            if len(rows) == 0:
                raise FocalError(
                    f"data set '{self.name}' has no {kind} row",
                    hint="mark rows in the 'split' column, or leave the column out for a seeded split",
                )
        shared = np.intersect1d(self.groups[self.train_rows], self.groups[self.test_rows])
        if len(shared):
            raise FocalError(
                f"data set '{self.name}': {len(shared)} patients or groups have rows in train and in test, "
                "which would inflate every score",
                hint="give all rows of one patient the same split, "
                "or leave the 'split' column out for a seeded split by patient",
            )
        return self

    def check_classes(self) -> Table:
        """Return the table; raise :class:`FocalError` when every train row has the same label,
        so that nothing can be learned."""
        labels = self.labels[self.train_rows]
        if (labels == labels[:1]).all():
            raise FocalError(
                f"data set '{self.name}': all {len(labels)} train rows have the same label",
                hint="a diagnostic model needs at least two classes; add rows, "
                "or check the 'label' and 'split' columns",
            )
        return self


def scored_split(split: NDArray[np.str_]) -> NDArray[np.str_]:
    """Val rows stand in for test only when there is no test row at all."""
    return split if (split == "test").any() else np.where(split == "val", "test", split)


def seeded_split(groups: NDArray[np.str_], test_fraction: float, seed: int, name: str) -> NDArray[np.str_]:
    """(n,) ``train`` or ``test``: a ``test_fraction`` of the groups, drawn from ``seed``, is held out;
    at least one group on each side."""
    unique = np.unique(groups)
    if len(unique) < 2:
        raise FocalError(
            f"{name}: all rows belong to one patient or group, so no test rows can be held out", hint="add patients"
        )
    held = min(max(round(test_fraction * len(unique)), 1), len(unique) - 1)
    test = np.random.default_rng([seed, 1]).permutation(unique)[:held]
    return np.where(np.isin(groups, test), "test", "train")


# --------------------------------------------------------------------------- reading a CSV


def read_table(config: DatasetConfig, seed: int) -> Table:
    """The table that ``config`` describes, every row of it. Raises :class:`FocalError` naming
    the file and the way out."""
    frame, path = _read_csv(config), _given(config.table)
    if "label" not in frame:
        raise _column_missing(path, "label", frame)
    return _table(config, frame, _split_column(frame, path), seed)


def read_unsplit_table(config: DatasetConfig) -> Table:
    """For scoring new images with a finished model: the label column may be missing (all labels 0),
    and rows without a split are test rows.

    ``config.classes`` and ``config.task`` must be given.
    """
    frame, path = _read_csv(config), _given(config.table)
    split = _split_column(frame, path)
    if split is None:
        split = np.full(len(frame), "test")
    return _table(config, frame, split, seed=0)


def read_column(path: Path, name: str) -> list[str]:
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
        raise FocalError(
            f"{path}: has no column '{name}' (found: {', '.join(header) or 'nothing'})", hint=f"add a column '{name}'"
        )
    at = header.index(name)
    return [row[at].strip() for row in rows[1:] if len(row) > at]


def _table(config: DatasetConfig, frame: pd.DataFrame, split: NDArray[np.str_] | None, seed: int) -> Table:
    path = _given(config.table)
    filenames = _strings(frame["filename"])
    groups = _groups(frame, config.group, path)
    if "label" in frame:
        classes, task, labels = _labels(frame["label"], config, path)
    else:
        classes, task = config.classes or (), config.task or "multiclass"
        labels = np.zeros((len(frame), len(classes)), np.uint8)
    used = {"filename", "label", "split", "institution", config.group}
    return Table(
        name=path.stem,
        classes=classes,
        task=task,
        labels=labels,
        groups=groups,
        split=scored_split(seeded_split(groups, config.test_fraction, seed, str(path)) if split is None else split),
        institution=_strings(frame["institution"]) if "institution" in frame else None,
        filenames=filenames,
        columns={str(c): _strings(frame[c]) for c in frame.columns if c not in used},
        images=image_source(config, _open_store(_given(config.images), filenames.tolist(), path), filenames),
    )


def _read_csv(config: DatasetConfig) -> pd.DataFrame:
    """The CSV as strings, nothing guessed: no numbers, no missing values."""
    path = _given(config.table)
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig")
    except OSError as e:
        raise FocalError(
            f"{path}: cannot be read ({reason(e)})", hint="'dataset.table' names the CSV; is the path right?"
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as e:
        why = str(e).splitlines()[0]
        raise FocalError(
            f"{path}: is not a CSV table ({why})", hint="write it as UTF-8, comma separated, one line per image"
        ) from None
    frame.columns = [str(c).strip().lower() for c in frame.columns]
    if "filename" not in frame:
        raise _column_missing(path, "filename", frame)
    if frame.empty:
        raise FocalError(f"{path}: has no rows", hint="write one line per image below the header")
    return frame


def _column_missing(path: Path, column: str, frame: pd.DataFrame) -> FocalError:
    return FocalError(
        f"{path}: has no column '{column}' (found: {', '.join(frame.columns)})",
        hint="the columns are filename,label[,patient][,split][,institution]",
    )


def _strings(column: pd.Series[str]) -> NDArray[np.str_]:
    return np.array([value.strip() for value in column], dtype=np.str_)


def _given(path: Path | None) -> Path:
    if path is None:  # config.DatasetConfig refuses such a file before anything is read
        raise FocalError("the data set names no file", hint="set 'table' and 'images'")
    return path


def _split_column(frame: pd.DataFrame, path: Path) -> NDArray[np.str_] | None:
    if "split" not in frame:
        return None
    split = np.char.lower(_strings(frame["split"]))
    for line, value in enumerate(split, start=2):
        if value not in SPLITS:
            raise FocalError(f"{path}: line {line}: split '{value}' is none of {', '.join(SPLITS)}")
    return split


def _groups(frame: pd.DataFrame, column: str, path: Path) -> NDArray[np.str_]:
    """(n,) the group column; rows without a value are groups of their own. Only the default column may be absent."""
    if column not in frame:
        if column != "patient":
            raise FocalError(
                f"{path}: has no column '{column}'",
                hint=f"'dataset.group' must name one of: {', '.join(frame.columns)}",
            )
        return own_groups(len(frame))
    values = _strings(frame[column])
    return np.where(values == "", own_groups(len(frame)), values)


def own_groups(n: int) -> NDArray[np.str_]:
    """(n,) every row its own group."""
    return np.array([f"row-{i}" for i in range(n)], dtype=np.str_)


def _labels(
    column: pd.Series[str], config: DatasetConfig, path: Path
) -> tuple[tuple[str, ...], Task, NDArray[np.uint8]]:
    """Class order, task and the (n, K) 0/1 matrix of a label column, in which ``A;B`` is both A and B."""
    parts = [[p.strip() for p in cell.split(";") if p.strip()] for cell in column]
    classes = config.classes or tuple(sorted({p for row in parts for p in row}))
    task = config.task or infer(len(classes), several=column.str.contains(";", regex=False).any())
    if not fits(len(classes), task):
        raise FocalError(
            f"{path}: a {task} task does not fit {len(classes)} classes ({', '.join(classes)})",
            hint="name them all in 'dataset.classes', also those that no row of this table has",
        )
    index = {c: k for k, c in enumerate(classes)}
    labels = np.zeros((len(parts), len(classes)), np.uint8)
    for i, row in enumerate(parts):
        if task != "multilabel" and len(row) != 1:
            raise FocalError(
                f"{path}: line {i + 2}: a {task} task needs exactly one label, not '{column.iloc[i]}'",
                hint="or set 'task: multilabel'",
            )
        for label in row:
            if label not in index:
                raise FocalError(
                    f"{path}: line {i + 2}: label '{label}' is not among the classes {', '.join(classes)}",
                    hint="correct the line, or add the class to 'dataset.classes' "
                    "(every member must use the same list)",
                )
            labels[i, index[label]] = 1
    return classes, task, labels


def _open_store(path: Path, names: list[str], table: Path) -> Folder | Archive:
    """The folder or zip that holds every named image."""
    try:
        store = Folder(path) if path.is_dir() else Archive(path)
        missing = store.missing(names)
    except FileNotFoundError:
        raise FocalError(f"{path}: no such folder or zip", hint="'dataset.images' names where the images are") from None
    except (OSError, zipfile.BadZipFile) as e:
        raise FocalError(
            f"{path}: is neither a folder nor a zip of images ({reason(e)})", hint="check 'dataset.images'"
        ) from None
    if missing:
        raise FocalError(
            f"{path}: {len(missing)} of {len(names)} images of {table.name} are missing, the first is '{missing[0]}'",
            hint="file names in the table are relative to the folder (or to the top of the zip)",
        )
    return store
