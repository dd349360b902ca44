"""What an institution gets that encrypts dishonestly *and* sees the refresh shares (as server and custodians do): everything.

Nothing proves that an uploaded ciphertext is an encryption. Here the targets of a block are (0, 2^135), which decrypts to
2^135 s. The first step's residual is the target; every custodian, verifying or not, finds the request equal to its own
computation; and the refresh shares, whose masks hide 105 bits only, add up to the joint secret. The test performs it and
records the yield, so that SECURITY.md ("What is not protected") cannot say less than is true. The day uploads carry a proof of
well-formedness, it must fail.
"""

from __future__ import annotations

import numpy as np

from focal.ckks import refresh, ring, wire
from focal.ckks.context import REFRESH_LIMBS
from focal.ckks.engine import Engine, zero_weights
from focal.ckks.layout import Layout
from focal.ckks.rehearsal import Rehearsal
from focal.ckks.twin import Scalars

SHIFT = 135
"""Bits: far above the masks (105), below the modulus of a request (150)."""


def coefficients(polynomial: list[ring.Limb], moduli: tuple[int, ...], roots: dict[int, int]) -> list[int]:
    """Centred integer coefficients of a polynomial given by its limbs (Chinese remainders)."""
    product = int(np.prod([int(q) for q in moduli], dtype=object))
    total = np.zeros(len(polynomial[0]), dtype=object)
    for limb, q in zip(polynomial, moduli, strict=True):
        rest = product // q
        total = (total + ring.inverse_ntt(limb, q, roots[q]).astype(object) * (rest * pow(rest, -1, q))) % product
    return [int(v) - product if v > product // 2 else int(v) for v in total]


def test_a_malformed_target_and_the_server_together_read_the_joint_secret() -> None:
    layout = Layout(8192, 32, 1, 40, 1, 1, 8)
    run = Rehearsal(layout, custodians=2)
    scheme = run.scheme
    moduli, roots = scheme.moduli[:REFRESH_LIMBS], scheme.roots
    block = run.block(np.zeros((40, 32)), np.zeros((40, 1)), 0)
    constant = [np.full(scheme.n, (1 << SHIFT) % q, dtype=np.uint64) for q in moduli]  # a constant is the same at every root
    block.targets = [scheme.ciphertext([scheme.zero(REFRESH_LIMBS), constant])]
    overheard: list[ring.Limb] = []

    def ask(items: list[str], ciphertexts: list[object]) -> list[object]:
        """The server's view of the first batch: the request and every custodian's h0."""
        if not overheard:
            asked = refresh.request(scheme, ciphertexts[0])
            c0, c1 = wire.unpack(scheme, wire.ciphertext(REFRESH_LIMBS), asked, "request")
            a = refresh.common_random(scheme, run.run_id, items[0], wire.digest(asked))
            shares = [wire.unpack(scheme, wire.REFRESH_H0, refresh.share(scheme, s.limbs, c1, a)[0], "custodian")[0] for s in run.secrets]
            overheard.extend(ring.total([c0, *shares], moduli))
        return run.refresh(items, ciphertexts)

    engine = Engine(scheme, layout, Scalars.derive(3, 1.0, 0.1, 40), lambda b: block, 1)
    engine.step(0, zero_weights(scheme, layout), ask)
    engine.close()

    read = [round(v / (1 << SHIFT)) for v in coefficients(overheard, moduli, roots)]
    secrets = [coefficients(s.limbs[:1], moduli[:1], roots) for s in run.secrets]
    joint = np.sum(secrets, axis=0)
    right = int(np.sum(np.array(read) == joint))
    print(f"a malformed target upload, pooled with the server's view, yields {right} of {scheme.n} coefficients of the joint secret")
    assert right == scheme.n
