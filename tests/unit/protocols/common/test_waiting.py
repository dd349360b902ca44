"""What custodians wait for before they give something, and what all must have been shown alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from focal.errors import Refused
from focal.net import messages as msg
from focal.protocols.common.answering import Answering
from focal.protocols.common.ceremony import checks_digest
from focal.protocols.common.keyholder import DEALING, KeyHolder
from focal.protocols.interactive.custodian import JointCustodian


@pytest.mark.parametrize(
    ("topic", "heard"),
    [
        ("refresh/0/weights", ["inputs/0/activations/reveal", "inputs/0/derivatives/reveal"]),  # nothing is opened
        ("refresh/3/weights", ["open/3/logits", "open/3/gradients"]),
        ("refresh/again/release", []),
    ],
)
def test_a_head_is_refreshed_when_all_have_opened_what_there_was(
    monkeypatch: pytest.MonkeyPatch, topic: str, heard: list[str]
) -> None:
    """Else a server could have the step made anew behind it, in another epoch."""
    events: list[str] = []
    monkeypatch.setattr(JointCustodian, "active", lambda self, about: ["custodian-1", "custodian-2"])
    monkeypatch.setattr(JointCustodian, "hear_all", lambda self, names, about, kind: events.append(about))
    monkeypatch.setattr(
        Answering, "answer_batch", lambda self, about, items, own=None: events.append(f"answers {about}")
    )
    custodian = object.__new__(JointCustodian)
    custodian.manifest = None  # type: ignore[assignment]
    custodian.answer_batch(topic, ("item",))
    assert events == [*heard, f"answers {topic}"]


@pytest.mark.parametrize("alike", [True, False])
def test_check_values_that_were_shown_to_others_otherwise_are_refused(alike: bool) -> None:
    """A dealer with two sets of them would have dealt two secrets."""
    shown = {name: msg.ShareCheck(blob=digit * 64) for name, digit in (("custodian-1", "1"), ("custodian-2", "2"))}
    own = checks_digest(shown)
    theirs = own if alike else checks_digest({**shown, "custodian-2": msg.ShareCheck(blob="3" * 64)})
    assert (own == theirs) == alike

    def hear_all(names: Any, topic: str, kind: Any) -> dict[str, msg.KeyTranscript]:
        return {name: msg.KeyTranscript(round=3, digest=theirs) for name in names}

    holder: Any = object.__new__(KeyHolder)
    holder.party, holder.peers = SimpleNamespace(say=lambda *said: None, hear_all=hear_all), list(shown)
    if alike:
        holder._same(f"{DEALING}/checked", 3, own)
        return
    with pytest.raises(Refused) as caught:
        holder._same(f"{DEALING}/checked", 3, own)
    assert caught.value.reason == "transcript"
