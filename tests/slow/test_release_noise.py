"""What noise trained weights carry into their release, by layout, rows and custodians."""

from __future__ import annotations

import pytest
from carried import assert_carried_noise


@pytest.mark.parametrize(
    ("class_lanes", "feature_lanes", "rows", "custodians"), [(2, 4, 600, 2), (1, 8, 600, 2), (8, 1, 2500, 2), (8, 1, 600, 8)]
)
def test_trained_weights_carry_less_noise_in_every_layout(class_lanes: int, feature_lanes: int, rows: int, custodians: int) -> None:
    assert_carried_noise(class_lanes, feature_lanes, rows, custodians)
