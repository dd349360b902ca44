"""One ROC curve over several hospitals' patients, drawn from what :mod:`focal.measure.histogram` wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from focal.measure.histogram import FILE
from focal.reporting.plots import Curve, plot_curves


def plot_pooled(folder: Path) -> None:
    """Draw ``pooled_roc.png`` beside ``pooled_roc.json``; nothing where there is no such file, or no curve in it."""
    path = folder / FILE
    if not path.exists():
        return
    found = json.loads(path.read_text())
    if found["auroc"] is None:
        return
    curves = [
        Curve(
            name,
            np.array(c["false_positive"]),
            np.array(c["true_positive"]),
            np.nan if c["auroc"] is None else c["auroc"],
            c["positives"],
        )
        for name, c in found["classes"].items()
    ]
    sites = f"{found['sites']} sites" + (f", {found['clinics']} clinics among them" if "clinics" in found else "")
    below = f"{found['rows']} test rows of {sites}, from summed histograms (+- {found['bound']:.4f})"
    plot_curves(curves, found["auroc"], below, path.with_suffix(".png"))
