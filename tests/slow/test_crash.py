"""kill -9 at chosen points of every phase, and at random moments: the same command again goes on.

A chosen point is *inside* a step: what the process has just written is on its disk, and nobody was told. It
freezes there, is killed, and a new process with the same command must find its way. In one run every party
walks through its own list of points:

::

    server        gather, train, release: a record stored, not acknowledged       keys, upload: a piece stored, likewise
    custodian     gather: having spoken       keys: a blob stored       upload, train, release: in the ledger, not sent
                  upload: committed to inputs, not revealed
    institution   features and moments        upload: a key for masks told, a masked message stored       train: waiting
                  release: the model written
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from consortium import Consortium
from crash import crash

from focal.heads.released import MAX_ERROR

Point = tuple[str, str, int]
"""Phase, ``module:Class.method``, and which call of it in that phase is the last thing that the process does."""

POINTS: dict[str, list[Point]] = {
    "server": [
        ("gather", "focal.net.store:Board.append", 3),
        ("keys", "focal.net.store:Blobs.write_piece", 5),
        ("keys", "focal.protocols.common.server:Server.remembered", 1),
        (
            "upload",
            "focal.protocols.common.party:Party.hear_all",
            1,
        ),  # pieces may all be there before: keys are still installed then
        ("train", "focal.net.store:Board.append", 2),
        ("train", "focal.protocols.common.party:Party.say", 3),
        ("release", "focal.net.store:Board.append", 1),
    ],
    "custodian-1": [  # it verifies
        ("gather", "focal.protocols.common.party:Party.say", 1),
        ("keys", "focal.net.store:Blobs.put", 3),
        ("upload", "focal.custody.ledger:Ledger.answers", 1),
        ("upload", "focal.net.link:Link.get", 2),
        ("train", "focal.custody.ledger:Ledger.answers", 1),
        ("train", "focal.protocols.common.party:Party.say", 2),
        ("release", "focal.custody.ledger:Ledger.answer", 1),
    ],
    "custodian-2": [  # it does not
        ("gather", "focal.net.store:Journal.once", 2),
        ("keys", "focal.protocols.common.keyholder:private_write", 1),
        ("keys", "focal.net.link:Link.put_many", 1),
        ("upload", "focal.protocols.common.party:Party.say", 1),
        ("upload", "focal.protocols.common.party:Party.commit", 1),
        ("train", "focal.custody.ledger:Ledger._append", 1),  # the bytes of shares, and no row of them
        ("train", "focal.custody.ledger:Ledger.answers", 2),
        ("release", "focal.protocols.common.custodian:Custodian.share_blobs", 1),
    ],
    "hospital-a": [  # the first: it draws the group key and makes the projection
        ("features", "focal.protocols.blind.institution:BlindInstitution._features", 1),
        ("", "focal.protocols.common.party:Party.say", 1),
        ("moments", "focal.protocols.common.institution:Institution._group_key", 1),
        ("moments", "focal.protocols.common.institution:Institution.share_blobs", 1),
        ("upload", "focal.net.store:Blobs.put", 2),
        ("train", "focal.protocols.common.party:Party.read_board", 1),
        ("release", "focal.protocols.blind.institution:BlindInstitution._save_model", 1),
    ],
    "hospital-b": [
        ("moments", "focal.protocols.common.institution:Institution.secure_sum", 1),
        ("upload", "focal.protocols.common.inputs:MaskKeys.say", 1),
        ("upload", "focal.net.link:Link.put_many", 1),
        ("score", "focal.protocols.blind.institution:BlindInstitution.score", 1),
    ],
    "hospital-c": [],
}


def freeze(point: Point) -> str:
    """Program text: when ``point`` is reached, say so, and do nothing more in any thread that gets there."""
    phase, method, call = point
    return f"""
def _freeze():
    import importlib, json, sys, threading
    from focal.protocols.common.progress import Reporter
    module, _, path = {method!r}.partition(":")
    owner, (*outer, name) = importlib.import_module(module), path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    reporters, calls, original, start = [], [], getattr(owner, name), Reporter.__init__
    def wrapped(*args, **options):
        result = original(*args, **options)
        if reporters and reporters[0].current == {phase!r}:
            calls.append(1)
            if len(calls) >= {call}:
                sys.stdout.write(json.dumps({{"event": "frozen", "phase": {phase!r}}}) + "\\n")
                sys.stdout.flush()
                threading.Event().wait()
        return result
    def started(self, *args):
        start(self, *args)
        reporters.append(self)
    setattr(owner, name, wrapped)
    Reporter.__init__ = started
_freeze()
"""


class Walk(threading.Thread):
    """One party from point to point: started, frozen, killed, started again, and at last left alone."""

    def __init__(self, consortium: Consortium, name: str) -> None:
        super().__init__(name=name)
        self.consortium, self.party = consortium, name
        self.survived: list[Point] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for point in POINTS[self.party]:
                process = self.consortium.start(self.party, prelude=freeze(point))
                process.reach(lambda e: e["event"] == "frozen")
                process.kill()
                self.survived.append(point)
            self.consortium.start(self.party)
        except BaseException as e:  # reported by the test, in its own thread
            self.error = e


@pytest.fixture(scope="module")
def walked() -> Any:
    """The run after its walks: ledgers as they were at each kill are compared while it goes."""
    verify = {"institutions": 3, "custodians": 2, "verify": "first"}
    with Consortium("walked", training={"steps": 3}, layout={"class_lanes": 2}, consortium=verify) as c:
        walks = [Walk(c, name) for name in c.roles]
        for walk in walks:
            walk.start()
        for walk in walks:
            walk.join(240)
        for walk in walks:
            assert walk.error is None, f"{walk.party} after {walk.survived}: {walk.error}"
        c.finish()
        yield c, {walk.party: walk.survived for walk in walks}


def test_every_role_survives_a_kill_in_each_of_its_phases(walked: Any) -> None:
    c, survived = walked
    assert survived == POINTS
    assert np.abs(c.weights() - c.twin()).max() < MAX_ERROR
    for role, phases in {
        "server": {"gather", "keys", "upload", "train", "release"},
        "custodian": {"gather", "keys", "upload", "train", "release"},
        "institution": {"features", "moments", "upload", "train", "release"},
    }.items():
        assert phases <= {point[0] for name, points in POINTS.items() if c.roles[name] == role for point in points}


def test_no_share_was_made_twice(walked: Any) -> None:
    """The inputs, once. In each of 3 steps 2 class groups of the weights are refreshed, and after the first those of 3
    blocks' logits; then 2 are released; and the key is gone."""
    c, _ = walked
    for name in c.custodians:
        shares = c.ledger(name)
        assert len(shares) == 1 + 3 * 2 + 2 * (3 * 2) + 2
        for column in (1, 2):
            assert len({(row[0], row[column]) for row in shares}) == len(shares)
        assert not list(c.folder(name).glob("secret-*.key"))


def test_twelve_kills_at_random_moments() -> None:
    assert sum(crash(12, seed=7).values()) == 12
