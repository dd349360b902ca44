"""The probe tells machines apart that compute other limbs, and no others."""

from __future__ import annotations

import subprocess
import sys

import pytest
from consortium import ENV
from patience import PATIENCE

from focal.ckks import codec, probe
from focal.ckks.scheme import Scheme
from focal.config import CkksConfig


def test_with_and_without_kernels_it_is_the_same() -> None:
    program = "from focal.ckks.probe import limbs_digest; from focal.config import CkksConfig\n"
    program += "print(limbs_digest(CkksConfig()))"
    command = [sys.executable, "-c", program]
    env = {**ENV, "FOCAL_NATIVE": "0"}
    bare = subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=PATIENCE)
    assert bare.stdout.strip() == probe.limbs_digest(CkksConfig())
    assert probe.TAG not in Scheme.installed, "its keys of nothing are left behind"


def test_one_altered_limb_is_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    own, packed = probe.limbs_digest(CkksConfig()), codec.pack
    monkeypatch.setattr(codec, "pack", lambda *what: packed(*what)[:-1] + b"x")
    assert probe.limbs_digest.__wrapped__(CkksConfig(scale_bits=44)) != own
