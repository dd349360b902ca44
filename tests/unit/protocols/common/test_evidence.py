"""What a party takes for somebody's fault, and what it leaves behind when a run is ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from focal.ckks.scheme import Scheme
from focal.config import CkksConfig
from focal.custody.projections import Statement
from focal.errors import Refused, Told
from focal.net import messages as msg
from focal.protocols.common import inputs, resuming
from focal.protocols.common.inputs import Claim
from focal.protocols.common.institution import Institution

RUN, OTHER = "11" * 32, "22" * 32


def test_a_server_that_calls_a_blob_malformed_is_no_institutions_fault() -> None:
    """By the same word an institution's own bytes would be refused, and its part of the run would end."""
    claim = Claim(Statement(b"run", "a", "data", ("00" * 32,), 1), ("item",), "00" * 32, "00" * 32)

    def fetch(digest: str) -> bytes:
        raise Told("length", "'a': a range proof has 30729 bytes, these are 5")

    with pytest.raises(Told, match=r"refused \(length\): the server says"):
        inputs.weigh(Scheme(CkksConfig(), RUN), claim, fetch)
    found = inputs.weigh(Scheme(CkksConfig(), RUN), claim, lambda digest: b"no proof")
    assert isinstance(found, Refused) and found.reason == "length"


def test_shares_of_another_run_do_not_count() -> None:
    """A server that showed some to a peer would have a custodian refused as an old copy of itself."""

    def given(scope: str, topic: str, *ciphertexts: str) -> msg.Record:
        body = msg.RefreshShares(items=("a", "b"), ciphertexts=ciphertexts, shares=())
        return msg.Record(scope=scope, sender="custodian-2", topic=topic, body=body)

    heard = [given(RUN, "refresh/1/logits", "00" * 32, "11" * 32), given(OTHER, "refresh/99/logits", "33" * 32)]
    party: Any = SimpleNamespace(scope=RUN, run_id=bytes.fromhex(RUN), heard=heard)
    assert resuming.shares_seen(party, "custodian-2") == [("refresh", "a", "00" * 32), ("refresh", "b", "11" * 32)]


def test_features_of_no_whole_number_of_bytes_are_refused_by_name() -> None:
    from numpy import zeros

    said = {"b": msg.TestFeatures(features=bytes(17))}
    party: Any = SimpleNamespace(
        me=SimpleNamespace(clinic=True), names=["b"], hear_all=lambda *asked: said, test_features=zeros(4, "f4")
    )
    with pytest.raises(Refused, match=r"refused \(test-features\).*'b'"):
        Institution.compare_test_features(party)


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from focal.errors import Refused
from focal.protocols import start

folder = Path(sys.argv[1])

def forget_secrets():
    os.kill(os.getpid(), signal.{signal})  # whoever started it ends it: another party has failed before
    (folder / "secret-1.key").unlink()

def refuse(*ignored):
    raise Refused("lockstep", "it was ended")

party = SimpleNamespace(folder=folder, forget_secrets=forget_secrets, abort=lambda error: None, leave=lambda: None)
start.read = lambda *ignored: SimpleNamespace(name="custodian-1", state=folder, compute="here")
start.of = lambda manifest: SimpleNamespace(part=lambda role: lambda *ignored: party)
start._go = refuse
sys.exit(start.run_role("custodian", folder / "m", folder / "l", lambda event: None, wait=1))
"""


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
def test_a_run_that_is_ended_leaves_no_secret_although_the_process_is_ended_too(tmp_path: Path, signal: str) -> None:
    (tmp_path / "secret-1.key").write_bytes(b"share")
    program = INTERRUPTED.replace("{signal}", signal)
    ended = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    assert not (tmp_path / "secret-1.key").exists() and "lockstep" in (tmp_path / "aborted").read_text()
