"""Benchmarks as a person starts them: JSON on the last line."""

from __future__ import annotations

import json
import subprocess
import sys

from consortium import cli
from joint import SLOTS
from patience import PATIENCE

from focal.heads.joint.layout import InteractiveLayout


def test_the_benchmark_prints_json_last() -> None:
    """In a process of its own: closing its scheme forgets the evaluation keys of every other test."""
    command = [
        sys.executable,
        "-m",
        "focal",
        "bench",
        "interactive",
        *["--features", "32", "--classes", "2", "--owners", "3", "--steps", "3", "--threads", "1", "--json"],
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    numbers = json.loads(done.stdout.splitlines()[-1])
    assert numbers["server_ms_per_step"] > 0
    assert numbers["rotation_keys"] == len(InteractiveLayout(SLOTS, 32, 2).rotations)
    errors = numbers["max_errors"]
    assert errors["weights"] < 1e-3
    # 1280 logits, each with the smudging of three custodians (2^-11.2): six deviations;
    # gradients relative to all of them together
    assert errors["logits"] < 1e-4 + 6 * 2**-11.2 and errors["activation_gradients_relative"] < 5e-3
    assert numbers["custodian_bytes_per_step"] < 12e6


def test_bench_head_prints_json_on_its_last_line() -> None:
    result = cli("bench", "head", "--rows", 64, "--features", 32, "--classes", 2, "--steps", 1, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.strip().splitlines()[-1])["ms_per_step"] > 0


def test_bench_refresh_counts_the_cpu_of_every_role() -> None:
    """In processes of their own. Nothing is asserted of how much it is, but that all of it was counted."""
    result = cli("bench", "refresh", "--items", 8, "--custodians", 2, "--json")
    assert result.returncode == 0, result.stderr
    numbers = json.loads(result.stdout.splitlines()[-1])
    assert (numbers["items"], numbers["custodians"]) == (8, 2)
    for role in ("server", "guard", "custodian"):
        assert all(numbers[role][f"{part}_cpu_ms"] > 0 for part in ("arithmetic", "encryption", "rest"))
