"""What attacks recovered, as a file: ``leaks.json`` of ``focal attack``, which reports and studies read.

One :class:`Leak` is one attack on one view with one seed: counts, never an image.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from focal.config import Hex32, Model
from focal.errors import FocalError

FILE = "leaks.json"
"""In the folder of results; of a run, in its folder ``attacks``."""
FOLDER = "attacks"

MARGIN = 0.1
"""How much larger than the control's an AUC must be to count as found."""

Share = Annotated[float, Field(ge=0, le=1)]


class Counted(Model):
    """k of n images, with Wilson's 95 % interval."""

    k: int = Field(ge=0)
    n: int = Field(ge=1)
    low: Share
    high: Share

    @property
    def text(self) -> str:
        """``0 of 512 (at most 0.7 %)``"""
        if self.k == 0:
            return f"0 of {self.n} (at most {100 * self.high:.2g} %)"
        return f"{self.k} of {self.n} ({100 * self.low:.1f} to {100 * self.high:.1f} %)"


class Separated(Model):
    """How well a score tells two kinds of rows apart."""

    auc: Share
    tpr: Share
    """Where 1 % of the others are taken for positive."""
    n: int = Field(ge=2)
    """Rows of both kinds together."""

    @property
    def error(self) -> float:
        """Standard error of the AUC of a score that tells nothing, of as many rows of one kind as of the other
        (Bamber, Journal of Mathematical Psychology 12 (1975))."""
        return math.sqrt((self.n + 1) / (3 * self.n**2))


class Relations(Model):
    """Small combinations of ring elements that a run publishes; one is enough to spell out a secret."""

    found: int = Field(ge=0)
    looked: int = Field(ge=1)
    """Polynomials of parties, each under every automorphism."""

    @property
    def text(self) -> str:
        return f"{self.found} small combinations of {self.looked} polynomials"


class Leak(Model):
    """What one attack made of one view."""

    version: Literal[1] = 1
    name: str
    """``fedsgd.imprint``"""
    method: str
    """What was attacked."""
    title: str
    threat: str
    """Who attacks: a threat model's name."""
    active: bool
    seed: int
    configuration: Hex32
    assumes: str
    """Batch size, local steps, labels, pixels: what the number depends on."""
    teeth: str
    """Name of the attack whose count shows that this one works where there is something to see; its own, where that is
    this very row."""
    reproduced: str | None = None
    """What ``focal reproduce`` calls the method."""
    images: Counted | None = None
    mean: Counted | None = None
    """Of who claims the mean public image for everybody."""
    random: Counted | None = None
    """Of who claims public images at random."""
    control: Counted | None = None
    """Of the same attack on updates, or signals, that depend on no image."""
    psnr: float | None = None
    ssim: float | None = None
    separated: Separated | None = None
    control_separated: Separated | None = None
    correlation: float | None = None
    """Of claimed and true features."""
    relations: Relations | None = None
    seconds: float = Field(ge=0)

    @property
    def beats(self) -> bool:
        """Is the count above both baselines beyond chance: its interval's low end above the better one's share?"""
        if self.images is None:
            return False
        return self.images.low > max(c.k / c.n for c in (self.mean, self.random) if c is not None)

    @property
    def succeeds(self) -> bool:
        """Did the attack find anything: images beyond the baselines, or rows told apart beyond the control?"""
        if self.relations is not None:
            return self.relations.found > 0
        if self.separated is None or self.control_separated is None:
            return self.beats
        seen, control = self.separated, self.control_separated
        told = seen.auc > 0.5 + 3 * seen.error and seen.auc > control.auc + MARGIN
        return self.beats or told


class Leaks(Model):
    """All that a folder of results holds."""

    version: Literal[1] = 1
    made: str
    data: str
    leaks: tuple[Leak, ...]

    def evidence(self, leak: Leak) -> str:
        """Why a row in which nothing was found is no evidence for its method; empty where it is, or something was."""
        if leak.succeeds:
            return ""
        positive = [one for one in self.leaks if one.name == leak.teeth]
        if not positive:
            return f"its positive case, {leak.teeth}, was not run"
        return "" if any(one.succeeds for one in positive) else f"no evidence: {leak.teeth} found nothing either"


def read_leaks(folder: Path) -> Leaks | None:
    """What ``focal attack`` left in ``folder``, if anything. Raises :class:`FocalError` for a damaged file."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return Leaks.model_validate_json(path.read_bytes())
    except ValidationError:
        raise FocalError(f"{path}: is not what this version of 'focal attack' writes", hint="run it again") from None
