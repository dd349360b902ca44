"""Hub and Link over real sockets on 127.0.0.1: who may speak, records, blobs. When connections or the server fail:
test_outages.py; what hostile members send: test_hostile_members.py."""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parties import SCOPE, manifest_of
from patience import PATIENCE
from serving import HEADER, MANIFEST, PEOPLE, SESSION, Raw, Server, dial, eventually, record

from focal.config import VERSION
from focal.errors import FocalError, ProtocolError, Refused
from focal.net import frames, hub
from focal.net import messages as msg
from focal.net.frames import PIECE
from focal.net.identity import Identity
from focal.net.store import Blobs, Board
from focal.net.transport import Hub, Link

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
        assert north.post(record("north", "a")) == 1
        assert south.post(record("south", "a")) == 2
        assert north.post(record("north", "a")) == 1
        assert north.wait(0, 0) == [record("north", "a"), record("south", "a")]
        assert north.wait(2, 0.05) == []


@pytest.mark.parametrize("whose", ["another member's", "the server's own"])
def test_a_record_ends_a_long_poll(server: Server, monkeypatch: pytest.MonkeyPatch, whose: str) -> None:
    """At once: on this clock no deadline comes, no heartbeat wakes the hub, and it does not look up by itself."""
    monkeypatch.setattr(Link, "BEAT", 3600.0)
    monkeypatch.setattr(Link, "QUIET", 3600.0)
    monkeypatch.setattr(hub, "LOOKS_UP", 2 * PATIENCE)
    monkeypatch.setattr(hub, "time", SimpleNamespace(monotonic=itertools.count(0, -1000).__next__))
    looked, real = threading.Event(), server.hub._answer_waits

    def look() -> None:
        real()
        if server.hub._waits:
            looked.set()

    monkeypatch.setattr(server.hub, "_answer_waits", look)
    with dial(server, "north") as north, dial(server, "south") as south:
        heard: list[list[bytes]] = []
        waiter = threading.Thread(target=lambda: heard.append(south.wait(0, 30)))
        waiter.start()
        assert looked.wait(PATIENCE)
        if whose == "the server's own":  # of another thread than the hub's
            server.board.append(record("north", "a"), None)
        else:
            north.post(record("north", "a"))
        waiter.join(PATIENCE)
        assert heard == [[record("north", "a")]]


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
