"""One institution's rows of features and labels, those of several together, and what an institution keeps of them.

::

    rows of every institution --union--> all rows --scored--> the test rows (val where there is no test row at all)
    parties/NAME/rows.npz     rows and released weights of a finished blind run, 0600 (focal clean removes it)

Rows exist only on a machine that may see them: at an institution, or in a local run.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from focal.errors import FocalError

FILE: Final = "rows.npz"
"""In an institution's folder."""


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

    @classmethod
    def union(cls, rows: Mapping[str, InstitutionRows]) -> InstitutionRows:
        """All institutions' rows, in the order of ``rows``; equal patient ids of two institutions are two patients."""
        return cls(
            features=np.concatenate([own.features for own in rows.values()]),
            labels=np.concatenate([own.labels for own in rows.values()]),
            groups=np.concatenate([np.char.add(f"{name}/", own.groups.astype(str)) for name, own in rows.items()]),
            split=np.concatenate([own.split for own in rows.values()]),
        )

    @property
    def scored(self) -> InstitutionRows:
        """The test rows, ``val`` where there is no test row at all. Raises :class:`FocalError` without either."""
        for name in ("test", "val"):
            if (held := self.split == name).any():
                return self.take(held)
        raise FocalError(
            "there are no test rows to score",
            hint="mark rows 'test' in the table's split column, or leave the column out",
        )


def write_kept(party: Path, rows: InstitutionRows, weights: NDArray[np.float64]) -> None:
    """Keep rows and released weights (R, C) of a finished run in an institution's folder."""
    with open(os.open(party / FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as f:
        np.savez(
            f,
            weights=weights,
            features=rows.features,
            labels=rows.labels,
            groups=rows.groups.astype(str),
            split=rows.split.astype(str),
        )


def has_kept(party: Path) -> bool:
    """Did :func:`write_kept` keep anything there? It does at institutions that have the result."""
    return (party / FILE).exists()


def read_kept(party: Path) -> tuple[InstitutionRows, NDArray[np.float64]]:
    """What :func:`write_kept` kept. Raises :class:`FocalError` when there is none, or it is damaged."""
    path = party / FILE
    try:
        with np.load(path) as f:
            rows = InstitutionRows(f["features"], f["labels"], f["groups"], f["split"])
            return rows, np.asarray(f["weights"], dtype=np.float64)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as e:
        why = getattr(e, "strerror", None) or "damaged"
        raise FocalError(
            f"{path}: cannot be read ({why})", hint="'focal clean' removes it; the summary stays"
        ) from None
