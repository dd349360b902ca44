"""The frozen lower segment: a foundation model up to its cut, as one function from images to feature vectors.

::

    image (any size) --preprocess--> uint8 (3, s, s) --(x - mean) / std--> backbone ... cut module --pool--> (dim,)
                     trim, fit                          and mirrored: flip    |   several cuts: concatenated  float32
                                                      everything after the last cut is computed for nothing

``pooled`` is what the model itself pools (timm: its pooled features; squeezenet1_1: the mean over its last map); any
other cut is a module of the model by name, whose output is pooled here (:mod:`focal.segments.pooling`). Which model:
:mod:`focal.segments.backbone`; weights from files: :mod:`focal.segments.weights`.

The members of a consortium must compute the same features, so weights are identified by the SHA-256 of names
and tensors (:func:`weights_sha256`), and each member publishes the features of one image drawn by integer
arithmetic (:func:`embedded_test_image`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from focal.config import LowerConfig, SegmentOptions, weights_file
from focal.errors import FocalError
from focal.manifest import LowerSpec
from focal.segments import weights as files
from focal.segments.backbone import FOLDER, create, first_line, own_input, pooled_cut, without_folder
from focal.segments.pooling import pooled

FEATURE_TOLERANCE = 1e-3
"""Largest deviation of a test-image feature between two members: other processors round differently,
other weights differ far more."""

RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
BLACK = 16
"""Of 255: what is darker is border, where ``trim: black`` cuts it off. The noise of a JPEG around a fundus is."""
SEEDS = 1 << 63
"""torch takes smaller ones."""


@dataclass(frozen=True)
class WeightsSource:
    """Where the weights came from, to be printed and recorded."""

    text: str
    """What the configuration says: ``pretrained``, ``random:SEED``, ``package:NAME`` or the file's path."""
    sha256: str
    """Of the weights as loaded."""

    def __str__(self) -> str:
        kind = {"pretrained": "published pretrained weights", "random": "random weights, not trained on anything"}
        kind["package"] = "weights of an installed package"
        return f"{kind.get(self.text.split(':')[0], 'weights from file')} ({self.text}, sha256 {self.sha256[:16]})"


class LowerSegment(nn.Module):
    """Frozen, always in eval mode: ``forward`` maps (b, 3, s, s), uint8 or float on the 0..255 scale,
    to (b, dim) float32.

    ``spec`` is what the manifest pins. Gradients flow to a float input (for explanations), never to the weights.
    """

    mean: Tensor
    std: Tensor
    spec: LowerSpec

    def __init__(self, backbone: nn.Module, spec: LowerSpec) -> None:
        """``spec`` with any ``dim``: which one it is is found out here."""
        super().__init__()
        # channels last: one to three times faster on CPUs, the same weights
        self.backbone = backbone.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        names = [pooled_cut(spec.family) if cut == "pooled" else cut for cut in spec.cuts]
        self._cuts = [(name, _submodule(backbone, name)) for name in names]
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)
        self.spec = spec
        self.spec = lower_spec(self)

    @property
    def cut_modules(self) -> list[nn.Module]:
        """The modules whose outputs are pooled, in the order of the cuts; the whole backbone where it pools itself."""
        return [module for _, module in self._cuts]

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, s, s) on the 0..255 scale -> (b, dim) float32; with ``flip`` the mean of both ways round."""
        x = x.float()
        features = self._one_way(x)
        return (features + self._one_way(x.flip(3))) / 2 if self.spec.flip else features

    def _one_way(self, x: Tensor) -> Tensor:
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        seen: dict[int, Any] = {}
        hooks = [
            module.register_forward_hook(lambda _module, _inputs, output, i=i: seen.update({i: output}))
            for i, (_, module) in enumerate(self._cuts)
        ]
        try:
            self.backbone(x)
        finally:
            for hook in hooks:
                hook.remove()
        parts = []
        for i, (name, _) in enumerate(self._cuts):
            how = self.spec.pool if self.spec.cuts[i] != "pooled" else "mean"
            parts.append(pooled(seen.get(i), how, self.backbone, name, len(x)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def train(self, mode: bool = True) -> LowerSegment:
        """Stays in eval mode: batch statistics and dropout would make features depend
        on the other images of a batch."""
        return super().train(False)


def _submodule(backbone: nn.Module, name: str) -> nn.Module:
    names = {n for n, _ in backbone.named_modules() if n}
    if not name or name in names:
        return backbone.get_submodule(name)
    shown = sorted(n for n in names if n.count(".") < 2)
    raise FocalError(
        f"the lower segment has no module '{name}' to cut at",
        hint=f"'lower.cut' is 'pooled' or one of: {', '.join(shown)}",
    )


# --------------------------------------------------------------------------- building


def build_lower(config: LowerConfig | LowerSpec, weights: str) -> tuple[LowerSegment, WeightsSource]:
    """The segment with ``weights``: ``pretrained``, ``random:SEED``, ``package:NAME`` or a file (``.pth``,
    ``.safetensors``; half precision is widened; :mod:`focal.segments.weights` says what may stand around it).

    What a :class:`LowerConfig` leaves open is the model's own; with a :class:`LowerSpec` all must be as it pins,
    the hash of the weights too. Raises :class:`FocalError` for an unknown model or cut, weights that cannot be had or
    do not fit, and a wrong hash.
    """
    kind, _, seed = weights.partition(":")
    if kind == "random" and not (seed.isdecimal() and int(seed) < SEEDS):
        raise FocalError(f"weights '{weights}': a seed must follow, a number below 2^63", hint="write random:0")
    if isinstance(config, LowerConfig):
        weights, config = weights_source(config, weights), without_folder(config)
    with torch.random.fork_rng(
        devices=[]
    ):  # initialisation must neither depend on nor disturb the caller's random state
        torch.manual_seed(int(seed) if kind == "random" else 0)
        backbone = create(config, pretrained=weights == "pretrained")
    if kind != "random" and weights != "pretrained":
        files.load(backbone, weights)
    segment = LowerSegment(backbone, _concrete(config, backbone))
    if isinstance(config, LowerSpec) and segment.spec != config:
        wrong = [field for field in LowerSpec.model_fields if getattr(segment.spec, field) != getattr(config, field)]
        raise FocalError(
            f"weights '{weights}' are not the lower segment of the manifest ({', '.join(wrong)} differ: "
            f"sha256 {segment.spec.weights_sha256[:16]}, pinned {config.weights_sha256[:16]})",
            hint="use the file that the consortium agreed on",
        )
    return segment, WeightsSource(weights, segment.spec.weights_sha256)


def weights_source(config: LowerConfig, weights: str | None = None) -> str:
    """``weights`` (default: the configuration's) as they are said where the configuration is not known: those of a
    ``local-dir:`` model are its folder, and files have their whole path."""
    said = weights or config.weights
    if said == "pretrained" and config.model.startswith(FOLDER):
        said = config.model.removeprefix(FOLDER)
    path = weights_file(said)
    return said if path is None else f"{path.absolute()}{said.removeprefix(str(path))}"


def _concrete(config: LowerConfig | LowerSpec, backbone: nn.Module) -> LowerSpec:
    """``config`` with the model's own input where it says nothing, and the hash of the weights; ``dim`` is not known
    yet."""
    fields = {field: getattr(config, field) for field in LowerSpec.model_fields if hasattr(config, field)}
    open_ = [field for field in ("image_size", "interpolation", "mean", "std") if fields[field] is None]
    if open_:
        own = own_input(backbone, config.family)
        fields |= {field: own[field] for field in open_}
    if fields["interpolation"] not in RESAMPLE:
        raise FocalError(
            f"lower segment '{config.model}' was published with '{fields['interpolation']}' resampling",
            hint=f"choose 'lower.interpolation': {' or '.join(RESAMPLE)}",
        )
    return LowerSpec(**{**fields, "weights_sha256": weights_sha256(backbone), "dim": 1})


def lower_spec(segment: LowerSegment) -> LowerSpec:
    """What the segment is now: the hash of its weights, which may have been trained, and its output length."""
    size = segment.spec.image_size
    try:
        with torch.inference_mode():
            # two: what has another number of outputs than images is no feature of one
            dim = segment(torch.zeros(2, 3, size, size, device=segment.mean.device)).shape[1]
    except (RuntimeError, AssertionError, ValueError) as e:
        raise FocalError(
            f"lower segment '{segment.spec.model}' cannot take images of {size} x {size} pixels ({first_line(e)})",
            hint="change 'lower.image_size'",
        ) from None
    return segment.spec.model_copy(update={"dim": dim, "weights_sha256": weights_sha256(segment.backbone)})


def input_text(config: SegmentOptions, spec: LowerSpec) -> str:
    """How images are made ready, for a person to read, and whose choice that was."""
    chosen = [field for field in ("image_size", "interpolation", "mean", "std") if getattr(config, field) is not None]
    whose = f"{', '.join(chosen)}: as configured" + ", else " * (len(chosen) < 4) if chosen else ""
    return f"{spec.input} ({whose}{'' if len(chosen) == 4 else 'as the model was published'})"


def weights_sha256(backbone: nn.Module) -> str:
    """SHA-256 (hex) over name, type, shape and little-endian bytes of every tensor of the state
    dict, sorted by name."""
    digest = hashlib.sha256(b"focal/weights/v1")
    for name, tensor in sorted(backbone.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"\n{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------- preprocessing and the feature check


def preprocess(image: Image.Image, spec: LowerSpec) -> Tensor:
    """(3, s, s) uint8: the RGB image as the segment's square input; ``forward`` takes off the mean."""
    size, resample = (spec.image_size, spec.image_size), RESAMPLE[spec.interpolation]
    image = image.convert("RGB")
    if spec.trim == "black":
        image = image.crop(image.convert("L").point(lambda v: 255 * (v > BLACK)).getbbox())  # all black: None, whole
    if spec.fit == "crop":
        image = ImageOps.fit(image, size, resample)
    elif spec.fit == "pad":
        image = ImageOps.pad(image, size, resample)
    else:
        image = image.resize(size, resample)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def embedded_test_image() -> NDArray[np.uint8]:
    """(96, 96, 3) RGB: discs, stripes and a gradient by integer arithmetic only,
    so that every machine draws the same bytes."""
    y, x = np.mgrid[0:96, 0:96].astype(np.int64)
    image = np.stack([(x * 2 + y) % 256, (y * 2 + 40) % 256, (x * y // 48 + 80) % 256], axis=-1)
    for cx, cy, r, colour in ((30, 34, 14, (250, 200, 120)), (66, 60, 9, (90, 20, 14)), (52, 22, 5, (20, 230, 200))):
        image[(x - cx) ** 2 + (y - cy) ** 2 <= r * r] = colour
    image[(x + 2 * y) % 23 == 0] = (140, 44, 28)
    return image.astype(np.uint8)


def features_of_test_image(segment: LowerSegment) -> NDArray[np.float32]:
    """(dim,) features of :func:`embedded_test_image`."""
    x = preprocess(Image.fromarray(embedded_test_image()), segment.spec)
    with torch.inference_mode():
        return segment(x.unsqueeze(0).to(segment.mean.device))[0].cpu().numpy()


def check_test_features(mine: ArrayLike, theirs: ArrayLike, name: str) -> None:
    """Raise :class:`FocalError` naming the member ``name`` when a feature of the test image deviates by more
    than 1e-3 from mine."""
    a, b = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        problem = f"{b.size} features instead of {a.size}"
    elif (deviation := float(np.abs(a - b).max())) <= FEATURE_TOLERANCE:
        return
    else:  # also when a feature is not a number
        problem = f"deviate by {deviation:.2g} from this member's, more than {FEATURE_TOLERANCE:g}"
    raise FocalError(
        f"the test image's features of '{name}' do not agree: {problem}",
        hint=f"'{name}' and this member must use the same weights, image size and versions of torch, "
        "timm and Pillow (focal check)",
    )
