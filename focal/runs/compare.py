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
from focal.errors import FocalError
from focal.measure.metrics import Floats, auroc_per_class, macro_auroc, paired, percentiles, resampled_auroc
from focal.measure.summary import Auroc, AurocInterval, Difference
from focal.segments.projection import Projection
from focal.task import Task


@dataclass(frozen=True)
class LocalScores:
    """What :func:`score_local_run` found: the numbers of the summary, and what the plots need."""

    auroc: Auroc
    auroc_ci95: AurocInterval
    encrypted_minus: dict[str, Difference]
    """By the name of the model that it is compared with."""
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
    others: Mapping[str, Floats] | None = None,
) -> LocalScores:
    """Score linear outputs (n, C) of a released model and of its twin, on the scored rows of all,
    beside the baselines, and beside ``others`` that are given by name."""
    test, others = InstitutionRows.union(rows).scored, others or {}
    pooled, alone = baseline_scores(rows, task, seed=seed)
    models = {"encrypted": encrypted, "plaintext_twin": in_clear, "pooled_plaintext": pooled, **alone, **others}
    if len(models) < 3 + len(alone) + len(others):
        raise FocalError(
            "a run to compare with has the name of another model: " + ", ".join(sorted(models)),
            hint="give the run another name",
        )
    auroc = {name: macro_auroc(test.labels, scores, task) for name, scores in models.items()}
    drawn = {
        name: resampled_auroc(test.labels, scores, test.groups, task, repeats=repeats, seed=seed)
        for name, scores in models.items()
    }
    interval = {name: percentiles(values) for name, values in drawn.items()}
    minus = {
        name: paired(auroc["encrypted"] - auroc[name], drawn["encrypted"] - drawn[name])
        for name in models
        if name != "encrypted"
    }
    return LocalScores(
        auroc=Auroc(
            encrypted=auroc["encrypted"],
            plaintext_twin=auroc["plaintext_twin"],
            institutions={name: auroc[name] for name in alone},
            pooled_plaintext=auroc["pooled_plaintext"],
            others={name: auroc[name] for name in others} or None,
        ),
        auroc_ci95=AurocInterval(
            encrypted=interval["encrypted"],
            plaintext_twin=interval["plaintext_twin"],
            institutions={name: interval[name] for name in alone},
            pooled_plaintext=interval["pooled_plaintext"],
            others={name: interval[name] for name in others} or None,
        ),
        encrypted_minus={
            name: Difference(difference=found.difference, ci95=(found.low, found.high), p=found.p)
            for name, found in minus.items()
        },
        max_abs_weight_error=weight_error,
        labels=test.labels,
        encrypted=encrypted,
        per_class={
            name: auroc_per_class(test.labels, scores, task)
            for name, scores in models.items()
            if name in ("encrypted", "pooled_plaintext", *alone)
        },
    )
