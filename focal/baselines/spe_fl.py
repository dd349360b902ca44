"""SPE-FL: federated averaging of a whole ResNet, with noise on compressed, encrypted updates.

::

    institution   W --epochs of Lightning on own images--> W_i,  update u = W_i - W + memory
                  u --coordinates of this round--> kept --cut to norm clip--> + Poisson noise --> n_i / n of it
                  `--the other coordinates-------> memory, stays here
    sum           W <- W + sum of the parts, at this round's coordinates             EncryptedSum | PlainSum

Gomathi et al., Scientific Reports 16, 10931 (2026): federated averaging of a ResNet-50 on chest X-rays,
Poisson-calibrated noise on clipped updates, which are compressed and summed under homomorphic encryption; they report
99.6 % accuracy on COVID against normal. That is all we know of it, from its abstract. **Everything else is our
choice**, the order of the measures too: figures of this file are not theirs.

**Network.** timm's resnet10t with a quarter of its channels (0.3 million weights instead of 23), for 32 x 32 pixels on
two cores. It starts from a seeded random state: there are no pretrained ResNet weights here. Group norm stands for
batch norm: running means and variances of an institution's images would have to be averaged beside the weights, and
noise could make a variance negative.

**Compression.** ``keep`` of the coordinates, the same ones at every institution, or ciphertexts could not be added: a
seeded permutation of all coordinates is worked off round by round, so that each has its turn every 1 / ``keep`` rounds.
What has no turn waits in a memory that never leaves the institution (error feedback: Seide et al., Interspeech 2014).
Encrypted values are rounded to the grid of :class:`~focal.baselines.encrypted.EncryptedSum`, which makes sums exact and
saves no bytes: a slot costs the same for any number. The sum comes back at the same coordinates.

**Noise.** (P - lambda) / sqrt(lambda), P from Poisson(lambda), has mean 0 and deviation 1; times ``noise``
clip / sqrt(k) on each of k kept coordinates its norm is about ``noise`` times the largest norm of an update.
Cutting and noise come after compression: what leaves has norm at most clip before the noise, what is cut off is
dropped, and no noise waits in a memory. **No epsilon follows from it**: Poisson noise lives on a lattice,
rounds add up, the institution is the unit, and nothing here is accounted for. :mod:`focal.baselines.privacy`
has the baseline with a guarantee.

The server of an encrypted run sees ciphertexts. As in :mod:`focal.baselines.encrypted`,
the institutions see every round's sum.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import lightning
import numpy as np
import timm
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from timm.layers import GroupNorm
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from focal.baselines.encrypted import EncryptedSum
from focal.baselines.federated import Array, PlainSum, Round, Sum
from focal.baselines.privacy import cut
from focal.data.table import Table
from focal.errors import FocalError
from focal.measure.metrics import macro_auroc, outcome_columns
from focal.measure.traffic import NONE, add_up
from focal.task import Task, one_output, outcomes, output_count
from focal.training.extraction import interruptible, quiet
from focal.training.features import accelerator

SIZE = 32
"""Pixels of an image's side."""
CHANNELS = (16, 32, 64, 128)
STEM, GROUPS = 16, 4
POISSON_RATE = 4.0
"""lambda: small enough that the noise is visibly no Gaussian (its skewness is 1/2)."""
SCORED = 256
"""Images scored at once."""


@dataclass(frozen=True)
class Settings:
    """How institutions train, and what they do to an update before it leaves.

    The defaults were chosen on a quarter of PneumoniaMNIST's train images, held out while three institutions trained on
    the others; test rows were not looked at. Tried were clip 1 and 3, keep 0.1, 0.25 and 1, noise 0, 0.3, 1, 3 and 10:
    the default noise is one that cost nothing there, the large one of :data:`ABLATION` is one that did. ``epochs``,
    ``batch`` and ``rate`` are first guesses that learn well.
    """

    rounds: int = 8
    epochs: int = 2
    """Passes over an institution's images in a round."""
    batch: int = 32
    rate: float = 1e-3
    """Step size of AdamW, whose moments start anew in every round."""
    clip: float = 3.0
    """Largest Euclidean norm of what an institution sends."""
    noise: float = 1.0
    """Norm of the noise on an update, in units of ``clip``; 0: none."""
    keep: float = 0.25
    """Share of the coordinates that is sent in a round; 1: no compression."""
    encrypted: bool = True
    """Threshold CKKS; otherwise the server sees every update."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, fine in {
            "rounds": self.rounds >= 1,
            "epochs": self.epochs >= 1,
            "batch": self.batch >= 1,
            "rate": 0 < self.rate < np.inf,
            "clip": 0 < self.clip < np.inf,
            "noise": 0 <= self.noise < np.inf,
            "keep": 0 < self.keep <= 1,
        }.items():
            if not fine:
                raise FocalError(f"SPE-FL: {name} = {getattr(self, name)!r} is out of range")


ABLATION: Mapping[str, Settings] = {
    "spe-fl": Settings(),
    "spe-fl-noiseless": Settings(noise=0.0),
    "spe-fl-noisy": Settings(noise=10.0),
    "spe-fl-plain": Settings(encrypted=False),
    "spe-fl-whole": Settings(keep=1.0),
    "spe-fl-bare": Settings(noise=0.0, keep=1.0, encrypted=False),
}
"""The default, each of its three measures changed alone, and none of them (clipping stays)."""


@dataclass(frozen=True)
class Images:
    """Labelled images."""

    pixels: NDArray[np.uint8]
    """(n, SIZE, SIZE, 3); grey images repeat their channel."""
    labels: NDArray[np.uint8]
    """(n, K)"""


def read_images(table: Table, rows: ArrayLike) -> Images:
    """The table's ``rows``, every image whole and resized. Raises :class:`FocalError` for one that cannot be read."""
    at = np.asarray(rows, dtype=np.int64)
    pixels = [np.asarray(table.images.read(int(row)).resize((SIZE, SIZE)), np.uint8) for row in at]
    return Images(np.array(pixels, np.uint8).reshape(-1, SIZE, SIZE, 3), table.labels[at])


class Measures(NamedTuple):
    """Of the positive class at threshold 0 of the linear output; several classes: of the highest output, macro."""

    accuracy: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class SpeFl:
    """What came of it."""

    scores: Array
    """(n, C) linear outputs on the test images; binary: (n, 1), the positive class."""
    measures: Measures
    rounds: tuple[Round, ...]
    """AUROC on the test images, seconds and every institution's bytes, from the start to each round's end."""


# --------------------------------------------------------------------------- a round


def spe_fl(train: Mapping[str, Images], test: Images, task: Task, settings: Settings, device: str = "auto") -> SpeFl:
    """Train over the institutions ``train`` and score ``test``; on one machine the same seed gives the same
    rounds, encrypted or not.

    Raises :class:`FocalError` for a multilabel task, for an institution without images, and when training diverges.
    """
    names, sizes = tuple(train), {name: len(own.labels) for name, own in train.items()}
    if task == "multilabel":
        raise FocalError(
            "SPE-FL: tells classes apart of which an image has one", hint="use a binary or multiclass data set"
        )
    for name in names:
        if not sizes[name]:
            raise FocalError(
                f"{name}: has no train images", hint="leave that institution out, or mark some of its rows 'train'"
            )
    if settings.encrypted and len(names) < EncryptedSum.least:
        raise FocalError("SPE-FL: an encrypted sum over one institution is its update", hint="set encrypted to False")
    network = new_network(output_count(test.labels.shape[1], task), settings.seed)
    weights = _vector(network)
    memories = {name: np.zeros_like(weights) for name in names}
    rounds: list[Round] = []
    started = time.perf_counter()
    adding: Sum = EncryptedSum(names) if settings.encrypted else PlainSum(names)
    traffic = add_up(dict.fromkeys(names, NONE), adding.setup)
    spent = 0.0
    for r in range(settings.rounds):
        chosen, parts = coordinates(len(weights), settings, r), {}
        for i, name in enumerate(names):
            _load(network, weights)
            before = _vector(network)  # the weights as the network holds them, in single precision
            _fit(network, train[name], task, settings, [settings.seed, 8, r, i], device)
            update = _vector(network) - before
            if not np.isfinite(update).all():
                raise FocalError(f"{name}: training diverged in round {r}", hint="use a smaller rate")
            kept, memories[name] = compress(update + memories[name], chosen)
            noise = poisson_noise(len(chosen), settings, np.random.default_rng([settings.seed, 9, r, i]))
            parts[name] = (cut(kept, settings.clip) + noise) * (sizes[name] / sum(sizes.values()))
        total, moved = adding.add(f"round/{r}", parts)
        holders = adding.holders(names)
        given = adding.give(total, lacking, holders) if (lacking := [n for n in names if n not in holders]) else {}
        traffic = add_up(traffic, moved, given)
        weights[chosen] += total
        spent += time.perf_counter() - started
        _load(network, weights)
        scores = _scores(network, test, device)
        rounds.append(Round(names, macro_auroc(test.labels, scores, task), spent, traffic))
        started = time.perf_counter()  # scoring is not counted
    return SpeFl(scores, measure(test.labels, scores, task), tuple(rounds))


def coordinates(size: int, settings: Settings, r: int) -> NDArray[np.int64]:
    """(k,) which of ``size`` coordinates everybody sends in round ``r``: the next k of a seeded permutation,
    round and round."""
    if settings.keep == 1:
        return np.arange(size)
    k = max(1, round(settings.keep * size))
    return np.random.default_rng([settings.seed, 10]).permutation(size)[np.arange(r * k, (r + 1) * k) % size]


def compress(update: Array, chosen: NDArray[np.int64]) -> tuple[Array, Array]:
    """``update`` (p,) -> what is sent (k,), and what waits (p,); one plus the other is the update."""
    waits = update.copy()
    waits[chosen] = 0.0
    return update[chosen], waits


def poisson_noise(k: int, settings: Settings, rng: np.random.Generator) -> Array:
    """(k,) of mean 0 and deviation ``noise`` clip / sqrt(k)."""
    return (rng.poisson(POISSON_RATE, k) - POISSON_RATE) * (settings.noise * settings.clip / np.sqrt(POISSON_RATE * k))


def measure(labels: ArrayLike, scores: ArrayLike, task: Task) -> Measures:
    """Labels (n, K) and linear outputs (n, C). A class that is never called has precision 0."""
    outcome, value = outcome_columns(labels, scores, task)
    truth, called = (outcome[:, 0], value[:, 0] > 0) if one_output(task) else (outcome.argmax(1), value.argmax(1))
    average = "binary" if one_output(task) else "macro"
    precision, recall, f1, _ = precision_recall_fscore_support(truth, called, average=average, zero_division=0)
    return Measures(float(accuracy_score(truth, called)), float(precision), float(recall), float(f1))


# --------------------------------------------------------------------------- the network


def new_network(outputs: int, seed: int) -> torch.nn.Module:
    """The same random ResNet for the same ``seed``; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(
            "resnet10t",
            pretrained=False,
            num_classes=outputs,
            channels=CHANNELS,
            stem_width=STEM,
            norm_layer=partial(GroupNorm, num_groups=GROUPS),
        )


class _Classifier(lightning.LightningModule):
    """Trains ``network`` on batches of pixels and labels."""

    def __init__(self, network: torch.nn.Module, task: Task, rate: float) -> None:
        super().__init__()
        self.network, self.task, self.rate = network, task, rate

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        pixels, labels = batch
        logits = self.network(_scaled(pixels))
        if one_output(self.task):
            targets = outcomes(labels, self.task)[:, 0]
            return functional.binary_cross_entropy_with_logits(logits[:, 0], targets.to(logits))
        return functional.cross_entropy(logits, labels.argmax(1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.rate)


def _fit(network: torch.nn.Module, own: Images, task: Task, settings: Settings, seed: list[int], device: str) -> None:
    """An institution's epochs of a round."""
    generator = torch.Generator().manual_seed(int(np.random.default_rng(seed).integers(2**62)))
    data = TensorDataset(torch.from_numpy(own.pixels), torch.from_numpy(own.labels))
    batches = BatchSampler(RandomSampler(data, generator=generator), settings.batch, drop_last=False)
    with quiet(), interruptible():
        trainer = lightning.Trainer(
            accelerator=accelerator(device),
            devices=1,
            plugins=[LightningEnvironment()],  # on a cluster this process is not a rank of a job
            max_epochs=settings.epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        # the sampler hands over a batch's rows at once: taken one by one they cost more than a step
        loader = DataLoader(data, sampler=batches, batch_size=None, generator=generator)
        trainer.fit(_Classifier(network.train(), task, settings.rate), loader)
    network.cpu()


def _scores(network: torch.nn.Module, images: Images, device: str) -> Array:
    """(n, C) linear outputs."""
    where = torch.device("cuda" if accelerator(device) == "gpu" else "cpu")
    network.eval().to(where)
    with torch.inference_mode():
        parts = [
            network(_scaled(pixels.to(where))).double().cpu()
            for pixels in torch.from_numpy(images.pixels).split(SCORED)
        ]
    network.cpu()
    return torch.cat(parts).numpy()


def _scaled(pixels: Tensor) -> Tensor:
    """(n, s, s, 3) uint8 -> (n, 3, s, s) of magnitude at most 2."""
    return pixels.permute(0, 3, 1, 2).float() / 63.75 - 2


def _vector(network: torch.nn.Module) -> Array:
    """(p,) float64, a copy."""
    return parameters_to_vector(network.parameters()).detach().double().numpy()


def _load(network: torch.nn.Module, weights: Array) -> None:
    vector_to_parameters(torch.from_numpy(weights).float(), network.parameters())
