"""A party's end of the transport: plain methods for its threads, one I/O thread behind them. The frames: ``transport.py``."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import hashlib
import itertools
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import zmq
from zmq.utils.monitor import recv_monitor_message

from focal.config import ANEW, OLD, Manifest, Model, printable
from focal.errors import FocalError, ProtocolError, Refused
from focal.net import messages as msg
from focal.net.identity import Identity
from focal.net.messages import MAX_BLOB, PIECE
from focal.net.wire import Audience, Directions, Meter, Recorder, Wake, secure

log = logging.getLogger("focal.net")

_SERVER_VERSION = re.compile(r"speaks version \d+, the server (\d+)")
"""How a server says that it speaks another version, since the first one."""
Future = concurrent.futures.Future[tuple[Any, bytes]]
"""A reply's header and payload."""
Q = TypeVar("Q", bound=Model)
R = TypeVar("R", bound=Model)


class _Lost(Exception):
    """The connection was lost with this request on it: it may or may not have arrived."""


@dataclass
class _Call:
    """A request until it is answered."""

    header: bytes
    payload: bytes
    phase: str
    expect: type[Model]
    repeat: bool
    """Send again when the connection was lost; otherwise the caller is told (:class:`_Lost`)."""
    future: Future = field(default_factory=concurrent.futures.Future)
    id: bytes = field(default_factory=lambda: os.urandom(8))
    sent: bool = False

    def fail(self, error: Exception) -> None:
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # the caller has given it up
            self.future.set_exception(error)


class _Line:
    """One connection: a DEALER socket, its monitor and the calls on it. Used by the I/O thread only."""

    IN_FLIGHT = 32

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], identity: Identity, server_key: bytes, endpoint: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        secure(self.socket, identity)
        self.socket.curve_serverkey = server_key
        # Nothing is queued inside ZeroMQ while there is no connection: what was sent, and what was not, is known here.
        self.socket.immediate = True
        self.socket.reconnect_ivl = 100
        self.socket.reconnect_ivl_max = 2000
        self.socket.connect_timeout = 5000
        self.monitor = self.socket.get_monitor_socket()
        self.socket.connect(endpoint)
        self.calls: dict[bytes, _Call] = {}
        self.up = False

    def flush(self) -> Iterator[_Call]:
        """Send what waits, oldest first, and yield it. Only when ``up``: ZeroMQ may be connected again before we heard that it was not."""
        if not self.up:
            return
        for call in list(self.calls.values())[: self.IN_FLIGHT]:
            if call.sent:
                continue
            if not call.future.running() and not call.future.set_running_or_notify_cancel():
                del self.calls[call.id]
                continue
            try:
                self.socket.send_multipart([call.id, call.phase.encode(), call.header, call.payload], zmq.NOBLOCK)
            except zmq.Again:
                return
            call.sent = True
            yield call

    def lost(self) -> None:
        """What was sent may not have arrived: send it again, or say so. Pieces that wait their turn fall with those before them."""
        for call in list(self.calls.values()):
            call.sent = False
            if not call.repeat:
                del self.calls[call.id]
                call.fail(_Lost())


class Link:
    """A party's end: dials the server and gives the caller's threads plain methods.

    Example::

        with Link(manifest, identity) as link:
            link.open(timeout=60)
            link.phase = "upload"
            digest = link.put(ciphertext, "custodians")
            link.post(identity.sign_record(run_id, "upload", body))
            for signed in link.wait(after=0, seconds=30): ...

    Every method waits as long as it takes; a server that is away is reported in the log and waited for. They raise
    :class:`Refused` with the server's reason, :class:`ProtocolError` when the server breaks the protocol, and
    :class:`FocalError` when the link is closed or can never work.
    """

    BEAT = 2.0
    """Seconds between heartbeats."""
    QUIET = 30.0
    """Seconds without any sign of life after which requests are repeated."""
    WINDOW = 4
    """Pieces of one transfer that are under way at a time."""
    HANDSHAKES = 3
    """Failed handshakes after which ``open`` gives up early."""

    def __init__(self, manifest: Manifest, identity: Identity, endpoint: str | None = None, record: Path | None = None) -> None:
        identity.entry(manifest)
        self.manifest, self.name = manifest, identity.name
        self.endpoint = endpoint or manifest.server.endpoint or ""
        self.phase = "setup"
        """What the bytes are counted under, here and at the server: ``[a-z-]``, at most 32 characters."""
        self.doing = ""
        """Shown to the server with every heartbeat. No file names, no patient ids."""
        self.session = ""
        self._identity = identity
        self._meter = Meter()
        self._recorder = Recorder(record)
        self._wake = Wake()
        self._lock = threading.Lock()
        self._queue: collections.deque[tuple[_Line, _Call]] = collections.deque()
        self._dead: FocalError | None = None
        self._failed_handshakes = 0
        self._trouble = "nothing listens there: the server is not started, or a firewall closes the port"
        self._heard = self._repeated = time.monotonic()
        self._silent = False
        self._pulse: Future | None = None
        self._next_beat = 0.0
        self._thread: threading.Thread | None = None

    # ---- life

    def open(self, timeout: float) -> msg.Welcome:
        """Connect and say hello. Once: to try again after an error, make a new link.

        Raises:
            Refused: ``manifest`` (the server holds another one), ``version`` (also of an old server), ``name``.
            FocalError: not on the allow-list, wrong server key, or nobody answered within ``timeout`` seconds.
        """
        self._context = zmq.Context()
        try:
            key = self.manifest.server.curve.encode()
            self._control, self._bulk = (_Line(self._context, self._identity, key, self.endpoint) for _ in range(2))
        except zmq.ZMQError as e:
            self._hang_up()
            hint = "an endpoint is written tcp://HOST:PORT"
            raise FocalError(f"the server's endpoint {self.endpoint!r} cannot be used ({e.strerror})", hint=hint) from None
        self._heard = self._repeated = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="focal-link", daemon=True)
        self._thread.start()
        try:
            welcome: msg.Welcome = self._greet().result(timeout)[0]
            if welcome.version != msg.VERSION:
                raise self._other_version(welcome.version)
        except concurrent.futures.TimeoutError:
            self.close()
            hint = "start the server, check the endpoint in the manifest, and that the port is open between the two machines"
            raise FocalError(f"no answer from the server at {self.endpoint} within {timeout:g} s ({self._trouble})", hint=hint) from None
        except FocalError as e:
            self.close()
            if isinstance(e, Refused) and e.reason == "version" and (said := _SERVER_VERSION.search(e.message)):
                raise self._other_version(int(said[1])) from None
            raise
        self.session = welcome.session
        return welcome

    def _other_version(self, theirs: int) -> Refused:
        """The error when the server does not speak our version; one before 2 has a reason that must be told."""
        server = f"the server '{self.manifest.server.name}' at {self.endpoint} speaks version {theirs}"
        if theirs < 2:
            return Refused("version", f"{server}: any run of it {OLD}", hint=f"install this focal at the server too, and {ANEW}")
        return Refused("version", f"{server}, '{self.name}' {msg.VERSION}", hint="install the same focal everywhere")

    def close(self) -> None:
        """Hang up. Requests under way raise :class:`FocalError` in their callers."""
        self._die(FocalError(f"the link of '{self.name}' to {self.endpoint} is closed"))
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def traffic(self) -> Directions:
        """Phase -> ``up``/``down`` -> bytes of headers and payloads, repeats included."""
        return self._meter.snapshot()

    @property
    def silence(self) -> float:
        """Seconds since the server's last sign of life."""
        return time.monotonic() - self._heard

    # ---- requests

    def post(self, signed: bytes) -> int:
        """Put an encoded signed record on the board; returns its number. It is on the server's disk."""
        line = self._bulk if len(signed) > PIECE else self._control
        return self._ask(msg.Post(), msg.Posted, signed, line=line)[0].seq

    def wait(self, after: int, seconds: float) -> list[bytes]:
        """Signed records after number ``after``, as soon as there are some; empty when none came within ``seconds``.

        A batch is a part of what there is: ask again from the last one on. Away servers are waited for longer.
        """
        deadline = time.monotonic() + seconds
        while True:
            left = min(30.0, max(0.0, deadline - time.monotonic()))
            records = self._ask(msg.Wait(after=after, seconds=left), msg.Records)[0]
            if records.first != after + 1:
                raise self._broke(f"answered with records from {records.first} on instead of {after + 1}")
            if records.signed or time.monotonic() >= deadline:
                return list(records.signed)

    def have(self, digests: list[str]) -> list[int]:
        """Bytes that the server has stored of each of this member's transfers; -1: the blob is complete."""
        sizes: list[int] = []
        for i in range(0, len(digests), 4096):
            part = tuple(digests[i : i + 4096])
            stored = self._ask(msg.Have(digests=part), msg.Stored)[0]
            if len(stored.sizes) != len(part):
                raise self._broke("answered for another number of blobs than it was asked about")
            sizes += stored.sizes
        return sizes

    def put(self, data: bytes, audience: Audience = "all") -> str:
        """Store one blob at the server; returns its digest. See :meth:`put_many`."""
        return self.put_many([data], audience)[0]

    def put_many(self, blobs: list[bytes], audience: Audience = "all", progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Store blobs at the server; returns their digests. When it returns they are complete and on its disk.

        Sends only what the server does not have, also after the connection was lost. ``progress(done, total)`` is
        called with bytes, counting those that were there already.
        """
        digests = [hashlib.sha256(b).hexdigest() for b in blobs]
        todo = dict(zip(digests, blobs, strict=True))
        for data in todo.values():
            if not 0 < len(data) <= MAX_BLOB:
                raise FocalError(f"a blob has 1 to {MAX_BLOB >> 20} Mi bytes, not {len(data)}")
        total, refusals = sum(map(len, todo.values())), 0
        while todo:
            stored = dict(zip(todo, self.have(list(todo)), strict=True))
            todo = {d: b for d, b in todo.items() if stored[d] >= 0}
            try:
                for put, piece, reply, _ in self._pipeline(_pieces(dict(todo), stored, audience), msg.PutOk):
                    end = put.offset + len(piece)
                    if reply.stored == -1:
                        todo.pop(put.digest, None)
                    elif end == put.size:
                        raise self._broke(f"took all of blob {put.digest[:12]} and does not have it")
                    if progress is not None:
                        progress(total - sum(map(len, todo.values())) + (end if put.digest in todo else 0), total)
            except _Lost:
                continue
            except Refused as e:  # the server has less than it said (it may have crashed): begin again where it stands
                refusals += 1
                if e.reason not in ("offset", "digest") or refusals > 3:
                    raise
        if progress is not None:
            progress(total, total)
        return digests

    def get(self, digest: str) -> bytes:
        """Fetch a blob. Raises :class:`Refused`: ``unknown-blob``, ``audience``, or ``digest`` when the server sends other bytes."""
        parts: list[bytes] = []
        first, data = self._ask(msg.Get(digest=digest, offset=0), msg.Piece, line=self._bulk)
        rest = ((msg.Get(digest=digest, offset=offset), b"") for offset in range(PIECE, first.size, PIECE))
        for piece, part in itertools.chain([(first, data)], ((r, p) for _, _, r, p in self._pipeline(rest, msg.Piece))):
            at = PIECE * len(parts)
            if (piece.size, piece.offset, len(part)) != (first.size, at, min(PIECE, first.size - at)):
                raise self._broke(f"answered with another piece of blob {digest[:12]} than it was asked for")
            parts.append(part)
        whole = b"".join(parts)
        if hashlib.sha256(whole).hexdigest() != digest:
            raise Refused("digest", self._broke(f"sent other bytes as blob {digest[:12]}").message)
        return whole

    def _broke(self, what: str) -> ProtocolError:
        return ProtocolError(f"the server '{self.manifest.server.name}' at {self.endpoint} {what}")

    # ---- from the caller's threads to the I/O thread

    def _submit(self, message: Model, expect: type[Model], payload: bytes = b"", *, line: _Line) -> Future:
        # Pieces of a blob are not repeated blindly: how much of it arrived is asked first, so that nothing travels twice.
        # A heartbeat is worth nothing later.
        repeat = not isinstance(message, msg.Put | msg.Beat)
        call = _Call(msg.encode(message), payload, self.phase, expect, repeat)
        with self._lock:
            if self._dead is not None:
                raise self._dead
            self._queue.append((line, call))
        self._wake()
        return call.future

    def _ask(self, message: Model, expect: type[R], payload: bytes = b"", *, line: _Line | None = None) -> tuple[R, bytes]:
        return self._submit(message, expect, payload, line=line or self._control).result()

    def _pipeline(self, requests: Iterable[tuple[Q, bytes]], expect: type[R]) -> Iterator[tuple[Q, bytes, R, bytes]]:
        """Bulk requests with their answers, in order, a window of them under way at a time."""
        window: collections.deque[tuple[Q, bytes, Future]] = collections.deque()
        try:
            for message, payload in requests:
                window.append((message, payload, self._submit(message, expect, payload, line=self._bulk)))
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

    def _greet(self) -> Future:
        return self._submit(
            msg.Hello(version=msg.VERSION, name=self.name, manifest=self.manifest.hash.hex()), msg.Welcome, line=self._control
        )

    def _die(self, error: FocalError) -> None:
        """No request is taken from now on; the I/O thread ends and fails those under way."""
        with self._lock:
            self._dead = self._dead or error
        self._wake()

    # ---- the I/O thread

    def _run(self) -> None:
        lines = (self._control, self._bulk)
        poller = zmq.Poller()
        for source in (self._wake.fileno(), *(s for line in lines for s in (line.socket, line.monitor))):
            poller.register(source, zmq.POLLIN)
        try:
            while self._dead is None:
                events = dict(poller.poll(int(1000 * min(0.2, self.BEAT))))
                self._wake.drain()
                self._take_calls()
                for line in lines:
                    if line.monitor in events:
                        self._watch(line)
                    if line.socket in events:
                        self._receive(line)
                self._stay_in_touch()
                for line in lines:
                    self._send(line)
        except Exception as e:  # a mistake of ours: the callers must hear of it, not wait for ever
            log.exception("the link to the server failed")
            self._die(FocalError(f"the link of '{self.name}' to {self.endpoint} failed ({type(e).__name__})"))
        finally:
            with self._lock:
                left = [call for _, call in self._queue]
            for call in [*left, *(c for line in lines for c in line.calls.values())]:
                call.fail(self._dead or FocalError("the link has ended"))
            self._hang_up()

    def _hang_up(self) -> None:
        self._context.destroy(linger=0)
        self._recorder.close()
        self._wake.close()

    def _take_calls(self) -> None:
        with self._lock:
            fresh = list(self._queue)
            self._queue.clear()
        for line, call in fresh:
            line.calls[call.id] = call

    def _send(self, line: _Line) -> None:
        for call in line.flush():
            self._meter.count(call.phase, "up", len(call.header) + len(call.payload))

    def _receive(self, line: _Line) -> None:
        for _ in range(64):
            try:
                frames = line.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._sign_of_life()
            call = line.calls.pop(frames[0], None)
            header, payload = frames[1:] if len(frames) == 3 else (b"", b"")
            self._recorder.add(header, payload)
            if call is None:  # the answer to a request that was repeated
                continue
            self._meter.count(call.phase, "down", len(header) + len(payload))
            try:
                reply = msg.decode(msg.REPLY, header)
            except ProtocolError as e:
                call.fail(self._broke(f"sent a malformed answer: {e.message}"))
                continue
            if isinstance(reply, msg.Fault):
                call.fail(Refused(reply.reason, reply.message))
            elif not isinstance(reply, call.expect):
                call.fail(self._broke(f"answered with '{type(reply).__name__}' where '{call.expect.__name__}' belongs"))
            else:
                call.future.set_result((reply, payload))

    def _watch(self, line: _Line) -> None:
        """Connection events: repeat what was lost, and know why a connection fails."""
        while line.monitor.poll(0):
            event = recv_monitor_message(line.monitor)["event"]
            if event == zmq.Event.HANDSHAKE_SUCCEEDED:
                self._trouble, self._failed_handshakes = "connected, but it does not answer", 0
                line.up = True
                if line is self._control and self.session:
                    self._greet().add_done_callback(self._check_session)
            elif event == zmq.Event.DISCONNECTED:
                line.up = False
                line.lost()
                if line is self._control and self.session:
                    log.warning("lost the connection to the server at %s; trying again", self.endpoint)
            elif event == zmq.Event.HANDSHAKE_FAILED_AUTH:
                self._die(
                    FocalError(
                        f"the server at {self.endpoint} refused '{self.name}': its key is not on the allow-list of the server's manifest",
                        hint="the server must run with a manifest that holds this member's public keys (focal manifest add)",
                    )
                )
            elif event in (zmq.Event.HANDSHAKE_FAILED_NO_DETAIL, zmq.Event.HANDSHAKE_FAILED_PROTOCOL):
                self._failed_handshakes += 1
                self._trouble = "something listens there, but the handshake fails: it has not the server key of this manifest"
                if self._failed_handshakes >= self.HANDSHAKES and not self.session:
                    self._die(
                        FocalError(
                            f"the handshake with {self.endpoint} fails: what listens there has not the server key of this manifest",
                            hint="check the endpoint, and that server and parties have the same signed manifest",
                        )
                    )

    def _check_session(self, welcome: Future) -> None:
        if welcome.cancelled():
            return
        if error := welcome.exception():
            self._die(error if isinstance(error, FocalError) else FocalError(f"the link to {self.endpoint} failed"))
        elif welcome.result()[0].session != self.session:
            self._die(
                FocalError(
                    f"the server at {self.endpoint} came back without the state of this session",
                    hint="restore the server's state folder, or begin a new run with fresh state folders everywhere",
                )
            )

    def _sign_of_life(self) -> None:
        self._heard = time.monotonic()
        if self._silent:
            self._silent = False
            log.warning("the server at %s answers again", self.endpoint)

    def _stay_in_touch(self) -> None:
        now = time.monotonic()
        if self.session and now >= self._next_beat and (self._pulse is None or self._pulse.done()):
            self._next_beat = now + self.BEAT
            with contextlib.suppress(FocalError):  # closed in this moment
                self._pulse = self._submit(msg.Beat(doing=printable(self.doing)[:100]), msg.BeatOk, line=self._control)
        if now - max(self._heard, self._repeated) > self.QUIET:
            self._repeated = now
            if not self._silent:
                self._silent = True
                log.warning("no answer from the server at %s for %.0f s; still trying", self.endpoint, self.QUIET)
            for line in (self._control, self._bulk):
                line.lost()


def _pieces(blobs: dict[str, bytes], stored: dict[str, int], audience: Audience) -> Iterator[tuple[msg.Put, bytes]]:
    """What is missing of each blob. The last piece always goes: it makes the server check and keep the whole."""
    for digest, data in blobs.items():
        start = min(stored[digest], (len(data) - 1) // PIECE * PIECE)
        for offset in range(start, len(data), PIECE):
            yield msg.Put(digest=digest, size=len(data), offset=offset, audience=audience), data[offset : offset + PIECE]
