"""Threat models: YAML files that say who attacks, how, and what they know before they begin.

::

    who: [server, hospital]          roles that pool their views
    active: false                    an active server chooses the model that clients run
    knows:
      labels: false                  of the rows that are attacked
      batch_size: true
      public_images: 1275            of other patients, with their classes

Those that come with the package are named by their file; ``focal attack --threat FILE`` gives another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from focal.attacks.threats import FOLDER
from focal.config import Model
from focal.errors import ConfigError
from focal.reading import read

Role = Literal["server", "custodian", "hospital", "outsider"]


class Knowledge(Model):
    """What an attacker has beside the view."""

    labels: bool = False
    """The classes of the rows that are attacked."""
    batch_size: bool = True
    """How many images are behind an update. Without it, an attack may claim as many as it likes; the first that many
    are counted."""
    public_images: int = Field(2000, ge=16)
    """Images of other patients that decoders, bins and shadow heads are made from, at most."""


class Threat(Model):
    """One threat model."""

    name: str
    who: tuple[Role, ...] = Field(min_length=1)
    """Who colludes. Several custodians are all but one, several hospitals are all but the one that is attacked."""
    all_but_one: bool = False
    """Of the last role in ``who``: all but one collude, instead of a single one."""
    all_keys: bool = False
    """All custodians collude: nothing is claimed against them, and attacks must succeed."""
    active: bool = False
    """Whether they deviate: an active server sends a model of its choice."""
    knows: Knowledge = Knowledge()


def names() -> list[str]:
    """Threat models that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(name: str | Path) -> Threat:
    """A packaged threat model's name, or a file. Raises :class:`ConfigError` for an unknown name or field."""
    path = Path(name)
    if not path.suffix:
        if str(name) not in names():
            raise ConfigError(f"there is no threat model '{name}'; known are {', '.join(names())}, or give a file")
        path = FOLDER / f"{name}.yaml"
    return read(Threat, path)
