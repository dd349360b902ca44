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

from focal.ckks import keys, opening, refresh, release, wire
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
        kinds = keys.first_round_kinds(layout.rotations)
        rounds = [list(s.first_round(layout.rotations, self.pool)) for s in self.secrets]
        sums = {
            name: keys.add_up(scheme, kind, [(f"custodian {i}", r[j]) for i, r in enumerate(rounds)])
            for j, (name, kind) in enumerate(kinds)
        }
        second = [s.second_round(sums["switching"])[0] for s in self.secrets]
        multiplication = keys.add_up(scheme, wire.SWITCHING_AB, [(f"custodian {i}", b) for i, b in enumerate(second)])
        keys.install(scheme, self.run_id, multiplication, layout.rotations, lambda r: sums[f"rotation/{r}"])
        self.public = keys.joint_public_key(scheme, self.run_id, sums["public"])

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
        """Collective refresh by all custodians in turn, with the derived ``a``; shares are added as objects, no bytes travel."""
        return [self._refresh(item, ct) for item, ct in zip(items, ciphertexts, strict=True)]

    def noisy_refresh(self, noise: Callable[[], Array]) -> Refresh:
        """A refresh in which each custodian adds slots of its own drawing to every message."""

        def one(item: str, ciphertext: Any) -> Any:
            asked = refresh.request(self.scheme, ciphertext)
            a = refresh.common_random(self.scheme, self.run_id, item, wire.digest(asked))
            c1 = self.scheme.limbs(ciphertext)[1]
            shares = [(f"custodian {i}", *refresh.share(self.scheme, s.key, c1, a, noise())) for i, s in enumerate(self.secrets)]
            return refresh.combine(self.scheme, asked, a, shares)

        return lambda items, ciphertexts: [one(item, ct) for item, ct in zip(items, ciphertexts, strict=True)]

    def _refresh(self, item: str, ciphertext: Any) -> Any:
        scheme = self.scheme
        digest = wire.digest(refresh.request(scheme, ciphertext))
        a = scheme.common(refresh.common_random(scheme, self.run_id, item, digest))
        c1 = ciphertext.Clone()
        c1.RemoveElement(0)
        shares = [scheme.cc.IntMPBootDecrypt(s.key, c1, a) for s in self.secrets]
        return scheme.cc.IntMPBootEncrypt(scheme.joint_tag_key, scheme.cc.IntMPBootAdd(shares), a, ciphertext)

    def release(self, weights: list[Any], noise: float = release.CARRIED_NOISE) -> Array:
        """(R, C) weights by smudged shares of all custodians."""
        kept = [only_classes(self.scheme, self.layout, u, ct) for u, ct in enumerate(weights)]
        return release.weights(self.layout, [self._opened(partial(release.share, noise=noise), ct) for ct in kept])

    def open(self, ciphertext: Any) -> Array:
        """(S,) slots of an opening to an owner, by smudged shares of all custodians."""
        return self._opened(opening.share, ciphertext)

    def _opened(self, share: Callable[[Scheme, Any, Any, bool], bytes], ciphertext: Any) -> Array:
        shares = [(f"custodian {i}", share(self.scheme, s.key, ciphertext, i == 0)) for i, s in enumerate(self.secrets)]
        return release.open_slots(self.scheme, shares)
