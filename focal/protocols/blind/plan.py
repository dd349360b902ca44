"""What follows from the manifest of a blind run alone, so that every party derives the same; and which head it has.

Layout, step scalars, engine, plaintext twin and released model are asked for here and named nowhere else in the
protocol, its comparisons and simulations.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from focal.ckks.scheme import Scheme
from focal.config import BlindRunConfig, LayoutConfig
from focal.custody import release
from focal.errors import ConfigError
from focal.heads.linear import cost, demand, twin
from focal.heads.linear.cost import check_sharing, layout_for
from focal.heads.linear.engine import Block, Engine, Shards, mask_digest
from focal.heads.linear.layout import Layout
from focal.heads.linear.twin import Scalars
from focal.manifest import LayoutSpec, Manifest
from focal.measure import declared
from focal.net import messages as msg
from focal.protocols import Released
from focal.protocols.common import refreshing
from focal.protocols.common.facts import common_facts

if TYPE_CHECKING:
    from focal.segments.projection import Projection
    from focal.segments.upper import UpperHead

Array = NDArray[np.float64]

CARRIED_NOISE = release.CARRIED_NOISE
OWN_PHASES: tuple[str, ...] = ("features",)
TRUST = (
    "blind: the size of the institutions' rows is checked to within a factor of 2^11 only, "
    "and by custodians that follow the protocol; "
    "much larger rows than true ones say more of the joint key than the release hides (SECURITY.md)"
)
"""What everybody must be told who signs a blind run."""
FEW_ROWS = (
    "clinics may bring more than three quarters of all rows: where most stay away, the uploads do not close by "
    "themselves, for a model needs a quarter of the rows; and one that may bring so many ends the run by sending "
    "something else than was agreed"
)
ANYBODY_LEFT_OUT = (
    "closing: after that date the server can leave out any institution, down to {least} of the {all} that are no "
    "clinics: what the others of a small rest know together says more of the last one, and a pooled ROC curve too "
    "(SECURITY.md)"
)


def check_members(manifest: Manifest) -> None:
    """Raise where not all members could do their part."""
    if (manifest.pooled_by or manifest.pooled_until) and not manifest.pooled_roc:
        raise ConfigError("'pooled_by' and 'pooled_until' are about pooled_roc: set it too, or leave them out")
    declared.subgroups(manifest.pooled_by)
    if manifest.pooled_roc and manifest.clinics and manifest.pooled_least > len(manifest.clinics):
        raise ConfigError(
            f"pooled_least: test results of {manifest.pooled_least} clinics are needed, this manifest has "
            f"{len(manifest.clinics)}",
            hint="leave pooled_roc out, or name more clinics: of fewer than three, the others know too much of each",
        )


def layout(manifest: Manifest) -> Layout:
    """The slot layout of a blind run. Raises :class:`focal.errors.FocalError` when it does not fit,
    as the planner does."""
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


def scalars_of(manifest: Manifest, lists: dict[str, msg.Upload]) -> Scalars:
    """The scalars of every step, from the step size that all upload lists carry, and the rows that have come."""
    eta = float.fromhex(next(iter(lists.values())).eta_hex)
    return scalars(manifest, eta, sum(upload.rows for upload in lists.values()))


def scalars(manifest: Manifest, eta: float, rows: int) -> Scalars:
    """The scalars of every step on so many rows, ``eta`` being the agreed projection's: the twin's too."""
    training = manifest.training
    return Scalars.derive(training.degree, step_size(manifest, eta, rows), training.ridge, rows)


def step_size(manifest: Manifest, eta: float, rows: int) -> float:
    """The step size where so many rows have come. ``eta`` is of the founders' pooled second moment, whose largest
    eigenvalue may be n / m times as large on m of their n rows: a step that is smaller by as much is as stable."""
    return eta * min(1.0, rows / manifest.founder_rows)


def targets(labels: ArrayLike) -> Array:
    """(n, C) what institutions upload beside their columns, from outcomes (n, C) of 0 and 1."""
    return 0.5 - np.asarray(labels, dtype=np.float64)


def engine(
    scheme: Scheme,
    shape: Layout,
    scalars: Scalars,
    block: Callable[[int], Block],
    threads: int,
    shards: Shards | None = None,
) -> Engine:
    """What takes the steps (:class:`focal.heads.linear.engine.Engine`)."""
    return Engine(scheme, shape, scalars, block, threads, shards)


def encoded(
    manifest: Manifest,
    scheme: Scheme,
    shape: Layout,
    lists: dict[str, msg.Upload],
    rows: Mapping[str, tuple[int, int]],
) -> str:
    """A digest of all that goes through floating point before a step: whoever computes must have the same bits."""
    return mask_digest(scheme, shape, scalars_of(manifest, lists), rows)


def trained_in_clear(manifest: Manifest, eta: float, columns: Array, labels: ArrayLike) -> Array:
    """The weights (R, C) that the same training gives in plaintext, on the projected rows (n, R) of all who came and
    their outcomes (n, C); ``eta``: the agreed projection's."""
    own = scalars(manifest, eta, len(columns))
    return twin.train(columns, targets(labels), own, manifest.training.steps)[0]


def model(manifest: Manifest, projection: Projection, weights: Array) -> UpperHead:
    """The released model."""
    from focal.segments.upper import UpperHead  # torch: only institutions have it

    return UpperHead.from_projection(projection, weights, manifest.task)


def batches(manifest: Manifest, shape: Layout) -> list[tuple[str, tuple[str, ...]]]:
    """Every batch of refreshes of the run, or part of one, in order: (topic, plan items). Nothing else is ever
    refreshed.

    ``shape``: the manifest's layout, with the blocks of those who have come.
    """
    out = []
    for t in range(manifest.training.steps):
        # the first step knows its logits: they are zero (heads/linear/engine.py)
        kinds = cost.KINDS[manifest.training.degree][int(t == 0) :]
        for items in (tuple(shape.items(t, kind)) for kind in kinds):
            out += [(topic, items[place]) for topic, place in refreshing.parts(items)]
    return out


def stages(manifest: Manifest) -> int:
    """The inputs, then every step (:mod:`focal.protocols.common.epochs`)."""
    return 1 + manifest.training.steps


def stage(manifest: Manifest, topic: str) -> int | None:
    """The stage of a topic; None for what is said before the inputs."""
    what, _, rest = topic.partition("/")
    if what in ("inputs", "upload", "uploads"):
        return 0
    if what == "release" or topic.startswith(refreshing.AGAIN):
        return stages(manifest)
    return 1 + int(rest.partition("/")[0]) if what in ("refresh", "step") else None


def stage_end(manifest: Manifest, stage: int) -> tuple[bool, str]:
    """Inputs are there when every custodian has shown its part of them; a step is done when the server says so."""
    return (True, f"step/{stage - 1}") if stage else (False, "inputs/reveal")


def refreshes(manifest: Manifest) -> int:
    """Collective refreshes of the run, at most: where everybody comes."""
    return sum(len(items) for _, items in batches(manifest, layout(manifest)))


def released(manifest: Manifest) -> Released:
    """The weights of the last step, and nothing else."""
    shape, last = layout(manifest), manifest.training.steps - 1
    weights = tuple(shape.items(last, "weights"))
    items = tuple(item.replace("/weights/", "/release/") for item in weights)
    topics = tuple(topic for topic, _ in refreshing.parts(weights))
    return Released(items, tuple(range(shape.class_groups)), topics)


def own_fields(config: BlindRunConfig) -> dict[str, Any]:
    """What a manifest of this protocol has beside what all have: a layout, any, until :func:`settled`."""
    own, lanes = config.consortium, LayoutSpec(class_lanes=1, feature_lanes=1)
    return {
        "layout": lanes,
        "share_blocks": own.share_blocks,
        "closing": own.closing,
        "pooled_by": own.pooled_by,
        "pooled_until": own.pooled_until,
        "pooled_least": own.pooled_least,
    }


def own_local_fields(config: BlindRunConfig) -> dict[str, Any]:
    """What an institution's local file has of this protocol: nothing."""
    return {}


def wish(config: BlindRunConfig) -> LayoutConfig:
    """What the configuration says of the layout."""
    return config.layout


def features(manifest: Manifest) -> int:
    """Columns that the head reads."""
    return manifest.projection.features


def settled(manifest: Manifest, wish: LayoutConfig, memory_bytes: float, computing: int = 0) -> tuple[Manifest, str]:
    """The manifest with the layout that fits its members best, and what it costs, in lines that a person can check.

    ``computing``: how many parties compute on this very machine, which is measured then; 0 for one like the project's.
    """
    chosen = cost.choose(
        manifest.ckks,
        manifest.projection.features,
        manifest.outputs,
        manifest.row_counts,
        len(manifest.custodians),
        manifest.training.steps,
        manifest.training.degree,
        wish,
        os.cpu_count() or 1,
        memory_bytes,
        manifest.share_blocks,
    )
    lanes = LayoutSpec(class_lanes=chosen.layout.class_lanes, feature_lanes=chosen.layout.feature_lanes)
    slowness = cost.slowness(Scheme(manifest.ckks, "estimate")) if computing else 1.0
    text = chosen.describe(manifest.training.steps, max(1, computing), slowness)
    return manifest.model_copy(update={"layout": lanes}), text


def describe(manifest: Manifest) -> str:
    """What is about to be signed or run, in lines that a person can check before it begins."""
    shape, rows, training = layout(manifest), manifest.row_counts, manifest.training
    link, threads = LayoutConfig().link_mbyte_s, os.cpu_count() or 1
    costs = cost.cost(shape, manifest.ckks, rows, len(manifest.custodians), training.degree, link, threads)
    return "\n".join(
        (
            f"training     {training.steps} steps, ridge {training.ridge}, sigmoid of degree {training.degree}; "
            f"release: {manifest.approve}",
            costs.describe(training.steps),
            f"blocks       {cost.whose(shape, rows)}",
            *([pooled(manifest)] if manifest.pooled_roc and manifest.clinics else []),
            verifying(manifest),
        )
    )


def pooled(manifest: Manifest) -> str:
    """What is added up of test results, in a line that a person can check."""
    until = f"until {manifest.pooled_until:%Y-%m-%d %H:%M} UTC" if manifest.pooled_until else "until all have come back"
    by = f"; also by {', '.join(manifest.pooled_by)}" if manifest.pooled_by else ""
    return (
        f"results      test scores of founders and clinics are counted and added up through the custodians, once, "
        f"{until} or people close: of {manifest.pooled_least} clinics at least{by}"
    )


def stored(manifest: Manifest) -> float:
    """Bytes on disk after a run of which one machine is everybody: server, a custodian that verifies, the others."""
    shape, rows, training = layout(manifest), manifest.row_counts, manifest.training
    params, custodians, degree = manifest.ckks, len(manifest.custodians), training.degree
    size = demand.Sizes.of(shape, params, rows, degree)
    prices, machine = demand.Prices.of(shape, degree), demand.Machine(threads=1)
    found = (custodians - 1) * (size.contributions + size.keys + training.steps * size.share)
    for server in (True, False):
        own = demand.demand(shape, params, rows, custodians, degree, prices, machine, server=server)
        found += own.disk_bytes + training.steps * own.step_disk_bytes
    return found


def verifying(manifest: Manifest) -> str:
    """What a custodian needs to verify with this machine alone, in lockstep or by an audit of somebody's."""
    shape, rows, training = layout(manifest), manifest.row_counts, manifest.training
    params, custodians, threads = manifest.ckks, len(manifest.custodians), os.cpu_count() or 1
    prices, machine = demand.Prices.of(shape, training.degree), demand.Machine(threads)
    own = demand.demand(shape, params, rows, custodians, training.degree, prices, machine)
    audit = demand.audit(shape, params, rows, custodians, training.degree, prices, machine, training.steps)
    speed = LayoutConfig().link_mbyte_s
    step = own.compute_seconds + own.refresh_seconds
    whole = own.once_seconds + step * training.steps
    return (
        f"lockstep     a custodian that verifies without a cluster, {threads} thread(s): at least {whole:.0f} s, "
        f"{step:.1f} a step; {own.memory_bytes / 1e9:.1f} GB of memory, "
        f"{(own.disk_bytes + training.steps * own.step_disk_bytes) / 1e9:.2f} of disk; "
        f"{own.once_bytes / 1e9:.2f} GB before the first step, {own.once_bytes / 1e6 / speed:.0f} s at {speed:g} MB/s; "
        f"then {own.step_bytes / 1e6:.1f} MB a step, for which {own.step_bytes / 1e6 / step:.1f} MB/s are enough\n"
        f"audit        of the whole run, by anybody whom a custodian trusts with it, {threads} thread(s): at least "
        f"{audit.seconds:.0f} s; {own.memory_bytes / 1e9:.1f} GB of memory; a copy of {audit.read_bytes / 1e9:.2f} GB "
        f"of the server's folder, {audit.read_bytes / 1e6 / speed:.0f} s at {speed:g} MB/s; no key, no data"
    )


def warnings(manifest: Manifest) -> list[str]:
    """What everybody must be told who signs."""
    few = manifest.rows > 4 * manifest.founder_rows
    anybody = ANYBODY_LEFT_OUT.format(least=manifest.most_founders, all=len(manifest.founders))
    return [
        *([cost.SHARED_BLOCKS] if manifest.share_blocks else []),
        *([FEW_ROWS] if few else []),
        *([anybody] if manifest.closing is not None else []),
        TRUST,
    ]


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
