"""The encrypted step against its plaintext twin, over layouts, degrees, blocks and class groups; and its determinism.

Weights are opened exactly (no smudging), so the tolerance is that of the step alone.
With T steps on n rows, six standard deviations each::

    drift      FIXEDMANUAL takes every prime for 2^45: each of at most 6 rescalings in a row errs
               by |q / 2^45 - 1| <= 2^-24.8, relative
    data       a slot of fresh data errs by 2^-26.2 divisor, and |delta| <= 1: at most eta 2^-26.2 divisor on W
    targets    as much on 256 (1/2 - y): eta max|x| 2^-34.2
    masks      the rate is encoded to 2^-40 (masks.py): on W max|x| n 2^-40 / 16
    sharing    data of shared blocks are rescaled twice more, and stand in the logits and in the gradient: 4 drift.
               Their rounding, 2^-30.5 divisor in a slot, is within what is granted to fresh data
    rounding   after the rate, 2^5.5 per coefficient, 2^-29.9 in a slot of 16 (eta / n) delta, another one in each row:
               max|x| sqrt(n) 2^-33.9
    refresh    2^-33 on a slot: nothing beside; key switches: divided by 2^45

    tolerance = T (6 drift max|W| + eta (2^-26.2 divisor + max|x| 2^-34.2) + max|x| (n 2^-44 + sqrt(n) 2^-33.9))

with 10 drift for shared blocks, which is 3e-7 to 1e-6 here; a wrong rotation, coefficient, limb or scale errs by 1e-3
at least.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opened import Opened

from focal.ckks import codec, ring
from focal.custody import refresh
from focal.heads import released
from focal.heads.linear import twin
from focal.heads.linear.cost import layout_for
from focal.heads.linear.engine import WEIGHTS, Engine, ones, zero_weights
from focal.heads.linear.layout import DATA_LIMBS, WEIGHT_SCALE, Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars

SLOTS, FEATURES, RIDGE = 8192, 32, 0.1


@dataclass(frozen=True)
class Case:
    class_lanes: int
    feature_lanes: int
    outputs: int
    rows: int
    degree: int = 3
    sharing: int = 0
    """Institutions that share all blocks; 0: blocks of one's own."""

    @property
    def layout(self) -> Layout:
        owners = () if self.sharing else (self.rows,)
        return layout_for(SLOTS, FEATURES, self.outputs, self.rows, self.class_lanes, self.feature_lanes, owners)

    def __str__(self) -> str:
        shared = f"-shared{self.sharing}" if self.sharing else ""
        return f"k{self.class_lanes}-f{self.feature_lanes}-C{self.outputs}-n{self.rows}-d{self.degree}{shared}"


CASES = [
    Case(8, 1, 8, 300),
    Case(4, 2, 6, 300),  # two class groups, the second half empty
    Case(2, 4, 3, 150),  # a class lane without a class
    Case(1, 8, 2, 150),
    Case(1, 1, 1, 300),  # binary
    Case(8, 8, 8, 300),  # three blocks, the last one not full
    Case(8, 8, 8, 300, degree=5),
    Case(8, 1, 5, 200, degree=7),
    Case(8, 1, 8, 300, sharing=5),
    Case(8, 8, 8, 300, degree=5, sharing=4),  # three blocks: some rows of an institution here, some there
    Case(2, 4, 3, 150, degree=7, sharing=2),
]


class Everything(Layout):
    """A layout whose rotations are those of all cases: one key ceremony serves them all."""

    @property
    def rotations(self) -> list[int]:
        return sorted(set().union(*(case.layout.rotations for case in CASES)))


@pytest.fixture(scope="module")
def base() -> Iterator[Rehearsal]:
    """Two custodians. Module scope: evaluation keys do not survive another test's ``Scheme.close``."""
    yield Rehearsal(Everything(SLOTS, FEATURES, 8, 300, 8, 1, 8), custodians=2, run="engine")


def with_layout(base: Rehearsal, layout: Layout, sharing: int = 0) -> Rehearsal:
    run = copy.copy(base)
    run.layout, run.sharing = layout, max(1, sharing)
    return run


def problem(case: Case, largest_z: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, Scalars]:
    """Rows with a bias column, targets, weights with max |z| = ``largest_z``, and the scalars of a step."""
    rng = np.random.default_rng(case.rows + case.outputs)
    x = np.clip(rng.standard_normal((case.rows, FEATURES)), -3, 3)
    x[:, -1] = 1.0
    targets = 0.5 - rng.integers(0, 2, (case.rows, case.outputs)).astype(float)
    w = rng.standard_normal((FEATURES, case.outputs))
    w *= largest_z / max(np.abs(x @ w).max(), 1e-9)
    eta = 1 / (float(np.linalg.eigvalsh(x.T @ x / case.rows)[-1]) / 4 + RIDGE)
    return x, targets, w, Scalars.derive(case.degree, eta, RIDGE, case.rows)


def tolerance(run: Rehearsal, x: np.ndarray, weights: np.ndarray, scalars: Scalars, steps: int) -> float:
    scheme, eta = run.scheme, scalars.rate * len(x)
    drift = max(abs(q / scheme.scale - 1) for q in scheme.moduli[1:])
    largest = float(np.abs(x).max())
    noise = eta * (2**-26.2 * run.layout.divisor + largest * 2**-34.2) + largest * (
        len(x) * 2**-44 + len(x) ** 0.5 * 2**-33.9
    )
    rescalings = 10 if run.layout.shared else 6
    return steps * (rescalings * drift * float(np.abs(weights).max()) + noise)


def read(run: Rehearsal, weights: list[Any]) -> np.ndarray:
    opened = Opened(run)
    return released.weights(run.layout, [opened.complex_slots(w) for w in weights])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_from_given_weights_is_the_twins(base: Rehearsal, case: Case) -> None:
    """Weights with |z| up to 6, where every term of the sigmoid counts:
    without its z^7 the last case would err by 1e-2."""
    run = with_layout(base, case.layout, case.sharing)
    x, targets, w, scalars = problem(case, largest_z=6.0)
    engine = run.engine(x, targets, scalars)
    encrypted = [
        run.encrypt(WEIGHT_SCALE * run.layout.weight_slots(w, u), DATA_LIMBS) for u in range(run.layout.class_groups)
    ]
    asked: list[str] = []

    def counted(items: list[str], ciphertexts: list[Any]) -> list[Any]:
        asked.extend(items)
        return run.refresh(items, ciphertexts)

    error = np.abs(read(run, engine.step(1, encrypted, counted)) - (expected := twin.step(w, x, targets, scalars)))
    engine.close()
    # at |z| = 6 the sigmoid's slope is below 1/4, but c1 + 3 c3 z^2 of the cubic is within 0.15 as well;
    # degree 5 and 7 stay below 0.22
    bound = tolerance(run, x, np.maximum(np.abs(w).max(), np.abs(expected)), scalars, 1)
    print(f"{case}: largest error {error.max():.1e}, tolerance {bound:.1e}")
    assert error.max() < bound
    kinds = ["logits", "weights"] if case.degree == 3 else ["logits", "residual", "weights"]
    assert asked == [item for kind in kinds for item in run.layout.items(1, kind)], (
        "the plan's refreshes, in the plan's order"
    )


def test_a_bit_less_sigmoid_would_be_noticed(base: Rehearsal) -> None:
    """The step test can fail: leaving out the highest coefficient moves the twin by more than ten
    tolerances, in every case."""
    for case in CASES:
        x, targets, w, scalars = problem(case, largest_z=6.0)
        less = Scalars((*scalars.coefficients[:-1], 0.0), scalars.rate, scalars.decay)
        moved = np.abs(twin.step(w, x, targets, less) - twin.step(w, x, targets, scalars)).max()
        assert moved > 10 * tolerance(with_layout(base, case.layout), x, w, scalars, 1)


def test_training_on_real_images_and_its_release(base: Rehearsal, shared_data: Path) -> None:
    """Two steps from zero on whitened pixels of RetinaMNIST, five grades;
    exact opening, then the real, smudged release."""
    file = shared_data / "retinamnist.npz"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    with np.load(file) as data:
        images, labels = data["train_images"][:300], data["train_labels"][:300, 0]
    pixels = images[:, ::4, ::4].reshape(300, -1) / 255.0
    centred = pixels - pixels.mean(0)
    _, scale, directions = np.linalg.svd(centred, full_matrices=False)
    x = np.hstack([centred @ directions[:31].T / scale[:31] * 300**0.5, np.ones((300, 1))])
    targets = 0.5 - np.eye(5)[labels]
    eta = 1 / (float(np.linalg.eigvalsh(x.T @ x / 300)[-1]) / 4 + RIDGE)
    scalars = Scalars.derive(3, eta, RIDGE, 300)
    run = with_layout(base, Case(8, 1, 5, 300).layout)
    engine, weights = run.engine(x, targets, scalars), zero_weights(run.scheme, run.layout)
    for step in range(2):
        weights = engine.step(step, weights, run.refresh)
    engine.close()
    expected, largest = twin.train(x, targets, scalars, 2)
    assert largest < twin.RANGE
    assert np.abs(read(run, weights) - expected).max() < tolerance(run, x, expected, scalars, 2)
    # a Gaussian maximum: twice its expectation is more than seven standard deviations of one weight
    predicted = released.expected_error(SLOTS, run.scheme.scale, run.layout, len(run.secrets))
    error = np.abs(run.release(weights) - expected).max()
    print(f"released weights err by {error:.1e}, predicted {predicted:.1e}")
    assert error < 2 * predicted < 1e-3


def test_the_same_ciphertexts_and_shares_give_the_same_limbs_on_any_number_of_threads(base: Rehearsal) -> None:
    """What lockstep verification rests on. Shares are random,
    so the second engine gets the recorded ones, by digest."""
    case = Case(8, 8, 8, 300)
    run = with_layout(base, case.layout)
    x, targets, _, scalars = problem(case, 1.0)
    blocks = [run.block(x, targets, b, scalars) for b in range(run.layout.blocks)]
    given: dict[tuple[str, str], list[tuple[str, bytes]]] = {}

    def recorded(items: list[str], ciphertexts: list[Any]) -> list[Any]:
        out = []
        for item, ct in zip(items, ciphertexts, strict=True):
            asked, how = refresh.request(run.scheme, ct), run.layout.refresh_map(item)
            a = refresh.common_random(run.scheme, run.run_id, item, codec.digest(asked), how.limbs)
            key = (item, codec.digest(asked))
            if key not in given:
                c1 = codec.unpack(run.scheme, codec.ciphertext(3), asked, "")[1]
                given[key] = [
                    (str(i), refresh.share(run.scheme, s.limbs, c1, a, 98, how)) for i, s in enumerate(run.secrets)
                ]
            out.append(refresh.combine(run.scheme, asked, a, given[key], how))
        return out

    digests = []
    for threads in (1, 2):
        engine, weights = (
            Engine(run.scheme, run.layout, scalars, blocks.__getitem__, threads),
            zero_weights(run.scheme, run.layout),
        )
        for step in range(2):
            weights = engine.step(step, weights, recorded)
        engine.close()
        digests.append([codec.digest(codec.pack(run.scheme, WEIGHTS, run.scheme.evaluator.limbs(w))) for w in weights])
    assert digests[0] == digests[1]
    assert len(given) == 3 + 2, "the second engine presented a ciphertext that the first had not"


def test_a_key_switch_is_off_by_minus_one_and_ones_take_it_back(base: Rehearsal) -> None:
    """A rotation's noise along (1 + s) J, J the polynomial of ones: what -1 on all coefficients of both elements is.

    The rest of it, of variance 1/6 in each element, moves the slope by 1 / sqrt(3 N) or a little more: the bounds are
    ten standard errors.
    """
    scheme, ev, opened = base.scheme, base.scheme.evaluator, Opened(base)
    rotation, q, root = base.layout.rotations[0], opened.q, scheme.roots[opened.q]

    def phase(ct: Any) -> ring.Limb:
        c0, c1 = (element[0] for element in ev.limbs(ct))
        return ring.add(c0, ring.multiply(c1, opened.secret, q), q)

    def along(ct: Any) -> float:
        noise = ring.centred(ring.inverse_ntt(ring.subtract(phase(ct), expected, q), q, root), q)
        return float(noise @ bias / (bias @ bias))

    asked = base.encrypt(np.linspace(-1, 1, SLOTS), DATA_LIMBS)
    expected = phase(asked)[ring.automorphism(scheme.n, scheme.automorphism(rotation))]
    whole = ring.ntt(np.ones(scheme.n, np.uint64), q, root)
    both = ring.add(whole, ring.multiply(whole, opened.secret, q), q)
    bias = ring.centred(ring.inverse_ntt(both, q, root), q).astype(float)
    turned = ev.rotate(asked, rotation)
    assert along(turned) == pytest.approx(-1, abs=0.05)
    assert along(ev.add(turned, ones(scheme, DATA_LIMBS))) == pytest.approx(0, abs=0.05)


def test_the_zero_weights_need_no_key(base: Rehearsal) -> None:
    run = with_layout(base, CASES[1].layout)
    weights = zero_weights(run.scheme, run.layout)
    assert len(weights) == 2
    assert not any(limb.any() for w in weights for element in run.scheme.evaluator.limbs(w) for limb in element)
