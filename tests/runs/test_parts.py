"""Batches of refreshes that are asked for in parts: the same run, and the same rules for each part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import rows
from three import three

from focal.custody import refresh
from focal.errors import Refused
from focal.heads.linear import twin
from focal.heads.released import MAX_ERROR
from focal.net import messages as msg
from focal.net.identity import open_record
from focal.protocols.blind import plan
from focal.protocols.common import refreshing
from focal.protocols.common.answering import Answering
from focal.protocols.common.audit import audit
from focal.protocols.together import Together
from focal.runs.simulate import ArrayInstitution

RNG = np.random.default_rng(1)
ROWS = RNG.normal(size=(20, 31)).astype(np.float32)
LABELS = np.arange(20) % 3
STEPS = 2
PARTS = [f"refresh/0/weights/{i}" for i in (1, 2)] + [f"refresh/1/logits/{i}" for i in (1, 2, 3, 4, 5)]
PARTS += [f"refresh/1/weights/{i}" for i in (1, 2)]
"""Logits of three blocks: each institution has its own."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Three class groups, of which two are asked for at once."""
    monkeypatch.setattr(refreshing, "MOST", 2)
    monkeypatch.setattr(refreshing, "PART", 2)
    monkeypatch.setattr(plan, "settled", lambda manifest, *_: (manifest, ""))  # one class lane, as it was drafted
    with three(tmp_path, ROWS, LABELS, STEPS) as run:
        yield run


def said(run: Together, kind: type, sender: str) -> list[str]:
    """Topics under which somebody said something of this kind, in the board's order."""
    board = rows(Path(run.files["server"].state) / "board.sqlite", "SELECT data FROM record ORDER BY seq")
    records = [open_record(run.manifest, data) for (data,) in board]
    return [r.topic for r in records if r.sender == sender and isinstance(r.body, kind)]


def test_a_batch_in_parts_gives_the_weights_of_the_twin(run: Together, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is asked for before the one before it was answered: custodian-2 waits for that. The audit agrees."""
    answer = Answering.answer_batch

    def patient(party: Answering, topic: str, *given: Any) -> Any:
        if party.me.name == "custodian-2" and topic.endswith("/1"):
            party.hear("server", topic[:-1] + "2", msg.RefreshRequest)
        return answer(party, topic, *given)

    monkeypatch.setattr(Answering, "answer_batch", patient)
    run.start()
    run.finish()
    ends = [p for p in run.parties.values() if isinstance(p, ArrayInstitution)]
    columns, targets = np.tile(ends[0].projection.apply(ROWS), (3, 1)), np.tile(0.5 - np.eye(3)[LABELS], (3, 1))
    exact = twin.train(columns, targets, twin.Scalars.derive(3, ends[0].projection.eta, 0.1, 60), STEPS)[0]
    assert all(np.abs(p.weights - exact).max() < MAX_ERROR for p in ends)
    for name in ("custodian-1", "custodian-2"):
        assert said(run, msg.RefreshShares, name) == PARTS
    assert audit(run.manifest, Path(run.files["server"].state), lambda line: None, 1)


def test_a_refused_part_gets_no_share_and_no_other_part_after_it(
    run: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard has answered the first part. Of the second not even what it would have let pass."""
    weigh, weighed = refresh.small_enough, []

    def third(*given: Any) -> bool:
        weighed.append(given)
        return weigh(*given) and len(weighed) != 3

    monkeypatch.setattr(refresh, "small_enough", third)
    run.start()
    with pytest.raises(Refused, match="larger than anything a training step gives"):
        run.finish()
    assert said(run, msg.RefreshShares, "custodian-1") == PARTS[:1]
    folder = Path(run.files["custodian-1"].state)
    assert not list(folder.glob("*.key"))
    (ledger,) = folder.glob("ledger-*.sqlite")
    assert len(rows(ledger, "SELECT item FROM shares WHERE protocol = 'refresh'")) == 2


def test_parts_are_named_and_cover_a_batch() -> None:
    items = [f"train/7/logits/{b}/0/-" for b in range(70)]
    assert refreshing.parts(items[:64]) == [("refresh/7/logits", slice(0, 64))]
    assert refreshing.parts(items) == [
        ("refresh/7/logits/1", slice(0, 32)),
        ("refresh/7/logits/2", slice(32, 64)),
        ("refresh/7/logits/3", slice(64, 70)),
    ]
    assert refreshing.parts(refreshing.again(1)) == [(refreshing.AGAIN, slice(0, 1))]
