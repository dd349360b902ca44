"""A pooled ROC curve from secretly added counts: exact counts, a bound that holds,
and nothing that shows one site's scores."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from focal.cli import parties
from focal.errors import ProtocolError
from focal.measure.histogram import (
    BINS,
    LIMIT,
    WIDTH,
    from_sum,
    pooled_macro,
    pooled_roc,
    score_histogram,
    write_pooled,
)
from focal.measure.metrics import auroc_per_class, log_odds, macro_auroc
from focal.reporting.pooled import plot_pooled
from focal.sums.fixed import decode, encode
from focal.sums.masked import MaskedSum

SITES = ("north", "south", "west")


def site(seed: int, n: int = 400, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.eye(classes, dtype=np.uint8)[rng.choice(classes, n, p=[0.75, 0.2, 0.05])]
    return labels, 1.5 * labels + rng.normal(-1, 1, (n, classes))


def test_the_pooled_curve_from_masked_sums_is_that_of_all_rows_within_its_bound() -> None:
    data = {name: site(i) for i, name in enumerate(SITES)}
    secrets = {name: bytes([i + 1]) * 32 for i, name in enumerate(SITES)}
    publics = {
        name: X25519PrivateKey.from_private_bytes(s).public_key().public_bytes_raw() for name, s in secrets.items()
    }
    sides = {name: MaskedSum(bytes(32), "histogram", name, SITES, secrets[name], publics, b"g" * 32) for name in SITES}
    own = {name: encode(score_histogram(*data[name], "multiclass").ravel(), 0) for name in SITES}
    sent = {name: sides[name].contribution(own[name]) for name in SITES}
    opened = [sides[name].open(sent) for name in SITES]
    assert all(np.array_equal(opened[0], other) for other in opened)
    curves = pooled_roc(from_sum(decode(opened[0], 0), 3))

    labels, scores = (np.concatenate([data[name][k] for name in SITES]) for k in (0, 1))
    exact = auroc_per_class(labels, scores, "multiclass")
    for c, curve in enumerate(curves):
        assert (curve.positives, curve.negatives) == (labels[:, c].sum(), (1 - labels[:, c]).sum())
        assert abs(curve.auroc - exact[c]) <= curve.bound + 1e-12
        assert 0 < curve.bound < 0.01
        # every point of the curve is one of the exact curve: thresholds at the bins' limits
        value = log_odds(scores, "multiclass")[:, c]
        false_positive, true_positive, _ = roc_curve(labels[:, c], value, drop_intermediate=False)
        points = set(zip(false_positive.round(12), true_positive.round(12), strict=True))
        assert set(zip(curve.false_positive.round(12), curve.true_positive.round(12), strict=True)) <= points
    macro, bound = pooled_macro(curves)
    assert abs(macro - macro_auroc(labels, scores, "multiclass")) <= bound < 0.01
    # What the server relays is uniform, not counts.
    assert np.frombuffer(sent["north"], "<u8").astype(np.float64).mean() == pytest.approx(2.0**63, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 60), st.sampled_from([0.001, 0.02, 1.0, 30.0]))
def test_the_bound_holds_whatever_the_spread(seed: int, n: int, spread: float) -> None:
    """Down to scores that share one bin, where the histogram knows nothing and says so,
    and out to the overflow bins."""
    rng = np.random.default_rng(seed)
    outcome = rng.random(n) < 0.5
    outcome[:2] = True, False
    score = rng.normal(0, spread, n)
    (curve,) = pooled_roc(score_histogram(np.c_[~outcome, outcome], score[:, None], "binary"))
    assert abs(curve.auroc - roc_auc_score(outcome, score)) <= curve.bound + 1e-12
    assert curve.bound <= 0.5


def test_a_class_without_rows_anywhere_has_no_curve() -> None:
    labels, scores = site(0)
    labels = np.c_[labels, np.zeros(len(labels), np.uint8)]
    curves = pooled_roc(score_histogram(labels, np.c_[scores, scores[:, 0]], "multiclass"))
    assert np.isnan(curves[3].auroc) and curves[3].positives == 0
    assert pooled_macro(curves)[0] == pytest.approx(np.mean([c.auroc for c in curves[:3]]))


def test_scores_at_the_limits_and_beyond_are_counted_once() -> None:
    value = np.array([-1e9, -LIMIT - 1e-9, -LIMIT, 0.0, WIDTH - 1e-9, WIDTH, LIMIT - 1e-9, LIMIT, 1e9])[:, None]
    counts = score_histogram(np.tile([0, 1], (len(value), 1)), value, "binary")
    assert counts.sum() == len(value)
    middle = BINS // 2
    assert {int(b): int(counts[0, 1, b]) for b in np.flatnonzero(counts[0, 1])} == {
        0: 2,
        1: 1,
        middle: 2,
        middle + 1: 1,
        BINS - 2: 1,
        BINS - 1: 2,
    }


def test_a_sum_that_is_no_histogram_is_refused() -> None:
    good = score_histogram(*site(0), "multiclass").ravel().astype(float)
    with pytest.raises(ProtocolError, match=f"not {2 * 2 * BINS}"):
        from_sum(good, 2)
    negative, uneven = good.copy(), good.copy()
    negative[5:7] += -7, 7
    uneven[0] += 1
    for bad in (negative, uneven):
        with pytest.raises(ProtocolError, match="negative or enormous counts, or classes with different"):
            from_sum(bad, 3)


def test_counts_that_wrap_round_are_no_histogram() -> None:
    """Four times 2^62 rows would be none."""
    good = score_histogram(*site(0), "multiclass")
    good[:, 0, 7:11] += 1 << 62
    with pytest.raises(ProtocolError, match="enormous"):
        from_sum(good.ravel().astype(float), 3)


def test_what_is_written_holds_the_curve_and_says_where_there_is_none(tmp_path: Path) -> None:
    labels, scores = site(0)
    curves = pooled_roc(score_histogram(labels, scores, "multiclass"))
    line = write_pooled(curves, ("a", "b", "c"), 3, tmp_path)
    assert not (tmp_path / "pooled_roc.png").exists()
    plot_pooled(tmp_path)
    macro, bound = pooled_macro(curves)
    assert (
        f"all 3 sites (400): {macro:.4f} +- {bound:.4f}" in line
        and (tmp_path / "pooled_roc.png").stat().st_size > 10_000
    )
    content = json.loads((tmp_path / "pooled_roc.json").read_text())
    assert content["auroc"] == macro and content["classes"]["b"]["true_positive"] == curves[1].true_positive.tolist()
    alone = pooled_roc(score_histogram(np.tile([1, 0], (5, 1)), np.zeros((5, 1)), "binary"))
    assert "no ROC curve" in write_pooled(alone, ("ill",), 3, tmp_path)
    assert json.loads((tmp_path / "pooled_roc.json").read_text())["auroc"] is None
    (tmp_path / "pooled_roc.png").unlink()
    plot_pooled(tmp_path)
    plot_pooled(tmp_path / "elsewhere")
    assert not list(tmp_path.glob("**/*.png"))


def test_the_institutions_command_draws_what_its_role_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A role draws nothing; whoever ran it does."""

    def role(*_: object, **__: object) -> int:
        write_pooled(pooled_roc(score_histogram(*site(0), "multiclass")), ("a", "b", "c"), 3, tmp_path)
        return 0

    monkeypatch.setattr("focal.protocols.start.run_role", role)
    monkeypatch.setattr("focal.runs.provision.who_verifies", lambda manifest, say, warn: None)
    monkeypatch.setattr("focal.reading.read", lambda model, path: SimpleNamespace(state=tmp_path))
    with pytest.raises(SystemExit) as ended:
        parties._role("institution", tmp_path / "manifest.json", tmp_path / "local.json", events=False)
    assert ended.value.code == 0 and (tmp_path / "pooled_roc.png").stat().st_size > 10_000
