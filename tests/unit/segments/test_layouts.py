"""One vector per image from every layout: as timm pools it, over the families that people use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from focal.config import LowerConfig
from focal.errors import FocalError
from focal.segments.lower import LowerSegment, build_lower
from focal.segments.pooling import FIRST, LAST, channel_axis, pooled

NCHW, NHWC, NLC = (2, 3), (1, 2), (1,)
SMALL = {"depths": (1, 1, 1, 1)}
SHORT = {"block_config": (1, 1, 1, 1)}
MEAN = {"global_pool": "avg", "fc_norm": False}
NARROW = {"depth": 1, "embed_dim": 48, "num_heads": 2}
FAMILIES: dict[str, tuple[LowerConfig, str, tuple[int, ...]]] = {
    # model, the module that forward_features ends with, axes of its places
    "resnet": (LowerConfig(model="resnet10t", image_size=64), "layer4", NCHW),
    "convnext": (LowerConfig(model="convnext_atto", image_size=64, model_args=SMALL), "stages.3", NCHW),
    "swin": (LowerConfig(model="swin_tiny_patch4_window7_224", image_size=64, model_args=SMALL), "norm", NHWC),
    "swinv2": (LowerConfig(model="swinv2_tiny_window8_256", image_size=64, model_args=SMALL), "norm", NHWC),
    "mambaout": (LowerConfig(model="test_mambaout", image_size=64), "stages.3", NHWC),
    "vit": (LowerConfig(model="test_vit", image_size=64), "norm", NLC),
    "vit, mean": (LowerConfig(model="test_vit", image_size=64, model_args=MEAN), "norm", NLC),
    "deit": (LowerConfig(model="deit_tiny_distilled_patch16_224", image_size=32), "norm", NLC),
    "dinov2": (LowerConfig(model="vit_small_patch14_reg4_dinov2", image_size=28, model_args={"depth": 2}), "norm", NLC),
    "eva02": (LowerConfig(model="eva02_tiny_patch14_224", image_size=28, model_args={"depth": 2}), "norm", NLC),
    "siglip": (LowerConfig(model="vit_base_patch16_siglip_224", image_size=32, model_args=NARROW), "norm", NLC),
    "efficientnet": (LowerConfig(model="test_efficientnet", image_size=64), "bn2", NCHW),
    "efficientnet lite": (LowerConfig(model="tf_efficientnet_lite0", image_size=64), "bn2", NCHW),
    "mobilenetv3": (LowerConfig(model="mobilenetv3_small_050", image_size=64), "blocks", NCHW),
    "densenet": (LowerConfig(model="densenet121", image_size=64, model_args=SHORT), "features", NCHW),
    "maxvit": (LowerConfig(model="maxvit_rmlp_pico_rw_256", image_size=64), "stages.3", NCHW),
    "coatnet": (LowerConfig(model="coatnet_nano_rw_224", image_size=64, model_args=SMALL), "stages.3", NCHW),
}  # fmt: skip


def segment(config: LowerConfig, **changes: Any) -> LowerSegment:
    return build_lower(config.model_copy(update=changes), "random:0")[0]


def forward_features(lower: LowerSegment, x: Tensor) -> Tensor:
    backbone: Any = lower.backbone
    with torch.inference_mode():
        return backbone.forward_features((x.float() - lower.mean) / lower.std)


@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_and_cut_by_name_are_what_timm_makes(family: str) -> None:
    config, last, places = FAMILIES[family]
    own = segment(config)
    size = own.spec.image_size
    x = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    backbone: Any = own.backbone
    features = forward_features(own, x)
    with torch.inference_mode():
        torch.testing.assert_close(own(x), backbone.forward_head(features, pre_logits=True), atol=1e-4, rtol=1e-4)
    cut = segment(config, cut=last)
    by_name = cut(x)
    assert by_name.shape == (2, cut.spec.dim) and cut.spec.dim == backbone.num_features
    if features.shape[1 if places == NCHW else -1] == cut.spec.dim:  # some have an activation or norm after it
        torch.testing.assert_close(by_name, _seen(cut, last, x).mean(places), atol=1e-4, rtol=1e-4)
        if family not in ("coatnet", "maxvit", "densenet"):
            torch.testing.assert_close(by_name, features.mean(places), atol=1e-4, rtol=1e-4)
    both = segment(config, cut=last, pool="mean+std")(x)
    spread = _seen(cut, last, x).float().flatten(1, -2) if places != NCHW else _seen(cut, last, x).flatten(2).mT
    torch.testing.assert_close(both[:, : cut.spec.dim], by_name, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both[:, cut.spec.dim :], spread.std(1, correction=0), atol=1e-4, rtol=1e-3)


def _seen(lower: LowerSegment, name: str, x: Tensor) -> Tensor:
    outputs: list[Tensor] = []
    hook = lower.backbone.get_submodule(name).register_forward_hook(lambda _m, _i, output: outputs.append(output))
    lower(x)
    hook.remove()
    return outputs[0]


def test_every_stage_of_swin_has_its_channels() -> None:
    """Their maps are (b, h, w, c): averages over width and channels gave 56 and 7 features."""
    config = FAMILIES["swin"][0]
    for stage, channels in enumerate((96, 192, 384, 768)):
        assert segment(config, cut=f"layers.{stage}").spec.dim == channels
        assert segment(config, cut=f"layers.{stage}.blocks.0").spec.dim == channels
        assert segment(config, cut=f"layers.{stage}.blocks.0.mlp.fc1").spec.dim == 4 * channels
    with pytest.raises(FocalError, match="no vector, token sequence or feature map per image"):
        segment(config, cut="layers.0.blocks.0.attn")  # of windows, not of images


def test_inner_layers_of_a_convolutional_network_may_have_another_layout_than_its_maps() -> None:
    config = FAMILIES["convnext"][0]
    block = "stages.1.blocks.0"
    width = segment(config, cut=block).spec.dim
    assert segment(config, cut=f"{block}.norm").spec.dim == width  # a LayerNorm over the last axis
    assert segment(config, cut=f"{block}.conv_dw").spec.dim == width


class Model(nn.Module):
    """One module named ``cut``, and what timm would say of it."""

    def __init__(self, module: nn.Module | None = None, **said: Any) -> None:
        super().__init__()
        self.cut = module or nn.Identity()
        for name, value in said.items():
            setattr(self, name, value)


def test_the_axis_of_channels_is_known_or_refused() -> None:
    listed = [{"module": "cut", "num_chs": 8}]
    for shape, model, axis in (
        ((2, 5, 8, 8), Model(), FIRST),
        ((2, 8, 8, 5), Model(), LAST),
        ((2, 8, 8, 8), Model(feature_info=listed), FIRST),
        ((2, 8, 8, 8), Model(feature_info=listed, output_fmt="NHWC"), LAST),
        ((2, 8, 8, 8), Model(nn.Conv2d(3, 8, 1)), FIRST),
        ((2, 8, 8, 8), Model(nn.Linear(3, 8)), LAST),
        ((2, 10, 8), Model(feature_info=listed), LAST),
        ((2, 8, 10), Model(feature_info=listed), FIRST),
        ((2, 10, 8), Model(num_features=8), LAST),
    ):
        assert channel_axis(shape, model, "cut") == axis, shape
    for shape, model in (
        ((2, 8, 8, 8), Model()),
        ((2, 3, 4, 5), Model()),
        ((2, 5, 8, 8), Model(feature_info=listed)),
        ((2, 10, 8), Model()),
        ((2, 8, 8), Model(num_features=8)),
    ):
        with pytest.raises(FocalError, match="cannot be cut at 'cut': which axis"):
            channel_axis(shape, model, "cut")


def test_what_is_no_feature_of_an_image_is_refused() -> None:
    for output in (torch.zeros(4, 8), torch.zeros(2), [torch.zeros(2, 8)], None):
        with pytest.raises(FocalError, match="no vector, token sequence or feature map per image"):
            pooled(output, "mean", Model(), "cut", images=2)
    flat = torch.ones(1, 3, 4, 4, requires_grad=True)
    pooled(flat, "mean+std", Model(), "cut", images=1).sum().backward()
    assert flat.grad is not None and flat.grad.isfinite().all(), "a constant map has no derivative of its deviation"
