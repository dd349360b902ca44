"""Joint steps as processes over sockets, encrypted and in plaintext."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from focal.bench.result import Result
from focal.config import InteractiveRunConfig, RunConfig
from focal.errors import FocalError
from focal.files import private_write
from focal.protocols import of
from focal.reading import read
from focal.runs import local


def split(config_file: Path, runs: Path, steps: int) -> Result:
    """Seconds per joint step of interactive training, encrypted and then in plaintext:
    the same configuration, modules and sockets.

    Counted is from the second step on, when all have started and the head is not zero any more.
    """
    config = read(RunConfig, config_file)
    if not of(config).joint:
        raise FocalError(f"{config_file} is of protocol {config.protocol}", hint="name an interactive configuration")
    assert isinstance(config, InteractiveRunConfig)
    settings = config.interactive.model_copy(update={"steps": steps})
    took, traffic = {}, {}
    for name, module, roles in (
        ("encrypted", "focal", ("server", "custodian", "institution")),
        ("plaintext", "focal.protocols.interactive.plain", ("server", "institution")),
    ):
        run = local.open_run(
            config.model_copy(update={"name": f"bench-{name}", "interactive": settings, "start": None}), runs
        )
        manifest = local.prepare(run, lambda text: None)
        at: dict[int, float] = {}

        def note(event: dict[str, Any], at: dict[int, float] = at, server: str = manifest.server.name) -> None:
            if (event["party"], event["event"], event.get("phase")) == (server, "progress", "train"):
                at.setdefault(int(event["done"]), time.perf_counter())

        with local.Processes(run, manifest, module, roles) as processes:
            processes.follow(note)
        private_write(run.folder / "failed", b"a benchmark: not to be continued\n")
        took[name] = (at[max(at)] - at[1]) / (max(at) - 1)
        traffic[name] = {m.name: local.journal_traffic(run.party(m.name)) for m in manifest.members if m.role in roles}
    per_step = {
        name: {
            way: sum(phases.get(p, {}).get(way, 0) for p in ("upload", "openings", "refresh")) / steps / 1e6
            for way in ("up", "down")
        }
        for name, phases in traffic["encrypted"].items()
    }
    numbers = {
        "encrypted_s_per_step": took["encrypted"],
        "plaintext_s_per_step": took["plaintext"],
        "ratio": took["encrypted"] / took["plaintext"],
        "mb_per_step": per_step,
    }
    text = (
        f"{config.name}, {steps} joint steps over sockets: {took['encrypted']:.2f} s per step encrypted, "
        f"{took['plaintext']:.2f} s in plaintext, ratio {numbers['ratio']:.2f} (target: at most 1.3)\n"
    )
    parts = [f"{name} {mb['up']:.1f} up, {mb['down']:.1f} down" for name, mb in per_step.items()]
    return Result(text + "  MB per step, averages apart: " + "; ".join(parts), numbers)
