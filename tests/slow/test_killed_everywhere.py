"""kill -9 before and after every single durable write of one party, in the parts of a run where it counts: whole blind
runs in one process. Each ends with the twin's weights, nobody has made two shares for one thing, and nothing was sent
that no record names."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from plug import Plug, Pluggable, unnamed
from rosters import Stops

from focal.errors import FocalError
from focal.protocols.blind.custodian import BlindCustodian
from focal.protocols.common import approval

PAST = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)


def killed(run: Pluggable, name: str, *words: str, lost: tuple[str, ...] = ()) -> set[str]:
    """The run in which ``name`` dies at each write whose name has one of these ``words``, and which goes on without
    those who are ``lost``; returns what it has outlived."""
    watched = Plug(run, name, lambda called: any(word in called for word in words), lost)
    others = [m.name for m in run.manifest.members if m.name != name]
    run.plug = watched
    with watched.plugged():
        run.start(*others)
        watched.live()
        run.finish(*(other for other in others if other not in lost))
    return {end.removeprefix("after ") for end in watched.ends if end.startswith("after")}


def test_a_custodian_that_deals_its_share(tmp_path: Path) -> None:
    """From its first secret to its last: of a 2-of-3 key."""
    with Pluggable(tmp_path, {}, custodians=3) as run:
        run.agree(threshold=2)
        ends = killed(run, "custodian-2", "keys/", "secret", "ephemeral", "dealing", "share-", "/share", "masks-")
        files = {f"{what}-*.key" for what in ("secret", "ephemeral", "dealing", "share", "masks")}
        assert {f"{verb} {file}" for verb in ("file", "unlink") for file in files} <= ends
        assert {f"row of (?, */keys/{n}/{what}" for n in "123" for what in ("blobs", "commits")} <= ends
        assert {"blob 1 of */keys/1/blobs", "blob 2 of */keys/3/blobs", "blob 1 of */keys/3/check"} <= ends
        run.check("a", "b", "c")
        assert not unnamed(run) and not list(tmp_path.glob("*/*.key"))


UPLOADS = ("upload", "closed", "inputs", "masks-", "rows of input", "range/")


@pytest.mark.parametrize("name", ["server", "custodian-1", "custodian-2", "c"])
def test_who_closes_the_uploads_and_who_has_come(tmp_path: Path, name: str) -> None:
    """d does not come, and the closing date is over."""
    with Pluggable(tmp_path, {"d": 20}, closing=PAST) as run:
        run.play("d", Stops)
        ends = killed(run, name, *UPLOADS, lost=("d",))
        assert len(ends) > 3
        run.check("a", "b", "c")
        assert not unnamed(run)
        assert not [key for key in tmp_path.glob("*/*.key") if key.parent.name != "d"]
        assert "left out   d: it has not come" in run.audited()


@pytest.mark.parametrize("name", ["server", "custodian-1", "custodian-2"])
@pytest.mark.parametrize("lost_at", ["inputs/commit", "refresh/1/logits", "release/shares"])
def test_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, lost_at: str) -> None:
    """Custodian-4 is lost: before the inputs are there, while it trains, and when it should release."""
    honest = BlindCustodian.say

    def say(self: BlindCustodian, topic: str, body: Any) -> None:
        if self.me.name == "custodian-4" and topic == lost_at:
            approval.declare_lost(tmp_path / "server", ["custodian-4"])
            raise FocalError("the power is out")
        honest(self, topic, body)

    monkeypatch.setattr(BlindCustodian, "say", say)
    with Pluggable(tmp_path, {}, custodians=4) as run:
        run.agree(threshold=2)
        ends = killed(run, name, "epoch", "/e1", "-e1", lost=("custodian-4",))
        assert len(ends) > 3
        run.check("a", "b", "c")
        assert not [key for key in tmp_path.glob("*/*.key") if key.parent.name != "custodian-4"]
