"""The released head: the same numbers as the projection that was trained on,
a file that loads anywhere and refuses what is not one."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT
from torch import nn

from focal.errors import FocalError
from focal.manifest import LowerSpec
from focal.segments import upper
from focal.segments.projection import Projection
from focal.segments.upper import ModelMeta, ReleasedModel, UpperHead, class_probabilities

DIM, R = 40, 32


def projection(dim: int = DIM, seed: int = 0) -> Projection:
    """Large enough to clip: raw features reach 60, the bound is 32, components exceed the norm 2 sqrt(R)."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(0, 0.3, (R - 1, dim)).astype(np.float32)
    offset = rng.normal(0, 1, R - 1).astype(np.float32)
    return Projection(kind="whiten", matrix=matrix, offset=offset, bound=32.0, features=R, eta_hex=(0.5).hex())


def raw(n: int = 50, dim: int = DIM) -> np.ndarray:
    scale = np.linspace(0.05, 20, n)[:, None]  # small rows stay inside the norm, large ones are clipped
    return (np.random.default_rng(1).normal(0, 1, (n, dim)) * scale).astype(np.float32)


def weights(outputs: int) -> np.ndarray:
    return np.random.default_rng(2).normal(0, 0.2, (R, outputs))


def meta(task: str = "multiclass", classes: tuple[str, ...] = ("N", "D", "G")) -> ModelMeta:
    lower = LowerSpec(
        family="timm", model="m", cut="pooled", image_size=32, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1),
        weights_sha256="ab" * 32, dim=DIM,
    )  # fmt: skip
    return ModelMeta.model_validate(
        dict(
            dataset="set",
            classes=classes,
            task=task,
            lower=lower,
            weights="random:0",
            run_id="01" * 32,
            manifest_hash="02" * 32,
        )
    )


def head(task: str = "multiclass", outputs: int = 3) -> UpperHead:
    return UpperHead.from_projection(projection(), weights(outputs), task)  # type: ignore[arg-type]


@pytest.mark.parametrize("dim", [DIM, 2048])
def test_matches_the_projection_that_was_trained_on(dim: int) -> None:
    x, p = raw(dim=dim), projection(dim)
    columns = p.apply(x)
    norms = np.linalg.norm(columns[:, :-1], axis=1)
    assert (
        (np.abs(x) > p.bound).any() and (norms > 2 * np.sqrt(R) - 1e-9).any() and (norms < 2 * np.sqrt(R) - 1e-3).any()
    )
    module = UpperHead.from_projection(p, weights(3), "multiclass")
    # Both in float64 on the same float32 constants; only the order of at most 2048 additions
    # of numbers below 100 differs.
    np.testing.assert_allclose(module.project(torch.from_numpy(x)).numpy(), columns, atol=1e-10)
    # float32 logits of size below 40: half a unit in the last place is 2e-6.
    np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), columns @ weights(3), atol=1e-5)


def test_probabilities_are_one_column_per_class() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [-300.0, -310.0, -300.0]])
    multilabel = class_probabilities(logits, "multilabel")
    torch.testing.assert_close(multilabel, torch.sigmoid(logits))
    multiclass = class_probabilities(logits, "multiclass")
    torch.testing.assert_close(multiclass[0], multilabel[0] / multilabel[0].sum())
    half, tiny = 1 / (2 + math.exp(-10)), math.exp(-10) / (2 + math.exp(-10))
    torch.testing.assert_close(multiclass[1], torch.tensor([half, tiny, half]))  # where every sigmoid underflows to 0
    binary = class_probabilities(logits[:, :1], "binary")
    torch.testing.assert_close(binary, torch.stack([1 - multilabel[:, 0], multilabel[:, 0]], 1))
    assert head().probabilities(torch.from_numpy(raw())).sum(1).numpy() == pytest.approx(1, abs=1e-5)


def test_a_round_trip_keeps_every_bit_and_is_private(tmp_path: Path) -> None:
    original = head()
    upper.save(tmp_path / "model.pt", original, meta())
    assert (tmp_path / "model.pt").stat().st_mode & 0o777 == 0o600
    for where in (tmp_path, tmp_path / "model.pt"):
        loaded, found = upper.load(where)
        assert found == meta()
        x = torch.from_numpy(raw())
        assert torch.equal(loaded(x), original(x))
        assert torch.equal(loaded.probabilities(x), original.probabilities(x))


def test_loads_without_openfhe_and_without_the_rest_of_the_product(tmp_path: Path) -> None:
    upper.save(tmp_path / "model.pt", head(), meta())
    code = (
        "import sys; sys.modules['openfhe'] = None\n"
        "from focal.segments.upper import load\n"
        f"head, meta = load({str(tmp_path)!r})\n"
        "import torch; print(head(torch.zeros(1, 40)).shape, "
        "any(m.startswith(('focal.ckks', 'focal.net', 'timm')) for m in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == "torch.Size([1, 3]) False"


def test_what_is_not_a_released_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FocalError, match="no released model"):
        upper.load(tmp_path)
    file = tmp_path / "model.pt"
    upper.save(file, head(), meta())
    whole = file.read_bytes()
    for damaged in (b"", b"no torch file", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(FocalError, match="model.pt: is not a released FOCAL model"):
            upper.load(file)
    for content in (
        {"format": "focal-model-0"},
        [1, 2],
        {"format": upper.FORMAT},
        {"format": upper.FORMAT, "meta": {}},
    ):
        torch.save(content, file)
        with pytest.raises(FocalError, match="model.pt"):
            upper.load(file)
    torch.save(nn.Linear(2, 2), file)  # a pickled object: code, which weights_only refuses
    with pytest.raises(FocalError, match="is not a released FOCAL model"):
        upper.load(file)


def test_shapes_and_values_that_do_not_fit_are_refused() -> None:
    good = head()
    with pytest.raises(ValueError, match="do not fit"):
        UpperHead(good.matrix, good.offset, good.weights[:-1], bound=32, task="multiclass")
    with pytest.raises(ValueError, match="binary head cannot"):
        UpperHead(good.matrix, good.offset, good.weights, bound=32, task="binary")
    with pytest.raises(ValueError, match="not finite"):
        UpperHead(good.matrix, good.offset, good.weights * float("nan"), bound=32, task="multiclass")
    with pytest.raises(ValueError, match="does not fit"):
        upper.save(Path("never-written.pt"), good, meta(classes=("A", "B")))
    with pytest.raises(ValueError, match="lower segment gives 40"):
        upper.save(
            Path("never-written.pt"), UpperHead.from_projection(projection(DIM + 1), weights(3), "multiclass"), meta()
        )


def test_released_model_is_lower_then_head() -> None:
    lower = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, DIM)).eval()
    model = ReleasedModel(lower, head(), meta()).eval()
    x = torch.rand(5, 3, 4, 4)
    assert torch.equal(model(x), model.head(lower(x)))
    assert torch.equal(model.probabilities(x), model.head.probabilities(lower(x)))
