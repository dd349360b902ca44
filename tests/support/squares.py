"""Images of an easy task: a bright square in the upper or in the lower half."""

from __future__ import annotations

import numpy as np

from focal.baselines.spe_fl import (
    SIZE,
    Images,
)

NAMES = ("a", "b", "c")


def squares(n: int, seed: int) -> Images:
    """Grey noise with a bright square in the upper half (class 0) or in the lower one: easy."""
    rng = np.random.default_rng(seed)
    pixels, lower = rng.integers(0, 120, (n, SIZE, SIZE), dtype=np.uint8), rng.integers(0, 2, n)
    for image, half, (y, x) in zip(pixels, lower, rng.integers(0, SIZE // 2 - 8, (n, 2)), strict=True):
        image[half * SIZE // 2 + y :, 2 * x :][:8, :8] = 250
    return Images(np.repeat(pixels[..., None], 3, axis=3), np.eye(2, dtype=np.uint8)[lower])


def unequal() -> dict[str, Images]:
    """Institutions of unequal size."""
    return {name: squares(n, seed) for seed, (name, n) in enumerate(zip(NAMES, (32, 64, 96), strict=True))}
