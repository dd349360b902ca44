"""From what a module of a model puts out to one vector per image, whatever its layout.

::

    (b, c, h, w) or (b, h, w, c)    maps      over the places h, w    c     mean            (b, c)
    (b, t, d)    or (b, d, t)       tokens    over the tokens t       d     mean+std        (b, 2 c)
    (b, d)                          vector    as it is                      class+mean      (b, 2 d)   of tokens only

**Which axis has the channels** is never taken for granted: timm's Swin, MambaOut and others have them last. It is known
from the module itself (a convolution has them first, a linear layer last), from what timm says of it
(``feature_info``, ``output_fmt``), and because the map of a square image is square. Where that leaves two answers, or
none, the cut is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from focal.errors import FocalError

FIRST, LAST = 1, -1
"""Axes of channels."""

_CHANNELS_FIRST = (nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, LayerNorm2d)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm)


def pooled(output: Any, how: str, backbone: nn.Module, name: str, images: int) -> Tensor:
    """(images, dim) float32 from the ``output`` of module ``name`` of ``backbone``; ``how``: ``SegmentOptions.pool``.

    Raises :class:`FocalError` for an output that is no map, token sequence or vector, or whose layout is not known.
    """
    if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4) or len(output) != images:
        _refuse(name, "its output is no vector, token sequence or feature map per image")
    axis = channel_axis(tuple(output.shape), backbone, name) if output.ndim > 2 else LAST
    if how == "class+mean":
        return _class_and_mean(output, axis, backbone, name).float()
    if output.ndim == 2:
        return output.float()
    places = tuple(a for a in range(1, output.ndim) if a != axis % output.ndim)
    mean = output.mean(places).float()
    if how == "mean":
        return mean
    # the clamp: a constant map has a standard deviation, but no derivative of it
    spread = output.float().var(places, unbiased=False).clamp_min(1e-12).sqrt()
    return torch.cat([mean, spread], dim=1)


def channel_axis(shape: tuple[int, ...], backbone: nn.Module, name: str) -> int:
    """:data:`FIRST` or :data:`LAST`, for an output of this shape. Raises :class:`FocalError` where it is not known."""
    module = backbone.get_submodule(name) if name else backbone
    if isinstance(module, _CHANNELS_FIRST):
        return FIRST
    if isinstance(module, _CHANNELS_LAST):
        return LAST
    told = _told(backbone, name)
    fits = {FIRST: told is None or shape[1] == told, LAST: told is None or shape[-1] == told}
    if len(shape) == 4:
        fits[FIRST] &= shape[2] == shape[3]
        fits[LAST] &= shape[1] == shape[2]
    elif told is None:
        widths, count = set(_widths(backbone)), _tokens(backbone)
        fits = {
            FIRST: shape[1] in widths and shape[2] == count or shape[1] in widths - {count} and shape[2] not in widths,
            LAST: shape[1] == count or shape[2] in widths and shape[1] not in widths,
        }
    if all(fits.values()) and told is not None:  # as many channels as places: what the model says of its maps
        return LAST if len(shape) == 3 or getattr(backbone, "output_fmt", "NCHW") == "NHWC" else FIRST
    if fits[FIRST] == fits[LAST]:
        _refuse(name, f"which axis of its output {shape} has the channels is not known")
    return FIRST if fits[FIRST] else LAST


def _told(backbone: nn.Module, name: str) -> int | None:
    """Channels of the module's output, where timm lists it among the model's features."""
    listed: Any = getattr(backbone, "feature_info", None) or ()
    return next((info["num_chs"] for info in listed if info.get("module") == name), None)


def _widths(backbone: nn.Module) -> Iterator[int]:
    """Channel counts that the model says it has."""
    for field in ("num_features", "embed_dim", "head_hidden_size"):
        value: Any = getattr(backbone, field, ())
        yield from (value,) if isinstance(value, int) else value
    listed: Any = getattr(backbone, "feature_info", None) or ()
    yield from (info["num_chs"] for info in listed)


def _tokens(backbone: nn.Module) -> int | None:
    """Tokens of a transformer with patches, class and register tokens included."""
    patches = getattr(getattr(backbone, "patch_embed", None), "num_patches", None)
    return None if patches is None else int(patches) + _prefix(backbone)


def _prefix(backbone: nn.Module) -> int:
    return int(getattr(backbone, "num_prefix_tokens", 0))


def _class_and_mean(output: Tensor, axis: int, backbone: nn.Module, name: str) -> Tensor:
    """Class token beside the mean of the patch tokens, register tokens in neither."""
    prefix = _prefix(backbone)
    if output.ndim != 3 or axis != LAST or getattr(backbone, "cls_token", None) is None or output.shape[1] <= prefix:
        _refuse(name, "'pool: class+mean' needs tokens, the first of them a class token")
    return torch.cat([output[:, 0], output[:, prefix:].mean(1)], dim=1)


def _refuse(name: str, why: str) -> NoReturn:
    raise FocalError(
        f"the lower segment cannot be cut at '{name or 'pooled'}': {why}",
        hint="choose another module as 'lower.cut', or 'pooled'",
    )
