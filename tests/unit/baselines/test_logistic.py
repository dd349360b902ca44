"""The plaintext baselines: agreement with scikit-learn, and the cases that hospitals bring:
missing classes, one class, one patient."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from focal.baselines import logistic
from focal.baselines.logistic import STRENGTHS, fit_logistic
from focal.measure.metrics import macro_auroc


def blobs(n: int = 400, classes: int = 3, dim: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = rng.normal(0, 1, (n, dim)) + np.random.default_rng(99).normal(0, 0.7, (classes, dim))[y]
    return (
        (5 * x + 3).astype(np.float32),
        np.eye(classes, dtype=np.uint8)[y],
        np.array([f"p{i // 2}" for i in range(n)]),
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_multiclass_scores_are_the_log_odds_of_sklearns_softmax(classes: int) -> None:
    x, labels, groups = blobs(classes=classes)
    model = fit_logistic(x, labels, groups, "multiclass")
    standard = (x - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64)
    reference = LogisticRegression(C=model.strength, max_iter=300).fit(standard, labels.argmax(1))
    scores = model.scores(x)
    softmax = 1 / (1 + np.exp(-scores))
    # The same problem and solver; std in float32 or float64 moves features by 1e-6, the optimum by as much.
    np.testing.assert_allclose(softmax, reference.predict_proba(standard), atol=1e-5)


def test_multilabel_and_binary_are_one_model_per_class() -> None:
    x, labels, groups = blobs()
    labels[:, 1] |= labels[:, 0]
    model = fit_logistic(x, labels, groups, "multilabel")
    standard = (x - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64)
    reference = [
        LogisticRegression(C=model.strength, max_iter=300).fit(standard, y).decision_function(standard)
        for y in labels.T
    ]
    np.testing.assert_allclose(model.scores(x), np.stack(reference, 1), atol=1e-4)
    binary = fit_logistic(x, labels[:, :2], groups, "binary")
    assert binary.scores(x).shape == (len(x), 1)
    assert macro_auroc(labels[:, :2], binary.scores(x), "binary") > 0.8


def test_a_class_never_seen_scores_zero_and_the_others_still_learn() -> None:
    x, labels, groups = blobs(classes=4)
    seen = labels[:, 2] == 0
    for task in ("multiclass", "multilabel"):
        scores = fit_logistic(x[seen], labels[seen], groups[seen], task).scores(x)
        assert (scores[:, 2] == 0).all()
        assert macro_auroc(labels[:, [0, 1, 3]], scores[:, [0, 1, 3]], task) > 0.8


@pytest.mark.parametrize(("task", "outputs"), [("multiclass", 3), ("multilabel", 3), ("binary", 1)])
def test_a_one_class_institution_is_a_warning_that_names_it(task: str, outputs: int) -> None:
    x, labels, groups = blobs(classes=2 if task == "binary" else 3)
    labels[:] = 0
    labels[:, -1] = 1
    with pytest.warns(UserWarning, match="hospital-b"):
        scores = fit_logistic(x, labels, groups, task, name="hospital-b").scores(x)  # type: ignore[arg-type]
    assert scores.shape == (len(x), outputs)
    assert (scores == 0).all()


def test_constant_features_one_patient_and_one_row() -> None:
    x, labels, groups = blobs()
    x[:, 3] = 7
    assert np.isfinite(fit_logistic(x, labels, groups, "multiclass").scores(x)).all()
    assert fit_logistic(x, labels, np.full(len(x), "p"), "multiclass").strength == STRENGTHS[2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (fit_logistic(x[:1], labels[:1], groups[:1], "multiclass").scores(x) == 0).all()


def test_the_strength_is_chosen_by_patient_not_by_row() -> None:
    """Features that identify the patient and say nothing of the class:
    seen by row, weak regularisation looks perfect."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(60), 6)
    x = rng.normal(0, 1, (60, 40))[patient] + rng.normal(0, 0.01, (360, 40))
    labels = np.eye(2, dtype=np.uint8)[rng.integers(0, 2, 60)[patient]]
    by_row = fit_logistic(x, labels, np.arange(360), "binary").strength
    by_patient = fit_logistic(x, labels, patient, "binary").strength
    assert by_row == STRENGTHS[-1]
    assert by_patient < by_row


def test_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels, groups = blobs()
    first = fit_logistic(x, labels, groups, "multiclass", seed=5)
    monkeypatch.setattr(logistic, "_fitted", {})
    second = fit_logistic(x, labels, groups, "multiclass", seed=5)
    assert first is not second
    np.testing.assert_array_equal(first.scores(x), second.scores(x))


def test_the_same_rows_are_fitted_once_and_others_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "_fitted", {})
    x, labels, groups = blobs()
    model = fit_logistic(x, labels, groups, "multiclass")
    assert (
        fit_logistic(x.copy(), labels, np.char.add("eye/", groups), "multiclass") is model
    )  # the same patients by other names
    turned = labels[:, [1, 0, 2]]
    for others in (
        (x + 1, labels, groups),
        (x, turned, groups),
        (x, labels, np.arange(len(x))),
        (x[:, ::-1], labels, groups),
    ):
        assert fit_logistic(*others, "multiclass") is not model
    assert (
        fit_logistic(x, labels, groups, "multilabel") is not model
        and fit_logistic(x, labels, groups, "multiclass", 1) is not model
    )
