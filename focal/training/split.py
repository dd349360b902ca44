"""An institution's half of interactive split training: a LightningModule whose upper half is somewhere else, encrypted.

::

    SplitSegment (Lightning, manual optimization)                   Upper (sockets and ciphertexts, or its twin)
    images, labels = batches(seed, institution, step)
    x = lower segment, bottleneck             --- x  (n, R) ----->  z = x W
    losses of the n rows, exact               <-- z  (n, C) ------
    delta = d loss / d z, row by row          --- delta (n, C) -->  W <- W + b (W - W-) - (rate / all rows) X' delta
    x.backward(dX / n), AdamW                 <-- dX = delta W' --
    every average_every steps: parameters     --- average ------->  mean over institutions, weighted by rows

A *joint step* s is the same for everybody: batch s, learning rate s and average s / ``average_every`` follow from s,
from the seed and from the institution's name alone. So an institution that was skipped, joins late or is restarted is
right again from its next step on, and a checkpoint (parameters, AdamW's moments, the next s) continues to the bit:
nothing else is random, see :mod:`focal.segments.trainable`.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from focal.config import InteractiveConfig
from focal.data.table import Table
from focal.errors import FocalError
from focal.manifest import LowerSpec
from focal.segments.lower import preprocess
from focal.segments.trainable import TrainableSegment, sendable
from focal.task import Task, outcomes, output_count
from focal.training.extraction import interruptible, quiet
from focal.training.features import accelerator

Array = NDArray[np.float64]

WARM_UP = 0.3
"""One-cycle: share of the steps in which the rate rises from 1/25 of its peak;
it ends on 1/250000 of it (Smith and Topin 2018)."""
BRIGHTNESS = 0.2
"""Augmentation multiplies an image by 1 - this to 1 + this."""
MEMORY = 2 << 30
"""Bytes of decoded images that an institution keeps; the others are decoded again for every batch."""

LOG = logging.getLogger(__name__)
SMALLER = "use smaller interactive.rate, bottleneck_rate or head_rate, and continue from the last checkpoint"


# --------------------------------------------------------------------------- the seam


class Upper(Protocol):
    """The upper segment as one institution sees it. Arrays are float64 and finite;
    calls come from one thread, step by step."""

    def logits(self, step: int, activations: Array) -> Array:
        """(n, R) -> (n, C), opened to this institution alone. Raises :class:`Skipped`."""
        ...

    def gradients(self, step: int, derivatives: Array) -> Array:
        """(n, C), each row's d loss / d logits, not divided by anything -> (n, R) d loss / d activations.
        Raises :class:`Skipped`."""
        ...

    def average(self, round: int, parameters: Array, rows: int) -> Array:
        """(p,) own parameters -> (p,) their mean over the institutions that were present, weighted by their ``rows``.

        Round r closes after joint step r ``average_every`` - 1, and the last one after the last step. A restarted
        institution may ask for a round again, with the same parameters. One that was absent when the round was closed
        gets the average all the same, and its own parameters do not count. Raises :class:`Skipped` when the round was
        abandoned: everybody keeps what they have.
        """
        ...


class Skipped(Exception):
    """This joint step went on without this institution. ``resume``: the first step that it can still take part
    in, if that is known."""

    def __init__(self, message: str = "", resume: int | None = None) -> None:
        super().__init__(message)
        self.resume = resume


@dataclass(frozen=True)
class Base:
    """The head that training starts from, of which everybody has a copy:
    the encrypted head trains the difference to it.

    ``weights`` (R, C); ``velocity`` (R, C), the last weights minus those before, when training with ``momentum``
    goes on. SGD with momentum is linear, so that what the start alone would do is added in the clear:
    W_t = w + v (b + b^2 + ... + b^t).
    """

    weights: Array
    velocity: Array | None = None
    momentum: float = 0.0

    def at(self, step: int) -> Array:
        """(R, C) at the beginning of joint step ``step``, counted from 0."""
        if self.velocity is None:
            return self.weights
        b = self.momentum
        return self.weights + self.velocity * (b * (1 - b**step) / (1 - b))


@dataclass(frozen=True)
class Based:
    """An :class:`Upper` on top of a :class:`Base`: what the base's weights (R, C) add is added here, in the clear."""

    upper: Upper
    base: Base

    def logits(self, step: int, activations: Array) -> Array:
        return self.upper.logits(step, activations) + activations @ self.base.at(step)

    def gradients(self, step: int, derivatives: Array) -> Array:
        return self.upper.gradients(step, derivatives) + derivatives @ self.base.at(step).T

    def average(self, round: int, parameters: Array, rows: int) -> Array:
        return self.upper.average(round, parameters, rows)


# --------------------------------------------------------------------------- batches


class Batch(NamedTuple):
    """What an institution brings to one joint step."""

    step: int
    images: Tensor
    """(n, 3, s, s) float32 on the 0..255 scale, augmented."""
    labels: Tensor
    """(n, K) uint8"""


class Batches:
    """The institution's batch of every joint step: a function of seed, name and step. Epochs are shuffled one by one
    and follow on each other without a gap, so that every batch is full whatever the number of rows.

    Images are decoded once and kept as uint8 while they fit ``memory`` bytes.
    """

    def __init__(
        self,
        table: Table,
        rows: ArrayLike,
        spec: LowerSpec,
        config: InteractiveConfig,
        *,
        name: str,
        seed: int = 0,
        memory: int = MEMORY,
    ) -> None:
        self.table, self.spec, self.config = table, spec, config
        self.rows = np.asarray(rows, dtype=np.int64)
        if not len(self.rows):
            raise FocalError(f"institution '{name}' has no train rows", hint="mark rows 'train' in its table")
        self.size = min(config.batch, len(self.rows))
        self._seed = [seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")]
        kept = min(len(self.rows), memory // (3 * spec.image_size**2))
        self._kept = torch.empty(kept, 3, spec.image_size, spec.image_size, dtype=torch.uint8)
        self._there = np.zeros(kept, bool)

    def __getitem__(self, step: int) -> Batch:
        chosen = self.chosen(step)
        images = torch.stack([self._image(int(i)) for i in chosen]).float()
        if self.config.augment:
            images = augmented(images, np.random.default_rng([*self._seed, 1, step]))
        return Batch(step, images, torch.from_numpy(self.table.labels[self.rows[chosen]]))

    def chosen(self, step: int) -> NDArray[np.int64]:
        """(n,) positions in ``rows`` of joint step ``step``."""
        at = np.arange(step * self.size, (step + 1) * self.size)
        epochs = at // len(self.rows)
        orders = {
            e: np.random.default_rng([*self._seed, 0, e]).permutation(len(self.rows))
            for e in np.unique(epochs).tolist()
        }
        return np.array(
            [orders[e][i] for e, i in zip(epochs.tolist(), (at % len(self.rows)).tolist(), strict=True)], dtype=np.int64
        )

    def _image(self, i: int) -> Tensor:
        """(3, s, s) uint8 of the row at position ``i``."""
        if i < len(self._there) and self._there[i]:
            return self._kept[i]
        image = preprocess(self.table.images.read(int(self.rows[i])), self.spec)
        if i < len(self._there):
            self._kept[i], self._there[i] = image, True
        return image


def augmented(images: Tensor, rng: np.random.Generator) -> Tensor:
    """(n, 3, s, s) -> the same, each image flipped left to right and upside down by chance,
    and its brightness changed."""
    across, down, light = (
        torch.from_numpy(v).view(-1, 1, 1, 1) for v in rng.random((3, len(images)), dtype=np.float32)
    )
    images = torch.where(across < 0.5, images.flip(3), images)
    images = torch.where(down < 0.5, images.flip(2), images)
    return (images * (1 + BRIGHTNESS * (2 * light - 1))).clamp_(0, 255)


class _Remaining:
    """The batches that are left, for a Trainer: also after a checkpoint was loaded, and when the module jumps ahead."""

    def __init__(self, batches: Batches, module: SplitSegment) -> None:
        self.batches, self.module = batches, module

    def __len__(self) -> int:
        return self.module.config.steps

    def __iter__(self) -> Iterator[Batch]:
        step = self.module.next_step
        while step < self.module.config.steps:
            yield self.batches[step]
            step = max(step + 1, self.module.next_step)


# --------------------------------------------------------------------------- the loss


class Loss:
    """Logits (n, C) and labels (n, K) -> the loss of each row (n,).

    multiclass: cross-entropy, C = K. multilabel: the sum over C = K classes of binary cross-entropies. binary: binary
    cross-entropy of one logit, the positive class's. ``counts`` (K,) are the classes' rows over all institutions: class
    k weighs counts_k^-p, all divided by their mean, p = ``class_weights``; a multilabel class weighs its own term.
    Labels are smoothed towards equal probabilities.
    """

    def __init__(self, task: Task, counts: ArrayLike, config: InteractiveConfig) -> None:
        weights = np.maximum(np.asarray(counts, dtype=np.float64), 1.0) ** -config.class_weights
        self.task, self.smoothing = task, config.label_smoothing
        self.weights = torch.from_numpy(weights / weights.mean())
        self.outputs = output_count(len(weights), task)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        weights = self.weights.to(logits)
        if self.task == "multiclass":
            return functional.cross_entropy(
                logits, labels.argmax(1), weight=weights, label_smoothing=self.smoothing, reduction="none"
            )
        target = outcomes(labels, self.task)
        smooth = target.to(logits) * (1 - self.smoothing) + self.smoothing / 2
        terms = functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
        return (terms * (weights if self.task == "multilabel" else weights[labels.argmax(1)][:, None])).sum(1)


def rate_factor(step: int, config: InteractiveConfig) -> float:
    """What the peak learning rates are multiplied by in joint step ``step``: torch's ``OneCycleLR``,
    as a function of the step."""
    if config.schedule == "constant":
        return 1.0
    peak = WARM_UP * config.steps - 1
    low, at = (1 / 25, step / peak) if step < peak else (1 / 250_000, 1 - (step - peak) / (config.steps - 1 - peak))
    return low + (1 - low) * (1 - math.cos(math.pi * at)) / 2


# --------------------------------------------------------------------------- the module


class SplitSegment(lightning.LightningModule):
    """Trains ``segment`` under a head that only ``upper`` sees. ``rows``: how many train rows the institution has
    (its weight in averages).

    ``next_step`` is the joint step that comes next; ``rounds`` how many averages are behind. Raises :class:`FocalError`
    when activations or derivatives would overflow the scale, when a loss or gradient is not finite, and when an average
    is larger than ``max_average_mb``.
    """

    def __init__(
        self, segment: TrainableSegment, upper: Upper, loss: Loss, config: InteractiveConfig, *, rows: int
    ) -> None:
        super().__init__()
        segment.check_average(config.max_average_mb)
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold what trains, not the frozen rest
        self.segment, self.upper, self.loss, self.config, self.rows = segment, upper, loss, config, rows
        self.next_step = self.rounds = 0
        self._anchor = self._parameters_now() if config.proximal else None

    def join(self, step: int, parameters: Array | None = None) -> None:
        """Begin at joint step ``step`` with the average ``parameters``, or with those that are here,
        if ``step`` is still to come."""
        self.next_step = max(self.next_step, step)
        if parameters is not None:
            self._adopt(parameters, self._closed(self.next_step))

    # ----------------------------------------------------------------- one joint step

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        step, images, labels = batch
        if step < self.next_step:  # it was fetched before a jump
            return
        try:
            self._average(self._closed(step))
            loss = self._joint_step(step, images, labels)
        except Skipped as e:
            self.next_step = max(step + 1, e.resume or 0)
            loss = math.nan
        else:
            self.next_step = step + 1
        # Lightning takes "step" for the x axis; it would otherwise count the batches of this process
        self.log_dict({"step": float(step), "rate": self.config.rate * rate_factor(step, self.config)})
        self.log("loss", loss, prog_bar=True)

    def _joint_step(self, step: int, images: Tensor, labels: Tensor) -> float:
        """Mean loss of the batch before the update."""
        where = f"joint step {step}: the"
        activations = self.segment(images)
        sent = sendable(_array(activations), f"{where} activations at the cut", SMALLER)
        logits = torch.from_numpy(self.upper.logits(step, sent)).to(labels.device).requires_grad_()
        losses = self.loss(logits, labels)
        loss = _finite(losses.mean().item(), f"{where} loss is not finite")
        (derivatives,) = torch.autograd.grad(losses.sum(), logits)
        returned = self.upper.gradients(step, sendable(_array(derivatives), f"{where} loss's derivatives", SMALLER))
        _finite(float(returned.sum()), f"{where} gradients that came back are not finite")

        optimizer = self.optimizers()
        assert isinstance(optimizer, lightning.pytorch.core.optimizer.LightningOptimizer)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate_factor(step, self.config)
        optimizer.zero_grad()
        self.manual_backward(activations, gradient=torch.from_numpy(returned).to(activations) / len(images))
        optimizer.step()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [
            {"params": [p for p in part.parameters() if p.requires_grad], "lr": peak, "peak": peak}
            for part, peak in (
                (self.segment.lower, self.config.rate),
                (self.segment.bottleneck, self.config.bottleneck_rate),
            )
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=self.config.weight_decay)

    # ----------------------------------------------------------------- averages

    def on_train_end(self) -> None:
        if self.next_step >= self.config.steps:  # not when a callback stopped early
            self._average(-(-self.config.steps // self.config.average_every))

    def _closed(self, step: int) -> int:
        """How many rounds of averaging lie before joint step ``step``."""
        return step // self.config.average_every

    def _average(self, due: int) -> None:
        """Take part in round ``due``, unless it is behind. Before a step, not after one:
        a checkpoint then holds what was contributed."""
        if due > self.rounds:
            self.rounds = due  # an abandoned round is not repeated
            try:
                self._adopt(self.upper.average(due, self.segment.vector(), self.rows), due)
            except Skipped:
                LOG.warning("average %d was abandoned; this institution goes on with its own parameters", due)

    def _adopt(self, parameters: Array, rounds: int) -> None:
        self.segment.load_vector(parameters)
        self.rounds = rounds
        if self.config.proximal:
            self._anchor = self._parameters_now()

    def _parameters_now(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.segment.trained().values()]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """FedProx (Li et al. 2020): the gradient of mu / 2 |parameters - last average|^2.
        Here, where gradients are no longer scaled."""
        if self._anchor is not None:
            for p, anchor in zip(self.segment.trained().values(), self._anchor, strict=True):
                assert p.grad is not None
                p.grad.add_(p.detach() - anchor.to(p), alpha=self.config.proximal)

    # ----------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {f"segment.{name}": p.detach() for name, p in self.segment.trained().items()}
        checkpoint["joint"] = {"next_step": self.next_step, "rounds": self.rounds, "anchor": self._anchor}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = {f"segment.{name}": p.shape for name, p in self.segment.trained().items()}
        if {name: value.shape for name, value in checkpoint["state_dict"].items()} != own:
            raise FocalError(
                "the checkpoint does not hold the parameters that this run trains",
                hint="it was written with another lower segment or other 'interactive' settings: "
                "remove it to begin again",
            )
        joint = checkpoint["joint"]
        self.next_step, self.rounds, self._anchor = joint["next_step"], joint["rounds"], joint["anchor"]


def _array(values: Tensor) -> Array:
    return values.detach().double().cpu().numpy()


def _finite(value: float, problem: str) -> float:
    if not math.isfinite(value):
        raise FocalError(problem, hint=SMALLER)
    return value


# --------------------------------------------------------------------------- running it


def fit(
    module: SplitSegment,
    batches: Batches,
    *,
    folder: Path,
    start_step: int = 0,
    parameters: Array | None = None,
    device: str = "auto",
    checkpoint_every: int = 1,
    callbacks: Sequence[lightning.Callback] = (),
    loggers: Sequence[Logger] = (),
    **flags: Any,
) -> None:
    """Take part in the joint steps up to the last one, going on from the checkpoint in ``folder`` if there is one.

    ``start_step``: the first step that is still to come; a checkpoint of an earlier one is used, and the steps between
    are left out. ``parameters``: the average to begin with, which wins over a checkpoint's. ``device``: ``auto``,
    ``cpu`` or ``cuda``. A checkpoint is written after every ``checkpoint_every`` steps (0: never). ``loggers``: beside
    the CSV file in ``folder``. Further ``flags`` (``precision``, ``enable_progress_bar``, ...) are the Trainer's own.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    checkpoint = folder / "newest.ckpt"  # written beside it, then renamed over it
    saving = ModelCheckpoint(
        folder, checkpoint.stem, every_n_train_steps=checkpoint_every, enable_version_counter=False
    )
    options: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        **flags,
    }
    with quiet(), interruptible():
        trainer = lightning.Trainer(
            accelerator=accelerator(device),
            devices=1,
            plugins=[LightningEnvironment()],  # on a cluster each party is its own process, not a rank of one job
            max_epochs=1,  # the joint steps, from first to last
            callbacks=[*([saving] if checkpoint_every else []), _Join(start_step, parameters), *callbacks],
            logger=[CSVLogger(folder, name="log", flush_logs_every_n_steps=1), *loggers],
            enable_checkpointing=checkpoint_every > 0,
            **options,
        )
        trainer.fit(
            module,
            _Remaining(batches, module),
            ckpt_path=checkpoint if checkpoint.exists() else None,
            weights_only=True,
        )


class _Join(lightning.Callback):
    """Begins where the joint run is, once a checkpoint has been loaded."""

    def __init__(self, step: int, parameters: Array | None) -> None:
        self.step, self.parameters = step, parameters

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.join(self.step, self.parameters)
