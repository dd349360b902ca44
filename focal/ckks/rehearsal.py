"""All custodians in one process: what benchmarks and unit tests run. Real keys, real shares, no wire, hence no security.

Everything is done by the same functions that the roles call over the network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal.ckks import keys, opening, refresh, release
from focal.ckks.context import LIMBS, Scheme
from focal.ckks.engine import Block, Engine, Refresh, chunk_kind
from focal.ckks.layout import Layout
from focal.ckks.masks import OwnerMasks, only_classes
from focal.ckks.twin import Scalars
from focal.config import CkksConfig

Array = NDArray[np.float64]


class Rehearsal:
    """``custodians`` threshold shares, the joint keys of ``layout`` and an engine, in this process."""

    def __init__(
        self, layout: Layout, *, custodians: int = 3, threads: int = 1, params: CkksConfig | None = None, run: str = "rehearsal"
    ) -> None:
        self.layout, self.threads = layout, threads
        self.run_id = hashlib.sha256(run.encode()).digest()
        self.scheme = scheme = Scheme(params or CkksConfig(), self.run_id.hex())
        self.pool = ThreadPoolExecutor(threads)
        self.secrets = [keys.SecretShare.draw(scheme, self.run_id) for _ in range(custodians)]
        named = {f"custodian {i}": share for i, share in enumerate(self.secrets)}
        self.public = keys.ceremony(scheme, self.run_id, named, layout.rotations, self.pool).public
        self._limbs = {name: share.limbs for name, share in named.items()}

    def encrypt(self, slots: Array, limbs: int = LIMBS) -> Any:
        return self.scheme.cc.Encrypt(self.public, self.scheme.encode(slots, limbs))

    def block(self, x: Array, targets: Array, b: int) -> Block:
        """Block b of all rows, encrypted under the joint key; with ``layout.owners`` the rows of whose block it is."""
        layout, masks, limbs = self.layout, OwnerMasks(self.scheme, self.layout), chunk_kind("target").limbs
        counts = {str(i): n for i, n in enumerate(layout.owners or (layout.rows,))}
        first = 0
        for n, owned in zip(counts.values(), layout.row_table(counts).values(), strict=True):
            if b in layout.touched(*owned):
                break
            first += n
        rows, wanted = (layout.block_of(values[first : first + n], owned[0], b) for values in (x, targets))
        data = [[self.encrypt(layout.data_slots(rows, g, h)) for h in range(layout.babies)] for g in range(layout.giants)]
        uploaded = [self.encrypt(layout.target_slots(wanted, u), limbs) for u in range(layout.class_groups)]
        return Block(data, [masks.keep(ct, owned, b, u) for u, ct in enumerate(uploaded)])

    def engine(self, x: Array, targets: Array, scalars: Scalars) -> Engine:
        """An engine over rows ``x`` (n, R) and ``targets`` (n, C) = 1/2 - y."""
        blocks = list(self.pool.map(lambda b: self.block(x, targets, b), range(self.layout.blocks)))
        return Engine(self.scheme, self.layout, scalars, blocks.__getitem__, self.threads)

    def refresh(self, items: list[str], ciphertexts: list[Any]) -> list[Any]:
        """Collective refresh by all custodians in turn, the first of them the guard."""
        return [self._refresh(item, ct) for item, ct in zip(items, ciphertexts, strict=True)]

    def noisy_refresh(self, noise: Callable[[], Array]) -> Refresh:
        """A refresh in which each custodian adds slots of its own drawing to every message."""
        return lambda items, cts: [self._refresh(i, ct, [noise() for _ in self.secrets]) for i, ct in zip(items, cts, strict=True)]

    def _refresh(self, item: str, ciphertext: Any, added: list[Array] | None = None) -> Any:
        asked = refresh.request(self.scheme, ciphertext)
        return refresh.together(self.scheme, self.run_id, self._limbs, item, asked, added)[0]

    def release(self, weights: list[Any], noise: float = release.CARRIED_NOISE) -> Array:
        """(R, C) weights by smudged shares of all custodians."""
        kept = [only_classes(self.scheme, self.layout, u, ct) for u, ct in enumerate(weights)]
        return release.weights(self.layout, [self._opened(partial(release.share, noise=noise), ct) for ct in kept])

    def open(self, ciphertext: Any) -> Array:
        """(S,) slots of an opening to an owner, by smudged shares of all custodians."""
        return self._opened(opening.share, ciphertext)

    def _opened(self, share: Callable[[Scheme, Any, Any, bool], bytes], ciphertext: Any) -> Array:
        shares = [(f"custodian {i}", share(self.scheme, s.limbs, ciphertext, i == 0)) for i, s in enumerate(self.secrets)]
        return release.open_slots(self.scheme, shares)
