"""Attacks on the secure sum and the projection: nothing is signed, and nothing uploaded, after what was refused."""

from __future__ import annotations

import pytest
from attacks import COMMIT
from stages import Stages, lying, prelude, reason, said, stages

from focal.net import messages as msg

VICTIMS = ("hospital-a", "hospital-c")


@pytest.fixture(scope="module")
def stage() -> Stages:
    return stages()


def test_a_second_participant_list_or_value(stage: Stages) -> None:
    with stage.at("gathered") as c:
        c.start("server", prelude=lying("OtherParticipants()"))
        c.start(*VICTIMS)
        assert [reason(c, v) for v in VICTIMS] == ["participants", "second-record"]
        assert not any("sum/moments/opened" in said(c, v) for v in VICTIMS)


def test_a_sum_shown_differently_to_two_institutions(stage: Stages) -> None:
    with stage.at("gathered") as c:
        c.start("server", prelude=lying("TwoSums()"))
        c.start(*VICTIMS)
        assert [reason(c, v) for v in VICTIMS] == ["sum", "sum"]
        assert "projection/proposed" not in said(c, "hospital-a"), "a sum was used before all had signed it"


def test_a_contribution_chosen_after_seeing_the_others(stage: Stages) -> None:
    """hospital-b would choose the pooled moments, and with them everybody's projection and step size."""
    with stage.at("gathered") as c:
        c.start("server", prelude=lying("LyingServer()"))
        c.start("hospital-b", prelude=prelude("contributes_last()"))
        c.start(*VICTIMS)
        for victim in VICTIMS:
            assert reason(c, victim) == "commitment"
            assert "'hospital-b'" in c.processes[victim].errors
            assert "sum/moments/opened" not in said(c, victim)


def test_no_contribution_is_shown_before_all_have_committed(stage: Stages) -> None:
    """Neither named on the board nor sent, also after kill -9."""
    with stage.at("gathered") as c:
        for _ in range(2):
            c.start("server", *VICTIMS)
            for victim in VICTIMS:
                c.processes[victim].reach(
                    lambda e: e["event"] == "waiting" and (e["names"], e["topic"]) == (["hospital-b"], COMMIT)
                )
            committed = {who: body.commitment for who, _, body in c.bodies(msg.SumCommit)}
            assert set(committed) == set(VICTIMS) and not list(c.bodies(msg.SumContribution))
            for victim in VICTIMS:
                own = {p.parent.name + p.name for p in (c.folder(victim) / "blobs").glob("??/*")}
                assert own and not own & c.complete_blobs(), "a contribution lies at the server"
            for party in ("server", *VICTIMS):
                c.processes[party].kill()
        c.start("server", *c.institutions)
        for name in c.institutions:
            c.processes[name].reach_phase("upload")
        assert {who: body.commitment for who, _, body in c.bodies(msg.SumCommit) if who in VICTIMS} == committed
        assert len(list(c.bodies(msg.SumContribution))) == 3


@pytest.mark.parametrize("how", ["rotated", "chosen"])
def test_a_lying_projection(stage: Stages, how: str) -> None:
    with stage.at("gathered") as c:
        c.start("server", prelude=lying("LyingServer()"))
        c.start("hospital-a", prelude=prelude(f"proposes({how!r})"))
        c.start("hospital-b", "hospital-c")
        for victim in ("hospital-b", "hospital-c"):
            assert reason(c, victim) == "projection"
            assert "hospital-a" in c.processes[victim].errors or "projection" in c.processes[victim].errors
            assert "projection/accepted" not in said(c, victim)
        assert "projection/accepted" in said(c, "hospital-a")
