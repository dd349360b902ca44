"""What a GPU does for institutions, on one that is at hand: ``make gpu-check``.

::

    features    the same images on the CPU and on the GPU, float32: they agree to what institutions ask of each other
    throughput  images per second through a segment in bfloat16, as in features with ``precision`` or fine-tuning
    demo        `focal train --config demo` with institutions on the GPU; server and custodians stay on the CPU
    fine-tune   20 joint steps of an interactive run, the segment in ``bf16-mixed``
          |
          v
    docs/gpu.md: the card's name, each figure, and whether all was as it should be

Nothing is downloaded: weights are random, images generated. Every part takes a device, so that tests run it on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from focal import configs
from focal.config import DatasetConfig, InteractiveConfig, InteractiveRunConfig, LowerConfig, RunConfig
from focal.data.synthetic import generate
from focal.errors import FocalError
from focal.files import private_write
from focal.measure.losses import read_losses
from focal.measure.summary import read_summary
from focal.reading import read
from focal.runs import local
from focal.segments.lower import FEATURE_TOLERANCE, build_lower, preprocess
from focal.telling import Say
from focal.training.features import compute_features

Work = Callable[[], tuple[str, bool]]
"""A part: what was found, in words, and whether it is as it should be."""

COMPARED = (
    LowerConfig(model="tf_efficientnet_lite0", cut=("blocks.4", "blocks.5"), pool="mean+std", image_size=224),
    LowerConfig(model="vit_base_patch16_224", image_size=224),
)
"""Convolutions and attention: a GPU rounds both in its own way (:func:`focal.training.vectors.full_precision`)."""
TIMED = (
    (LowerConfig(model="vit_base_patch16_224", image_size=224), 256),
    (LowerConfig(model="vit_large_patch16_224", image_size=224), 128),
)
"""With how many images at a time: enough to fill a large card."""
SECONDS = 3.0
"""How long a segment is timed."""


@dataclass(frozen=True)
class Part:
    """One line of the page."""

    name: str
    found: str
    good: bool
    seconds: float


def missing() -> str | None:
    """Why there is nothing to check here; ``None`` where there is a usable GPU."""
    return None if torch.cuda.is_available() else "torch finds no usable GPU"


def card(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "the CPU"


# --------------------------------------------------------------------------- parts


def features(config: LowerConfig, device: str, images: int = 16) -> tuple[str, bool]:
    """The largest difference of a feature between CPU and ``device``, and whether institutions would accept it."""
    table = generate(images, 0)
    found: list[NDArray[np.float32]] = []
    with TemporaryDirectory() as folder:
        for where in ("cpu", device):
            segment, _ = build_lower(config, "random:0")
            cache = Path(folder) / f"{len(found)}"  # each computes
            found.append(compute_features(segment, table, np.arange(images), device=where, cache=cache))
    here, there = found
    far = float(np.abs(here - there).max())
    text = f"features differ by {far:.1e} at most, of {np.abs(here).max():.2g} (allowed: {FEATURE_TOLERANCE:g})"
    return text, math.isfinite(far) and far <= FEATURE_TOLERANCE


def throughput(config: LowerConfig, device: str, size: int, seconds: float = SECONDS) -> tuple[str, bool]:
    """Images per second in bfloat16, ``size`` at a time, that lie on the device already: what it could do if
    decoding kept up."""
    segment, _ = build_lower(config, "random:0")
    segment.to(device)
    image = preprocess(generate(8, 0).images.read(0), segment.spec)
    x = image.repeat(size, 1, 1, 1).to(device)
    done, took = 0, 0.0
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
        out = segment(x)  # not timed: kernels are chosen, memory is taken
        _wait(device)
        start = time.perf_counter()
        while took < seconds:
            out = segment(x)
            _wait(device)
            done, took = done + size, time.perf_counter() - start
    return f"{done / took:.0f} images/s in bfloat16, {size} at a time", bool(torch.isfinite(out).all())


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def demo(config: RunConfig, device: str, runs: Path) -> tuple[str, bool]:
    """A whole run with institutions on ``device``."""
    run = local.open_run(config.model_copy(update={"name": f"{config.name}-{device}", "device": device}), runs)
    summary = read_summary(local.train(run, lambda event: None, lambda text: None))
    error, seconds = summary.max_abs_weight_error, summary.seconds
    text = (
        f"AUROC {summary.auroc.encrypted:.3f}, features {seconds.features:.1f} s, {seconds.total:.0f} s in all; "
        f"released weights within {error:.1e} of the twin's"
    )
    return text, error is not None and error <= 1e-3


def fine_tuning(config: InteractiveRunConfig, device: str, runs: Path) -> tuple[str, bool]:
    """A whole interactive run with institutions on ``device``, mixed precision and all."""
    run = local.open_run(config.model_copy(update={"name": f"{config.name}-{device}", "device": device}), runs)
    summary = read_summary(local.train(run, lambda event: None, lambda text: None))
    logs = [read_losses(run.party(name) / "lightning") for name in summary.auroc.institutions or {}]
    steps = config.interactive.steps
    losses = [np.mean([log[step] for log in logs]) for step in range(steps)]
    text = (
        f"{steps} joint steps in {config.precision}: {summary.seconds.train / steps:.2f} s each, mean loss "
        f"{losses[0]:.3f} at first and {losses[-1]:.3f} at last"
    )
    return text, bool(np.isfinite(losses).all())


def tuned(lower: LowerConfig, data: DatasetConfig, steps: int = 20) -> InteractiveRunConfig:
    """What is fine-tuned: the last two blocks, from a random bottleneck and a head of zeros."""
    joint = InteractiveConfig(steps=steps, batch=32, trainable="last", blocks=2)
    return InteractiveRunConfig(
        name="gpu-finetune", dataset=data, lower=lower, interactive=joint, precision="bf16-mixed"
    )


# --------------------------------------------------------------------------- the check


def parts(device: str, runs: Path) -> Iterator[tuple[str, Work]]:
    """All of it, in order: (name, what to do)."""
    for config in COMPARED:
        yield f"{config.model}, CPU and GPU", partial(features, config, device)
    for config, size in TIMED:
        yield config.model, partial(throughput, config, device, size)
    ready = read(RunConfig, configs.find("demo"))
    yield "demo", partial(demo, ready, device, runs)
    yield "fine-tuning", partial(fine_tuning, tuned(ready.lower, ready.dataset), device, runs)


def check(device: str, chosen: Iterable[tuple[str, Work]], page: Path, say: Say) -> bool:
    """Do all ``chosen`` parts, say each, write ``page``; whether all were good. One that fails is a line of the page,
    and the others go on."""
    found = []
    for name, work in chosen:
        start = time.perf_counter()
        try:
            text, good = work()
        except (FocalError, RuntimeError) as e:  # RuntimeError: what torch raises when a card has no room
            text, good = f"failed: {str(e).splitlines()[0]}", False
        found.append(Part(name, text, good, time.perf_counter() - start))
        say(f"{name}: {text} ({found[-1].seconds:.0f} s)" + ("" if good else "  <-- not as it should be"))
    private_write(page, written(card(device), found, date.today()).encode())
    page.chmod(0o644)
    say(f"written: {page}")
    return all(part.good for part in found)


def written(name: str, found: Sequence[Part], day: date) -> str:
    """The page."""
    lines = [
        "# On a GPU",
        "",
        f"`make gpu-check` wrote this on {day.isoformat()}, with torch {torch.__version__} on",
        f"**{name}**. Institutions compute on the GPU, server and custodians on the CPU. Weights are random and images",
        "generated, so that nothing is downloaded; AUROC and losses say that it works, and nothing about medicine.",
        "",
        "| part | found | as it should be | seconds |",
        "|---|---|---|---|",
    ]
    lines += [f"| {p.name} | {p.found} | {'yes' if p.good else '**no**'} | {p.seconds:.0f} |" for p in found]
    return "\n".join(lines) + "\n"
