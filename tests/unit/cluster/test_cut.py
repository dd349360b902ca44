"""What a cluster's blocks are cut into, without a cluster; with one: test_cluster.py."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

if find_spec("ray") is None:
    pytest.skip("ray is not installed: pip install 'focal[ray]'", allow_module_level=True)

from focal.cluster.shards import cut
from focal.heads.linear.cost import layout_for
from focal.protocols.blind.compute import worker_bytes

GB = 1 << 30


def test_sums_are_cut_in_proportion() -> None:
    assert cut(8, [1, 1]) == [range(0, 4), range(4, 8)]
    assert cut(9, [2, 1]) == [range(0, 6), range(6, 9)]
    assert [len(part) for part in cut(1, [1, 1, 1])].count(1) == 1


def test_workers_need_more_memory_when_there_are_fewer() -> None:
    layout = layout_for(8192, 32, 6, 5000, 4, 1, (5000,))
    one, two = (worker_bytes(layout, 2 * GB, n) for n in (1, 2))
    assert GB // 4 < two < one < GB
