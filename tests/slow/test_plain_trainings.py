"""Plaintext trainings that take their time: what the features of shipped configurations are worth,
and SPE-FL on an easy task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import DATA
from sklearn.metrics import roc_auc_score
from squares import NAMES, squares, unequal

from focal import configs
from focal.baselines.logistic import fit_logistic
from focal.baselines.spe_fl import (
    Settings,
    measure,
    spe_fl,
)
from focal.config import RunConfig
from focal.data import load
from focal.data.table import Table
from focal.reading import read
from focal.segments.lower import build_lower
from focal.training.features import compute_features


def pooled_auroc(config: RunConfig, table: Table, train: Any, test: Any, cache: Path) -> tuple[float, float]:
    """Macro AUROC of scikit-learn's logistic regression on raw features, and their largest magnitude."""
    one, _ = build_lower(config.lower, config.lower.weights)
    both = np.concatenate([train, test])
    x, y = compute_features(one, table, both, device="cpu", cache=cache), table.labels[both]
    n = len(train)
    scores = fit_logistic(x[:n], y[:n], table.groups[train], table.task).scores(x[n:])
    truth = y[n:, -1:] if table.task == "binary" else y[n:]
    return float(np.mean([roc_auc_score(truth[:, c], scores[:, c]) for c in range(truth.shape[1])])), float(
        np.abs(x).max()
    )


def shipped(name: str, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setenv("FOCAL_DATA", str(DATA))
    return read(RunConfig, configs.find(name))


def test_the_demo_can_be_learned_and_pooling_helps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = shipped("demo", monkeypatch)
    table = load(config.dataset, config.seed)
    pooled, largest = pooled_auroc(config, table, table.train_rows, table.test_rows, tmp_path)
    assert table.institution is not None
    alone = [
        pooled_auroc(
            config, table, table.train_rows[table.institution[table.train_rows] == site], table.test_rows, tmp_path
        )[0]
        for site in "012"
    ]
    # Over data seeds 0, 1, 2 pooling gave 0.869 to 0.877 and the best institution alone 0.767 to 0.811:
    # at least 0.062 less.
    assert 0.84 < pooled < 0.97 and max(alone) < pooled - 0.03
    assert largest < config.projection.bound, "the demo's bound clips nothing"


def test_odir_features_reach_the_published_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = shipped("retina", monkeypatch)
    if not (DATA / "odir5k.zip").exists():
        pytest.skip(f"{DATA / 'odir5k.zip'} is not there (FOCAL_DATA names the folder)")
    table = load(config.dataset, 0)
    value, _ = pooled_auroc(config, table, table.train_rows[::10], table.test_rows[::5], tmp_path)
    # All rows give 0.7654. Six such tenths of the training rows gave 0.706 to 0.745 (mean 0.722, deviation 0.014);
    # no information, 0.5.
    assert value > 0.66


def test_it_learns_an_easy_task_with_noise_and_compression() -> None:
    found = spe_fl(unequal(), held := squares(100, 9), "binary", Settings(rounds=5, encrypted=False))
    assert found.scores.shape == (100, 1)
    assert found.rounds[-1].auroc > 0.95
    assert found.measures == measure(held.labels, found.scores, "binary")
    assert [r.returned for r in found.rounds] == [NAMES] * 5
    seconds = [r.seconds for r in found.rounds]
    assert seconds == sorted(seconds) and seconds[0] > 0
