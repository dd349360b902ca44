"""A network of two layers that learns from scratch under encryption: encrypted weights,
plaintext rows at their institutions.

Every institution computes, on its own rows, the gradient of weights that it cannot read; POSEIDON's model
(Sav et al., NDSS 2021), here as what FOCAL is compared with. With 64 inputs x, 16 hidden units, C <= 8
outputs and targets t = 1/2 - y::

    z1 = W1' x      a1 = z1^2      z2 = W2' a1      delta = p(z2) + t        p: the sigmoid's cubic (linear/twin.py)
    G2 = a1 delta'                 G1 = x (2 z1 . W2 delta)'                 W <- W - rate / n (sum of all rows' G)

**Slots.** [i][b][j]: input i in [0, 64), slowest; row b of a chunk; hidden unit j in [0, 16), fastest.
Output c stands where i mod 8 = c::

    W1[i][0][j]   input to hidden        x[i][b][*]    row b's inputs, in the clear
    W2[c][0][j]   hidden to output       t[c][b][0]    row b's targets, in the clear

Rotations wrap through the slowest axis, so sums over i, and over c, come out complete in every slot. Sums over j and b
are right at j = 0 and b = 0 only, and elsewhere run into the neighbours; they cost nothing to be mended:

    over j     the factor rate / n, which delta needs anyway, is 0 where j > 0; copied along j afterwards
    over b     G and W are right at b = 0. x in the forward pass is split into its rows:
               z1 = fold_i sum_b x_b . rot(W1, -b), where x_b is 0 outside row b. W2 has limbs to spare:
               it is masked and copied along b once a step

Level schedule of a chunk. A refresh takes 3 limbs and gives 6::

    limbs  6         5         4         3  refresh  6        5         4       3  refresh  6         5        4       3
    W1 --x_b, fold_i-> z1 -^2-> a1 --W2, fold_j-> z2 ---> z2 ------> z2^2 ---> p + t --rate-> delta ---> delta
                                a1 . delta ------------------------------------------------------------------------> G2
                       z1 -2x-> 2 z1 x                    (delta . W2, fold_c) . 2 z1 x, fold_b -------------------> G1

Two refreshes a chunk, and one each for W1 and W2 a step: the fewest,
for from W1 to G1 are nine levels and a span has three.

**Scale.** Weights are carried 32 times larger (SCALE), as is delta for the gradients: what opening adds,
fixed in size, then weighs 32 times less. It costs nothing, since the plaintext factors undo it. What is
refreshed stays below 2^8 (custody.refresh), the slots that are not right included: :func:`reach` says how near a
step comes, and whoever trains must look.

**What leaves an institution** is a function of public ciphertexts and of its rows, and could be solved for them. So
each such ciphertext gets a fresh encryption of zero. **What is opened** is masked first: elsewhere than at b = 0
stand sums over some of a step's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from focal.ckks import codec
from focal.ckks.evaluator import Ciphertext, Slots
from focal.ckks.scheme import LIMBS, REFRESH_LIMBS, Scheme
from focal.errors import FocalError
from focal.heads.linear.twin import SIGMOID, polynomial
from focal.heads.moves import Moves, Refresh

Array = NDArray[np.float64]

INPUTS = 64
HIDDEN = 16
LANES = 8
"""Most outputs."""
SCALE = 32.0
"""How many times larger than themselves weights and gradients are carried."""
RANGE = 2.0**8
"""What is refreshed must stay below it."""
COEFFICIENTS = SIGMOID[3]


# --------------------------------------------------------------------------- in the clear


@dataclass(frozen=True)
class Weights:
    """Of both layers. Gradients have the same shape."""

    first: Array
    """(64, 16)"""
    second: Array
    """(16, C)"""

    @classmethod
    def draw(cls, outputs: int, size: float, seed: int) -> Weights:
        """Gaussian, of deviation ``size`` over the square root of a unit's inputs; everybody draws the same."""
        rng = np.random.default_rng([seed, 8])
        first = rng.normal(0, size / INPUTS**0.5, (INPUTS, HIDDEN))
        return cls(first, rng.normal(0, size / HIDDEN**0.5, (HIDDEN, outputs)))

    def scores(self, x: Array) -> Array:
        """(n, C) linear outputs of inputs (n, 64)."""
        return np.square(x @ self.first) @ self.second


def gradients(weights: Weights, x: Array, targets: Array) -> Weights:
    """Summed over rows x (n, 64) with targets (n, C) = 1/2 - y."""
    z1 = x @ weights.first
    delta = polynomial(np.square(z1) @ weights.second, COEFFICIENTS) + targets
    return Weights(x.T @ (2 * z1 * (delta @ weights.second.T)), np.square(z1).T @ delta)


def step(weights: Weights, x: Array, targets: Array, rate: float) -> Weights:
    """One step on all rows x (n, 64) of all institutions, with targets (n, C) = 1/2 - y."""
    found = gradients(weights, x, targets)
    return Weights(weights.first - rate / len(x) * found.first, weights.second - rate / len(x) * found.second)


def reach(weights: Weights, x: Array, targets: Array, rate: float) -> float:
    """Bound on all slots that a step on these rows refreshes; those that are not right hold parts of two
    neighbouring sums at most."""
    a1 = np.square(x @ weights.first)
    delta = polynomial(a1 @ weights.second, COEFFICIENTS) + targets
    back = np.abs(2 * (x @ weights.first) * (delta @ weights.second.T))
    parts = [np.abs(x).T @ back, a1.T @ np.abs(delta)]
    carried = [
        np.abs(w).max() + 2 * rate / len(x) * part.max()
        for w, part in zip((weights.first, weights.second), parts, strict=True)
    ]
    return float(max(2 * (a1 @ np.abs(weights.second)).max(), SCALE * max(carried)))


# --------------------------------------------------------------------------- slots


@dataclass(frozen=True)
class NetworkLayout:
    """Where inputs, rows and units sit. Raises :class:`FocalError` for a number of outputs that does not fit."""

    slots: int
    outputs: int

    def __post_init__(self) -> None:
        if not 1 <= self.outputs <= LANES:
            raise FocalError(
                f"network: {self.outputs} outputs; it has 1 to {LANES}",
                hint="train the other classes in a second network",
            )

    @property
    def rows(self) -> int:
        """Rows of a chunk: 8 in the ring of 16384."""
        return self.slots // (INPUTS * HIDDEN)

    @property
    def input_folds(self) -> list[int]:
        """Sum over i, cyclic."""
        return [self.rows * HIDDEN << k for k in range(INPUTS.bit_length() - 1)]

    @property
    def output_folds(self) -> list[int]:
        """Sum over c, cyclic as everything repeats after 8 inputs."""
        return self.input_folds[: LANES.bit_length() - 1]

    @property
    def unit_folds(self) -> list[int]:
        """Sum over j, right at j = 0."""
        return [1 << k for k in range(HIDDEN.bit_length() - 1)]

    @property
    def row_folds(self) -> list[int]:
        """Sum over b, right at b = 0."""
        return [HIDDEN << k for k in range(self.rows.bit_length() - 1)]

    @property
    def rotations(self) -> list[int]:
        """Every rotation that needs a key, ascending; those downwards copy along j and b."""
        short = [*self.unit_folds, *self.row_folds]
        return sorted({*self.input_folds, *short, *(-r for r in short)})

    def input_slots(self, x: Array) -> Array:
        """(S,) slots of rows x (n, 64), n at most :attr:`rows`. Raises :class:`FocalError` for others,
        or inputs beyond 1 in magnitude."""
        if x.ndim != 2 or x.shape[1] != INPUTS or not 1 <= len(x) <= self.rows:
            raise FocalError(f"network: inputs of shape {x.shape}; a chunk has 1 to {self.rows} rows of {INPUTS}")
        if not np.all(np.abs(x) <= 1):  # NaN compares false
            raise FocalError("network: an input is no number from -1 to 1", hint="map pixels to that range")
        out = np.zeros((INPUTS, self.rows, HIDDEN))
        out[:, : len(x)] = x.T[:, :, None]
        return out.reshape(-1)

    def row_slots(self, b: int) -> Array:
        """(S,) 1 in row ``b``."""
        out = np.zeros((INPUTS, self.rows, HIDDEN))
        out[:, b] = 1
        return out.reshape(-1)

    def output_slots(self, values: Array) -> Array:
        """(S,) slots at j = 0 of values (n, C), zeros elsewhere. Raises :class:`FocalError` for too many
        rows or other classes."""
        if values.ndim != 2 or values.shape[1] != self.outputs or not 1 <= len(values) <= self.rows:
            raise FocalError(
                f"network: targets of shape {values.shape}; a chunk has 1 to {self.rows} rows of {self.outputs}"
            )
        out = np.zeros((INPUTS // LANES, LANES, self.rows, HIDDEN))
        out[:, : self.outputs, : len(values), 0] = values.T
        return out.reshape(-1)

    def weight_slots(self, weights: Weights) -> tuple[Array, Array]:
        """(S,) slots of 32 W1 and of 32 W2, at b = 0."""
        first, second = np.zeros((INPUTS, self.rows, HIDDEN)), np.zeros((INPUTS // LANES, LANES, self.rows, HIDDEN))
        first[:, 0], second[:, : self.outputs, 0] = weights.first, weights.second.T
        return SCALE * first.reshape(-1), SCALE * second.reshape(-1)

    def read_weights(self, first: Slots, second: Slots) -> Weights:
        """The weights from the slots (S,) of :meth:`EncryptedNetwork.readable`; copies are averaged."""
        one = first.real.reshape(INPUTS, self.rows, HIDDEN).mean(axis=1)
        two = second.real.reshape(INPUTS // LANES, LANES, self.rows, HIDDEN).mean(axis=(0, 2))
        return Weights(one / SCALE, two[: self.outputs].T / SCALE)

    def chunks(self, n: int) -> list[slice]:
        """``n`` rows, chunk by chunk."""
        return [slice(at, min(at + self.rows, n)) for at in range(0, n, self.rows)]


# --------------------------------------------------------------------------- encrypted


class Carried(NamedTuple):
    """Ciphertexts of 32 times both layers' weights or gradients, right at b = 0."""

    first: Ciphertext
    second: Ciphertext


@dataclass(frozen=True)
class Spread:
    """A step's weights, as an institution computes with them."""

    first: list[Ciphertext]
    """[b]: 32 W1 at row b, 6 limbs"""
    second: Ciphertext
    """W2 in every row, 5 limbs"""


@dataclass
class _Chunk:
    """One chunk of an institution's rows on its way through a step."""

    x: Array
    targets: Array
    hidden: Ciphertext
    """z1, 5 limbs"""
    squared: Ciphertext
    """a1, 4 limbs"""
    open: Ciphertext
    """z2 with 3 limbs; then delta with 3 limbs; then, refreshed, with 6"""


class EncryptedNetwork(Moves):
    """What institutions (:meth:`gradients`) and the server (:meth:`updated`, :meth:`readable`) compute;
    all but :meth:`gradients` is deterministic. ``public``: the joint public key, for fresh encryptions of zero."""

    def __init__(self, scheme: Scheme, layout: NetworkLayout, public: Any, threads: int) -> None:
        self.scheme, self.ev, self.layout, self.public = scheme, scheme.evaluator, layout, public
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="network")
        self.kept = self.ev.encode(layout.row_slots(0))
        self.kept_natural = self.ev.encode(layout.row_slots(0) / SCALE)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def start(self, weights: Weights) -> Carried:
        """Weights that everybody knows, with all limbs. They are secret from the first update on."""
        zero = self.ev.zero(LIMBS)
        return Carried(*(self.ev.add_plain(zero, self.ev.encode(slots)) for slots in self.layout.weight_slots(weights)))

    # ----------------------------------------------------------------- an institution

    def spread(self, weights: Carried) -> Spread:
        """Once a step."""
        rows = [weights.first]
        for r in self.layout.row_folds:  # b in [0, r / 16) is there; copy it to [r / 16, 2 r / 16)
            rows += self._map(lambda ct, r=r: self.ev.rotate(ct, -r), rows)
        return Spread(rows, self._copied(weights.second, self.kept_natural))

    def gradients(
        self, items: str, weights: Spread, x: Array, targets: Array, rate: float, refresh: Refresh
    ) -> Carried:
        """32 rate (sum over rows x (n, 64) of G1, and of G2) with 3 limbs, at b = 0. ``targets`` (n, C) = 1/2 - y;
        ``items``: what the refreshes are called.

        Raises :class:`FocalError` for rows that do not fit.
        """
        parts = self.layout.chunks(len(x))
        chunks = self._map(lambda at: self._forward(weights, x[at], targets[at]), parts)
        self._refreshed(items + "/outputs", chunks, refresh)
        self._map(lambda chunk: self._residual(chunk, rate), chunks)
        self._refreshed(items + "/residual", chunks, refresh)
        products = self._map(lambda chunk: self._backward(weights, chunk), chunks)
        return Carried(*self._map(self._summed, zip(*products, strict=True)))

    def _forward(self, weights: Spread, x: Array, targets: Array) -> _Chunk:
        ev, whole = self.ev, self.layout.input_slots(x) / SCALE
        z: Ciphertext = None
        for b in range(len(x)):
            product = ev.times(weights.first[b], ev.encode(whole * self.layout.row_slots(b)))
            z = product if z is None else ev.add(z, product)
        hidden = self._fold(ev.rescale(z), self.layout.input_folds)
        squared = ev.rescale(ev.square(hidden))
        out = self._fresh(ev.multiply(squared, ev.drop(weights.second, REFRESH_LIMBS + 1)))
        return _Chunk(x, targets, hidden, squared, self._fold(out, self.layout.unit_folds))

    def _residual(self, chunk: _Chunk, rate: float) -> None:
        """32 rate delta in every unit, 3 limbs; 0 in rows and outputs that there are not."""
        ev, z, (linear, cubic) = self.ev, chunk.open, COEFFICIENTS
        square = ev.rescale(ev.square(z))
        delta = ev.rescale(ev.multiply(square, self._times(z, cubic)))
        delta = ev.add(delta, ev.drop(self._times(z, linear), LIMBS - 2))
        delta = ev.add_plain(delta, ev.encode(self.layout.output_slots(chunk.targets), LIMBS - 2))
        factor = ev.encode(SCALE * rate * self.layout.output_slots(np.ones_like(chunk.targets)), LIMBS - 2)
        copied = self._fold(ev.times(delta, factor), [-r for r in self.layout.unit_folds])
        chunk.open = self._fresh(copied)

    def _backward(self, weights: Spread, chunk: _Chunk) -> tuple[Ciphertext, Ciphertext]:
        """A chunk's parts of G1 and G2, with 4 limbs, not relinearised."""
        ev, delta = self.ev, chunk.open
        turned = self._times(chunk.hidden, ev.encode(2 * self.layout.input_slots(chunk.x), LIMBS - 1))
        # folded before rescaling: delta has its rate by now, and what rotations add here would
        # be most of the weights' noise
        back = self._fold(ev.multiply(ev.drop(delta, LIMBS - 1), weights.second), self.layout.output_folds)
        return ev.products([turned], [ev.rescale(back)]), ev.products([chunk.squared], [ev.drop(delta, LIMBS - 2)])

    def _summed(self, products: Sequence[Ciphertext]) -> Ciphertext:
        """Over chunks, then over rows; 3 limbs. Rescaled last: what key switches add is divided by 2^45."""
        total = products[0]
        for product in products[1:]:
            total = self.ev.add(total, product)
        return self._fresh(self._fold(self.ev.relinearise(total), self.layout.row_folds))

    def _refreshed(self, items: str, chunks: Sequence[_Chunk], refresh: Refresh) -> None:
        names = [f"{items}/{k}" for k in range(len(chunks))]
        for chunk, ct in zip(chunks, refresh(names, [chunk.open for chunk in chunks]), strict=True):
            chunk.open = ct

    def _fresh(self, ct: Ciphertext) -> Ciphertext:
        """A product with 4 limbs plus an encryption of zero, rescaled to 3: its noise is divided by 2^45,
        its randomness stays."""
        nothing = codec.fresh(self.scheme, self.public, np.zeros(1), REFRESH_LIMBS + 1)
        return self.ev.rescale(self.ev.add(ct, self.ev.load(nothing, degree=2)))

    # ----------------------------------------------------------------- the server

    def updated(self, items: str, weights: Carried, found: Sequence[Carried], refresh: Refresh) -> Carried:
        """The weights less all institutions' gradients, refreshed;
        what stands beside b = 0 is that of this step alone."""

        def one(now: Ciphertext, parts: Sequence[Ciphertext]) -> Ciphertext:
            total = self.ev.drop(self._times(now, self.kept), REFRESH_LIMBS)
            for part in parts:
                total = self.ev.subtract(total, part)
            return total

        moved = [one(now, parts) for now, parts in zip(weights, zip(*found, strict=True), strict=True)]
        return Carried(*refresh([f"{items}/first", f"{items}/second"], moved))

    def readable(self, weights: Carried) -> Carried:
        """The weights in every row and nothing else, 5 limbs: what may be opened, and is averaged then."""
        return Carried(*(self._copied(ct, self.kept) for ct in weights))

    # ----------------------------------------------------------------- small moves

    def _copied(self, ct: Ciphertext, mask: Any) -> Ciphertext:
        return self.ev.rescale(self._fold(self.ev.times(ct, mask), [-r for r in self.layout.row_folds]))
