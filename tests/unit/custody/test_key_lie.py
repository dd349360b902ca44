"""One custodian that lies once, in its part of one rotation key: what it then reads off the release.
All its shares are honest.

Every use of that key adds a message that it knows, in a slot of its choice: here to the residual, in the row of a
patient and a class. The weights of that class then move along the patient's features. The guard weighs every request
and finds it small; lockstep and audit compute with the joint keys, as everybody signed them. SECURITY.md ("What is not
protected") says so: custodians follow the protocol.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from focal.ckks import codec, ring
from focal.custody import keys
from focal.heads.linear.engine import Engine, zero_weights
from focal.heads.linear.layout import Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars

ROWS, FEATURES, CLASSES = 400, 32, 8
LAYOUT = Layout(8192, FEATURES, CLASSES, ROWS, CLASSES, 1, 8)
VICTIM, CLASS = 145, 2
SIZE = 2.0**70
"""Slot of the lie: P is 2^120, a digit of the switched polynomial 2^105,
so that its use adds some 2^55 to a coefficient."""


@pytest.fixture
def lied(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rehearsal]:
    """A rehearsal whose second custodian adds to its part of one rotation key."""
    target, honest, made = LAYOUT.giant_rotations[0], keys.SecretShare._rotation, list[int]()
    slots = np.zeros(LAYOUT.slots)
    slots[VICTIM * CLASSES + CLASS] = SIZE

    def lying(share: keys.SecretShare, rotation: int) -> bytes:
        data = honest(share, rotation)
        if rotation == target:
            made.append(rotation)
            if len(made) == 2:
                scheme, parts = share.scheme, codec.unpack(share.scheme, codec.SWITCHING_B, data, "itself")
                lie = [int(v) for v in np.rint(_coefficients(slots, scheme.n))]
                own = [ring.ntt(np.array([v % q for v in lie], np.uint64), q, scheme.roots[q]) for q in scheme.extended]
                parts[0] = ring.total([parts[0], own], scheme.extended)
                return codec.pack(scheme, codec.SWITCHING_B, parts)
        return data

    monkeypatch.setattr(keys.SecretShare, "_rotation", lying)
    run = Rehearsal(LAYOUT, custodians=3, threads=2, run="a lie in a key")
    assert len(made) == 3
    yield run


def test_a_lie_in_one_rotation_key_shows_a_patient_in_the_release(lied: Rehearsal) -> None:
    rng = np.random.default_rng(0)
    x = np.clip(rng.normal(size=(ROWS, FEATURES)), -4, 4)
    x[:, -1] = 1
    scalars = Scalars.derive(3, 0.9, 0.1, ROWS)
    block = lied.block(x, 0.5 - rng.integers(0, 2, (ROWS, CLASSES)), 0, scalars)
    engine = Engine(lied.scheme, LAYOUT, scalars, lambda b: block, 2)
    released = lied.release(
        engine.step(0, zero_weights(lied.scheme, LAYOUT), lied.refresh)
    )  # the guard refuses nothing
    engine.close()

    half = FEATURES // 2
    column = released[:half, CLASS] + 1j * released[half:, CLASS]
    shown = np.argsort(-np.abs(column))[: half // 2]  # those whose diagonals the key turns
    errors = []
    for row in x[:, :half] + 1j * x[:, half:]:
        for seen in (row[shown], row[shown].conj()):
            size = np.vdot(seen, column[shown]) / np.vdot(seen, seen)
            errors.append(float(np.abs(column[shown] / size - seen).std()))
    best = int(np.argmin(errors)) // 2
    others = [e for i, e in enumerate(errors) if i // 2 != best]
    print(f"row {best} of {ROWS}: 16 features, rms error {min(errors):.1e}; the next row {min(others):.2f}")
    assert best == VICTIM and min(errors) < 1e-2 < 0.1 < min(others)


def _coefficients(slots: np.ndarray, n: int) -> np.ndarray:
    """The polynomial with these slots: the inverse of :func:`focal.ckks.ring.embed`."""
    rows = np.array([_powers(n, k) for k in map(int, np.flatnonzero(slots))])
    return 2 / n * (slots[np.flatnonzero(slots)] @ rows.conj()).real


def _powers(n: int, slot: int) -> np.ndarray:
    """zeta^(5^slot i), i < n: what a coefficient adds to the slot."""
    return np.exp(1j * np.pi / n * (pow(5, slot, 2 * n) * np.arange(n) % (2 * n)))
