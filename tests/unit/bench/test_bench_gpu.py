"""The check of a GPU, on a CPU: what each part says, when it is not as it should be, and that nothing is done
without a GPU."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import date
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from places import ROOT
from typer.testing import CliRunner

from focal.bench import gpu
from focal.bench.gpu import Part, Work, check, features, missing, parts, throughput, tuned, written
from focal.cli import app
from focal.config import LowerConfig
from focal.errors import FocalError
from focal.segments.lower import FEATURE_TOLERANCE, build_lower

SMALL = LowerConfig(model="test_vit", image_size=64)


def test_the_same_device_gives_the_same_features_and_another_arithmetic_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, good = features(SMALL, "cpu", images=8)
    assert good and text.startswith("features differ by 0.0e+00")

    def off(by: float, *args: Any, device: str, **rest: Any) -> np.ndarray:
        return np.full((8, 4), 0.5 + (by if device == "cuda" else 0), np.float32)

    for by, wanted in ((0.9 * FEATURE_TOLERANCE, True), (1.1 * FEATURE_TOLERANCE, False), (float("nan"), False)):
        monkeypatch.setattr(gpu, "compute_features", partial(off, by))
        assert features(SMALL, "cuda", images=8)[1] == wanted


def test_images_per_second_are_counted_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps by a second with every look: two batches of five fill the two seconds that are asked for."""
    seen: list[tuple[int, torch.dtype]] = []
    segment, source = build_lower(SMALL, "random:0")
    segment.backbone.blocks[0].attn.qkv.register_forward_hook(lambda _m, _i, y: seen.append((len(y), y.dtype)))
    monkeypatch.setattr(gpu, "build_lower", lambda *_: (segment, source))
    ticks: Iterator[int] = iter(range(100))
    monkeypatch.setattr(gpu, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    text, good = throughput(SMALL, "cpu", 5, seconds=2.0)
    assert good and text == "5 images/s in bfloat16, 5 at a time"
    assert seen == [(5, torch.bfloat16)] * 3  # the first one is not timed


def test_a_part_that_fails_is_a_line_and_the_others_go_on(tmp_path: Path) -> None:
    def full() -> tuple[str, bool]:
        raise RuntimeError("CUDA out of memory\nand much more")

    def broken() -> tuple[str, bool]:
        raise FocalError("a run ended", hint="look at its log")

    said: list[str] = []
    chosen: list[tuple[str, Work]] = [("a", full), ("b", broken), ("c", lambda: ("as it was", True))]
    assert not check("cpu", chosen, tmp_path / "gpu.md", said.append)
    page = (tmp_path / "gpu.md").read_text()
    assert "| a | failed: CUDA out of memory | **no** |" in page and "| b | failed: a run ended" in page
    assert "| c | as it was | yes |" in page and "and much more" not in page
    assert check("cpu", chosen[2:], tmp_path / "gpu.md", said.append)
    with pytest.raises(ValueError, match="a mistake of ours"):
        check("cpu", [("d", lambda: int("a mistake of ours"))], tmp_path / "gpu.md", said.append)  # type: ignore[list-item,return-value]


def test_the_page_names_the_card_and_the_day() -> None:
    page = written("NVIDIA H200", [Part("demo", "well", True, 61.4)], date(2026, 11, 29))
    assert "**NVIDIA H200**" in page and "2026-11-29" in page and "| demo | well | yes | 61 |" in page


def test_everything_that_was_asked_for_is_a_part() -> None:
    named = [name for name, _ in parts("cuda", Path("runs"))]
    assert named[-2:] == ["demo", "fine-tuning"] and {"vit_base_patch16_224", "vit_large_patch16_224"} <= set(named)
    joint = tuned(SMALL, gpu.read(gpu.RunConfig, gpu.configs.find("demo")).dataset)
    assert (joint.interactive.steps, joint.precision) == (20, "bf16-mixed")


@pytest.mark.skipif(missing() is None, reason="there is a GPU here: make gpu-check")
def test_without_a_gpu_it_is_skipped_and_says_so(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    done = CliRunner().invoke(app, ["bench", "gpu", "--page", str(page), "--runs", str(tmp_path / "runs")])
    assert done.exit_code == 0 and "skipped, torch finds no usable GPU" in done.output.replace("\n", " ")
    assert not list(tmp_path.iterdir())
    # with wheels: before any is looked at
    made = subprocess.run(
        ["bash", "scripts/gpu-check.sh"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "WHEELS": str(tmp_path / "none"), "PYTHON": "/usr/bin/python3"},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0 and "GPU check: skipped" in made.stdout, made.stderr
