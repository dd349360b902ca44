"""What one custodian that lies *a little* in its share still gets:
performed, because custodians are assumed to follow the protocol.

It adds a polynomial of 2^40 a coefficient to its own h1 of the last logits, which makes eight patients' logits absurd,
one in each class: z = -330, where honest ones end at 8. The cubic makes the rest of it: residuals of 6 10^4. The next
request is as small as an honest one, so the guard lets it pass; h1 is an input of lockstep and of the audit, so both
find everything in order; and the released weights hold these patients' features, to a factor each that the bias column
shows, for a hospital that helps the custodian. Proofs of shares would close this (SECURITY.md, "What is not
protected"). The day they are there, this test must fail.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from polynomials import polynomial

from focal.ckks import codec, ring
from focal.ckks.scheme import REFRESH_LIMBS
from focal.custody import refresh
from focal.heads.linear.engine import Engine, factors, zero_weights
from focal.heads.linear.layout import LOGIT_SCALE, WEIGHT_SCALE, Layout
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
    linear, cubic = factors(scheme, LAYOUT, scalars)
    (absurd,) = (
        z.real for z in np.roots([cubic, 0, linear, -WEIGHT_SCALE * SIZE * LAYOUT.divisor]) if abs(z.imag) < 1e-9
    )
    slots = np.zeros(scheme.slots)
    for lane, row in enumerate(VICTIMS):
        slots[row * LAYOUT.class_lanes + lane] = absurd
    lie = polynomial(slots, scheme.n)
    limbs = [ring.ntt(np.array([v % q for v in lie], np.uint64), q, scheme.roots[q]) for q in scheme.moduli]
    largest = np.log2(float(max(map(abs, lie))))
    weighed: list[bool] = []

    def refreshed(items: list[str], ciphertexts: list[Any]) -> list[Any]:
        return [one(item, ct) for item, ct in zip(items, ciphertexts, strict=True)]

    def one(item: str, ciphertext: Any) -> Any:
        asked = refresh.request(scheme, ciphertext)
        how = LAYOUT.refresh_map(item)
        a = refresh.common_random(scheme, run.run_id, item, codec.digest(asked), how.limbs)
        c1 = codec.unpack(scheme, codec.ciphertext(REFRESH_LIMBS), asked, "")[1]
        first, *others = [f"custodian {i}" for i in range(3)]
        secrets = dict(zip([first, *others], (s.limbs for s in run.secrets), strict=True))
        made = {n: refresh.share(scheme, secrets[n], c1, a, bounds.others_bits, how) for n in others}
        if item == f"train/{STEPS - 1}/logits/0/0/-":
            made[LIAR] = with_lie(made[LIAR], how)
        weighed.append(refresh.small_enough(scheme, bounds, secrets[first], asked, list(made.items()), how))
        made[first] = refresh.share(scheme, secrets[first], c1, a, bounds.guard_bits, how)
        return refresh.combine(scheme, asked, a, [(n, made[n]) for n in (first, *others)], how)

    def with_lie(share: bytes, how: refresh.Map) -> bytes:
        h0, h1 = codec.unpack(scheme, refresh.kind(how), share, "")
        return codec.pack(scheme, refresh.kind(how), [h0, ring.total([h1, limbs], scheme.moduli)])

    block = run.block(x, 0.5 - rng.integers(0, 2, (ROWS, CLASSES)), 0, scalars)
    engine, weights = Engine(scheme, LAYOUT, scalars, lambda b: block, 2), zero_weights(scheme, LAYOUT)
    for step in range(STEPS):
        weights = engine.step(step, weights, refreshed)
    released = run.release(weights)
    engine.close()
    read = -released.T / -released[-1][:, None]  # the bias column is 1 in every row
    error = np.abs(read - x[list(VICTIMS)])
    rms = np.sqrt((error**2).mean())
    print(
        f"logits of {absurd / LOGIT_SCALE:.0f} by a lie of 2^{largest:.1f} in h1: "
        f"{error.size} features released, rms error {rms:.1e}"
    )
    assert all(weighed), "the guard refused: say so in SECURITY.md"
    assert 40 < largest < 41 and np.corrcoef(read.ravel(), x[list(VICTIMS)].ravel())[0, 1] > 0.99
