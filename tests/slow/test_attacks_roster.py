"""What one lying custodian does to who is in a blind run, and to what an institution uploaded: whole runs.

Two of these attacks succeed: SECURITY.md says so, and these tests show how far they go.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosters import CLASSES, Consortium, consortium

from focal.ckks import codec, ring
from focal.custody import inputs as custody
from focal.errors import FocalError, LeftOut
from focal.net import messages as msg
from focal.net.identity import open_record
from focal.protocols.blind import plan, roster
from focal.protocols.blind.custodian import BlindCustodian
from focal.protocols.common.inputs import MaskKeys

LIAR = "custodian-2"


def ends_before_any_refresh(run: Consortium, reason: str) -> None:
    run.start()
    with pytest.raises(FocalError):
        run.finish()
    assert any(f"({reason})" in str(error) for error in run.errors.values()), run.errors
    assert not [r for r in run.board() if open_record(run.manifest, r).topic.startswith("refresh")]


def test_a_custodian_that_leaves_out_somebody_whose_proof_holds_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = BlindCustodian.leave_out
    monkeypatch.setattr(
        BlindCustodian, "leave_out", lambda self, failed: ["d"] if self.me.name == LIAR else honest(self, failed)
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


def test_a_custodian_alone_leaves_institutions_out_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its shares of their range checks, which nobody can check: all have come, and there is no closing date."""
    honest = MaskKeys.weighed

    def weighed(self: MaskKeys, scheme: Any, claim: Any, fetch: Any) -> Any:
        share, found = honest(self, scheme, claim, fetch)
        lies = self.party.me.name == LIAR and claim.statement.institution in ("d", "e")
        return (bytes(len(share)) if lies else share), found

    monkeypatch.setattr(MaskKeys, "weighed", weighed)
    with consortium(tmp_path, {"d": 20, "e": 30}) as run:
        run.start()
        run.finish("a", "b", "c", "server", "custodian-1", "custodian-2")
        for name in "de":
            with pytest.raises(LeftOut):
                run.finish(name)
        assert all(reveal.left_out == ("d", "e") for reveal in run.said(msg.InputReveal).values())
        assert not list(tmp_path.glob("*/closed.json")), "nobody has closed the uploads"
        run.check("a", "b", "c")


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
