"""The joint step of interactive training on random data: owners, server and custodians in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from focal.bench.result import Result, printed
from focal.ckks import codec
from focal.ckks.scheme import LIMBS
from focal.custody import keys
from focal.custody.projections import PROOF_BYTES
from focal.errors import FocalError
from focal.heads.joint.engine import InteractiveEngine, zero_weights
from focal.heads.joint.layout import FACTOR, MOVED_LIMBS, OPENING, InteractiveLayout, row_table
from focal.heads.joint.limits import HEAD_NOISE
from focal.heads.joint.twin import Update, twin_step
from focal.heads.rehearsal import AnyRehearsal


def interactive(features: int, classes: int, owners: int, threads: int, steps: int, reference: Path | None) -> Result:
    """Milliseconds per joint step of interactive training on random data,
    and the largest errors against its plaintext twin.

    The server's time is forward pass, backward pass and refresh, its custodians' shares included since they run in this
    process. A whole step adds what the reference counts as well: the owners' encryption and both openings.
    """
    if reference is not None and (features, classes, owners) != (64, 8, 4):
        raise FocalError(f"{reference}: runs 64 features, 8 classes and 4 owners only", hint="leave --reference out")
    joint = _JointSteps(InteractiveLayout(8192, features, classes), owners, threads)
    joint.take()  # not timed: its weights are zero, and it warms up
    joint.clock, theirs = _Clock(), []
    for _ in range(steps):
        joint.take()
        if reference is not None:
            arguments = ["--steps", "2", "--threads", str(threads)]
            theirs.append(printed(reference, arguments, r"ms per joint step .* total (\d+)"))
    joint.end()
    numbers = joint.times() | joint.sizes() | {"max_errors": joint.errors}
    text = _told(numbers)
    if theirs:
        numbers |= {"reference_step_ms": statistics.median(theirs)}
        numbers |= {"ratio": numbers["step_ms"] / numbers["reference_step_ms"]}
        text += (
            f"\n  reference {numbers['reference_step_ms']:.0f} ms with encryption and openings, "
            f"ratio {numbers['ratio']:.2f}"
        )
    return Result(text, numbers)


class _JointSteps:
    """Joint steps of random full batches under an encrypted head, beside its plaintext twin."""

    def __init__(self, layout: InteractiveLayout, owners: int, threads: int) -> None:
        self.layout, self.owners, self.threads = layout, owners, threads
        self.run = AnyRehearsal(layout, threads=threads)
        self.table = row_table(layout, {f"owner {i}": layout.rows // owners for i in range(owners)})
        self.filled = {name: len(rows) for name, rows in self.table.items()}
        self.update = Update(rate=0.5, momentum=0.9)
        self.engine = InteractiveEngine(self.run.scheme, layout, self.table, self.update, threads, min_rows_of_others=1)
        self.weights, self.step = zero_weights(self.run.scheme), 0
        self.w: np.ndarray = np.zeros((layout.features, layout.outputs))
        self.before = self.w
        self.rng, self.clock = np.random.default_rng(0), _Clock()
        self.errors = {"logits": 0.0, "activation_gradients_relative": 0.0, "weights": 0.0}

    @property
    def present(self) -> int:
        return sum(self.filled.values())

    def take(self) -> None:
        """One step, encrypted and in plaintext."""
        x = 0.5 * self.rng.standard_normal((self.present, self.layout.features))
        classes = self.layout.outputs
        delta = np.exp(x[:, :classes])
        delta = delta / delta.sum(1, keepdims=True) - np.eye(classes)[self.rng.integers(0, classes, self.present)]
        z, dx = self._encrypted(x, delta)
        if self.step > 0:  # the head begins at zero, and relative to nothing everything errs
            wanted = delta @ self.w.T
            self.errors["logits"] = max(self.errors["logits"], float(np.abs(z - x @ self.w).max()))
            # of the last step
            self.errors["activation_gradients_relative"] = float(np.linalg.norm(dx - wanted) / np.linalg.norm(wanted))
        self.w, self.before = twin_step(self.w, self.before, x, delta, self.update), self.w
        self.step += 1

    def _encrypted(self, x: np.ndarray, delta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Opened logits and activation gradients; the head has taken its step."""
        run, layout, table, clock = self.run, self.layout, self.table, self.clock
        with clock("institutions"):
            up = {
                n: run.encrypt(layout.activation_slots(x[r.start : r.stop], r.start), factor=FACTOR)
                for n, r in table.items()
            }
        with clock("forward"):
            forward = self.engine.forward(self.weights, up)
        with clock("openings"):
            z = np.vstack([layout.logits(run.open(ct), table[n]) for n, ct in forward.logits.items()])
        with clock("institutions"):
            down = {
                n: run.encrypt(layout.derivative_slots(delta[r.start : r.stop], r.start), factor=FACTOR)
                for n, r in table.items()
            }
        with clock("backward"):
            backward = self.engine.backward(self.weights, forward, down, self.filled)
        with clock("openings"):
            dx = np.vstack([layout.gradients(run.open(ct), table[n]) for n, ct in backward.gradients.items()])
        with clock("refresh"):
            self.weights = self.engine.finish(self.step, self.weights, backward, run.refresh)
        return z, dx

    def end(self) -> None:
        """Release the head, and let go of threads and keys."""
        released = self.run.release([self.weights.now], HEAD_NOISE)
        self.errors["weights"] = float(np.abs(released - self.w).max())
        self.engine.close()
        self.run.scheme.close()

    def times(self) -> dict[str, Any]:
        server, whole = self.clock.per_step(("forward", "backward", "refresh")), self.clock.per_step()
        return {
            "server_ms_per_step": server[0],
            "server_cpu_ms_per_step": server[1],
            "step_ms": whole[0],
            "step_cpu_ms": whole[1],
            **{f"{part}_ms": self.clock.per_step((part,))[0] for part in self.clock.parts},
        }

    def sizes(self) -> dict[str, Any]:
        """What is moved, by the kinds of what is moved."""
        scheme, layout = self.run.scheme, self.layout

        def size(*kinds: codec.Kind) -> int:
            return sum(codec.size(scheme, kind) for kind in kinds)

        refreshed = size(codec.ciphertext(MOVED_LIMBS), codec.refresh_share(MOVED_LIMBS, LIMBS))
        opened, given = size(OPENING, codec.OPENING_SHARE), size(codec.input_b(LIMBS))
        return {
            "rows": self.present,
            "owners": self.owners,
            "features": layout.features,
            "classes": layout.outputs,
            "threads": self.threads,
            "rotation_keys": len(layout.rotations),
            "key_bytes_per_custodian": keys.contribution_bytes(scheme, len(layout.rotations)),
            "institution_bytes_up_per_step": 2 * (size(codec.MASKED) + PROOF_BYTES),
            "institution_bytes_down_per_step": 2 * len(self.run.secrets) * size(codec.OPENING_SHARE),
            "custodian_bytes_per_step": refreshed + 2 * self.owners * (opened + given),
        }


def _told(numbers: dict[str, Any]) -> str:
    """A benchmark of joint steps beside its targets."""
    mb = {key: numbers[key] / 1e6 for key in numbers if "bytes" in key}
    errors = numbers["max_errors"]
    return (
        f"joint step of {numbers['rows']} x {numbers['features']} x {numbers['classes']}, {numbers['owners']} owners, "
        f"{numbers['threads']} thread(s): server {numbers['server_ms_per_step']:.0f} ms "
        f"({numbers['server_cpu_ms_per_step']:.0f} ms of CPU; target: 120 ms on 2 threads), "
        f"with encryption and openings {numbers['step_ms']:.0f} ms\n"
        f"  {numbers['rotation_keys']} rotation keys, {mb['key_bytes_per_custodian']:.0f} MB per custodian, "
        f"once; per step: institution {mb['institution_bytes_up_per_step']:.1f} MB up, "
        f"{mb['institution_bytes_down_per_step']:.1f} MB down "
        f"(target: 8 each), custodian {mb['custodian_bytes_per_step']:.1f} MB (target: 12)\n"
        f"  largest errors: logits {errors['logits']:.1e}, activation gradients "
        f"{errors['activation_gradients_relative']:.1e} relative, released weights {errors['weights']:.1e} "
        "(target: 1e-3; an opened logit is smudged by 4e-4 in root mean square)"
    )


class _Clock:
    """Wall and CPU milliseconds (of all threads of this process) by part of a step;
    each part may come several times in a step."""

    def __init__(self) -> None:
        self.parts: dict[str, list[tuple[float, float]]] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.parts.setdefault(part, []).append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))

    def per_step(self, parts: tuple[str, ...] | None = None) -> tuple[float, float]:
        """(wall, CPU) of ``parts`` (default: all), means over the steps."""
        steps = len(self.parts["refresh"])
        spent = [s for part in parts or self.parts for s in self.parts[part]]
        return sum(s[0] for s in spent) / steps, sum(s[1] for s in spent) / steps
