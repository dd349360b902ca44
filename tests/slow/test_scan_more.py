"""The scan of test_scan.py over larger things: an interactive run, learning from scratch,
products by public randomness."""

from __future__ import annotations

import pytest
from consortium import finished
from scan import OWNERS, captured, counted, of_run, read_run, scan, under_one_mask, unmasked

KEEPS_KEYS = """
from focal.protocols.common import answering
answering.forget = lambda *files: None
"""
"""A custodian that erases nothing, so that the test knows its masks."""


def test_a_blind_run_has_none_with_products_by_public_randomness() -> None:
    published = read_run(finished().folder, finished().mask_keys)
    assert scan(published, ["custodian-1"], [published.scheme.extended[5]], products=True) == []


def test_an_interactive_run_has_none() -> None:
    from quick_joint import JointConsortium

    with JointConsortium("scanned") as c:
        c.start(*(n for n in c.roles if n not in c.custodians))
        c.start(*c.custodians, prelude=KEEPS_KEYS)
        c.finish()
        kept = {name: next(c.folder(name).glob("masks-*.key")).read_bytes() for name in c.custodians}
        published = of_run(c.run.folder / "parties", c.manifest, kept)
        print(counted(published))
        assert len(published.rows) == 6 * 2 * 4 and under_one_mask(published) == []
        assert all(sum(OWNERS in what for what, _ in published.families[name]) == 6 * 2 * 4 for name in c.custodians)
        assert scan(published) == [] and published.maps and unmasked(published) == []
        assert scan(published, ["custodian-1"], [published.scheme.extended[5]], products=True) == []


def test_learning_from_scratch_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from pixels import OUTPUTS, ROWS, site

    from focal.baselines.scratch import EncryptedRun
    from focal.heads.two_layer import Weights

    made: list[EncryptedRun] = []

    def run() -> None:
        made.append(EncryptedRun(tuple(ROWS), OUTPUTS, 2, None, 2))
        own = {name: site(i, n) for i, (name, n) in enumerate(ROWS.items())}
        made[0].open(made[0].step(0, made[0].net.start(Weights.draw(OUTPUTS, 1.0, 0)), own, 0.06))

    published = captured(monkeypatch, lambda: (made[0].scheme, made[0].layout.rotations, made[0].run_id), run)
    try:
        assert len(published.families) == 2 and scan(published) == []
        assert scan(published, ["custodian-1"], [published.scheme.extended[5]], products=True) == []
    finally:
        made[0].close()
