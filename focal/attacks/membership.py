"""Was this patient in the training set? LiRA with few shadow heads, on any head that is released.

::

    attacker's own rows --half of them, at random--> shadow head --loss of the candidate--> in | out, a normal each
    released head ------------------------------------------------loss of the candidate--> log likelihood ratio

Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022. Candidates are in half of the shadow
sets, so that every shadow serves every candidate. The attacker knows how heads are trained, has features of candidates
and of other patients, and none of the others' that the victims trained with. A coalition of institutions also has its
own rows (``known``): they are in every shadow set.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from focal.attacks.scores import Told, told_apart

Array = NDArray[np.float64]
Train = Callable[[Array, NDArray[np.int64]], Array]
"""(rows (n, R), classes (n,)) -> released weights (R, C)."""

SHADOWS = 64


def confidence(weights: Array, x: Array, y: NDArray[np.int64]) -> Array:
    """(n,) log-odds of the true class: LiRA's statistic, nearly normal."""
    z = x @ weights
    own = z[np.arange(len(y)), y]
    rest = np.where(np.eye(z.shape[1], dtype=bool)[y], -np.inf, z)
    top = rest.max(axis=1, keepdims=True)
    return own - (top[:, 0] + np.log(np.exp(rest - top).sum(axis=1)))


def ratios(
    released: Array,
    candidates: tuple[Array, NDArray[np.int64]],
    train: Train,
    size: int,
    seed: int,
    known: tuple[Array, NDArray[np.int64]] | None = None,
    shadows: int = SHADOWS,
) -> Array:
    """(n,) log likelihood ratio, member over not, of each candidate. ``size``: how many unknown rows the released head
    was trained on; shadows take as many candidates (or half of all, where there are fewer)."""
    x, y = candidates
    rng = np.random.default_rng([seed, 24])
    count = min(size, len(x) // 2)
    inside, seen = np.zeros((shadows, len(x)), bool), np.zeros((shadows, len(x)))
    for s in range(shadows):
        inside[s, rng.permutation(len(x))[:count]] = True
        xs, ys = x[inside[s]], y[inside[s]]
        if known is not None:
            xs, ys = np.concatenate([known[0], xs]), np.concatenate([known[1], ys])
        seen[s] = confidence(train(xs, ys), x, y)
    found = confidence(released, x, y)
    means, spread = [], []
    for kind in (inside, ~inside):
        n = kind.sum(axis=0)
        mean = np.where(kind, seen, 0).sum(axis=0) / np.maximum(n, 1)
        means.append(mean)
        spread.append(np.where(kind, (seen - mean) ** 2, 0).sum() / max(1, kind.sum()))
    # few shadows: one variance for all candidates (LiRA's "fixed variance")
    variance = max(sum(spread) / 2, 1e-12)
    return ((found - means[1]) ** 2 - (found - means[0]) ** 2) / (2 * variance)


def membership(
    released: Array,
    members: tuple[Array, NDArray[np.int64]],
    others: tuple[Array, NDArray[np.int64]],
    train: Train,
    seed: int,
    known: tuple[Array, NDArray[np.int64]] | None = None,
) -> Told:
    """How well an attacker who has the candidates' features tells members from others."""
    candidates = np.concatenate([members[0], others[0]]), np.concatenate([members[1], others[1]])
    found = ratios(released, candidates, train, len(members[0]), seed, known)
    return told_apart(found[: len(members[0])], found[len(members[0]) :])
