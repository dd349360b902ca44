"""A manifest with keys that nobody has: for whatever reads its fields and checks no signature."""

from __future__ import annotations

from focal.config import ProjectionConfig, TrainingConfig
from focal.manifest import LayoutSpec, LowerSpec, Manifest, Member


def key(i: int) -> str:
    return f"{i:064x}"


def member(name: str, role: str, i: int, **fields: object) -> Member:
    return Member(name=name, role=role, sign=key(i), seal=key(100 + i), curve=f"{i:040d}", **fields)  # type: ignore[arg-type]


MEMBERS = (
    member("relay", "server", 1, endpoint="tcp://127.0.0.1:9000"),
    member("north", "institution", 2, rows=40),
    member("first-custodian", "custodian", 3, verify="lockstep", guard=True),
    member("south", "institution", 4, rows=50),
    member("second-custodian", "custodian", 5, verify="off"),
    member("west", "institution", 6, rows=60),
)


def manifest(**changes: object) -> Manifest:
    lower = LowerSpec(
        family="timm", model="vit", cut="pooled", image_size=224, interpolation="bilinear",
        mean=(1, 2, 3), std=(4, 5, 6), weights_sha256=key(7), dim=192,
    )  # fmt: skip
    fields: dict[str, object] = {
        "name": "retina", "dataset": "odir5k", "members": MEMBERS, "classes": ("N", "D", "G"), "task": "multilabel",
        "lower": lower, "projection": ProjectionConfig(), "training": TrainingConfig(), "ckks": {},
        "layout": LayoutSpec(class_lanes=8, feature_lanes=1),
    }  # fmt: skip
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]
