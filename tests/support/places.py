"""Where things lie: the checkout, the package in it, and what may lie beside it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "focal"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DATA = Path(os.environ.get("FOCAL_DATA") or ROOT.parent / "shared" / "data")
"""Real data sets; tests that read them are skipped where there are none."""
CONTRACT = ROOT.parent / "shared" / "tools" / "contract_check.py"
"""Another reader of summary.json."""
