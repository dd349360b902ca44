"""Opening the final weights: smudged decryption shares, and a decoding that every institution repeats to the bit.

What is opened has passed :func:`focal.heads.masks.only_classes`: lanes that hold no class are zero, whatever was
trained there. Each custodian's share is s_i c1 + noise; the first custodian of the manifest adds c0 (exactly one
does). The noise must hide the noise that the carried weights have inside, which depends on the secret. For
statistical distance 2^-kappa over the N coefficients a Gaussian needs sigma >= 2^(kappa/2) sqrt(12) t, where t bounds
the carried noise per coefficient::

    t     = 2^14        (root mean square over a refreshed W of a trained model; measured in test_release.py)
    kappa = 30
    sigma = 2^15 x 3.46 x 2^14 = 2^30.8  per custodian

The noise is drawn on the coefficients, not encoded from real slots: these would leave the imaginary half of the carried
noise bare. A spherical Gaussian hides a vector by its Euclidean norm alone, hence the root mean square: the carried
noise is uneven, what a fold over I row groups adds up lies on every I-th coefficient.

Decoding is done in numpy (inverse NTT of the one limb, then the embedding): OpenFHE's Decode adds noise of its own,
different at every institution. The error that remains on a weight, with m custodians, scale 2^45, W' = 16 W and I
averaged copies, is a Gaussian of sigma sqrt(m) sqrt(N / 2) / (2^45 x 16 x sqrt(I)); the planner refuses a layout where
its expected largest value over all weights exceeds 1e-3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from focal import framing
from focal.ckks import codec, integers, ring, sampling
from focal.ckks.evaluator import Slots
from focal.ckks.ring import Limb
from focal.ckks.scheme import Scheme

KAPPA = 30
"""Bits of statistical flooding."""
CARRIED_NOISE = 2.0**14
"""t: bound on the root mean square, over the coefficients, of the noise of a refreshed weight ciphertext. Measured
in every layout with up to 8 custodians (SECURITY.md, "Smudging of the release")."""


def sigma(noise: float) -> float:
    """Standard deviation per coefficient of the smudging of a carried noise of ``noise`` (root mean square)."""
    return 2.0 ** (KAPPA / 2) * math.sqrt(12) * noise


SIGMA = sigma(CARRIED_NOISE)
"""Standard deviation per coefficient of one custodian's smudging noise in the blind protocol."""


def share(scheme: Scheme, secret: Sequence[Limb], ciphertext: Any, lead: bool, noise: float = CARRIED_NOISE) -> bytes:
    """One custodian's smudged share of a refreshed weight ciphertext. Made once, through the ledger.

    ``noise``: bound on the carried noise; a head of the interactive protocol has its own (``HEAD_NOISE``
    of focal/heads/joint/limits.py).
    """
    return smudged(scheme, secret, one_limb(scheme, ciphertext), lead, sigma(noise), codec.DECRYPTION)


def sealed_context(reader: str, seed: bytes) -> bytes:
    """What shares are sealed under to the institution ``reader``; ``seed``: the epoch's."""
    return framing.framed(b"focal/release/sealed/v1", reader.encode(), seed)


def one_limb(scheme: Scheme, ciphertext: Any) -> Any:
    """The same message with its first limb only: what is opened."""
    return scheme.evaluator.drop(ciphertext, 1)


def smudged(
    scheme: Scheme, secret: Sequence[Limb], ciphertext: Any, lead: bool, deviation: float, kind: codec.Kind
) -> bytes:
    """Canonical bytes of s_i c1 (the lead: + c0) + noise, Gaussian with ``deviation`` on each of the N coefficients.

    ``kind``: that of the share; ``ciphertext`` has as many limbs.
    """
    c0, c1 = scheme.evaluator.limbs(ciphertext)
    primes, made = codec.moduli(scheme, kind), []
    noise = sampling.wide_gaussian(scheme.n, deviation, primes)
    for q, s, x, y, e in zip(primes, secret, c0, c1, noise, strict=False):
        limb = ring.add(ring.multiply(s, y, q), ring.ntt(e, q, scheme.roots[q]), q)
        made.append(ring.add(limb, x, q) if lead else limb)
    return codec.pack(scheme, kind, [made])


def open_slots(scheme: Scheme, shares: Sequence[tuple[str, bytes]], kind: codec.Kind = codec.DECRYPTION) -> Slots:
    """Complex slots (S,) from every custodian's (name, share of this ``kind``). The same bits at every institution."""
    primes = codec.moduli(scheme, kind)
    limbs = ring.total([codec.unpack(scheme, kind, data, name)[0] for name, data in shares], primes)
    values = [ring.inverse_ntt(limb, q, scheme.roots[q]) for limb, q in zip(limbs, primes, strict=True)]
    return ring.embed(integers.Centred(values, primes).rounded / scheme.scale)


def flooding_bits(noise: float = CARRIED_NOISE, bound: float = CARRIED_NOISE) -> float:
    """kappa that the smudging of ``bound`` gives against a carried noise of ``noise`` per coefficient."""
    return 2 * math.log2(sigma(bound) / (math.sqrt(12) * noise))
