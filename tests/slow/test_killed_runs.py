"""Whole runs that are killed or interrupted: the same command again continues them,
and nothing that was said or made is made twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from consortium import ENV, Consortium, focal, runs, said, write_config
from patience import PATIENCE

from focal.net import messages as msg
from focal.net.frames import PIECE


class Memory:
    """What was said and made before a process was killed. It must all still be there, byte for byte, in the end."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], bytes] = {}
        self.shares: dict[str, list[tuple[Any, ...]]] = {}
        self.blobs: set[str] = set()

    def note(self, consortium: Consortium) -> None:
        self.records |= consortium.board()
        self.blobs |= consortium.complete_blobs()
        for name in consortium.custodians:
            if list(consortium.folder(name).glob("ledger-*.sqlite")):
                self.shares[name] = consortium.ledger(name)


def test_kill_9_in_every_phase(tmp_path: Path) -> None:
    """Every role is killed at least once: in the key ceremony, the upload, the training and before the release."""
    recording = f"import recorded; recorded.into({str(tmp_path)!r})\n"
    memory = Memory()
    with Consortium("killed", training={"steps": 3}, layout={"class_lanes": 2, "feature_lanes": 2}) as c:

        def kill(*names: str) -> None:
            for name in names:
                c.processes[name].kill()
            memory.note(c)
            for name in names:
                c.start(name, prelude=recording if name == "server" else "")

        c.start("server", prelude=recording)
        c.start("custodian-1", "custodian-2", "hospital-a", "hospital-b", "hospital-c")

        c.processes["custodian-1"].reach_phase("keys", done=3)  # its contributions are half made
        kill("custodian-1")
        c.processes["server"].reach_phase("keys", done=2)  # it adds up what the custodians sent
        kill("server", "hospital-b")
        c.processes["hospital-c"].reach_phase("upload", done=1)
        kill("hospital-c")
        c.processes["server"].reach_phase("train", done=1)  # the first step is done
        kill("server")
        c.processes["server"].reach_phase("train", done=2)
        kill("custodian-2")
        c.processes["custodian-2"].reach_phase("release")
        kill("custodian-2")
        c.finish()

        assert np.abs(c.weights() - c.twin()).max() < 1e-3

        board = c.board()
        assert len(memory.records) > 40 and {k: board[k] for k in memory.records} == memory.records
        steps = {topic for sender, topic in board if topic.startswith("step/")}
        assert steps == {"step/0", "step/1", "step/2"}
        for name in c.custodians:
            shares = c.ledger(name)
            before = memory.shares[name]
            assert before and shares[: len(before)] == before, f"{name} made a share again"
            # the inputs; for each of 2 class groups: the weights in each of three steps, and after the first the logits
            # of each institution's own block; then the release
            assert len(shares) == 1 + 2 * (3 + 2 * 3) + 2
            assert len({item for _, item, _, _ in shares}) == len(shares)
            assert not list(c.folder(name).glob("secret-*.key"))

        check_nothing_sent_again(c, memory.blobs, (tmp_path / "server" / "payloads.bin").read_bytes())


def check_nothing_sent_again(c: Consortium, complete: set[str], received: bytes) -> None:
    """No piece of a blob that the server had whole before a kill was received twice;
    of the others, at most a window of pieces a kill."""
    uploaded = {digest for _, _, body in c.bodies(msg.Upload) for digest in body.chunks}
    uploaded |= {digest for _, _, body in c.bodies(msg.InputReveal) for digest in body.blobs}
    keys = {digest for _, _, body in c.bodies(msg.KeyReveal) for digest in body.blobs}
    known = complete & (uploaded | keys)
    assert known & uploaded and known & keys, "no blob was complete at any kill: this would check nothing"
    folder = c.folder("server") / "blobs"
    again = 0
    for digest in uploaded | keys:
        data = (folder / digest[:2] / digest[2:]).read_bytes()
        for start in range(
            0, max(len(data) - 320, 1), PIECE
        ):  # a last piece too short to be told from others is not counted
            # 64 bytes of ciphertext inside the piece, behind the header that all blobs of a kind share
            times = received.count(data[start + 256 : start + 320])
            assert times == 1 or digest not in complete, f"a piece of {digest[:12]} was sent {times} times"
            again += times - 1
    assert again <= 6 * 4 * 5  # kills x window x senders


def test_ctrl_c_and_the_same_command_again(tmp_path: Path) -> None:
    """Ctrl-C on `focal train`: every process ends, the same command finishes the run,
    and the uploads are not sent again."""
    name = "interrupted"
    config = write_config(tmp_path, name, training={"steps": 6})
    folder = runs() / name
    command = [sys.executable, "-m", "focal", "train", "--config", str(config), "--runs", str(runs())]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, start_new_session=True
    )
    events = folder / "parties" / "server" / "events.jsonl"
    try:
        deadline = time.monotonic() + PATIENCE
        while not events.exists() or '"train"' not in events.read_text():  # all rows are uploaded then
            assert child.poll() is None and time.monotonic() < deadline, child.communicate()
            time.sleep(0.1)
        parties = _processes_of(folder)
        assert len(parties) == 6
        os.kill(child.pid, signal.SIGINT)
        _, errors = child.communicate(timeout=PATIENCE)
        assert child.returncode == 130 and "same command" in errors and "Traceback" not in errors
        assert not any(Path(f"/proc/{pid}").exists() for pid in parties), "a party outlived its launcher"
        assert not (folder / "summary.json").exists()

        up = {n: _uploaded(folder, n) for n in ("hospital-a", "hospital-b", "hospital-c")}
        result = focal("train", "--config", config, "--runs", runs())
        assert result.returncode == 0, result.stderr
        assert "(continued)" in said(result)
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["max_abs_weight_error"] < 1e-3 and summary["steps"] == 6
        for n, bytes_ in up.items():
            blobs = [p.read_bytes() for p in (folder / "parties" / n / "blobs").glob("??/*")]
            chunks = sum(len(data) for data in blobs if data[:4] == b"FOCL")  # the others are contributions to sums
            assert bytes_ > 0.9 * chunks, "it was interrupted before the upload: the next line would mean nothing"
            assert _uploaded(folder, n) - bytes_ < PIECE
        assert not (runs() / f"{name}-2").exists()
    finally:
        child.kill()


def _processes_of(folder: Path) -> list[int]:
    """Process numbers of the roles that run with local files below ``folder``."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (proc / "cmdline").read_bytes().split(b"\0")
            if b"--local" in words and str(folder).encode() in words[words.index(b"--local") + 1]:
                found.append(int(proc.name))
    return found


def _uploaded(folder: Path, name: str) -> int:
    """Bytes that an institution has sent in the upload phase, as it counted them itself."""
    from focal.net.store import Journal

    journal = Journal(folder / "parties" / name / "journal.sqlite")
    try:
        return int(json.loads(journal.read("traffic") or b"{}").get("upload", {}).get("up", 0))
    finally:
        journal.close()
