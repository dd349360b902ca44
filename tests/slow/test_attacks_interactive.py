"""A server that misbehaves in joint steps, as a real process: each of its lies is refused by the party that it
would harm, with a name."""

from __future__ import annotations

import pytest
from quick_joint import JointConsortium
from stages import prelude, reason

SERVER = "from focal.protocols.interactive.server import JointServer\nfrom focal.protocols.interactive import plan\n"

TWO = (
    SERVER
    + """
from focal.net import messages as msg
def _gather(self, step, said, topic, names, expected, kind):
    found = honest(self, step, said, topic, names, expected, kind)
    return found if step == 0 else dict(list(found.items())[:2])
def say(self, topic, body):
    if isinstance(body, msg.Present) and body.step > 0:
        body = body.model_copy(update={"owners": body.owners[:2]})
    honest_say(self, topic, body)
honest, JointServer._gather = JointServer._gather, _gather
honest_say, JointServer.say = JointServer.say, say
"""
)
"""Goes on with two institutions: each would learn the other's gradient by differencing two heads."""

SWAPPED = (
    SERVER
    + """
def open(self, topic, items, packed):
    honest(self, topic, items, packed[1:] + packed[:1])
honest, JointServer.open = JointServer.open, open
"""
)
"""Asks to open everybody's logits to a neighbour."""

FASTER = (
    SERVER
    + """
from focal.heads.joint.engine import InteractiveEngine
from focal.heads.joint.twin import Update
def __init__(self, scheme, layout, owners, update, threads, **options):
    honest(self, scheme, layout, owners, Update(2 * update.rate, update.momentum), threads, **options)
honest, InteractiveEngine.__init__ = InteractiveEngine.__init__, __init__
"""
)
"""Takes larger steps than were agreed."""

TWO_LISTS = (
    SERVER
    + """
from focal.net.hub import Hub
from focal.net import messages as msg
from focal.net.identity import open_record
def _records(self, reader, after):
    header, payload = honest(self, reader, after)
    if reader != "hospital-a":
        return header, payload
    def shown(data):
        record = open_record(self.manifest, data)
        if record.topic != "average/1/list":
            return data
        body = record.body.model_copy(update={"participants": record.body.participants[:3]})
        return self._identity.sign_record(record.scope, record.topic, body)
    return header.model_copy(update={"signed": tuple(map(shown, header.signed))}), payload
honest, Hub._records = Hub._records, _records
"""
)
"""Shows one institution another list of who takes part in an average."""


TWO_HEADERS = SERVER + prelude(
    "shows('custodian-2', 'hospital-b', 'activations/1', lambda body: body.model_copy(update={'label': '1' * 64}))"
)
"""Shows the custodian that does not compute another header of an institution in league with it."""


@pytest.mark.parametrize(
    ("server", "victim", "why"),
    [
        (TWO, "custodian-2", "contributors"),
        (SWAPPED, "custodian-1", "lockstep"),
        (FASTER, "custodian-1", "lockstep"),
        (TWO_HEADERS, "custodian-1", "inputs"),
    ],
    ids=["two-contributors", "openings-swapped", "larger-steps", "two-headers"],
)
def test_a_custodian_refuses(server: str, victim: str, why: str, request: pytest.FixtureRequest) -> None:
    """Who takes part is checked by every custodian, also with ``verify: off``; what is opened and refreshed,
    by one that verifies."""
    with JointConsortium(request.node.callspec.id) as c:
        c.start("server", prelude=server)
        c.start(*c.custodians, *c.institutions)
        assert reason(c, victim) == why
        if why == "contributors":
            assert not [item for protocol, item, *_ in c.ledger(victim) if protocol == "open"], "something was opened"


def test_the_guard_refuses_a_head_that_is_too_large() -> None:
    """custodian-2 adds 2^160 to its part of the head's refresh;
    whoever could finish the sum would see s c1 beside it."""
    item = "train/1/weights/-/merged/-"
    with JointConsortium("lying-share") as c:
        c.start("server", *(n for n in c.custodians if n != "custodian-2"), *c.institutions)
        c.start("custodian-2", prelude=prelude(f"lies_in('h0', 160, {item!r})"))
        assert reason(c, "custodian-1") == "range"
        assert item not in [given for protocol, given, *_ in c.ledger("custodian-1") if protocol == "refresh"]
        assert not list(c.folder("custodian-1").glob("*.key"))


def test_two_lists_for_one_average() -> None:
    with JointConsortium("two-lists") as c:
        c.start("server", prelude=TWO_LISTS)
        c.start(*c.custodians, *c.institutions)
        assert reason(c, "hospital-b") == "participants"
        assert not any(topic.startswith("sum/average-1/contribution") for _, topic in c.board()), (
            "a value was contributed"
        )
