"""The lower segment that learns: a foundation model up to its cut, of which a chosen part trains,
and a bottleneck before the cut.

::

    images --LowerSegment, a copy--> raw --clip to [-B, B]--> matrix x + offset --clip norm to 2 sqrt(R)--> 1 appended
             `---- trainable ----'         `----------------- Bottleneck, always trains ---------------------------'
    (b, 3, s, s)                  (b, dim)                                                                  (b, R)

    trainable   all         every parameter that the cut depends on
                last        the last blocks and what follows them
                norm        scale and shift of batch, layer and group normalisation
                lora        W + up down on every linear layer of the blocks (Hu et al. 2021); W itself is frozen
                adapter     y + up gelu(down y) after every block (Houlsby et al. 2019); 1 x 1 convolutions on maps
                bottleneck  nothing else

A *block* is a transformer block (timm), a residual block (timm's ResNets) or a Fire module (squeezenet1_1).

**The bottleneck** is the arithmetic of :class:`focal.segments.projection.Projection`, with parameters instead of
constants: it may start as a blind run's projection, and a trained one is released as
:class:`focal.segments.upper.UpperHead`. The norm clip bounds every activation by 2 sqrt(R), 11 to 32, whatever was
learned; encryption needs a known range, and :func:`sendable` checks it.

**Normalisation.** Batch statistics stay those of the foundation model (eval mode) while scale and shift may train:
statistics of the own batches would make activations depend on who shares a batch, would differ between
institutions, and would have to be averaged too. Dropout and stochastic depth are off for the same reason: a step
depends on images and parameters only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import dropwhile

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models import resnet
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision.models.squeezenet import Fire

from focal.config import InteractiveConfig
from focal.errors import FocalError
from focal.segments.lower import LowerSegment
from focal.segments.projection import Projection, check_features
from focal.segments.upper import UpperHead
from focal.task import Task

Array = NDArray[np.float64]

RANGE = 64.0
"""Largest magnitude of a value that may be encrypted: activations and derivatives.
Beyond it products leave the first modulus."""
VALUE_BYTES = 8
"""A parameter on its way to the secure sum: one 64-bit integer."""

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)


class TrainableSegment(nn.Module):
    """``forward`` maps images (b, 3, s, s), uint8 or float on the 0..255 scale, to activations
    (b, R) float64, the last column 1.

    ``lower`` is copied and stays frozen. ``start``: a blind run's projection, which becomes the bottleneck;
    otherwise ``seed`` draws it (with LoRA's and adapters' initial weights), and all institutions must use the same.
    Raises :class:`FocalError` for a selection that the model does not have, listing what it has, and for a
    bottleneck wider than the raw features.
    """

    def __init__(
        self, lower: LowerSegment, config: InteractiveConfig, start: Projection | None = None, *, seed: int = 0
    ) -> None:
        super().__init__()
        check_features(config.features, lower.spec.dim)
        if start is not None and (start.features, start.dim) != (config.features, lower.spec.dim):
            raise FocalError(
                f"the projection to start from maps {start.dim} features to {start.features}, "
                f"this run's segment and bottleneck {lower.spec.dim} to {config.features}",
                hint="start from a run with the same lower segment and the same number of features",
            )
        self.lower = copy.deepcopy(lower)
        generator = torch.Generator().manual_seed(seed)
        for parameter in _select(self.lower, config, generator):
            parameter.requires_grad_(True)
        self.bottleneck = (
            Bottleneck(lower.spec.dim, config.features, generator)
            if start is None
            else Bottleneck.from_projection(start)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, s, s) -> activations (b, R) float64."""
        return self.bottleneck(self.lower(images))

    # ----------------------------------------------------------------- what trains, as one vector

    def trained(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, in the order of the vector."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @property
    def count(self) -> int:
        """How many values train."""
        return sum(p.numel() for p in self.trained().values())

    def vector(self) -> Array:
        """(count,) float64: what is averaged."""
        return np.concatenate([p.detach().cpu().double().numpy().ravel() for p in self.trained().values()])

    def load_vector(self, values: Array) -> None:
        """Set the parameters to ``values`` (count,). Raises :class:`FocalError` on another length or values
        that are not finite."""
        if values.shape != (self.count,) or not np.isfinite(values).all():
            raise FocalError(
                f"averaged parameters: {values.size} values, of which {np.isfinite(values).sum()} finite; "
                f"this segment trains {self.count}",
                hint="every institution must run the same lower segment with the same 'interactive' settings",
            )
        start = 0
        with torch.no_grad():
            for p in self.trained().values():
                p.copy_(torch.from_numpy(values[start : start + p.numel()]).view(p.shape))
                start += p.numel()

    def load_trained(self, values: Mapping[str, Tensor]) -> None:
        """Set the trained parameters of ``lower`` to those of a released model (``UpperHead.trained``).

        Raises :class:`FocalError` when it trained others.
        """
        own = {name: p for name, p in self.trained().items() if name.startswith("lower.")}
        if {name: value.shape for name, value in values.items()} != {name: p.shape for name, p in own.items()}:
            raise FocalError(
                f"the released model holds {len(values)} trained tensors of the lower segment, "
                f"these settings train {len(own)}, or others",
                hint="use the same 'interactive.trainable', 'blocks' and 'rank' as the run that it comes from",
            )
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(values[name])

    def check_average(self, max_mb: float) -> int:
        """Bytes that one institution sends in a round of averaging.
        Raises :class:`FocalError` above ``max_mb`` (10^6 bytes)."""
        size = self.count * VALUE_BYTES
        if size > max_mb * 1e6:
            raise FocalError(
                f"an average of {self.count} trainable parameters is {size / 1e6:.1f} MB per institution and round, "
                f"more than max_average_mb ({max_mb:g})",
                hint="train less (trainable: lora, adapter, norm, or last with fewer blocks), "
                "or raise interactive.max_average_mb",
            )
        return size

    # ----------------------------------------------------------------- what is released

    def head(self, weights: Array, task: Task) -> UpperHead:
        """Bottleneck and head ``weights`` (R, C) as the released head on ``self.lower``'s features."""
        matrix, offset = self.bottleneck.matrix.detach().float().cpu(), self.bottleneck.offset.detach().float().cpu()
        return UpperHead(
            matrix.clone(), offset.clone(), torch.as_tensor(weights).clone(), bound=self.bottleneck.bound, task=task
        )


class Bottleneck(nn.Module):
    """Raw features (b, dim) -> activations (b, R) float64, bounded by 2 sqrt(R), the last column 1."""

    def __init__(self, dim: int, features: int, generator: torch.Generator) -> None:
        super().__init__()
        # rows of length 1: raw features of size 1 give activations of size 1
        self.matrix = nn.Parameter(torch.randn(features - 1, dim, generator=generator) / math.sqrt(dim))
        self.offset = nn.Parameter(torch.zeros(features - 1))
        self.bound = math.inf

    @classmethod
    def from_projection(cls, projection: Projection) -> Bottleneck:
        made = cls(projection.dim, projection.features, torch.Generator())
        made.matrix.data = torch.from_numpy(projection.matrix.copy())
        made.offset.data = torch.from_numpy(projection.offset.copy())
        made.bound = projection.bound
        return made

    def forward(self, raw: Tensor) -> Tensor:
        """(b, dim) -> (b, R) float64, the last column 1."""
        # float64 as in UpperHead.project, where the reason is
        components = raw.double().clamp(-self.bound, self.bound) @ self.matrix.double().T + self.offset.double()
        limit = 2.0 * math.sqrt(components.shape[1] + 1)
        components = components * (limit / components.norm(dim=1, keepdim=True).clamp_min(limit))
        return torch.cat([components, components.new_ones(len(components), 1)], dim=1)


def sendable(values: Array, what: str, hint: str) -> Array:
    """``values``, when all are finite and at most :data:`RANGE` in magnitude; else :class:`FocalError`,
    before anything is encrypted."""
    if not np.isfinite(values).all():
        raise FocalError(f"{what} are not finite numbers; nothing of this step was sent", hint=hint)
    if (largest := float(np.abs(values).max(initial=0.0))) > RANGE:
        raise FocalError(
            f"{what} reach {largest:.3g}; more than {RANGE:g} overflows the scale, and nothing of it was sent",
            hint=hint,
        )
    return values


# --------------------------------------------------------------------------- the selections


def _select(lower: LowerSegment, config: InteractiveConfig, generator: torch.Generator) -> list[nn.Parameter]:
    """The parameters of ``lower`` that shall train, after LoRA or adapters were put in."""
    backbone, blocks = lower.backbone, _blocks(lower.backbone)
    make: dict[str, Callable[[], None]] = {
        "lora": lambda: _add_low_rank(blocks, config.rank, generator),
        "adapter": lambda: _add_adapters(lower, blocks, config.rank, generator),
    }
    offered = _offered(lower, blocks)
    if config.trainable not in offered:
        raise FocalError(
            f"lower segment '{lower.spec.model}' has nothing to train as 'interactive.trainable: {config.trainable}'",
            hint=f"it offers: {', '.join(text or name for name, text in offered.items())}",
        )
    if config.trainable in make:
        make[config.trainable]()
    names = _reached(lower)
    if config.trainable == "last":
        used = [name for name in blocks if any(n.startswith(f"{name}.") for n in names)]
        if config.blocks > len(used):
            raise FocalError(
                f"lower segment '{lower.spec.model}' has {len(used)} blocks before its cut "
                f"{' + '.join(map(repr, lower.spec.cuts))}, "
                f"not 'interactive.blocks: {config.blocks}'",
                hint=f"train 1 to {len(used)} of them, or 'trainable: all'",
            )
        first = f"{used[-config.blocks]}."
        names = list(
            dropwhile(lambda n: not n.startswith(first), names)
        )  # parameters are registered from input to output
    else:
        names = [name for name in names if _belongs(name, backbone, config.trainable)]
    parameters = dict(backbone.named_parameters())
    return [parameters[name] for name in names]


def _offered(lower: LowerSegment, blocks: dict[str, nn.Module]) -> dict[str, str]:
    """Selection -> how to print it, of what the model has."""
    modules = list(lower.backbone.modules())
    return {
        "all": "",
        **({"last": f"last (1 to {len(blocks)} blocks)", "adapter": ""} if blocks else {}),
        **({"norm": ""} if any(isinstance(m, NORMS) for m in modules) else {}),
        **({"lora": ""} if any(True for _ in _linears(blocks)) else {}),
        "bottleneck": "",
    }


def _belongs(name: str, backbone: nn.Module, trainable: str) -> bool:
    owner = backbone.get_submodule(name.rpartition(".")[0])
    kinds = {"all": (nn.Module,), "norm": NORMS, "lora": (LowRank,), "bottleneck": ()}
    return ".adapter." in name if trainable == "adapter" else isinstance(owner, kinds[trainable])


def _blocks(backbone: nn.Module) -> dict[str, nn.Module]:
    """Name -> block, from input to output."""
    transformer = getattr(backbone, "blocks", None)
    if isinstance(transformer, nn.Sequential | nn.ModuleList):
        return {f"blocks.{name}": block for name, block in transformer.named_children()}
    return {
        name: m for name, m in backbone.named_modules() if isinstance(m, resnet.BasicBlock | resnet.Bottleneck | Fire)
    }


def _linears(blocks: dict[str, nn.Module]) -> Iterator[nn.Linear]:
    return (m for block in blocks.values() for m in block.modules() if isinstance(m, nn.Linear))


def _reached(lower: LowerSegment) -> list[str]:
    """Names of the backbone's parameters that the cut's output depends on:
    what comes after the cut would only decay."""
    named = dict(lower.backbone.named_parameters())
    with torch.enable_grad():
        for p in named.values():
            p.requires_grad_(True)
        size = lower.spec.image_size
        output = lower(torch.zeros(1, 3, size, size, device=lower.mean.device)).sum()
        gradients = torch.autograd.grad(output, list(named.values()), allow_unused=True)
    lower.backbone.requires_grad_(False)
    return [name for name, gradient in zip(named, gradients, strict=True) if gradient is not None]


class LowRank(nn.Module):
    """What :mod:`torch.nn.utils.parametrize` puts before a weight (o, i): W + up down, which is W at the start."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1], generator=generator) / math.sqrt(weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def _add_low_rank(blocks: dict[str, nn.Module], rank: int, generator: torch.Generator) -> None:
    for linear in list(_linears(blocks)):
        parametrize.register_parametrization(linear, "weight", LowRank(linear.weight, rank, generator))


class Adapted(nn.Module):
    """A block with an adapter behind it, which adds nothing at the start. ``shape``: of the block's output, (1, c,
    h, w) or (1, t, c)."""

    def __init__(self, block: nn.Module, shape: torch.Size, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.block = block
        down, up = (
            (nn.Conv2d(shape[1], rank, 1), nn.Conv2d(rank, shape[1], 1))
            if len(shape) == 4
            else (nn.Linear(shape[-1], rank), nn.Linear(rank, shape[-1]))
        )
        with torch.no_grad():
            for parameter in (down.bias, up.weight, up.bias):
                nn.init.zeros_(parameter)  # type: ignore[arg-type]
            down.weight.normal_(0.0, 1 / math.sqrt(down.weight.shape[1]), generator=generator)
        self.adapter = nn.Sequential(down, nn.GELU(), up)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return y + self.adapter(y)


def _add_adapters(lower: LowerSegment, blocks: dict[str, nn.Module], rank: int, generator: torch.Generator) -> None:
    shapes: dict[str, torch.Size] = {}
    hooks = [
        block.register_forward_hook(lambda _m, _i, y, name=name: shapes.update({name: y.shape}))
        for name, block in blocks.items()
    ]
    with torch.no_grad():
        size = lower.spec.image_size
        lower(torch.zeros(1, 3, size, size, device=lower.mean.device))
    for hook in hooks:
        hook.remove()
    for name, block in blocks.items():
        parent, _, last = name.rpartition(".")
        setattr(lower.backbone.get_submodule(parent), last, Adapted(block, shapes[name], rank, generator).eval())
