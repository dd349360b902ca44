"""What a local interactive run is compared with: its plaintext twin, every institution alone, all rows pooled.

The twin repeats the run in the clear with the very modules, batches and averages of the institutions, and with
the same ones absent in the same steps. The baselines are logistic regressions on the initial segment's
features, as in the blind protocol. Where the configuration asks for it, so does FedAvg of the whole network
(:mod:`focal.baselines.whole`), and released models of other runs are scored on the same test patients.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from focal.baselines.whole import federate_whole
from focal.config import DatasetConfig, InteractiveRunConfig, LocalConfig
from focal.data import load
from focal.data.begun import check_unchanged
from focal.data.rows import InstitutionRows
from focal.errors import FocalError
from focal.manifest import Manifest
from focal.measure.losses import loss_difference, read_losses
from focal.net import messages as msg
from focal.protocols.common.audit import recorded
from focal.protocols.common.institution import PROJECTION
from focal.protocols.interactive import plan
from focal.protocols.interactive.beginning import beginning
from focal.reading import read
from focal.runs.compare import LocalScores, compare_scores
from focal.runs.folder import Run
from focal.segments.lower import build_lower
from focal.segments.projection import Projection
from focal.segments.upper import load as load_model
from focal.segments.upper import lower_segment
from focal.training.features import compute_features
from focal.training.joint import Site, Trained, train_jointly
from focal.training.joint import scores as twin_scores

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Member:
    """An institution of a local run, as the launcher may see it."""

    data: DatasetConfig
    weights: str
    folder: Path


def compare(run: Run, manifest: Manifest, say: Callable[[str], None]) -> tuple[LocalScores, dict[str, Any]]:
    """Scores of the released model beside twin and baselines; and what else the summary should say."""
    members = {}
    for m in manifest.institutions:
        local = read(LocalConfig, run.party(m.name) / "local.json")
        assert local.data is not None and local.weights is not None
        members[m.name] = Member(local.data, local.weights, run.party(m.name))
    config = run.config
    assert isinstance(config, InteractiveRunConfig)
    return _compared(
        manifest,
        members,
        run.party(manifest.server.name),
        run.folder,
        run.folder.parent / "cache",
        start=config.start,
        fedavg=config.fedavg,
        beside=config.beside,
        device=config.device,
        seed=config.seed,
        say=say,
    )


def _compared(
    manifest: Manifest,
    members: Mapping[str, Member],
    store: Path,
    folder: Path,
    cache: Path,
    *,
    start: Path | None,
    fedavg: bool,
    beside: Sequence[Path],
    device: str,
    seed: int,
    say: Callable[[str], None],
) -> tuple[LocalScores, dict[str, Any]]:
    """Scores of the released model beside twin and baselines; and what else the summary should say.
    ``store``: the server's folder."""
    config, task = plan.schedule(manifest), manifest.task
    tables = {
        name: load(m.data.model_copy(update={"classes": manifest.classes, "task": task}), seed)
        for name, m in members.items()
    }
    for name, m in members.items():
        check_unchanged(m.folder, tables[name])
    first = next(iter(members))
    source = members[first].weights
    lower, _ = build_lower(manifest.lower, source)
    heads = {name: load_model(m.folder)[0] for name, m in members.items()}
    for name, head in heads.items():
        if not torch.equal(head.weights, heads[first].weights):
            raise FocalError(f"'{name}' decoded other weights than '{first}' from the same shares", hint="report this")
        if any(not torch.equal(value, heads[first].trained[key]) for key, value in head.trained.items()):
            say(
                f"'{name}' ended with another lower segment than '{first}': it was absent in the last average; "
                f"scored is that of '{first}'"
            )

    rows = {}
    for name, table in tables.items():
        wanted = np.flatnonzero(np.isin(table.split, ("train", "val", "test")))
        features = compute_features(lower, table, wanted, device=device, cache=cache)
        rows[name] = InstitutionRows(features, table.labels[wanted], table.groups[wanted], table.split[wanted])
    held = "test" if any((t.split == "test").any() for t in tables.values()) else "val"

    def released(folder: Path, source: str | None = None) -> Array:
        head, meta = load_model(folder)
        segment = lower_segment(meta, source, head.trained)
        raw = [
            compute_features(segment, table, np.flatnonzero(table.split == held), device=device, cache=cache)
            for table in tables.values()
        ]
        return head(torch.from_numpy(np.concatenate(raw))).double().numpy()

    head, encrypted = heads[first], released(members[first].folder, source)
    others = {Run.open(other).config.name: released(other) for other in beside}

    say("the plaintext twin repeats the run in the clear ...")
    torch.set_num_threads(
        os.cpu_count() or 1
    )  # no ciphertext is computed here any more (focal.ckks limits OpenMP to one thread)
    begun = beginning(start, config) if start else None
    projection = begun.projection if begun else Projection.from_bytes((members[first].folder / PROJECTION).read_bytes())
    sites = {name: Site(table, np.flatnonzero(table.split == "train")) for name, table in tables.items()}
    absent = absences(manifest, store)

    def in_the_clear(train: Callable[..., Trained], name: str) -> tuple[Trained, Array]:
        made = train(
            lower,
            config,
            sites,
            folder=folder / name,
            start=projection,
            base=begun.base if begun else None,
            trained=begun.trained if begun else None,
            seed=config.seed,
            device=device,
            absent=lambda step, member: member in absent.get(step, ()),
        )
        parts = [
            twin_scores(made.segment, made.weights, table, np.flatnonzero(table.split == held))
            for table in tables.values()
        ]
        return made, np.concatenate(parts)

    twin, in_clear = in_the_clear(train_jointly, "twin")
    if fedavg:
        say("FedAvg of the whole network, at the same rhythm of averages, in the clear ...")
        others = {"fedavg": in_the_clear(federate_whole, "fedavg")[1], **others}

    error = float(np.abs(head.weights.numpy() - twin.weights).max())
    found = compare_scores(rows, encrypted, in_clear, error, task, seed=seed, others=others)
    ours = [read_losses(m.folder / "lightning") for m in members.values()]
    difference = loss_difference(ours, [read_losses(folder / "twin" / name) for name in members])
    return found, {} if difference is None else {"loss_difference": difference}


def absences(manifest: Manifest, store: Path) -> dict[int, set[str]]:
    """Joint step -> the institutions that it went on without, from the server's board."""
    names = {m.name for m in manifest.institutions}
    out: dict[int, set[str]] = {}
    for record in recorded(manifest, store):
        if isinstance(record.body, msg.Present) and record.topic.startswith("answered/"):
            out[record.body.step] = names - set(record.body.owners)
    return out
