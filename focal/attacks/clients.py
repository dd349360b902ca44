"""Honest institutions of plaintext methods, and what leaves them: views are made here and nowhere else.

::

    server's model (any torch module) --> client: loss of its own batch --> gradients, update, noisy update
                                                                              |
                          View(received: arrays by parameter name)  <---------+   the client itself is not in it

A client runs the model that it is sent, as federated learning does, and looks at nothing but its shapes. Losses are
cross-entropies of the row's class, means over the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from focal.attacks.view import View

Update = dict[str, NDArray[np.float32]]
"""Parameter -> its gradient, or its change."""


@dataclass(frozen=True)
class Batch:
    """What an institution trains on; private."""

    images: Tensor
    """(n, 3, s, s) in [0, 1]"""
    labels: Tensor
    """(n,)"""


def gradients(model: nn.Module, batch: Batch) -> Update:
    """FedSGD: the gradient of the mean loss of one batch."""
    model = model.train()
    parameters = dict(model.named_parameters())
    loss = functional.cross_entropy(model(batch.images), batch.labels)
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: (torch.zeros_like(p) if g is None else g).detach().numpy()
        for (name, p), g in zip(parameters.items(), found, strict=True)
    }


def update(model: nn.Module, batch: Batch, size: int, rate: float, epochs: int = 1) -> Update:
    """FedAvg: the change of all parameters after ``epochs`` of SGD in local batches of ``size``."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    own = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(own.parameters(), rate)
    for _ in range(epochs):
        for images, labels in zip(batch.images.split(size), batch.labels.split(size), strict=True):
            optimizer.zero_grad()
            functional.cross_entropy(own(images), labels).backward()
            optimizer.step()
    return {name: (p.detach() - before[name]).numpy() for name, p in own.named_parameters()}


def clipped(sent: Update, clip: float) -> Update:
    """All of an update together, scaled down to Euclidean norm ``clip`` where it is larger."""
    norm = float(np.sqrt(sum(float(np.square(v, dtype=np.float64).sum()) for v in sent.values())))
    return {name: v * np.float32(min(1.0, clip / norm)) for name, v in sent.items()} if norm > 0 else sent


def with_gaussian_noise(sent: Update, clip: float, multiplier: float, rng: np.random.Generator) -> Update:
    """DP-FedAvg without a trusted server: the clipped update under noise of deviation ``multiplier`` ``clip``."""
    deviation = np.float32(multiplier * clip)
    return {name: v + deviation * rng.standard_normal(v.shape, np.float32) for name, v in clipped(sent, clip).items()}


def with_poisson_noise(sent: Update, clip: float, noise: float, keep: float, rng: np.random.Generator) -> Update:
    """SPE-FL's measures (:mod:`focal.baselines.spe_fl`): a share ``keep`` of the coordinates, clipped, under centred
    Poisson noise whose norm is ``noise`` ``clip``. Coordinates that have no turn are 0."""
    from focal.baselines.spe_fl import POISSON_RATE

    turn = {name: rng.random(v.shape, np.float32) < keep for name, v in sent.items()}
    kept = clipped({name: v * turn[name] for name, v in sent.items()}, clip)
    count = sum(int(t.sum()) for t in turn.values())
    scale = noise * clip / np.sqrt(POISSON_RATE * count)
    return {
        name: (v + turn[name] * (rng.poisson(POISSON_RATE, v.shape) - POISSON_RATE) * scale).astype(np.float32)
        for name, v in kept.items()
    }


def added(updates: Sequence[Update]) -> Update:
    """What a secure sum opens."""
    return {name: np.sum([one[name] for one in updates], axis=0) for name in updates[0]}


def seen(party: str, received: Update, sent: nn.Module | None = None) -> View:
    """The view of whoever got ``received``; a server's own model is what it sent."""
    model = {} if sent is None else {name: p.detach().numpy() for name, p in sent.named_parameters()}
    return View(party, dict(received), model, {})


def random_like(sent: Update, rng: np.random.Generator) -> Update:
    """A negative control: noise of each parameter's own deviation, that depends on nobody's image."""
    return {
        name: (rng.standard_normal(v.shape) * (float(np.std(v)) or 1.0)).astype(np.float32) for name, v in sent.items()
    }
