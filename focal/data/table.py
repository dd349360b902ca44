"""One table of labelled images, whatever it came from, and how it is made of the table that a hospital has
(:mod:`focal.data.sheet` reads its text, :mod:`focal.data.labels` its labels).

A row is one image. Rows of one group (a patient, unless the configuration names another column) stay together:
they are never split between train and test, nor between institutions::

    retina.csv, retina.xlsx                       Table
    filename,label,patient,split,age              labels (n, K) 0/1   groups   split   institution   columns
    0_left.jpg,C,0,train,69              ----->   images ---------------> images.read(i), images.sha256(i)
    0_right.jpg,N,0,train,69                              |
    retina.zip (or a folder)  <---------------------------+  decoded on demand, in any process or thread

File names and patient ids stay in this object; nothing in this package logs them.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

import numpy as np
from numpy.typing import ArrayLike, NDArray

from focal.config import NO_GROUP, DatasetConfig
from focal.data.labels import Labels, read_labels
from focal.data.sheet import Sheet, alike, look, read_sheet
from focal.data.sources import Archive, Folder, ImageSource, image_source, reason
from focal.errors import FocalError
from focal.task import Task

SPLITS = ("train", "val", "test")
MISSING = 20
"""Names of missing files that an error says."""


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
    notes: tuple[str, ...] = ()
    """What people should read before they train on it."""
    keys: NDArray[np.str_] | None = None
    """(n,) hashes of the images, once somebody has read them (:func:`focal.data.examine.examine`)."""

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, i: int) -> str:
        """The hash of row ``i``'s image. Reads the file where that is not known yet."""
        return self.images.sha256(i) if self.keys is None else str(self.keys[i])

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
            keys=None if self.keys is None else self.keys[at],
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

    def check_scorable(self) -> Table:
        """Return the table; raise :class:`FocalError` when every test row has the same label: no model would get a
        score, and that would be found out at the end."""
        labels = self.labels[self.test_rows]
        if (labels == labels[:1]).all():
            raise FocalError(
                f"data set '{self.name}': all {len(labels)} test rows have the same label, so nothing can be scored",
                hint="mark test rows of at least two classes in the 'split' column",
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


# --------------------------------------------------------------------------- reading one

ROLES = ("filename", "label", "split", "institution")
"""Columns with a meaning, beside the group's."""

LIKELY = {
    "split": re.compile(r"^(set|subset|fold|partition|phase|usage|data_?set)$"),
    "institution": re.compile(r"^(site|hospital|cent(er|re)|clinic|institute|source)(_?(id|name))?$"),
}
"""Names that hospitals give to the column that we know under another one."""
PATIENT = re.compile(r"patient|subject|person|^(mrn|pid|case|study|participant)([ _-]?(id|no|number))?$")

ROUNDED = re.compile(r"^[0-9]([.,][0-9]+)?E\+[0-9]+$", re.IGNORECASE)
"""How a spreadsheet shows a number that is too long for it. (A pseudonym such as 7e10 has no plus.)"""


def read_table(config: DatasetConfig, seed: int) -> Table:
    """The table that ``config`` describes, every row of it. Raises :class:`FocalError` naming
    the file, the line and the way out."""
    sheet = open_sheet(config)
    return _table(config, sheet, read_labels(sheet, config), _split_column(sheet), seed)


def read_unsplit_table(config: DatasetConfig) -> Table:
    """For scoring new images with a finished model: the label column may be missing (all labels 0),
    and rows without a split are test rows.

    ``config.classes`` and ``config.task`` must be given.
    """
    sheet = open_sheet(config)
    split = _split_column(sheet)
    if split is None:
        split = np.full(len(sheet), "test")
    if "label" in sheet or "label" in config.columns:
        labels = read_labels(sheet, config)
    else:
        classes = config.classes or ()
        labels = Labels(classes, config.task or "multiclass", np.zeros((len(sheet), len(classes)), np.uint8))
    return _table(config, sheet, labels, split, seed=0)


def open_sheet(config: DatasetConfig) -> Sheet:
    """The table's text with the columns called as we call them (:attr:`DatasetConfig.columns`)."""
    one = {ours: theirs for ours, theirs in config.columns.items() if isinstance(theirs, str)}
    sheet = read_sheet(_given(config.table)).renamed(one)
    sheet.column("filename")
    sheet.check_results({*ROLES, config.group})
    return sheet


def _table(config: DatasetConfig, sheet: Sheet, labels: Labels, split: NDArray[np.str_] | None, seed: int) -> Table:
    path, filenames = sheet.path, sheet.column("filename")
    groups, notes = _groups(sheet, config.group)
    one_hot = config.columns.get("label")
    used = {*ROLES, config.group, *(one_hot if isinstance(one_hot, tuple) else ())}
    others = [column for column in sheet.header if column and column not in used]
    for role, likely in LIKELY.items():
        for column in others:
            if role not in sheet and likely.match(column):
                notes.append(f"its column '{column}' looks like '{role}' and is not used as such (dataset.columns)")
    return Table(
        name=path.stem,
        classes=labels.classes,
        task=labels.task,
        labels=labels.matrix,
        groups=groups,
        split=scored_split(seeded_split(groups, config.test_fraction, seed, str(path)) if split is None else split),
        institution=sheet.column("institution") if "institution" in sheet else None,
        filenames=filenames,
        columns={column: sheet.column(column) for column in others},
        images=image_source(config, _open_store(config, filenames.tolist(), path), filenames),
        notes=(*sheet.notes, *labels.notes, *notes),
    )


def _given(path: Path | None) -> Path:
    if path is None:  # config.DatasetConfig refuses such a file before anything is read
        raise FocalError("the data set names no file", hint="set 'table' and 'images'")
    return path


def _split_column(sheet: Sheet) -> NDArray[np.str_] | None:
    if "split" not in sheet:
        return None
    split = np.char.lower(sheet.column("split"))
    for line, value in zip(sheet.lines, split, strict=True):
        if value not in SPLITS:
            raise FocalError(
                f"{sheet.path}: line {line}: split '{value}' is none of {', '.join(SPLITS)}",
                hint="write one of these words in every line, or leave the column out",
            )
    return split


def _groups(sheet: Sheet, column: str) -> tuple[NDArray[np.str_], list[str]]:
    """(n,) the group column as text, and what to say of it; rows without a value are groups of their own.

    A table that does not tell patients apart is refused: with images of one patient in train and in test every score,
    and every interval, would be too good.
    """
    alone = own_groups(len(sheet))
    if column == NO_GROUP:
        return alone, []
    if column not in sheet:
        like = [name for name in sheet.header if PATIENT.search(name)]
        raise FocalError(
            f"{sheet.path}: has no column '{column}', which says whose images belong together"
            + (f"; '{like[0]}' looks like it" if like else f" (found: {', '.join(filter(None, sheet.header))})"),
            hint=(f"dataset.columns: {{{column}: {like[0]}}}, or " if like else "name it with dataset.group, or say ")
            + f"'group: {NO_GROUP}' if no patient has two images",
        )
    values, notes = sheet.column(column), []
    for line, value in zip(sheet.lines, values.tolist(), strict=True):
        if ROUNDED.match(value):
            raise FocalError(
                f"{sheet.path}: line {line}: {column} '{value}' is a number that a spreadsheet has rounded: "
                f"several {column}s may have become one",
                hint="export the column again as text",
            )
    if empty := int((values == "").sum()):
        notes.append(f"{empty} rows have no {column}: each counts as a {column} of its own")
    for same in alike([v for v in values.tolist() if v]):
        notes.append(f"different {column}s that look alike: {', '.join(map(repr, same))}")
    return np.where(values == "", alone, values), notes


def own_groups(n: int) -> NDArray[np.str_]:
    """(n,) every row its own group."""
    return np.array([f"row-{i}" for i in range(n)], dtype=np.str_)


def _open_store(config: DatasetConfig, names: list[str], table: Path) -> Folder | Archive:
    """The folder or zip that holds every named image; some at least, where bad ones are skipped."""
    path = _given(config.images)
    try:
        store = Folder(path) if path.is_dir() else Archive(path)
        missing = store.missing(names)
    except FileNotFoundError:
        raise FocalError(f"{path}: no such folder or zip", hint="'dataset.images' names where the images are") from None
    except (OSError, zipfile.BadZipFile) as e:
        raise FocalError(
            f"{path}: is neither a folder nor a zip of images ({reason(e)})", hint="check 'dataset.images'"
        ) from None
    if missing and (config.bad_images == "refuse" or len(missing) == len(names)):
        raise FocalError(
            f"{path}: {len(missing)} of {len(names)} images of {table.name} are missing: "
            + ", ".join(f"'{name}'" for name in missing[:MISSING])
            + (", ..." if len(missing) > MISSING else ""),
            hint=_elsewhere(missing, store.files())
            or "file names in the table are relative to the folder (or to the top of the zip)",
        )
    return store


def _elsewhere(missing: list[str], files: list[str]) -> str:
    """How ``missing`` names differ from those of ``files`` that may be meant, or nothing."""
    differences: dict[str, Callable[[str], str]] = {
        "in capitals, accents or the slashes between folders": lambda name: look(name.replace("\\", "/")),
        "in their folder": lambda name: look(PureWindowsPath(name).name),
        "in their ending": lambda name: look(PureWindowsPath(name).stem),
    }
    for difference, shown in differences.items():
        there: dict[str, list[str]] = {}
        for file in files:
            there.setdefault(shown(file), []).append(file)
        found = {name: there[shown(name)][0] for name in missing if len(there.get(shown(name), ())) == 1}
        if found:
            name, file = next(iter(found.items()))
            return (
                f"{len(found)} of them are there under names that differ {difference}: '{name}' is '{file}'; "
                "names are relative to 'dataset.images' and are written as the files are called"
            )
    return ""
