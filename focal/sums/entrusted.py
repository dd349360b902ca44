"""One sum modulo 2^64 of sites that come one after the other: custodians keep its masks, and give theirs for one list.

::

    site i         y_i = v_i + sum_j s_ij + g_i                            (vectors of uint64, modulo 2^64)
    custodian j    S_j = sum_i s_ij     Y = sum_i y_i                      over one list of sites, and never another
    institution    Y - sum_j S_j - sum_i g_i = sum_i v_i

    s_ij  stream that site i and custodian j alone can compute: X25519 between keys that both drew for this sum, and
          erase -> HKDF -> ChaCha20                                        hides v_i from everybody else
    g_i   stream of all institutions: group key -> HKDF -> ChaCha20        hides the total from server and custodians

Unlike :mod:`focal.sums.masked` it needs no two sites at one time, and each fetches as much whatever their number. As in
Bonawitz et al., CCS 2017, where all masks are those of a few helpers.

**Who could have made these without the secret.** y_i: uniform, as long as one custodian keeps its s_ij; the site draws
its key for this one vector, and erases it. S_j: whoever lacks one site's key has a uniform vector, and all S_j together
say no more than the total, which follows from them and Y. Y: uniform without the group key, S_j known or not.

**One list.** Two lists that differ by one site, and the sums of their masks, show that site's s_ij, and so, of all
custodians, its vector. A custodian remembers on disk for which list it gave its sum, and erases its key then.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from focal.errors import ProtocolError
from focal.framing import framed
from focal.sums.masked import KEY_BYTES, Integers, stream


def mask(pair: bytes, count: int) -> Integers:
    """s: ``count`` words, from the key that a site and a custodian share."""
    return stream(_key(pair, b"focal/entrusted/mask/v1"), count)


def veil(group_key: bytes, run_id: bytes, site: str, count: int) -> Integers:
    """g of ``site`` in this run."""
    return stream(_key(group_key, b"focal/entrusted/veil/v1", run_id, site.encode()), count)


def masked(values: Integers, masks: Iterable[Integers], veiled: Integers) -> bytes:
    """y as 8 bytes a value, little-endian."""
    return packed(sum(masks, values + veiled))


def added(contributions: Iterable[tuple[str, bytes]], count: int) -> Integers:
    """The sum of vectors of ``count`` words, each with its sender's name. Raises :class:`ProtocolError` naming one
    whose vector has another length."""
    total = np.zeros(count, np.uint64)
    for name, data in contributions:
        total += unpacked(data, count, name)
    return total


def packed(values: Integers) -> bytes:
    """8 bytes a value, little-endian."""
    return values.astype("<u8", copy=False).tobytes()


def unpacked(data: bytes, count: int, name: str) -> Integers:
    """``count`` words from the bytes of ``name``; :class:`ProtocolError` where there are others."""
    if len(data) != 8 * count:
        raise ProtocolError(f"'{name}' gave {len(data)} bytes to a sum of {count} values, of 8 bytes each")
    return np.frombuffer(data, "<u8").astype(np.uint64)


def _key(secret: bytes, purpose: bytes, *context: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=framed(purpose, *context)).derive(secret)
