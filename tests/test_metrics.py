"""AUROC against scikit-learn, the bootstrap against scikit-learn's sample weights and against a literal resampling."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from focal.errors import FocalError
from focal.report.metrics import auroc_per_class, bootstrap_ci, macro_auroc, weighted_auroc


def rows(n: int = 300, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One-hot labels, scores that know something, two rows per patient."""
    rng = np.random.default_rng(seed)
    labels = np.eye(classes, dtype=np.uint8)[rng.integers(0, classes, n)]
    return labels, labels + rng.normal(0, 1, (n, classes)), np.array([f"p{i // 2}" for i in range(n)])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(4, 40), st.integers(1, 5))
def test_weighted_auroc_is_sklearns_with_sample_weights_ties_included(seed: int, n: int, distinct: int) -> None:
    rng = np.random.default_rng(seed)
    outcome = rng.random(n) < 0.5
    outcome[:2] = True, False
    score = rng.integers(0, distinct, n).astype(np.float64)  # few distinct values: ties everywhere
    counts = rng.integers(0, 4, (3, n)).astype(np.float64)
    counts[:, :2] = 1  # both outcomes always drawn
    expected = [roc_auc_score(outcome, score, sample_weight=w) for w in counts]
    # Both are sums of at most 40 * 40 integers divided once or twice: 1e-12 is a thousand roundings.
    np.testing.assert_allclose(weighted_auroc(outcome, score, counts), expected, atol=1e-12)


def test_weighted_auroc_is_nan_where_an_outcome_is_not_drawn() -> None:
    outcome = np.array([True, False, False])
    values = weighted_auroc(outcome, np.array([0.0, 1.0, 2.0]), np.array([[0.0, 1, 1], [1, 0, 0], [1, 1, 0]]))
    assert np.isnan(values[:2]).all()
    assert values[2] == 0.0


def test_per_class_and_macro_skip_absent_classes() -> None:
    labels, scores, _ = rows()
    labels, scores = np.c_[labels, np.zeros(len(labels))], np.c_[scores, np.zeros(len(labels))]
    values = auroc_per_class(labels, scores)
    assert np.isnan(values[4])
    expected = [roc_auc_score(labels[:, c], scores[:, c]) for c in range(4)]
    np.testing.assert_allclose(values[:4], expected, atol=1e-12)
    assert macro_auroc(labels, scores, "multiclass") == pytest.approx(np.mean(expected), abs=1e-12)


def test_a_class_that_a_model_never_saw_scores_one_half() -> None:
    labels, scores, _ = rows()
    scores[:, 2] = 0
    assert auroc_per_class(labels, scores)[2] == 0.5


def test_binary_uses_the_positive_class_in_either_shape() -> None:
    labels, scores, groups = rows(classes=2)
    expected = roc_auc_score(labels[:, 1], scores[:, 1])
    assert expected != pytest.approx(roc_auc_score(labels[:, 0], scores[:, 0]), abs=1e-3)  # so that the wrong column would show
    assert macro_auroc(labels, scores, "binary") == pytest.approx(expected, abs=1e-12)
    assert macro_auroc(labels, scores[:, 1:], "binary") == pytest.approx(expected, abs=1e-12)
    assert bootstrap_ci(labels, scores, groups, "binary") == bootstrap_ci(labels, scores[:, 1:], groups, "binary")


def test_one_class_only_and_nan_scores_are_clear_errors() -> None:
    labels, scores, groups = rows()
    with pytest.raises(FocalError, match="one class only"):
        macro_auroc(np.eye(4)[np.zeros(300, int)], scores, "multiclass")
    with pytest.raises(FocalError, match="no interval"):
        bootstrap_ci(np.eye(4)[np.zeros(300, int)], scores, groups, "multiclass", repeats=5)
    scores[3, 1] = np.nan
    with pytest.raises(FocalError, match="not all finite"):
        macro_auroc(labels, scores, "multiclass")
    with pytest.raises(ValueError, match="columns of scores"):
        macro_auroc(labels, scores[:, :3], "multiclass")


def test_bootstrap_agrees_with_literal_resampling_of_patients() -> None:
    labels, scores, groups = rows(n=200)
    patients = np.unique(groups)
    members = {p: np.flatnonzero(groups == p) for p in patients}
    rng = np.random.default_rng(7)
    values = []
    for _ in range(400):
        drawn = np.concatenate([members[p] for p in rng.choice(patients, len(patients))])
        values.append(macro_auroc(labels[drawn], scores[drawn], "multiclass"))
    expected = np.percentile(values, [2.5, 97.5])
    # The standard error of a 2.5 % quantile of a normal with deviation s from m draws is about 2.7 s / sqrt(m); four of both samples'.
    tolerance = 4 * 2.7 * np.std(values) * np.hypot(1 / np.sqrt(400), 1 / np.sqrt(4000))
    np.testing.assert_allclose(bootstrap_ci(labels, scores, groups, "multiclass", repeats=4000), expected, atol=tolerance)


def test_rows_of_one_patient_are_drawn_together() -> None:
    """Every row ten times over: by patient the interval does not shrink, by row it would, by sqrt(10)."""
    labels, scores, _ = rows(n=150)
    patient = np.arange(150)
    once = bootstrap_ci(labels, scores, patient, "multiclass")
    labels, scores = np.repeat(labels, 10, axis=0), np.repeat(scores, 10, axis=0)
    assert bootstrap_ci(labels, scores, np.repeat(patient, 10), "multiclass") == pytest.approx(once, abs=1e-12)
    low, high = bootstrap_ci(labels, scores, np.arange(1500), "multiclass")
    assert (high - low) < 0.5 * (once[1] - once[0])


def test_interval_is_seeded_holds_the_value_and_does_not_depend_on_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores, groups = rows()
    interval = bootstrap_ci(labels, scores, groups, "multiclass", seed=3)
    assert interval == bootstrap_ci(labels, scores, groups, "multiclass", seed=3)
    assert interval != bootstrap_ci(labels, scores, groups, "multiclass", seed=4)
    assert interval[0] < macro_auroc(labels, scores, "multiclass") < interval[1]
    monkeypatch.setattr("focal.report.metrics.CHUNK", 1000)
    assert interval == bootstrap_ci(labels, scores, groups, "multiclass", seed=3)


def test_a_thousand_repeats_of_odirs_size_take_seconds() -> None:
    labels, scores, groups = rows(n=1275, classes=8)
    start = time.process_time()
    bootstrap_ci(labels, scores, groups, "multiclass", repeats=1000)
    assert time.process_time() - start < 10  # 0.4 s measured on one core
