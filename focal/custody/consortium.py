"""All custodians in one process: rehearsals, benchmarks and encrypted baselines. Real keys, real shares, no wire, hence no security.

Everything is done by the same functions that the roles call over the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal.ckks import codec
from focal.ckks.evaluator import Slots
from focal.ckks.ring import Limb
from focal.ckks.scheme import Scheme
from focal.custody import keys, refresh, release
from focal.custody.refresh import IDENTITY, Map

Array = NDArray[np.float64]
Opening = Callable[[Scheme, Sequence[Limb], Any, bool], bytes]
"""A custodian's smudged share of a ciphertext: scheme, limbs of its key share, ciphertext, whether it leads."""


class Consortium:
    """Custodians ``names`` with shares of a key of their own, which is forgotten with the object; the first of them leads and guards.

    ``rotations``: those that have evaluation keys; None makes no evaluation key at all. OpenFHE keeps evaluation keys for the whole
    process, until :meth:`focal.ckks.scheme.Scheme.close`.
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
        if rotations is None:
            b = keys.add_up(scheme, codec.PUBLIC_B, [(name, share.public()) for name, share in self.shares.items()])
            self.public, self.joint_bytes = keys.joint_public_key(scheme, run_id, b), len(b)
            self.sent = dict.fromkeys(names, len(b))
        else:
            made = keys.ceremony(scheme, run_id, self.shares, rotations, pool)
            self.public, self.joint_bytes, self.sent = made.public, made.joint_bytes, made.sent
        # public: OpenFHE's; joint_bytes: what everybody who computes must have; sent: by each custodian, in bytes

    def answered(self, item: str, asked: bytes, how: Map = IDENTITY, added: Sequence[Array] | None = None) -> tuple[Any, dict[str, int]]:
        """One refresh: the ciphertext, and the bytes of every custodian's share. ``added``: slots of each one's own message."""
        return refresh.together(self.scheme, self.run_id, self.limbs, item, asked, how, added)

    def opened(self, share: Opening, ciphertext: Any) -> list[tuple[str, bytes]]:
        """Every custodian's (name, share) of an opening or a release; :func:`focal.custody.release.open_slots` adds them up."""
        return [(name, share(self.scheme, own, ciphertext, name == self.names[0])) for name, own in self.limbs.items()]

    def open(self, share: Opening, ciphertext: Any, kind: codec.Kind = codec.DECRYPTION) -> Slots:
        """(S,) slots, by smudged shares of all custodians, which are of this ``kind``."""
        return release.open_slots(self.scheme, self.opened(share, ciphertext), kind)
