"""``summary.json``: what a run reached and what it cost, as a contract that other programs may rely on.

Local runs see every institution's data and can compare; on several machines an institution scores its own test rows
and leaves out what it cannot know::

    local run          protocol dataset auroc{encrypted, plaintext_twin, institutions, pooled_plaintext} ...
                       max_abs_weight_error
    several machines   protocol dataset auroc{encrypted}                                                  ...

Only aggregates are written: no file names, no patient ids, no per-row values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from focal.config import Model, Name, Protocol, Text
from focal.errors import FocalError
from focal.files import private_write
from focal.measure.traffic import Traffic
from focal.reading import explain

FILE = "summary.json"

Score = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[Score, Score]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds_ = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Phase = Literal["keys", "moments", "upload", "refresh", "release", "openings", "average"]

PHASES: tuple[Phase, ...] = ("keys", "moments", "upload", "refresh", "release")
"""Phases every run has; the interactive protocol adds ``openings`` and ``average``."""


class Auroc(Model):
    """Macro one-vs-rest AUROC on the test rows; binary: the positive class."""

    encrypted: Score
    plaintext_twin: Score | None = None
    institutions: dict[Name, Score] | None = None
    pooled_plaintext: Score | None = None
    others: dict[Name, Score] | None = None
    """Whatever else a run was asked to compare with: ``fedavg``, and released models of other runs."""


class AurocInterval(Model):
    """95 % intervals of the same, by bootstrap over patients."""

    encrypted: Interval
    plaintext_twin: Interval | None = None
    institutions: dict[Name, Interval] | None = None
    pooled_plaintext: Interval | None = None
    others: dict[Name, Interval] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> AurocInterval:
        single = [self.encrypted, self.plaintext_twin, self.pooled_plaintext]
        single += [*(self.institutions or {}).values(), *(self.others or {}).values()]
        if any(interval is not None and interval[0] > interval[1] for interval in single):
            raise ValueError("an interval must be [low, high]")
        return self


class Difference(Model):
    """The encrypted model's AUROC minus another's on the same rows: paired bootstrap over patients
    (:func:`focal.measure.metrics.paired`)."""

    difference: Annotated[float, Field(ge=-1, le=1)]
    ci95: tuple[Annotated[float, Field(ge=-1, le=1)], Annotated[float, Field(ge=-1, le=1)]]
    p: Score
    """Two-sided."""


class Seconds(Model):
    """Wall-clock seconds of the phases, as the whole run saw them."""

    keys: Seconds_
    features: Seconds_
    upload: Seconds_
    train: Seconds_
    release: Seconds_
    total: Seconds_


class PartyTraffic(Traffic):
    """One party's bytes, in all and by phase."""

    by_phase: dict[Phase, Traffic]

    @model_validator(mode="after")
    def _phases(self) -> PartyTraffic:
        missing = [phase for phase in PHASES if phase not in self.by_phase]
        if missing:
            raise ValueError(f"by_phase lacks {', '.join(missing)}")
        return self


class Release(Model):
    """How the one opening was protected."""

    flooding_bits: Finite
    """kappa: statistical security of the noise that hides each key share."""
    precision_bits: Finite
    """Bits after the point that are left in the released weights."""
    openings: Annotated[int, Field(ge=0)]
    """Ciphertexts that were opened."""


class Guard(Model):
    """Who answered refreshes last, and what that bounds (:class:`focal.custody.refresh.Guard`): exponents of two."""

    name: Name
    items: Annotated[int, Field(ge=1)]
    """Refreshes of the run."""
    phase_bits: Finite
    """Largest coefficient of an honest request."""
    others_mask_bits: Finite
    limit_bits: Finite
    """T: what it accepted was smaller."""
    mask_bits: Finite
    hiding_bits: Finite
    """Distance within which another custodian's mask alone hides an honest request, per coefficient."""
    leak_bits_per_item: Finite
    """Distance of its answer from one that is made without its share."""
    leak_bits: Finite
    answers_bits: Finite
    """Bits that its answering or refusing tells, at most."""


class Summary(Model):
    """What ``summary.json`` holds, in this order."""

    protocol: Protocol
    dataset: Annotated[str, Field(min_length=1)]
    auroc: Auroc
    auroc_ci95: AurocInterval
    encrypted_minus: dict[Name, Difference] | None = None
    """By the other model's name: ``plaintext_twin``, ``pooled_plaintext``, an institution, one of ``auroc.others``."""
    seconds: Seconds
    bytes: dict[Name, PartyTraffic]
    steps: Annotated[int, Field(ge=1)]
    params: dict[str, Any] = Field(min_length=1)
    """Ring, scale, layout, R and the like: numbers and names, nothing about patients."""
    security_bits: Finite
    max_abs_weight_error: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    release: Release
    verify: dict[Name, Literal["lockstep", "off"]] = Field(min_length=2)
    guard: Guard | None = None
    left_out: dict[Name, Text] | None = None
    """Institutions of the manifest without whose rows the model was made, and why; absent where there are none."""

    @model_validator(mode="after")
    def _fits(self) -> Summary:
        compared = {
            "auroc.institutions": self.auroc.institutions,
            "auroc.plaintext_twin": self.auroc.plaintext_twin,
            "auroc.pooled_plaintext": self.auroc.pooled_plaintext,
            "max_abs_weight_error": self.max_abs_weight_error,
        }
        absent = [name for name, value in compared.items() if value is None]
        if absent and len(absent) < len(compared):
            raise ValueError(f"{', '.join(absent)} missing: a local run has all of {', '.join(compared)}, another none")
        if self.local:
            parties = {*(self.auroc.institutions or {}), *self.verify, "server"}
            unknown = sorted(parties - set(self.bytes))
            if unknown:
                raise ValueError(f"bytes lacks {', '.join(unknown)}")
        json.dumps(self.params, allow_nan=False)
        return self

    @property
    def local(self) -> bool:
        """Whether one machine saw all data and could compare."""
        return self.auroc.institutions is not None

    @property
    def left_out_lines(self) -> list[str]:
        """Reason by reason, without whose rows the model was made."""
        why: dict[str, list[str]] = {}
        for name, reason in (self.left_out or {}).items():
            why.setdefault(reason, []).append(name)
        return [
            f"{', '.join(names[:10])}{f' and {len(names) - 10} others' if len(names) > 10 else ''}: {reason}"
            for reason, names in why.items()
        ]

    @property
    def unverified(self) -> bool:
        """Whether the server is trusted to follow the protocol, because no custodian re-runs its steps."""
        return set(self.verify.values()) == {"off"}


def build_summary(
    *,
    protocol: Protocol,
    dataset: str,
    auroc: Auroc,
    auroc_ci95: AurocInterval,
    seconds: Mapping[str, float],
    traffic: Mapping[str, Mapping[str, Mapping[str, int]]],
    steps: int,
    params: Mapping[str, Any],
    security_bits: float,
    release: Mapping[str, float],
    verify: Mapping[str, str],
    guard: Mapping[str, Any] | None = None,
    encrypted_minus: Mapping[str, Difference] | None = None,
    left_out: Mapping[str, str] | None = None,
    max_abs_weight_error: float | None = None,
) -> Summary:
    """Assemble the contract. ``traffic`` maps party -> phase -> ``{"up", "down"}``;
    phases without bytes and the totals are filled in.

    Raises :class:`FocalError` naming the field when a value does not fit:
    a run must not end with a summary that nobody can read.
    """
    content = {
        "protocol": protocol,
        "dataset": dataset,
        "auroc": auroc.model_dump(),
        "auroc_ci95": auroc_ci95.model_dump(),
        "encrypted_minus": {name: found.model_dump() for name, found in (encrypted_minus or {}).items()} or None,
        "seconds": dict(seconds),
        "bytes": {party: _party_traffic(phases) for party, phases in traffic.items()},
        "steps": steps,
        "params": dict(params),
        "security_bits": security_bits,
        "max_abs_weight_error": max_abs_weight_error,
        "release": dict(release),
        "verify": dict(verify),
        "guard": dict(guard) if guard else None,
        "left_out": dict(left_out) if left_out else None,
    }
    return _validated(content, FILE)


def _party_traffic(phases: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    by_phase: dict[str, dict[str, int]] = {phase: {"up": 0, "down": 0} for phase in PHASES}
    for (
        phase,
        both,
    ) in phases.items():  # a party names its phases itself: what the contract does not know counts as set-up
        entry = by_phase.setdefault(phase if phase in get_args(Phase) else "keys", {"up": 0, "down": 0})
        for way in ("up", "down"):
            entry[way] += both[way]
    return {
        "up": sum(t["up"] for t in by_phase.values()),
        "down": sum(t["down"] for t in by_phase.values()),
        "by_phase": by_phase,
    }


def _validated(content: object, source: Path | str) -> Summary:
    try:
        return Summary.model_validate(content)
    except ValidationError as e:
        raise explain(e, source) from None


def write_summary(summary: Summary, run: Path) -> Path:
    """Write ``summary.json`` into the run folder, 0600, whole or not at all; returns its path.
    Absent values are left out."""
    path = run / FILE
    private_write(path, summary.model_dump_json(indent=2, exclude_none=True).encode() + b"\n")
    return path


def read_summary(run: Path | str) -> Summary:
    """Read and validate a run folder's ``summary.json`` (or the file).
    Raises :class:`FocalError` naming file and field."""
    path = Path(run)
    path = path / FILE if path.is_dir() else path
    try:
        content = json.loads(path.read_text(), parse_constant=lambda _: math.nan)
    except OSError as e:
        raise FocalError(
            f"{path}: cannot be read ({e.strerror})", hint="give the folder of a run that has finished (runs/NAME)"
        ) from None
    except ValueError:
        raise FocalError(f"{path}: is not JSON", hint="the run wrote it whole; restore it from there") from None
    return _validated(content, path)
