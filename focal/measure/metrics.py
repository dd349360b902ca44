"""How well scores tell classes apart, with 95 % intervals by patient and paired comparisons of two models.

Every measure of :data:`MEASURES` maps ``labels`` (n, K), ``scores`` (n, C) and the task to one value per class, NaN
for a class without both outcomes; its macro value is the mean over the others. Scores are linear outputs (logits)
of one-vs-rest heads, and are read as :func:`focal.segments.upper.class_probabilities` reads them: where classes exclude
each other, the sigmoids are normalised to sum 1 (:func:`log_odds`), for every measure, curve and histogram, and for
every model that is compared. The measures are scikit-learn's and torchmetrics'.

AUROC is resampled without copying or sorting a row again. A resample of the test patients with replacement
is a *count* per patient, hence per row::

    scores, sorted once   s_1 <= s_2 <= ... <= s_n
    counts, one a repeat  w_1    w_2    ...    w_n
                          `-- cumulative sums of the negatives' counts give N_below at every row

    AUROC = sum over positives p of w_p (N_below(p) + N_tied(p) / 2) / (W_pos W_neg)

so a repeat costs O(n) per class. Rows of one patient are drawn together: two eyes of a patient are not two
independent tests. That is also why two models are compared by :func:`paired_bootstrap` and not by DeLong's test,
which takes every row for independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, balanced_accuracy_score, recall_score, roc_auc_score

from focal.errors import FocalError
from focal.task import Task, outcomes

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Measure = Callable[[ArrayLike, ArrayLike, Task], Floats]

SPECIFICITY = 0.9
"""Where sensitivity is read off: one false alarm in ten healthy patients."""

CHUNK = 1 << 22
"""Counts held at once in :func:`resampled_auroc` (repeats x rows): 32 MB."""


def outcome_columns(labels: ArrayLike, scores: ArrayLike, task: Task) -> tuple[Bools, Floats]:
    """The columns that are scored: every class, or the positive class alone for a binary task.

    ``labels`` is (n, K) in {0, 1}; ``scores`` is (n, K), for a binary task (n, 1) or (n, 2). Returns two (n, C) arrays,
    outcomes and :func:`log_odds`.
    Raises :class:`FocalError` on NaN scores and ``ValueError`` on shapes that do not fit.
    """
    outcome, value = np.asarray(labels).astype(bool), np.asarray(scores, dtype=np.float64)
    if outcome.ndim != 2 or value.ndim != 2 or len(outcome) != len(value):
        raise ValueError(f"labels {outcome.shape} and scores {value.shape} must be matrices with the same rows")
    outcome, value = outcomes(outcome, task), outcomes(value, task)
    if outcome.shape != value.shape:
        raise ValueError(f"{outcome.shape[1]} classes of labels but {value.shape[1]} columns of scores")
    if not np.isfinite(value).all():
        raise FocalError(
            "the model's scores are not all finite numbers", hint="training diverged: use fewer steps or a larger ridge"
        )
    return outcome, log_odds(value, task)


def log_odds(scores: Floats, task: Task) -> Floats:
    """(n, C) log-odds of each outcome's probability, from (n, C) logits: what is ranked, and what a histogram counts.

    The logits themselves, but ``multiclass``: p_c over the sum of all p, p the sigmoids. Log-odds of probabilities that
    sum to 1 stay what they are, so that a softmax model is read as its softmax when it gives those.
    """
    if task != "multiclass":
        return scores
    logs = -np.logaddexp(0.0, -scores)
    others = (np.logaddexp.reduce(np.delete(logs, c, axis=1), axis=1) for c in range(scores.shape[1]))
    # rounded: what is tied stays tied (a class that a model never saw has the same score in every row)
    return np.stack([logs[:, c] - rest for c, rest in enumerate(others)], axis=1).round(12)


def auroc_per_class(labels: ArrayLike, scores: ArrayLike, task: Task = "multilabel") -> Floats:
    """One-vs-rest AUROC of each class, shape (C,); NaN where the rows hold only one outcome of a class.
    Binary: one value."""
    outcome, value = outcome_columns(labels, scores, task)
    return np.array(
        [roc_auc_score(y, s) if y.any() and not y.all() else np.nan for y, s in zip(outcome.T, value.T, strict=True)]
    )


def macro_auroc(labels: ArrayLike, scores: ArrayLike, task: Task) -> float:
    """Mean one-vs-rest AUROC over the classes present in the rows; binary: the positive class.

    A class is present when it has rows of both outcomes. Raises :class:`FocalError` when there is none.
    """
    values = auroc_per_class(labels, scores, task)
    if np.isnan(values).all():
        raise FocalError(
            "AUROC is undefined: the test rows hold one class only", hint="score rows of at least two classes"
        )
    return float(np.nanmean(values))


def weighted_auroc(outcome: Bools, score: Floats, counts: Floats) -> Floats:
    """AUROC of one class under many weightings of its rows: (n,), (n,), (repeats, n) -> (repeats,);
    NaN where an outcome has no weight."""
    order = np.argsort(score, kind="stable")
    ordered, positive, weight = score[order], outcome[order], counts[:, order]
    starts = np.flatnonzero(
        np.r_[True, ordered[1:] != ordered[:-1]]
    )  # one group per distinct score: ties count one half
    pos = np.add.reduceat(weight * positive, starts, axis=1)
    neg = np.add.reduceat(weight * ~positive, starts, axis=1)
    below = np.cumsum(neg, axis=1) - neg
    pairs = pos.sum(axis=1) * neg.sum(axis=1)
    wins = (pos * (below + neg / 2)).sum(axis=1)
    return np.divide(wins, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)


def row_counts(groups: ArrayLike, repeats: int, seed: int) -> Iterator[Floats]:
    """How often each resample draws each row: (some repeats, n) at a time, ``repeats`` in all.

    Patients (``groups``, shape (n,)) are drawn with replacement. The same seed and groups give the same resamples,
    so that intervals of several models on the same rows are comparable.
    """
    patients, row_patient = np.unique(np.asarray(groups), return_inverse=True)
    generator = np.random.default_rng(seed)
    per_chunk = max(1, CHUNK // max(1, len(row_patient)))
    for start in range(0, repeats, per_chunk):
        size = min(per_chunk, repeats - start)
        drawn = generator.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), size=size)
        yield drawn[:, row_patient].astype(np.float64)


def resampled_auroc(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, task: Task, *, repeats: int = 1000, seed: int = 0
) -> Floats:
    """:func:`macro_auroc` of every resample of the patients, (repeats,);
    NaN where a resample holds one outcome of every class.

    A class that a resample misses leaves that resample's mean, as it leaves :func:`macro_auroc`.
    """
    outcome, value = outcome_columns(labels, scores, task)
    means = []
    for counts in row_counts(groups, repeats, seed):
        values = np.stack([weighted_auroc(y, s, counts) for y, s in zip(outcome.T, value.T, strict=True)])
        present = (~np.isnan(values)).sum(axis=0)
        means.append(np.divide(np.nansum(values, axis=0), present, out=np.full(len(counts), np.nan), where=present > 0))
    return np.concatenate(means)


def bootstrap_ci(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, task: Task, *, repeats: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of :func:`macro_auroc`, patients (``groups``, shape (n,)) resampled with replacement.

    Raises :class:`FocalError` when every resample holds one class only (a handful of patients).
    """
    return percentiles(resampled_auroc(labels, scores, groups, task, repeats=repeats, seed=seed))


def percentiles(values: Floats) -> tuple[float, float]:
    """Ends of the 95 % interval of resampled values, (repeats,)."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        raise FocalError(
            "AUROC has no interval: no resample of the patients holds two classes", hint="score more patients"
        )
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


# --------------------------------------------------------------------------- two models on the same rows


class Paired(NamedTuple):
    """Macro AUROC of one model minus another's, on the same rows."""

    difference: float
    low: float
    high: float
    """Ends of the 95 % percentile interval of the difference."""
    p: float
    """Two-sided: how easily resampling alone turns the sign. At least 2 / (repeats + 1)."""


def paired_bootstrap(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    groups: ArrayLike,
    task: Task,
    *,
    repeats: int = 1000,
    seed: int = 0,
) -> Paired:
    """Compare two models' scores (n, C) each, every resample of the patients scored by both.

    What moves both together (an easy patient drawn twice) cancels, so this sees differences that two
    overlapping intervals hide.
    """
    one, other = (
        resampled_auroc(labels, scores, groups, task, repeats=repeats, seed=seed) for scores in (first, second)
    )
    return paired(macro_auroc(labels, first, task) - macro_auroc(labels, second, task), one - other)


def paired(observed: float, resampled: Floats) -> Paired:
    """The comparison from a difference of AUROCs and that difference in every resample of the patients, (repeats,)."""
    low, high = percentiles(resampled)
    defined = resampled[~np.isnan(resampled)]
    tail = 1 + min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return Paired(observed, low, high, min(1.0, 2 * tail / (len(defined) + 1)))


# --------------------------------------------------------------------------- further measures


def average_precision_per_class(labels: ArrayLike, scores: ArrayLike, task: Task) -> Floats:
    """Area under the precision-recall curve, (C,). Chance is the share of positives, not one half."""
    return _by_class(labels, scores, task, average_precision_score)


def sensitivity_per_class(labels: ArrayLike, scores: ArrayLike, task: Task) -> Floats:
    """Best sensitivity at a specificity of at least :data:`SPECIFICITY`, (C,)."""
    import torch
    from torchmetrics.functional.classification import binary_sensitivity_at_specificity

    def sensitivity(outcome: Bools, score: Floats) -> float:
        # torchmetrics takes numbers beyond [0, 1] for logits and squashes them,
        # which may tie what differs: give it ranks
        rank = torch.from_numpy(rankdata(score) / len(score))
        return float(
            binary_sensitivity_at_specificity(rank, torch.from_numpy(outcome.astype(np.int64)), SPECIFICITY)[0]
        )

    return _by_class(labels, scores, task, sensitivity)


def balanced_accuracy_per_class(labels: ArrayLike, scores: ArrayLike, task: Task) -> Floats:
    """(C,); the mean is the balanced accuracy. ``multiclass``: the share of a class's rows in which it
    scores highest (recall).

    Otherwise the mean of sensitivity and specificity where a class is called from probability 0.5
    upwards, the point that training knows: for rare classes, which seldom get there, it says more about
    the threshold than about the model.
    """
    if task != "multiclass":
        return _by_class(labels, scores, task, lambda outcome, score: balanced_accuracy_score(outcome, score >= 0))
    outcome, value = outcome_columns(labels, scores, task)
    every = np.arange(outcome.shape[1])
    recall = recall_score(outcome.argmax(axis=1), value.argmax(axis=1), labels=every, average=None, zero_division=0)
    return np.where(_scorable(outcome), recall, np.nan)


def calibration_error_per_class(labels: ArrayLike, scores: ArrayLike, task: Task) -> Floats:
    """Expected calibration error of each class's probability, 15 equal bins, (C,):
    the mean gap of predicted and observed frequency."""
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    outcome, _ = outcome_columns(labels, scores, task)
    probability = probabilities(scores, task)[:, -outcome.shape[1] :]

    def error(y: Bools, p: Floats) -> float:
        return float(
            binary_calibration_error(torch.from_numpy(np.ascontiguousarray(p)), torch.from_numpy(y.astype(np.int64)))
        )

    return np.array(
        [error(y, p) if s else np.nan for y, p, s in zip(outcome.T, probability.T, _scorable(outcome), strict=True)]
    )


def probabilities(scores: ArrayLike, task: Task) -> Floats:
    """(n, K) from logits (n, C), one column per class: :func:`focal.segments.upper.class_probabilities`."""
    import torch

    from focal.segments.upper import class_probabilities

    return class_probabilities(torch.from_numpy(np.asarray(scores, dtype=np.float64)), task).numpy()


def _scorable(outcome: Bools) -> Bools:
    return np.asarray(outcome.any(axis=0) & ~outcome.all(axis=0))


def _by_class(labels: ArrayLike, scores: ArrayLike, task: Task, measure: Callable[[Bools, Floats], float]) -> Floats:
    outcome, value = outcome_columns(labels, scores, task)
    return np.array(
        [measure(y, s) if k else np.nan for y, s, k in zip(outcome.T, value.T, _scorable(outcome), strict=True)]
    )


MEASURES: Mapping[str, Measure] = {
    "auroc": auroc_per_class,
    "average_precision": average_precision_per_class,
    "sensitivity_at_90_specificity": sensitivity_per_class,
    "balanced_accuracy": balanced_accuracy_per_class,
    "calibration_error": calibration_error_per_class,
}


class Measured(NamedTuple):
    """One measure of one model."""

    macro: float
    ci95: tuple[float, float]
    per_class: Floats
    """(C,), NaN where undefined."""


def measure_all(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: ArrayLike,
    task: Task,
    *,
    repeats: int = 1000,
    slow_repeats: int = 200,
    seed: int = 0,
) -> dict[str, Measured]:
    """Every measure of :data:`MEASURES`, by name. AUROC gets ``repeats`` resamples, the others,
    whose rows are copied, ``slow_repeats``.

    Raises :class:`FocalError` when the rows hold one class only.
    """
    macro_auroc(labels, scores, task)
    y, s = np.asarray(labels), np.asarray(scores)
    resampled: dict[str, list[float]] = {name: [] for name in MEASURES if name != "auroc"}
    for counts in row_counts(groups, slow_repeats, seed):
        for count in counts.astype(np.int64):
            rows = np.repeat(np.arange(len(y)), count)
            for name, values in resampled.items():
                drawn = MEASURES[name](y[rows], s[rows], task)
                values.append(np.nan if np.isnan(drawn).all() else float(np.nanmean(drawn)))
    intervals = {name: percentiles(np.array(values)) for name, values in resampled.items()}
    intervals["auroc"] = bootstrap_ci(y, s, groups, task, repeats=repeats, seed=seed)
    per_class = {name: measure(y, s, task) for name, measure in MEASURES.items()}
    return {name: Measured(float(np.nanmean(values)), intervals[name], values) for name, values in per_class.items()}
