"""What one lying custodian does to who is in a blind run, and to what an institution uploaded: whole runs.

The last of these attacks succeeds: SECURITY.md says so, and the test shows how far it goes.
"""

from __future__ import annotations

import datetime
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disputes import LIAR, ends_before_any_refresh, lies_about, until, warned
from patience import PATIENCE
from rosters import CLASSES, Consortium, LiesAboutSizes, OtherStepSize, consortium

from focal.ckks import codec, ring
from focal.custody import inputs as custody
from focal.custody.projections import SHARE_BYTES
from focal.errors import FocalError, LeftOut
from focal.files import private_write
from focal.net import messages as msg
from focal.net.identity import Identity, open_record
from focal.protocols.blind import plan, roster
from focal.protocols.blind.custodian import BlindCustodian
from focal.protocols.common import approval
from focal.protocols.common.inputs import MaskKeys
from focal.protocols.common.server import Server


def test_a_custodian_that_leaves_out_somebody_whose_proof_holds_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = BlindCustodian.leave_out
    monkeypatch.setattr(
        BlindCustodian, "leave_out", lambda self, failed: {"d": 20} if self.me.name == LIAR else honest(self, failed)
    )
    with consortium(tmp_path, {"d": 20}) as run:
        ends_before_any_refresh(run, "inputs")


def test_a_custodian_that_says_of_the_same_lists_that_they_are_others_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = BlindCustodian.say

    def say(self: BlindCustodian, topic: str, body: Any, **others: Any) -> None:
        if topic == roster.ACCEPTED and self.me.name == LIAR:
            body = body.model_copy(update={"present": ("a", "b", "c")})
        honest(self, topic, body, **others)

    monkeypatch.setattr(BlindCustodian, "say", say)
    with consortium(tmp_path, {"d": 20}) as run:
        ends_before_any_refresh(run, "uploads")


PAST = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)


def test_a_custodian_alone_leaves_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a wrong share of an institution's range check. People at every custodian are asked, although the closing date
    is over, and the institution says whose share it is. A word for one who had not come is none for this."""
    lies_about(monkeypatch, "d")
    over = threading.Event()
    monkeypatch.setattr(roster, "due", lambda manifest: over.is_set())
    with consortium(tmp_path, {"d": 20}, closing=PAST) as run:
        run.start()
        until(
            run,
            lambda: warned(
                run,
                "custodian-1: refused (range-sum): d: its range proof",
                "'custodian-1', 'custodian-2'",
                "focal close",
            ),
        )
        until(run, lambda: warned(run, "d: custodian-2 gave wrong shares"))
        over.set()
        absent = approval.Closing(run_id=run.parties["a"].scope, epoch=0, missing={"d": approval.ABSENT})
        words = approval.Closings(words=(absent,))
        private_write(tmp_path / "custodian-1" / approval.CLOSING_SIGNED, words.model_dump_json().encode())
        run.close_uploads("d", parties=(LIAR,))
        until(run, lambda: LIAR in run.said(msg.InputReveal))
        assert set(run.said(msg.InputReveal)) == {LIAR}, "custodian-1 goes on without anybody's word"
        run.close_uploads("d", parties=("custodian-1",))
        run.finish("a", "b", "c", "server", "custodian-1", "custodian-2")
        with pytest.raises(LeftOut, match="the size of its rows does not hold.*custodian-2 gave wrong shares"):
            run.finish("d")
        assert all(reveal.left_out == {"d": 20} for reveal in run.said(msg.InputReveal).values())
        assert not list((tmp_path / "d").glob("masks-*.key"))
        run.check("a", "b", "c")
        assert run.parties["a"].rows_of_all == 120 and "proof" in run.parties["a"].without["d"]
        assert "left out   d: its proof of the size of its rows does not hold" in run.audited()


def test_a_custodian_alone_ends_the_run_where_too_few_would_be_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of five founders are no more than two thirds: no roster may have one honest institution beside two that
    are in league. The institutions say whose fault it is, although the run is over and their keys are gone."""
    lies_about(monkeypatch, "d", "e")
    with consortium(tmp_path, {"d": 20, "e": 30}) as run:
        ends_before_any_refresh(run, "range-sum")
        for name in "de":
            assert warned(run, f"{name}: custodian-2 gave wrong shares")
            assert not list((tmp_path / name).glob("masks-*.key"))


def test_a_clinic_that_comes_back_says_whose_share_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lies_about(monkeypatch, "clinic-1")
    with consortium(tmp_path, {"clinic-1": 20}, ("clinic-1",)) as run:
        run.start()
        run.finish("clinic-1")
        until(run, lambda: len(run.said(msg.Unproven)) == 2)
        run.start("clinic-1")
        run.finish("clinic-1")
        assert warned(run, "clinic-1: custodian-2 gave wrong shares")
        run.close_uploads("clinic-1", parties=("custodian-1", LIAR))
        run.finish("a", "b", "c", "custodian-1", "custodian-2", "server")


def test_a_custodian_that_lies_about_an_institution_is_given_up_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a t-of-N key: rows are masked anew, for the others, whose shares of the checks are right."""
    lies_about(monkeypatch, "c")
    with consortium(tmp_path, {"d": 20}, custodians=4) as run:
        run.agree(threshold=2)
        run.start()
        until(run, lambda: warned(run, "c: custodian-2 gave wrong shares"))
        approval.declare_lost(tmp_path / "server", [LIAR])
        run.finish("a", "b", "c", "d", "server", "custodian-1", "custodian-3", "custodian-4")
        with pytest.raises(LeftOut, match="was given up"):
            run.finish(LIAR)
        run.check("a", "b", "c", "d")
        assert not run.parties["a"].without and not list(tmp_path.glob("?/masks-*.key"))


def test_a_custodian_that_disputes_whose_proof_held_or_who_is_not_there_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When keys for masks are gone."""
    honest = BlindCustodian._answer_plan

    def disputes(self: BlindCustodian) -> None:
        until(run, lambda: not list(tmp_path.glob("[abc]/masks-*.key")))
        self.say(roster.UNPROVEN, msg.Unproven(names=("a", "d")))
        honest(self)

    monkeypatch.setattr(BlindCustodian, "_answer_plan", disputes)
    with consortium(tmp_path, {"d": 20}) as run:
        run.play("d", OtherStepSize)
        run.start()
        run.finish("a", "b", "c", "server", "custodian-1", "custodian-2")
        run.check("a", "b", "c")
        assert "custodian-2" in run.said(msg.Unproven) and not warned(run, "shares of the check of its proofs")


def for_custodians_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A custodian lets nobody but custodians have its shares of range checks."""
    honest = BlindCustodian.share_blobs

    def share_blobs(self: BlindCustodian, blobs: Any, audience: Any) -> list[str]:
        size = sum(map(len, blobs.values() if isinstance(blobs, dict) else blobs))
        lies = self.me.name == LIAR and size % SHARE_BYTES == 0
        return honest(self, blobs, "custodians" if lies else audience)

    monkeypatch.setattr(BlindCustodian, "share_blobs", share_blobs)


def test_a_custodian_whose_shares_not_everybody_can_have_commits_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server takes no such word, and whoever said it ends the run under its own name."""
    for_custodians_only(monkeypatch)
    with consortium(tmp_path, {"d": 20}) as run:
        run.start()
        with pytest.raises(FocalError, match="'custodian-2' commits without shares"):
            run.finish(LIAR)
        assert LIAR not in run.said(msg.InputCommit)


@pytest.mark.parametrize("clinics", [(), ("d",)])
def test_a_share_that_an_institution_cannot_have_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clinics: tuple[str, ...]
) -> None:
    """The server helps the custodian: the institution says whose share it has not, and ends nothing."""
    lies_about(monkeypatch, "d")
    for_custodians_only(monkeypatch)
    monkeypatch.setattr(Server, "check_record", lambda self, record: None)
    with consortium(tmp_path, {"d": 20}, clinics) as run:
        run.start()
        if clinics:
            run.finish("d")
            until(run, lambda: len(run.said(msg.Unproven)) == 2)
            run.start("d")
            run.finish("d")
        until(run, lambda: warned(run, "d: the server has no shares of custodian-2 for it: ask there"))
        run.close_uploads("d", parties=("custodian-1", LIAR))
        run.finish("a", "b", "c", "server", "custodian-1", "custodian-2")
        if not clinics:
            with pytest.raises(LeftOut, match="the server has no shares of custodian-2"):
                run.finish("d")
        run.check("a", "b", "c")


def test_a_custodian_that_disputes_what_all_shares_prove_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The institution makes the check itself, and accuses itself of nothing."""
    honest = BlindCustodian.leave_out

    def leave_out(self: BlindCustodian, failed: Any) -> dict[str, int]:
        if self.me.name == LIAR:
            self.say(roster.UNPROVEN, msg.Unproven(names=("a",)))
            end = time.monotonic() + PATIENCE
            while not warned(run, "a: its proofs hold") and time.monotonic() < end:
                self.read_board(seconds=0.5)
        return honest(self, failed)

    monkeypatch.setattr(BlindCustodian, "leave_out", leave_out)
    with consortium(tmp_path, {}) as run:
        run.start()
        run.finish()
        assert warned(run, "a: its proofs hold, with the shares of all custodians: custodian-2 said otherwise")
        assert not warned(run, "the fault is its own")


def test_a_key_share_goes_although_its_custodian_was_away_when_the_run_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hears of it before it knows that it has a share. What is there all the same goes at the next start."""
    over = threading.Event()
    monkeypatch.setattr(Server, "_farewell", lambda self: over.wait(PATIENCE))
    honest = BlindCustodian._answer_plan

    def held(self: BlindCustodian) -> None:
        while not over.is_set():
            self.read_board(seconds=0.5)
        honest(self)

    monkeypatch.setattr(BlindCustodian, "_answer_plan", held)
    with consortium(tmp_path, {}) as run:
        run.start()
        until(run, lambda: "server" in run.parties)
        until(run, lambda: len(run.said(msg.InputReveal)) == 2)
        run.stop(LIAR)
        folder, server = tmp_path / LIAR, run.parties["server"]
        assert isinstance(server, Server) and list(folder.glob("secret-*.key"))
        a = Identity.load(run.files["a"].keys)
        server.board.append(a.sign_record(run.parties["a"].scope, "abort", msg.Abort(reason="enough")), "a")
        run.start(LIAR)
        with pytest.raises(FocalError, match="'a' ended the run: enough"):
            run.finish(LIAR)
        over.set()
        assert (folder / "aborted").exists() and not list(folder.glob("*.key"))
        private_write(folder / "share-00.key", b"of an end that was cut short")
        run.start(LIAR)
        with pytest.raises(FocalError, match="this run was ended"):
            run.finish(LIAR)
        assert not list(folder.glob("*.key"))


def spite(run: Consortium, name: str, scope: str) -> None:
    """An abort on the server's board that ``name`` has signed under ``scope``."""
    server, me = run.parties["server"], Identity.load(run.files[name].keys)
    assert isinstance(server, Server)
    server.board.append(me.sign_record(scope, "abort", msg.Abort(reason="out of spite")), name)


def test_a_founder_that_was_left_out_ends_nothing_in_a_later_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for a custodian that is started when nobody was left out of the new one yet."""
    honest = BlindCustodian.contributions

    def contributions(self: BlindCustodian, *given: Any) -> Any:
        while self.me.name == "custodian-4":
            self.read_board(seconds=0.5)
        return honest(self, *given)

    monkeypatch.setattr(BlindCustodian, "contributions", contributions)
    others = ("custodian-1", "custodian-2", "custodian-3")
    with consortium(tmp_path, {"d": 20}, custodians=4) as run:
        run.agree(threshold=2)
        run.play("d", OtherStepSize)
        run.start()
        with pytest.raises(LeftOut):
            run.finish("d")
        spite(run, "d", run.parties["a"].scope)
        until(run, lambda: warned(run, "'d' wants to end the run"))
        approval.declare_lost(tmp_path / "server", ["custodian-4"])
        until(run, lambda: run.parties["custodian-2"].epochs.now.number == 1)
        run.stop("custodian-2")
        run.start("custodian-2")
        run.close_uploads("d", parties=("server", *others))
        run.finish("a", "b", "c", "server", *others)
        run.check("a", "b", "c")


def test_an_institution_whose_own_fault_it_is_says_so(tmp_path: Path) -> None:
    with consortium(tmp_path, {"d": 20}) as run:
        run.play("d", LiesAboutSizes)
        run.start()
        until(run, lambda: warned(run, "d: all custodians gave the right shares"))
        run.close_uploads("d", parties=("custodian-1", "custodian-2"))
        run.finish("a", "b", "c", "server", "custodian-1", "custodian-2")
        with pytest.raises(LeftOut, match="the fault is its own"):
            run.finish("d")


def test_a_founder_that_was_left_out_ends_nothing(tmp_path: Path) -> None:
    """Its abort counts no more, under whatever scope it says it; nor does it for a party that reads it after a
    restart."""
    with consortium(tmp_path, {"d": 20}) as run:
        run.play("d", OtherStepSize)
        run.start()
        with pytest.raises(LeftOut):
            run.finish("d")
        spite(run, "d", run.parties["d"].session)
        run.stop("custodian-2")
        run.start("custodian-2")
        run.finish("a", "b", "c", "server", "custodian-1", "custodian-2")
        run.check("a", "b", "c")
        assert warned(run, "'d' wants to end the run", "out of spite")


def test_the_servers_roster_cannot_be_another_one_afterwards(tmp_path: Path) -> None:
    """Custodians have signed its digest, and why each is out: the audit finds another one, and a list that was moved
    behind it."""
    with consortium(tmp_path, {"d": 20}) as run:
        run.play("d", OtherStepSize)
        run.start()
        run.finish("a", "b", "c", "server", "custodian-1", "custodian-2")
        assert {said.absent["d"] for said in run.said(msg.UploadsAccepted).values()} == {"upload"}
        assert "left out   d: its list is not as agreed" in run.audited()
        board = tmp_path / "server" / "board.sqlite"
        with closing(sqlite3.connect(board)) as db, db:
            records = dict(db.execute("SELECT topic, seq FROM record WHERE topic = 'uploads/closed' OR sender = 'd'"))
            old = db.execute("SELECT data FROM record WHERE topic = 'uploads/closed'").fetchone()[0]
            other = msg.Roster(present=("a", "b", "c"), incomplete=())
            scope = open_record(run.manifest, old).scope
            data = Identity.load(run.files["server"].keys).sign_record(scope, "uploads/closed", other)
            assert data == old, "signatures are functions of what is signed"
            db.execute("UPDATE record SET seq = 100000 WHERE sender = 'd' AND topic = 'upload'")
        with pytest.raises(FocalError, match="was shown another roster, or other reasons for it"):
            run.audited()
        with closing(sqlite3.connect(board)) as db, db:
            db.execute("UPDATE record SET seq = ? WHERE seq = 100000", (records["upload"],))
            again = Identity.load(run.files["server"].keys).sign_record(
                scope, "uploads/closed", other.model_copy(update={"incomplete": ("d",)})
            )
            db.execute("UPDATE record SET data = ? WHERE topic = 'uploads/closed'", (again,))
        with pytest.raises(FocalError, match=r"refused \((roster|uploads)\)"):
            run.audited()


def test_a_message_in_a_contribution_shows_a_chosen_patient_in_the_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A custodian adds a target of 200 for one row of c to its B, to which the size check does not reach: the weights
    of that class become the patient's features. Guard, lockstep and audit see nothing."""
    honest, row, target = MaskKeys.contribution, 5, 200

    def contribution(self: MaskKeys, scheme: Any, secret: Any, seed: bytes, lists: str, wanted: Any) -> bytes:
        data = honest(self, scheme, secret, seed, lists, wanted)
        if self.party.me.name != LIAR or "/target/" not in wanted.item or wanted.owners[0][0] != "c":
            return data
        party: Any = self.party
        start, stop = plan.row_table(party.manifest, party.layout)["c"]
        block, _, group, _ = wanted.item.split("/")[:4]
        added = np.zeros((stop - start, CLASSES))
        added[row, 0] = 5.0  # what a slot holds; then times 40, as integers
        slots = party.layout.target_slots(party.layout.block_of(added, start, int(block)), int(group))
        message = custody.message(scheme, slots).astype(object) * (target // 5)
        kind = codec.input_b(wanted.limbs)
        limbs = codec.unpack(scheme, kind, data, "its own")[0]
        lied = [
            ring.add(limb, ring.ntt((message % q).astype(np.uint64), q, scheme.roots[q]), q)
            for limb, q in zip(limbs, scheme.moduli, strict=False)
        ]
        return codec.pack(scheme, kind, [lied])

    monkeypatch.setattr(MaskKeys, "contribution", contribution)
    with consortium(tmp_path, {}) as run:
        run.start()
        run.finish()
        told: Any = run.parties["a"]
        rows = told.projection.apply(run.rows["c"][0])
        alike = np.array([abs(np.corrcoef(told.weights[:, 0], own)[0, 1]) for own in rows])
        assert alike.argmax() == row and alike[row] > 0.99 and np.delete(alike, row).max() < 0.9
        assert run.audited()
