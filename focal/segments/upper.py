"""The released model as torch modules: usable without openfhe, without the consortium, without numpy.

::

    images (b, 3, s, s) --LowerSegment--> raw (b, dim) --clip, project, clip, bias--> (b, R) --weights--> logits (b, C)
                                          `------------------------ UpperHead: model.pt ------------------------'
    `------------------------------------------- ReleasedModel --------------------------------------------------'

``model.pt`` holds the head and what pins the lower segment, never the lower segment's weights: they are public
or the user's own, and a SHA-256 says whether the right ones were given. The file is read with
``weights_only=True``: it cannot run code.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from focal import framing
from focal.config import Hex32, InteractiveConfig, Model
from focal.errors import FocalError
from focal.files import private_write
from focal.manifest import LowerSpec
from focal.task import Task, one_output, output_count

if TYPE_CHECKING:
    from focal.segments.lower import LowerSegment
    from focal.segments.projection import Projection

FORMAT = "focal-model-1"
FILE = "model.pt"


class ModelMeta(Model):
    """What a released head belongs to."""

    dataset: str
    classes: tuple[str, ...]
    task: Task
    lower: LowerSpec
    """The lower segment whose features the head reads."""
    weights: str
    """Where this institution took the lower segment's weights from: ``pretrained``, ``random:SEED``, ``package:NAME``
    or a file."""
    run_id: Hex32
    manifest_hash: Hex32
    interactive: InteractiveConfig | None = None
    """Which part of the lower segment was trained with the head; ``model.pt`` then holds these parameters too."""

    @property
    def tuned(self) -> InteractiveConfig | None:
        """How the lower segment was trained with the head; None: it is the consortium's as it was."""
        return self.interactive


class UpperHead(nn.Module):
    """The released head: raw features (b, dim) -> logits (b, C), one-vs-rest;
    C = 1 for a binary task (the positive class).

    The arithmetic is :meth:`focal.segments.projection.Projection.apply` in the same order and in float64: clip
    raw features to [-B, B], project to R - 1 components, clip their norm to 2 sqrt(R), append the bias 1,
    multiply by ``weights`` (R, C). In float32 the projection of a wide segment loses three digits to
    cancellation against the offset.
    """

    matrix: Tensor
    offset: Tensor
    weights: Tensor

    def __init__(self, matrix: Tensor, offset: Tensor, weights: Tensor, *, bound: float, task: Task) -> None:
        """``matrix`` (R-1, dim) float32, ``offset`` (R-1,) float32, ``weights`` (R, C) float64.
        Raises ``ValueError`` on other shapes."""
        super().__init__()
        components, outputs = matrix.shape[0], weights.shape[-1]
        if matrix.ndim != 2 or offset.shape != (components,) or weights.shape != (components + 1, outputs):
            shapes = [tuple(value.shape) for value in (matrix, offset, weights)]
            raise ValueError(f"matrix, offset and weights do not fit together: {shapes}")
        if (outputs == 1) != one_output(task):
            raise ValueError(f"a {task} head cannot have {outputs} output columns")
        for name, value in (("matrix", matrix), ("offset", offset), ("weights", weights)):
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} holds values that are not finite")
        self.register_buffer("matrix", matrix.to(torch.float32))
        self.register_buffer("offset", offset.to(torch.float32))
        self.register_buffer("weights", weights.to(torch.float64))
        self.bound, self.task = float(bound), task
        self.trained: dict[str, Tensor] = {}
        """Name -> value of the lower segment's parameters that were trained with the head
        (focal.segments.trainable)."""
        self.max_norm = 2.0 * math.sqrt(components + 1)

    @classmethod
    def from_projection(cls, projection: Projection, weights: object, task: Task) -> UpperHead:
        """From a run's projection and its released weights, an array-like (R, C)."""
        matrix, offset = torch.as_tensor(projection.matrix), torch.as_tensor(projection.offset)
        return cls(matrix.clone(), offset.clone(), torch.as_tensor(weights).clone(), bound=projection.bound, task=task)

    def project(self, raw: Tensor) -> Tensor:
        """(b, dim) raw features -> (b, R) float64 columns, the last of them 1."""
        components = raw.double().clamp(-self.bound, self.bound) @ self.matrix.double().T + self.offset.double()
        norm = components.norm(dim=1, keepdim=True)
        components = components * (self.max_norm / norm.clamp_min(self.max_norm))
        return torch.cat([components, torch.ones_like(norm)], dim=1)

    def forward(self, raw: Tensor) -> Tensor:
        """(b, dim) -> logits (b, C) float32."""
        return (self.project(raw) @ self.weights.double()).float()

    def probabilities(self, raw: Tensor) -> Tensor:
        """(b, dim) -> (b, K) float32, one column per class: see :func:`class_probabilities`."""
        return class_probabilities(self(raw), self.task)


def class_probabilities(logits: Tensor, task: Task) -> Tensor:
    """One-vs-rest logits (b, C) -> probabilities (b, K), K the number of classes.

    ``multilabel``: sigmoids; ``multiclass``: sigmoids normalised to sum 1; ``binary``: (1 - p, p) of the one column.
    """
    if one_output(task):
        return torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=1)
    if task == "multilabel":
        return torch.sigmoid(logits)
    return torch.softmax(nn.functional.logsigmoid(logits), dim=1)  # p_c / sum p, safe where every p underflows


def model_file(run: Path | str) -> Path:
    """``run`` itself, or ``model.pt`` in it. Raises :class:`FocalError` when there is none."""
    path = Path(run)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise FocalError(
            f"{path}: there is no released model here", hint="give the folder of a run that has finished (runs/NAME)"
        )
    return path


def save(path: Path, head: UpperHead, meta: ModelMeta) -> None:
    """Write ``head`` and ``meta`` to one file, readable by its owner only."""
    outputs = head.weights.shape[1]
    if head.task != meta.task or outputs != output_count(len(meta.classes), meta.task):
        raise ValueError(
            f"a {head.task} head with {outputs} columns does not fit {meta.task} with {len(meta.classes)} classes"
        )
    if head.matrix.shape[1] != meta.lower.dim:
        raise ValueError(f"the head reads {head.matrix.shape[1]} features, the lower segment gives {meta.lower.dim}")
    state = {name: value.cpu() for name, value in head.state_dict().items()}
    buffer = io.BytesIO()
    trained = {name: value.detach().cpu() for name, value in head.trained.items()}
    content = {
        "format": FORMAT,
        "bound": head.bound,
        "state": state,
        "trained": trained,
        "meta": meta.model_dump(mode="json"),
    }
    torch.save(content, buffer)
    private_write(path, buffer.getvalue())


def load(run: Path | str) -> tuple[UpperHead, ModelMeta]:
    """Read a run folder's ``model.pt`` (or the file itself). Raises :class:`FocalError` naming the file when it
    is not a released model."""
    path = model_file(run)
    foreign = FocalError(
        f"{path}: is not a released FOCAL model, or is damaged", hint="copy it again from the run that wrote it"
    )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        raise foreign from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise foreign
    try:
        meta = ModelMeta.model_validate(content["meta"])
        head = UpperHead(**content["state"], bound=content["bound"], task=meta.task).eval()
        head.trained = dict(content.get("trained", {}))
        return head, meta
    except (KeyError, TypeError, ValueError, AttributeError):  # ValueError: pydantic's ValidationError is one
        raise foreign from None


class ReleasedModel(nn.Module):
    """Lower segment and head in one module: preprocessed images (b, 3, s, s) -> logits (b, C).

    ::

        model = ReleasedModel.load("runs/retina")
        x = preprocess(image, model.meta.lower)      # focal.segments.lower
        model.probabilities(x[None])                 # (1, K), in the order of model.meta.classes
    """

    def __init__(self, lower: nn.Module, head: UpperHead, meta: ModelMeta) -> None:
        super().__init__()
        self.lower, self.head, self.meta = lower, head, meta

    @classmethod
    def load(cls, run: Path | str, weights: str | None = None) -> ReleasedModel:
        """From a run folder or a ``model.pt``; ``weights``: source of the lower segment's weights,
        default the one recorded.

        Raises :class:`FocalError` when the weights are not those the model was trained on.
        """
        head, meta = load(run)
        return cls(lower_segment(meta, weights, head.trained), head, meta).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lower(x))

    def probabilities(self, x: Tensor) -> Tensor:
        """(b, 3, s, s) -> (b, K), one column per class of ``meta.classes``."""
        return self.head.probabilities(self.lower(x))


def lower_segment(
    meta: ModelMeta, weights: str | None = None, trained: Mapping[str, Tensor] | None = None
) -> LowerSegment:
    """The lower segment that a released head needs, from ``weights`` (default: the recorded source),
    with what was ``trained`` of it.

    Raises :class:`FocalError` when they cannot be read or do not hash to what the head's consortium pinned.
    """
    from focal.segments.lower import build_lower  # timm takes a second to import, and the head alone does not need it

    segment = build_lower(meta.lower, weights or meta.weights)[0]
    if meta.tuned is None:
        return segment
    from focal.segments.lower import lower_spec
    from focal.segments.trainable import TrainableSegment

    grown = TrainableSegment(segment, meta.tuned)  # with LoRA or adapters where the run had them
    grown.load_trained(trained or {})
    grown.requires_grad_(False)
    grown.lower.spec = lower_spec(grown.lower)
    return grown.lower


def released_digest(run: Path | str) -> str:
    """SHA-256 (hex) of a released head's numbers: the same at every institution, whatever its file says beside them."""
    head, _ = load(run)
    found = framing.Digest(b"focal/released/v1")
    named = {
        "matrix": head.matrix,
        "offset": head.offset,
        "weights": head.weights,
        "bound": torch.tensor(head.bound),
        **head.trained,
    }
    for name, value in named.items():
        array = value.numpy()
        found.add(
            f"{name} {array.dtype.name} {array.shape}".encode(), array.astype(array.dtype.newbyteorder("<")).tobytes()
        )
    return found.hexdigest()
