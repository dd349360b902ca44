"""What is made once in a test session: the first worker that asks for it makes it, the others wait and then find it.

::

    <folder of the session>/            removed when the session ends
        data/ eyes/ stages/ ...         each made once, under a lock; nobody changes it afterwards
        gw0/ gw1/                       what one worker does with its own copies
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import os
import re
import shutil
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

SESSION = "FOCAL_TEST_SESSION"
"""Environment variable with the folder of the session: the process that starts the workers sets it (conftest.py)."""


def begin() -> Path:
    """The folder of a new session, for this process and all that it starts.
    Those of sessions that were killed go: gigabytes each."""
    for left in Path(tempfile.gettempdir()).glob("focal-tests-*-*"):
        owner = left.name.split("-")[2]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(left, ignore_errors=True)
    os.environ[SESSION] = tempfile.mkdtemp(prefix=f"focal-tests-{os.getpid()}-")
    return Path(os.environ[SESSION])


@functools.cache
def session_folder() -> Path:
    if SESSION not in os.environ:  # a program of this folder, without pytest
        atexit.register(shutil.rmtree, begin(), ignore_errors=True)
    return Path(os.environ[SESSION])


@functools.cache
def worker_folder() -> Path:
    """This worker's own part of it."""
    folder = session_folder() / os.environ.get("PYTEST_XDIST_WORKER", "alone")
    folder.mkdir(exist_ok=True)
    return folder


def once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name`` of the session, which ``make`` has filled. What failed once fails for all,
    and is not tried again."""
    folder, failure = session_folder() / name, session_folder() / f"{name}.failed"
    with (session_folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not failure.exists(), failure.read_text()
        if not folder.exists():
            folder.mkdir()
            try:
                make(folder)
            except BaseException:
                shutil.rmtree(folder)
                failure.write_text(f"'{name}' could not be made:\n{traceback.format_exc()}")
                raise
    return folder


def copy(source: Path, target: Path) -> None:
    """A copy of parties' folders. Blobs are linked: nothing ever writes into a finished one.
    What tests left lying there stays behind."""

    def one(a: str, b: str) -> None:
        finished_blob = re.fullmatch(r".*/blobs/[0-9a-f]{2}/[0-9a-f]{62}", a)
        (os.link if finished_blob else shutil.copy2)(a, b)

    shutil.copytree(source, target, copy_function=one, ignore=shutil.ignore_patterns("at-*", "open-*", "*.tmp"))
