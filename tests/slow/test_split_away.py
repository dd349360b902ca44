"""Split training: whoever was away, late or killed is right again from the next step on."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
from splitting import CONFIG, Array, Fixed, institution, sites

from focal.data.table import Table
from focal.errors import FocalError
from focal.segments.lower import LowerSegment
from focal.segments.trainable import TrainableSegment
from focal.training.joint import PlainUpper, train_jointly
from focal.training.split import Batches, Loss, Skipped, SplitSegment, Upper, fit, rate_factor

# --------------------------------------------------------------------------- away, late, back again


def test_a_skipped_step_costs_the_update_and_nothing_else(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    def skip(call: str, at: int) -> None:
        if (call, at) in (("logits", 1), ("gradients", 3)):
            raise Skipped

    upper = Fixed(table.labels.shape[1], skip)
    module, batches = institution(lower, table, upper)
    vectors: list[Array] = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            vectors.append(pl_module.segment.vector())

    fit(module, batches, folder=tmp_path, device="cpu", callbacks=[Watch()])
    assert [s for call, s in upper.calls if call == "logits"] == list(range(6))
    assert [s for call, s in upper.calls if call == "gradients"] == [0, 2, 3, 4, 5]
    changed = [bool((a != b).any()) for a, b in zip(vectors[:-1], vectors[1:], strict=True)]
    assert changed == [False, True, False, True, True]
    (log,) = tmp_path.glob("log/*/metrics.csv")
    rows = list(csv.DictReader(log.open()))
    assert [int(r["step"]) for r in rows] == list(range(6))
    assert [math.isnan(float(r["loss"])) for r in rows] == [False, True, False, True, False, False]
    np.testing.assert_allclose(
        [float(r["rate"]) for r in rows], [1e-3 * rate_factor(s, CONFIG) for s in range(6)], rtol=1e-6
    )


def test_a_straggler_jumps_to_where_the_others_are(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    def behind(call: str, at: int) -> None:
        if (call, at) == ("logits", 1):
            raise Skipped("too late", resume=5)

    upper = Fixed(table.labels.shape[1], behind)
    fit(*institution(lower, table, upper), folder=tmp_path, device="cpu", checkpoint_every=0)
    # the average that was made meanwhile comes first
    assert upper.calls == [
        ("logits", 0), ("gradients", 0), ("logits", 1), ("average", 1), ("logits", 5), ("gradients", 5), ("average", 2),
    ]  # fmt: skip


def test_an_abandoned_average_is_not_repeated(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    def abandon(call: str, at: int) -> None:
        if (call, at) == ("average", 1):
            raise Skipped

    upper = Fixed(table.labels.shape[1], abandon)
    fit(*institution(lower, table, upper), folder=tmp_path, device="cpu", checkpoint_every=0)
    assert [at for call, at in upper.calls if call == "average"] == [1, 2]
    assert [at for call, at in upper.calls if call == "gradients"] == list(range(6)), "the step after it went on"


def test_the_absent_do_not_count_and_get_the_average(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 4, "average_every": 4})
    data = sites(table, 3)
    with_absent = train_jointly(
        lower, config, data, folder=tmp_path / "1", device="cpu", absent=lambda step, name: name == "a"
    )
    (tmp_path / "2").mkdir()
    # the same class counts for the loss, but 'a' never existed
    loss = Loss(table.task, table.labels[table.train_rows].sum(0), config)
    upper = PlainUpper(("b", "c"), config.features, loss.outputs, config)
    ended = {}

    def work(name: str) -> Callable[[Upper], None]:
        def take_part(seat: Upper) -> None:
            ended[name] = SplitSegment(TrainableSegment(lower, config), seat, loss, config, rows=len(data[name].rows))
            batches = Batches(table, data[name].rows, lower.spec, config, name=name)
            fit(ended[name], batches, folder=tmp_path / "2" / name, device="cpu", checkpoint_every=0)

        return take_part

    upper.run({name: work(name) for name in ("b", "c")})
    assert (upper.weights == with_absent.weights).all() and np.abs(upper.weights).max() > 0
    assert (ended["b"].segment.vector() == with_absent.segment.vector()).all(), (
        "'a' ends with the average of 'b' and 'c'"
    )


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [("logits", 2), ("gradients", 3), ("average", 1), ("logits", 5), ("average", 2)])
def test_a_run_continues_to_the_bit(lower: LowerSegment, table: Table, tmp_path: Path, at: tuple[str, int]) -> None:
    """Killed anywhere in a step, also in an average: the checkpoint is of the step before,
    and the average is asked for again."""
    config = CONFIG.model_copy(update={"proximal": 0.5})
    whole, batches = institution(lower, table, Fixed(table.labels.shape[1]), config)
    fit(whole, batches, folder=tmp_path / "whole", device="cpu", checkpoint_every=0)

    def kill(call: str, step: int) -> None:
        if (call, step) == at:
            raise Killed

    with pytest.raises(Killed):
        fit(
            *institution(lower, table, Fixed(table.labels.shape[1], kill), config),
            folder=tmp_path / "run",
            device="cpu",
        )
    upper = Fixed(table.labels.shape[1])
    module, batches = institution(lower, table, upper, config)
    fit(module, batches, folder=tmp_path / "run", device="cpu")
    assert upper.calls[0] == (at if at[0] != "gradients" else ("logits", at[1]))
    assert (module.segment.vector() == whole.segment.vector()).all()
    assert module.next_step == 6 and module.rounds == 2
    assert [p.name for p in (tmp_path / "run").glob("*.ckpt")] == ["newest.ckpt"]


def test_one_that_joins_late_begins_with_what_it_is_given(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    upper = Fixed(table.labels.shape[1])
    module, batches = institution(lower, table, upper)
    given = module.segment.vector() * 1.01
    seen: list[Array] = []

    class Watch(lightning.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(pl_module.segment.vector())

    fit(module, batches, folder=tmp_path, device="cpu", start_step=4, parameters=given, callbacks=[Watch()])
    np.testing.assert_allclose(seen[0], given, rtol=1e-6)
    assert upper.calls == [("logits", 4), ("gradients", 4), ("logits", 5), ("gradients", 5), ("average", 2)]
    # and without parameters it asks for the last average first
    upper = Fixed(table.labels.shape[1])
    fit(*institution(lower, table, upper), folder=tmp_path / "other", device="cpu", start_step=5)
    assert upper.calls == [("average", 1), ("logits", 5), ("gradients", 5), ("average", 2)]


def test_a_restarted_one_goes_where_the_others_are_by_now(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    def kill(call: str, step: int) -> None:
        if (call, step) == ("logits", 2):
            raise Killed

    with pytest.raises(Killed):
        fit(*institution(lower, table, Fixed(table.labels.shape[1], kill)), folder=tmp_path, device="cpu")
    upper = Fixed(table.labels.shape[1])
    fit(*institution(lower, table, upper), folder=tmp_path, device="cpu", start_step=4)
    assert upper.calls[:2] == [("average", 1), ("logits", 4)]


def test_a_checkpoint_of_other_settings_is_refused(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    fit(*institution(lower, table, Fixed(table.labels.shape[1])), folder=tmp_path, device="cpu")
    other = CONFIG.model_copy(update={"trainable": "bottleneck"})
    with pytest.raises(FocalError, match="does not hold the parameters that this run trains"):
        fit(*institution(lower, table, Fixed(table.labels.shape[1]), other), folder=tmp_path, device="cpu")


def test_checkpoints_hold_what_trains_and_are_private(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    small = CONFIG.model_copy(update={"trainable": "bottleneck"})
    module, batches = institution(lower, table, Fixed(table.labels.shape[1]), small)
    fit(module, batches, folder=tmp_path / "run", device="cpu")
    size = (tmp_path / "run" / "newest.ckpt").stat().st_size
    assert size < 16 * module.segment.count, "parameters and two moments, four bytes each"
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
