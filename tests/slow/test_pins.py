"""Rearranging code changes no bit: two small runs under fixed randomness and all refusals are as pinned (pins.py)."""

from __future__ import annotations

import platform

import pins
import pytest

REMAKE = "where this is meant: `python tests/support/pins.py` shows what changed and pins it"
MANY = 12
"""Differences that are shown; one early limb changes all that follow from it."""


def check(new: dict[str, pins.Section]) -> None:
    changed = pins.differences(pins.pinned(), new)
    more = [f"... and {len(changed) - MANY} more"] if len(changed) > MANY else []
    assert not changed, "\n".join([f"not as pinned, causes first; {REMAKE}", *changed[:MANY], *more])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="limbs are pinned for x86-64: others round otherwise")
@pytest.mark.parametrize("protocol", pins.RUNS)
def test_limbs_records_and_results_of_a_run_are_as_pinned(protocol: str) -> None:
    """What the machine does otherwise comes first: it is a cause of all that follows."""
    check({pins.ROUNDING: pins.rounding(), **pins.of_run(protocol)})


def test_refusals_are_as_pinned() -> None:
    check({"refusals": pins.refusals()})
