"""Institutions and custodians of a rehearsal, as far as uploads go:
masked messages, and what custodians give for them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from focal.ckks import ring
from focal.ckks.scheme import LIMBS
from focal.custody import inputs
from focal.custody.inputs import Input
from focal.net import messages as msg

LABEL, LISTS = "1a" * 32, "2b" * 32


class Masking:
    """Every pair's key is a hash of its names."""

    def __init__(self, run: Any) -> None:
        self.run, self.scheme = run, run.scheme
        self.shares = dict(run.consortium.limbs)

    def mask(self, institution: str, custodian: str, item: str) -> inputs.Words:
        key = hashlib.sha256(f"{institution}/{custodian}".encode()).digest()
        return inputs.mask(key, LABEL, item, self.scheme.n)

    def upload(self, institution: str, item: str, slots: np.ndarray) -> bytes:
        masks = [self.mask(institution, custodian, item) for custodian in self.shares]
        return inputs.masked(self.scheme, inputs.message(self.scheme, slots), masks)

    def given(self, wanted: Sequence[Input]) -> dict[str, list[bytes]]:
        """Custodian -> its contributions, in the order of ``wanted``."""
        made: dict[str, list[bytes]] = {name: [] for name in self.shares}
        for one in wanted:
            a = inputs.public_random(self.scheme, self.run.run_id, LISTS, one.item, one.limbs)
            for name, secret in self.shares.items():
                masks = [self.mask(owner, name, one.item) for owner, _ in one.owners]
                made[name].append(inputs.contribution(self.scheme, secret, a, masks))
        return made


def encrypt_any(run: Any, slots: np.ndarray, limbs: int = LIMBS, factor: int = 1) -> Any:
    """An encryption of ``factor`` times slots of any size, as a message of that size gives it;
    nobody honest masks one beyond ``inputs.MAX_SLOT``."""
    ev, primes = run.scheme.evaluator, run.scheme.moduli[:limbs]
    message = ev.plain_limbs(ev.encode(slots, limbs))
    large = [
        ring.multiply(limb, np.full(run.scheme.n, factor % q, np.uint64), q)
        for limb, q in zip(message, primes, strict=True)
    ]
    return ev.add(run.encrypt(np.zeros(1), limbs), ev.load([large, run.scheme.zero(limbs)]))


def upload_list(start: int, stop: int, chunks: tuple[str, ...]) -> msg.Upload:
    """A list of the rows ``start`` to ``stop``; what it repeats of others' words is nothing."""
    nothing = "0" * 64
    return msg.Upload(
        joint_keys=nothing,
        projection=nothing,
        eta_hex=(2.0).hex(),
        rows=stop - start,
        first_row=start,
        mask_keys=nothing,
        label=LABEL,
        proofs=(nothing, nothing),
        chunks=chunks,
    )
