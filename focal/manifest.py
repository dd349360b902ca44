"""The manifest: everything the members of a consortium agree on before anything secret exists, and sign.

::

    RunConfig --draft--> Manifest --layout settled--> --signed by every member--> the same bytes everywhere

What is signed is :meth:`Manifest.canonical`. Its fields are those of every protocol; one that only another protocol
reads must be empty, so that nobody signs what nobody keeps to.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, model_validator

from focal import framing
from focal.config import (
    WHITEN_FLOOR,
    CkksConfig,
    Family,
    Hex32,
    InteractiveConfig,
    Model,
    Name,
    Positive,
    ProjectionConfig,
    Protocol,
    SegmentOptions,
    Text,
    TrainingConfig,
)
from focal.errors import ConfigError
from focal.exchange import usable
from focal.files import canonical_json
from focal.task import Task, fits, output_count

OWN_FIELDS: dict[Protocol, tuple[str, ...]] = {
    "blind": ("layout", "share_blocks", "closing", "pooled_by", "pooled_until"),
    "interactive": ("interactive", "start"),
}
"""The fields that only a manifest of this protocol has. It needs the first."""


class Member(Model):
    """One party of the consortium with its public keys."""

    name: Name
    role: Literal["server", "institution", "custodian"]
    sign: Hex32
    """Ed25519 verification key."""
    seal: Hex32
    """X25519 public key: sealed messages and pairwise masks."""
    curve: Annotated[Text, Field(min_length=40, max_length=40)]
    """CurveZMQ public key (Z85)."""
    endpoint: Text | None = None
    """Server: where the others dial to, ``tcp://host:port``."""
    rows: int | None = Field(None, ge=1)
    """Institution: the number of its training rows."""
    verify: Literal["off", "lockstep"] | None = None
    """Custodian: whether it re-runs every step before it answers."""
    clinic: bool = False
    """Institution that comes once: it takes no part in the run id, nor in what is agreed from everybody's features,
    need not sign, and may stay away. Its ``rows`` are as many as it may bring."""
    guard: bool = False
    """Custodian that verifies: it answers every refresh last, and only when what is to be refreshed is small
    (focal.custody.refresh)."""

    @model_validator(mode="after")
    def _fits(self) -> Member:
        if self.guard and self.verify != "lockstep":
            raise ValueError(f"member '{self.name}': a guard is a custodian with verify: lockstep")
        if self.clinic and self.role != "institution":
            raise ValueError(f"member '{self.name}': a clinic is an institution")
        for field, role in (("endpoint", "server"), ("rows", "institution"), ("verify", "custodian")):
            if (getattr(self, field) is not None) != (self.role == role):
                raise ValueError(f"member '{self.name}': '{field}' belongs to a {role}, and every {role} needs it")
        if self.endpoint is not None and not _dialled(self.endpoint):
            raise ValueError(
                f"member '{self.name}': the endpoint '{self.endpoint}' is not tcp://HOST:PORT with a host's name or "
                "IPv4 address and a port from 1 to 65535"
            )
        return self


def _dialled(endpoint: str) -> bool:
    """Whether others can dial it. IPv6 addresses cannot be: links are IPv4, by name too."""
    found = re.fullmatch(r"tcp://[A-Za-z0-9._-]+:([0-9]{1,5})", endpoint)
    return found is not None and 0 < int(found[1]) < 1 << 16


class LowerSpec(SegmentOptions):
    """The lower segment as the consortium pins it: nothing in it is left to a model's own settings."""

    family: Family
    model: Text
    cut: Text | tuple[Text, ...]
    image_size: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    weights_sha256: Hex32
    """SHA-256 over the names and tensors of the segment's state dict, not of a file: formats differ, weights do not."""
    dim: int = Field(ge=1)
    """Length of the raw feature vector."""

    def said(self) -> dict[str, Any]:
        """Its fields as JSON has them; an option that is not used is left out, as it was before there were any."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def __str__(self) -> str:
        pooled = f" ({self.pool})" if self.pool != "mean" else ""
        args = f" with {', '.join(f'{k} {v}' for k, v in self.model_args.items())}" if self.model_args else ""
        return f"'{self.model}'{args} up to {' + '.join(repr(cut) for cut in self.cuts)}{pooled}"

    @property
    def input(self) -> str:
        """How an image is made ready, for a person to read."""
        mean, std = (" ".join(f"{x:g}" for x in value) for value in (self.mean, self.std))
        more = ["black borders cut off"] * (self.trim == "black") + ["averaged with its mirror image"] * self.flip
        how = ", ".join([f"{self.image_size} x {self.image_size} pixels", self.fit, self.interpolation, *more])
        return f"{how}; mean {mean}, std {std}"


class LayoutSpec(Model):
    """The layout that was planned: k class lanes, f feature lanes."""

    class_lanes: int = Field(ge=1)
    feature_lanes: int = Field(ge=1)

    @model_validator(mode="after")
    def _powers(self) -> LayoutSpec:
        for field, value in self:
            if value & (value - 1):
                raise ValueError(f"{field} must be a power of two, not {value}")
        return self


class Manifest(Model):
    """Everything the members agree on before anything secret exists.
    Signed by each over a domain and :meth:`canonical`."""

    version: Literal[3] = 3
    name: Name
    protocol: Protocol = "blind"
    dataset: Text
    members: tuple[Member, ...]
    classes: tuple[Text, ...]
    task: Task
    lower: LowerSpec
    projection: ProjectionConfig
    training: TrainingConfig
    ckks: CkksConfig
    layout: LayoutSpec | None = None
    """Blind: the layout that was planned."""
    interactive: InteractiveConfig | None = None
    start: Hex32 | None = None
    """Interactive: SHA-256 of the released model from which all begin."""
    approve: Literal["auto", "human"] = "auto"
    accept_leak: bool = False
    threshold: int | None = Field(None, ge=2, le=8)
    """t of a t-of-N key: any t custodians can use it, and N - t of them may be lost. None: all N are needed, and no
    fewer have the key."""
    share_blocks: bool = False
    """Blind: rows of several institutions share blocks of data: fewer blocks for many small institutions. Each is kept
    to its own rows by a mask (``focal manifest check`` says how well), for which custodians contribute more."""
    closing: AwareDatetime | None = None
    """Blind: until when rows may be uploaded. Who has not come by then is left out. None: until everybody has come, or
    people close (``focal close``)."""
    pooled_roc: bool = False
    """After the release all institutions add up histograms of their test rows' scores: a ROC curve over all sites,
    and no site's scores shown. Every institution has to come back for it; where there are clinics, each comes when it
    likes, and the sum is made through the custodians (:mod:`focal.protocols.blind.results`)."""
    pooled_by: Annotated[tuple[Text, ...], Field(max_length=16)] = ()
    """Blind, with ``pooled_roc``: also by subgroup, bands or values of a column that all count alike: ``age:50,65``,
    ``sex:female,male``. Another one tells more of small groups."""
    pooled_until: AwareDatetime | None = None
    """Blind, with ``pooled_roc`` and clinics: until when test results may be handed in. None: until all that have the
    model have, or people close (``focal close``)."""
    pooled_least: int = Field(3, ge=2)
    """With ``pooled_roc`` and clinics: of fewer clinics no test results are added up."""
    signatures: dict[Name, Text] = {}
    """Member name -> Ed25519 signature (hex), :func:`focal.net.identity.sign_manifest`."""

    @model_validator(mode="after")
    def _members_fit(self) -> Manifest:
        names = [m.name for m in self.members]
        if len(set(names)) != len(names):
            raise ValueError("two members have the same name")
        for field in ("sign", "seal", "curve"):
            if len({getattr(m, field) for m in self.members}) != len(names):
                raise ValueError(
                    f"two members have the same '{field}' key; every member needs its own (focal keys new)"
                )
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have the same name")
        if not fits(len(self.classes), self.task):
            raise ValueError(f"task '{self.task}' does not fit {len(self.classes)} classes")
        needed = OWN_FIELDS[self.protocol][0]
        if getattr(self, needed) is None:
            raise ValueError(f"protocol '{self.protocol}' needs '{needed}'")
        for protocol, fields in OWN_FIELDS.items():
            for field in fields:
                if protocol != self.protocol and getattr(self, field) not in (None, False, ()):
                    raise ValueError(f"'{field}' belongs to protocol {protocol}")
        return self

    def check_complete(self) -> None:
        """Raise unless the members can run any protocol: one server, 2 to 8 custodians, enough institutions.

        What its own protocol needs of them as well: :func:`focal.protocols.check_complete`.
        """
        if len(self.by_role("server")) != 1:
            raise ConfigError("a manifest needs exactly one server (focal manifest add --role server)")
        if not 2 <= len(self.custodians) <= 8:
            raise ConfigError(f"a manifest needs 2 to 8 custodians, this one has {len(self.custodians)}")
        if self.needed > len(self.custodians):
            raise ConfigError(
                f"threshold: {self.threshold} custodians are to suffice, this manifest has {len(self.custodians)}"
            )
        if weak := [m.name for m in self.members if not usable(m.seal)]:
            raise ConfigError(f"the seal key of {', '.join(weak)} is not a usable X25519 key (focal keys new)")
        guards = [m.name for m in self.custodians if m.guard]
        verifiers = [m.name for m in self.custodians if m.verify == "lockstep"]
        if len(guards) > 1:
            raise ConfigError(
                f"{' and '.join(guards)} are both marked as guard; a run has one, "
                "because only one custodian can answer last (focal manifest add --no-guard for the others)"
            )
        if verifiers and not guards:
            raise ConfigError(
                f"{', '.join(verifiers)} verifies, but no custodian is the guard, so "
                "that one hospital with malformed ciphertexts and one reader of the shares would have the joint key; "
                f"add {verifiers[0]} with focal manifest add --guard"
            )
        if len(self.founders) < self.least:
            what = "institutions that are no clinics" if self.clinics else "institutions"
            raise ConfigError(
                f"a manifest needs at least {self.least} {what}, this one has {len(self.founders)}; "
                "with two, each learns the other's pooled moments (accept_leak: true, or --accept-leak, allows it)"
            )

    def by_role(self, role: str) -> tuple[Member, ...]:
        return tuple(m for m in self.members if m.role == role)

    @property
    def server(self) -> Member:
        return self.by_role("server")[0]

    @property
    def institutions(self) -> tuple[Member, ...]:
        return self.by_role("institution")

    @property
    def founders(self) -> tuple[Member, ...]:
        """Institutions that are there from the beginning."""
        return tuple(m for m in self.institutions if not m.clinic)

    @property
    def founder_rows(self) -> int:
        """Training rows of all founders together."""
        return sum(m.rows or 0 for m in self.founders)

    @property
    def clinics(self) -> tuple[Member, ...]:
        """Institutions that come once."""
        return tuple(m for m in self.institutions if m.clinic)

    @property
    def openers(self) -> tuple[Member, ...]:
        """Custodians and founders, in manifest order: a run begins when all of them are there."""
        return tuple(m for m in self.members if m.role != "server" and not m.clinic)

    @property
    def least(self) -> int:
        """So many founders a manifest needs."""
        return 2 if self.accept_leak else 3

    @property
    def most_founders(self) -> int:
        """More than two thirds of the founders: so many must bring rows, or the run ends, and so many consent where
        custodians are lost.

        Whoever chooses who is left out has one honest institution alone with its own only where these are two thirds
        of the founders, rounded down.
        """
        return 2 * len(self.founders) // 3 + 1

    @property
    def custodians(self) -> tuple[Member, ...]:
        return self.by_role("custodian")

    @property
    def needed(self) -> int:
        """t: how many custodians it takes to use the key."""
        return self.threshold or len(self.custodians)

    @property
    def guard(self) -> Member | None:
        """The custodian that answers every refresh last; None where nobody verifies."""
        return next((m for m in self.custodians if m.guard), None)

    def member(self, name: str) -> Member:
        for m in self.members:
            if m.name == name:
                return m
        raise ConfigError(f"'{name}' is not a member of the manifest ({', '.join(m.name for m in self.members)})")

    @property
    def rows(self) -> int:
        """n: training rows of all institutions together."""
        return sum(m.rows or 0 for m in self.institutions)

    @property
    def outputs(self) -> int:
        """C: columns of the head; a binary task trains its positive class only."""
        return output_count(len(self.classes), self.task)

    @property
    def row_counts(self) -> dict[str, int]:
        """Institution -> its training rows, in manifest order. Where they lie in blocks:
        :func:`focal.protocols.blind.plan.row_table`."""
        return {m.name: m.rows or 0 for m in self.institutions}

    def canonical(self) -> bytes:
        """The bytes that are signed and hashed: JSON, sorted keys, no spaces, without the signatures."""
        said = self.model_dump(mode="json", exclude={"signatures"})
        # what is not used is spelled as it was before it could be
        for field in ("threshold", "closing", "pooled_by", "pooled_until", "pooled_least"):
            if getattr(self, field) == type(self).model_fields[field].default:
                del said[field]
        said["lower"] = self.lower.said()
        if self.projection.floor == WHITEN_FLOOR:
            del said["projection"]["floor"]
        for member in said["members"]:
            if not member["clinic"]:
                del member["clinic"]
        return canonical_json(said)

    @property
    def hash(self) -> bytes:
        """SHA-256 of :meth:`canonical`."""
        return framing.digest(b"focal/manifest/v2", self.canonical())
