"""What every party checks of a joint step before it computes anything."""

from __future__ import annotations

import pytest
from quick_joint import JointConsortium

from focal.errors import Refused
from focal.net import messages as msg
from focal.protocols.interactive import plan


def test_headers_are_of_this_step_and_within_the_batch() -> None:
    with JointConsortium("headers") as c:
        nothing = "00" * 32
        sent = {n: msg.Derivatives(step=0, rows=5, label=nothing, chunk=nothing, proof=nothing) for n in c.institutions}
        plan.check_headers(sent, 0, c.manifest)
        for change in ({"step": 1}, {"rows": 1 << 16}):
            with pytest.raises(Refused, match="'hospital-c' sent") as e:
                plan.check_headers(sent | {"hospital-c": sent["hospital-c"].model_copy(update=change)}, 0, c.manifest)
            assert e.value.reason == "upload"
