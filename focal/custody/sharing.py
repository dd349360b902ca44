"""t-of-N keys: the joint secret shared once more, so that any t custodians do what all N did, and fewer learn nothing
of it.

After the key rounds s = s_1 + ... + s_N, and every s_i is lost with its custodian. So each deals its own, by Shamir's
polynomials over R_Q, and keeps the sum of what it was dealt::

    custodian i     f_i(Y) = s_i + r_i1 Y + ... + r_i(t-1) Y^(t-1)      coefficients uniform in R_Q, alpha_j = 1, ..., N
         |
         +-- sealed to j:  f_i(alpha_j)          committed, then revealed; under keys of this run, which are erased
         +-- to all:       check values of every piece (below)
    custodian j     S_j = f_1(alpha_j) + ... + f_N(alpha_j)                 kept; s_j, f_j and all pieces are erased

    active, A       s^_j = lambda_j S_j + sum over k in A of +- F(key_jk, epoch)         their sum over A is s

lambda_j is the product of alpha_k / (alpha_k - alpha_j) over the other k in A. s^_j takes the place of s_j in every
share (:mod:`focal.custody.refresh`, ``inputs``, ``opening``, ``release``), before fresh noise is added: noise does not
grow with lambda. Residues of lambda are large, and that costs nothing. Points differ by less than 8, so their
differences are units modulo every prime. A may be any set of t custodians or more; all N, as long as nobody is lost.

**Zero-shares.** Where more than t are active, their lambda_j S_j depend on each other, and with t - 1 known, on s
alone: two honest refresh shares of one item, under one ``a``, would then show a combination of both masks, and with it
the request modulo a small number. So every two have a key, and one adds what the other subtracts (F: SHAKE-256 to
R_Q, another element in every epoch). The s^_j of honest ones are uniform but for their sum, as additive shares are, and
in another epoch they are other ones.

**Check values.** A dealer whose pieces lie on no polynomial of degree t - 1, or not around the s_i of its key
contributions, would share another secret with every A, by a difference that it knows. So it also shows, of every piece,
a sample under it::

    v_ij = D f_i(alpha_j) a_v + e    a_v = SHAKE-256(run id, digest of all sealed pieces): drawn after these are fixed
    w_ij = D f_i(alpha_j) a' + e     a' of the relinearisation key's first digit, of t pieces: with h1_i = a' s_i + e'

D = 8! makes every coefficient of Lagrange whole. Everybody checks that D times (v_ij minus its interpolation from the
first t) is small for each other j, and so is D times (the interpolation of w_ij at 0, minus D h1_i), modulo every
prime. Whoever was dealt a piece checks it against its v_ij. All sign one digest over all check values before anybody's
s_i is erased. Each failure names the dealer. What remains possible: a dealer that shifts its secret by small / a',
which it could as well do to its key contributions (custodians are assumed to follow the protocol: SECURITY.md).

**Who could have made these without the secret.** t - 1 pieces of a dealer are uniform, whatever s_i is (Shamir 1979;
here to what 32 random bytes expand to). Check values are ring-LWE samples. Whoever knows t - 1 pieces knows the part of
them in every other, f_i(alpha_j) = c_j s_i + known, and so e - D c_j e' of every w_ij, exactly. D c_j is whole
(:func:`part`), so that this is an integer multiple of e' under a Gaussian of 2^60, in all N - t + 1 of them together
2^-60 nats or less (:func:`information`); were c_j a fraction, and pieces not taken D times, they would know e' modulo
its denominator, however wide e is, and with e' the share (an independent reader had the joint secret so, of seven
custodians from two). Values under one a_v tell combinations of their errors, and leave each as wide.

Sources: Shamir, CACM 1979; Mouchet, Bertrand and Hubaux, "An Efficient Threshold Access-Structure for RLWE-Based
Multiparty Homomorphic Encryption", J. Cryptology 2023, for substitute shares that keep noise small; zero-shares as in
Cramer, Damgard and Ishai, TCC 2005.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from focal import framing
from focal.ckks import codec, integers, ring, sampling
from focal.ckks.ring import Limb
from focal.ckks.scheme import Scheme
from focal.custody.keys import public_random
from focal.errors import FocalError, Refused

DENOMINATOR = 40320
"""D = 8!: times a coefficient of Lagrange for points 0 ... 8 it is whole."""
SIGMA = 2.0**60
"""Standard deviation of the errors of check values."""
SEED_BYTES = 32
KEY_BYTES = 32


def new_seed() -> bytes:
    """What a dealer's polynomial is expanded from: secret, and erased when the pieces are dealt and checked."""
    return secrets.token_bytes(SEED_BYTES)


def pieces(scheme: Scheme, secret: Sequence[Limb], seed: bytes, threshold: int, custodians: int) -> list[list[Limb]]:
    """f(1), ..., f(``custodians``) for the polynomial of degree ``threshold`` - 1 around ``secret`` (limbs modulo Q)
    that ``seed`` gives.

    By Horner's rule, limb by limb; evaluation form throughout.
    """
    primes = scheme.moduli
    random = [
        ring.expand(framing.framed(b"focal/threshold/polynomial/v1", seed, bytes([k])), primes, scheme.n)
        for k in range(1, threshold)
    ]
    out = []
    for point in range(1, custodians + 1):
        value: list[Limb] = [np.zeros(scheme.n, np.uint64) for _ in primes]
        for coefficient in [*reversed(random), secret]:
            value = [
                ring.add(ring.scaled(v, point, q), c, q) for v, c, q in zip(value, coefficient, primes, strict=False)
            ]
        out.append(value)
    return out


def coefficient(points: Sequence[int], at: int, point: int) -> Fraction:
    """Lagrange's coefficient of the value at ``point``, one of ``points``, in that at ``at``."""
    return math.prod((Fraction(at - k, point - k) for k in points if k != point), start=Fraction(1))


@dataclass(frozen=True)
class Share:
    """What a custodian keeps of a t-of-N key."""

    limbs: list[Limb]
    """S_j modulo Q, evaluation form."""
    point: int
    keys: dict[int, bytes]
    """Another custodian's point -> the key of the zero-shares of both."""

    def substitute(self, scheme: Scheme, active: Sequence[int], seed: bytes) -> list[Limb]:
        """s^: what is used instead of an additive share while the points ``active`` are, limbs modulo Q; ``seed``: the
        epoch's. Raises ValueError when the own point is not active."""
        if self.point not in active:
            raise ValueError(f"point {self.point} is not among the active ones")
        primes, weight = scheme.moduli, coefficient(active, 0, self.point)
        out = [ring.scaled(limb, _residue(weight, q), q) for limb, q in zip(self.limbs, primes, strict=True)]
        for other in active:
            if other != self.point:
                zero = ring.expand(framing.framed(b"focal/threshold/zero/v1", self.keys[other], seed), primes, scheme.n)
                move = ring.add if self.point < other else ring.subtract
                out = [move(x, z, q) for x, z, q in zip(out, zero, primes, strict=True)]
        return out

    def dump(self, scheme: Scheme) -> bytes:
        """Bytes for the custodian's own key file (0600)."""
        return pack(scheme, self.limbs) + b"".join(self.keys[point] for point in sorted(self.keys))

    @classmethod
    def load(cls, scheme: Scheme, data: bytes, point: int, custodians: int) -> Share:
        """Read what :meth:`dump` wrote; only ever this party's own file."""
        size = len(data) - KEY_BYTES * (custodians - 1)
        others = [k for k in range(1, custodians + 1) if k != point]
        keys = {k: data[size + KEY_BYTES * i : size + KEY_BYTES * (i + 1)] for i, k in enumerate(others)}
        return cls(unpack(scheme, data[:size], "the own disk"), point, keys)


def zero_key(pair: bytes) -> bytes:
    """The key of two custodians' zero-shares, from the one under which the first seals a piece to the second."""
    return framing.keyed(pair, b"focal/threshold/zero-key/v1")


def part(known: Sequence[int], point: int) -> Fraction:
    """c: what s_i is multiplied by in the piece at ``point``, for those who know the pieces at t - 1 points."""
    return coefficient((0, *known), point, 0)


def information(known: Sequence[int], custodians: int, n: int) -> float:
    """Kullback-Leibler divergence in nats of all w_ij of a dealer from what does not depend on the errors e' of its key
    contributions, for those who know the pieces at t - 1 points."""
    others = [j for j in range(1, custodians + 1) if j not in known]
    return sum(n * (DENOMINATOR * float(part(known, j)) * sampling.ERROR) ** 2 / (2 * SIGMA**2) for j in others)


def add_up(scheme: Scheme, dealt: Sequence[Sequence[Limb]]) -> list[Limb]:
    """S_j: the sum of all pieces that one custodian was dealt."""
    return ring.total(dealt, scheme.moduli)


def pack(scheme: Scheme, piece: Sequence[Limb]) -> bytes:
    """Canonical bytes of a piece, or of a share: secret."""
    return codec.pack(scheme, codec.PIECE, [piece])


def unpack(scheme: Scheme, data: bytes, source: str) -> list[Limb]:
    """The other way; raises :class:`Refused` naming ``source``."""
    return codec.unpack(scheme, codec.PIECE, data, source)[0]


# --------------------------------------------------------------------------- check values


def challenge(scheme: Scheme, run_id: bytes, transcript: bytes) -> list[Limb]:
    """a_v; ``transcript``: digest of all sealed pieces, as everybody has signed it."""
    return ring.expand(framing.framed(b"focal/threshold/check/v1", run_id, transcript), scheme.moduli, scheme.n)


def check_values(
    scheme: Scheme, run_id: bytes, transcript: bytes, dealt: Sequence[Sequence[Limb]], threshold: int
) -> bytes:
    """v_i1, ..., v_iN, w_i1, ..., w_it as canonical bytes. Anew at each call: call it once, and keep it."""
    drawn, fixed = challenge(scheme, run_id, transcript), _bound(scheme, run_id)
    shown = [*((piece, drawn) for piece in dealt), *((piece, fixed) for piece in dealt[:threshold])]
    return codec.pack(scheme, codec.check_values(len(shown)), [_sample(scheme, piece, a) for piece, a in shown])


def check_dealer(
    scheme: Scheme, data: bytes, h1: bytes, threshold: int, custodians: int, name: str
) -> list[list[Limb]]:
    """The v_ij of dealer ``name``, once its check values fit one polynomial around the secret of its ``h1`` (first
    round of keys).

    Raises :class:`Refused` (``threshold``) naming it.
    """
    values = codec.unpack(scheme, codec.check_values(custodians + threshold), data, f"'{name}'")
    drawn, fixed = values[:custodians], values[custodians:]
    first = range(1, threshold + 1)
    for j in range(threshold + 1, custodians + 1):
        parts = [(drawn[k - 1], -coefficient(first, j, k)) for k in first]
        if not _small(scheme, [(drawn[j - 1], Fraction(1)), *parts]):
            raise Refused("threshold", f"'{name}' dealt pieces of its key share that do not fit together")
    own = codec.unpack(scheme, codec.SWITCHING_B, h1, f"'{name}'")[0]
    parts = [(fixed[k - 1], coefficient(first, 0, k)) for k in first]
    if not _small(scheme, [(_whole(scheme, own), Fraction(-1)), *parts]):
        raise Refused("threshold", f"'{name}' dealt another key share than its keys are made with")
    return drawn


def check_piece(scheme: Scheme, piece: Sequence[Limb], shown: Sequence[Limb], a: Sequence[Limb], name: str) -> None:
    """Raise :class:`Refused` (``threshold``) unless the ``piece`` that dealer ``name`` sealed to us is the one it
    ``shown``."""
    expected = [ring.multiply(x, y, q) for x, y, q in zip(_whole(scheme, piece), a, scheme.moduli, strict=True)]
    if not _small(scheme, [(shown, Fraction(1)), (expected, Fraction(-1))]):
        raise Refused("threshold", f"'{name}' sealed another piece to us than it shows to all")


def _bound(scheme: Scheme, run_id: bytes) -> list[Limb]:
    """a' of the first digit of the relinearisation key."""
    return public_random(scheme, run_id, "relinearisation", 1)[0][: len(scheme.moduli)]


def _sample(scheme: Scheme, piece: Sequence[Limb], a: Sequence[Limb]) -> list[Limb]:
    error = sampling.wide_gaussian(scheme.n, SIGMA, scheme.moduli)
    own = zip(_whole(scheme, piece), a, error, scheme.moduli, strict=True)
    return [ring.add(ring.multiply(x, y, q), ring.ntt(e, q, scheme.roots[q]), q) for x, y, e, q in own]


def _small(scheme: Scheme, parts: Sequence[tuple[Sequence[Limb], Fraction]]) -> bool:
    """Is D times the sum of limbs times coefficients below 14 deviations of what honest check values leave, in every
    coefficient?"""
    primes = scheme.moduli  # all: whoever lies may do so modulo some of them only
    weights = [weight * DENOMINATOR for _, weight in parts]
    if any(w.denominator != 1 for w in weights):
        raise FocalError("a threshold key has points 1 to 8")
    bound = math.ceil(14 * 1.02 * SIGMA * math.sqrt(sum(float(w) ** 2 for w in weights)))
    total = ring.total(
        [
            [ring.scaled(limbs[i], int(w), q) for i, q in enumerate(primes)]
            for (limbs, _), w in zip(parts, weights, strict=True)
        ],
        primes,
    )
    values = [ring.inverse_ntt(limb, q, scheme.roots[q]) for limb, q in zip(total, primes, strict=True)]
    return integers.within(values, primes, bound)


def _whole(scheme: Scheme, limbs: Sequence[Limb]) -> list[Limb]:
    """D times an element, modulo Q."""
    return [ring.scaled(limb, DENOMINATOR, q) for limb, q in zip(limbs, scheme.moduli, strict=False)]


def _residue(weight: Fraction, q: int) -> int:
    return weight.numerator * pow(weight.denominator, -1, q) % q
