"""Passive servers that look for the images whose gradients they were sent.

::

    guess x --client's model--> gradient(x) --1 - cosine(gradient(x), received)--+--> Adam on x, sign of the step
       ^                                     + total variation of x -------------+        |
       +----------------------------------------------------------------------------------+

Geiping et al., "Inverting Gradients", NeurIPS 2020: cosine distance and total variation, on the sign of the gradient.
The labels of a batch are known, or read off the last bias (Zhao et al., "iDLG", 2020: it is negative for the class that
is there, of a single image). One image per gradient, or a small batch; larger ones blur (Huang et al., NeurIPS 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from focal.attacks.scores import Claims
from focal.attacks.view import View


@dataclass(frozen=True)
class Search:
    """How long, and how smooth."""

    steps: int = 300
    rate: float = 0.05
    variation: float = 1e-2
    """Weight of the total variation."""


def small_network(classes: int, size: int, seed: int, width: int = 16) -> nn.Module:
    """A convolutional network of the kind that the literature inverts: smooth units, no pooling, one linear layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(width * (size // 4) ** 2, classes),
        )


def label_of(view: View) -> int:
    """The class of a single image, from the gradient of the last bias."""
    last = [name for name in view.received if name.endswith("bias")][-1]
    return int(np.argmin(view.received[last]))


def invert(view: View, model: nn.Module, labels: Tensor | None, size: int, search: Search, seed: int) -> Claims:
    """The batch (as many images as ``labels``; without them one) whose gradient under ``model`` is the received one."""
    labels = torch.tensor([label_of(view)]) if labels is None else labels
    parameters = [p for _, p in model.named_parameters()]
    wanted = [torch.from_numpy(np.array(view.received[name])) for name, _ in model.named_parameters()]
    norm = torch.sqrt(sum((w.square().sum() for w in wanted), torch.zeros(())))
    draw = torch.Generator().manual_seed(seed)
    guess = torch.full((len(labels), 3, size, size), 0.5) + 0.1 * torch.randn(
        len(labels), 3, size, size, generator=draw
    )
    guess.requires_grad_()
    optimizer = torch.optim.Adam([guess], search.rate)
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [search.steps * part // 8 for part in (3, 5, 7)], gamma=0.3
    )
    for _ in range(search.steps):
        found = torch.autograd.grad(functional.cross_entropy(model(guess), labels), parameters, create_graph=True)
        inner = sum(((f * w).sum() for f, w in zip(found, wanted, strict=True)), torch.zeros(()))
        length = torch.sqrt(sum((f.square().sum() for f in found), torch.zeros(())))
        loss = 1 - inner / (norm * length + 1e-12) + search.variation * total_variation(guess)
        (step,) = torch.autograd.grad(loss, guess)
        guess.grad = step.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            guess.clamp_(0, 1)
    return Claims(guess.detach(), np.arange(len(labels)) if len(labels) == 1 else None)


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours."""
    return images.diff(dim=-2).abs().mean() + images.diff(dim=-1).abs().mean()
