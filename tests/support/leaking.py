"""Small images and what an attack on them must find, for attacks that train no network for long."""

from __future__ import annotations

import numpy as np
import torch

from focal.attacks.scores import Claims, Private, judge
from focal.data.synthetic import generate

SIDE, CLASSES = 24, 4


def fundus() -> torch.Tensor:
    """(160, 3, s, s) generated fundus images."""
    table = generate(160, 0)
    pixels = [np.asarray(table.images.read(i).resize((SIDE, SIDE))) for i in range(160)]
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255


def leaks(claims: Claims, images: torch.Tensor, n: int) -> int:
    """How many of the first ``n`` images, of 80 that could be claimed, the claims give away."""
    return judge(claims, Private(images[:80], np.arange(80) % CLASSES, np.arange(n))).leaked.k
