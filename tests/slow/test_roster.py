"""Who does not come is left out, and a clinic comes once: whole blind runs, every role a thread on one board."""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from patience import PATIENCE
from rosters import STEPS, LiesAboutSizes, OtherStepSize, Stops, consortium, given

from focal.errors import FocalError, LeftOut
from focal.heads.linear import twin
from focal.heads.released import MAX_ERROR
from focal.net import messages as msg
from focal.net.identity import open_record
from focal.protocols.blind import plan, roster, uploads
from focal.protocols.blind.custodian import BlindCustodian
from focal.protocols.blind.server import BlindServer
from focal.protocols.common import approval
from focal.runs.simulate import ArrayInstitution


class DiesInUpload(ArrayInstitution):
    """Goes away when half of what its list names is sent."""

    def send_stored(self, digests: list[str], audience: Any) -> None:
        super().send_stored(digests[: len(digests) // 2], audience)
        raise FocalError("the power is out")


class SendsLess(ArrayInstitution):
    """Lists more than it sends."""

    def send_stored(self, digests: list[str], audience: Any) -> None:
        super().send_stored(digests[1:] or digests, audience)


class ForNobodysEyes(ArrayInstitution):
    """Sends its rows so that custodians may not fetch them."""

    def send_stored(self, digests: list[str], audience: Any) -> None:
        super().send_stored(digests, "server" if audience == "custodians" else audience)


class SendsOtherSizes(ArrayInstitution):
    """A chunk of its list is no masked message."""

    def _masked_rows(self, scheme: Any, keys: Any, joint: msg.JointKeys) -> msg.Upload:
        body = super()._masked_rows(scheme, keys, joint)
        return body.model_copy(update={"chunks": (self.blobs.put(bytes(1 << 10)), *body.chunks[1:])})


class SendsNoProof(ArrayInstitution):
    """What it calls a proof is none."""

    def _masked_rows(self, scheme: Any, keys: Any, joint: msg.JointKeys) -> msg.Upload:
        body = super()._masked_rows(scheme, keys, joint)
        proof = bytearray(self.blobs.get(body.proofs[1]))
        proof[8] = 200  # the candidate
        return body.model_copy(update={"proofs": (body.proofs[0], self.blobs.put(bytes(proof)))})


# --------------------------------------------------------------------------- who does not come


@pytest.mark.parametrize("share_blocks", [False, True])
def test_who_does_not_come_is_left_out_when_people_close(tmp_path: Path, share_blocks: bool) -> None:
    """Nobody waits: the others have the weights that their own rows give. Who comes afterwards masks nothing."""
    with consortium(tmp_path, {"d": 20}, share_blocks=share_blocks) as run:
        run.play("d", Stops)
        run.play("a", StaysToTheEnd)
        run.start()
        run.close_uploads("d")
        run.finish("b", "c")
        assert run.said(msg.Roster)["server"] == msg.Roster(present=("a", "b", "c"), incomplete=())
        run.play("d", ArrayInstitution)
        run.start("d")
        with pytest.raises(LeftOut, match="closed before it came"):
            run.finish("d")
        StaysToTheEnd.may_end.set()
        run.finish("a", "server", "custodian-1", "custodian-2")
        run.check("a", "b", "c")
        assert not (tmp_path / "d" / "aborted").exists() and "d" not in run.said(msg.Upload)
        assert "of 3 institutions" in run.audited()


class StaysToTheEnd(ArrayInstitution):
    """Is there, and so is the server, until the test lets it end."""

    may_end: ClassVar[threading.Event]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        StaysToTheEnd.may_end = threading.Event()

    def score(self) -> None:
        assert self.may_end.wait(PATIENCE)


def test_the_closing_date_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to say anything then; before it, nothing closes without people."""
    past = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    due, three_have_come = roster.due, threading.Event()
    monkeypatch.setattr(roster, "due", lambda manifest: due(manifest) and three_have_come.is_set())
    with consortium(tmp_path, {"d": 20}, closing=past) as run:
        assert due(run.manifest) and not due(run.manifest.model_copy(update={"closing": None}))
        assert not due(run.manifest.model_copy(update={"closing": past.replace(year=2126)}))
        run.play("d", Stops)
        run.start()
        deadline = time.monotonic() + PATIENCE
        while sum("the rows are uploaded" in e.get("text", "") for e in list(run.events)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        three_have_come.set()
        run.finish("a", "b", "c", "server", "custodian-1", "custodian-2")
        run.check("a", "b", "c")
        assert not (tmp_path / "server" / approval.CLOSING_SIGNED).exists()


def test_a_restarted_custodian_asks_nobody_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for those that did not come, nor for one whose proof did not hold: both words stay."""
    hold, honest = threading.Event(), BlindCustodian._answer_plan

    def held(self: BlindCustodian) -> None:
        while not hold.is_set():
            self.read_board(seconds=0.5)
        honest(self)

    monkeypatch.setattr(BlindCustodian, "_answer_plan", held)
    with consortium(tmp_path, {"d": 20, "e": 20}, ("d", "e")) as run:
        run.play("d", LiesAboutSizes)
        run.start(*(name for name in run.files if name != "e"))
        run.close_uploads("e")
        run.close_uploads("d", parties=("custodian-1", "custodian-2"))
        deadline = time.monotonic() + PATIENCE
        while len(run.said(msg.InputReveal)) < 2:
            assert time.monotonic() < deadline and not run.errors, run.errors
            time.sleep(0.05)
        run.stop("custodian-2")
        awaited = tmp_path / "custodian-2" / approval.CLOSING_AWAITED
        awaited.unlink()
        run.start("custodian-2")
        hold.set()
        run.finish("a", "b", "c", "custodian-1", "custodian-2", "server")
        assert not awaited.exists()
        run.check("a", "b", "c")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (LiesAboutSizes, "its range proof of 'data' does not fit"),
        (SendsNoProof, "a range proof names one, not number 200"),
        (OtherStepSize, "another step size"),
        (SendsLess, "names what the server was not given"),
        (ForNobodysEyes, "names what the server was not given"),
        (SendsOtherSizes, "names what the server was not given"),
    ],
)
def test_what_is_not_as_agreed_ends_its_senders_part_only(tmp_path: Path, how: type, why: str) -> None:
    """The others go on, everybody is told whose part ended and why, and nobody shows what decrypts its rows. People
    are asked where the server's word, or custodians' shares, may be the fault."""
    with consortium(tmp_path, {"d": 20}) as run:
        run.play("d", how)
        run.start()
        incomplete = how in (SendsLess, ForNobodysEyes, SendsOtherSizes)
        if incomplete:
            run.close_uploads("d")
        if how is LiesAboutSizes:
            run.close_uploads("d", parties=("custodian-1", "custodian-2"))
        run.finish("a", "b", "c", "server", "custodian-1", "custodian-2")
        with pytest.raises(LeftOut, match="'d': the run goes on without it"):
            run.finish("d")
        run.check("a", "b", "c")
        assert any("without 'd'" in e["text"] and why in e["text"] for e in run.events if e["event"] == "warn")
        reveals = run.said(msg.InputReveal)
        closed = run.said(msg.Roster)["server"]
        if how in (LiesAboutSizes, SendsNoProof):
            assert closed.present == ("a", "b", "c", "d")
            assert all(reveal.left_out == {"d": 20} for reveal in reveals.values())
            shown = [
                [(tmp_path / "server" / "blobs" / d[:2] / d[2:]).exists() for d in r.blobs] for r in reveals.values()
            ]
            own = len(run.said(msg.Upload)["d"].chunks)
            assert all(found == [True] * (len(found) - own) + [False] * own for found in shown)
        else:
            assert closed.present == ("a", "b", "c") and closed.incomplete == (("d",) if incomplete else ())
        told = {run.parties[name].without["d"] for name in "abc"}
        assert len(told) == 1 and f"left out   d: {told.pop()}" in run.audited()
        assert {run.parties[name].rows_of_all for name in "abc"} == {120}


def test_a_server_that_keeps_somebody_out_needs_people_or_the_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it was not given what it has: custodians wait as for one who has not come."""
    monkeypatch.setattr(BlindServer, "_complete", lambda self, upload: upload.rows != 20)
    monkeypatch.setattr(BlindServer, "may_close", lambda self, absent, enough=True: list(absent) == ["d"])
    with consortium(tmp_path, {"d": 20}) as run:
        run.start()
        for party in ("custodian-1", "custodian-2"):
            deadline = time.monotonic() + PATIENCE
            while not (tmp_path / party / approval.CLOSING_AWAITED).exists():
                assert time.monotonic() < deadline and not run.errors, run.errors
                time.sleep(0.05)
        assert not run.said(msg.UploadsAccepted)
        for party in ("custodian-1", "custodian-2"):
            approval.close_uploads(tmp_path / party, ["d"])
        run.finish("a", "b", "c", "server", "custodian-1", "custodian-2")
        run.check("a", "b", "c")


def test_a_server_that_closes_early_needs_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The date comes while custodians wait: it is no reason for what the server did before it."""
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)
    come = threading.Event()
    monkeypatch.setattr(roster, "due", lambda manifest: come.is_set())
    monkeypatch.setattr(BlindServer, "may_close", lambda self, absent, enough=True: list(absent) == ["d"])
    with consortium(tmp_path, {"d": 20}, closing=soon) as run:
        run.play("d", Stops)
        run.start()
        deadline = time.monotonic() + PATIENCE
        while not (tmp_path / "custodian-1" / approval.CLOSING_AWAITED).exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        come.set()
        run.stop("custodian-2")
        run.start("custodian-2")  # it remembers when it heard
        for party in ("custodian-1", "custodian-2"):
            while True:
                with contextlib.suppress(FocalError):
                    approval.close_uploads(tmp_path / party, ["d"])
                    break
                assert time.monotonic() < deadline
                time.sleep(0.05)
            others = {"custodian-1", "custodian-2"} - {party}
            assert party == "custodian-2" or not run.said(msg.UploadsAccepted).keys() & others
        run.finish("a", "b", "c", "server", "custodian-1", "custodian-2")
        run.check("a", "b", "c")


def test_who_came_in_between_says_that_the_server_had_closed_before_the_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server closes early and tells custodians after the date: they cannot know, and nobody is asked. Whoever it
    sent away says when it was."""
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)
    monkeypatch.setattr(roster, "due", lambda manifest: True)
    monkeypatch.setattr(roster, "early", lambda manifest, heard: False)
    monkeypatch.setattr(BlindServer, "may_close", lambda self, absent, enough=True: list(absent) == ["d"])
    with consortium(tmp_path, {"d": 20}, closing=soon) as run:
        run.play("d", Stops)
        run.play("a", StaysToTheEnd)
        run.start()
        run.finish("b", "c")
        assert not list(tmp_path.glob(f"custodian-*/{approval.CLOSING_AWAITED}"))
        run.play("d", ArrayInstitution)
        run.start("d")
        with pytest.raises(LeftOut, match="before it came, and before the closing date .* ask the custodians"):
            run.finish("d")
        StaysToTheEnd.may_end.set()
        run.finish("a", "server", "custodian-1", "custodian-2")


def test_after_the_closing_date_too_few_wait_for_people(tmp_path: Path) -> None:
    """The date closes nothing where no model would come of it. People can only end it: nobody is there to go on."""
    with consortium(tmp_path, {}, closing=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)) as run:
        run.play("c", Stops)
        run.start()
        run.close_uploads("c", parties=("server",))
        with pytest.raises(FocalError, match=r"refused \(roster\): 2 of 3 institutions that are no clinics are left"):
            run.finish("server")
        assert not run.said(msg.Roster)


def test_institutions_take_the_roster_from_custodians(tmp_path: Path) -> None:
    """The server may sign another one for some readers: they see that custodians have signed the digest of another."""
    with consortium(tmp_path, {"d": 20}) as run:
        run.play("d", ShownAnotherRoster)
        run.start()
        with pytest.raises(FocalError, match="the server shows us another roster than custodians have accepted"):
            run.finish()
        assert "weights.bin" not in {path.name for path in (tmp_path / "d").iterdir()}


class ShownAnotherRoster(ArrayInstitution):
    """The server shows it a roster of its own making, which it has signed."""

    def read_board(self, seconds: float) -> int:
        count = super().read_board(seconds)
        key = (self.manifest.server.name, roster.CLOSED)
        if key in self.heard._records:
            body = msg.Roster(present=("c", "a"), incomplete=("d",))
            self.heard._records[key] = self.heard._records[key].model_copy(update={"body": body})
            self.heard._digests[key] = "1" * 64
        return count


def test_too_few_that_are_as_agreed_end_the_run(tmp_path: Path) -> None:
    with consortium(tmp_path, {}) as run:
        run.play("c", OtherStepSize)
        run.start()
        with pytest.raises(FocalError, match="the list of 'c' has another step size"):
            run.finish()
        assert (tmp_path / "custodian-1" / "aborted").exists()


# --------------------------------------------------------------------------- clinics


def test_clinics_come_once_and_fetch_the_model_later(tmp_path: Path) -> None:
    """Run id, keys and projection need none of them. One brings fewer rows than it may, one dies in its upload and
    comes back, one never does."""
    clinics = {"clinic-1": 25, "clinic-2": 40, "clinic-3": 30}
    with consortium(tmp_path, clinics, tuple(clinics), share_blocks=True) as run:
        assert not set(clinics) & set(run.manifest.signatures)
        run.rows["clinic-2"] = given("clinic-2", 17)
        run.play("clinic-3", DiesInUpload)
        run.start(*(n for n in run.files if n not in clinics))
        for name in clinics:
            run.start(name)
        run.finish("clinic-1", "clinic-2")
        assert not hasattr(run.parties["clinic-1"], "weights"), "it has left"
        with pytest.raises(FocalError, match="power"):
            run.finish("clinic-3")
        assert "clinic-3" not in run.said(msg.Upload)
        run.play("clinic-3", ArrayInstitution)
        run.start("clinic-3")
        run.finish("clinic-3")  # all have come: this closes the uploads
        run.finish("a", "b", "c", "custodian-1", "custodian-2")
        assert run.alive("server"), "it stays for those who have still to fetch"
        run.start(*clinics)
        run.finish(*clinics, "server")
        run.check("a", "b", "c", *clinics)
        assert "of 6 institutions" in run.audited()


def test_a_clinic_that_gives_up_ends_nothing(tmp_path: Path) -> None:
    """With more rows than its ticket it is told so before anything is sent. Its abort is no abort of the run."""
    with consortium(tmp_path, {"clinic-1": 25}, ("clinic-1",)) as run:
        run.rows["clinic-1"] = given("clinic-1", 26)
        run.start()
        with pytest.raises(FocalError, match="declares at most 25 training rows, the data set has 26"):
            run.finish("clinic-1")
        run.play("clinic-1", Aborts)
        run.rows["clinic-1"] = given("clinic-1", 20)
        run.start("clinic-1")
        with pytest.raises(FocalError, match="nothing is right here"):
            run.finish("clinic-1")
        assert "clinic-1" in run.said(msg.Abort)
        run.close_uploads("clinic-1")
        run.finish("a", "b", "c", "server", "custodian-1", "custodian-2")
        run.check("a", "b", "c")


class Aborts(ArrayInstitution):
    """Tells all that it will not go on, as no clinic of ours does."""

    def _upload(self, joint: msg.JointKeys) -> None:
        self.net.post(self.identity.sign_record(self.scope, "abort", msg.Abort(reason="nothing is right here")))
        raise FocalError("nothing is right here")


def test_the_first_founder_can_keep_a_clinic_out(tmp_path: Path) -> None:
    """It seals no key of the projection to it: the clinic masks nothing, and says whose fault it is. The others go on
    when people say so."""
    with consortium(tmp_path, {"clinic-1": 25}, ("clinic-1",)) as run:
        run.play("a", SealsNoneTo)
        run.start()
        with pytest.raises(FocalError, match="'a' sealed no group key for us"):
            run.finish("clinic-1")
        assert "clinic-1" not in run.said(msg.Upload)
        run.close_uploads("clinic-1")
        run.finish("a", "b", "c", "server", "custodian-1", "custodian-2")
        run.check("a", "b", "c")
        assert run.parties["b"].without == {"clinic-1": "it has not come"}


class SealsNoneTo(ArrayInstitution):
    """Seals the key of the projection to founders only."""

    def say(self, topic: str, body: Any) -> None:
        if isinstance(body, msg.SumGroupKey):
            body = body.model_copy(update={"sealed": {n: b for n, b in body.sealed.items() if n in "abc"}})
        super().say(topic, body)


@pytest.mark.parametrize("share_blocks", [False, True])
def test_what_a_clinic_fills_beyond_the_rows_that_it_says(tmp_path: Path, share_blocks: bool) -> None:
    """In blocks of its own they count as rows whose targets are zero, and the step is as large as for those that it
    said: at most one block's rows more, as it must list no more chunks. In shared blocks a mask takes them away."""
    with consortium(tmp_path, {"clinic-1": 25}, ("clinic-1",), share_blocks=share_blocks) as run:
        run.play("clinic-1", SaysFewer)
        run.start()
        run.finish("clinic-1")
        run.finish("a", "b", "c", "custodian-1", "custodian-2")
        columns = np.concatenate([run.parties["a"].projection.apply(run.rows[n][0]) for n in run.rows])
        targets = np.concatenate([0.5 - run.rows[n][1].astype(float) for n in run.rows])
        said, most = 120 + SaysFewer.SAID, 145
        targets[said:] = 0.0
        taken = said if share_blocks else most
        eta = plan.step_size(run.manifest, run.parties["a"].projection.eta, said)
        scalars = twin.Scalars.derive(3, eta, 0.1, said)
        exact = twin.train(columns[:taken], targets[:taken], scalars, STEPS)[0]
        other = twin.train(columns[: most + said - taken], targets[: most + said - taken], scalars, STEPS)[0]
        assert np.abs(run.parties["a"].weights - exact).max() < MAX_ERROR < np.abs(exact - other).max()
        run.start("clinic-1")
        run.finish("clinic-1", "server")


class SaysFewer(ArrayInstitution):
    """Fills all its rows and lists fewer."""

    SAID = 5

    def _masked_rows(self, scheme: Any, keys: Any, joint: msg.JointKeys) -> msg.Upload:
        whole, honest = uploads.statement_of, plan.layout(self.manifest)
        start, _ = plan.row_table(self.manifest, honest)[self.me.name]
        rows = (start, start + self.SAID)
        assert honest.chunks(*rows) == honest.chunks(start, start + len(self.raw)), "else its list is too long"
        with pytest.MonkeyPatch.context() as patch:

            def statement(manifest: Any, shape: Any, seed: bytes, name: str, span: Any, *others: Any) -> Any:
                return whole(manifest, shape, seed, name, rows if name == self.me.name else span, *others)

            patch.setattr(uploads, "statement_of", statement)
            body = super()._masked_rows(scheme, keys, joint)
        return body.model_copy(update={"rows": self.SAID})


def test_clinics_have_the_projection_and_not_the_moments(tmp_path: Path) -> None:
    """The key that opens the sum of moments is sealed to founders only; clinics' has another name, and opens nothing
    else. A founder draws it, although the clinic comes first in the manifest."""
    with consortium(tmp_path, {"clinic-1": 25}, ("clinic-1",)) as run:
        run.list_first("clinic-1")
        run.start()
        run.finish("clinic-1")
        boxes = {
            r.topic: r.body.sealed
            for r in map(lambda data: open_record(run.manifest, data), run.board())
            if isinstance(r.body, msg.SumGroupKey)
        }
        assert set(boxes["sum/moments/group-key"]) == {"b", "c"}
        assert set(boxes["sum/projection/group-key"]) == {"b", "c", "clinic-1"}
        run.finish("a", "b", "c")  # else it would leave again
        run.start("clinic-1")
        run.finish()
        run.check("a", "b", "c", "clinic-1")
        projections = {run.parties[n].projection.to_bytes() for n in ("a", "clinic-1")}
        assert len(projections) == 1
