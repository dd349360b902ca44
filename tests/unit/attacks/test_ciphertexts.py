"""Uploads read back: with every mask the columns come out to the bit of the encoding, without one nothing does."""

from __future__ import annotations

import numpy as np
import pytest

from focal.attacks import ciphertexts
from focal.attacks.ciphertexts import Known, Stage
from focal.ckks.scheme import Scheme
from focal.config import CkksConfig
from focal.heads.linear.layout import Layout

ROWS, COLUMNS, CUSTODIANS = 100, 32, 2
SCALE = 2.0**45


@pytest.fixture(scope="module")
def scheme() -> Scheme:
    return Scheme(CkksConfig(), "ab" * 32)


@pytest.fixture(scope="module")
def columns() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, COLUMNS))


def layout(scheme: Scheme, class_lanes: int = 4, feature_lanes: int = 1, babies: int = 4) -> Layout:
    return Layout(scheme.slots, COLUMNS, 4, ROWS, class_lanes, feature_lanes, babies, (ROWS,))


@pytest.fixture(scope="module")
def stage(scheme: Scheme, columns: np.ndarray) -> Stage:
    return Stage.make(scheme, layout(scheme), columns, CUSTODIANS)


@pytest.mark.parametrize("shape", [(4, 1, 4), (1, 2, 1), (2, 4, 2)])
def test_rows_are_read_from_the_slots_that_a_layout_put_them_in(
    scheme: Scheme, columns: np.ndarray, shape: tuple[int, int, int]
) -> None:
    own = layout(scheme, *shape)
    whole = own.block_of(columns, 0, 0)
    slots = {(g, h): own.data_slots(whole, g, h) for _, _, g, h in ciphertexts.data_places(own, ROWS)}
    np.testing.assert_allclose(ciphertexts.read_rows(own, slots)[:ROWS], columns, atol=1e-12)


def worst(seen: np.ndarray, columns: np.ndarray, part: int) -> float:
    """Largest error of the signal's part, as columns."""
    return float(np.abs(seen[:, part * COLUMNS : (part + 1) * COLUMNS] / SCALE - columns).max())


def test_all_custodians_together_read_every_row(stage: Stage, columns: np.ndarray) -> None:
    seen = stage.uploaded.signals(stage.known_to(CUSTODIANS))
    assert worst(seen, columns, 0) < 1e-6  # y without its masks, the lower half
    assert worst(seen, columns, 2) < 1e-6  # c0 plus c1 times all key shares


@pytest.mark.parametrize("known", range(CUSTODIANS))
def test_without_one_custodian_no_row_correlates(stage: Stage, columns: np.ndarray, known: int) -> None:
    seen = stage.uploaded.signals(stage.known_to(known))
    for part in range(5):
        values = seen[:, part * COLUMNS : (part + 1) * COLUMNS]
        assert abs(np.corrcoef(values.ravel(), columns.ravel())[0, 1]) < 0.1  # 5.7 deviations of 3200 values


def test_the_attackers_own_ciphertexts_are_under_the_joint_key(scheme: Scheme, stage: Stage) -> None:
    own = np.random.default_rng(1).standard_normal((50, COLUMNS))
    made = ciphertexts.own_uploads(scheme, layout(scheme), own, stage.key, CUSTODIANS)
    opened = made.signals(Known({}, stage.secrets))
    assert worst(opened[:50], own, 2) < 1e-4  # the noise of an encryption, and no more
