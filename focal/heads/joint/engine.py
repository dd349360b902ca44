"""One joint step of interactive split training: a linear head on ciphertexts while the lower segments train too.

The rows of all institutions share one ciphertext. With R features, C classes, K class lanes (C rounded up to a power of
two, at most 8), Q = R / K and m = S / R rows::

    slot = i R + j        row i in [0, m), slowest        feature j = r Q + q, lane r in [0, K), q in [0, Q)

    activations   X(i, j)     = x[i, j]
    derivatives   D(i, r, q)  = delta[i, (r - i) mod K]        the same for every q; logits come back in the same
                                                               order, at q = 0
    weights       W(i, r, q)  = w[j, (r - i) mod K]            all of w within K rows, repeated along i

Row i has its classes shifted by i lanes. So the weights are *one* ciphertext, hence one refresh per step, and
W_e = rot(W, e R) puts class (r - i - e) mod K on every slot: K rotations show each feature all its classes. What
is missing is to bring lane r to lane r - e *within* a row: a rotation by e Q does it for r >= e, and one by
(e - K) Q for r < e. Everything is therefore written in the 2K - 1 diagonals s = e and s = e - K, where a mask
keeps the lanes that stay within their row::

    W_s = mask_s W_e              D_s = rot(D, -s Q)              e = s mod K

    logits             Z  = fold_q  sum_s rot(X . W_s, s Q)
    input gradient     dX = sum_s W_s . D_s
    weight gradient    G  = fold_i  sum_e rot(sum_(s = e mod K) mask_s X . D_s, -e R)

In baby steps and giant steps, s = g B + h with 0 <= h < B = K / 2. Whatever has one h is rotated by h Q before it is
multiplied, so that products are added up, relinearised and turned together; e and e - K have one h, so one rotation
of W is good for both::

    W'_s = rot(W_s, h Q)     rot(W_e, h Q) by one rotation of W, e R + h Q          X'_h = rot(X, h Q)
    D'_g = rot(D, -g B Q)

    logits             Z  = fold_q  sum_g rot( sum_h X'_h . W'_s,  g B Q )           Horner over g, both ways from 0
    input gradient     dX =         sum_h rot( sum_g W'_s . D'_g,  -h Q )            Horner over h
    weight gradient    G  = fold_i  sum_e rot( T_e,  -(e R + h Q) )                  Horner over h, twice, and once B R

For T_e = rot(sum_(s = e mod K) mask_s X . D_s, h Q) there is no limb left for mask_s: the masks of uploads (below) come
before the rotations, and mask_s would come after. So even and odd rows are summed apart, X = X_0 + X_1 and D = D_0 +
D_1, which costs these masks nothing. What a rotation brings over from the next row then meets zeros::

    T_e = sum_p rot(X_p, h Q) . (rot(D_p, -g B Q) + rot(D_p, -(g - K / B) B Q))      g B + h = e

The row axis is the slowest, so fold_i and the rotations by e R are cyclic: G comes out complete in every copy, and
needs neither mask nor broadcast. It is merged over e, added to W and folded last of all, by the map of W's refresh
(:meth:`InteractiveLayout.refresh_map`), which costs no key switch: the fold of m / copies is the mean of the copies, of
which each has ``copies`` times the gradient of its own rows, and W besides.

Key switches (R = 64, K = 8): 9 with 3 limbs, 23 with 4, 19 with 5, of which 18 rotations share six ciphertexts' digits.
15 rotation keys.

Level schedule. Every branch begins as low as it can, because a key switch with 2 limbs costs a quarter of one with 6::

    limbs   6            5                 4                         3                  2
    W       -----------> W_e ---mask_s---> W_s
    X       ----own rows, p--> X_p ------> X . W_s ----------------> Z ----mask-------> opened
    D       ----own rows, p--> D_p ------> W_s . D_s --------------> dX ---mask-------> opened
                               X_p . D_p - G
    W, W-   -----------------------------> 2^38 / copies (W + b (W - W-)) - 2^18 rate / n G --- refresh:
                                                                               fold_i, / 2^38 --> W with 6 limbs

An institution can write into every slot of what it uploads. So each upload is multiplied by its owner's 0/1 mask before
uploads are added up, with one rescaling for all: activations keep the owner's rows, derivatives these and the lanes
that hold a class. What somebody writes into others' rows moves their logits and gradients, and the head, by 2^-38 of
it: that is what encoding leaves in a zero, and there is no limb for a second mask.

Everything is carried 2^20 times larger (SCALE): activations, derivatives, weights. Noise has one size whatever it falls
on, so that of fresh ciphertexts and key switches weighs 2^20 times less on values 2^40 times larger (Z, dX, G), and
what is opened has two limbs for both and for the smudging. Two more things follow:

    masks     what they leave in their zeros is somebody else's value, and must weigh as little as the noise. W's lanes
              are encoded 2^3 times larger, owners' masks of Z and dX 2^8 and 2^10 times, these by focal/ckks/precise.py
    the rate  a gradient is 2^20 times larger than a head, so on its way to the refresh the head is made larger, by an
              integer, and the refresh divides: exactly, and without the limb that a rescaling takes. The rate of a row
              is an integer too, over 2^18 (:func:`focal.heads.joint.twin.row_rate`). This request has 4 limbs, for its
              coefficients reach 2^104 instead of 2^56

What is left of noise:

    a head     2^5.3 per coefficient and step (3 custodians, rate 0.5, 128 rows) from the derivatives' own
               noise, and 2^2.6 of the refresh. Momentum passes it on 1 / (1 - b) times, and steps add up:
               10 sqrt(T) for b = 0.9 (head_noise)
    openings   the head's noise times x, the fresh noise of x times w; opening.py has the bounds and what they mean

delta comes at its natural size: scaled down by the rate, the input gradient would drown in the smudging.
The rate comes last.

Momentum needs no refresh of its own: with a constant rate, SGD with momentum b is w+ = w + b (w - w-) - rate g
(Polyak 1964), where w- are the weights of the step before, which are there with all limbs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from focal import framing
from focal.ckks import precise
from focal.ckks.evaluator import Ciphertext, Plaintext
from focal.ckks.scheme import LIMBS, Scheme
from focal.errors import FocalError, Refused
from focal.heads.joint.layout import (
    GRADIENT_MASK_BITS,
    GRADIENT_OPENED,
    LANE_BITS,
    MASK_BITS,
    MOVED_LIMBS,
    OPENING,
    Array,
    InteractiveLayout,
)
from focal.heads.joint.limits import check_contributors
from focal.heads.joint.twin import Update, row_rate
from focal.heads.masks import class_mask_bytes, plain_bytes
from focal.heads.moves import Moves, Refresh

U = TypeVar("U")

RANGE = 64.0
"""Activation gradients up to this size, and logits up to four times as large, must fit the limbs that are opened."""

TURNED = 5
"""Limbs with which W is rotated."""
MULTIPLIED = 4
"""Limbs with which activations, derivatives and weights are multiplied for logits and input gradient."""


@dataclass
class Weights:
    """The head between two steps."""

    now: Ciphertext
    """All limbs."""
    before: Ciphertext
    """The step before, all limbs; at the start of training the same as ``now``."""


def zero_weights(scheme: Scheme) -> Weights:
    """An untrained head, w = 0: the all-zero ciphertext, which needs no key and no trust."""
    zero = scheme.evaluator.zero(LIMBS)
    return Weights(zero, zero)


@dataclass
class Forward:
    """What the forward pass leaves behind."""

    logits: dict[str, Ciphertext]
    """Owner -> 2^51 z on its own rows, zero elsewhere; two limbs, to be opened to that owner only."""
    rows: list[list[Ciphertext]]
    """[p][h]: X_p rotated by h Q, 5 limbs"""
    diagonals: dict[int, Ciphertext]
    """s -> 8 W_s rotated by h Q, 4 limbs"""


@dataclass
class Backward:
    """What the backward pass leaves behind."""

    gradients: dict[str, Ciphertext]
    """Owner -> 2^53 dX on its own rows, zero elsewhere; two limbs, to be opened to that owner only."""
    weights: Ciphertext
    """The new head with 4 limbs, to be refreshed: the sum over its copies, / 2^38, is what it is."""


class InteractiveEngine(Moves):
    """Runs joint steps; deterministic, without network, clock or randomness.
    ``owners``: each institution's rows (:func:`row_table`).

    A step is :meth:`forward`, then whoever answers is put through :meth:`backward`, then :meth:`finish`. Between the
    first two the owners' logits are opened to them; that is not the engine's job.
    """

    def __init__(
        self,
        scheme: Scheme,
        layout: InteractiveLayout,
        owners: Mapping[str, range],
        update: Update,
        threads: int,
        *,
        min_rows_of_others: int = 32,
    ) -> None:
        self.scheme, self.layout, self.owners, self.update = scheme, layout, dict(owners), update
        self.ev = ev = scheme.evaluator
        self.batches, self.min_rows_of_others = {name: len(rows) for name, rows in owners.items()}, min_rows_of_others
        most = math.prod(scheme.moduli[: OPENING.limbs]) / (2 * scheme.scale * GRADIENT_OPENED)
        if most < RANGE / 2:  # primes lie around 2^first_bits and 2^scale_bits
            raise FocalError(
                f"interactive: what is opened holds activation gradients up to {most:.1f} only",
                hint=f"use ckks.first_bits {math.log2(GRADIENT_OPENED * RANGE) + 1:.0f}, as the defaults are",
            )
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="interactive")
        lows = {e: np.roll(layout.low_lanes(e), -layout.baby(e)) for e in range(1, layout.lanes)}
        self.low = {e: ev.encode(low * 2.0**LANE_BITS, TURNED) for e, low in lows.items()}
        own = {name: layout.gradient_mask(rows) for name, rows in self.owners.items()}
        lanes = {name: layout.derivative_mask(rows) for name, rows in self.owners.items()}
        # an owner's own rows, every second of them apart: [p][owner]
        self.activation_masks, self.derivative_masks = (
            [{name: ev.encode(mask * rows) for name, mask in masks.items()} for rows in layout.row_sets]
            for masks in (own, lanes)
        )
        self.logit_masks = {n: self._precise(layout.logit_mask(rows), MASK_BITS) for n, rows in self.owners.items()}
        self.gradient_masks = {n: self._precise(mask, GRADIENT_MASK_BITS) for n, mask in own.items()}

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    @property
    def mask_digest(self) -> str:
        """SHA-256 over all encoded masks, which went through a floating-point FFT:
        whoever recomputes steps must get the same bits."""
        found = framing.Digest(b"focal/interactive-masks/v4")
        masks = [(TURNED, plain) for plain in self.low.values()]
        masks += [
            (LIMBS, plain) for owned in (*self.activation_masks, *self.derivative_masks) for plain in owned.values()
        ]
        masks += [
            (MULTIPLIED - 1, plain) for owned in (self.logit_masks, self.gradient_masks) for plain in owned.values()
        ]
        for limbs, plain in masks:
            found.add(plain_bytes(self.scheme, plain, limbs))
        found.add(class_mask_bytes(self.scheme, self.layout, 0, LIMBS - 1))  # what the release keeps
        return found.hexdigest()

    # ----------------------------------------------------------------- one step

    def forward(self, weights: Weights, activations: Mapping[str, Ciphertext]) -> Forward:
        """``activations``: what each owner that is present uploaded (6 limbs); only its own rows count,
        whatever it wrote elsewhere.

        Raises :class:`Refused` as :func:`check_contributors` does if all bring full batches.
        """
        self._check({name: self.batches.get(name, 0) for name in activations})
        layout, ev = self.layout, self.ev
        turning: list[Callable[[], list[Ciphertext]]] = [lambda: self._weights(ev.drop(weights.now, TURNED))]
        turning += [partial(self._rows, activations, masks) for masks in self.activation_masks]
        w, *rows = self._all(turning)
        diagonals = self._diagonals(w)
        x = self._map(lambda *cts: self._sum(ev.drop(ct, MULTIPLIED) for ct in cts), *rows)
        inner = self._map(
            lambda g: self._inner([(x[h], diagonals[s]) for h, s in layout.diagonals(g).items()]), layout.giants
        )
        below = -layout.giants.start
        sides = [lambda: self._horner(inner[below::-1], -layout.giant)]
        if layout.giants.stop > 1:
            sides.append(lambda: ev.rotate(self._horner(inner[below + 1 :], layout.giant), layout.giant))
        z = self._fold(self._sum(self._all(sides)), layout.lane_folds)
        return Forward(self._masked(z, self.logit_masks, activations), rows, diagonals)

    def backward(
        self, weights: Weights, run: Forward, derivatives: Mapping[str, Ciphertext], rows: Mapping[str, int]
    ) -> Backward:
        """``derivatives``: what each owner that answered uploaded (6 limbs; only its own rows count);
        ``rows``: how many it filled.

        Owners that were there in the forward pass and are not any more add nothing to the head and get nothing. Raises
        :class:`Refused` as :func:`check_contributors` does, and (``owner``) for one that was not in the forward pass.
        """
        n = self._check({name: rows[name] for name in derivatives})
        late = [name for name in derivatives if name not in run.logits]
        if late:
            raise Refused(
                "owner", f"{late[0]} sent derivatives without activations", hint="it can join at the next step"
            )
        layout, ev = self.layout, self.ev
        d = self._all([partial(self._derivatives, derivatives, masks) for masks in self.derivative_masks])
        sums = self._map(lambda g: self._sum(ev.drop(turned[g], MULTIPLIED) for turned in d), layout.giants)
        whole = dict(zip(layout.giants, sums, strict=True))
        met = [
            [self._sum(turned[g] for g in (half, half - layout.halves) if g in turned) for turned in d]
            for half in range(layout.halves)
        ]

        def lane(e: int) -> Ciphertext:
            half, h = divmod(e, layout.babies)
            return self._lowered([(rows[h], turned) for rows, turned in zip(run.rows, met[half], strict=True)])

        def column(h: int) -> Ciphertext:
            giants = {g: layout.diagonals(g) for g in layout.giants}
            return self._inner([(run.diagonals[own[h]], whole[g]) for g, own in giants.items() if h in own])

        babies = range(layout.babies)
        made = self._all([*(partial(lane, e) for e in range(layout.lanes)), *(partial(column, h) for h in babies)])
        lanes, columns = made[: layout.lanes], made[layout.lanes :]
        halves = [lanes[i : i + layout.babies] for i in range(0, layout.lanes, layout.babies)]
        chains = [lambda: self._horner(halves[0], -layout.row_and_lane)]
        if layout.halves > 1:
            chains.append(lambda: ev.rotate(self._horner(halves[1], -layout.row_and_lane), layout.half))
        *sides, gradient = self._all([*chains, lambda: self._horner(columns, -layout.lane)])
        g = self._sum(sides)
        moved = self._updated(weights, g, n)
        return Backward(self._masked(gradient, self.gradient_masks, derivatives), moved)

    def finish(self, step: int, weights: Weights, run: Backward, refresh: Refresh) -> Weights:
        """The head after step ``step``, refreshed: one ciphertext to every custodian."""
        (now,) = refresh([f"train/{step}/weights/-/merged/-"], [run.weights])
        return Weights(now, weights.now)

    def _check(self, rows: Mapping[str, int]) -> int:
        return check_contributors(rows, self.batches, self.min_rows_of_others)

    # ----------------------------------------------------------------- parts of a step

    def _weights(self, w: Ciphertext) -> list[Ciphertext]:
        """[e]: W_e rotated by h Q."""
        halves = [w] if self.layout.halves == 1 else [w, self.ev.rotate(w, self.layout.half)]
        return [ct for half in halves for ct in self._babies(half, self.layout.row_and_lane)]

    def _rows(self, uploads: Mapping[str, Ciphertext], masks: Mapping[str, Plaintext]) -> list[Ciphertext]:
        """[h]: X_p rotated by h Q; 5 limbs."""
        return self._babies(self.ev.rescale(self._owned(uploads, masks)), self.layout.lane)

    def _derivatives(self, uploads: Mapping[str, Ciphertext], masks: Mapping[str, Plaintext]) -> dict[int, Ciphertext]:
        """g -> D_p rotated by -g B Q; 5 limbs."""
        d, giants = self.ev.rescale(self._owned(uploads, masks)), [g for g in self.layout.giants if g]
        turned = self.ev.rotations(d, [-g * self.layout.giant for g in giants])
        return {0: d, **dict(zip(giants, turned, strict=True))}

    def _babies(self, ct: Ciphertext, rotation: int) -> list[Ciphertext]:
        """ct rotated h times, for every baby step h."""
        return [ct, *self.ev.rotations(ct, [h * rotation for h in range(1, self.layout.babies)])]

    def _diagonals(self, w: Sequence[Ciphertext]) -> dict[int, Ciphertext]:
        """s -> 8 W_s = 8 mask_s W_(s mod K), rotated by h Q; one limb less. The masks of e and e - K add up to one."""

        def split(e: int) -> list[Ciphertext]:
            # both are rescaled: a difference to one that is not would leave 2^-25 of W in its zeros,
            # as primes differ from 2^45
            whole = self._times(w[e], 2.0**LANE_BITS)
            if e == 0:
                return [whole]
            low = self._times(w[e], self.low[e])
            return [self.ev.subtract(whole, low), low]

        k = self.layout.lanes
        return {
            s: ct for e, cts in enumerate(self._map(split, range(k))) for s, ct in zip([e, e - k], cts, strict=False)
        }

    def _owned(self, uploads: Mapping[str, Ciphertext], masks: Mapping[str, Plaintext]) -> Ciphertext:
        """The sum of all uploads, each times its owner's mask; not rescaled."""
        return self._sum(self.ev.times(uploads[name], masks[name]) for name in self.owners if name in uploads)

    def _updated(self, weights: Weights, g: Ciphertext, n: int) -> Ciphertext:
        """2^38 / copies (W + b (W - W-)) - 2^18 rate / n G with 4 limbs, exactly; ``g``: in each copy,
        G of its own rows, 4 limbs."""
        ev, one, b = self.ev, self.layout.moved, round(self.layout.moved * self.update.momentum)
        now, before = (ev.drop(w, MOVED_LIMBS) for w in (weights.now, weights.before))
        moved = ev.subtract(ev.times_integer(now, one + b), ev.times_integer(g, row_rate(self.update, n)))
        return ev.subtract(moved, ev.times_integer(before, b)) if b else moved

    def _precise(self, mask: Array, bits: int) -> Plaintext:
        """An owner's mask of what is opened, for logits or gradients with 3 limbs: 2^``bits`` times as large,
        and as much more exact."""
        scheme = self.scheme
        limbs = precise.encode(mask, scheme.params.scale_bits + bits, scheme.moduli[: MULTIPLIED - 1], scheme.roots)
        return self.ev.plain(limbs)

    def _masked(
        self, ct: Ciphertext, masks: Mapping[str, Plaintext], present: Mapping[str, Any]
    ) -> dict[str, Ciphertext]:
        """One opening per owner that is present."""
        names = [name for name in self.owners if name in present]
        return dict(zip(names, self._map(lambda name: self._times(ct, masks[name]), names), strict=True))

    # ----------------------------------------------------------------- small moves

    def _horner(self, cts: Sequence[Ciphertext], rotation: int) -> Ciphertext:
        """The sum over t of cts[t] rotated t times."""
        total = cts[-1]
        for ct in reversed(cts[:-1]):
            total = self.ev.add(ct, self.ev.rotate(total, rotation))
        return total

    def _inner(self, pairs: Sequence[tuple[Ciphertext, Ciphertext]]) -> Ciphertext:
        """Sum of x . y, one relinearisation for all."""
        # in this order rescaling shrinks the noise of the joint key, which the smudging of the openings has to cover
        return self.ev.rescale(self.ev.relinearise(self.ev.products(*zip(*pairs, strict=True))))

    def _lowered(self, pairs: Sequence[tuple[Ciphertext, Ciphertext]]) -> Ciphertext:
        """The same, rescaled before it is relinearised: one limb less to switch. The joint key's noise is not divided,
        which a gradient 2^20 times larger than the head can bear."""
        return self.ev.relinearise(self.ev.rescale(self.ev.products(*zip(*pairs, strict=True))))

    def _sum(self, cts: Iterable[Ciphertext]) -> Ciphertext:
        first, *rest = cts
        for ct in rest:
            first = self.ev.add(first, ct)
        return first

    def _all(self, jobs: Sequence[Callable[[], U]]) -> list[U]:
        return self._map(lambda job: job(), jobs)
