"""Interactive runs without torch: the real roles, sockets and keys, and an institution whose lower segment
is a table of activations.

``given.npz`` of an institution holds its activations (n, R) and labels (n, C). Each joint step it brings the same rows,
takes the derivatives of squared errors, and keeps what was opened to it in ``opened.npz``, with the number of the last
average that it went to. Its "parameters" are three numbers, to be averaged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from consortium import Consortium

from focal.heads.joint.twin import Update, twin_step
from focal.protocols.interactive.plan import batch

PRELUDE = """
import sys, types, time, os
import numpy as np
split = types.ModuleType("focal.training.split")
class Skipped(Exception):
    def __init__(self, message="", resume=None):
        super().__init__(message)
        self.resume = resume
split.Skipped = Skipped
sys.modules["focal.training.split"] = split
from focal.files import private_write
from focal.protocols.common.institution import Institution
from focal.protocols.interactive import plan
from focal.protocols.interactive.institution import JointInstitution as J

def prepare(self):
    with np.load(self.folder / "given.npz") as f:
        self.x, self.labels = f["x"], f["labels"]
    self.base = None

def fine_tune(self, upper, counts):
    step, parameters = upper.joining()
    every, total = self.config.average_every, self.config.steps
    own = np.arange(3.0) + ord(self.me.name[-1]) / 100 if parameters is None else parameters
    opened = {"rounds": np.array(step // every)}
    path = self.folder / "opened.npz"
    if path.exists():
        with np.load(path) as f:
            opened = dict(f)
    def average(due):
        nonlocal own
        if due > opened["rounds"]:
            opened["rounds"] = np.array(due)
            try:
                own = upper.average(due, own, len(self.x))
                opened[f"average/{due}"] = own
            except Skipped:
                pass
    while step < total:
        try:
            average(step // every)
            PAUSE(self, step)
            z = upper.logits(step, self.x)
            delta = z - self.labels
            g = upper.gradients(step, delta)
            opened[f"z/{step}"], opened[f"g/{step}"] = z, g
            np.savez(path, **opened)
            step += 1
        except Skipped as e:
            step = max(step + 1, e.resume or 0)
    average(-(-total // every))
    np.savez(path, **opened)

def _save_model(self):
    private_write(self.folder / "weights.bin", self.weights.tobytes())
    private_write(self.folder / "velocity.bin", self.velocity.tobytes())

def PAUSE(self, step): ...

J.prepare, J.fine_tune, J._save_model = prepare, fine_tune, _save_model
J.compare_test_features = lambda self: None
J.agree_start = lambda self: self.labels.sum(axis=0)
J.score = lambda self: None
"""

PLAIN_SPLIT = """
import sys
from focal.protocols.interactive.plain import main
main(sys.argv[1:])
sys.exit()
"""
"""Prelude of a party that takes part in plaintext split learning instead."""

UPDATE = Update(rate=0.2, momentum=0.5)


class JointConsortium(Consortium):
    """Four institutions, two custodians, the first of them lockstep; six steps of eight rows each,
    five of hospital-d."""

    def __init__(
        self, name: str, *, verify: str = "first", consortium: dict[str, Any] | None = None, **interactive: Any
    ) -> None:
        chosen = {
            "steps": 6, "batch": 8, "features": 32, "head_rate": UPDATE.rate, "momentum": UPDATE.momentum,
            "average_every": 2, "batches": {"hospital-d": 5}, "straggler_seconds": 60, "min_rows_of_others": 16,
            **interactive,
        }  # fmt: skip
        members = {"institutions": 4, "custodians": 2, "verify": verify, **(consortium or {})}
        super().__init__(name, quick=False, protocol="interactive", interactive=chosen, consortium=members)
        for name_ in self.institutions:
            rng, n = np.random.default_rng(ord(name_[-1])), batch(self.manifest, name_)
            x = np.hstack([rng.uniform(-1, 1, (n, 31)), np.ones((n, 1))])
            labels = np.eye(len(self.manifest.classes))[rng.integers(0, len(self.manifest.classes), n)]
            np.savez(self.folder(name_) / "given.npz", x=x, labels=labels)

    def start(self, *names: str, prelude: str = "", **options: Any) -> Any:
        for name in names:
            source = (PRELUDE if self.roles[name] == "institution" else "") + prelude
            process = super().start(name, prelude=source, **options)
        return process

    def opened(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.folder(name) / "opened.npz") as f:
            return dict(f)

    def head(self) -> tuple[np.ndarray, np.ndarray]:
        """Released weights and velocity (R, C), the same at every institution."""
        found = {
            tuple((self.folder(n) / f).read_bytes() for f in ("weights.bin", "velocity.bin")) for n in self.institutions
        }
        assert len(found) == 1, "the institutions decoded different heads"
        weights, velocity = (np.frombuffer(data).reshape(32, -1) for data in found.pop())
        return weights, velocity

    def joint_twin(self, answered: dict[int, list[str]] | None = None) -> list[np.ndarray]:
        """Weights (R, C) before each step and after the last one; ``answered``: who took part in a step,
        where not all did."""
        given = {n: dict(np.load(self.folder(n) / "given.npz")) for n in self.institutions}
        shape = (32, len(self.manifest.classes))
        weights = [np.zeros(shape)]
        before = weights[0]
        for step in range(6):
            names = (answered or {}).get(step, self.institutions)
            x, labels = (np.concatenate([given[n][key] for n in names]) for key in ("x", "labels"))
            now = weights[-1]
            weights.append(twin_step(now, before, x, x @ now - labels, UPDATE))
            before = now
        return weights
