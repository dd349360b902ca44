"""What a scenario is, and the list of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from focal.attacks.bench import Bench
from focal.attacks.scores import Told, Trial
from focal.attacks.threat import Threat
from focal.measure.leaks import Relations

Array = NDArray[np.float64]

SIZE = 64
"""Pixels of the images that decoders and blocks of small attacks work on."""


@dataclass
class Found:
    """What an attack claims, and what it claims of nothing."""

    trials: list[Trial] = field(default_factory=list)
    control: list[Trial] = field(default_factory=list)
    """The same attack, on messages that depend on no image."""
    size: int = SIZE
    told: Told | None = None
    control_told: Told | None = None
    correlation: float | None = None
    rows: NDArray[np.int64] | None = None
    """Rows of the table among which claims are judged; by default the bench's private ones."""
    relations: Relations | None = None


Run = Callable[[Bench, Threat, int], Found]


@dataclass(frozen=True)
class Scenario:
    """One row of the table."""

    name: str
    title: str
    threat: str
    assumes: str
    run: Run
    teeth: str
    reproduced: str | None = None

    @property
    def method(self) -> str:
        return self.name.partition(".")[0]

    def answers_to(self, target: str) -> bool:
        """Is it meant by ``fedsgd.imprint``, ``fedsgd``, or, of a family of methods, ``secure-sum`` and ``focal``?"""
        return target in (self.name, self.method) or self.method.startswith(f"{target}-")


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str, title: str, threat: str, assumes: str, teeth: str | None = None, reproduced: str | None = None
) -> Callable[[Run], Run]:
    """Put a function on the list."""

    def put(run: Run) -> Run:
        SCENARIOS[name] = Scenario(name, title, threat, assumes, run, teeth or name, reproduced)
        return run

    return put
