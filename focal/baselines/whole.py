"""FedAvg of the whole network, lower segment and head, in plaintext: what fine-tuning reaches without splitting.

::

    every institution   steps with the head of its own: lower segment, bottleneck, head      (its own rows only)
    every average_every steps: segment and head <- mean over institutions, weighted by rows

It is the fair opponent of the interactive protocol: the institutions' own modules, batches, augmentation, loss, rates
and averages (:mod:`focal.training.split`), from the same start. The one difference is the head. There all present rows
move one head in every step, and nobody computes with a copy of it; here each moves its own, and the copies are averaged
with all else (McMahan et al. 2017). Averaged after every step, with as many rows each, the two are the same.

What it shows. Without a secure sum the server sees every institution's network in every round. In the secure sum of
Bonawitz et al. (CCS 2017) the server opens the total: it sees the averaged network. With FOCAL's
(:mod:`focal.sums.masked`), which the interactive protocol takes for its segments, it sees masked vectors, whose they
are and how long, and no average at all. Institutions see the averaged network after each round, and no sum over the
others' rows of a single step, which the interactive protocol gives them (SECURITY.md, "The interactive protocol").
The figures are made without a sum: what it rounds is far below what they are told to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from focal.config import InteractiveConfig
from focal.heads.joint.twin import twin_step
from focal.segments.lower import LowerSegment
from focal.training.joint import Answers, Array, PlainUpper, Site, Trained, train_jointly


class OwnHeads(PlainUpper):
    """A head for each institution, all the same after every average. Momentum is averaged with them, as
    the last head minus the one before: else every round would begin at rest."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.own: dict[str, tuple[Array, Array]] = dict.fromkeys(self.names, (self.weights, self.before))
        """Institution -> its head now and one step ago."""

    def forward(self, activations: Answers) -> Answers:
        self._activations = activations
        return {name: x @ self.own[name][0] for name, x in activations.items()}

    def backward(self, derivatives: Answers) -> Answers:
        answers = {name: delta @ self.own[name][0].T for name, delta in derivatives.items()}
        for name, delta in derivatives.items():
            now, before = self.own[name]
            self.own[name] = twin_step(now, before, self._activations[name], delta, self.update), now
        return answers

    def mean(self, round: int, parameters: Answers, rows: Mapping[str, int]) -> Answers:
        shares = self.shares(round, rows)
        self.weights, self.before = (
            np.sum([self.own[name][i] * share for name, share in shares.items()], axis=0) for i in (0, 1)
        )
        self.own = dict.fromkeys(self.names, (self.weights, self.before))
        return super().mean(round, parameters, rows)


def federate_whole(
    lower: LowerSegment, config: InteractiveConfig, sites: Mapping[str, Site], **options: Any
) -> Trained:
    """Train by FedAvg what the interactive protocol trains with these settings; ``options`` are those
    of :func:`focal.training.joint.train_jointly`."""
    return train_jointly(lower, config, sites, upper=OwnHeads, **options)
