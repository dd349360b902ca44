"""Subgroups that all sites count alike, agreed before any cell is seen."""

from __future__ import annotations

import numpy as np
import pytest

from focal.errors import ConfigError, ProtocolError
from focal.measure import declared, histogram
from focal.measure.declared import BINS


def test_every_row_is_where_its_cell_says() -> None:
    columns = {"Age": np.array(["49.9", "50", " 64", "65", "", "old", "nan"]), "sex": np.array(list("fmFM x?"))}
    found, missing = declared.members(("age:50,65", "sex:F,m"), columns, 7)
    names = [one.name for one in declared.subgroups(("age:50,65", "sex:F,m"))]
    assert names == ["age below 50", "age 50 to below 65", "age 65 and above", "sex f", "sex m"] and missing == []
    assert [np.flatnonzero(row).tolist() for row in found] == [[0], [1, 2], [3], [0, 2], [1, 3]]


def test_a_site_without_the_column_counts_nobody_in_it() -> None:
    found, missing = declared.members(("age:50", "sex:f,m"), {"sex": np.array(["f"])}, 1)
    assert missing == ["age"] and found.tolist() == [[False], [False], [True], [False]]
    assert declared.members((), {}, 3)[0].shape == (0, 3)


@pytest.mark.parametrize("text", ["sex", ":50", "age:", "age:65,50", "age:50,50", "sex:f,,m", "age:50,old"])
def test_what_names_no_subgroups(text: str) -> None:
    with pytest.raises(ConfigError, match="names no subgroups"):
        declared.subgroups((text,))


def test_one_subgroup_under_two_names() -> None:
    with pytest.raises(ConfigError, match="called the same"):
        declared.subgroups(("sex:f,F",))


def test_counts_of_all_and_of_subgroups_come_back_from_a_sum() -> None:
    labels, scores = np.eye(3)[np.arange(9) % 3], np.linspace(-1, 1, 27).reshape(9, 3)
    groups = np.array([[True] * 4 + [False] * 5, [False] * 9])
    counts = histogram.with_subgroups(labels, scores, "multiclass", groups)
    assert counts.size == declared.counted(3, ("sex:f,m",)) == 3 * 3 * 2 * BINS
    everybody, first, second = histogram.parts_of_sum(2.0 * counts.ravel(), 3, 2)
    assert (everybody == 2 * counts[0]).all() and first[0].sum() == 8 and not second.any()
    nobody = histogram.with_subgroups(labels[:0], scores[:0], "multiclass", groups[:, :0])
    assert nobody.shape == counts.shape and not nobody.any()
    counts[1, :, 0, 5] += 1
    with pytest.raises(ProtocolError, match="more rows than all"):
        histogram.parts_of_sum(counts.ravel().astype(float), 3, 2)
