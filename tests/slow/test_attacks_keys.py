"""Attacks on the run id and the key rounds: each victim is an honest process, and ends with the named reason."""

from __future__ import annotations

import sqlite3
import time

import pytest
from stages import VICTIMS, Stages, lying, prelude, reason, said, shares, stages

from focal.config import printable
from focal.net import messages as msg


@pytest.fixture(scope="module")
def stage() -> Stages:
    return stages()


def test_two_nonces_of_one_custodian_give_two_run_ids(stage: Stages) -> None:
    with stage.at("prepared") as c:
        c.start("server", prelude=lying("TwoNonces()"))
        c.start(*VICTIMS)
        assert [reason(c, v) for v in VICTIMS] == ["other-run", "other-run"]
        assert len({body.run_id for who, _, body in c.bodies(msg.RunStart) if who in VICTIMS}) == 2
        assert not list(c.folder("custodian-1").glob("secret-*.key")), (
            "a key share was drawn for a run id that is not everybody's"
        )


def test_an_earlier_run_is_not_begun_again(stage: Stages) -> None:
    """custodian-1 is shown the old board under a new session; custodian-2 draws its old nonce again,
    and all others repeat theirs."""
    with stage.at("gathered") as c:
        nonce = next(body.nonce for who, _, body in c.bodies(msg.NonceReveal) if who == "custodian-2")
        board = c.folder("server") / "board.sqlite"
        with sqlite3.connect(board) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
        board.rename(board.with_name("old.sqlite"))
        c.start("server", prelude=lying("ReplayedRun()"))
        c.start("custodian-1")
        c.start("custodian-2", prelude=prelude(f"repeats_randomness({nonce!r})"))
        assert reason(c, "custodian-1") == "other-run"
        assert reason(c, "custodian-2") == "replayed-run"
        assert not said(c, "custodian-2") & {"run/start", "keys/1/commit"}


def test_an_abort_of_another_run_ends_nothing_in_the_name_of_its_sender(stage: Stages) -> None:
    with stage.at("gathered") as c:
        c.start("server", prelude=lying("AbortsOfAnotherRun()"))
        c.start(*VICTIMS)
        assert [reason(c, v) for v in VICTIMS] == ["other-run", "other-run"]
        assert not any("disk on fire" in c.processes[v].errors or "keys/1/commit" in said(c, v) for v in VICTIMS)


def test_control_characters_of_another_member_reach_nobodys_terminal(stage: Stages) -> None:
    with stage.at("gathered") as c:
        c.start("server", prelude=lying("SteersTerminals()"))
        process = c.start("custodian-1")
        assert process.end() == 1 and "a message is malformed" in process.errors
        shown = process.errors.replace("\n", "") + "".join(str(e.get("text", "")) for e in process.events).replace(
            "\n", ""
        )
        assert printable(shown) == shown and "all is well" not in shown


@pytest.mark.parametrize("liar", ["rushes()", "copies()"])
def test_a_contribution_must_open_its_own_senders_commitment(stage: Stages, liar: str) -> None:
    """custodian-3 answers after seeing the others, or hands in custodian-1's contribution:
    nobody goes on to round 2."""
    with stage.at("gathered") as c:
        c.start("server", prelude=lying("LyingServer()"))
        c.start("custodian-3", prelude=prelude(liar))
        c.start(*VICTIMS)
        for victim in VICTIMS:
            assert reason(c, victim) == "commitment"
            assert "custodian-3" in c.processes[victim].errors
            assert not said(c, victim) & {"keys/1/transcript", "keys/2/reveal"}


def test_replayed_duplicated_and_dropped_contributions(stage: Stages) -> None:
    with stage.at("gathered") as c:
        c.start("server", prelude=lying("MixedUpRound()"))
        c.start(*c.custodians)
        assert reason(c, "custodian-1") == "other-run"
        assert reason(c, "custodian-2") == "second-record"
        waiting = c.processes["custodian-3"]  # without a contribution it can only wait, and gives nothing away
        waiting.reach(
            lambda e: e["event"] == "waiting" and (e["names"], e["topic"]) == (["custodian-2"], "keys/1/reveal")
        )
        assert not any(
            "transcript" in topic or topic.startswith("keys/2") for name in c.custodians for topic in said(c, name)
        )


def test_a_swapped_contribution_is_not_what_was_signed(stage: Stages) -> None:
    with stage.at("gathered") as c:
        c.start("server", prelude=lying("SwappedContributions()"))
        c.start(*c.custodians)
        assert reason(c, "custodian-1") == "digest"
        assert "keys/2/commit" not in said(c, "custodian-1")


def test_two_contributions_shown_to_different_custodians(stage: Stages) -> None:
    with stage.at("gathered") as c:
        c.start("server", prelude=lying("TwoContributions()"))
        c.start(*VICTIMS)
        assert [reason(c, v) for v in VICTIMS] == ["transcript", "transcript"]
        assert not any(topic.startswith("keys/2") for v in VICTIMS for topic in said(c, v))


def test_what_was_heard_before_a_restart_still_binds_the_server(stage: Stages) -> None:
    """A key round repeated with another commitment list, joint keys that were not signed alike, a key for masks that is
    none; and an institution whose data changed while it was down adds to the secure sum what it had added before."""
    with stage.at("keyed") as c:
        before = {who: body.blob for who, _, body in c.bodies(msg.SumContribution)}
        given = c.given("hospital-c")
        c.give("hospital-c", **{**given, "features": 2 * given["features"]})
        c.start("server", prelude=lying("OtherKeysAfterRestart()"))
        c.start("custodian-1", "hospital-a", "hospital-b", "hospital-c")
        assert reason(c, "custodian-1") == "second-list"
        assert reason(c, "hospital-a") == "joint-keys"
        assert c.processes["hospital-b"].end() == 1
        assert "between 'hospital-b' and 'custodian-3' is not a usable X25519 key" in c.processes["hospital-b"].errors
        deadline = time.monotonic() + 30
        while "upload" not in said(c, "hospital-c"):
            assert time.monotonic() < deadline and c.processes["hospital-c"].child.poll() is None, c.processes[
                "hospital-c"
            ].errors
            time.sleep(0.1)
        assert {who: body.blob for who, _, body in c.bodies(msg.SumContribution)} == before
        assert not {"hospital-a", "hospital-b"} & {who for who, _, _ in c.bodies(msg.Upload)}
        assert shares(c, "custodian-1") == []
