"""Split training: the seam changes no gradient, the twin is plain PyTorch, and numbers that cannot be are refused.
Who was away: test_split_away.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from splitting import CONFIG, Array, Fixed, institution, sites
from torch import nn

from focal.config import InteractiveConfig
from focal.data.table import Table
from focal.errors import FocalError
from focal.heads.joint.twin import RATE_BITS, Update, row_rate
from focal.measure.metrics import macro_auroc
from focal.segments.lower import LowerSegment, preprocess
from focal.segments.projection import moment_values, pooled_moments, whiten
from focal.segments.trainable import TrainableSegment
from focal.training import split
from focal.training.joint import Site, scores, train_jointly
from focal.training.split import Base, Based, Batches, Loss, augmented, fit, rate_factor

# --------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("based", [False, True])
def test_gradients_through_the_seam_are_autograds(
    lower: LowerSegment, table: Table, tmp_path: Path, based: bool
) -> None:
    """One step without Lightning's optimizer: p.grad against one graph from the images to the loss."""
    upper = Fixed(table.labels.shape[1])
    base = Base(np.random.default_rng(1).normal(size=upper.weights.shape), upper.weights * 0.1, 0.9)
    step = 3
    total = upper.weights + (base.at(step) if based else 0)
    module, batches = institution(lower, table, Based(upper, base) if based else upper)
    found: list[torch.Tensor] = []

    class Look(lightning.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            found.extend(p.grad.clone() for p in pl_module.segment.trained().values())
            trainer.should_stop = True

    expected = TrainableSegment(lower, CONFIG)
    _, images, labels = batches[step]
    module.loss(expected(images) @ torch.from_numpy(total), labels).mean().backward()
    fit(module, batches, folder=tmp_path, start_step=step, device="cpu", callbacks=[Look()], checkpoint_every=0)
    wanted = [p.grad for p in expected.trained().values()]
    assert len(wanted) <= len(found) and max(float(g.abs().max()) for g in wanted if g is not None) > 1e-3
    for got, want in zip(found, wanted, strict=False):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)  # float32 sums in another order


def plain_training(
    lower: LowerSegment, table: Table, config: InteractiveConfig, head: torch.Tensor
) -> tuple[Array, Array]:
    """The same training of one institution in a dozen lines of PyTorch: torch's SGD for the head,
    torch's OneCycleLR for the rest."""
    segment, head = TrainableSegment(lower, config), nn.Parameter(head)
    batches = Batches(table, table.train_rows, lower.spec, config, name="a")
    loss = Loss(table.task, table.labels[table.train_rows].sum(0), config)
    lower_part = [p for p in segment.lower.parameters() if p.requires_grad]
    groups = [
        {"params": lower_part, "lr": config.rate},
        {"params": segment.bottleneck.parameters(), "lr": config.bottleneck_rate},
    ]
    adam = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    sgd = torch.optim.SGD([head], lr=config.head_rate, momentum=config.momentum)
    peaks = [config.rate, config.bottleneck_rate]
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, peaks, total_steps=config.steps, cycle_momentum=False)
    for step in range(config.steps):
        _, images, labels = batches[step]
        for optimizer in (adam, sgd):
            optimizer.zero_grad()
        loss(segment(images) @ head, labels).mean().backward()
        adam.step()
        sgd.step()
        cycle.step()
    return segment.vector(), head.detach().numpy()


@pytest.mark.parametrize("trainable", ["norm", "all"])
def test_the_twin_of_one_institution_is_plain_pytorch(
    lower: LowerSegment, table: Table, tmp_path: Path, trainable: str
) -> None:
    config = CONFIG.model_copy(update={"trainable": trainable, "steps": 9})
    trained = train_jointly(lower, config, {"a": Site(table, table.train_rows)}, folder=tmp_path, device="cpu")
    vector, head = plain_training(
        lower, table, config, torch.zeros(config.features, table.labels.shape[1], dtype=torch.float64)
    )
    start = TrainableSegment(lower, config).vector()
    assert np.abs(vector - start).max() > 1e-3, "nothing was learned"
    np.testing.assert_allclose(trained.weights, head, atol=1e-4)
    np.testing.assert_allclose(trained.segment.vector() - start, vector - start, atol=1e-4)


def test_a_run_that_starts_from_a_head_and_its_velocity_continues_it(
    lower: LowerSegment, table: Table, tmp_path: Path
) -> None:
    """The encrypted head trains only the difference; together they are SGD with momentum that never stopped."""
    rng = np.random.default_rng(8)
    w, v = rng.normal(size=(2, CONFIG.features, table.labels.shape[1])) * 0.1
    frozen = CONFIG.model_copy(update={"rate": 1e-30, "bottleneck_rate": 1e-30, "weight_decay": 0.0, "momentum": 0.8})
    seen: list[Array] = []
    trained = train_jointly(
        lower,
        frozen,
        {"a": Site(table, table.train_rows)},
        folder=tmp_path,
        base=Base(w, v, frozen.momentum),
        device="cpu",
        on_average=lambda round, segment, weights: seen.append(weights),
    )
    segment = TrainableSegment(lower, frozen)
    batches = Batches(table, table.train_rows, lower.spec, frozen, name="a")
    loss = Loss(table.task, table.labels[table.train_rows].sum(0), frozen)
    head = nn.Parameter(torch.from_numpy(w.copy()))
    n = len(batches[0].labels)
    rate = row_rate(Update(frozen.head_rate), n) / 2**RATE_BITS * n  # an encrypted step's is a multiple of 2^-18 a row
    sgd = torch.optim.SGD([head], lr=rate, momentum=frozen.momentum)
    sgd.state[head]["momentum_buffer"] = torch.from_numpy(-v / rate)
    heads = [w]
    for step in range(frozen.steps):
        sgd.zero_grad()
        with torch.no_grad():
            x = segment(batches[step].images)
        loss(x @ head, batches[step].labels).mean().backward()
        sgd.step()
        heads.append(head.detach().numpy().copy())
    np.testing.assert_allclose(seen[0], heads[4], atol=1e-7)
    np.testing.assert_allclose(trained.weights, heads[-1], atol=1e-7)
    np.testing.assert_allclose(trained.velocity, heads[-1] - heads[-2], atol=1e-7)


def test_averages_are_weighted_by_rows_and_give_everybody_the_same(
    lower: LowerSegment, table: Table, tmp_path: Path
) -> None:
    """Average after every step of three unequal institutions, against each institution's step done by hand."""
    config = CONFIG.model_copy(
        update={"steps": 2, "average_every": 1, "augment": False, "schedule": "constant", "label_smoothing": 0.0}
    )
    data, heads, averages = sites(table, 3), [], []
    trained = train_jointly(
        lower,
        config,
        data,
        folder=tmp_path,
        base=Base(np.random.default_rng(2).normal(size=(config.features, table.labels.shape[1]))),
        device="cpu",
        on_average=lambda round, segment, weights: (averages.append(segment.vector()), heads.append(weights)),
    )
    assert len(averages) == 2 and (trained.segment.vector() == averages[-1].astype(np.float32)).all()
    loss = Loss(table.task, table.labels[np.concatenate([s.rows for s in data.values()])].sum(0), config)
    w = np.random.default_rng(2).normal(size=(config.features, table.labels.shape[1]))
    own, gradient = {}, []
    for name, site in data.items():
        segment = TrainableSegment(lower, config)
        groups = [
            {"params": [p for p in segment.lower.parameters() if p.requires_grad], "lr": config.rate},
            {"params": segment.bottleneck.parameters(), "lr": config.bottleneck_rate},
        ]
        adam = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        _, images, labels = Batches(table, site.rows, lower.spec, config, name=name)[0]
        x = segment(images)
        z = (x @ torch.from_numpy(w)).detach().requires_grad_()
        (delta,) = torch.autograd.grad(loss(z, labels).sum(), z)
        x.backward(delta @ torch.from_numpy(w).T / len(x))
        adam.step()
        own[name] = segment.vector()
        gradient.append((x.detach(), delta))
    rows = {name: len(site.rows) for name, site in data.items()}
    assert len(set(rows.values())) == 3
    mean = sum(own[n] * rows[n] for n in rows) / sum(rows.values())
    x, delta = (torch.cat([g[i] for g in gradient]).numpy() for i in (0, 1))
    np.testing.assert_allclose(averages[0], mean, atol=1e-5)
    rate = row_rate(Update(config.head_rate), len(x)) / 2**RATE_BITS
    np.testing.assert_allclose(heads[0], w - rate * x.T @ delta, rtol=1e-6, atol=1e-9)


def test_a_run_repeats_to_the_bit(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 3, "average_every": 2})
    runs = [
        train_jointly(lower, config, sites(table, 3), folder=tmp_path / str(i), device="cpu", seed=4) for i in range(2)
    ]
    assert (runs[0].weights == runs[1].weights).all() and (runs[0].segment.vector() == runs[1].segment.vector()).all()
    other = train_jointly(lower, config, sites(table, 3), folder=tmp_path / "other", device="cpu", seed=5)
    assert not (other.weights == runs[0].weights).all()


def test_it_learns_and_the_released_model_scores_what_was_trained(
    lower: LowerSegment, table: Table, tmp_path: Path
) -> None:
    rows = table.train_rows
    images = torch.stack([preprocess(table.images.read(int(r)), lower.spec) for r in rows])
    with torch.no_grad():
        raw = lower(images).numpy()
    bound, n, ridge = 8.0, len(rows), 0.1
    start = whiten(
        pooled_moments(moment_values(raw, bound, n), lower.spec.dim, bound, n), CONFIG.features, bound, ridge
    )
    config = CONFIG.model_copy(update={"steps": 25, "augment": False})
    trained = train_jointly(lower, config, sites(table, 3), folder=tmp_path, start=start, device="cpu")
    found = scores(trained.segment, trained.weights, table, rows)
    with torch.no_grad():
        np.testing.assert_allclose(found, trained.segment(images).numpy() @ trained.weights, rtol=1e-3, atol=1e-3)
    assert macro_auroc(table.labels[rows], found, table.task) > 0.75, "an untrained head scores 0.5"


def test_callbacks_precision_and_logging_are_lightnings(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    class Sink(lightning.pytorch.loggers.CSVLogger):
        pass

    upper, logger, dtypes = Fixed(table.labels.shape[1]), Sink(tmp_path / "elsewhere"), set()
    module, batches = institution(lower, table, upper)
    module.segment.lower.backbone.layer4.register_forward_hook(lambda _m, _i, y: dtypes.add(y.dtype))
    bar = lightning.pytorch.callbacks.RichProgressBar()
    fit(
        module,
        batches,
        folder=tmp_path,
        device="cpu",
        precision="bf16-mixed",
        loggers=[logger],
        callbacks=[bar],
        enable_progress_bar=True,
    )
    assert dtypes == {torch.bfloat16} and module.segment.vector().any()
    assert bar.get_metrics(module.trainer, module)["loss"] > 0 and list((tmp_path / "elsewhere").rglob("metrics.csv"))
    assert len([call for call, _ in upper.calls if call == "gradients"]) == CONFIG.steps


# --------------------------------------------------------------------------- bad numbers


def test_a_loss_that_is_not_finite_ends_the_run(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    upper = Fixed(table.labels.shape[1])
    module, batches = institution(lower, table, upper)
    upper.logits = lambda step, x: np.full((len(x), upper.weights.shape[1]), np.inf if step == 2 else 0.0)  # type: ignore[method-assign]
    with pytest.raises(FocalError, match="joint step 2: the loss is not finite") as e:
        fit(module, batches, folder=tmp_path, device="cpu")
    assert "rate" in e.value.hint and ("gradients", 2) not in upper.calls


def test_gradients_that_are_not_finite_do_not_reach_the_segment(
    lower: LowerSegment, table: Table, tmp_path: Path
) -> None:
    upper = Fixed(table.labels.shape[1])
    module, batches = institution(lower, table, upper)
    before = module.segment.vector()
    upper.gradients = lambda step, d: np.full((len(d), CONFIG.features), np.nan)  # type: ignore[method-assign]
    with pytest.raises(FocalError, match="joint step 0: the gradients that came back are not finite"):
        fit(module, batches, folder=tmp_path, device="cpu")
    assert (module.segment.vector() == before).all()


def test_activations_that_overflow_are_not_sent(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    upper = Fixed(table.labels.shape[1])
    module, batches = institution(lower, table, upper)
    with torch.no_grad():
        module.segment.lower.backbone.bn1.weight.fill_(1e38)
    with pytest.raises(FocalError, match="joint step 0: the activations at the cut are not finite"):
        fit(module, batches, folder=tmp_path, device="cpu")
    assert upper.calls == []


def test_derivatives_beyond_the_scale_are_not_sent(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    upper = Fixed(table.labels.shape[1])
    module, batches = institution(lower, table, upper)
    module.loss.weights *= 1e4
    with pytest.raises(FocalError, match="joint step 0: the loss's derivatives reach"):
        fit(module, batches, folder=tmp_path, device="cpu")
    assert upper.calls == [("logits", 0)]


def test_an_average_above_the_limit_is_known_before_the_run(lower: LowerSegment, table: Table) -> None:
    with pytest.raises(FocalError, match="max_average_mb"):
        institution(lower, table, Fixed(2), CONFIG.model_copy(update={"trainable": "all", "max_average_mb": 1.0}))


def test_the_first_failure_ends_everybodys_run(
    lower: LowerSegment, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Batches.__getitem__

    def broken(self: Batches, step: int) -> Any:
        if step == 2 and len(self.rows) == smallest:
            raise FocalError("this image cannot be read")
        return real(self, step)

    data = sites(table, 3)
    smallest = min(len(site.rows) for site in data.values())
    monkeypatch.setattr(Batches, "__getitem__", broken)
    with pytest.raises(FocalError, match="this image cannot be read"):
        train_jointly(lower, CONFIG, data, folder=tmp_path, device="cpu")


# --------------------------------------------------------------------------- batches and losses


def test_batches_depend_on_seed_name_and_step_only(lower: LowerSegment, table: Table) -> None:
    def batches(name: str = "a", seed: int = 0, memory: int = split.MEMORY) -> Batches:
        return Batches(table, table.train_rows, lower.spec, CONFIG, name=name, seed=seed, memory=memory)

    first = batches()[5]
    again = batches(memory=3 * 32 * 32 * 7)  # seven images fit
    for step in (9, 0, 5):
        got = again[step]
    assert torch.equal(got.images, first.images) and torch.equal(got.labels, first.labels) and got.step == 5
    for other in (batches("b"), batches(seed=1)):
        assert not torch.equal(other[5].images, first.images)
    n = len(table.train_rows)
    drawn = np.concatenate([batches().chosen(s) for s in range(n)])  # eight epochs, batches cross their borders
    assert (np.sort(drawn.reshape(8, n), axis=1) == np.arange(n)).all()
    assert not (drawn[:n] == drawn[n : 2 * n]).all(), "every epoch has its own order"


def test_a_small_institution_brings_what_it_has(lower: LowerSegment, table: Table) -> None:
    few = Batches(table, table.train_rows[:3], lower.spec, CONFIG, name="a")
    assert few[0].images.shape == (3, 3, 32, 32) and sorted(few.chosen(7).tolist()) == [0, 1, 2]
    with pytest.raises(FocalError, match="institution 'a' has no train rows"):
        Batches(table, [], lower.spec, CONFIG, name="a")


def test_augmentation_flips_and_lights(lower: LowerSegment, table: Table) -> None:
    plain = Batches(table, table.train_rows, lower.spec, CONFIG.model_copy(update={"augment": False}), name="a")[
        0
    ].images
    images = augmented(plain.repeat(8, 1, 1, 1), np.random.default_rng(0))
    seen = set()
    for got, own in zip(images, plain.repeat(8, 1, 1, 1), strict=True):
        views = {"as it is": own, "across": own.flip(2), "down": own.flip(1), "both": own.flip(1, 2)}
        factors = {name: float((got.sum() / view.sum()).item()) for name, view in views.items()}
        errors = {name: float((got - (view * factors[name]).clamp(0, 255)).abs().max()) for name, view in views.items()}
        best = min(errors, key=lambda name: errors[name])
        seen.add(best)
        assert 0.79 < factors[best] < 1.21
    assert seen == {"as it is", "across", "down", "both"} and float(images.max()) <= 255


def test_losses_are_torchs() -> None:
    rng = torch.Generator().manual_seed(0)
    config = InteractiveConfig(label_smoothing=0.1, class_weights=0.5)
    logits, counts = torch.randn(6, 3, generator=rng, dtype=torch.float64), np.array([100.0, 25.0, 4.0])
    weights = torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64) / (0.8 / 3)
    classes = torch.tensor([0, 1, 2, 2, 1, 0])
    one_hot = nn.functional.one_hot(classes).to(torch.uint8)
    cross = nn.CrossEntropyLoss(weight=weights, label_smoothing=0.1, reduction="none")(logits, classes)
    torch.testing.assert_close(Loss("multiclass", counts, config)(logits, one_hot), cross)

    multi = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1]], dtype=torch.uint8)
    found = Loss("multilabel", counts, config)(logits, multi)
    bce = nn.BCEWithLogitsLoss(reduction="none")(logits, multi.double() * 0.9 + 0.05)
    torch.testing.assert_close(found, (bce * weights).sum(1))

    loss = Loss("binary", np.array([75.0, 25.0]), InteractiveConfig(label_smoothing=0, class_weights=1))
    two = nn.functional.one_hot(torch.tensor([0, 1, 1, 0, 0, 1])).to(torch.uint8)
    plain = nn.BCEWithLogitsLoss(reduction="none")(logits[:, 0], two[:, 1].double())
    torch.testing.assert_close(loss(logits[:, :1], two), plain * torch.tensor([0.5, 1.5, 1.5, 0.5, 0.5, 1.5]))
    assert (loss.outputs, Loss("multilabel", counts, config).outputs) == (1, 3)
    assert Loss("multiclass", [0, 10], config).weights.isfinite().all(), "a class that nobody has"


def test_the_rate_is_one_cycle() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=100, cycle_momentum=False)
    theirs = []
    for _ in range(100):
        theirs.append(cycle.get_last_lr()[0])
        optimizer.step()
        if len(theirs) < 100:
            cycle.step()
    config = InteractiveConfig(steps=100)
    ours = [rate_factor(s, config) for s in range(100)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    assert max(ours) == 1.0
    assert {rate_factor(s, config.model_copy(update={"schedule": "constant"})) for s in (0, 50, 99)} == {1.0}


def test_the_proximal_term_pulls_towards_the_last_average(lower: LowerSegment, table: Table, tmp_path: Path) -> None:
    def distance(proximal: float) -> float:
        config = CONFIG.model_copy(update={"proximal": proximal, "average_every": 100, "schedule": "constant"})
        upper = Fixed(table.labels.shape[1])
        module, batches = institution(lower, table, upper, config)
        start = module.segment.vector()
        upper.average = lambda round, parameters, rows: parameters  # type: ignore[method-assign]
        fit(module, batches, folder=tmp_path / str(proximal), device="cpu", checkpoint_every=0)
        return float(np.linalg.norm(module.segment.vector() - start))

    assert distance(100.0) < 0.8 * distance(0.0)
