"""What each task makes of classes and labels, and that nobody else decides it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
import torch
from places import PACKAGE

from focal.task import Task, class_counts, fits, infer, one_output, outcomes, output_count, scored_classes

NAMES = {"binary": ("well", "ill"), "multiclass": ("none", "mild", "severe"), "multilabel": ("none", "mild", "severe")}
LABELS = {
    "binary": [[1, 0], [0, 1], [1, 0], [1, 0]],
    "multiclass": [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]],
    "multilabel": [[1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 0]],
}


@pytest.mark.parametrize(
    ("task", "names", "columns"),
    [
        ("binary", ["ill"], [1]),
        ("multiclass", ["none", "mild", "severe"], [0, 1, 2]),
        ("multilabel", ["none", "mild", "severe"], [0, 1, 2]),
    ],
)
def test_a_head_has_an_output_for_each_class_and_of_two_for_the_last_alone(
    task: Task, names: list[str], columns: list[int]
) -> None:
    classes, labels = NAMES[task], np.array(LABELS[task], np.uint8)
    assert one_output(task) == (task == "binary")
    assert output_count(len(classes), task) == len(names)
    assert scored_classes(classes, task) == scored_classes(list(classes), task) == tuple(names)
    found = outcomes(labels, task)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, labels[:, columns])
    np.testing.assert_array_equal(outcomes(found, task), found, err_msg="columns that are outcomes already stay")
    assert torch.equal(outcomes(torch.from_numpy(labels), task), torch.from_numpy(labels[:, columns]))
    np.testing.assert_array_equal(class_counts(found.sum(0, dtype=np.int64), len(labels), task), labels.sum(0))


@pytest.mark.parametrize(("task", "allowed"), [("binary", [2]), ("multiclass", [2, 3, 4]), ("multilabel", [2, 3, 4])])
def test_a_binary_task_has_two_classes_and_the_others_two_or_more(task: Task, allowed: list[int]) -> None:
    assert [count for count in range(5) if fits(count, task)] == allowed


def test_a_task_that_nobody_named_follows_from_the_labels() -> None:
    assert [infer(2, False), infer(3, False)] == ["binary", "multiclass"]
    assert infer(2, True) == infer(3, True) == "multilabel"
    assert set(get_args(Task)) == set(NAMES)


def spelt_out(source: str) -> Iterator[int]:
    """Lines that compare with ``"binary"``, or that cut the last class off by hand."""

    def tail(node: ast.AST) -> bool:
        return isinstance(node, ast.Slice) and ast.unparse(node) in ("1:", "-1:")

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [leaf for side in (node.left, *node.comparators) for leaf in ast.walk(side)]
            if any(isinstance(leaf, ast.Constant) and leaf.value == "binary" for leaf in sides):
                yield node.lineno
        elif isinstance(node, ast.Subscript):
            of = ast.unparse(node.value).split(".")[-1]
            columns = isinstance(node.slice, ast.Tuple) and len(node.slice.elts) == 2 and tail(node.slice.elts[1])
            if columns or of.endswith("classes") and (tail(node.slice) or ast.unparse(node.slice) == "-1"):
                yield node.lineno


def test_only_the_task_module_knows_that_a_binary_task_has_one_output() -> None:
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
    assert list(spelt_out(sources.pop("task.py"))), "the rule sees the one place that may"
    assert not [f"{name}:{line}" for name, source in sorted(sources.items()) for line in spelt_out(source)]


@pytest.mark.parametrize(
    "old",
    [
        'labels[:, 1:] if task == "binary" else labels',
        "y[:, -1:]",
        'meta.classes[1:] if meta.task in ("binary",) else meta.classes',
        "manifest.classes[-1:]",
        "[classes[-1]]",
        '1 if "binary" == self.task else k',
    ],
)
def test_every_old_spelling_is_seen(old: str) -> None:
    assert list(spelt_out(old))
