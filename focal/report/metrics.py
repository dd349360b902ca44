"""AUROC and its 95 % interval by patient.

A resample of the test patients with replacement is a *count* per patient, hence per row; no row is ever copied or sorted again::

    scores, sorted once   s_1 <= s_2 <= ... <= s_n
    counts, one a repeat  w_1    w_2    ...    w_n        AUROC = sum over positives p of w_p (N_below(p) + N_tied(p) / 2) / (W_pos W_neg)
                          `-- cumulative sums of the negatives' counts give N_below at every row

so a repeat costs O(n) per class. Rows of one patient are drawn together: two eyes of a patient are not two independent tests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score

from focal.config import Task
from focal.errors import FocalError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CHUNK = 1 << 22
"""Counts held at once in :func:`bootstrap_ci` (repeats x rows): 32 MB."""


def outcome_columns(labels: ArrayLike, scores: ArrayLike, task: Task) -> tuple[Bools, Floats]:
    """The columns that are scored: every class, or the positive class alone for a binary task.

    ``labels`` is (n, K) in {0, 1}; ``scores`` is (n, K), for a binary task (n, 1) or (n, 2). Returns two (n, C) arrays.
    Raises :class:`FocalError` on NaN scores and ``ValueError`` on shapes that do not fit.
    """
    outcome, value = np.asarray(labels).astype(bool), np.asarray(scores, dtype=np.float64)
    if outcome.ndim != 2 or value.ndim != 2 or len(outcome) != len(value):
        raise ValueError(f"labels {outcome.shape} and scores {value.shape} must be matrices with the same rows")
    if task == "binary":
        outcome, value = outcome[:, -1:], value[:, -1:]
    if outcome.shape != value.shape:
        raise ValueError(f"{outcome.shape[1]} classes of labels but {value.shape[1]} columns of scores")
    if not np.isfinite(value).all():
        raise FocalError("the model's scores are not all finite numbers", hint="training diverged: use fewer steps or a larger ridge")
    return outcome, value


def auroc_per_class(labels: ArrayLike, scores: ArrayLike, task: Task = "multilabel") -> Floats:
    """One-vs-rest AUROC of each class, shape (C,); NaN where the rows hold only one outcome of a class. Binary: one value."""
    outcome, value = outcome_columns(labels, scores, task)
    return np.array([roc_auc_score(y, s) if y.any() and not y.all() else np.nan for y, s in zip(outcome.T, value.T, strict=True)])


def macro_auroc(labels: ArrayLike, scores: ArrayLike, task: Task) -> float:
    """Mean one-vs-rest AUROC over the classes present in the rows; binary: the positive class.

    A class is present when it has rows of both outcomes. Raises :class:`FocalError` when there is none.
    """
    values = auroc_per_class(labels, scores, task)
    if np.isnan(values).all():
        raise FocalError("AUROC is undefined: the test rows hold one class only", hint="score rows of at least two classes")
    return float(np.nanmean(values))


def weighted_auroc(outcome: Bools, score: Floats, counts: Floats) -> Floats:
    """AUROC of one class under many weightings of its rows: (n,), (n,), (repeats, n) -> (repeats,); NaN where an outcome has no weight."""
    order = np.argsort(score, kind="stable")
    ordered, positive, weight = score[order], outcome[order], counts[:, order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # one group per distinct score: ties count one half
    pos = np.add.reduceat(weight * positive, starts, axis=1)
    neg = np.add.reduceat(weight * ~positive, starts, axis=1)
    below = np.cumsum(neg, axis=1) - neg
    pairs = pos.sum(axis=1) * neg.sum(axis=1)
    wins = (pos * (below + neg / 2)).sum(axis=1)
    return np.divide(wins, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)


def bootstrap_ci(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, task: Task, *, repeats: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of :func:`macro_auroc`, patients (``groups``, shape (n,)) resampled with replacement.

    A class that a resample misses leaves that resample's mean, as it leaves :func:`macro_auroc`. The same seed and groups give
    the same resamples, so that intervals of several models on the same rows are comparable.
    Raises :class:`FocalError` when every resample holds one class only (a handful of patients).
    """
    outcome, value = outcome_columns(labels, scores, task)
    patients, row_patient = np.unique(np.asarray(groups), return_inverse=True)
    generator = np.random.default_rng(seed)
    per_chunk = max(1, CHUNK // max(1, len(outcome)))
    means = []
    for start in range(0, repeats, per_chunk):
        size = min(per_chunk, repeats - start)
        drawn = generator.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), size=size)
        counts = drawn[:, row_patient].astype(np.float64)
        values = np.stack([weighted_auroc(y, s, counts) for y, s in zip(outcome.T, value.T, strict=True)])
        defined = ~np.isnan(values)
        present = defined.sum(axis=0)
        means.append((np.where(defined, values, 0).sum(axis=0) / np.maximum(present, 1))[present > 0])
    pooled = np.concatenate(means)
    if not len(pooled):
        raise FocalError("AUROC has no interval: no resample of the patients holds two classes", hint="score more patients")
    low, high = np.percentile(pooled, [2.5, 97.5])
    return float(low), float(high)
