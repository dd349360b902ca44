"""What a summary says of a run of any protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from focal.ckks.scheme import Scheme
from focal.custody import release
from focal.heads import released
from focal.heads.moves import HeadLayout
from focal.manifest import Manifest
from focal.protocols.common import refreshing
from focal.protocols.common.progress import timeline


def phase_seconds(folder: Path) -> dict[str, float]:
    """Seconds by phase from a party's timeline, restarts included; the phases of the contract are always there."""
    out = dict.fromkeys(("keys", "features", "upload", "train", "release"), 0.0)
    for span in timeline(folder):
        if span["phase"] in out:
            out[span["phase"]] += span["seconds"]
    return out


def common_facts(
    manifest: Manifest,
    scheme: Scheme,
    layout: HeadLayout,
    steps: int,
    openings: int,
    refreshes: int,
    own: dict[str, Any],
) -> dict[str, Any]:
    """What a summary says of a run of either protocol; ``own`` are its parameters."""
    guard = manifest.guard
    bounds = refreshing.bounds(scheme, len(manifest.custodians), layout)
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
            "precision_bits": released.precision_bits(scheme.slots, scheme.scale, layout, len(manifest.custodians)),
            "openings": openings,
        },
        "verify": {m.name: m.verify for m in manifest.custodians},
        "guard": {"name": guard.name, **bounds.facts(refreshes)} if guard else None,
    }
