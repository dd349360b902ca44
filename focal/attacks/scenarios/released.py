"""Released heads: who was in the training rows?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from focal.attacks.bench import Bench
from focal.attacks.membership import membership
from focal.attacks.scenarios.registry import Array, Found, scenario
from focal.attacks.threat import Threat
from focal.heads.linear import twin


def _blind_head(bench: Bench) -> Callable[[Array, NDArray[np.int64]], Array]:
    """How a blind run trains: its plaintext twin."""
    training = bench.config.training

    def train(x: Array, y: NDArray[np.int64]) -> Array:
        top = float(np.linalg.eigvalsh(x.T @ x / len(x))[-1])
        scalars = twin.Scalars.derive(training.degree, 1 / (1.1 * top / 4 + training.ridge), training.ridge, len(x))
        return twin.train(x, 0.5 - np.eye(bench.classes)[y], scalars, training.steps)[0]

    return train


def _memorising(x: Array, y: NDArray[np.int64], classes: int) -> Array:
    """A least squares head almost without a ridge: it remembers every row."""
    kernel = x.T @ x + 1e-6 * len(x) * np.eye(x.shape[1])
    return np.asarray(np.linalg.solve(kernel, x.T @ (2 * np.eye(classes)[y] - 1)), np.float64)


ALONE = 200


@scenario(
    "memorising-head.membership",
    "a released head that overfits: membership (LiRA, 64 shadows)",
    "hospital",
    f"least squares on raw features of {ALONE} rows; half of the candidates are members",
)
def _memorising_membership(bench: Bench, threat: Threat, seed: int) -> Found:
    def train(x: Array, y: NDArray[np.int64]) -> Array:
        return _memorising(x, y, bench.classes)

    ours, others = (
        np.random.default_rng([seed, 31 + i]).permutation(rows)[:ALONE]
        for i, rows in enumerate((bench.corpus.private, bench.corpus.public))
    )
    sides = [(np.c_[bench.features(rows), np.ones(len(rows))], bench.labels(rows)) for rows in (ours, others)]
    return _membership(sides, train, train(*sides[0]), seed)


def _membership(
    sides: Sequence[tuple[Array, NDArray[np.int64]]],
    train: Callable[[Array, NDArray[np.int64]], Array],
    released: Array,
    seed: int,
    known: tuple[Array, NDArray[np.int64]] | None = None,
    unrelated: Array | None = None,
) -> Found:
    """``unrelated``: a head trained without either side, for the control; by default a random one."""
    if unrelated is None:
        unrelated = np.random.default_rng([seed, 33]).standard_normal(released.shape) * released.std()
    return Found(
        told=membership(released, sides[0], sides[1], train, seed, known),
        control_told=membership(unrelated, sides[0], sides[1], train, seed, known),
    )


def columns_of(bench: Bench, rows: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
    """Columns of a run, after the projection that all institutions know, and classes."""
    return bench.projection(bench.everybody).apply(bench.features(rows)), bench.labels(rows)


def _released(bench: Bench) -> Array:
    """(R, C) of the run, as any institution has them."""
    from focal.data.rows import read_kept

    return read_kept(bench.run / "parties" / bench.names[0])[1]


@scenario(
    "focal-blind.membership",
    "FOCAL, blind: membership from the released head (LiRA, 64 shadows)",
    "hospital",
    "candidates' features are known; half of the candidates are the victim's training rows",
    "memorising-head.membership",
    "blind",
)
def _focal_membership(bench: Bench, threat: Threat, seed: int) -> Found:
    private, public = bench.corpus.private, bench.corpus.public
    n = min(len(private), len(public))
    sides = [columns_of(bench, rows[:n]) for rows in (private, public)]
    return _membership(sides, _blind_head(bench), _released(bench), seed)


@scenario(
    "focal-blind.coalition-head",
    "FOCAL, blind: membership from the released head, all other institutions' rows known",
    "all-but-one",
    "as focal-blind.membership; the coalition's rows are in every shadow",
    "memorising-head.membership",
    "blind",
)
def _focal_coalition_head(bench: Bench, threat: Threat, seed: int) -> Found:
    private, public = bench.corpus.private, bench.corpus.public
    n = min(len(private), len(public))
    sides = [columns_of(bench, rows[:n]) for rows in (private, public)]
    known = columns_of(bench, np.concatenate([at for name, at in bench.train.items() if name != bench.victim]))
    train = _blind_head(bench)
    return _membership(sides, train, _released(bench), seed, known, unrelated=train(*known))
