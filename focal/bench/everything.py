"""All that `make bench` measures, beside its targets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from focal.bench.head import head
from focal.bench.joint import interactive
from focal.bench.sockets import split
from focal.errors import FocalError
from focal.measure.summary import read_summary
from focal.telling import Say


def everything(
    reference: Path | None,
    joint_reference: Path | None,
    runs: Path,
    configs: Path,
    say: Say,
    train: Callable[[Path, Path], None],
) -> None:
    """Head layouts, the joint step, then runs on real images where they are here."""
    say("encrypted step (1024 x 64 x 8, one thread)")
    for k, f in ((8, 1), (4, 2), (2, 4), (1, 8)):
        say("  " + head(1024, 64, 8, 1, 3, k, f, 3, reference).text)
    say("joint step of interactive training (two threads)")
    say("  " + interactive(64, 8, 4, 2, 3, joint_reference).text)
    try:
        say(split(configs / "finetune-retina.yaml", runs, 8).text)
    except FocalError as e:
        say(f"joint steps over sockets: skipped ({e})")
    for name, least in (("retina64", 0.76), ("retina128", 0.77)):
        config = configs / f"{name}.yaml"
        try:
            train(config, runs)
        except FocalError as e:
            say(f"{name}: skipped ({e})")
            continue
        say(
            _judged(
                name,
                least,
                max(
                    (p for p in runs.iterdir() if (p / "summary.json").exists()),
                    key=lambda p: (p / "summary.json").stat().st_mtime,
                ),
            )
        )


def _judged(name: str, least: float, folder: Path) -> str:
    """Targets beside what a run measured."""
    s = read_summary(folder)
    protocol = s.seconds.keys + s.seconds.upload + s.seconds.train + s.seconds.release
    assert (
        s.auroc.institutions is not None and s.auroc.plaintext_twin is not None and s.max_abs_weight_error is not None
    )
    upload = max(s.bytes[i].by_phase["upload"].up for i in s.auroc.institutions)
    lines = [
        f"{name}: encrypted AUROC {s.auroc.encrypted:.4f} (target: at least {least}), "
        f"twin {s.auroc.plaintext_twin:.4f} (within 0.002)",
        f"  best institution alone {max(s.auroc.institutions.values()):.4f} (target: below the encrypted one)",
        f"  pooled plaintext {s.auroc.pooled_plaintext:.4f}",
        f"  largest weight error {s.max_abs_weight_error:.1e} (target: 1e-3)",
        f"  keys + upload + training + release {protocol:.0f} s (target: 15 s)",
        f"  memory {s.params.get('peak_memory_mb', 0)} MB (target: 8000)",
        f"  upload {upload / 1e6:.0f} MB per institution at most (target: 60)",
    ]
    return "\n".join(lines) + "\n  " + json.dumps({"seconds": protocol, "auroc": s.auroc.encrypted})
