"""A hub over real sockets on 127.0.0.1, and a member that speaks the frames by hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from parties import identities, manifest_of

from focal.net import frames
from focal.net.encoding import decode, encode
from focal.net.store import Blobs, Board
from focal.net.transport import Hub

PEOPLE = identities()
MANIFEST = manifest_of(PEOPLE)
SESSION = "5e" * 32


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
