"""Openings to an owner during training: smudged shares of its own logits and activation gradients.

An opening is a ciphertext with two limbs that holds 2^51 z or 2^53 dX on one owner's rows and zeros elsewhere
(focal/heads/joint/layout.py). Each custodian's share is s_i c1 + noise, the lead adds c0, and the owner alone, to which
the shares are sealed, adds them up (:func:`focal.custody.release.open_slots`). The owner knows its own activations and
derivatives, and soon the head: it can compute most of what the opening should say, and what is left is the noise
inside, which depends on the joint secret. So a share's own noise, independent of everything, must be much larger::

    t     = 2^14 x 2^31    noise inside (root mean square over the N coefficients and over a run's openings):
                           2^14 as it arises. Then 2^20, for what it is multiplied with is carried that much larger,
                           and 2^11 of the masks. Values: 2^40 x 2^11
    sigma = 2^32.5 t       per custodian and coefficient. With m = 3 an opened logit errs by
                           sigma sqrt(m N / 2) / 2^45 / 2^51 = 2^-11.2 (rms), an activation gradient by a quarter of it,
                           2^-13.2

Noise has one size whatever it falls on. What counts is how it compares with the values, and it falls by 2^20 as these
are carried 2^20 times larger; two limbs have the room for both.

**Who could have made a share without the secret.** Whoever knows everything but the share of one honest custodian sees
e + n for the noise e inside and that custodian's Gaussian n. In its place stands n alone, which nobody needs the secret
for: the plaintext result, which is the protocol's output, and a Gaussian. Divergences of the two add over openings,
chosen one after the other or not (:func:`information`)::

    Kullback-Leibler    N t^2 / (2 sigma^2) = 2^-52 nats an opening,
                        2^-40 over max_openings_per_key = 4096, about the *whole* key
    total variation     at most sqrt(KL / 2) (Pinsker): 2^-20.5: no test, of the key or of others' values,
                        does better by more than that
    Renyi, order a      a KL, as Gaussians of one width have it. Whoever finds something here with probability p
                        finds it beside n with p', p <= (p' exp(a KL))^((a - 1) / a)
                        (Bai, Langlois, Lepoint, Stehle and Steinfeld 2015)

The last is for *search*: recovering the key, or a row. A key that is safe to 2^-128 is to 2^-(128 - 2.6e-5), at order
2^23.2 (:func:`search_bits`). The noise depends on the keys drawn: with four times as much of it, more than any of them
had, KL is 2^-36 and 1.0e-4 of a bit is lost. For *indistinguishability* there is the total variation only.

Three conditions. c1 is nobody's choice: uploads have no form in which it could be (:mod:`focal.custody.inputs`), and
lockstep holds the rest. t bounds the noise, see below, for values of ordinary size; the size check allows 2^11 times as
much, and with it 2^22 times the divergence. What masks leave of *others'* values is in the opening too (2^-48 of logits
of their rows, 2^-43 of the next owner's first rows): of logits around 2, another 2^-43.5 over 4096 openings.

It is drawn with all its bits (:func:`focal.ckks.sampling.wide_gaussian`). A share by itself, to somebody who
cannot finish the sum, is a ring-LWE sample with error 2^77.5 instead of 3.19. Shares are made once (the ledger),
so their noise cannot be averaged away.

The noise inside over 2^31, measured with independent keys on the same plaintexts (test_opening.py, 3 custodians;
it grows as sqrt(m))::

    logits                 2^9.3 sqrt(1 + 5 w^2)         what rotations of the head and of activations leave;
                                                         w: the head's root mean square
    activation gradients   2^10.6 sqrt(1 + 3 w^2)        what rotations of the head and of derivatives leave
    both, besides          about 2^0.5 times the noise of the head itself: 2^10.3 after 50 steps of momentum 0.9 and
                           rate 0.5, 2^11.4 after 190, 2^12.2 after 512 (focal.heads.joint.limits.head_noise), for
                           activations of root mean square 1

Over the 512 steps that 4096 openings allow four institutions that is 2^12.4 (root mean square) with 3 custodians,
2^13.1 with 8. focal.heads.joint.limits.check_steps refuses more than t before a run begins (with 8 custodians, more
than 2383 steps). Noise grows with the sizes of activations and weights too, so an institution keeps both bounded
(focal.heads.joint.limits): ``check_activations`` before it uploads, ``check_head`` when it has its gradients. That
binds honest institutions, whose data and whose openings these are.
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
"""t: noise inside openings per coefficient, root mean square over those of one key: 2^14 as it arises, times 2^31."""
SIGMA = 2.0**32.5 * NOISE
"""2^77.5: standard deviation per coefficient of one custodian's noise in a share of an opening."""


def share(scheme: Scheme, secret: Sequence[Limb], ciphertext: Any, lead: bool) -> bytes:
    """One custodian's share of an opening, as canonical bytes (``codec.OPENING_SHARE``). Made once, through the ledger.

    ``ciphertext`` has two limbs; ``lead``: the manifest's first custodian, which adds c0. Seal it to the owner.
    """
    if scheme.evaluator.count(ciphertext) != OPENING_LIMBS:
        raise ValueError(
            "an opening has exactly two limbs: with others it would be of another size than its smudging is for"
        )
    return release.smudged(scheme, secret, ciphertext, lead, SIGMA, codec.OPENING_SHARE)


def information(openings: int, n: int, noise: float = NOISE) -> float:
    """Kullback-Leibler divergence in nats of ``openings`` openings, ring dimension ``n``,
    from what is independent of the noise inside."""
    return openings * n * noise**2 / (2 * SIGMA**2)


def search_bits(bits: float, openings: int, n: int, noise: float = NOISE) -> tuple[float, float]:
    """What a search problem of ``bits`` keeps, in bits, beside so many openings, and the order a of the Renyi
    divergence that shows it.

    P_real[E] <= (P_ideal[E] exp(a KL))^((a - 1) / a), best at a = sqrt(bits ln 2 / KL).
    """
    nats = information(openings, n, noise)
    order = max(1.0, math.sqrt(bits * math.log(2) / nats))
    return (1 - 1 / order) * (bits - order * nats / math.log(2)), order
