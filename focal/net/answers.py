"""The server's answer to each request of a member, whatever carries it: :class:`focal.net.hub.Hub` over ZeroMQ,
:class:`focal.net.local.LocalHub` within one process. Every handler gives the same answer twice.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from focal.config import ANEW, VERSION, Model, earlier, printable
from focal.errors import FocalError, ProtocolError, Refused
from focal.manifest import Manifest
from focal.net import frames
from focal.net.audiences import FILE, Audiences
from focal.net.frames import PIECE
from focal.net.quotas import Quota, Sent
from focal.net.store import Blobs, Board, DiskError
from focal.net.wire import Audience, Directions, Meter

log = logging.getLogger("focal.net")

BATCH = 256 << 10
"""Bytes of records in one answer: small enough to pass a slow link between two heartbeats."""


@dataclass(frozen=True)
class Asker:
    """Who asks, and where the answer goes."""

    route: bytes
    request: bytes
    name: str
    phase: str


class Answers:
    """Board and blobs of a session, and what a member is told of them.

    ``seen`` says when a member was heard of last (``time.monotonic``), ``traffic`` its bytes by phase. ``failure`` is
    the last disk error, if any: the server's role should stop on it.
    """

    LAST_WORD = 0.5
    """Seconds that the last acknowledgement needs to leave, before the connections are closed."""
    FAREWELL = 2.0
    """Seconds that the end of a run needs to reach those who were just sent it."""
    WRITERS = 8
    """Blobs that are on their way to the disk at a time: syncs that run together wait for one write
    of the file system's journal."""

    def __init__(
        self, manifest: Manifest, board: Board, blobs: Blobs, session: str, quotas: Mapping[str, Quota] | None = None
    ) -> None:
        self._quotas = quotas or {}
        self.manifest, self.board, self.blobs, self.session = manifest, board, blobs, session
        self.seen: dict[str, float] = {}
        self.told: dict[str, int] = {}
        """Member -> how many records it was sent."""
        self.failure: FocalError | None = None
        self._members = {m.name: m for m in manifest.members}
        self._meters = {m.name: Meter() for m in manifest.members}
        self._audiences: Audiences
        self._sent: Sent
        self._writers: ThreadPoolExecutor
        self._handlers: dict[type[Model], Callable[[Asker, Any, bytes], tuple[Model, bytes]]] = {
            frames.Hello: self._hello,
            frames.Post: self._post,
            frames.Have: self._have,
            frames.Put: self._put,
            frames.Get: self._get,
            frames.Beat: self._beat,
        }

    def silent(self, seconds: float) -> list[str]:
        """Members that were not heard of for so long, as far as this server has been listening."""
        since = time.monotonic() - seconds
        return [name for name in self._members if self.seen.get(name, self._began) < since]

    def _open(self) -> None:
        self._began = time.monotonic()
        self._audiences = Audiences(self.blobs.folder / FILE)
        self._sent = Sent(self._quotas, [*self._audiences.sent(), *self.blobs.begun()])
        self._writers = ThreadPoolExecutor(self.WRITERS, thread_name_prefix="focal-disk")

    def _close(self) -> None:
        self._writers.shutdown(cancel_futures=True)
        self._audiences.close()

    def holds(self, digest: str, size: int) -> bool:
        """Is this blob here, of this size, and may custodians fetch it?"""
        return (
            digest in self.blobs
            and self.blobs.size(digest) == size
            and self._audiences.of(digest) in ("custodians", "all")
        )

    def shows(self, digest: str, unit: int) -> bool:
        """Is this blob here, so many times ``unit`` bytes long, and may everybody fetch it?"""
        size = self.blobs.size(digest) if digest in self.blobs else 0
        return size > 0 and size % unit == 0 and self._audiences.of(digest) == "all"

    def publish(self, data: bytes, audience: Audience) -> str:
        """Store a blob that the server made and let ``audience`` fetch it; returns its digest."""
        return self.publish_all([data], audience)[0]

    def publish_all(self, blobs: list[bytes] | dict[str, bytes], audience: Audience) -> list[str]:
        """:meth:`publish` of several at once, or of digest -> blob."""
        digests = list(blobs) if isinstance(blobs, dict) else [hashlib.sha256(data).hexdigest() for data in blobs]
        self._audiences.widen(digests, audience)
        return list(self._writers.map(self.blobs.put, blobs.values() if isinstance(blobs, dict) else blobs, digests))

    def behind(self, seconds: float, first: int | None = None) -> list[str]:
        """Members that were heard of in the last ``seconds`` and have not been sent the whole board, or its ``first``
        records."""
        since = time.monotonic() - seconds
        recent = [name for name, seen in list(self.seen.items()) if seen > since]
        wanted = len(self.board) if first is None else first
        return [name for name in recent if self.told.get(name, 0) < min(wanted, self.board.length(name))]

    @property
    def traffic(self) -> dict[str, Directions]:
        """Member -> phase -> ``up``/``down`` -> bytes of headers and payloads; ``up`` is what the member sent."""
        return {name: meter.snapshot() for name, meter in self._meters.items()}

    def _attempt(self, asker: Asker, make: Callable[[], tuple[Model, bytes]]) -> tuple[Model, bytes]:
        """What ``make`` gives, or why it cannot."""
        log_hint = "ask who runs the server to look at its log"
        try:
            return make()
        except Refused as e:
            return fault(e.reason, e), b""
        except ProtocolError as e:
            return fault("record", e), b""
        except DiskError as e:
            self.failure = e
            log.error("%s", e)
            return fault("disk", FocalError("the server's disk is full or failing", hint=log_hint)), b""
        except Exception:
            log.exception("a request of '%s' could not be answered", asker.name)
            return fault("internal", FocalError("the server failed to answer", hint=log_hint)), b""

    def _was_told(self, name: str, header: Model) -> None:
        if isinstance(header, frames.Records):
            self.told[name] = header.first - 1 + len(header.signed)

    # ---- handlers, one a request

    def _hello(self, asker: Asker, hello: frames.Hello, _: bytes) -> tuple[Model, bytes]:
        if why := earlier(hello.version):
            raise Refused("version", f"'{asker.name}' speaks version {hello.version}: any run of it {why}", hint=ANEW)
        if hello.version != VERSION:
            raise Refused(
                "version",
                f"'{asker.name}' speaks version {hello.version}, the server {VERSION}",
                hint="install the same focal everywhere",
            )
        if hello.name != asker.name:
            raise Refused("name", f"the key of '{asker.name}' was used under the name '{hello.name}'")
        ours = self.manifest.hash.hex()
        if hello.manifest != ours:
            raise Refused(
                "manifest",
                f"'{asker.name}' holds another manifest ({hello.manifest[:12]}) than the server ({ours[:12]})",
                hint="copy the signed manifest to both again: it must be the same everywhere",
            )
        return frames.Welcome(version=VERSION, session=self.session), b""

    def _post(self, asker: Asker, _: frames.Post, payload: bytes) -> tuple[Model, bytes]:
        return frames.Posted(seq=self.board.append(payload, asker.name)), b""

    def _records(self, reader: str, after: int) -> tuple[Model, bytes]:
        return frames.Records(first=after + 1, signed=tuple(self.board.since(after, BATCH, reader))), b""

    def _have(self, asker: Asker, have: frames.Have, _: bytes) -> tuple[Model, bytes]:
        return frames.Stored(sizes=tuple(self.blobs.stored(d, asker.name) for d in have.digests)), b""

    def _put(self, asker: Asker, put: frames.Put, payload: bytes) -> tuple[Model, bytes]:
        if not 0 < len(payload) <= PIECE:
            raise Refused("size", f"a piece has 1 to {PIECE} bytes, not {len(payload)}")

        if put.digest not in self.blobs:
            self._sent.take(asker.name, put.digest, put.size)

        def allow() -> None:  # only who has sent the whole blob says who may fetch it, and before anybody can
            self._audiences.widen([put.digest], put.audience, asker.name, put.size)

        return frames.PutOk(
            stored=self.blobs.write_piece(put.digest, put.size, put.offset, payload, owner=asker.name, before=allow)
        ), b""

    def _get(self, asker: Asker, get: frames.Get, _: bytes) -> tuple[Model, bytes]:
        if get.digest not in self.blobs:
            raise Refused("unknown-blob", f"the server has no blob {get.digest[:12]}")
        audience = self._audiences.of(get.digest)
        if audience != "all" and not (audience == "custodians" and self._members[asker.name].role == "custodian"):
            raise Refused("audience", f"blob {get.digest[:12]} is not for '{asker.name}'")
        size = self.blobs.size(get.digest)
        if get.offset >= size:
            raise Refused("offset", f"blob {get.digest[:12]} ends at {size}")
        return frames.Piece(size=size, offset=get.offset), self.blobs.read_piece(get.digest, get.offset, PIECE)

    def _beat(self, asker: Asker, beat: frames.Beat, _: bytes) -> tuple[Model, bytes]:
        return frames.BeatOk(), b""


def fault(reason: str, error: FocalError) -> frames.Fault:
    text = error.message.removeprefix(f"refused ({reason}): ")
    return frames.Fault(reason=reason, message=printable(f"{text}; {error.hint}" if error.hint else text)[:2000])
