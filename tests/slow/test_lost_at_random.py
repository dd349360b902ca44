"""Custodians are wiped at random moments, as many as the key can spare: tests/support/losing.py, once for each key and
protocol, at other moments in every session."""

from __future__ import annotations

import random

import pytest
from losing import KEYS, loss


@pytest.mark.parametrize("joint", [False, True], ids=["blind", "joint"])
@pytest.mark.parametrize(("threshold", "count"), KEYS)
def test_a_run_survives_them(threshold: int, count: int, joint: bool) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")  # pytest shows it should this fail
    print(loss(f"lost-{'j' * joint}{count}", threshold, count, random.Random(seed), joint))
