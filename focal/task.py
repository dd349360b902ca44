"""What a task makes of K classes and of their labels: the C outcomes that a head has an output for.

::

    multiclass   an image has one of K classes       C = K   one output a class, one-vs-rest
    multilabel   an image has any of K classes       C = K   the same
    binary       an image has one of two classes     C = 1   the last class, the positive one: the other is what is left

Whether a task has one output is asked here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from numpy.typing import NDArray  # whoever reads a manifest waits for no numpy

Task = Literal["binary", "multiclass", "multilabel"]


class Matrix(Protocol):
    """An array of numpy or torch."""

    def __getitem__(self, at: Any, /) -> Any: ...


M = TypeVar("M", bound=Matrix)


def infer(classes: int, several: bool) -> Task:
    """The task of labels that nobody gave one; ``several``: an image may have more than one label."""
    if several:
        return "multilabel"
    return "binary" if classes == 2 else "multiclass"


def fits(classes: int, task: Task) -> bool:
    """Can ``task`` have that many classes?"""
    return classes == 2 if one_output(task) else classes >= 2


def one_output(task: Task) -> bool:
    return task == "binary"


def output_count(classes: int, task: Task) -> int:
    """C: columns of the head, of K ``classes``."""
    return 1 if one_output(task) else classes


def scored_classes(classes: Sequence[str], task: Task) -> tuple[str, ...]:
    """Names of the head's C columns."""
    return tuple(classes[-1:] if one_output(task) else classes)


def outcomes(columns: M, task: Task) -> M:
    """The C columns that are learned and scored, of (n, K) ``columns``: labels, or scores, which may have C already."""
    last: M = columns[:, -1:]
    return last if one_output(task) else columns


def class_counts(positives: NDArray[Any], rows: int, task: Task) -> NDArray[Any]:
    """(K,) rows of each class, from the (C,) rows that have each outcome."""
    import numpy as np

    return np.array([rows - positives[0], positives[0]]) if one_output(task) else positives
