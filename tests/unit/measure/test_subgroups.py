"""Rows by the values of a column: what is a group, what is an error, and small groups that cannot be scored."""

from __future__ import annotations

import numpy as np
import pytest

from focal.errors import FocalError
from focal.measure.metrics import macro_auroc
from focal.measure.subgroups import NOT_GIVEN, Split, score_subgroup, subgroups


def test_values_are_groups_and_empty_cells_are_a_group_of_their_own() -> None:
    found = subgroups(Split.parse("Sex"), np.array(["Female", "", "Male", "Female"]))
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "Female": [True, False, False, True],
        "Male": [False, False, True, False],
        NOT_GIVEN: [False, True, False, False],
    }


def test_bands_hold_their_lower_limit_and_every_row_is_in_one() -> None:
    cells = np.array(["49.9", "50", "64", "65", "90", ""])
    found = subgroups(Split.parse("age:50,65"), cells)
    assert [name for name in found] == ["below 50", "50 to below 65", "65 and above", NOT_GIVEN]
    assert np.stack(list(found.values())).sum(axis=0).tolist() == [1] * 6
    assert [np.flatnonzero(rows).tolist() for rows in found.values()] == [[0], [1, 2], [3, 4], [5]]


@pytest.mark.parametrize("text", ["", ":50", "age:", "age:x", "age:65,50", "age:50,50", "age:nan", "age:inf"])
def test_splits_that_are_none(text: str) -> None:
    with pytest.raises(FocalError, match="no split into subgroups"):
        Split.parse(text)


def test_an_empty_band_and_cells_without_numbers_are_errors_that_show_no_cell() -> None:
    with pytest.raises(FocalError, match="'age 65 and above' is empty: none of the 2 scored rows"):
        subgroups(Split.parse("age:50,65"), np.array(["40", "55"]))
    with pytest.raises(FocalError, match="cells that are no numbers") as e:
        subgroups(Split.parse("age:50"), np.array(["40", "about sixty"]))
    assert "sixty" not in str(e.value)
    with pytest.raises(FocalError, match="cells that are no numbers"):
        subgroups(Split.parse("age:50"), np.array(["40", "60", "inf"]))


def test_ages_that_are_not_known_are_a_band_of_their_own() -> None:
    found = subgroups(Split.parse("age:50"), np.array(["40", "nan", "", "?", "60", "N/A", "Unknown"]))
    assert {name: np.flatnonzero(rows).tolist() for name, rows in found.items()} == {
        "below 50": [0],
        "50 and above": [4],
        "not given": [1, 2, 3, 5, 6],
    }


def test_a_subgroup_scores_what_it_can() -> None:
    rng = np.random.default_rng(0)
    labels = np.eye(3, dtype=np.uint8)[rng.integers(0, 2, 60)]  # no row of the third class
    scores, groups = labels + rng.normal(0, 1, (60, 3)), np.array([f"p{i // 2}" for i in range(60)])
    found = score_subgroup(labels, scores, groups, "multiclass", ("a", "b", "c"), 200)
    assert (found["n"], found["patients"], found["auroc_per_class"]["c"]) == (60, 30, None)
    assert found["auroc"] == macro_auroc(labels, scores, "multiclass")
    assert found["auroc_ci95"][0] < found["auroc"] < found["auroc_ci95"][1]
    lone = score_subgroup(labels[:1], scores[:1], groups[:1], "multiclass", ("a", "b", "c"), 200)
    assert (lone["n"], lone["auroc"], lone["auroc_ci95"]) == (1, None, None)
    assert set(lone["auroc_per_class"].values()) == {None}
