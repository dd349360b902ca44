"""FedAvg under central differential privacy: clipped contributions, Gaussian noise on their sum,
epsilon by Opacus' accountant.

::

    institution  parts cut to norm <= clip                    sum + N(0, (z clip)^2)           DP-FedAvg
    patient      gradients summed by patient, cut to <= clip  sum + N(0, (z rate clip / n)^2)  DP-FedSGD,
                                                                                               a full-batch step a round

    (epsilon, delta) of r rounds:  r-fold composition of the Gaussian mechanism with noise multiplier z,
                                   no amplification by sampling

Neighbouring data sets differ in one unit's contributions, which are put to zero; numbers of rows and institutions are
public (the manifest has them). A patient of two institutions counts as two. The projection, and a step size chosen on
the rows, are outside the epsilon. **The server is trusted**: it sees every part in the clear and adds the noise;
protected are the weights that it hands out, against everybody else. Noise comes from a seeded generator so that a
comparison repeats; a real server would draw it from the system.

References
    DP-FedAvg     McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018
    clipping      Abadi et al., "Deep Learning with Differential Privacy", CCS 2016: by example there, by patient here
    accountant    Mironov, "Renyi Differential Privacy", CSF 2017; Yousefpour et al., "Opacus", 2021
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from scipy.special import expit

from focal.baselines.federated import Array, Federated, Local, Parts, PlainSum, Settings, Site, descend, federate
from focal.data.rows import InstitutionRows
from focal.errors import FocalError
from focal.measure.traffic import Traffic
from focal.segments.projection import Projection
from focal.task import Task

FULL = 1.0
"""Sampling rate that the accountant is told: whom a round chooses is no secret, so sampling hides nothing."""
ORDERS = [*np.arange(1.1, 11, 0.1).tolist(), *range(11, 64), *(2.0**k for k in range(6, 15))]
"""Orders of the Renyi divergence; Opacus' own end at 63, which is too low for an epsilon below 0.2."""


@dataclass(frozen=True)
class Privacy:
    """What is promised, for whom."""

    unit: Literal["institution", "patient"]
    """Whose contribution the weights hide."""
    epsilon: float
    delta: float
    clip: float
    """Largest Euclidean norm of an institution's part of the mean update, or of a patient's gradient."""

    def __post_init__(self) -> None:
        if not (self.epsilon > 0 and 0 < self.delta < 1 and self.clip > 0):
            raise FocalError(
                f"privacy: epsilon {self.epsilon:g}, "
                f"delta {self.delta:g} and clip {self.clip:g} must be positive, delta below 1"
            )


def noise_multiplier(epsilon: float, delta: float, rounds: int) -> float:
    """z for at most ``epsilon`` at ``delta`` after ``rounds`` rounds."""
    from opacus.accountants.utils import get_noise_multiplier  # imports torch

    asked = {
        "target_epsilon": epsilon,
        "target_delta": delta,
        "sample_rate": FULL,
        "steps": rounds,
        "epsilon_tolerance": epsilon / 100,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the search starts at noise for which no order is a good one
            return float(get_noise_multiplier(**asked, accountant="rdp", alphas=ORDERS))
    except ValueError:
        raise FocalError(
            f"privacy: no noise gives epsilon {epsilon:g} at delta {delta:g} after {rounds} rounds"
        ) from None


def epsilon(multiplier: float, delta: float, rounds: int) -> float:
    """What ``rounds`` rounds with noise ``multiplier`` spend at ``delta``."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(multiplier, FULL, rounds)]
    return float(accountant.get_epsilon(delta, alphas=ORDERS))


class NoisySum(PlainSum):
    """The sum of parts cut to norm ``clip``, with Gaussian noise of ``deviation`` on each value.
    The server sees every part."""

    def __init__(self, names: tuple[str, ...], deviation: float, seed: int, clip: float = np.inf) -> None:
        super().__init__(names)
        self.deviation, self.clip = deviation, clip
        self._rng = np.random.default_rng([seed, 6])

    def add(self, label: str, parts: Parts) -> tuple[Array, dict[str, Traffic]]:
        total, traffic = super().add(label, {name: cut(part, self.clip) for name, part in parts.items()})
        return total + self._rng.normal(0, self.deviation, total.shape), traffic


def cut(part: Array, clip: float) -> Array:
    """``part``, scaled down to Euclidean norm ``clip`` where it is larger."""
    norm = float(np.linalg.norm(part))
    return part * (clip / norm) if norm > clip else part


def patient_step(
    site: Site, start: Array, settings: Settings, rate: float, rng: np.random.Generator, *, clip: float
) -> Array:
    """One step on all rows, every patient's summed gradient of the loss cut to norm ``clip``;
    the ridge is nobody's data."""
    errors = expit(site.x @ start) - site.y
    total = np.zeros_like(start)
    for rows in site.by_patient():
        total += cut(site.x[rows].T @ errors[rows], clip)
    return start - rate * (total / len(site.x) + settings.ridge * start)


def federate_privately(
    rows: Mapping[str, InstitutionRows], projection: Projection, task: Task, settings: Settings, privacy: Privacy
) -> tuple[Federated, float]:
    """:func:`focal.baselines.federated.federate` under ``privacy``; also returns the epsilon spent,
    at most the one asked for.

    Patients are protected in rounds of one full-batch step each, with all institutions: ``epochs``, ``batch``
    and ``mu`` do nothing there. Raises :class:`FocalError` for patients when institutions may be missing,
    since the noise is scaled to all rows.
    """
    if privacy.unit == "patient" and (settings.fraction < 1 or settings.dropout > 0):
        raise FocalError(
            "privacy of patients: needs every institution in every round", hint="set fraction to 1 and dropout to 0"
        )
    z = noise_multiplier(privacy.epsilon, privacy.delta, settings.rounds)
    spent = epsilon(z, privacy.delta, settings.rounds)
    local: Local = descend
    if privacy.unit == "institution":
        make_sum = partial(NoisySum, deviation=z * privacy.clip, seed=settings.seed, clip=privacy.clip)
    else:
        n = sum(int((own.split == "train").sum()) for own in rows.values())
        rate = settings.rate or projection.eta
        make_sum = partial(NoisySum, deviation=z * rate * privacy.clip / n, seed=settings.seed)
        local = partial(patient_step, clip=privacy.clip)
        settings = replace(settings, epochs=1, batch=None)
    return federate(rows, projection, task, settings, make_sum, local), spent
