"""One lying custodian of a whole run in one process, and what is waited for there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from patience import PATIENCE
from rosters import Consortium

from focal.errors import FocalError, LeftOut
from focal.net.identity import open_record
from focal.protocols.common.inputs import MaskKeys

LIAR = "custodian-2"


def ends_before_any_refresh(run: Consortium, reason: str) -> None:
    run.start()
    with pytest.raises(FocalError):
        run.finish()
    assert any(f"({reason})" in str(error) for error in run.errors.values()), run.errors
    assert not [r for r in run.board() if open_record(run.manifest, r).topic.startswith("refresh")]


def lies_about(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """A custodian gives wrong shares of the range checks of these institutions."""
    honest = MaskKeys.weighed

    def weighed(self: MaskKeys, scheme: Any, claim: Any, fetch: Any) -> Any:
        share, found = honest(self, scheme, claim, fetch)
        lies = self.party.me.name == LIAR and claim.statement.institution in names
        return (bytes(len(share)) if lies else share), found

    monkeypatch.setattr(MaskKeys, "weighed", weighed)


def warned(run: Consortium, *words: str) -> bool:
    return any(e["event"] == "warn" and all(word in e["text"] for word in words) for e in list(run.events))


def until(run: Consortium, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        unexpected = {name: e for name, e in run.errors.items() if not isinstance(e, LeftOut)}
        assert time.monotonic() < deadline and not unexpected, unexpected
        time.sleep(0.05)
