"""What every test file may use.

Threads are limited before anything imports OpenFHE, torch or numpy (docs/openfhe.md, section 1): the workers
and the processes that they start have all processors busy, and two threads that spin for one product beside
them take ten times as long as one. From whatever starts the tests they take nothing over: a ``make`` would show in what
the ``make`` of a test prints, and a shell's background job ignores Ctrl-C, as every process that a test interrupts then
would.
"""

from __future__ import annotations

import os
import signal

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
for made in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(made, None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import shutil  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import pytest  # noqa: E402
import shared  # noqa: E402
from opened import Opened  # noqa: E402
from places import DATA  # noqa: E402

from focal.heads.linear.layout import Layout  # noqa: E402
from focal.heads.linear.rehearsal import Rehearsal  # noqa: E402

if TYPE_CHECKING:
    import torch

    from focal.data.table import Table
    from focal.segments.lower import LowerSegment

SLOW, UNIT = (Path(__file__).parent / name for name in ("slow", "unit"))
FIRST = ("test_network.py", "test_lost_custodians.py", "test_wheel.py", "test_split.py", "test_features.py")
"""Files that take longest: one that begins last keeps its worker busy for minutes after the other has nothing left."""


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # workers inherit the folder
        shared.begin()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(shared.session_folder(), ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What lies in ``slow/`` is slow. Whole runs come first, so that two workers (``--dist loadfile``) end at about
    the same time; before them what takes longest, and first of all what waits for stalled links: the other worker has
    the processors meanwhile."""
    for item in items:
        if SLOW in item.path.parents:
            item.add_marker(pytest.mark.slow)
    last = len(FIRST)
    order = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: (order.get(item.path.name, last), UNIT in item.path.parents))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What compares with plain training asks torch for all processors,
    and would leave it so for every test after it."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads = lambda count: None  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def small() -> Layout:
    """One block, one class group, 16 features, 8 outputs."""
    return Layout(8192, 16, 8, 300, 8, 1, 4)


@pytest.fixture(scope="session")
def rehearsal(small: Layout) -> Rehearsal:
    """Three custodians with joint keys. Its evaluation keys live until somebody's ``Scheme.close``."""
    return Rehearsal(small, custodians=3, run="tests")


@pytest.fixture(scope="session")
def opened(rehearsal: Rehearsal) -> Opened:
    return Opened(rehearsal)


@pytest.fixture(scope="module")
def lower() -> LowerSegment:
    """A small ResNet for small images."""
    from splitting import LOWER

    from focal.segments.lower import build_lower

    return build_lower(LOWER, "random:0")[0]


@pytest.fixture(scope="module")
def table() -> Table:
    """90 generated images, about a quarter of them to test on."""
    from focal.data.synthetic import generate

    return generate(90, 0)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """(160, 3, s, s) generated fundus images."""
    from leaking import fundus

    return fundus()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real data sets; the test is skipped where there is none."""
    if not DATA.is_dir():
        pytest.skip(f"no real data in {DATA} (set FOCAL_DATA)")
    return DATA
