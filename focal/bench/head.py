"""The blind head: an encrypted training step on random data, all custodians in one process."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from focal.bench.result import Result, printed
from focal.heads.linear import twin
from focal.heads.linear.cost import layout_for
from focal.heads.linear.engine import zero_weights
from focal.heads.linear.layout import power_of_two
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars


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
    layout = layout_for(8192, features, classes, rows, k, feature_lanes, (rows,))
    run = Rehearsal(layout, threads=threads)
    engine = run.engine(x, 0.5 - y, scalars)
    weights = zero_weights(run.scheme, layout)
    ours: list[float] = []
    theirs: list[float] = []
    weights, taken = engine.step(0, weights, run.refresh), 1  # not timed: the first step needs no forward pass
    for _ in range(steps):
        if reference is not None:
            theirs.append(_reference(reference, rows, features, classes, threads, k, feature_lanes))
            # not timed: while the other process ran, the system may have taken idle pages from this one
            weights, taken = engine.step(taken, weights, run.refresh), taken + 1
        start = time.perf_counter()
        weights, taken = engine.step(taken, weights, run.refresh), taken + 1
        ours.append(1e3 * (time.perf_counter() - start))
    error = float(np.abs(run.release(weights) - twin.train(x, 0.5 - y, scalars, taken)[0]).max())
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
    if theirs:
        numbers |= {
            "reference_ms_per_step": statistics.median(theirs),
            "ratio": statistics.median(o / t for o, t in zip(ours, theirs, strict=True)),
        }
    return Result(_told(numbers), numbers)


def _told(numbers: dict[str, Any]) -> str:
    """The figures beside their target."""
    text = (
        "{rows} x {features} x {classes}, k = {class_lanes}, f = {feature_lanes}, {threads} thread(s): "
        "{ms_per_step:.0f} ms per step, released weights err by {max_abs_weight_error:.1e}"
    )
    if "ratio" in numbers:
        text += "; reference {reference_ms_per_step:.0f} ms, ratio {ratio:.2f} (target: at most 0.17)"
    return text.format(**numbers)


def _reference(script: Path, rows: int, features: int, classes: int, threads: int, k: int, f: int) -> float:
    """Milliseconds per step that the reference script prints for the same problem and layout."""
    options = {
        "rows": rows,
        "features": features,
        "classes": classes,
        "threads": threads,
        "lanes": k,
        "feature-lanes": f,
        "steps": 1,
    }
    return printed(
        script, [a for name, value in options.items() for a in (f"--{name}", str(value))], r"ms per step .* total (\d+)"
    )
