"""Rules that hold for the whole package, checked in fresh interpreters."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE

PACKAGE = Path(__file__).parents[1] / "focal"


def python(program: str) -> str:
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=PATIENCE).stdout.strip()


def test_only_ckks_imports_openfhe() -> None:
    source = {p: p.read_text() for p in PACKAGE.rglob("*.py")}
    importing = {p.relative_to(PACKAGE).parts[0] for p, text in source.items() if re.search(r"^\s*(import|from) openfhe", text, re.M)}
    assert importing == {"ckks"}


@pytest.mark.parametrize("module", ["context", "keys", "rehearsal", "wire"])
def test_openmp_is_limited_before_openfhe_is_imported(module: str) -> None:
    """Whatever is imported first: two OpenMP processes on two cores make a product 30 times slower."""
    watch = "import os, sys, builtins; real = builtins.__import__; seen = []\n"
    watch += "def hook(name, *a, **k):\n"
    watch += "    if name == 'openfhe' and 'openfhe' not in sys.modules: seen.append(os.environ.get('OMP_NUM_THREADS'))\n"
    watch += "    return real(name, *a, **k)\nbuiltins.__import__ = hook\n"
    assert python(f"{watch}import focal.ckks.{module}\nprint(seen[0])") == "1"


@pytest.mark.parametrize("role", ["server", "custodian"])
def test_server_and_custodian_never_import_torch(role: str) -> None:
    assert python(f"import sys, focal.roles.{role}, focal.roles.start; print('torch' in sys.modules)") == "False"
