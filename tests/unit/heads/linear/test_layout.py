"""Slots against the formulas of the module docstring, index by index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from focal.errors import FocalError
from focal.heads.linear.layout import TARGET_SCALE, Layout, Slots, power_of_two

SHAPES = [  # slots, features, outputs, rows, k, f, B
    (256, 8, 8, 40, 8, 1, 4),
    (256, 8, 6, 100, 4, 2, 2),
    (256, 16, 3, 50, 2, 4, 1),
    (256, 16, 5, 200, 1, 8, 1),
    (256, 16, 2, 300, 1, 1, 8),
    (256, 32, 4, 20, 4, 2, 8),
    (256, 64, 8, 4, 8, 8, 2),
]


@pytest.fixture(params=SHAPES, ids=lambda s: f"k{s[4]}-f{s[5]}-B{s[6]}")
def layout(request: pytest.FixtureRequest) -> Layout:
    return Layout(*request.param)


def slot(layout: Layout, j: int, i0: int, q: int, c: int) -> int:
    return ((i0 * layout.feature_lanes + j) * layout.lane + q) * layout.class_lanes + c


def paired(values: np.ndarray, axis: int) -> np.ndarray:
    """Features q and q + R/2 as one complex number."""
    real, imaginary = np.split(values, 2, axis=axis)
    return real + 1j * imaginary


def places(layout: Layout) -> Iterator[tuple[int, int, int, int]]:
    for j in range(layout.feature_lanes):
        for i0 in range(layout.groups_of_rows):
            for q in range(layout.lane):
                for c in range(layout.class_lanes):
                    yield j, i0, q, c


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape) + shape[0]).standard_normal(shape)


def test_shape(layout: Layout) -> None:
    p, f, k = layout.features // 2 // layout.feature_lanes, layout.feature_lanes, layout.class_lanes
    groups = layout.slots // (f * p * k)
    assert (layout.lane, layout.groups_of_rows, layout.copies) == (p, groups, groups)
    assert layout.block_rows == groups * p
    assert layout.blocks == int(np.ceil(layout.rows / layout.block_rows))
    assert layout.class_groups == int(np.ceil(layout.outputs / k))
    assert layout.giants * layout.babies == p


def test_data_is_the_skewed_diagonal_rotated_to_the_right(layout: Layout) -> None:
    rows = drawn(layout.block_rows, layout.features)
    for g in range(layout.giants):
        for h in range(layout.babies):
            s, expected = g * layout.babies + h, np.zeros(layout.slots, complex)
            for j, i0, q, c in places(layout):
                row = i0 * layout.lane + q
                if row < len(rows):
                    feature = (j * layout.lane + q + s) % (layout.features // 2)
                    expected[slot(layout, j, i0, q, c)] = paired(rows, 1)[row, feature] / layout.divisor
            stored = layout.data_slots(rows, g, h)
            turned = [
                stored[(i + g * layout.babies * layout.class_lanes) % layout.slots] for i in range(layout.slots)
            ]  # rotated left
            assert np.array_equal(turned, expected)


def test_targets_and_weights(layout: Layout) -> None:
    targets, weights = drawn(layout.block_rows, layout.outputs), drawn(layout.features, layout.outputs)
    for u in range(layout.class_groups):
        t, w = np.zeros(layout.slots), np.zeros(layout.slots, complex)
        for j, i0, q, c in places(layout):
            row, cls = i0 * layout.lane + q, u * layout.class_lanes + c
            if cls < layout.outputs:
                w[slot(layout, j, i0, q, c)] = paired(weights, 0)[j * layout.lane + q, cls]
                if j == 0:
                    t[slot(layout, j, i0, q, c)] = TARGET_SCALE * targets[row, cls]
        assert np.array_equal(layout.target_slots(targets, u), t)
        assert np.array_equal(layout.weight_slots(weights, u), w)


def test_reading_averages_the_copies(layout: Layout) -> None:
    noise = paired(drawn(2 * layout.slots), 0)
    read = paired(layout.read_weights(noise), 0)
    for j, _, q, c in places(layout):
        copies = [noise[slot(layout, j, i0, q, c)] for i0 in range(layout.copies)]
        assert read[j * layout.lane + q, c] == pytest.approx(np.mean(copies), abs=1e-12)
    weights = drawn(layout.features, layout.outputs)
    own = np.hstack([layout.read_weights(layout.weight_slots(weights, u)) for u in range(layout.class_groups)])
    np.testing.assert_allclose(own[:, : layout.outputs], weights, rtol=1e-14)


def test_one_step_in_slots_is_one_step_in_matrices(layout: Layout) -> None:
    """The identities that the engine and its refreshes rely on, with rotations as np.roll and maps as sums of these."""
    x, w = drawn(layout.block_rows, layout.features), drawn(layout.features, layout.outputs)
    delta = drawn(layout.block_rows, layout.outputs)
    left = lambda v, r: np.roll(v, -r)  # noqa: E731
    k, b = layout.class_lanes, layout.babies
    data = [[layout.data_slots(x, g, h) for h in range(b)] for g in range(layout.giants)]
    for u in range(layout.class_groups):
        weights, residual = (
            layout.weight_slots(w, u).conj(),
            layout.target_slots(delta, u) * layout.divisor / TARGET_SCALE,
        )
        z: Slots = np.zeros(layout.slots, complex)
        gradient: Slots = np.zeros(layout.slots, complex)
        for g in range(layout.giants):
            z += left(sum(data[g][h] * left(weights, h * k) for h in range(b)), g * b * k)
        for r in layout.lane_folds:
            residual = residual + left(residual, -r)
        for h in range(b):
            gradient += left(sum(data[g][h] * left(residual, -g * b * k) for g in range(layout.giants)), -h * k)
        for r in layout.lane_folds:
            z = z + left(z, r)
        for r in layout.row_folds:
            gradient = gradient + left(gradient, r)
        part = slice(u * k, min((u + 1) * k, layout.outputs))
        classes = part.stop - part.start
        np.testing.assert_allclose(layout.read_weights(gradient)[:, :classes], (x.T @ delta)[:, part], atol=1e-10)
        read = np.hstack([np.zeros((layout.features, u * k)), layout.read_weights(gradient)])
        np.testing.assert_allclose(gradient, layout.weight_slots(read, u), atol=1e-10)
        logits = (
            z.real.reshape(layout.groups_of_rows, layout.feature_lanes, layout.lane, k)[:, 0, :, :classes]
            * layout.divisor
        )
        np.testing.assert_allclose(logits.reshape(-1, classes), (x @ w)[:, part], atol=1e-10)
        assert (
            np.array_equal(layout.first_lane() != 0, layout.target_slots(np.ones((layout.block_rows, k)), 0) != 0) or u
        )


def test_every_rotation_of_the_engine_has_a_key(layout: Layout) -> None:
    k, b, g = layout.class_lanes, layout.babies, layout.giants
    used = {h * k for h in range(1, b)} | {-x * b * k for x in range(1, g)} | {4 * layout.slots - 1}
    used |= {b * k} if g > 1 else set()
    used |= {-k} if b > 1 else set()
    used |= {-layout.lane * k * 2**x for x in range(int(np.log2(layout.feature_lanes)))}
    assert layout.rotations == sorted(used)


def test_the_map_of_a_refresh_follows_from_the_items_kind(layout: Layout) -> None:
    n, k = 2 * layout.slots, layout.class_lanes
    powers = lambda step, count: tuple(pow(5, step << x, 2 * n) for x in range(count.bit_length() - 1))  # noqa: E731
    logits, residual, weights = (
        layout.refresh_map(f"train/7/{kind}/3/1/-") for kind in ("logits", "residual", "weights")
    )
    assert logits.automorphisms == (2 * n - 1, *powers(layout.lane * k, layout.feature_lanes))
    assert 2.0**-logits.shift * 2 * 16 / layout.divisor == 1 / 8 and logits.limbs == 6
    assert (residual.automorphisms, residual.shift, residual.limbs) == ((), 0, 4)
    assert weights.automorphisms == powers(layout.features // 2 * k, layout.groups_of_rows) and (
        weights.shift,
        weights.limbs,
    ) == (0, 4)


def test_rows_of_several_institutions_add_up_to_the_whole(layout: Layout) -> None:
    x, t = drawn(layout.rows, layout.features), drawn(layout.rows, layout.outputs)
    cuts = [0, layout.rows // 5, layout.rows // 5 + 1, layout.rows]
    parts = list(zip(cuts, cuts[1:], strict=False))
    for block in range(layout.blocks):
        for values, slots in (
            (x, lambda v: layout.data_slots(v, layout.giants - 1, 0)),
            (t, lambda v: layout.target_slots(v, 0)),
        ):
            filled = [slots(layout.block_of(values[a:b], a, block)) for a, b in parts]
            assert np.array_equal(np.sum(filled, axis=0), slots(layout.block_of(values, 0, block)))
            assert (np.sum([f != 0 for f in filled], axis=0) <= 1).all(), "two institutions write into one slot"
    for a, b in parts:
        empty = [i for i in range(layout.blocks) if not layout.block_of(x[a:b], a, i).any()]
        assert set(layout.touched(a, b)) == set(range(layout.blocks)) - set(empty)


def test_owners_have_blocks_of_their_own(layout: Layout) -> None:
    """Real rows stay n; every owner starts with a block; together the blocks hold every row once."""
    m = layout.block_rows
    counts = {"a": 1, "b": m, "c": m + 1, "d": 2 * m}
    own = replace(layout, rows=sum(counts.values()), owners=tuple(counts.values()))
    table = own.row_table(counts)
    assert table == {"a": (0, 1), "b": (m, 2 * m), "c": (2 * m, 3 * m + 1), "d": (4 * m, 6 * m)}
    assert own.blocks == 6 and own.rows == 4 * m + 2
    assert [list(own.touched(*owned)) for owned in table.values()] == [[0], [1], [2, 3], [4, 5]]
    shared = replace(own, owners=())
    assert shared.row_table(counts)["b"] == (1, m + 1) and shared.blocks == 5
    for wrong in ({**counts, "a": 2}, {"a": m, "b": 1, "c": m + 1, "d": 2 * m}):
        with pytest.raises(FocalError, match="not for a"):
            own.row_table(wrong)
    with pytest.raises(FocalError, match="do not make up"):
        replace(own, owners=(0, *own.owners))


def test_masks_are_one_where_an_owner_may_write(layout: Layout) -> None:
    """Index by index; and all owners' masks together are one on every row and class of the block, once."""
    cuts = [0, layout.rows // 5, layout.rows // 5 + 1, layout.rows]
    for block in range(layout.blocks):
        for u in range(layout.class_groups):
            masks = [layout.target_mask(a, b, block, u) for a, b in zip(cuts, cuts[1:], strict=False)]
            everything = np.ones((layout.rows, layout.outputs))
            assert np.array_equal(
                np.sum(masks, axis=0), layout.target_slots(layout.block_of(everything, 0, block), u) / TARGET_SCALE
            )
    a, b, u = cuts[2], cuts[3], layout.class_groups - 1
    mask, lanes = layout.target_mask(a, b, 0, u), layout.class_mask(u)
    for j, i0, q, c in places(layout):
        row, real = i0 * layout.lane + q, u * layout.class_lanes + c < layout.outputs
        assert mask[slot(layout, j, i0, q, c)] == (real and j == 0 and a <= row < min(b, layout.block_rows))
        assert lanes is None or lanes[slot(layout, j, i0, q, c)] == real
    assert (lanes is None) == (layout.outputs % layout.class_lanes == 0)


def test_masks_of_data_are_one_where_rows_of_ones_stand(layout: Layout) -> None:
    """For every place, real and imaginary part: an owner's own rows go through, and nothing of another's does."""
    cuts = [0, layout.rows // 5, layout.rows // 5 + 1, layout.rows]
    owners, everything = list(zip(cuts, cuts[1:], strict=False)), np.ones((layout.rows, layout.features))
    for block in range(layout.blocks):
        for g in range(layout.giants):
            masks = [layout.data_mask(a, b, block, g) for a, b in owners]
            for h in range(layout.babies):
                whole = layout.data_slots(layout.block_of(everything, 0, block), g, h)
                for (a, b), mask in zip(owners, masks, strict=True):
                    own = layout.data_slots(layout.block_of(everything[a:b], a, block), g, h)
                    assert np.array_equal(whole * mask, own) and np.array_equal(own * mask, own)
            assert set(np.unique(masks)) <= {0.0, 1.0} and np.max(np.sum(masks, axis=0)) == 1
    (a, b), g = owners[-1], layout.giants - 1
    mask = np.roll(layout.data_mask(a, b, 0, g), -g * layout.babies * layout.class_lanes)  # as the formula has it
    for j, i0, q, c in places(layout):
        assert mask[slot(layout, j, i0, q, c)] == (a <= i0 * layout.lane + q < min(b, layout.block_rows))


def test_the_divisor_follows_the_square_root_of_the_rows() -> None:
    counts = (1, 15, 16, 300, 1151, 5000, 20_000, 10**8)
    assert [Layout(8192, 64, 8, n, 8, 1, 8, (n,)).divisor for n in counts] == [1, 1, 2, 8, 16, 64, 128, 256]
    assert [Layout(8192, 64, 8, n, 8, 1, 8).divisor for n in counts] == [1, 1, 1, 4, 8, 32, 64, 256]


def test_chunks_are_the_plan_of_one_upload(layout: Layout) -> None:
    plan = layout.chunks(layout.rows // 2, layout.rows)
    blocks = sorted({b for b, *_ in plan})
    assert blocks == list(layout.touched(layout.rows // 2, layout.rows))
    assert len(plan) == len(set(plan)) == len(blocks) * (layout.lane + layout.class_groups)
    expected = []
    for b in blocks:
        expected += [(b, "data", s // layout.babies, s % layout.babies) for s in range(layout.lane)]
        expected += [(b, "target", u, 0) for u in range(layout.class_groups)]
    assert plan == expected


def test_items_are_finite_ordered_and_name_no_party() -> None:
    layout = Layout(256, 8, 6, 50, 4, 2, 2)  # 32 rows a block
    assert (layout.blocks, layout.class_groups) == (2, 2)
    assert list(layout.items(3, "residual")) == [f"train/3/residual/{b}/{u}/-" for b in (0, 1) for u in (0, 1)]
    assert list(layout.items(3, "weights")) == ["train/3/weights/-/0/-", "train/3/weights/-/1/-"]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((256, 8, 5, 10, 16, 1, 4), "16 class lanes do not fit"),
        ((256, 8, 8, 10, 8, 16, 1), "16 feature lanes"),
        ((256, 128, 8, 10, 8, 1, 8), "too many for 256 slots"),
        ((256, 1, 8, 10, 8, 1, 1), "do not fit 1 features"),
        ((256, 12, 8, 10, 8, 1, 4), "features must be a power of two, not 12"),
        ((256, 8, 8, 10, 3, 1, 4), "class lanes must be a power of two, not 3"),
        ((256, 8, 8, 10, 8, 1, 3), "babies must be a power of two, not 3"),
    ],
)
def test_what_does_not_fit_is_said(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(FocalError, match=message):
        Layout(*shape)


def test_power_of_two() -> None:
    assert [power_of_two(n) for n in (1, 2, 3, 4, 5, 63, 64, 65)] == [1, 2, 4, 4, 8, 64, 64, 128]
