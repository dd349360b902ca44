"""The segment that learns: what each selection trains, the bottleneck, the vector that is averaged,
and what bad choices are told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from focal.config import InteractiveConfig, LowerConfig
from focal.errors import FocalError
from focal.segments.lower import LowerSegment, build_lower, weights_sha256
from focal.segments.projection import Projection
from focal.segments.trainable import RANGE, TrainableSegment, sendable

LOWERS = {
    "vit": LowerConfig(model="vit_tiny_patch16_224", image_size=32),
    "resnet": LowerConfig(model="resnet10t", image_size=32),
    "squeezenet": LowerConfig(family="torchvision", model="squeezenet1_1", image_size=32),
}
built: dict[str, LowerSegment] = {}


def lower(kind: str, **change: object) -> LowerSegment:
    key = f"{kind}{change}"
    if key not in built:
        built[key] = build_lower(LOWERS[kind].model_copy(update=change), "random:0")[0]
    return built[key]


def pixels(n: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def projection(dim: int, features: int = 32, bound: float = 2.0) -> Projection:
    rng = np.random.default_rng(3)
    matrix, offset = rng.normal(size=(features - 1, dim)), rng.normal(size=features - 1)
    return Projection("random", matrix.astype(np.float32), offset.astype(np.float32), bound, features, (1.0).hex())


EXISTING = [
    *[("vit", t) for t in ("all", "last", "norm", "lora", "adapter", "bottleneck")],
    *[("resnet", t) for t in ("all", "last", "norm", "adapter", "bottleneck")],
    *[("squeezenet", t) for t in ("all", "last", "adapter", "bottleneck")],
]


@pytest.mark.parametrize(("kind", "trainable"), EXISTING)
def test_what_is_chosen_trains_and_nothing_else(kind: str, trainable: str) -> None:
    segment = TrainableSegment(lower(kind), InteractiveConfig(trainable=trainable, features=32))
    torch.testing.assert_close(segment.lower(pixels()), lower(kind)(pixels()))  # LoRA and adapters begin as nothing
    segment.train()
    frozen = {name: value.clone() for name, value in segment.state_dict().items()}
    optimizer = torch.optim.Adam(segment.parameters(), lr=1e-3)
    for _ in range(
        2
    ):  # the second step moves LoRA's and adapters' first factors too, whose gradient is zero at the start
        optimizer.zero_grad()
        segment(pixels()).square()[:, :-1].sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in segment.trained().values())
        optimizer.step()
    changed = {name for name, value in segment.state_dict().items() if not torch.equal(value, frozen[name])}
    assert {name for name in changed if "_cut." not in name} == set(segment.trained())


def test_the_names_of_what_trains() -> None:
    def names(kind: str, **settings: object) -> set[str]:
        segment = TrainableSegment(lower(kind), InteractiveConfig(features=32, **settings))
        return {n.removeprefix("lower.backbone.") for n in segment.trained() if not n.startswith("bottleneck.")}

    def below(kind: str, *prefixes: str) -> set[str]:
        return {n for n, _ in lower(kind).backbone.named_parameters() if n.startswith(prefixes)}

    assert names("vit", trainable="last", blocks=1) == below("vit", "blocks.11.", "norm.")
    assert names("resnet", trainable="last", blocks=2) == below("resnet", "layer3.", "layer4.")
    assert names("squeezenet", trainable="last", blocks=3) == below(
        "squeezenet", "features.10.", "features.11.", "features.12."
    )
    assert names("squeezenet", trainable="all") == below("squeezenet", "")
    norms = [n for n, m in lower("resnet").backbone.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert names("resnet", trainable="norm") == {f"{n}.{p}" for n in norms for p in ("weight", "bias")}
    assert len(names("vit", trainable="norm")) == 2 * 25, "two normalisations a block and one at the end"
    assert len(names("vit", trainable="lora")) == 12 * 4 * 2, "qkv, proj, fc1 and fc2 of each block"
    assert names("vit", trainable="bottleneck") == set()


def test_lora_is_a_low_rank_change_of_the_weight() -> None:
    segment = TrainableSegment(lower("vit"), InteractiveConfig(trainable="lora", rank=3, features=32))
    for p in segment.trained().values():
        torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(0))
    change = segment.lower.backbone.blocks[2].mlp.fc1.weight - lower("vit").backbone.blocks[2].mlp.fc1.weight
    assert torch.linalg.matrix_rank(change) == 3


def test_the_frozen_segment_is_not_touched() -> None:
    own = build_lower(LOWERS["resnet"], "random:0")[0]
    segment = TrainableSegment(own, InteractiveConfig(features=32))
    with torch.no_grad():
        for p in segment.parameters():
            p.add_(1.0)
    assert weights_sha256(own.backbone) == own.spec.weights_sha256 and not any(
        p.requires_grad for p in own.parameters()
    )


def test_batch_statistics_and_dropout_stay_out() -> None:
    segment = TrainableSegment(lower("resnet"), InteractiveConfig(features=32)).train()
    statistics = {n: b.clone() for n, b in segment.named_buffers()}
    alone, together = segment(pixels(1)), segment(pixels(4))
    torch.testing.assert_close(alone, together[:1], atol=1e-5, rtol=1e-5)
    assert all(torch.equal(b, statistics[n]) for n, b in segment.named_buffers()) and statistics


@pytest.mark.parametrize("trainable", ["all", "last", "adapter"])
def test_nothing_after_the_cut_trains(trainable: str) -> None:
    segment = TrainableSegment(lower("resnet", cut="layer2"), InteractiveConfig(trainable=trainable, features=32))
    assert not any("layer3" in name or "layer4" in name for name in segment.trained())
    assert any("layer2" in name or "layer1" in name for name in segment.trained())


@pytest.mark.parametrize(
    ("kind", "trainable", "offered"),
    [
        ("squeezenet", "norm", "all, last (1 to 8 blocks), adapter, bottleneck"),
        ("squeezenet", "lora", "all, last (1 to 8 blocks), adapter, bottleneck"),
        ("resnet", "lora", "all, last (1 to 4 blocks), adapter, norm, bottleneck"),
    ],
)
def test_a_selection_that_the_model_lacks_is_refused_with_what_it_has(kind: str, trainable: str, offered: str) -> None:
    with pytest.raises(FocalError, match=f"nothing to train as 'interactive.trainable: {trainable}'") as e:
        TrainableSegment(lower(kind), InteractiveConfig(trainable=trainable))
    assert e.value.hint == f"it offers: {offered}"


def test_more_blocks_than_there_are_before_the_cut() -> None:
    with pytest.raises(FocalError, match="4 blocks before its cut 'pooled'"):
        TrainableSegment(lower("resnet"), InteractiveConfig(trainable="last", blocks=5))
    with pytest.raises(FocalError, match="2 blocks before its cut 'layer2'"):
        TrainableSegment(lower("resnet", cut="layer2"), InteractiveConfig(trainable="last", blocks=3))


# --------------------------------------------------------------------------- the bottleneck


def test_the_bottleneck_is_the_projection_that_it_starts_from() -> None:
    start = projection(lower("resnet").spec.dim)
    segment = TrainableSegment(lower("resnet"), InteractiveConfig(features=32), start)
    raw = 20 * torch.randn(
        7, start.dim, generator=torch.Generator().manual_seed(2)
    )  # beyond the clip of values and of the norm
    weights = np.random.default_rng(0).normal(size=(32, 5))
    np.testing.assert_allclose(
        segment.bottleneck(raw).detach().numpy(), start.apply(raw.numpy()), rtol=1e-12, atol=1e-12
    )
    with torch.no_grad():
        segment.bottleneck.matrix.mul_(1.5)
    released = segment.head(weights, "multiclass")
    np.testing.assert_allclose(
        released(raw).numpy(), segment.bottleneck(raw).detach().numpy() @ weights, rtol=1e-5, atol=1e-5
    )


def test_activations_are_bounded_whatever_was_learned() -> None:
    segment = TrainableSegment(lower("resnet"), InteractiveConfig(features=256))
    with torch.no_grad():
        segment.bottleneck.matrix.mul_(1e6)
    x = segment(pixels(4)).detach().numpy()
    assert x.shape == (4, 256) and x.dtype == np.float64 and (x[:, -1] == 1).all()
    np.testing.assert_allclose(np.linalg.norm(x[:, :-1], axis=1), 2 * 256**0.5)
    sendable(x, "the activations", "")


def test_what_would_overflow_is_not_sent() -> None:
    sendable(np.array([[-RANGE, RANGE]]), "the activations", "")
    for bad, match in ((RANGE * 1.01, "reach 64.6; more than 64"), (np.nan, "not finite"), (-np.inf, "not finite")):
        with pytest.raises(FocalError, match=match) as e:
            sendable(np.array([[1.0, bad]]), "joint step 3: the activations", "use a smaller rate")
        assert e.value.message.startswith("joint step 3") and e.value.hint == "use a smaller rate"


def test_a_bottleneck_wider_than_the_features_and_a_foreign_projection() -> None:
    with pytest.raises(FocalError, match="features is 256, but the lower segment gives 128"):
        TrainableSegment(lower("resnet", cut="layer2"), InteractiveConfig(features=256))
    with pytest.raises(FocalError, match="maps 100 features to 32, this run's segment and bottleneck 512 to 64"):
        TrainableSegment(lower("resnet"), InteractiveConfig(features=64), projection(100))


# --------------------------------------------------------------------------- the vector


def test_the_vector_holds_what_trains_and_comes_back() -> None:
    config = InteractiveConfig(trainable="lora", rank=2, features=32)
    one, other = (TrainableSegment(lower("vit"), config, seed=s) for s in (0, 1))
    again = TrainableSegment(lower("vit"), config, seed=0)
    assert (one.vector() == again.vector()).all() and not (one.vector() == other.vector()).all()
    assert (
        one.vector().shape == (one.count,) and one.count == 12 * 2 * (192 + 576 + 2 * 192 + 2 * (192 + 768)) + 31 * 193
    )
    assert one.check_average(one.count * 8.01e-6) == 8 * one.count
    other.load_vector(one.vector())
    assert all(torch.equal(p, q) for p, q in zip(one.trained().values(), other.trained().values(), strict=True))
    torch.testing.assert_close(other(pixels()), one(pixels()))


def test_an_average_that_does_not_fit() -> None:
    segment = TrainableSegment(lower("resnet"), InteractiveConfig(trainable="bottleneck", features=32))
    with pytest.raises(FocalError, match=r"15903 trainable parameters is 0\.1 MB .* more than max_average_mb \(0\.1\)"):
        segment.check_average(0.1)
    before = segment.vector()
    for bad in (before[:-1], np.where(np.arange(before.size) == 5, np.inf, before)):
        with pytest.raises(FocalError, match="this segment trains 15903"):
            segment.load_vector(bad)
    assert (segment.vector() == before).all()
