"""The plaintext twin of a whole interactive run, in one process: every institution's own Lightning module,
and a head in the clear.

::

    thread of hospital-a   fit(SplitSegment, seat) --x, delta, parameters--.
    thread of hospital-b   fit(SplitSegment, seat) ------------------------+--> PlainUpper: x W, delta W', twin_step,
    thread of hospital-c   fit(SplitSegment, seat) ------------------------'                weighted mean

The institutions run the same code as over sockets, to the last line; what is encrypted there is computed here with
:func:`focal.heads.joint.twin.twin_step`. It exists where one machine may see all data: in local runs, as the figure to
compare with, and in experiments.

All threads share one lock and give it away only while they wait for each other. So one institution computes at a
time, with as many cores as torch may use, and a run repeats to the bit. Memory: of each institution the decoded
images, the module and one batch's graph.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from focal.config import InteractiveConfig
from focal.data.table import Table
from focal.heads.joint.twin import Update, twin_step
from focal.segments.lower import LowerSegment, preprocess
from focal.segments.projection import Projection
from focal.segments.trainable import TrainableSegment
from focal.training.split import Base, Based, Batches, Loss, Skipped, SplitSegment, Upper, fit

Array = NDArray[np.float64]
Answers = dict[str, Array]

SCORED = 64
"""Images scored at once."""


# --------------------------------------------------------------------------- the head in the clear


class PlainUpper:
    """The upper segment of all institutions ``names``: starts at zero, steps when all that are present have answered.

    ``absent(step, name)``: who is skipped in a joint step, and in the average that follows it.
    ``on_average(round, parameters, weights)`` sees every average (p,) with the head (R, C) of that moment.
    """

    def __init__(
        self,
        names: Sequence[str],
        features: int,
        outputs: int,
        config: InteractiveConfig,
        *,
        absent: Callable[[int, str], bool] = lambda step, name: False,
        on_average: Callable[[int, Array, Array], None] = lambda round, parameters, weights: None,
    ) -> None:
        self.names, self.config, self.absent, self.on_average = tuple(names), config, absent, on_average
        self.update = Update(config.head_rate, config.momentum)
        self.weights: Array = np.zeros((features, outputs))
        self.before = self.weights
        self._turn = threading.Condition()
        self._brought: dict[tuple[str, int], Answers] = {}
        self._answers: dict[tuple[str, int], Answers] = {}
        self._activations: Answers = {}
        self._error: BaseException | None = None

    def run(self, work: Mapping[str, Callable[[Upper], None]]) -> None:
        """Let every institution do its ``work`` with its seat, each in a thread.
        Raises what the first to fail raised."""
        threads = [
            threading.Thread(target=self._sit, args=(name, work[name]), name=name, daemon=True) for name in self.names
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as e:  # Ctrl-C
            self._stop(e)
            raise
        if self._error is not None:
            raise self._error

    def _sit(self, name: str, work: Callable[[Upper], None]) -> None:
        with self._turn:
            try:
                work(_Seat(self, name))
            except _Stopped:
                pass
            except BaseException as e:
                self._stop(e)

    def _stop(self, error: BaseException) -> None:
        with self._turn:
            self._error = self._error or error
            self._turn.notify_all()

    def present(self, step: int) -> list[str]:
        return [name for name in self.names if not self.absent(step, name)]

    def meet(
        self,
        place: tuple[str, int],
        name: str,
        value: Array,
        expected: Sequence[str],
        work: Callable[[Answers], Answers],
    ) -> Array:
        """Wait until everybody ``expected`` has brought a value; the last one does the ``work`` for all.
        Returns ``name``'s answer."""
        brought = self._brought.setdefault(place, {})
        brought[name] = value
        if len(brought) == len(expected):
            self._answers[place] = work({n: brought[n] for n in expected})
            del self._brought[place]
            self._turn.notify_all()
        while place not in self._answers:
            if self._error is not None:
                raise _Stopped
            self._turn.wait()
        answers = self._answers[place]
        mine = answers.pop(name)
        if not answers:
            del self._answers[place]
        return mine

    # ----------------------------------------------------------------- what the last one computes

    def forward(self, activations: Answers) -> Answers:
        self._activations = activations
        return {name: x @ self.weights for name, x in activations.items()}

    def backward(self, derivatives: Answers) -> Answers:
        answers = {name: delta @ self.weights.T for name, delta in derivatives.items()}
        x, delta = (np.concatenate([part[name] for name in derivatives]) for part in (self._activations, derivatives))
        self.weights, self.before = twin_step(self.weights, self.before, x, delta, self.update), self.weights
        return answers

    def shares(self, round: int, rows: Mapping[str, int]) -> dict[str, float]:
        """What each institution that was present counts in an average, by its rows."""
        counted = self.present(min(round * self.config.average_every, self.config.steps) - 1)
        total = sum(rows[name] for name in counted)
        return {name: rows[name] / total for name in counted}

    def mean(self, round: int, parameters: Answers, rows: Mapping[str, int]) -> Answers:
        mean = np.sum([parameters[name] * share for name, share in self.shares(round, rows).items()], axis=0)
        self.on_average(round, mean, self.weights)
        return {name: mean for name in parameters}


class _Stopped(BaseException):
    """Another institution failed, and its error is the one to report."""


class _Seat:
    """:class:`PlainUpper` as one institution sees it."""

    def __init__(self, upper: PlainUpper, name: str) -> None:
        self.upper, self.name = upper, name
        self._rows: dict[int, dict[str, int]] = {}

    def logits(self, step: int, activations: Array) -> Array:
        present = self.upper.present(step)
        if self.name not in present:
            raise Skipped(f"{self.name} is absent in joint step {step}")
        return self.upper.meet(("logits", step), self.name, activations, present, self.upper.forward)

    def gradients(self, step: int, derivatives: Array) -> Array:
        return self.upper.meet(
            ("gradients", step), self.name, derivatives, self.upper.present(step), self.upper.backward
        )

    def average(self, round: int, parameters: Array, rows: int) -> Array:
        # the number of rows travels as one value more
        def work(brought: Answers) -> Answers:
            return self.upper.mean(
                round, {n: v[:-1] for n, v in brought.items()}, {n: int(v[-1]) for n, v in brought.items()}
            )

        return self.upper.meet(("average", round), self.name, np.append(parameters, rows), self.upper.names, work)


# --------------------------------------------------------------------------- a whole run


@dataclass(frozen=True)
class Site:
    """An institution's data: ``rows`` of ``table`` train."""

    table: Table
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Trained:
    """What a run leaves behind; the head includes the base that it started from."""

    segment: TrainableSegment
    weights: Array
    """(R, C)"""
    velocity: Array
    """(R, C): the last weights minus those before, for :class:`focal.training.split.Base`."""


def train_jointly(
    lower: LowerSegment,
    config: InteractiveConfig,
    sites: Mapping[str, Site],
    *,
    folder: Path,
    start: Projection | None = None,
    base: Base | None = None,
    trained: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
    device: str = "auto",
    absent: Callable[[int, str], bool] = lambda step, name: False,
    on_average: Callable[[int, TrainableSegment, Array], None] | None = None,
    upper: type[PlainUpper] = PlainUpper,
    **flags: Any,
) -> Trained:
    """The interactive protocol with ``sites`` in plaintext. Every institution's log is in ``folder / name``.

    ``start`` and ``base``: projection and head of a blind run to begin with; ``trained``: of an interactive one, its
    trained parameters. ``on_average(round, segment, weights)`` sees the averaged segment and the head (R, C) that
    belongs to it. ``upper``: how the head learns; the protocol's by default. ``flags`` go to
    :func:`focal.training.split.fit`.
    """
    tables = [site.table for site in sites.values()]
    task, counts = tables[0].task, sum(site.table.labels[site.rows].sum(0, dtype=np.int64) for site in sites.values())
    loss = Loss(task, counts, config)
    base = base or Base(np.zeros((config.features, loss.outputs)))
    seen = TrainableSegment(lower, config, start, seed=seed)

    def averaged(round: int, parameters: Array, weights: Array) -> None:
        if on_average is not None:
            seen.load_vector(parameters)
            on_average(round, seen, base.at(min(round * config.average_every, config.steps)) + weights)

    def institution(name: str, site: Site) -> Callable[[Upper], None]:
        def work(seat: Upper) -> None:
            segment = TrainableSegment(lower, config, start, seed=seed)
            if trained:
                segment.load_trained(trained)
            module = SplitSegment(segment, Based(seat, base), loss, config, rows=len(site.rows))
            own = config.model_copy(update={"batch": config.batches.get(name, config.batch)})
            batches = Batches(site.table, site.rows, lower.spec, own, name=name, seed=seed)
            fit(module, batches, folder=folder / name, device=device, **{"checkpoint_every": 0, **flags})
            ended[name] = segment

        return work

    ended: dict[str, TrainableSegment] = {}
    head = upper(tuple(sites), config.features, loss.outputs, config, absent=absent, on_average=averaged)
    head.run({name: institution(name, site) for name, site in sites.items()})
    last, before = base.at(config.steps) + head.weights, base.at(config.steps - 1) + head.before
    return Trained(ended[next(iter(sites))], last, last - before)


def scores(segment: TrainableSegment, weights: Array, table: Table, rows: ArrayLike) -> Array:
    """(n, C) logits of the table's ``rows`` by the released model: for :func:`focal.measure.metrics.macro_auroc`."""
    device = segment.lower.mean.device
    head, wanted, parts = segment.head(weights, table.task).to(device), np.asarray(rows), []
    for start in range(0, len(wanted), SCORED):
        images = torch.stack(
            [preprocess(table.images.read(int(row)), segment.lower.spec) for row in wanted[start : start + SCORED]]
        )
        with torch.inference_mode():
            parts.append(head(segment.lower(images.to(device))).double().cpu())
    return torch.cat(parts).numpy()
