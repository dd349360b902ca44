"""Configurations that come with the package: ``focal train --config retina``.

The name of one is a word without suffix and folder; anything else is a path. Copy one to begin your own.
"""

from __future__ import annotations

import os
from pathlib import Path

from focal.errors import ConfigError

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Those there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(config: str | os.PathLike[str]) -> Path:
    """The file of a packaged configuration's name, or the path as it is.
    Raises :class:`ConfigError` for an unknown name."""
    path = Path(config)
    if path.suffix or path.name != os.fspath(config):
        return path
    if path.name not in names():
        raise ConfigError(
            f"there is no configuration '{path}'; known are {', '.join(names())}, or give a file (my.yaml)"
        )
    return FOLDER / f"{path}.yaml"
