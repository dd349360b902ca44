"""A head and all its custodians in one process: what benchmarks and unit tests run
(:mod:`focal.custody.consortium`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from focal.ckks import codec
from focal.ckks.evaluator import RealOrComplex, Slots
from focal.ckks.scheme import LIMBS, Scheme
from focal.config import CkksConfig
from focal.custody import opening, refresh, release
from focal.custody.consortium import Consortium
from focal.heads import released
from focal.heads.masks import only_classes
from focal.heads.moves import HeadLayout, Refresh

Array = NDArray[np.float64]
L = TypeVar("L", bound=HeadLayout)


class AnyRehearsal(Generic[L]):
    """``custodians`` threshold shares and the joint keys of ``layout``, in this process."""

    def __init__(
        self,
        layout: L,
        *,
        custodians: int = 3,
        threads: int = 1,
        params: CkksConfig | None = None,
        run: str = "rehearsal",
    ) -> None:
        self.layout, self.threads = layout, threads
        self.run_id = hashlib.sha256(run.encode()).digest()
        self.scheme = Scheme(params or CkksConfig(), self.run_id.hex())
        self.pool = ThreadPoolExecutor(threads)
        names = [f"custodian {i}" for i in range(custodians)]
        self.consortium = Consortium(self.scheme, self.run_id, names, layout.rotations, self.pool)
        self.secrets = list(self.consortium.shares.values())

    def encrypt(self, slots: RealOrComplex, limbs: int = LIMBS, factor: int = 1) -> Any:
        """A fresh encryption of ``factor`` times ``slots`` (S,) by all custodians."""
        return self.consortium.encrypt(slots, limbs, factor)

    def refresh(self, items: list[str], ciphertexts: list[Any]) -> list[Any]:
        """Collective refresh by all custodians in turn, by the maps of these plan items."""

        def one(item: str, ciphertext: Any) -> Any:
            how = self.layout.refresh_map(item)
            return self.consortium.answered(item, refresh.request(self.scheme, ciphertext, how), how)[0]

        return list(map(one, items, ciphertexts))

    def noisy_refresh(self, noise: Callable[[], Array]) -> Refresh:
        """A refresh in which each custodian adds slots of its own drawing to every message."""

        def one(item: str, ciphertext: Any) -> Any:
            how = self.layout.refresh_map(item)
            return self.consortium.answered(
                item, refresh.request(self.scheme, ciphertext, how), how, [noise() for _ in self.secrets]
            )[0]

        return lambda items, ciphertexts: list(map(one, items, ciphertexts))

    def release(self, weights: list[Any], noise: float = release.CARRIED_NOISE) -> Array:
        """(R, C) weights by smudged shares of all custodians."""
        kept = [only_classes(self.scheme, self.layout, u, ct) for u, ct in enumerate(weights)]
        return released.weights(
            self.layout, [self.consortium.open(partial(release.share, noise=noise), ct) for ct in kept]
        )

    def open(self, ciphertext: Any) -> Slots:
        """(S,) slots of an opening to an owner, by smudged shares of all custodians."""
        return self.consortium.open(opening.share, ciphertext, codec.OPENING_SHARE)
