"""Whole training steps on the native kernels and on OpenFHE at once: every ciphertext on the way has the same limbs.

::

    engine, refresh --> Compared --> OpenFheEvaluator  --> limbs ==
                                 --> NativeEvaluator   --> limbs
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import joint
import numpy as np
import pytest

from focal.ckks import native
from focal.ckks.native.evaluator import NativeEvaluator
from focal.ckks.openfhe_evaluator import OpenFheEvaluator
from focal.ckks.scheme import DIGITS, LIMBS, Scheme
from focal.heads.joint.layout import InteractiveLayout
from focal.heads.joint.twin import Update
from focal.heads.linear.engine import zero_weights
from focal.heads.linear.layout import Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars

pytestmark = pytest.mark.skipif(native.library is None, reason=f"native kernels: {native.description}")

SWITCHED = {"relinearise", "multiply", "square", "rotate", "rotations"}


@dataclass(frozen=True)
class Pair:
    """The same ciphertext, or encoded plaintext, of both evaluators."""

    theirs: Any
    ours: Any


def each(x: Any, which: str) -> Any:
    """``x`` with one side of every pair in it."""
    if isinstance(x, Pair):
        return getattr(x, which)
    return type(x)(each(y, which) for y in x) if isinstance(x, list | tuple) else x


class Compared:
    """An evaluator that has everything computed by both, and compared."""

    def __init__(self, scheme: Scheme) -> None:
        assert native.library
        self.theirs, self.ours = OpenFheEvaluator(scheme), NativeEvaluator(scheme, native.library)
        self.calls: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            theirs = getattr(self.theirs, name)(*(each(a, "theirs") for a in arguments))
            ours = getattr(self.ours, name)(*(each(a, "ours") for a in arguments))
            with self._lock:
                self.calls[name] += 1
            if name == "rotations":
                return [self._same(name, Pair(a, b)) for a, b in zip(theirs, ours, strict=True)]
            if name in ("limbs", "plain_limbs", "count", "degree") or name.startswith("install"):
                assert np.array_equal(theirs, ours)
                return ours
            return self._same(name, Pair(theirs, ours))

        return call

    def _same(self, name: str, made: Pair) -> Pair:
        show = "plain_limbs" if name in ("encode", "plain") else "limbs"
        assert np.array_equal(getattr(self.theirs, show)(made.theirs), getattr(self.ours, show)(made.ours)), name
        if show == "limbs":
            assert self.theirs.degree(made.theirs) == self.ours.degree(made.ours), name
        return made


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    both = cached_property(lambda scheme: Compared(scheme))
    both.__set_name__(Scheme, "evaluator")
    monkeypatch.setattr(Scheme, "evaluator", both)
    yield


def test_a_blind_step_has_openfhes_limbs(compared: None) -> None:
    """Two class groups, two blocks, folds of every kind; both refreshes."""
    layout = Layout(8192, 32, 8, 600, 4, 4, 2)
    run = Rehearsal(layout, custodians=2, run="native blind")
    rng = np.random.default_rng(0)
    x, targets = rng.standard_normal((600, 32)), 0.5 - rng.integers(0, 2, (600, 8)).astype(float)
    engine = run.engine(x, targets, Scalars.derive(3, 0.5, 0.1, 600))
    weights = engine.step(0, zero_weights(run.scheme, layout), run.refresh)
    weights = engine.step(1, weights, run.refresh)
    engine.close()
    ev: Any = run.scheme.evaluator
    assert len(weights) == layout.class_groups == 2 and layout.blocks > 1
    assert ev.limbs(weights[0])[0][0].any() and sum(ev.calls[name] for name in SWITCHED) > 50
    assert {"relinearise", "rotate", "rotations", "products", "rescale", "accumulate"} <= set(ev.calls)
    run.scheme.forget()


def test_a_joint_step_has_openfhes_limbs(compared: None) -> None:
    layout = InteractiveLayout(8192, 32, 5)
    base = joint.rehearsal(layout, "native joint", custodians=2)
    run = joint.engine(base, layout, Update(rate=0.5, momentum=0.9), min_rows_of_others=8)
    x, delta, w = joint.problem(layout)
    weights = joint.encrypted(base, layout, w, 0.9 * w)
    filled = {name: len(rows) for name, rows in run.owners.items()}
    forward = run.forward(weights, joint.uploads(base, run, x, filled))
    backward = run.backward(weights, forward, joint.answers(base, run, delta, filled), filled)
    after = run.finish(0, weights, backward, base.refresh)
    run.close()
    ev: Any = base.scheme.evaluator
    assert ev.count(after.now) == LIMBS and set(forward.logits) == set(backward.gradients) == set("abcd")
    assert sum(ev.calls[name] for name in SWITCHED) > 30
    base.scheme.forget()


def test_a_difference_would_be_seen(compared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one residue of one key switch."""
    layout = Layout(8192, 16, 2, 100, 2, 1, 4)
    run = Rehearsal(layout, custodians=2, run="native wrong")
    ct, rotation = run.encrypt(np.ones(8192)), layout.rotations[0]
    run.scheme.evaluator.rotate(ct, rotation)
    key = NativeEvaluator.keys[run.scheme.tag][rotation]
    assert key.b.shape == (DIGITS, LIMBS + 2, run.scheme.n)
    key.b[0, 0, 5] ^= np.uint64(1)
    with pytest.raises(AssertionError, match="rotate"):
        run.scheme.evaluator.rotate(ct, rotation)
    run.scheme.forget()
