"""Test results of founders and clinics, added up through the custodians: whole runs, every role a thread on one board,
and what misbehaving parties get."""

from __future__ import annotations

import datetime
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import PATIENCE
from rosters import Consortium, consortium, given

from focal.errors import FocalError, Refused
from focal.measure import histogram
from focal.net import messages as msg
from focal.protocols.blind import results, roster
from focal.protocols.blind.custodian import BlindCustodian
from focal.protocols.blind.server import BlindServer
from focal.protocols.common import approval
from focal.runs.simulate import ArrayInstitution
from focal.sums import entrusted

CLINICS = {"clinic-1": 25, "clinic-2": 20, "clinic-3": 30}
TESTED = {"a": 12, "b": 9, "c": 15, "clinic-1": 7, "clinic-2": 6, "clinic-3": 11}
OPENERS = ("server", "custodian-1", "custodian-2", "a", "b", "c")


def crowd(folder: Path, clinics: dict[str, int] = CLINICS, **settings: Any) -> Consortium:
    """Founders and clinics with test rows; the clinics have made their first visit when this returns."""
    settings = {"pooled_roc": True, "pooled_by": ("sex:f,m",), "share_blocks": True} | settings
    run = consortium(folder, clinics, tuple(clinics), **settings)
    for name in run.rows:
        count = TESTED.get(name, 5)
        run.tested[name] = given(f"{name}-test", count)
        run.columns[name] = {"sex": np.array(["F", "m", "?", "f "])[np.arange(count) % 4]}
    return run


def begin(run: Consortium) -> None:
    """All that is before the release: every clinic comes, uploads and leaves."""
    clinics = [m.name for m in run.manifest.clinics]
    run.start(*OPENERS)
    run.start(*clinics)
    run.finish(*clinics)


def wait(run: Consortium, there: Callable[[], bool], expected: tuple[str, ...] = ()) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < deadline and not run.errors.keys() - set(expected), run.errors
        time.sleep(0.02)


def released(run: Consortium) -> bool:
    return len(run.said(msg.ReleaseShares)) == 2


def counts(run: Consortium, *names: str) -> list[np.ndarray[Any, Any]]:
    """What the histograms of these add up to, by hand: all rows, sex f, sex m."""
    weights, projection = run.parties["a"].weights, run.parties["a"].projection
    total = 0
    for name in names:
        features, labels = run.tested[name]
        sex = np.char.strip(np.char.lower(run.columns[name]["sex"]))
        outputs = projection.apply(features) @ weights
        parts = [np.ones(len(sex), bool), sex == "f", sex == "m"]
        total = total + np.stack([histogram.score_histogram(labels[at], outputs[at], "multiclass") for at in parts])
    return list(total)


def check(run: Consortium, found: dict[str, Any], *names: str) -> None:
    """These figures are those of the test rows of ``names``."""
    everybody, *others = counts(run, *names)
    curves = histogram.pooled_roc(everybody)
    assert (found["sites"], found["clinics"]) == (len(names), sum(name in CLINICS for name in names))
    assert found["rows"] == sum(TESTED[name] for name in names) == everybody[0].sum()
    assert found["auroc"] == histogram.pooled_macro(curves)[0]
    assert [c["true_positive"] for c in found["classes"].values()] == [c.true_positive.tolist() for c in curves]
    for (name, group), part in zip(found["subgroups"].items(), others, strict=True):
        assert group["rows"] == part[0].sum() > 0, name
        assert group["auroc"] == histogram.pooled_macro(histogram.pooled_roc(part))[0]
    assert list(found["subgroups"]) == ["sex f", "sex m"]


def read(run: Consortium, name: str) -> dict[str, Any]:
    return dict(json.loads((run.folder / name / histogram.FILE).read_text()))


def test_one_curve_over_founders_and_clinics_who_come_one_after_the_other(tmp_path: Path) -> None:
    """No clinic is there when another one is; nobody's vector, key or sum shows a count of its own."""
    with crowd(tmp_path) as run:
        begin(run)
        wait(run, lambda: released(run))
        for name in CLINICS:
            run.start(name)
            run.finish(name)
        run.finish()
        for name in "abc":
            check(run, read(run, name), *TESTED)
        assert not list(tmp_path.glob("*/results-*.key")) and not list(tmp_path.glob(f"clinic-*/{histogram.FILE}"))
        handed, size = run.said(msg.ResultsHanded), results.count(run.manifest)
        assert set(handed) == TESTED.keys()
        assert len({body.public for body in handed.values()}) == len(TESTED)
        for body in handed.values():
            words = np.frombuffer(read_blob(run, body.counts), "<u8")
            assert len(words) == size and abs((words >> np.uint64(56)).mean() - 127.5) < 2  # 25 000 of them: 0.5
        added = run.said(msg.ResultsAdded)
        assert len({body.total for body in added.values()}) == 1 and len({body.masks for body in added.values()}) == 2
        assert "of 6 institutions" in run.audited()


def read_blob(run: Consortium, digest: str) -> bytes:
    return (run.folder / "server" / "blobs" / digest[:2] / digest[2:]).read_bytes()


def come_back(run: Consortium, *clinics: str) -> None:
    """These fetch their model."""
    run.start(*clinics)
    run.finish(*clinics)


def let_go(run: Consortium, party: str, *names: str) -> None:
    """``focal close`` there, once it waits for the test results of exactly these."""
    awaited = run.folder / party / approval.CLOSING_AWAITED

    def waits() -> bool:
        if not awaited.exists():
            return False
        wanted = approval.awaited_closing(run.folder / party)
        return wanted.what == "results" and wanted.missing.keys() == set(names)

    wait(run, waits)
    approval.close_uploads(run.folder / party, names)


def test_people_close_at_the_server_and_at_every_custodian(tmp_path: Path) -> None:
    """One clinic has no test rows, and nobody waits for it; one does not come back in time, and has its model later."""
    clinics = CLINICS | {"clinic-4": 15, "clinic-5": 10}
    with crowd(tmp_path, clinics) as run:
        del run.tested["clinic-4"], run.columns["clinic-4"]
        begin(run)
        wait(run, lambda: released(run))
        come_back(run, *CLINICS, "clinic-4")
        let_go(run, "server", "clinic-5")
        let_go(run, "custodian-1", "clinic-5")
        wait(run, lambda: len(run.said(msg.ResultsAdded)) == 1)
        wait(run, lambda: (tmp_path / "custodian-2" / approval.CLOSING_AWAITED).exists())
        assert set(run.said(msg.ResultsAdded)) == {"custodian-1"} and not (tmp_path / "a" / histogram.FILE).exists()
        let_go(run, "custodian-2", "clinic-5")
        run.finish("a", "b", "c", "custodian-1", "custodian-2")
        check(run, read(run, "b"), *TESTED)
        come_back(run, "clinic-5")
        run.finish("server")
        assert np.array_equal(run.parties["clinic-5"].weights, run.parties["a"].weights)
        assert any("closed before its own" in e["text"] for e in run.events if e["event"] == "warn")
        check(run, read(run, "clinic-5"), *TESTED)  # it has come when they were there
        assert "clinic-5" not in run.said(msg.ResultsHanded)


@pytest.mark.parametrize("early", [False, True])
def test_the_date_closes_and_no_server_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    """Nobody is asked then, but where the server has closed before it."""
    come, past = threading.Event(), datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    monkeypatch.setattr(roster, "past", lambda date: date == past and come.is_set())
    monkeypatch.setattr(roster, "early", lambda date, heard: date == past and early)
    if early:
        monkeypatch.setattr(BlindServer, "may_close", lambda self, missing, *_, **__: list(missing) == ["clinic-3"])
    with crowd(tmp_path, pooled_until=past, pooled_least=2) as run:
        begin(run)
        wait(run, lambda: released(run))
        come_back(run, "clinic-1", "clinic-2")
        if early:
            for party in ("custodian-1", "custodian-2"):
                wait(run, lambda name=party: (tmp_path / name / approval.CLOSING_AWAITED).exists())
        come.set()
        if early:
            for party in ("custodian-1", "custodian-2"):
                let_go(run, party, "clinic-3")
        run.finish("a", "b", "c", "custodian-1", "custodian-2")
        assert (tmp_path / "custodian-1" / approval.CLOSING_SIGNED).exists() == early
        check(run, read(run, "c"), *(name for name in TESTED if name != "clinic-3"))
        come_back(run, "clinic-3")
        run.finish("server")


def test_of_too_few_clinics_nothing_is_added_up(tmp_path: Path) -> None:
    """Not by people's word, and not at the date: custodians erase their keys without having used them."""
    with crowd(tmp_path) as run:
        begin(run)
        wait(run, lambda: released(run))
        come_back(run, "clinic-1", "clinic-2")
        let_go(run, "server", "clinic-3")
        run.finish("a", "b", "c", "custodian-1", "custodian-2")
        told = [e["text"] for e in run.events if e["event"] == "warn" and "none are added up" in e["text"]]
        assert {text.partition(":")[0] for text in told} == set("abc")
        assert not run.said(msg.ResultsAdded) and not list(tmp_path.glob(f"*/{histogram.FILE}"))
        assert not list(tmp_path.glob("*/results-*.key"))
        come_back(run, "clinic-3")
        run.finish("server")


class LiesTwice(ArrayInstitution):
    """Counts what cannot be, and hands in other counts besides."""

    refused: Refused | None = None

    def add_counts(self, counts: Any) -> None:
        counts[0, 0, 0, 0] += 1
        super().add_counts(counts)
        again = self.identity.sign_record(
            self.scope, results.HANDED, msg.ResultsHanded(public="11" * 32, counts=self.blobs.put(b"others"))
        )
        with pytest.raises(Refused) as caught:
            self.net.post(again)
        type(self).refused = caught.value


def test_a_clinic_that_lies_or_hands_in_twice(tmp_path: Path) -> None:
    """Counts that cannot be show in the sum, nobody knows whose they were, and the model is there all the same."""
    with crowd(tmp_path) as run:
        begin(run)
        wait(run, lambda: released(run))
        run.play("clinic-2", LiesTwice)
        come_back(run, *CLINICS)
        run.finish()
        assert LiesTwice.refused is not None and LiesTwice.refused.reason == "second-record"
        told = [e["text"] for e in run.events if e["event"] == "warn" and "no ROC curve over all sites" in e["text"]]
        assert {text.partition(":")[0] for text in told} == set("abc")
        assert all("different numbers of rows" in text for text in told) and not list(
            tmp_path.glob("*/pooled_roc.json")
        )


# --------------------------------------------------------------------------- a second list


def without(monkeypatch: pytest.MonkeyPatch, party: str, clinic: str) -> None:
    """From here on the server shows this custodian a board on which ``clinic`` has not handed in, and a list to match,
    which it has signed."""
    honest = BlindCustodian.read_board

    def shown(self: BlindCustodian, seconds: float) -> int:
        read = honest(self, seconds)
        key, own = (self.manifest.server.name, results.CLOSED), (clinic, results.HANDED)
        if self.me.name == party and own in self.heard._records:
            gone = self.heard._records.pop(own)
            self.heard._order.remove(gone)
        if self.me.name == party and key in self.heard._records:
            before = self.heard._records[key]
            assert isinstance(before.body, msg.Roster)
            body = msg.Roster(present=tuple(n for n in before.body.present if n != clinic), incomplete=())
            self.heard._records[key] = before.model_copy(update={"body": body})
            self.heard._digests[key] = "1" * 64
        return read

    monkeypatch.setattr(BlindCustodian, "read_board", shown)


def test_a_second_list_gets_no_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The difference of two would be one clinic's masks. A custodian that was killed before it told anybody still
    remembers for which list it made its sum, even where a person there lets it go on."""
    send = BlindCustodian.send_stored

    def dies(self: BlindCustodian, digests: list[str], audience: Any) -> None:
        if self.me.name == "custodian-1" and audience == "all":
            raise FocalError("the power is out")
        send(self, digests, audience)

    with crowd(tmp_path, pooled_least=2) as run:
        begin(run)
        wait(run, lambda: released(run))
        with monkeypatch.context() as patch:
            patch.setattr(BlindCustodian, "send_stored", dies)
            come_back(run, *CLINICS)
            with pytest.raises(FocalError, match="power"):
                run.finish("custodian-1")
        without(monkeypatch, "custodian-1", "clinic-3")
        run.start("custodian-1")
        let_go(run, "custodian-1", "clinic-3")
        with pytest.raises(Refused) as caught:
            run.finish("custodian-1")
        assert caught.value.reason == "second-digest"
        assert "custodian-1" not in run.said(msg.ResultsAdded)
        assert not list(tmp_path.glob("custodian-1/results-*.key")), "it has ended the run"


def test_two_custodians_with_two_lists_show_nobodys_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Institutions refuse their sums, and in these a mask of the clinic is left that one list has and the other not."""
    without(monkeypatch, "custodian-2", "clinic-3")
    with crowd(tmp_path, pooled_least=2) as run:
        begin(run)
        wait(run, lambda: released(run))
        come_back(run, *CLINICS)
        let_go(run, "custodian-2", "clinic-3")
        with pytest.raises(Refused) as caught:
            run.finish("a")
        assert caught.value.reason == "results" and "'custodian-2' added up" in str(caught.value)
        added, size = run.said(msg.ResultsAdded), results.count(run.manifest)
        key = run.parties["b"].projection_key()
        for seen in added.values():
            total = np.frombuffer(read_blob(run, seen.total), "<u8").copy()
            for body in added.values():
                total -= np.frombuffer(read_blob(run, body.masks), "<u8")
            for name in [*TESTED] if seen is added["custodian-1"] else [n for n in TESTED if n != "clinic-3"]:
                total -= entrusted.veil(key, run.parties["b"].run_id, name, size)
            assert abs((total >> np.uint64(56)).mean() - 127.5) < 2, "it is no sum of counts"


def test_a_custodian_restored_from_a_copy_gives_no_second_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be shown another list. Its peer remembers that it has given."""
    may_give, honest = threading.Event(), results._wait_for_all

    def held(party: BlindCustodian, *others: Any) -> None:
        while party.me.name == "custodian-2" and not may_give.is_set():
            party.read_board(seconds=0.2)
        honest(party, *others)

    monkeypatch.setattr(results, "_wait_for_all", held)
    with crowd(tmp_path) as run:
        begin(run)
        wait(run, lambda: len(list(tmp_path.glob("custodian-*/results-*.key"))) == 2 and released(run))
        come_back(run, "clinic-1", "clinic-2")
        run.stop("custodian-1")
        shutil.copytree(tmp_path / "custodian-1", tmp_path / "copy")
        run.start("custodian-1")
        come_back(run, "clinic-3")
        wait(run, lambda: "custodian-1" in run.said(msg.ResultsAdded))
        run.stop("custodian-1")
        shutil.rmtree(tmp_path / "custodian-1")
        (tmp_path / "copy").rename(tmp_path / "custodian-1")
        assert list(tmp_path.glob("custodian-1/results-*.key"))
        run.errors.clear()
        run.start("custodian-1")
        with pytest.raises(Refused) as caught:
            run.finish("custodian-1")
        assert caught.value.reason == "old-ledger" and not list(tmp_path.glob("custodian-1/results-*.key"))
        may_give.set()


def test_an_institution_restored_from_a_copy_hands_in_once(tmp_path: Path) -> None:
    """What was handed in stays, and it ends as it did."""
    with crowd(tmp_path) as run:
        begin(run)
        wait(run, lambda: released(run))
        shutil.copytree(tmp_path / "clinic-1", tmp_path / "copy")
        come_back(run, "clinic-1")
        shutil.rmtree(tmp_path / "clinic-1")
        (tmp_path / "copy").rename(tmp_path / "clinic-1")
        come_back(run, "clinic-1")
        assert any("a newer copy of its folder" in e["text"] for e in run.events if e["event"] == "warn")
        come_back(run, "clinic-2", "clinic-3")
        run.finish()
        check(run, read(run, "a"), *TESTED)


# --------------------------------------------------------------------------- what must not hang


def test_a_custodian_that_was_away_when_nothing_was_added_up_ends_too(tmp_path: Path) -> None:
    """Its peer, which it would ask about its ledger, has nothing more to give and is gone."""
    with crowd(tmp_path) as run:
        begin(run)
        wait(run, lambda: released(run) and len(list(tmp_path.glob("custodian-*/results-*.key"))) == 2)
        run.stop("custodian-1")
        run.errors.clear()
        come_back(run, "clinic-1", "clinic-2")
        let_go(run, "server", "clinic-3")
        run.finish("a", "b", "c", "custodian-2")
        run.start("custodian-1")
        wait(run, lambda: not run.alive("custodian-1"))
        run.finish("custodian-1")
        assert not list(tmp_path.glob("*/results-*.key"))


class Withholds(ArrayInstitution):
    """Names a histogram that it never sends."""

    def add_counts(self, counts: Any) -> None:
        self.say(results.HANDED, msg.ResultsHanded(public="11" * 32, counts="22" * 32))


def test_whose_histogram_never_comes_is_waited_for_no_longer_than_to_the_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that closed without it, as all others are there, would be one that closes before the date, and its
    date no reason."""
    come, past = threading.Event(), datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    monkeypatch.setattr(roster, "past", lambda date: date == past and come.is_set())
    monkeypatch.setattr(roster, "early", lambda date, heard: date == past and not come.is_set())
    with crowd(tmp_path, pooled_until=past, pooled_least=2) as run:
        begin(run)
        wait(run, lambda: released(run))
        run.play("clinic-2", Withholds)
        come_back(run, *CLINICS)

        def waits(party: str) -> bool:
            folder = tmp_path / party
            there = (folder / approval.CLOSING_AWAITED).exists()
            return there and approval.awaited_closing(folder).missing == {"clinic-2": roster.WHY["incomplete"]}

        wait(run, lambda: any(map(waits, ("server", "custodian-1", "custodian-2"))))
        come.set()
        run.finish()
        check(run, read(run, "a"), *(name for name in TESTED if name != "clinic-2"))
