"""The verifying custodian: it refuses a server that computes something else, and survives its own kill -9."""

from __future__ import annotations

import numpy as np
import pytest
from consortium import cli
from consortium import said as words
from stages import Stages, prelude, reason, said, shares, stages

from focal.heads.released import MAX_ERROR


@pytest.fixture(scope="module")
def stage() -> Stages:
    return stages()


def test_a_verifier_killed_in_training_goes_on_and_the_run_ends_well(stage: Stages) -> None:
    """It was killed after its first step (stages.py). The weights are the twin's within what the planner promises, and
    an audit finds the same: also where institutions share a block, as they do here."""
    at_the_kill = stage.verifier_ledger_at_the_kill
    assert 1 < len(at_the_kill) < 7, "it was not killed in the middle of training"
    with stage.at("trained") as c:
        assert c.ledger("custodian-1")[: len(at_the_kill)] == at_the_kill
        assert (
            len(shares(c, "custodian-1")) == len(set(shares(c, "custodian-1"))) == 6
        )  # 3 refreshes in 2 steps, of 2 class groups each
        c.start_all()
        c.finish()
        assert c.manifest.share_blocks and np.abs(c.weights() - c.twin()).max() < MAX_ERROR
        audited = cli("audit", c.run.folder)
        assert audited.returncode == 0 and "every digest is the same" in words(audited)


@pytest.mark.parametrize("server", ["wrong_rate()", "wrong_limb()"])
def test_a_server_that_computes_something_else(stage: Stages, server: str) -> None:
    """W = 0 before the first step, so the rate and the data show for the first time in the first update."""
    with stage.at("uploaded") as c:
        c.start("server", prelude=prelude(f"attacks.{server}"))
        c.start(*c.custodians)
        assert reason(c, "custodian-1") == "lockstep"
        assert "'train/0/weights/-/0/-'" in c.processes["custodian-1"].errors
        assert "refresh/0/weights" not in said(c, "custodian-1")
        assert shares(c, "custodian-1") == []
