"""The guard refuses no honest request, however many there are (the rest of the guard: test_guard.py)."""

from __future__ import annotations

import numpy as np
import pytest

from focal.ckks import codec, ring, sampling
from focal.ckks.scheme import LIMBS
from focal.custody import refresh
from focal.heads.joint.layout import InteractiveLayout
from focal.heads.linear.rehearsal import Rehearsal

RANDOM_REFRESHES = 1000
JOINT = InteractiveLayout(8192, 64, 8).refresh_map("train/0/weights/-/merged/-")


@pytest.mark.parametrize("how", [refresh.IDENTITY, JOINT], ids=["blind", "joint-head"])
def test_a_thousand_honest_requests_at_the_edge_of_their_range_pass(rehearsal: Rehearsal, how: refresh.Map) -> None:
    """Messages as large as any in every slot; 8 custodians; fresh masks of seven others each time."""
    scheme = rehearsal.scheme
    b, rng = refresh.guard(scheme, 8, how), np.random.default_rng(0)
    primes = scheme.moduli[: how.request]
    for _ in range(RANDOM_REFRESHES):
        signs = rng.choice([-1, 1], scheme.n)
        message = [(signs % q).astype(np.uint64) for q in primes]
        message = [
            ring.multiply(m, np.full(scheme.n, b.phase % q, np.uint64), q) for m, q in zip(message, primes, strict=True)
        ]
        masks = [sampling.uniform(scheme.n, b.others_bits) for _ in range(7)]
        seen = [
            ring.ntt(
                ring.total([[m], *([sampling.residues(w, -(1 << b.others_bits - 1), q)] for w in masks)], [q])[0],
                q,
                scheme.roots[q],
            )
            for m, q in zip(message, primes, strict=True)
        ]
        request = codec.pack(scheme, codec.ciphertext(how.request), [seen, scheme.zero(how.request)])
        assert refresh.small_enough(scheme, b, scheme.zero(LIMBS), request, [])
