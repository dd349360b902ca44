"""What counts as a leak: nothing is counted twice, and who has seen nothing is counted by the same rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from focal.attacks.scores import Claims, Private, Trial, baselines, correlation, judge, judge_all, told_apart, wilson
from focal.errors import FocalError

N = 12
SIDE = 16


def pictures(n: int, seed: int) -> torch.Tensor:
    """(n, 3, s, s) smooth images that differ."""
    rough = torch.from_numpy(np.random.default_rng(seed).random((n, 3, 4, 4), np.float32))
    return torch.nn.functional.interpolate(rough, SIDE, mode="bilinear", align_corners=False)


def private(target: int = N) -> Private:
    return Private(pictures(N, 0), np.arange(N) % 3, np.arange(target))


def test_exact_copies_are_leaks_each_once() -> None:
    own = private()
    assert judge(Claims(own.images), own).leaked[:2] == (N, N)
    assert judge(Claims(own.images[:1].expand(N, -1, -1, -1)), own).leaked.k == 1


def test_more_claims_than_images_are_not_counted() -> None:
    own = private(target=3)
    late = Claims(torch.cat([pictures(3, 9), own.images[:3]]))
    assert judge(late, own).leaked.k == 0


def test_a_claim_about_a_row_must_be_that_rows_image() -> None:
    own = private()
    turned = np.roll(np.arange(N), 3)  # the same class, another image
    assert judge(Claims(own.images, np.arange(N)), own).leaked.k == N
    assert judge(Claims(own.images, turned), own).leaked.k == 0


def test_an_image_of_the_institution_outside_the_batch_is_no_leak() -> None:
    own = private(target=4)
    assert judge(Claims(own.images[4:8]), own).leaked.k == 0


def test_the_nearest_neighbour_alone_is_not_enough() -> None:
    """Nearest to the true image, and still no picture of it."""
    own = private(target=1)
    noise = 0.3 * torch.randn(own.images[:1].shape, generator=torch.Generator().manual_seed(0))
    found = judge(Claims((own.images[:1] + noise).clamp(0, 1)), own)
    assert found.leaked.k == 0 and found.best[0][1] == 0


def test_the_mean_image_names_one_image_of_each_class_at_most() -> None:
    own, public = private(), pictures(40, 5)
    trials = [Trial(Claims(own.images, np.arange(N)), np.arange(N))]
    found = baselines(trials, own, public, 0)
    assert found["mean"].leaked.n == N and found["mean"].leaked.k <= 3
    unordered = baselines([Trial(Claims(own.images), np.arange(N))], own, public, 0)
    assert unordered["mean"].leaked.k <= 1


def test_trials_are_judged_against_their_own_batches() -> None:
    own = private()
    first, second = np.arange(6), np.arange(6, N)
    right = [Trial(Claims(own.images[first]), first), Trial(Claims(own.images[second]), second)]
    swapped = [Trial(Claims(own.images[second]), first), Trial(Claims(own.images[first]), second)]
    assert judge_all(right, own).leaked.k == N and judge_all(swapped, own).leaked.k == 0
    assert [t for t, _, _ in judge_all(right, own).best].count(0) == 6


def test_no_claims_are_no_leaks() -> None:
    assert judge(Claims(torch.empty(0, 3, SIDE, SIDE)), private()).leaked[:2] == (0, N)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(FocalError, match="shape"):
        judge(Claims(torch.zeros(1, 3, 8, 8)), private())


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(0, 512, 0.0, 0.00745), (29, 32, 0.758, 0.968), (32, 32, 0.893, 1)]
)
def test_wilson(k: int, n: int, low: float, high: float) -> None:
    """Against values worked out by hand from the formula in Wilson 1927."""
    found = wilson(k, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


def test_none_of_512_is_said_as_at_most() -> None:
    assert str(wilson(0, 512)) == "0 of 512 (at most 0.74 %)"


def test_telling_apart() -> None:
    assert told_apart([3, 4, 5], [0, 1, 2])[:2] == (1.0, 1.0)
    rng = np.random.default_rng(0)
    same = told_apart(rng.standard_normal(4000), rng.standard_normal(4000))
    assert abs(same.auc - 0.5) < 0.03 and same.tpr < 0.03
    with pytest.raises(FocalError, match="one kind"):
        told_apart([], [1.0])


def test_the_mean_claimed_for_everybody_has_no_correlation() -> None:
    true = np.random.default_rng(0).standard_normal((20, 5))
    assert correlation(np.tile(true.mean(axis=0), (20, 1)), true) == 0.0
    assert correlation(true, true) == pytest.approx(1.0)
