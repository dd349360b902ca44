"""Where rows, features and classes of a joint step sit in the slots
(the drawing is in :mod:`focal.heads.joint.engine`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from focal.ckks import codec, ring, sampling
from focal.ckks.evaluator import Slots
from focal.ckks.scheme import LIMBS, OPENING_LIMBS
from focal.custody.refresh import Map
from focal.errors import FocalError
from focal.heads.joint.twin import RATE_BITS
from focal.heads.linear.layout import WEIGHT_SCALE, power_of_two

Array = NDArray[np.float64]

MAX_LANES = 8
"""Class lanes; the masked diagonals, 2K - 1, are what a step costs."""

OPENING = codec.ciphertext(OPENING_LIMBS)
"""What is opened to an owner."""
FACTOR = 1 << 20
"""What activations and derivatives are multiplied by once they are encoded;
noise that comes later is that much smaller beside them."""
SCALE = float(FACTOR)
"""How many times larger than themselves activations, derivatives and weights are carried."""
LANE_BITS = 3
"""Masks of W's lanes are encoded at a scale 2^3 times the usual one: that much less is left in their zeros,
where the first rows of one owner would show in the last row of another."""
MASK_BITS = 8
"""The same of owners' masks of logits: 2^-48 of others' values is left."""
GRADIENT_MASK_BITS = 10
"""The same of activation gradients, which are smaller, as is the noise on them."""
OPENED = SCALE**2 * 2.0 ** (LANE_BITS + MASK_BITS)
"""How many times larger than themselves logits are opened: 2^51."""
GRADIENT_OPENED = SCALE**2 * 2.0 ** (LANE_BITS + GRADIENT_MASK_BITS)
"""The same of activation gradients: 2^53."""
RELEASED = 64.0
"""The same of the weights that are released."""
MOVED_BITS = RATE_BITS + FACTOR.bit_length() - 1
"""A head on its way to the refresh is larger by 2^38 than after it, the sum over its copies included: the rate is a
multiple of 2^-18, and gradients come 2^20 times larger than the head. The refresh divides exactly
(custody/refresh.py), which costs no limb."""
PHASE_BITS = 59
"""Honest heads on their way to the refresh stay below 2^59 in a slot
(:func:`focal.heads.joint.limits.request_size`)."""
MOVED_LIMBS = 4
"""Limbs of a head on its way to the refresh: 195 bits, for masks of 193."""


@dataclass(frozen=True)
class InteractiveLayout:
    """Where rows, features and classes of a joint batch sit. Raises :class:`FocalError` when they
    do not fit the ring."""

    slots: int
    features: int
    outputs: int

    def __post_init__(self) -> None:
        if not 1 <= self.outputs <= MAX_LANES:
            raise FocalError(
                f"interactive: {self.outputs} outputs; a head has 1 to {MAX_LANES}",
                hint="use the blind protocol for more classes",
            )
        if self.features != power_of_two(self.features) or self.features < self.lanes:
            raise FocalError(
                f"interactive: {self.features} features for {self.outputs} outputs",
                hint=f"a bottleneck (with its bias column) of a power of two, "
                f"at least {self.lanes}: 32, 64, 128 or 256",
            )
        if self.rows < self.lanes:
            raise FocalError(
                "interactive: "
                f"a bottleneck of {self.features} features leaves room for {self.rows} rows in {self.slots} slots",
                hint="use fewer features or a larger ckks ring",
            )

    @property
    def lanes(self) -> int:
        """K"""
        return power_of_two(self.outputs)

    @property
    def lane(self) -> int:
        """Q: features of one lane."""
        return self.features // self.lanes

    @property
    def rows(self) -> int:
        """m: rows of all institutions together."""
        return self.slots // self.features

    @property
    def copies(self) -> int:
        """How often each weight stands in the weight ciphertext."""
        return self.rows // self.lanes

    @property
    def lane_folds(self) -> list[int]:
        """Sum over q, right at q = 0."""
        return [1 << x for x in range(self.lane.bit_length() - 1)]

    @property
    def babies(self) -> int:
        """B: a diagonal is s = g B + h, with baby steps 0 <= h < B and giant steps g."""
        return max(1, self.lanes // 2)

    @property
    def giants(self) -> range:
        """g of the diagonals -K < s < K."""
        return range((1 - self.lanes) // self.babies, (self.lanes - 1) // self.babies + 1)

    def diagonals(self, g: int) -> dict[int, int]:
        """h -> s of the giant step g."""
        return {h: s for h in range(self.babies) if -self.lanes < (s := g * self.babies + h) < self.lanes}

    @property
    def halves(self) -> int:
        """Giant steps that make K lanes: 2, or 1 for one lane. What is K lanes apart is so many giant steps apart."""
        return self.lanes // self.babies

    @property
    def giant(self) -> int:
        """Slots of a giant step over lanes, B Q."""
        return self.babies * self.lane

    @property
    def half(self) -> int:
        """Slots of B rows. Weights repeat after K rows, which are twice as many: forwards is as good as backwards."""
        return self.babies * self.features

    @property
    def row_and_lane(self) -> int:
        """Slots of one row and one lane, R + Q: W_(e + 1) rotated by h + 1 lanes stands that much behind W_e by h."""
        return self.features + self.lane

    def baby(self, e: int) -> int:
        """h Q of the diagonals e and e - K, which is the same: slots by which they are rotated."""
        return e % self.babies * self.lane

    @property
    def rotations(self) -> list[int]:
        """Every rotation that needs a key, ascending."""
        babies = {h * step for h in range(1, self.babies) for step in (self.lane, self.row_and_lane)}
        back = {-self.lane, -self.row_and_lane} if self.babies > 1 else set()
        giants = {-g * self.giant for g in self.giants if g}
        halves = {self.half} if self.halves > 1 else set()
        return sorted({*babies, *back, *giants, *halves, *self.lane_folds})

    def refresh_map(self, item: str) -> Map:
        """A head is refreshed to all limbs, and to the sum over its copies, each of which has the gradient
        of its own rows, / 2^38."""
        if "/release/" in item:  # once more, for a release that is asked for again
            return Map(LIMBS, 0, (), MOVED_LIMBS, PHASE_BITS)
        folds = tuple(ring.exponent(2 * self.slots, self.lanes * self.features << x) for x in range(self._doublings))
        return Map(LIMBS, MOVED_BITS, folds, MOVED_LIMBS, PHASE_BITS)

    @property
    def moved(self) -> int:
        """What each copy of a weight is multiplied by before the refresh: 2^38 over their number."""
        return 1 << MOVED_BITS - self._doublings

    @property
    def release_factor(self) -> float:
        """What a head is multiplied by before its release: carried larger, it would not fit one limb."""
        return RELEASED / SCALE

    # ----------------------------------------------------------------- values <-> slots

    def activation_slots(self, x: Array, first: int) -> Array:
        """(S,) slots of X from activations (n, R) of rows [first, first + n), zeros elsewhere.
        Encoded, they are multiplied by :data:`FACTOR`."""
        out = np.zeros((self.rows, self.features))
        out[self._own(first, x)] = x
        return out.reshape(-1)

    def derivative_slots(self, delta: Array, first: int) -> Array:
        """(S,) slots of D from d loss / d logit (n, C), each of its own row's loss, of rows [first, first + n);
        :data:`FACTOR` likewise."""
        padded = np.zeros((self.rows, self.lanes))
        padded[self._own(first, delta), : self.outputs] = delta
        return np.repeat(np.take_along_axis(padded, self._classes, axis=1), self.lane)

    def weight_slots(self, weights: Array) -> Array:
        """(S,) slots of 2^20 W from weights (R, C)."""
        padded = np.zeros((self.features, self.lanes))
        padded[:, : self.outputs] = SCALE * weights
        lanes = np.arange(self.features) // self.lane
        return np.stack([padded[np.arange(self.features), self._classes[i, lanes]] for i in range(self.rows)]).reshape(
            -1
        )

    def logits(self, slots: Slots, rows: range) -> Array:
        """(n, C) logits of ``rows`` from an opened ciphertext."""
        lanes = slots.real.reshape(self.rows, self.lanes, self.lane)[:, :, 0] / OPENED
        out: Array = np.empty_like(lanes)
        np.put_along_axis(out, self._classes, lanes, axis=1)
        return out[rows.start : rows.stop, : self.outputs]

    def gradients(self, slots: Slots, rows: range) -> Array:
        """(n, R) d loss / d activation of ``rows`` from an opened ciphertext."""
        return slots.real.reshape(self.rows, self.features)[rows.start : rows.stop] / GRADIENT_OPENED

    def read_weights(self, slots: Slots) -> Array:
        """(R, C) times 16, which is what released.weights divides by, from the slots of a released head;
        the copies are averaged."""
        values = slots.real.reshape(self.copies, self.lanes, self.features).mean(axis=0)
        lanes, out = np.arange(self.features) // self.lane, np.empty((self.features, self.lanes))
        for i in range(self.lanes):
            out[np.arange(self.features), self._classes[i, lanes]] = values[i]
        return out[:, : self.outputs] * (WEIGHT_SCALE / RELEASED)

    def noise_slots(self, deviation: float) -> Array:
        """(S,) slots of 2^20 times a fresh Gaussian of ``deviation`` on every weight, the same on all of its copies."""
        return self.weight_slots(
            sampling.gaussian(self.features * self.outputs, deviation).reshape(self.features, self.outputs)
        )

    # ----------------------------------------------------------------- masks

    @property
    def row_sets(self) -> list[Array]:
        """1 on every second row: those that are even, those that are odd. All of them where there is one lane."""
        odd = np.repeat(np.arange(self.rows) % 2, self.features).astype(float)
        return [1 - odd, odd] if self.lanes > 1 else [np.ones(self.slots)]

    def low_lanes(self, e: int) -> Array:
        """1 on lanes r < e, which belong to the diagonal e - K; the others belong to e."""
        return np.tile(np.repeat(np.arange(self.lanes) < e, self.lane), self.rows).astype(float)

    def logit_mask(self, rows: range) -> Array:
        """1 where the logits of ``rows`` stand."""
        mask = np.zeros((self.rows, self.lanes, self.lane))
        mask[rows.start : rows.stop, :, 0] = self._classes[rows.start : rows.stop] < self.outputs
        return mask.reshape(-1)

    def gradient_mask(self, rows: range) -> Array:
        """1 where the activations of ``rows`` stand, and their gradients."""
        mask = np.zeros((self.rows, self.features))
        mask[rows.start : rows.stop] = 1.0
        return mask.reshape(-1)

    def derivative_mask(self, rows: range) -> Array:
        """1 where the derivatives of ``rows`` stand: not in lanes that hold no class."""
        return self.derivative_slots(np.ones((len(rows), self.outputs)), rows.start)

    def class_mask(self, group: int = 0) -> Array | None:
        """1 on lanes of the head that hold a class, 0 on those that pad C to K; None where every lane holds one."""
        return None if self.outputs == self.lanes else self.weight_slots(np.ones((self.features, self.outputs))) / SCALE

    # ----------------------------------------------------------------- help

    @property
    def _doublings(self) -> int:
        """log2 of the number of copies."""
        return self.copies.bit_length() - 1

    @property
    def _classes(self) -> NDArray[np.int64]:
        """(m, K): the class that lane r of row i holds."""
        return (np.arange(self.lanes) - np.arange(self.rows)[:, None]) % self.lanes

    def _own(self, first: int, values: Array) -> slice:
        if first < 0 or first + len(values) > self.rows:
            raise FocalError(
                f"interactive: rows {first} to {first + len(values) - 1} lie outside the joint batch of {self.rows}",
                hint="use smaller batches, fewer features or a larger ckks ring",
            )
        return slice(first, first + len(values))


def row_table(layout: InteractiveLayout, batches: Mapping[str, int]) -> dict[str, range]:
    """The rows of each institution in the joint batch, in the given order.
    Raises :class:`FocalError` when they do not fit."""
    if sum(batches.values()) > layout.rows or min(batches.values(), default=0) < 1:
        raise FocalError(
            "interactive: "
            f"batches of {dict(batches)} rows do not fit a joint batch of {layout.rows} ({layout.features} features)",
            hint="use smaller batches (at least one row each), fewer features or a larger ckks ring",
        )
    table, start = {}, 0
    for name, rows in batches.items():
        table[name] = range(start, start + rows)
        start += rows
    return table
