"""Rows of a table by the values of one of its columns, and the scores of each such subgroup.

::

    "sex"          one subgroup per value found                    Female | Male | not given
    "age:50,65"    one per band, lower end included         below 50 | 50 to below 65 | 65 and above | not given
    "institution"  a site each

A subgroup has its own patients and its own interval. A class without both outcomes in it has no AUROC there and is
named, and so is the subgroup in which no class has one: small groups are shown, not hidden, with the number of
rows and patients beside every figure.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from focal.data.labels import NOTHING
from focal.data.sheet import look
from focal.errors import FocalError
from focal.measure.metrics import Bools, Floats, auroc_per_class, bootstrap_ci
from focal.task import Task

NOT_GIVEN = "not given"
"""Rows whose cell is empty, or, where bands are asked for, says that it is not known."""


class Split(NamedTuple):
    """A column to split by: ``edges`` are the bands' limits, ascending; none: one subgroup per value."""

    column: str
    edges: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Split:
        """``sex`` or ``age:50,65``. Raises :class:`FocalError` for limits that are not ascending numbers."""
        column, colon, limits = text.partition(":")
        try:
            edges = tuple(float(limit) for limit in limits.split(",")) if colon else ()
        except ValueError:
            edges = (np.nan,)
        if (
            not column.strip()
            or not all(np.isfinite(edges))
            or any(a >= b for a, b in zip(edges, edges[1:], strict=False))
        ):
            raise FocalError(
                f"'{text}' is no split into subgroups",
                hint="write a column (sex), or one with ascending limits (age:50,65)",
            )
        return cls(column.strip().lower(), edges)


def subgroups(split: Split, values: NDArray[np.str_]) -> dict[str, Bools]:
    """Name of each subgroup -> (n,) whether a row belongs to it, from the column's (n,) cells as written.

    Raises :class:`FocalError` for a band without rows, and for a cell that is no number where bands are asked for.
    """
    empty = values == ""
    if split.edges:
        empty |= np.array([look(value) in NOTHING for value in values.tolist()], dtype=bool)
    if not split.edges:
        found = {str(value): values == value for value in np.unique(values[~empty])}
    else:
        found = _bands(split, values, empty)
        for name, rows in found.items():
            if not rows.any():
                raise FocalError(
                    f"subgroup '{split.column} {name}' is empty: none of the {len(values)} scored rows is in it",
                    hint="choose limits that the column's values reach",
                )
    return {**found, NOT_GIVEN: empty} if empty.any() else found


def _bands(split: Split, values: NDArray[np.str_], empty: Bools) -> dict[str, Bools]:
    try:
        number = np.array([np.nan if e else float(v) for v, e in zip(values, empty, strict=True)])
        if np.isinf(number).any():
            raise ValueError
    except ValueError:
        raise FocalError(
            f"column '{split.column}' holds cells that are no numbers, so it has no bands",
            hint=f"split by its values: {split.column}",
        ) from None
    limits = [f"{edge:g}" for edge in split.edges]
    names = [
        f"below {limits[0]}",
        *(f"{a} to below {b}" for a, b in zip(limits, limits[1:], strict=False)),
        f"{limits[-1]} and above",
    ]
    band = np.searchsorted(split.edges, number, side="right")
    return {name: (band == i) & ~empty for i, name in enumerate(names)}


def score_subgroup(
    labels: NDArray[np.uint8],
    scores: Floats,
    groups: NDArray[np.str_],
    task: Task,
    classes: tuple[str, ...],
    repeats: int,
) -> dict[str, Any]:
    """``{"n", "patients", "auroc", "auroc_ci95", "auroc_per_class"}`` of these rows;
    ``None`` where something is undefined.

    ``classes`` names the scored columns, so one name for a binary task.
    """
    per_class = auroc_per_class(labels, scores, task)
    defined = per_class[~np.isnan(per_class)]
    interval = None
    if len(defined):
        try:
            interval = list(bootstrap_ci(labels, scores, groups, task, repeats=repeats))
        except FocalError:  # so few patients that no resample has both outcomes
            interval = None
    return {
        "n": len(labels),
        "patients": len(np.unique(groups)),
        "auroc": float(defined.mean()) if len(defined) else None,
        "auroc_ci95": interval,
        "auroc_per_class": {
            name: None if np.isnan(v) else float(v) for name, v in zip(classes, per_class, strict=True)
        },
    }
