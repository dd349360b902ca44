"""Federated baselines: what rounds compute, who takes part, and that secure sums are the plain
one to their stated error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from focal.baselines.encrypted import EncryptedSum
from focal.baselines.federated import (
    Federated,
    MakeSum,
    MaskedSums,
    PlainSum,
    Settings,
    Sum,
    choose,
    federate,
    participants,
    personalise,
    sites,
)
from focal.baselines.privacy import NoisySum, Privacy, cut, epsilon, federate_privately, noise_multiplier, patient_step
from focal.data.rows import InstitutionRows
from focal.errors import FocalError
from focal.measure.metrics import macro_auroc
from focal.measure.traffic import Traffic
from focal.segments.projection import Projection

DIM, FEATURES, CLASSES = 12, 9, 3
NAMES = ("a", "b", "c")
FULL_BATCH = Settings(rounds=3, batch=None)


@pytest.fixture(scope="module")
def projection() -> Projection:
    matrix = np.random.default_rng(0).normal(0, 1 / math.sqrt(DIM), (FEATURES - 1, DIM)).astype(np.float32)
    return Projection("whiten", matrix, np.zeros(FEATURES - 1, np.float32), 32.0, FEATURES, (0.5).hex())


def institution(seed: int, n: int) -> InstitutionRows:
    """``n`` rows of three classes, two rows a patient, every third patient a test patient."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, n)
    x = rng.normal(0, 1, (n, DIM)) + np.random.default_rng(9).normal(0, 1, (CLASSES, DIM))[y]
    patients = np.array([f"p{i // 2}" for i in range(n)])
    split = np.array([("train", "train", "test")[(i // 2) % 3] for i in range(n)])
    return InstitutionRows(x.astype(np.float32), np.eye(CLASSES, dtype=np.uint8)[y], patients, split)


@pytest.fixture(scope="module")
def rows() -> dict[str, InstitutionRows]:
    return {name: institution(seed, n) for seed, (name, n) in enumerate(zip(NAMES, (60, 120, 300), strict=True))}


@pytest.fixture(scope="module")
def encrypted() -> Iterator[EncryptedSum]:
    made = EncryptedSum(NAMES)
    yield made
    made.scheme.close()


def parts_of(names: tuple[str, ...] = NAMES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.uniform(-1, 1, (64, 8)) for name in names}


def gradient(x: np.ndarray, y: np.ndarray, weights: np.ndarray, ridge: float) -> np.ndarray:
    return x.T @ (expit(x @ weights) - y) / len(x) + ridge * weights


# --------------------------------------------------------------------------- what a round computes


def test_one_institution_and_one_local_step_is_plain_sgd(
    rows: dict[str, InstitutionRows], projection: Projection
) -> None:
    found = federate({"a": rows["a"]}, projection, "multiclass", FULL_BATCH)
    train = rows["a"].split == "train"
    x, y = projection.apply(rows["a"].features[train]), rows["a"].labels[train].astype(float)
    weights = np.zeros((FEATURES, CLASSES))
    for _ in range(3):
        weights = weights - projection.eta * gradient(x, y, weights, 0.1)
    np.testing.assert_allclose(found.weights, weights, atol=1e-13)
    test = InstitutionRows.union({"a": rows["a"]}).scored
    np.testing.assert_array_equal(found.scores, projection.apply(test.features) @ found.weights)
    assert found.rounds[-1].auroc == macro_auroc(test.labels, found.scores, "multiclass")


def test_minibatches_pass_over_every_row_once_an_epoch(
    rows: dict[str, InstitutionRows], projection: Projection
) -> None:
    """A vanishing rate adds up the batches' mean gradients at zero, whatever their order:
    batches of 40 are all the same size."""
    settings = Settings(rounds=1, epochs=3, batch=40, rate=1e-9)
    site = sites(rows, projection, "multiclass")["b"]
    found = federate({"b": rows["b"]}, projection, "multiclass", settings)
    wanted = -1e-9 * 3 * 2 * gradient(site.x, site.y, np.zeros((FEATURES, CLASSES)), 0.1)
    assert len(site.x) == 80
    np.testing.assert_allclose(found.weights, wanted, rtol=1e-6, atol=1e-15)


def test_weights_by_rows_make_one_step_of_each_a_step_on_the_pooled_rows(
    rows: dict[str, InstitutionRows], projection: Projection
) -> None:
    found = federate(rows, projection, "multiclass", FULL_BATCH)
    own = sites(rows, projection, "multiclass").values()
    x, y = np.concatenate([s.x for s in own]), np.concatenate([s.y for s in own])
    weights = np.zeros((FEATURES, CLASSES))
    for _ in range(3):
        weights = weights - projection.eta * gradient(x, y, weights, 0.1)
    np.testing.assert_allclose(found.weights, weights, atol=1e-13)


def test_a_binary_task_trains_the_positive_class(rows: dict[str, InstitutionRows], projection: Projection) -> None:
    two = {
        n: InstitutionRows(r.features, np.stack([1 - r.labels[:, 1], r.labels[:, 1]], 1), r.groups, r.split)
        for n, r in rows.items()
    }
    found = federate(two, projection, "binary", FULL_BATCH)
    assert found.weights.shape == (FEATURES, 1)
    assert found.rounds[-1].auroc > 0.7
    np.testing.assert_allclose(
        found.weights, federate(rows, projection, "multiclass", FULL_BATCH).weights[:, 1:2], atol=1e-13
    )


def test_fedprox_stays_nearer_the_larger_mu_and_does_not_diverge(
    rows: dict[str, InstitutionRows], projection: Projection
) -> None:
    def length(mu: float) -> float:
        return float(np.linalg.norm(federate(rows, projection, "multiclass", Settings(rounds=1, mu=mu)).weights))

    lengths = [length(mu) for mu in (0.0, 1.0, 10.0, 1e9)]
    assert lengths == sorted(lengths, reverse=True)
    assert 0 < lengths[-1] < 1e-8


def test_personal_heads_start_from_the_shared_one_and_score_their_own_rows(
    rows: dict[str, InstitutionRows], projection: Projection
) -> None:
    shared = federate(rows, projection, "multiclass", FULL_BATCH)
    heads, scores = personalise(rows, projection, "multiclass", replace(FULL_BATCH, epochs=2), shared.weights)
    offset = 0
    for name, site in sites(rows, projection, "multiclass").items():
        weights = shared.weights
        for _ in range(2):
            weights = weights - projection.eta * gradient(site.x, site.y, weights, 0.1)
        np.testing.assert_allclose(heads[name], weights, atol=1e-13)
        held = projection.apply(rows[name].features[rows[name].split == "test"])
        np.testing.assert_array_equal(scores[offset : offset + len(held)], held @ heads[name])
        offset += len(held)
    assert offset == len(scores) == len(shared.scores)


def test_a_rate_is_chosen_on_train_rows_alone(rows: dict[str, InstitutionRows], projection: Projection) -> None:
    """Steps far too large lose against sensible ones, and turned-round test labels change nothing."""
    settings, rates = Settings(rounds=3, batch=8), (1e3, 1.0, 1e-9)
    assert choose(rows, projection, "multiclass", settings, rates) == replace(settings, rate=projection.eta)
    turned = {
        n: replace(r, labels=np.where((r.split == "test")[:, None], r.labels[:, ::-1], r.labels))
        for n, r in rows.items()
    }
    assert choose(turned, projection, "multiclass", settings) == choose(rows, projection, "multiclass", settings)


def test_an_institution_without_train_rows_is_named(rows: dict[str, InstitutionRows], projection: Projection) -> None:
    with pytest.raises(FocalError, match="b: has no train rows"):
        federate(rows | {"b": rows["b"].take(rows["b"].split == "test")}, projection, "multiclass", FULL_BATCH)


@pytest.mark.parametrize(
    "wrong", [{"rounds": 0}, {"fraction": 0.0}, {"dropout": 1.0}, {"mu": math.nan}, {"batch": 0}, {"rate": 0.0}]
)
def test_settings_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(FocalError, match=f"federated: {next(iter(wrong))} = "):
        Settings(**wrong)  # type: ignore[arg-type]


# --------------------------------------------------------------------------- who takes part


def test_a_fraction_is_chosen_and_everybody_sometimes() -> None:
    settings = Settings(fraction=0.5)
    names = tuple("abcdefgh")
    chosen = [participants(names, settings, r)[0] for r in range(40)]
    assert {len(c) for c in chosen} == {4}
    assert set().union(*chosen) == set(names)
    assert len(set(chosen)) > 10


def test_a_round_goes_on_without_those_that_drop_out(rows: dict[str, InstitutionRows], projection: Projection) -> None:
    settings = Settings(rounds=12, batch=None, dropout=0.5, seed=1)
    found = federate(rows, projection, "multiclass", settings)
    own, weights = sites(rows, projection, "multiclass"), np.zeros((FEATURES, CLASSES))
    for done in found.rounds:
        if done.returned:
            x, y = (np.concatenate([getattr(own[n], what) for n in done.returned]) for what in ("x", "y"))
            weights = weights - projection.eta * gradient(x, y, weights, 0.1)
    np.testing.assert_allclose(found.weights, weights, atol=1e-12)
    assert {len(done.returned) for done in found.rounds} >= {0, 1, 2}


@pytest.mark.parametrize("make_sum", [MaskedSums, EncryptedSum])
def test_a_secure_sum_is_not_made_over_one(
    rows: dict[str, InstitutionRows], projection: Projection, make_sum: MakeSum
) -> None:
    """The sum over one is its update. The weights stay, nothing is sent, and the next rounds go on."""
    settings = Settings(rounds=6, batch=None, dropout=0.5, seed=1)
    found = federate(rows, projection, "multiclass", settings, make_sum)
    alone = [r for r, done in enumerate(found.rounds) if len(done.returned) < 2]
    assert 0 < len(alone) < 6 and alone != list(range(len(alone)))
    for r in alone:
        if r:
            before, after = found.rounds[r - 1], found.rounds[r]
            assert after.auroc == before.auroc
            assert (
                sum(t.up for t in after.traffic.values()) - sum(t.up for t in before.traffic.values()) < 1000
            )  # weights at most


def test_seeds_repeat(rows: dict[str, InstitutionRows], projection: Projection) -> None:
    settings = Settings(rounds=4, batch=16, fraction=0.7, dropout=0.3, seed=5)

    def run(s: Settings) -> Federated:
        return federate(rows, projection, "multiclass", s)

    one, two, other = run(settings), run(settings), run(replace(settings, seed=6))
    np.testing.assert_array_equal(one.weights, two.weights)
    assert [(r.returned, r.auroc, r.traffic) for r in one.rounds] == [
        (r.returned, r.auroc, r.traffic) for r in two.rounds
    ]
    assert not np.array_equal(one.weights, other.weights)


# --------------------------------------------------------------------------- sums


def test_masked_sums_are_the_plain_one() -> None:
    parts = parts_of()
    plain, _ = PlainSum(NAMES).add("round/0", parts)
    masked, traffic = MaskedSums(NAMES).add("round/0", parts)
    assert np.abs(masked - plain).max() <= 2.0**-40
    size = 8 * 64 * 8
    assert traffic == dict.fromkeys(NAMES, Traffic(up=size, down=2 * size))


def test_a_run_with_masked_sums_is_the_plain_run(rows: dict[str, InstitutionRows], projection: Projection) -> None:
    settings = Settings(rounds=5, batch=16)
    plain = federate(rows, projection, "multiclass", settings)
    masked = federate(rows, projection, "multiclass", settings, MaskedSums)
    assert 0 < np.abs(masked.weights - plain.weights).max() <= 2.0**-40


def on_the_grid(encrypted: EncryptedSum, part: np.ndarray) -> np.ndarray:
    return np.rint(part / encrypted.grid) * encrypted.grid


def test_encrypted_sums_are_exact_on_a_grid(encrypted: EncryptedSum) -> None:
    """Grid points of at most 2^4 and 2^-15 apart have 19 bits: float64 adds them exactly."""
    assert encrypted.grid == 2.0**-15
    parts = parts_of()
    first, second = (encrypted.add(label, parts)[0] for label in ("round/5", "round/6"))
    np.testing.assert_array_equal(first, sum(on_the_grid(encrypted, part) for part in parts.values()))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - PlainSum(NAMES).add("round/5", parts)[0]).max() <= 3 * encrypted.grid / 2


def test_encrypted_sums_err_as_derived_before_they_are_rounded(
    encrypted: EncryptedSum, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gaussian: the error's root mean square over 512 values within a sixth (5 deviations),
    its largest below 6 deviations (10^-6)."""
    parts = parts_of()
    assert encrypted.grid >= 16 * encrypted.deviation(3)
    monkeypatch.setattr(encrypted, "grid", 2.0**-45)
    total, traffic = encrypted.add("round/0", parts)
    error, deviation = total - PlainSum(NAMES).add("round/0", parts)[0], encrypted.deviation(3)
    assert deviation < 2.0**-19
    assert abs(float(np.sqrt(np.mean(error**2))) / deviation - 1) < 1 / 6
    assert np.abs(error).max() < 6 * deviation
    n = encrypted.scheme.n
    assert all(2 * 8 * n < t.up < 2 * 8 * n + 200 and 3 * 8 * n < t.down < 3 * 8 * n + 600 for t in traffic.values())


def test_more_values_than_slots_take_more_ciphertexts(encrypted: EncryptedSum) -> None:
    rng = np.random.default_rng(3)
    parts = {name: rng.uniform(-1, 1, (1100, 8)) for name in ("a", "c")}
    total, traffic = encrypted.add("round/1", parts)
    np.testing.assert_array_equal(total, on_the_grid(encrypted, parts["a"]) + on_the_grid(encrypted, parts["c"]))
    one = encrypted.add("round/2", parts_of(("a", "c")))[1]
    assert traffic["a"] == Traffic(up=2 * one["a"].up, down=2 * one["a"].down)
    assert one["b"] == Traffic(up=0, down=one["a"].down)  # b took no part and opens the sum all the same


def test_the_largest_values_allowed_do_not_wrap(encrypted: EncryptedSum) -> None:
    largest = np.full((64, 8), encrypted.limit / 3 * 0.999)
    total, _ = encrypted.add("round/3", dict.fromkeys(NAMES, largest))
    np.testing.assert_array_equal(total, 3 * on_the_grid(encrypted, largest))


@pytest.mark.parametrize("value", [6.0, math.nan, -math.inf])
def test_values_that_do_not_fit_name_the_institution(encrypted: EncryptedSum, value: float) -> None:
    with pytest.raises(FocalError, match="b: its update has a value"):
        encrypted.add("round/4", parts_of() | {"b": np.full((64, 8), value)})


def test_a_run_with_encrypted_sums_is_the_plain_run(rows: dict[str, InstitutionRows], projection: Projection) -> None:
    """Full batches at the rate of the convex loss's bound contract: what three rounds round,
    half a grid each part, at most adds up."""
    plain = federate(rows, projection, "multiclass", FULL_BATCH)
    made: list[EncryptedSum] = []

    def make_sum(names: tuple[str, ...]) -> Sum:
        made.append(EncryptedSum(names))
        return made[0]

    found = federate(rows, projection, "multiclass", FULL_BATCH, make_sum)
    assert 0 < np.abs(found.weights - plain.weights).max() < 3 * 3 * made[0].grid / 2
    assert found.rounds[-1].auroc == pytest.approx(plain.rounds[-1].auroc, abs=1e-3)
    np.testing.assert_array_equal(
        federate(rows, projection, "multiclass", FULL_BATCH, EncryptedSum).weights, found.weights
    )


def test_bytes_of_plain_rounds(rows: dict[str, InstitutionRows], projection: Projection) -> None:
    """Up: each part; down: the weights before rounds 2 and 3 (the zeros are known), and the last ones."""
    found, size = federate(rows, projection, "multiclass", FULL_BATCH), 8 * FEATURES * CLASSES
    assert found.rounds[0].traffic == dict.fromkeys(NAMES, Traffic(up=size, down=0))
    assert found.rounds[-1].traffic == dict.fromkeys(NAMES, Traffic(up=3 * size, down=3 * size))
    seconds = [r.seconds for r in found.rounds]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_who_was_away_gets_the_weights(rows: dict[str, InstitutionRows], projection: Projection) -> None:
    """Every institution ends with the last weights: under masks those away get them sealed,
    under encryption they open every sum."""
    settings, size = Settings(rounds=1, batch=None, fraction=0.67), 8 * FEATURES * CLASSES
    chosen, _ = participants(NAMES, settings, 0)
    (away,) = set(NAMES) - set(chosen)
    group_key = MaskedSums(NAMES).setup
    traffic = federate(rows, projection, "multiclass", settings, MaskedSums).rounds[0].traffic
    assert size < traffic[away].down - group_key.get(away, Traffic(up=0, down=0)).down < size + 100
    assert federate(rows, projection, "multiclass", settings).rounds[0].traffic[away] == Traffic(up=0, down=size)


# --------------------------------------------------------------------------- differential privacy


def test_noise_has_the_deviation_that_was_asked() -> None:
    """Standard deviation over 40000 values within 2 % (5.6 deviations of the estimate);
    parts within the clip are not touched."""
    parts = {name: np.zeros((200, 200)) for name in NAMES}
    parts["a"][0, 0] = 3.0
    noise = NoisySum(NAMES, deviation=0.25, seed=0, clip=5.0).add("round/0", parts)[0]
    noise[0, 0] -= 3.0
    assert noise.std() == pytest.approx(0.25, rel=0.02)
    assert abs(noise.mean()) < 5 * 0.25 / 200


def test_no_part_moves_the_sum_by_more_than_the_clip() -> None:
    parts = {"a": np.full((3, 3), 100.0), "b": np.full((3, 3), -0.01)}
    total, _ = NoisySum(("a", "b"), deviation=0.0, seed=0, clip=2.0).add("round/0", parts)
    np.testing.assert_allclose(total, np.full((3, 3), 2 / 3 - 0.01))
    assert np.linalg.norm(cut(parts["a"], 2.0)) == pytest.approx(2.0)
    np.testing.assert_array_equal(cut(np.zeros((2, 2)), 2.0), np.zeros((2, 2)))


def test_epsilon_falls_with_noise_and_grows_with_rounds() -> None:
    by_noise = [epsilon(z, 1e-5, 20) for z in (1.0, 2.0, 4.0, 8.0)]
    assert by_noise == sorted(by_noise, reverse=True) and by_noise[0] > 2 * by_noise[-1]
    assert epsilon(4.0, 1e-5, 10) < epsilon(4.0, 1e-5, 20)


def test_epsilon_bounds_the_exact_one_of_composed_gaussians() -> None:
    """r rounds at z are one at z / sqrt(r), whose exact delta(epsilon) is known (Balle and Wang,
    ICML 2018, theorem 5)."""
    from scipy.stats import norm

    z, rounds, delta = 5.0, 20, 1e-5
    spent, mu = epsilon(z, delta, rounds), math.sqrt(rounds) / z

    def exact(eps: float) -> float:
        return float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu))

    assert exact(spent) <= delta < exact(0.8 * spent)


def test_noise_is_chosen_for_the_target() -> None:
    z = noise_multiplier(8.0, 1e-5, 20)
    assert 7.92 < epsilon(z, 1e-5, 20) <= 8.0
    with pytest.raises(FocalError, match="no noise gives epsilon"):
        noise_multiplier(1e-9, 1e-5, 20)


def test_one_patient_moves_a_step_by_at_most_what_the_noise_is_scaled_to(
    rows: dict[str, InstitutionRows], projection: Projection
) -> None:
    site, clip, rate = sites(rows, projection, "multiclass")["b"], 0.5, 0.7
    start, rng = np.random.default_rng(2).normal(0, 1, (FEATURES, CLASSES)), np.random.default_rng(0)
    whole = patient_step(site, start, FULL_BATCH, rate, rng, clip=clip)
    assert sum(len(p) for p in site.by_patient()) == len(site.x) and {len(p) for p in site.by_patient()} == {2}
    moved_by = []
    for patient in site.by_patient():
        x = site.x.copy()
        x[patient] = 0  # no row, no gradient
        moved_by.append(
            np.linalg.norm(patient_step(replace(site, x=x), start, FULL_BATCH, rate, rng, clip=clip) - whole)
        )
    assert max(moved_by) == pytest.approx(rate * clip / len(site.x))
    unclipped = patient_step(site, start, FULL_BATCH, rate, rng, clip=1e9)
    np.testing.assert_allclose(unclipped, start - rate * gradient(site.x, site.y, start, 0.1), atol=1e-12)


@pytest.mark.parametrize("unit", ["institution", "patient"])
def test_private_runs_keep_to_their_budget_and_learn_with_a_large_one(
    rows: dict[str, InstitutionRows], projection: Projection, unit: str
) -> None:
    def run(target: float) -> tuple[Federated, float]:
        return federate_privately(rows, projection, "multiclass", Settings(rounds=4), Privacy(unit, target, 1e-5, 1.0))  # type: ignore[arg-type]

    tight, spent = run(0.02)
    loose, much = run(1e3)
    assert 0.019 < spent <= 0.02 and 900 < much <= 1e3
    assert np.abs(tight.weights).max() > 2 * np.abs(loose.weights).max()  # mostly noise
    assert loose.rounds[-1].auroc > 0.75
    np.testing.assert_array_equal(run(0.02)[0].weights, tight.weights)


def test_patients_are_not_protected_with_institutions_missing(
    rows: dict[str, InstitutionRows], projection: Projection
) -> None:
    with pytest.raises(FocalError, match="every institution in every round"):
        federate_privately(rows, projection, "multiclass", Settings(dropout=0.1), Privacy("patient", 8.0, 1e-5, 1.0))


def test_a_budget_out_of_range_is_named() -> None:
    with pytest.raises(FocalError, match="privacy: epsilon 8, delta 2"):
        Privacy("patient", 8.0, 2.0, 1.0)
