"""Logistic regression on plaintext features: what an institution reaches alone, and what pooling the data would give.

Multinomial where a row has one class of several, one model per class where it may have any number; features
standardised. One regularisation strength is chosen by cross-validation inside the training rows, a patient's
rows never on both sides of a fold::

    train rows --split by patient--> fold 1 | fold 2 | fold 3
                                     for each C: fit on two, score the third;
                                     keep the C with the best mean AUROC; fit on all rows

Every model of a run is scored by its probabilities (:func:`focal.measure.metrics.log_odds`): a multinomial one by its
softmax, which ranks patients better than its linear outputs do.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from threadpoolctl import threadpool_limits

from focal import framing
from focal.data.rows import InstitutionRows
from focal.measure.metrics import Bools, Floats, auroc_per_class
from focal.task import Task, outcomes

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""scikit-learn's C (inverse ridge on standardised features)."""

FOLDS = 3

MAX_ITERATIONS = 300
"""Of L-BFGS; the strengths above converge well before, and a slow last one is not worth a wait."""


@dataclass(frozen=True)
class LogisticModel:
    """A fitted model: ``(features - mean) / scale @ weights + bias``, read as log-odds;
    a class never seen has zeros and scores constant 0."""

    mean: Floats
    scale: Floats
    weights: Floats
    bias: Floats
    strength: float
    """The chosen C."""
    softmax: tuple[int, ...] = ()
    """Outputs whose probabilities sum to 1, where the model is multinomial."""

    def scores(self, features: ArrayLike) -> Floats:
        """Log-odds of each output: (n, dim) -> (n, outputs); binary tasks have one output, the positive class."""
        linear = (np.asarray(features, dtype=np.float64) - self.mean) / self.scale @ self.weights + self.bias
        return _read(linear, self.softmax)


def fit_logistic(
    features: ArrayLike, labels: ArrayLike, groups: ArrayLike, task: Task, seed: int = 0, *, name: str = "pooled"
) -> LogisticModel:
    """Fit on (n, dim) ``features``, (n, K) ``labels`` in {0, 1} and (n,) patient ids ``groups``.

    A class without both outcomes scores constant 0 (AUROC 0.5). When that is every class, a warning names
    the institution (``name``). The same rows in the same process are fitted once: a study compares
    several runs with the same baselines.
    """
    x, y = np.asarray(features, dtype=np.float64), outcomes(np.asarray(labels).astype(bool), task)
    who = np.unique(np.asarray(groups), return_inverse=True)[1].astype(
        np.int64
    )  # which rows go together; names do not matter
    if not _learnable(y).any():
        warnings.warn(
            f"{name}: its training rows hold one class only; its model scores constant 0 (AUROC 0.5)", stacklevel=2
        )
    said = repr((x.shape, y.shape, task, seed)).encode()
    key = framing.digest(b"focal/logistic/v1", said, x.tobytes(), y.tobytes(), who.tobytes())
    if key not in _fitted:
        _fitted[key] = _fit_best(x, y, who, task, seed)
    return _fitted[key]


_fitted: dict[bytes, LogisticModel] = {}
"""By content of the rows; some kilobytes each."""


def baseline_scores(
    rows: Mapping[str, InstitutionRows], task: Task, *, seed: int = 0
) -> tuple[Floats, dict[str, Floats]]:
    """Log-odds (n, C) on the scored rows of all: of the pooled model, and of each institution alone, by name."""
    everyone = InstitutionRows.union(rows)
    test = everyone.scored.features
    alone = {name: fit_rows(own, task, seed, name).scores(test) for name, own in rows.items()}
    return fit_rows(everyone, task, seed, "pooled").scores(test), alone


def fit_rows(own: InstitutionRows, task: Task, seed: int, name: str) -> LogisticModel:
    """:func:`fit_logistic` on the train rows of ``own``."""
    train = own.split == "train"
    return fit_logistic(own.features[train], own.labels[train], own.groups[train], task, seed, name=name)


def _fit_best(x: Floats, y: Bools, who: NDArray[np.int64], task: Task, seed: int) -> LogisticModel:
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale == 0] = 1.0
    standard = (x - mean) / scale
    with threadpool_limits(limits=1):  # BLAS threads that spin beside other busy processes make this ten times slower
        strength = _choose_strength(standard, y, who, task, seed) if _learnable(y).any() else STRENGTHS[0]
        weights, bias = _fit(standard, y, task, strength)
    return LogisticModel(mean, scale, weights, bias, strength, _multinomial(y, task))


def _learnable(y: Bools) -> Bools:
    """(K,): the classes with both outcomes among the rows."""
    return np.asarray(y.any(axis=0) & ~y.all(axis=0))


def _multinomial(y: Bools, task: Task) -> tuple[int, ...]:
    """The outputs of one softmax: the classes that the rows can teach, where an image has one."""
    classes = tuple(int(c) for c in np.flatnonzero(_learnable(y)))
    return classes if task == "multiclass" and len(classes) > 1 else ()


def _read(linear: Floats, softmax: tuple[int, ...]) -> Floats:
    """Log-odds from linear outputs (n, outputs)."""
    out = linear.copy()
    for c in softmax:
        rest = linear[:, [other for other in softmax if other != c]]
        out[:, c] = linear[:, c] - np.logaddexp.reduce(rest, axis=1)
    return out


def _fit(x: Floats, y: Bools, task: Task, strength: float) -> tuple[Floats, Floats]:
    """Weights (dim, K) and biases (K,); zeros for classes without both outcomes."""
    weights, bias = np.zeros((x.shape[1], y.shape[1])), np.zeros(y.shape[1])
    classes = np.flatnonzero(_learnable(y))
    if task == "multiclass" and len(classes) > 1:
        model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS).fit(x, y.argmax(axis=1))
        # With two classes left scikit-learn keeps their log-odds only: half to either side is the multinomial optimum.
        halves = np.array([[-0.5], [0.5]]) if len(classes) == 2 else np.eye(len(classes))
        weights[:, classes], bias[classes] = (halves @ model.coef_).T, halves @ model.intercept_
        return weights, bias
    for c in classes:
        model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS).fit(x, y[:, c])
        weights[:, c], bias[c] = model.coef_[0], model.intercept_[0]
    return weights, bias


def _choose_strength(x: Floats, y: Bools, groups: NDArray[np.int64], task: Task, seed: int) -> float:
    """The C with the best out-of-fold macro AUROC; the middle one when there are too few patients to fold."""
    folds = min(FOLDS, len(np.unique(groups)))
    if folds < 2:
        return STRENGTHS[len(STRENGTHS) // 2]
    split = list(GroupKFold(folds, shuffle=True, random_state=seed).split(x, groups=groups))
    return max(STRENGTHS, key=lambda strength: _held_out_auroc(x, y, task, split, strength))


def _held_out_auroc(
    x: Floats, y: Bools, task: Task, split: list[tuple[NDArray[np.int64], NDArray[np.int64]]], strength: float
) -> float:
    """Mean AUROC over folds and over the classes that the fold's held-out rows can score;
    0.5 when they can score none."""
    values = []
    for train, held in split:
        weights, bias = _fit(x[train], y[train], task, strength)
        values.append(auroc_per_class(y[held], _read(x[held] @ weights + bias, _multinomial(y[train], task))))
    every = np.concatenate(values)
    return 0.5 if np.isnan(every).all() else float(np.nanmean(every))
