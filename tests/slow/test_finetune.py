"""``focal train`` with the interactive protocol, torch and all: from a blind run's head,
and on from there under a new key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from consortium import SAMPLES, config, dataset, focal, runs, said, write_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from focal.config import InteractiveConfig
from focal.measure.losses import read_losses
from focal.measure.summary import read_summary
from focal.segments.projection import Projection
from focal.segments.upper import ReleasedModel, load

JOINT: dict[str, Any] = {
    "steps": 4,
    "batch": 8,
    "features": 32,
    "average_every": 2,
    "head_rate": 0.1,
    "min_rows_of_others": 16,
}


def write_joint(folder: Path, name: str, start: str | None, *, logger: str = "csv", **changes: Any) -> Path:
    path, joint = (
        folder / f"{name}.yaml",
        {"protocol": "interactive", "interactive": {**JOINT, **changes}, "start": start},
    )
    path.write_text(yaml.safe_dump(config(name, **joint, logger=logger)))
    return path


def test_without_a_model_to_start_from_the_bottleneck_is_a_blind_runs_projection(tmp_path: Path) -> None:
    said(focal("train", "--config", write_joint(tmp_path, "afresh", None, trainable="bottleneck"), "--runs", runs()))
    summary = read_summary(runs() / "afresh")
    assert summary.max_abs_weight_error is not None and summary.max_abs_weight_error < 1e-3
    assert summary.params["loss_difference"] < 0.01
    agreed = {path.read_bytes() for path in (runs() / "afresh").glob("parties/hospital-*/projection.bin")}
    assert len(agreed) == 1
    projection, model = Projection.from_bytes(agreed.pop()), load(runs() / "afresh")[0]
    moved = np.abs(model.matrix.numpy() - projection.matrix).max()  # a step of AdamW moves a value by its rate, about
    assert (
        0 < moved < 1.5 * JOINT["steps"] * InteractiveConfig().bottleneck_rate < 0.1 * np.abs(projection.matrix).max()
    )
    assert model.bound == projection.bound


def test_fine_tuning_starts_from_a_blind_run_and_goes_on_under_a_new_key(tmp_path: Path) -> None:
    write_config(tmp_path, "frozen")
    first = write_joint(tmp_path, "tuned", "frozen.yaml", trainable="last", blocks=1, logger="tensorboard")
    output = said(focal("train", "--config", first, "--runs", runs()))
    assert "starts from" in output and (runs() / "frozen" / "summary.json").exists(), "the blind run was not made first"
    summary = read_summary(runs() / "tuned")
    assert summary.protocol == "interactive" and summary.steps == 4
    assert summary.max_abs_weight_error is not None and summary.max_abs_weight_error < 1e-3
    assert (
        summary.auroc.plaintext_twin is not None and abs(summary.auroc.encrypted - summary.auroc.plaintext_twin) < 0.01
    )
    assert summary.params["loss_difference"] < 0.01
    logged = (
        EventAccumulator(str(next((runs() / "tuned/parties/hospital-a/lightning/tensorboard").iterdir())))
        .Reload()
        .Scalars("loss")
    )
    assert [point.value for point in logged] == pytest.approx(
        list(read_losses(runs() / "tuned/parties/hospital-a/lightning").values())
    )
    assert {"openings", "average"} <= set(summary.bytes["hospital-a"].by_phase)

    frozen, tuned = load(runs() / "frozen")[0], load(runs() / "tuned")[0]
    moved = np.abs(tuned.weights.numpy() - frozen.weights.numpy()).max()
    assert 1e-4 < moved < 1, "the head did not begin at the blind one, or did not move"
    assert tuned.trained and not frozen.trained
    evaluated = focal(
        "evaluate", runs() / "tuned", "--table", dataset().table, "--images", dataset().images, "--allow-seen"
    )
    assert f"on {SAMPLES} images" in said(evaluated)
    assert (
        ReleasedModel.load(runs() / "tuned").lower.spec.weights_sha256
        != ReleasedModel.load(runs() / "frozen").lower.spec.weights_sha256
    )

    second = write_joint(
        tmp_path, "further", str(runs() / "tuned"), trainable="last", blocks=1, max_openings_per_key=12
    )
    output = said(focal("train", "--config", second, "--runs", runs()))
    assert "the key allows 3 of 4 steps: continue in a new run with start: RUN" in output
    further = read_summary(runs() / "further")
    assert further.steps == 3 and further.max_abs_weight_error is not None and further.max_abs_weight_error < 1e-3

    third = write_joint(tmp_path, "other", str(runs() / "tuned"), trainable="norm")
    assert "use the same 'interactive.trainable'" in said(focal("train", "--config", third, "--runs", runs()))
