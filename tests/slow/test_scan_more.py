"""The scan of test_scan.py over larger things: an interactive run, learning from scratch,
products by public randomness."""

from __future__ import annotations

import pytest
from consortium import finished
from losing import consortium, go_on_without, lose, wait_for
from scan import OWNERS, captured, counted, of_run, read_run, scan, under_one_mask, unmasked

from focal.ckks import ring, sampling

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


def test_a_run_that_went_on_without_a_custodian_has_none() -> None:
    """Two epochs, with other shares of one key; and a second error under an ``a`` of the second is found there."""
    with consortium("scanned-lost", 2, 4) as c:
        c.start_all()
        wait_for(c, lambda board: ("custodian-2", "refresh/1/weights") in board)
        lose(c, "custodian-3")
        go_on_without(c, "custodian-3")
        c.finish()
        published = of_run(c.run.folder / "parties", c.manifest)
    assert any("/e1" in what for what, _ in published.families["custodian-2"])
    assert scan(published) == [] and unmasked(published) == [] and under_one_mask(published) == []
    own, primes = published.families["custodian-2"], published.scheme.moduli
    name, limbs = next((what, x) for what, x in own if what.startswith("h1/") and "/e1" in what)
    error = sampling.errors(published.scheme.n)
    noise = [ring.ntt_signed(error, q, published.scheme.roots[q]) for q in primes]
    own.append(("planted", [ring.add(x, e, q) for x, e, q in zip(limbs, noise, primes, strict=False)]))
    found = scan(published, ["custodian-2"], [primes[0]])
    assert found and all("planted" in text and name in text for text in found)


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
