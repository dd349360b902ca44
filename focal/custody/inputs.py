"""Collective encryption: institutions send rows under masks, custodians make a ciphertext of them. Neither alone could.

An institution chooses its message and nothing else::

    institution H    y_H = m_H + sum_i r_iH + 2^120      over the integers, N of 16 bytes    m_H: encoded slots
                          (all lists are closed and signed)
    custodian i      B_i = -(s_i a + e_i) - sum_H r_iH   modulo q_0 ... q_{L-1}              committed, then revealed
    anyone           c0 = sum_H (y_H - 2^120) + sum_i B_i       c1 = a = SHAKE-256(run id, digest of the lists, input)

    phase            c0 + c1 s = sum_H m_H - sum_i e_i

(For an input that is carried larger, masks and messages are multiplied by an integer on their way into c0 and B_i;
the noise is not.)

r_iH is uniform over [0, 2^124): a ChaCha20 stream of H and i alone, by X25519 between keys that both draw for
this run and erase. So an upload has no form that could be wrong: any N numbers are somebody's masked message.
c1 is a hash, and the fresh noise is the custodians': 3.19 sqrt(custodians) a coefficient, where encryption
under a joint public key had 826.

**Who could have made these without the secret.** Of y_H an honest custodian's r_iH is left, whatever the other
custodians know: y_H lies within |m| 2^-124 a coefficient, statistically, of a value that does not depend on m_H
(:func:`hiding`). B_i is a ring-LWE sample under s_i, with an ``a`` of its own that nobody chose, minus what blinds it
for all but the owners. An owner knows its r_iH, so to it B_i is the sample. y_H + B_i is an encryption of m_H under
s_i. What a coalition of institutions and custodians controls is its own y and B, hence a message that it knows; it
cannot make c0 + c1 s depend on s_i beyond e_i, as long as

* all y are fixed before any B is shown: else y = -B makes c0 = 0, and the phase s a (lists are signed
  by all custodians first);
* no B is chosen after another was seen, for the same reason (commit, then reveal);
* one ``a`` never meets two e, and one r never two messages: B is made once (ledger), and r depends on a label that only
  the same rows have (:func:`label`), so that not even a restored backup sends two messages under one mask.

Sources: a threshold encryption of a sum, after the collective public-key protocols of Mouchet et al., "Multiparty
Homomorphic Encryption from RLWE", PoPETs 2021; additive masks as in Bonawitz et al., CCS 2017.
"""

from __future__ import annotations

import functools
import hashlib
import math
import secrets as system
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from focal import framing
from focal.ckks import codec, ring, sampling
from focal.ckks.evaluator import RealOrComplex
from focal.ckks.ring import Limb
from focal.ckks.scheme import Scheme
from focal.errors import FocalError, ProtocolError

Message = NDArray[np.int64]
"""N coefficients of encoded slots."""
Words = NDArray[np.uint64]
"""(N, 2): integers below 2^128, the lower and the upper 64 bits of each."""

MASK_BITS = 124
"""Of one custodian's mask: eight of them, the offset and a message stay below 2^128."""
OFFSET_BITS = 120
"""y is m plus masks plus 2^120: never negative."""
MAX_SLOT = 2.0**11
"""Largest slot of a message. A coefficient is at most the largest slot times the scale:
2^56, what refreshes are made for."""
MAX_CUSTODIANS = 8
KEY_BYTES = 32


@dataclass(frozen=True)
class Input:
    """A ciphertext that training starts from."""

    item: str
    """What it is called, once in a run: ``0/data/3/1``."""
    limbs: int
    owners: tuple[tuple[str, str], ...]
    """Whose messages it adds up: (institution, the label of its rows)."""
    factor: int = 1
    """What the sum of the messages is multiplied by: an integer, and so the noise is not."""


# --------------------------------------------------------------------------- keys of masks


def new_key() -> bytes:
    """A private X25519 key for one run."""
    return system.token_bytes(KEY_BYTES)


def public_key(private: bytes) -> str:
    """Its public key, hexadecimal: said under the owner's signature."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def pair_key(private: bytes, public: str, run_id: bytes, institution: str, custodian: str) -> bytes:
    """The key that an institution and a custodian share in this run; ``private`` is the caller's,
    ``public`` the other's.

    Raises :class:`ProtocolError` when the other's key is not a usable one:
    its shared secret would be known to everybody.
    """
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(bytes.fromhex(public))
        )
    except ValueError:
        raise ProtocolError(
            f"the key for masks between '{institution}' and '{custodian}' is not a usable X25519 key"
        ) from None
    info = framing.framed(b"focal/input-key/v1", run_id, institution.encode(), custodian.encode())
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(shared)


def label(private: bytes, item: str, *rows: bytes) -> str:
    """What an institution's masks are told apart by: another one for other ``rows``,
    and nobody else can relate it to them."""
    return framing.keyed(private, b"focal/input-label/v1", item.encode(), *rows).hex()


def mask(key: bytes, label: str, item: str, n: int) -> Words:
    """r: ``n`` integers uniform in [0, 2^124), the stream of this pair, these rows and this input."""
    own = framing.keyed(key, b"focal/input-mask/v1", bytes.fromhex(label), item.encode())
    stream = bytearray(16 * n)
    Cipher(ChaCha20(own, bytes(16)), mode=None).encryptor().update_into(bytes(16 * n), stream)
    words: Words = np.frombuffer(stream, "<u8").reshape(n, 2)
    words[:, 1] >>= np.uint64(128 - MASK_BITS)
    return words


# --------------------------------------------------------------------------- an institution


def message(scheme: Scheme, slots: RealOrComplex) -> Message:
    """Coefficients of encoded slots (S,). Raises :class:`FocalError` for slots that are not finite
    or beyond :data:`MAX_SLOT`."""
    largest = float(np.abs(slots).max(initial=0.0))
    if not largest <= MAX_SLOT:  # NaN compares false
        raise FocalError(
            f"a value of {largest:.3g} is to be encrypted; {MAX_SLOT:g} is the largest",
            hint="look for rows far from all others, or whose features are not finite",
        )
    ev, q = scheme.evaluator, scheme.moduli[0]
    return ring.centred(ring.inverse_ntt(ev.plain_limbs(ev.encode(slots, 1))[0], q, scheme.roots[q]), q)


def masked(scheme: Scheme, message: Message, masks: Sequence[Words]) -> bytes:
    """y as canonical bytes, from every custodian's mask."""
    if len(masks) > MAX_CUSTODIANS:
        raise FocalError(f"masks of {len(masks)} custodians do not fit 16 bytes; {MAX_CUSTODIANS} do")
    low = message.view(np.uint64).copy()
    high = (message >> 63).view(np.uint64) + np.uint64(1 << OFFSET_BITS - 64)
    for words in masks:
        low += words[:, 0]
        high += words[:, 1]
        high += low < words[:, 0]  # carried
    return codec.pack_masked(scheme, np.stack([low, high], axis=1))


# --------------------------------------------------------------------------- a custodian, and everybody


def public_random(scheme: Scheme, run_id: bytes, lists: str, item: str, limbs: int) -> list[Limb]:
    """``a`` of one input, its first ``limbs`` limbs, in evaluation form; ``lists``: digest of all that is put in."""
    return ring.expand(
        framing.framed(b"focal/input/v1", run_id, bytes.fromhex(lists), item.encode()), scheme.moduli[:limbs], scheme.n
    )


def contribution(
    scheme: Scheme, secret: Sequence[Limb], a: Sequence[Limb], masks: Sequence[Words], factor: int = 1
) -> bytes:
    """B as canonical bytes, from a custodian's key share (limbs) and its mask of every owner; ``factor``: the input's.

    Anew at each call: call it through the ledger only.
    """
    error, b = sampling.errors(scheme.n), []
    for i, x in enumerate(a):
        q = scheme.moduli[i]
        small = ring.add(ring.ntt_signed(error, q, scheme.roots[q]), ring.multiply(secret[i], x, q), q)
        r = functools.reduce(functools.partial(ring.add, q=q), (_residues(words, 0, q) for words in masks))
        total = ring.add(small, ring.scaled(ring.ntt(r, q, scheme.roots[q]), factor, q), q)
        b.append(ring.subtract(np.zeros_like(total), total, q))
    return codec.pack(scheme, codec.input_b(len(b)), [b])


def combine(
    scheme: Scheme,
    a: Sequence[Limb],
    uploads: Sequence[tuple[str, bytes]],
    given: Sequence[tuple[str, bytes]],
    factor: int = 1,
) -> list[list[Limb]]:
    """(c0, c1) from every owner's (name, y) and every custodian's (name, B); ``factor``: the input's. Deterministic.

    Raises :class:`focal.errors.Refused` naming who sent what has another length or header,
    or a residue beyond its modulus.
    """
    primes = scheme.moduli[: len(a)]
    rows = [codec.unpack_masked(scheme, data, name) for name, data in uploads]
    parts = [codec.unpack(scheme, codec.input_b(len(a)), data, name)[0] for name, data in given]
    c0 = []
    for i, q in enumerate(primes):
        y = functools.reduce(
            functools.partial(ring.add, q=q), (_residues(words, -(1 << OFFSET_BITS), q) for words in rows)
        )
        c0.append(
            ring.total([[ring.scaled(ring.ntt(y, q, scheme.roots[q]), factor, q)], *([p[i]] for p in parts)], [q])[0]
        )
    return [c0, list(a)]


def _residues(words: Words, offset: int, q: int) -> Limb:
    """(low + 2^64 high + offset) mod q."""
    low, high = words[:, 0], words[:, 1]
    cut = np.uint64((1 << 56) - 1)
    pieces = [low & cut, (low >> np.uint64(56) | high << np.uint64(8)) & cut, high >> np.uint64(48)]
    return sampling.residues(pieces, offset, q)


def hiding(scheme: Scheme, inputs: int) -> float:
    """log2 of the statistical distance of all that one institution uploads, ``inputs`` of :data:`MAX_SLOT`,
    from what tells nothing."""
    return math.log2(MAX_SLOT * scheme.scale) - MASK_BITS + math.log2(scheme.n * inputs)


# --------------------------------------------------------------------------- all in one process


def together(
    scheme: Scheme,
    run_id: bytes,
    secrets: Mapping[str, Sequence[Limb]],
    item: str,
    parts: Mapping[str, RealOrComplex],
    limbs: int,
    factor: int = 1,
) -> tuple[list[list[Limb]], int, int]:
    """One input by institutions and custodians of one process: (c0, c1), and the bytes of an institution's
    and of a custodian's message.

    For rehearsals and encrypted baselines; the roles do the same over the wire. ``parts``: institution -> slots (S,).
    ``item`` must be another one at each call.
    """
    lists = hashlib.sha256(item.encode()).hexdigest()
    a = public_random(scheme, run_id, lists, item, limbs)
    keys = {(h, i): system.token_bytes(KEY_BYTES) for h in parts for i in secrets}
    masks = {pair: mask(key, lists, item, scheme.n) for pair, key in keys.items()}
    uploads = [
        (h, masked(scheme, message(scheme, slots), [masks[h, i] for i in secrets])) for h, slots in parts.items()
    ]
    given = [(i, contribution(scheme, own, a, [masks[h, i] for h in parts], factor)) for i, own in secrets.items()]
    return combine(scheme, a, uploads, given, factor), len(uploads[0][1]), len(given[0][1])
