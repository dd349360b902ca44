"""From the cells of a label column to classes: what is a guess is refused.

::

    "N"   "C;D"          one cell, labels between ;        classes C, D, N    rows [0,0,1] [1,1,0]
    N=0 C=1 D=1          a column for each class, 0 or 1   the same rows

Without ``dataset.classes`` the labels found are the classes. Then a label that differs from another by case or blanks
only, that says that there is none (``NA``, ``?``), or that looks like two (``A|B``) could mean several things: the
table is refused, and whoever means it so names it in ``dataset.classes``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from focal.config import DatasetConfig, printable
from focal.data.sheet import Sheet, alike, look
from focal.errors import FocalError
from focal.task import Task, fits, infer, scored_classes

NOTHING = {"na", "n/a", "nan", "null", "none", "nil", "?", "-", "--", "-1", "unknown", "missing", "not available"}
"""Words for a label that is not there."""

HEALTHY = {
    "normal",
    "healthy",
    "negative",
    "neg",
    "no",
    "none",
    "benign",
    "well",
    "control",
    "absent",
    "false",
    "no finding",
}
"""Words for who has nothing: seldom the class whose sensitivity somebody wants."""

NAME_THEM = "say which classes there are: dataset.classes"


@dataclass(frozen=True)
class Labels:
    """What a table's labels say."""

    classes: tuple[str, ...]
    task: Task
    matrix: NDArray[np.uint8]
    """(n, K), one-hot or multi-hot."""
    notes: tuple[str, ...] = ()


def read_labels(sheet: Sheet, config: DatasetConfig) -> Labels:
    """Classes, task and the (n, K) 0/1 matrix of a table. Raises :class:`FocalError` naming file, line and label."""
    label = config.columns.get("label", "label")
    return _one_hot(sheet, label, config) if isinstance(label, tuple) else _cells(sheet, config)


def _cells(sheet: Sheet, config: DatasetConfig) -> Labels:
    column = sheet.column("label")
    parts = [[p.strip() for p in cell.split(";") if p.strip()] for cell in column]
    found = {p for row in parts for p in row}
    if odd := sorted(label for label in found if printable(label) != label):
        raise FocalError(
            f"{sheet.path}: the label '{printable(odd[0])}' holds control characters", hint="correct the lines with it"
        )
    if config.classes is None:
        _check_meant(sheet, found)
    classes = config.classes or _sorted(found)
    task = config.task or infer(len(classes), several=any(";" in cell for cell in column))
    _check_fits(sheet, classes, task)
    notes = _positive(sheet, classes, task, config)
    index = {c: k for k, c in enumerate(classes)}
    matrix = np.zeros((len(parts), len(classes)), np.uint8)
    for i, row in enumerate(parts):
        if task != "multilabel" and len(row) != 1:
            raise FocalError(
                f"{sheet.path}: line {sheet.lines[i]}: a {task} task needs exactly one label, not '{column[i]}'",
                hint="complete the line or remove it" if not row else "or set 'task: multilabel'",
            )
        if not row and not config.unlabelled_is_negative:
            raise FocalError(
                f"{sheet.path}: line {sheet.lines[i]}: has no label: has nobody looked, or was nothing found?",
                hint="remove such lines, or say 'dataset.unlabelled_is_negative: true' if they have no class",
            )
        for label in row:
            if label not in index:
                close = [c for c in classes if look(c) == look(label)]
                raise FocalError(
                    f"{sheet.path}: line {sheet.lines[i]}: label '{label}' is not among the classes "
                    f"{', '.join(classes)}",
                    hint=f"is '{close[0]}' meant? correct the line"
                    if close
                    else "correct the line, or add the class to 'dataset.classes' "
                    "(every member must use the same list)",
                )
            matrix[i, index[label]] = 1
    return Labels(classes, task, matrix, notes)


def _one_hot(sheet: Sheet, columns: tuple[str, ...], config: DatasetConfig) -> Labels:
    """A column for each class, called as the class is."""
    classes = config.classes or columns
    if set(classes) != set(columns):
        raise FocalError(
            f"{sheet.path}: the label columns are {', '.join(columns)}, the classes {', '.join(classes)}",
            hint="dataset.columns.label and dataset.classes must name the same",
        )
    matrix = np.zeros((len(sheet), len(classes)), np.uint8)
    for k, name in enumerate(classes):
        for i, cell in enumerate(sheet.column(name.strip().lower())):
            if cell not in ("0", "1", "0.0", "1.0"):
                raise FocalError(
                    f"{sheet.path}: line {sheet.lines[i]}: column '{name}' holds '{cell}', neither 0 nor 1",
                    hint="correct the line, or remove it",
                )
            matrix[i, k] = cell.startswith("1")
    count = matrix.sum(axis=1)
    task = config.task or infer(len(classes), several=bool((count != 1).any()))
    _check_fits(sheet, classes, task)
    if task != "multilabel" and (count != 1).any():
        i = int(np.flatnonzero(count != 1)[0])
        raise FocalError(
            f"{sheet.path}: line {sheet.lines[i]}: a {task} task needs exactly one label, this line has {count[i]}",
            hint="or set 'task: multilabel'",
        )
    return Labels(classes, task, matrix, _positive(sheet, classes, task, config))


def _sorted(found: set[str]) -> tuple[str, ...]:
    """Numbers by their size, everything else by its letters."""
    numbers = all(label.isdecimal() for label in found)
    return tuple(sorted(found, key=lambda label: (int(label) if numbers else 0, label)))


def _check_fits(sheet: Sheet, classes: Sequence[str], task: Task) -> None:
    if not fits(len(classes), task):
        raise FocalError(
            f"{sheet.path}: a {task} task does not fit {len(classes)} classes ({', '.join(classes)})",
            hint="name them all in 'dataset.classes', also those that no row of this table has",
        )


def _check_meant(sheet: Sheet, found: set[str]) -> None:
    """Raise for labels that could mean several things."""
    if groups := alike(list(found)):
        raise FocalError(
            f"{sheet.path}: labels that look alike: {'; '.join(' and '.join(map(repr, g)) for g in groups)}",
            hint="write each class in one way, or, if they are different classes, " + NAME_THEM,
        )
    if nothing := sorted(label for label in found if look(label) in NOTHING):
        raise FocalError(
            f"{sheet.path}: the label '{nothing[0]}' reads like 'not known'",
            hint="remove such lines, or, if it is a class, " + NAME_THEM,
        )
    if several := sorted(label for label in found if "|" in label or "," in label):
        raise FocalError(
            f"{sheet.path}: the label '{several[0]}' reads like several labels",
            hint="several labels of one image stand between semicolons; if it is one class, " + NAME_THEM,
        )


def _positive(sheet: Sheet, classes: Sequence[str], task: Task, config: DatasetConfig) -> tuple[str, ...]:
    """Of a binary task, what its positive class is: the last, which a person should have chosen."""
    learned = scored_classes(classes, task)
    if len(learned) == len(classes) or config.classes is not None:
        return ()
    (positive,), other = learned, next(name for name in classes if name not in learned)
    if look(positive) in HEALTHY:
        raise FocalError(
            f"{sheet.path}: the positive class would be '{positive}', the last in the alphabet",
            hint=f"say it with dataset.classes: [{positive}, {other}]; the last is the positive one",
        )
    return (f"the positive class is '{positive}', the last in the alphabet (dataset.classes says another)",)
