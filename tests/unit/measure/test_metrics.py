"""AUROC against scikit-learn, the bootstrap against sample weights, literal resampling and DeLong;
the other measures by hand-made rows."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from focal.errors import FocalError
from focal.measure.metrics import (
    MEASURES,
    auroc_per_class,
    average_precision_per_class,
    balanced_accuracy_per_class,
    bootstrap_ci,
    calibration_error_per_class,
    log_odds,
    macro_auroc,
    measure_all,
    paired_bootstrap,
    probabilities,
    resampled_auroc,
    sensitivity_per_class,
    weighted_auroc,
)


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
    assert macro_auroc(labels, scores, "multilabel") == pytest.approx(np.mean(expected), abs=1e-12)


def test_where_classes_exclude_each_other_probabilities_are_ranked() -> None:
    """Sigmoids normalised to sum 1, as a released model's probabilities are: the same ranks, to the last tie."""
    labels, scores, _ = rows()
    assert labels.shape[1] > 2
    read = probabilities(scores, "multiclass")
    np.testing.assert_allclose(read.sum(axis=1), 1, atol=1e-12)
    expected = [roc_auc_score(labels[:, c], read[:, c]) for c in range(labels.shape[1])]
    np.testing.assert_allclose(auroc_per_class(labels, scores, "multiclass"), expected, atol=1e-12)
    assert abs(np.mean(expected) - macro_auroc(labels, scores, "multilabel")) > 1e-4, "or nothing was normalised"
    odds = log_odds(scores, "multiclass")
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), read, atol=1e-12)
    np.testing.assert_allclose(log_odds(odds, "multiclass"), odds, atol=1e-9)  # what sums to 1 stays
    assert np.isfinite(log_odds(1e3 * scores, "multiclass")).all()


def test_a_class_that_a_model_never_saw_scores_one_half() -> None:
    labels, scores, _ = rows()
    scores[:, 2] = 0
    assert auroc_per_class(labels, scores)[2] == 0.5


def test_binary_uses_the_positive_class_in_either_shape() -> None:
    labels, scores, groups = rows(classes=2)
    expected = roc_auc_score(labels[:, 1], scores[:, 1])
    assert expected != pytest.approx(
        roc_auc_score(labels[:, 0], scores[:, 0]), abs=1e-3
    )  # so that the wrong column would show
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
    # The standard error of a 2.5 % quantile of a normal with deviation s from m draws is about 2.7 s / sqrt(m);
    # four of both samples'.
    tolerance = 4 * 2.7 * np.std(values) * np.hypot(1 / np.sqrt(400), 1 / np.sqrt(4000))
    np.testing.assert_allclose(
        bootstrap_ci(labels, scores, groups, "multiclass", repeats=4000), expected, atol=tolerance
    )


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
    monkeypatch.setattr("focal.measure.metrics.CHUNK", 1000)
    assert interval == bootstrap_ci(labels, scores, groups, "multiclass", seed=3)


def test_a_thousand_repeats_of_odirs_size_take_seconds() -> None:
    labels, scores, groups = rows(n=1275, classes=8)
    start = time.process_time()
    bootstrap_ci(labels, scores, groups, "multiclass", repeats=1000)
    assert time.process_time() - start < 10  # 0.4 s measured on one core


# --------------------------------------------------------------------------- two models


def delong_deviation(outcome: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Standard deviation of the difference of two AUROCs on independent rows (DeLong,
    DeLong and Clarke-Pearson 1988)."""

    def wins(score: np.ndarray) -> np.ndarray:
        below = score[outcome][:, None] - score[~outcome][None, :]
        return (below > 0) + 0.5 * (below == 0)

    difference = wins(first) - wins(second)
    by_positive, by_negative = difference.mean(axis=1), difference.mean(axis=0)
    return float(np.sqrt(by_positive.var(ddof=1) / len(by_positive) + by_negative.var(ddof=1) / len(by_negative)))


def test_paired_bootstrap_spreads_as_delong_says_where_rows_are_independent() -> None:
    rng = np.random.default_rng(1)
    outcome = rng.random(600) < 0.3
    first = outcome + rng.normal(0, 1, 600)
    second = first + rng.normal(0, 0.7, 600)
    labels, rows_of_their_own = np.c_[~outcome, outcome], np.arange(600)
    spread = np.std(
        resampled_auroc(labels, first[:, None], rows_of_their_own, "binary", repeats=4000)
        - resampled_auroc(labels, second[:, None], rows_of_their_own, "binary", repeats=4000)
    )
    # A deviation from 4000 draws errs by 1.1 %; the two estimates differ by terms of order 1 / positives.
    assert spread == pytest.approx(delong_deviation(outcome, first, second), rel=0.07)
    found = paired_bootstrap(labels, first[:, None], second[:, None], rows_of_their_own, "binary")
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    assert found.difference == macro_auroc(labels, first[:, None], "binary") - macro_auroc(
        labels, second[:, None], "binary"
    )


def test_pairing_sees_what_overlapping_intervals_hide() -> None:
    labels, scores, groups = rows(n=600)
    worse = scores + np.random.default_rng(5).normal(0, 0.6, scores.shape)
    first, second = (bootstrap_ci(labels, s, groups, "multiclass") for s in (scores, worse))
    assert first[0] < second[1]  # they overlap
    found = paired_bootstrap(labels, scores, worse, groups, "multiclass")
    assert found.low > 0 and found.p < 0.01
    turned = paired_bootstrap(labels, worse, scores, groups, "multiclass")
    assert (turned.low, turned.high, turned.p) == pytest.approx((-found.high, -found.low, found.p))


def test_a_model_against_itself_is_no_difference() -> None:
    labels, scores, groups = rows()
    found = paired_bootstrap(labels, scores, 3 * scores - 1, groups, "multilabel", repeats=100)  # the same ranking
    assert found == (0.0, 0.0, 0.0, 1.0)


def test_p_is_uniform_when_there_is_no_difference() -> None:
    """Two equally good models on fresh rows, 200 times: p below 0.2 in about a fifth of them."""
    rng = np.random.default_rng(2)
    small = 0
    for _ in range(200):
        outcome = rng.random(120) < 0.5
        labels, noise = np.c_[~outcome, outcome], rng.normal(0, 1, (2, 120, 1))
        small += (
            paired_bootstrap(
                labels, outcome[:, None] + noise[0], outcome[:, None] + noise[1], np.arange(120), "binary", repeats=200
            ).p
            < 0.2
        )
    assert 20 <= small <= 62  # 40 expected, deviation 5.7; a bootstrap of 120 rows is a little too sure of itself


# --------------------------------------------------------------------------- other measures


def test_every_measure_skips_what_it_cannot_score_and_agrees_on_shapes() -> None:
    labels, scores, groups = rows()
    labels, scores = np.c_[labels, np.zeros(len(labels))], np.c_[scores, np.full(len(labels), -9.0)]
    for task in ("multiclass", "multilabel"):
        for name, measure in MEASURES.items():
            values = measure(labels, scores, task)
            assert values.shape == (5,) and np.isnan(values[4]) and not np.isnan(values[:4]).any(), name
    for name, measured in measure_all(labels, scores, groups, "multiclass", repeats=50, slow_repeats=50).items():
        assert measured.macro == pytest.approx(np.nanmean(measured.per_class)), name
        assert measured.ci95[0] < measured.ci95[1], name
    with pytest.raises(FocalError, match="one class only"):
        measure_all(np.eye(4)[np.zeros(300, int)], scores[:, :4], groups, "multiclass")


def test_average_precision_of_four_rows() -> None:
    outcome, score = np.array([[1, 0], [0, 1], [1, 0], [0, 1]]), np.array([[0.4], [0.9], [0.7], [0.2]])
    # by falling score: positive, negative, negative, positive -> precision 1 at recall 1/2, 2/4 at recall 1
    assert average_precision_per_class(outcome, score, "binary") == pytest.approx([0.5 * 1 + 0.5 * 0.5])


@pytest.mark.parametrize("stretch", [1.0, 1e3])  # beyond 37 a sigmoid is 1 exactly: scores must not be squashed
def test_sensitivity_where_nine_of_ten_negatives_are_below(stretch: float) -> None:
    negatives, positives = np.arange(10.0), np.array([8.5, 7.5, 9.5, 2.5])
    labels = np.r_[np.tile([1, 0], (10, 1)), np.tile([0, 1], (4, 1))]
    found = sensitivity_per_class(labels, stretch * np.r_[negatives, positives][:, None], "binary")
    assert found == pytest.approx([0.5])  # above 8 lies one negative (9) and two of four positives
    assert sensitivity_per_class(labels, -stretch * np.r_[negatives, positives][:, None], "binary") == pytest.approx(
        [0.0]
    )


def test_balanced_accuracy_calls_the_highest_class_or_from_one_half_upwards() -> None:
    labels = np.eye(3, dtype=int)[[0, 0, 1, 1, 1, 2]]
    scores = np.array([[2, 1, 0], [0, 1, 0], [0, 1, 0], [0, -1, -2], [-3, -1, -2], [0, 0, 5.0]])
    assert balanced_accuracy_per_class(labels, scores, "multiclass") == pytest.approx([1 / 2, 2 / 3, 1.0])
    # class 1 alone: called where its score is 0 or more, in rows 0, 1, 2 and 5; one of three positives,
    # one of three negatives not
    assert balanced_accuracy_per_class(labels, scores, "multilabel")[1] == pytest.approx((1 / 3 + 0 / 3) / 2)


def test_calibration_error_is_the_gap_of_prediction_and_frequency() -> None:
    outcome = np.arange(1000) % 10 < 3
    labels = np.c_[~outcome, outcome]
    for said, gap in ((0.3, 0.0), (0.5, 0.2), (0.9, 0.6)):
        scores = np.full((1000, 1), logit(said))
        assert calibration_error_per_class(labels, scores, "binary") == pytest.approx([gap], abs=1e-6)
    # multiclass probabilities are sigmoids normalised to sum 1: equal logits mean 1/2, whatever their size
    assert calibration_error_per_class(labels, np.full((1000, 2), 5.0), "multiclass") == pytest.approx(
        [0.2, 0.2], abs=1e-6
    )
