"""N-of-N threshold keys: each custodian's contributions, and the sums that everybody can recompute.

The joint secret is s = s_1 + ... + s_N and exists nowhere. Every evaluation key is linear in it, so the
custodians' parts add up, as long as all use the same public randomness ``a``, which is expanded from the
run id and chosen by nobody::

    round 1   relinearisation     h0_i = P g s_i - a' u_i + e       h1_i = a' s_i + e'     (one polynomial per digit)
              rotation r          b_i  = P g s_i - a'' rot_-r(s_i) + e                     (one such key per rotation)
              sum over i ->  joint rotation keys, h0 and h1
    round 2   relinearisation     b_i  = s_i h0 + (u_i - s_i) h1 + e''
              sum over i ->  relinearisation key (b, h1):  b + h1 s = s h0 + u h1 + e'' = P g s^2 + s e + u e' + e''

**Who could have made these without the secret.** u_i is drawn for this key alone, ternary like s_i, and erased after
round 2. Given s_i, h0_i is a ring-LWE sample under u_i; h1_i and the rotation keys are samples under s_i, each with an
``a`` of its own: each is pseudo-random, whatever P g s_i is added to it (circular security). In round 2 u_i cancels:
b_i is a relinearisation key of s_i whose a-half is the sample h1, pseudo-random by assumption (SECURITY.md). What must
never happen is that *one* secret meets *one* ``a`` in two published elements: OpenFHE's MultiKeySwitchGen and
MultiMultEvalKey publish P g s_i - a' s_i + e and a' s_i + e', whose sum is s_i (docs/security-notes.md). So: no u_i is
used twice, test_scan.py adds up all that a run publishes, and SECURITY.md says the rest.

Only b halves travel. Round 2 depends on round 1, and that is where a custodian that answers last could choose its
round-1 part so that the others' answers spell out their secrets (h1 = 0 would show P g s_i): rounds are therefore
committed before they are revealed, and round 2 is answered only after all signed the same transcript of round 1
(focal.protocols.common.keyholder). References: Mouchet et al., "Multiparty Homomorphic Encryption from RLWE", PoPETs
2021, protocols 1 to 3 (relinearisation: protocol 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal import framing
from focal.ckks import codec, ring, sampling
from focal.ckks.ring import Limb
from focal.ckks.scheme import DIGITS, LIMBS, Scheme
from focal.errors import Refused

Polynomials = list[list[Limb]]
Ternary = NDArray[np.int64]
"""N coefficients -1, 0, 1 (of a difference of two: up to 2)."""


def public_random(scheme: Scheme, run_id: bytes, label: str, polynomials: int, extended: bool = True) -> Polynomials:
    """The ``a`` polynomials of one key, expanded from the run id:
    SHAKE-256 of ``focal/keys/v2``, run id, label and index."""
    primes = scheme.extended if extended else scheme.moduli
    return [
        ring.expand(framing.framed(b"focal/keys/v2", run_id, f"{label}/{i}".encode()), primes, scheme.n)
        for i in range(polynomials)
    ]


def first_round_kinds(rotations: Sequence[int]) -> list[tuple[str, codec.Kind]]:
    """Names and kinds of a custodian's round-1 contributions, in order."""
    names = ["relinearisation/h0", "relinearisation/h1", *(f"rotation/{r}" for r in rotations)]
    return [(name, codec.SWITCHING_B) for name in names]


SECOND_ROUND: list[tuple[str, codec.Kind]] = [("relinearisation/b", codec.SWITCHING_B)]


class SecretShare:
    """A custodian's share s_i of the secret key. It leaves the process only into the custodian's own key file."""

    def __init__(self, scheme: Scheme, run_id: bytes, secret: Ternary, ephemeral: Ternary | None) -> None:
        self.scheme, self.run_id, self.secret, self.ephemeral = scheme, run_id, secret, ephemeral
        self.limbs = _evaluated(scheme, secret, scheme.extended)
        """s_i in evaluation form, modulo q_0 ... q_5 and the primes of P."""

    @classmethod
    def draw(cls, scheme: Scheme, run_id: bytes) -> SecretShare:
        """A fresh share, and the ephemeral u_i of the relinearisation key: both uniform ternary."""
        return cls(scheme, run_id, sampling.ternary(scheme.n), sampling.ternary(scheme.n))

    def dump(self) -> bytes:
        """Bytes for the custodian's own key file (0600)."""
        return self.secret.astype(np.int8).tobytes()

    def dump_ephemeral(self) -> bytes:
        """Bytes for a second file (0600), to be deleted when round 2 is on disk."""
        return self._ephemeral.astype(np.int8).tobytes()

    @classmethod
    def load(cls, scheme: Scheme, run_id: bytes, data: bytes, ephemeral: bytes | None = None) -> SecretShare:
        """Read what :meth:`dump` and :meth:`dump_ephemeral` wrote; only ever this party's own files.
        ValueError for anything else."""

        def read(data: bytes) -> Ternary:
            values = np.frombuffer(data, np.int8).astype(np.int64)
            if len(values) != scheme.n or np.abs(values).max() > 1:
                raise ValueError("this is no ternary secret of the run's ring")
            return values

        return cls(scheme, run_id, read(data), None if ephemeral is None else read(ephemeral))

    # ----------------------------------------------------------------- contributions

    def public(self) -> bytes:
        """b_i = e - a s_i: the part of a joint public key, for baselines that encrypt under one. Anew at each call."""
        scheme = self.scheme
        (a,) = public_random(scheme, self.run_id, "public", 1, extended=False)
        error = _evaluated(scheme, sampling.errors(scheme.n), scheme.moduli)
        own = zip(error, a, self.limbs, scheme.moduli, strict=False)
        return codec.pack(scheme, codec.PUBLIC_B, [[ring.subtract(e, ring.multiply(x, s, q), q) for e, x, s, q in own]])

    def first_round(self, rotations: Sequence[int], pool: ThreadPoolExecutor) -> Iterator[bytes]:
        """Round-1 contributions in the order of :func:`first_round_kinds`."""
        u = _evaluated(self.scheme, self._ephemeral, self.scheme.extended)
        minus = [ring.subtract(np.zeros_like(s), s, q) for s, q in zip(self.limbs, self.scheme.extended, strict=True)]
        yield self._switching("relinearisation", self.limbs, u)
        yield self._switching("relinearisation", None, minus)
        yield from pool.map(self._rotation, rotations)

    def _rotation(self, rotation: int) -> bytes:
        # OpenFHE switches first and turns the result: its key carries s under the secret turned back
        places = ring.automorphism(self.scheme.n, pow(self.scheme.automorphism(rotation), -1, 2 * self.scheme.n))
        return self._switching(f"rotation/{rotation}", self.limbs, [limb[places] for limb in self.limbs])

    def _switching(self, label: str, carried: Sequence[Limb] | None, under: Sequence[Limb]) -> bytes:
        """P g x - a y + e for every digit: x = ``carried`` (None: zero), y = ``under``, a = that of ``label``.

        P g is P on the limbs of the digit's own primes and zero on all others (Han and Ki 2020, section 3.1).
        """
        scheme = self.scheme
        special, each = math.prod(scheme.extended[LIMBS:]), LIMBS // DIGITS
        polynomials = []
        for digit, a in enumerate(public_random(scheme, self.run_id, label, DIGITS)):
            error, limbs = _evaluated(scheme, sampling.errors(scheme.n), scheme.extended), []
            for i, q in enumerate(scheme.extended):
                b = ring.subtract(error[i], ring.multiply(a[i], under[i], q), q)
                if carried is not None and i // each == digit:
                    b = ring.add(b, ring.multiply(carried[i], np.full(scheme.n, special % q, np.uint64), q), q)
                limbs.append(b)
            polynomials.append(limbs)
        return codec.pack(scheme, codec.SWITCHING_B, polynomials)

    def second_round(self, h0: bytes, h1: bytes) -> list[bytes]:
        """Round-2 contribution s_i h0 + (u_i - s_i) h1 + e'' from the sums of round 1,
        which this custodian added up itself."""
        scheme = self.scheme
        weight = _evaluated(scheme, self._ephemeral - self.secret, scheme.extended)
        first, second = (codec.unpack(scheme, codec.SWITCHING_B, data, "the sum of round 1") for data in (h0, h1))
        polynomials = []
        for x, y in zip(first, second, strict=True):
            error = _evaluated(scheme, sampling.errors(scheme.n), scheme.extended)
            parts = zip(x, y, self.limbs, weight, error, scheme.extended, strict=True)
            polynomials.append(
                [
                    ring.add(ring.add(ring.multiply(s, a, q), ring.multiply(w, b, q), q), e, q)
                    for a, b, s, w, e, q in parts
                ]
            )
        return [codec.pack(scheme, codec.SWITCHING_B, polynomials)]

    @property
    def _ephemeral(self) -> Ternary:
        if self.ephemeral is None:
            raise ValueError("the ephemeral secret was erased after round 2, and nothing is made with it again")
        return self.ephemeral


def _evaluated(scheme: Scheme, coefficients: Ternary, primes: Sequence[int]) -> list[Limb]:
    """Small signed coefficients in evaluation form."""
    return [ring.ntt_signed(coefficients, q, scheme.roots[q]) for q in primes]


def add_up(scheme: Scheme, kind: codec.Kind, parts: Sequence[tuple[str, bytes]]) -> bytes:
    """Canonical bytes of the sum of all custodians' (name, contribution).
    Raises Refused naming a malformed one's sender."""
    primes = codec.moduli(scheme, kind)
    unpacked = [codec.unpack(scheme, kind, data, name) for name, data in parts]
    return codec.pack(scheme, kind, [ring.total(polynomials, primes) for polynomials in zip(*unpacked, strict=True)])


def install(
    scheme: Scheme, run_id: bytes, h1: str, b: str, rotations: Mapping[int, str], fetch: Callable[[str], bytes]
) -> None:
    """Give the evaluator the joint evaluation keys: the relinearisation key (b, h1) and one of each rotation.

    ``h1``, ``b`` and ``rotations`` are the digests of the sums; ``fetch`` yields a sum, one rotation key in memory at a
    time.

    Once in a process: a second party of the same run finds them there. Raises :class:`Refused` (``joint-keys``)
    when its sums are others.
    """
    wanted = (bytes.fromhex(d) for d in (h1, b, *(rotations[r] for r in sorted(rotations))))
    found = framing.digest(b"focal/installed/v1", repr(sorted(rotations)).encode(), *wanted)
    with Scheme.process:
        if scheme.tag in Scheme.installed:
            if Scheme.installed[scheme.tag] != found:
                raise Refused("joint-keys", "another party in this process has other evaluation keys for the same run")
            return
        for r, digest in rotations.items():
            half = codec.unpack(scheme, codec.SWITCHING_B, fetch(digest), f"the joint key of rotation {r}")
            scheme.evaluator.install_rotation(r, public_random(scheme, run_id, f"rotation/{r}", DIGITS), half)
        what = "the joint relinearisation key"
        a, b_ = (codec.unpack(scheme, codec.SWITCHING_B, fetch(digest), what) for digest in (h1, b))
        scheme.evaluator.install_relinearisation(a, b_)  # last: it is taken once
        Scheme.installed[scheme.tag] = found


@dataclass(frozen=True)
class Ceremony:
    """Both rounds among custodians of one process."""

    joint_bytes: int
    """What everybody who evaluates must have: relinearisation and rotation keys, which are installed."""
    sent: dict[str, int]
    """Custodian -> bytes of its contributions."""


def ceremony(
    scheme: Scheme, run_id: bytes, shares: Mapping[str, SecretShare], rotations: Sequence[int], pool: ThreadPoolExecutor
) -> Ceremony:
    """The key ceremony where all custodians are in this process: rehearsals and encrypted baselines.
    The roles' is the same two rounds."""
    kinds = first_round_kinds(rotations)
    first = {name: list(share.first_round(rotations, pool)) for name, share in shares.items()}
    sums = {
        kind: add_up(scheme, form, [(name, r[i]) for name, r in first.items()]) for i, (kind, form) in enumerate(kinds)
    }
    h0, h1 = sums.pop("relinearisation/h0"), sums["relinearisation/h1"]
    second = {name: share.second_round(h0, h1)[0] for name, share in shares.items()}
    for share in shares.values():
        share.ephemeral = None
    b = add_up(scheme, codec.SWITCHING_B, list(second.items()))
    digests = {r: codec.digest(sums[f"rotation/{r}"]) for r in rotations}
    blobs = {codec.digest(data): data for data in (b, *sums.values())}
    install(scheme, run_id, codec.digest(h1), codec.digest(b), digests, blobs.__getitem__)
    sent = {name: sum(map(len, first[name])) + len(second[name]) for name in shares}
    return Ceremony(len(b) + sum(map(len, sums.values())), sent)


def joint_public_key(scheme: Scheme, run_id: bytes, public: bytes) -> Any:
    """The joint public key from its summed b half."""
    b = codec.unpack(scheme, codec.PUBLIC_B, public, "the joint public key")[0]
    return scheme.public_key(b, public_random(scheme, run_id, "public", 1, extended=False)[0])


def contribution_bytes(scheme: Scheme, rotations: int) -> int:
    """Bytes that one custodian sends in both rounds."""
    return (3 + rotations) * codec.size(scheme, codec.SWITCHING_B)
