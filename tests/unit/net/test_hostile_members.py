"""Whatever a member sends, the hub goes on and stays within its memory, disk and files; and what a member sees."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Raw, Server, dial, eventually, record

from focal.errors import FocalError, Refused
from focal.net import frames, hub
from focal.net.encoding import encode
from focal.net.store import Blobs, DiskError

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
        assert isinstance(raw.ask(frames.Beat()), frames.BeatOk)

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
