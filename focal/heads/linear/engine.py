"""Training steps on ciphertexts: one deterministic module without network, clock or randomness.

The server runs it; a verifying custodian and an auditor run the same code and must get the same limbs. The only thing
it cannot do alone is a collective refresh, so it is handed one::

    limbs   6                5          4          3     refresh     6           5 (4)            3     refresh     6
            W ---forward---> z --z^2--> . --z^3--> delta ----------> delta --rate--> . ---backward--> W ----------> W

(in brackets f = 1; with f > 1 a mask after the fold takes the limb in between). The release must hide the noise that the weights
carry (release.py), and most of it would come in here, so:

    rescale last        products, their relinearisation, giant and baby steps and folds all run at scale 2^90, one rescaling after them:
                        what key switches add is divided by 2^45 (relinearisation 2^13.7 per coefficient, as the joint multiplication
                        key is noisy; a rotation's division by P is biased). It also costs less than rescaling every product.
    W' = 16 W           the release noise, fixed in size, then weighs 16 times less on the weights (WEIGHT_SCALE)
    delta' = 256 delta  up to its refresh: the cubic's rounding is amplified by z'^2; the rate then divides it (RESIDUAL_SCALE)
    X / divisor         data and residual share what rounding and fresh noise leave on the weights (Layout.divisor): z' = 16 z / divisor

Per block and class group, with D'_gh the stored data and k the class lanes (layout.py):

    z = fold_j  sum_g rot( sum_h D'_gh . rot(W, h k),       g B k )            Horner over g
    G = fold_i0 sum_h rot( sum_g D'_gh . rot(delta, -g B k), -h k )            Horner over h, blocks summed first

What else is saved against the textbook order: rotations of one ciphertext share their digit decomposition (hoisting: half
the price); products are summed before one relinearisation per giant or baby step; the backward pass adds the
products of all blocks before it relinearises and rotates, so those cost nothing per block.
A key switch costs 5 to 10 ms, a bare product 0.5 ms: key switches are what is counted.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from focal.ckks import codec, ring
from focal.ckks.evaluator import Ciphertext, Plaintext
from focal.ckks.scheme import LIMBS, REFRESH_LIMBS, Scheme
from focal.heads import masks
from focal.heads.linear.layout import RESIDUAL_SCALE, WEIGHT_SCALE, Layout
from focal.heads.linear.twin import Scalars
from focal.heads.moves import Moves, Refresh


@dataclass
class Block:
    """The encrypted rows of one block, all institutions added up."""

    data: list[list[Ciphertext]]
    """[g][h], all limbs"""
    targets: list[Ciphertext]
    """[class group], 3 limbs: 256 (1/2 - y)"""


def zero_weights(scheme: Scheme, layout: Layout) -> list[Ciphertext]:
    """W before the first step: the all-zero ciphertext per class group, which needs no key and no trust."""
    return [scheme.evaluator.zero(LIMBS) for _ in range(layout.class_groups)]


def chunk_kind(name: str) -> codec.Kind:
    """What an uploaded chunk must be: data with all limbs, targets with 5."""
    return codec.ciphertext(LIMBS if name == "data" else masks.UPLOADED_TARGET_LIMBS)


def mask(scheme: Scheme, layout: Layout) -> Plaintext:
    """1 at i0 = 0, encoded: with f > 1 the fold over i0 is right only there."""
    return scheme.evaluator.encode(layout.first_group(), LIMBS - 1)


def mask_digest(scheme: Scheme, layout: Layout, scalars: Scalars, row_table: Mapping[str, tuple[int, int]]) -> str:
    """SHA-256 over every scalar of a step and all encoded masks, which went through a floating-point FFT: all must get the same bits."""
    factors = (*scalars.coefficients, scalars.rate, scalars.decay)
    found = hashlib.sha256(b"focal/mask/v2" + struct.pack(f"<{len(factors)}d", *factors))
    found.update(masks.OwnerMasks(scheme, layout).digest(row_table))
    found.update(masks.class_mask_bytes(scheme, layout, layout.class_groups - 1))
    if layout.feature_lanes > 1:
        found.update(masks.plain_bytes(scheme, mask(scheme, layout), LIMBS - 1))
    return found.hexdigest()


def dithers(scheme: Scheme, limbs: int) -> list[Ciphertext]:
    """Two ciphertexts to add after a key switch, by turns: zeros and ones on the coefficients of both elements, and the complement.

    A key switch divides by P and rounds down, on average half a unit too low on every coefficient of c1. What is the same on all
    coefficients adds up in the slots nearest zeta = exp(i pi / N), times s there: 2^19.6 where rounding to nearest leaves 2^12.5. With a
    random half of the coefficients raised by one the mean is 0, and what remains of it cancels in every second step.
    """
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(b"focal/dither/v1").digest(scheme.n // 8), np.uint8))
    out = []
    for pattern in (bits, 1 - bits):
        limb = [ring.ntt(pattern.astype(np.uint64), q, scheme.roots[q]) for q in scheme.moduli[:limbs]]
        out.append(scheme.evaluator.load([limb, limb]))
    return out


class Engine(Moves):
    """Runs training steps. ``block(b)`` yields block b; it may keep blocks in memory or read them from disk each time."""

    def __init__(self, scheme: Scheme, layout: Layout, scalars: Scalars, block: Callable[[int], Block], threads: int) -> None:
        self.scheme, self.layout, self.scalars, self.block = scheme, layout, scalars, block
        self.ev = scheme.evaluator
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="engine")
        self.mask = mask(scheme, layout) if layout.feature_lanes > 1 else None
        self.dithers = dithers(scheme, layout.backward_limbs)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    # ----------------------------------------------------------------- one step

    def step(self, step: int, weights: list[Ciphertext], refresh: Refresh) -> list[Ciphertext]:
        """One full-batch step: weights (one ciphertext per class group, all limbs) -> new weights, refreshed."""
        layout = self.layout
        pairs = [(b, u) for b in range(layout.blocks) for u in range(layout.class_groups)]
        residuals = [self.block(b).targets[u] for b, u in pairs]
        if step > 0:  # before the first step W = 0, so z = 0 and p(z) = 0: the residual is the target
            turned = self._hoisted(weights, layout.baby_rotations)
            logits: list[Ciphertext] = []
            for b in range(layout.blocks):
                logits += self._forward(self.block(b), turned)
            if len(self.scalars.coefficients) > 2:  # degree 5 and 7: three more levels, hence one more refresh
                logits = refresh(list(layout.items(step, "logits")), self._map(self._natural, logits))
            residuals = self._map(self._residual, logits, residuals)
        residuals = refresh(list(layout.items(step, "residual")), residuals)
        gradients = self._backward(self._map(self._stepped, residuals), self.dithers[step % 2])
        return refresh(list(layout.items(step, "weights")), self._map(self._updated, weights, gradients))

    # ----------------------------------------------------------------- forward

    def _forward(self, block: Block, turned: list[list[Ciphertext]]) -> list[Ciphertext]:
        """z' = 16 z / divisor of one block, 5 limbs, one ciphertext per class group."""
        giants, groups = range(self.layout.giants), range(self.layout.class_groups)
        sums = self._map(lambda ug: self._inner(block.data[ug[1]], turned[ug[0]]), [(u, g) for u in groups for g in giants])

        def horner(u: int) -> Ciphertext:
            z = sums[u * len(giants) + giants[-1]]
            for g in reversed(giants[:-1]):
                z = self.ev.add(sums[u * len(giants) + g], self.ev.rotate(z, self.layout.babies * self.layout.class_lanes))
            return self._fold(self.ev.rescale(z), self.layout.lane_folds)

        return self._map(horner, groups)

    def _inner(self, xs: list[Ciphertext], ys: list[Ciphertext]) -> Ciphertext:
        return self.ev.relinearise(self.ev.products(xs, ys))

    # ----------------------------------------------------------------- residual

    def _natural(self, z: Ciphertext) -> Ciphertext:
        """z from z', down to 3 limbs."""
        return self.ev.drop(self._times(z, self.layout.divisor / WEIGHT_SCALE), REFRESH_LIMBS)

    def _residual(self, z: Ciphertext, target: Ciphertext) -> Ciphertext:
        """256 (p(z) + 1/2 - y) with 3 limbs; degree 3 takes z' (5 limbs), 5 and 7 take z (6 limbs)."""
        ev, c = self.ev, [RESIDUAL_SCALE * x for x in self.scalars.coefficients]
        square = ev.rescale(ev.square(z))
        if len(c) == 2:
            unit = self.layout.divisor / WEIGHT_SCALE
            cubic = ev.rescale(ev.multiply(square, self._times(z, c[1] * unit**3)))
            linear = ev.drop(self._times(z, c[0] * unit), REFRESH_LIMBS)
            return ev.add(ev.add(cubic, linear), target)
        fourth = ev.rescale(ev.square(square))
        cubic = ev.drop(ev.rescale(ev.multiply(square, self._times(z, c[1]))), REFRESH_LIMBS)
        linear = ev.drop(self._times(z, c[0]), REFRESH_LIMBS)
        high = ev.drop(self._times(z, c[2]), LIMBS - 2)
        if len(c) == 4:
            high = ev.add(high, ev.rescale(ev.multiply(square, self._times(z, c[3]))))
        top = ev.rescale(ev.multiply(fourth, high))
        return ev.add(ev.add(top, cubic), ev.add(linear, target))

    # ----------------------------------------------------------------- backward

    def _stepped(self, residual: Ciphertext) -> Ciphertext:
        """divisor 16 (eta / n) delta with the limbs of the backward pass."""
        stepped = self._times(residual, self.scalars.rate * self.layout.divisor * WEIGHT_SCALE / RESIDUAL_SCALE)
        return self.ev.drop(stepped, self.layout.backward_limbs)

    def _backward(self, deltas: list[Ciphertext], dither: Ciphertext) -> list[Ciphertext]:
        """16 (eta / n) X' delta with 3 limbs, constant along i0, one ciphertext per class group."""
        layout = self.layout
        groups, babies = range(layout.class_groups), range(layout.babies)
        sums: list[list[Ciphertext | None]] = [[None] * layout.babies for _ in groups]
        for b in range(layout.blocks):
            self._accumulate(self.block(b).data, deltas[b * len(groups) : (b + 1) * len(groups)], dither, sums)
        flat = self._map(self.ev.relinearise, [sums[u][h] for u in groups for h in babies])

        def horner(u: int) -> Ciphertext:
            g = flat[u * layout.babies + babies[-1]]
            for h in reversed(babies[:-1]):
                g = self.ev.add(flat[u * layout.babies + h], self.ev.rotate(g, -layout.class_lanes))
            g = self._fold(g, layout.row_folds)
            if layout.feature_lanes > 1:  # the fold wrapped between lanes: keep i0 = 0 and copy it along i0
                g = self._fold(self.ev.times(self.ev.rescale(g), self.mask), [-x for x in layout.row_folds])
            return self.ev.rescale(g)

        return self._map(horner, groups)

    def _accumulate(self, data: list[list[Ciphertext]], deltas: list[Ciphertext], dither: Ciphertext, sums: list[list[Any]]) -> None:
        """Add one block's products to ``sums`` [class group][h], which are not relinearised. The block is free when this returns."""
        layout = self.layout
        hoisted = self._hoisted(deltas, layout.giant_rotations)
        turned = [[ct, *(self.ev.accumulate(t, dither) for t in group)] for ct, *group in hoisted]

        def add(uh: tuple[int, int]) -> None:
            u, h = uh
            column = [self.ev.drop(row[h], layout.backward_limbs) for row in data]
            sums[u][h] = self.ev.products(column, turned[u], sums[u][h])

        self._map(add, [(u, h) for u in range(layout.class_groups) for h in range(layout.babies)])

    def _updated(self, weights: Ciphertext, gradient: Ciphertext) -> Ciphertext:
        """(1 - eta ridge) W' - gradient, 3 limbs."""
        return self.ev.subtract(self.ev.drop(self._times(weights, self.scalars.decay), REFRESH_LIMBS), gradient)

    # ----------------------------------------------------------------- small moves

    def _hoisted(self, ciphertexts: list[Ciphertext], rotations: list[int]) -> list[list[Ciphertext]]:
        """Each ciphertext and its rotations."""
        return [[ct, *self.ev.rotations(ct, rotations, self.pool.map)] for ct in ciphertexts]
