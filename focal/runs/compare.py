"""Released weights of a local run beside what they are compared with, all on the same rows with the same resamples.

::

    rows of every institution --+-- train --> logistic regression alone / pooled
                                +-- test, all institutions together --+
    released W, twin W -----------------------------------------------+--> AUROC of each, 95 % interval by patient

Every model is scored by its probabilities, one column per class (binary: the positive class;
:func:`focal.measure.metrics.log_odds`). Where those of an
interactive run and of its twin come from: :mod:`focal.runs.compare_joint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from focal.baselines.logistic import baseline_scores
from focal.data.rows import InstitutionRows
from focal.measure.metrics import Floats, auroc_per_class, bootstrap_ci, macro_auroc
from focal.measure.summary import Auroc, AurocInterval
from focal.segments.projection import Projection
from focal.task import Task


@dataclass(frozen=True)
class LocalScores:
    """What :func:`score_local_run` found: the numbers of the summary, and what the plots need."""

    auroc: Auroc
    auroc_ci95: AurocInterval
    max_abs_weight_error: float
    labels: NDArray[np.uint8]
    """(n, K) of the test rows, for the ROC curves."""
    encrypted: Floats
    """(n, C) linear outputs of the released head on the test rows."""
    per_class: dict[str, Floats]
    """Model (``encrypted``, ``pooled_plaintext``, each institution) -> (C,) AUROC of every class;
    NaN where undefined."""


def score_local_run(
    rows: Mapping[str, InstitutionRows],
    projection: Projection,
    weights: ArrayLike,
    twin: ArrayLike,
    task: Task,
    *,
    seed: int = 0,
    repeats: int = 1000,
) -> LocalScores:
    """Score released weights (R, C) and their plaintext twin (R, C) beside the baselines.

    All on the union of the institutions' test rows (``val`` where there is no test row at all);
    only ``train`` rows train. Raises :class:`focal.errors.FocalError` when there is nothing to score.
    """
    released, exact = np.asarray(weights, dtype=np.float64), np.asarray(twin, dtype=np.float64)
    columns = projection.apply(InstitutionRows.union(rows).scored.features)
    error = float(np.abs(released - exact).max())
    return compare_scores(rows, columns @ released, columns @ exact, error, task, seed=seed, repeats=repeats)


def compare_scores(
    rows: Mapping[str, InstitutionRows],
    encrypted: Floats,
    in_clear: Floats,
    weight_error: float,
    task: Task,
    *,
    seed: int = 0,
    repeats: int = 1000,
) -> LocalScores:
    """Score linear outputs (n, C) of a released model and of its twin, on the scored rows of all,
    beside the baselines."""
    test = InstitutionRows.union(rows).scored
    pooled, alone = baseline_scores(rows, task, seed=seed)

    def auroc(scores: Floats) -> float:
        return macro_auroc(test.labels, scores, task)

    def interval(scores: Floats) -> tuple[float, float]:
        return bootstrap_ci(test.labels, scores, test.groups, task, repeats=repeats, seed=seed)

    return LocalScores(
        auroc=Auroc(
            encrypted=auroc(encrypted),
            plaintext_twin=auroc(in_clear),
            institutions={name: auroc(scores) for name, scores in alone.items()},
            pooled_plaintext=auroc(pooled),
        ),
        auroc_ci95=AurocInterval(
            encrypted=interval(encrypted),
            plaintext_twin=interval(in_clear),
            institutions={name: interval(scores) for name, scores in alone.items()},
            pooled_plaintext=interval(pooled),
        ),
        max_abs_weight_error=weight_error,
        labels=test.labels,
        encrypted=encrypted,
        per_class={
            name: auroc_per_class(test.labels, scores, task)
            for name, scores in {"encrypted": encrypted, "pooled_plaintext": pooled, **alone}.items()
        },
    )
