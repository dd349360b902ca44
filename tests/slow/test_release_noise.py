"""What noise trained weights carry into their release, by layout, rows and custodians."""

from __future__ import annotations

import pytest
from carried import assert_carried_noise


@pytest.mark.parametrize(
    ("class_lanes", "feature_lanes", "rows", "custodians", "sharing", "degree"),
    [
        (2, 4, 600, 2, False, 3),
        (1, 8, 250, 2, False, 3),
        (8, 1, 1600, 3, False, 3),
        (8, 1, 575, 8, False, 3),
        (8, 1, 1100, 3, False, 7),
        (8, 1, 1151, 3, True, 3),
    ],
)
def test_trained_weights_carry_less_noise_in_every_layout(
    class_lanes: int, feature_lanes: int, rows: int, custodians: int, sharing: bool, degree: int
) -> None:
    assert_carried_noise(class_lanes, feature_lanes, rows, custodians, sharing, degree)
