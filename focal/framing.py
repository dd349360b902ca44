"""Several things as one string of bytes that is theirs alone: what is hashed, keyed and signed."""

from __future__ import annotations


def framed(*fields: bytes) -> bytes:
    """Fields one after the other, each after its length in 4 bytes: no two lists of fields give the same bytes."""
    return b"".join(len(field).to_bytes(4, "little") + field for field in fields)
