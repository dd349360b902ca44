"""What follows from the manifest of a blind run alone, so that every party derives the same."""

from __future__ import annotations

from typing import Any

from focal.ckks.scheme import Scheme
from focal.config import Manifest
from focal.custody import release
from focal.heads.linear.cost import check_sharing, layout_for
from focal.heads.linear.layout import Layout
from focal.protocols import Released
from focal.protocols.common.facts import common_facts

CARRIED_NOISE = release.CARRIED_NOISE
TRUST = (
    "blind: the institutions are trusted to encrypt honestly; one that does not reads relations on the joint key off the release, whoever "
    "verifies and guards (SECURITY.md)"
)
"""What everybody must be told who signs a blind run."""


def layout(manifest: Manifest) -> Layout:
    """The slot layout of a blind run. Raises :class:`focal.errors.FocalError` when it does not fit, as the planner does."""
    lanes, rows = manifest.layout, manifest.row_counts
    assert lanes is not None  # a blind manifest has one
    shape = layout_for(
        manifest.ckks.ring // 2,
        manifest.projection.features,
        manifest.outputs,
        manifest.rows,
        lanes.class_lanes,
        lanes.feature_lanes,
        () if manifest.share_blocks else tuple(rows.values()),
    )
    check_sharing(shape, rows, len(manifest.custodians))
    return shape


def row_table(manifest: Manifest, shape: Layout) -> dict[str, tuple[int, int]]:
    """Institution -> (first global row, one past its last) in the blocks of a blind run, in manifest order."""
    return shape.row_table(manifest.row_counts)


def batches(manifest: Manifest) -> list[tuple[str, tuple[str, ...]]]:
    """Every batch of refreshes of the run, in order: (topic, plan items). Nothing else is ever refreshed."""
    shape, out = layout(manifest), []
    for t in range(manifest.training.steps):
        # the first step knows its logits: they are zero (engine.py)
        kinds = ["residual", "weights"] if manifest.training.degree == 3 or t == 0 else ["logits", "residual", "weights"]
        out += [(f"refresh/{t}/{kind}", tuple(shape.items(t, kind))) for kind in kinds]
    return out


def refreshes(manifest: Manifest) -> int:
    """Collective refreshes of the run."""
    return sum(len(items) for _, items in batches(manifest))


def released(manifest: Manifest) -> Released:
    """The weights of the last step, and nothing else."""
    shape, last = layout(manifest), manifest.training.steps - 1
    items = tuple(item.replace("/weights/", "/release/") for item in shape.items(last, "weights"))
    return Released(items, tuple(range(shape.class_groups)), (f"refresh/{last}/weights",))


def facts(manifest: Manifest, scheme: Scheme) -> dict[str, Any]:
    """What a summary says of a blind run: parameters, security, release, who verifies."""
    shape = layout(manifest)
    own = {
        "rows": shape.rows,
        "class_lanes": shape.class_lanes,
        "feature_lanes": shape.feature_lanes,
        "babies": shape.babies,
        "blocks": shape.blocks,
        "degree": manifest.training.degree,
        "ridge": manifest.training.ridge,
        "projection": manifest.projection.kind,
        "bound": manifest.projection.bound,
    }
    return common_facts(manifest, scheme, shape, manifest.training.steps, shape.class_groups, refreshes(manifest), own)
