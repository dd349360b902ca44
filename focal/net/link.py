"""A party's end of the transport: plain methods for its threads, one I/O thread behind them.
The frames: ``transport.py``."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import logging
import os
import re
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from focal.config import ANEW, VERSION, Model, earlier
from focal.errors import FocalError, ProtocolError, Refused, Told
from focal.manifest import Manifest
from focal.net import frames
from focal.net.encoding import decode, encode
from focal.net.identity import Identity
from focal.net.requests import Future, Lost, Requests
from focal.net.wire import Recorder, Wake, secure

log = logging.getLogger("focal.net")

_SERVER_VERSION = re.compile(r"speaks version \d+, the server (\d+)")
"""How a server says that it speaks another version, since the first one."""


@dataclass
class _Call:
    """A request until it is answered."""

    header: bytes
    payload: bytes
    phase: str
    expect: type[Model]
    repeat: bool
    """Send again when the connection was lost; otherwise the caller is told (:class:`Lost`)."""
    future: Future = field(default_factory=concurrent.futures.Future)
    id: bytes = field(default_factory=lambda: os.urandom(8))
    sent: bool = False

    def fail(self, error: Exception) -> None:
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # the caller has given it up
            self.future.set_exception(error)


class _Line:
    """One connection: a DEALER socket, its monitor and the calls on it. Used by the I/O thread only."""

    IN_FLIGHT = 32

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], identity: Identity, server_key: bytes, endpoint: str
    ) -> None:
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
        """Send what waits, oldest first, and yield it. Only when ``up``: ZeroMQ may be connected again before we
        heard that it was not."""
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
        """What was sent may not have arrived: send it again, or say so.
        Pieces that wait their turn fall with those before them."""
        for call in list(self.calls.values()):
            call.sent = False
            if not call.repeat:
                del self.calls[call.id]
                call.fail(Lost())


class Link(Requests):
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
    HANDSHAKES = 3
    """Failed handshakes after which ``open`` gives up early."""

    def __init__(
        self, manifest: Manifest, identity: Identity, endpoint: str | None = None, record: Path | None = None
    ) -> None:
        identity.entry(manifest)
        super().__init__(manifest, identity.name, endpoint or manifest.server.endpoint or "")
        self._identity = identity
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

    def open(self, timeout: float) -> frames.Welcome:
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
            raise FocalError(
                f"the server's endpoint {self.endpoint!r} cannot be used ({e.strerror})", hint=hint
            ) from None
        self._heard = self._repeated = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="focal-link", daemon=True)
        self._thread.start()
        try:
            welcome: frames.Welcome = self._greet().result(timeout)[0]
            if welcome.version != VERSION:
                raise self._other_version(welcome.version)
        except concurrent.futures.TimeoutError:
            self.close()
            hint = (
                "start the server, check the endpoint in the manifest, "
                "and that the port is open between the two machines"
            )
            raise FocalError(
                f"no answer from the server at {self.endpoint} within {timeout:g} s ({self._trouble})", hint=hint
            ) from None
        except FocalError as e:
            self.close()
            if isinstance(e, Refused) and e.reason == "version" and (said := _SERVER_VERSION.search(e.message)):
                raise self._other_version(int(said[1])) from None
            raise
        self.session = welcome.session
        return welcome

    def _other_version(self, theirs: int) -> Refused:
        """The error when the server does not speak our version; an earlier one has a reason that must be told."""
        server = f"the server '{self.manifest.server.name}' at {self.endpoint} speaks version {theirs}"
        if why := earlier(theirs):
            return Refused(
                "version", f"{server}: any run of it {why}", hint=f"install this focal at the server too, and {ANEW}"
            )
        return Refused("version", f"{server}, '{self.name}' {VERSION}", hint="install the same focal everywhere")

    def close(self) -> None:
        """Hang up. Requests under way raise :class:`FocalError` in their callers."""
        self._die(FocalError(f"the link of '{self.name}' to {self.endpoint} is closed"))
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- from the caller's threads to the I/O thread

    def _submit(self, message: Model, expect: type[Model], payload: bytes = b"", *, bulk: bool = False) -> Future:
        # Pieces of a blob are not repeated blindly: how much of it arrived is asked first,
        # so that nothing travels twice. A heartbeat is worth nothing later.
        repeat = not isinstance(message, frames.Put | frames.Beat)
        call = _Call(encode(message), payload, self.phase, expect, repeat)
        with self._lock:
            if self._dead is not None:
                raise self._dead
            self._queue.append((self._bulk if bulk else self._control, call))
        self._wake()
        return call.future

    def _greet(self) -> Future:
        return self._submit(
            frames.Hello(version=VERSION, name=self.name, manifest=self.manifest.hash.hex()), frames.Welcome
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
                parts = line.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._sign_of_life()
            call = line.calls.pop(parts[0], None)
            header, payload = parts[1:] if len(parts) == 3 else (b"", b"")
            self._recorder.add(header, payload)
            if call is None:  # the answer to a request that was repeated
                continue
            self._meter.count(call.phase, "down", len(header) + len(payload))
            try:
                reply = decode(frames.REPLY, header)
            except ProtocolError as e:
                call.fail(self._broke(f"sent a malformed answer: {e.message}"))
                continue
            if isinstance(reply, frames.Fault):
                call.fail(Told(reply.reason, reply.message))
            elif not isinstance(reply, call.expect):
                call.fail(self._broke(f"answered with '{type(reply).__name__}' where '{call.expect.__name__}' belongs"))
            else:
                call.future.set_result((reply, payload))

    def _watch(self, line: _Line) -> None:
        """Connection events: repeat what was lost, and know why a connection fails."""
        while line.monitor.poll(0):
            event, _ = struct.unpack(
                "=hi", line.monitor.recv_multipart()[0]
            )  # zmq.utils.monitor does this, and imports asyncio
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
                        f"the server at {self.endpoint} refused '{self.name}': "
                        "its key is not on the allow-list of the server's manifest",
                        hint="the server must run with a manifest that holds this member's "
                        "public keys (focal manifest add)",
                    )
                )
            elif event in (zmq.Event.HANDSHAKE_FAILED_NO_DETAIL, zmq.Event.HANDSHAKE_FAILED_PROTOCOL):
                self._failed_handshakes += 1
                self._trouble = (
                    "something listens there, but the handshake fails: it has not the server key of this manifest"
                )
                if self._failed_handshakes >= self.HANDSHAKES and not self.session:
                    self._die(
                        FocalError(
                            f"the handshake with {self.endpoint} fails: "
                            "what listens there has not the server key of this manifest",
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
                self._pulse = self._submit(frames.Beat(), frames.BeatOk)
        if now - max(self._heard, self._repeated) > self.QUIET:
            self._repeated = now
            if not self._silent:
                self._silent = True
                log.warning("no answer from the server at %s for %.0f s; still trying", self.endpoint, self.QUIET)
            for line in (self._control, self._bulk):
                line.lost()
