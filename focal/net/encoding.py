"""The one spelling of a message: msgpack with sorted keys.

A decoder accepts only bytes that encode back to themselves, so that a record has one spelling, one digest and one
signature.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgpack
from pydantic import TypeAdapter, ValidationError

from focal.config import Model, printable
from focal.errors import ProtocolError, Refused

MAX_RECORD = 4 << 20
"""Bytes of one encoded record; anything larger belongs into a blob."""

M = TypeVar("M", bound=Model)


def _sorted(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        return {k: _sorted(value[k]) for k in sorted(value)}
    if kind is tuple or kind is list:
        return [_sorted(v) for v in value]
    return value


def encode(message: Model) -> bytes:
    """The one msgpack spelling of a message."""
    packed: bytes = msgpack.packb(_sorted(message.model_dump(mode="python")), use_bin_type=True)
    return packed


def decode(adapter: TypeAdapter[Any] | type[M], data: bytes, *, limit: int = MAX_RECORD + 4096) -> Any:
    """Decode bytes of another party into a checked message.

    Raises :class:`ProtocolError` when they are too long, no msgpack, of no known kind, out of range, or
    not the canonical spelling of what they say; :class:`Refused` (``old-version``) for a record of a run
    that is not to be trusted.
    """
    if len(data) > limit:
        raise ProtocolError(f"a message of {len(data)} bytes is longer than the {limit} allowed")
    try:
        raw = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_bin_len=limit,
            max_str_len=1 << 20,
            max_array_len=1 << 17,
            max_map_len=1 << 12,
        )
        message = adapter.validate_python(raw) if isinstance(adapter, TypeAdapter) else adapter.model_validate(raw)
        same = encode(message) == data
    except Refused:  # by the message itself: it knows why
        raise
    except ValidationError as e:
        first = e.errors()[0]
        where = ascii(".".join(map(str, first["loc"])))[1:-1]  # a key may be half a megabyte long or hold escape codes
        raise ProtocolError(f"a message is malformed: {where[:100]}: {printable(first['msg'][:200])}") from None
    except Exception as e:  # msgpack raises many kinds; every one means the same here
        raise ProtocolError(f"a message is malformed ({type(e).__name__})") from None
    if not same:
        raise ProtocolError("a message is not in its canonical spelling")
    return message
