"""A passive server and a vision transformer: position embeddings give the image away in closed form.

::

    token t:  z_t = E p_t + e + pos_t          p_t (P,) the patch's pixels, E (D, P) the patch embedding
    gradients of one image, summed over nothing else:
        pos_t  ->  g_t = d loss / d z_t        (T, D), all of it: a position belongs to one patch
        E      ->  sum_t g_t p_t' = G' X       (D, P), X (T, P) the whole image in patches
    X = pinv(G') (G' X)                        exact where G has rank T, so T <= D

The observation that position embeddings hand out d loss / d z is APRIL's (Lu et al., CVPR 2022). Its closed form
solves the attention layer and needs one without a residual path; put into the patch embedding instead, as here, it
holds for an unmodified ViT, whatever lies above. Batches of one image; of more, pos_t is a sum, the quotient a mixture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from focal.attacks.scores import Claims
from focal.attacks.view import View

POSITIONS, PATCHES = "pos_embed", "patch_embed.proj.weight"
TRUNCATE = 1e-7
"""Singular values below this part of the largest are rounding of single precision."""


class Scaled(nn.Module):
    """A ViT that takes images in [0, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(2 * images - 1)


def from_positions(view: View, size: int, prefix: str = "network.") -> Claims:
    """The image behind one gradient of a :class:`Scaled` timm ViT; ``size``: its side."""
    g: Any = np.asarray(view.received[prefix + POSITIONS], np.float64)[0]
    products = np.asarray(view.received[prefix + PATCHES], np.float64)
    dim, channels, side, _ = products.shape
    g = g[len(g) - (size // side) ** 2 :]  # without the class token, which no pixel enters
    patches = np.linalg.pinv(g.T, rcond=TRUNCATE) @ products.reshape(dim, -1)
    across = size // side
    image = patches.reshape(across, across, channels, side, side).transpose(2, 0, 3, 1, 4).reshape(channels, size, size)
    return Claims(((torch.from_numpy(image).float() + 1) / 2).clamp(0, 1)[None], np.arange(1))
