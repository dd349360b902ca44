"""A rehearsal whose blocks and keys lie in files, so that workers in other processes compute with them; and shares
that are recorded, so that two engines get the same."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from focal.ckks import codec
from focal.ckks.scheme import Scheme
from focal.config import CkksConfig
from focal.custody import keys, refresh
from focal.heads.linear.engine import Block, Shard, zero_weights
from focal.heads.linear.layout import Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars
from focal.net.store import Blobs


@dataclass(frozen=True)
class Keys:
    """Digests of the joint keys, as :func:`focal.custody.keys.install` takes them."""

    h1: str
    b: str
    rotations: dict[int, str]


@dataclass(frozen=True)
class FileJob:
    """What :mod:`focal.cluster` hands to a worker here (a :class:`focal.cluster.shards.Job`)."""

    folder: Path
    layout: Layout
    scalars: Scalars
    tag: str
    keys: Keys
    blocks: tuple[str, ...]
    """Digest of each block's limbs."""

    def shard(self, threads: int, blocks: int) -> Shard:
        assert os.environ["OMP_NUM_THREADS"] == "1"
        fetch, scheme = Blobs(self.folder).get, Scheme(CkksConfig(), self.tag)
        keys.install(scheme, bytes.fromhex(self.tag), self.keys.h1, self.keys.b, self.keys.rotations, fetch)
        kept = {}

        def block(b: int) -> Block:
            if b not in kept:
                layout = self.layout
                rows = np.frombuffer(fetch(self.blocks[b]), np.uint64).reshape(-1, 2, 4, scheme.n)
                made = list(map(scheme.evaluator.load, rows))
                data = [made[g * layout.babies : (g + 1) * layout.babies] for g in range(layout.giants)]
                kept[b] = Block(data, made[layout.lane :])
            return kept[b]

        return Shard(scheme, self.layout, self.scalars, block, threads)


class Recorded:
    """A run of ``layout`` in ``folder``: its job, and refreshes whose shares are drawn once for each item; another
    request for the same item is an error."""

    def __init__(self, layout: Layout, degree: int, folder: Path) -> None:
        blobs, self.layout = Blobs(folder), layout
        with _written(blobs) as found:
            self.run = Rehearsal(layout, custodians=2, threads=2, run=str(folder))
        rng = np.random.default_rng(layout.rows)
        x = np.clip(rng.standard_normal((layout.rows, layout.features)), -3, 3)
        y = rng.integers(0, 2, (layout.rows, layout.outputs)).astype(float)
        self.scalars = Scalars.derive(degree, 0.5, 0.1, layout.rows)
        blocks = [self.run.block(x, 0.5 - y, b, self.scalars) for b in range(layout.blocks)]
        ev = self.run.scheme.evaluator

        def written(block: Block) -> str:
            rows = [ct for row in block.data for ct in row] + block.targets
            return blobs.put(np.array([ev.limbs(ct) for ct in rows], np.uint64).tobytes())

        digests = tuple(map(written, blocks))
        self.job = FileJob(folder, layout, self.scalars, self.run.scheme.tag, found[0], digests)
        self._given: dict[str, tuple[str, list[tuple[str, bytes]]]] = {}

    def refresh(self, items: list[str], ciphertexts: list[Any]) -> list[Any]:
        scheme, out = self.run.scheme, []
        for item, ct in zip(items, ciphertexts, strict=True):
            how = self.layout.refresh_map(item)
            asked = refresh.request(scheme, ct, how)
            digest = codec.digest(asked)
            a = refresh.common_random(scheme, self.run.run_id, item, digest, how.limbs)
            if item not in self._given:
                c1 = codec.unpack(scheme, codec.ciphertext(how.request), asked, "")[1]
                shares = [
                    (str(i), refresh.share(scheme, s.limbs, c1, a, 98, how)) for i, s in enumerate(self.run.secrets)
                ]
                self._given[item] = digest, shares
            known, shares = self._given[item]
            assert digest == known, f"{item}: another ciphertext than before"
            out.append(refresh.combine(scheme, asked, a, shares, how))
        return out

    def weights(self) -> list[Any]:
        return zero_weights(self.run.scheme, self.layout)

    def digests(self, weights: list[Any]) -> list[str]:
        scheme = self.run.scheme
        return [codec.digest(codec.pack(scheme, codec.ciphertext(4), scheme.evaluator.limbs(w))) for w in weights]


@contextlib.contextmanager
def _written(blobs: Blobs) -> Iterator[list[Keys]]:
    """Joint keys that are installed inside are written to ``blobs``, too."""
    found: list[Keys] = []
    install = keys.install

    def kept(scheme: Any, run_id: bytes, h1: str, b: str, rotations: Any, fetch: Any) -> None:
        for digest in (h1, b, *rotations.values()):
            blobs.put(fetch(digest))
        found.append(Keys(h1, b, dict(rotations)))
        install(scheme, run_id, h1, b, rotations, fetch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "install", kept)
        yield found
