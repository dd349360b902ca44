"""Attacks on what training starts from: the lists of masked rows, the custodians' contributions to them,
and the keys of the masks."""

from __future__ import annotations

import shutil

import pytest
from attacks import NO_KEY
from consortium import Consortium
from stages import VICTIMS, Stages, contributed, lying, prelude, reason, said, shares, stages

from focal.net import messages as msg


@pytest.fixture(scope="module")
def stage() -> Stages:
    return stages()


# --------------------------------------------------------------------------- lists


def test_one_of_two_signed_lists_chosen_for_each_custodian(stage: Stages) -> None:
    """Refused before anybody contributes: a contribution to rows that are not fixed could be answered
    by rows that cancel it."""
    with stage.at("keyed") as c:
        c.start("server", prelude=lying("TwoLists()"))
        c.start(*VICTIMS)
        assert [reason(c, v) for v in VICTIMS] == ["uploads", "uploads"]
        assert all("uploads/accepted" in said(c, v) for v in VICTIMS), "they refused earlier than this test means"
        assert not any(contributed(c, v) for v in VICTIMS)


def test_another_projection_and_an_institution_left_out(stage: Stages) -> None:
    """custodian-1 refuses the list of an institution that skipped the projection check; custodian-2 contributes
    to nothing and answers no refresh where a list of the roster is missing, although one is asked for."""
    with stage.at("keyed") as c:
        c.start("server", prelude=lying("OtherProjectionOrLeftOut()"))
        c.start(*VICTIMS)
        assert [reason(c, v) for v in VICTIMS] == ["upload", "roster"]
        assert list(c.bodies(msg.RefreshRequest)), "nothing was asked for: the next line would mean nothing"
        assert [shares(c, v) for v in VICTIMS] == [[], []]
        assert not any("uploads/accepted" in said(c, v) or contributed(c, v) for v in VICTIMS)


def test_another_list_after_a_restart(stage: Stages) -> None:
    with stage.at("uploaded") as c:
        given = c.ledger("custodian-1")
        c.start("server", prelude=lying("OtherListAfterRestart()"))
        c.start("custodian-1")
        assert reason(c, "custodian-1") == "second-record" and "uploads/accepted" in c.processes["custodian-1"].errors
        assert c.ledger("custodian-1") == given


def test_a_second_contribution_for_other_lists(stage: Stages) -> None:
    """custodian-2's folder is an old copy, from before the lists; its ledger is not, and that is enough."""
    with stage.at("keyed") as c:
        assert not contributed(c, "custodian-2")
        for old in c.folder("custodian-2").glob("ledger-*"):
            old.unlink()
        for kept in (stage.made / "uploaded" / "custodian-2").glob("ledger-*"):
            shutil.copy(kept, c.folder("custodian-2"))
        given = c.ledger("custodian-2")
        assert [(protocol, item) for protocol, item, *_ in given] == [("input", "inputs")]
        c.start("server", prelude=lying("SecondUploads()"))
        c.start("custodian-2")
        assert reason(c, "custodian-2") == "second-digest" and "'inputs'" in c.processes["custodian-2"].errors
        assert c.ledger("custodian-2") == given and not said(c, "custodian-2") & {"inputs/commit", "inputs/reveal"}


# --------------------------------------------------------------------------- bytes


@pytest.mark.parametrize(("stood", "server"), [("keyed", "SwappedChunk()"), ("accepted", "SwappedInput()")])
def test_other_bytes_than_were_signed(stage: Stages, stood: str, server: str) -> None:
    """A custodian checks the signed masked messages, a verifying one computes with the signed contributions,
    and with no other bytes."""
    with stage.at(stood) as c:
        c.start("server", prelude=lying(server))
        c.start(*c.custodians)
        if stood == "keyed":
            c.start(*c.institutions)
        assert reason(c, "custodian-1") == "digest"
        assert ("inputs/reveal" in said(c, "custodian-1")) == (stood == "accepted") and "uploads/accepted" in said(
            c, "custodian-1"
        )
        assert shares(c, "custodian-1") == []


# --------------------------------------------------------------------------- contributions


@pytest.mark.parametrize(
    ("liar", "why"),
    [("reveals_otherwise()", "commitment"), ("cancels()", "commitment"), ("copies_inputs()", "range-sum")],
)
def test_a_contribution_to_inputs_must_open_its_own_senders_commitment(stage: Stages, liar: str, why: str) -> None:
    """custodian-3 changes its mind, answers after it has seen what the others reveal, or hands in custodian-1's:
    no step is taken."""
    with stage.at("accepted") as c:
        c.start("server", prelude=lying("LyingServer()"))
        c.start("custodian-3", prelude=prelude(liar))
        c.start(*VICTIMS)
        assert reason(c, "custodian-1") == why and "'custodian-3'" in c.processes["custodian-1"].errors
        # who hands in custodian-1's has its shares of the range checks as well, which do not add up
        assert ("inputs/reveal" in said(c, "custodian-3")) == (why == "commitment")
        assert shares(c, "custodian-1") == []


def test_nothing_is_revealed_before_all_have_committed(stage: Stages) -> None:
    """Neither named on the board nor sent, also after kill -9; and then it is what was committed to."""
    with stage.at("accepted") as c:
        made = {}
        for _ in range(2):
            c.start("server", *VICTIMS)
            c.start("custodian-3", prelude=prelude("dies_saying('inputs/commit')"))
            assert c.processes["custodian-3"].end() == -9
            for victim in VICTIMS:
                c.processes[victim].reach(lambda e: e["event"] == "waiting" and e["topic"] == "inputs/commit")
            committed = {who: body.commitment for who, _, body in c.bodies(msg.InputCommit)}
            assert set(committed) == set(VICTIMS) and not list(c.bodies(msg.InputReveal))
            made = {name: digests(c, name) for name in VICTIMS}
            assert all(made.values()) and not set().union(*made.values()) & c.complete_blobs(), (
                "a contribution lies at the server"
            )
            for party in ("server", *VICTIMS):
                c.processes[party].kill()
        c.start("server", *c.custodians)
        c.processes["custodian-1"].reach_phase("train", done=1)  # in lockstep
        assert {who: body.commitment for who, _, body in c.bodies(msg.InputCommit) if who in VICTIMS} == committed
        assert {who: set(body.blobs) for who, _, body in c.bodies(msg.InputReveal) if who in VICTIMS} == made


def digests(c: Consortium, name: str) -> set[str]:
    """Of the contributions that a custodian has made."""
    ((_, _, _, made),) = c.ledger(name)
    return {made[at : at + 32].hex() for at in range(0, len(made), 32)}


@pytest.mark.parametrize(
    ("how", "words"), [("other lists", "refused (inputs)"), ("fewer", "to 11 inputs of 'inputs', there are 12")]
)
def test_contributions_to_other_lists_or_to_fewer_inputs(stage: Stages, how: str, words: str) -> None:
    with stage.at("accepted") as c:
        c.start("server", prelude=lying("LyingServer()"))
        c.start("custodian-3", prelude=prelude(f"contributes({how!r})"))
        c.start(*VICTIMS)
        assert c.processes["custodian-1"].end() == 1
        assert words in c.processes["custodian-1"].errors and "'custodian-3'" in c.processes["custodian-1"].errors
        assert ("inputs/reveal" in said(c, "custodian-1")) == (how == "fewer") and shares(c, "custodian-1") == []


# --------------------------------------------------------------------------- keys of the masks


def test_an_institution_whose_masks_everybody_knows(stage: Stages) -> None:
    """A public key of low order: nothing is contributed to what it sends."""
    with stage.at("keyed") as c:
        c.start("server", prelude=lying("LyingServer()"))
        c.start(*c.custodians, "hospital-a", "hospital-c")
        c.start("hospital-b", prelude=prelude("has_no_key()"))
        for victim in VICTIMS:
            assert c.processes[victim].end() == 1
            assert "the key for masks of 'hospital-b' is not a usable X25519 key" in c.processes[victim].errors
            assert "uploads/accepted" not in said(c, victim) and not contributed(c, victim)
        assert next(body.public for who, _, body in c.bodies(msg.InputKey) if who == "hospital-b") == NO_KEY


def test_a_restarted_institution_masks_the_same_rows_with_the_same_masks_and_no_others(stage: Stages) -> None:
    """Killed after it told its key, and again before it signs its list: the same label, and the same bytes under it.
    With other rows meanwhile, it is another label."""
    with stage.at("keyed") as c:
        c.start("server", *c.custodians, "hospital-a", "hospital-c")
        lists, given = [], c.given("hospital-b")
        for other in (False, False, True):
            if other:
                c.give("hospital-b", **{**given, "labels": given["labels"][::-1]})
            c.start("hospital-b", prelude=prelude("dies_saying('upload')"))
            assert c.processes["hospital-b"].end() == -9 and "inputs/key" in said(c, "hospital-b")
            (public,) = [body.public for who, _, body in c.bodies(msg.InputKey) if who == "hospital-b"]
            lists.append((public, {p.parent.name + p.name for p in (c.folder("hospital-b") / "blobs").glob("??/*")}))
        assert lists[0] == lists[1]
        c.give("hospital-b", **given)
        c.start("hospital-b").reach_phase("train")
        uploads = {who: body for who, _, body in c.bodies(msg.Upload)}
        chunks = set(uploads["hospital-b"].chunks)
        assert len({u.label for u in uploads.values()}) == 3 and chunks <= lists[0][1]
        assert lists[2][0] == lists[0][0] and len(lists[2][1] - lists[0][1]) == len(chunks) + 2, (
            "other rows under one mask with these"
        )


# --------------------------------------------------------------------------- the size of what is masked


@pytest.mark.parametrize("liar", ["sends_a_huge('target')", "sends_a_huge('data')", "copies_rows()"])
def test_what_an_institution_cannot_prove_is_nobodys_row(stage: Stages, liar: str) -> None:
    """2^127 in a coefficient, which no format forbids; or hospital-a's masked messages, which are noise under
    hospital-b's masks. Every custodian finds that the proof does not fit, and none has shown a contribution."""
    with stage.at("keyed") as c:
        c.start("server", *c.custodians, "hospital-a", "hospital-c")
        c.start("hospital-b", prelude=prelude(liar))
        for victim in VICTIMS:
            assert c.processes[victim].end() == 1
            text = c.processes[victim].errors
            assert "refused (range-sum): hospital-b" in text or "ended the run" in text and "range-sum" in text
            assert "uploads/accepted" in said(c, victim) and "inputs/reveal" not in said(c, victim)
        assert not list(c.bodies(msg.InputReveal))


def test_other_keys_for_masks_shown_to_one_custodian(stage: Stages) -> None:
    """It would take off another mask than hospital-b has put on, and leave noise of 124 bits."""
    with stage.at("keyed") as c:
        c.start("server", prelude=prelude("shows_another_key('custodian-2', 'hospital-b')"))
        c.start(*c.custodians, *c.institutions)
        assert reason(c, "custodian-2") == "mask-keys" and "'hospital-b'" in c.processes["custodian-2"].errors
        assert "uploads/accepted" not in said(c, "custodian-2")
