"""Polynomials as canonical bytes: one spelling, one digest, nothing accepted unchecked.

::

    | magic, format version, kind, level, scale degree, elements, limbs, slots, scale | parameter hash | key tag |

Limbs follow element by element in modulus order, each residue in the fewest whole bytes that hold its modulus (60-bit
primes 8, 45-bit primes 6: a fifth less than OpenFHE's own format). The receiver knows what it expects: the header must
equal its own byte for byte, the length must be exact, and every residue must be below its modulus. Because of
that, SHA-256 of these bytes is the *digest of a ciphertext* of the protocol; ``Serialize`` output would not do,
its bytes differ for equal ciphertexts.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal.ckks import native
from focal.ckks.evaluator import RealOrComplex
from focal.ckks.ring import Limb
from focal.ckks.scheme import DIGITS, LIMBS, OPENING_LIMBS, Scheme
from focal.errors import Refused

FORMAT = 1
HEADER = struct.Struct("<4sHHHHIIId32s64s")


@dataclass(frozen=True)
class Kind:
    """What a blob holds: ``elements`` polynomials of ``limbs`` limbs (modulo QP when ``extended``); the first may have
    a number of its own."""

    code: int
    name: str
    elements: int
    limbs: int
    extended: bool = False
    first: int | None = None
    """Limbs of the first polynomial, where they are not ``limbs``."""


def ciphertext(limbs: int) -> Kind:
    """(c0, c1) with ``limbs`` limbs."""
    return Kind(1, f"ciphertext with {limbs} limbs", 2, limbs)


def refresh_share(request: int, limbs: int) -> Kind:
    """What a custodian gives for one refresh: a polynomial with the limbs of the request, and one with those of the
    refreshed ciphertext (:mod:`focal.custody.refresh`)."""
    return Kind(2, f"refresh share with {request} and {limbs} limbs", 2, limbs, first=request)


DECRYPTION = Kind(4, "decryption share", 1, 1)
PUBLIC_B = Kind(5, "public-key contribution", 1, LIMBS)
OPENING_SHARE = Kind(7, "opening share", 1, OPENING_LIMBS)
SWITCHING_B = Kind(6, "key-switching contribution (b half)", DIGITS, LIMBS, extended=True)
MASKED = Kind(8, "masked message", 1, 0)
"""Integers of :data:`MASKED_BYTES` bytes instead of residues (:mod:`focal.custody.inputs`)."""
MASKED_BYTES = 16


PIECE = Kind(10, "piece of a key share", 1, LIMBS)


def check_values(count: int) -> Kind:
    """What a dealer of key shares shows of its pieces (:mod:`focal.custody.sharing`)."""
    return Kind(11, f"check of {count} pieces of a key share", count, LIMBS)


def input_b(limbs: int) -> Kind:
    """A custodian's contribution to an input with ``limbs`` limbs."""
    return Kind(9, f"contribution to an input with {limbs} limbs", 1, limbs)


def moduli(scheme: Scheme, kind: Kind) -> tuple[int, ...]:
    """The primes of each polynomial of a blob of this kind, in order; of one whose first has others: of the last."""
    return scheme.extended if kind.extended else scheme.moduli[: kind.limbs]


def shape(scheme: Scheme, kind: Kind) -> list[tuple[int, ...]]:
    """The primes of every polynomial of a blob of this kind, one after the other."""
    primes = [moduli(scheme, kind)] * kind.elements
    return primes if kind.first is None else [scheme.moduli[: kind.first], *primes[1:]]


def header(scheme: Scheme, kind: Kind) -> bytes:
    """The only header that a blob of this kind may have. Its level is that of the first polynomial, its limbs are
    those of the last."""
    level = LIMBS - (kind.limbs if kind.first is None else kind.first)
    return HEADER.pack(
        b"FOCL",
        FORMAT,
        kind.code,
        level,
        1,
        kind.elements,
        len(moduli(scheme, kind)),
        scheme.slots,
        scheme.scale,
        scheme.hash,
        scheme.tag.encode(),
    )


def size(scheme: Scheme, kind: Kind) -> int:
    """Bytes of a blob of this kind."""
    width = MASKED_BYTES if kind is MASKED else sum(_width(q) for primes in shape(scheme, kind) for q in primes)
    return HEADER.size + scheme.n * width


def pack(scheme: Scheme, kind: Kind, polynomials: Sequence[Sequence[Limb]]) -> bytes:
    """Canonical bytes of ``polynomials[element][limb]``; ValueError when the shape is not the kind's."""
    parts: list[bytes | bytearray] = [header(scheme, kind)]
    if len(polynomials) != kind.elements:
        raise ValueError(f"a {kind.name} has {kind.elements} polynomials, not {len(polynomials)}")
    for polynomial, primes in zip(polynomials, shape(scheme, kind), strict=True):
        for limb, q in zip(polynomial, primes, strict=True):
            if limb.shape != (scheme.n,):
                raise ValueError(f"a limb has {scheme.n} residues, not {limb.shape}")
            parts.append(_packed(limb.astype("<u8", copy=False), _width(q)))
    return b"".join(parts)


def encrypt(scheme: Scheme, public: Any, slots: RealOrComplex, kind: Kind) -> bytes:
    """Canonical bytes of a fresh encryption of ``slots`` (S,) with the limbs of ``kind``, a ciphertext's.
    Another one at each call."""
    return pack(scheme, kind, fresh(scheme, public, slots, kind.limbs))


def fresh(scheme: Scheme, public: Any, slots: RealOrComplex, limbs: int) -> list[list[Limb]]:
    """(c0, c1), ``limbs`` limbs each, of an encryption of ``slots`` (S,) under a joint public key.
    Another one at each call."""
    return scheme.limbs(scheme.cc.Encrypt(public, scheme.encode(slots, limbs)))


def pack_masked(scheme: Scheme, words: NDArray[np.uint64]) -> bytes:
    """Canonical bytes of integers below 2^128, (N, 2) as the lower and the upper 64 bits of each:
    16 bytes each, least first."""
    return header(scheme, MASKED) + words.astype("<u8", copy=False).tobytes()


def unpack_masked(scheme: Scheme, data: bytes, source: str) -> NDArray[np.uint64]:
    """The other way. Raises :class:`Refused` (``length``, ``header``) naming ``source``;
    there are no numbers that it would not take."""
    _check_envelope(scheme, MASKED, data, source)
    return np.frombuffer(data, "<u8", 2 * scheme.n, HEADER.size).reshape(scheme.n, 2)


def unpack(scheme: Scheme, kind: Kind, data: bytes, source: str) -> list[list[Limb]]:
    """Checked limbs of foreign bytes.

    Raises :class:`Refused` (reasons ``length``, ``header``, ``coefficient``) naming ``source``,
    the party they came from.
    """
    _check_envelope(scheme, kind, data, source)
    offset = HEADER.size
    out: list[list[Limb]] = []
    for primes in shape(scheme, kind):
        element: list[Limb] = []
        for q in primes:
            width = _width(q)
            limb = _unpacked(data, offset, scheme.n, width, q)
            if limb is None:
                raise Refused("coefficient", f"{source}: a {kind.name} holds a value that is not below its modulus")
            element.append(limb)
            offset += scheme.n * width
        out.append(element)
    return out


def _check_envelope(scheme: Scheme, kind: Kind, data: bytes, source: str) -> None:
    if len(data) != size(scheme, kind):
        raise Refused("length", f"{source}: a {kind.name} has {size(scheme, kind)} bytes, these are {len(data)}")
    if data[: HEADER.size] != header(scheme, kind):
        raise Refused(
            "header",
            f"{source}: not a {kind.name} of this run: {_difference(scheme, kind, data[: HEADER.size])} differs",
        )


def digest(data: bytes) -> str:
    """SHA-256 (hex) of canonical bytes."""
    return hashlib.sha256(data).hexdigest()


def _packed(limb: Limb, width: int) -> bytes | bytearray:
    """The ``width`` low bytes of each residue."""
    if native.library:
        return native.library.pack(np.ascontiguousarray(limb), width)
    words = _words(limb, width)
    own = np.empty(words.shape, words.dtype)
    for i in range(words.shape[1]):  # word by word: numpy's inner loop is then as long as the limb
        own[:, i] = words[:, i]
    return own.tobytes()


def _unpacked(data: bytes, offset: int, n: int, width: int, q: int) -> Limb | None:
    """The other way; ``None`` when a residue is not below ``q``."""
    if native.library:
        return native.library.unpack(data, offset, n, width, q)
    limb: Limb = np.zeros(n, dtype="<u8")
    words = _words(limb, width)
    foreign = np.frombuffer(data, words.dtype, words.size, offset).reshape(words.shape)
    for i in range(words.shape[1]):
        words[:, i] = foreign[:, i]
    return limb if int(limb.max()) < q else None


def _words(limb: Limb, width: int) -> NDArray[np.unsignedinteger]:
    """The ``width`` low bytes of each residue as a view, in two-byte words where that is even
    (twice as fast to copy)."""
    unit = np.dtype("<u2" if width % 2 == 0 else "u1")
    return limb.view(unit).reshape(len(limb), 8 // unit.itemsize)[:, : width // unit.itemsize]


def _width(q: int) -> int:
    return (q.bit_length() + 7) // 8


def _difference(scheme: Scheme, kind: Kind, found: bytes) -> str:
    names = (
        "magic",
        "format version",
        "kind",
        "level",
        "scale degree",
        "number of polynomials",
        "number of limbs",
        "slots",
        "scale",
        "parameter hash",
        "key tag",
    )
    own = HEADER.unpack(header(scheme, kind))
    return next(name for name, mine, theirs in zip(names, own, HEADER.unpack(found), strict=True) if mine != theirs)
