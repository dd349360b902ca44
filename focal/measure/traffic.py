"""Bytes on the wire: of one party, added up over phases, restarts and rounds, and as the other end counts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Field

from focal.config import Model

Bytes = Annotated[int, Field(ge=0)]
Counts = Mapping[str, Mapping[str, int]]
"""Phase -> ``{"up", "down"}``: how a party counts, and what journals and records hold."""


class Traffic(Model):
    """Bytes on the wire, seen from one party."""

    up: Bytes
    down: Bytes

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(up=self.up + other.up, down=self.down + other.down)

    @property
    def mirrored(self) -> Traffic:
        """The same bytes, seen from the other end."""
        return Traffic(up=self.down, down=self.up)


NONE: Final = Traffic(up=0, down=0)


def add_up(*parts: Mapping[str, Traffic]) -> dict[str, Traffic]:
    """Key by key: of parties over rounds, or of phases over parties."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum((part[name] for part in parts if name in part), NONE) for name in names}


def merge(*counts: Counts) -> dict[str, dict[str, int]]:
    """Sum of byte counts by phase."""
    return {phase: traffic.model_dump() for phase, traffic in sorted(add_up(*map(_typed, counts)).items())}


def mirrored(counts: Counts) -> dict[str, dict[str, int]]:
    """Byte counts by phase, seen from the other end."""
    return {phase: traffic.mirrored.model_dump() for phase, traffic in _typed(counts).items()}


def _typed(counts: Counts) -> dict[str, Traffic]:
    return {phase: Traffic(up=ways.get("up", 0), down=ways.get("down", 0)) for phase, ways in counts.items()}


def human_bytes(count: float) -> str:
    """1536 -> '1.5 kB' (decimal units, as networks count)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
