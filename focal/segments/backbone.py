"""The headless foundation model by its name, and what it was published with: its own input size, mean, std, resampling.

::

    vit_small_patch16_224.augreg     timm, by name and tag         \\
    hf-hub:MahmoodLab/UNI            config.json from the hub       --> timm.create_model(num_classes=0, model_args)
    local-dir:/models/uni            config.json in a folder       /
    squeezenet1_1                    torchvision

A folder is not named in a manifest, for it lies elsewhere at every member: what stands in its ``config.json`` is
(:func:`without_folder`).

**The hub** is asked for what is not in its cache only, and once: its client would retry for most of a minute where
there is no network. ``HF_HUB_OFFLINE=1`` keeps it from asking at all.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import timm
import timm.data
import timm.layers
import torchvision
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled
from timm.models import split_model_name_tag
from torch import nn

from focal.config import LowerConfig
from focal.errors import FocalError
from focal.manifest import LowerSpec

T = TypeVar("T")

HUB, FOLDER = "hf-hub:", "local-dir:"
CONFIG = "config.json"
ASK_SECONDS = 5.0
"""How long the hub may take to say whether it has a file."""


def create(config: LowerConfig | LowerSpec, *, pretrained: bool) -> nn.Module:
    """The headless model with its initial or published weights. Raises :class:`FocalError` for a model that there is
    not, arguments that it does not take, an image size that it cannot have, and weights that cannot be had."""
    if config.family == "torchvision":
        return _squeezenet(config, pretrained)
    _check_name(config.model)
    if not pretrained and not config.model.startswith(HUB):
        return _build(config, False)
    try:
        return _from_hub(config.model, lambda: _build(config, pretrained))
    except FocalError:
        raise
    except Exception as e:  # each download library has its own network errors
        raise no_weights(config.model, first_line(e)) from None


def own_input(backbone: nn.Module, family: str) -> dict[str, Any]:
    """Image size, interpolation, mean and std (on the 0..255 scale) with which the model was published.

    How much of an image was cut off (timm's ``crop_pct``) is not followed: what is at its border may be a finding.
    """
    if family == "torchvision":
        own = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()
        size, interpolation, mean, std = own.crop_size[0], own.interpolation.value, own.mean, own.std
    else:
        told = timm.data.resolve_model_data_config(backbone)
        (_, height, width), interpolation, mean, std = (
            told[field] for field in ("input_size", "interpolation", "mean", "std")
        )
        if height != width or len(mean) != 3:
            raise FocalError(f"the model takes images of {width} x {height} pixels, not square ones in RGB")
        size = height
    scaled = (tuple(round(float(x) * 255, 6) for x in value) for value in (mean, std))
    return {"image_size": int(size), "interpolation": interpolation, **dict(zip(("mean", "std"), scaled, strict=True))}


def pooled_cut(family: str) -> str:
    """The module whose output is pooled where ``cut`` is ``pooled``; the empty name: the whole model."""
    return "features" if family == "torchvision" else ""


def without_folder(config: LowerConfig) -> LowerConfig:
    """``config`` with a ``local-dir:`` model said by what its folder's ``config.json`` says."""
    if not config.model.startswith(FOLDER):
        return config
    path = Path(config.model.removeprefix(FOLDER)) / CONFIG
    try:
        told = json.loads(path.read_text())
        architecture, args = str(told["architecture"]), dict(told.get("model_args") or {})
        own = dict(told.get("pretrained_cfg") or told)
    except (OSError, ValueError, KeyError, TypeError) as e:
        why = getattr(e, "strerror", None) or "not one that timm writes"
        raise FocalError(
            f"{path}: cannot be read ({why})", hint="'lower.model: local-dir:FOLDER' needs timm's config.json there"
        ) from None
    size = args.pop("img_size", None) or (own.get("input_size") or (None, None))[1]
    if isinstance(size, list) and len(set(size)) == 1:
        size = size[0]
    for field in ("num_classes", "in_chans"):
        args.pop(field, None)
    found: dict[str, Any] = {"image_size": size, "interpolation": own.get("interpolation")}
    for field in ("mean", "std"):
        found[field] = tuple(round(x * 255, 6) for x in own[field]) if own.get(field) else None
    said = {field: value for field, value in found.items() if getattr(config, field) is None and value is not None}
    fields = config.model_dump() | said | {"model": architecture, "model_args": {**args, **config.model_args}}
    return LowerConfig.model_validate(fields)


def no_weights(model: str, why: str, hint: str = "") -> FocalError:
    return FocalError(
        f"pretrained weights of '{model}' cannot be had ({why})",
        hint=hint or "is there a network? otherwise set 'lower.weights' to a file with them, or to random:0",
    )


def first_line(error: Exception) -> str:
    """The first sentence: libraries add advice that is not for our users."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0][:160]


# --------------------------------------------------------------------------- building


def _build(config: LowerConfig | LowerSpec, pretrained: bool) -> nn.Module:
    args = {name: _argument(name, value) for name, value in config.model_args.items()}
    args |= {"num_classes": 0, "pretrained": pretrained}
    size: dict[str, Any] = {} if config.image_size is None else {"img_size": config.image_size}
    try:
        try:
            return timm.create_model(config.model, **size, **args)
        except TypeError as e:  # convolutional models take any size and have no such option
            if not size or "img_size" not in str(e):
                raise
            return timm.create_model(config.model, **args)
    except TypeError as e:
        if not config.model_args:
            raise
        raise FocalError(
            f"timm's model '{config.model}' does not take 'lower.model_args' ({first_line(e)})",
            hint="they are the arguments of timm.create_model",
        ) from None
    except AssertionError as e:
        if config.image_size is None:
            raise
        raise FocalError(
            f"lower segment '{config.model}' cannot take images of {config.image_size} x {config.image_size} pixels"
            + (f" ({first_line(e)})" if str(e) else ""),
            hint="'lower.image_size' must be a multiple of the model's patch size",
        ) from None


def _argument(name: str, value: Any) -> Any:
    """A layer by its name (``mlp_layer: SwiGLUPacked``); timm knows those of activations and norms itself."""
    if name != "mlp_layer":
        return value
    layer = getattr(timm.layers, str(value), None)
    if not callable(layer):
        raise FocalError(
            f"timm has no layer '{value}' ('lower.model_args', mlp_layer)", hint="one of timm.layers: SwiGLUPacked, ..."
        )
    return layer


def _check_name(model: str) -> None:
    """Raise where timm has no such model, or no such weights of it."""
    if model.startswith((HUB, FOLDER)):
        return
    architecture, tag = split_model_name_tag(model)
    tags = [split_model_name_tag(name)[1] for name in timm.list_models(f"{architecture}.*", include_tags=True)]
    if timm.is_model(architecture) and (not tag or tag in tags):
        return
    known = [f"{architecture}.{t}" for t in tags] if timm.is_model(architecture) else timm.list_models()
    close = difflib.get_close_matches(model, known, n=4) or (known[:4] if timm.is_model(architecture) else [])
    raise FocalError(
        f"timm has no model '{model}'",
        hint=f"did you mean {', '.join(close)}?"
        if close
        else "python -c 'import timm; print(timm.list_models())' lists them",
    )


def _squeezenet(config: LowerConfig | LowerSpec, pretrained: bool) -> nn.Module:
    if config.model != "squeezenet1_1" or config.model_args:
        what = f"not '{config.model}'" if config.model != "squeezenet1_1" else "without 'model_args'"
        raise FocalError(
            f"family 'torchvision' offers squeezenet1_1, {what}", hint="most models are in timm: family: timm"
        )
    published = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    try:
        backbone = torchvision.models.squeezenet1_1(weights=published if pretrained else None)
    except Exception as e:  # as above
        raise no_weights(config.model, first_line(e)) from None
    backbone.classifier = nn.Identity()
    return backbone


# --------------------------------------------------------------------------- the hub


def _from_hub(model: str, make: Callable[[], T]) -> T:
    """What ``make`` makes of the hub's cache; where a file is not there, of the hub, if it answers."""
    asked = constants.HF_HUB_OFFLINE
    try:
        with _offline():
            return make()
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        if asked:
            raise no_weights(model, "HF_HUB_OFFLINE is set, and the hub's cache does not have them") from None
    _ask_hub(model)
    return make()


def _ask_hub(model: str) -> None:
    """Raise where the hub does not give the model's files, by its client's own words and settings."""
    repository = model.removeprefix(HUB)
    if not model.startswith(HUB):
        repository = (timm.models.get_pretrained_cfg_value(model, "hf_hub_id") or "").removesuffix("/")
        if not repository:
            return  # its weights lie at an address of their own
    name, _, revision = repository.partition("@")
    try:
        get_hf_file_metadata(hf_hub_url(name, CONFIG, revision=revision or None), timeout=ASK_SECONDS)
    except GatedRepoError:
        raise no_weights(model, "the hub gives them to those only who accepted its terms", "hf auth login") from None
    except EntryNotFoundError:
        return  # older ones have weights without a configuration
    except Exception as e:  # no network, a proxy, a name that there is not
        raise no_weights(model, first_line(e)) from None


@contextmanager
def _offline() -> Iterator[None]:
    before = constants.HF_HUB_OFFLINE
    try:
        constants.HF_HUB_OFFLINE = True
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
