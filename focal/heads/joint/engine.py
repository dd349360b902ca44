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

    W_s = mask_s W_e          X_s = mask_s X           D_s = rot(D, -s Q)           e = s mod K

    logits             Z  = fold_q  sum_s rot(X . W_s, s Q)                       Horner over s, both ways from 0
    input gradient     dX = sum_s W_s . D_s                                       one relinearisation
    weight gradient    G  = fold_i  sum_e rot(sum_(s = e mod K) X_s . D_s, -e R)  Horner over e, both ways from 0

The row axis is the slowest, so fold_i and the rotations by e R are cyclic: G comes out complete in every copy, and
needs neither mask nor broadcast. It is merged over e, added to W and folded last of all, by the map of W's refresh
(:meth:`InteractiveLayout.refresh_map`), which costs no key switch: the fold of m / copies is the mean of the copies, of
which each has ``copies`` times the gradient of its own rows, and W besides.

Key switches (R = 64, K = 8): 17 with 3 limbs, 16 with 4, 29 with 4 and 5, 7 of these with 4. The 14 rotations of D and
the 7 of W take steps of one and three Q or R, those of one ciphertext share its digits (:func:`walk`). Keys in all: 11;
one for each rotation would be 24, for a twentieth of a step.

Level schedule. Every branch begins as low as it can, because a key switch with 2 limbs costs a quarter of one with 6::

    limbs   6            5                 4                         3                  2
    W       -----------> W_e ---mask_s---> W_s
    X       ----------own rows-----------> X . W_s ----------------> Z ----mask-------> opened
    D       -own rows--> D_s ------------> W_s . D_s --------------> dX ---mask-------> opened
    X       -own rows x mask_s--> X_s . D_s -----> G
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
from typing import Any, TypeVar

from focal import framing
from focal.ckks import precise
from focal.ckks.evaluator import Ciphertext, Each, Plaintext
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
    walk,
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
    activations: Mapping[str, Ciphertext]
    """Owner -> what it uploaded, 6 limbs."""
    owned: Ciphertext
    """X: the sum of these, each on its owner's rows; 6 limbs, not rescaled yet."""
    diagonals: dict[int, Ciphertext]
    """s -> 8 W_s, 4 limbs"""


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
        lows = {e: layout.low_lanes(e) for e in range(1, layout.lanes)}
        self.low = {e: ev.encode(low * 2.0**LANE_BITS, TURNED) for e, low in lows.items()}
        # e -> owner -> its own rows, for e > 0 those of mask_(e - K) among them
        own = {name: layout.gradient_mask(rows) for name, rows in self.owners.items()}
        self.activation_masks = {
            e: {name: ev.encode(mask * lows.get(e, 1.0)) for name, mask in own.items()} for e in range(layout.lanes)
        }
        self.derivative_masks = {name: ev.encode(layout.derivative_mask(rows)) for name, rows in self.owners.items()}
        self.logit_masks = {n: self._precise(layout.logit_mask(rows), MASK_BITS) for n, rows in self.owners.items()}
        self.gradient_masks = {n: self._precise(mask, GRADIENT_MASK_BITS) for n, mask in own.items()}

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    @property
    def mask_digest(self) -> str:
        """SHA-256 over all encoded masks, which went through a floating-point FFT:
        whoever recomputes steps must get the same bits."""
        found = framing.Digest(b"focal/interactive-masks/v3")
        masks = [(TURNED, plain) for plain in self.low.values()]
        masks += [
            (LIMBS, plain)
            for owned in (*self.activation_masks.values(), self.derivative_masks)
            for plain in owned.values()
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
        x = self._owned(activations, self.activation_masks[0])
        diagonals = self._diagonals(self.ev.drop(weights.now, TURNED))
        low = self.ev.rescale(self.ev.drop(x, MULTIPLIED + 1))
        products = dict(zip(diagonals, self._map(lambda s: self._inner([(low, diagonals[s])]), diagonals), strict=True))
        q, k = self.layout.lane, self.layout.lanes
        sides = [
            lambda: self._horner([products[s] for s in range(1, k)], q),
            lambda: self._horner([products[-s] for s in range(1, k)], -q),
        ]
        z = self._sum([products[0], *self._all(sides)] if k > 1 else [products[0]])
        return Forward(
            self._masked(self._fold(z, self.layout.lane_folds), self.logit_masks, activations),
            dict(activations),
            x,
            diagonals,
        )

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
        k = self.layout.lanes
        d = self._derivatives(self.ev.rescale(self._owned(derivatives, self.derivative_masks)))
        x = self._activations(run)

        lanes = self._map(lambda e: self._inner([(x[s], d[s]) for s in ([e, e - k] if e else [0])]), range(k))
        half = k // 2
        gradient, *sides = self._all(
            [
                lambda: self._inner([(run.diagonals[s], self.ev.drop(d[s], MULTIPLIED)) for s in d]),
                *([lambda: self._horner(lanes[1 : half + 1], -self.layout.features)] if k > 1 else []),
                *([lambda: self._horner(lanes[:half:-1], self.layout.features)] if k > 2 else []),
            ]
        )
        moved = self._updated(weights, self._sum([lanes[0], *sides]), n)
        return Backward(self._masked(gradient, self.gradient_masks, derivatives), moved)

    def finish(self, step: int, weights: Weights, run: Backward, refresh: Refresh) -> Weights:
        """The head after step ``step``, refreshed: one ciphertext to every custodian."""
        (now,) = refresh([f"train/{step}/weights/-/merged/-"], [run.weights])
        return Weights(now, weights.now)

    def _check(self, rows: Mapping[str, int]) -> int:
        return check_contributors(rows, self.batches, self.min_rows_of_others)

    # ----------------------------------------------------------------- parts of a step

    def _diagonals(self, w: Ciphertext) -> dict[int, Ciphertext]:
        """s -> 8 W_s = 8 mask_s W_(s mod K), one limb less."""
        found, k = self._turned(w, self.layout.features, self.layout.turned_weights), self.layout.lanes
        turned = {e % k: ct for e, ct in found.items()}
        # both are rescaled: a difference to one that is not would leave 2^-25 of W in its zeros,
        # as primes differ from 2^45
        return self._pairs(
            lambda e: self._times(turned[e], 2.0**LANE_BITS), lambda e: self._times(turned[e], self.low[e])
        )

    def _activations(self, run: Forward) -> dict[int, Ciphertext]:
        """s -> X_s, each owner's activations on its own rows only; 5 limbs."""
        whole, masks = self.ev.rescale(run.owned), self.activation_masks
        return self._pairs(lambda e: whole, lambda e: self.ev.rescale(self._owned(run.activations, masks[e])))

    def _pairs(self, whole: Callable[[int], Ciphertext], part: Callable[[int], Ciphertext]) -> dict[int, Ciphertext]:
        """s -> mask_s of something. The masks of e and e - K add up to one, so ``part``, that of e - K, gives both."""

        def split(e: int) -> list[Ciphertext]:
            if e == 0:
                return [whole(0)]
            low = part(e)
            return [self.ev.subtract(whole(e), low), low]

        k = self.layout.lanes
        return {
            s: ct for e, cts in enumerate(self._map(split, range(k))) for s, ct in zip([e, e - k], cts, strict=False)
        }

    def _owned(self, uploads: Mapping[str, Ciphertext], masks: Mapping[str, Plaintext]) -> Ciphertext:
        """The sum of all uploads, each times its owner's mask; not rescaled."""
        return self._sum(self.ev.times(uploads[name], masks[name]) for name in self.owners if name in uploads)

    def _derivatives(self, d: Ciphertext) -> dict[int, Ciphertext]:
        """s -> rot(D, -s Q)"""
        k = self.layout.lanes
        return self._turned(d, -self.layout.lane, range(1 - k, k))

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

    def _turned(self, ct: Ciphertext, unit: int, reached: range) -> dict[int, Ciphertext]:
        """e -> ct rotated by e ``unit``, for every e of ``reached``; 0 is one of them."""
        found, steps = {0: ct}, walk(reached)
        ways: dict[int, list[int]] = {}
        for e, last in steps.items():
            ways.setdefault(e - last, []).append(e)

        def go(starts: Iterable[int], each: Each = map) -> None:
            for start in starts:
                rotations = [steps[e] * unit for e in ways[start]]
                found.update(zip(ways[start], self.ev.rotations(found[start], rotations, each), strict=True))

        go([start for start in ways if start == 0], self.pool.map)
        self._map(go, [[start for start in ways if start > 0], [start for start in ways if start < 0]])
        return found

    def _horner(self, cts: Sequence[Ciphertext], rotation: int) -> Ciphertext:
        """The sum over t >= 1 of cts[t - 1] rotated t times."""
        total = self.ev.rotate(cts[-1], rotation)
        for ct in reversed(cts[:-1]):
            total = self.ev.rotate(self.ev.add(ct, total), rotation)
        return total

    def _inner(self, pairs: Sequence[tuple[Ciphertext, Ciphertext]]) -> Ciphertext:
        """Sum of x . y, one relinearisation for all."""
        # in this order rescaling shrinks the noise of the joint key, which the smudging of the openings has to cover
        return self.ev.rescale(self.ev.relinearise(self.ev.products(*zip(*pairs, strict=True))))

    def _sum(self, cts: Iterable[Ciphertext]) -> Ciphertext:
        first, *rest = cts
        for ct in rest:
            first = self.ev.add(first, ct)
        return first

    def _all(self, jobs: Sequence[Callable[[], U]]) -> list[U]:
        return self._map(lambda job: job(), jobs)
