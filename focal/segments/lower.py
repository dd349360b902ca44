"""The frozen lower segment: a foundation model up to its cut, as one function from images to feature vectors.

::

    image (any size) --preprocess--> uint8 (3, s, s) --(x - mean) / std--> backbone ... cut module --pool--> (dim,)
                      resize                                                    |                            float32
                                                     everything after the cut is computed for nothing and ignored

``pooled`` is what the model itself pools (timm: its pooled features; squeezenet1_1: the mean over its last map); any
other cut is a module of the model by name, whose output is pooled here: maps (b, c, h, w) by their mean over h and w,
tokens (b, t, d) by their mean over all t, class token included, vectors (b, d) as they are.

The members of a consortium must compute the same features, so weights are identified by the SHA-256 of names
and tensors (:func:`weights_sha256`), and each member publishes the features of one image drawn by integer
arithmetic (:func:`embedded_test_image`).
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from huggingface_hub import constants
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from focal.config import LowerConfig
from focal.errors import FocalError
from focal.manifest import LowerSpec

FEATURE_TOLERANCE = 1e-3
"""Largest deviation of a test-image feature between two members: other processors round differently,
other weights differ far more."""

PRETRAINING_ONLY = ("head.", "head_dist.", "fc.", "classifier.", "decoder_", "mask_token")
"""Keys that a checkpoint may have beyond the segment: classifier heads,
and the decoder of a masked autoencoder (RETFound)."""

SAVE_IT = "save it with torch.save(model.state_dict(), ...)"

RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class WeightsSource:
    """Where the weights came from, to be printed and recorded."""

    text: str
    """What the configuration says: ``pretrained``, ``random:SEED`` or the file's path."""
    sha256: str
    """Of the weights as loaded."""

    def __str__(self) -> str:
        kind = {"pretrained": "published pretrained weights", "random": "random weights, not trained on anything"}
        return f"{kind.get(self.text.split(':')[0], 'weights from file')} ({self.text}, sha256 {self.sha256[:16]})"


class LowerSegment(nn.Module):
    """Frozen, always in eval mode: ``forward`` maps (b, 3, s, s), uint8 or float on the 0..255 scale,
    to (b, dim) float32.

    ``spec`` is what the manifest pins. Gradients flow to a float input (for explanations), never to the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, config: LowerConfig | LowerSpec) -> None:
        super().__init__()
        # channels last: one to three times faster on CPUs, the same weights
        self.backbone = backbone.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        self._cut: nn.Module | None = None
        if config.family == "torchvision" or config.cut != "pooled":
            self._cut = _submodule(backbone, "features" if config.cut == "pooled" else config.cut)
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self.spec = lower_spec(self, config)

    def forward(self, x: Tensor) -> Tensor:
        x = ((x.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        if self._cut is None:
            return _pool(self.backbone(x))
        seen: list[Any] = []
        hook = self._cut.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            self.backbone(x)
        finally:
            hook.remove()
        return _pool(seen[-1] if seen else None)

    def train(self, mode: bool = True) -> LowerSegment:
        """Stays in eval mode: batch statistics and dropout would make features depend
        on the other images of a batch."""
        return super().train(False)


def _pool(output: Any) -> Tensor:
    """(b, d), (b, t, d) or (b, c, h, w) -> (b, dim) float32."""
    if isinstance(output, Tensor) and output.ndim in (2, 3, 4):
        axes = {2: (), 3: (1,), 4: (2, 3)}[output.ndim]
        return (output.mean(axes) if axes else output).float()
    raise FocalError(
        "the cut's output is no vector, token sequence or feature map, so it cannot be pooled",
        hint="choose another module as 'lower.cut', or 'pooled'",
    )


def _submodule(backbone: nn.Module, name: str) -> nn.Module:
    names = {n for n, _ in backbone.named_modules() if n}
    if name in names:
        return backbone.get_submodule(name)
    shown = sorted(n for n in names if n.count(".") < 2)
    raise FocalError(
        f"the lower segment has no module '{name}' to cut at",
        hint=f"'lower.cut' is 'pooled' or one of: {', '.join(shown)}",
    )


# --------------------------------------------------------------------------- building


def build_lower(config: LowerConfig | LowerSpec, weights: str) -> tuple[LowerSegment, WeightsSource]:
    """The segment with ``weights``: ``pretrained``, ``random:SEED`` or a file (``.pth``, ``.safetensors``;
    half precision is widened).

    Files may nest the state dict under ``model`` or ``state_dict``, prefix names with ``module.``, and hold a
    classifier head. With a :class:`LowerSpec` the weights must hash to what it pins. Raises :class:`FocalError` for an
    unknown model or cut, weights that cannot be had or do not fit, and a wrong hash.
    """
    kind, _, seed = weights.partition(":")
    if kind == "random" and not seed.isdecimal():
        raise FocalError(f"weights '{weights}': a seed must follow", hint="write random:0")
    with torch.random.fork_rng(
        devices=[]
    ):  # initialisation must neither depend on nor disturb the caller's random state
        torch.manual_seed(int(seed) if kind == "random" else 0)
        backbone = _create(config, pretrained=weights == "pretrained")
    if kind not in ("pretrained", "random"):
        _load_file(backbone, Path(weights))
    segment = LowerSegment(backbone, config)
    if isinstance(config, LowerSpec) and segment.spec != config:
        wrong = [field for field in LowerSpec.model_fields if getattr(segment.spec, field) != getattr(config, field)]
        raise FocalError(
            f"weights '{weights}' are not the lower segment of the manifest ({', '.join(wrong)} differ: "
            f"sha256 {segment.spec.weights_sha256[:16]}, pinned {config.weights_sha256[:16]})",
            hint="use the file that the consortium agreed on",
        )
    return segment, WeightsSource(weights, segment.spec.weights_sha256)


def lower_spec(segment: LowerSegment, config: LowerConfig | LowerSpec) -> LowerSpec:
    """``config`` with what only the built segment knows: the hash of its weights and its output length."""
    size = config.image_size
    try:
        with torch.inference_mode():
            dim = segment(torch.zeros(1, 3, size, size, device=segment.mean.device)).shape[1]
    except (RuntimeError, AssertionError, ValueError) as e:
        raise FocalError(
            f"lower segment '{config.model}' cannot take images of {size} x {size} pixels ({_first_line(e)})",
            hint="change 'lower.image_size'",
        ) from None
    shared = {
        field: getattr(config, field)
        for field in ("family", "model", "cut", "image_size", "interpolation", "mean", "std")
    }
    return LowerSpec(**shared, weights_sha256=weights_sha256(segment.backbone), dim=dim)


def weights_sha256(backbone: nn.Module) -> str:
    """SHA-256 (hex) over name, type, shape and little-endian bytes of every tensor of the state
    dict, sorted by name."""
    digest = hashlib.sha256(b"focal/weights/v1")
    for name, tensor in sorted(backbone.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"\n{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def _create(config: LowerConfig | LowerSpec, *, pretrained: bool) -> nn.Module:
    """The headless model with its initial or published weights."""
    if config.family == "torchvision":
        return _create_squeezenet(config.model, pretrained)
    if not timm.is_model(config.model):
        close = difflib.get_close_matches(config.model, timm.list_models(), n=4)
        raise FocalError(
            f"timm has no model '{config.model}'",
            hint=f"did you mean {', '.join(close)}?"
            if close
            else "python -c 'import timm; print(timm.list_models())' lists them",
        )
    kwargs: dict[str, Any] = {"num_classes": 0, "pretrained": pretrained}
    try:
        with _hub_without_waiting() if pretrained else nullcontext():
            try:
                return timm.create_model(config.model, img_size=config.image_size, **kwargs)
            except TypeError:  # convolutional models take any size and have no such option
                return timm.create_model(config.model, **kwargs)
    except AssertionError:
        raise FocalError(
            f"lower segment '{config.model}' cannot take images of {config.image_size} x {config.image_size} pixels",
            hint="'lower.image_size' must be a multiple of the model's patch size",
        ) from None
    except Exception as e:  # each download library has its own network errors
        if not pretrained:
            raise
        raise _no_weights(config.model, e) from None


def _create_squeezenet(model: str, pretrained: bool) -> nn.Module:
    if model != "squeezenet1_1":
        raise FocalError(
            f"family 'torchvision' offers squeezenet1_1, not '{model}'", hint="most models are in timm: family: timm"
        )
    published = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    try:
        backbone = torchvision.models.squeezenet1_1(weights=published if pretrained else None)
    except Exception as e:  # as above
        raise _no_weights(model, e) from None
    backbone.classifier = nn.Identity()
    return backbone


def _no_weights(model: str, error: Exception) -> FocalError:
    return FocalError(
        f"pretrained weights of '{model}' cannot be had ({_first_line(error)})",
        hint="is there a network? otherwise set 'lower.weights' to a file with them, or to random:0",
    )


@contextmanager
def _hub_without_waiting() -> Iterator[None]:
    """Without a network, only what the hub's client has cached: it would otherwise retry for most of a minute,
    and say so every time."""
    offline = constants.HF_HUB_OFFLINE
    try:
        constants.HF_HUB_OFFLINE = offline or not _reachable(constants.ENDPOINT)
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def _reachable(url: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5.0).close()
    except urllib.error.HTTPError:
        return True  # someone answered
    except OSError:
        return False
    return True


def _first_line(error: Exception) -> str:
    """The first sentence: libraries add advice that is not for our users."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0][:160]


# --------------------------------------------------------------------------- weights from a file


def _load_file(backbone: nn.Module, path: Path) -> None:
    """Load ``path`` into ``backbone``; every tensor of it must be there, with its shape."""
    state = _read_state(path)
    wanted = backbone.state_dict()
    extra = [k for k in state if k not in wanted and not k.startswith(PRETRAINING_ONLY)]
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    if missing or extra:
        raise FocalError(
            f"{path}: does not fit the lower segment: {_some('missing', missing)}, {_some('unexpected', extra)}",
            hint="'lower.model' must be the architecture that these weights belong to",
        )
    state = _fit_positions(backbone, {k: v for k, v in state.items() if k in wanted})
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


def _read_state(path: Path) -> dict[str, Tensor]:
    """Names and float32 tensors of a file. Nothing of it is executed (``weights_only``)."""
    if not path.is_file():
        raise FocalError(
            f"{path}: no such weights file",
            hint="'lower.weights' is pretrained, random:SEED or a file with a state dict",
        )
    logging.getLogger("timm.models._helpers").setLevel(logging.WARNING)
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as e:  # torch, pickle and safetensors each raise their own for bytes that are no checkpoint
        raise FocalError(f"{path}: is not a weights file ({_first_line(e)})", hint=SAVE_IT) from None
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise FocalError(f"{path}: holds no state dict", hint=SAVE_IT)
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _fit_positions(backbone: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ViT's learned position embedding, resampled when the image size differs from the checkpoint's."""
    learned, own = state.get("pos_embed"), getattr(backbone, "pos_embed", None)
    if (
        learned is None
        or own is None
        or learned.shape == own.shape
        or learned.ndim != 3
        or learned.shape[-1] != own.shape[-1]
    ):
        return state
    grid: Any = backbone.patch_embed
    prefix = 0 if getattr(backbone, "no_embed_class", False) else int(getattr(backbone, "num_prefix_tokens", 1))
    return {
        **state,
        "pos_embed": resample_abs_pos_embed(learned, new_size=list(grid.grid_size), num_prefix_tokens=prefix),
    }


def _some(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}" + (f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "")


# --------------------------------------------------------------------------- preprocessing and the feature check


def preprocess(image: Image.Image, spec: LowerConfig | LowerSpec) -> Tensor:
    """(3, s, s) uint8: the whole RGB image resized to the segment's square input; ``forward`` takes off the mean."""
    size = (spec.image_size, spec.image_size)
    resized = image.convert("RGB").resize(size, RESAMPLE[spec.interpolation])
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def embedded_test_image() -> NDArray[np.uint8]:
    """(96, 96, 3) RGB: discs, stripes and a gradient by integer arithmetic only,
    so that every machine draws the same bytes."""
    y, x = np.mgrid[0:96, 0:96].astype(np.int64)
    image = np.stack([(x * 2 + y) % 256, (y * 2 + 40) % 256, (x * y // 48 + 80) % 256], axis=-1)
    for cx, cy, r, colour in ((30, 34, 14, (250, 200, 120)), (66, 60, 9, (90, 20, 14)), (52, 22, 5, (20, 230, 200))):
        image[(x - cx) ** 2 + (y - cy) ** 2 <= r * r] = colour
    image[(x + 2 * y) % 23 == 0] = (140, 44, 28)
    return image.astype(np.uint8)


def test_image_features(segment: LowerSegment) -> NDArray[np.float32]:
    """(dim,) features of :func:`embedded_test_image`."""
    x = preprocess(Image.fromarray(embedded_test_image()), segment.spec)
    with torch.inference_mode():
        return segment(x.unsqueeze(0).to(segment.mean.device))[0].cpu().numpy()


test_image_features.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it by its name


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
