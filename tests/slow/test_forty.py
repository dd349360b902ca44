"""Forty institutions as processes of their own on this machine, most of them clinics that come once."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from consortium import QUICK, Process, elsewhere, free_port
from patience import PATIENCE

from focal.config import ConsortiumConfig, DatasetConfig, ProjectionConfig, TrainingConfig
from focal.heads.linear import twin
from focal.heads.released import MAX_ERROR
from focal.reading import write
from focal.runs.simulate import _agreed
from focal.segments.projection import Projection

FOUNDERS = ("a", "b", "c")
CLINICS = tuple(f"clinic-{i}" for i in range(37))
WIDTH, CLASSES, STEPS = 31, 3, 2

TELL = """
import sys
def _save_and_tell(self, save=Institution._save_model):
    save(self)
    private_write(self.folder / "torch", str("torch" in sys.modules).encode())
Institution._save_model = _save_and_tell
"""
"""An institution also tells whether its process has torch."""


def test_forty_institutions_as_processes(tmp_path: Path) -> None:
    """Sockets, boards and files of 44 processes: all have the weights that the rows of all give, without torch in
    those that have no images."""
    counts = {name: 12 + i % 9 for i, name in enumerate((*FOUNDERS, *CLINICS))}
    consortium = ConsortiumConfig(institutions=FOUNDERS, clinics=CLINICS, custodians=2, share_blocks=True)
    manifest, files = _agreed(
        tmp_path, counts, WIDTH, tuple("xyz"), "multiclass", consortium,
        ProjectionConfig(features=32), TrainingConfig(steps=STEPS),
    )  # fmt: skip
    write(manifest, tmp_path / "manifest.json")
    rows = {}
    for i, (name, count) in enumerate(counts.items()):
        labels = np.eye(CLASSES, dtype=np.uint8)[np.arange(count) % CLASSES]
        features = np.random.default_rng(i).normal(size=(count, WIDTH)).astype(np.float32)
        features[:, :CLASSES] += 2 * labels
        rows[name] = features, labels
        many = {"groups": np.arange(count).astype(str), "split": np.full(count, "train")}
        np.savez(tmp_path / name / "given.npz", features=features, labels=labels, **many)  # type: ignore[arg-type]
    for name, own in files.items():
        images = {"data": DatasetConfig(kind="synthetic"), "weights": "random:0"} if name in counts else {}
        write(own.model_copy(update={**images, "stay": name in CLINICS}), tmp_path / name / "local.json")

    there = elsewhere("tcp://127.0.0.1:1", f"tcp://127.0.0.1:{free_port()}")
    processes = [
        Process(
            member.role,
            tmp_path / "manifest.json",
            tmp_path / member.name / "local.json",
            prelude=there + (QUICK + TELL if member.role == "institution" else ""),
            wait=PATIENCE,
        )
        for member in manifest.members
    ]
    try:
        deadline = time.monotonic() + 2 * PATIENCE
        for process in processes:
            assert process.end(max(1.0, deadline - time.monotonic())) == 0, process.stands()
    finally:
        for process in processes:
            if process.child.poll() is None:
                process.child.kill()
                process.child.wait()

    released = {(tmp_path / name / "weights.bin").read_bytes() for name in counts}
    assert len(released) == 1, "institutions decoded different weights"
    projection = Projection.from_bytes((tmp_path / "a" / "projection.bin").read_bytes())
    columns = np.concatenate([projection.apply(features) for features, _ in rows.values()])
    targets = 0.5 - np.concatenate([labels for _, labels in rows.values()]).astype(float)
    scalars = twin.Scalars.derive(3, projection.eta, 0.1, len(columns))
    exact = twin.train(columns, targets, scalars, STEPS)[0]
    assert np.abs(np.frombuffer(released.pop()).reshape(exact.shape) - exact).max() < MAX_ERROR
    assert {(tmp_path / name / "torch").read_text() for name in CLINICS} == {"False"}
