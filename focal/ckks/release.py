"""Opening the final weights: smudged decryption shares, and a decoding that every institution repeats to the bit.

What is opened has passed :func:`focal.ckks.masks.only_classes`: lanes that hold no class are zero, whatever was trained there.
Each custodian's share is s_i c1 + noise; the first custodian of the manifest adds c0 (exactly one does). The noise must hide
the noise that the carried weights have inside, which depends on the secret. For statistical distance 2^-kappa over the N
coefficients a Gaussian needs sigma >= 2^(kappa/2) sqrt(12) t, where t bounds the carried noise per coefficient::

    t     = 2^14        (root mean square over a refreshed W of a trained model; measured in tests/test_release.py)
    kappa = 30
    sigma = 2^15 x 3.46 x 2^14 = 2^30.8  per custodian

The noise is drawn on the coefficients, not encoded from slots: OpenFHE's encoding keeps real parts only, and the imaginary
half of the carried noise would stand there bare. A spherical Gaussian hides a vector by its Euclidean norm alone, hence the root
mean square: the carried noise is uneven, what a fold over I row groups adds up lies on every I-th coefficient.

Decoding is done in numpy (inverse NTT of the one limb, then the embedding): OpenFHE's Decode adds noise of its own,
different at every institution. The error that remains on a weight, with m custodians, scale 2^45, W' = 16 W and I
averaged copies, is a Gaussian of sigma sqrt(m) sqrt(N / 2) / (2^45 x 16 x sqrt(I)); the planner refuses a layout where its
expected largest value over all weights exceeds 1e-3.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal.ckks import ring, wire
from focal.ckks.context import Scheme
from focal.ckks.layout import WEIGHT_SCALE, HeadLayout, Layout
from focal.ckks.ring import Limb

KAPPA = 30
"""Bits of statistical flooding."""
CARRIED_NOISE = 2.0**14
"""t: bound on the root mean square, over the coefficients, of the noise of a refreshed weight ciphertext. It depends on the keys drawn:
with 8 custodians three keys in a hundred pass it, by 1.4 at most in 10^4 (SECURITY.md, "Smudging of the release")."""
MAX_ERROR = 1e-3
"""Largest error of a released weight that a layout may cause."""


def sigma(noise: float) -> float:
    """Standard deviation per coefficient of the smudging of a carried noise of ``noise`` (root mean square)."""
    return 2.0 ** (KAPPA / 2) * math.sqrt(12) * noise


SIGMA = sigma(CARRIED_NOISE)
"""Standard deviation per coefficient of one custodian's smudging noise in the blind protocol."""


def share(scheme: Scheme, secret: Sequence[Limb], ciphertext: Any, lead: bool, noise: float = CARRIED_NOISE) -> bytes:
    """One custodian's smudged share of a refreshed weight ciphertext. Made once, through the ledger.

    ``noise``: bound on the carried noise; a head of the interactive protocol has its own (interactive.HEAD_NOISE).
    """
    return smudged(scheme, secret, scheme.cc.Compress(ciphertext, 1), lead, sigma(noise))


def smudged(scheme: Scheme, secret: Sequence[Limb], one_limb: Any, lead: bool, deviation: float) -> bytes:
    """Canonical bytes of s_i c1 (the lead: + c0) + noise, Gaussian with ``deviation`` on each of the N coefficients."""
    (c0, *_), (c1, *_) = scheme.limbs(one_limb)
    q = scheme.moduli[0]
    coefficients = np.rint(gaussian(scheme.n, deviation)).astype(np.int64)
    made = ring.add(ring.multiply(secret[0], c1, q), ring.ntt((coefficients % q).astype(np.uint64), q, scheme.roots[q]), q)
    return wire.pack(scheme, wire.DECRYPTION, [[ring.add(made, c0, q) if lead else made]])


def gaussian(count: int, deviation: float) -> NDArray[np.float64]:
    """``count`` independent Gaussians with ``deviation``, from the system's randomness (Box and Muller 1958)."""
    words = np.frombuffer(secrets.token_bytes(16 * (-(-count // 2))), "<u8").reshape(2, -1) >> np.uint64(11)
    uniform = (words + 0.5) * 2.0**-53  # in (0, 1)
    pairs = np.sqrt(-2 * np.log(uniform[0])) * np.exp(2j * np.pi * uniform[1])
    return deviation * np.concatenate([pairs.real, pairs.imag])[:count]


def open_slots(scheme: Scheme, shares: Sequence[tuple[str, bytes]]) -> NDArray[np.float64]:
    """Slots (S,) from every custodian's (name, share). The same bits at every institution."""
    limbs = [wire.unpack(scheme, wire.DECRYPTION, data, name)[0] for name, data in shares]
    q = scheme.moduli[0]
    (limb,) = ring.total(limbs, [q])
    coefficients = ring.centred(ring.inverse_ntt(limb, q, scheme.roots[q]), q)
    return ring.embed(coefficients / scheme.scale).real


def weights(layout: Layout, slots: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(R, C) weights W from the slots of every class group."""
    return np.hstack([layout.read_weights(s) for s in slots])[:, : layout.outputs] / WEIGHT_SCALE


def flooding_bits(noise: float = CARRIED_NOISE, bound: float = CARRIED_NOISE) -> float:
    """kappa that the smudging of ``bound`` gives against a carried noise of ``noise`` per coefficient."""
    return 2 * math.log2(sigma(bound) / (math.sqrt(12) * noise))


def expected_error(slots: int, scale: float, layout: HeadLayout, custodians: int) -> float:
    """Expected largest error over all released weights (Gaussian, union over R x C).

    It holds for a head of the interactive protocol as well: the noise and the weights under it are four times larger.
    """
    one = SIGMA * math.sqrt(custodians) * math.sqrt(slots) / (scale * WEIGHT_SCALE * math.sqrt(layout.copies))
    return one * math.sqrt(2 * math.log(2 * layout.features * layout.outputs))


def precision_bits(slots: int, scale: float, layout: HeadLayout, custodians: int) -> float:
    """-log2 of :func:`expected_error`."""
    return -math.log2(expected_error(slots, scale, layout, custodians))
