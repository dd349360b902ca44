"""What all attacks share: the data set dealt to institutions, one of them the victim, its images, features, and a run.

The bench knows everything; attacks are handed views, public images and batch sizes, never the bench.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from focal.attacks.corpus import Corpus
from focal.config import (
    AnyProjectionConfig,
    AnyTrainingConfig,
    BlindRunConfig,
    InteractiveConfig,
    InteractiveRunConfig,
    ProjectionConfig,
    RunConfig,
)
from focal.data import load, read_rows
from focal.data.partition import partition
from focal.errors import FocalError
from focal.protocols import of
from focal.segments.projection import Projection, moment_values, pooled_moments, whiten

if TYPE_CHECKING:
    from focal.segments.lower import LowerSegment

Array = NDArray[np.float64]

PRIVATE = 512
"""Images of the victim, at most: its first training rows."""
VICTIM = 1
"""Which institution is attacked: not the first, which proposes the projection."""
JOINT_ROWS = 32
"""An institution's rows in a joint step of the interactive run that is made here, where the ring has room."""


class Bench:
    """``config`` says data and features; ``runs`` holds the cache of features and the FOCAL runs, a blind and a small
    interactive one, which are trained when an attack asks for them; ``run``: a finished one that is attacked instead,
    of either protocol."""

    def __init__(self, config: RunConfig, runs: Path, run: Path | None = None) -> None:
        self.given, self.runs = run, runs
        self.joint_given: InteractiveRunConfig | None = None
        """Of a given run that is interactive."""
        if of(config).joint:
            assert isinstance(config, InteractiveRunConfig)
            self.joint_given, config = config, _blind(config)
        assert isinstance(config, BlindRunConfig)
        self.config = config
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

    def projection(self, rows: NDArray[np.int64], features: int | None = None) -> Projection:
        """The whitening of these rows to as many ``features`` as a blind run has, or as are asked for: of all training
        rows it is the run's, of public ones an attacker's stand-in."""
        raw, settings = self.features(rows), self.config.projection
        moments = pooled_moments(moment_values(raw, settings.bound, len(raw)), raw.shape[1], settings.bound, len(raw))
        count, ridge = features or settings.features, self.config.training.ridge
        return whiten(moments, count, settings.bound, ridge, settings.floor)

    @cached_property
    def everybody(self) -> NDArray[np.int64]:
        """Training rows of all institutions."""
        return np.concatenate(list(self.train.values()))

    @cached_property
    def run(self) -> Path:
        """A finished FOCAL run on these rows; it is trained here when there is none. Raises :class:`FocalError` when
        what its parties hold was cleaned away."""
        if self.joint_given:
            raise FocalError(f"{self.given} is an interactive run", hint="attack a blind one, or no given run")
        return self._finished(self.config)

    @cached_property
    def joint_run(self) -> Path:
        """A finished interactive run on these rows; a small one is trained here when there is none: the bottleneck
        trains, every image of :data:`PRIVATE` is in one step, and nothing is augmented, which is best for attackers."""
        if self.given is not None and not self.joint_given:
            raise FocalError(f"{self.given} is a blind run", hint="attack an interactive one, or no given run")
        return self._finished(self.joint_given or self.joint_config)

    @property
    def joint_config(self) -> InteractiveRunConfig:
        """Of the small interactive run."""
        c = self.config
        features: Any = min(c.projection.features, 64)
        rows = min(JOINT_ROWS, c.ckks.ring // 2 // features // len(self.names))
        steps = max(2, min(PRIVATE, len(self.train[self.victim])) // rows)
        joint = InteractiveConfig(
            steps=steps, batch=rows, features=features, trainable="bottleneck", augment=False, average_every=4,
            min_rows_of_others=min(32, 2 * rows),
        )  # fmt: skip
        projection = AnyProjectionConfig(kind=c.projection.kind, bound=c.projection.bound, floor=c.projection.floor)
        members = c.consortium.model_copy(update={"share_blocks": False, "clinics": (), "closing": None})
        return InteractiveRunConfig(
            name=f"{c.name}-joint", dataset=c.dataset, lower=c.lower, projection=projection, consortium=members,
            training=AnyTrainingConfig(ridge=c.training.ridge), ckks=c.ckks, device=c.device, seed=c.seed,
            interactive=joint,
        )  # fmt: skip

    def _finished(self, config: RunConfig) -> Path:
        from focal.runs import local

        folder = self.given or local.newest_finished(config, self.runs)
        if folder is None:
            folder = local.train(local.open_run(config, self.runs), lambda event: None, lambda text: None)
        if not (Path(folder) / "parties" / "server" / "board.sqlite").exists():
            raise FocalError(f"{folder}: what its parties saw is gone", hint="'focal clean' removed it: train it again")
        return Path(folder)

    def public_images(self, size: int, most: int) -> Tensor:
        """(k, 3, size, size) in [0, 1] of other patients, ``most`` at most."""
        return self.corpus.read(self.corpus.public[:most], size)

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(k,) class numbers."""
        return self.corpus.labels(rows)


def _blind(config: InteractiveRunConfig) -> BlindRunConfig:
    """A blind configuration of the same rows and features."""
    p = config.projection
    projection = ProjectionConfig(kind=p.kind, bound=p.bound, floor=p.floor, features=config.interactive.features)
    own = {f: getattr(config, f) for f in ("name", "dataset", "lower", "ckks", "consortium", "device", "seed")}
    return BlindRunConfig(**own, projection=projection)
