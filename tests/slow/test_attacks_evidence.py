"""Whose fault it was: evidence that a server or a custodian fakes, or keeps back, in whole runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disputes import LIAR, ends_before_any_refresh, lies_about, until, warned
from patience import PATIENCE
from rosters import ROWS, WIDTH, Consortium, consortium

from focal.ckks import codec, ring
from focal.errors import FocalError, LeftOut, Refused
from focal.net import messages as msg
from focal.net.answers import Answers
from focal.net.identity import open_record
from focal.net.store import Board
from focal.protocols import together
from focal.protocols.blind import institution
from focal.protocols.blind.custodian import BlindCustodian
from focal.protocols.common.custodian import Custodian
from focal.protocols.common.server import Server
from focal.runs.simulate import ArrayInstitution


def test_a_servers_words_are_told_as_the_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers a custodian's question for a blob with what the custodian would say of an institution, and the
    custodian would sign it."""
    honest = Answers._get

    def _get(self: Answers, asker: Any, get: Any, payload: bytes) -> Any:
        if asker.name == "custodian-1":
            raise Refused("range-sum", "c: its range proof of 'data' does not fit its uploads")
        return honest(self, asker, get, payload)

    monkeypatch.setattr(Answers, "_get", _get)
    with consortium(tmp_path, {}) as run:
        ends_before_any_refresh(run, "range-sum")
        assert "refused (range-sum): the server says: c: its range" in run.said(msg.Abort)["custodian-1"].reason


def keeps_back_that_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Board.append

    def append(self: Board, data: bytes, sender: str | None, after: int | None = None) -> int:
        asks = b"unproven" in data and isinstance(open_record(self._manifest, data).body, msg.Unproven)
        return len(self) if asks else honest(self, data, sender, after)

    monkeypatch.setattr(Board, "append", append)


def test_an_institution_that_nobody_seems_to_ask_says_whose_share_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server helps the liar: it shows no institution that custodians wait for people."""
    lies_about(monkeypatch, "d")
    keeps_back_that_somebody_asks(monkeypatch)
    with consortium(tmp_path, {"d": 20}) as run:
        run.start()
        run.close_uploads("d", parties=("custodian-1", LIAR))
        run.finish("a", "b", "c", "server", "custodian-1", LIAR)
        with pytest.raises(LeftOut, match="custodian-2 gave wrong shares"):
            run.finish("d")
        assert not list((tmp_path / "d").glob("masks-*.key"))


def test_an_institution_that_nobody_seems_to_ask_says_it_when_the_run_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes here, and as long as the server still gives it the shares."""
    lies_about(monkeypatch, "c")
    keeps_back_that_somebody_asks(monkeypatch)
    monkeypatch.setattr(institution, "FAULT_SECONDS", PATIENCE)
    monkeypatch.setattr(together, "OTHERS_SECONDS", PATIENCE)
    with consortium(tmp_path, {}) as run:

        def stays(self: Server) -> None:
            end = time.monotonic() + PATIENCE
            while run.alive("c") and time.monotonic() < end:
                time.sleep(0.05)

        monkeypatch.setattr(Server, "_farewell", stays)
        ends_before_any_refresh(run, "range-sum")
        assert warned(run, "c: custodian-2 gave wrong shares") and not warned(run, "a: ")
        assert not list(tmp_path.glob("?/masks-*.key"))


def test_shares_that_a_server_keeps_back_are_not_wrong_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the institution would accuse an honest custodian beside the liar."""
    lies_about(monkeypatch, "d")
    kept, get, say = set[str](), Answers._get, BlindCustodian.say

    def _get(self: Answers, asker: Any, asked: Any, payload: bytes) -> Any:
        if asker.name == "d" and asked.digest in kept:
            raise Refused("unknown-blob", "there is none")
        return get(self, asker, asked, payload)

    def says(self: BlindCustodian, topic: str, body: Any) -> None:
        if isinstance(body, msg.InputCommit) and self.me.name == "custodian-1":
            kept.add(body.shares)
        say(self, topic, body)

    monkeypatch.setattr(Answers, "_get", _get)
    monkeypatch.setattr(BlindCustodian, "say", says)
    with consortium(tmp_path, {"d": 20}) as run:
        run.start()
        told = (
            "d: custodian-2 gave wrong shares of the check of its proofs, and the server has no shares of custodian-1"
        )
        until(run, lambda: warned(run, told))
        run.close_uploads("d", parties=("custodian-1", LIAR))
        run.finish("a", "b", "c", "server", "custodian-1", LIAR)


@pytest.mark.parametrize("liar", ["custodian-1", "custodian-2"])
def test_a_custodian_that_leaves_out_somebody_is_named_and_not_those_who_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, liar: str
) -> None:
    """Wherever it stands in the manifest. Who makes no range checks names both."""
    honest = BlindCustodian.leave_out
    monkeypatch.setattr(
        BlindCustodian, "leave_out", lambda self, failed: {"d": 20} if self.me.name == liar else honest(self, failed)
    )
    (other,) = {"custodian-1", "custodian-2"} - {liar}
    named = f"'{liar}' leaves out d of 'inputs', where its range checks say nobody"
    with consortium(tmp_path, {"d": 20}) as run:
        ends_before_any_refresh(run, "inputs")
        assert named in str(run.errors[other])
        for name in "abcd":
            assert f"'{liar}'" in str(run.errors[name]) and "one of the two is wrong" in str(run.errors[name])
        with pytest.raises(FocalError, match=named):
            run.audited()


def test_a_custodian_that_says_more_items_than_ciphertexts_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever answers its questions counts what it has said."""
    honest = BlindCustodian._answer_plan

    def plays(self: BlindCustodian) -> None:
        no_share = msg.RefreshShares(items=("a", "b"), ciphertexts=("0" * 64,), shares=())
        self.say("refresh/77/logits", no_share)
        self.say("resume/00", msg.ResumeNonce(nonce="00" * 32))
        self.hear("custodian-1", f"resume-answer/{self.me.name}/00", msg.ResumeAnswer)
        honest(self)

    monkeypatch.setattr(BlindCustodian, "_answer_plan", plays)
    with consortium(tmp_path, {}) as run:
        run.start()
        run.finish()
        run.check("a", "b", "c")


class ContributesNoMoments(ArrayInstitution):
    """What it adds to the pooled moments leaves no variance."""

    def secure_sum(self, label: str, names: Any, values: Any, *more: Any) -> Any:
        dim, values = WIDTH, np.array(values)
        places = dim + np.cumsum(np.r_[0, np.arange(dim, 1, -1)])  # the second moments of each feature with itself
        values[places] = -0.5
        return super().secure_sum(label, names, values, *more)


def test_an_institution_that_spoils_the_moments_lets_nobody_wait(tmp_path: Path) -> None:
    """Custodians and server hear that the run is over, and no key share stays."""
    with consortium(tmp_path, {}) as run:
        run.play("c", ContributesNoMoments)
        ends_before_any_refresh(run, "moments")
        assert {"custodian-1", "custodian-2", "server"} <= run.errors.keys()
        assert not list(tmp_path.glob("*/*.key"))


def seals_another_model(monkeypatch: pytest.MonkeyPatch, reader: str, added: float) -> None:
    """A custodian adds to the first weights of what it seals to ``reader``."""
    honest = Custodian._sealed

    def sealed(self: Custodian, institution: Any, shares: bytes) -> str:
        if self.me.name == LIAR and institution.name == reader:
            size, q = codec.size(self.scheme, codec.DECRYPTION), self.scheme.moduli[0]
            limb = codec.unpack(self.scheme, codec.DECRYPTION, shares[:size], "its own")[0][0]
            constant = np.zeros(self.scheme.n, np.uint64)
            constant[0] = int(16 * added * self.scheme.scale)
            lied = ring.add(limb, ring.ntt(constant, q, self.scheme.roots[q]), q)
            shares = codec.pack(self.scheme, codec.DECRYPTION, [[lied]]) + shares[size:]
        return honest(self, institution, shares)

    monkeypatch.setattr(Custodian, "_sealed", sealed)


def test_one_custodian_gives_an_institution_another_model_and_nobody_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shares are sealed to each: the others have the true model, and the audit has nothing to compare.
    SECURITY.md says so."""
    seals_another_model(monkeypatch, "c", 0.5)
    with consortium(tmp_path, {}) as run:
        run.start()
        run.finish()
        told: Any = {name: run.parties[name] for name in ROWS}
        assert np.array_equal(told["a"].weights, told["b"].weights)
        assert abs(np.abs(told["c"].weights - told["a"].weights).max() - 0.5) < 1e-3
        assert isinstance(run, Consortium) and run.audited().endswith("the last refreshed weights and nothing else")
