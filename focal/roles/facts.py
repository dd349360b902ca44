"""What a summary says of a run beside its scores: parameters, security, release, who verifies, seconds by phase."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from focal.ckks import refresh, release
from focal.ckks.context import Scheme
from focal.ckks.interactive import InteractiveLayout
from focal.ckks.layout import Layout
from focal.config import Manifest
from focal.roles import agreed
from focal.roles.progress import timeline


def phase_seconds(folder: Path) -> dict[str, float]:
    """Seconds by phase from a party's timeline, restarts included; the phases of the contract are always there."""
    out = dict.fromkeys(("keys", "features", "upload", "train", "release"), 0.0)
    for span in timeline(folder):
        if span["phase"] in out:
            out[span["phase"]] += span["seconds"]
    return out


def protocol_facts(manifest: Manifest, scheme: Scheme) -> dict[str, Any]:
    """What a summary says of a blind run: parameters, security, release, who verifies."""
    layout = agreed.layout(manifest)
    own = {
        "rows": layout.rows,
        "class_lanes": layout.class_lanes,
        "feature_lanes": layout.feature_lanes,
        "babies": layout.babies,
        "blocks": layout.blocks,
        "degree": manifest.training.degree,
        "ridge": manifest.training.ridge,
        "projection": manifest.projection.kind,
        "bound": manifest.projection.bound,
    }
    refreshes = agreed.refreshes(layout, manifest)
    return common_facts(manifest, scheme, layout, manifest.training.steps, layout.class_groups, refreshes, own)


def common_facts(
    manifest: Manifest, scheme: Scheme, layout: Layout | InteractiveLayout, steps: int, openings: int, refreshes: int, own: dict[str, Any]
) -> dict[str, Any]:
    """What a summary says of a run of either protocol; ``own`` are its parameters."""
    guard = manifest.guard
    bounds = refresh.guard(scheme, len(manifest.custodians))
    return {
        "steps": steps,
        "params": {
            "ring": scheme.n,
            "log_qp": round(scheme.log_qp, 1),
            "scale_bits": manifest.ckks.scale_bits,
            "features": layout.features,
            "outputs": layout.outputs,
            "rotation_keys": len(layout.rotations),
            "lower": json.loads(manifest.lower.model_dump_json()),
            **own,
        },
        "security_bits": scheme.security_bits,
        "release": {
            "flooding_bits": release.flooding_bits(),
            "precision_bits": release.precision_bits(scheme.slots, scheme.scale, cast(Layout, layout), len(manifest.custodians)),
            "openings": openings,
        },
        "verify": {m.name: m.verify for m in manifest.custodians},
        "guard": {"name": guard.name, **bounds.facts(refreshes)} if guard else None,
    }
