"""A step whose blocks are computed apart has the limbs of one whose blocks are computed together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import focal.heads.linear.engine as engine_module
from focal.ckks import ring
from focal.heads.linear.engine import Shard, zero_weights
from focal.heads.linear.layout import Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars


def limbs(shard: Shard, ciphertexts: list[Any]) -> np.ndarray:
    return np.array([shard.ev.limbs(ct) for ct in ciphertexts])


@pytest.mark.parametrize("degree", [3, 5])
def test_sums_of_some_blocks_add_up_and_parts_of_them_are_turned_onto_each_other(
    degree: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three blocks on two shards; sums cut within a class group."""
    layout = Layout(8192, 32, 6, 5000, 4, 1, 4)
    assert (layout.blocks, layout.class_groups, layout.babies) == (3, 2, 4)
    run = Rehearsal(layout, custodians=2, threads=2, run=f"shards {degree}")
    rng = np.random.default_rng(1)
    x, targets = rng.standard_normal((5000, 32)), 0.5 - rng.integers(0, 2, (5000, 6)).astype(float)
    engine = run.engine(x, targets, Scalars.derive(degree, 0.5, 0.1, 5000))
    weights = engine.step(0, zero_weights(run.scheme, layout), run.refresh)
    one = engine.shards
    assert isinstance(one, Shard)
    here, there = [0, 2], [1]

    logits = one.forward(weights)
    apart = {b: one.forward(weights, [b]) for b in (2, 0, 1)}
    assert (limbs(one, logits) == limbs(one, apart[0] + apart[1] + apart[2])).all()

    logits = run.refresh(list(layout.items(1, "logits")), logits)
    of = lambda cts, blocks: [ct for b in blocks for ct in cts[2 * b : 2 * b + 2]]  # noqa: E731
    given: tuple[Any, Any] = (logits, None)
    if degree == 5:
        residuals = one.residuals(logits)
        parted = one.residuals(of(logits, here), here) + one.residuals(of(logits, there), there)
        assert (limbs(one, of(residuals, [0, 2, 1])) == limbs(one, parted)).all()
        given = (None, run.refresh(list(layout.items(1, "residual")), residuals))

    def sums(blocks: list[int]) -> np.ndarray:
        return limbs(one, one.sums(*(of(cts, blocks) if cts else None for cts in given), blocks))

    primes, pair = run.scheme.moduli[:4], (sums(here), sums(there))
    added = [
        [ring.total([x, y], primes) for x, y in zip(*polynomials, strict=True)]
        for polynomials in zip(*pair, strict=True)
    ]
    flat = one.relinearised([one.ev.load(polynomials, degree=2) for polynomials in added])
    carried = one.horner(flat[5:8])
    parts = [one.horner(flat[:4]), one.horner(flat[4:5], carried)]
    assert (limbs(one, parts) == limbs(one, one.backward(*given))).all()

    whole = one.sums(*given)
    monkeypatch.setattr(engine_module, "WINDOW", 4)  # residuals of two blocks, then of one
    assert (limbs(one, one.sums(*given)) == limbs(one, whole)).all()
    engine.close()
    run.scheme.forget()
