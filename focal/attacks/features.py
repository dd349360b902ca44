"""From what leaves an institution, row by row, to its images: features, gradients of a head, anything.

::

    attacker's own images --the same map--> signals (p, d) --+--> decoder: signals -> pixels      ridge or a network
                                            images  (p, ..)--+        |
    victim's view ------------------------> signals (n, d) -----------+--> claims, row by row

The decoder is trained on **public** images only, and chosen on a part of them that was held out. Signals are whatever
is there for each row: pooled features of plaintext split learning, columns after the projection, slots of a ciphertext.
Where signals say nothing, the best decoder is the mean image, and that is what the choice on held-out images finds.

**A head's gradient** over frozen features is sum_b delta_b f_b'. Of one row, the class row of its weights' gradient
over that of the bias is f, to the bit (as in iDLG-like attacks, and as MAUI, arXiv 2509.11451, begins for a head over a
frozen foundation model; its image prior is here the decoder). Of a batch, each class gives one mixture of its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from focal.attacks.scores import Claims
from focal.attacks.view import View

Array = NDArray[np.float64]

RIDGES = (1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Weights that are tried, in units of the standardised signals' variance."""
HELD = 5
"""One public image in so many chooses the decoder."""
COMPONENTS = 128
"""Principal components of public images that the network predicts."""
HIDDEN, STEPS, BATCH = 256, 400, 128
LEAST = 1e-9


@dataclass(frozen=True)
class Decoder:
    """Signals to images, fitted on pairs of the attacker's own."""

    centre: Array
    scale: Array
    mean: Array
    weights: Array
    """(d, pixels) of the ridge regression."""
    network: nn.Module | None
    basis: Array
    """(components, pixels) of what the network adds."""
    shape: tuple[int, ...]

    @classmethod
    def fit(cls, signals: Array, images: Tensor, seed: int) -> Decoder:
        """``signals`` (p, d) and the ``images`` (p, 3, s, s) that they were made of."""
        held = np.random.default_rng([seed, 23]).permutation(len(signals)) % HELD == 0
        pixels = images.flatten(1).double().numpy()
        tried = [cls._ridge(signals[~held], pixels[~held], weight, images.shape[1:]) for weight in RIDGES]
        errors = [one._error(signals[held], pixels[held]) for one in tried]
        best = int(np.argmin(errors))
        nonlinear = cls._network(tried[best], signals[~held], pixels[~held], seed)
        if nonlinear._error(signals[held], pixels[held]) < errors[best]:
            return nonlinear
        return cls._ridge(signals, pixels, RIDGES[best], images.shape[1:])

    def __call__(self, signals: Array) -> Tensor:
        """(n, d) -> (n, 3, s, s) in [0, 1]"""
        found = torch.from_numpy(self._pixels(signals)).float()
        return found.reshape(-1, *self.shape).clamp(0, 1)

    def _pixels(self, signals: Array) -> Array:
        x = (signals - self.centre) / self.scale
        out = x @ self.weights + self.mean
        if self.network is not None:
            with torch.inference_mode():
                out = out + self.network(torch.from_numpy(x).float()).double().numpy() @ self.basis
        return out

    def _error(self, signals: Array, pixels: Array) -> float:
        return float(np.mean((self._pixels(signals) - pixels) ** 2))

    @classmethod
    def _ridge(cls, signals: Array, pixels: Array, weight: float, shape: torch.Size) -> Decoder:
        centre, scale = signals.mean(axis=0), signals.std(axis=0) + LEAST * (1 + np.abs(signals).max())
        x, mean = (signals - centre) / scale, pixels.mean(axis=0)
        kernel = x.T @ x + weight * len(x) * np.eye(x.shape[1])
        return cls(centre, scale, mean, np.linalg.solve(kernel, x.T @ (pixels - mean)), None, np.empty(0), tuple(shape))

    @classmethod
    def _network(cls, ridge: Decoder, signals: Array, pixels: Array, seed: int) -> Decoder:
        """What is left of the pixels after the ridge regression, in their principal components, by a network."""
        left = pixels - ridge._pixels(signals)
        values, vectors = np.linalg.eigh(left @ left.T)
        kept = values.argsort()[::-1][: min(COMPONENTS, len(left) - 1)]
        basis = (vectors[:, kept] / np.sqrt(np.maximum(values[kept], LEAST))).T @ left
        wanted = torch.from_numpy(left @ basis.T).float()
        size = float(wanted.std()) or 1.0
        x = torch.from_numpy((signals - ridge.centre) / ridge.scale).float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            last = nn.Linear(HIDDEN, wanted.shape[1])
            network = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.GELU(), nn.Dropout(0.2), last)
            optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-2)
            for _ in range(STEPS):
                at = torch.randint(len(x), (BATCH,))
                optimizer.zero_grad()
                (network(x[at]) - wanted[at] / size).square().mean().backward()
                optimizer.step()
        with torch.no_grad():
            last.weight.mul_(size)
            last.bias.mul_(size)
        return cls(ridge.centre, ridge.scale, ridge.mean, ridge.weights, network.eval(), basis, ridge.shape)


# --------------------------------------------------------------------------- a head's gradient


def head_gradient(features: Array, labels: NDArray[np.int64], weights: Array, bias: Array) -> dict[str, Array]:
    """What an institution sends of a softmax head (C, d) over frozen ``features`` (n, d): the mean gradient."""
    z = features @ weights.T + bias
    p = np.exp(z - z.max(axis=1, keepdims=True))
    delta = p / p.sum(axis=1, keepdims=True) - np.eye(len(bias))[labels]
    return {"weight": delta.T @ features / len(features), "bias": delta.mean(axis=0)}


def from_head(view: View, most: int) -> Array:
    """(m, d) features: of each class whose bias's gradient is negative, one (that class has rows in the batch); at most
    ``most``, the strongest first."""
    weight, bias = np.asarray(view.received["weight"]), np.asarray(view.received["bias"])
    there = np.argsort(bias)[: min(most, int((bias < -LEAST).sum()))]
    return weight[there] / bias[there, None]


def claims(decoder: Callable[[Array], Tensor], signals: Array, ordered: bool) -> Claims:
    """An image for each row of ``signals``."""
    return Claims(decoder(signals), np.arange(len(signals)) if ordered else None)
