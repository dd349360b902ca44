"""FedAvg with encrypted sums: threshold CKKS under a key of its own, which is used for nothing but these sums.

::

    institution  part, scaled --encrypt, one limb--> ciphertexts --+
                                                                   | server adds
    custodians   s_i c1 + noise  <---------------- sum ------------+
    institution  shares of all custodians --> sum of the parts          every round

Updates under threshold encryption as in Truex et al., "A Hybrid Approach to Privacy-Preserving Federated Learning",
AISec 2019 (Paillier there; no noise is added to updates here), with the keys of Mouchet et al., PoPETs 2021. The server
sees ciphertexts; shares are for the institutions. **They see every round's sum**, where the blind protocol opens the
last weights once. Custodians take the server's word that what they share is the sum of all uploads: one that lies can
have a single update opened to all institutions, and worse (SECURITY.md). A hardened version would have custodians add
up all uploads themselves, as :mod:`focal.protocols.common.custodian` repeats every step.

**Packing.** R C values in ceil(R C / S) ciphertexts of S = N / 2 slots: one for R = 64, C = 8. No slot moves, so no
evaluation keys are made. The ring is the project's (N = 16384); one limb alone would be as safe at N = 4096 (60 of
109 bits), with a quarter of the bytes. Counted are institutions' bytes; a custodian gets each sum, half a ciphertext of
use to it, and sends a share of half a ciphertext.

**Scale.** A slot holds 2^9 times the value, at scale 2^45. Every coefficient of the sum must stay below q_0 / 2 = 2^59,
and none is larger than the largest slot: with parts below 2^4 / m from each of m institutions it is below
2^(4 + 9 + 45) = 2^58; noise adds little.

**Noise and error.** A fresh ciphertext v (b, a) + (e_0, e_1) under the sum of c custodians' keys carries
v e + e_0 + e_1 s, of variance 3.19^2 (1 + 4/3 N c) per coefficient: e and s are sums of c, v is ternary. The sum of m
has m times that, t^2, with m roundings of the encoding, 1/12 each. Every share is smudged by
:func:`focal.custody.release.sigma` of t, 2^16.8 t. For each ciphertext and round N 2^-30 / 24 nats are added to what is
known of the key, as SECURITY.md derives for the release. A slot is a sum over N coefficients::

    rms error of a value = sqrt(N / 2) sqrt(t^2 + c sigma^2) / 2^45 / 2^9            2^-19.4 for m = c = 3 at N = 16384

**Exact sums.** Institutions round their parts to a grid, and what is opened is rounded to it: with the grid
2^4 rms errors wide or wider (2^-15 here) a value goes astray with probability 2^-50, and the sum is that of
the rounded parts to the last bit. Errors of encryption would be others in every run, and training amplifies
them. A part loses half a grid at most.
"""

from __future__ import annotations

import functools
import math
import secrets
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from focal.baselines.federated import Array, Parts, Sum, moved
from focal.ckks import codec
from focal.ckks.scheme import Scheme
from focal.config import CkksConfig
from focal.custody import keys, release
from focal.custody.consortium import Consortium
from focal.errors import FocalError
from focal.measure.traffic import Traffic

GAIN = 2.0**9
"""What values are multiplied by before they are encrypted."""
ERROR = 3.19
"""Standard deviation of the errors of ring-LWE."""
SAFE = 16.0
"""Root mean square errors in a step of the grid, at least: half a step is 8 of them,
which a normal error passes once in 2^49.5 values."""
FRESH = codec.ciphertext(1)


class EncryptedSum(Sum):
    """Sums of institutions ``names`` under fresh shares of ``custodians``;
    the key is drawn here and forgotten with the object."""

    least = 2

    def __init__(self, names: tuple[str, ...], custodians: int = 3, params: CkksConfig | None = None) -> None:
        super().__init__(names)
        self.run_id = secrets.token_bytes(32)
        self.scheme = scheme = Scheme(params or CkksConfig(), self.run_id.hex())
        self.limit = scheme.moduli[0] / 4 / scheme.scale / GAIN
        """Bound on the sum of all institutions' largest values."""
        holders = [f"custodian {i}" for i in range(custodians)]
        with ThreadPoolExecutor(1) as pool:
            self.consortium = Consortium(scheme, self.run_id, holders, None, pool)
        self.public = self.consortium.public
        self.setup = moved(up={}, down=dict.fromkeys(names, self.consortium.joint_bytes))
        self.grid = 2.0 ** math.ceil(math.log2(SAFE * self.deviation(len(names))))
        """What values are rounded to multiples of, before and after."""

    def add(self, label: str, parts: Parts) -> tuple[Array, dict[str, Traffic]]:
        (shape,) = {part.shape for part in parts.values()}
        sent = {name: self._encrypt(name, part.ravel()) for name, part in parts.items()}
        sums = [
            keys.add_up(self.scheme, FRESH, list(zip(sent, column, strict=True)))
            for column in zip(*sent.values(), strict=True)
        ]
        shares = [self._shares(data, len(parts)) for data in sums]
        slots = np.concatenate([release.open_slots(self.scheme, of_one).real for of_one in shares])
        opening = sum(len(share) for of_one in shares for _, share in of_one)
        up = {name: sum(map(len, blobs)) for name, blobs in sent.items()}
        total = self._rounded(slots[: math.prod(shape)].reshape(shape) / GAIN)
        return total, moved(up, down=dict.fromkeys(self.names, opening))

    def holders(self, returned: Collection[str]) -> frozenset[str]:
        return frozenset(self.names)  # custodians' shares go to every institution

    def give(self, weights: Array, to: Collection[str], holders: Collection[str]) -> dict[str, Traffic]:
        raise AssertionError("every institution opens every sum")

    def deviation(self, summands: int) -> float:
        """Root mean square error of a value in a sum of ``summands`` parts, before it is rounded to the grid."""
        scheme, t = self.scheme, self._noise(summands)
        return (
            math.sqrt(scheme.slots * (t**2 + len(self.consortium.names) * release.sigma(t) ** 2)) / scheme.scale / GAIN
        )

    def _rounded(self, values: Array) -> Array:
        return np.rint(values / self.grid) * self.grid

    def _noise(self, summands: int) -> float:
        """t: root mean square noise per coefficient of a sum of fresh ciphertexts."""
        return math.sqrt(summands * (ERROR**2 * (1 + 4 / 3 * self.scheme.n * len(self.consortium.names)) + 1 / 12))

    def _encrypt(self, name: str, values: Array) -> list[bytes]:
        limit = self.limit / len(self.names)
        if not np.all(np.abs(values) < limit):  # NaN compares false
            raise FocalError(
                f"{name}: its update has a value that is not a finite number below {limit:g} in magnitude",
                hint="train with a smaller rate or fewer epochs a round",
            )
        padded = np.zeros(-(-values.size // self.scheme.slots) * self.scheme.slots)
        padded[: values.size] = GAIN * self._rounded(values)
        return [codec.encrypt(self.scheme, self.public, s, FRESH) for s in padded.reshape(-1, self.scheme.slots)]

    def _shares(self, data: bytes, summands: int) -> list[tuple[str, bytes]]:
        """Every custodian's (name, share) of a sum."""
        ciphertext = self.scheme.evaluator.load(codec.unpack(self.scheme, FRESH, data, "the server's sum"))
        return self.consortium.opened(functools.partial(release.share, noise=self._noise(summands)), ciphertext)
