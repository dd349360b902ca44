"""What a local blind run is compared with: its plaintext twin, every institution alone, all rows pooled."""

from __future__ import annotations

from typing import Any

import numpy as np

from focal.data.rows import InstitutionRows, has_kept, read_kept
from focal.errors import FocalError
from focal.manifest import Manifest
from focal.protocols.blind import plan, roster
from focal.protocols.common.audit import recorded
from focal.protocols.common.institution import PROJECTION
from focal.runs.compare import LocalScores, score_local_run
from focal.runs.folder import Run
from focal.segments.projection import Projection
from focal.task import outcomes
from focal.telling import Say


def compare(run: Run, manifest: Manifest, say: Say) -> tuple[LocalScores, dict[str, Any]]:
    """Scores of the released head beside its twin and the baselines; and on how many rows, and without whom."""
    names = [m.name for m in manifest.institutions if has_kept(run.party(m.name))]
    kept = {name: read_kept(run.party(name)) for name in names}
    rows = {name: own for name, (own, _) in kept.items()}
    projection = Projection.from_bytes((run.party(names[0]) / PROJECTION).read_bytes())
    weights = [released for _, released in kept.values()]
    if not all(np.array_equal(weights[0], w) for w in weights):
        raise FocalError(
            "the institutions decoded different weights from the same shares",
            hint="their floating-point units differ; report this",
        )
    exact = _twin(manifest, projection, rows)
    scores = score_local_run(rows, projection, weights[0], exact, manifest.task, seed=run.config.seed)
    present = sum(int((own.split == "train").sum()) for own in rows.values())
    own: dict[str, Any] = {"rows": present}
    if len(rows) < len(manifest.institutions):
        own["left_out"] = roster.of_board(manifest, recorded(manifest, run.party(manifest.server.name)))
    return scores, own


def _twin(manifest: Manifest, projection: Projection, rows: dict[str, InstitutionRows]) -> np.ndarray[Any, Any]:
    """The encrypted algorithm on all rows in plaintext."""
    columns, labels = [], []
    for own in rows.values():
        train = own.split == "train"
        columns.append(projection.apply(own.features[train]))
        labels.append(outcomes(own.labels[train], manifest.task))
    return plan.trained_in_clear(manifest, projection.eta, np.concatenate(columns), np.concatenate(labels))
