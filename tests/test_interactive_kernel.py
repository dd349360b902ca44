"""The interactive joint step against its plaintext twin: every intermediate, partial batches, openings, determinism, momentum.

Values are opened exactly (no smudging) unless the test says otherwise. Deviations per slot, in units of the message::

    drift     FIXEDMANUAL takes every prime for 2^45: a rescaling errs by |q / 2^45 - 1| <= 2^-24.8, relative; at most 3 in a row here
    fresh     a new ciphertext under the joint key: 2^-28.8
    switch    a rotation under a joint key, its rounding included: at most 2^-30 (errors of 3 custodians over all digits, divided by P)
    turned    what a chain of K - 1 rotations adds to a fresh one: fresh + sqrt(K) switch

W is carried 16 times larger, so what falls on W' or on an opened value weighs a sixteenth. Tolerances take six standard deviations and
come to less than 4e-6; a wrong rotation, mask, lane or scale errs by 1e-3 at least.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import Opened
from hypothesis import given
from hypothesis import strategies as st

from focal.ckks import release, wire
from focal.ckks.context import REFRESH_LIMBS
from focal.ckks.interactive import (
    DERIVATIVES,
    OPENING,
    OPENING_NOISE,
    Forward,
    InteractiveEngine,
    InteractiveLayout,
    Update,
    Weights,
    row_table,
    twin_step,
    zero_weights,
)
from focal.ckks.layout import WEIGHT_SCALE, Layout
from focal.ckks.rehearsal import Rehearsal
from focal.errors import FocalError, Refused

SLOTS = 8192
FRESH, SWITCH = 2**-28.8, 2**-30
LAYOUTS = [InteractiveLayout(SLOTS, r, c) for r, c in ((64, 8), (32, 5), (128, 3), (256, 2), (64, 1))]


class Everything(InteractiveLayout):
    """One key ceremony for all layouts."""

    @property
    def rotations(self) -> list[int]:
        return sorted(set().union(*(layout.rotations for layout in LAYOUTS)))


@pytest.fixture(scope="module")
def base() -> Iterator[Rehearsal]:
    # the rehearsal's keys depend on a layout's rotations only
    yield Rehearsal(cast(Layout, Everything(SLOTS, 64, 8)), custodians=3, threads=2, run="interactive")


def engine(base: Rehearsal, layout: InteractiveLayout, update: Update, threads: int = 2, **options: int) -> InteractiveEngine:
    quarter = layout.rows // 4
    return InteractiveEngine(base.scheme, layout, row_table(layout, dict.fromkeys("abcd", quarter)), update, threads, **options)


def problem(layout: InteractiveLayout, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations (m, R), derivatives (m, C), weights (R, C)."""
    rng = np.random.default_rng(seed)
    x = np.clip(rng.standard_normal((layout.rows, layout.features)), -3, 3)
    return x, rng.uniform(-1, 1, (layout.rows, layout.outputs)), 0.1 * rng.standard_normal((layout.features, layout.outputs))


def uploads(base: Rehearsal, run: InteractiveEngine, x: np.ndarray, filled: Mapping[str, int]) -> dict[str, Any]:
    """Each owner's activations, its first ``filled[owner]`` rows only."""
    starts = {name: run.owners[name].start for name in filled}
    return {n: base.encrypt(run.layout.activation_slots(x[s : s + filled[n]], s)) for n, s in starts.items()}


def answers(base: Rehearsal, run: InteractiveEngine, delta: np.ndarray, filled: Mapping[str, int]) -> dict[str, Any]:
    starts = {name: run.owners[name].start for name in filled}
    slots = {n: run.layout.derivative_slots(delta[s : s + filled[n]], s) for n, s in starts.items()}
    return {n: base.encrypt(v, DERIVATIVES.limbs) for n, v in slots.items()}


def encrypted(base: Rehearsal, layout: InteractiveLayout, now: np.ndarray, before: np.ndarray) -> Weights:
    return Weights(*(base.encrypt(WEIGHT_SCALE * layout.weight_slots(w)) for w in (now, before)))


def carried_weights(layout: InteractiveLayout, opened: Opened, ciphertext: Any) -> np.ndarray:
    return layout.read_weights(opened.slots(ciphertext)) / WEIGHT_SCALE


def opening_noise(base: Rehearsal, errors: np.ndarray) -> float:
    """Noise per coefficient (root mean square) of one owner's opening, from the errors (rows, columns) of the values of all four.

    The slots that are masked hold next to nothing, and S slots of deviation e are coefficients of deviation e / sqrt(S).
    """
    energy = WEIGHT_SCALE**2 * float((errors**2).sum()) / 4
    return base.scheme.scale * math.sqrt(energy / SLOTS) / math.sqrt(SLOTS)


def drift(base: Rehearsal) -> float:
    return max(abs(q / base.scheme.scale - 1) for q in base.scheme.moduli[1:])


def present_rows(run: InteractiveEngine, filled: Mapping[str, int]) -> list[int]:
    return [i for name, n in filled.items() for i in range(run.owners[name].start, run.owners[name].start + n)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: f"R{x.features}-C{x.outputs}")
def test_every_intermediate_of_a_step_is_the_twins(base: Rehearsal, layout: InteractiveLayout) -> None:
    opened, update = Opened(base), Update(rate=0.5, momentum=0.9)
    run = engine(base, layout, update, min_rows_of_others=8)
    x, delta, w = problem(layout)
    before = w - 0.01 * problem(layout, 1)[2]
    weights, filled = encrypted(base, layout, w, before), {name: len(rows) for name, rows in run.owners.items()}
    forward = run.forward(weights, uploads(base, run, x, filled))
    backward = run.backward(weights, forward, answers(base, run, delta, filled), filled)
    run.close()

    n, k, per_rescale = layout.rows, layout.lanes, 3 * drift(base)
    turned = FRESH + math.sqrt(k) * SWITCH
    top_w, top_x, top_d = (float(np.abs(v).max()) for v in (w, x, delta))

    slots = WEIGHT_SCALE * layout.weight_slots(w)
    for s, ciphertext in forward.diagonals.items():
        kept = 1 - layout.low_lanes(s) if s >= 0 else layout.low_lanes(s % k)
        error = np.abs(opened.slots(ciphertext) - kept * np.roll(slots, -(s % k) * layout.features)).max()
        assert error < WEIGHT_SCALE * per_rescale * top_w + 6 * turned

    z = np.vstack([layout.logits(opened.slots(ct), run.owners[name]) for name, ct in forward.logits.items()])
    noise = math.sqrt(layout.features) * (FRESH * top_w + turned * top_x / WEIGHT_SCALE)
    bound = per_rescale * (np.abs(x) @ np.abs(w)).max() + 6 * (noise + math.sqrt(4 * layout.features) * SWITCH / WEIGHT_SCALE)
    assert np.abs(z - x @ w).max() < bound < 4e-6
    assert opening_noise(base, z - x @ w) < OPENING_NOISE

    dx = np.vstack([layout.gradients(opened.slots(ct), run.owners[name]) for name, ct in backward.gradients.items()])
    noise = math.sqrt(k) * turned * (top_w + top_d / WEIGHT_SCALE) + 2 * SWITCH / WEIGHT_SCALE
    bound = per_rescale * (np.abs(delta) @ np.abs(w).T).max() + 6 * noise
    assert np.abs(dx - delta @ w.T).max() < bound < 4e-6
    assert opening_noise(base, dx - delta @ w.T) < OPENING_NOISE

    expected = twin_step(w, before, x, delta, update)
    found = carried_weights(layout, opened, backward.weights)
    step = update.rate / n * (np.abs(x.T) @ np.abs(delta)).max() + (1 + 2 * update.momentum) * top_w
    noise = update.rate / math.sqrt(n) * (turned * top_x + FRESH * top_d) + (3 * FRESH + math.sqrt(2 * layout.rows) * SWITCH) / WEIGHT_SCALE
    assert np.abs(found - expected).max() < (bound := 4 / 3 * per_rescale * step + 6 * noise) < 4e-6
    assert np.abs(expected - w).max() > 1000 * bound, "a step that changes nothing would pass"
    assert backward.weights.GetLevel() == len(base.scheme.moduli) - REFRESH_LIMBS


def test_absent_owners_and_half_filled_batches(base: Rehearsal) -> None:
    """d is there in the forward pass only, b fills 5 of 32 rows: the head moves by the rows that answered, divided by their number."""
    layout, opened = LAYOUTS[0], Opened(base)
    run = engine(base, layout, Update(rate=0.5))
    x, delta, w = problem(layout)
    weights, filled = encrypted(base, layout, w, w), {"a": 32, "b": 5, "c": 32, "d": 32}
    forward = run.forward(weights, uploads(base, run, x, filled))
    assert list(forward.logits) == ["a", "b", "c", "d"]
    del filled["d"]
    backward = run.backward(weights, forward, answers(base, run, delta, filled), filled)
    run.close()
    assert list(backward.gradients) == ["a", "b", "c"]
    rows = present_rows(run, filled)
    assert len(rows) == 69
    found = carried_weights(layout, opened, backward.weights)
    assert np.abs(found - twin_step(w, w, x[rows], delta[rows], run.update)).max() < 4e-6  # the bound of the test above
    assert np.abs(found - twin_step(w, w, x, delta, run.update)).max() > 1e-3


def test_an_opening_holds_nothing_of_the_others(base: Rehearsal) -> None:
    """Others' values are 1000 times larger than a's; outside a's own logits and gradients its openings are noise.

    A mask is encoded with an error of 2^-45 sqrt(N) per slot (rounding of N coefficients), so 16 x 6000 x 2^-38 = 2^-21.5 of a
    neighbour's logit could show, beside the 2^-25 of the noise: a million times less than the smudging's 2^-15.
    """
    layout, opened = LAYOUTS[0], Opened(base)
    run = engine(base, layout, Update(rate=1e-3))
    x, delta, w = problem(layout)
    x[32:] *= 1000
    delta[32:] *= 1000
    weights, filled = encrypted(base, layout, w, w), dict.fromkeys("abcd", 32)
    forward = run.forward(weights, uploads(base, run, x, filled))
    backward = run.backward(weights, forward, answers(base, run, delta, filled), filled)
    run.close()
    others = np.abs(WEIGHT_SCALE * (x[32:] @ w)).max()
    assert others > 1000
    slot = np.arange(SLOTS)
    own_rows = slot // 64 < 32
    for ciphertext, own in ((forward.logits["a"], own_rows & (slot % 8 == 0)), (backward.gradients["a"], own_rows)):
        slots = opened.slots(ciphertext)
        assert np.abs(slots[~own]).max() < 2 * others * 2**-38 * 6 + 6 * SWITCH * 4
        assert np.abs(slots[own]).max() > 0.1
        assert ciphertext.GetLevel() == len(base.scheme.moduli) - OPENING.limbs


def open_to_owner(base: Rehearsal, ciphertext: Any) -> np.ndarray:
    """What an owner gets: every custodian's smudged share (OpenFHE's own, 2^20 per coefficient), added up."""
    cc, shares = base.scheme.cc, []
    for i, secret in enumerate(base.secrets):
        made = (cc.MultipartyDecryptMain if i else cc.MultipartyDecryptLead)([ciphertext], secret.key)[0]
        shares.append((f"custodian {i}", wire.pack(base.scheme, wire.DECRYPTION, base.scheme.limbs(made))))
    return release.open_slots(base.scheme, shares)


def derivative(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """d cross-entropy / d logits, row by row."""
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True) - np.eye(z.shape[1])[y]


def joint_training(
    base: Rehearsal, layout: InteractiveLayout, update: Update, batches: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[float, np.ndarray, np.ndarray]:
    """Steps from zero in which owners see smudged openings only: largest error of the weights, the twin's weights, and those before."""
    run, filled = engine(base, layout, update), dict.fromkeys("abcd", layout.rows // 4)
    w = before = np.zeros((layout.features, layout.outputs))
    weights = zero_weights(base.scheme)
    for step, (x, y) in enumerate(batches):
        forward = run.forward(weights, uploads(base, run, x, filled))
        z = np.vstack([layout.logits(open_to_owner(base, ct), run.owners[name]) for name, ct in forward.logits.items()])
        assert np.abs(z - x @ w).max() < 1e-3
        backward = run.backward(weights, forward, answers(base, run, derivative(z, y), filled), filled)
        exact = derivative(x @ w, y)
        dx = np.vstack([layout.gradients(open_to_owner(base, ct), run.owners[name]) for name, ct in backward.gradients.items()])
        assert np.abs(dx - exact @ w.T).max() <= 1e-3 * np.abs(exact @ w.T).max() + 2**-19.1
        weights = run.finish(step, weights, backward, base.refresh)
        w, before = twin_step(w, before, x, exact, update), w
    run.close()
    return float(np.abs(carried_weights(layout, Opened(base), weights.now) - w).max()), w, before


def test_five_steps_with_momentum_and_smudged_openings(base: Rehearsal) -> None:
    """Owners take softmax of the logits opened to them; the twin, and torch's SGD with momentum, of exact ones.

    A smudged opening errs by six times sqrt(3) 2^20 sqrt(N / 2) / 2^45 / 16 = 2^-19.1. Softmax passes on at most half of it, a step at most
    rate x max|x| of that to each weight, momentum 0.9 at most ten times: 5 x 10 x 0.1 x 3 x 2^-20.1 = 1.4e-5 on weights after five
    steps, times R max|x| on logits at the very worst. Required are 1e-3 for both.
    """
    layout, update, rng = LAYOUTS[0], Update(rate=0.1, momentum=0.9), np.random.default_rng(2)
    labels_of = rng.standard_normal((layout.features, layout.outputs))
    xs = [np.clip(rng.standard_normal((layout.rows, layout.features)), -3, 3) for _ in range(5)]
    batches = [(x, (x @ labels_of).argmax(1)) for x in xs]
    error, w, before = joint_training(base, layout, update, batches)
    print(f"after 5 steps weights err by {error:.1e}")
    assert error < 1.4e-5
    head = torch.nn.Parameter(torch.zeros(layout.features, layout.outputs, dtype=torch.float64))
    optimizer = torch.optim.SGD([head], lr=update.rate, momentum=update.momentum)
    for x, y in batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(torch.from_numpy(x) @ head, torch.from_numpy(y)).backward()
        optimizer.step()
    assert np.abs(head.detach().numpy() - w).max() < 1e-12
    x, y = batches[-1]
    without = twin_step(before, before, x, derivative(x @ before, y), Update(update.rate))
    assert np.abs(without - w).max() > 1e-2, "without momentum it would be another head"


def test_real_images(base: Rehearsal, shared_data: Path) -> None:
    """Two steps on whitened pixels of RetinaMNIST, five grades in eight lanes; |x| reaches 6, hence twice the error of the test above."""
    file = shared_data / "retinamnist.npz"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    with np.load(file) as data:
        images, labels = data["train_images"][:256], data["train_labels"][:256, 0]
    pixels = images[:, ::3, ::3].reshape(256, -1) / 255.0
    left, _, _ = np.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    x = np.hstack([np.clip(left[:, :63] * 16, -6, 6), np.ones((256, 1))])
    batches = [(x[:128], labels[:128]), (x[128:], labels[128:])]
    error, w, _ = joint_training(base, InteractiveLayout(SLOTS, 64, 5), Update(0.1, 0.9), batches)
    print(f"weights err by {error:.1e}, largest {np.abs(w).max():.2f}")
    assert error < 2.8e-5 < 1e-3 * np.abs(w).max()


def test_the_same_uploads_give_the_same_limbs_on_any_number_of_threads(base: Rehearsal) -> None:
    layout = LAYOUTS[1]
    x, delta, w = problem(layout)
    weights, filled = encrypted(base, layout, w, w), dict.fromkeys("abcd", layout.rows // 4)
    runs = [engine(base, layout, Update(0.1, 0.5), threads) for threads in (1, 3)]
    up, down = uploads(base, runs[0], x, filled), answers(base, runs[0], delta, filled)
    seen = []
    for run in runs:
        forward = run.forward(weights, dict(reversed(up.items())))  # nor does the order of arrival matter
        backward = run.backward(weights, forward, down, filled)
        kinds = [(OPENING, ct) for ct in (*forward.logits.values(), *backward.gradients.values())]
        kinds.append((wire.ciphertext(REFRESH_LIMBS), backward.weights))
        seen.append([wire.digest(wire.pack(base.scheme, kind, base.scheme.limbs(ct))) for kind, ct in kinds] + [run.mask_digest])
        run.close()
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == len(seen[0]) == 4 + 4 + 1 + 1


def test_the_digest_of_the_masks_tells_row_tables_apart(base: Rehearsal) -> None:
    layout = LAYOUTS[0]
    tables = ({"a": 32, "b": 32, "c": 64}, {"a": 32, "b": 64, "c": 32})
    runs = [InteractiveEngine(base.scheme, layout, row_table(layout, t), Update(0.1), 1) for t in tables]
    assert runs[0].mask_digest != runs[1].mask_digest
    for run in runs:
        run.close()


def test_no_step_in_which_an_owner_could_single_out_others(base: Rehearsal) -> None:
    layout = LAYOUTS[0]
    run = engine(base, layout, Update(0.1))
    weights = zero_weights(base.scheme)
    nothing = Forward(dict.fromkeys("abcd"), None, {})
    with pytest.raises(Refused, match=r"contributors.*2 of 4"):
        run.forward(weights, dict.fromkeys("ab"))
    with pytest.raises(Refused, match=r"contributors.*2 of 4"):
        run.backward(weights, nothing, dict.fromkeys("ab"), dict.fromkeys("ab", 32))
    with pytest.raises(Refused, match=r"rows.*beside a there are 31 rows.*min_rows_of_others is 32"):
        run.backward(weights, nothing, dict.fromkeys("abc"), {"a": 32, "b": 15, "c": 16})
    for rows in (0, 33):
        with pytest.raises(Refused, match=rf"rows.*b declares {rows} rows; its batch has 1 to 32"):
            run.backward(weights, nothing, dict.fromkeys("abcd"), {"a": 32, "b": rows, "c": 32, "d": 32})
    with pytest.raises(Refused, match=r"owner.*mallory"):
        run.forward(weights, dict.fromkeys(["a", "b", "c", "mallory"]))
    with pytest.raises(Refused, match=r"owner.*d sent derivatives without activations"):
        run.backward(weights, Forward(dict.fromkeys("abc"), None, {}), dict.fromkeys("abcd"), dict.fromkeys("abcd", 32))
    run.close()


# --------------------------------------------------------------------------- the layout, without ciphertexts


@given(st.sampled_from([32, 64, 128, 256]), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_slots_and_back(features: int, outputs: int, seed: int) -> None:
    """Weights, activations and derivatives come back from their slots; each row's rotated diagonals meet all of its classes."""
    layout, rng = InteractiveLayout(SLOTS, features, outputs), np.random.default_rng(seed)
    w, x = rng.standard_normal((features, outputs)), rng.standard_normal((5, features))
    delta, first = rng.standard_normal((5, outputs)), int(rng.integers(0, layout.rows - 4))
    rows = range(first, first + 5)
    assert np.abs(layout.read_weights(layout.weight_slots(w)) - w).max() < 1e-12  # an average of up to 256 equal values
    assert (layout.gradients(WEIGHT_SCALE * layout.activation_slots(x, first), rows) == x).all()
    assert (layout.logits(WEIGHT_SCALE * layout.derivative_slots(delta, first), rows) == delta).all()
    assert layout.logit_mask(rows).sum() == 5 * outputs
    assert layout.gradient_mask(rows).sum() == 5 * features


@pytest.mark.parametrize(
    ("slots", "features", "outputs", "message"),
    [
        (8192, 64, 9, "9 outputs"),
        (8192, 64, 0, "0 outputs"),
        (8192, 48, 8, "48 features"),
        (8192, 4, 8, "4 features"),
        (8192, 2048, 8, "room for 4 rows in 8192 slots"),
    ],
)
def test_what_does_not_fit_is_refused(slots: int, features: int, outputs: int, message: str) -> None:
    with pytest.raises(FocalError, match=message) as caught:
        InteractiveLayout(slots, features, outputs)
    assert caught.value.hint


def test_batches_that_do_not_fit_are_refused() -> None:
    layout = InteractiveLayout(8192, 64, 8)
    assert row_table(layout, {"a": 100, "b": 28}) == {"a": range(100), "b": range(100, 128)}
    for batches in ({"a": 100, "b": 29}, {"a": 100, "b": 0}, {}):
        with pytest.raises(FocalError, match="joint batch of 128"):
            row_table(layout, batches)
    for first in (-1, 127):
        with pytest.raises(FocalError, match="outside the joint batch of 128"):
            layout.activation_slots(np.zeros((2, 64)), first)
    with pytest.raises(FocalError, match="momentum 1.0"):
        Update(0.1, 1.0)


def test_keys_are_few() -> None:
    """Bytes per custodian are 3 MB a key: steps of Q and R both ways, and the folds."""
    assert [len(layout.rotations) for layout in LAYOUTS] == [11, 11, 13, 14, 13]


def test_the_benchmark_prints_json_last() -> None:
    """In a process of its own: closing its scheme forgets the evaluation keys of every other test."""
    command = [
        sys.executable,
        "-m",
        "focal",
        "bench",
        "interactive",
        *["--features", "32", "--classes", "2", "--owners", "3", "--steps", "1", "--threads", "1", "--json"],
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    numbers = json.loads(done.stdout.splitlines()[-1])
    assert numbers["server_ms_per_step"] > 0
    assert numbers["rotation_keys"] == len(InteractiveLayout(SLOTS, 32, 2).rotations)
    assert max(numbers["max_errors"].values()) < 1e-3, "what issue 4 asks of logits, activation gradients and released weights"
    assert numbers["custodian_bytes_per_step"] < 12e6
