"""What `focal manifest check` says of a custodian that verifies with one machine."""

from __future__ import annotations

import os
import re

import pytest
from manifests import manifest

from focal.config import LayoutConfig
from focal.heads.linear.demand import Machine, Prices, audit, demand
from focal.manifest import LayoutSpec
from focal.protocols.blind import plan


def test_it_is_told_before_anybody_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    m = manifest(layout=LayoutSpec(class_lanes=4, feature_lanes=1))
    lockstep, audited = plan.describe(m).splitlines()[-2:]
    shape, steps = plan.layout(m), m.training.steps
    given = (shape, m.ckks, m.row_counts, len(m.custodians), m.training.degree)
    prices = Prices.of(shape, m.training.degree)
    own, theirs = demand(*given, prices, Machine(4)), audit(*given, prices, Machine(4), steps)
    numbers = [float(x) for x in re.findall(r"\d+\.?\d*", lockstep)]
    step = own.compute_seconds + own.refresh_seconds
    speed = LayoutConfig().link_mbyte_s
    expected = [
        4, own.once_seconds + steps * step, step, own.memory_bytes / 1e9,
        (own.disk_bytes + steps * own.step_disk_bytes) / 1e9, own.once_bytes / 1e9, own.once_bytes / 1e6 / speed,
        speed, own.step_bytes / 1e6, own.step_bytes / 1e6 / step,
    ]  # fmt: skip
    assert lockstep.startswith("lockstep ") and numbers == pytest.approx(expected, abs=0.51)
    assert audited.startswith("audit ") and f"a copy of {theirs.read_bytes / 1e9:.2f} GB" in audited
