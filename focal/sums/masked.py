"""One sum modulo 2^64, opened by its participants and by nobody else.

::

    member i sends    y_i = v_i + sum_{j>i} s_ij - sum_{j<i} s_ji + g_i   (vectors of uint64, modulo 2^64)
    server relays     y_1 ... y_m, all of them, to every member
    member opens      sum_i y_i - sum_i g_i = sum_i v_i                   (each s_ij was added once and subtracted once)

    s_ij  stream that i and j alone can compute:  X25519(i, j)  -> HKDF -> ChaCha20     hides v_i from the other members
    g_i   stream that every member can compute:   group key     -> HKDF -> ChaCha20     hides the total from the server

This is the pairwise masking of Bonawitz et al., "Practical Secure Aggregation" (CCS 2017), without its
dropout recovery: a sum here is over all listed participants or does not happen. Members that pool what they
know learn the sum of the others, no more.

**Made once.** The streams depend on (run id, label, participants) alone. Two contributions with the same triple and
different values differ by exactly the difference of the values. The caller must therefore write a contribution to its
journal before it leaves, send those bytes again on a retry, and refuse another list or other values for that label. An
object of this class refuses too, but it does not survive a restart: the journal is what counts. Signatures on
contributions and on the digest of the opened sum are the caller's as well.

**Committed before it is shown.** Every member can open the sum of what it has, so whoever contributes last could choose
the total. All commit to :func:`contribution_digest` first; that is the caller's too. What is left to a member that has
seen all: to stop, and so to prevent a sum that it does not like.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Final

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from focal import framing
from focal.errors import FocalError, ProtocolError, Refused
from focal.sums.fixed import MEMBERS

Integers = NDArray[np.uint64]

KEY_BYTES: Final = 32


def new_group_key() -> bytes:
    """32 random bytes, drawn by the first participant and sealed to each of the others."""
    return secrets.token_bytes(KEY_BYTES)


def participants_digest(participants: tuple[str, ...]) -> bytes:
    """SHA-256 of the list of names, in order: part of every mask's key and of what is signed."""
    return framing.digest(b"focal/sum/participants/v1", *(name.encode() for name in participants))


def group_key_context(run_id: bytes, label: str, participants: tuple[str, ...]) -> bytes:
    """What a group key is sealed under."""
    return framing.framed(b"focal/sum/group-key/v1", run_id, label.encode(), participants_digest(participants))


def contribution_digest(participants: tuple[str, ...], blob: str) -> bytes:
    """What a member commits to before anybody shows a contribution: the sum's participants and ``blob``,
    its contribution's SHA-256."""
    return framing.digest(b"focal/sum/committed/v1", participants_digest(participants), bytes.fromhex(blob))


class MaskedSum:
    """One member's side of one sum over ``participants`` (manifest order, the same at every member).

    ``seal_secret`` is this member's X25519 private key, ``seal_publics`` holds the others' public keys by name (this
    member's own may be among them and is then checked), ``group_key`` comes from :func:`new_group_key`. Raises
    :class:`FocalError` naming the member when the list or a key cannot be used.
    """

    def __init__(
        self,
        run_id: bytes,
        label: str,
        me: str,
        participants: tuple[str, ...],
        seal_secret: bytes,
        seal_publics: Mapping[str, bytes],
        group_key: bytes,
    ) -> None:
        _check_participants(label, me, participants)
        if len(group_key) != KEY_BYTES:
            raise ProtocolError(
                f"sum '{label}': the group key from {participants[0]} has {len(group_key)} bytes, not {KEY_BYTES}"
            )
        self.label, self.me, self.participants = label, me, participants
        self.participants_digest = participants_digest(participants)
        self._context = (run_id, label.encode(), self.participants_digest)
        self._group = {name: self._key(group_key, b"focal/sum/group/v1", name) for name in participants}
        self._seal = self._key(group_key, b"focal/sum/opened/v2", "")
        self._added, self._subtracted = self._pair_keys(seal_secret, seal_publics)
        self._made: bytes | None = None

    def contribution(self, values: Integers) -> bytes:
        """This member's masked ``values`` (1-d uint64, from :func:`focal.sums.fixed.encode`):
        8 bytes each, little-endian.

        The same values give the same bytes. Raises :class:`Refused` for other values on the same object.
        """
        if values.dtype != np.uint64 or values.ndim != 1 or not values.size:
            raise TypeError(f"a contribution is a non-empty uint64 vector, not {values.dtype} {values.shape}")
        masked = values + stream(self._group[self.me], values.size)
        for key in self._added:
            masked += stream(key, values.size)
        for key in self._subtracted:
            masked -= stream(key, values.size)
        data = masked.astype("<u8", copy=False).tobytes()
        made = hashlib.sha256(data).digest()
        if self._made not in (None, made):
            raise Refused("sum", f"{self.me} already contributed other values to sum '{self.label}'")
        self._made = made
        return data

    def open(self, contributions: Mapping[str, bytes]) -> Integers:
        """The sum of all values, from exactly one contribution of each participant, this member's own included.

        Raises :class:`ProtocolError` naming whose contribution is missing, uninvited or of another length than this
        member's, or when this member's own is not the one it made. An altered contribution of the right length opens to
        another sum: compare signed digests, and check the range of what was opened.
        """
        self._check(contributions)
        total = np.zeros(len(contributions[self.me]) // 8, np.uint64)
        for name in self.participants:
            total += np.frombuffer(contributions[name], "<u8")
            total -= stream(self._group[name], total.size)
        return total

    def digest(self, opened: Integers) -> bytes:
        """HMAC-SHA-256 of an opened sum, bound to run id, label and participants.
        Nothing may use the sum before all have signed it.

        Under a key of the group's, for it is read by all: a plain hash would confirm a guess of counts
        to whoever has none of the sum.
        """
        data = opened.astype("<u8", copy=False).tobytes()
        return framing.keyed(self._seal, b"focal/sum/opened/v2", *self._context, data)

    def _check(self, contributions: Mapping[str, bytes]) -> None:
        missing = [name for name in self.participants if name not in contributions]
        if missing:
            raise ProtocolError(f"sum '{self.label}': no contribution from {', '.join(missing)}")
        uninvited = sorted(set(contributions) - set(self.participants))
        if uninvited:
            raise ProtocolError(
                f"sum '{self.label}': contribution from {', '.join(uninvited)}, who is not a participant"
            )
        mine = contributions[self.me]
        if self._made not in (None, hashlib.sha256(mine).digest()):
            raise ProtocolError(f"sum '{self.label}': the contribution relayed as {self.me}'s is not the one it made")
        if not mine or len(mine) % 8:
            raise ProtocolError(
                f"sum '{self.label}': {self.me}'s contribution of {len(mine)} bytes is not a whole number of values"
            )
        for name in self.participants:
            if len(contributions[name]) != len(mine):
                raise ProtocolError(
                    f"sum '{self.label}': {name} sent {len(contributions[name])} bytes, {self.me} sent {len(mine)}"
                )

    def _key(self, secret: bytes, purpose: bytes, *names: str) -> bytes:
        """HKDF-SHA256 of ``secret``, for one stream of one sum."""
        info = framing.framed(purpose, *self._context, *(name.encode() for name in names))
        return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)

    def _pair_keys(self, seal_secret: bytes, seal_publics: Mapping[str, bytes]) -> tuple[list[bytes], list[bytes]]:
        """Keys of the streams this member adds (it comes first in the pair) and of those it subtracts."""
        private = X25519PrivateKey.from_private_bytes(seal_secret)
        mine = private.public_key().public_bytes_raw()
        if seal_publics.get(self.me, mine) != mine:
            raise FocalError(f"{self.me}: its private seal key does not belong to its public key in the manifest")
        place = self.participants.index(self.me)
        added: list[bytes] = []
        subtracted: list[bytes] = []
        for i, peer in enumerate(self.participants):
            if peer == self.me:
                continue
            pair = (self.me, peer) if place < i else (peer, self.me)
            key = self._key(self._exchange(private, peer, seal_publics), b"focal/sum/v1", *pair)
            (added if place < i else subtracted).append(key)
        return added, subtracted

    def _exchange(self, private: X25519PrivateKey, peer: str, seal_publics: Mapping[str, bytes]) -> bytes:
        if peer not in seal_publics:
            raise FocalError(f"sum '{self.label}': no public seal key of {peer}")
        try:
            return private.exchange(X25519PublicKey.from_public_bytes(seal_publics[peer]))
        except ValueError:  # wrong length, or a low-order point, whose shared secret everybody knows
            raise ProtocolError(
                f"sum '{self.label}': the public seal key of {peer} is not a usable X25519 key"
            ) from None


def _check_participants(label: str, me: str, participants: tuple[str, ...]) -> None:
    if len(set(participants)) != len(participants):
        raise FocalError(f"sum '{label}': a participant is listed twice")
    if not 2 <= len(participants) <= MEMBERS:
        raise FocalError(f"sum '{label}': {len(participants)} participants, allowed are 2 to {MEMBERS}")
    if me not in participants:
        raise FocalError(f"sum '{label}': {me} is not one of its participants ({', '.join(participants)})")


def stream(key: bytes, count: int) -> Integers:
    """``count`` words of the ChaCha20 keystream. The nonce may be constant: every key is used for one stream only."""
    zeros = bytes(8 * count)
    return np.frombuffer(Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(zeros), "<u8")
