"""What every party checks of a joint step before it computes anything."""

from __future__ import annotations

import pytest
from quick_joint import JointConsortium

from focal.errors import Refused
from focal.net import messages as msg
from focal.protocols.interactive import plan


def test_a_ciphertext_is_one_institutions() -> None:
    """Another's ciphertext, sent as one's own, would count its rows twice, in the sender's place."""
    with JointConsortium("copied") as c:
        sent = {n: msg.Derivatives(step=0, rows=5, chunk=f"{i:064x}") for i, n in enumerate(c.institutions)}
        plan.check_headers(sent, 0, c.manifest)
        copied = sent | {"hospital-c": sent["hospital-c"].model_copy(update={"chunk": sent["hospital-a"].chunk})}
        with pytest.raises(Refused, match="'hospital-c' and 'hospital-a' sent one ciphertext") as e:
            plan.check_headers(copied, 0, c.manifest)
        assert e.value.reason == "upload"
