"""Training steps on ciphertexts: one deterministic module without network, clock or randomness.

The server runs it; a verifying custodian and an auditor run the same code and must get the same limbs. The only thing
it cannot do alone is a collective refresh, so it is handed one. A refresh applies a public map on the way
(:class:`Map`), and so does what would cost key switches and limbs here::

    limbs  4             4    3   refresh, 2 Re, fold_j   6      5      4                 4      3  refresh, fold_i0  4
           W --forward-> Z -->. --------------------> z / 8 -z^2--z^3--> delta -backward-> G ---> W ----------------> W

(degree 3; the higher ones end with 3 limbs and are refreshed once more, delta to 4 limbs.) The release must hide
the noise that the weights carry (release.py), and most of it would come in here, so:

    rescale last        products, their relinearisation, giant and baby steps all run at scale 2^90, one rescaling
                        after them: what key switches add is divided by 2^45 (relinearisation 2^13.7 per coefficient,
                        as the joint multiplication key is noisy; a rotation's division by P is biased). It also costs
                        less than rescaling every product.
    W' = 16 W           the release noise, fixed in size, then weighs 16 times less on the weights (WEIGHT_SCALE)
    u = z / 8           what the cubic takes is at most 1, so no rounding is amplified (LOGIT_SCALE);
                        the rate is in its coefficients
    X / divisor         data and residual share what rounding and fresh noise leave on the weights (Layout.divisor):
                        Z' = 16 Z / divisor

Per block and class group, with D'_gh the stored data and k the class lanes (layout.py):

    z = Re fold_j  sum_g rot( sum_h D'_gh . rot(conj W, h k),       g B k )          Horner over g
    G =    fold_i0 sum_h rot( sum_g D'_gh . rot(delta, -g B k),     -h k )           Horner over h, blocks summed first

What else is saved against the textbook order: rotations of one ciphertext share their digit decomposition (hoisting:
half the price); products are summed before one relinearisation per giant or baby step; the backward pass adds the
products of all blocks before it relinearises and rotates, so those cost nothing per block.
A key switch costs ten times a bare product: key switches are what is counted.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from focal import framing
from focal.ckks import codec, ring
from focal.ckks.scheme import LIMBS, REFRESH_LIMBS, Scheme
from focal.heads import masks
from focal.heads.linear.layout import DATA_LIMBS, LOGIT_SCALE, WEIGHT_SCALE, Layout
from focal.heads.linear.twin import Scalars
from focal.heads.moves import Ciphertext, Moves, Refresh


@dataclass
class Block:
    """The encrypted rows of one block, all institutions added up."""

    data: list[list[Ciphertext]]
    """[g][h], 4 limbs"""
    targets: list[Ciphertext]
    """[class group], 4 limbs: (1/2 - y) times :func:`rate`"""


WINDOW = 64
"""Residuals that are there at a time: enough for many threads, and no more memory for more rows."""
WEIGHTS = codec.ciphertext(DATA_LIMBS)
"""What a weight ciphertext is between two steps."""


def zero_weights(scheme: Scheme, layout: Layout) -> list[Ciphertext]:
    """W before the first step: the all-zero ciphertext per class group, which needs no key and no trust."""
    return [scheme.evaluator.zero(DATA_LIMBS) for _ in range(layout.class_groups)]


def rate(layout: Layout, scalars: Scalars) -> float:
    """What the residual is multiplied by: 16 divisor eta / n, so that X / divisor times it is 16 (eta / n) X' delta."""
    return WEIGHT_SCALE * layout.divisor * scalars.rate


def factors(scheme: Scheme, layout: Layout, scalars: Scalars) -> list[Any]:
    """By what u, u^3, ... are multiplied to give ``rate`` p(z): numbers;
    with f > 1 plaintexts that keep lane j = 0 only."""
    own = [rate(layout, scalars) * c / LOGIT_SCALE ** (2 * i + 1) for i, c in enumerate(scalars.coefficients)]
    return own if layout.feature_lanes == 1 else [scheme.evaluator.encode(layout.first_lane() * a, LIMBS) for a in own]


def mask_digest(scheme: Scheme, layout: Layout, scalars: Scalars, row_table: Mapping[str, tuple[int, int]]) -> str:
    """SHA-256 over every scalar of a step and all encoded masks, which went through a floating-point FFT:
    all must get the same bits."""
    numbers = (*scalars.coefficients, scalars.rate, scalars.decay)
    found = framing.Digest(b"focal/mask/v3", struct.pack(f"<{len(numbers)}d", *numbers))
    found.add(masks.OwnerMasks(scheme, layout, rate(layout, scalars)).digest(row_table))
    found.add(masks.class_mask_bytes(scheme, layout, layout.class_groups - 1, DATA_LIMBS))
    for factor in factors(scheme, layout, scalars) if layout.feature_lanes > 1 else []:
        found.add(masks.plain_bytes(scheme, factor, LIMBS))
    return found.hexdigest()


def ones(scheme: Scheme, limbs: int) -> Ciphertext:
    """A ciphertext to add after a key switch at scale 2^45: one on every coefficient of both elements.

    A key switch divides by P, approximately (Halevi, Polyakov and Shoup 2019, section 2.2), and what it leaves out is
    -2, -1 or 0, on average -1 on every coefficient. What is the same on all coefficients adds up in the slots nearest
    zeta = exp(i pi / N), times s there: 2^19.6 where rounding to nearest leaves 2^12.5.
    """
    limb = [ring.ntt(np.ones(scheme.n, np.uint64), q, scheme.roots[q]) for q in scheme.moduli[:limbs]]
    return scheme.evaluator.load([limb, limb])


class Shards(Protocol):
    """Who computes with the blocks, three calls a step: threads of this process (:class:`Shard`), or workers elsewhere
    (:mod:`focal.cluster`). The limbs are the same."""

    def forward(self, weights: list[Ciphertext]) -> list[Ciphertext]:
        """Z' = 16 Z / divisor in parts that are folded over j; 3 limbs, per block and class group."""

    def residuals(self, logits: list[Ciphertext] | None) -> list[Ciphertext]:
        """What polynomials of degree 5 and 7 have refreshed once more, 3 limbs; from u = z / 8 (6 limbs, as refreshed)
        or, before the first step, from the targets alone."""

    def backward(self, logits: list[Ciphertext] | None, residuals: list[Ciphertext] | None) -> list[Ciphertext]:
        """16 (eta / n) X' delta in parts that are folded over i0, summed over all blocks; 4 limbs at scale 2^90, per
        class group. Of refreshed residuals, else of those that ``logits`` give, else of the targets."""

    def close(self) -> None: ...


class Engine:
    """Runs training steps. ``block(b)`` yields block b; it may keep blocks in memory or read them
    from disk each time. ``shards``: who computes with the blocks, where this process does not."""

    kind = WEIGHTS
    """What its weights are between two steps."""

    def __init__(
        self,
        scheme: Scheme,
        layout: Layout,
        scalars: Scalars,
        block: Callable[[int], Block],
        threads: int,
        shards: Shards | None = None,
    ) -> None:
        self.scheme, self.layout, self.scalars, self.ev = scheme, layout, scalars, scheme.evaluator
        self.shards = shards or Shard(scheme, layout, scalars, block, threads)

    def close(self) -> None:
        self.shards.close()

    @property
    def rate(self) -> float:
        """See :func:`rate`: targets come to a step times this."""
        return rate(self.layout, self.scalars)

    def start(self) -> list[Ciphertext]:
        """Weights before the first step."""
        return zero_weights(self.scheme, self.layout)

    def step(self, step: int, weights: list[Ciphertext], refresh: Refresh) -> list[Ciphertext]:
        """One full-batch step: weights (one ciphertext per class group, 4 limbs) -> new weights, refreshed."""

        def refreshed(kind: str, ciphertexts: list[Ciphertext]) -> list[Ciphertext]:
            return refresh(list(self.layout.items(step, kind)), ciphertexts)

        # before the first step W = 0, so z = 0 and p(z) = 0: the residual is the target
        logits = refreshed("logits", self.shards.forward(weights)) if step > 0 else None
        high = len(self.scalars.coefficients) > 2  # degree 5 and 7: one more level, hence one more refresh
        residuals = refreshed("residual", self.shards.residuals(logits)) if high else None
        gradients = self.shards.backward(logits, residuals)
        return refreshed("weights", list(map(self._updated, weights, gradients)))

    def _updated(self, weights: Ciphertext, gradient: Ciphertext) -> Ciphertext:
        """((1 - eta ridge) W' / I - gradient) in parts that are folded over i0, 3 limbs."""
        kept = self.ev.times(weights, self.scalars.decay / self.layout.copies)
        return self.ev.rescale(self.ev.subtract(kept, gradient))


class Shard(Moves):
    """Some of the blocks, or all, and what one process computes with them. ``blocks`` names those that are meant,
    in the order of what is given and returned; ``None``: all of them.

    What comes before a sum over blocks, and what comes after it, are two calls: sums are exact modulo q, so who adds
    how many of them in which order changes no limb. All that rounds comes after.
    """

    def __init__(
        self, scheme: Scheme, layout: Layout, scalars: Scalars, block: Callable[[int], Block], threads: int
    ) -> None:
        self.scheme, self.layout, self.scalars, self.block = scheme, layout, scalars, block
        self.ev = scheme.evaluator
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="engine")
        self.factors = factors(scheme, layout, scalars)
        self.ones = ones(scheme, DATA_LIMBS)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def _all(self, blocks: Sequence[int] | None) -> Sequence[int]:
        return self.layout.live_blocks if blocks is None else blocks

    # ----------------------------------------------------------------- forward

    def forward(self, weights: list[Ciphertext], blocks: Sequence[int] | None = None) -> list[Ciphertext]:
        """See :class:`Shards`. The rotations of the weights are made once, for all these blocks."""
        conjugates = self._map(lambda w: self.ev.rotate(w, self.layout.conjugation), weights)
        turned = self._turned(conjugates, self.layout.baby_rotations)
        return [z for b in self._all(blocks) for z in self._forward(self.block(b), turned)]

    def _forward(self, block: Block, turned: list[list[Ciphertext]]) -> list[Ciphertext]:
        """Z' = 16 Z / divisor of one block, in parts that are folded over j, 3 limbs,
        one ciphertext per class group."""
        ev, giants, groups = self.ev, range(self.layout.giants), range(self.layout.class_groups)
        sums = self._map(
            lambda ug: ev.relinearise(ev.products(block.data[ug[1]], turned[ug[0]])),
            [(u, g) for u in groups for g in giants],
        )

        def horner(u: int) -> Ciphertext:
            z = sums[u * len(giants) + giants[-1]]
            for g in reversed(giants[:-1]):
                z = ev.add(sums[u * len(giants) + g], ev.rotate(z, self.layout.babies * self.layout.class_lanes))
            return ev.rescale(z)

        return self._map(horner, groups)

    # ----------------------------------------------------------------- residual

    def residuals(self, logits: list[Ciphertext] | None, blocks: Sequence[int] | None = None) -> list[Ciphertext]:
        """See :class:`Shards`."""
        return [self.ev.drop(ct, REFRESH_LIMBS) for ct in self._residuals(logits, blocks)]

    def _residuals(self, logits: list[Ciphertext] | None, blocks: Sequence[int] | None) -> list[Ciphertext]:
        targets = [target for b in self._all(blocks) for target in self.block(b).targets]
        return targets if logits is None else self._map(self._residual, logits, targets)

    def _residual(self, u: Ciphertext, target: Ciphertext) -> Ciphertext:
        """rate (p(z) + 1/2 - y) in lane j = 0 from u = z / 8 (6 limbs) and rate (1/2 - y);
        4 limbs, of degree 5 and 7 three."""
        ev, f = self.ev, self.factors
        multiply = lambda x, y: ev.rescale(ev.multiply(x, y))  # noqa: E731
        square, linear = multiply(u, u), self._times(u, f[0])
        cubic = multiply(square, self._times(u, f[1]))
        if len(f) == 2:
            return ev.add(ev.add(cubic, ev.drop(linear, DATA_LIMBS)), target)
        high = ev.drop(self._times(u, f[2]), DATA_LIMBS)
        if len(f) == 4:
            high = ev.add(high, multiply(square, self._times(u, f[3])))
        top = multiply(multiply(square, square), high)
        low = [ev.drop(ct, REFRESH_LIMBS) for ct in (cubic, linear, target)]
        return ev.add(ev.add(top, low[0]), ev.add(low[1], low[2]))

    # ----------------------------------------------------------------- backward

    def backward(self, logits: list[Ciphertext] | None, residuals: list[Ciphertext] | None) -> list[Ciphertext]:
        """See :class:`Shards`: of all blocks."""
        flat, babies = self.relinearised(self.sums(logits, residuals)), self.layout.babies
        return self._map(self.horner, [flat[at : at + babies] for at in range(0, len(flat), babies)])

    def sums(
        self,
        logits: list[Ciphertext] | None,
        residuals: list[Ciphertext] | None,
        blocks: Sequence[int] | None = None,
    ) -> list[Ciphertext]:
        """The products of these blocks with their residuals, added up and not relinearised:
        one for each (class group, h), in this order."""
        groups, every = self.layout.class_groups, self._all(blocks)
        sums: list[list[Ciphertext | None]] = [[None] * self.layout.babies for _ in range(groups)]
        window = max(1, WINDOW // groups)
        for first in range(0, len(every), window):
            own, place = every[first : first + window], slice(first * groups, (first + window) * groups)
            deltas = residuals[place] if residuals else self._residuals(logits and logits[place], own)
            for i, b in enumerate(own):
                self._accumulate(self.block(b).data, deltas[i * groups : (i + 1) * groups], sums)
        return [total for row in sums for total in row]

    def relinearised(self, sums: Sequence[Ciphertext]) -> list[Ciphertext]:
        """Sums over all blocks, in two polynomials."""
        return self._map(self.ev.relinearise, sums)

    def horner(self, flat: Sequence[Ciphertext], carried: Ciphertext | None = None) -> Ciphertext:
        """The rotated sum of one class group's h, h + 1, ...; ``carried``: that of those which come after them."""
        *others, last = flat
        g = last if carried is None else self._onto(last, carried)
        for ct in reversed(others):
            g = self._onto(ct, g)
        return g

    def _onto(self, ct: Ciphertext, g: Ciphertext) -> Ciphertext:
        return self.ev.add(ct, self.ev.rotate(g, -self.layout.class_lanes))

    def _accumulate(self, data: list[list[Ciphertext]], deltas: list[Ciphertext], sums: list[list[Any]]) -> None:
        """Add one block's products to ``sums`` [class group][h], which are not relinearised.
        The block is free when this returns."""
        layout = self.layout
        turned = self._turned(self._map(self._in_every_lane, deltas), layout.giant_rotations, self.ones)

        def add(uh: tuple[int, int]) -> None:
            u, h = uh
            sums[u][h] = self.ev.products([row[h] for row in data], turned[u], sums[u][h])

        self._map(add, [(u, h) for u in range(layout.class_groups) for h in range(layout.babies)])

    def _in_every_lane(self, delta: Ciphertext) -> Ciphertext:
        """The residual, which stands in lane j = 0, in all of them."""
        for r in self.layout.lane_folds:
            delta = self.ev.add(delta, self.ev.add(self.ev.rotate(delta, -r), self.ones))
        return delta

    # ----------------------------------------------------------------- small moves

    def _turned(
        self, cts: list[Ciphertext], rotations: list[int], constant: Ciphertext | None = None
    ) -> list[list[Ciphertext]]:
        """Each ciphertext and its rotations, which share their digits, each plus ``constant``."""

        def one(ct: Ciphertext) -> list[Ciphertext]:
            turned = self.ev.rotations(ct, rotations)
            return [ct, *(turned if constant is None else [self.ev.accumulate(t, constant) for t in turned])]

        return self._map(one, cts)
