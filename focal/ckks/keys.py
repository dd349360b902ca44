"""N-of-N threshold keys: each custodian's contributions, and the sums that everybody can recompute.

The joint secret is s = s_1 + ... + s_N and exists nowhere. Every evaluation key is linear in it, so the custodians' parts
add up, as long as all use the same public randomness ``a``, which is expanded from the run id and chosen by nobody::

    round 1   public key        b_i = e - a s_i
              switching key     b_i = P g s_i - a' s_i + e                 (one polynomial per digit)
              rotation r        b_i = P g rot_r(s_i) - a'' s_i + e         (one such key per rotation)
              sum over i ->  joint public key, joint rotation keys, and the switching key of s
    round 2   multiplication    (s_i a_j + e, s_i b_j + e')  for every digit j of the *summed* switching key
              sum over i ->  relinearisation key for s^2

Only b halves travel in round 1. Round 2 depends on round 1, and that is where a custodian that answers last could choose
its round-1 part so that the others' answers spell out their secrets: rounds are therefore committed before they are
revealed, and round 2 is answered only after all signed the same transcript of round 1 (focal.roles.custodian).
References: Mouchet et al., "Multiparty Homomorphic Encryption from RLWE", PoPETs 2021, protocols 1 to 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openfhe

from focal.ckks import ring, wire
from focal.ckks.context import DIGITS, LIMBS, Scheme
from focal.ckks.ring import Limb

Polynomials = list[list[Limb]]


def public_random(scheme: Scheme, run_id: bytes, label: str, polynomials: int, extended: bool = True) -> Polynomials:
    """The ``a`` polynomials of one key, expanded from the run id: SHAKE-256('focal/keys/v1' || run id || label || index)."""
    primes = scheme.extended if extended else scheme.moduli
    return [ring.expand(b"focal/keys/v1" + run_id + f"{label}/{i}/".encode(), primes, scheme.n) for i in range(polynomials)]


def first_round_kinds(rotations: Sequence[int]) -> list[tuple[str, wire.Kind]]:
    """Names and kinds of a custodian's round-1 contributions, in order."""
    return [("public", wire.PUBLIC_B), ("switching", wire.SWITCHING_B)] + [(f"rotation/{r}", wire.SWITCHING_B) for r in rotations]


SECOND_ROUND: list[tuple[str, wire.Kind]] = [("multiplication", wire.SWITCHING_AB)]


class SecretShare:
    """A custodian's share s_i of the secret key. It leaves the process only into the custodian's own key file."""

    def __init__(self, scheme: Scheme, run_id: bytes, key: Any, public_b: bytes) -> None:
        self.scheme, self.run_id, self.key, self.public_b = scheme, run_id, key, public_b

    @classmethod
    def draw(cls, scheme: Scheme, run_id: bytes) -> SecretShare:
        """A fresh share and its part of the public key."""
        seed = scheme.public_key(scheme.zero(LIMBS), public_random(scheme, run_id, "public", 1, extended=False)[0])
        pair = scheme.cc.MultipartyKeyGen(seed, False, True)
        return cls(scheme, run_id, pair.secretKey, wire.pack(scheme, wire.PUBLIC_B, scheme.limbs(pair.publicKey)[:1]))

    def dump(self) -> bytes:
        """Bytes for the custodian's own key file (0600)."""
        secret = bytes(openfhe.Serialize(self.key, openfhe.BINARY))
        return len(secret).to_bytes(8, "little") + secret + self.public_b

    @classmethod
    def load(cls, scheme: Scheme, run_id: bytes, data: bytes) -> SecretShare:
        """Read what :meth:`dump` wrote; only ever this party's own file."""
        end = 8 + int.from_bytes(data[:8], "little")
        return cls(scheme, run_id, scheme.secret_key(data[8:end]), data[end:])

    def first_round(self, rotations: Sequence[int], pool: ThreadPoolExecutor) -> Iterator[bytes]:
        """Round-1 contributions in the order of :func:`first_round_kinds`."""
        yield self.public_b
        yield self._switching()
        yield from pool.map(self._rotation, rotations)

    def _zeros(self) -> Polynomials:
        return [self.scheme.zero(len(self.scheme.extended))] * DIGITS

    def _b_half(self, key: Any) -> Polynomials:
        return self.scheme.limbs(key)[DIGITS:]

    def _switching(self) -> bytes:
        template = self.scheme.switching_key(public_random(self.scheme, self.run_id, "switching", DIGITS), self._zeros())
        made = self.scheme.cc.MultiKeySwitchGen(self.key, self.key, template)
        return wire.pack(self.scheme, wire.SWITCHING_B, self._b_half(made))

    def _rotation(self, rotation: int) -> bytes:
        template = self.scheme.rotation_key(
            rotation, public_random(self.scheme, self.run_id, f"rotation/{rotation}", DIGITS), self._zeros()
        )
        made = self.scheme.cc.MultiEvalAtIndexKeyGen(self.key, template, [rotation], self.scheme.tag)
        return wire.pack(self.scheme, wire.SWITCHING_B, self._b_half(made))

    def second_round(self, switching_sum: bytes) -> list[bytes]:
        """Round-2 contribution from the summed switching key, which this custodian added up itself."""
        b = wire.unpack(self.scheme, wire.SWITCHING_B, switching_sum, "the sum of round 1")
        joint = self.scheme.switching_key(public_random(self.scheme, self.run_id, "switching", DIGITS), b)
        made = self.scheme.cc.MultiMultEvalKey(self.key, joint, self.scheme.tag)
        return [wire.pack(self.scheme, wire.SWITCHING_AB, self.scheme.limbs(made))]


def add_up(scheme: Scheme, kind: wire.Kind, parts: Sequence[tuple[str, bytes]]) -> bytes:
    """Canonical bytes of the sum of all custodians' (name, contribution). Raises Refused naming a malformed one's sender."""
    primes = wire.moduli(scheme, kind)
    unpacked = [wire.unpack(scheme, kind, data, name) for name, data in parts]
    return wire.pack(scheme, kind, [ring.total(polynomials, primes) for polynomials in zip(*unpacked, strict=True)])


def install(scheme: Scheme, run_id: bytes, multiplication: bytes, rotations: Sequence[int], rotation_sum: Callable[[int], bytes]) -> None:
    """Give OpenFHE the joint evaluation keys. ``rotation_sum(r)`` yields the summed b halves, one key in memory at a time."""
    ab = wire.unpack(scheme, wire.SWITCHING_AB, multiplication, "the joint multiplication key")
    scheme.cc.InsertEvalMultKey([scheme.switching_key(ab[:DIGITS], ab[DIGITS:])], scheme.tag)
    for r in rotations:
        b = wire.unpack(scheme, wire.SWITCHING_B, rotation_sum(r), f"the joint key of rotation {r}")
        key = scheme.rotation_key(r, public_random(scheme, run_id, f"rotation/{r}", DIGITS), b)
        scheme.cc.InsertEvalAutomorphismKey(key, scheme.tag)


def joint_public_key(scheme: Scheme, run_id: bytes, public: bytes) -> Any:
    """The joint public key from its summed b half."""
    b = wire.unpack(scheme, wire.PUBLIC_B, public, "the joint public key")[0]
    return scheme.public_key(b, public_random(scheme, run_id, "public", 1, extended=False)[0])


def contribution_bytes(scheme: Scheme, rotations: int) -> int:
    """Bytes that one custodian sends in both rounds."""
    return wire.size(scheme, wire.PUBLIC_B) + (1 + rotations) * wire.size(scheme, wire.SWITCHING_B) + wire.size(scheme, wire.SWITCHING_AB)
