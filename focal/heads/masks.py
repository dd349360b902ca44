"""0/1 masks on ciphertexts: what an institution may write, and what may be opened.

::

    targets, 6 limbs --mask of the owner's rows and classes, twice--> 4 limbs --added up, all owners'--> the residual
    weights          --mask of the lanes that hold a class,  twice--> two limbs less ----------> shares of the release

An institution can fill every slot of a ciphertext that it encrypts. A target in another's row, in a lane that pads the
classes, would move that lane's weights along the other's features, and the release would show them
(test_foreign_rows.py). Either mask stops it.

Encoding rounds N coefficients: 2^-40 (root mean square; 2^-38 at most) is left in the place of a zero. So both are done
twice, which leaves 2^-80. The first of a target's masks carries the rate of a step as well, which costs nothing. That
is for values that fit the limbs: a ciphertext that is no encryption may wrap around, and no mask helps then.

Masks are encoded by a floating-point FFT. All who compute must have the same bits, so a digest over them goes into what
is agreed before the first step (:func:`focal.heads.linear.engine.mask_digest`).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from focal.ckks import codec
from focal.ckks.scheme import Scheme
from focal.heads.linear.layout import DATA_LIMBS, TARGET_SCALE, Layout
from focal.heads.moves import HeadLayout

TARGET_LIMBS = DATA_LIMBS
"""Of a target when it is added to the residual."""
UPLOADED_TARGET_LIMBS = TARGET_LIMBS + 2
"""They come with two more, for their owner's mask."""


class OwnerMasks:
    """Targets as their owner may have written them: nothing in others' rows, nothing in lanes that hold no class.

    ``rate``: what a residual is multiplied by before the backward pass;
    targets come 256 times larger and leave ``rate`` times as large.
    """

    def __init__(self, scheme: Scheme, layout: Layout, rate: float) -> None:
        self.scheme, self.layout, self.rate = scheme, layout, rate
        self._encoded = functools.lru_cache(maxsize=16)(
            self._encode
        )  # most blocks are full: few masks, used over and over

    def total(
        self, targets: Mapping[str, Any], row_table: Mapping[str, tuple[int, int]], block: int, group: int
    ) -> Any:
        """The sum of the owners' targets (6 limbs), each times rate / 256 on its own rows of ``block`` and the classes
        of ``group``, zero elsewhere; 4 limbs. Rescaled last: however many share a block, it is rounded twice."""
        ev = self.scheme.evaluator

        def kept(name: str) -> Any:
            return functools.reduce(ev.times, self._encoded(*self._key(row_table[name], block, group)), targets[name])

        return ev.rescale(ev.rescale(functools.reduce(ev.add, map(kept, targets))))

    def digest(self, row_table: Mapping[str, tuple[int, int]]) -> bytes:
        """SHA-256 over every encoded mask of these owners."""
        groups = range(self.layout.class_groups)
        keys = [
            self._key(owned, b, u) for owned in row_table.values() for b in self.layout.touched(*owned) for u in groups
        ]
        found = hashlib.sha256()
        for key in dict.fromkeys(keys):
            for plain in self._encoded(*key):
                found.update(plain_bytes(self.scheme, plain, UPLOADED_TARGET_LIMBS))
        return found.digest()

    def _key(self, owned: tuple[int, int], block: int, group: int) -> tuple[int, int, bool]:
        """What tells masks apart: first row in the block, one past the last, whether the group is the last one
        (it may not be full)."""
        m = self.layout.block_rows
        first, last = (min(max(row - block * m, 0), m) for row in owned)
        return first, last, group == self.layout.class_groups - 1

    def _encode(self, first: int, last: int, last_group: bool) -> list[Any]:
        slots = self.layout.target_mask(first, last, 0, self.layout.class_groups - 1 if last_group else 0)
        return [
            self.scheme.evaluator.encode(mask, UPLOADED_TARGET_LIMBS)
            for mask in (slots * (self.rate / TARGET_SCALE), slots)
        ]


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
