"""Where a model looked: rollout and Grad-CAM against what can be computed by other means,
and the test that unmasks meaningless maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from focal.config import InteractiveConfig, LowerConfig
from focal.errors import FocalError
from focal.reporting import explain as explaining
from focal.reporting.explain import (
    CHECK,
    FOLDER,
    INDEX,
    Maps,
    SanityStep,
    attention_rollout,
    explain,
    explain_images,
    explain_run,
    grad_cam,
    overlay,
    sanity_check,
    verdict,
)
from focal.segments import upper
from focal.segments.lower import LowerSegment, build_lower
from focal.segments.trainable import TrainableSegment
from focal.segments.upper import ModelMeta, ReleasedModel, UpperHead

CLASSES = ("mild", "severe", "other")
LOWER = {
    "vit": LowerConfig(model="test_vit", image_size=64, weights="random:0"),
    "cnn": LowerConfig(model="resnet10t", image_size=96, weights="random:0"),
    "squeezenet": LowerConfig(family="torchvision", model="squeezenet1_1", image_size=96, weights="random:0"),
}


def released(config: LowerConfig, *, bound: float = 1e3, task: str = "multiclass", seed: int = 0) -> ReleasedModel:
    """A model whose head is random; ``bound`` and the norm's limit clip nothing unless asked to."""
    segment, _ = build_lower(config, config.weights)
    torch.manual_seed(seed)
    outputs = 1 if task == "binary" else 3
    matrix, weights = (
        torch.randn(31, segment.spec.dim) / segment.spec.dim,
        torch.randn(32, outputs, dtype=torch.float64),
    )
    head = UpperHead(matrix, torch.zeros(31), weights, bound=bound, task=task)  # type: ignore[arg-type]
    classes = CLASSES[:2] if task == "binary" else CLASSES
    pinned = {"dataset": "eyes", "weights": config.weights, "run_id": "01" * 32, "manifest_hash": "02" * 32}
    return ReleasedModel(segment, head, ModelMeta(classes=classes, task=task, lower=segment.spec, **pinned)).eval()  # type: ignore[arg-type]


def fine_tuned(model: ReleasedModel, trainable: str) -> ReleasedModel:
    """The same model after an interactive run that moved what trains of its lower segment; ``head.trained`` has it."""
    config = InteractiveConfig(trainable=trainable, blocks=1, rank=2, features=32)  # type: ignore[arg-type]
    grown = TrainableSegment(model.lower, config)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in grown.trained().values():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    model.head.trained = {name: p.detach() for name, p in grown.trained().items() if name.startswith("lower.")}
    grown.requires_grad_(False)
    return ReleasedModel(grown.lower, model.head, model.meta.model_copy(update={"interactive": config})).eval()


def pictures(n: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


# --------------------------------------------------------------------------- attention rollout


def test_rollout_is_the_product_of_attention_matrices_computed_apart() -> None:
    model = released(LOWER["vit"])
    x, backbone = pictures(2, 64), model.lower.backbone
    with torch.inference_mode():
        tokens = (x.float() - model.lower.mean) / model.lower.std
        tokens = backbone.norm_pre(backbone.patch_drop(backbone._pos_embed(backbone.patch_embed(tokens))))
        flow = torch.eye(tokens.shape[1]).expand(2, -1, -1)
        for block in backbone.blocks:
            inside = block.norm1(tokens)
            b, t, d = inside.shape
            q, k, _ = block.attn.qkv(inside).reshape(b, t, 3, block.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
            q, k = block.attn.q_norm(q), block.attn.k_norm(k)
            attention = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1).mean(1)
            flow = (attention + torch.eye(t)) / 2 @ flow
            tokens = block(tokens)
    prefix = backbone.num_prefix_tokens
    pooled = flow[:, 0] if backbone.global_pool == "token" else flow[:, prefix:].mean(1)
    grid = backbone.patch_embed.grid_size
    maps = attention_rollout(model, x)
    np.testing.assert_allclose(maps, pooled[:, prefix:].reshape(2, *grid).numpy(), atol=1e-6)
    assert (maps > 0).all() and (maps.sum(axis=(1, 2)) <= 1 + 1e-6).all()


def test_rollout_leaves_features_as_they_are_and_attention_as_fast_as_it_was() -> None:
    model = released(LOWER["vit"])
    x, fused = pictures(2, 64), [block.attn.fused_attn for block in model.lower.backbone.blocks]
    before = model(x)
    attention_rollout(model, x)
    assert [block.attn.fused_attn for block in model.lower.backbone.blocks] == fused
    assert torch.equal(model(x), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_rollout_stops_at_the_cut_and_pools_every_token_there() -> None:
    config = LOWER["vit"]
    whole = released(config)
    blocks = len(whole.lower.backbone.blocks)
    assert blocks > 1
    x = pictures(1, 64)
    found = {
        cut: attention_rollout(released(config.model_copy(update={"cut": cut})), x)
        for cut in ("blocks.0", f"blocks.{blocks - 1}")
    }
    assert np.abs(found["blocks.0"] - found[f"blocks.{blocks - 1}"]).max() > 1e-6
    total = sum(float(v.sum()) for v in found.values())
    assert total < 2  # the class token's share is not on the map
    with pytest.raises(FocalError, match="cut before its first attention"):
        attention_rollout(released(config.model_copy(update={"cut": "patch_embed.proj"})), x)


@pytest.mark.parametrize("trainable", ["lora", "adapter"])
def test_what_an_interactive_run_adds_to_a_vit_is_looked_through(trainable: str) -> None:
    """At the start additions change nothing, so the maps are the same; randomised they change them,
    low-rank weights too."""
    model, x = released(LOWER["vit"]), pictures(2, 64)
    before = attention_rollout(model, x)
    TrainableSegment(model.lower, InteractiveConfig(trainable=trainable, rank=2, features=32)).requires_grad_(False)  # type: ignore[arg-type]
    np.testing.assert_allclose(attention_rollout(model, x), before, atol=1e-6)
    last = sanity_check(model, x, [0, 1])[-1]
    assert last.correlation is not None and abs(last.correlation) < 0.9


# --------------------------------------------------------------------------- Grad-CAM


@pytest.mark.parametrize("kind", ["cnn", "squeezenet"])
def test_grad_cam_of_a_pooled_map_is_the_class_activation_map(kind: str) -> None:
    """Pooled by the mean, then linear: d logit / d A_k is w_k / positions, w_k the head's weight on feature k,
    as in Zhou et al. 2016."""
    model = released(LOWER[kind])
    x, columns = pictures(3, 96), [0, 2, 1]
    seen: list[torch.Tensor] = []
    body = model.lower.backbone.layer4 if kind == "cnn" else model.lower.backbone.features
    hook = body.register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.inference_mode():
        raw = model.lower(x)
    hook.remove()
    assert raw.abs().max() < model.head.bound
    assert (model.head.project(raw)[:, :-1].norm(dim=1) < model.head.max_norm).all()  # nothing is clipped
    weights = (model.head.matrix.double().T @ model.head.weights[:-1])[:, columns].T  # (3, dim)
    positions = seen[0].shape[2] * seen[0].shape[3]
    expected = (weights[:, :, None, None] / positions * seen[0].double()).sum(1).clamp_min(0)
    np.testing.assert_allclose(
        grad_cam(model, x, columns), expected.numpy(), rtol=1e-3, atol=1e-6 * float(expected.max())
    )
    assert positions > 1 and expected.max() > 0


def test_grad_cam_sees_the_clipping_of_the_released_head() -> None:
    """Features beyond the bound do not move the logit, so nothing can be said to raise it."""
    assert grad_cam(released(LOWER["squeezenet"]), pictures(1, 96), [0]).max() > 0
    assert grad_cam(released(LOWER["squeezenet"], bound=1e-6), pictures(1, 96), [0]).max() == 0


def test_grad_cam_depends_on_the_class_and_leaves_no_gradient_behind() -> None:
    model = released(LOWER["cnn"])
    x = pictures(1, 96)
    assert not np.allclose(grad_cam(model, x, [0]), grad_cam(model, x, [1]))
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_explain_chooses_the_method() -> None:
    assert explain(released(LOWER["vit"]), pictures(1, 64), [0]).method == "attention rollout"
    assert explain(released(LOWER["cnn"]), pictures(1, 96), [0]).method == "Grad-CAM"


def test_a_mirror_image_and_earlier_cuts_do_not_disturb_a_map() -> None:
    """A rollout is of the image as it stands, up to the last cut; so is the map that Grad-CAM looks at."""
    x = pictures(2, 64)
    for cut, last in (("pooled", "pooled"), (("blocks.0", "blocks.2"), "blocks.2")):
        several = released(LOWER["vit"].model_copy(update={"cut": cut, "flip": True}))
        plain = released(LOWER["vit"].model_copy(update={"cut": last}))
        np.testing.assert_array_equal(explain(several, x, [0, 1]).values, explain(plain, x, [0, 1]).values)
    cnn = released(LOWER["cnn"].model_copy(update={"cut": ("layer2", "layer3"), "flip": True, "pool": "mean+std"}))
    maps = explain(cnn, pictures(2, 96), [0, 1]).values
    assert maps.shape == (2, 6, 6) and np.isfinite(maps).all() and maps.max() > 0
    assert all(not name.startswith("layer4") for name, _ in explaining._parts(cnn.lower))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (LowerConfig(model="test_mambaout", image_size=64, weights="random:0"), 64),  # maps are (b, h, w, c)
        (LowerConfig(model="test_vit2", image_size=64, weights="random:0", cut="patch_embed"), 64),
        (
            LowerConfig(model="test_vit_relpos", image_size=160, weights="random:0"),
            160,
        ),  # tokens, attention of its own kind
    ],
    ids=["channels last", "before attention", "other tokens"],
)
def test_models_that_no_method_fits_are_refused_by_name(config: LowerConfig, size: int) -> None:
    with pytest.raises(FocalError, match=f"'{config.model}'"):
        explain(released(config), pictures(1, size), [0])


# --------------------------------------------------------------------------- the sanity check


@pytest.mark.parametrize("kind", ["vit", "cnn", "squeezenet"])
def test_randomisation_goes_from_the_head_to_the_first_layer_on_a_copy(kind: str) -> None:
    model = released(LOWER[kind])
    size = LOWER[kind].image_size
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps = sanity_check(model, pictures(3, size), [0, 1, 2])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    names = [step.randomised for step in steps]
    first, last = {
        "vit": ("patch_embed", "blocks.0"),
        "cnn": ("conv1.0", "layer1.0"),
        "squeezenet": ("features.0", "features.3"),
    }[kind]
    assert names[0] == "head" and names[-1] == first and names.index(last) < names.index(first)
    assert steps == sanity_check(model, pictures(3, size), [0, 1, 2])  # seeded
    if kind == "vit":  # rollout knows no head: the check must show it
        assert steps[0].correlation == pytest.approx(1.0)
        assert abs(steps[-1].correlation or 0) < 0.9
    else:  # Grad-CAM does
        assert all(step.correlation is None or abs(step.correlation) < 0.9 for step in steps)


def test_layers_after_the_cut_are_not_part_of_the_check() -> None:
    steps = sanity_check(released(LOWER["cnn"].model_copy(update={"cut": "layer2"})), pictures(2, 96), [0, 1])
    assert [s.randomised for s in steps][:2] == ["head", "layer2.0"]
    inner = released(LOWER["squeezenet"].model_copy(update={"cut": "features.5"}))
    assert [s.randomised for s in sanity_check(inner, pictures(2, 96), [0, 1])][:2] == ["head", "features.4"]


def test_a_map_that_only_shows_the_image_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edge detector looks like an explanation; randomising the model does not change it."""

    def edges(model: ReleasedModel, x: torch.Tensor, columns: object) -> Maps:
        return Maps("Grad-CAM", x.double().mean(1).diff(dim=1).abs().numpy())

    monkeypatch.setattr("focal.reporting.explain.explain", edges)
    steps = sanity_check(released(LOWER["cnn"]), pictures(2, 96), [0, 1])
    assert all(step.correlation == pytest.approx(1.0) and step.images == 2 for step in steps)
    monkeypatch.setattr(
        "focal.reporting.explain.explain", lambda model, x, columns: Maps("Grad-CAM", np.zeros((2, 3, 3)))
    )
    assert {(s.correlation, s.images) for s in sanity_check(released(LOWER["cnn"]), pictures(2, 96), [0, 1])} == {
        (None, 0)
    }


def test_the_verdict_needs_the_likeness_to_go_early() -> None:
    def steps(*values: float | None) -> list[SanityStep]:
        return [SanityStep(f"layer-{i}", value, 8) for i, value in enumerate(values)]

    assert verdict(steps(0.1, 0.0, -0.1)).passed and "'layer-0'" in verdict(steps(0.1, 0.0, -0.1)).text
    assert verdict(steps(0.9, 0.2, 0.1, 0.0)).passed
    late = verdict(steps(1.0, 1.0, 0.9, 0.2))
    assert not late.passed and "until 'layer-3'" in late.text
    never = verdict(steps(1.0, 0.9, 0.8))
    assert not never.passed and "0.80" in never.text
    assert not verdict(steps(None, None)).passed


# --------------------------------------------------------------------------- pictures and files


def test_the_overlay_is_bright_where_the_map_is() -> None:
    x = torch.full((3, 64, 64), 60, dtype=torch.uint8)
    values = np.zeros((4, 4))
    values[0, 3] = 2.0
    pair = np.asarray(overlay(x, values)).astype(int)
    assert pair.shape == (64, 128, 3)
    assert (pair[:, :64] == 60).all()
    assert pair[4, 124, 0] > 150 and (pair[60, 68] == 60).all()
    assert (np.asarray(overlay(x, np.zeros((4, 4)))) == 60).all()


def test_images_are_explained_for_their_most_probable_class_or_the_one_asked_for() -> None:
    model = released(LOWER["cnn"])
    images = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures(3, 96)]
    with torch.inference_mode():
        probability = model.probabilities(pictures(3, 96))
    found = explain_images(model, images)
    assert [one.label for one in found] == [CLASSES[int(i)] for i in probability.argmax(1)]
    assert [one.probability for one in found] == pytest.approx(probability.max(1).values.tolist(), abs=1e-4)
    assert {one.label for one in explain_images(model, images, "other")} == {"other"}
    with pytest.raises(FocalError, match="'melanoma' is no class that this run can explain"):
        explain_images(model, images, "melanoma")
    binary = released(LOWER["cnn"], task="binary")
    assert {one.label for one in explain_images(binary, images)} == {"severe"}
    with pytest.raises(FocalError, match="it has severe"):
        explain_images(binary, images, "mild")


def test_explaining_a_run_writes_private_files(tmp_path: Path) -> None:
    model = released(LOWER["cnn"])
    assert isinstance(model.lower, LowerSegment)
    run, images = tmp_path / "run", tmp_path / "images"
    upper.save(run / "model.pt", model.head, model.meta)
    images.mkdir()
    for i, p in enumerate(pictures(4, 96)):
        Image.fromarray(p.permute(1, 2, 0).numpy()).save(images / f"eye{i}.png")
    seen: list[tuple[int, int]] = []
    folder, steps = explain_run(run, images, limit=3, progress=lambda done, total: seen.append((done, total)))
    assert folder == run / FOLDER and seen == [(1, 3), (2, 3), (3, 3)]
    index = json.loads((folder / INDEX).read_text())
    assert [(e["file"], e["image"]) for e in index] == [(f"00{i}.png", f"eye{i}.png") for i in range(3)]
    assert [s["randomised"] for s in json.loads((folder / CHECK).read_text())] == [s.randomised for s in steps]
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in folder.iterdir()) and folder.stat().st_mode & 0o777 == 0o700
    with Image.open(folder / "000.png") as picture:
        assert picture.size == (192, 96)
    explain_run(run, images, limit=1, check=False)  # replaces the earlier pictures
    assert (
        sorted(p.name for p in folder.iterdir()) == ["000.png", INDEX, CHECK]
        and json.loads((folder / CHECK).read_text()) == []
    )


@pytest.mark.parametrize(
    ("kind", "trainable"), [("vit", "last"), ("vit", "lora"), ("cnn", "norm"), ("squeezenet", "adapter")]
)
def test_an_interactive_run_is_explained_by_its_fine_tuned_segment(kind: str, trainable: str, tmp_path: Path) -> None:
    """What is read from ``model.pt`` looks where the model in memory does,
    and not where its lower segment looked before."""
    before, size = released(LOWER[kind]), LOWER[kind].image_size
    tuned, x = fine_tuned(before, trainable), pictures(3, size)
    upper.save(tmp_path / "model.pt", tuned.head, tuned.meta)
    (tmp_path / "images").mkdir()
    for i, p in enumerate(x):
        Image.fromarray(p.permute(1, 2, 0).numpy()).save(tmp_path / "images" / f"eye{i}.png")
    read = ReleasedModel.load(tmp_path)
    assert torch.equal(read(x), tuned(x)) and not torch.allclose(read(x), before(x), atol=1e-3)
    np.testing.assert_array_equal(explain(read, x, [0, 1, 2]).values, explain(tuned, x, [0, 1, 2]).values)
    folder, _ = explain_run(tmp_path, tmp_path / "images", label="other", check=False)
    drawn = [np.asarray(Image.open(folder / f"00{i}.png")) for i in range(3)]
    for model, same in ((tuned, True), (before, False)):
        maps = [explain(model, image[None], [2]).values[0] for image in x]
        assert [
            np.array_equal(a, np.asarray(overlay(image, m))) for a, image, m in zip(drawn, x, maps, strict=True)
        ] == [same] * 3
