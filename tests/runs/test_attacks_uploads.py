"""Attacks on the upload lists: training starts with exactly one list of every institution, the same at every custodian."""

from __future__ import annotations

import pytest
from consortium import Consortium, rows
from stages import VICTIMS, Stages, lying, reason, said, shares, stages

from focal.net import messages as msg


@pytest.fixture(scope="module")
def stage() -> Stages:
    return stages()


def test_one_of_two_signed_lists_chosen_for_each_custodian(stage: Stages) -> None:
    with stage.at("keyed") as c:
        c.start("server", prelude=lying("TwoLists()"))
        c.start(*VICTIMS)
        assert [reason(c, v) for v in VICTIMS] == ["uploads", "uploads"]
        assert [shares(c, v) for v in VICTIMS] == [[], []]


def test_another_projection_and_an_institution_left_out(stage: Stages) -> None:
    """custodian-1 refuses the list of an institution that skipped the projection check; custodian-2 answers no refresh while a list is
    missing, although one is asked for."""
    with stage.at("keyed") as c:
        c.start("server", prelude=lying("OtherProjectionOrLeftOut()"))
        c.start(*VICTIMS)
        assert reason(c, "custodian-1") == "upload"
        c.processes["custodian-2"].reach(lambda e: e["event"] == "waiting" and (e["names"], e["topic"]) == (["hospital-c"], "upload"))
        assert list(c.bodies(msg.RefreshRequest)), "nothing was asked for: the next line would mean nothing"
        assert [shares(c, v) for v in VICTIMS] == [[], []]
        assert not any("uploads/accepted" in said(c, v) for v in VICTIMS)


def test_a_list_that_was_made_after_seeing_the_others_uploads(stage: Stages) -> None:
    """It does not open its commitment; or the others were shown another commitment, and say so in their own lists."""
    with stage.at("keyed") as c:
        c.start("server", prelude=lying("ListedAfterwards()"))
        c.start(*VICTIMS)
        assert [reason(c, v) for v in VICTIMS] == ["commitment", "commitment"]
        assert not any("uploads/accepted" in said(c, v) for v in VICTIMS)


def test_no_ciphertext_leaves_before_all_have_committed(stage: Stages) -> None:
    with stage.at("keyed") as c:
        c.start("server", *c.custodians, "hospital-a", "hospital-b")
        for name in ("hospital-a", "hospital-b"):
            c.processes[name].reach(lambda e: e["event"] == "waiting" and (e["names"], e["topic"]) == (["hospital-c"], "upload/commit"))
        assert not any("upload" in said(c, name) for name in c.institutions)
        chunks = {b.decode() for name in ("hospital-a", "hospital-b") for b in own_chunks(c, name)}
        assert len(chunks) == 8 and not chunks & c.complete_blobs(), "a ciphertext is at the server"
        c.start("hospital-c")
        for name in c.institutions:
            c.processes[name].reach_phase("train")
        assert chunks <= c.complete_blobs()


def own_chunks(c: Consortium, name: str) -> list[bytes]:
    """Digests of the ciphertexts that an institution has made."""
    return [value for key, value in rows(c.folder(name) / "journal.sqlite", "SELECT key, value FROM once") if "/chunk/" in key]


def test_a_copied_ciphertext_is_nobodys_row(stage: Stages) -> None:
    """What hospital-b lists as its rows are hospital-a's; or one ciphertext counts twice."""
    with stage.at("keyed") as c:
        c.start("server", prelude=lying("CopiedChunk()"))
        c.start(*VICTIMS)
        assert [reason(c, v) for v in VICTIMS] == ["upload", "upload"]
        assert "'hospital-b'" in c.processes["custodian-1"].errors and "'hospital-a' too" in c.processes["custodian-1"].errors
        assert "names it twice" in c.processes["custodian-2"].errors
        assert not any("uploads/accepted" in said(c, v) for v in VICTIMS)


@pytest.mark.parametrize(
    ("server", "why"),
    [("SwappedChunk()", "digest"), ("IllFormedChunk('residue')", "coefficient"), ("IllFormedChunk('header')", "header")],
)
def test_a_chunk_that_is_not_what_was_signed_or_no_ciphertext(stage: Stages, server: str, why: str) -> None:
    """A verifying custodian re-runs the steps from the signed chunks: no other bytes, and nothing but ciphertexts of this run."""
    with stage.at("keyed") as c:
        c.start("server", prelude=lying(server))
        c.start("custodian-1")
        assert reason(c, "custodian-1") == why
        assert "uploads/accepted" in said(c, "custodian-1"), "it refused earlier than this test means"
        assert shares(c, "custodian-1") == []
