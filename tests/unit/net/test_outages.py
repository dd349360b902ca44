"""What survives when connections break, stall or end, and when the server is stopped, silent or away."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE
from serving import HEADER, MANIFEST, PEOPLE, Proxy, Server, dial, eventually, record

from focal.errors import FocalError
from focal.net import frames
from focal.net.frames import PIECE
from focal.net.store import Blobs
from focal.net.transport import Link


class Stalling(Blobs):
    """Takes some pieces, then waits: the moment at which the server is stopped."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.left, self.reached, self.go = 7, threading.Event(), threading.Event()

    def write_piece(self, *args: Any, **options: Any) -> int:
        stored = super().write_piece(*args, **options)
        self.left -= 1
        if self.left == 0:
            self.reached.set()
            self.go.wait(20)
        return stored


def test_put_resumes_after_the_server_was_stopped_midway(tmp_path: Path) -> None:
    data = os.urandom(19 * PIECE)
    digest = hashlib.sha256(data).hexdigest()
    server = Server(tmp_path, blobs=Stalling)
    first = server.blobs
    assert isinstance(first, Stalling)
    with dial(server, "north") as north:
        north.phase = "upload"
        done: list[str] = []
        sender = threading.Thread(target=lambda: done.append(north.put(data)))
        sender.start()
        assert first.reached.wait(20)
        server.hub._stopping = True  # it ends as a killed process does: what it received and did not store is gone,
        server.hub._reply = lambda *_: None  # type: ignore[assignment,method-assign]  # and so is its last answer
        first.go.set()
        server.stop()
        stored = Blobs(server.blobs.folder).stored(digest, "north")
        assert stored >= 7 * PIECE
        assert stored < len(data)
        server.start()
        sender.join(30)
        assert done == [digest] and server.blobs.get(digest) == data
        missing = len(data) - stored
        again = server.hub.traffic["north"]["upload"]["up"]
        pieces = missing // PIECE + 1
        assert missing <= again < missing + (pieces + 10) * HEADER, f"one repeated piece would be {PIECE} bytes more"
        north.wait(0, 0)
    server.stop()


def test_broken_connections_lose_nothing(server: Server) -> None:
    """Every connection breaks several times during a put, a get and posts; callers notice nothing."""
    proxy = Proxy(server.endpoint)
    data = os.urandom(6_000_000)
    with dial(server, "north", endpoint=proxy.endpoint) as north:
        results: list[Any] = []
        work = threading.Thread(
            target=lambda: results.extend([north.put(data), north.get(hashlib.sha256(data).hexdigest())])
        )
        work.start()
        for i in range(4):
            time.sleep(0.1)
            proxy.cut()
            assert north.post(record("north", f"cut/{i}")) == i + 1
        work.join(30)
        assert results == [hashlib.sha256(data).hexdigest(), data]
        assert len(server.board) == 4
    proxy.close()


def test_requests_wait_for_a_server_that_restarts(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with dial(server, "north") as north:
        server.stop()
        posted: list[int] = []
        thread = threading.Thread(target=lambda: posted.append(north.post(record("north", "a"))))
        thread.start()
        time.sleep(0.2)
        assert not posted
        server.start()
        thread.join(20)
        assert posted == [1]


def test_server_that_lost_its_state_ends_the_link(tmp_path: Path) -> None:
    server = Server(tmp_path / "one")
    with dial(server, "north") as north:
        server.stop()
        other = Server.__new__(Server)
        other.folder, other.manifest, other.session, other.endpoint = (
            tmp_path / "two",
            MANIFEST,
            "0f" * 32,
            server.endpoint,
        )
        other.start()
        with pytest.raises(FocalError, match="without the state of this session"):
            for _ in range(200):
                north.wait(0, 0.1)
        other.stop()


def test_silence_is_reported_once_and_requests_are_repeated(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """The hub's thread is held, as by a machine that sleeps: no connection breaks, nothing is answered."""
    release = threading.Event()
    real = server.hub._handlers[frames.Have]

    def hold(*args: Any) -> Any:
        release.wait(20)
        return real(*args)

    server.hub._handlers[frames.Have] = hold
    with dial(server, "north") as north:
        north.BEAT, north.QUIET = 0.05, 0.3
        with caplog.at_level(logging.WARNING, "focal.net"):
            answers: list[list[int]] = []
            asker = threading.Thread(target=lambda: answers.append(north.have(["00" * 32])))
            asker.start()
            eventually(lambda: "still trying" in caplog.text)
            time.sleep(0.8)
            release.set()
            asker.join(10)
            eventually(lambda: "answers again" in caplog.text)
        assert answers == [[0]]
        assert caplog.text.count("still trying") == 1 and server.endpoint in caplog.text


def test_close_ends_what_waits(server: Server) -> None:
    link = Link(MANIFEST, PEOPLE["north"], server.endpoint)
    link.open(10)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            link.wait(0, 30)
        except FocalError as e:
            errors.append(e)

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: len(server.hub._waits) == 1)
    link.close()
    thread.join(5)
    assert len(errors) == 1 and "closed" in str(errors[0])
    with pytest.raises(FocalError, match="closed"):
        link.post(record("north", "a"))


# --------------------------------------------------------------------------- liveness


def test_heartbeats_and_records_pass_a_send_that_stands_still(server: Server) -> None:
    """They have a connection of their own: where a window of pieces stands still, they would wait behind it."""
    proxy = Proxy(server.endpoint, limit=2 * PIECE)
    beats, enough = 0, threading.Event()
    real = server.hub._handlers[frames.Beat]

    def beat(*args: Any) -> Any:
        nonlocal beats
        beats += 1
        if beats > 8:
            enough.set()
        return real(*args)

    with dial(server, "north", endpoint=proxy.endpoint) as north:
        north.BEAT = 0.02
        thread = threading.Thread(target=lambda: north.put(os.urandom(8 * PIECE)))
        thread.start()
        assert proxy.stands.wait(PATIENCE)
        server.hub._handlers[frames.Beat] = beat
        assert north.post(record("north", "a")) == 1 and enough.wait(PATIENCE)
        assert thread.is_alive() and server.hub.traffic["north"]["setup"]["up"] < 3 * PIECE
        proxy.go.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    proxy.close()
