"""A hub over real sockets on 127.0.0.1, members that dial it, one that speaks the frames by hand,
and a proxy between them."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq
from parties import SCOPE, identities, manifest_of
from patience import PATIENCE

from focal.net import frames
from focal.net import messages as msg
from focal.net.encoding import decode, encode
from focal.net.store import Blobs, Board
from focal.net.transport import Hub, Link

PEOPLE = identities()
MANIFEST = manifest_of(PEOPLE)
SESSION = "5e" * 32
HEADER = 400
"""More than any header of a put (two digests' worth of hex, names and numbers: about 150 bytes) or beat."""


class Server:
    """A hub that can be stopped and started again on the same store and port."""

    def __init__(
        self, folder: Path, manifest: Any = MANIFEST, session: str = SESSION, blobs: Callable[[Path], Blobs] = Blobs
    ) -> None:
        self.folder, self.manifest, self.session = folder, manifest, session
        self.endpoint = "tcp://127.0.0.1:*"
        self.start(blobs)

    def start(self, blobs: Callable[[Path], Blobs] = Blobs) -> None:
        self.board = Board(self.folder / "board.sqlite", self.manifest)
        self.blobs = blobs(self.folder / "blobs")
        self.hub = Hub(self.manifest, PEOPLE["server"], self.board, self.blobs, self.session, self.endpoint)
        self.hub.start()
        self.endpoint = self.hub.endpoint

    def stop(self) -> None:
        self.hub.stop()
        self.board.close()


class Raw:
    """A member that speaks the frames by hand."""

    def __init__(self, server: Server, name: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger, self.socket.rcvtimeo, self.socket.sndtimeo = 0, 10_000, 10_000
        self.socket.curve_secretkey, self.socket.curve_publickey = PEOPLE[name].curve_secret, PEOPLE[name].curve_public
        self.socket.curve_serverkey = PEOPLE["server"].curve_public
        self.socket.connect(server.endpoint)

    def ask(self, message: Any, payload: bytes = b"") -> Any:
        request = os.urandom(8)
        self.socket.send_multipart([request, b"setup", encode(message), payload])
        while True:
            parts = self.socket.recv_multipart()
            if parts[0] == request:
                return decode(frames.REPLY, parts[1])

    def close(self) -> None:
        self.context.destroy(linger=0)


class Proxy:
    """Passes bytes on, over connections that a test breaks, or that stand still: while ``go`` is not set, each passes
    ``limit`` bytes up and no more;
    ``stands`` tells that one does."""

    def __init__(self, endpoint: str, limit: int = 0) -> None:
        self.target = int(endpoint.rsplit(":", 1)[1])
        self.limit, self.stands, self.go = limit, threading.Event(), threading.Event()
        self.sockets: list[socket.socket] = []
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(16)
        self.endpoint = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self.listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", self.target))
                self.sockets += [near, far]
                threading.Thread(target=self._pass, args=(near, far, self.limit), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, 0), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, limit: int) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(16 << 10):
                passed += len(data)
                if limit and passed > limit:
                    self.stands.set()
                    self.go.wait(PATIENCE)
                sink.sendall(data)

    def cut(self) -> None:
        """Break every connection, as a router that restarts does."""
        for s in self.sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()
        self.sockets = []

    def close(self) -> None:
        self.go.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()


@contextlib.contextmanager
def dial(server: Server, name: str, timeout: float = 10, endpoint: str | None = None, **options: Any) -> Iterator[Link]:
    with Link(MANIFEST, PEOPLE[name], endpoint or server.endpoint, **options) as link:
        link.open(timeout)
        yield link


def record(name: str, topic: str, text: str = "x") -> bytes:
    return PEOPLE[name].sign_record(SCOPE, topic, msg.Abort(reason=text))


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)
