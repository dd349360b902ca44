"""A share given once is given for ever, and no other."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from focal.custody.ledger import Large, Ledger, ledger_digest
from focal.errors import FocalError, Refused
from focal.net import messages as msg
from focal.protocols.common.resuming import entry


def never() -> bytes:
    raise AssertionError("a share was made a second time")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "custodian" / "ledger.sqlite")
    yield made
    made.close()


def test_the_same_request_gets_the_same_bytes(ledger: Ledger) -> None:
    assert ledger.answer("refresh", "item", "aa", lambda: b"share") == b"share"
    assert ledger.answer("refresh", "item", "aa", never) == b"share"
    assert ledger.count == 1


@pytest.mark.parametrize(
    ("item", "digest", "reason"), [("item", "bb", "second-digest"), ("other", "aa", "second-item")]
)
def test_half_a_match_is_refused(ledger: Ledger, item: str, digest: str, reason: str) -> None:
    ledger.answer("refresh", "item", "aa", lambda: b"share")
    with pytest.raises(Refused, match="item") as caught:
        ledger.answer("refresh", item, digest, never)
    assert caught.value.reason == reason
    assert ledger.count == 1


def test_two_rows_that_each_match_half_are_refused(ledger: Ledger) -> None:
    ledger.answer("refresh", "one", "aa", lambda: b"1")
    ledger.answer("refresh", "two", "bb", lambda: b"2")
    with pytest.raises(Refused):
        ledger.answer("refresh", "one", "bb", never)


def test_a_batch_is_stored_at_once_or_not_at_all(ledger: Ledger) -> None:
    ledger.answer("refresh", "two", "bb", lambda: b"2")
    places: list[list[int]] = []

    def make(missing: list[int]) -> list[bytes]:
        places.append(missing)
        return [b"new %d" % i for i in missing]

    asked = [("one", "aa"), ("two", "bb"), ("three", "cc")]
    for _ in range(2):
        assert ledger.answers("refresh", asked, make) == [b"new 0", b"2", b"new 2"]
    assert places == [[0, 2]] and ledger.count == 3
    for wrong, reason in (
        ([("four", "dd"), ("five", "dd")], "second-item"),
        ([("four", "dd"), ("four", "ee")], "second-digest"),
        ([("four", "dd"), ("four", "dd")], "second-digest"),
        ([("four", "dd"), ("one", "ee")], "second-digest"),
    ):
        with pytest.raises(Refused) as caught:
            ledger.answers("refresh", wrong, make)
        assert caught.value.reason == reason and ledger.count == 3, wrong
    with pytest.raises(Refused, match="3 shares were given"):
        ledger.answers("refresh", [("four", "dd")], make, limit=3)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ([("new", "bb"), ("item", "cc")], "second-digest"),
        ([("new", "bb"), ("other", "aa")], "second-item"),
        ([("new", "bb"), ("newer", "bb")], "second-item"),
        ([("new", "bb"), ("new", "cc")], "second-digest"),
        ([("item", "aa"), ("new", "bb")], None),
    ],
)
def test_a_batch_can_be_checked_before_it_is_answered_in_parts(
    ledger: Ledger, asked: list[tuple[str, str]], reason: str | None
) -> None:
    ledger.answer("refresh", "item", "aa", lambda: b"share")
    if reason is None:
        ledger.check("refresh", asked)
    else:
        with pytest.raises(Refused) as e:
            ledger.check("refresh", asked)
        assert e.value.reason == reason
    assert ledger.count == 1


def test_refresh_and_release_are_separate(ledger: Ledger) -> None:
    """The last weights are refreshed and then released: the same item and digest may occur in both protocols."""
    ledger.answer("refresh", "item", "aa", lambda: b"refresh")
    assert ledger.answer("release", "item", "aa", lambda: b"release") == b"release"


def test_it_survives_a_restart_and_the_row_is_on_disk_before_the_share_leaves(ledger: Ledger) -> None:
    share = ledger.answer("refresh", "item", "aa", lambda: b"share")
    with sqlite3.connect(ledger.path) as other:
        assert other.execute("SELECT share FROM shares").fetchall() == [(share,)]
    other.close()
    again = Ledger(ledger.path)  # the first is still open: as after a crash, nothing was closed
    assert again.answer("refresh", "item", "aa", never) == b"share"
    with pytest.raises(Refused):
        again.answer("refresh", "item", "bb", never)
    again.close()


def test_a_share_whose_making_failed_leaves_nothing(ledger: Ledger) -> None:
    with pytest.raises(AssertionError):
        ledger.answer("refresh", "item", "aa", never)
    assert ledger.count == 0
    assert ledger.answer("refresh", "item", "bb", lambda: b"share") == b"share"


def test_only_the_owner_reads_it(ledger: Ledger) -> None:
    ledger.answer("refresh", "item", "aa", lambda: b"share")
    assert ledger.path.stat().st_mode & 0o777 == 0o600
    assert ledger.path.parent.stat().st_mode & 0o777 == 0o700


def test_two_threads_that_ask_at_once_get_one_share(ledger: Ledger) -> None:
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        time.sleep(0.05)
        return bytes([len(made)])

    answers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: answers.append(ledger.answer("refresh", "item", "aa", make))) for _ in range(4)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert answers == [b"\x01"] * 4


def test_the_digest_covers_the_first_shares_in_order(ledger: Ledger) -> None:
    rows = [("refresh", "one", "aa"), ("refresh", "two", "bb"), ("release", "one", "cc")]
    digests = [ledger.digest(0)]
    for protocol, item, digest in rows:
        ledger.answer(protocol, item, digest, lambda: b"share")
        digests.append(ledger.digest(ledger.count))
    assert digests == [ledger_digest(rows[:i]) for i in range(4)]
    assert [ledger.digest(i) for i in range(4)] == digests, "later shares change the digest of earlier ones"
    assert len(set(digests)) == 4
    assert ledger_digest(rows[::-1]) != digests[3]


def test_a_full_disk_is_a_message_and_nothing_is_given(ledger: Ledger) -> None:
    ledger.answer("refresh", "one", "aa", lambda: b"share")
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(FocalError, match=r"ledger\.sqlite: the ledger cannot be written"):
        ledger.answer("refresh", "two", "bb", lambda: bytes(100_000))
    ledger._db.execute("PRAGMA max_page_count = 1000000")
    assert ledger.count == 1
    assert ledger.answer("refresh", "two", "bb", lambda: b"share 2") == b"share 2"


def test_a_file_that_is_no_ledger_is_a_message(tmp_path: Path) -> None:
    broken = tmp_path / "ledger.sqlite"
    broken.write_bytes(b"not a database" * 100)
    with pytest.raises(FocalError, match="ledger cannot be opened"):
        Ledger(broken)
    with pytest.raises(FocalError, match="ledger cannot be opened"):
        Ledger(tmp_path)


def test_a_limit_ends_a_protocol_and_repeats_nothing(tmp_path: Path) -> None:
    """``max_openings_per_key``: what was given stays given, one more is refused, other protocols go on."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for i in range(3):
        ledger.answer("open", f"item-{i}", f"{i:064x}", lambda: b"share", limit=3)
    with pytest.raises(Refused, match="limit"):
        ledger.answer("open", "item-3", f"{3:064x}", lambda: b"share", limit=3)
    assert ledger.answer("open", "item-1", f"{1:064x}", lambda: b"another", limit=3) == b"share"
    assert ledger.answer("refresh", "item-3", f"{3:064x}", lambda: b"share") == b"share"


def test_nothing_new_is_given_in_an_older_epoch(ledger: Ledger) -> None:
    """What was given before comes back, in whatever epoch; and after a restart the epoch is still there."""
    ledger.answer("refresh", "old", "aa", lambda: b"share", epoch=0)
    ledger.enter(1, "11" * 32, [])
    assert ledger.answer("refresh", "old", "aa", never, epoch=0) == b"share"
    for again in (ledger, Ledger(ledger.path)):
        with pytest.raises(Refused) as caught:
            again.answer("refresh", "new", "bb", never, epoch=0)
        assert caught.value.reason == "old-epoch"
    assert ledger.answer("refresh/e1", "old", "aa", lambda: b"another", epoch=1) == b"another"


def test_an_epoch_is_entered_once(ledger: Ledger) -> None:
    ledger.enter(1, "11" * 32, [])
    ledger.enter(1, "11" * 32, [])
    with pytest.raises(Refused) as caught:
        ledger.enter(1, "22" * 32, [])
    assert caught.value.reason == "second-digest"


def test_peers_are_asked_about_what_was_said_and_about_epochs(ledger: Ledger) -> None:
    """A share that was made and never left, because its epoch ended, stands between others for ever; it is not made
    again, and peers know nothing of it. An epoch that was agreed to is remembered by them as a share is."""
    said = ("refresh", "one", "aa")
    ledger.answer(*said, lambda: b"1")
    ledger.answer("refresh", "two", "bb", lambda: b"2")
    ledger.enter(1, "11" * 32, [said])
    ledger.answer("refresh/e1", "three", "cc", lambda: b"3")
    seen = [said, ("epoch", "1", "11" * 32), ("refresh/e1", "three", "cc")]
    assert ledger.count == 3 and ledger.digest(3) == ledger_digest(seen)
    assert ledger.answer("refresh", "two", "bb", never) == b"2"
    ledger.was_said([("refresh", "two", "bb")])
    assert ledger.count == 4 and ledger.digest(4) == ledger_digest([said, ("refresh", "two", "bb"), *seen[1:]])


def test_what_was_opened_is_opened_in_no_other_epoch(ledger: Ledger) -> None:
    """Refreshes have a protocol of their own in every epoch, openings and releases one for all."""
    assert entry(msg.RefreshShares, "item", "/e1") == ("refresh/e1", "item")
    ledger.answer(*entry(msg.ReleaseShares, "item", ""), "aa", lambda: b"share")
    ledger.answer(*entry(msg.OpeningShares, "item", ""), "aa", lambda: b"share")
    ledger.enter(1, "11" * 32, [])
    for kind in (msg.ReleaseShares, msg.OpeningShares):
        with pytest.raises(Refused) as caught:
            ledger.answer(*entry(kind, "item", "/e1"), "aa", never, epoch=1)
        assert caught.value.reason == "second-item"


# --------------------------------------------------------------------------- large shares


def large(*names: str) -> list[Large]:
    return [Large.of(name.encode() * 1000) for name in names]


def no_more(missing: list[int]) -> list[Large]:
    raise AssertionError("a share was made a second time")


def test_large_shares_are_the_same_after_a_restart(ledger: Ledger) -> None:
    given = ledger.large("refresh", [("one", "aa"), ("two", "bb")], lambda missing: large("one", "two"))
    assert given == large("one", "two")
    again = Ledger(ledger.path)
    assert again.large("refresh", [("two", "bb")], no_more) == large("two")
    later = [("three", "cc"), ("one", "aa"), ("four", "dd")]
    assert again.large("refresh", later, lambda missing: large("three", "four")) == large("three", "one", "four")
    assert again.large("refresh", later[::-1], no_more) == large("four", "one", "three")
    with pytest.raises(Refused):
        again.large("refresh", [("one", "bb")], no_more)
    again.close()
    assert ledger.file.stat().st_mode & 0o777 == 0o600


def test_the_bytes_of_large_shares_are_on_disk_before_a_row_names_them(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[bool, int, int]] = []

    def sync(fd: int) -> None:
        synced.append((os.path.samestat(os.fstat(fd), ledger.file.stat()), ledger.file.stat().st_size, ledger.count))

    ledger.large("refresh", [("one", "aa")], lambda missing: large("one"))
    size = ledger.file.stat().st_size
    lock, ledger._lock = ledger._lock, threading.RLock()  # type: ignore[assignment]  # the count is asked for within
    monkeypatch.setattr(os, "fsync", sync)
    ledger.large("refresh", [("two", "bb")], lambda missing: large("two"))
    ledger._lock = lock
    assert synced == [(True, 2 * size, 1)] and ledger.count == 2


def test_what_a_kill_left_at_the_files_end_does_no_harm(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(fd: int) -> None:
        raise OSError(5, "killed")

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(FocalError, match=r"ledger\.shares: the ledger cannot be written"):
        ledger.large("refresh", [("one", "aa")], lambda missing: large("lost"))
    monkeypatch.undo()
    assert ledger.count == 0 and ledger.file.stat().st_size
    ledger.large("refresh", [("one", "aa")], lambda missing: large("one"))
    assert ledger.large("refresh", [("one", "aa")], no_more) == large("one")


@pytest.mark.parametrize("damage", ["lost", "cut", "changed"])
def test_a_share_whose_bytes_are_gone_is_not_made_anew(ledger: Ledger, damage: str) -> None:
    ledger.large("refresh", [("one", "aa")], lambda missing: large("one"))
    data = ledger.file.read_bytes()
    ledger.file.unlink()
    if damage != "lost":
        ledger.file.write_bytes(data[:-1] if damage == "cut" else data[:-1] + b"?")
    with pytest.raises(FocalError, match=r"ledger\.shares: .*\n.*never made anew"):
        ledger.large("refresh", [("one", "aa")], no_more)
