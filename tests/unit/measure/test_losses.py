"""How far two trainings that saw the same rows are apart, step by step."""

from __future__ import annotations

import pytest

from focal.measure.losses import loss_difference


def test_the_loss_difference_is_that_of_the_steps_that_all_took() -> None:
    ours = [{0: 1.0, 1: 2.0}, {0: 3.0, 1: 4.0, 2: 9.0}]
    assert loss_difference(ours, ours) == 0.0
    assert loss_difference(ours, [ours[0], {1: 4.5}]) == pytest.approx(1 - 3 / 3.25)
    assert loss_difference(ours, [{}, ours[1]]) is None, "nothing was compared"
