"""Where an interactive run begins: what it takes from a released model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from focal.config import InteractiveConfig
from focal.segments.projection import Projection
from focal.segments.upper import load, model_file
from focal.training.split import Base

VELOCITY = "velocity.npy"
"""Beside ``model.pt``: the head's last step, to go on with its momentum."""


@dataclass(frozen=True)
class Beginning:
    """What a run takes from a released model."""

    projection: Projection
    base: Base
    trained: Mapping[str, torch.Tensor]
    """Of an interactive run: the lower segment's trained parameters."""


def beginning(run: Path, config: InteractiveConfig) -> Beginning:
    """Bottleneck and head of a released model; of an interactive run also the head's velocity and what trained
    of the lower segment."""
    head, _ = load(run)
    # an interactive bottleneck may be without a bound: nothing is clipped at one that no feature reaches
    bound = min(head.bound, float(np.finfo(np.float32).max))
    projection = Projection(
        "whiten", head.matrix.numpy(), head.offset.numpy(), bound, len(head.offset) + 1, (1.0).hex()
    )
    file = model_file(run).with_name(VELOCITY)
    velocity = np.load(file) if file.exists() else None
    return Beginning(projection, Base(head.weights.numpy(), velocity, config.momentum), head.trained)
