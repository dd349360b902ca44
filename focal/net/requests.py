"""What a member asks the server for, whatever carries it: :class:`focal.net.link.Link` over ZeroMQ,
:class:`focal.net.local.LocalLink` within one process. Answers come from the other side and are checked here.
"""

from __future__ import annotations

import abc
import collections
import concurrent.futures
import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from focal.config import Model
from focal.errors import FocalError, ProtocolError, Refused
from focal.manifest import Manifest
from focal.net import frames
from focal.net.frames import MAX_BLOB, PIECE
from focal.net.wire import Audience, Directions, Meter
from focal.telling import Progress

Future = concurrent.futures.Future[tuple[Any, bytes]]
"""A reply's header and payload."""
Q = TypeVar("Q", bound=Model)
R = TypeVar("R", bound=Model)


class Lost(Exception):
    """The connection was lost with this request on it: it may or may not have arrived."""


class Requests(abc.ABC):
    """Plain methods for a member's threads. They raise :class:`Refused` with the server's reason,
    :class:`ProtocolError` when the server breaks the protocol, and :class:`FocalError` when the link is closed or can
    never work.
    """

    WINDOW = 4
    """Pieces of one transfer that are under way at a time."""

    def __init__(self, manifest: Manifest, name: str, endpoint: str) -> None:
        self.manifest, self.name, self.endpoint = manifest, name, endpoint
        self.phase = "setup"
        """What the bytes are counted under, here and at the server: ``[a-z-]``, at most 32 characters."""
        self.session = ""
        self._meter = Meter()

    @abc.abstractmethod
    def _submit(self, message: Model, expect: type[Model], payload: bytes = b"", *, bulk: bool = False) -> Future:
        """Send one request; its answer is of type ``expect``. ``bulk``: it is long and must not hold up a short one."""

    @property
    def traffic(self) -> Directions:
        """Phase -> ``up``/``down`` -> bytes of headers and payloads, repeats included."""
        return self._meter.snapshot()

    def post(self, signed: bytes) -> int:
        """Put an encoded signed record on the board; returns its number. It is on the server's disk."""
        return self._ask(frames.Post(), frames.Posted, signed, bulk=len(signed) > PIECE)[0].seq

    def wait(self, after: int, seconds: float) -> list[bytes]:
        """Signed records after number ``after``, as soon as there are some; empty when none came within ``seconds``.

        A batch is a part of what there is: ask again from the last one on. Away servers are waited for longer.
        """
        deadline = time.monotonic() + seconds
        while True:
            left = min(30.0, max(0.0, deadline - time.monotonic()))
            records = self._ask(frames.Wait(after=after, seconds=left), frames.Records)[0]
            if records.first != after + 1:
                raise self._broke(f"answered with records from {records.first} on instead of {after + 1}")
            if records.signed or time.monotonic() >= deadline:
                return list(records.signed)

    def have(self, digests: list[str]) -> list[int]:
        """Bytes that the server has stored of each of this member's transfers; -1: the blob is complete."""
        sizes: list[int] = []
        for i in range(0, len(digests), 4096):
            part = tuple(digests[i : i + 4096])
            stored = self._ask(frames.Have(digests=part), frames.Stored)[0]
            if len(stored.sizes) != len(part):
                raise self._broke("answered for another number of blobs than it was asked about")
            sizes += stored.sizes
        return sizes

    def put(self, data: bytes, audience: Audience = "all") -> str:
        """Store one blob at the server; returns its digest. See :meth:`put_many`."""
        return self.put_many([data], audience)[0]

    def put_many(
        self,
        blobs: list[bytes] | dict[str, bytes],
        audience: Audience = "all",
        progress: Progress | None = None,
    ) -> list[str]:
        """Store blobs at the server, or digest -> blob where the caller has hashed them; returns their digests.
        When it returns they are complete and on its disk.

        Sends only what the server does not have, also after the connection was lost. ``progress(done, total)`` is
        called with bytes, counting those that were there already.
        """
        digests = list(blobs) if isinstance(blobs, dict) else [hashlib.sha256(b).hexdigest() for b in blobs]
        todo = dict(blobs) if isinstance(blobs, dict) else dict(zip(digests, blobs, strict=True))
        for data in todo.values():
            if not 0 < len(data) <= MAX_BLOB:
                raise FocalError(f"a blob has 1 to {MAX_BLOB >> 20} Mi bytes, not {len(data)}")
        total, refusals = sum(map(len, todo.values())), 0
        while todo:
            stored = dict(zip(todo, self.have(list(todo)), strict=True))
            todo = {d: b for d, b in todo.items() if stored[d] >= 0}
            try:
                for put, piece, reply, _ in self._pipeline(_pieces(dict(todo), stored, audience), frames.PutOk):
                    end = put.offset + len(piece)
                    if reply.stored == -1:
                        todo.pop(put.digest, None)
                    elif end == put.size:
                        raise self._broke(f"took all of blob {put.digest[:12]} and does not have it")
                    if progress is not None:
                        progress(total - sum(map(len, todo.values())) + (end if put.digest in todo else 0), total)
            except Lost:
                continue
            except Refused as e:  # the server has less than it said (it may have crashed): begin again where it stands
                refusals += 1
                if e.reason not in ("offset", "digest") or refusals > 3:
                    raise
        if progress is not None:
            progress(total, total)
        return digests

    def get(self, digest: str) -> bytes:
        """Fetch a blob. Raises :class:`Refused`: ``unknown-blob``, ``audience``, or ``digest`` for other bytes."""
        parts: list[bytes] = []
        first, data = self._ask(frames.Get(digest=digest, offset=0), frames.Piece, bulk=True)
        rest = ((frames.Get(digest=digest, offset=offset), b"") for offset in range(PIECE, first.size, PIECE))
        for piece, part in itertools.chain(
            [(first, data)], ((r, p) for _, _, r, p in self._pipeline(rest, frames.Piece))
        ):
            at = PIECE * len(parts)
            if (piece.size, piece.offset, len(part)) != (first.size, at, min(PIECE, first.size - at)):
                raise self._broke(f"answered with another piece of blob {digest[:12]} than it was asked for")
            parts.append(part)
        whole = b"".join(parts)
        if hashlib.sha256(whole).hexdigest() != digest:
            raise Refused("digest", self._broke(f"sent other bytes as blob {digest[:12]}").message)
        return whole

    def _ask(self, message: Model, expect: type[R], payload: bytes = b"", *, bulk: bool = False) -> tuple[R, bytes]:
        return self._submit(message, expect, payload, bulk=bulk).result()

    def _pipeline(self, requests: Iterable[tuple[Q, bytes]], expect: type[R]) -> Iterator[tuple[Q, bytes, R, bytes]]:
        """Bulk requests with their answers, in order, a window of them under way at a time."""
        window: collections.deque[tuple[Q, bytes, Future]] = collections.deque()
        try:
            for message, payload in requests:
                window.append((message, payload, self._submit(message, expect, payload, bulk=True)))
                if len(window) == self.WINDOW:
                    yield self._first(window)
            while window:
                yield self._first(window)
        finally:
            for _, _, future in window:
                future.cancel()

    @staticmethod
    def _first(window: collections.deque[tuple[Q, bytes, Future]]) -> tuple[Q, bytes, Any, bytes]:
        message, payload, future = window.popleft()
        return message, payload, *future.result()

    def _broke(self, what: str) -> ProtocolError:
        return ProtocolError(f"the server '{self.manifest.server.name}' at {self.endpoint} {what}")


def _pieces(blobs: dict[str, bytes], stored: dict[str, int], audience: Audience) -> Iterator[tuple[frames.Put, bytes]]:
    """What is missing of each blob. The last piece always goes: it makes the server check and keep the whole."""
    for digest, data in blobs.items():
        start = min(stored[digest], (len(data) - 1) // PIECE * PIECE)
        for offset in range(start, len(data), PIECE):
            yield (
                frames.Put(digest=digest, size=len(data), offset=offset, audience=audience),
                data[offset : offset + PIECE],
            )
