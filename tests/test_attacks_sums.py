"""Attacks on the secure sum and the projection: nothing is signed, and nothing uploaded, after what was refused."""

from __future__ import annotations

import pytest
from stages import Stages, lying, prelude, reason, said, stages

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
