"""Joint steps between real processes: what comes back is what the twin says, and what goes wrong is skipped,
resumed or refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from consortium import cli, said
from joint_training import LOGIT_ERROR
from quick_joint import PLAIN_SPLIT, JointConsortium

from focal.net import messages as msg

ERROR = 1e-3
"""What an opened gradient or released weight may err by: the interactive protocol's target.
A logit has its smudging besides."""


@pytest.fixture(scope="module")
def done() -> Iterator[JointConsortium]:
    with JointConsortium("joint") as c:
        c.start_all()
        c.finish()
        yield c


def test_logits_gradients_and_head_are_the_twins(done: JointConsortium) -> None:
    weights = done.joint_twin()
    for name in done.institutions:
        opened = done.opened(name)
        given = dict(np.load(done.folder(name) / "given.npz"))
        for step in range(6):
            z = given["x"] @ weights[step]
            np.testing.assert_allclose(opened[f"z/{step}"], z, atol=ERROR + LOGIT_ERROR)
            expected = (z - given["labels"]) @ weights[step].T
            np.testing.assert_allclose(opened[f"g/{step}"], expected, atol=ERROR * max(1.0, np.abs(expected).max()))
    released, velocity = done.head()
    np.testing.assert_allclose(released, weights[-1], atol=ERROR)
    np.testing.assert_allclose(velocity, weights[-1] - weights[-2], atol=2 * ERROR)
    assert np.abs(weights[-1]).max() > 0.05, "nothing was learned: these comparisons would mean nothing"


def test_averages_are_weighted_by_rows(done: JointConsortium) -> None:
    rows = {m.name: m.rows or 0 for m in done.manifest.institutions}
    assert len(set(rows.values())) > 1, "equal rows: this test would mean nothing"
    own = {name: np.arange(3.0) + ord(name[-1]) / 100 for name in rows}
    mean = sum(rows[n] * own[n] for n in rows) / sum(rows.values())
    for name in done.institutions:
        for number in (1, 2, 3):
            np.testing.assert_allclose(done.opened(name)[f"average/{number}"], mean, atol=1e-12)


def test_traffic_stays_below_its_limits(done: JointConsortium) -> None:
    """8 MB up and down an institution and step; 15 MB in all a custodian that does not verify and step,
    with four owners."""
    from focal.runs.local import _traffic

    traffic = _traffic(done.run, done.manifest)
    for name in done.institutions:
        phases = traffic[name]
        assert sum(phases[p]["up"] for p in ("upload", "openings")) / 6 < 8e6
        assert sum(phases[p]["down"] for p in ("upload", "openings")) / 6 < 8e6
    quiet = traffic[done.custodians[1]]
    assert sum(b["up"] + b["down"] for p, b in quiet.items() if p in ("refresh", "openings")) / 6 < 15e6


def test_nothing_is_opened_in_the_first_step(done: JointConsortium) -> None:
    """Its weights are the all-zero ciphertext: logits and gradients are zero, and everybody knows."""
    items = [item for protocol, item, *_ in done.ledger("custodian-1") if protocol == "open"]
    assert len(items) == 2 * 4 * 5 and not any(item.startswith("train/0/") for item in items)


def test_the_audit_repeats_every_digest_and_finds_an_altered_bit(done: JointConsortium) -> None:
    last = max((b for _, _, b in done.bodies(msg.StepDone)), key=lambda b: b.step)
    whole = cli("audit", done.run.folder)
    assert f"chain {last.chain}" in said(whole) and whole.stdout.count("step ") == 6
    path = done.folder("server") / "blobs" / last.inputs[0][:2] / last.inputs[0][2:]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    try:
        assert "the disk returns other bytes" in said(cli("audit", done.run.folder))
    finally:
        path.write_bytes(data)


def test_no_party_receives_anothers_numbers(done: JointConsortium) -> None:
    """Activations, logits and weights in the clear, as the bytes of two neighbours:
    in nothing that lies at the server or a custodian."""
    given = dict(np.load(done.folder("hospital-a") / "given.npz"))
    opened = done.opened("hospital-a")
    secret = [given["x"][0, :2], opened["z/3"][0, :2], opened["g/3"][0, :2], done.head()[0][0, :2]]
    needles = [
        np.array(v, dtype).tobytes() for v in secret for dtype in ("<f8", "<f4")
    ]  # eight bytes at least: no chance hits
    for name in ("server", *done.custodians):
        for path in done.folder(name).rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                assert not any(n in data for n in needles), f"{path} holds a number of hospital-a in the clear"


def test_plaintext_split_learning_is_the_same_training(done: JointConsortium) -> None:
    """What encrypted steps are compared with: the same roles, batches and averages,
    and arrays where ciphertexts were."""
    with JointConsortium("plain") as c:
        c.start("server", *c.institutions, prelude=PLAIN_SPLIT)
        c.finish()
        for name in c.institutions:
            plain, encrypted = c.opened(name), done.opened(name)
            assert plain.keys() == encrypted.keys() and len(plain) == 1 + 2 * 6 + 3
            for key, value in plain.items():
                tolerance = ERROR * max(1.0, np.abs(value).max()) + LOGIT_ERROR * key.startswith("z/")
                np.testing.assert_allclose(encrypted[key], value, atol=tolerance)
            activations = np.load(c.folder(name) / "given.npz")["x"].tobytes()
            assert any(
                activations == path.read_bytes() for path in (c.folder("server") / "blobs").rglob("*") if path.is_file()
            )
