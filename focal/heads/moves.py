"""What every encrypted head is made of: small moves on ciphertexts, and what others need to know of its layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from focal.ckks.evaluator import Ciphertext, Evaluator, Plaintext, Slots
from focal.custody.refresh import Map

Array = NDArray[np.float64]
Refresh = Callable[[list[str], list[Ciphertext]], list[Ciphertext]]
"""Plan items and ciphertexts with the limbs that their maps take -> the refreshed ones, in order:
what each item's map makes of the message, with as many limbs as it says. The list of ciphertexts may be let go of on
the way (:func:`focal.protocols.common.refreshing.taken`)."""

T = TypeVar("T")
U = TypeVar("U")


class HeadLayout(Protocol):
    """What everybody needs to know of where a head's weights lie, whatever computes them."""

    @property
    def features(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def copies(self) -> int: ...
    @property
    def rotations(self) -> list[int]: ...
    def refresh_map(self, item: str) -> Map: ...
    @property
    def release_factor(self) -> float: ...
    def class_mask(self, group: int) -> Array | None: ...
    def read_weights(self, slots: Slots) -> Array: ...


class Moves:
    """Small moves on ciphertexts that every encrypted head is made of."""

    ev: Evaluator
    pool: ThreadPoolExecutor

    def _times(self, ct: Ciphertext, factor: Plaintext | float) -> Ciphertext:
        return self.ev.rescale(self.ev.times(ct, factor))

    def _map(self, f: Callable[..., U], *items: Iterable[Any]) -> list[U]:
        return list(self.pool.map(f, *items))

    def _fold(self, ct: Ciphertext, rotations: Iterable[int]) -> Ciphertext:
        for r in rotations:
            ct = self.ev.add(ct, self.ev.rotate(ct, r))
        return ct
