"""Uploads read back: with every mask the columns come out to the bit of the encoding, without one nothing does."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from focal.attacks import ciphertexts, joint_uploads
from focal.attacks.ciphertexts import Known, Stage, Uploaded
from focal.attacks.joint_uploads import What
from focal.ckks import integers, ring, sampling
from focal.ckks.scheme import Scheme
from focal.config import CkksConfig
from focal.heads.joint.layout import FACTOR, InteractiveLayout
from focal.heads.linear.layout import Layout

ROWS, COLUMNS, CLASSES, CUSTODIANS = 100, 32, 4, 2
SCALE = 2.0**45


@pytest.fixture(scope="module")
def scheme() -> Scheme:
    return Scheme(CkksConfig(), "ab" * 32)


@pytest.fixture(scope="module")
def columns() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, COLUMNS))


def layout(scheme: Scheme, class_lanes: int = 4, feature_lanes: int = 1, babies: int = 4) -> Layout:
    return Layout(scheme.slots, COLUMNS, CLASSES, ROWS, class_lanes, feature_lanes, babies, (ROWS,))


@pytest.fixture(scope="module")
def targets() -> np.ndarray:
    return 0.5 - np.eye(CLASSES)[np.random.default_rng(3).integers(0, CLASSES, ROWS)]


class Staged:
    """Uploads of one institution, and what custodians would know of them."""

    def __init__(self, scheme: Scheme, columns: np.ndarray, targets: np.ndarray) -> None:
        own = layout(scheme)
        self.stage = Stage.make(scheme, ciphertexts.of_rows(scheme, own, columns, targets), CUSTODIANS)
        self.uploaded = Uploaded(scheme, own, 0, len(columns), self.stage.chunks)

    def seen(self, known: int, what: Literal["data", "target"] = "data") -> np.ndarray:
        return self.uploaded.signals(self.stage.known_to(known), what)


@pytest.fixture(scope="module")
def staged(scheme: Scheme, columns: np.ndarray, targets: np.ndarray) -> Staged:
    return Staged(scheme, columns, targets)


@pytest.mark.parametrize("shape", [(4, 1, 4), (1, 2, 1), (2, 4, 2)])
def test_rows_are_read_from_the_slots_that_a_layout_put_them_in(
    scheme: Scheme, columns: np.ndarray, targets: np.ndarray, shape: tuple[int, int, int]
) -> None:
    own = layout(scheme, *shape)
    x, t = own.block_of(columns, 0, 0), own.block_of(targets, 0, 0)
    places = own.chunks(0, ROWS)
    data = {(g, h): own.data_slots(x, g, h) for _, what, g, h in places if what == "data"}
    marks = {(u, 0): own.target_slots(t, u).astype(complex) for _, what, u, _ in places if what == "target"}
    np.testing.assert_allclose(ciphertexts.read_rows(own, data)[:ROWS], columns, atol=1e-12)
    np.testing.assert_allclose(ciphertexts.read_targets(own, marks)[:ROWS], targets, atol=1e-12)


def worst(seen: np.ndarray, true: np.ndarray, part: int) -> float:
    """Largest error of the signal's part, as what was uploaded."""
    width = true.shape[1]
    return float(np.abs(seen[:, part * width : (part + 1) * width] / SCALE - true).max())


def test_all_custodians_together_read_every_row(staged: Staged, columns: np.ndarray, targets: np.ndarray) -> None:
    seen, marks = staged.seen(CUSTODIANS), staged.seen(CUSTODIANS, "target")
    for part in (0, 2):  # y without its masks, the lower half; c0 plus c1 times all key shares
        assert worst(seen, columns, part) < 1e-6 and worst(marks, targets, part) < 1e-6


@pytest.mark.parametrize("known", range(CUSTODIANS))
def test_without_one_custodian_no_row_correlates(
    staged: Staged, columns: np.ndarray, targets: np.ndarray, known: int
) -> None:
    for seen, true, most in ((staged.seen(known), columns, 0.1), (staged.seen(known, "target"), targets, 0.3)):
        for values in np.hsplit(seen, 5):  # 0.1 of 3200 values, 0.3 of 400: 6 deviations
            assert abs(np.corrcoef(values.ravel(), true.ravel())[0, 1]) < most


def joint_key(scheme: Scheme, stage: Stage) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A ring-LWE sample under the sum of all key shares."""
    a = [ring.expand(b"test", [q], scheme.n)[0] for q in scheme.moduli]
    noise, b = sampling.errors(scheme.n), []
    for i, q in enumerate(scheme.moduli):
        total = ring.total([[share[i]] for share in stage.secrets], [q])[0]
        b.append(ring.add(ring.multiply(a[i], total, q), ring.ntt_signed(noise, q, scheme.roots[q]), q))
    return a, b


def test_the_attackers_own_ciphertexts_are_under_the_joint_key(scheme: Scheme, staged: Staged) -> None:
    own = np.random.default_rng(1).standard_normal((50, COLUMNS))
    made = ciphertexts.of_rows(scheme, layout(scheme), own, np.zeros((50, CLASSES)))
    chunks = ciphertexts.own_chunks(scheme, made, joint_key(scheme, staged.stage), CUSTODIANS)
    opened = Uploaded(scheme, layout(scheme), 0, 50, chunks).signals(Known({}, staged.stage.secrets))
    assert worst(opened, own, 2) < 1e-4  # the noise of an encryption, and no more


@pytest.mark.parametrize("what", ["activations", "derivatives"])
def test_joint_messages_are_read_by_all_custodians_and_by_nobody_less(scheme: Scheme, what: What) -> None:
    shape = InteractiveLayout(scheme.slots, COLUMNS, CLASSES)
    width = COLUMNS if what == "activations" else CLASSES
    values = np.random.default_rng(2).uniform(-1, 1, (shape.rows + 20, width))
    stage = Stage.make(scheme, joint_uploads.messages(scheme, shape, values, what), CUSTODIANS)
    rows = [range(shape.rows), range(20)]
    whole, less = (joint_uploads.signals(scheme, shape, stage.chunks, rows, stage.known_to(n)) for n in (2, 1))
    assert worst(whole, values, 0) < 1e-6
    for part in np.hsplit(less, 5):
        assert abs(np.corrcoef(part.ravel(), values.ravel())[0, 1]) < 0.15
    made = joint_uploads.messages(scheme, shape, values, what)
    own = ciphertexts.own_chunks(scheme, made, joint_key(scheme, stage), CUSTODIANS)
    for one in made:  # 2^20 times the message: more than one limb holds
        found, primes = [], scheme.moduli[:2]
        for i, q in enumerate(primes):
            c0, c1 = (half[i] for half in own[one.place].ciphertext)
            total = ring.total([[share[i]] for share in stage.secrets], [q])[0]
            found.append(ring.inverse_ntt(ring.add(c0, ring.multiply(c1, total, q), q), q, scheme.roots[q]))
        wide = integers.Centred(found, primes).rounded / FACTOR
        assert np.abs(wide - one.message).max() < 1  # errors of an encryption are 2^20 times as small
