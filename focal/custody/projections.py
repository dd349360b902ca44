"""The range check of uploads: an institution proves to all custodians that its messages are short, by random
projections.

A place's upload is y = m + r_1 + ... + r_N + 2^120, over the integers, coefficient by coefficient: the message m is
known to its institution H, the mask r_i, uniform in [0, 2^124), to H and custodian i. Both sides of a projection are
linear in these parts, so custodians check the sum without seeing any part but their own::

    H          mu: exact integer Gaussian                        the same again after a restart (:class:`Attempt`)
               y_mu = mu + rho_1 + ... + rho_N        mod 2^192   rho_i: stream of a key shared with custodian i
    anybody    Pi = expand(SHA-256(run, H, name, bound, digests of all y, attempt, y_mu))      256 rows of -1 and 1
    H          p = Pi m + mu, sent with y_mu if accepted, else the next attempt (Lyubashevsky 2012, rejection sampling)
    custodian  t_i = Pi r_i + rho_i                   mod 2^192   once, through the ledger
    anybody    Pi (y - 2^120) + y_mu - t_1 - ... - t_N == p      mod 2^192,  and |p| <= sqrt(320) sigma (:func:`check`)

One projection proves something about all coefficients of all places of an upload together, so Pi is expanded place by
place, and nobody holds more of it than one place's 512 kB.

**Soundness.** Let w be any integer vector and c any real one, both fixed before Pi. Then

    |Pi w + c| > 9/2 |w|    except with probability 2^-131                                       (1)

So where the check passes, |m| <= sqrt(320) sigma / 4.5 = 2^11 times the agreed ``norm`` (:attr:`Statement.proven`),
the 2-norm over all coefficients: a real or complex slot of one place, the whole budget in it, is below sqrt(N / 2)
2^11 norm / scale (:meth:`Statement.slot`). m and c = mu are fixed by what is hashed, by the masks' keys and by which
of the :data:`CANDIDATES` mu is meant; so an institution that makes 2^k hash queries gets a longer vector accepted
with probability at most 2^(k - 129), with SHA-256 and ChaCha20 under a public key in the place of a random oracle.
Modulo 2^192 nothing wraps: whatever y holds, |m| < 2^128 in a coefficient, hence |Pi m| < 2^158, and of all numbers
that are c modulo 2^192 at most one can bring the sum near zero.

*Proof of (1)*; the idea is that of Gentry, Halevi and Lyubashevsky (EUROCRYPT 2022) and of Lyubashevsky, Nguyen and
Plancon (CRYPTO 2022), with an explicit constant, and for any shift. Let |w| = 1, X one row's <pi, w>, g a standard
Gaussian. The characteristic function of X is the product of cos(t w_k), so by exp(-z^2) = E_g cos(sqrt(2) g z) and
Hoelder's inequality with exponents 1 / w_k^2

    E exp(-(X + c)^2)  =  E_g cos(sqrt(2) g c) prod_k cos(sqrt(2) g w_k)
                       <=  E_g prod_k |cos(sqrt(2) g w_k)|  <=  sup_{s >= 1} h(s)

with h(s) = E_g |cos(sqrt(2 / s) g)|^s, s = 1 / w_k^2. For s >= 2, |cos x| <= exp(-d^2 / 2), d the distance to the
nearest multiple of pi, gives h(s) <= 3^(-1/2) sum_k exp(-pi^2 k^2 s / 6) <= 0.621. For s in [a, b], 1 <= a < b <= 2,
moments are log-convex: h(s) <= E|cos|^(2 - a) (E cos^2)^(a - 1) at b, where E|cos| <= 2 / pi + 4 / (3 pi) exp(-4 / b)
(Fourier series) and E cos^2 = (1 + exp(-4 / b)) / 2: on the pieces between 1, 1.1, 1.3, 1.6 and 2 at most 0.6479.
Rows are independent: Pr[|Pi w + c|^2 <= 81/4] <= exp(81/4) 0.6479^256 < 2^-131 (Markov).

**What is published, and who could have made it without the message.** With H and one custodian h honest, all others
against them:

* y is 2^-124 |m| a coefficient from uniform noise plus what the others know; y_mu is uniform (rho_h); t_h is what the
  equation leaves.
* p is a discrete Gaussian of deviation sigma, cut off at sqrt(320) sigma: to 2^-100 a proof it has this distribution
  whatever m and Pi are. |Pi m| <= 25 norm except with 2^-101 (the rows' sums are subgaussian); sigma is 512 norm, so
  the densities of p with m and without differ by a factor above 9/5 with 2^-104 only, and candidates are accepted
  with 5/9 of their ratio. The number of attempts is geometric, whatever m is. Everything is drawn and weighed in
  integers: floating-point mu would show the low bits of Pi m.
* So whoever knows norm makes all of it: a uniform y and y_mu, a Gaussian p, t_h from the equation. t_i tells H
  nothing: H can compute it.

This needs, of the caller: (a) an attempt is made once for a statement, even by an
institution whose folder was restored from a copy: p for two Pi under one mu, or y_mu for two mu under one rho, show
(Pi - Pi') m. So it is drawn from the institution's key for masks and the statement (:func:`derived`), which holds the
uploads' digests. Masks are bound to the statement, so another list of uploads has other rho; it needs other r too.
(b) A custodian
gives t_i for one proof a statement, ever, and for one statement an institution and name: two Pi under one rho_i show
(Pi - Pi') r_i. (c) ``norm`` follows from public numbers (:func:`norm_bound`), and H stops where its rows exceed it:
beyond it p depends on m.

**What it does not prove.** Anything, once a custodian lies for H: t_j is a custodian's word, and a forged one makes
any message pass (only a proof of t_j would change that). Nor where the message stands (slots of other institutions),
nor anything about the noise that custodians add. A t_j that is wrong without H's help makes an honest proof fail:
people are asked before a blind run goes on without H, which computes all t_i and says whose is wrong, as long as it
has its key (:meth:`focal.protocols.common.inputs.MaskKeys.wrong_shares`).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from focal import framing
from focal.ckks import native
from focal.custody.inputs import OFFSET_BITS
from focal.custody.integer_gaussian import Below, SystemBelow, integer_gaussian
from focal.errors import FocalError, Refused
from focal.files import canonical_json

ROWS = 256
"""Projections, J."""
CANDIDATES = 4
"""Gaussians mu that share one Pi: the first accepted one is used, so that 96 % of all proofs need one pass over the
messages, not 56 %."""
MODULUS = 1 << 192
"""What projections are taken by; large enough that nothing wraps."""
SIGMA = 512
"""Deviation of mu in units of the agreed norm."""
ACCEPTED = Fraction(5, 9)
"""Share of candidates that are accepted."""
LONGEST = 320
"""|p|^2 is at most so many sigma^2; 256 of them are expected, and less than one p in 300 is longer."""
SHRINKS = Fraction(9, 2)
"""|Pi w + c| > 9/2 |w|, whatever c is: (1) in the module's docstring."""

_WIDTH = 24
"""Bytes of a residue modulo 2^192, and of a signed number in p or mu."""
SHARE_BYTES = ROWS * _WIDTH
"""Of one custodian's share of one check."""
PROOF_BYTES = 9 + (CANDIDATES + 1) * ROWS * _WIDTH
"""Of a proof: attempt, candidate, masked mu, p."""
_COIN_BITS = 256
_MOST = 1 << 30
"""Coefficients of one proof, 65536 places of 2^14: sums of 32-bit words stay in int64, and |Pi m| below 2^158."""
_BLOCK = 64
"""Groups of eight integers that numpy takes at a time."""

Lanes = NDArray[np.int64]
"""(n, 4): integers as sums of lanes[i, k] 2^(32 k), each lane below 2^32 in size."""


# --------------------------------------------------------------------------- what is proven


@dataclass(frozen=True)
class Statement:
    """What a proof is about: the messages of these uploads, all coefficients together, have a 2-norm of ``norm`` at
    most.

    Raises ValueError where there is nothing to prove, or what this check cannot.
    """

    run_id: bytes
    institution: str
    name: str
    """What is uploaded: data, targets, ...; one statement each."""
    digests: tuple[str, ...]
    """SHA-256 (hex) of every upload y, in the order in which they are projected."""
    norm: int
    """Agreed by all from public numbers (:func:`norm_bound`)."""

    def __post_init__(self) -> None:
        if not self.digests or not 0 < self.norm < 1 << 128:
            raise ValueError(f"{len(self.digests)} uploads, norm {self.norm}: nothing that a range check proves")

    @functools.cached_property
    def hash(self) -> bytes:
        """SHA-256 over all of it."""
        said = [self.run_id.hex(), self.institution, self.name, self.norm, *self.digests]
        return framing.digest(b"focal/range/v1", canonical_json(said))

    @property
    def sigma(self) -> int:
        """Deviation of mu, and of p."""
        return SIGMA * self.norm

    @property
    def proven(self) -> int:
        """Where the check passes, the messages' norm is below this: 2^11 norm."""
        return math.isqrt(int(LONGEST * self.sigma**2 / SHRINKS**2)) + 1

    def slot(self, n: int, scale: float) -> float:
        """What no slot of any place exceeds where the check passes, ring dimension ``n``.

        2 / n times the sum of |slot|^2 is |m / scale|^2: a slot is one of n values at roots of unity, and its
        conjugate is another.
        """
        return math.sqrt(n / 2) * self.proven / scale


def norm_bound(scale: float, n: int, chunks: int, rms: float) -> int:
    """The norm of ``chunks`` encoded vectors of slots whose root mean square, over all slots of all chunks, is at
    most ``rms``.

    ``scale``: of the encoding, ``n``: ring dimension. A chunk's coefficients have the norm scale times the rms of its
    n / 2 slots, as the canonical embedding is sqrt(n / 2) times an isometry; rounding adds 1/2 a coefficient at most,
    for which 1 is granted.
    """
    return math.ceil(scale * rms * math.sqrt(chunks)) + math.isqrt(n * chunks) + 1


def squared_norm(m: NDArray[np.int64]) -> float:
    """Sum of the squares of one place's coefficients, to a relative 2^-39."""
    real = m.astype(np.float64)
    return float(np.dot(real, real))


def admits(norm: int, squares: Iterable[float]) -> bool:
    """Whether messages may be proven to have this ``norm``, from the :func:`squared_norm` of every place. Honest ones
    always may."""
    return math.fsum(squares) <= float(norm) ** 2


# --------------------------------------------------------------------------- integers as lanes


def message_lanes(m: NDArray[np.int64]) -> Lanes:
    """(n, 4) of signed coefficients (n,)."""
    lanes = np.zeros((len(m), 4), np.int64)
    lanes[:, 0], lanes[:, 1] = m & 0xFFFFFFFF, m >> 32
    return lanes


def mask_lanes(r: NDArray[np.uint64]) -> Lanes:
    """(n, 4) of unsigned integers of 128 bits, ``r`` (n, 2): low word, high word."""
    return np.ascontiguousarray(r, "<u8").view("<u4").astype(np.int64)


def upload_lanes(y: NDArray[np.uint64]) -> Lanes:
    """(n, 4) of y - 2^120, for an upload ``y`` (n, 2): low word, high word."""
    lanes = mask_lanes(y)
    lanes[:, 3] -= 1 << OFFSET_BITS - 96
    return lanes


# --------------------------------------------------------------------------- projections


def challenge(statement: Statement, number: int, masked: bytes) -> bytes:
    """The key that Pi is expanded from, for attempt ``number`` with these masked mu, all candidates'."""
    return framing.digest(b"focal/range/challenge/v1", statement.hash, number.to_bytes(8, "little"), masked)


def project(statement: Statement, key: bytes, places: Iterable[Sequence[Lanes]]) -> list[list[int]]:
    """Pi x, 256 integers, for one or several vectors x that are projected by the same Pi.

    ``key``: from :func:`challenge`. ``places``: the vectors' coefficients at every upload's place, in the statement's
    order; they are taken one by one. Raises ValueError when they are more or fewer than the uploads, or not of one
    shape.
    """
    sums: list[NDArray[np.int64]] = []
    count = 0
    for index, vectors in enumerate(places):
        if not sums:
            shape, sums = vectors[0].shape, [np.zeros((ROWS, 4), np.int64) for _ in vectors]
            if len(shape) != 2 or shape[1] != 4 or shape[0] % 16 or len(statement.digests) * shape[0] > _MOST:
                raise ValueError(f"{len(statement.digests)} places of lanes {shape} are not projected")
        signs = _stream(key, index, ROWS * shape[0] // 8)
        for x, own in zip(vectors, sums, strict=True):
            if x.shape != shape:
                raise ValueError(f"place {index} has lanes {x.shape}, the first one {shape}")
            own += signed_sums(signs, x)
        count = index + 1
    if count != len(statement.digests):
        raise ValueError(f"{count} places were projected, the statement names {len(statement.digests)} uploads")
    return [[_integer(row) for row in own] for own in sums]


def signed_sums(bits: bytes, lanes: Lanes) -> NDArray[np.int64]:
    """(256, 4): a row's sum of the lanes of all integers, with a minus where bit i mod 8 of byte 256 (i / 8) + row is
    0.

    In numpy a product of float64 matrices: exact, as no sum over a place reaches 2^53. The native kernel gives the
    same sums.
    """
    if native.library:
        return native.library.signed_sums(bits, lanes)
    groups, real = np.frombuffer(bits, np.uint8).reshape(-1, ROWS, 1), lanes.astype(np.float64)
    total = np.zeros((ROWS, 4))
    for start in range(0, len(groups), _BLOCK):
        plus = np.unpackbits(groups[start : start + _BLOCK], axis=2, bitorder="little").transpose(1, 0, 2)
        total += (2.0 * plus.reshape(ROWS, -1) - 1.0) @ real[8 * start : 8 * (start + _BLOCK)]
    return total.astype(np.int64)


def _integer(lanes: NDArray[np.int64]) -> int:
    return sum(int(x) << 32 * k for k, x in enumerate(lanes))


def _stream(key: bytes, index: int, size: int) -> bytes:
    """``size`` bytes of ChaCha20's keystream with nonce ``index``; both halves of its 16 bytes count from zero."""
    return Cipher(ChaCha20(key, bytes(8) + index.to_bytes(8, "little")), mode=None).encryptor().update(bytes(size))


# --------------------------------------------------------------------------- the institution


@dataclass(frozen=True)
class Attempt:
    """All that is random in one attempt of a proof. The same at each call: :func:`derived`."""

    mu: tuple[tuple[int, ...], ...]
    """Per candidate 256 exact integer Gaussians of the statement's sigma."""
    coins: tuple[int, ...]
    """Per candidate 256 bits that decide whether it is accepted."""

    @classmethod
    def draw(cls, sigma: int, below: Below | None = None) -> Attempt:
        """A fresh one, from the operating system's randomness unless ``below`` is given."""
        below = below or SystemBelow()
        mu = tuple(tuple(integer_gaussian(sigma, below) for _ in range(ROWS)) for _ in range(CANDIDATES))
        return cls(mu, tuple(below(1 << _COIN_BITS) for _ in range(CANDIDATES)))


def derived(secret: bytes) -> Callable[[int], int]:
    """So many bits at each call, of the ChaCha20 keystream of ``secret``: what an attempt is drawn
    from that must be the same again."""
    stream = Cipher(ChaCha20(secret, bytes(16)), mode=None).encryptor()
    return lambda bits: int.from_bytes(stream.update(bytes((bits + 7) // 8)), "little") >> -bits % 8


@dataclass(frozen=True)
class Proof:
    """What an institution publishes with a list of uploads: 31 kB."""

    number: int
    """Of the attempt, from 0."""
    candidate: int
    """Which of its mu."""
    masked: bytes
    """y_mu modulo 2^192 of all candidates."""
    p: tuple[int, ...]
    """Pi m + mu."""

    def dump(self) -> bytes:
        """Canonical bytes: number, candidate, y_mu, p."""
        return self.number.to_bytes(8, "little") + bytes([self.candidate]) + self.masked + _signed(self.p)

    @classmethod
    def load(cls, data: bytes, source: str) -> Proof:
        """Of foreign bytes. Raises :class:`Refused` (reasons ``length``, ``range-form``) naming ``source``, the party
        they came from."""
        end = PROOF_BYTES - ROWS * _WIDTH
        if len(data) != PROOF_BYTES:
            raise Refused("length", f"{source}: a range proof has {PROOF_BYTES} bytes, these are {len(data)}")
        if data[8] >= CANDIDATES:
            raise Refused(
                "range-form", f"{source}: of {CANDIDATES} candidates a range proof names one, not number {data[8]}"
            )
        return cls(int.from_bytes(data[:8], "little"), data[8], data[9:end], _numbers(data[end:], signed=True))

    def challenge(self, statement: Statement) -> bytes:
        """The key of this proof's Pi."""
        return challenge(statement, self.number, self.masked)


def prove(
    statement: Statement,
    keys: Sequence[bytes],
    messages: Callable[[], Iterable[NDArray[np.int64]]],
    attempts: Callable[[str], Attempt],
) -> Proof:
    """The institution's proof. The same at each call, as long as its attempts are the same.

    ``keys``: 32 bytes shared with each custodian, for masks of mu. ``messages``: the coefficients (n,) of all places in
    the statement's order, anew at each call; one pass in 96 % of all proofs. ``attempts(item)``: the attempt ``item``,
    the same at each call.

    Raises :class:`FocalError` when the messages are longer than the statement's norm; nothing has been shown then.
    """
    for number in itertools.count():
        item = f"range/{statement.name}/{statement.hash.hex()}/{number}"
        attempt = attempts(item)
        masked = masked_mu(statement, keys, number, attempt)
        squares: list[float] = []
        (projected,) = project(statement, challenge(statement, number, masked), _measured(messages(), squares))
        if not admits(statement.norm, squares):
            times = math.sqrt(math.fsum(squares)) / statement.norm
            raise FocalError(
                f"{statement.institution}: its '{statement.name}' are {times:.2f} times as large "
                "(root mean square) as the run allows; nothing of the proof was shown",
                hint="look for columns in another unit, and for missing values that are coded as large numbers",
            )
        for candidate, (mu, coin) in enumerate(zip(attempt.mu, attempt.coins, strict=True)):
            p = tuple(x + y for x, y in zip(projected, mu, strict=True))
            if short(statement, p) and coin < threshold(statement.sigma, p, projected):
                return Proof(number, candidate, masked, p)
    raise AssertionError("itertools.count() does not end")


def _measured(messages: Iterable[NDArray[np.int64]], squares: list[float]) -> Iterator[tuple[Lanes]]:
    for m in messages:
        squares.append(squared_norm(m))
        yield (message_lanes(m),)


def threshold(sigma: int, p: Sequence[int], projected: Sequence[int]) -> Decimal:
    """2^256 times the probability that p = projected + mu is accepted: a candidate whose coin is below it is.

    The probability is 5/9 exp((|projected|^2 - 2 <p, projected>) / (2 sigma^2)), at most 1 (Lyubashevsky 2012,
    theorem 4.6). The exponent is exact, the exponential right to 95 digits.
    """
    most, exponent = Decimal(1 << _COIN_BITS), sum(v * (v - 2 * x) for x, v in zip(p, projected, strict=True))
    if exponent > 2 * sigma**2:  # e > 9/5
        return most
    with localcontext(Context(prec=100)):
        return min(most, most * ACCEPTED.numerator * (Decimal(exponent) / (2 * sigma**2)).exp() / ACCEPTED.denominator)


def short(statement: Statement, p: Sequence[int]) -> bool:
    """Whether |p| is at most sqrt(320) sigma."""
    return sum(x * x for x in p) <= LONGEST * statement.sigma**2


def masked_mu(statement: Statement, keys: Sequence[bytes], number: int, attempt: Attempt) -> bytes:
    """y_mu = mu + sum of rho_i modulo 2^192, of every candidate."""
    masks = [_numbers(_rho(statement, key, number)) for key in keys]
    mu = itertools.chain.from_iterable(attempt.mu)
    return _residues(map(sum, zip(mu, *masks, strict=True)))


# --------------------------------------------------------------------------- custodians, and everybody


def share(statement: Statement, proof: Proof, key: bytes, projected: Sequence[int]) -> bytes:
    """t_i = Pi r_i + rho_i modulo 2^192: 256 residues, 6 kB. ``projected``: Pi r_i; ``key``: shared with the
    institution, 32 bytes.

    Call it through the ledger only, with the institution and the statement's name as the item: one proof gets one
    share, and no other proof ever does. It is uniform to whoever does not know ``key``, and tells the institution
    nothing, which can compute it too. Raises :class:`Refused` (``range-size``) for a proof that cannot pass.
    """
    check_size(statement, proof)
    rho = _numbers(_rho(statement, key, proof.number))[proof.candidate * ROWS :][:ROWS]
    return _residues(x + y for x, y in zip(projected, rho, strict=True))


def check_size(statement: Statement, proof: Proof) -> None:
    """What can be seen before any share is there. Raises :class:`Refused` (``range-size``) naming the institution."""
    if len(proof.p) != ROWS or not short(statement, proof.p):
        raise Refused(
            "range-size", f"{statement.institution}: no honest range proof of '{statement.name}' is as long as this"
        )


def check(statement: Statement, proof: Proof, projected: Sequence[int], shares: Sequence[tuple[str, bytes]]) -> None:
    """The whole check, from every custodian's (name, share). ``projected``: Pi (y - 2^120) (:func:`upload_lanes`).

    Raises :class:`Refused`: ``range-size``, ``length`` (a share's), ``range-sum`` where the equation fails: then the
    institution or one of the custodians did not follow the protocol, and the institution, which can compute every
    share, can say which.
    """
    check_size(statement, proof)
    masked = _numbers(proof.masked)[proof.candidate * ROWS :][:ROWS]
    parts = []
    for name, data in shares:
        if len(data) != SHARE_BYTES:
            raise Refused("length", f"{name}: a range check's share has {SHARE_BYTES} bytes, these are {len(data)}")
        parts.append(_numbers(data))
    for x, y, p, *ts in zip(projected, masked, proof.p, *parts, strict=True):
        if (x + y - sum(ts) - p) % MODULUS:
            names, own = ", ".join(name for name, _ in shares), statement.institution
            raise Refused(
                "range-sum",
                f"{own}: its range proof of '{statement.name}' does not fit its uploads and the shares of {names}",
                hint=f"one of these shares is wrong, or its own proof is: {own} can compute the shares and compare, "
                "as long as it has the key that its masks came from",
            )


def _rho(statement: Statement, key: bytes, number: int) -> bytes:
    """rho_i of all candidates, as residues: bound to everything that Pi depends on but mu."""
    own = framing.keyed(key, b"focal/range/mask/v1", statement.hash, number.to_bytes(8, "little"))
    return _stream(own, 0, CANDIDATES * ROWS * _WIDTH)


def _residues(values: Iterable[int]) -> bytes:
    return b"".join((x % MODULUS).to_bytes(_WIDTH, "little") for x in values)


def _signed(values: Iterable[int]) -> bytes:
    return b"".join(x.to_bytes(_WIDTH, "little", signed=True) for x in values)


def _numbers(data: bytes, signed: bool = False) -> tuple[int, ...]:
    return tuple(int.from_bytes(data[i : i + _WIDTH], "little", signed=signed) for i in range(0, len(data), _WIDTH))
