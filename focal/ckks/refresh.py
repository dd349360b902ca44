"""Collective refresh: N custodians turn a ciphertext with 3 limbs into one with all limbs, and nobody sees the message.

::

    server:     (c0, c1) with 3 limbs                      a = SHAKE-256(run id, plan item, digest of (c0, c1))
    custodian:  h0 = s_i c1 - M_i      h1 = -s_i a + e + M_i          M_i uniform modulo the first primes
    anyone:     new c0 = lift(c0 + sum h0) + sum h1,    new c1 = a

The masks M_i hide the message statistically (2^105 against a scale of 2^45 and values up to 2^8) and cancel in the sum.
``a`` must be fresh and nobody's choice: with a repeated ``a`` the masks cancel between two refreshes, and a share on a c1 of
the server's choice spells out the custodian's secret (openfhe-facts, section 3; attacks/key_extraction.py). Hence ``a`` is
derived here from what is refreshed, and the ledger admits one share per plan item and per digest.

A custodian may add a message of its own (``added``), noise on a head: it goes into h1, which is recorded, so whoever recomputes
the refresh from the recorded shares gets the same limbs; and M_i hides it as it hides the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal.ckks import ring, wire
from focal.ckks.context import LIMBS, REFRESH_LIMBS, Scheme
from focal.ckks.ring import Limb


def common_random(scheme: Scheme, run_id: bytes, item: str, digest: str) -> list[Limb]:
    """``a``, all limbs, for the refresh of the ciphertext ``digest`` under plan item ``item``."""
    seed = b"focal/refresh/v1" + run_id + len(item).to_bytes(2, "little") + item.encode() + bytes.fromhex(digest)
    return _expanded(seed, scheme.moduli, scheme.n)


@functools.lru_cache(maxsize=32)
def _expanded(seed: bytes, moduli: tuple[int, ...], n: int) -> list[Limb]:
    # a party needs the same limbs for its share and for the sum of all; nobody writes to them
    return ring.expand(seed, moduli, n)


def request(scheme: Scheme, ciphertext: Any) -> bytes:
    """Canonical bytes of a ciphertext that is to be refreshed; it must be down to exactly 3 limbs at scale degree 1."""
    if ciphertext.GetLevel() != len(scheme.moduli) - REFRESH_LIMBS or ciphertext.GetNoiseScaleDeg() != 1:
        raise ValueError("a refresh takes exactly 3 limbs at scale degree 1; OpenFHE would silently return garbage")
    return wire.pack(scheme, wire.ciphertext(REFRESH_LIMBS), scheme.limbs(ciphertext))


def share(
    scheme: Scheme, secret: Any, c1: Sequence[Limb], a: Sequence[Limb], added: NDArray[np.float64] | None = None
) -> tuple[bytes, bytes]:
    """One custodian's (h0, h1) as canonical bytes; ``added``: slots (S,) that it adds to the message.

    Call it through the ledger only: each share is made once.
    """
    if len(c1) != REFRESH_LIMBS:
        raise ValueError(f"a refresh takes exactly 3 limbs, not {len(c1)}")
    h0, h1 = scheme.cc.IntMPBootDecrypt(secret, scheme.second_half(c1), scheme.common(a))
    (limbs,) = scheme.limbs(h1)
    if added is not None:
        nothing = scheme.ciphertext([scheme.zero(LIMBS), scheme.zero(LIMBS)])
        encoded = scheme.limbs(scheme.cc.EvalAdd(nothing, scheme.encode(added)))[0]  # the bindings show a plaintext's limbs only this way
        limbs = ring.total([limbs, encoded], scheme.moduli)
    return wire.pack(scheme, wire.REFRESH_H0, scheme.limbs(h0)), wire.pack(scheme, wire.REFRESH_H1, [limbs])


def combine(scheme: Scheme, asked: bytes, a: Sequence[Limb], shares: Sequence[tuple[str, bytes, bytes]]) -> Any:
    """The refreshed ciphertext from the request's bytes and every custodian's (name, h0, h1). Deterministic.

    Raises :class:`focal.errors.Refused` naming the custodian whose share is malformed.
    """
    ciphertext = scheme.ciphertext(wire.unpack(scheme, wire.ciphertext(REFRESH_LIMBS), asked, "refresh request"))
    h0 = ring.total([wire.unpack(scheme, wire.REFRESH_H0, data, name)[0] for name, data, _ in shares], scheme.moduli[:REFRESH_LIMBS])
    h1 = ring.total([wire.unpack(scheme, wire.REFRESH_H1, data, name)[0] for name, _, data in shares], scheme.moduli)
    return scheme.cc.IntMPBootEncrypt(scheme.joint_tag_key, scheme.refresh_shares(h0, h1), scheme.common(a), ciphertext)
