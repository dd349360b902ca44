"""Weights in every form in which they are published, what is refused, and the package that holds some."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from packaged_weights import LITE, lite
from torch import Tensor, nn

from focal.config import LowerConfig
from focal.errors import FocalError
from focal.segments.lower import build_lower, weights_sha256

VIT = LowerConfig(model="test_vit", image_size=160)  # timm's smallest, made for tests
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return dict(build_lower(VIT, "random:2")[0].backbone.half().float().state_dict())


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def sha256(state: State) -> str:
    backbone = timm.create_model("test_vit", num_classes=0, img_size=160)
    backbone.load_state_dict(state)
    return weights_sha256(backbone)


def test_files_in_every_usual_form_load_the_same_weights(state: State, tmp_path: Path) -> None:
    head = {"head.weight": torch.zeros(9, 64), "head.bias": torch.zeros(9)}  # a classifier that is not used
    decoder = {
        "decoder_embed.weight": torch.zeros(2),
        "decoder.blocks.0.weight": torch.zeros(2),
        "mask_token": torch.zeros(1),
    }
    forms: dict[str, Any] = {
        "plain": {**state, **head},
        "half": {name: tensor.half() for name, tensor in state.items()},
        "model": {"model": {**state, **head}},
        "masked autoencoder": {
            "model": {**state, **decoder}, "args": argparse.Namespace(lr=1), "epoch": 3,
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        },
        "data parallel": {"state_dict": prefixed({**state, **head}, "module.")},
        "with its head beside": {"state_dict": {**prefixed(state, "module.backbone."), **prefixed(head, "module.")}},
        "DINO": {"teacher": {**prefixed(state, "backbone."), "head.mlp.0.weight": torch.zeros(3)}, "epoch": 9},
        "Lightning": {
            "state_dict": {**prefixed(state, "model."), "loss.weight": torch.zeros(2)}, "hyper_parameters": {"lr": 1},
        },
        "CLIP": {**prefixed(state, "visual.trunk."), **prefixed({"embed.weight": torch.zeros(4)}, "text.")},
        "encoder": prefixed(state, "encoder."),
    }  # fmt: skip
    wanted = sha256(state)
    for name, content in forms.items():
        torch.save(content, tmp_path / f"{name}.pth")
        loaded, source = build_lower(VIT, str(tmp_path / f"{name}.pth"))
        assert loaded.spec.weights_sha256 == wanted, name
        assert f"{name}.pth" in str(source)
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "w.safetensors")
    assert build_lower(VIT, str(tmp_path / "w.safetensors"))[0].spec.weights_sha256 == wanted


def test_of_two_in_one_file_a_person_chooses(state: State, tmp_path: Path) -> None:
    other = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    file = tmp_path / "dino.pth"
    torch.save({"student": prefixed(other, "backbone."), "teacher": prefixed(state, "backbone.")}, file)
    with pytest.raises(FocalError, match="holds the lower segment 2 times .student.backbone, teacher.backbone.") as e:
        build_lower(VIT, str(file))
    assert "dino.pth#teacher.backbone" in e.value.hint
    assert build_lower(VIT, f"{file}#teacher.backbone")[0].spec.weights_sha256 == sha256(state)
    assert build_lower(VIT, f"{file}#student.backbone")[0].spec.weights_sha256 == sha256(other)
    with pytest.raises(FocalError, match="does not fit"):
        build_lower(VIT, f"{file}#teacher")


@pytest.mark.parametrize(
    ("model", "size", "other"),
    [("test_vit", 160, 192), ("swin_tiny_patch4_window7_224", 224, 256)],
    ids=["vit", "swin"],
)
def test_what_depends_on_the_image_size_follows_it(model: str, size: int, other: int, tmp_path: Path) -> None:
    """Position embeddings, and relative ones, by timm's own rules."""
    args: dict[str, Any] = (
        {} if model == "test_vit" else {"depths": (1, 1, 1, 1), "embed_dim": 12, "num_heads": (1, 1, 1, 1)}
    )
    published = timm.create_model(model, num_classes=0, img_size=size, **args)
    torch.save(published.state_dict(), tmp_path / "w.pth")
    config = LowerConfig(model=model, image_size=other, model_args=args)
    larger, _ = build_lower(config, str(tmp_path / "w.pth"))
    if model == "test_vit":
        assert larger.backbone.pos_embed.shape[1] == 12 * 12 + 1  # type: ignore[union-attr, index]
    kept = "blocks.0.mlp.fc1.weight" if model == "test_vit" else "layers.0.blocks.0.mlp.fc1.weight"
    assert torch.equal(larger.backbone.get_parameter(kept), published.get_parameter(kept))


def test_names_of_other_code_are_timms_to_translate(tmp_path: Path) -> None:
    """ConvNeXt as its authors published it."""
    published = timm.create_model("convnext_atto", num_classes=0, depths=(1, 1, 1, 1), dims=(4, 8, 12, 16))
    spelled = {"stem.": "downsample_layers.0.", ".blocks.": ".", ".conv_dw.": ".dwconv.", ".mlp.fc1.": ".pwconv1.",
               ".mlp.fc2.": ".pwconv2.", "head.norm.": "norm."}  # fmt: skip
    foreign = {}
    for name, tensor in published.state_dict().items():
        for ours, theirs in spelled.items():
            name = name.replace(ours, theirs)
        foreign[re.sub(r"stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)] = tensor
    torch.save({"model": foreign}, tmp_path / "w.pth")
    config = LowerConfig(
        model="convnext_atto", image_size=64, model_args={"depths": (1, 1, 1, 1), "dims": (4, 8, 12, 16)}
    )
    assert build_lower(config, str(tmp_path / "w.pth"))[0].spec.weights_sha256 == weights_sha256(published)


class Hostile:
    """Would write a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_weights_that_do_not_fit_are_named(state: State, tmp_path: Path) -> None:
    contents: dict[str, tuple[Any, str]] = {
        "short": (
            {k: v for k, v in state.items() if k != "blocks.0.attn.qkv.weight"},
            "1 missing (blocks.0.attn.qkv.weight), 0 unexpected",
        ),
        "nested": (
            {"model": {k: v for k, v in state.items() if k != "norm.bias"}},
            "1 missing (norm.bias), 0 unexpected below 'model'",
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
        "other": (timm.create_model("test_resnet", num_classes=0).state_dict(), "does not fit the lower segment"),
        "list": ([1, 2], "holds no state dict"),
        "whole": (nn.Linear(1, 1), "is not a weights file"),
        "hostile": ({"x": Hostile(tmp_path / "pwned")}, "is not a weights file"),
    }
    for name, (content, problem) in contents.items():
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(FocalError) as e:
            build_lower(VIT, str(tmp_path / f"{name}.pth"))
        assert problem in e.value.message and f"{name}.pth" in e.value.message
        assert len(e.value.message.splitlines()) == 1
    assert not (tmp_path / "pwned").exists(), "no code of a weights file is run"


def test_files_that_are_no_weights_are_named(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pth")
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "w.safetensors")
    whole, safe = (tmp_path / "w.pth").read_bytes(), (tmp_path / "w.safetensors").read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n"
    contents = {
        "noise.pth": (b"\x00" * 100, "is not a weights file"),
        "empty.pth": (b"", "is empty"),
        "lfs.pth": (pointer, "is a pointer of Git LFS"),
        "lfs.safetensors": (pointer, "is a pointer of Git LFS"),
        "half.pth": (whole[: len(whole) // 2], "is a part of a weights file only"),
        "half.safetensors": (safe[: len(safe) // 2], "is a part of a weights file only"),
    }
    for name, (content, problem) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FocalError, match=f"{name}: {problem}"):
            build_lower(VIT, str(tmp_path / name))
    (tmp_path / "folder").mkdir()
    for weights, problem in (
        (str(tmp_path / "gone.pth"), "no such weights file"),
        (str(tmp_path / "folder"), "has no weights file"),
        ("package:no-such-package-of-weights", "is not installed"),
        ("package:pytest", "has 0 weights files"),
    ):
        with pytest.raises(FocalError, match=problem):
            build_lower(VIT, weights)


def test_the_package_of_the_shipped_configurations_computes_what_it_was_published_for() -> None:
    """EfficientNet-Lite0 by the package's own names, written out here: stem and inverted residuals."""
    saved = torch.load(lite(), weights_only=True)

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1, groups: int = 1, act: bool = True) -> Tensor:
        kernel = saved[f"{conv}.weight"]
        total = max(kernel.shape[-1] - stride, 0) if x.shape[-1] % stride == 0 else kernel.shape[-1] - 1
        x = nn.functional.pad(x, [total // 2, total - total // 2] * 2)  # as TensorFlow pads
        x = nn.functional.conv2d(x, kernel, stride=stride, groups=groups)
        means, variances, weight, bias = (
            saved[f"{norm}.{what}"] for what in ("running_mean", "running_var", "weight", "bias")
        )
        x = nn.functional.batch_norm(x, means, variances, weight, bias, eps=1e-3)
        return x.clamp(0, 6) if act else x

    config = LowerConfig(model="tf_efficientnet_lite0", cut=("blocks.4", "blocks.5"), image_size=64)
    segment, source = build_lower(config, f"package:{LITE}")
    assert "installed package" in str(source)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = layer((pixels.float() - segment.mean) / segment.std, "_conv_stem", "_bn0", stride=2)
    strides = {1: 2, 3: 2, 5: 2, 11: 2}  # where a stage begins that halves the map
    ends = {}
    for i in range(16):
        before, here = x, f"_blocks.{i}"
        if f"{here}._expand_conv.weight" in saved:
            x = layer(x, f"{here}._expand_conv", f"{here}._bn0")
        x = layer(x, f"{here}._depthwise_conv", f"{here}._bn1", strides.get(i, 1), groups=x.shape[1])
        x = layer(x, f"{here}._project_conv", f"{here}._bn2", act=False)
        x = x + before if x.shape == before.shape else x
        ends[i] = x
    expected = torch.cat([ends[10].mean((2, 3)), ends[14].mean((2, 3))], 1)
    assert expected.abs().max() > 1
    torch.testing.assert_close(segment(pixels), expected, atol=1e-4, rtol=1e-4)
