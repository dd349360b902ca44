"""Several things as one string of bytes that is theirs alone: the only way in which they are hashed, keyed or a seed.

::

    framed(f, g, ...)         |f| f |g| g ...                lengths in 8 bytes, little-endian
    digest(domain, f, ...)    SHA-256 of framed(domain, f, ...)
    keyed(key, domain, ...)   HMAC-SHA-256 of the same
    Digest(domain, ...)       the digest of fields that come one by one

Whoever reads from the front knows where each field ends: no two lists of fields give the same bytes. The first is the
``domain``, ``focal/WHAT/VERSION``: what is made for one use means nothing in another. A blob's or a file's own name is
the SHA-256 of its bytes and of nothing else, without a frame.
"""

from __future__ import annotations

import hashlib
import hmac


def framed(*fields: bytes) -> bytes:
    """Fields one after the other, each after its length: a seed, the context of a derived key, what is signed."""
    return b"".join(len(field).to_bytes(8, "little") + field for field in fields)


def digest(domain: bytes, *fields: bytes) -> bytes:
    """SHA-256 (32 bytes) of a use's own ``domain`` and ``fields``."""
    return hashlib.sha256(framed(domain, *fields)).digest()


def keyed(key: bytes, domain: bytes, *fields: bytes) -> bytes:
    """HMAC-SHA-256 (32 bytes) of the same under ``key``: nobody without it has it, or can confirm a guess."""
    return hmac.digest(key, framed(domain, *fields), "sha256")


class Digest:
    """:func:`digest` of fields of which no more than one need be in memory."""

    def __init__(self, domain: bytes, *fields: bytes) -> None:
        self._running = hashlib.sha256()
        self.add(domain, *fields)

    def add(self, *fields: bytes) -> None:
        """The next fields."""
        for field in fields:
            self._running.update(len(field).to_bytes(8, "little"))
            self._running.update(field)

    def digest(self) -> bytes:
        """32 bytes."""
        return self._running.digest()

    def hexdigest(self) -> str:
        """The same in hex."""
        return self._running.hexdigest()
