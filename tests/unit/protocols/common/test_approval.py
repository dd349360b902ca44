"""A person approves one release of one run: what an earlier session or another run left
in the folder releases nothing. Without whom a run goes on: exactly those who were shown."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import pytest
from consortium import cli, said

from focal.errors import FocalError
from focal.protocols.common.approval import (
    ABSENT,
    APPROVED,
    AWAITED,
    CLOSING_SIGNED,
    Closing,
    Release,
    approve,
    await_closing,
    close_uploads,
    may_close,
)

RUN, ANOTHER = "ab" * 32, "cd" * 32
ITEMS, DIGESTS = ("train/1/release/-/0/-",), ("5e" * 32,)
WANTED = Release.of(RUN, ITEMS, DIGESTS)


def test_an_approval_is_of_one_run_and_of_these_ciphertexts() -> None:
    assert Release.of(RUN, ITEMS, DIGESTS) == WANTED
    others = [
        Release.of(ANOTHER, ITEMS, DIGESTS),
        Release.of(RUN, ("train/1/release/-/1/-",), DIGESTS),
        Release.of(RUN, ITEMS, ("5f" * 32,)),
        Release.of(RUN, ITEMS + DIGESTS, ()),
        Release.of(RUN, ITEMS, DIGESTS * 2),
    ]
    assert len({r.digest for r in (WANTED, *others)}) == 1 + len(others)


def test_nothing_waits(tmp_path: Path) -> None:
    with pytest.raises(FocalError, match="no release waits for approval") as e:
        approve(tmp_path)
    assert str(tmp_path) in str(e.value) and not (tmp_path / APPROVED).exists()
    (tmp_path / "journal.sqlite").touch()
    for content in (None, "", "1764000000\n", "{}", '{"run_id": "x", "digest": "y"}'):
        if content is not None:
            (tmp_path / AWAITED).write_text(content)
        refused = cli("approve", tmp_path)
        assert refused.returncode == 1 and said(refused).count("error:") == 1 and "no release waits" in said(refused)


def test_what_is_approved_is_what_waits(tmp_path: Path) -> None:
    """Of a local run only those that wait; the command says what it approved."""
    for name in ("custodian-1", "custodian-2", "hospital-a"):
        (tmp_path / "parties" / name).mkdir(parents=True)
    assert "no release waits" in said(cli("approve", tmp_path))
    (tmp_path / "parties" / "custodian-2" / AWAITED).write_text(WANTED.model_dump_json())
    text = said(cli("approve", tmp_path))
    assert f"run {RUN[:16]}, release {WANTED.digest[:16]}" in text and "not yet waiting: custodian-1" in text
    path = tmp_path / "parties" / "custodian-2" / APPROVED
    assert Release.model_validate_json(path.read_bytes()) == WANTED and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not (tmp_path / "parties" / "custodian-1" / APPROVED).exists()


# --------------------------------------------------------------------------- without whom a run goes on


def waiting(folder: Path, missing: dict[str, str], **others: object) -> Closing:
    wanted = Closing.model_validate({"run_id": RUN, "epoch": 0, "missing": missing, **others})
    await_closing(folder, wanted)
    return wanted


def test_one_word_takes_back_no_other(tmp_path: Path) -> None:
    """A restarted party asks for what was said first again. A word for one reason or epoch is none for another."""
    absent = waiting(tmp_path, {"e": ABSENT, "f": ABSENT})
    close_uploads(tmp_path, ["f", "e"])
    disputed = waiting(tmp_path, {"d": "its proof"}, what="proofs")
    assert may_close(tmp_path, absent) and not may_close(tmp_path, disputed)
    close_uploads(tmp_path, ["d"])
    assert may_close(tmp_path, absent) and may_close(tmp_path, disputed)
    assert may_close(tmp_path, absent.model_copy(update={"missing": {"e": "another reason of its kind"}}))
    for other in (
        {"run_id": ANOTHER},
        {"epoch": 1},
        {"what": "proofs"},
        {"what": "results"},
        {"missing": {"e": ABSENT, "g": ABSENT}},
    ):
        assert not may_close(tmp_path, absent.model_copy(update=other))
    (tmp_path / CLOSING_SIGNED).write_text(absent.model_dump_json())  # an earlier version's
    assert not may_close(tmp_path, absent)


def test_whom_a_person_lets_go_is_shown_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without names it asks, and only where none has come."""
    assert "nobody waits there for uploads" in said(cli("close", tmp_path))
    absent = waiting(tmp_path, {"west": ABSENT, "clinic-1": ABSENT})
    refused = cli("close", tmp_path, "west")
    assert refused.returncode == 1 and "uploads are missing of west, clinic-1" in said(refused)
    for answer in ("n\n", ""):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert cli("close", tmp_path).returncode == 1 and not may_close(tmp_path, absent)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    text = said(cli("close", tmp_path))
    assert (
        text.startswith("west: it has not come clinic-1: it has not come") and "goes on without west, clinic-1" in text
    )
    assert may_close(tmp_path, absent)


@pytest.mark.parametrize("what", ["uploads", "proofs", "results"])
def test_what_takes_more_than_silence_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The server's word, or a dispute: a nameless yes is none for it."""
    wanted = waiting(tmp_path, {"north": "somebody may be wrong"}, what=what)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    text = said(cli("close", tmp_path))
    assert "north: somebody may be wrong" in text and "more to decide" in text and not may_close(tmp_path, wanted)
    told = "adds up test results without north" if what == "results" else "goes on without north"
    assert told in said(cli("close", tmp_path, "north")) and may_close(tmp_path, wanted)
