"""The server's end of the transport: who may connect, and the answer to each request. The frames: ``transport.py``."""

from __future__ import annotations

import errno
import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85

from focal.config import ANEW, OLD, Manifest, Model, printable
from focal.errors import FocalError, ProtocolError, Refused
from focal.net import messages as msg
from focal.net.identity import Identity
from focal.net.messages import PIECE
from focal.net.store import Audiences, Blobs, Board, DiskError
from focal.net.wire import PHASE, Audience, Directions, Meter, Recorder, Wake, secure

log = logging.getLogger("focal.net")

ZAP_DOMAIN = b"focal"
BATCH = 256 << 10
"""Bytes of records in one answer: small enough to pass a slow link between two heartbeats."""
MAX_WAITS = 64
"""Long polls that one member may hold open."""


@dataclass(frozen=True)
class _Asker:
    """Where an answer goes."""

    route: bytes
    request: bytes
    name: str
    phase: str


class _Malformed(ProtocolError):
    """Bytes that are no request."""


class Hub:
    """The server's end: one thread that answers every request of every member, whatever bytes it gets.

    ``seen`` and ``traffic`` are for progress displays: name -> (time of the last frame by ``time.monotonic``, what
    the member says it is doing), and name -> bytes by phase. ``failure`` is the last disk error, if any: the server's
    role should stop on it.
    """

    def __init__(
        self,
        manifest: Manifest,
        identity: Identity,
        board: Board,
        blobs: Blobs,
        session: str,
        bind: str | None = None,
        record: Path | None = None,
    ) -> None:
        server = identity.entry(manifest)
        self.manifest, self.board, self.blobs, self.session = manifest, board, blobs, session
        self.endpoint = bind or server.endpoint or ""
        self.seen: dict[str, tuple[float, str]] = {}
        self.told: dict[str, int] = {}
        """Member -> how many records it was sent."""
        self.malformed = 0
        """Frames that were no request."""
        self.failure: FocalError | None = None
        self._identity = identity
        self._members = {m.name: m for m in manifest.members}
        self._by_key = {m.curve: m.name for m in manifest.members if m.role != "server"}
        self._meters = {m.name: Meter() for m in manifest.members}
        self._waits: dict[_Asker, tuple[float, int]] = {}
        self._recorder = Recorder(record)
        self._wake = Wake()
        self._stopping = False
        self._handlers: dict[type[Model], Callable[[_Asker, Any, bytes], tuple[Model, bytes]]] = {
            msg.Hello: self._hello,
            msg.Post: self._post,
            msg.Have: self._have,
            msg.Put: self._put,
            msg.Get: self._get,
            msg.Beat: self._beat,
        }

    def start(self) -> None:
        """Bind and serve in a daemon thread. Raises :class:`FocalError` when the endpoint cannot be bound."""
        self._audiences = Audiences(self.blobs.folder / "audience.sqlite")
        self._context = zmq.Context()
        # Without a ZAP handler libzmq lets every CURVE key in: it must listen before the router does.
        self._zap = self._context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind("inproc://zeromq.zap.01")
        self._router = self._context.socket(zmq.ROUTER)
        secure(self._router, self._identity)
        self._router.curve_server = True
        self._router.zap_domain = ZAP_DOMAIN
        self._router.hwm = 256
        try:
            self._router.bind(self.endpoint)
        except zmq.ZMQError as e:
            self._release()
            hints = {
                errno.EADDRINUSE: "stop the process that uses the port (another focal server?), or choose another port",
                errno.EADDRNOTAVAIL: "this machine has no such address: set 'bind: tcp://*:PORT' in the server's local file",
                errno.ENODEV: "this machine has no such address: set 'bind: tcp://*:PORT' in the server's local file",
            }
            hint = hints.get(e.errno or 0, "an endpoint is written tcp://HOST:PORT")
            raise FocalError(f"the server '{self._identity.name}' cannot listen on {self.endpoint} ({e.strerror})", hint=hint) from None
        self.endpoint = self._router.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self.board.listen(self._wake)
        self._thread = threading.Thread(target=self._run, name="focal-hub", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and free the port."""
        self._stopping = True
        self._wake()
        self._thread.join()

    def __enter__(self) -> Hub:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def publish(self, data: bytes, audience: Audience) -> str:
        """Store a blob that the server made and let ``audience`` fetch it; returns its digest."""
        digest = hashlib.sha256(data).hexdigest()
        self._audiences.widen(digest, audience)
        return self.blobs.put(data)

    def behind(self, seconds: float) -> list[str]:
        """Members that were heard of in the last ``seconds`` and have not been sent the whole board."""
        since, length = time.monotonic() - seconds, len(self.board)
        return [name for name, (seen, _) in list(self.seen.items()) if seen > since and self.told.get(name, 0) < length]

    @property
    def traffic(self) -> dict[str, Directions]:
        """Member -> phase -> ``up``/``down`` -> bytes of headers and payloads; ``up`` is what the member sent."""
        return {name: meter.snapshot() for name, meter in self._meters.items()}

    def _run(self) -> None:
        poller = zmq.Poller()
        for source in (self._router, self._zap, self._wake.fileno()):
            poller.register(source, zmq.POLLIN)
        try:
            while not self._stopping:
                soonest = min((deadline for deadline, _ in self._waits.values()), default=time.monotonic() + 1)
                events = dict(poller.poll(max(0, min(1000, int(1000 * (soonest - time.monotonic())) + 1))))
                try:
                    self._wake.drain()
                    if self._zap in events:
                        self._authenticate(self._zap.recv_multipart())
                    if self._router in events:
                        self._receive()
                    self._answer_waits()
                except Exception:  # a mistake of ours must not silence the server for everybody
                    log.exception("the server failed at a request and goes on")
        finally:
            self.board.unlisten(self._wake)
            self._release()

    def _release(self) -> None:
        self._context.destroy(linger=0)
        self._audiences.close()
        self._recorder.close()
        self._wake.close()

    def _authenticate(self, request: list[bytes]) -> None:
        """ZAP (RFC 27): libzmq asks whether a key may connect; the answer's User-Id is the member's name."""
        name = None
        if len(request) == 7 and request[2] == ZAP_DOMAIN and request[5] == b"CURVE":
            name = self._by_key.get(z85.encode(request[6]).decode())
        if name is None:
            log.warning("refused a connection: its key is not on the manifest's allow-list")
        verdict = (b"200", b"OK", name.encode()) if name else (b"400", b"not on the allow-list", b"")
        self._zap.send_multipart([b"1.0", request[1] if len(request) > 1 else b"", *verdict, b""])

    def _receive(self) -> None:
        for _ in range(64):  # then look at the allow-list and the long polls again
            if self._stopping:
                return
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                self._serve(frames)
            except _Malformed as e:
                self._count_malformed(e.message)

    def _count_malformed(self, why: str) -> None:
        self.malformed += 1
        if self.malformed & (self.malformed - 1) == 0:  # 1, 2, 4, 8, ...: a flood must not fill the log
            log.warning("malformed frame number %d: %s", self.malformed, ascii(why)[:300])

    def _serve(self, frames: list[zmq.Frame]) -> None:
        try:
            name = str(frames[-1].get("User-Id"))
        except zmq.ZMQError:
            name = ""
        if name not in self._members:
            raise _Malformed("a frame of nobody on the allow-list")
        if len(frames) != 5 or len(frames[1]) != 8 or not PHASE.fullmatch(frames[2].bytes):
            raise _Malformed(f"'{name}' sent {len(frames) - 1} parts that are no request")
        route, request, phase, header, payload = (f.bytes for f in frames)
        asker = _Asker(route, request, name, phase.decode())
        self._meters[name].count(asker.phase, "up", len(header) + len(payload))
        self._recorder.add(header, payload)
        self.seen[name] = (time.monotonic(), self.seen.get(name, (0.0, ""))[1])
        try:
            message = msg.decode(msg.REQUEST, header)
        except ProtocolError as e:
            self._reply(asker, _fault("malformed", e))
            raise _Malformed(f"'{name}': {e.message}") from None
        if payload and not isinstance(message, msg.Post | msg.Put):
            self._reply(asker, _fault("malformed", FocalError("this request takes no payload")))
        elif not isinstance(message, msg.Wait):
            self._answer(asker, lambda: self._handlers[type(message)](asker, message, payload))
        elif not self._hold(asker, message):
            self._answer(asker, lambda: self._records(message.after))

    def _answer(self, asker: _Asker, make: Callable[[], tuple[Model, bytes]]) -> None:
        """Reply with what ``make`` gives, or with why it cannot."""
        log_hint = "ask who runs the server to look at its log"
        try:
            header, payload = make()
        except Refused as e:
            header, payload = _fault(e.reason, e), b""
        except ProtocolError as e:
            header, payload = _fault("record", e), b""
        except DiskError as e:
            self.failure = e
            log.error("%s", e)
            header, payload = _fault("disk", FocalError("the server's disk is full or failing", hint=log_hint)), b""
        except Exception:
            log.exception("a request of '%s' could not be answered", asker.name)
            header, payload = _fault("internal", FocalError("the server failed to answer", hint=log_hint)), b""
        self._reply(asker, header, payload)
        if isinstance(header, msg.Records):
            self.told[asker.name] = header.first - 1 + len(header.signed)

    def _reply(self, asker: _Asker, header: Model, payload: bytes = b"") -> None:
        data = msg.encode(header)
        self._meters[asker.name].count(asker.phase, "down", len(data) + len(payload))
        self._router.send_multipart([asker.route, asker.request, data, payload])

    # ---- handlers, one a request

    def _hello(self, asker: _Asker, hello: msg.Hello, _: bytes) -> tuple[Model, bytes]:
        if hello.version < 2:
            raise Refused("version", f"'{asker.name}' speaks version {hello.version}: any run of it {OLD}", hint=ANEW)
        if hello.version != msg.VERSION:
            raise Refused(
                "version",
                f"'{asker.name}' speaks version {hello.version}, the server {msg.VERSION}",
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
        return msg.Welcome(version=msg.VERSION, session=self.session), b""

    def _post(self, asker: _Asker, _: msg.Post, payload: bytes) -> tuple[Model, bytes]:
        return msg.Posted(seq=self.board.append(payload, asker.name)), b""

    def _hold(self, asker: _Asker, wait: msg.Wait) -> bool:
        """Keep a long poll for later, unless it can be answered at once or the member has too many open."""
        mine = sum(other.name == asker.name for other in self._waits)
        if len(self.board) > wait.after or wait.seconds == 0 or mine >= MAX_WAITS:
            return False
        self._waits[asker] = (time.monotonic() + wait.seconds, wait.after)
        return True

    def _answer_waits(self) -> None:
        now, length = time.monotonic(), len(self.board)
        for asker, (deadline, after) in list(self._waits.items()):
            if length > after or now >= deadline:
                del self._waits[asker]
                self._answer(asker, lambda after=after: self._records(after))  # type: ignore[misc]

    def _records(self, after: int) -> tuple[Model, bytes]:
        return msg.Records(first=after + 1, signed=tuple(self.board.since(after, BATCH))), b""

    def _have(self, asker: _Asker, have: msg.Have, _: bytes) -> tuple[Model, bytes]:
        return msg.Stored(sizes=tuple(self.blobs.stored(d, asker.name) for d in have.digests)), b""

    def _put(self, asker: _Asker, put: msg.Put, payload: bytes) -> tuple[Model, bytes]:
        if not 0 < len(payload) <= PIECE:
            raise Refused("size", f"a piece has 1 to {PIECE} bytes, not {len(payload)}")

        def allow() -> None:  # only who has sent the whole blob says who may fetch it, and before anybody can
            self._audiences.widen(put.digest, put.audience)

        return msg.PutOk(stored=self.blobs.write_piece(put.digest, put.size, put.offset, payload, owner=asker.name, before=allow)), b""

    def _get(self, asker: _Asker, get: msg.Get, _: bytes) -> tuple[Model, bytes]:
        if get.digest not in self.blobs:
            raise Refused("unknown-blob", f"the server has no blob {get.digest[:12]}")
        audience = self._audiences.of(get.digest)
        if audience != "all" and not (audience == "custodians" and self._members[asker.name].role == "custodian"):
            raise Refused("audience", f"blob {get.digest[:12]} is not for '{asker.name}'")
        size = self.blobs.size(get.digest)
        if get.offset >= size:
            raise Refused("offset", f"blob {get.digest[:12]} ends at {size}")
        return msg.Piece(size=size, offset=get.offset), self.blobs.read_piece(get.digest, get.offset, PIECE)

    def _beat(self, asker: _Asker, beat: msg.Beat, _: bytes) -> tuple[Model, bytes]:
        self.seen[asker.name] = (time.monotonic(), beat.doing)
        return msg.BeatOk(), b""


def _fault(reason: str, error: FocalError) -> msg.Fault:
    text = error.message.removeprefix(f"refused ({reason}): ")
    return msg.Fault(reason=reason, message=printable(f"{text}; {error.hint}" if error.hint else text)[:2000])
