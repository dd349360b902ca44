"""Dealing one data set to institutions, for runs on one machine.

::

    groups (patients)   p1 p2 p3 p4 p5 p6 ...
    patient             shuffled, dealt like cards                      hospital-a: p4 p1 ...   hospital-b: p2 p6 ...
    dirichlet           for each class, shares ~ Dirichlet(alpha): small alpha, few institutions hold most of a class
    column              where the table says they are

Groups are never split (with ``column`` the table decides). Train groups and the others are dealt apart,
so that every institution gets train rows. The same table, names and seed give the same rows everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from focal.config import PartitionConfig, numbered
from focal.data.sheet import alike
from focal.data.table import Table
from focal.errors import FocalError


def partition(table: Table, config: PartitionConfig, names: Sequence[str], seed: int) -> dict[str, NDArray[np.int64]]:
    """Institution -> its row numbers (ascending); every row goes to exactly one, and each has at least one train row.

    Raises :class:`FocalError` when there is no ``institution`` column or its values do not fit ``names``,
    when there are fewer train groups than institutions, or when all train rows have one label.
    """
    table.check_classes()
    if config.by == "column":
        owner = _by_column(table, names)
    else:
        groups, first, of_row = np.unique(table.groups, return_index=True, return_inverse=True)
        trains = np.zeros(len(groups), bool)
        trains[of_row[table.train_rows]] = True
        if trains.sum() < len(names):
            raise FocalError(
                f"data set '{table.name}' has {trains.sum()} patients or groups with train rows, "
                f"fewer than {len(names)} institutions",
                hint="ask for fewer institutions",
            )
        rng = np.random.default_rng([seed, 2])
        if config.by == "patient":
            dealt = _deal(trains, len(names), rng)
        else:
            dealt = _skewed(table.labels[first].argmax(axis=1), trains, len(names), config.alpha, rng)
        owner = dealt[of_row]
    return {name: np.flatnonzero(owner == k) for k, name in enumerate(names)}


def _by_column(table: Table, names: Sequence[str]) -> NDArray[np.int64]:
    """(n,) index of each row's institution: by name. Where the configuration names none, only how many there are,
    the column's own names in their order."""
    if table.institution is None:
        raise FocalError(
            f"data set '{table.name}' has no 'institution' column", hint="add it, or partition by: patient"
        )
    values = np.unique(table.institution).tolist()
    order = values if tuple(names) == numbered(len(values)) and not set(values) & set(names) else list(names)
    if set(values) != set(order):
        raise FocalError(
            f"data set '{table.name}': its 'institution' column has {', '.join(map(repr, values))}, "
            f"the institutions are {', '.join(names)}",
            hint="write the same names in both (case and blanks count), give 'consortium.institutions' only how many "
            "there are, or partition by: patient",
        )
    if same := alike(values):
        raise FocalError(
            f"data set '{table.name}': institutions that look alike: {', '.join(map(repr, same[0]))}",
            hint="write each institution in one way",
        )
    owner = np.array([order.index(v) for v in table.institution.tolist()], dtype=np.int64)
    for k, name in enumerate(names):
        if not (owner[table.train_rows] == k).any():
            raise FocalError(
                f"data set '{table.name}': institution '{order[k]}' ({name}) has no train row",
                hint="leave that institution out, or mark some of its rows 'train'",
            )
    return owner


def _deal(trains: NDArray[np.bool_], parties: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(groups,) institution of each group: dealt in turn, train groups first, the rest after."""
    order = np.concatenate([rng.permutation(np.flatnonzero(trains)), rng.permutation(np.flatnonzero(~trains))])
    owner = np.empty(len(trains), np.int64)
    owner[order] = np.arange(len(order)) % parties
    return owner


def _skewed(
    classes: NDArray[np.int64], trains: NDArray[np.bool_], parties: int, alpha: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """(groups,) institution of each group, by its first row's class;
    test groups follow the same shares as train groups.

    Source: Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification" (2019).
    """
    owner = np.empty(len(classes), np.int64)
    for c in np.unique(classes):
        shares = rng.dirichlet(np.full(parties, alpha))
        for side in (trains, ~trains):
            members = rng.permutation(np.flatnonzero(side & (classes == c)))
            owner[members] = np.searchsorted(
                np.cumsum(shares)[:-1], (np.arange(len(members)) + 0.5) / max(len(members), 1)
            )
    for party in range(parties):
        if not (trains & (owner == party)).any():
            largest = np.bincount(owner[trains], minlength=parties).argmax()
            owner[np.flatnonzero(trains & (owner == largest))[0]] = party
    return owner
