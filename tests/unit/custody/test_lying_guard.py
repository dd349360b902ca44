"""A guard that lies in its own h1 reads the joint secret, alone: performed for one request,
because guards are assumed not to.

Found by an independent reader. It adds to its h1 of the weights a polynomial that is zero modulo every prime but q_2,
and 1 modulo q_2. The next request, of logits, has then the phase honest + q_0 q_1 y, where y modulo q_2 is the sum of
the uploads' phases, point by point, hence linear in s. The others answer before the guard, with masks of 2^98; q_0 q_1
is 2^105, so rounding shows y exactly::

    guard's h1 of W      ... + (0, 0, 1, 0)        modulo (q_0, q_1, q_2, q_3)
    logits, one request  c0 + sum of the others' h0 + s_V c1 = honest - masks + q_0 q_1 y
                         y q_0 q_1 q_3 = sum_h (c0_h + s c1_h)

N points, N equations with one unknown each: one request spells out all of s. It takes y back in its own h0, and what
the lie leaves in the next weights too, so all is as in an honest run: lockstep and audit recompute from recorded h0 and
h1. (Before logits were refreshed the same lie, in a residual, had 512 of the 16384 points a request.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from recover import composed

from focal.ckks import codec, ring
from focal.custody import refresh
from focal.heads.linear.engine import Engine, zero_weights
from focal.heads.linear.layout import Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars

ROWS, FEATURES, LANES = 400, 32, 8
LAYOUT = Layout(8192, FEATURES, LANES, ROWS, LANES, 1, FEATURES // 2)
"""No giant steps, which would turn some of the uploads before they are added up:
then the equations have several unknowns each."""
LIED, READ = "train/0/weights/-/0/-", "train/1/logits/0/0/-"


def test_a_guard_that_lies_reads_the_joint_secret_and_takes_the_lie_back() -> None:
    rng = np.random.default_rng(0)
    x = np.clip(rng.normal(size=(ROWS, FEATURES)), -4, 4)
    targets = 0.5 - rng.integers(0, 2, (ROWS, LANES))
    scalars = Scalars.derive(3, 0.9, 0.1, ROWS)
    run = Rehearsal(LAYOUT, custodians=3, threads=2, run="lying guard")
    scheme, n, bounds = run.scheme, run.scheme.n, refresh.guard(run.scheme, 3)
    primes, q2 = scheme.moduli[:3], scheme.moduli[2]
    guard, *others = names = [f"custodian {i}" for i in range(3)]
    secrets = dict(zip(names, (s.limbs for s in run.secrets), strict=True))
    seen: dict[str, ring.Limb] = {}

    def one(item: str, ciphertext: Any) -> Any:
        asked, how = refresh.request(scheme, ciphertext), LAYOUT.refresh_map(item)
        kind = refresh.kind(how)
        a = refresh.common_random(scheme, run.run_id, item, codec.digest(asked), how.limbs)
        c0, c1 = codec.unpack(scheme, codec.ciphertext(3), asked, "")
        made = {name: refresh.share(scheme, secrets[name], c1, a, bounds.others_bits, how) for name in others}
        heard = [codec.unpack(scheme, kind, made[name], "")[0] for name in others]
        own = [ring.multiply(s, c, q) for s, c, q in zip(secrets[guard], c1, primes, strict=False)]
        seen[item] = rounded(ring.total([c0, *heard, own], primes))
        honest = refresh.share(scheme, secrets[guard], c1, a, bounds.guard_bits, how)
        h0, h1 = codec.unpack(scheme, kind, honest, "")
        h0[2] = ring.subtract(h0[2], seen[item], q2)
        if item == LIED:
            h1[2] = ring.add(h1[2], np.ones(n, np.uint64), q2)
        made[guard] = codec.pack(scheme, kind, [h0, h1])
        return refresh.combine(scheme, asked, a, [(name, made[name]) for name in names], how)

    def rounded(limbs: Sequence[ring.Limb]) -> ring.Limb:
        """q_0 q_1 y modulo q_2, in evaluation form, of a phase + masks + q_0 q_1 y."""
        step = primes[0] * primes[1]
        y = [(2 * int(v) + step) // (2 * step) * step % q2 for v in composed(scheme, limbs, primes)]
        return ring.ntt(np.array(y, np.uint64), q2, scheme.roots[q2])

    def trained(refreshed: Any) -> np.ndarray:
        engine, weights = Engine(scheme, LAYOUT, scalars, lambda b: block, 2), zero_weights(scheme, LAYOUT)
        for step in range(2):
            weights = engine.step(step, weights, refreshed)
        engine.close()
        return run.release(weights)

    block = run.block(x, targets, 0, scalars)
    lied = trained(lambda items, cts: [one(item, ct) for item, ct in zip(items, cts, strict=True)])
    assert np.abs(lied - trained(run.refresh)).max() < 1e-3, "the released weights show nothing of it"
    assert not seen[LIED].any() and seen["train/1/weights/-/0/-"].any(), "it was there to be taken back"

    uploads = [scheme.evaluator.limbs(ct) for ct in block.data[0]]
    known, factor = (ring.total([[upload[i][2]] for upload in uploads], [q2])[0] for i in (0, 1))
    right = ring.subtract(ring.multiply(seen[READ], np.full(n, scheme.moduli[3] % q2, np.uint64), q2), known, q2)
    inverse = np.array([pow(int(f), -1, q2) for f in factor], np.uint64)  # none is 0, but for one in 2^31
    read = ring.centred(ring.inverse_ntt(ring.multiply(right, inverse, q2), q2, scheme.roots[q2]), q2)
    found = int((read == np.sum([s.secret for s in run.secrets], axis=0)).sum())
    print(f"a lying guard reads {found} of {n} coefficients of the joint secret in one request")
    assert found == n
