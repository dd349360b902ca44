"""Federated averaging of the head: what the blind protocol is compared with, on the same rows,
columns, targets and ridge.

::

    round    chosen institutions      W --epochs of minibatch SGD on own rows--> W_i
             those that return        parts   n_i / n (W_i - W)        n: rows of those that return
             sum                      W <- W + sum of parts            PlainSum | MaskedSums | EncryptedSum | NoisySum

Only the way of working together differs from the blind protocol: the head is R x C over the columns of
:meth:`Projection.apply`, starts at zero and minimises the one-vs-rest logistic loss of the train rows plus
ridge / 2 |W|^2 (blind steps put a polynomial for the sigmoid).

How a sum is made is a class: it gives the sum and the bytes that each institution moves for it. Values travel as
float64 or uint64, 8 bytes each, as in all exchanges of this project; float32 would halve what :class:`PlainSum` moves.
All parties work in this process, one after another: seconds are those of all of them together, key generation and
encryption included (what all institutions compute alike, an opening, once), and of no wire.

References
    FedAvg    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017
    FedProx   Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020
    personal  Cheng, Chadha, Duchi, "Fine-tuning is Fine in Federated Learning", 2021:
              FedAvg, then each institution trains its own copy
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from threadpoolctl import threadpool_limits

from focal import framing
from focal.data.rows import InstitutionRows
from focal.errors import FocalError
from focal.measure.metrics import macro_auroc
from focal.measure.traffic import NONE, Traffic, add_up
from focal.net.identity import Identity, seal_for_group
from focal.segments.projection import Projection
from focal.sums import fixed
from focal.sums.masked import MaskedSum, new_group_key
from focal.task import Task, outcomes

Array = NDArray[np.float64]
Parts = Mapping[str, Array]

RATES = (1.0, 0.3, 0.1, 0.03, 0.01)
"""Step sizes that :func:`choose` tries, in units of the projection's."""


@dataclass(frozen=True)
class Settings:
    """How institutions train and how often they meet."""

    rounds: int = 20
    epochs: int = 1
    """Passes over an institution's rows in a round, at its own."""
    batch: int | None = 64
    """Rows of a local step; ``None``: all of them (with one epoch that is FedSGD)."""
    rate: float | None = None
    """Step size; ``None``: the projection's, which is safe for full batches and too large for small
    ones (:func:`choose`)."""
    ridge: float = 0.1
    mu: float = 0.0
    """FedProx: weight of 1/2 |W_i - W|^2 in an institution's loss; 0: FedAvg."""
    fraction: float = 1.0
    """Part of the institutions that is chosen for a round, one at least."""
    dropout: float = 0.0
    """Probability that a chosen institution does not return; the round goes on with the others."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, fine in {
            "rounds": self.rounds >= 1,
            "epochs": self.epochs >= 1,
            "batch": self.batch is None or self.batch >= 1,
            "rate": self.rate is None or 0 < self.rate < math.inf,
            "ridge": 0 <= self.ridge < math.inf,
            "mu": 0 <= self.mu < math.inf,
            "fraction": 0 < self.fraction <= 1,
            "dropout": 0 <= self.dropout < 1,
        }.items():
            if not fine:
                raise FocalError(f"federated: {name} = {getattr(self, name)!r} is out of range")


@dataclass(frozen=True)
class Round:
    """Where things stood after a round, from the start."""

    returned: tuple[str, ...]
    """Who came back; fewer than :attr:`Sum.least`: their parts were not added and the weights stayed."""
    auroc: float
    """Macro, of the shared head on all institutions' test rows."""
    seconds: float
    traffic: dict[str, Traffic]
    """Bytes of every institution: payloads, without signatures and framing."""


@dataclass(frozen=True)
class Federated:
    """What came of it."""

    weights: Array
    """(R, C), shared."""
    scores: Array
    """(n, C) linear outputs on :attr:`focal.data.rows.InstitutionRows.scored`."""
    rounds: tuple[Round, ...]


# --------------------------------------------------------------------------- sums


class Sum(ABC):
    """How the parts of a round are added up, and what each institution sends and receives for it."""

    least = 1
    """Fewest parts that may be added: what hides a summand needs a second one."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.setup: dict[str, Traffic] = {}
        """Bytes of each institution before the first round."""

    @abstractmethod
    def add(self, label: str, parts: Parts) -> tuple[Array, dict[str, Traffic]]:
        """The sum of ``parts``, arrays of one shape by institution, and what it moved.
        ``label`` is another one in every round."""

    @abstractmethod
    def holders(self, returned: Collection[str]) -> frozenset[str]:
        """The institutions that have the new weights once the parts of ``returned`` are added,
        without being given them."""

    @abstractmethod
    def give(self, weights: Array, to: Collection[str], holders: Collection[str]) -> dict[str, Traffic]:
        """What moves until those in ``to``, who lack the ``weights``, have them; ``holders`` have them already."""


MakeSum = Callable[[tuple[str, ...]], Sum]
"""Institutions -> how they add up."""


class PlainSum(Sum):
    """FedAvg as it was published. The server sees every institution's update, and the weights."""

    def add(self, label: str, parts: Parts) -> tuple[Array, dict[str, Traffic]]:
        return np.sum(list(parts.values()), axis=0), moved(
            up={name: part.nbytes for name, part in parts.items()}, down={}
        )

    def holders(self, returned: Collection[str]) -> frozenset[str]:
        return frozenset()  # the server alone

    def give(self, weights: Array, to: Collection[str], holders: Collection[str]) -> dict[str, Traffic]:
        return moved(up={}, down=dict.fromkeys(to, weights.nbytes))


class MaskedSums(Sum):
    """FedAvg with secure sums by pairwise masks (Bonawitz et al., CCS 2017):
    the real ones of :class:`focal.sums.masked.MaskedSum`.

    The server relays masked parts and sees neither a part nor the sum; institutions see the sum and no other's
    part. Parts are rounded to 2^-48. Who takes part is settled when local training is over, so one that does not
    return by then costs no second attempt.
    """

    least = 2

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(names)
        identities = [Identity.new(name) for name in names]
        members = [identity.member("institution", rows=1) for identity in identities]
        self._secrets = {identity.name: identity.seal_secret for identity in identities}
        self._publics = {member.name: bytes.fromhex(member.seal) for member in members}
        self._run_id = framing.digest(b"focal/average/v1", *self._publics.values())
        self._key = new_group_key()
        boxes = {member.name: len(identities[0].seal(member, self._key, self._run_id)) for member in members[1:]}
        self.setup = moved(up={names[0]: sum(boxes.values())}, down=boxes)

    def add(self, label: str, parts: Parts) -> tuple[Array, dict[str, Traffic]]:
        names = tuple(parts)
        sides = {n: MaskedSum(self._run_id, label, n, names, self._secrets[n], self._publics, self._key) for n in names}
        sent = {n: side.contribution(fixed.encode(parts[n].ravel())) for n, side in sides.items()}
        opened = fixed.decode(sides[names[0]].open(sent))  # the others do the same at the same time, to the same bits
        size = {n: len(data) for n, data in sent.items()}
        return opened.reshape(parts[names[0]].shape), moved(
            up=size, down={n: sum(size.values()) - size[n] for n in names}
        )

    def holders(self, returned: Collection[str]) -> frozenset[str]:
        return frozenset(returned)

    def give(self, weights: Array, to: Collection[str], holders: Collection[str]) -> dict[str, Traffic]:
        """One of the holders seals the weights, once for the whole group."""
        size = len(seal_for_group(self._key, weights.tobytes(), self._run_id))
        return moved(up={min(holders): size}, down=dict.fromkeys(to, size))


def moved(up: Mapping[str, int], down: Mapping[str, int]) -> dict[str, Traffic]:
    """Bytes sent and received, by institution."""
    return {name: Traffic(up=up.get(name, 0), down=down.get(name, 0)) for name in {**up, **down}}


# --------------------------------------------------------------------------- rounds


@dataclass(frozen=True)
class Site:
    """What an institution trains on."""

    x: Array
    """(n, R) columns of its train rows."""
    y: Array
    """(n, C) in {0, 1}; binary tasks: the positive class."""
    patients: NDArray[np.int64]
    """(n,) a number from 0 for each patient."""

    def by_patient(self) -> list[NDArray[np.int64]]:
        """Row numbers of each patient."""
        order = np.argsort(self.patients, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.patients))[:-1])


def sites(rows: Mapping[str, InstitutionRows], projection: Projection, task: Task) -> dict[str, Site]:
    """The train rows of every institution. Raises :class:`FocalError` naming one that has none."""
    found = {}
    for name, own in rows.items():
        train = own.take(own.split == "train")
        if not len(train.labels):
            raise FocalError(
                f"{name}: has no train rows", hint="leave that institution out, or mark some of its rows 'train'"
            )
        targets = outcomes(train.labels, task).astype(np.float64)
        patients = np.unique(train.groups, return_inverse=True)[1].astype(np.int64)
        found[name] = Site(projection.apply(train.features), targets, patients)
    return found


def descend(site: Site, start: Array, settings: Settings, rate: float, rng: np.random.Generator) -> Array:
    """The weights (R, C) after an institution's epochs from ``start`` (R, C).

    FedProx's term is stepped implicitly (a proximal step), so that every ``mu`` is stable:
    the larger, the nearer to ``start``.
    """
    weights, n = start, len(site.x)
    batch, pull = settings.batch or n, rate * settings.mu
    for _ in range(settings.epochs):
        order = rng.permutation(n)
        for at in range(0, n, batch):
            x, y = site.x[order[at : at + batch]], site.y[order[at : at + batch]]
            gradient = x.T @ (expit(x @ weights) - y) / len(x) + settings.ridge * weights
            weights = (weights - rate * gradient + pull * start) / (1 + pull)
    return weights


Local = Callable[[Site, Array, Settings, float, np.random.Generator], Array]
"""What an institution does in a round: :func:`descend`, or a step of another kind."""


def federate(
    rows: Mapping[str, InstitutionRows],
    projection: Projection,
    task: Task,
    settings: Settings,
    make_sum: MakeSum = PlainSum,
    local: Local = descend,
) -> Federated:
    """Train the head over all institutions: FedAvg, or FedProx with ``mu``; the same seed gives the same rounds.

    Raises :class:`FocalError` when an institution has no train rows, or a sum cannot take what it is given.
    """
    own, test, names = sites(rows, projection, task), InstitutionRows.union(rows).scored, tuple(rows)
    columns, rate = projection.apply(test.features), settings.rate or projection.eta
    first = own[names[0]]
    weights: Array = np.zeros((first.x.shape[1], first.y.shape[1]))
    spent, rounds, seconds = dict.fromkeys(names, NONE), [], 0.0
    with threadpool_limits(limits=1):  # BLAS threads that spin beside other busy processes make this ten times slower
        started = time.perf_counter()
        adding = make_sum(names)
        spent = add_up(spent, adding.setup)
        holders = frozenset(names)  # everybody knows the zeros
        for r in range(settings.rounds):
            chosen, returned = participants(names, settings, r)
            if lacking := [name for name in chosen if name not in holders]:
                spent = add_up(spent, adding.give(weights, lacking, holders))
                holders |= frozenset(lacking)
            if len(returned) >= adding.least:
                n = sum(len(own[name].x) for name in returned)
                parts = {}
                for name in returned:
                    rng = np.random.default_rng([settings.seed, 4, r, names.index(name)])
                    parts[name] = (local(own[name], weights, settings, rate, rng) - weights) * (len(own[name].x) / n)
                total, traffic = adding.add(f"round/{r}", parts)
                spent = add_up(spent, traffic)
                weights, holders = weights + total, adding.holders(returned)
            if r == settings.rounds - 1 and (lacking := [name for name in names if name not in holders]):
                spent = add_up(spent, adding.give(weights, lacking, holders))
            seconds += time.perf_counter() - started
            rounds.append(Round(returned, macro_auroc(test.labels, columns @ weights, task), seconds, spent))
            started = time.perf_counter()  # scoring is not counted
    return Federated(weights, columns @ weights, tuple(rounds))


def choose(
    rows: Mapping[str, InstitutionRows],
    projection: Projection,
    task: Task,
    settings: Settings,
    rates: Sequence[float] = RATES,
) -> Settings:
    """``settings`` with the step size, of the projection's times ``rates``, that gives the best AUROC on a third
    of the train patients.

    Those are held out at every institution while the others train, with plain sums; test rows are not looked at.
    Bytes and seconds of the search are in no count, in favour of these methods.
    """
    rng, inner = np.random.default_rng([settings.seed, 7]), {}
    for name, own in rows.items():
        train = own.take(own.split == "train")
        patients = rng.permutation(np.unique(train.groups))
        held = np.isin(train.groups, patients[: len(patients) // 3])
        inner[name] = replace(train, split=np.where(held, "test", "train"))
    tried = [replace(settings, rate=factor * projection.eta) for factor in rates]
    return max(tried, key=lambda s: federate(inner, projection, task, s).rounds[-1].auroc)


def participants(names: tuple[str, ...], settings: Settings, r: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(chosen, returned) of round ``r``, in the order of ``names``."""
    rng = np.random.default_rng([settings.seed, 3, r])
    picked = rng.choice(len(names), max(1, round(settings.fraction * len(names))), replace=False)
    back = rng.random(len(names)) >= settings.dropout
    chosen = sorted(int(i) for i in picked)
    return tuple(names[i] for i in chosen), tuple(names[i] for i in chosen if back[i])


def personalise(
    rows: Mapping[str, InstitutionRows], projection: Projection, task: Task, settings: Settings, weights: Array
) -> tuple[dict[str, Array], Array]:
    """FedAvg with local fine-tuning (Cheng et al. 2021): ``settings.epochs`` more at each institution,
    on a copy that stays there.

    Returns each institution's head (R, C), and the scores (n, C) on the scored rows of all, every row by its own
    institution's head. Nothing is sent. Over rows of several institutions they rank by the institution, too: under
    label skew a head knows how common a class is at its own. Compare with the shared head institution by institution.
    """
    held, rate = InstitutionRows.union(rows).scored.split[0], settings.rate or projection.eta
    heads, scores = {}, []
    with threadpool_limits(limits=1):
        for i, (name, site) in enumerate(sites(rows, projection, task).items()):
            heads[name] = descend(site, weights, settings, rate, np.random.default_rng([settings.seed, 5, i]))
            own = rows[name]
            scores.append(projection.apply(own.features[own.split == held]) @ heads[name])
    return heads, np.concatenate(scores)
