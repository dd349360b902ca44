"""Hub and Link over real sockets on 127.0.0.1: who may speak, what is refused, and what survives a restart."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import resource
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parties import SCOPE, manifest_of
from serving import MANIFEST, PEOPLE, SESSION, Raw, Server

from focal.config import VERSION
from focal.errors import FocalError, ProtocolError, Refused
from focal.net import frames, hub
from focal.net import messages as msg
from focal.net.encoding import encode
from focal.net.frames import PIECE
from focal.net.identity import Identity
from focal.net.store import Blobs, Board, DiskError
from focal.net.transport import Hub, Link

HEADER = 400
"""More than any header of a put (two digests' worth of hex, names and numbers: about 150 bytes) or beat."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.stop()


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


@pytest.fixture
def raw(server: Server) -> Iterator[Raw]:
    raw = Raw(server, "north")
    yield raw
    raw.close()


class SlowLink:
    """A TCP proxy that passes ``rate`` bytes a second up each connection, with little buffered on the way."""

    def __init__(self, endpoint: str, rate: float) -> None:
        self.target = int(endpoint.rsplit(":", 1)[1])
        self.rate = rate
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
                threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, slow: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(16 << 10):
                if slow:
                    time.sleep(len(data) / self.rate)
                sink.sendall(data)

    def cut(self) -> None:
        """Break every connection, as a router that restarts does."""
        for s in self.sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()
        self.sockets = []

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()


# --------------------------------------------------------------------------- who may speak


def test_welcome_names_the_session(server: Server) -> None:
    with Link(MANIFEST, PEOPLE["north"], server.endpoint) as link:
        assert link.open(10) == frames.Welcome(version=VERSION, session=SESSION)


def test_key_off_the_allow_list_is_refused_and_told_so(server: Server) -> None:
    stranger = Identity.new("north")  # right name, own keys, and a manifest of its own that lists them
    manifest = manifest_of({**PEOPLE, "north": stranger})
    began = time.monotonic()
    with (
        pytest.raises(FocalError, match="not on the allow-list") as e,
        Link(manifest, stranger, server.endpoint) as link,
    ):
        link.open(30)
    assert server.endpoint in str(e.value) and "'north'" in str(e.value)
    assert time.monotonic() - began < 15, "refused at once, not after the whole timeout"
    assert server.hub.seen == {}


def test_wrong_server_key_is_told_apart(server: Server) -> None:
    manifest = manifest_of({**PEOPLE, "server": Identity.new("server")})
    with pytest.raises(FocalError, match="server key") as e, Link(manifest, PEOPLE["north"], server.endpoint) as link:
        link.open(30)
    assert server.endpoint in str(e.value) and "allow-list" not in str(e.value)


def test_nobody_there_names_the_endpoint_and_causes(server: Server) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        with (
            pytest.raises(FocalError, match="nothing listens there") as e,
            Link(MANIFEST, PEOPLE["north"], endpoint) as link,
        ):
            link.open(0.5)
    assert endpoint in str(e.value) and "start the server" in str(e.value)


def test_bad_endpoints_are_named() -> None:
    with pytest.raises(FocalError, match="tcp://HOST:PORT"), Link(MANIFEST, PEOPLE["north"], "http:nonsense") as link:
        link.open(1)


def test_keys_that_are_not_in_the_manifest_do_not_even_dial() -> None:
    with pytest.raises(FocalError, match="key file of 'north' is not the one"):
        Link(MANIFEST, Identity.new("north"), "tcp://127.0.0.1:1")


def test_another_manifest_stops_the_party_by_name(server: Server) -> None:
    other = manifest_of(PEOPLE, dataset="another")
    with (
        pytest.raises(Refused, match="'north' holds another manifest") as e,
        Link(other, PEOPLE["north"], server.endpoint) as link,
    ):
        link.open(10)
    assert e.value.reason == "manifest"


def test_hello_under_anothers_name_or_version_is_refused(raw: Raw) -> None:
    ours = MANIFEST.hash.hex()
    name = raw.ask(frames.Hello(version=VERSION, name="south", manifest=ours))
    assert name.reason == "name" and "'north'" in name.message and "'south'" in name.message
    version = raw.ask(frames.Hello(version=VERSION + 1, name="north", manifest=ours))
    assert version.reason == "version"
    assert isinstance(raw.ask(frames.Hello(version=VERSION, name="north", manifest=ours)), frames.Welcome)


def test_port_in_use(server: Server, tmp_path: Path) -> None:
    board = Board(tmp_path / "other" / "board.sqlite", MANIFEST)
    hub = Hub(MANIFEST, PEOPLE["server"], board, Blobs(tmp_path / "other" / "blobs"), SESSION, server.endpoint)
    with pytest.raises(FocalError, match="stop the process that uses the port") as e:
        hub.start()
    assert server.endpoint in str(e.value)


def test_hub_needs_the_servers_keys(tmp_path: Path) -> None:
    with pytest.raises(FocalError, match="'server' is not the one in the manifest"):
        Hub(
            MANIFEST, Identity.new("server"), Board(tmp_path / "b.sqlite", MANIFEST), Blobs(tmp_path / "blobs"), SESSION
        )


# --------------------------------------------------------------------------- records


def test_two_members_post_and_wait(server: Server) -> None:
    with dial(server, "north") as north, dial(server, "south") as south:
        heard: list[list[bytes]] = []
        waiter = threading.Thread(target=lambda: heard.append(south.wait(0, 20)))
        waiter.start()
        eventually(lambda: len(server.hub._waits) == 1)
        began = time.monotonic()
        assert north.post(record("north", "a")) == 1
        waiter.join()
        assert heard == [[record("north", "a")]] and time.monotonic() - began < 5, (
            "a long poll ends when the board grows"
        )
        assert south.post(record("south", "a")) == 2
        assert north.post(record("north", "a")) == 1
        assert north.wait(0, 0) == [record("north", "a"), record("south", "a")]
        assert north.wait(2, 0.05) == []
        timer = threading.Timer(0.2, lambda: server.board.append(record("server", "a"), "server"))
        timer.start()
        began = time.monotonic()
        assert north.wait(2, 20) == [record("server", "a")]
        assert time.monotonic() - began < 0.7, (
            "a record of the server's own threads wakes the hub, which looks up only every second"
        )
        timer.join()


def test_second_record_and_borrowed_name_are_refused(server: Server) -> None:
    with dial(server, "north") as north:
        north.post(record("north", "a", "first"))
        with pytest.raises(Refused, match="'north' has already said something else under 'a'") as second:
            north.post(record("north", "a", "second"))
        assert second.value.reason == "second-record"
        with pytest.raises(Refused) as sender:
            north.post(record("south", "a"))
        assert sender.value.reason == "sender"
        with pytest.raises(Refused) as malformed:
            north.post(b"\x00")
        assert malformed.value.reason == "record"


def test_many_records_come_in_batches_in_order(server: Server) -> None:
    said = [record("north", f"t/{i}", "z" * 500) for i in range(600)]  # 0.45 MB: more than one batch
    for r in said:
        server.board.append(r, None)
    with dial(server, "south") as south:
        heard: list[bytes] = []
        batches = 0
        while len(heard) < len(said):
            heard += south.wait(len(heard), 5)
            batches += 1
        assert heard == said and batches > 1


def test_a_record_larger_than_a_batch_passes(server: Server) -> None:
    big = PEOPLE["north"].sign_record(SCOPE, "big", msg.TestFeatures(features=bytes(1 << 20)))
    with dial(server, "north") as north, dial(server, "south") as south:
        assert north.post(big) == 1
        assert south.wait(0, 5) == [big]


# --------------------------------------------------------------------------- blobs


def test_put_and_get(server: Server) -> None:
    blobs = [os.urandom(n) for n in (1, PIECE - 1, PIECE, PIECE + 1, 5_000_000)]
    with dial(server, "north") as north, dial(server, "south") as south:
        steps: list[tuple[int, int]] = []
        digests = north.put_many([*blobs, blobs[0]], "all", lambda done, total: steps.append((done, total)))
        assert digests == [hashlib.sha256(b).hexdigest() for b in [*blobs, blobs[0]]]
        total = sum(map(len, blobs))
        assert steps[-1] == (total, total) and steps == sorted(steps)
        assert [south.get(d) for d in digests] == [*blobs, blobs[0]]
        assert north.have([*digests[:2], "00" * 32]) == [-1, -1, 0]
        before = north.traffic["setup"]["up"]
        north.put_many(blobs)
        assert north.traffic["setup"]["up"] - before < 10 * HEADER, "what is there is not sent again"


def test_traffic_is_counted_by_phase_on_both_ends(server: Server) -> None:
    data = os.urandom(600_000)
    with dial(server, "north") as north, dial(server, "south") as south:
        north.phase = "upload"
        digest = north.put(data)
        south.phase = "release"
        south.get(digest)
        for link, phase, way in ((north, "upload", "up"), (south, "release", "down")):
            counted = link.traffic[phase][way]
            assert len(data) < counted < len(data) + 20 * HEADER
            eventually(lambda link=link, phase=phase: server.hub.traffic[link.name][phase] == link.traffic[phase])


@pytest.mark.parametrize("audience", ["server", "custodians", "all"])
def test_audience_is_enforced(server: Server, audience: Any) -> None:
    data = os.urandom(1000)
    with dial(server, "north") as north, dial(server, "south") as south, dial(server, "custodian-1") as custodian:
        digest = north.put(data, audience)
        mine = hashlib.sha256(b"made here").hexdigest()
        assert server.hub.publish(b"made here", audience) == mine
        for link, may in ((south, audience == "all"), (custodian, audience != "server"), (north, audience == "all")):
            for d, content in ((digest, data), (mine, b"made here")):
                if may:
                    assert link.get(d) == content
                else:
                    with pytest.raises(Refused) as e:
                        link.get(d)
                    assert e.value.reason == "audience"


def test_naming_a_blob_does_not_open_it(server: Server, raw: Raw) -> None:
    """North knows a digest from the board but not the bytes: claiming 'all' for it must change nothing."""
    data = os.urandom(1000)
    digest = hashlib.sha256(data).hexdigest()
    claim = frames.Put(digest=digest, size=1000, offset=0, audience="all")
    assert raw.ask(claim, bytes(1000)).reason == "digest"  # before south's upload
    with dial(server, "south") as south:
        south.put(data, "custodians")
    raw.ask(claim, bytes(1000))  # and after it
    assert raw.ask(frames.Get(digest=digest, offset=0)).reason == "audience"


def test_unknown_blob_and_wrong_pieces_are_refused(server: Server, raw: Raw) -> None:
    with dial(server, "south") as south, pytest.raises(Refused) as e:
        south.get("00" * 32)
    assert e.value.reason == "unknown-blob"
    put = frames.Put(digest="00" * 32, size=10, offset=0)
    assert raw.ask(put, b"").reason == "size"
    assert raw.ask(put, bytes(11)).reason == "size"
    assert raw.ask(frames.Put(digest="00" * 32, size=frames.MAX_BLOB, offset=0), bytes(PIECE + 1)).reason == "size"
    assert raw.ask(frames.Put(digest="00" * 32, size=10, offset=5), bytes(5)).reason == "offset"
    assert raw.ask(frames.Beat(), b"payload").reason == "malformed"
    with dial(server, "south") as south:
        for bad in (b"", bytes(frames.MAX_BLOB + 1)):
            with pytest.raises(FocalError, match="64 Mi bytes"):
                south.put(bad)


def test_server_that_sends_other_bytes_is_named(server: Server) -> None:
    class Lying(Blobs):
        def read_piece(self, digest: str, offset: int, length: int) -> bytes:
            piece = super().read_piece(digest, offset, length)
            return piece[:-1] + bytes([piece[-1] ^ 1])

    with dial(server, "north") as north:
        digest = north.put(os.urandom(1000))
        server.hub.blobs = Lying(server.blobs.folder)
        with pytest.raises(ProtocolError, match="'server'.*sent other bytes"):
            north.get(digest)


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


class Held(Blobs):
    """Does not write ``held`` before it may."""

    held = ""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.reached, self.go = threading.Event(), threading.Event()

    def write_piece(self, digest: str, *args: Any, **options: Any) -> int:
        if digest == self.held:
            self.reached.set()
            assert self.go.wait(20)
        return super().write_piece(digest, *args, **options)


@pytest.mark.parametrize("waiting", [hub.MAX_WRITES, 1])
def test_blobs_do_not_wait_for_each_others_disk(tmp_path: Path, waiting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was received and is not written yet counts as received: it is not sent again.
    With one piece at a time all arrives too."""
    monkeypatch.setattr(hub, "MAX_WRITES", waiting)
    data, other = os.urandom(2 * PIECE), os.urandom(3 * PIECE + 1)
    server = Server(tmp_path, blobs=Held)
    blobs = server.blobs
    assert isinstance(blobs, Held)
    blobs.held = hashlib.sha256(data).hexdigest()
    with dial(server, "north") as north, dial(server, "south") as south:
        sender = threading.Thread(target=north.put, args=(data,))
        sender.start()
        assert blobs.reached.wait(20)
        if waiting > 1:
            assert south.put(other) in blobs
        sizes: list[list[int]] = []
        asker = threading.Thread(target=lambda: sizes.append(south.have([blobs.held])))
        asker.start()
        blobs.go.set()
        sender.join(20)
        asker.join(20)
        assert sizes[0][0] in (-1, 0)  # 0: south's own transfer of it, before north's was complete
        assert north.have([blobs.held]) == [-1] and south.put(other) in blobs
    server.stop()


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
    proxy = SlowLink(server.endpoint, 20e6)
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


def test_heartbeats_pass_a_slow_send(server: Server) -> None:
    """30 MB over a link of 1 MB/s: behind one window of pieces (4 MiB) a heartbeat or a post would wait 4 s or more."""
    proxy = SlowLink(server.endpoint, 1e6)
    with dial(server, "north", endpoint=proxy.endpoint) as north:
        north.BEAT, north.doing = 0.1, "uploading"
        thread = threading.Thread(target=lambda: north.put(os.urandom(30_000_000)))
        thread.start()
        eventually(lambda: server.hub.traffic["north"].get("setup", {}).get("up", 0) > 2 * PIECE)
        gaps, last, beats = [], None, 0
        real = server.hub._handlers[frames.Beat]

        def beat(*args: Any) -> Any:
            nonlocal last, beats
            now = time.monotonic()
            gaps.append(now - (last or now))
            last, beats = now, beats + 1
            return real(*args)

        server.hub._handlers[frames.Beat] = beat
        time.sleep(2)
        began = time.monotonic()
        assert north.post(record("north", "a")) == 1
        assert time.monotonic() - began < 0.7
        assert thread.is_alive() and server.hub.traffic["north"]["setup"]["up"] < 15_000_000
        assert beats >= 8 and max(gaps) < 0.7, (beats, max(gaps))
        assert server.hub.seen["north"][1] == "uploading"
        proxy.rate = 1e9
        thread.join(30)
        assert not thread.is_alive()
    proxy.close()


# --------------------------------------------------------------------------- hostile bytes


def test_hub_answers_after_thousands_of_malformed_frames(
    server: Server, raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    header = st.binary(max_size=60) | st.sampled_from(
        [
            encode(m)
            for m in (
                frames.Post(),
                frames.Beat(),
                frames.Have(digests=("00" * 32,)),
                frames.Get(digest="00" * 32, offset=0),
            )
        ]
    )
    frame = st.lists(st.binary(max_size=40), min_size=0, max_size=7) | st.tuples(
        st.binary(min_size=8, max_size=8),
        st.sampled_from([b"setup", b"", b"UPPER", b"\xff", b"a" * 40]),
        header,
        st.binary(max_size=40),
    ).map(list)

    @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(frame, min_size=20, max_size=40))
    def throw(noise: list[list[bytes]]) -> None:
        for parts in noise:
            if parts:
                raw.socket.send_multipart(parts)
        assert isinstance(raw.ask(frames.Beat(doing="alive")), frames.BeatOk)

    with caplog.at_level(logging.WARNING, "focal.net"):
        throw()
    assert server.hub.malformed > 1000
    assert 0 < len(caplog.records) < 40, "a flood of bad frames must not flood the log"
    assert not [r for r in caplog.records if r.exc_info], "no handler failed"
    assert len(server.board) == 0
    with dial(server, "south") as south:
        assert south.post(record("south", "a")) == 1


def test_tcp_noise_at_the_port_does_not_disturb(server: Server) -> None:
    port = int(server.endpoint.rsplit(":", 1)[1])
    for noise in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(5000), b"\xff" + bytes(8) + b"\x7f" + os.urandom(100), b""):
        with socket.create_connection(("127.0.0.1", port)) as s, contextlib.suppress(OSError):
            s.sendall(noise)
    with dial(server, "north") as north:
        assert north.post(record("north", "a")) == 1


def test_phases_cannot_fill_the_servers_memory(server: Server, raw: Raw) -> None:
    for i in range(200):
        raw.socket.send_multipart(
            [os.urandom(8), b"p" + b"abcdefghij"[i % 10 : i % 10 + 1] * (i // 10 + 1), encode(frames.Beat()), b""]
        )
    assert isinstance(raw.ask(frames.Beat()), frames.BeatOk)
    assert len(server.hub.traffic["north"]) <= 33


def test_full_disk_at_the_server_is_told_to_both_sides(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    class Full(Blobs):
        def write_piece(self, *args: Any, **options: Any) -> int:
            raise DiskError(f"{self.folder}: the disk is full", hint="free space, then give the same command again")

    with dial(server, "north") as north:
        server.hub.blobs = Full(server.blobs.folder)
        with pytest.raises(Refused, match="server's disk is full") as e:
            north.put(b"data")
        assert e.value.reason == "disk" and str(server.folder) not in str(e.value)
        assert server.hub.failure is not None and "free space" in str(server.hub.failure)
        assert str(server.blobs.folder) in caplog.text
        server.hub.blobs = server.blobs
        assert north.put(b"data") in server.blobs


def test_a_mistake_in_a_handler_does_not_silence_the_server(server: Server) -> None:
    real = server.hub._handlers[frames.Have]
    server.hub._handlers[frames.Have] = lambda *_: 1 / 0  # type: ignore[assignment, return-value]
    with dial(server, "north") as north:
        with pytest.raises(Refused) as e:
            north.have(["00" * 32])
        assert e.value.reason == "internal"
        server.hub._handlers[frames.Have] = real
        assert north.have(["00" * 32]) == [0]


# --------------------------------------------------------------------------- what a party sees


def test_view_records_every_byte_received_and_nothing_else(server: Server, tmp_path: Path) -> None:
    shared, secret = os.urandom(400_000), os.urandom(5000)
    with dial(server, "north") as north, dial(server, "south", record=tmp_path / "view") as south:
        digest = north.put(shared)
        north.put(secret, "custodians")
        north.post(record("north", "a"))
        assert south.get(digest) == shared and south.wait(0, 5)
    headers, payloads = ((tmp_path / "view" / f"{n}.bin").read_bytes() for n in ("headers", "payloads"))
    assert payloads == shared
    assert record("north", "a") in headers
    assert secret[:64] not in headers + payloads
    assert len(headers) + len(payloads) >= sum(p["down"] for p in south.traffic.values())
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "view").iterdir()} == {0o600}


def test_a_member_holds_so_many_long_polls_and_again_when_they_were_answered(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MAX_WAITS", 3)
    raw = Raw(server, "north")

    def poll(after: int) -> None:
        raw.socket.send_multipart([os.urandom(8), b"setup", encode(frames.Wait(after=after, seconds=20)), b""])

    try:
        for after in (0, 1):  # the second time they are free again
            for _ in range(4):
                poll(after)
            assert raw.socket.recv_multipart(), "the fourth is answered at once"
            eventually(lambda: len(server.hub._waits) == 3)
            server.board.append(record("server", f"topic-{after}"), None)
            assert all(raw.socket.recv_multipart() for _ in range(3))
    finally:
        raw.close()


# --------------------------------------------------------------------------- open files


def test_a_server_raises_its_limit_of_files_as_far_as_it_may(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    server = Server(tmp_path)
    try:
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        server.stop()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_members_than_files_are_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    hub.allow_files("server", 480)
    with pytest.raises(
        FocalError, match="'server' has 481 members and needs 1026 open files; this system allows it 1024"
    ):
        hub.allow_files("server", 481)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    hub.allow_files("server", 10_000)
