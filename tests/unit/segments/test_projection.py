"""The projection: honest ones pass from 32 to 2048 dimensions, every deviation is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE
from places import DATA

from focal.config import WHITEN_FLOOR
from focal.errors import FocalError, ProtocolError, Refused
from focal.segments.projection import (
    Moments,
    Projection,
    check_features,
    check_random,
    check_whiten,
    moment_count,
    moment_values,
    pooled_moments,
    random_directions,
    random_moment_values,
    random_pooled_moments,
    random_projection,
    rows_warning,
    step_size,
    whiten,
)
from focal.sums.fixed import decode, encode

RUN = bytes(range(32))
BOUND, RIDGE = 32.0, 0.1


def raw_features(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Correlated, shifted, with a decaying spectrum, as pooled activations are."""
    rng = np.random.default_rng(seed)
    mixing = np.linalg.qr(rng.standard_normal((dim, dim)))[0] * (1 + np.arange(dim)) ** -0.5
    return (rng.standard_normal((rows, dim)) @ mixing.T * 2 + rng.uniform(-1, 3, dim)).astype(np.float32)


def moments_of(raw: np.ndarray) -> Moments:
    """As three institutions pool them, through the fixed point of the secure sum."""
    parts = [encode(moment_values(part, BOUND, len(raw))) for part in np.array_split(raw, 3)]
    return pooled_moments(decode(parts[0] + parts[1] + parts[2]), raw.shape[1], BOUND, len(raw))


def with_spectrum(values: np.ndarray, seed: int = 0) -> Moments:
    """Moments with exactly these eigenvalues of the covariance."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((values.size, values.size)))[0]
    covariance = (basis * values) @ basis.T
    mean = rng.standard_normal(values.size)
    return Moments(1000, mean, (covariance + covariance.T) / 2 + np.outer(mean, mean))


DIM, R = 48, 32
RAW = raw_features(400, DIM)
MOMENTS = moments_of(RAW)
HONEST = whiten(MOMENTS, R, BOUND, RIDGE)


def check(projection: Projection) -> None:
    check_whiten(projection, MOMENTS, R, BOUND, RIDGE)


def test_the_floor_is_the_manifests() -> None:
    """Directions with less variance than it are not brought to 1; another floor than the agreed one is refused."""
    variances = {}
    for floor in (0.01, 0.1, 1.0):
        made = Projection.from_bytes(whiten(MOMENTS, R, BOUND, RIDGE, floor).to_bytes())
        check_whiten(made, MOMENTS, R, BOUND, RIDGE, floor)
        matrix = made.matrix.astype(np.float64)
        variances[floor] = np.diag(matrix @ MOMENTS.covariance @ matrix.T)
        eigenvalues = np.linalg.eigvalsh(MOMENTS.covariance)[::-1][: R - 1]
        expected = np.minimum(1, eigenvalues / (floor * eigenvalues[0]))
        np.testing.assert_allclose(variances[floor], expected, rtol=1e-4)
        for other in {0.01, 0.1, 1.0} - {floor}:
            with pytest.raises(Refused, match="row"):
                check_whiten(made, MOMENTS, R, BOUND, RIDGE, other)
    assert variances[0.01].sum() > variances[0.1].sum() > variances[1.0].sum()
    assert whiten(MOMENTS, R, BOUND, RIDGE).digest == whiten(MOMENTS, R, BOUND, RIDGE, 0.1).digest


def changed(matrix: np.ndarray | None = None, base: Projection = HONEST, **fields: object) -> Projection:
    """``base`` with another matrix and the offset that belongs to it, or with other fields."""
    if matrix is not None:
        fields |= {"matrix": matrix.astype(np.float32), "offset": (-matrix @ MOMENTS.mean).astype(np.float32)}
    return dataclasses.replace(base, **fields)  # type: ignore[arg-type]


class TestMoments:
    def test_pooled_equal_numpy(self) -> None:
        raw = RAW.astype(np.float64)
        # three institutions round to 2^-49 each, scaled back by B or B^2; float64 summing adds less
        assert np.abs(MOMENTS.mean - raw.mean(axis=0)).max() < 4 * 2.0**-49 * BOUND
        assert np.abs(MOMENTS.second - raw.T @ raw / len(raw)).max() < 4 * 2.0**-49 * BOUND**2
        assert np.array_equal(MOMENTS.second, MOMENTS.second.T)
        assert MOMENTS.n == 400

    def test_rows_are_clipped_and_values_bounded(self) -> None:
        values = moment_values(np.full((5, 3), 1e6, np.float32), 2.0, 5)
        assert values.tolist() == [1.0] * moment_count(3)

    def test_chunks_do_not_matter(self) -> None:
        raw = np.random.default_rng(1).standard_normal((9000, 3)).astype(np.float32)
        exact = raw.astype(np.float64)
        second = (exact.T @ exact)[np.triu_indices(3)] / 9000 / 16
        assert np.allclose(moment_values(raw, 4.0 * 2, 9000)[3:], second / 4, rtol=1e-12)  # nothing is beyond 8

    def test_nan_names_the_row_and_no_file(self) -> None:
        raw = RAW.copy()
        raw[7, 3] = np.nan
        with pytest.raises(FocalError, match="1 of 400 rows have NaN or infinite features, the first is row 7"):
            moment_values(raw, BOUND, 400)
        with pytest.raises(FocalError, match="the first is row 7"):
            HONEST.apply(raw)

    def test_more_rows_than_the_manifest(self) -> None:
        with pytest.raises(FocalError, match="400 rows of features, but the manifest counts 399"):
            moment_values(RAW, BOUND, 399)

    def test_wrong_length_and_impossible_values(self) -> None:
        values = moment_values(RAW, BOUND, 400)
        with pytest.raises(ProtocolError, match="48 features need 1224"):
            pooled_moments(values[:-1], DIM, BOUND, 400)
        for bad in (1.5, np.nan):
            values[5] = bad
            with pytest.raises(ProtocolError, match="larger than clipped features can give"):
                pooled_moments(values, DIM, BOUND, 400)

    def test_warns_of_few_rows(self) -> None:
        assert rows_warning(512, 512) is None
        assert "511 training rows for 512 feature dimensions" in (rows_warning(511, 512) or "")


class TestApply:
    def test_whitens(self) -> None:
        columns = HONEST.apply(RAW)
        assert columns.shape == (400, R) and columns.dtype == np.float64
        assert (columns[:, -1] == 1).all()
        values = np.linalg.eigvalsh(MOMENTS.covariance)[::-1][: R - 1]
        # norms stay far below the clip here, so the columns' moments are those of the theory,
        # to float32 rounding of the matrix:
        # |p|^2 <= 10 / l_1, hence 2 * 10 * 2^-24 on second moments, sqrt(10 dim) B 2^-24 on means
        assert np.linalg.norm(columns[:, :-1], axis=1).max() < 2 * math.sqrt(R)
        assert np.abs(columns[:, :-1].mean(axis=0)).max() < 1e-4
        assert (
            np.abs(np.cov(columns[:, :-1].T, bias=True) - np.diag(np.minimum(1, values / (0.1 * values[0])))).max()
            < 1e-5
        )

    def test_clips_features_and_norm(self) -> None:
        wild = np.full((2, DIM), 1e9, np.float32)
        wild[1] = -1e9
        columns = HONEST.apply(wild)
        clipped = HONEST.apply(np.clip(wild, -BOUND, BOUND))
        assert np.array_equal(columns, clipped)
        norms = np.linalg.norm(columns[:, :-1], axis=1)
        assert norms == pytest.approx(2 * math.sqrt(R), rel=1e-14)
        direction = (HONEST.matrix.astype(np.float64) @ np.full(DIM, BOUND)) + HONEST.offset
        assert np.allclose(columns[0, :-1] / norms[0], direction / np.linalg.norm(direction), atol=1e-13)

    def test_another_dimension(self) -> None:
        with pytest.raises(FocalError, match="features have 47 dimensions, the projection has 48"):
            HONEST.apply(RAW[:, :-1])


class TestStepSize:
    def test_formula(self) -> None:
        assert step_size(np.diag([3.0, 8.0]), 0.1) == pytest.approx(1 / (1.1 * 8 / 4 + 0.1), rel=1e-15)

    @pytest.mark.parametrize("kind", ["whiten", "random"])
    def test_is_a_descent_step_on_the_clipped_columns(self, kind: str) -> None:
        projection = HONEST if kind == "whiten" else random_honest()[0]
        columns = projection.apply(RAW)
        largest = np.linalg.eigvalsh(columns.T @ columns / len(columns))[-1]
        assert projection.eta <= 1 / (largest / 4 + RIDGE)
        assert projection.eta >= 0.8 / (largest / 4 + RIDGE)  # and not needlessly small: the margin is 1.1

    def test_eta_survives_as_text(self) -> None:
        assert float.fromhex(HONEST.eta_hex) == HONEST.eta and HONEST.eta.hex() == HONEST.eta_hex


class TestHonestWhiteningPasses:
    @pytest.mark.parametrize(
        ("dim", "features", "rows"),
        [(32, 32, 100), (63, 64, 200), (192, 64, 90), (192, 128, 300), (512, 256, 300), (2048, 64, 60)],
    )
    def test_dimensions(self, dim: int, features: int, rows: int) -> None:
        """Among them: fewer rows than dimensions, fewer rows than components, all dimensions used."""
        moments = moments_of(raw_features(rows, dim))
        projection = Projection.from_bytes(whiten(moments, features, BOUND, RIDGE).to_bytes())
        check_whiten(projection, moments, features, BOUND, RIDGE)

    @pytest.mark.parametrize(
        "values",
        [
            np.ones(64),
            1 + 1e-9 * np.arange(64),
            np.r_[5.0, 1 + 1e-4 * np.arange(63)],
            np.r_[1.0, np.full(63, 1e-7)],
            np.r_[np.ones(3), np.zeros(61)],
            np.r_[1.0, 0.1 + 1e-8 * np.arange(63)],
        ],
        ids=["equal", "nearly equal", "close", "one direction", "rank three", "at the floor"],
    )
    def test_degenerate_spectra(self, values: np.ndarray) -> None:
        moments = with_spectrum(values)
        check_whiten(whiten(moments, 32, BOUND, RIDGE), moments, 32, BOUND, RIDGE)

    def test_other_basis_of_equal_eigenvalues_is_as_good(self) -> None:
        """Eigensolvers differ there: a checker must not insist on its own basis."""
        moments = with_spectrum(np.r_[np.ones(40), np.full(24, 0.2)])
        projection = whiten(moments, 32, BOUND, RIDGE)
        turn = np.linalg.qr(np.random.default_rng(3).standard_normal((31, 31)))[0]
        matrix = turn @ projection.matrix.astype(np.float64)
        turned = dataclasses.replace(
            projection, matrix=matrix.astype(np.float32), offset=(-matrix @ moments.mean).astype(np.float32)
        )
        check_whiten(turned, moments, 32, BOUND, RIDGE)

    def test_large_offsets(self) -> None:
        raw = raw_features(300, 64) * 1e-3 + np.float32(30)  # offsets of tens of thousands
        moments = moments_of(raw)
        projection = whiten(moments, 32, BOUND, RIDGE)
        assert np.abs(projection.offset).max() > 1e3
        check_whiten(projection, moments, 32, BOUND, RIDGE)

    def test_real_images(self) -> None:
        """Pixels of fundus images: a steep spectrum, constant corners."""
        file = DATA / "retinamnist.npz"
        if not file.exists():
            pytest.skip(f"{file} is not there (FOCAL_DATA names its folder)")
        raw = (np.load(file)["train_images"][:, ::2, ::2] / 32).reshape(1080, -1).astype(np.float32)
        moments = moments_of(raw)
        projection = whiten(moments, 64, BOUND, RIDGE)
        check_whiten(projection, moments, 64, BOUND, RIDGE)
        matrix = projection.matrix.astype(np.float64)
        aim = raw[17] - moments.mean
        matrix[0] = aim / math.sqrt(aim @ moments.covariance @ aim)
        offset = (-matrix @ moments.mean).astype(np.float32)
        with pytest.raises(Refused, match="row 1: .C p - l p."):
            check_whiten(
                dataclasses.replace(projection, matrix=matrix.astype(np.float32), offset=offset),
                moments,
                64,
                BOUND,
                RIDGE,
            )

    def test_largest_entry_is_positive(self) -> None:
        rows = HONEST.matrix
        assert (rows[np.arange(R - 1), np.abs(rows).argmax(axis=1)] > 0).all()

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.floats(1e-6, 10), min_size=12, max_size=12), st.integers(0, 2**32 - 1))
    def test_any_spectrum(self, values: list[float], seed: int) -> None:
        moments = with_spectrum(np.array(values), seed)
        check_whiten(whiten(moments, 9, 1.0, RIDGE), moments, 9, 1.0, RIDGE)

    def test_no_variance(self) -> None:
        with pytest.raises(FocalError, match="hardly vary"):
            whiten(moments_of(np.ones((50, 40), np.float32)), 32, BOUND, RIDGE)

    def test_more_components_than_dimensions(self) -> None:
        check_features(193, 192)
        with pytest.raises(
            FocalError, match="projection.features is 256, but the lower segment gives 192 features"
        ) as e:
            check_features(256, 192)
        assert "set projection.features to 193 or less" in str(e.value)
        with pytest.raises(FocalError, match="projection.features is 64"):
            whiten(MOMENTS, 64, BOUND, RIDGE)


def _rows() -> np.ndarray:
    return HONEST.matrix.astype(np.float64)


def _rotated() -> Projection:
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((R - 1, R - 1)))[0]
    return changed(turn @ _rows())


def _slightly_rotated() -> Projection:
    """Two neighbouring rows turned by one degree in the whitened metric."""
    rows, angle = _rows(), math.radians(1)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    rows[:2] = turn @ rows[:2]
    return changed(rows)


def _chosen() -> Projection:
    """Row 5 aims at one patient, scaled so that its column has the right variance."""
    rows = _rows()
    aim = RAW[17] - MOMENTS.mean
    rows[4] = aim / math.sqrt(aim @ MOMENTS.covariance @ aim)
    return changed(rows)


def _coordinates() -> Projection:
    return changed(np.eye(R - 1, DIM) / np.sqrt(np.diag(MOMENTS.covariance)[: R - 1, None]))


def _swapped() -> Projection:
    rows = _rows()
    rows[[0, 1]] = rows[[1, 0]]
    return changed(rows)


def _later_component() -> Projection:
    """A component beyond R - 1 takes the place of the second."""
    values, vectors = np.linalg.eigh(MOMENTS.covariance)
    rows = _rows()
    rows[1] = vectors[:, 0] / math.sqrt(max(values[0], WHITEN_FLOOR * values[-1]))
    return changed(rows)


def _scaled(row: int, factor: float) -> Projection:
    rows = _rows()
    rows[row] *= factor
    return changed(rows)


def _offset(row: int, by: float) -> Projection:
    offset = HONEST.offset.copy()
    offset[row] += by
    return changed(offset=offset)


DEVIATIONS: dict[str, tuple[Callable[[], Projection], str]] = {
    "rotated": (_rotated, r"row 1: \|C p - l p\|"),
    "slightly rotated": (_slightly_rotated, r"row 1: \|C p - l p\|"),
    "chosen direction": (_chosen, r"row 5: \|C p - l p\|"),
    "raw coordinates": (_coordinates, r"row 1: \|C p - l p\|"),
    "swapped rows": (_swapped, r"row 1: \|C p - l p\|"),
    "later component": (_later_component, r"row 2: \|C p - l p\|"),
    "scaled row": (lambda: _scaled(3, 1.001), r"row 4: \| \|p\|\^2 max"),
    "shrunk row": (lambda: _scaled(0, 0.999), r"row 1: \| \|p\|\^2 max"),
    "zero row": (lambda: _scaled(2, 0.0), r"row 3: \| \|p\|\^2 max"),
    "offset": (lambda: _offset(6, 2e-3), r"row 7: \|offset - expected offset\|"),
    "larger eta": (lambda: changed(eta_hex=(HONEST.eta * 1.002).hex()), "step size"),
    "smaller eta": (lambda: changed(eta_hex=(HONEST.eta * 0.998).hex()), "step size"),
    "other bound": (lambda: changed(bound=33.0), "bound is 33.0, agreed was 32.0"),
    "other kind": (lambda: changed(kind="random"), "kind is random, agreed was whiten"),
    "fewer components": (lambda: whiten(MOMENTS, R - 1, BOUND, RIDGE), "features is 31, agreed was 32"),
    "other lower segment": (lambda: whiten(moments_of(RAW[:, :40]), R, BOUND, RIDGE), "dim is 40, agreed was 48"),
    "other floor": (lambda: changed(_rows() * 1.5), r"\|p\|\^2 max"),
    "other rows' moments": (lambda: whiten(moments_of(RAW[:200]), R, BOUND, RIDGE), "row 1"),
}


class TestDeviationsAreRefused:
    def test_honest_passes(self) -> None:
        check(HONEST)

    @pytest.mark.parametrize("name", DEVIATIONS)
    def test_whiten(self, name: str) -> None:
        make, message = DEVIATIONS[name]
        with pytest.raises(Refused, match=message) as e:
            check(make())
        assert e.value.reason == "projection"

    def test_one_direction_twice_where_there_is_no_variance(self) -> None:
        """The inequalities on C alone cannot see this one."""
        moments = with_spectrum(np.r_[np.ones(3), np.zeros(61)])
        honest = whiten(moments, 32, BOUND, RIDGE)
        matrix = honest.matrix.copy()
        matrix[20] = matrix[21]
        offset = (-matrix.astype(np.float64) @ moments.mean).astype(np.float32)
        with pytest.raises(Refused, match=r"row 21: \|cos"):
            check_whiten(dataclasses.replace(honest, matrix=matrix, offset=offset), moments, 32, BOUND, RIDGE)

    def test_swapped_rows_of_close_small_eigenvalues(self) -> None:
        """5e-4 l_1 apart: the eigenvector inequality passes, the variance of the columns is off by 5e-3."""
        moments = with_spectrum(np.r_[1.0, np.linspace(0.9, 0.2, 28), 0.0505, 0.05, np.full(30, 1e-3)])
        honest = whiten(moments, 32, BOUND, RIDGE)
        matrix, offset = honest.matrix.copy(), honest.offset.copy()
        matrix[[29, 30]], offset[[29, 30]] = matrix[[30, 29]], offset[[30, 29]]
        with pytest.raises(Refused, match="row 30: .P C P'"):
            check_whiten(dataclasses.replace(honest, matrix=matrix, offset=offset), moments, 32, BOUND, RIDGE)

    def test_other_ridge(self) -> None:
        with pytest.raises(Refused, match="step size"):
            check_whiten(HONEST, MOMENTS, R, BOUND, 0.2)

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.floats(0.01, 10))
    def test_random_changes_of_a_row(self, seed: int, size: float) -> None:
        """A perturbation of a leading row by at least 1 % of its length:
        eigenvalues there lie 2 % of l_1 and more apart."""
        rng = np.random.default_rng(seed)
        rows, row = _rows(), int(rng.integers(0, 6))
        step = rng.standard_normal(DIM)
        rows[row] += step / np.linalg.norm(step) * size * np.linalg.norm(rows[row])
        with pytest.raises(Refused, match="row"):
            check(changed(rows))


def random_honest() -> tuple[Projection, Moments]:
    parts = [encode(random_moment_values(part, RUN, R, BOUND, len(RAW))) for part in np.array_split(RAW, 3)]
    moments = random_pooled_moments(decode(parts[0] + parts[1] + parts[2]), RUN, R, DIM, BOUND, len(RAW))
    return random_projection(moments, RUN, R, DIM, BOUND, RIDGE), moments


class TestRandom:
    def test_columns_are_standardised(self) -> None:
        projection, _ = random_honest()
        columns = projection.apply(RAW)[:, :-1]
        unclipped = RAW.astype(np.float64) @ projection.matrix.T.astype(np.float64) + projection.offset
        inside = np.linalg.norm(unclipped, axis=1) <= 2 * math.sqrt(R)
        assert np.array_equal(columns[inside], unclipped[inside]) and inside.mean() > 0.9
        assert np.abs(unclipped.mean(axis=0)).max() < 1e-5  # float32 rounding of the matrix times features of order 10
        assert np.abs(unclipped.var(axis=0) - 1).max() < 1e-5

    def test_directions_are_gaussian(self) -> None:
        directions = random_directions(RUN, 128, 512).ravel()
        n = directions.size
        assert abs(directions.mean()) < 5 / math.sqrt(n)
        assert abs(directions.var() - 1) < 5 * math.sqrt(2 / n)
        assert abs((directions**4).mean() - 3) < 5 * math.sqrt(96 / n)  # the fourth power has variance 105 - 9
        assert abs(np.corrcoef(directions[: n // 2], directions[n // 2 :])[0, 1]) < 5 / math.sqrt(
            n / 2
        )  # cosine half, sine half

    def test_directions_are_the_same_everywhere(self) -> None:
        directions = random_directions(RUN, 32, 33)
        assert directions.shape == (31, 33)
        assert np.array_equal(directions, directions.astype(np.float32))
        digest = hashlib.sha256((directions * 65536).astype("<i4").tobytes()).hexdigest()
        assert digest == "4b639186764aafface0cd2dae50c634dd0db01312b3465d31c08b4634e2d6f69"
        assert not np.array_equal(directions, random_directions(RUN[::-1], 32, 33))

    def test_honest_passes(self) -> None:
        projection, moments = random_honest()
        check_random(Projection.from_bytes(projection.to_bytes()), moments, RUN, R, DIM, BOUND, RIDGE)

    def test_wide(self) -> None:
        raw = raw_features(50, 2048)
        moments = random_pooled_moments(random_moment_values(raw, RUN, 64, BOUND, 50), RUN, 64, 2048, BOUND, 50)
        check_random(random_projection(moments, RUN, 64, 2048, BOUND, RIDGE), moments, RUN, 64, 2048, BOUND, RIDGE)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda p: {"matrix": p.matrix[::-1].copy()}, "row 1: "),
            (lambda p: {"matrix": p.matrix * np.float32(1.002)}, "row 1: "),
            (lambda p: {"matrix": -p.matrix}, "row 1: "),
            (lambda p: {"offset": p.offset + np.float32(0.002)}, "row 1: .offset"),
            (lambda p: {"eta_hex": (p.eta * 1.002).hex()}, "step size"),
            (lambda p: {"bound": 1.0}, "bound is 1.0"),
            (lambda p: {"kind": "whiten"}, "kind is whiten"),
        ],
    )
    def test_deviations_are_refused(self, change: Callable[[Projection], dict[str, object]], message: str) -> None:
        projection, moments = random_honest()
        with pytest.raises(Refused, match=message):
            check_random(changed(base=projection, **change(projection)), moments, RUN, R, DIM, BOUND, RIDGE)

    def test_directions_of_another_run_are_refused(self) -> None:
        _, moments = random_honest()
        other = random_projection(moments, b"other", R, DIM, BOUND, RIDGE)
        with pytest.raises(Refused, match="row 1: .p - direction"):
            check_random(other, moments, RUN, R, DIM, BOUND, RIDGE)

    def test_no_variance_and_too_many_components(self) -> None:
        constant = np.ones((50, DIM), np.float32)
        moments = random_pooled_moments(random_moment_values(constant, RUN, R, BOUND, 50), RUN, R, DIM, BOUND, 50)
        with pytest.raises(FocalError, match="hardly vary"):
            random_projection(moments, RUN, R, DIM, BOUND, RIDGE)
        with pytest.raises(FocalError, match="projection.features is 64"):
            random_projection(moments, RUN, 64, DIM, BOUND, RIDGE)


class TestBytes:
    def test_round_trip(self) -> None:
        again = Projection.from_bytes(HONEST.to_bytes())
        assert again.to_bytes() == HONEST.to_bytes() and again.digest == HONEST.digest
        assert np.array_equal(again.matrix, HONEST.matrix) and np.array_equal(again.offset, HONEST.offset)
        assert (again.kind, again.bound, again.features, again.eta_hex) == (
            HONEST.kind,
            HONEST.bound,
            HONEST.features,
            HONEST.eta_hex,
        )

    def test_digest_covers_every_field(self) -> None:
        matrix = HONEST.matrix.copy()
        matrix[3, 4] = np.nextafter(matrix[3, 4], np.float32(9))
        offset = HONEST.offset.copy()
        offset[0] = np.nextafter(offset[0], np.float32(9))
        variants = [
            HONEST,
            dataclasses.replace(HONEST, matrix=matrix),
            dataclasses.replace(HONEST, offset=offset),
            changed(bound=31.0),
            changed(kind="random"),
            changed(eta_hex=float(np.nextafter(HONEST.eta, 9)).hex()),
        ]
        assert len({v.digest for v in variants}) == len(variants)

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_hostile_bytes_never_escape_as_another_error(self, data: st.DataObject) -> None:
        good = whiten(with_spectrum(np.arange(1.0, 5.0)), 3, BOUND, RIDGE).to_bytes()
        bad = bytearray(good)
        for _ in range(data.draw(st.integers(0, 4))):
            bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
        cut = bytes(bad[: data.draw(st.integers(0, len(bad)))]) + data.draw(st.binary(max_size=9))
        try:
            parsed = Projection.from_bytes(cut)
        except ProtocolError:
            return
        assert parsed.to_bytes() == cut  # what is accepted is canonical

    @pytest.mark.parametrize(
        "change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: b"", lambda d: b"x" + d[1:], lambda d: d[:30]]
    )
    def test_length_and_format(self, change: Callable[[bytes], bytes]) -> None:
        with pytest.raises(ProtocolError, match="malformed projection"):
            Projection.from_bytes(change(HONEST.to_bytes()))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"matrix": np.full((R - 1, DIM), np.nan, np.float32)}, "not finite"),
            ({"offset": np.full(R - 1, np.inf, np.float32)}, "not finite"),
            ({"matrix": np.zeros((R, DIM), np.float32)}, "matrix of shape"),
            ({"matrix": np.zeros(DIM, np.float32)}, "matrix of shape"),
            ({"matrix": np.zeros((R - 1, DIM))}, "float32"),
            ({"offset": np.zeros(R, np.float32)}, "offset of shape"),
            ({"features": 1}, "1 features"),
            ({"kind": "pca"}, "unknown kind 'pca'"),
            ({"bound": math.nan}, "bound nan"),
            ({"eta_hex": "nan"}, "step size"),
            ({"eta_hex": "inf"}, "step size"),
            ({"eta_hex": "-0x1.0p+0"}, "step size"),
            ({"eta_hex": "0x1p+0"}, "canonical"),
            ({"eta_hex": "0x1p+99999"}, "step size"),
            ({"eta_hex": "seven"}, "not a hexadecimal float"),
        ],
    )
    def test_malformed_fields(self, fields: dict[str, object], message: str) -> None:
        with pytest.raises(ProtocolError, match=message):
            dataclasses.replace(HONEST, **fields)  # type: ignore[arg-type]


def test_server_and_custodians_can_import_it_without_torch() -> None:
    code = (
        "import sys, focal.segments.projection, focal.sums.masked, focal.sums.fixed; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=PATIENCE).returncode == 0
