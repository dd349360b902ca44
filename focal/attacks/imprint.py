"""Active servers that hide a copying machine in the model: imprint blocks and trap weights.

::

    image x --> h = a (w x) - b_i, i = 1 .. k --relu--> sum --> added to every pixel --> the ordinary network --> loss
                    w x: mean brightness                        (v times it)
    gradient of row i:  sum of g_x x over images brighter than b_i        g_x = d loss / d sum, one number an image
    row i - row i+1  :  images with brightness in bin i                   alone there: (g x) / g = x, to the bit

**Imprint** (Fowl et al., "Robbing the Fed", ICLR 2022). Bins are quantiles of brightness on *public* images, so that n
private images fall into k bins as into k boxes: (1 - 1/k)^(n-1) of them alone. A sum over institutions only adds to
the images in the same bins: secure aggregation does not help, but for the size of n.

**Trap weights** (Boenisch et al., "When the Curious Abandon Honesty", EuroS&P 2023). k random rows whose negative half
is a little larger, so that a row is active for few images of a batch; where for one only, its gradient over its bias's
is that image. The attacker knows such rows by their number: they agree to the bit with other rows that meet the same
image alone.

The server sees only the update: nothing here knows the batch. With random updates (the negative control) quotients are
no images, and :func:`plausible` keeps none or noise.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from focal.attacks.scores import Claims
from focal.attacks.view import View

WEIGHT, BIAS = "block.weight", "block.bias"
SCALE = 1.0
FAINT = 1e-6
"""Bins whose bias gradient is below this part of the largest hold nobody: rounding alone."""
RANGE = 0.05
"""How far beyond [0, 1] pixels of a plausible image may be: rounding."""
ALIKE = 1e-3
"""Root mean square distance below which two quotients are the same image."""
NEGATIVE = 0.97
"""Trap weights: positive entries are this part of the negative ones."""


class Rigged(nn.Module):
    """``network`` behind a block of k neurons that see the whole image. To its client it is one more layer: the k
    activations, times ``gain``, brighten the image."""

    def __init__(self, network: nn.Module, weight: Tensor, bias: Tensor, gain: float) -> None:
        super().__init__()
        self.block = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.block.weight.copy_(weight)
            self.block.bias.copy_(bias)
        self.network, self.gain = network, gain

    def forward(self, images: Tensor) -> Tensor:
        lit = torch.relu(self.block(images.flatten(1))).sum(dim=1)
        return self.network(images + self.gain * lit[:, None, None, None])


def imprint(network: nn.Module, public: Tensor, bins: int, scale: float = SCALE, gain: float = 1e-4) -> Rigged:
    """A model whose update shows the images apart by brightness. ``public`` (p, 3, s, s) sets the bins.

    ``scale``: larger weights move less, in proportion, over the local steps of federated averaging.
    """
    pixels = public[0].numel()
    brightness = np.sort(public.flatten(1).double().mean(dim=1).numpy())
    # quantiles of the sample, its ends drawn out by the spread of a normal distribution: private images may lie beyond
    at = (np.arange(bins) + 0.5) / bins
    middle = np.quantile(brightness, at)
    tails = 3 * brightness.std() / len(brightness)
    edges = np.sort(middle + np.linspace(-tails, tails, bins))
    weight = torch.full((bins, pixels), scale / pixels)
    return Rigged(network, weight, torch.from_numpy(-scale * edges).float(), gain / scale)


def from_imprint(view: View, size: int, most: int) -> Claims:
    """At most ``most`` images (of ``size`` pixels a side) from an update: the bins with the strongest signal that
    hold something that can be an image."""
    weight, bias = (np.asarray(view.received[name]) for name in (WEIGHT, BIAS))
    below = np.vstack([weight[1:], np.zeros_like(weight[:1])])
    rows, signals = weight - below, bias - np.append(bias[1:], np.float32(0))
    return _read(rows, signals, size, most)


def trap(network: nn.Module, size: int, neurons: int, seed: int, gain: float = 1e-3) -> Rigged:
    """A model whose rows are each active for few images."""
    rng = np.random.default_rng([seed, 22])
    pixels = 3 * size * size
    magnitude = np.abs(rng.standard_normal((neurons, pixels), np.float32))
    order = np.argsort(rng.random((neurons, pixels), np.float32), axis=1)
    sign = np.where(order < pixels // 2, np.float32(-1), np.float32(NEGATIVE))
    return Rigged(network, torch.from_numpy(magnitude * sign / pixels), torch.zeros(neurons), gain)


def from_trap(view: View, size: int, most: int) -> Claims:
    """Quotients that several rows agree on first, then the others that can be images."""
    weight, bias = (np.asarray(view.received[name]) for name in (WEIGHT, BIAS))
    return _read(weight, bias, size, most, agreed=True)


def _read(rows: NDArray, signals: NDArray, size: int, most: int, agreed: bool = False) -> Claims:
    """Rows over their signals, (k, p) over (k,), as images: plausible ones, each once."""
    strong = np.abs(signals) > FAINT * np.abs(signals).max(initial=0)
    order = np.flatnonzero(strong)[np.argsort(-np.abs(signals[strong]))]
    found: list[NDArray] = []
    votes: list[int] = []
    for i in order:
        image = rows[i] / signals[i]
        if not plausible(image):
            continue
        same = [j for j, other in enumerate(found) if np.sqrt(np.mean((image - other) ** 2)) < ALIKE]
        if same:
            votes[same[0]] += 1
        else:
            found.append(image)
            votes.append(1)
    chosen = np.argsort([-v for v in votes], kind="stable") if agreed else np.arange(len(found))
    images = np.array([found[i] for i in chosen[:most]], np.float32).reshape(-1, 3, size, size)
    return Claims(torch.from_numpy(images).clamp(0, 1))


def plausible(image: NDArray) -> bool:
    """Is it within [0, 1], but for rounding? Convex mixtures of images are, too."""
    return bool(np.isfinite(image).all() and image.min() > -RANGE and image.max() < 1 + RANGE)
