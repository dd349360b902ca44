"""One institution alone, every ciphertext a proper encryption: what it gets that writes into rows that are not its own.

It puts targets of -60 into one patient's row of another institution, in a class lane that only pads 5 classes to 8.
That lane's weights then move along this patient's features, and the released weights, which it is sent, show them.
Three things stop it, each tested apart from the others: blocks of its own, its mask on what it uploads, and no
padding lanes in a release. Correlations over 31 features: a chance one has deviation 1 / sqrt(31), five of them are
0.9; read features correlate by 0.99.

Or it puts data of 60 into a patient's row, in one feature: that feature's weights then show the patient's label. One
patient for each feature: by chance 31 / 5 labels are right, six and a half with a deviation of 2.2; 18 is five of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from manifests import manifest
from masked import LISTS, Masking, encrypt_any, upload_list
from opened import Opened
from polynomials import rms

from focal.ckks import codec
from focal.custody import release
from focal.errors import Refused
from focal.heads import masks
from focal.heads.linear.engine import Block, Engine, mask_digest, rate, zero_weights
from focal.heads.linear.layout import DATA_LIMBS, TARGET_SCALE, WEIGHT_SCALE, Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars, train
from focal.heads.masks import UPLOADED_LIMBS, OwnerMasks, only_classes
from focal.manifest import LayoutSpec
from focal.net import messages as msg
from focal.protocols.blind import plan, uploads
from focal.protocols.blind.compute import BlindCompute
from focal.protocols.common.voice import Given

CLASSES, ROWS, STEPS = 5, 300, 2
LAYOUT = Layout(8192, 32, CLASSES, ROWS, 8, 1, 8)
VICTIMS = {5: 11, 6: 122, 7: 233}
"""Idle lane -> the row of another institution that is to be read in it."""
LABELLED = tuple(range(0, 279, 9))
"""Rows of another institution whose labels are to be read, each in the weights of one feature."""
ATTACKER = (280, 300)
SIZE = 60.0
SCALARS = Scalars.derive(3, 1.5, 0.1, ROWS)
RATE = rate(LAYOUT, SCALARS)


@dataclass
class Shared:
    """A block of two institutions: a victim's rows and then the attacker's."""

    run: Rehearsal
    x: np.ndarray
    targets: np.ndarray
    scalars: Scalars
    honest: Block
    """All rows, as both should have sent them."""

    def attack(self, owners: OwnerMasks) -> list[Any]:
        """Weights after a few steps, of which the attacker's upload holds targets in the victim's rows;
        ``owners`` keep what may stay."""
        extra = np.zeros((LAYOUT.groups_of_rows * LAYOUT.lane, LAYOUT.class_lanes))
        for lane, row in VICTIMS.items():
            extra[row, lane] = -SIZE
        bad = encrypt_any(self.run, TARGET_SCALE * extra.reshape(-1), UPLOADED_LIMBS)
        return self.beside(owners.targets([("a", bad)], {"a": ATTACKER}, 0, 0), STEPS)

    def attack_by_data(self, owners: OwnerMasks) -> list[Any]:
        """Weights after a few steps, of which the attacker's upload holds data in the victim's rows."""
        extra, ev = np.zeros((LAYOUT.block_rows, LAYOUT.features)), self.run.scheme.evaluator
        for feature, row in enumerate(LABELLED):
            extra[row, feature] = SIZE

        def both(g: int, h: int, honest: Any) -> Any:
            bad = encrypt_any(self.run, LAYOUT.data_slots(extra, g, h), UPLOADED_LIMBS)
            return ev.add(honest, owners.data([("a", bad)], {"a": ATTACKER}, 0, g))

        data = [[both(g, h, ct) for h, ct in enumerate(row)] for g, row in enumerate(self.honest.data)]
        return self.trained(Block(data, self.honest.targets), STEPS)

    def right(self, weights: np.ndarray) -> int:
        """How many of the victim's labels are those of the largest weights, (R, k)."""
        guessed = weights[: len(LABELLED), :CLASSES].argmax(axis=1)
        return int((guessed == self.targets[list(LABELLED)].argmin(axis=1)).sum())

    def beside(self, extra: Any, steps: int) -> list[Any]:
        """Weights after ``steps``, with another upload's targets beside the honest ones."""
        added = self.run.scheme.evaluator.add(self.honest.targets[0], extra)
        return self.trained(Block(self.honest.data, [added]), steps)

    def trained(self, block: Block, steps: int) -> list[Any]:
        engine, weights = (
            Engine(self.run.scheme, LAYOUT, self.scalars, lambda b: block, 2),
            zero_weights(self.run.scheme, LAYOUT),
        )
        for step in range(steps):
            weights = engine.step(step, weights, self.run.refresh)
        engine.close()
        return weights

    def read(self, ciphertext: Any) -> np.ndarray:
        """(R, k): the lanes of a weight ciphertext by smudged shares, those that hold no class as well."""
        return (
            LAYOUT.read_weights(
                self.run.consortium.open(partial(release.share, noise=release.CARRIED_NOISE), ciphertext)
            )
            / WEIGHT_SCALE
        )

    def correlations(self, lanes: np.ndarray) -> np.ndarray:
        """Of each idle lane with the features of its victim, the bias column apart."""
        return np.array([np.corrcoef(lanes[:-1, lane], self.x[row, :-1])[0, 1] for lane, row in VICTIMS.items()])


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    run = Rehearsal(LAYOUT, custodians=2, threads=2, run="foreign rows")
    rng = np.random.default_rng(0)
    x = np.clip(rng.normal(size=(ROWS, 32)), -4, 4)
    x[:, -1] = 1
    targets = 0.5 - np.eye(CLASSES)[rng.integers(0, CLASSES, ROWS)]
    yield Shared(run, x, targets, SCALARS, run.block(x, targets, 0, SCALARS))


class Ones(OwnerMasks):
    """No masks: ones everywhere."""

    def _encode(self, first: int, last: int, last_group: bool) -> list[Any]:
        ones, ev = np.ones(LAYOUT.slots), self.scheme.evaluator
        return [ev.encode(mask, 6) for mask in (ones * self.rate / TARGET_SCALE, ones)]

    def _encode_data(self, first: int, last: int, g: int) -> list[Any]:
        return 2 * [self.scheme.evaluator.encode(np.ones(LAYOUT.slots), 6)]


def test_without_the_masks_three_patients_are_read_and_nobody_notices(shared: Shared) -> None:
    (weights,) = shared.attack(Ones(shared.run.scheme, LAYOUT, RATE))
    lanes = shared.read(weights)
    found = shared.correlations(lanes)
    print(f"without masks: correlations with three patients' features {np.round(found, 3)}")
    assert found.min() > 0.98
    exact, _ = train(shared.x, shared.targets, shared.scalars, STEPS)
    assert np.abs(lanes[:, :CLASSES] - exact).max() < 1e-3, "the honest classes do not tell"
    # the second line of defence: what is released of these very weights
    released = LAYOUT.read_weights(
        shared.run.consortium.open(release.share, only_classes(shared.run.scheme, LAYOUT, 0, weights))
    )
    assert np.abs(shared.correlations(released)).max() < 0.9
    assert np.abs(released[:, CLASSES:]).max() / WEIGHT_SCALE < 1e-3
    assert np.abs(released[:, :CLASSES] / WEIGHT_SCALE - exact).max() < 1e-3


def test_with_the_masks_there_is_nothing_to_read(shared: Shared) -> None:
    (weights,) = shared.attack(OwnerMasks(shared.run.scheme, LAYOUT, RATE))
    opened = (
        LAYOUT.read_weights(Opened(shared.run).complex_slots(weights)) / WEIGHT_SCALE
    )  # exactly: no smudging hides anything
    lanes = shared.read(weights)
    found = shared.correlations(lanes)
    print(f"with masks: correlations {np.round(found, 3)}; idle lanes hold {np.abs(opened[:, CLASSES:]).max():.1e}")
    assert np.abs(found).max() < 0.9
    assert np.abs(opened[:, CLASSES:]).max() < 1e-7
    exact, _ = train(shared.x, shared.targets, shared.scalars, STEPS)
    assert np.abs(opened[:, :CLASSES] - exact).max() < 1e-6


@pytest.mark.parametrize("feature_lanes", [1, 2])
@pytest.mark.parametrize("size", [1.0, 2.0**30, 2.0**30 * 1j])
def test_a_mask_leaves_nothing_of_what_is_written_elsewhere(shared: Shared, size: complex, feature_lanes: int) -> None:
    """Targets of 1 in the own slots stay, to the drift of two primes. In the others, in lanes j > 0 and
    those that pad the classes, 2^-68 of ``size`` is left (at most), and noise: of targets as they came,
    2^-40 by each mask, times 256."""
    layout = replace(LAYOUT, feature_lanes=feature_lanes)
    owners, own = OwnerMasks(shared.run.scheme, layout, RATE), layout.target_mask(*ATTACKER, 0, 0) == 1
    written = encrypt_any(shared.run, TARGET_SCALE * np.where(own, 1.0, size), UPLOADED_LIMBS)
    kept = owners.targets([("a", written)], {"a": ATTACKER}, 0, 0)
    assert shared.run.scheme.evaluator.count(kept) == masks.TARGET_LIMBS
    slots = Opened(shared.run).complex_slots(kept)
    assert own.sum() == 20 * CLASSES
    own_error, left = np.abs(slots[own] / RATE - 1).max(), np.abs(slots[~own]).max()
    print(f"targets of {size:g} elsewhere: {left:.1e} is left, the own ones err by {own_error:.1e}")
    assert own_error < 1e-6 + 2**-48 * abs(size)  # slots are encoded with an error of about 2^-50 of the largest
    assert left < 1e-8  # one mask leaves 2^-10 of 2^30


def test_a_target_of_extraordinary_size_comes_through_both_masks(shared: Shared) -> None:
    """What SECURITY.md says of shared blocks, "What is not protected": 2^-72 of a foreign target is left
    (root mean square)."""
    own, size = LAYOUT.target_mask(*ATTACKER, 0, 0) == 1, 2.0**66
    written = encrypt_any(shared.run, TARGET_SCALE * np.where(own, 0.0, size), UPLOADED_LIMBS)
    kept = OwnerMasks(shared.run.scheme, LAYOUT, RATE).targets([("a", written)], {"a": ATTACKER}, 0, 0)
    left = np.log2(rms(np.abs(Opened(shared.run).complex_slots(kept)[~own])) / size)
    print(f"targets of 2^66 elsewhere: 2^{left:.1f} of them is left")
    assert -74 < left < -70


def test_without_masks_of_data_labels_are_read(shared: Shared) -> None:
    (weights,) = shared.attack_by_data(Ones(shared.run.scheme, LAYOUT, RATE))
    right = shared.right(shared.read(weights))
    print(f"without masks: {right} of {len(LABELLED)} patients' labels are read")
    assert right >= 29


def test_with_masks_of_data_the_weights_are_those_of_honest_rows(shared: Shared) -> None:
    (weights,) = shared.attack_by_data(OwnerMasks(shared.run.scheme, LAYOUT, RATE))
    opened = LAYOUT.read_weights(Opened(shared.run).complex_slots(weights)) / WEIGHT_SCALE
    exact, _ = train(shared.x, shared.targets, shared.scalars, STEPS)
    right, error = shared.right(opened), np.abs(opened[:, :CLASSES] - exact).max()
    print(f"with masks: {right} of {len(LABELLED)} labels by chance; the weights err by {error:.1e}")
    assert right < 18 and error < 1e-6


@pytest.mark.parametrize(("feature_lanes", "g"), [(1, 0), (1, 1), (2, 0)])
@pytest.mark.parametrize("size", [1.0, 2.0**30, 2.0**30 * 1j])
def test_a_mask_leaves_nothing_of_data_written_elsewhere(
    shared: Shared, size: complex, feature_lanes: int, g: int
) -> None:
    """Data of 1 + i in the own slots stay, to the drift of two primes. In the others, those of no rows at all among
    them, 2^-76 of ``size`` is left (at most) and the rounding of the last rescaling: 2^-31 a slot."""
    layout = replace(LAYOUT, feature_lanes=feature_lanes)
    owners, own = OwnerMasks(shared.run.scheme, layout, RATE), layout.data_mask(*ATTACKER, 0, g) == 1
    written = encrypt_any(shared.run, np.where(own, 1.0 + 1.0j, size), UPLOADED_LIMBS)
    kept = owners.data([("a", written)], {"a": ATTACKER}, 0, g)
    assert shared.run.scheme.evaluator.count(kept) == DATA_LIMBS
    slots = Opened(shared.run).complex_slots(kept)
    assert own.sum() == 20 * feature_lanes * layout.class_lanes
    own_error, left = np.abs(slots[own] - (1 + 1j)).max(), np.abs(slots[~own]).max()
    print(f"data of {size:g} elsewhere: {left:.1e} is left, the own ones err by {own_error:.1e}")
    assert own_error < 1e-6 + 2**-48 * abs(size)
    assert left < 1e-8  # one mask leaves 2^-10 of 2^30


def test_data_of_extraordinary_size_come_through_both_masks(shared: Shared) -> None:
    """What SECURITY.md says of shared blocks: 2^-80 of foreign data is left (root mean square)."""
    own, size = LAYOUT.data_mask(*ATTACKER, 0, 0) == 1, 2.0**66
    written = encrypt_any(shared.run, np.where(own, 0.0, size), UPLOADED_LIMBS)
    kept = OwnerMasks(shared.run.scheme, LAYOUT, RATE).data([("a", written)], {"a": ATTACKER}, 0, 0)
    left = np.log2(rms(np.abs(Opened(shared.run).complex_slots(kept)[~own])) / size)
    print(f"data of 2^66 elsewhere: 2^{left:.1f} of them is left")
    assert -82 < left < -78


def test_imaginary_targets_move_the_weights_along_the_own_rows_only(shared: Shared) -> None:
    """A residual is real; nothing makes a target be. One of i v in a row of one's own turns its features
    into each other's place: xi i v = (-x_(q + R/2) + i x_q) v. So the weights move by what the writer
    has, and by nothing of another's."""
    rng, (start, stop) = np.random.default_rng(2), ATTACKER
    values = rng.normal(size=(stop - start, CLASSES))
    slots = 1j * LAYOUT.target_slots(LAYOUT.block_of(values, start, 0), 0)
    owners = OwnerMasks(shared.run.scheme, LAYOUT, RATE)
    written = encrypt_any(shared.run, slots, UPLOADED_LIMBS)
    moved = shared.beside(owners.targets([("a", written)], {"a": ATTACKER}, 0, 0), 1)
    found = LAYOUT.read_weights(Opened(shared.run).complex_slots(moved[0]))[:, :CLASSES] / WEIGHT_SCALE
    own = shared.x[start:stop]
    turned = np.hstack([-own[:, LAYOUT.half :], own[:, : LAYOUT.half]])
    wanted = train(shared.x, shared.targets, shared.scalars, 1)[0] - shared.scalars.rate * turned.T @ values
    moved_by, error = np.abs(shared.scalars.rate * turned.T @ values).max(), np.abs(found - wanted).max()
    print(f"imaginary targets: weights move by {moved_by:.1e}, as computed from the own rows to {error:.1e}")
    assert moved_by > 0.01 and error < 1e-7


@pytest.mark.parametrize("size", [2.0**20, 2.0**50])
def test_a_release_is_zero_where_no_class_is(shared: Shared, size: float) -> None:
    """Garbage in every padding lane, whatever put it there. Real lanes keep their weights, to the drift of two primes.

    Not with 2^50 beside them: such slots are encoded with an error of 2^-53 of the largest one.
    """
    rng = np.random.default_rng(1)
    w = rng.normal(size=(32, CLASSES))
    padded = np.hstack([w, size * rng.choice([-1, 1], (32, 3))])
    wide = replace(LAYOUT, outputs=8)  # 8 classes: it fills the padding lanes
    hostile = encrypt_any(shared.run, WEIGHT_SCALE * wide.weight_slots(padded, 0), DATA_LIMBS)
    masked = only_classes(shared.run.scheme, LAYOUT, 0, hostile)
    assert shared.run.scheme.evaluator.count(masked) == DATA_LIMBS - 2
    exact = (
        LAYOUT.read_weights(Opened(shared.run).complex_slots(shared.run.scheme.evaluator.drop(masked, 1)))
        / WEIGHT_SCALE
    )
    left, error = np.abs(exact[:, CLASSES:]).max(), np.abs(exact[:, :CLASSES] - w).max()
    print(f"garbage of {size:g}: {left:.1e} is left, real weights err by {error:.1e}")
    assert left < 1e-7
    if size < 2.0**40:
        assert error < 1e-6
        assert np.abs(shared.run.release([hostile]) - w).max() < 1e-3
    assert only_classes(shared.run.scheme, wide, 0, hostile) is hostile, "nothing to do where every lane holds a class"


def lists_of(table: Mapping[str, tuple[int, int]], chunks: Mapping[str, tuple[str, ...]]) -> dict[str, msg.Upload]:
    """An upload list of each institution of a row table."""
    return {name: upload_list(start, stop, chunks[name]) for name, (start, stop) in table.items()}


def test_blocks_of_ones_own_hold_no_row_of_another() -> None:
    """An upload list has a place for chunks of the own blocks only: another number of chunks is refused,
    and a row table has no overlap."""
    declared = manifest(layout=LayoutSpec(class_lanes=4, feature_lanes=1))
    shape = plan.layout(declared)
    table = plan.row_table(declared, shape)
    blocks = [set(shape.touched(*owned)) for owned in table.values()]
    assert sum(map(len, blocks)) == len(set().union(*blocks)) == shape.blocks
    nothing = "0" * 64
    counts = {name: len(shape.chunks(*owned)) for name, owned in table.items()}
    lists = lists_of(
        table, {n: tuple(f"{i:02x}" + codec.digest(n.encode())[2:] for i in range(c)) for n, c in counts.items()}
    )
    agreed = uploads.Agreed(joint_keys=nothing, projection=nothing, eta_hex=(2.0).hex())
    for name, upload in lists.items():
        uploads.check_list(declared, shape, agreed, name, upload)
    more = lists["north"].model_copy(update={"chunks": lists["north"].chunks + lists["south"].chunks})
    with pytest.raises(Refused, match="'north' has another number of chunks"):
        uploads.check_list(declared, shape, agreed, "north", more)
    moved = lists["north"].model_copy(update={"first_row": table["south"][0]})
    with pytest.raises(Refused, match="'north' has another first row"):
        uploads.check_list(declared, shape, agreed, "north", moved)


def test_training_masks_what_each_institution_uploads_by_its_own_rows(shared: Shared) -> None:
    """The function that server, verifiers and auditor share: garbage in every slot of one upload,
    and only its own rows hold any of it."""
    declared = manifest(share_blocks=True)
    counts = declared.row_counts
    layout = replace(LAYOUT, rows=declared.rows, outputs=declared.outputs, class_lanes=4)
    table, scheme, masking, kept = layout.row_table(counts), shared.run.scheme, Masking(shared.run), dict[str, bytes]()

    def keep(data: bytes) -> str:
        kept[codec.digest(data)] = data
        return codec.digest(data)

    chunks = {}
    for name, owned in table.items():
        everywhere = np.full(layout.slots, 3.0 if name == "south" else 0.0)
        chunks[name] = tuple(
            keep(masking.upload(name, uploads.item(layout, place, name), everywhere)) for place in layout.chunks(*owned)
        )
    lists = lists_of(table, chunks)
    wanted = [placed.input for placed in uploads.inputs(layout, lists)]
    given = Given({name: list(map(keep, own)) for name, own in masking.given(wanted).items()})
    training = BlindCompute(declared, scheme, layout, shared.run.run_id, lists, LISTS, given, kept.__getitem__, 1)
    opened = Opened(shared.run)
    own = layout.target_mask(*table["south"], 0, 0)
    assert own.sum() == counts["south"] * declared.outputs
    factor = rate(layout, plan.scalars_of(declared, lists)) / TARGET_SCALE
    slots = opened.complex_slots(training._ciphertext((0, "target", 0, 0)))
    assert np.abs(slots / factor - 3.0 * own).max() < 1e-5
    assert layout.giants > 1
    for g in range(layout.giants):
        slots = opened.complex_slots(training._ciphertext((0, "data", g, layout.babies - 1)))
        assert np.abs(slots - 3.0 * layout.data_mask(*table["south"], 0, g)).max() < 1e-5
    training.close()


def test_everybody_must_have_the_bits_of_every_mask(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another row table, number of classes or of lanes, rate or processor gives another digest."""
    two = {"a": (0, 280), "b": (280, 300)}
    digests = {
        mask_digest(shared.run.scheme, LAYOUT, shared.scalars, two),
        mask_digest(shared.run.scheme, LAYOUT, shared.scalars, {"a": (0, 281), "b": (281, 300)}),
        mask_digest(shared.run.scheme, replace(LAYOUT, outputs=6), shared.scalars, two),
        mask_digest(shared.run.scheme, replace(LAYOUT, outputs=8), shared.scalars, two),
        mask_digest(shared.run.scheme, replace(LAYOUT, feature_lanes=2), shared.scalars, two),
        mask_digest(shared.run.scheme, LAYOUT, replace(shared.scalars, rate=1.001 * shared.scalars.rate), two),
    }
    assert len(digests) == 6
    own = replace(LAYOUT, owners=(280, 20))
    table, mask = own.row_table({"a": 280, "b": 20}), Layout.data_mask
    before = mask_digest(shared.run.scheme, own, shared.scalars, table)

    def other(layout: Layout, start: int, stop: int, block: int, g: int) -> np.ndarray:
        return mask(layout, start, stop, block, g) * (1 + 2.0**-40 * (start == 280 and g == 1))

    monkeypatch.setattr(Layout, "data_mask", other)
    assert mask_digest(shared.run.scheme, own, shared.scalars, table) == before, "nobody masks data of own blocks"
    assert mask_digest(shared.run.scheme, LAYOUT, shared.scalars, two) not in digests
