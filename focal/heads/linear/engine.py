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
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from focal.ckks import codec, ring
from focal.ckks.scheme import LIMBS, Scheme
from focal.heads import masks
from focal.heads.linear.layout import RESIDUAL_SCALE, WEIGHT_SCALE, Layout
from focal.heads.linear.twin import Scalars
from focal.heads.moves import Ciphertext, Moves, Refresh


@dataclass
class Block:
    """The encrypted rows of one block, all institutions added up."""

    data: list[list[Ciphertext]]
    """[g][h], all limbs"""
    targets: list[Ciphertext]
    """[class group], 3 limbs: 256 (1/2 - y)"""


def zero_weights(scheme: Scheme, layout: Layout) -> list[Ciphertext]:
    """W before the first step: the all-zero ciphertext per class group, which needs no key and no trust."""
    return [scheme.ciphertext([scheme.zero(LIMBS), scheme.zero(LIMBS)]) for _ in range(layout.class_groups)]


def chunk_kind(name: str) -> codec.Kind:
    """What an uploaded chunk must be: data with all limbs, targets with 5."""
    return codec.ciphertext(LIMBS if name == "data" else masks.UPLOADED_TARGET_LIMBS)


def mask(scheme: Scheme, layout: Layout) -> Any:
    """1 at i0 = 0, encoded: with f > 1 the fold over i0 is right only there."""
    return scheme.encode(layout.first_group(), LIMBS - 1)


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
        out.append(scheme.ciphertext([limb, limb]))
    return out


class Engine(Moves):
    """Runs training steps. ``block(b)`` yields block b; it may keep blocks in memory or read them from disk each time."""

    def __init__(self, scheme: Scheme, layout: Layout, scalars: Scalars, block: Callable[[int], Block], threads: int) -> None:
        self.scheme, self.layout, self.scalars, self.block = scheme, layout, scalars, block
        self.cc = scheme.cc
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
                z = self.cc.EvalAdd(sums[u * len(giants) + g], self.cc.EvalRotate(z, self.layout.babies * self.layout.class_lanes))
            return self._fold(self.cc.Rescale(z), self.layout.lane_folds)

        return self._map(horner, groups)

    def _inner(self, xs: list[Ciphertext], ys: list[Ciphertext]) -> Ciphertext:
        return self.cc.Relinearize(self._products(xs, ys))

    def _products(self, xs: Iterable[Ciphertext], ys: Iterable[Ciphertext], onto: Ciphertext | None = None) -> Ciphertext:
        """onto + sum of x . y, not relinearised."""
        for x, y in zip(xs, ys, strict=True):
            product = self.cc.EvalMultNoRelin(x, y)
            if onto is None:
                onto = product
            else:
                self.cc.EvalAddInPlace(onto, product)
        return onto

    # ----------------------------------------------------------------- residual

    def _natural(self, z: Ciphertext) -> Ciphertext:
        """z from z', down to 3 limbs."""
        return self._drop(self._times(z, self.layout.divisor / WEIGHT_SCALE), 1)

    def _residual(self, z: Ciphertext, target: Ciphertext) -> Ciphertext:
        """256 (p(z) + 1/2 - y) with 3 limbs; degree 3 takes z' (5 limbs), 5 and 7 take z (6 limbs)."""
        cc, c = self.cc, [RESIDUAL_SCALE * x for x in self.scalars.coefficients]
        if len(c) == 2:
            unit = self.layout.divisor / WEIGHT_SCALE
            square = cc.Rescale(cc.EvalSquare(z))
            cubic = cc.Rescale(cc.EvalMult(square, self._times(z, c[1] * unit**3)))
            linear = self._drop(self._times(z, c[0] * unit), 1)
            return cc.EvalAdd(cc.EvalAdd(cubic, linear), target)
        square = cc.Rescale(cc.EvalSquare(z))
        fourth = cc.Rescale(cc.EvalSquare(square))
        cubic = self._drop(cc.Rescale(cc.EvalMult(square, self._times(z, c[1]))), 1)
        linear = self._drop(self._times(z, c[0]), 2)
        high = self._drop(self._times(z, c[2]), 1)
        if len(c) == 4:
            high = cc.EvalAdd(high, cc.Rescale(cc.EvalMult(square, self._times(z, c[3]))))
        top = cc.Rescale(cc.EvalMult(fourth, high))
        return cc.EvalAdd(cc.EvalAdd(top, cubic), cc.EvalAdd(linear, target))

    # ----------------------------------------------------------------- backward

    def _stepped(self, residual: Ciphertext) -> Ciphertext:
        """divisor 16 (eta / n) delta with the limbs of the backward pass."""
        stepped = self._times(residual, self.scalars.rate * self.layout.divisor * WEIGHT_SCALE / RESIDUAL_SCALE)
        return self._drop(stepped, LIMBS - 1 - self.layout.backward_limbs)

    def _backward(self, deltas: list[Ciphertext], dither: Ciphertext) -> list[Ciphertext]:
        """16 (eta / n) X' delta with 3 limbs, constant along i0, one ciphertext per class group."""
        layout = self.layout
        groups, babies = range(layout.class_groups), range(layout.babies)
        sums: list[list[Ciphertext | None]] = [[None] * layout.babies for _ in groups]
        for b in range(layout.blocks):
            self._accumulate(self.block(b).data, deltas[b * len(groups) : (b + 1) * len(groups)], dither, sums)
        flat = self._map(self.cc.Relinearize, [sums[u][h] for u in groups for h in babies])

        def horner(u: int) -> Ciphertext:
            g = flat[u * layout.babies + babies[-1]]
            for h in reversed(babies[:-1]):
                g = self.cc.EvalAdd(flat[u * layout.babies + h], self.cc.EvalRotate(g, -layout.class_lanes))
            g = self._fold(g, layout.row_folds)
            if layout.feature_lanes > 1:  # the fold wrapped between lanes: keep i0 = 0 and copy it along i0
                g = self._fold(self.cc.EvalMult(self.cc.Rescale(g), self.mask), [-x for x in layout.row_folds])
            return self.cc.Rescale(g)

        return self._map(horner, groups)

    def _accumulate(self, data: list[list[Ciphertext]], deltas: list[Ciphertext], dither: Ciphertext, sums: list[list[Any]]) -> None:
        """Add one block's products to ``sums`` [class group][h], which are not relinearised. The block is free when this returns."""
        layout = self.layout
        turned = self._hoisted(deltas, layout.giant_rotations)
        for ct in (ct for group in turned for ct in group[1:]):
            self.cc.EvalAddInPlace(ct, dither)

        def add(uh: tuple[int, int]) -> None:
            u, h = uh
            column = [self._drop(row[h], LIMBS - layout.backward_limbs) for row in data]
            sums[u][h] = self._products(column, turned[u], sums[u][h])

        self._map(add, [(u, h) for u in range(layout.class_groups) for h in range(layout.babies)])

    def _updated(self, weights: Ciphertext, gradient: Ciphertext) -> Ciphertext:
        """(1 - eta ridge) W' - gradient, 3 limbs."""
        return self.cc.EvalSub(self._drop(self._times(weights, self.scalars.decay), 2), gradient)

    # ----------------------------------------------------------------- small moves

    def _hoisted(self, ciphertexts: list[Ciphertext], rotations: list[int]) -> list[list[Ciphertext]]:
        """Each ciphertext and its rotations; the rotations of one ciphertext share their digit decomposition."""
        order = 2 * self.scheme.n
        digits = self._map(self.cc.EvalFastRotationPrecompute, ciphertexts) if rotations else []
        pairs = [(i, r) for i in range(len(ciphertexts)) for r in rotations]
        turned = self._map(lambda ir: self.cc.EvalFastRotation(ciphertexts[ir[0]], ir[1], order, digits[ir[0]]), pairs)
        n = len(rotations)
        return [[ct, *turned[i * n : (i + 1) * n]] for i, ct in enumerate(ciphertexts)]
