"""Blobs, board, journal: what was acknowledged is there after a restart, and a full disk breaks nothing."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import resource
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from parties import SCOPE, identities, manifest_of
from patience import PATIENCE

from focal.errors import FocalError, ProtocolError, Refused
from focal.net import messages as msg
from focal.net.audiences import Audiences
from focal.net.identity import Identity
from focal.net.recent import Recent
from focal.net.store import Blobs, Board, DiskError, Journal

PEOPLE = identities()
MANIFEST = manifest_of(PEOPLE)


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def record(name: str, topic: str, text: str = "x") -> bytes:
    return PEOPLE[name].sign_record(SCOPE, topic, msg.Abort(reason=text))


def modes(folder: Path) -> set[tuple[bool, int]]:
    return {(p.is_dir(), stat.S_IMODE(p.stat().st_mode)) for p in folder.rglob("*")}


# --------------------------------------------------------------------------- blobs


def test_blob_round_trip_is_private_and_survives_reopening(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs")
    data = os.urandom(100_000)
    digest = blobs.put(data)
    assert digest == digest_of(data) and digest in blobs and blobs.put(data) == digest
    assert Blobs(tmp_path / "blobs").get(digest) == data
    assert blobs.size(digest) == len(data)
    assert blobs.read_piece(digest, 99_990, 100) == data[99_990:]
    assert modes(tmp_path) <= {(True, 0o700), (False, 0o600)}
    assert not [p for p in (tmp_path / "blobs" / "partial").rglob("*") if p.is_file()]


def test_blob_that_changed_on_disk_is_named(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    digest = blobs.put(b"truth")
    path = tmp_path / digest[:2] / digest[2:]
    path.write_bytes(b"trutj")
    with pytest.raises(FocalError, match=str(path)):
        blobs.get(digest)
    with pytest.raises(FocalError):
        blobs.get("00" * 32)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "AB" * 32, "ab" * 31, "ab" * 32 + "\n", "/" * 64])
def test_only_digests_name_blobs(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProtocolError):
        Blobs(tmp_path).get(name)


def test_pieces_append_repeat_and_refuse_gaps(tmp_path: Path) -> None:
    blobs, data = Blobs(tmp_path), os.urandom(1000)
    digest = digest_of(data)
    assert blobs.stored(digest) == 0
    assert blobs.write_piece(digest, 1000, 0, data[:400]) == 400
    assert blobs.write_piece(digest, 1000, 0, data[:400]) == 400  # a repeat is acknowledged
    assert blobs.write_piece(digest, 1000, 100, data[100:200]) == 400
    with pytest.raises(Refused) as gap:
        blobs.write_piece(digest, 1000, 500, data[500:])
    assert gap.value.reason == "offset"
    assert Blobs(tmp_path).stored(digest) == 400
    with pytest.raises(Refused) as beyond:
        blobs.write_piece(digest, 1000, 400, bytes(601))
    assert beyond.value.reason == "size"
    assert blobs.write_piece(digest, 1000, 300, data[300:700]) == 700  # an overlap adds what is new
    seen: list[bool] = []
    assert blobs.write_piece(digest, 1000, 700, data[700:], before=lambda: seen.append(digest in blobs)) == -1
    assert seen == [False]
    assert blobs.stored(digest) == -1 and blobs.get(digest) == data
    assert blobs.write_piece(digest, 1000, 0, data[:10]) == -1


def test_wrong_whole_is_deleted_and_can_be_sent_again(tmp_path: Path) -> None:
    blobs, data = Blobs(tmp_path), os.urandom(100)
    digest = digest_of(data)
    with pytest.raises(Refused) as e:
        blobs.write_piece(digest, 100, 0, bytes(100), before=lambda: pytest.fail("ran before the digest was right"))
    assert e.value.reason == "digest" and blobs.stored(digest) == 0 and digest not in blobs
    assert blobs.write_piece(digest, 100, 0, data) == -1


def test_recent_blobs_stay_in_memory_within_their_room(tmp_path: Path) -> None:
    recent = Recent(250)
    for name in "abc":
        recent.add(name, name.encode() * 100)
    recent.add("c", b"another")  # the first bytes under a digest are the right ones
    recent.add("huge", bytes(251))
    assert [recent.get(name) and recent.get(name)[:1] for name in ("a", "b", "c", "huge")] == [None, b"b", b"c", None]  # type: ignore[index]

    blobs, data = Blobs(tmp_path, 1000), os.urandom(600)
    digests = [blobs.put(data), digest_of(data[::-1])]
    assert blobs.write_piece(digests[1], 600, 0, data[::-1]) == -1  # there is room for the last one only
    for digest in digests:
        (tmp_path / digest[:2] / digest[2:]).unlink()
    assert [digest in blobs for digest in digests] == [False, True]
    assert (blobs.get(digests[1]), blobs.size(digests[1]), blobs.read_piece(digests[1], 590, 100)) == (
        data[::-1],
        600,
        data[::-1][590:],
    )


def test_one_members_garbage_does_not_touch_anothers_transfer(tmp_path: Path) -> None:
    blobs, data = Blobs(tmp_path), os.urandom(100)
    digest = digest_of(data)
    blobs.write_piece(digest, 100, 0, bytes(50), owner="mallory")
    assert (blobs.stored(digest, "mallory"), blobs.stored(digest, "north")) == (50, 0)
    assert blobs.write_piece(digest, 100, 0, data, owner="north") == -1
    assert not list((tmp_path / "partial").rglob(digest))


def test_disk_full_midway_keeps_what_was_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs, data = Blobs(tmp_path), os.urandom(1000)
    digest = digest_of(data)
    blobs.write_piece(digest, 1000, 0, data[:400])
    real = os.pwrite

    def full(fd: int, view: memoryview, offset: int) -> int:
        if offset + len(view) <= 500:
            return real(fd, view, offset)
        if offset < 500:
            return real(fd, view[: 500 - offset], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskError, match="free space, then give the same command again") as e:
        blobs.write_piece(digest, 1000, 400, data[400:])
    assert str(tmp_path) in str(e.value)
    with pytest.raises(DiskError):
        blobs.put(data)
    assert blobs.stored(digest) == 400 and digest not in blobs
    monkeypatch.undo()
    assert blobs.write_piece(digest, 1000, 400, data[400:]) == -1
    assert blobs.get(digest) == data


FILLER = """
import resource, sys
from pathlib import Path
from focal.net.store import Blobs, DiskError, Journal
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
journal, blobs = Journal(folder / "journal.sqlite"), Blobs(folder / "blobs")
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for i in range(1000):
    try:
        journal.once(f"key-{i}", lambda: bytes([i % 256]) * 5000)
    except DiskError as e:
        print("journal", i, flush=True)
        assert "give the same command again" in str(e)
        break
try:
    blobs.put(bytes(limit + 1))
except DiskError as e:
    print("blobs", flush=True)
"""


def test_full_disk_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """A file-size limit makes the kernel refuse writes, in SQLite and in ours, as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", FILLER, str(tmp_path), "300000"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    word, count = done.stdout.split()[:2]
    assert word == "journal" and "blobs" in done.stdout
    stored = int(count)
    assert stored > 10
    journal = Journal(tmp_path / "journal.sqlite")
    for i in range(stored):
        assert journal.get(f"key-{i}") == bytes([i % 256]) * 5000
    assert journal.get(f"key-{stored}") is None
    assert journal.once(f"key-{stored}", lambda: b"now there is room") == b"now there is room"
    blobs = Blobs(tmp_path / "blobs")
    assert blobs.put(bytes(300_001)) in blobs


def test_full_disk_in_this_process_leaves_the_board_as_it_was(tmp_path: Path) -> None:
    """The same board object goes on when there is room again: no number is skipped, no record half there."""
    board = Board(tmp_path / "board.sqlite", MANIFEST)
    long = "y" * 500
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(DiskError):
            for i in range(1000):
                board.append(record("north", f"t/{i}", long), "north")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    stored = len(board)
    assert stored > 3
    assert board.append(record("north", f"t/{stored}", long), "north") == stored + 1
    board.close()
    again = Board(tmp_path / "board.sqlite", MANIFEST)
    assert again.since(0, 1 << 30) == [record("north", f"t/{i}", long) for i in range(stored + 1)]


def test_a_clinic_says_few_things(tmp_path: Path) -> None:
    """Everybody else keeps what it says in memory."""
    clinic = Identity.new("clinic-1")
    member = clinic.member("institution", rows=9, clinic=True)
    board = Board(tmp_path / "board.sqlite", MANIFEST.model_copy(update={"members": (*MANIFEST.members, member)}))
    key, word, end = msg.InputKey(public="0" * 64), msg.Finished(), msg.Abort(reason="x")
    again = clinic.sign_record(SCOPE, "inputs/key/e1", key)
    with pytest.raises(Refused, match="epoch 1, which nobody has proposed"):
        board.append(again, "clinic-1")
    board.append(record("server", "epoch/1"), "server")
    for topic, body in (("inputs/key", key), ("inputs/key/e1", key), ("finished", word), ("abort", end)):
        board.append(clinic.sign_record(SCOPE, topic, body), "clinic-1")
    for topic, body in (
        ("inputs/key/e9", key),
        ("upload", key),
        ("upload", end),
        ("finished/e1", word),
        ("abort/2", end),
        ("epoch/1/consent", word),
        ("sum/moments/commit", word),
    ):
        with pytest.raises(Refused, match="says no such thing under"):
            board.append(clinic.sign_record(SCOPE, topic, body), "clinic-1")
    board.append(record("north", "upload/x"), "north")
    assert len(board) == 6


def test_what_no_member_may_say_is_refused_before_it_is_stored(tmp_path: Path) -> None:
    def check(said: msg.Record) -> None:
        raise Refused("upload", f"'{said.sender}' names too much")

    board = Board(tmp_path / "board.sqlite", MANIFEST, check)
    with pytest.raises(Refused, match="'north' names too much"):
        board.append(record("north", "upload"), "north")
    assert len(board) == 0


def test_a_clinic_is_shown_its_own_records_and_those_of_openers(tmp_path: Path) -> None:
    """Numbered without gaps, before and after a restart, in whatever pieces; a founder is shown all."""
    people = {**PEOPLE, "clinic-1": Identity.new("clinic-1"), "clinic-2": Identity.new("clinic-2")}
    members = [people[n].member("institution", rows=9, clinic=True) for n in ("clinic-1", "clinic-2")]
    manifest = MANIFEST.model_copy(update={"members": (*MANIFEST.members, *members)})
    board, said = Board(tmp_path / "board.sqlite", manifest), list[tuple[str, bytes]]()
    for number in range(1, 5):
        board.append(record("server", f"epoch/{number}"), "server")
        said.append(("server", record("server", f"epoch/{number}")))
    order = ["north", "clinic-1", "clinic-2", "clinic-2", "server", "clinic-1", "south"]
    for again in (False, True):
        for i, name in enumerate(order):
            if name.startswith("clinic"):
                count = sum(n == name for n, _ in said)
                topic, body = "inputs/key" + (f"/e{count}" if count else ""), msg.InputKey(public="0" * 64)
                data = people[name].sign_record(SCOPE, topic, body)
            else:
                data = people[name].sign_record(SCOPE, f"topic/{again}/{i}", msg.Finished())
            board.append(data, name)
            said.append((name, data))
        for reader in ("clinic-1", "clinic-2", "north", "server"):
            own = [d for n, d in said if not reader.startswith("clinic") or n == reader or not n.startswith("clinic")]
            assert board.length(reader) == len(own)
            for after in range(len(own) + 1):
                assert board.since(after, 1 << 20, reader) == own[after:]
                assert board.since(after, 1, reader) == own[after : after + 1]
        board.close()
        board = Board(tmp_path / "board.sqlite", manifest)


# --------------------------------------------------------------------------- board


def test_board_numbers_records_without_gaps_and_keeps_them(tmp_path: Path) -> None:
    board = Board(tmp_path / "board.sqlite", MANIFEST)
    said = [record("north", "a"), record("south", "a"), record("north", "b/1")]
    assert [board.append(r, None) for r in said] == [1, 2, 3]
    assert board.append(said[1], "south") == 2 and len(board) == 3
    assert board.since(0, 1 << 20) == said and board.since(2, 1 << 20) == said[2:] and board.since(3, 1 << 20) == []
    assert board.since(0, 1) == said[:1]
    assert board.since(0, len(said[0]) + len(said[1]) + 16) == said[:2]
    board.close()
    again = Board(tmp_path / "board.sqlite", MANIFEST)
    assert len(again) == 3 and again.since(0, 1 << 20) == said
    assert again.append(record("west", "a"), "west") == 4
    assert modes(tmp_path) == {(False, 0o600)}


def test_board_refuses_a_change_of_mind_and_a_borrowed_name(tmp_path: Path) -> None:
    board = Board(tmp_path / "board.sqlite", MANIFEST)
    board.append(record("north", "topic", "first"), "north")
    with pytest.raises(Refused) as second:
        board.append(record("north", "topic", "second"), "north")
    assert second.value.reason == "second-record" and "'north'" in str(second.value) and "'topic'" in str(second.value)
    with pytest.raises(Refused) as other:
        board.append(record("south", "topic"), "north")
    assert other.value.reason == "sender" and "'north'" in str(other.value) and "'south'" in str(other.value)
    with pytest.raises(ProtocolError):
        board.append(b"\x00", "north")
    assert len(board) == 1


def test_board_wakes_who_waits(tmp_path: Path) -> None:
    board = Board(tmp_path / "board.sqlite", MANIFEST)
    heard: list[int] = []
    board.listen(lambda: heard.append(len(board)))
    assert not board.wait(0, 0.05)
    timer = threading.Timer(0.1, lambda: board.append(record("north", "a"), None))
    timer.start()
    began = time.monotonic()
    assert board.wait(0, 20)
    assert time.monotonic() - began < 10
    timer.join()
    assert heard == [1]


# --------------------------------------------------------------------------- journal


def test_once_keeps_the_first_bytes_for_ever(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    assert journal.get("share/1") is None
    assert journal.once("share/1", lambda: b"first") == b"first"
    assert journal.once("share/1", lambda: pytest.fail("made twice")) == b"first"
    with pytest.raises(RuntimeError):
        journal.once("share/2", lambda: (_ for _ in ()).throw(RuntimeError("no share")))
    assert journal.get("share/2") is None
    journal.close()
    again = Journal(tmp_path / "journal.sqlite")
    assert again.once("share/1", lambda: pytest.fail("made twice")) == b"first"
    assert modes(tmp_path) == {(False, 0o600)}


def test_once_is_made_once_by_many_threads(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        time.sleep(0.05)
        return os.urandom(16)

    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(journal.once("k", make))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(made) == 1 and len(results) == 8 and len(set(results)) == 1


def test_once_may_need_another_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    assert journal.once("share", lambda: journal.once("seed", lambda: b"s") + b"hare") == b"share"


def test_state_is_overwritten_and_apart_from_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.once("k", lambda: b"made")
    journal.set("k", b"1")
    journal.set("k", b"2")
    assert journal.read("k") == b"2" and journal.get("k") == b"made" and journal.read("none") is None


def killed_after(path: str, key: str, value: bytes) -> None:
    Journal(Path(path)).once(key, lambda: value)
    os.kill(os.getpid(), 9)


def test_what_once_returned_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=killed_after, args=(str(path), "share", b"bytes"))
    child.start()
    child.join(30)
    assert child.exitcode == -9
    assert Journal(path).once("share", lambda: b"others") == b"bytes"


def test_second_process_on_the_same_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    journal.set("k", b"v")
    code = (
        "from pathlib import Path; from focal.net.store import *\n"
        f"try: Journal(Path({str(path)!r}))\nexcept DiskError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert "in use by another process" in done.stdout, done.stdout + done.stderr
    assert journal.read("k") == b"v"


def test_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"this is no database, " * 100)
    with pytest.raises(DiskError, match="journal.sqlite"):
        Journal(path)


def test_audiences_only_widen(tmp_path: Path) -> None:
    audiences = Audiences(tmp_path / "audience.sqlite")
    assert audiences.of("00") is None
    for asked, then in [("custodians", "custodians"), ("server", "custodians"), ("all", "all"), ("custodians", "all")]:
        audiences.widen(["00"], asked)
        assert audiences.of("00") == then


def test_audiences_that_several_threads_widen_are_all_on_disk(tmp_path: Path) -> None:
    audiences = Audiences(tmp_path / "audience.sqlite")
    commits: list[str] = []
    audiences._db.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    names = [f"{i:02x}" for i in range(40)]
    with audiences._lock:  # nobody can commit before all have asked
        threads = [threading.Thread(target=audiences.widen, args=([name], "custodians")) for name in names]
        for thread in threads:
            thread.start()
        while len(audiences._asked) < len(names):
            time.sleep(0.001)
    for thread in threads:
        thread.join(PATIENCE)
    assert commits == ["COMMIT"]
    audiences.close()
    again = Audiences(tmp_path / "audience.sqlite")
    assert [again.of(name) for name in names] == ["custodians"] * 40


def test_net_needs_neither_torch_nor_openfhe() -> None:
    code = (
        "import sys, focal.net.transport, focal.net.store; "
        "print([m for m in ('torch', 'openfhe', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
