"""A person approves one release of one run: what an earlier session or another run left
in the folder releases nothing."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from consortium import cli, said

from focal.errors import FocalError
from focal.protocols.common.approval import APPROVED, AWAITED, Release, approve

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
