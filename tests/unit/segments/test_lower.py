"""The lower segment: models by every name, cuts, the pinned hash, preprocessing. Weights: test_weights.py; layouts:
test_layouts.py."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import timm.data
import torch
from packaged_weights import LITE, lite
from PIL import Image
from places import DATA
from timm.models._hub import save_for_hf

from focal import configs
from focal.config import LowerConfig, RunConfig, weights_file
from focal.errors import FocalError
from focal.manifest import LowerSpec
from focal.reading import read
from focal.segments import backbone, lower
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


def timm_features(model: str, x: torch.Tensor, seed: int, **options: Any) -> torch.Tensor:
    """The same model, written out: normalise as it was published, forward, pooled."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        plain = timm.create_model(model, num_classes=0, **options).eval()
    own = timm.data.resolve_model_data_config(plain)
    mean, std = (255 * torch.tensor(own[field]).view(1, 3, 1, 1) for field in ("mean", "std"))
    with torch.inference_mode():
        return plain((x.float() - mean) / std)


@pytest.mark.parametrize(("config", "options"), [(RESNET, {}), (VIT, {"img_size": 160})])
def test_pooled_is_what_timm_pools(config: LowerConfig, options: dict[str, Any]) -> None:
    segment, source = build_lower(config, "random:5")
    x = pixels(segment.spec.image_size)
    # Channels-last convolutions add in another order; 1e-5 is some 100 ulp of features of size 1.
    torch.testing.assert_close(segment(x), timm_features(config.model, x, 5, **options), atol=1e-5, rtol=1e-5)
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


@pytest.mark.parametrize(
    ("options", "weights", "problem", "way_out"),
    [
        ({"model": "resnet18s"}, "random:0", "timm has no model 'resnet18s'", "did you mean resnet18"),
        ({"model": "zzzzzz"}, "random:0", "timm has no model 'zzzzzz'", "list_models"),
        ({"model": "resnet18.a1_in1"}, "random:0", "timm has no model 'resnet18.a1_in1'", "resnet18.a1_in1k"),
        ({"model_args": {"nothing": 1}}, "random:0", "does not take 'lower.model_args'", "create_model"),
        ({"model_args": {"mlp_layer": "Nothing"}}, "random:0", "no layer 'Nothing'", "SwiGLUPacked"),
        ({"cut": ("layer1", "layer9")}, "random:0", "no module 'layer9' to cut at", "layer1, "),
        ({"cut": "layer4", "pool": "class+mean"}, "random:0", "'layer4': 'pool: class+mean' needs tokens", "lower.cut"),
        ({"cut": "layer9"}, "random:0", "no module 'layer9' to cut at", "layer1, "),
        ({"family": "torchvision"}, "random:0", "offers squeezenet1_1, not 'resnet10t'", "timm"),
        ({}, "random:x", "a seed must follow", "random:0"),
        ({}, "random:12345678901234567890", "a seed must follow, a number below 2^63", "random:0"),
        (
            {"model": "local-dir:/nowhere"},
            "random:0",
            "/nowhere/config.json: cannot be read (No such file",
            "config.json",
        ),
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


def test_the_models_own_input_is_the_default_and_all_of_it_is_pinned() -> None:
    vit, _ = build_lower(LowerConfig(model="vit_tiny_patch16_224", image_size=32), "random:0")
    assert (vit.spec.mean, vit.spec.std, vit.spec.interpolation) == ((127.5,) * 3, (127.5,) * 3, "bicubic")
    assert "image_size: as configured, else as the model was published" in lower.input_text(
        LowerConfig(image_size=32), vit.spec
    )
    own, _ = build_lower(LowerConfig(model="test_vit"), "random:0")
    assert own.spec.image_size == 160 and own.spec.mean == (127.5,) * 3
    cnn, _ = build_lower(RESNET, "random:0")
    assert cnn.spec.mean == (123.675, 116.28, 103.53) and cnn.spec.std == (58.395, 57.12, 57.375)
    squeezenet, _ = build_lower(LowerConfig(family="torchvision", model="squeezenet1_1"), "random:0")
    assert squeezenet.spec.image_size == 224 and squeezenet.spec.interpolation == "bilinear"
    assert squeezenet.spec.mean == (123.675, 116.28, 103.53)
    chosen, _ = build_lower(RESNET.model_copy(update={"mean": (1.0, 2.0, 3.0)}), "random:0")
    assert chosen.spec.mean == (1.0, 2.0, 3.0) and chosen.spec.std == cnn.spec.std


def test_options_that_are_not_used_are_not_said() -> None:
    """A manifest's bytes, and the name of a cache, are those of before there were any."""
    plain, _ = build_lower(RESNET, "random:0")
    assert set(plain.spec.said()) == {
        "family", "model", "cut", "image_size", "interpolation", "mean", "std", "weights_sha256", "dim"
    }  # fmt: skip
    used, _ = build_lower(RESNET.model_copy(update={"flip": True, "cut": ("layer1", "layer2")}), "random:0")
    assert used.spec.said()["flip"] is True and used.spec.said()["cut"] == ["layer1", "layer2"]
    assert LowerSpec.model_validate_json(used.spec.model_dump_json()) == used.spec


def test_several_cuts_are_concatenated_and_a_mirror_image_is_averaged() -> None:
    def features(x: torch.Tensor, **options: Any) -> torch.Tensor:
        return build_lower(RESNET.model_copy(update=options), "random:0")[0](x)

    x = pixels(64)
    parts = [features(x, cut="layer2"), features(x, cut="pooled"), features(x, cut="layer1")]
    assert torch.equal(features(x, cut=("layer2", "pooled", "layer1")), torch.cat(parts, 1))
    both = features(x, cut=("layer1", "layer2"), flip=True)
    turned = [features(x.flip(3), cut=cut) for cut in ("layer1", "layer2")]
    torch.testing.assert_close(both, (torch.cat([parts[2], parts[0]], 1) + torch.cat(turned, 1)) / 2)
    torch.testing.assert_close(both, features(x.flip(3), cut=("layer1", "layer2"), flip=True))


def test_model_args_build_what_was_published_with_them(tmp_path: Path) -> None:
    """RETFound pools patch tokens behind fc_norm; Virchow concatenates the class token and their mean."""
    config = VIT.model_copy(update={"model_args": {"global_pool": "avg", "init_values": 1e-5}})
    published = timm.create_model("test_vit", num_classes=5, img_size=160, global_pool="avg", init_values=1e-5)
    torch.save({"model": published.state_dict()}, tmp_path / "fc_norm.pth")
    segment, _ = build_lower(config, str(tmp_path / "fc_norm.pth"))
    x = pixels(160)
    with torch.inference_mode():
        tokens = published.eval().forward_features((x.float() - segment.mean) / segment.std)
        expected = published.forward_head(tokens, pre_logits=True)
    torch.testing.assert_close(segment(x), expected, atol=1e-5, rtol=1e-5)
    assert build_lower(segment.spec, str(tmp_path / "fc_norm.pth"))[0].spec == segment.spec
    with pytest.raises(FocalError, match="does not fit .* missing .norm.weight, norm.bias.") as e:
        build_lower(VIT, str(tmp_path / "fc_norm.pth"))
    assert "global_pool" in e.value.hint
    virchow, _ = build_lower(
        LowerConfig(
            model="vit_tiny_patch16_224",
            image_size=32,
            cut="norm",
            pool="class+mean",
            model_args={"mlp_layer": "SwiGLUPacked", "reg_tokens": 2, "act_layer": "silu"},
        ),
        "random:0",
    )
    x = pixels(32)
    with torch.inference_mode():
        tokens = virchow.backbone.forward_features((x.float() - virchow.mean) / virchow.std)  # type: ignore[operator]
    assert tokens.shape == (2, 1 + 2 + 4, 192) and virchow.spec.dim == 384
    torch.testing.assert_close(virchow(x), torch.cat([tokens[:, 0], tokens[:, 3:].mean(1)], 1), atol=1e-5, rtol=1e-5)


def test_a_folder_of_timms_is_pinned_by_what_it_says(tmp_path: Path) -> None:
    published = timm.create_model("test_vit", num_classes=0, init_values=0.1)
    save_for_hf(published, tmp_path / "here", model_args={"init_values": 0.1})  # what push_to_hf_hub uploads
    segment, source = build_lower(LowerConfig(model=f"local-dir:{tmp_path / 'here'}"), "pretrained")
    assert segment.spec.model == "test_vit" and segment.spec.model_args["init_values"] == 0.1
    assert segment.spec.image_size == 160 and str(tmp_path / "here") in source.text
    assert weights_sha256(published) == segment.spec.weights_sha256
    (tmp_path / "here").rename(tmp_path / "elsewhere")  # at another member it lies in another place
    assert build_lower(segment.spec, str(tmp_path / "elsewhere"))[0].spec == segment.spec


def test_without_a_network_pretrained_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any
) -> None:
    """The hub's client asks once, about the file that is wanted, and never when the cache has it, or it may not."""
    asked: list[str] = []

    def unreachable(url: str, **_: Any) -> None:
        asked.append(url)
        raise OSError("Name or service not known")

    monkeypatch.setattr(backbone, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for model in ("resnet10t", "hf-hub:nobody/nothing"):
        with pytest.raises(FocalError, match=f"pretrained weights of '{model}' cannot be had .Name or service") as e:
            build_lower(RESNET.model_copy(update={"model": model}), "pretrained")
        assert "random:0" in e.value.hint and len(e.value.message.splitlines()) == 1
    assert len(asked) == 2 and "timm/resnet10t.c3_in1k" in asked[0] and "nobody/nothing" in asked[1]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FocalError, match="HF_HUB_OFFLINE is set"):
        build_lower(RESNET, "pretrained")
    assert len(asked) == 2 and "Retrying" not in capfd.readouterr().err


def test_the_manifest_pins_the_weights() -> None:
    segment, _ = build_lower(RESNET, "random:0")
    assert lower_spec(segment) == segment.spec
    assert build_lower(segment.spec, "random:0")[0].spec == segment.spec
    with pytest.raises(FocalError, match="not the lower segment of the manifest .weights_sha256 differ"):
        build_lower(segment.spec, "random:1")


def spec(**changes: Any) -> LowerSpec:
    return build_lower(RESNET, "random:0")[0].spec.model_copy(update=changes)


def test_preprocessing_resizes_and_makes_grey_images_rgb() -> None:
    grey = Image.fromarray(np.arange(28 * 28, dtype=np.uint8).reshape(28, 28))
    x = preprocess(grey, spec())
    assert x.shape == (3, 64, 64) and x.dtype == torch.uint8 and torch.equal(x[0], x[2])
    colour = Image.fromarray(embedded_test_image())
    assert torch.equal(
        preprocess(colour, spec(image_size=96)), torch.from_numpy(embedded_test_image()).permute(2, 0, 1)
    )


def test_an_image_becomes_square_as_it_is_asked() -> None:
    """A white square, 40 x 40, in the middle of 120 x 40 grey pixels."""
    wide = np.full((40, 120), 100, np.uint8)
    wide[:, 40:80] = 255
    found = {
        fit: preprocess(Image.fromarray(wide), spec(image_size=48, fit=fit))[0] for fit in ("squash", "crop", "pad")
    }
    assert found["squash"][24, :14].eq(100).all() and found["squash"][:, 20:28].eq(255).all()
    assert found["crop"][:, 1:-1].eq(255).all(), "the middle only"
    assert found["pad"][:15].eq(0).all() and found["pad"][24, 20:28].eq(255).all() and found["pad"][24, 2].eq(100)


def test_black_borders_are_cut_off() -> None:
    fundus = np.random.default_rng(0).integers(0, 12, (60, 100, 3), dtype=np.uint8)  # not quite black, as in a JPEG
    fundus[10:50, 30:70] = 200
    x = preprocess(Image.fromarray(fundus), spec(image_size=40, trim="black"))
    assert x.eq(200).all()
    dark = Image.fromarray(np.zeros((60, 100, 3), np.uint8))
    assert preprocess(dark, spec(trim="black")).eq(0).all(), "an image that is all black stays whole"


def test_the_embedded_image_and_the_feature_check() -> None:
    assert hashlib.sha256(embedded_test_image().tobytes()).hexdigest() == TEST_IMAGE, (
        "every version draws the same picture"
    )
    segment, _ = build_lower(RESNET, "random:0")
    mine = lower.features_of_test_image(segment)
    assert mine.shape == (segment.spec.dim,)
    check_test_features(mine, mine + np.float32(0.9e-3), "north")
    theirs = lower.features_of_test_image(build_lower(RESNET, "random:1")[0])
    for wrong, problem in (
        (theirs, "deviate by"),
        (mine + 1.1e-3, "deviate by 0.0011"),
        (mine[:-1], "511 features instead of 512"),
        (mine * np.nan, "nan"),
    ):
        with pytest.raises(FocalError, match=f"'north' do not agree: .*{problem}"):
            check_test_features(mine, wrong, "north")


@pytest.mark.parametrize("name", configs.names())
def test_the_shipped_configurations_are_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOCAL_DATA", str(DATA))
    config = read(RunConfig, configs.find(name))
    assert config.name == name
    file = weights_file(config.lower.weights)
    if file is not None and not file.exists():
        pytest.skip(f"{file} is not there (FOCAL_DATA names the folder)")
    if config.lower.weights == f"package:{LITE}":
        lite()
    segment, _ = build_lower(config.lower, config.lower.weights)
    columns = getattr(config, "interactive", config.projection).features
    assert segment.spec.dim >= columns - 1, "whitening needs as many features as components"
