"""The two whole runs of the check of a GPU, on the CPU and small: institutions compute where they are told to, in the
precision that they are told."""

from __future__ import annotations

import json
from pathlib import Path

import consortium

from focal.bench.gpu import demo, fine_tuning
from focal.config import InteractiveRunConfig, RunConfig

JOINT = {
    "steps": 4,
    "batch": 8,
    "features": 32,
    "average_every": 2,
    "min_rows_of_others": 16,
    "trainable": "last",
    "blocks": 1,
}


def test_a_whole_demo(tmp_path: Path) -> None:
    text, good = demo(RunConfig.model_validate(consortium.config("eyes")), "cpu", tmp_path)
    assert good and text.startswith("AUROC 0.") and (tmp_path / "eyes-cpu" / "summary.json").exists()


def test_fine_tuning_in_mixed_precision(tmp_path: Path) -> None:
    config = consortium.config("tuned", protocol="interactive", interactive=JOINT, precision="bf16-mixed")
    text, good = fine_tuning(InteractiveRunConfig.model_validate(config), "cpu", tmp_path)
    assert good and text.startswith("4 joint steps in bf16-mixed")
    for party in (tmp_path / "tuned-cpu" / "parties").glob("hospital-*"):
        local = json.loads((party / "local.json").read_text())
        assert (local["device"], local["precision"]) == ("cpu", "bf16-mixed")
