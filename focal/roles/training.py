"""The part of a run that several parties compute: the server, every verifying custodian, and an auditor.

All get the same uploads and the same refresh answers, so all get the same limbs. Each link of the chain is::

    chain_0   = H(upload lists)          chain_{t+1} = H(chain_t || digests of the weights before || digests of the weights after)
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from focal.ckks import refresh, ring, wire
from focal.ckks.context import LIMBS, Scheme
from focal.ckks.engine import Block, Engine, Refresh, chunk_kind, mask_digest, zero_weights
from focal.ckks.layout import Layout
from focal.ckks.twin import Scalars
from focal.config import Manifest
from focal.net import messages as msg
from focal.roles import agreed

Fetch = Callable[[str], bytes]
"""Digest -> the blob's bytes."""


class Training:
    """Encrypted training from signed upload lists. ``fetch`` yields uploaded chunks; they are checked here, before OpenFHE sees them."""

    def __init__(
        self, manifest: Manifest, scheme: Scheme, layout: Layout, lists: dict[str, msg.Upload], fetch: Fetch, threads: int
    ) -> None:
        self.manifest, self.scheme, self.layout, self.lists, self.fetch = manifest, scheme, layout, lists, fetch
        scalars = scalars_of(manifest, lists)
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="blocks")
        self.block = functools.lru_cache(maxsize=None)(self._block)
        self.engine = Engine(scheme, layout, scalars, self.block, threads)

    def close(self) -> None:
        self.engine.close()
        self.pool.shutdown()

    def start(self) -> tuple[list[Any], str]:
        """Weights before the first step, and the chain's beginning."""
        chain = hashlib.sha256(b"focal/chain/v1" + b"".join(msg.encode(u) for u in self.lists.values())).hexdigest()
        return zero_weights(self.scheme, self.layout), chain

    def step(self, step: int, weights: list[Any], chain: str, ask: Refresh) -> tuple[list[Any], msg.StepDone, list[bytes]]:
        """One step; returns the new weights, the statement of it, and the new weights' bytes (their digests are its outputs)."""
        before = tuple(wire.digest(b) for b in self.dump(weights))
        weights = self.engine.step(step, weights, ask)
        dumped = self.dump(weights)
        after = tuple(wire.digest(b) for b in dumped)
        link = hashlib.sha256(b"focal/chain/v1" + bytes.fromhex(chain) + "".join((*before, *after)).encode()).hexdigest()
        return weights, msg.StepDone(step=step, inputs=before, outputs=after, chain=link), dumped

    def dump(self, weights: list[Any]) -> list[bytes]:
        """Canonical bytes of weight ciphertexts."""
        kind = wire.ciphertext(LIMBS)
        return [wire.pack(self.scheme, kind, self.scheme.limbs(w)) for w in weights]

    def load(self, digests: tuple[str, ...], fetch: Fetch) -> list[Any]:
        """Weight ciphertexts from bytes that this party wrote itself."""
        kind = wire.ciphertext(LIMBS)
        return [self.scheme.ciphertext(wire.unpack(self.scheme, kind, fetch(d), "the own disk")) for d in digests]

    def _block(self, b: int) -> Block:
        """Block b: every institution's chunks, checked and added up limb by limb."""
        parts: dict[tuple[str, int, int], list[tuple[str, str]]] = {}
        for name, upload in self.lists.items():
            plan = self.layout.chunks(*self.manifest.row_table[name])
            for (block, what, i, j), digest in zip(plan, upload.chunks, strict=True):
                if block == b:
                    parts.setdefault((what, i, j), []).append((name, digest))

        def ciphertext(key: tuple[str, int, int]) -> Any:
            kind = chunk_kind(key[0])
            primes = wire.moduli(self.scheme, kind)
            unpacked = [wire.unpack(self.scheme, kind, self.fetch(digest), f"'{name}'") for name, digest in parts[key]]
            return self.scheme.ciphertext([ring.total(element, primes) for element in zip(*unpacked, strict=True)])

        made = dict(zip(parts, self.pool.map(ciphertext, parts), strict=True))
        shape = self.layout
        return Block(
            [[made["data", g, h] for h in range(shape.babies)] for g in range(shape.giants)],
            [made["target", u, 0] for u in range(shape.class_groups)],
        )


def scalars_of(manifest: Manifest, lists: dict[str, msg.Upload]) -> Scalars:
    """The scalars of every step, from the step size that all upload lists carry."""
    eta = float.fromhex(next(iter(lists.values())).eta_hex)
    return Scalars.derive(manifest.training.degree, eta, manifest.training.ridge, manifest.rows)


def inputs_digest(manifest: Manifest, scheme: Scheme, layout: Layout, lists: dict[str, msg.Upload], joint_keys: str) -> str:
    """One digest over all that training starts from: the upload lists, checked against the manifest, and the encoded mask."""
    digest = agreed.uploads(manifest, layout, lists, joint_keys)
    encoded = mask_digest(scheme, layout, scalars_of(manifest, lists))
    return hashlib.sha256(b"focal/inputs/v1" + bytes.fromhex(digest) + bytes.fromhex(encoded)).hexdigest()


def combine(
    scheme: Scheme,
    run_id: bytes,
    asked: msg.RefreshRequest,
    answers: dict[str, msg.RefreshShares],
    fetch: Fetch,
    pool: ThreadPoolExecutor,
) -> list[Any]:
    """Refreshed ciphertexts from a request and every custodian's answer: what the server, a verifier and the release check compute.

    Raises :class:`focal.errors.ProtocolError` naming the custodian whose answer is not to what was asked.
    """
    agreed.check_answers(asked, answers)

    def one(i: int) -> Any:
        data = fetch(asked.ciphertexts[i])
        a = refresh.common_random(scheme, run_id, asked.items[i], asked.ciphertexts[i])
        return refresh.combine(scheme, data, a, [(name, fetch(s.h0[i]), fetch(s.h1[i])) for name, s in answers.items()])

    return list(pool.map(one, range(len(asked.items))))
