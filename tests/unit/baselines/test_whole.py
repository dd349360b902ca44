"""FedAvg of the whole network: alone it is plain training, averaged after every step it is split training, and
between averages everybody has a head of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from focal.baselines.whole import OwnHeads, federate_whole
from focal.config import InteractiveConfig
from focal.data.table import Table
from focal.heads.joint.twin import Update, twin_step
from focal.segments.lower import LowerSegment
from focal.segments.trainable import TrainableSegment
from focal.training.joint import Site, Trained, train_jointly
from focal.training.split import Base, Batches, Loss

CONFIG = InteractiveConfig(
    steps=6, batch=8, features=32, trainable="norm", average_every=2, head_rate=0.3, rate=1e-3, momentum=0.8
)


def sites(table: Table, *sizes: int) -> dict[str, Site]:
    parts = np.split(table.train_rows[: sum(sizes)], np.cumsum(sizes)[:-1])
    return {name: Site(table, rows) for name, rows in zip("abc", parts, strict=False)}


def base(table: Table) -> Base:
    return Base(np.random.default_rng(2).normal(0, 0.3, (CONFIG.features, table.labels.shape[1])))


def far(one: Trained, other: Trained) -> float:
    """The largest difference of two trainings' segments and heads."""
    return float(
        max(np.abs(one.segment.vector() - other.segment.vector()).max(), np.abs(one.weights - other.weights).max())
    )


def test_one_institution_alone_is_plain_training(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    """A dozen lines of PyTorch: one graph from images to loss, torch's SGD for the head and AdamW for the rest."""
    data = {"a": Site(table, table.train_rows)}
    made = federate_whole(lower, CONFIG, data, folder=tmp_path, base=base(table), device="cpu")
    segment, head = TrainableSegment(lower, CONFIG), nn.Parameter(torch.from_numpy(base(table).weights.copy()))
    batches = Batches(table, table.train_rows, lower.spec, CONFIG, name="a")
    loss = Loss(table.task, table.labels[table.train_rows].sum(0), CONFIG)
    peaks = [CONFIG.rate, CONFIG.bottleneck_rate]
    parts = [[p for p in segment.lower.parameters() if p.requires_grad], list(segment.bottleneck.parameters())]
    adam = torch.optim.AdamW(
        [{"params": part, "lr": peak} for part, peak in zip(parts, peaks, strict=True)],
        weight_decay=CONFIG.weight_decay,
    )
    sgd = torch.optim.SGD([head], lr=CONFIG.head_rate, momentum=CONFIG.momentum)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, peaks, total_steps=CONFIG.steps, cycle_momentum=False)
    start = segment.vector()
    for step in range(CONFIG.steps):
        for optimizer in (adam, sgd):
            optimizer.zero_grad()
        loss(segment(batches[step].images) @ head, batches[step].labels).mean().backward()
        adam.step()
        sgd.step()
        cycle.step()
    assert np.abs(segment.vector() - start).max() > 1e-3, "nothing was learned"
    np.testing.assert_allclose(made.segment.vector(), segment.vector(), atol=1e-4)
    np.testing.assert_allclose(made.weights, head.detach().numpy(), atol=1e-4)


def test_averaged_after_every_step_it_is_split_training(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    """Then no head has time to become anybody's own: with as many rows each, the mean of the steps is the
    joint step, its momentum included. Averaged less often it is not."""
    data = sites(table, 16, 16)
    for every, same in ((1, True), (3, False)):
        config = CONFIG.model_copy(update={"average_every": every})
        one, other = (
            train(lower, config, data, folder=tmp_path / f"{every}-{name}", base=base(table), device="cpu")
            for train, name in ((train_jointly, "split"), (federate_whole, "whole"))
        )
        # rates of a row are multiples of 2^-18: of 8 rows 0.3, of 16 not quite
        assert (far(one, other) < 2e-4) == same, f"averages every {every} steps: {far(one, other):.2g}"


def test_the_rhythm_is_that_of_the_configuration(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    """A round after every second step and a last one at the end, weighted by rows; between them each head is moved
    by its own rows alone."""
    config, rounds = CONFIG.model_copy(update={"steps": 5}), []
    made = federate_whole(
        lower,
        config,
        sites(table, 10, 30),
        folder=tmp_path,
        device="cpu",
        on_average=lambda round, segment, weights: rounds.append((round, weights.copy())),
    )
    assert [round for round, _ in rounds] == [1, 2, 3]
    np.testing.assert_array_equal(rounds[-1][1], made.weights)

    rng, heads = np.random.default_rng(0), OwnHeads(("a", "b"), 4, 2, CONFIG)
    want = dict.fromkeys("ab", (np.zeros((4, 2)), np.zeros((4, 2))))
    for _ in range(2):
        x, delta = ({name: rng.normal(size=(3, width)) for name in "ab"} for width in (4, 2))
        logits, gradients = heads.forward(x), heads.backward(delta)
        for name, (now, before) in want.items():
            np.testing.assert_array_equal(logits[name], x[name] @ now)
            np.testing.assert_array_equal(gradients[name], delta[name] @ now.T)
            step = twin_step(now, before, x[name], delta[name], Update(CONFIG.head_rate, CONFIG.momentum))
            want[name] = step, now
    assert not np.allclose(want["a"][0], want["b"][0])
    mean = heads.mean(1, {"a": np.zeros(3), "b": np.ones(3)}, {"a": 10, "b": 30})
    np.testing.assert_allclose(mean["a"], 0.75)
    np.testing.assert_allclose(heads.weights, 0.25 * want["a"][0] + 0.75 * want["b"][0])
    np.testing.assert_allclose(heads.before, 0.25 * want["a"][1] + 0.75 * want["b"][1])
    assert all(now is heads.weights for now, _ in heads.own.values())


def test_who_is_absent_does_not_count_and_gets_the_average(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    """'b' never comes: other rows of it change nothing, and both end with the network of 'a'."""
    config, ended = CONFIG.model_copy(update={"class_weights": 0.0}), []
    for i, rows in enumerate((16, 30)):
        rounds: list[np.ndarray] = []
        made = federate_whole(
            lower,
            config,
            sites(table, 16, rows),
            folder=tmp_path / str(i),
            base=base(table),
            device="cpu",
            absent=lambda step, name: name == "b",
            on_average=lambda round, segment, weights, rounds=rounds: rounds.append(segment.vector()),
        )
        ended.append(made)
        np.testing.assert_array_equal(made.segment.vector(), rounds[-1])
    assert far(*ended) == 0 and (ended[0].weights != base(table).weights).all()


def test_seeds_decide_and_nothing_else(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 2})

    def trained(i: int, seed: int) -> Any:
        return federate_whole(lower, config, sites(table, 16, 16), folder=tmp_path / str(i), device="cpu", seed=seed)

    one, again, other = trained(0, 4), trained(1, 4), trained(2, 5)
    assert far(one, again) == 0 < far(one, other)
