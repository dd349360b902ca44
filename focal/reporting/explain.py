"""Where a released model looked: one map per image, and whether such a map depends on what
the model has learned at all.

::

    ViT   attention rollout                                    CNN   Grad-CAM
          A_l   mean over heads of block l's attention               A_k   channel k of the last feature map
          R  =  prod_l (A_l + 1) / 2                                 w_k = mean over positions of d logit_c / d A_k
          map = how the pooled tokens draw on each patch             map = max(0, sum_k w_k A_k)

Rollout (Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020) says where a ViT's features come
from. It is the same for every class: neither the head nor the values take part. Grad-CAM (Selvaraju et al., ICCV 2017)
says what raises one class's logit, through the projection and both clippings of the released head.

A map can look right and mean nothing. :func:`sanity_check` is the model parameter randomisation test of Adebayo et al.,
"Sanity Checks for Saliency Maps" (NeurIPS 2018): the model's weights are replaced by random ones, from the head
downwards, and each time the maps are compared with the true ones by rank. Maps that stay alike do not show what was
learned, and must not be read as if they did.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import spearmanr
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from focal.errors import FocalError
from focal.files import private_write
from focal.segments.lower import LowerSegment, preprocess
from focal.segments.upper import ReleasedModel, UpperHead
from focal.task import scored_classes
from focal.telling import Progress

Floats = NDArray[np.float64]
Method = Literal["attention rollout", "Grad-CAM"]

FOLDER = "explanations"
"""Inside a run's folder; it holds patients' images."""
INDEX, CHECK = "index.json", "sanity.json"
CHECKED = 8
"""Images that the sanity check looks at: it needs one pass per layer."""


# --------------------------------------------------------------------------- maps


class Maps(NamedTuple):
    """Explanations of a batch."""

    method: Method
    values: Floats
    """(b, h, w) at the model's own resolution, not negative; zero everywhere where nothing raises
    the class (Grad-CAM)."""


def explain(model: ReleasedModel, x: Tensor, columns: Sequence[int]) -> Maps:
    """Maps of preprocessed images ``x`` (b, 3, s, s), each for its output column in ``columns`` (binary: 0).

    Raises :class:`FocalError` for a lower segment that is neither a plain ViT nor a CNN with a feature
    map of several positions.
    """
    if isinstance(_lower(model).backbone, VisionTransformer):
        return Maps("attention rollout", attention_rollout(model, x))
    return Maps("Grad-CAM", grad_cam(model, x, columns))


def attention_rollout(model: ReleasedModel, x: Tensor) -> Floats:
    """(b, h, w): the share of each patch in the pooled features; together with the class and register tokens'
    shares they sum to 1."""
    lower = _lower(model)
    backbone: Any = lower.backbone
    # not block.attn: a block may be inside an adapter
    attention: list[Any] = [module for module in backbone.blocks.modules() if isinstance(module, Attention)]
    if len(attention) != len(backbone.blocks):
        raise _unknown(lower)
    matrices = [module.attn_drop for module in attention]
    with (
        _unfused(attention),
        _watched(lower, matrices, lambda heads: heads.mean(1).double()) as seen,
        torch.inference_mode(),
    ):
        lower(x)
    if not seen:
        raise FocalError(
            f"'{lower.spec.model}' is cut before its first attention", hint="there is nothing to roll out: cut later"
        )
    one = torch.eye(seen[0].shape[-1], dtype=torch.float64)
    flow = one
    for matrix in seen:
        flow = (matrix + one) / 2 @ flow
    prefix, (h, w) = backbone.num_prefix_tokens, backbone.patch_embed.grid_size
    return _pool_tokens(flow, lower, prefix)[:, prefix:].reshape(len(x), h, w).numpy()


def _pool_tokens(flow: Tensor, lower: LowerSegment, prefix: int) -> Tensor:
    """(b, t, t) -> (b, t): the rows of the tokens that make up the features, averaged as the features are."""
    backbone: Any = lower.backbone
    if lower.spec.cut != "pooled" and lower.spec.pool == "class+mean":
        return (flow[:, 0] + flow[:, prefix:].mean(1)) / 2
    if lower.spec.cut != "pooled" or (backbone.global_pool == "avg" and backbone.pool_include_prefix):
        return flow.mean(1)
    if backbone.global_pool == "token":
        return flow[:, 0]
    if backbone.global_pool == "avg":
        return flow[:, prefix:].mean(1)
    raise _unknown(lower)


def grad_cam(model: ReleasedModel, x: Tensor, columns: Sequence[int]) -> Floats:
    """(b, h, w): what raises each image's logit of its column, on the last feature map before pooling."""
    lower = _lower(model)
    with _watched(lower, list(lower.backbone.modules()), _positions) as seen, torch.enable_grad():
        logits = model(x.float().requires_grad_())  # the weights are frozen: the graph begins at the image
        if (
            not seen or seen[-1].ndim != 4 or seen[-1].shape[2] != seen[-1].shape[3]
        ):  # images are square, so channels-first maps are
            raise _unknown(lower)
        feature_map = seen[-1]
        (gradient,) = torch.autograd.grad(
            logits[torch.arange(len(x)), torch.as_tensor(list(columns))].sum(), feature_map
        )
    weights = gradient.double().mean((2, 3), keepdim=True)
    return (weights * feature_map.detach().double()).sum(1).clamp_min(0).numpy()


def _positions(output: object) -> Tensor | None:
    """``output`` if it has several positions: a map (b, c, h, w) or (b, h, w, c), or tokens (b, t, d)."""
    if isinstance(output, Tensor) and (output.ndim == 3 or output.ndim == 4 and output.shape[2] > 1):
        return output
    return None


@contextmanager
def _watched(
    lower: LowerSegment, modules: Sequence[nn.Module], look: Callable[[Any], Tensor | None]
) -> Iterator[list[Tensor]]:
    """What ``look`` makes of each output of ``modules``, in order, up to and with that of the last cut: what follows
    it runs for nothing. Of an image only, where its mirror image counts too (``flip``)."""
    seen: list[Tensor] = []
    waited = len(lower.cut_modules)
    cut: list[bool] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        if len(cut) < waited and (value := look(output)) is not None:
            seen.append(value)

    hooks = [module.register_forward_hook(keep) for module in modules]
    for module in lower.cut_modules:  # registered last, so called after `keep`
        hooks.append(module.register_forward_hook(lambda *_: cut.append(True)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _unfused(attention: Sequence[Any]) -> Iterator[None]:
    """Attention written out, so that there is a matrix to look at."""
    fused = [module.fused_attn for module in attention]
    try:
        for module in attention:
            module.fused_attn = False
        yield
    finally:
        for module, before in zip(attention, fused, strict=True):
            module.fused_attn = before


def _lower(model: ReleasedModel) -> LowerSegment:
    assert isinstance(model.lower, LowerSegment)
    return model.lower


def _unknown(lower: LowerSegment) -> FocalError:
    return FocalError(
        f"no explanation is known for lower segment {lower.spec}",
        hint="known are timm's plain ViTs (class token or mean pooled), "
        "and CNNs with a feature map of several positions",
    )


# --------------------------------------------------------------------------- sanity check


class SanityStep(NamedTuple):
    """The maps after one more part of the model was made random, beside the true ones."""

    randomised: str
    """The part that was added; everything above it is random too."""
    correlation: float | None
    """Mean Spearman rank correlation over the images; ``None`` where no map has a ranking (all zero)."""
    images: int
    """How many images that mean is over."""


def sanity_check(model: ReleasedModel, x: Tensor, columns: Sequence[int], *, seed: int = 0) -> list[SanityStep]:
    """Cascading randomisation, from the head down to the first layer, on a copy of ``model``;
    ``x`` and ``columns`` as :func:`explain`."""
    true = explain(model, x, columns).values
    model = copy.deepcopy(model)
    steps = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, part in [("head", model.head), *reversed(_parts(_lower(model)))]:
            _randomise(part)
            found = [_rank_correlation(a, b) for a, b in zip(true, explain(model, x, columns).values, strict=True)]
            defined = [value for value in found if not np.isnan(value)]
            steps.append(SanityStep(name, float(np.mean(defined)) if defined else None, len(defined)))
    return steps


def _parts(lower: LowerSegment) -> list[tuple[str, nn.Module]]:
    """The backbone's layers or blocks with weights, first to last, none of them after the cut."""
    parts: list[tuple[str, nn.Module]] = []
    for name, child in lower.backbone.named_children():
        inner = child.named_children() if isinstance(child, nn.Sequential | nn.ModuleList) else ()
        parts += [(f"{name}.{n}", c) for n, c in inner] or [(name, child)]
    if lower.backbone not in lower.cut_modules:
        cut = {inner for module in lower.cut_modules for inner in module.modules()}
        last = max((i for i, (_, part) in enumerate(parts) if cut & set(part.modules())), default=len(parts) - 1)
        parts = parts[: last + 1]
    return [(name, part) for name, part in parts if any(True for _ in part.parameters())]


def _randomise(part: nn.Module) -> None:
    """New weights: a layer's own initialisation where it has one, else normal ones of the old standard deviation."""
    fresh = set()
    for module in part.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
            fresh |= {id(p) for p in module.parameters(recurse=False)}
    with torch.no_grad():
        for tensor in [p for p in part.parameters() if id(p) not in fresh] + (
            [part.weights] if isinstance(part, UpperHead) else []
        ):
            tensor.normal_(0.0, float(tensor.std()) if tensor.numel() > 1 else 0.02)


def _rank_correlation(a: Floats, b: Floats) -> float:
    """Spearman's, NaN where one of them is constant."""
    return float(spearmanr(a.ravel(), b.ravel()).statistic) if np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")


class Verdict(NamedTuple):
    """What the sanity check allows the reader to conclude."""

    passed: bool
    text: str


def verdict(steps: Sequence[SanityStep]) -> Verdict:
    """Passed when the maps lose their likeness (rank correlation below one half) while half of the layers
    are still the trained ones."""
    found = [(step.randomised, step.correlation) for step in steps if step.correlation is not None]
    if not found:
        return Verdict(
            False,
            "No map of a randomised model has a ranking, so there was nothing to compare: do not rely on these maps.",
        )
    lost = next((i for i, (_, value) in enumerate(found) if abs(value) < 0.5), None)
    if lost is None:
        return Verdict(
            False,
            "Even with every layer random the maps rank positions like the true ones (correlation "
            f"{found[-1][1]:.2f}): they show the image, not what was learned. Do not read them as an explanation.",
        )
    part = found[lost][0]
    if lost > len(found) // 2:
        return Verdict(
            False,
            f"The maps hardly change until '{part}' is random too: they say little about what the upper layers and the "
            "head learned. Read them as where the early layers look, no more.",
        )
    return Verdict(
        True, f"The maps lose their likeness to the true ones when '{part}' is random: they depend on what was learned."
    )


# --------------------------------------------------------------------------- pictures


class Explained(NamedTuple):
    """One image with what the model says and where it looked."""

    picture: Image.Image
    """The image as the model sees it, and beside it the same with the map over it: (s, 2 s) pixels."""
    label: str
    """The class that is explained."""
    probability: float
    method: Method


def explain_images(
    model: ReleasedModel, images: Sequence[Image.Image], label: str | None = None, progress: Progress | None = None
) -> list[Explained]:
    """Each image with the map for class ``label`` (default: the most probable one;
    a binary task always explains its positive class)."""
    classes, outputs = model.meta.classes, scored_classes(model.meta.classes, model.meta.task)
    if label is not None and label not in outputs:
        raise FocalError(f"'{label}' is no class that this run can explain", hint=f"it has {', '.join(outputs)}")
    out = []
    for done, image in enumerate(images, start=1):
        x = preprocess(image, model.meta.lower)[None]
        with torch.inference_mode():
            probability = model.probabilities(x)[0]
        chosen = label or (outputs[0] if len(outputs) == 1 else classes[int(probability.argmax())])
        maps = explain(model, x, [outputs.index(chosen)])
        out.append(
            Explained(overlay(x[0], maps.values[0]), chosen, float(probability[classes.index(chosen)]), maps.method)
        )
        if progress:
            progress(done, len(images))
    return out


def overlay(x: Tensor, values: Floats) -> Image.Image:
    """The preprocessed image (3, s, s) uint8 and, to its right, the map (h, w) over it:
    strongest where it is opaque."""
    image = Image.fromarray(x.permute(1, 2, 0).numpy())
    strength = values / values.max() if values.max() > 0 else values
    smooth = np.asarray(Image.fromarray(strength.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)).clip(
        0, 1
    )
    colour = colormaps["inferno"](0.25 + 0.75 * smooth)[..., :3] * 255
    opacity = 0.65 * smooth[..., None]
    over = Image.fromarray((np.asarray(image) * (1 - opacity) + colour * opacity).astype(np.uint8))
    pair = Image.new("RGB", (2 * image.width, image.height))
    pair.paste(image, (0, 0))
    pair.paste(over, (image.width, 0))
    return pair


# --------------------------------------------------------------------------- a finished run


class Explanations(NamedTuple):
    """What :func:`explain_run` wrote, and whether it depends on what the model learned."""

    folder: Path
    steps: list[SanityStep]
    """The sanity check; empty where none was asked for."""

    @property
    def verdict(self) -> Verdict | None:
        """What the sanity check allows to conclude."""
        return verdict(self.steps) if self.steps else None


def explain_run(
    run: Path | str,
    images: Path | str,
    *,
    label: str | None = None,
    table_csv: Path | str | None = None,
    weights: str | None = None,
    window: tuple[float, float] | None = None,
    page: int | None = None,
    limit: int = 32,
    check: bool = True,
    progress: Progress | None = None,
) -> Explanations:
    """Write overlays of the first ``limit`` images (of the table, or of the folder or zip) below ``run``.
    ``window`` and ``page`` are those of :class:`focal.config.DatasetConfig`.

    The lower segment is the released one: of an interactive run, with the parameters that it trained. The folder has
    ``000.png`` ..., ``index.json`` (which image, class and probability each is) and ``sanity.json``, all 0600: they are
    patients' images, and :file:`index.json` names their files.
    """
    from focal.data.images import open_images
    from focal.data.pictures import Reading

    model = ReleasedModel.load(run, weights)
    meta = model.meta
    chosen = None if table_csv is None else Path(table_csv)
    table = open_images(Path(images), meta.classes, meta.task, chosen, Reading.declared(window, page))
    table = table.take(np.arange(min(limit, len(table))))
    pictures = [table.images.read(i) for i in range(len(table))]
    found = explain_images(model, pictures, label, progress)
    steps = check_images(model, pictures, found) if check else []
    folder = (Path(run) if Path(run).is_dir() else Path(run).parent) / FOLDER
    for old in folder.glob("*.png"):
        old.unlink()
    for i, one in enumerate(found):
        private_write(folder / f"{i:03}.png", png(one.picture))
    index = [
        {
            "file": f"{i:03}.png",
            "image": str(name),
            "class": one.label,
            "probability": one.probability,
            "method": one.method,
        }
        for i, (name, one) in enumerate(zip(table.filenames, found, strict=True))
    ]
    private_write(folder / INDEX, json.dumps(index, indent=1).encode())
    private_write(folder / CHECK, json.dumps([step._asdict() for step in steps], indent=1).encode())
    return Explanations(folder, steps)


def check_images(model: ReleasedModel, images: Sequence[Image.Image], found: Sequence[Explained]) -> list[SanityStep]:
    """:func:`sanity_check` on the first few of these images, each for the class it was explained for."""
    few = list(zip(images, found, strict=True))[:CHECKED]
    x = torch.stack([preprocess(image, model.meta.lower) for image, _ in few])
    names = scored_classes(model.meta.classes, model.meta.task)
    return sanity_check(model, x, [names.index(one.label) for _, one in few])


def png(image: Image.Image) -> bytes:
    """The file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
