"""What all attacks share: the data set dealt to institutions, one of them the victim, its images, features, and a run.

The bench knows everything; attacks are handed views, public images and batch sizes, never the bench.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from focal.attacks.corpus import Corpus
from focal.config import BlindRunConfig
from focal.data import load, read_rows
from focal.data.partition import partition
from focal.errors import FocalError
from focal.segments.projection import Projection, moment_values, pooled_moments, whiten

if TYPE_CHECKING:
    from focal.segments.lower import LowerSegment

Array = NDArray[np.float64]

PRIVATE = 512
"""Images of the victim, at most: its first training rows."""
VICTIM = 1
"""Which institution is attacked: not the first, which proposes the projection."""


class Bench:
    """``config`` says data and features; ``runs`` holds the cache of features and the FOCAL run, which is trained when
    an attack asks for it; ``run``: a finished one that is attacked instead."""

    def __init__(self, config: BlindRunConfig, runs: Path, run: Path | None = None) -> None:
        self.config, self.runs, self.given = config, runs, run
        self.table = load(config.dataset, config.seed)
        self.names = config.consortium.institution_names()
        self.victim = self.names[VICTIM]
        parts = partition(self.table, config.consortium.partition, self.names, config.seed)
        if run is not None:
            parts = {name: read_rows(run / "parties" / name / "rows.txt", len(self.table)) for name in self.names}
        self.train: dict[str, NDArray[np.int64]] = {
            name: at[self.table.split[at] == "train"] for name, at in parts.items()
        }
        """Institution -> its training rows, in the order in which it uploads them."""

    @cached_property
    def corpus(self) -> Corpus:
        return Corpus(self.table, self.train[self.victim][:PRIVATE], self.table.test_rows)

    @property
    def classes(self) -> int:
        return len(self.table.classes)

    def features(self, rows: NDArray[np.int64]) -> Array:
        """(k, dim) of the lower segment, clipped as a run clips them."""
        bound = self.config.projection.bound
        return np.clip(self._features[self._place[rows]].astype(np.float64), -bound, bound)

    @cached_property
    def _place(self) -> NDArray[np.int64]:
        place = np.full(len(self.table), -1)
        place[self._all] = np.arange(len(self._all))
        return place

    @cached_property
    def _all(self) -> NDArray[np.int64]:
        return np.unique(np.concatenate([*self.train.values(), self.corpus.public]))

    @cached_property
    def segment(self) -> LowerSegment:
        from focal.segments.lower import build_lower

        return build_lower(self.config.lower, self.config.lower.weights)[0]

    @cached_property
    def _features(self) -> NDArray[np.float32]:
        from focal.training.features import compute_features

        return compute_features(
            self.segment, self.table, self._all, device=self.config.device, cache=self.runs / "cache"
        )

    def projection(self, rows: NDArray[np.int64]) -> Projection:
        """The whitening of these rows: of all training rows it is the run's, of public ones an attacker's stand-in."""
        raw, settings = self.features(rows), self.config.projection
        moments = pooled_moments(moment_values(raw, settings.bound, len(raw)), raw.shape[1], settings.bound, len(raw))
        return whiten(moments, settings.features, settings.bound, self.config.training.ridge, settings.floor)

    @cached_property
    def everybody(self) -> NDArray[np.int64]:
        """Training rows of all institutions."""
        return np.concatenate(list(self.train.values()))

    @cached_property
    def run(self) -> Path:
        """A finished FOCAL run on these rows; it is trained here when there is none. Raises :class:`FocalError` when
        what its parties hold was cleaned away."""
        from focal.runs import local

        folder = self.given or local.newest_finished(self.config, self.runs)
        if folder is None:
            folder = local.train(local.open_run(self.config, self.runs), lambda event: None, lambda text: None)
        if not (Path(folder) / "parties" / "server" / "board.sqlite").exists():
            raise FocalError(f"{folder}: what its parties saw is gone", hint="'focal clean' removed it: train it again")
        return Path(folder)

    def public_images(self, size: int, most: int) -> Tensor:
        return self.corpus.read(self.corpus.public[:most], size)

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.corpus.labels(rows)
