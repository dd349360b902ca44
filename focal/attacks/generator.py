"""A second kind of decoder: a convolutional network from signals to images, trained on pairs of the attacker's own.

::

    signals (d) --two layers--> 8 x 8 maps --convolutions, twice as large each time--> 32 x 32 --> whole size
                                                       images' mean is added

:class:`focal.attacks.features.Decoder` begins with a ridge regression, and so would miss what is in no single signal.
This one has no linear part that must succeed first, sees pixels as pixels, and is kept as it was when public images
that were held out looked best; it never falls back on anything. Signals are clipped to a few deviations, or one
outlier decides a step.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Array = NDArray[np.float64]

HELD, LOOK, BATCH, CLIP = 5, 50, 64, 5.0
"""One public image in so many is held out; steps between two looks at them; rows of a step; deviations."""
WIDTH, SIDE = 64, 8
"""Channels and side of the smallest maps."""


@dataclass(frozen=True)
class Generator:
    """Signals to images, by a network."""

    centre: Array
    scale: Array
    network: nn.Module
    mean: Tensor

    @classmethod
    def fit(cls, signals: Array, images: Tensor, seed: int, steps: int = 500) -> Generator:
        """``signals`` (p, d) and the ``images`` (p, 3, s, s) that they were made of."""
        held = torch.from_numpy(np.random.default_rng([seed, 40]).permutation(len(signals)) % HELD == 0)
        centre, scale = signals.mean(axis=0), signals.std(axis=0) + 1e-9 * (1 + np.abs(signals).max())
        x, mean = _standard(signals, centre, scale), images[~held].mean(dim=0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _network(x.shape[1], images.shape[-1])
            optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
            least, best = float("inf"), network
            inside = (~held).nonzero()[:, 0]
            for step in range(1, steps + 1):
                at = inside[torch.randint(len(inside), (BATCH,))]
                optimizer.zero_grad()
                functional.mse_loss(network(x[at]) + mean, images[at]).backward()
                optimizer.step()
                if step % LOOK == 0 or step == steps:
                    found = cls(centre, scale, network.eval(), mean)
                    error = float(functional.mse_loss(found(signals[held.numpy()]), images[held]))
                    network.train()
                    if error < least:
                        least, best = error, copy.deepcopy(network).eval()
        return cls(centre, scale, best, mean)

    def __call__(self, signals: Array) -> Tensor:
        """(n, d) -> (n, 3, s, s) in [0, 1]"""
        x = _standard(signals, self.centre, self.scale)
        with torch.inference_mode():
            parts = [self.network(part) for part in x.split(BATCH)]
        return (torch.cat(parts) + self.mean).clamp(0, 1)


def _standard(signals: Array, centre: Array, scale: Array) -> Tensor:
    return torch.from_numpy(((signals - centre) / scale).clip(-CLIP, CLIP)).float()


def _network(dim: int, side: int) -> nn.Module:
    def larger(into: int, out: int) -> list[nn.Module]:
        return [nn.Upsample(scale_factor=2), nn.Conv2d(into, out, 3, padding=1), nn.GELU()]

    return nn.Sequential(
        nn.Linear(dim, 128), nn.GELU(), nn.Dropout(0.1),
        nn.Linear(128, WIDTH * SIDE * SIDE), nn.GELU(), nn.Unflatten(1, (WIDTH, SIDE, SIDE)),
        *larger(WIDTH, WIDTH // 2), *larger(WIDTH // 2, WIDTH // 4),
        nn.Conv2d(WIDTH // 4, 3, 3, padding=1),
        nn.Upsample(size=(side, side), mode="bilinear", align_corners=False),
    )  # fmt: skip
