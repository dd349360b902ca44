"""One ROC curve over several hospitals' patients, from counts alone: no hospital shows a score or a label.

::

    site A  scores -> counts of (class, outcome, bin) -\\
    site B  scores -> counts                         ---> secure sum (focal.sums) -> pooled counts: ROC, AUROC +- bound
    site C  scores -> counts                         -/

The bins are the same at every site, chosen before any score is seen (:mod:`focal.measure.declared`), and so are the
subgroups whose rows are counted besides.

Within a bin positives and negatives count as tied, one half each. Whatever their true order, the exact AUROC of the
pooled rows lies within

    bound = sum over bins of positives x negatives / (2 P N)

of what the histogram gives. The sum is exact: counts travel as integers (:mod:`focal.sums.fixed`, no fraction bits),
C x 2 x BINS of them, and as many of each subgroup. :meth:`focal.protocols.common.institution.Institution.run` makes it
after the release, where the manifest says ``pooled_roc``; with clinics :mod:`focal.protocols.blind.results` does.

What it shows: the pooled counts, to every site, which can subtract its own. With two sites each gets the other's
histogram, as with pooled moments: a manifest refuses fewer than three institutions unless ``accept_leak`` is set. A bin
with one row in it is that patient's score, without a name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from focal.errors import ProtocolError
from focal.files import private_write
from focal.measure.declared import BINS, LIMIT, WIDTH
from focal.measure.metrics import Floats, outcome_columns
from focal.task import Task

Counts = NDArray[np.int64]

MOST = 1 << 40
"""No bin has more rows: sums over all bins stay exact, so that none wraps round to what could be."""
FILE = "pooled_roc.json"
"""In every site's folder: the curves, their AUROC and its bound."""


class PooledRoc(NamedTuple):
    """One class over all sites."""

    false_positive: Floats
    """Rates at the bins' limits, ascending."""
    true_positive: Floats
    auroc: float
    """NaN where the pooled rows hold one outcome only."""
    bound: float
    """The exact AUROC lies within ``auroc +- bound``."""
    positives: int
    negatives: int


def score_histogram(labels: ArrayLike, scores: ArrayLike, task: Task) -> Counts:
    """A site's counts (C, 2, BINS): of each class, its negatives and positives by logit.
    ``labels`` (n, K), ``scores`` (n, C)."""
    outcome, value = outcome_columns(labels, scores, task)
    place = np.digitize(value, np.arange(1, BINS) * WIDTH - LIMIT - WIDTH)
    counts = np.zeros((outcome.shape[1], 2, BINS), np.int64)
    for c in range(len(counts)):
        np.add.at(counts[c], (outcome[:, c].astype(np.int64), place[:, c]), 1)
    return counts


def with_subgroups(labels: ArrayLike, scores: ArrayLike, task: Task, subgroups: NDArray[np.bool_]) -> Counts:
    """Counts (1 + S, C, 2, BINS) of all rows and of those of each of S subgroups, (S, n)."""
    given, outputs = np.asarray(labels), np.asarray(scores)
    everybody = np.ones((1, len(given)), bool)
    return np.stack([score_histogram(given[at], outputs[at], task) for at in np.concatenate([everybody, subgroups])])


def parts_of_sum(total: Floats, outputs: int, subgroups: int) -> list[Counts]:
    """Pooled counts (C, 2, BINS) of all rows, then of each subgroup, from the sum of all sites'. Raises as
    :func:`from_sum` does, and for a subgroup with more rows than there are."""
    parts = [from_sum(part, outputs) for part in np.array_split(total, 1 + subgroups)]
    if any((part > parts[0]).any() for part in parts):
        raise ProtocolError(
            "a subgroup of the pooled histogram has more rows than all of it",
            hint="a site's contribution was malformed; the released model is not touched",
        )
    return parts


def from_sum(total: Floats, outputs: int) -> Counts:
    """Pooled counts (C, 2, BINS) from the sum of all sites'. Raises :class:`ProtocolError` when it cannot
    be a sum of histograms."""
    if total.size != outputs * 2 * BINS:
        raise ProtocolError(f"the pooled histogram has {total.size} values, not {outputs * 2 * BINS}")
    counts = total.astype(np.int64).reshape(outputs, 2, BINS)
    rows = counts.sum(axis=(1, 2))
    if (counts < 0).any() or (counts > MOST).any() or (rows != rows[0]).any():
        raise ProtocolError(
            "the pooled histogram has negative or enormous counts, or classes with different numbers of rows",
            hint="a site's contribution was malformed: no site's rows can be told from it, "
            "and the released model is not touched",
        )
    return counts


def pooled_roc(counts: Counts) -> list[PooledRoc]:
    """One curve per class from (C, 2, BINS) counts, a site's own or pooled ones."""
    return [_curve(negatives, positives) for negatives, positives in counts]


def pooled_macro(curves: list[PooledRoc]) -> tuple[float, float]:
    """Macro AUROC over the classes with both outcomes, and its bound; NaN where there is none."""
    defined = [(c.auroc, c.bound) for c in curves if not np.isnan(c.auroc)]
    mean = np.mean(defined, axis=0) if defined else (np.nan, np.nan)
    return float(mean[0]), float(mean[1])


def write_pooled(
    curves: list[PooledRoc],
    classes: Sequence[str],
    sites: int,
    folder: Path,
    clinics: int = 0,
    subgroups: Mapping[str, list[PooledRoc]] | None = None,
) -> str:
    """Write :data:`FILE`, which :mod:`focal.reporting.pooled` draws; returns a line for a person, and one more where
    there are ``subgroups``.

    ``classes``: the scored ones; ``clinics``: how many of the ``sites`` are.
    """
    macro, bound = pooled_macro(curves)
    content = {
        "sites": sites,
        **({"clinics": clinics} if clinics else {}),
        **_figures(curves, classes),
        **({"subgroups": {name: _figures(own, classes) for name, own in subgroups.items()}} if subgroups else {}),
    }
    for name, c in zip(classes, curves, strict=True):
        content["classes"][name] |= {
            "false_positive": c.false_positive.tolist(),
            "true_positive": c.true_positive.tolist(),
        }
    private_write(folder / FILE, json.dumps(content, allow_nan=False).encode())
    among = f"all {sites} sites" if not clinics else f"{sites} sites, {clinics} clinics among them"
    rows = content["rows"]
    if np.isnan(macro):
        return f"test rows of {among} ({rows}): every class has one outcome only, so there is no ROC curve"
    lines = [f"macro AUROC over the test rows of {among} ({rows}): {macro:.4f} +- {bound:.4f}, from summed histograms"]
    if subgroups:
        lines.append("by subgroup: " + "; ".join(f"{name} {_told(own)}" for name, own in subgroups.items()))
    return "\n".join(lines)


def _told(curves: list[PooledRoc]) -> str:
    macro, bound = pooled_macro(curves)
    rows = curves[0].positives + curves[0].negatives
    return f"none ({rows} rows)" if np.isnan(macro) else f"{macro:.4f} +- {bound:.4f} ({rows} rows)"


def _figures(curves: list[PooledRoc], classes: Sequence[str]) -> dict[str, Any]:
    """What is written of pooled rows, without the curves."""
    macro, bound = pooled_macro(curves)
    return {
        "rows": curves[0].positives + curves[0].negatives,
        "auroc": None if np.isnan(macro) else macro,
        "bound": None if np.isnan(macro) else bound,
        "classes": {
            name: {
                "auroc": None if np.isnan(c.auroc) else c.auroc,
                "bound": None if np.isnan(c.auroc) else c.bound,
                "positives": c.positives,
                "negatives": c.negatives,
            }
            for name, c in zip(classes, curves, strict=True)
        },
    }


def _curve(negatives: Counts, positives: Counts) -> PooledRoc:
    p, n = int(positives.sum()), int(negatives.sum())
    if not p or not n:
        return PooledRoc(np.array([]), np.array([]), np.nan, np.nan, p, n)
    place, outcome = np.tile(np.arange(BINS), 2), np.repeat([0, 1], BINS)
    weight = np.r_[negatives, positives].astype(np.float64)
    false_positive, true_positive, _ = roc_curve(outcome, place, sample_weight=weight)
    bound = float(positives.astype(np.float64) @ negatives) / (2 * p * n)
    return PooledRoc(
        false_positive, true_positive, float(roc_auc_score(outcome, place, sample_weight=weight)), bound, p, n
    )
