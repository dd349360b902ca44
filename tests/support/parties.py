"""A small consortium for the tests of ``focal.net``: keys for every member and a manifest that lists them."""

from __future__ import annotations

from focal.config import CkksConfig, ProjectionConfig, TrainingConfig
from focal.manifest import LayoutSpec, LowerSpec, Manifest, Member
from focal.net.identity import Identity

ROLES = {
    "server": ("server", {"endpoint": "tcp://127.0.0.1:9"}),
    "north": ("institution", {"rows": 40}),
    "south": ("institution", {"rows": 50}),
    "west": ("institution", {"rows": 60}),
    "custodian-1": ("custodian", {"verify": "off"}),
    "custodian-2": ("custodian", {"verify": "off"}),
}
CLINICS = {"clinic-1": 10, "clinic-2": 20}
SCOPE = "5e" * 32


def identities() -> dict[str, Identity]:
    return {name: Identity.new(name) for name in ROLES}


def manifest_of(people: dict[str, Identity], **changes: object) -> Manifest:
    members: tuple[Member, ...] = tuple(people[name].member(role, **extra) for name, (role, extra) in ROLES.items())
    fields: dict[str, object] = {
        "name": "test",
        "dataset": "synthetic",
        "members": members,
        "classes": ("a", "b", "c"),
        "task": "multiclass",
        "lower": LowerSpec(
            family="timm", model="m", cut="pooled", image_size=32, interpolation="bilinear",
            mean=(0, 0, 0), std=(1, 1, 1), weights_sha256="0" * 64, dim=8,
        ),
        "projection": ProjectionConfig(),
        "training": TrainingConfig(),
        "ckks": CkksConfig(),
        "layout": LayoutSpec(class_lanes=1, feature_lanes=1),
    }  # fmt: skip
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


def with_clinics(people: dict[str, Identity], **changes: object) -> Manifest:
    """The same with clinics, all of whom share blocks. ``people``: :data:`CLINICS` are among them."""
    members = [people[n].member(role, **own) for n, (role, own) in ROLES.items()]
    members += [people[n].member("institution", rows=rows, clinic=True) for n, rows in CLINICS.items()]
    lanes = LayoutSpec(class_lanes=4, feature_lanes=1)
    return manifest_of(people, members=tuple(members), layout=lanes, share_blocks=True, **changes)
