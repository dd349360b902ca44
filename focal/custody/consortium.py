"""All custodians in one process: rehearsals, benchmarks and encrypted baselines.
Real keys, real shares, no wire, hence no security.

Everything is done by the same functions that the roles call over the network.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal.ckks import codec
from focal.ckks.evaluator import RealOrComplex, Slots
from focal.ckks.ring import Limb
from focal.ckks.scheme import LIMBS, Scheme
from focal.custody import inputs, keys, refresh, release
from focal.custody.refresh import IDENTITY, Map

Array = NDArray[np.float64]
Opening = Callable[[Scheme, Sequence[Limb], Any, bool], bytes]
"""A custodian's smudged share of a ciphertext: scheme, limbs of its key share, ciphertext, whether it leads."""


class Consortium:
    """Custodians ``names`` with shares of a key of their own, which is forgotten with the object;
    the first of them leads and guards.

    ``rotations``: those that have evaluation keys; None makes no evaluation key at all. OpenFHE keeps evaluation keys
    for the whole process, until :meth:`focal.ckks.scheme.Scheme.close`.
    """

    def __init__(
        self,
        scheme: Scheme,
        run_id: bytes,
        names: Sequence[str],
        rotations: Sequence[int] | None,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.scheme, self.run_id, self.names = scheme, run_id, tuple(names)
        self.shares = {name: keys.SecretShare.draw(scheme, run_id) for name in names}
        self.limbs = {name: share.limbs for name, share in self.shares.items()}
        made = keys.Ceremony(0, dict.fromkeys(names, 0))
        if rotations is not None:
            made = keys.ceremony(scheme, run_id, self.shares, rotations, pool)
        self.joint_bytes, self.sent = made.joint_bytes, made.sent
        """What everybody who computes must have, and what each custodian sends for it, in bytes."""
        self._inputs = itertools.count()

    @functools.cached_property
    def public(self) -> Any:
        """OpenFHE's joint public key, for baselines whose institutions encrypt under one.
        What it takes is counted from here on."""
        b = keys.add_up(self.scheme, codec.PUBLIC_B, [(name, share.public()) for name, share in self.shares.items()])
        self.joint_bytes += len(b)
        self.sent = {name: sent + len(b) for name, sent in self.sent.items()}
        return keys.joint_public_key(self.scheme, self.run_id, b)

    def encrypted(self, parts: Mapping[str, RealOrComplex], limbs: int, factor: int = 1) -> tuple[Any, int, int]:
        """``factor`` times the sum of all slots (S,), encrypted; the bytes of an institution's
        and of a custodian's message."""
        item = f"input/{next(self._inputs)}"
        made, up, given = inputs.together(self.scheme, self.run_id, self.limbs, item, parts, limbs, factor)
        return self.scheme.evaluator.load(made), up, given

    def encrypt(self, slots: RealOrComplex, limbs: int = LIMBS, factor: int = 1) -> Any:
        """A fresh encryption of ``factor`` times ``slots`` (S,)."""
        return self.encrypted({"institution": slots}, limbs, factor)[0]

    def answered(
        self, item: str, asked: bytes, how: Map = IDENTITY, added: Sequence[Array] | None = None
    ) -> tuple[Any, dict[str, int]]:
        """One refresh: the ciphertext, and the bytes of every custodian's share.
        ``added``: slots of each one's own message."""
        return refresh.together(self.scheme, self.run_id, self.limbs, item, asked, how, added)

    def opened(self, share: Opening, ciphertext: Any) -> list[tuple[str, bytes]]:
        """Every custodian's (name, share) of an opening or a release;
        :func:`focal.custody.release.open_slots` adds them up."""
        return [(name, share(self.scheme, own, ciphertext, name == self.names[0])) for name, own in self.limbs.items()]

    def open(self, share: Opening, ciphertext: Any, kind: codec.Kind = codec.DECRYPTION) -> Slots:
        """(S,) slots, by smudged shares of all custodians, which are of this ``kind``."""
        return release.open_slots(self.scheme, self.opened(share, ciphertext), kind)
