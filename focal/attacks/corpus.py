"""The images of the benchmark: an institution's private ones, and public ones of other patients.

::

    table --train rows of one institution--> private   what is attacked; scored by, never shown to, an attack
          --test rows: other patients------> public    what an attacker may train on

No patient is in both. Images are whole and resized to a square, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from focal.attacks.scores import Private
from focal.data.table import Table
from focal.errors import FocalError


@dataclass(frozen=True, eq=False)
class Corpus:
    """A table, and which of its rows are whose."""

    table: Table
    private: NDArray[np.int64]
    """Rows of the institution that is attacked."""
    public: NDArray[np.int64]
    """Rows of patients that no institution trains with."""
    _kept: dict[tuple[bytes, int], Tensor] = field(default_factory=dict, repr=False)
    """Images that were read before: several attacks look at them."""

    def __post_init__(self) -> None:
        shared = np.intersect1d(self.table.groups[self.private], self.table.groups[self.public])
        if len(shared):
            raise FocalError(f"data set '{self.table.name}': {len(shared)} patients are private and public")

    def read(self, rows: Sequence[int] | NDArray[np.int64], size: int) -> Tensor:
        """(k, 3, size, size) in [0, 1]."""
        key = np.asarray(rows, np.int64).tobytes(), size
        if key not in self._kept:
            out = np.empty((len(rows), size, size, 3), np.uint8)
            for i, row in enumerate(rows):
                out[i] = np.asarray(self.table.images.read(int(row)).resize((size, size), Image.Resampling.BILINEAR))
            self._kept[key] = torch.from_numpy(out).permute(0, 3, 1, 2)
        return self._kept[key].float().div_(255).contiguous()

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(k,) the class of each; of several, the first."""
        return self.table.labels[rows].argmax(axis=1).astype(np.int64)

    def scored(self, target: NDArray[np.int64], size: int) -> Private:
        """What judges claims about ``target``: positions in :attr:`private`."""
        return Private(self.read(self.private, size), self.labels(self.private), target)

    def draw(self, count: int, seed: int) -> NDArray[np.int64]:
        """(count,) positions in :attr:`private`, ascending. Raises :class:`FocalError` where there are fewer."""
        if count > len(self.private):
            raise FocalError(
                f"data set '{self.table.name}': {count} images are to be attacked, the institution has "
                f"{len(self.private)}"
            )
        return np.sort(np.random.default_rng([seed, 21]).choice(len(self.private), count, replace=False))
