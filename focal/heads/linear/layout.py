"""Where rows, features and classes sit in the slots of a ciphertext.

A slot is a complex number and holds two real features (*complex packing*):
with R features, feature q pairs with q + R/2 ::

    xi_q = x_q + i x_(q + R/2)         Omega_q = w_q + i w_(q + R/2)         q in [0, R/2)
    z    = <x, w> = Re sum_q xi_q conj(Omega_q)
    both gradients at once: d/dOmega = sum over rows of xi delta

With f feature lanes, k class lanes (fastest), P = R/2/f and S = N/2 slots::

    slot = ((i0 * f + j) * P + q) * k + c        i0 in [0,I)  j in [0,f)  q in [0,P)  c in [0,k)       I = S / (R/2 k)

            i0 = 0                     i0 = 1
    | j=0         | j=1  ... | j=0        | ...     sample row of a block = i0 P + q
    | q=0 q=1 ... |          |            |         complex feature       = (j P + q + s) mod R/2   in data ciphertext s
    | c c c c ... |          |            |         class                 = c                       (of one class group)

Data ciphertext s in [0, P) (the s-th *skewed* diagonal) and weights of a class group (constant along i0)::

    D_s(i0, j, q, c) = xi[row(i0, q), (j P + q + s) mod R/2] / divisor
    W(i0, j, q, c)   = Omega[j P + q, c]

so that z = Re fold_j sum_s D_s . rot(conj W, s k). A rotation by less than R/2 k slots runs through the lanes of
a group and on into the next, which holds the same weights, so no mask is needed there. The fold over j runs on
as well: it is right in lane j = 0 only, where the residual is kept (:meth:`Layout.first_lane`) and copied to the
other lanes before the backward pass. With s = g B + h the ciphertexts are stored rotated by -g B k; the same
ones then serve forward and backward passes by baby and giant steps (docs/kernels.md; Halevi and Shoup 2014,
section 4.2, for the diagonal method).

Block b holds global rows [b m, (b + 1) m), and institution i owns global rows [start, stop). It fills the slots of its
own rows and encrypts zeros elsewhere. Each has blocks of its own, its first row is the first of a block::

    owners 5, 3, 6; m = 4        | a a a a | a . . . | b b b . | c c c c | c c . . |        start: 0, 8, 12

so that nobody can put data into another's rows. With ``share_blocks`` in the manifest rows follow each other
without a gap, several institutions fill one block, and the server adds their ciphertexts up: fewer blocks. Their
owners' masks keep data apart there (focal/heads/masks.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from focal.ckks import ring
from focal.ckks.evaluator import Slots
from focal.ckks.scheme import LIMBS
from focal.custody.refresh import Map
from focal.errors import FocalError

Array = NDArray[np.float64]

WEIGHT_SCALE = 16.0
"""The engine carries W' = 16 W, so that the release noise, fixed in size, weighs 16 times less on the weights."""
TARGET_SCALE = 256.0
"""Targets are uploaded 256 times larger, so that their fresh noise, fixed in size, weighs 256 times less on them."""
LOGIT_SCALE = 1 / 8.0
"""Logits are refreshed as u = z / 8: the fit of the sigmoid ends at |z| = 8, so |u| <= 1,
and no power of u amplifies a rounding."""
DATA_LIMBS = 4
"""Limbs of data, weights and residual when they are multiplied: one more than a refresh takes,
for the rescaling before it."""
UPLOADED_LIMBS = DATA_LIMBS + 2
"""Targets, and data of shared blocks, come with two more, for their owner's mask."""


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, (n - 1).bit_length())


@dataclass(frozen=True)
class Layout:
    """One choice of lanes for R features and C outputs on S slots.

    ``babies`` is B of the baby step / giant step split; rows n are those of all institutions. ``owners``: how many of
    them each institution has, in manifest order, where each has blocks of its own; empty where all rows follow each
    other in shared blocks. Features, lanes and babies are powers of two. Raises :class:`FocalError` when they are not,
    when features x classes do not fit the ring, or when the owners' rows are not n.
    """

    slots: int
    features: int
    outputs: int
    rows: int
    class_lanes: int
    feature_lanes: int
    babies: int
    owners: tuple[int, ...] = ()
    live: tuple[int, ...] | None = None
    """Blocks that hold rows of anybody who has come, ascending; None: all do. The others are in no step."""

    def __post_init__(self) -> None:
        for name in ("features", "class_lanes", "feature_lanes", "babies"):
            if getattr(self, name) != power_of_two(
                getattr(self, name)
            ):  # folds and rotations wrap rightly for nothing else
                raise FocalError(f"layout: {name.replace('_', ' ')} must be a power of two, not {getattr(self, name)}")
        if (
            (self.features // 2) % self.feature_lanes
            or self.features < 2
            or self.class_lanes > power_of_two(self.outputs)
        ):
            raise FocalError(
                f"layout: {self.feature_lanes} feature lanes and {self.class_lanes} class lanes do not fit "
                f"{self.features} features and {self.outputs} outputs",
                hint="let the planner choose: leave class_lanes and feature_lanes out",
            )
        if self.groups_of_rows < 1:
            raise FocalError(
                f"layout: {self.features} features x {self.class_lanes} class lanes "
                f"are too many for {self.slots} slots",
                hint="fewer class lanes, fewer projection features or a larger ckks ring",
            )
        if self.owners and (min(self.owners) < 1 or sum(self.owners) != self.rows):
            raise FocalError(
                f"layout: institutions with {', '.join(map(str, self.owners))} rows do not make up {self.rows} rows"
            )

    # ----------------------------------------------------------------- shape

    @property
    def half(self) -> int:
        """R/2: complex features."""
        return self.features // 2

    @property
    def lane(self) -> int:
        """P: complex features of one lane, rows of one group i0, and data ciphertexts of a block."""
        return self.half // self.feature_lanes

    @property
    def groups_of_rows(self) -> int:
        """I: how many groups of P rows a block holds."""
        return self.slots // (self.half * self.class_lanes)

    @property
    def block_rows(self) -> int:
        """m: rows of one block."""
        return self.groups_of_rows * self.lane

    @property
    def blocks(self) -> int:
        return sum(-(-n // self.block_rows) for n in self.owners or (self.rows,))

    @property
    def live_blocks(self) -> Sequence[int]:
        """The blocks that every step takes."""
        return range(self.blocks) if self.live is None else self.live

    @property
    def shared(self) -> bool:
        """Whether a block may hold rows of several institutions, whose data are masked before they are added up."""
        return not self.owners

    @property
    def class_groups(self) -> int:
        return -(-self.outputs // self.class_lanes)

    @property
    def giants(self) -> int:
        """G = P / B."""
        return self.lane // self.babies

    @property
    def divisor(self) -> float:
        """Data are carried divided by this power of two, and the residual multiplied by it before the backward pass.

        The rounding of each row's residual adds up to sqrt(n) / divisor on the weights, the data's own fresh noise to
        divisor / sqrt(n): so divided, both stay where the release's noise bound needs them, whatever the number of
        rows. With sqrt(n) / 2 little more can be gained (measured: t of 2^10.8 at sqrt(n) / 8, 2^9.2 here, 2^8.8 at
        sqrt(n)). Each rotation that copies the residual to more lanes adds about one more rounding. At most 256: the
        logits' refresh multiplies by it, and a division by 2^8 is all that it has to give (:meth:`refresh_map`).

        Data of shared blocks are rounded after their masks, to nine times what is fresh (focal/heads/masks.py): there
        sqrt(n) / 4.
        """
        roundings = self.rows * (1 + len(self.lane_folds))
        return float(min(256, power_of_two(max(1, math.isqrt(roundings // (16 if self.shared else 4))))))

    @property
    def copies(self) -> int:
        """How often each weight stands in a weight ciphertext (along i0)."""
        return self.groups_of_rows

    # ----------------------------------------------------------------- rotations

    @property
    def baby_rotations(self) -> list[int]:
        return [h * self.class_lanes for h in range(1, self.babies)]

    @property
    def giant_rotations(self) -> list[int]:
        return [-g * self.babies * self.class_lanes for g in range(1, self.giants)]

    @property
    def row_folds(self) -> list[int]:
        """Sum over i0, cyclic. The weights' refresh does it."""
        step = self.half * self.class_lanes
        return [step << x for x in range(self.groups_of_rows.bit_length() - 1)]

    @property
    def lane_folds(self) -> list[int]:
        """Sum over j, right in lane j = 0. The logits' refresh does it; by the same steps downwards that lane
        is copied to the others."""
        step = self.lane * self.class_lanes
        return [step << x for x in range(self.feature_lanes.bit_length() - 1)]

    @property
    def conjugation(self) -> int:
        """What OpenFHE calls a rotation by 2N - 1: every slot's complex conjugate."""
        return 4 * self.slots - 1

    @property
    def rotations(self) -> list[int]:
        """Every rotation that needs a key, ascending."""
        needed = {*self.baby_rotations, *self.giant_rotations, *(-x for x in self.lane_folds), self.conjugation}
        if self.giants > 1:
            needed.add(self.babies * self.class_lanes)  # forward Horner
        if self.babies > 1:
            needed.add(-self.class_lanes)  # backward Horner
        return sorted(needed)

    @property
    def release_factor(self) -> float:
        """Weights are released as they are carried."""
        return 1.0

    def refresh_map(self, item: str) -> Map:
        """The map of a plan item's refresh: it follows from the item's kind.

        Logits come as 16 Z / divisor, go out as 2 Re Z, folded over the lanes and brought to z / 8.
        Weights are folded over i0.
        """
        turned = lambda rotations: tuple(ring.exponent(2 * self.slots, r) for r in rotations)  # noqa: E731
        kind = item.split("/")[2]
        if kind == "logits":
            shift = round(math.log2(2 * WEIGHT_SCALE / self.divisor / LOGIT_SCALE))
            return Map(LIMBS, shift, turned([self.conjugation, *self.lane_folds]))
        return Map(DATA_LIMBS, 0, turned(self.row_folds) if kind == "weights" else ())

    # ----------------------------------------------------------------- rows -> slots

    def row_table(self, rows: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Institution -> (first global row, one past its last); ``rows``: how many each has, in manifest order.

        Raises :class:`FocalError` when these are not the rows that the layout was made for.
        """
        if sum(rows.values()) != self.rows or (self.owners and tuple(rows.values()) != self.owners):
            raise FocalError(
                f"layout: made for {self.owners or self.rows} rows, "
                f"not for {', '.join(f'{k} {v}' for k, v in rows.items())}"
            )
        table, start = {}, 0
        for name, n in rows.items():
            table[name] = (start, start + n)
            start += -(-n // self.block_rows) * self.block_rows if self.owners else n
        return table

    def touched(self, start: int, stop: int) -> range:
        """Blocks that hold any of the global rows [start, stop)."""
        return range(start // self.block_rows, (stop - 1) // self.block_rows + 1)

    def chunks(self, start: int, stop: int) -> list[tuple[int, str, int, int]]:
        """Plan order of one institution's upload: (block, "data", g, h) ..., then (block, "target", class group, 0)."""
        plan = []
        for b in self.touched(start, stop):
            plan += [(b, "data", g, h) for g in range(self.giants) for h in range(self.babies)]
            plan += [(b, "target", u, 0) for u in range(self.class_groups)]
        return plan

    def block_of(self, values: Array, start: int, block: int) -> Array:
        """(block_rows, columns): this institution's rows (global rows from ``start`` on)
        in ``block``, zeros elsewhere."""
        m = self.block_rows
        out = np.zeros((m, values.shape[1]))
        first, last = max(start, block * m), min(start + len(values), (block + 1) * m)
        if first < last:
            out[first - block * m : last - block * m] = values[first - start : last - start]
        return out

    def chunk_limbs(self, what: str) -> int:
        """What is uploaded becomes ciphertexts with so many limbs: ``target`` with 6, ``data`` with 4, of shared blocks
        with 6."""
        return DATA_LIMBS if what == "data" and not self.shared else UPLOADED_LIMBS

    def size_of(self, what: str, rms: float) -> float:
        """Root mean square of the slots that rows fill: of ``data`` whose columns have ``rms`` at most, two of them to
        a slot, or of a ``target``, 1/2 or -1/2."""
        return 2**0.5 * rms / self.divisor if what == "data" else TARGET_SCALE / 2

    def data_slots(self, rows: Array, g: int, h: int) -> Slots:
        """Slots of data ciphertext s = g B + h of a block, divided by :attr:`divisor`; ``rows`` is (block_rows, R)."""
        p, k = self.lane, self.class_lanes
        x = np.zeros((self.groups_of_rows * p, self.features))
        x[: len(rows)] = rows / self.divisor
        xi = (x[:, : self.half] + 1j * x[:, self.half :]).reshape(self.groups_of_rows, p, self.half)
        j, q = np.arange(self.feature_lanes)[:, None], np.arange(p)[None, :]
        skewed = xi[:, q, (j * p + q + g * self.babies + h) % self.half].reshape(-1)
        return np.roll(np.repeat(skewed, k), g * self.babies * k)

    def target_slots(self, targets: Array, group: int) -> Array:
        """Slots of a block's targets, times 256, of one class group, in lane j = 0; ``targets`` is (block_rows, C)."""
        p, k = self.lane, self.class_lanes
        t = np.zeros((self.groups_of_rows * p, k))
        part = targets[:, group * k : (group + 1) * k]
        t[: len(part), : part.shape[1]] = part
        lanes = np.zeros((self.groups_of_rows, self.feature_lanes, p * k))
        lanes[:, 0] = TARGET_SCALE * t.reshape(self.groups_of_rows, p * k)
        return lanes.reshape(-1)

    def target_mask(self, start: int, stop: int, block: int, group: int) -> Array:
        """(S,) 1 where targets of the global rows [start, stop) stand in ``block`` and one class group; else 0."""
        own = self.block_of(np.ones((stop - start, self.outputs)), start, block)
        return self.target_slots(own, group) / TARGET_SCALE

    def data_mask(self, start: int, stop: int, block: int, g: int) -> Array:
        """(S,) 1 where data of the global rows [start, stop) stand in ``block``, real and imaginary part, else 0.

        It is the same for every h: another diagonal has other features of a row in the same slots. By g they are
        rotated.
        """
        own = self.block_of(np.ones((stop - start, self.features)), start, block)
        return self.data_slots(own, g, 0).real * self.divisor

    def class_mask(self, group: int) -> Array | None:
        """(S,) 1 on lanes of a weight ciphertext that hold a class, 0 on those that pad C to whole groups;
        None where every lane holds one."""
        if (group + 1) * self.class_lanes <= self.outputs:
            return None
        return self.weight_slots(np.ones((self.features, self.outputs)), group).real

    def first_lane(self) -> Array:
        """(S,) 1 in lane j = 0, else 0."""
        mask = np.zeros((self.groups_of_rows, self.feature_lanes, self.lane * self.class_lanes))
        mask[:, 0] = 1.0
        return mask.reshape(-1)

    def weight_slots(self, weights: Array, group: int) -> Slots:
        """(S,) slots of one class group's weights; ``weights`` is (R, C)."""
        k = self.class_lanes
        w = np.zeros((self.features, k))
        part = weights[:, group * k : (group + 1) * k]
        w[:, : part.shape[1]] = part
        return np.tile((w[: self.half] + 1j * w[self.half :]).reshape(-1), self.groups_of_rows)

    def read_weights(self, slots: Slots) -> Array:
        """(R, k) weights of one class group from its slots, the copies along i0 averaged."""
        omega = slots.reshape(self.groups_of_rows, self.half, self.class_lanes).mean(axis=0)
        return np.vstack([omega.real, omega.imag])

    def items(self, step: int, kind: str) -> Iterator[str]:
        """Plan items of one batch of refreshes, in the order in which they are answered."""
        blocks = ["-"] if kind == "weights" else map(str, self.live_blocks)
        for b in blocks:
            for u in range(self.class_groups):
                yield f"train/{step}/{kind}/{b}/{u}/-"
