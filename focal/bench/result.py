"""What a benchmark found, and the script that it may be compared with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focal.errors import FocalError


@dataclass(frozen=True)
class Result:
    text: str
    numbers: dict[str, Any]


def printed(script: Path, options: list[str], pattern: str) -> float:
    """The number that ``pattern`` finds in what the reference script prints."""
    command = [sys.executable, str(script), *options]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    match = re.search(pattern, done.stdout)
    if match is None:
        raise FocalError(
            f"{script}: prints no '{pattern}' ({done.stderr.strip().splitlines()[-1:]})", hint="leave --reference out"
        )
    return float(match[1])
