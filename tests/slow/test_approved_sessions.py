"""A person approves one release of one run: two sessions in the same folders, and what others left there."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

from consortium import Consortium, cli, said

from focal.net import messages as msg
from focal.protocols.common.approval import APPROVED, AWAITED, Release

ANOTHER = "cd" * 32
ITEMS, DIGESTS = ("train/1/release/-/0/-",), ("5e" * 32,)


def waits(c: Consortium) -> Release:
    """Both custodians wait, and with the same release, which they have written down; returns it."""
    for name in c.custodians:
        c.processes[name].reach(lambda e: "the release waits for: focal approve" in e.get("text", ""))
    found = {(c.folder(name) / AWAITED).read_text() for name in c.custodians}
    assert all(stat.S_IMODE((c.folder(name) / AWAITED).stat().st_mode) == 0o600 for name in c.custodians)
    release = Release.model_validate_json(found.pop())
    assert not found
    return release


def withheld(c: Consortium) -> None:
    """No custodian releases in the next seconds."""
    first, *others = (c.processes[name] for name in c.custodians)
    assert not first.ends_within(2) and all(
        p.child.poll() is None for p in others
    )  # each looks for an approval every second
    assert not list(c.bodies(msg.ReleaseShares))


def test_a_second_session_in_the_same_folders(tmp_path: Path) -> None:
    """It needs an approval of its own; a party that was done with the first session is not done with it;
    and kill -9 loses no approval."""
    with Consortium("approved", consortium={"institutions": 3, "custodians": 2, "approve": "human"}) as c:
        for name in (
            c.custodians
        ):  # what earlier versions left, another run's approval, and a release that an earlier run waited with
            (c.folder(name) / "approved").write_text("1764000000\n")
            for file in (APPROVED, AWAITED):
                (c.folder(name) / file).write_text(Release.of(ANOTHER, ITEMS, DIGESTS).model_dump_json())
        c.start_all()
        first = waits(c)
        assert first.run_id != ANOTHER
        withheld(c)
        approved = cli("approve", c.run.folder)
        assert approved.returncode == 0 and said(approved).count(first.short) == 2
        c.finish()
        assert not any((c.folder(name) / AWAITED).exists() for name in c.custodians)

        server = c.folder("server")  # the server's operator begins anew: another session of the same manifest
        for path in server.iterdir():
            if path.name not in ("identity.json", "local.json"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        c.start_all()
        second = waits(c)
        assert second.run_id != first.run_id and second.digest != first.digest
        withheld(c)
        c.processes["server"].kill()
        c.processes["hospital-a"].kill()
        lost = c.start("hospital-a", wait=1)
        assert lost.end() == 1 and "no answer from the server" in lost.errors, (
            "it takes the first session's end for this one's"
        )
        c.start("server", "hospital-a")
        c.processes["custodian-1"].kill()
        assert cli("approve", c.run.folder).returncode == 0
        c.start("custodian-1")
        c.finish()
        assert {body.ciphertexts for _, _, body in c.bodies(msg.ReleaseShares)} == {
            next(c.bodies(msg.ReleaseRequest))[2].ciphertexts
        }
