"""Benchmarks: figures measured on this machine in one run, ratios against a reference that runs in turn with ours.

Nothing here is asserted; a shared machine is noisy, so the two are interleaved and medians are printed.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from focal.ckks import twin
from focal.ckks.engine import zero_weights
from focal.ckks.layout import power_of_two
from focal.ckks.plan import layout_for
from focal.ckks.rehearsal import Rehearsal
from focal.ckks.twin import Scalars
from focal.errors import FocalError
from focal.report.summary import read_summary


@dataclass(frozen=True)
class Result:
    text: str
    numbers: dict[str, Any]


def head(
    rows: int,
    features: int,
    classes: int,
    threads: int,
    steps: int,
    class_lanes: int | None,
    feature_lanes: int,
    degree: int,
    reference: Path | None,
) -> Result:
    """Milliseconds per encrypted step on random data, and the largest weight error against the plaintext twin."""
    k = class_lanes or power_of_two(classes)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, features))
    y = np.eye(classes)[(x @ rng.standard_normal((features, classes))).argmax(1)]
    eta = 1 / (np.linalg.eigvalsh(x.T @ x / rows)[-1] / 4 + 0.1)
    scalars = Scalars.derive(degree, float(eta), 0.1, rows)
    layout = layout_for(8192, features, classes, rows, k, feature_lanes)
    run = Rehearsal(layout, threads=threads)
    engine = run.engine(x, 0.5 - y, scalars)
    weights = zero_weights(run.scheme, layout)
    ours: list[float] = []
    theirs: list[float] = []
    weights = engine.step(0, weights, run.refresh)  # not timed: the first step needs no forward pass
    for step in range(1, steps + 1):
        start = time.perf_counter()
        weights = engine.step(step, weights, run.refresh)
        ours.append(1e3 * (time.perf_counter() - start))
        if reference is not None:
            theirs.append(_reference(reference, rows, features, classes, threads, k, feature_lanes))
    error = float(np.abs(run.release(weights) - twin.train(x, 0.5 - y, scalars, steps + 1)[0]).max())
    engine.close()
    run.scheme.close()
    numbers = {
        "ms_per_step": statistics.median(ours),
        "rows": rows,
        "features": features,
        "classes": classes,
        "threads": threads,
        "class_lanes": k,
        "feature_lanes": feature_lanes,
        "blocks": layout.blocks,
        "rotation_keys": len(layout.rotations),
        "degree": degree,
        "max_abs_weight_error": error,
    }
    text = (
        f"{rows} x {features} x {classes}, k = {k}, f = {feature_lanes}, {threads} thread(s): "
        f"{numbers['ms_per_step']:.0f} ms per step, released weights err by {error:.1e}"
    )
    if theirs:
        numbers |= {
            "reference_ms_per_step": statistics.median(theirs),
            "ratio": statistics.median(o / t for o, t in zip(ours, theirs, strict=True)),
        }
        text += f"; reference {numbers['reference_ms_per_step']:.0f} ms, ratio {numbers['ratio']:.2f} (target: at most 1.0)"
    return Result(text, numbers)


def _reference(script: Path, rows: int, features: int, classes: int, threads: int, k: int, f: int) -> float:
    """Milliseconds per step that the reference script prints for the same problem and layout."""
    options = {"rows": rows, "features": features, "classes": classes, "threads": threads, "lanes": k, "feature-lanes": f, "steps": 1}
    command = [sys.executable, str(script), *(a for name, value in options.items() for a in (f"--{name}", str(value)))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    match = re.search(r"ms per step .* total (\d+)", done.stdout)
    if match is None:
        raise FocalError(f"{script}: prints no 'ms per step' ({done.stderr.strip().splitlines()[-1:]})", hint="leave --reference out")
    return float(match[1])


def everything(reference: Path | None, runs: Path, configs: Path, say: Callable[[str], None], train: Callable[[Path, Path], None]) -> None:
    """Head layouts, then the retina runs where the data is here."""
    say("encrypted step (1024 x 64 x 8, one thread)")
    for k, f in ((8, 1), (4, 2), (2, 4), (1, 8)):
        say("  " + head(1024, 64, 8, 1, 3, k, f, 3, reference).text)
    for name, least in (("retina", 0.76), ("retina128", 0.77)):
        config = configs / f"{name}.yaml"
        try:
            train(config, runs)
        except (FocalError, ValueError) as e:
            say(f"{name}: skipped ({e})")
            continue
        say(
            _judged(
                name,
                least,
                max((p for p in runs.iterdir() if (p / "summary.json").exists()), key=lambda p: (p / "summary.json").stat().st_mtime),
            )
        )


def _judged(name: str, least: float, folder: Path) -> str:
    """Targets beside what a run measured."""
    s = read_summary(folder)
    protocol = s.seconds.keys + s.seconds.upload + s.seconds.train + s.seconds.release
    assert s.auroc.institutions is not None and s.auroc.plaintext_twin is not None and s.max_abs_weight_error is not None
    upload = max(s.bytes[i].by_phase["upload"].up for i in s.auroc.institutions)
    lines = [
        f"{name}: encrypted AUROC {s.auroc.encrypted:.4f} (target: at least {least}), twin {s.auroc.plaintext_twin:.4f} (within 0.002)",
        f"  best institution alone {max(s.auroc.institutions.values()):.4f} (target: below the encrypted one)",
        f"  pooled plaintext {s.auroc.pooled_plaintext:.4f}",
        f"  largest weight error {s.max_abs_weight_error:.1e} (target: 1e-3)",
        f"  keys + upload + training + release {protocol:.0f} s (target: 60 s)",
        f"  memory {s.params.get('peak_memory_mb', 0)} MB (target: 8000)",
        f"  upload {upload / 1e6:.0f} MB per institution at most (target: 120)",
    ]
    return "\n".join(lines) + "\n  " + json.dumps({"seconds": protocol, "auroc": s.auroc.encrypted})
