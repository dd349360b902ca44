"""0/1 masks on ciphertexts: what an institution may write, and what may be opened.

::

    targets, 6 limbs --mask of the owner's rows and classes, twice--> 4 limbs --added up, all owners'--> the residual
    data,    6 limbs --mask of the owner's rows,             twice--> 4 limbs --added up, all owners'--> shared blocks
    weights          --mask of the lanes that hold a class,  twice--> two limbs less ----------> shares of the release

An institution can fill every slot of a ciphertext that it encrypts. A target in another's row, in a lane that pads the
classes, would move that lane's weights along the other's features; data in another's row would move a feature's weights
along the other's labels; and the release would show them (test_foreign_rows.py). Masks stop both. Data of a block that
has one owner need none, and are taken as they came.

Encoding rounds N coefficients: 2^-39.8 (root mean square; 2^-38 at most) is left in the place of a zero. So all are
done twice, which leaves 2^-79 (the square of a complex Gaussian). The first of a target's masks carries the rate of a
step as well, which costs nothing. That is for values that fit the limbs: a ciphertext that is no encryption may wrap
around, and no mask helps then.

**What depends on a secret.** Masks and remainders are public functions of the layout and of the uploads: whoever has
the uploads computes the same limbs. With m_H, e_H the message and the fresh noise of owner H (focal/custody/inputs.py),
o_H its encoded mask over the scale, and s the joint secret, the phase of the sum over the owners is::

    sum_H o_H^2 (m_H - e_H)  +  r0 + r1 s

* o_H^2 m_H: what H may write, and 2^-79 of what it may not. H knows it, and nobody's secret is in it.
* o_H^2 e_H: nothing in others' rows, so that the owners together have the noise of one ciphertext, Gaussian with 3.19
  sqrt(custodians) a coefficient.
* r0 + r1 s: what the last rescaling leaves out; the first one's is divided by 2^45. The coefficients of r0 and r1 lie
  in [-1/2, 1/2], as good as uniform, and follow from public numbers, so that whoever computes knows them. Over the draw
  of s it has the deviation sqrt((1 + N custodians 2/3) / 12) = 2^4.9 sqrt(custodians) a coefficient, once and not for
  each owner: nine times that of fresh noise.

Nobody who lacks a share of s can make e_H or r1 s. They leave within weights only, under the smudging of the release,
which is measured with them (tests/slow/test_release_noise.py), and which honest sizes of data and targets bound.

Masks are encoded by a floating-point FFT. All who compute must have the same bits, so a digest over them goes into what
is agreed before the first step (:func:`focal.heads.linear.engine.mask_digest`). Where an institution is left out after
that, as its proof does not hold, fewer rows make another rate: a difference of those masks shows as one of the first
step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from focal import framing
from focal.ckks import codec
from focal.ckks.scheme import Scheme
from focal.heads.linear.layout import DATA_LIMBS, TARGET_SCALE, UPLOADED_LIMBS, Layout
from focal.heads.moves import Ciphertext, HeadLayout

TARGET_LIMBS = DATA_LIMBS
"""Of a target when it is added to the residual."""
DATA_MASKS = 64
"""Encoded masks of data that are kept, 0.8 MB each at N = 2^14. Those of one g serve all h: more owners than this in
one block cost an encoding for each product, 3 ms, and nothing else."""

RowTable = Mapping[str, tuple[int, int]]
"""Institution -> (first global row, one past its last)."""
Uploaded = Iterable[tuple[str, Ciphertext]]
"""(institution, its ciphertext), of all that have rows in one block."""


class OwnerMasks:
    """Targets and data as their owner may have written them: nothing in others' rows, no target in a lane that holds
    no class.

    ``rate``: what a residual is multiplied by before the backward pass;
    targets come 256 times larger and leave ``rate`` times as large.
    """

    def __init__(self, scheme: Scheme, layout: Layout, rate: float) -> None:
        self.scheme, self.layout, self.rate = scheme, layout, rate
        # most blocks are full: few masks, used over and over
        self._encoded = functools.lru_cache(maxsize=16)(self._encode)
        self._encoded_data = functools.lru_cache(maxsize=DATA_MASKS)(self._encode_data)

    def targets(self, uploaded: Uploaded, row_table: RowTable, block: int, group: int) -> Ciphertext:
        """The sum of the owners' targets (6 limbs), each times rate / 256 on its own rows of ``block`` and the classes
        of ``group``, zero elsewhere; 4 limbs."""
        return self._total(uploaded, lambda name: self._encoded(*self._key(row_table[name], block, group)))

    def data(self, uploaded: Uploaded, row_table: RowTable, block: int, g: int) -> Ciphertext:
        """The owners' data at one place (g, h) of ``block``; 4 limbs. Of a shared one the sum (of 6 limbs), each zero
        outside of its own rows; else those of the only owner as they came."""
        if not self.layout.shared:
            ((_, own),) = uploaded
            return own
        return self._total(uploaded, lambda name: self._encoded_data(*self._rows(row_table[name], block), g))

    def _total(self, uploaded: Uploaded, masks: Callable[[str], list[Any]]) -> Ciphertext:
        """The sum of all ciphertexts, each times its owner's two masks.
        Rescaled last: however many share a block, it is rounded twice."""
        ev = self.scheme.evaluator
        kept = (functools.reduce(ev.times, masks(name), ciphertext) for name, ciphertext in uploaded)
        return ev.rescale(ev.rescale(functools.reduce(ev.add, kept)))

    def digest(self, row_table: RowTable) -> bytes:
        """SHA-256 over every encoded mask of these owners."""
        layout = self.layout
        pairs = [(owned, b) for owned in row_table.values() for b in layout.touched(*owned)]
        keys = dict.fromkeys(self._key(*pair, u) for pair in pairs for u in range(layout.class_groups))
        rows = dict.fromkeys(self._rows(*pair) for pair in pairs) if layout.shared else {}
        found = framing.Digest(b"focal/owner-masks/v1")
        for plain in (plain for key in keys for plain in self._encoded(*key)):
            found.add(plain_bytes(self.scheme, plain, UPLOADED_LIMBS))
        for first, last in rows:
            for g in range(layout.giants):
                found.add(plain_bytes(self.scheme, self._encoded_data(first, last, g)[0], UPLOADED_LIMBS))
        return found.digest()

    def _rows(self, owned: tuple[int, int], block: int) -> tuple[int, int]:
        """First row in the block, one past the last."""
        m = self.layout.block_rows
        first, last = (min(max(row - block * m, 0), m) for row in owned)
        return first, last

    def _key(self, owned: tuple[int, int], block: int, group: int) -> tuple[int, int, bool]:
        """What tells masks of targets apart: the rows, and whether the group is the last one (it may not be full)."""
        return *self._rows(owned, block), group == self.layout.class_groups - 1

    def _encode(self, first: int, last: int, last_group: bool) -> list[Any]:
        slots = self.layout.target_mask(first, last, 0, self.layout.class_groups - 1 if last_group else 0)
        return [
            self.scheme.evaluator.encode(mask, UPLOADED_LIMBS) for mask in (slots * (self.rate / TARGET_SCALE), slots)
        ]

    def _encode_data(self, first: int, last: int, g: int) -> list[Any]:
        return 2 * [self.scheme.evaluator.encode(self.layout.data_mask(first, last, 0, g), UPLOADED_LIMBS)]


def only_classes(scheme: Scheme, layout: HeadLayout, group: int, weights: Any) -> Any:
    """A refreshed weight ciphertext as it may be released: at its release's scale (``HeadLayout.release_factor``; one
    limb less where that is not 1), and zero in the lanes that hold no class, whatever stands there. Where there are
    such lanes it has two limbs less."""
    ev, mask = scheme.evaluator, layout.class_mask(group)
    if layout.release_factor != 1.0:
        weights = ev.rescale(ev.times(weights, layout.release_factor))
    limbs = ev.count(weights)
    return weights if mask is None else keep(scheme, weights, [ev.encode(mask, n) for n in (limbs, limbs - 1)])


def class_mask_bytes(scheme: Scheme, layout: HeadLayout, group: int, limbs: int) -> bytes:
    """The masks of :func:`only_classes` for weights with ``limbs`` limbs, to be hashed;
    nothing where every lane holds a class."""
    ev, mask = scheme.evaluator, layout.class_mask(group)
    return b"" if mask is None else b"".join(plain_bytes(scheme, ev.encode(mask, n), n) for n in (limbs, limbs - 1))


def keep(scheme: Scheme, ciphertext: Any, masks: Iterable[Any]) -> Any:
    """``ciphertext`` times each encoded mask, one limb less each time."""
    for mask in masks:
        ciphertext = scheme.evaluator.rescale(scheme.evaluator.times(ciphertext, mask))
    return ciphertext


def plain_bytes(scheme: Scheme, plain: Any, limbs: int) -> bytes:
    """Canonical bytes of an encoded plaintext."""
    return codec.pack(scheme, codec.ciphertext(limbs), [scheme.evaluator.plain_limbs(plain), scheme.zero(limbs)])
