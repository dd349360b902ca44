"""What noise trained weights carry into their release, by layout, rows and custodians."""

from __future__ import annotations

import pytest
from carried import assert_carried_noise


@pytest.mark.parametrize(
    ("class_lanes", "feature_lanes", "rows", "custodians", "sharing", "degree"),
    [
        (2, 4, 600, 2, 0, 3),
        (1, 8, 250, 2, 0, 3),
        (8, 1, 1600, 3, 0, 3),
        (8, 1, 575, 8, 0, 3),
        (8, 1, 1100, 3, 0, 7),
        (8, 1, 1151, 3, 60, 3),
        (1, 8, 324, 3, 25, 3),  # of all rows those whose divisor is nearest to sqrt(n)
        (8, 1, 1100, 3, 10, 7),
    ],
)
def test_trained_weights_carry_less_noise_in_every_layout(
    class_lanes: int, feature_lanes: int, rows: int, custodians: int, sharing: int, degree: int
) -> None:
    assert_carried_noise(class_lanes, feature_lanes, rows, custodians, sharing, degree)
