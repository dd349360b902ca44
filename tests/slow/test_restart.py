"""Any process may die at any time: the same command again continues the run,
and nothing that was said or made is made twice."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import Process, config, dataset, focal, said, write_config
from patience import PATIENCE
from stages import Stages, stages

from focal.config import RunConfig
from focal.runs import local


@pytest.fixture(scope="module")
def stage() -> Stages:
    return stages()


def test_an_old_copy_of_a_custodian_is_refused(stage: Stages) -> None:
    """A custodian that is restored from a backup has forgotten shares that it gave: it must not answer again."""
    with stage.at("uploaded") as c:
        c.start("server", *c.custodians)
        custodian = c.processes["custodian-2"]
        custodian.reach_phase("train")
        custodian.child.send_signal(signal.SIGSTOP)
        backup = c.folder("custodian-2").with_name("backup")
        shutil.copytree(c.folder("custodian-2"), backup)
        given = len(c.ledger("custodian-2"))
        custodian.child.send_signal(signal.SIGCONT)
        _until(
            lambda: len(c.ledger("custodian-2")) >= given + 3, custodian
        )  # two class groups: a batch of 2 has left by then
        custodian.kill()

        shutil.rmtree(c.folder("custodian-2"))
        backup.rename(c.folder("custodian-2"))
        restored = c.start("custodian-2")
        assert restored.end() == 1
        assert (
            "refused (old-ledger)" in restored.errors
            and "custodian-" in restored.errors
            and "new run" in restored.errors
        )
        assert c.processes["custodian-3"].end() == 1
        assert "'custodian-2' ended the run" in c.processes["custodian-3"].errors
        # and for good: the same command does not try again
        assert c.start("custodian-2").end() == 1
        assert "this run was ended" in c.processes["custodian-2"].errors


def test_a_custodian_that_dies_with_its_key_deleted_still_finishes(stage: Stages) -> None:
    """Killed between its last share and the end: it repeats what it said, makes no new key,
    and does not wait for peers that have left."""
    with stage.at("trained") as c:
        c.start_all()
        first, second = c.processes["custodian-1"], c.processes["custodian-2"]
        first.reach_phase("release")
        first.child.send_signal(signal.SIGSTOP)  # or else all would be done at once
        second.reach(lambda e: "is deleted" in e.get("text", ""))
        second.kill()
        given = c.ledger("custodian-2")
        first.child.send_signal(signal.SIGCONT)
        assert first.end() == 0  # it has everything from the others and leaves
        c.start("custodian-2")
        c.finish()
        assert c.ledger("custodian-2") == given
        assert not list(c.folder("custodian-2").glob("secret-*.key"))
        assert np.abs(c.weights() - c.twin()).max() < 1e-3


@pytest.mark.parametrize(("what", "needed"), [("secret", "uploaded"), ("masks", "accepted")])
def test_a_lost_key_ends_the_run_with_a_message(stage: Stages, what: str, needed: str) -> None:
    with stage.at(needed) as c:
        c.start("server", *(n for n in c.custodians if n != "custodian-2"))
        (key,) = c.folder("custodian-2").glob(f"{what}-*.key")
        key.unlink()
        again = c.start("custodian-2")
        assert again.end() == 1
        assert str(key) in again.errors and "start a new run" in again.errors


def _until(test: Any, process: Process) -> None:
    deadline = time.monotonic() + PATIENCE
    while not test():
        assert process.child.poll() is None, process.errors
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --------------------------------------------------------------------------- one command for all


def test_another_configuration_under_the_name_of_an_unfinished_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"  # its own: whole runs of other files may have any name among the worker's
    folder = runs / "other"
    local.prepare(local.open_run(RunConfig.model_validate(config("other", seed=7)), runs), lambda text: None)
    result = focal("train", "--config", write_config(tmp_path, "other"), "--runs", runs)
    assert result.returncode == 1 and "another configuration" in said(result) and str(folder) in said(result)
    assert dataset().images.exists()
