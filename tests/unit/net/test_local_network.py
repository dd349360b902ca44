"""The network within one process: what a member is told is what it would be told over a wire."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from parties import SCOPE, identities, manifest_of
from patience import PATIENCE

from focal.errors import FocalError, Refused
from focal.manifest import Manifest
from focal.net import frames
from focal.net import messages as msg
from focal.net.frames import PIECE
from focal.net.identity import Identity
from focal.net.local import LocalHub, LocalLink, LocalNetwork
from focal.net.quotas import FILE, Quota
from focal.net.store import Blobs, Board

SESSION = "ab" * 32


class Place:
    """A network with a hub on a folder, and links to it."""

    def __init__(self, folder: Path) -> None:
        self.people = identities()
        self.manifest: Manifest = manifest_of(self.people)
        self.network, self.folder = LocalNetwork(), folder
        self.hub = self.serve()

    def serve(self, session: str = SESSION) -> LocalHub:
        """Another hub on the same folder, as a server that was started again has it."""
        self.board, self.blobs = Board(self.folder / "board.sqlite", self.manifest), Blobs(self.folder / "blobs")
        self.hub = LocalHub(self.network, self.manifest, self.board, self.blobs, session)
        self.hub.start()
        return self.hub

    def stop(self) -> None:
        self.hub.stop()
        self.board.close()

    def link(self, name: str, manifest: Manifest | None = None, identity: Identity | None = None) -> LocalLink:
        link = LocalLink(self.network, manifest or self.manifest, identity or self.people[name])
        link.open(1)
        return link

    def said(self, name: str, topic: str = "nonce/commit", commitment: str = "0" * 64) -> bytes:
        return self.people[name].sign_record(SCOPE, topic, msg.NonceCommit(commitment=commitment))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.stop()


def in_thread(act: Any) -> tuple[threading.Thread, list[Any]]:
    """``act`` in another thread; its result, or what it raised, is put into the list."""
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(act())
        except Exception as e:
            out.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, out


def ended(thread: threading.Thread, out: list[Any]) -> Any:
    thread.join(PATIENCE)
    assert not thread.is_alive()
    return out[0]


def test_records_reach_everybody_once_and_in_order(place: Place) -> None:
    north, south = place.link("north"), place.link("south")
    first, second = place.said("north"), place.said("south")
    assert (north.post(first), north.post(first), south.post(second)) == (1, 1, 2)
    assert north.wait(0, 0) == south.wait(0, 0) == [first, second] and north.wait(2, 0) == []
    assert place.hub.told == {"north": 2, "south": 2}
    with pytest.raises(Refused, match="something else") as e:
        north.post(place.said("north", commitment="1" * 64))
    assert e.value.reason == "second-record"
    with pytest.raises(Refused) as e:
        south.post(place.said("west"))
    assert e.value.reason == "sender"


def test_a_wait_ends_with_the_record_that_it_waits_for(place: Place) -> None:
    north, south = place.link("north"), place.link("south")
    waiting = in_thread(lambda: north.wait(0, PATIENCE))
    south.post(place.said("south"))
    assert ended(*waiting) == [place.said("south")]


def test_blobs_go_to_their_audience_only(place: Place) -> None:
    """More than one piece; the bytes that both sides count are the same."""
    north, west, custodian = place.link("north"), place.link("west"), place.link("custodian-1")
    north.phase = "upload"
    large, small = np.random.default_rng(0).bytes(2 * PIECE + 5), b"for all"
    digest, (public,) = north.put(large, "custodians"), north.put_many([small], "all")
    assert custodian.get(digest) == large and west.get(public) == small and north.have([digest, "0" * 64]) == [-1, 0]
    for act, reason in ((lambda: west.get(digest), "audience"), (lambda: west.get("0" * 64), "unknown-blob")):
        with pytest.raises(Refused) as e:
            act()
        assert e.value.reason == reason
    assert len(large) < north.traffic["upload"]["up"] < len(large) + 2000
    for link in (north, west, custodian):
        assert place.hub.traffic[link.name] == link.traffic


def test_another_manifest_or_name_is_refused(place: Place) -> None:
    with pytest.raises(Refused) as e:
        place.link("north", manifest=place.manifest.model_copy(update={"name": "other"}))
    assert e.value.reason == "manifest"
    with pytest.raises(FocalError):
        place.link("north", identity=Identity.new("north"))


def test_a_server_that_is_away_is_waited_for(place: Place) -> None:
    """A wait and a post outlast it; it comes back with its board. Without its session it is refused."""
    north, south = place.link("north"), place.link("south")
    north.post(place.said("north"))
    waiting = in_thread(lambda: south.wait(1, PATIENCE))
    place.stop()
    posting = in_thread(lambda: north.post(place.said("north", "nonce/reveal")))
    assert not posting[1] and not waiting[1]
    place.serve()
    assert ended(*posting) == 2 and ended(*waiting) == [place.said("north", "nonce/reveal")]
    place.stop()
    place.serve("cd" * 32)
    with pytest.raises(FocalError, match="without the state of this session"):
        north.wait(0, 0)


def test_a_closed_link_ends_every_wait_with_and_without_a_server(place: Place) -> None:
    north, south = place.link("north"), place.link("south")
    with_server = in_thread(lambda: north.wait(0, PATIENCE))
    north.close()
    place.stop()
    without = in_thread(lambda: south.wait(0, PATIENCE))
    south.close()
    for waiting in (with_server, without):
        assert "is closed" in str(ended(*waiting))
    begun = time.monotonic()
    with pytest.raises(FocalError, match="no server in this process"):
        LocalLink(place.network, place.manifest, place.people["west"]).open(0.05)
    assert time.monotonic() - begun < PATIENCE / 10
    place.serve()


def test_who_is_silent_is_who_was_not_heard_of_for_so_long(place: Place) -> None:
    place.link("north")
    assert place.hub.silent(3600) == [], "nobody, so soon after it began to listen"
    place.hub._began -= 100
    silent = place.hub.silent(50)
    assert "north" not in silent and {"south", "custodian-1"} <= set(silent)
    place.hub.seen["south"] = place.hub._began + 90
    assert "south" not in place.hub.silent(50) and "custodian-1" in place.hub.silent(50)


def test_who_is_behind_is_who_is_there_and_was_not_told(place: Place) -> None:
    north, south = place.link("north"), place.link("south")
    north.post(place.said("north"))
    assert set(place.hub.behind(1)) == {"north", "south"}
    north.wait(0, 0)
    assert place.hub.behind(1) == ["south"]
    south.close()
    assert place.hub.behind(0) == []


def test_two_members_may_send_the_same_blob_at_the_same_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that comes second finds it there, whatever the first is at."""
    inside, waits, honest = threading.Lock(), threading.Event(), Blobs._publish

    def slow(self: Blobs, written: str, digest: str) -> None:
        assert inside.acquire(blocking=False), "two at a time"
        waits.wait(0.2)
        honest(self, written, digest)
        inside.release()

    monkeypatch.setattr(Blobs, "_publish", slow)
    links, sent = [place.link("north"), place.link("south")], list[list[str]]()
    threads = [threading.Thread(target=lambda x=x: sent.append(x.put_many(pieces(2), "all"))) for x in links]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sent) == 2 and sent[0] == sent[1] and place.hub.failure is None


class Limited(Place):
    """A server that has room for three pieces of south, and for two of its records."""

    quotas: ClassVar[dict[str, Quota]] = {"south": Quota(3 * (FILE + PIECE), 700)}

    def serve(self, session: str = SESSION) -> LocalHub:
        self.blobs = Blobs(self.folder / "blobs")
        self.board = Board(self.folder / "board.sqlite", self.manifest, quotas=self.quotas)
        self.hub = LocalHub(self.network, self.manifest, self.board, self.blobs, session, self.quotas)
        self.hub.start()
        return self.hub


def pieces(count: int, first: int = 1) -> list[bytes]:
    return [bytes([i]) * PIECE for i in range(first, first + count)]


@pytest.mark.parametrize("restarted", [False, True])
def test_who_floods_the_disk_is_refused_by_name(tmp_path: Path, restarted: bool) -> None:
    """Whatever it has sent is sent again for nothing; others are as they were; a server that was started again
    remembers."""
    place = Limited(tmp_path)
    try:
        south, north = place.link("south"), place.link("north")
        sent = south.put_many(pieces(3), "custodians")
        if restarted:
            place.stop()
            place.serve()
        assert south.put_many(pieces(3), "custodians") == sent
        with pytest.raises(
            Refused,
            match=f"'south' sends {4 * FILE + 3 * PIECE + 1} bytes of blobs, this run needs {3 * (FILE + PIECE)}",
        ) as e:
            south.put(b"x")
        assert e.value.reason == "quota" and hashlib.sha256(b"x").hexdigest() not in place.blobs
        north.put_many(pieces(5, first=10), "all")
        assert south.put_many(pieces(1, first=10), "all"), "what is there costs nothing"
    finally:
        place.stop()


@pytest.mark.parametrize("restarted", [False, True])
def test_what_is_begun_and_never_ended_counts(tmp_path: Path, restarted: bool) -> None:
    """By the size that was announced, and by what has arrived where the server was started again."""
    place = Limited(tmp_path)
    try:
        south = place.link("south")
        for i in (1, 2):
            south._ask(
                frames.Put(digest=f"{i}" * 64, size=3 * PIECE // 2, offset=0, audience="all"),
                frames.PutOk,
                pieces(1)[0],
            )
        if restarted:
            place.stop()
            place.serve()
        with pytest.raises(Refused, match="quota"):
            south._ask(frames.Put(digest="3" * 64, size=2 * PIECE, offset=0, audience="all"), frames.PutOk, b"x")
        assert sum(size for _, _, size in place.blobs.begun()) == 2 * PIECE
    finally:
        place.stop()


class Small(Limited):
    quotas: ClassVar[dict[str, Quota]] = {"south": Quota(5 * (FILE + 1), 700)}


@pytest.mark.parametrize("restarted", [False, True])
def test_blobs_of_one_byte_are_as_few_as_the_room_they_take(tmp_path: Path, restarted: bool) -> None:
    """Else a quota would be as many files, and as many entries of the server's memory."""
    place = Small(tmp_path)
    try:
        south = place.link("south")
        sent = south.put_many([b"1", b"2", b"3", b"4", b"5"], "custodians")
        if restarted:
            place.stop()
            place.serve()
        assert south.put_many([b"1", b"2", b"3", b"4", b"5"], "custodians") == sent
        with pytest.raises(Refused, match="quota"):
            south.put(b"6")
    finally:
        place.stop()


@pytest.mark.parametrize("restarted", [False, True])
def test_who_floods_the_board_is_refused_by_name_and_may_still_end(tmp_path: Path, restarted: bool) -> None:
    place = Limited(tmp_path)
    try:
        said = [place.said("south", f"nonce/{i}") for i in range(3)]
        assert len(said[0]) * 2 < 700 < len(said[0]) * 3
        south, north = place.link("south"), place.link("north")
        assert [south.post(record) for record in said[:2]] == [1, 2]
        if restarted:
            place.stop()
            place.serve()
        assert south.post(said[0]) == 1, "the same again"
        with pytest.raises(Refused, match="'south' says .* bytes in all, this run needs 700 of it") as e:
            south.post(said[2])
        assert e.value.reason == "quota" and len(place.board) == 2
        assert south.post(place.people["south"].sign_record(SCOPE, "abort", msg.Abort(reason="too much"))) == 3
        assert [north.post(place.said("north", f"nonce/{i}")) for i in range(4)] == [4, 5, 6, 7]
    finally:
        place.stop()
