"""Openings to an owner during training: smudged shares of its own logits and activation gradients.

An opening is a ciphertext with one limb that holds 64 z or 256 dX on one owner's rows and zeros elsewhere. Each custodian's share is
s_i c1 + noise, the lead adds c0, and the owner alone, to which the shares are sealed, adds them up
(:func:`focal.custody.release.open_slots`). The owner knows its own activations and derivatives, and soon the head: it can compute most
of what the opening should say, and what is left is the noise inside, which depends on the joint secret. So a share's own noise,
independent of everything, must be much larger::

    sigma = 2^30  per custodian and coefficient      an opened logit errs by sigma sqrt(m N / 2) / 2^45 / 64:  2^-13.7 with m = 3 (rms)
                                                     an activation gradient by a quarter of it:                2^-15.7
    t     = 2^15  noise inside (root mean square over the N coefficients and over a run's openings)

Whoever knows everything but the share of one honest custodian sees e + n for the noise e inside and that custodian's Gaussian n. Its
Kullback-Leibler divergence from n alone is |e|^2 / (2 sigma^2), and divergences add over openings (:func:`information`)::

    one opening               N t^2 / (2 sigma^2)             = 2^-17 nats
    max_openings_per_key      4096 of them                    = 2^-5  = 0.03 nats: that much, at most, about the *whole* key
    statistical distance      at most sqrt(0.03 / 2) (Pinsker) = 2^-3: this alone is no proof of security

It is not the statistical hiding of 2^-30 and more that a proof by flooding asks for, and no sigma gives both that and usable logits at
this ring: after 4096 openings the same bound comes to 2^-40 at sigma = 2^67 only, beyond q_0. What security rests on instead is a
heuristic: each coefficient of an opening is an approximate hint, an inner product of the secret with a vector of length about
t sqrt(3 / 2), plus n. All hints together add 1.5 x 4096 t^2 / sigma^2 = 2^-17.4 to the precision with which each coefficient of the honest
share is known, which is 3 / 2 to begin with. In the framework of Dachman-Soled, Ducas, Gong and Rossi (CRYPTO 2020) hints so weak
leave the estimated hardness as it is. A share by itself, to somebody who cannot finish the sum, is a ring-LWE sample with error
2^30 instead of 3.19. Shares are made once (the ledger), so their noise cannot be averaged away.

The noise inside, measured with independent keys on the same plaintexts (test_opening.py, 3 custodians; it grows as sqrt(m))::

    logits                 2^10.3 sqrt(1 + 0.85 w^2)     fresh noise of activations times the head; w: the head's root mean square
    activation gradients   2^10.6 sqrt(1 + 11 w^2)       fresh noise of derivatives times the head
    both, besides          about 2^0.5 times the noise of the head itself: 2^11.3 after 50 steps of momentum 0.9 and rate 0.5, 2^12.4 after
                           190, 2^13.2 after 512 (focal.heads.joint.limits.head_noise), for activations of root mean square 1

Over the 512 steps that 4096 openings allow four institutions that is 2^13.3 (root mean square) with 3 custodians, 2^14 with 8.
focal.heads.joint.limits.check_steps refuses more than t before a run begins (with 8 custodians, more than 2353 steps). Noise grows with the
sizes of activations and weights too, so an institution keeps both bounded (focal.heads.joint.limits): ``check_activations`` before it
uploads, ``check_head`` when it has its gradients. That binds honest institutions, whose data and whose openings these are. One that
uploads what it likes needs no noise to read: nothing proves an upload well formed (test_malformed_activations.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from focal.ckks import codec
from focal.ckks.ring import Limb
from focal.ckks.scheme import OPENING_LIMBS, Scheme
from focal.custody import release

NOISE = 2.0**45
"""t: noise inside openings per coefficient, root mean square over those of one key; 2^14 before it is carried 2^20 times larger and masked."""
SIGMA = 2.0**32.5 * NOISE
"""2^77.5: standard deviation per coefficient of one custodian's noise in a share of an opening."""


def share(scheme: Scheme, secret: Sequence[Limb], ciphertext: Any, lead: bool) -> bytes:
    """One custodian's share of an opening, as canonical bytes (``codec.OPENING_SHARE``). Made once, through the ledger.

    ``ciphertext`` has two limbs; ``lead``: the manifest's first custodian, which adds c0. Seal it to the owner.
    """
    if scheme.evaluator.count(ciphertext) != OPENING_LIMBS:
        raise ValueError("an opening has exactly two limbs: with others it would be of another size than its smudging is for")
    return release.smudged(scheme, secret, ciphertext, lead, SIGMA, codec.OPENING_SHARE)


def information(openings: int, n: int, noise: float = NOISE) -> float:
    """Kullback-Leibler divergence in nats of ``openings`` openings, ring dimension ``n``, from what is independent of the noise inside."""
    return openings * n * noise**2 / (2 * SIGMA**2)


def search_bits(bits: float, openings: int, n: int, noise: float = NOISE) -> tuple[float, float]:
    """What a search problem of ``bits`` keeps, in bits, beside so many openings, and the order a of the Renyi divergence that shows it.

    P_real[E] <= (P_ideal[E] exp(a KL))^((a - 1) / a), best at a = sqrt(bits ln 2 / KL).
    """
    nats = information(openings, n, noise)
    order = max(1.0, math.sqrt(bits * math.log(2) / nats))
    return (1 - 1 / order) * (bits - order * nats / math.log(2)), order
