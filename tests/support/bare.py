"""A machine with bare ``focal``: what only a site or a study has cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from consortium import ENV
from patience import PATIENCE

BARE = """
import sys
from importlib.machinery import PathFinder

from focal.extras import EXTRAS

class Bare(PathFinder):
    absent = {module for modules in EXTRAS.values() for module in modules}

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in cls.absent else super().find_spec(name, path, target)

sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""


def bare(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command on a machine that has no more than bare focal."""
    command = [sys.executable, "-c", f"{BARE}\nfrom focal.cli import main\nmain()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENV, cwd=cwd, timeout=PATIENCE)
