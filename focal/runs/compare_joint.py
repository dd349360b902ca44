"""What a local interactive run is compared with: its plaintext twin, every institution alone, all rows pooled.

The twin repeats the run in the clear with the very modules, batches and averages of the institutions, and with
the same ones absent in the same steps. The baselines are logistic regressions on the initial segment's
features, as in the blind protocol. Where the configuration asks for it, so does FedAvg of the whole network
(:mod:`focal.baselines.whole`), and released models of other runs are scored on the same test patients.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from focal.baselines.whole import federate_whole
from focal.config import DatasetConfig, InteractiveRunConfig, LocalConfig
from focal.data import load
from focal.data.begun import check_unchanged
from focal.data.rows import InstitutionRows
from focal.data.table import Table
from focal.errors import FocalError
from focal.manifest import Manifest
from focal.measure.losses import loss_difference, read_losses
from focal.net import messages as msg
from focal.protocols.common.audit import recorded
from focal.protocols.common.institution import PROJECTION
from focal.protocols.interactive import plan
from focal.protocols.interactive.beginning import beginning
from focal.reading import read
from focal.runs.compare import LocalScores, compare_scores
from focal.runs.folder import Run
from focal.segments.lower import LowerSegment, build_lower
from focal.segments.projection import Projection
from focal.segments.upper import UpperHead, lower_segment
from focal.segments.upper import load as load_model
from focal.telling import Say
from focal.training.features import compute_features
from focal.training.joint import Site, Trained, train_jointly
from focal.training.joint import scores as twin_scores

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Premises:
    """Where an institution of a local run has what is its own, as the launcher may see it."""

    data: DatasetConfig
    weights: str
    folder: Path


def compare(run: Run, manifest: Manifest, say: Say) -> tuple[LocalScores, dict[str, Any]]:
    """Scores of the released model beside twin and baselines; and what else the summary should say."""
    return _Comparison(run, manifest, say).found()


class _Comparison:
    """All rows of all institutions, twice: with the features before training, and with those after it."""

    def __init__(self, run: Run, manifest: Manifest, say: Say) -> None:
        assert isinstance(run.config, InteractiveRunConfig)
        self.run, self.config, self.manifest, self.say = run, run.config, manifest, say
        self.schedule = plan.schedule(manifest)
        self.places = {}
        for m in manifest.institutions:
            local = read(LocalConfig, run.party(m.name) / "local.json")
            assert local.data is not None and local.weights is not None
            self.places[m.name] = Premises(local.data, local.weights, run.party(m.name))
        self.first = next(iter(self.places))
        """The institution whose model is scored."""
        agreed = {"classes": manifest.classes, "task": manifest.task}
        self.tables = {
            name: load(p.data.model_copy(update=agreed), self.config.seed) for name, p in self.places.items()
        }
        for name, p in self.places.items():
            check_unchanged(p.folder, self.tables[name])
        self.held = "test" if any((t.split == "test").any() for t in self.tables.values()) else "val"
        self.lower, _ = build_lower(manifest.lower, self.places[self.first].weights)

    def found(self) -> tuple[LocalScores, dict[str, Any]]:
        head = self._agreed_head()
        rows, place = self._rows_before(), self.places[self.first]
        encrypted = self._released(place.folder, place.weights)
        others = {Run.open(other).config.name: self._released(other) for other in self.config.beside}
        self.say("the plaintext twin repeats the run in the clear ...")
        # no ciphertext is computed here any more (focal.ckks limits OpenMP to one thread)
        torch.set_num_threads(os.cpu_count() or 1)
        twin, in_clear = self._in_the_clear(train_jointly, "twin")
        if self.config.fedavg:
            self.say("FedAvg of the whole network, at the same rhythm of averages, in the clear ...")
            others = {"fedavg": self._in_the_clear(federate_whole, "fedavg")[1], **others}
        error = float(np.abs(head.weights.numpy() - twin.weights).max())
        scores = compare_scores(
            rows, encrypted, in_clear, error, self.manifest.task, seed=self.config.seed, others=others
        )
        difference = loss_difference(
            [read_losses(p.folder / "lightning") for p in self.places.values()],
            [read_losses(self.run.folder / "twin" / name) for name in self.places],
        )
        return scores, {} if difference is None else {"loss_difference": difference}

    def _features(self, segment: LowerSegment, table: Table, rows: NDArray[Any]) -> NDArray[np.float32]:
        cache = self.run.folder.parent / "cache"
        return compute_features(segment, table, rows, device=self.config.device, cache=cache)

    def _agreed_head(self) -> UpperHead:
        """The head, which all must have decoded alike; whose lower segment is another one is said."""
        heads = {name: load_model(p.folder)[0] for name, p in self.places.items()}
        head, first = heads[self.first], self.first
        for name, other in heads.items():
            if not torch.equal(other.weights, head.weights):
                raise FocalError(
                    f"'{name}' decoded other weights than '{first}' from the same shares", hint="report this"
                )
            if any(not torch.equal(value, head.trained[key]) for key, value in other.trained.items()):
                self.say(
                    f"'{name}' ended with another lower segment than '{first}': it was absent in the last average; "
                    f"scored is that of '{first}'"
                )
        return head

    def _rows_before(self) -> dict[str, InstitutionRows]:
        """What the baselines learn from: features of the segment as it was."""
        rows = {}
        for name, table in self.tables.items():
            wanted = np.flatnonzero(np.isin(table.split, ("train", "val", "test")))
            features = self._features(self.lower, table, wanted)
            rows[name] = InstitutionRows(features, table.labels[wanted], table.groups[wanted], table.split[wanted])
        return rows

    def _released(self, folder: Path, weights: str | None = None) -> Array:
        """Scores of a released model, on the held-out rows."""
        head, meta = load_model(folder)
        segment = lower_segment(meta, weights, head.trained)
        raw = [self._features(segment, t, np.flatnonzero(t.split == self.held)) for t in self.tables.values()]
        return head(torch.from_numpy(np.concatenate(raw))).double().numpy()

    def _in_the_clear(self, train: Callable[..., Trained], name: str) -> tuple[Trained, Array]:
        """The same run without encryption and with the same absences, and its scores on the held-out rows."""
        begun = beginning(self.config.start, self.schedule) if self.config.start else None
        away = absences(self.manifest, self.run.party(self.manifest.server.name))
        if begun:
            projection = begun.projection
        else:
            projection = Projection.from_bytes((self.places[self.first].folder / PROJECTION).read_bytes())
        made = train(
            self.lower,
            self.schedule,
            {name: Site(table, np.flatnonzero(table.split == "train")) for name, table in self.tables.items()},
            folder=self.run.folder / name,
            start=projection,
            base=begun.base if begun else None,
            trained=begun.trained if begun else None,
            seed=self.schedule.seed,
            device=self.config.device,
            absent=lambda step, member: member in away.get(step, ()),
        )
        parts = [
            twin_scores(made.segment, made.weights, table, np.flatnonzero(table.split == self.held))
            for table in self.tables.values()
        ]
        return made, np.concatenate(parts)


def absences(manifest: Manifest, store: Path) -> dict[int, set[str]]:
    """Joint step -> the institutions that it went on without, from the server's board."""
    names = {m.name for m in manifest.institutions}
    out: dict[int, set[str]] = {}
    for record in recorded(manifest, store):
        if isinstance(record.body, msg.Present) and record.topic.startswith("answered/"):
            out[record.body.step] = names - set(record.body.owners)
    return out
