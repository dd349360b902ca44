"""What a party that computes needs, by model: its bytes are the wire's, and more machines help where they can."""

from __future__ import annotations

from dataclasses import replace

import pytest

from focal.ckks import codec
from focal.ckks.scheme import REFRESH_LIMBS
from focal.config import CkksConfig
from focal.heads.linear.cost import cost, layout_for
from focal.heads.linear.demand import Demand, Machine, Prices, Sizes, audit, demand, kept_blocks
from focal.heads.linear.layout import DATA_LIMBS
from focal.heads.linear.rehearsal import Rehearsal

ROWS = {"north": 500_000, "south": 500_000}
PARAMS = CkksConfig()
LAYOUT = layout_for(8192, 64, 8, sum(ROWS.values()), 1, 1, tuple(ROWS.values()))
MACHINE = Machine(16)


def of(machines: int = 1, machine: Machine = MACHINE, prices: Prices | None = None, **more: bool) -> Demand:
    return demand(LAYOUT, PARAMS, ROWS, 3, 3, prices or Prices.of(LAYOUT, 3), machine, machines, **more)


def test_bytes_are_those_of_the_format() -> None:
    """Each kind's own, and the planner's sums of them."""
    rows = {"north": 300, "south": 200}
    layout = layout_for(8192, 32, 3, 500, 4, 1, tuple(rows.values()))
    run = Rehearsal(layout, custodians=2)
    size, kind = Sizes.of(layout, PARAMS, rows, 3), lambda k: codec.size(run.scheme, k)
    chunks = len(layout.chunks(0, 300)) + len(layout.chunks(0, 200))
    assert size.uploads == chunks * kind(codec.MASKED)
    assert size.items == 2 * layout.class_groups + layout.class_groups
    assert size.request == size.items * kind(codec.ciphertext(REFRESH_LIMBS))
    assert size.weights == layout.class_groups * kind(codec.ciphertext(DATA_LIMBS))
    planned = cost(layout, PARAMS, rows, 2, 3, 12.5, 2)
    assert size.contributions == planned.input_bytes and size.keys == planned.key_bytes
    shares = [
        kind(codec.refresh_share(REFRESH_LIMBS, layout.refresh_map(i).limbs))
        for k in ("logits", "weights")
        for i in layout.items(1, k)
    ]
    assert size.share == sum(shares)
    run.scheme.forget()


def test_more_machines_divide_the_work_and_not_the_refresh() -> None:
    found = [of(machines, replace(MACHINE, memory=0)) for machines in (1, 2, 4, 8)]
    for fewer, more in zip(found, found[1:], strict=False):
        assert more.compute_seconds < fewer.compute_seconds < 2.2 * more.compute_seconds
        assert more.refresh_seconds == fewer.refresh_seconds
        assert more.memory_bytes < fewer.memory_bytes or fewer.machines == 1  # of one, logits are there once
        assert more.inner_bytes > fewer.inner_bytes
    assert found[0].inner_bytes == found[0].inner_seconds == 0


def test_what_does_not_fit_is_read_from_disk_in_every_step() -> None:
    assert kept_blocks(LAYOUT, MACHINE.memory) < LAYOUT.blocks
    little, roomy = of(), of(machine=replace(MACHINE, memory=1 << 40))
    slow = of(machine=replace(MACHINE, disk=50e6))
    assert roomy.compute_seconds < little.compute_seconds < slow.compute_seconds
    assert roomy.disk_bytes < little.disk_bytes and roomy.memory_bytes > little.memory_bytes


def test_a_thin_link_is_what_a_refresh_waits_for() -> None:
    thin, thick = of(machine=replace(MACHINE, link=1e6)), of(machine=replace(MACHINE, link=1e12))
    assert thin.refresh_seconds == pytest.approx(thin.step_bytes / 1e6)
    assert thick.refresh_seconds < thin.refresh_seconds and thick.step_bytes == thin.step_bytes


def test_an_audit_gives_no_share_and_reads_all_that_the_server_keeps() -> None:
    own, server = of(), of(server=True)
    found = audit(LAYOUT, PARAMS, ROWS, 3, 3, Prices.of(LAYOUT, 3), MACHINE, 5)
    assert found.seconds < own.once_seconds + 5 * own.step_seconds
    assert found.read_bytes == own.once_bytes + 5 * server.step_disk_bytes
