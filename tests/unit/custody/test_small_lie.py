"""What one custodian that lies *a little* in its share still gets: performed, because custodians are assumed to follow the protocol.

It adds a polynomial of 2^53 to 2^60 a coefficient to its own h1 of the last residual: eight patients' slots, one in each class. The next
request is then as small as an honest one, so the guard lets it pass; h1 is an input of lockstep and of the audit, so both find everything
in order; and the released weights hold these patients' features, for a hospital that helps the custodian. Proofs of shares would close
this (SECURITY.md, "What is not protected"). The day they are there, this test must fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from polynomials import polynomial

from focal.ckks import codec, ring
from focal.ckks.scheme import REFRESH_LIMBS
from focal.custody import refresh
from focal.heads.linear.engine import Engine, zero_weights
from focal.heads.linear.layout import Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars

ROWS, FEATURES, CLASSES, STEPS, SIZE = 400, 32, 8, 2, 128.0
LAYOUT = Layout(8192, FEATURES, CLASSES, ROWS, 8, 1, 8)
VICTIMS = (3, 77, 145, 190, 212, 255, 300, 399)
LIAR = "custodian 1"


def test_a_small_lie_passes_the_guard_and_the_release_shows_eight_chosen_patients() -> None:
    rng = np.random.default_rng(0)
    x = np.clip(rng.normal(size=(ROWS, FEATURES)), -4, 4)
    x[:, -1] = 1
    scalars = Scalars.derive(3, 0.9, 0.1, ROWS)
    run = Rehearsal(LAYOUT, custodians=3, threads=2, run="small lie")
    scheme, bounds = run.scheme, refresh.guard(run.scheme, 3)
    slots = np.zeros(scheme.slots)
    for lane, row in enumerate(VICTIMS):
        slots[row * LAYOUT.class_lanes + lane] = 1
    amplitude = 16 * SIZE * LAYOUT.divisor / (scalars.rate * LAYOUT.divisor * 16 / 256)
    lie = polynomial(slots * amplitude, scheme.n)
    limbs = [ring.ntt(np.array([v % q for v in lie], np.uint64), q, scheme.roots[q]) for q in scheme.moduli]
    largest = np.log2(float(max(map(abs, lie))))
    weighed: list[bool] = []

    def refreshed(items: list[str], ciphertexts: list[Any]) -> list[Any]:
        return [one(item, ct) for item, ct in zip(items, ciphertexts, strict=True)]

    def one(item: str, ciphertext: Any) -> Any:
        asked = refresh.request(scheme, ciphertext)
        a = refresh.common_random(scheme, run.run_id, item, codec.digest(asked))
        c1 = codec.unpack(scheme, codec.ciphertext(REFRESH_LIMBS), asked, "")[1]
        first, *others = [f"custodian {i}" for i in range(3)]
        secrets = dict(zip([first, *others], (s.limbs for s in run.secrets), strict=True))
        made = {n: refresh.share(scheme, secrets[n], c1, a, bounds.others_bits) for n in others}
        if item == f"train/{STEPS - 1}/residual/0/0/-":
            h0, h1 = made[LIAR]
            made[LIAR] = (h0, with_lie(h1))
        weighed.append(refresh.small_enough(scheme, bounds, secrets[first], asked, [(n, h0) for n, (h0, _) in made.items()]))
        made[first] = refresh.share(scheme, secrets[first], c1, a, bounds.guard_bits)
        return refresh.combine(scheme, asked, a, [(n, *made[n]) for n in (first, *others)])

    def with_lie(h1: bytes) -> bytes:
        own: Sequence[Any] = codec.unpack(scheme, codec.REFRESH_H1, h1, "")[0]
        return codec.pack(scheme, codec.REFRESH_H1, [ring.total([own, limbs], scheme.moduli)])

    block = run.block(x, 0.5 - rng.integers(0, 2, (ROWS, CLASSES)), 0)
    engine, weights = Engine(scheme, LAYOUT, scalars, lambda b: block, 2), zero_weights(scheme, LAYOUT)
    for step in range(STEPS):
        weights = engine.step(step, weights, refreshed)
    released = run.release(weights)
    engine.close()
    read = -released.T / SIZE
    error = np.abs(read - x[list(VICTIMS)])
    rms = np.sqrt((error**2).mean())
    print(f"a lie of 2^{largest:.1f} in h1: {error.size} features of {len(VICTIMS)} patients from the release, rms error {rms:.1e}")
    assert all(weighed), "the guard refused: say so in SECURITY.md"
    assert 50 < largest < 62 and np.corrcoef(read.ravel(), x[list(VICTIMS)].ravel())[0, 1] > 0.99
