"""A hub that serves in a thread of the test, and a member that sends it what it likes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Raw, Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def raw(server: Server) -> Iterator[Raw]:
    raw = Raw(server, "north")
    yield raw
    raw.close()
