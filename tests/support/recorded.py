"""Parties that keep every byte that they receive, so that a test can look for what must not be there.

::

    recorded.into(FOLDER)         from here on, in this process: FOLDER/NAME/headers.bin and payloads.bin
    recorded.train(...)           `focal train`, whose parties are processes `python -m recorded ROLE ...`
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

from focal.cli import main
from focal.net.transport import Hub, Link
from focal.protocols import start
from focal.protocols.common import server

WIRES = "FOCAL_TESTS_WIRES"


def into(folder: str | Path) -> None:
    def keeping(kind: type[Any]) -> Any:
        return lambda manifest, identity, *a, **k: kind(
            manifest, identity, *a, record=Path(folder) / identity.name, **k
        )

    start.Link, server.Hub = keeping(Link), keeping(Hub)  # type: ignore[misc, assignment]


def train(folder: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of ``focal train`` with these arguments."""
    program = "import recorded; recorded.launch()"
    support = str(Path(__file__).parent)
    path = os.pathsep.join(filter(None, [support, os.environ.get("PYTHONPATH")]))
    return [sys.executable, "-c", program, "train", *arguments], {WIRES: str(folder), "PYTHONPATH": path}


def launch() -> None:
    from focal.runs import local

    local.Processes = functools.partial(local.Processes, module="recorded")  # type: ignore[misc, assignment]
    main()


if __name__ == "__main__":
    into(os.environ[WIRES])
    main()
