"""The server's end of the transport: who may connect, what arrives and what leaves. The frames: ``transport.py``;
what is answered: ``answers.py``."""

from __future__ import annotations

import collections
import contextlib
import errno
import functools
import logging
import queue
import resource
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import zmq
from zmq.utils import z85

from focal.config import Model
from focal.errors import FocalError, ProtocolError
from focal.manifest import Manifest
from focal.net import frames
from focal.net.answers import Answers, Asker, fault
from focal.net.encoding import decode, encode
from focal.net.identity import Identity
from focal.net.quotas import Quota
from focal.net.store import Blobs, Board
from focal.net.wire import PHASE, Recorder, Wake, secure

log = logging.getLogger("focal.net")

ZAP_DOMAIN = b"focal"
MAX_WAITS = 64
"""Long polls that one member may hold open."""
LOOKS_UP = 1.0
"""Seconds after which the hub looks whether it is to stop, where nothing wakes it."""
MAX_WRITES = 32
"""Pieces that wait for the disk. Beyond them nothing is received, so that what is not, waits at those who send."""


IO_THREADS = 4
"""Threads that encrypt: each connection has one of them."""
OWN_FILES = 64
"""Files that a server has open without any member: 27 were counted, and every blob on its way has one for a moment."""
FILES_A_MEMBER = 2
"""A link has two connections."""


def allow_files(server: str, members: int) -> None:
    """Raise this process's limit of open files as far as the system lets it.

    Raises :class:`FocalError` when that is not enough for a server of so many ``members``.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = OWN_FILES + FILES_A_MEMBER * members
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise FocalError(
            f"the server '{server}' has {members} members and needs {needed} open files; this system allows it {hard}",
            hint="raise the hard limit (ulimit -Hn, or LimitNOFILE= of its service), or run with fewer members",
        )


Write = tuple[Asker, frames.Put, bytes]
"""Who sent a piece, which one, its bytes."""


class _Malformed(ProtocolError):
    """Bytes that are no request."""


class Hub(Answers):
    """The server's end: one thread that answers every request of every member, whatever bytes it gets."""

    def __init__(
        self,
        manifest: Manifest,
        identity: Identity,
        board: Board,
        blobs: Blobs,
        session: str,
        bind: str | None = None,
        record: Path | None = None,
        quotas: Mapping[str, Quota] | None = None,
    ) -> None:
        server = identity.entry(manifest)
        super().__init__(manifest, board, blobs, session, quotas)
        self.endpoint = bind or server.endpoint or ""
        self.malformed = 0
        """Frames that were no request."""
        self._identity = identity
        self._by_key = {m.curve: m.name for m in manifest.members if m.role != "server"}
        self._waits: dict[Asker, tuple[float, int]] = {}
        self._waiting: collections.Counter[str] = collections.Counter()
        """How many of them each member has."""
        self._writes: dict[str, collections.deque[Write]] = {}
        """Digest -> pieces of this blob, the first of which is being written."""
        self._written: queue.SimpleQueue[tuple[str, Asker, Model, bytes]] = queue.SimpleQueue()
        self._recorder = Recorder(record)
        self._waiting_writes = 0
        self._wake = Wake()
        self._stopping = False

    def start(self) -> None:
        """Bind and serve in a daemon thread. Raises :class:`FocalError` when the endpoint cannot be bound, or the
        system allows too few open files."""
        allow_files(self._identity.name, len(self._by_key))
        self._open()
        self._context = zmq.Context(IO_THREADS)
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
                errno.EADDRNOTAVAIL: "this machine has no such address: "
                "set 'bind: tcp://*:PORT' in the server's local file",
                errno.ENODEV: "this machine has no such address: set 'bind: tcp://*:PORT' in the server's local file",
            }
            hint = hints.get(e.errno or 0, "an endpoint is written tcp://HOST:PORT")
            raise FocalError(
                f"the server '{self._identity.name}' cannot listen on {self.endpoint} ({e.strerror})", hint=hint
            ) from None
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

    def _run(self) -> None:
        poller = zmq.Poller()
        for source in (self._router, self._zap, self._wake.fileno()):
            poller.register(source, zmq.POLLIN)
        try:
            while not self._stopping:
                soonest = min((deadline for deadline, _ in self._waits.values()), default=time.monotonic() + LOOKS_UP)
                until = min(LOOKS_UP, soonest - time.monotonic())
                events = dict(poller.poll(max(0, int(1000 * until) + 1)))
                try:
                    self._wake.drain()
                    if self._zap in events:
                        self._authenticate(self._zap.recv_multipart())
                    if self._router in events:
                        self._receive()
                    self._answer_writes()
                    self._answer_waits()
                except Exception:  # a mistake of ours must not silence the server for everybody
                    log.exception("the server failed at a request and goes on")
        finally:
            self.board.unlisten(self._wake)
            self._release()

    def _release(self) -> None:
        self._context.destroy(linger=0)
        self._close()
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
            while self._waiting_writes >= MAX_WRITES and not self._stopping:
                self._finish_write(*self._written.get())
            if self._stopping:
                return
            try:
                parts = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                self._serve(parts)
            except _Malformed as e:
                self._count_malformed(e.message)

    def _count_malformed(self, why: str) -> None:
        self.malformed += 1
        if self.malformed & (self.malformed - 1) == 0:  # 1, 2, 4, 8, ...: a flood must not fill the log
            log.warning("malformed frame number %d: %s", self.malformed, ascii(why)[:300])

    def _serve(self, parts: list[zmq.Frame]) -> None:
        try:
            name = str(parts[-1].get("User-Id"))
        except zmq.ZMQError:
            name = ""
        if name not in self._members:
            raise _Malformed("a frame of nobody on the allow-list")
        if len(parts) != 5 or len(parts[1]) != 8 or not PHASE.fullmatch(parts[2].bytes):
            raise _Malformed(f"'{name}' sent {len(parts) - 1} parts that are no request")
        route, request, phase, header, payload = (f.bytes for f in parts)
        asker = Asker(route, request, name, phase.decode())
        self._meters[name].count(asker.phase, "up", len(header) + len(payload))
        self._recorder.add(header, payload)
        self.seen[name] = time.monotonic()
        try:
            message = decode(frames.REQUEST, header)
        except ProtocolError as e:
            self._reply(asker, fault("malformed", e))
            raise _Malformed(f"'{name}': {e.message}") from None
        if payload and not isinstance(message, frames.Post | frames.Put):
            self._reply(asker, fault("malformed", FocalError("this request takes no payload")))
        elif isinstance(message, frames.Put):
            self._enqueue(asker, message, payload)
        elif isinstance(message, frames.Have):
            while any(
                digest in self._writes for digest in message.digests
            ):  # what arrived counts: it shall not be sent again
                self._finish_write(*self._written.get())
            self._answer(asker, lambda: self._handlers[frames.Have](asker, message, payload))
        elif not isinstance(message, frames.Wait):
            self._answer(asker, lambda: self._handlers[type(message)](asker, message, payload))
        elif not self._hold(asker, message):
            self._answer(asker, lambda: self._records(name, message.after))

    def _answer(self, asker: Asker, make: Callable[[], tuple[Model, bytes]]) -> None:
        """Reply with what ``make`` gives, or with why it cannot."""
        header, payload = self._attempt(asker, make)
        self._reply(asker, header, payload)
        self._was_told(asker.name, header)

    def _reply(self, asker: Asker, header: Model, payload: bytes = b"") -> None:
        data = encode(header)
        self._meters[asker.name].count(asker.phase, "down", len(data) + len(payload))
        self._router.send_multipart([asker.route, asker.request, data, payload])

    def _enqueue(self, asker: Asker, put: frames.Put, payload: bytes) -> None:
        """Have a piece written. Pieces of one blob are written one after the other;
        different blobs do not wait for each other."""
        waiting = self._writes.setdefault(put.digest, collections.deque())
        waiting.append((asker, put, payload))
        self._waiting_writes += 1
        if len(waiting) == 1:
            self._write(*waiting[0])

    def _write(self, asker: Asker, put: frames.Put, payload: bytes) -> None:
        def write() -> None:
            self._written.put(
                (put.digest, asker, *self._attempt(asker, lambda: self._handlers[frames.Put](asker, put, payload)))
            )
            self._wake()

        self._writers.submit(write)

    def _answer_writes(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._finish_write(*self._written.get_nowait())

    def _finish_write(self, digest: str, asker: Asker, header: Model, payload: bytes) -> None:
        """Say that a piece was written, and go on with the next one of the same blob."""
        self._waiting_writes -= 1
        waiting = self._writes[digest]
        waiting.popleft()
        if waiting:
            self._write(*waiting[0])
        else:
            del self._writes[digest]
        self._reply(asker, header, payload)

    def _hold(self, asker: Asker, wait: frames.Wait) -> bool:
        """Keep a long poll for later, unless it can be answered at once or the member has too many open."""
        if self.board.length(asker.name) > wait.after or wait.seconds == 0 or self._waiting[asker.name] >= MAX_WAITS:
            return False
        self._waiting[asker.name] += asker not in self._waits
        self._waits[asker] = (time.monotonic() + wait.seconds, wait.after)
        return True

    def _answer_waits(self) -> None:
        now = time.monotonic()
        for asker, (deadline, after) in list(self._waits.items()):
            if self.board.length(asker.name) > after or now >= deadline:
                del self._waits[asker]
                self._waiting[asker.name] -= 1
                self._answer(asker, functools.partial(self._records, asker.name, after))
