"""The lower segment: cuts, pooling, weights from everywhere, the pinned hash, and what wrong weights are told."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from places import DATA

from focal import configs
from focal.config import LowerConfig, RunConfig
from focal.errors import FocalError
from focal.reading import read
from focal.segments import lower
from focal.segments.lower import (
    build_lower,
    check_test_features,
    embedded_test_image,
    lower_spec,
    preprocess,
    weights_sha256,
)

RESNET = LowerConfig(model="resnet10t", image_size=64)
VIT = LowerConfig(model="test_vit", image_size=160)  # timm's smallest, made for tests
TEST_IMAGE = "7a5c07284924ad093b13cf1a7a6609db0c8396c2a35782794319fad4fa347496"


def pixels(size: int, n: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def timm_features(model: str, x: torch.Tensor, seed: int, config: LowerConfig, **options: Any) -> torch.Tensor:
    """The same model, written out: normalise, forward, pooled."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        plain = timm.create_model(model, num_classes=0, **options).eval()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (config.mean, config.std))
    with torch.inference_mode():
        return plain((x.float() - mean) / std)


@pytest.mark.parametrize(("config", "options"), [(RESNET, {}), (VIT, {"img_size": 160})])
def test_pooled_is_what_timm_pools(config: LowerConfig, options: dict[str, Any]) -> None:
    segment, source = build_lower(config, "random:5")
    x = pixels(config.image_size)
    # Channels-last convolutions add in another order; 1e-5 is some 100 ulp of features of size 1.
    torch.testing.assert_close(segment(x), timm_features(config.model, x, 5, config, **options), atol=1e-5, rtol=1e-5)
    assert segment(x).shape == (2, segment.spec.dim) and segment(x).dtype == torch.float32
    assert "random" in str(source) and source.sha256 == segment.spec.weights_sha256
    assert not any(p.requires_grad for p in segment.parameters())
    assert not segment.train().training, "frozen means eval mode, always"


def test_a_named_cut_is_pooled_over_places_or_tokens() -> None:
    for config, cut, axes in ((RESNET, "layer2", (2, 3)), (VIT, "blocks.2", (1,))):
        segment, _ = build_lower(config.model_copy(update={"cut": cut}), "random:0")
        x = pixels(config.image_size)
        outputs: list[torch.Tensor] = []
        segment.backbone.get_submodule(cut).register_forward_hook(lambda _m, _i, o, outputs=outputs: outputs.append(o))
        features = segment(x)
        assert outputs[0].ndim == len(axes) + 2 and torch.equal(features, outputs[0].mean(axes))
        assert segment.spec.dim == features.shape[1]


def test_squeezenet_pools_the_mean_of_its_last_map() -> None:
    segment, _ = build_lower(LowerConfig(family="torchvision", model="squeezenet1_1", image_size=64), "random:0")
    x = pixels(64)
    maps = segment.backbone.features(
        ((x.float() - segment.mean) / segment.std).contiguous(memory_format=torch.channels_last)
    )  # type: ignore[operator]
    assert torch.equal(segment(x), maps.mean((2, 3))) and segment.spec.dim == 512


def test_gradients_reach_the_image_and_not_the_weights() -> None:
    segment, _ = build_lower(RESNET, "random:0")
    x = pixels(64).float().requires_grad_()
    segment(x).sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0
    assert all(p.grad is None for p in segment.parameters())


def test_random_weights_depend_on_their_seed_only() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, _ = build_lower(RESNET, "random:3")
    assert torch.equal(before, torch.random.get_rng_state()), "the caller's random state is left alone"
    torch.rand(5)
    assert build_lower(RESNET, "random:3")[0].spec == one.spec
    assert build_lower(RESNET, "random:4")[0].spec.weights_sha256 != one.spec.weights_sha256


def test_the_hash_covers_every_name_and_value() -> None:
    segment, _ = build_lower(RESNET, "random:0")
    first = weights_sha256(segment.backbone)
    running = segment.backbone.bn1.running_mean  # type: ignore[union-attr]
    running[0] += 1e-6  # type: ignore[index, operator]
    assert weights_sha256(segment.backbone) != first
    tiny = torch.nn.Linear(1, 1)
    with torch.no_grad():
        tiny.weight.fill_(1.0), tiny.bias.fill_(-2.0)
    text = b"focal/weights/v1\nbias float32 (1,)\n\x00\x00\x00\xc0\nweight float32 (1, 1)\n\x00\x00\x80\x3f"
    assert weights_sha256(tiny) == hashlib.sha256(text).hexdigest(), "the format is a promise between versions"


@pytest.mark.parametrize("form", ["plain", "half", "model", "state_dict", "module", "safetensors", "namespace"])
def test_files_in_every_usual_form_load_the_same_weights(tmp_path: Path, form: str) -> None:
    segment, _ = build_lower(VIT, "random:2")
    state: dict[str, Any] = dict(segment.backbone.half().float().state_dict())
    state["head.weight"], state["head.bias"] = torch.zeros(9, 64), torch.zeros(9)  # a classifier that is not used
    path = tmp_path / f"w.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        forms: dict[str, Any] = {
            "half": {k: v.half() for k, v in state.items()},
            "model": {"model": state},
            "state_dict": {"state_dict": state},
            "module": {f"module.{k}": v for k, v in state.items()},
            "namespace": {
                "model": {**state, "decoder_embed.weight": torch.zeros(2)},
                "args": argparse.Namespace(lr=1),
                "epoch": 3,
            },
        }
        torch.save(forms.get(form, state), path)
    loaded, source = build_lower(VIT, str(path))
    assert loaded.spec.weights_sha256 == weights_sha256(segment.backbone) and str(path) in str(source)


def test_position_embeddings_follow_the_image_size(tmp_path: Path) -> None:
    segment, _ = build_lower(VIT, "random:2")
    torch.save(segment.backbone.state_dict(), tmp_path / "w.pth")
    larger, _ = build_lower(VIT.model_copy(update={"image_size": 192}), str(tmp_path / "w.pth"))
    assert larger.backbone.pos_embed.shape[1] == 12 * 12 + 1  # type: ignore[union-attr, index]
    assert torch.equal(larger.backbone.blocks[0].mlp.fc1.weight, segment.backbone.blocks[0].mlp.fc1.weight)  # type: ignore[union-attr, index]


class Hostile:
    """Would write a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = build_lower(VIT, "random:2")[0].backbone.state_dict()
    files = {
        "short": (
            {k: v for k, v in state.items() if k != "blocks.0.attn.qkv.weight"},
            "1 missing (blocks.0.attn.qkv.weight), 0 unexpected",
        ),
        "extra": ({**state, "blocks.99.x": torch.zeros(1)}, "0 missing, 1 unexpected (blocks.99.x)"),
        "shape": (
            {**state, "norm.weight": torch.zeros(3)},
            "'norm.weight' has shape (3,), the lower segment needs (64,)",
        ),
        "nan": (
            {**state, "norm.weight": torch.full((64,), float("nan"))},
            "'norm.weight' holds numbers that are not finite",
        ),
        "list": ([1, 2], "is not a weights file"),
        "hostile": ({"x": Hostile(tmp_path / "pwned")}, "is not a weights file"),
    }
    for name, (content, problem) in files.items():
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(FocalError) as e:
            build_lower(VIT, str(tmp_path / f"{name}.pth"))
        assert problem in e.value.message and f"{name}.pth" in e.value.message
    assert not (tmp_path / "pwned").exists(), "no code of a weights file is run"
    (tmp_path / "noise.pth").write_bytes(b"\x00" * 100)
    for weights, problem in (
        (tmp_path / "noise.pth", "is not a weights file"),
        (tmp_path / "gone.pth", "no such weights file"),
    ):
        with pytest.raises(FocalError, match=problem):
            build_lower(VIT, str(weights))


@pytest.mark.parametrize(
    ("options", "weights", "problem", "way_out"),
    [
        ({"model": "resnet18s"}, "random:0", "timm has no model 'resnet18s'", "did you mean resnet18"),
        ({"model": "zzzzzz"}, "random:0", "timm has no model 'zzzzzz'", "list_models"),
        ({"cut": "layer9"}, "random:0", "no module 'layer9' to cut at", "layer1, "),
        ({"family": "torchvision"}, "random:0", "offers squeezenet1_1, not 'resnet10t'", "timm"),
        ({}, "random:x", "a seed must follow", "random:0"),
        ({"model": "test_vit", "image_size": 100}, "random:0", "cannot take images of 100 x 100", "image_size"),
        ({"model": "test_vit", "cut": "norm_pre"}, "random:0", "", ""),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], weights: str, problem: str, way_out: str) -> None:
    config = RESNET.model_copy(update={"image_size": 160, **options})
    if not problem:
        assert build_lower(config, weights)[0].spec.cut == "norm_pre"
        return
    with pytest.raises(FocalError) as e:
        build_lower(config, weights)
    assert problem in e.value.message and way_out in e.value.hint


def test_without_a_network_pretrained_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any
) -> None:
    monkeypatch.setattr(lower, "_reachable", lambda url: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FocalError, match="pretrained weights of 'resnet10t' cannot be had") as e:
        build_lower(RESNET, "pretrained")
    assert "random:0" in e.value.hint and len(e.value.message.splitlines()) == 1
    assert "Retrying" not in capfd.readouterr().err


def test_the_manifest_pins_the_weights() -> None:
    segment, _ = build_lower(RESNET, "random:0")
    assert lower_spec(segment, RESNET) == segment.spec
    assert build_lower(segment.spec, "random:0")[0].spec == segment.spec
    with pytest.raises(FocalError, match="not the lower segment of the manifest .weights_sha256 differ"):
        build_lower(segment.spec, "random:1")


def test_preprocessing_resizes_and_makes_grey_images_rgb() -> None:
    grey = Image.fromarray(np.arange(28 * 28, dtype=np.uint8).reshape(28, 28))
    x = preprocess(grey, RESNET)
    assert x.shape == (3, 64, 64) and x.dtype == torch.uint8 and torch.equal(x[0], x[2])
    colour = Image.fromarray(embedded_test_image())
    assert torch.equal(
        preprocess(colour, RESNET.model_copy(update={"image_size": 96})),
        torch.from_numpy(embedded_test_image()).permute(2, 0, 1),
    )


def test_the_embedded_image_and_the_feature_check() -> None:
    assert hashlib.sha256(embedded_test_image().tobytes()).hexdigest() == TEST_IMAGE, (
        "every version draws the same picture"
    )
    segment, _ = build_lower(RESNET, "random:0")
    mine = lower.test_image_features(segment)
    assert mine.shape == (segment.spec.dim,)
    check_test_features(mine, mine + np.float32(0.9e-3), "north")
    theirs = lower.test_image_features(build_lower(RESNET, "random:1")[0])
    for wrong, problem in (
        (theirs, "deviate by"),
        (mine + 1.1e-3, "deviate by 0.0011"),
        (mine[:-1], "511 features instead of 512"),
        (mine * np.nan, "nan"),
    ):
        with pytest.raises(FocalError, match=f"'north' do not agree: .*{problem}"):
            check_test_features(mine, wrong, "north")


@pytest.mark.parametrize("name", ["demo", "retina", "severity", "pathology", "xray"])
def test_the_shipped_configurations_are_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOCAL_DATA", str(DATA))
    config = read(RunConfig, configs.find(name))
    assert config.name == name
    if not config.lower.weights.startswith("random") and not Path(config.lower.weights).exists():
        pytest.skip(f"{config.lower.weights} is not there (FOCAL_DATA names the folder)")
    segment, _ = build_lower(config.lower, config.lower.weights)
    assert segment.spec.dim >= config.projection.features - 1, "whitening needs as many features as components"
