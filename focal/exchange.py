"""X25519 public keys of others: only those that give secrets which not everybody knows."""

from __future__ import annotations

import functools

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey


@functools.lru_cache(maxsize=4096)
def usable(public: str) -> bool:
    """Does a public key (hex) give shared secrets that not everybody knows? One of low order does not, with whomever
    (RFC 7748, section 6.1)."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(public)))
    except ValueError:
        return False
    return True
