"""What is counted over several hospitals, agreed before anybody counts: bins of scores, subgroups of rows.

::

    logit   <= -8          -8 + 1/256                 8 -            8 <=
    bin        0     |     1     |     2     |  ...  |  BINS - 2  |  BINS - 1

    "age:50,65"          age below 50 | age 50 to below 65 | age 65 and above
    "sex:female,male"    sex female | sex male                    as the cells say, small letters or not

The same at every site, whatever its rows; one whose cell says something else, or nothing, is in none of a column's
subgroups. Server and custodians read this too: it needs no more than they have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from focal.errors import ConfigError

LIMIT = 8.0
"""Logits beyond it share the outermost bins; probabilities there are within 0.04 % of 0 or 1."""
WIDTH = 1 / 256
"""ODIR-5K, 8 classes, 1275 test rows at three sites: the bound is 0.0021,
the error in truth 0.0001, for 0.5 MB a site."""
BINS = int(2 * LIMIT / WIDTH) + 2


class Subgroup(NamedTuple):
    """Rows whose cell of ``column`` is ``value``, or, where there is none, a number in [low, high)."""

    name: str
    column: str
    value: str = ""
    low: float = -math.inf
    high: float = math.inf

    def holds(self, cells: NDArray[np.str_]) -> NDArray[np.bool_]:
        """(n,) is each row of these (n,) cells in it?"""
        if self.value:
            return np.array([cell.strip().lower() == self.value for cell in cells.tolist()], bool)
        return np.array([self.low <= _number(cell) < self.high for cell in cells.tolist()], bool)


def subgroups(texts: Sequence[str]) -> list[Subgroup]:
    """Those of ``age:50,65`` or ``sex:female,male``, in this order. Raises :class:`ConfigError` for what is neither,
    and for two that are called the same."""
    found: list[Subgroup] = []
    for text in texts:
        column, _, rest = (part.strip().lower() for part in text.partition(":"))
        parts = [part.strip() for part in rest.split(",")]
        numbers = [_number(part) for part in parts]
        if column and all(map(math.isfinite, numbers)) and numbers == sorted(set(numbers)):
            limits = [-math.inf, *numbers, math.inf]
            pairs = list(zip(limits, limits[1:], strict=False))
            found += [Subgroup(f"{column} {_band(*pair)}", column, "", *pair) for pair in pairs]
        elif column and all(parts) and not any(map(math.isfinite, numbers)):
            found += [Subgroup(f"{column} {part}", column, part) for part in parts]
        else:
            raise ConfigError(
                f"'{text}' names no subgroups",
                hint="write a column with ascending limits (age:50,65), or with its values (sex:female,male)",
            )
    if len({one.name for one in found}) < len(found):
        raise ConfigError(f"{', '.join(texts)}: two subgroups are called the same")
    return found


def members(
    texts: Sequence[str], columns: Mapping[str, NDArray[np.str_]], rows: int
) -> tuple[NDArray[np.bool_], list[str]]:
    """(S, n) whether each of the ``rows`` is in each subgroup, and the columns that are missing here."""
    own = {name.lower(): cells for name, cells in columns.items()}
    found = [one.holds(own[one.column]) if one.column in own else np.zeros(rows, bool) for one in subgroups(texts)]
    missing = dict.fromkeys(one.column for one in subgroups(texts) if one.column not in own)
    return np.array(found, bool).reshape(len(found), rows), list(missing)


def counted(outputs: int, texts: Sequence[str]) -> int:
    """How many counts a site hands in: all rows and those of each subgroup, by class, outcome and bin."""
    return (1 + len(subgroups(texts))) * outputs * 2 * BINS


def _band(low: float, high: float) -> str:
    if low == -math.inf:
        return f"below {high:g}"
    return f"{low:g} and above" if high == math.inf else f"{low:g} to below {high:g}"


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
