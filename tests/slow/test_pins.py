"""Rearranging code changes no bit: two small runs under fixed randomness and all refusals are as pinned (pins.py)."""

from __future__ import annotations

import pins
import pytest

REMAKE = "where this is meant: `python tests/support/pins.py` shows what changed and pins it"
MANY = 12
"""Differences that are shown; one early limb changes all that follow from it."""


def check(new: dict[str, pins.Section]) -> None:
    changed = pins.differences(pins.pinned(), new)
    more = [f"... and {len(changed) - MANY} more"] if len(changed) > MANY else []
    assert not changed, "\n".join([f"not as pinned, causes first; {REMAKE}", *changed[:MANY], *more])


@pytest.mark.parametrize("protocol", pins.RUNS)
def test_limbs_records_and_results_of_a_run_are_as_pinned(protocol: str) -> None:
    otherwise = pins.differences(pins.pinned(), {"this machine": pins.probe()})
    if otherwise:
        pytest.skip(f"this machine rounds otherwise: pin on it before a change ({'; '.join(otherwise)})")
    check(pins.of_run(protocol))


def test_refusals_are_as_pinned() -> None:
    check({"refusals": pins.refusals()})
