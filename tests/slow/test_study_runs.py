"""Whole encrypted trainings of the study: the blind head, and learning from scratch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from eyes import EYES, NAMED, with_training, write_configs
from pixels import OUTPUTS, institution

from focal.baselines import logistic
from focal.baselines.scratch import CARRIED_NOISE, Settings, sites, train_from_scratch, train_twin
from focal.custody import release
from focal.data.rows import InstitutionRows
from focal.heads.two_layer import SCALE, Weights
from focal.measure.metrics import macro_auroc
from focal.reproduce import methods
from focal.reproduce.cases import BY_PATIENT, Source
from focal.reproduce.methods import ALONE, BLIND, CONVERGED, MODEL, POOLED


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_configs(tmp_path_factory.mktemp("configs"))


@pytest.mark.parametrize(
    ("name", "suffix", "training"), [(BLIND, "", {}), (CONVERGED, "-converged", methods.CONVERGENCE)]
)
def test_blind_head_is_a_real_run_and_leaves_no_private_file(
    name: str, suffix: str, training: dict[str, int], configs: Path, tmp_path: Path
) -> None:
    """Scores of the encrypted run lie as near to the twin's as its released weights lie to the twin's weights."""
    case = Source(EYES, configs, tmp_path / "runs").case(BY_PATIENT, 0)
    NAMED[ALONE].run(case), NAMED[POOLED].run(case)
    fitted = len(logistic._fitted)
    outcome = NAMED[name].run(case)
    assert len(logistic._fitted) == fitted  # the run's own baselines are those that the study has fitted
    exact = NAMED["twin"].run(with_training(case, training)).scores[MODEL]
    error = outcome.facts["max_abs_weight_error"]
    longest = 2 * np.sqrt(case.projection.features) + 1  # norm of a column vector after the clip, and the bias
    # |x (W - W')| <= |x|_2 sqrt(R) max|W - W'|; this test's own projection is another basis of the same space,
    # up to float32
    bound = longest * np.sqrt(case.projection.features) * error + 1e-4
    assert 0 < error < 1e-3
    assert np.abs(outcome.scores[MODEL] - exact).max() < bound
    assert {"server", "custodian-1", "hospital-a"} <= set(outcome.traffic)
    assert outcome.traffic["hospital-a"].up > 100_000  # ciphertexts, not only messages
    folder = tmp_path / "runs" / f"{case.config.name}{suffix}"
    assert (folder / "summary.json").exists() and not (folder / "parties").exists()


def test_from_scratch_is_scored_beside_its_twin(configs: Path, tmp_path: Path) -> None:
    seen = Source(EYES, configs, tmp_path).case(BY_PATIENT, 0)  # its features are those of the images
    made = NAMED[methods.SCRATCH].run(seen)
    assert made.facts["max_abs_weight_error"] < 0.01 and {"hospital-a", "custodian-1"} <= set(made.traffic)
    assert abs(macro_auroc(seen.labels, made.scores[MODEL], seen.task) - made.facts["auroc_plaintext_twin"]) < 0.02


def test_a_whole_run_opens_what_the_twin_computes() -> None:
    """Two steps, so that weights travel; the smudging is what the opened weights err by.

    A slot errs by sigma sqrt(custodians N / 2) / 2^45, a weight of eight copies by that / 32 / sqrt(8);
    six deviations (1024 weights).
    """
    rows, settings = {"a": institution(0, 9), "b": institution(1, 6)}, Settings(steps=2, custodians=2, rate=0.5)
    found = train_from_scratch(rows, "multiclass", settings, threads=1)
    assert (
        found.max_abs_weight_error
        < 6 * release.sigma(CARRIED_NOISE) * (2 * 8192) ** 0.5 / 2**45 / SCALE / 8**0.5 + 1e-5
    )
    test = InstitutionRows.union(rows).scored
    np.testing.assert_array_equal(found.scores, found.weights.scores(test.features.astype(float)))
    twin = train_twin(
        Weights.draw(OUTPUTS, settings.size, 0), list(sites(rows, "multiclass", settings).values()), settings
    )
    np.testing.assert_array_equal(found.twin_scores, twin.scores(test.features.astype(float)))
    assert found.seconds > 0
    assert set(found.traffic) == {"a", "b", "custodian-1", "custodian-2"}
    assert all(t.up > 0 and t.down > 0 for t in found.traffic.values())
