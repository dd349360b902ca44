"""Joint steps in which something goes wrong, between real processes: stragglers, kills, averages without one;
and noise on the head."""

from __future__ import annotations

import signal
import time

import numpy as np
from quick_joint import JointConsortium

from focal.net import messages as msg

ERROR = 1e-3
"""What an opened logit, gradient or released weight may err by: the interactive protocol's target."""


DIES_IN_AVERAGE_1 = """
import os
from focal.sums.masked import MaskedSum
_open = MaskedSum.open
def open_(self, contributions):
    if self.label == plan.average_label(1):
        os._exit(9)
    return _open(self, contributions)
MaskedSum.open = open_
"""
"""An institution that has contributed, and dies before it says that it has the sum."""


def test_an_average_that_was_abandoned_stays_so_for_one_that_comes_back() -> None:
    """All contributions lie at the server, so that hospital-b could still open the sum that the others did without."""
    with JointConsortium("abandoned", straggler_seconds=10) as c:
        c.start(*(n for n in c.roles if n != "hospital-b"))
        c.start("hospital-b", prelude=DIES_IN_AVERAGE_1)
        assert c.processes["hospital-b"].end() == 9
        c.processes["server"].reach(lambda e: e["event"] == "warn" and "average 1 is abandoned" in e["text"])
        c.start("hospital-b")
        c.finish()
        assert any("average 1 was abandoned" in e.get("text", "") for e in c.processes["hospital-b"].events)
        for name in c.institutions:
            opened = c.opened(name)
            assert "average/1" not in opened and {"average/2", "average/3"} <= opened.keys()
            np.testing.assert_array_equal(opened["average/3"], c.opened("hospital-a")["average/3"])


def test_a_straggler_is_skipped_named_and_welcome_again() -> None:
    with JointConsortium("straggler", straggler_seconds=8, steps=6) as c:
        c.start_all()
        slow = c.processes["hospital-d"]
        slow.reach(lambda e: e["event"] == "progress" and e["phase"] == "train" and e["done"] >= 1)
        slow.child.send_signal(signal.SIGSTOP)
        server = c.processes["server"]
        server.reach(lambda e: e["event"] == "warn" and "goes on without hospital-d" in e["text"])
        slow.child.send_signal(signal.SIGCONT)
        c.finish()
        answered = {b.step: list(b.owners) for _, t, b in c.bodies(msg.Present) if t.startswith("answered/")}
        missed = [step for step, owners in answered.items() if "hospital-d" not in owners]
        assert missed and answered[5] == c.institutions or "hospital-d" not in answered[5]
        np.testing.assert_allclose(c.head()[0], c.joint_twin(answered)[-1], atol=ERROR)


def test_killed_parties_go_on_where_they_were() -> None:
    """An institution, both custodians and the server, each in another step;
    the institution again when its key for masks is erased."""
    with JointConsortium("killed-joint") as c:
        c.start_all()
        for step, who in enumerate(("hospital-b", "custodian-1", "custodian-2", "server"), start=1):
            c.processes["server"].reach(
                lambda e, n=step: e["event"] == "progress" and e["phase"] == "train" and e["done"] >= n
            )  # type: ignore[misc]
            c.processes[who].kill()
            time.sleep(0.5)
            c.start(who)
        c.processes["hospital-b"].reach_phase("release")
        c.processes["hospital-b"].kill()
        assert not list(c.folder("hospital-b").glob("masks-*.key"))
        c.start("hospital-b")
        c.finish()
        answered = {b.step: list(b.owners) for _, t, b in c.bodies(msg.Present) if t.startswith("answered/")}
        np.testing.assert_allclose(c.head()[0], c.joint_twin(answered)[-1], atol=ERROR)
        for name in c.custodians:
            items = [(protocol, item) for protocol, item, *_ in c.ledger(name)]
            assert len(items) == len(set(items)), "a share was made twice"


def test_noise_on_the_head_is_recorded_and_verified() -> None:
    """``dp_head_noise``: every custodian adds its own, lockstep goes on, and the released head differs
    from the twin by about that."""
    with JointConsortium("noise", dp_head_noise=0.01) as c:
        c.start_all()
        c.finish()
        off = c.head()[0] - c.joint_twin()[-1]
        # six steps, two custodians, momentum 0.5 passes each on up to twice; the head answers to it,
        # so only the size is known
        assert 0.01 * 2**0.5 < off.std() < 0.01 * 2**0.5 * 2 * 6**0.5
