"""What a party and the server say to each other: frames, which carry records and blobs.

::

    party                                      server
    hello: who, and which manifest        -->  welcome: the session
    post    + a signed record             -->  posted: its number on the board
    wait: for records after n             -->  records: n + 1, n + 2, ...
    have: these blobs                     -->  stored: bytes of each
    put     + a piece of a blob           -->  put-ok: bytes of it now
    get: a blob from an offset on         -->  piece  + bytes of it
    beat                                  -->  beat-ok
    any of them                           -->  fault: refused, nothing of it was used

No frame is signed or kept: the connection tells who it is from (:mod:`focal.net.transport`). Frames are spelled as
records are (:mod:`focal.net.encoding`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import Field, TypeAdapter

from focal.config import Hex32, Model, Name, Text
from focal.net.encoding import MAX_RECORD
from focal.net.messages import Bytes, Digest, Digests, Index

MAX_BLOB = 64 << 20
PIECE = 1 << 20
"""Bytes of a blob that travel in one frame: the unit that a resumed transfer repeats at most."""
Reason = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]
"""Short name of a refusal."""


class Hello(Model):
    """First frame of a party: who it is and which manifest it holds."""

    kind: Literal["hello"] = "hello"
    version: int
    name: Name
    manifest: Hex32


class Welcome(Model):
    kind: Literal["welcome"] = "welcome"
    version: int
    session: Hex32
    """Random name of this attempt at the manifest; nonces are exchanged under it."""


class Post(Model):
    """Payload: an encoded :class:`focal.net.messages.Signed`."""

    kind: Literal["post"] = "post"


class Posted(Model):
    """The record is on the server's disk."""

    kind: Literal["posted"] = "posted"
    seq: Index


class Wait(Model):
    """Ask for records after ``after``; the server answers at once when there are some, else within ``seconds``."""

    kind: Literal["wait"] = "wait"
    after: Index
    seconds: float = Field(ge=0, le=30)


class Records(Model):
    kind: Literal["records"] = "records"
    first: Index
    """Sequence number of the first one; numbers have no gaps."""
    signed: tuple[Bytes | Annotated[bytes, Field(max_length=MAX_RECORD + 1024)], ...]


class Have(Model):
    """Ask how many bytes of each blob the server has stored."""

    kind: Literal["have"] = "have"
    digests: Digests


class Stored(Model):
    kind: Literal["stored"] = "stored"
    sizes: tuple[int, ...]
    """Bytes on disk; -1 for a complete blob."""


class Put(Model):
    """Payload: the bytes of blob ``digest`` from ``offset`` on."""

    kind: Literal["put"] = "put"
    digest: Digest
    size: int = Field(ge=1, le=MAX_BLOB)
    offset: int = Field(ge=0, le=MAX_BLOB)
    audience: Literal["server", "custodians", "all"] = "all"
    """Who may fetch it: nobody but the server, the custodians, every member."""


class PutOk(Model):
    """Bytes of the blob on disk now; -1: complete, its digest was checked."""

    kind: Literal["put-ok"] = "put-ok"
    stored: int


class Get(Model):
    kind: Literal["get"] = "get"
    digest: Digest
    offset: int = Field(ge=0, le=MAX_BLOB)


class Piece(Model):
    """Payload: up to :data:`PIECE` bytes from ``offset`` on; ``size`` is the whole blob's."""

    kind: Literal["piece"] = "piece"
    size: int = Field(ge=1, le=MAX_BLOB)
    offset: int = Field(ge=0, le=MAX_BLOB)


class Beat(Model):
    """I am alive, whatever my bulk transfers do."""

    kind: Literal["beat"] = "beat"
    doing: Text = Field("", max_length=100)
    """Nobody says anything here. It stays until the next protocol version, since this one's servers refuse a heartbeat
    without it: only one spelling of a message is accepted."""


class BeatOk(Model):
    kind: Literal["beat-ok"] = "beat-ok"


class Fault(Model):
    """The request was refused; nothing of it was used."""

    kind: Literal["fault"] = "fault"
    reason: Reason
    message: Text = Field(max_length=2000)


Request = Annotated[Union[Hello, Post, Wait, Have, Put, Get, Beat], Field(discriminator="kind")]  # noqa: UP007
Reply = Annotated[Union[Welcome, Posted, Records, Stored, PutOk, Piece, BeatOk, Fault], Field(discriminator="kind")]  # noqa: UP007

REQUEST: TypeAdapter[Any] = TypeAdapter(Request)
REPLY: TypeAdapter[Any] = TypeAdapter(Reply)
