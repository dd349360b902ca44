"""The interactive joint step against its plaintext twin: every intermediate, partial batches, openings,
determinism, momentum.

Values are opened exactly (no smudging) unless the test says otherwise. Deviations per slot, in units of the message::

    drift     FIXEDMANUAL takes every prime for 2^45: a rescaling errs by |q / 2^45 - 1| <= 2^-24.8, relative;
              at most 3 in a row here
    fresh     a new ciphertext under the joint key: 2^-28.8
    switch    a rotation under a joint key, its rounding included: at most 2^-30 (errors of 3 custodians over
              all digits, divided by P)
    turned    what a chain of K - 1 rotations adds to a fresh one: fresh + sqrt(K) switch

Everything is carried 64 times larger, so all but the drift weighs a 64th on weights, logits and gradients. Tolerances
take six standard deviations and come to less than 4e-6; a wrong rotation, mask, lane or scale errs by 1e-3 at least.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from joint import (
    SLOTS,
    answers,
    derivative,
    encrypted,
    engine,
    exact_weights,
    moved_weights,
    problem,
    rehearsal,
    uploads,
)
from joint_training import Training, noisy_batches, release_of
from opened import Opened
from polynomials import rms, slot_errors

from focal.ckks import codec, integers, ring
from focal.ckks.scheme import Scheme
from focal.custody import release
from focal.errors import FocalError, Refused
from focal.heads import released
from focal.heads.joint.engine import Forward, InteractiveEngine, zero_weights
from focal.heads.joint.layout import (
    GRADIENT_MASK_BITS,
    GRADIENT_OPENED,
    LANE_BITS,
    MASK_BITS,
    MOVED_LIMBS,
    OPENED,
    OPENING,
    RELEASED,
    SCALE,
    InteractiveLayout,
    row_table,
)
from focal.heads.joint.limits import CARRIED_NOISE, HEAD_NOISE, check_contributors, check_steps, head_noise
from focal.heads.joint.twin import RATE_BITS, Update, row_rate, twin_step
from focal.heads.linear.layout import WEIGHT_SCALE
from focal.heads.linear.rehearsal import Rehearsal

FRESH, SWITCH = 2**-28.8, 2**-30
LAYOUTS = [InteractiveLayout(SLOTS, r, c) for r, c in ((64, 8), (32, 5), (128, 3), (256, 2), (64, 1))]


class Everything(InteractiveLayout):
    """One key ceremony for all layouts."""

    @property
    def rotations(self) -> list[int]:
        return sorted(set().union(*(layout.rotations for layout in LAYOUTS)))


@pytest.fixture(scope="module")
def base() -> Iterator[Rehearsal]:
    yield rehearsal(Everything(SLOTS, 64, 8), "interactive")


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

    slots = layout.weight_slots(w)
    for s, ciphertext in forward.diagonals.items():
        kept = 1 - layout.low_lanes(s) if s >= 0 else layout.low_lanes(s % k)
        wanted = np.roll(kept * np.roll(slots, -(s % k) * layout.features), -layout.baby(s % k))
        error = np.abs(opened.slots(ciphertext) / 2**LANE_BITS - wanted).max()
        assert error < SCALE * per_rescale * top_w + 6 * turned

    z = np.vstack([layout.logits(opened.slots(ct), run.owners[name]) for name, ct in forward.logits.items()])
    noise = math.sqrt(layout.features) * (FRESH * top_w + turned * top_x) / SCALE
    bound = per_rescale * (np.abs(x) @ np.abs(w)).max() + 6 * (noise + 2 * SWITCH / SCALE)
    assert np.abs(z - x @ w).max() < bound < 4e-6

    dx = np.vstack([layout.gradients(opened.slots(ct), run.owners[name]) for name, ct in backward.gradients.items()])
    noise = math.sqrt(k) * turned * (top_w + top_d) / SCALE + 2 * SWITCH / SCALE
    bound = per_rescale * (np.abs(delta) @ np.abs(w).T).max() + 6 * noise
    assert np.abs(dx - delta @ w.T).max() < bound < 4e-6

    expected = twin_step(w, before, x, delta, update)
    found = moved_weights(layout, opened, backward.weights)
    step = update.rate / n * (np.abs(x.T) @ np.abs(delta)).max() + update.momentum * np.abs(w - before).max()
    noise = (update.rate / math.sqrt(n) * (turned * top_x + FRESH * top_d) + 3 * FRESH + 2 * SWITCH) / SCALE
    assert np.abs(found - expected).max() < (bound := per_rescale * step + 6 * noise) < 4e-6
    assert np.abs(expected - w).max() > 1000 * bound, "a step that changes nothing would pass"
    assert base.scheme.evaluator.count(backward.weights) == MOVED_LIMBS


def test_absent_owners_and_half_filled_batches(base: Rehearsal) -> None:
    """d is there in the forward pass only, b fills 5 of 32 rows: the head moves by the rows that answered,
    divided by their number."""
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
    found = moved_weights(layout, opened, backward.weights)
    assert np.abs(found - twin_step(w, w, x[rows], delta[rows], run.update)).max() < 4e-6  # the bound of the test above
    assert np.abs(found - twin_step(w, w, x, delta, run.update)).max() > 1e-3


def test_an_opening_holds_nothing_of_the_others(base: Rehearsal) -> None:
    """Others' values are many times larger than a's; outside a's own logits and gradients its openings are noise.

    A mask of logits is encoded with an error of 2^-53 sqrt(N / 12) = 2^-47.8 at most per slot (root mean square;
    of gradients, 2^-49.8): six of them of a neighbour's logit show, beside the noise inside, 2^14 per
    coefficient at most before it is masked.
    """
    layout, opened = LAYOUTS[0], Opened(base)
    run = engine(base, layout, Update(rate=1e-3))
    x, delta, w = problem(layout)
    x[32:] *= 16
    delta[32:] *= 16
    weights, filled = encrypted(base, layout, w, w), dict.fromkeys("abcd", 32)
    forward = run.forward(weights, uploads(base, run, x, filled))
    backward = run.backward(weights, forward, answers(base, run, delta, filled), filled)
    run.close()
    slot = np.arange(SLOTS)
    own_rows = slot // 64 < 32
    for ciphertext, own, size, others in (
        (forward.logits["a"], own_rows & (slot % 8 == 0), OPENED, x[32:] @ w),
        (backward.gradients["a"], own_rows, GRADIENT_OPENED, delta[32:] @ w.T),
    ):
        slots, largest = opened.slots(ciphertext) / size, np.abs(others).max()
        left = 6 * largest * SCALE**2 * 2**LANE_BITS / size * 2**-39.8  # in a zero of the mask
        noise = 6 * CARRIED_NOISE * math.sqrt(SLOTS) / 2**45 / SCALE
        assert np.abs(slots[~own]).max() < left + noise
        assert left + noise < 2**-24 * largest
        assert np.abs(slots[own]).max() > 0.1
        assert base.scheme.evaluator.count(ciphertext) == OPENING.limbs


def test_the_next_owners_first_rows_do_not_show_in_the_last_row(base: Rehearsal) -> None:
    """a's rows are zero, b's large: what rotations bring over from b's first rows is cut off by W's lanes, which leave
    2^-42.8 (root mean square) in each of seven zeros. Lanes that are rescaled and lanes that are not differ by 2^-25,
    a hundred thousand times that."""
    layout, opened, run = LAYOUTS[0], Opened(base), engine(base, LAYOUTS[0], Update(0.1))
    x, delta, w = problem(layout)
    x[:32], delta[:32] = 0, 0
    x[32:] *= 16
    delta[32:] *= 16
    weights, filled = encrypted(base, layout, w, w), dict.fromkeys("abcd", 32)
    forward = run.forward(weights, uploads(base, run, x, filled))
    backward = run.backward(weights, forward, answers(base, run, delta, filled), filled)
    run.close()
    noise = 6 * CARRIED_NOISE * math.sqrt(SLOTS) / 2**45 / SCALE
    z = layout.logits(opened.slots(forward.logits["a"]), range(32))
    dx = layout.gradients(opened.slots(backward.gradients["a"]), range(32))
    for found, terms in (
        (z, np.abs(x[32:]).max() * np.abs(w).max() * math.sqrt(layout.lane)),
        (dx, np.abs(delta).max() * np.abs(w).max()),
    ):
        assert np.abs(found).max() < 6 * math.sqrt(7) * 2**-42.8 * terms + noise < 2**-34 * terms


def test_owner_masks_leave_what_is_stated_of_others(base: Rehearsal) -> None:
    """2^-48 of a logit and 2^-50 of a gradient in the place of a zero (root mean square of 24 slots,
    to a factor of two)."""
    layout, run, scheme = LAYOUTS[0], engine(base, LAYOUTS[0], Update(0.1)), base.scheme
    run.close()
    for masks, bits, wanted in (
        (run.logit_masks, MASK_BITS, layout.logit_mask),
        (run.gradient_masks, GRADIENT_MASK_BITS, layout.gradient_mask),
    ):
        primes, limbs = scheme.moduli[:2], scheme.evaluator.plain_limbs(masks["b"])
        assert len(limbs) == OPENING.limbs + 1
        low = integers.Centred(
            [ring.inverse_ntt(x, q, scheme.roots[q]) for x, q in zip(limbs, primes, strict=False)], primes
        ).low
        errors = slot_errors(
            low.view(np.int64).tolist(),
            wanted(run.owners["b"]),
            45 + bits,
            np.random.default_rng(0).choice(SLOTS, 24, False).tolist(),
        )
        stated = 2.0 ** (7 - bits - 45) * math.sqrt(0.75 / 12)  # a quarter of the coefficients is 0, and stays so
        print(f"masks of {bits} bits more leave 2^{math.log2(rms(np.abs(errors))):.1f}")
        assert stated / 2 < rms(np.abs(errors)) < 2 * stated


def test_five_steps_with_momentum_and_smudged_openings(base: Rehearsal) -> None:
    """Owners take softmax of the logits opened to them; the twin, and torch's SGD with momentum, of exact ones.

    A smudged logit errs by sqrt(3) 2^77.5 sqrt(N / 2) / 2^45 / 2^51 = 2^-11.2. Softmax passes on at most half
    of it, independently for each row, so a step adds at most 0.1 x 2^-12.2 / sqrt(128) to a weight
    (activations have deviation 1), and momentum passes that on less than five times within five steps: six
    deviations are 6 x 5 sqrt(5) x 1.9e-6 = 1.3e-4.
    """
    layout, update = LAYOUTS[0], Update(rate=0.1, momentum=0.9)
    batches = noisy_batches(layout, 5)
    run = Training(base, layout, update, batches)
    print(f"after 5 steps weights err by {run.error:.1e}, those before by {run.error_before:.1e}")
    assert max(run.error, run.error_before) < 1.3e-4
    head = torch.nn.Parameter(torch.zeros(layout.features, layout.outputs, dtype=torch.float64))
    optimizer = torch.optim.SGD(
        [head], lr=row_rate(update, layout.rows) / 2**RATE_BITS * layout.rows, momentum=update.momentum
    )
    for x, y in batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(torch.from_numpy(x) @ head, torch.from_numpy(y)).backward()
        optimizer.step()
    assert np.abs(head.detach().numpy() - run.w).max() < 1e-12
    x, y = batches[-1]
    without = twin_step(run.before, run.before, x, derivative(x @ run.before, y), Update(update.rate))
    assert np.abs(without - run.w).max() > 1e-2, "without momentum it would be another head"


def test_a_released_head_errs_as_predicted(base: Rehearsal) -> None:
    """expected_error is the blind protocol's: noise and weights are four times larger here.
    Mean of six, within a factor 2."""
    assert HEAD_NOISE / release.CARRIED_NOISE == RELEASED / WEIGHT_SCALE
    layout, w = LAYOUTS[0], problem(LAYOUTS[0])[2]
    ciphertext = encrypted(base, layout, w, w).now
    measured = [float(np.abs(release_of(base, layout, ciphertext) - w).max()) for _ in range(6)]
    predicted = released.expected_error(SLOTS, base.scheme.scale, layout, 3)
    print(f"largest error of a released weight: predicted {predicted:.1e}, measured {np.mean(measured):.1e}")
    assert predicted / 2 < np.mean(measured) < 2 * predicted < 2 * released.MAX_ERROR


def test_real_images(base: Rehearsal, shared_data: Path) -> None:
    """Two steps on whitened pixels of RetinaMNIST, five grades in eight lanes. As above, but what a step adds is
    passed on less than twice within two steps: 6 x 2 sqrt(2) x 1.9e-6 = 3.2e-5."""
    file = shared_data / "retinamnist.npz"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    with np.load(file) as data:
        images, labels = data["train_images"][:256], data["train_labels"][:256, 0]
    pixels = images[:, ::3, ::3].reshape(256, -1) / 255.0
    left, _, _ = np.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    x = np.hstack([np.clip(left[:, :63] * 16, -6, 6), np.ones((256, 1))])
    batches = [(x[:128], labels[:128]), (x[128:], labels[128:])]
    run = Training(base, InteractiveLayout(SLOTS, 64, 5), Update(0.1, 0.9), batches)
    print(f"weights err by {run.error:.1e}, largest {np.abs(run.w).max():.2f}")
    assert run.error < 3.2e-5 < 1e-3 * np.abs(run.w).max()


def test_noise_on_the_head_is_what_was_asked_for(base: Rehearsal) -> None:
    """dp_head_noise: sqrt(3) times each custodian's deviation, the same on every copy of a weight. 512 weights:
    3 %, asked to 15 %."""
    layout, opened = LAYOUTS[0], Opened(base)
    w = problem(layout)[2]
    carried = base.encrypt(layout.weight_slots(w) / SCALE, MOVED_LIMBS, layout.moved * int(SCALE))
    item = "train/0/weights/-/merged/-"
    (noisy,) = base.noisy_refresh(lambda: layout.noise_slots(1e-3))([item], [carried])
    added = exact_weights(layout, opened, noisy) - w
    assert abs(added.std() / (1e-3 * math.sqrt(3)) - 1) < 0.15
    assert abs(added.mean()) < 6 * added.std() / math.sqrt(added.size)
    copies = opened.slots(noisy).reshape(layout.copies, -1) / SCALE
    assert np.abs(copies - copies[0]).max() < 1e-6, "averaging the copies would take the noise off again"
    (clean,) = base.refresh([item], [carried])
    assert np.abs(exact_weights(layout, opened, clean) - w).max() < 1e-6


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
        kinds.append((codec.ciphertext(MOVED_LIMBS), backward.weights))
        seen.append(
            [codec.digest(codec.pack(base.scheme, kind, base.scheme.evaluator.limbs(ct))) for kind, ct in kinds]
            + [run.mask_digest]
        )
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
    nothing = Forward(dict.fromkeys("abcd"), [], {})
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
        run.backward(weights, Forward(dict.fromkeys("abc"), [], {}), dict.fromkeys("abcd"), dict.fromkeys("abcd", 32))
    run.close()


def test_contributors_are_checked_from_declared_rows_alone() -> None:
    """What every custodian calls on the signed headers, with nothing but the manifest beside them."""
    batches = dict.fromkeys("abcd", 32)
    assert check_contributors({"a": 32, "b": 5, "d": 27}, batches, 32) == 64
    for rows, least, reason in (
        ({"a": 32, "b": 32}, 0, "contributors"),
        ({}, 0, "contributors"),
        ({"a": 32, "b": 16, "c": 15}, 32, "rows"),
        ({"a": 32, "b": 32, "c": 33}, 32, "rows"),
        ({"a": 32, "b": 32, "c": -1}, 32, "rows"),
        ({"a": 32, "b": 32, "e": 32}, 32, "owner"),
    ):
        with pytest.raises(Refused, match=reason):
            check_contributors(rows, batches, least)


def test_too_many_steps_for_the_smudging_of_openings_are_refused() -> None:
    """A head's noise goes up with the momentum, the rate, the steps and the custodians, and down with rows."""
    update = Update(0.5, 0.9)
    usual = head_noise(update, 512, 128, 3)
    assert math.log2(usual) == pytest.approx(12.2, abs=0.05)
    assert [math.log2(head_noise(update, n, 128, 3)) for n in (50, 190)] == pytest.approx([10.3, 11.4], abs=0.05)
    assert head_noise(update, 512, 128, 12) == pytest.approx(2 * usual)
    assert head_noise(Update(0.5, 0.95), 512, 128, 3) > 1.8 * usual
    assert head_noise(update, 512, 32, 3) > usual < head_noise(Update(1.0, 0.9), 512, 128, 3)
    assert head_noise(Update(0.5), 100, 128, 3) == pytest.approx(10 * head_noise(Update(0.5), 1, 128, 3))
    check_steps(update, 6333, 128, 3)
    check_steps(update, 2383, 128, 8)
    refused = r"after 2384 steps with momentum 0.9 .* of 2\^14.0; openings are smudged for 2\^14"
    with pytest.raises(FocalError, match=refused) as caught:
        check_steps(update, 2384, 128, 8)
    assert caught.value.hint


def test_a_rate_that_rounding_would_change_is_refused() -> None:
    check_steps(Update(0.0077), 10, 128, 3)
    with pytest.raises(
        FocalError, match=r"head_rate of 0.007 over 128 rows is 14 times 2\^-18 a row; 16 at least"
    ) as caught:
        check_steps(Update(0.007), 10, 128, 3)
    assert "0.0078" in str(caught.value.hint)


def test_a_modulus_that_leaves_no_room_for_openings_is_refused() -> None:
    """In a process of its own it would be a context; the engine reads nothing of it here but its first
    modulus and its scale."""
    scheme = SimpleNamespace(evaluator=None, moduli=(2**53, 2**45), scale=2.0**45)
    layout = LAYOUTS[0]
    with pytest.raises(FocalError, match="activation gradients up to 0.5 only") as caught:
        InteractiveEngine(cast(Scheme, scheme), layout, row_table(layout, {"a": 128}), Update(0.1), 1)
    assert "first_bits 60" in str(caught.value.hint)


# --------------------------------------------------------------------------- the layout, without ciphertexts


@given(st.sampled_from([32, 64, 128, 256]), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_slots_and_back(features: int, outputs: int, seed: int) -> None:
    """Weights, activations and derivatives come back from their slots;
    each row's rotated diagonals meet all of its classes."""
    layout, rng = InteractiveLayout(SLOTS, features, outputs), np.random.default_rng(seed)
    w, x = rng.standard_normal((features, outputs)), rng.standard_normal((5, features))
    delta, first = rng.standard_normal((5, outputs)), int(rng.integers(0, layout.rows - 4))
    rows = range(first, first + 5)
    released_slots = layout.weight_slots(w) * layout.release_factor
    assert (
        np.abs(layout.read_weights(released_slots) / WEIGHT_SCALE - w).max() < 1e-12
    )  # an average of up to 256 equal values
    assert (layout.gradients(GRADIENT_OPENED * layout.activation_slots(x, first), rows) == x).all()
    assert (layout.logits(OPENED * layout.derivative_slots(delta, first), rows) == delta).all()
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
    """Bytes per custodian are 3 MB a key: K / 2 - 1 baby steps of Q and of R + Q and one back of each, three giant
    steps of lanes, one of rows, and the folds over q."""
    assert [len(layout.rotations) for layout in LAYOUTS] == [15, 14, 13, 10, 6]


@given(st.integers(1, 8))
def test_every_diagonal_is_one_baby_step_and_one_giant_step(outputs: int) -> None:
    """The diagonals of e and e - K have one baby step in common, and so one rotation of W; nothing is done twice."""
    layout = InteractiveLayout(SLOTS, 64, outputs)
    k, b = layout.lanes, layout.babies
    found = {s: (g, h) for g in layout.giants for h, s in layout.diagonals(g).items()}
    assert (
        sorted(found) == list(range(1 - k, k)) == sorted(s for g in layout.giants for s in layout.diagonals(g).values())
    )
    for s, (g, h) in found.items():
        assert s == g * b + h and layout.baby(s % k) == h * layout.lane
        assert s <= 0 or found[s - k] == (g - layout.halves, h)


def test_the_refresh_takes_the_mean_over_the_copies(base: Rehearsal) -> None:
    """In slots, of copies that differ by as much as their values:
    6 deviations of a fresh ciphertext are more than remains."""
    layout, opened = LAYOUTS[0], Opened(base)
    values = np.random.default_rng(9).uniform(-1, 1, SLOTS)
    (refreshed,) = base.refresh(["train/0/weights/-/merged/-"], [base.encrypt(values, MOVED_LIMBS, layout.moved)])
    mean = values.reshape(layout.copies, -1).mean(0)
    assert np.abs(opened.slots(refreshed) - np.tile(mean, layout.copies)).max() < 6 * FRESH
