"""What a bad party or a full disk does to a run: an error that names the party, the file and the way out; nothing is
lost, nothing hangs. Before a run: test_bad_input.py.

Hostile parties are the real roles with one function replaced in their process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from consortium import Consortium, failed
from patience import PATIENCE
from stages import Stages, prelude, shares, stages

from focal.errors import FocalError
from focal.protocols.common import approval


def stopped(c: Consortium) -> str:
    """What the server said when it ended the run. It stays a while for members that it may not have told; that it ends
    itself then: test_attacks_guard.py."""
    server = c.processes["server"]
    server.reach(lambda e: e["event"] == "error")
    return " ".join(next(e["text"] for e in server.events if e["event"] == "error").split())


def test_other_features_of_the_test_image_end_the_run_and_name_who() -> None:
    check = "\nInstitution.compare_test_features = Institution.compare"
    with Consortium("drift") as c:
        c.start("server", *c.custodians)
        for name in c.institutions:
            other = (
                "\nquick = Institution._features\nInstitution._features = lambda self: (quick(self)[0], "
                "np.full(4, 0.002, np.float32))"
            )
            c.start(name, prelude=check + (other if name == "hospital-b" else ""))
        for name in ("hospital-a", "hospital-c"):
            text = failed(c.processes[name])
            assert "hospital-b" in text and ("0.002" in text or "ended the run" in text)
        assert "ended the run" in failed(c.processes["custodian-1"])


HOSTILE_PACK = """
from focal.ckks import codec
from focal.custody import inputs
honest = inputs.{what}
def spoilt(*args):
    data = bytearray(honest(*args))
    {spoil}
    return bytes(data)
inputs.{what} = spoilt
"""
HEADER = "data[codec.HEADER.size - 1] ^= 1"


@pytest.fixture(scope="module")
def stage() -> Stages:
    return stages()


def test_a_dishonest_institution_is_refused_by_name(stage: Stages) -> None:
    """A masked message of another run, properly announced and signed: no crash, and everybody learns who.

    Other headers: test_wire.py; other bytes than were announced: test_transport.py.
    """
    with stage.at("keyed") as c:
        c.start("server", *c.custodians, "hospital-a", "hospital-c")
        c.start("hospital-b", prelude=HOSTILE_PACK.format(what="masked", spoil=HEADER))
        text = stopped(c)
        assert "'hospital-b'" in text and "key tag differs" in text
        for name in (*c.custodians, *c.institutions):
            assert "hospital-b" in failed(c.processes[name])


@pytest.mark.parametrize("spoil", ["data += bytes(16)", "del data[-16:]"], ids=["longer", "shorter"])
def test_rows_of_another_length_are_none(stage: Stages, spoil: str) -> None:
    """Nobody keeps what no masked message can be: it counts as not given, and the server asks people."""
    with stage.at("keyed") as c:
        c.start("server", *c.custodians, "hospital-a", "hospital-c")
        c.start("hospital-b", prelude=HOSTILE_PACK.format(what="masked", spoil=spoil))
        deadline = time.monotonic() + PATIENCE
        while {sender for sender, topic in c.board() if topic == "upload"} != set(c.institutions):
            assert time.monotonic() < deadline, c.processes["server"].stands()
            time.sleep(0.1)
        while True:
            with contextlib.suppress(FocalError):
                approval.close_uploads(c.folder("server"), ["hospital-b"])
                break
            assert time.monotonic() < deadline, c.processes["server"].stands()
            time.sleep(0.1)
        assert "2 of 3 institutions that are no clinics are left" in stopped(c)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param("data[-6:] = b'\\xff' * 6", "not below its modulus", id="above"),
        pytest.param("del data[-6:]", "refused (length)", id="shorter"),
        pytest.param(HEADER, "key tag differs", id="tagged"),
    ],
)
def test_a_dishonest_custodian_is_refused_by_name(stage: Stages, spoil: str, words: str) -> None:
    """Contributions to inputs that are none, well committed and revealed."""
    with stage.at("accepted") as c:
        c.start("server", *(n for n in c.custodians if n != "custodian-3"))
        c.start("custodian-3", prelude=HOSTILE_PACK.format(what="contribution", spoil=spoil))
        text = stopped(c)
        assert "'custodian-3'" in text and words in text
        for name in c.custodians:
            assert "custodian-3" in failed(c.processes[name]) and shares(c, name) == []


HOSTILE_SERVER = """
from focal.custody import refresh
honest, first = refresh.request, []
def request(*args):
    first.append(honest(*args))
    return first[0]
refresh.request = request
"""


def test_a_second_share_for_the_same_ciphertext_is_refused(stage: Stages) -> None:
    """A server that presents one ciphertext under the next plan item too: no custodian makes a second share of it."""
    item = "train/0/weights/-/0/-"
    with stage.at("uploaded") as c:
        c.start("server", prelude=HOSTILE_SERVER)
        c.start("custodian-1", prelude=prelude("out_of_lockstep()"))  # or it would end the run before them
        c.start("custodian-2", "custodian-3")
        texts = [failed(c.processes[name]) for name in ("custodian-2", "custodian-3")]
        assert all("second-item" in text for text in texts)
        assert all(item in text or "ended the run" in text for text in texts), "one may hear it of the other first"
        assert any(item in text for text in texts)
        assert shares(c, "custodian-2") == shares(c, "custodian-3") == []
        assert "custodian-" in stopped(c)


def test_another_plan_item_than_is_due_is_refused(stage: Stages) -> None:
    """A server that asks for a refresh that the plan has later."""
    skip = """
from focal.net import messages as msg
from focal.protocols.common.server import Server
honest = Server.say
def say(self, topic, body):
    if isinstance(body, msg.RefreshRequest):
        body = body.model_copy(update={"items": tuple(i.replace("train/0", "train/1") for i in body.items)})
    honest(self, topic, body)
Server.say = say
"""
    with stage.at("uploaded") as c:
        c.start("server", prelude=skip)
        c.start(*c.custodians)
        for name in c.custodians:
            text = failed(c.processes[name])
            assert "refused (plan)" in text or "ended the run: refused (plan)" in text
            assert shares(c, name) == []


# --------------------------------------------------------------------------- a full disk

SMALL = 1 << 20
"""Bytes: less than one key contribution, more than every database before it."""


def test_a_full_disk_at_server_and_custodian_then_free_again() -> None:
    """The write that does not fit fails with the folder's name; what was acknowledged stays,
    and the same command goes on."""
    with Consortium("full") as c:
        c.start("server", limit=SMALL)
        c.start("custodian-1", limit=SMALL)
        c.start("custodian-2", *c.institutions)
        text = failed(c.processes["custodian-1"])
        assert (
            ("disk is full" in text or "too large" in text)
            and str(c.folder("custodian-1")) in text
            and "free space" in text
        )
        c.start("custodian-1")  # now the contributions go to the server
        text = failed(c.processes["server"])
        assert "the disk is full" in text and str(c.folder("server")) in text and "same command again" in text
        told = [name for name in c.custodians if c.processes[name].ends_within(10)]
        assert told, "nobody was told why the server stopped"
        for name in told:  # it stops without giving the run up; who was not told waits for the server
            text = failed(c.processes[name])
            assert "the server's disk is full" in text and "ask who runs the server" in text
        before = c.board()
        assert ("custodian-1", "keys/1/commit") in before
        c.start("server", *told)
        c.finish()
        after = c.board()
        assert {k: after[k] for k in before} == before
        assert np.abs(c.weights() - c.twin()).max() < 1e-3


@pytest.mark.skipif(
    os.geteuid() != 0, reason="mounting a small file system needs root; the limit on file sizes above does not"
)
def test_a_really_full_file_system(tmp_path: Path) -> None:
    """The same for a custodian on a file system without space (ENOSPC instead of a limit), enlarged later."""
    with Consortium("small") as c:
        home = c.folder("custodian-2")
        shutil.copytree(home, tmp_path / "home")
        mounted = os.system(f"mount -t tmpfs -o size=8m focal {home} 2>/dev/null") == 0
        if not mounted:
            pytest.skip("this machine does not allow mounting a tmpfs")
        try:
            shutil.copytree(tmp_path / "home", home, dirs_exist_ok=True)
            c.start_all()
            text = failed(c.processes["custodian-2"])
            assert "the disk is full" in text and str(home) in text
            assert os.system(f"mount -o remount,size=512m {home}") == 0
            c.start("custodian-2").reach_phase("upload")  # and on to the end: the test above
        finally:
            for process in c.processes.values():
                process.child.kill()
                process.child.wait()
            os.system(f"umount {home}")
