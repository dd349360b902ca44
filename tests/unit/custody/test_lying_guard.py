"""A guard that lies in its own h1 reads the joint secret, alone: performed for one request, because guards are assumed not to.

Found by an independent reader. It adds to its h1 of a residual a polynomial that is zero modulo every prime but q_2, and modulo q_2 is 1
on the evaluation points of one row group. The next request, of the weights, has then the phase honest + q_0 q_1 y, where y modulo q_2 is
linear in evaluations of the uploads' phases, hence of s. The others answer before the guard, with masks of 2^98; q_0 q_1 is 2^105, so
rounding shows y exactly. It takes y back in its own h0, so the weights are the honest ones: lockstep and audit recompute from recorded
h0 and h1. Each weights ciphertext shows 2 R k of the N evaluations of s; another row group each time shows them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from recover import composed

from focal.ckks import codec, ring
from focal.custody import refresh
from focal.heads.linear.engine import Engine, zero_weights
from focal.heads.linear.layout import RESIDUAL_SCALE, WEIGHT_SCALE, Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars

ROWS, FEATURES, LANES = 400, 32, 8
LAYOUT = Layout(8192, FEATURES, LANES, ROWS, LANES, 1, FEATURES)


def test_a_guard_that_lies_reads_evaluations_of_the_joint_secret_and_takes_the_lie_back() -> None:
    rng = np.random.default_rng(0)
    x = np.clip(rng.normal(size=(ROWS, FEATURES)), -4, 4)
    targets = 0.5 - rng.integers(0, 2, (ROWS, LANES))
    scalars = Scalars.derive(3, 0.9, 0.1, ROWS)
    run = Rehearsal(LAYOUT, custodians=3, threads=2, run="lying guard")
    scheme, n, bounds = run.scheme, run.scheme.n, refresh.guard(run.scheme, 3)
    primes, q2 = scheme.moduli[:3], scheme.moduli[2]
    guard, *others = names = [f"custodian {i}" for i in range(3)]
    secrets = dict(zip(names, (s.limbs for s in run.secrets), strict=True))

    place = np.empty(2 * n, np.int64)
    place[2 * ring.bit_reversal(n) + 1] = np.arange(n)
    points = [[int(place[sign * pow(5, slot, 2 * n) % (2 * n)]) for slot in range(FEATURES * LANES)] for sign in (1, -1)]
    lie = np.zeros(n, np.uint64)
    lie[np.array(points).ravel()] = 1
    seen: list[ring.Limb] = []

    def one(item: str, ciphertext: Any) -> Any:
        asked = refresh.request(scheme, ciphertext)
        a = refresh.common_random(scheme, run.run_id, item, codec.digest(asked))
        c0, c1 = codec.unpack(scheme, codec.ciphertext(3), asked, "")
        made = {name: refresh.share(scheme, secrets[name], c1, a, bounds.others_bits) for name in others}
        h0, h1 = refresh.share(scheme, secrets[guard], c1, a, bounds.guard_bits)
        if "/residual/" in item:
            (limbs,) = codec.unpack(scheme, codec.REFRESH_H1, h1, "")
            limbs[2] = ring.add(limbs[2], lie, q2)
            h1 = codec.pack(scheme, codec.REFRESH_H1, [limbs])
        else:
            heard = [codec.unpack(scheme, codec.REFRESH_H0, made[name][0], "")[0] for name in others]
            own = [ring.multiply(s, c, q) for s, c, q in zip(secrets[guard], c1, primes, strict=False)]
            seen.append(rounded(ring.total([c0, *heard, own], primes)))
            (limbs,) = codec.unpack(scheme, codec.REFRESH_H0, h0, "")
            limbs[2] = ring.subtract(limbs[2], seen[-1], q2)
            h0 = codec.pack(scheme, codec.REFRESH_H0, [limbs])
        made[guard] = (h0, h1)
        return refresh.combine(scheme, asked, a, [(name, *made[name]) for name in names])

    def rounded(limbs: Sequence[ring.Limb]) -> ring.Limb:
        """y modulo q_2, in evaluation form, of a phase + masks + q_0 q_1 y."""
        step = primes[0] * primes[1]
        y = [(2 * int(v) + step) // (2 * step) * step % q2 for v in composed(scheme, limbs, primes)]
        return ring.ntt(np.array(y, np.uint64), q2, scheme.roots[q2])

    def trained(refreshed: Any) -> np.ndarray:
        engine = Engine(scheme, LAYOUT, scalars, lambda b: block, 2)
        weights = engine.step(0, zero_weights(scheme, LAYOUT), refreshed)
        engine.close()
        return run.release(weights)

    block = run.block(x, targets, 0)
    lied = trained(lambda items, cts: [one(item, ct) for item, ct in zip(items, cts, strict=True)])
    assert np.abs(lied - trained(run.refresh)).max() < 1e-3, "the released weights show nothing of it"

    # what the guard solves for: at each point sum_h (c0_h + s c1_h) = y / factor, one system of R unknowns for each lane and sign
    ones = scheme.evaluator.load([[np.ones(n, np.uint64)] * len(scheme.moduli)] * 2)
    rate = scalars.rate * LAYOUT.divisor * WEIGHT_SCALE / RESIDUAL_SCALE
    factor = int(scheme.evaluator.limbs(scheme.evaluator.times(ones, rate))[0][2][0])
    factor = -factor * pow(scheme.moduli[5], -1, q2) * pow(scheme.moduli[3], -1, q2) % q2
    uploads = [scheme.evaluator.limbs(ct) for ct in block.data[0]]
    read, truth = [], ring.total([s.limbs for s in run.secrets], scheme.extended)[2]
    for own in points:
        for c in range(LANES):
            at = [own[q * LANES + c] for q in range(FEATURES)]
            rows, right = [], []
            for q in range(FEATURES):
                row, rest = [0] * FEATURES, int(seen[0][at[q]]) * pow(factor, -1, q2)
                for h, upload in enumerate(uploads):
                    z = (q - h) % FEATURES
                    row[z] = int(upload[1][2][at[z]])
                    rest -= int(upload[0][2][at[z]])
                rows.append(row)
                right.append(rest % q2)
            read += [value == int(truth[at[z]]) for z, value in enumerate(solved(rows, right, q2))]
    print(f"a lying guard reads {sum(read)} of {len(read)} evaluations of the joint secret in one request")
    assert all(read) and len(read) == 2 * FEATURES * LANES


def solved(rows: list[list[int]], right: list[int], q: int) -> list[int]:
    """The solution of a square system modulo a prime."""
    m = [[*row, value] for row, value in zip(rows, right, strict=True)]
    for i in range(len(m)):
        j = next(j for j in range(i, len(m)) if m[j][i])
        m[i], m[j] = m[j], m[i]
        inverse = pow(m[i][i], -1, q)
        m[i] = [v * inverse % q for v in m[i]]
        for k in range(len(m)):
            if k != i and m[k][i]:
                f, pivot = m[k][i], m[i]
                m[k] = [(v - f * w) % q for v, w in zip(m[k], pivot, strict=True)]
    return [row[-1] for row in m]
