"""One method on one case, kept on disk: what it reached and what it cost. A finished cell is not run again.

::

    OUT/cells/ocular.skewed-3.fedavg.0.json   AUROC, intervals, seconds, bytes, hash of the configuration
    OUT/cells/ocular.skewed-3.fedavg.0.npz    scores and labels of the test rows, AUROC of every resample:
                                              what intervals are made of

The JSON is written last: it marks a cell as finished. The arrays are 0600, as everything with one row per patient is.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from focal import framing
from focal.config import Hex32, Model
from focal.errors import FocalError
from focal.files import canonical_json, private_write
from focal.measure.metrics import Floats, auroc_per_class, macro_auroc, resampled_auroc
from focal.measure.summary import Interval, Score, Seconds_
from focal.measure.traffic import Traffic
from focal.reading import write
from focal.task import Task

REPEATS = 1000
"""Resamples of the patients for an interval."""


class Key(NamedTuple):
    """Which cell."""

    table: str
    dealing: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.table}.{self.dealing}.{self.method}.{self.seed}"


class Point(Model):
    """Where a method stood after a round."""

    auroc: Score
    seconds: Seconds_
    bytes: Annotated[float, Field(ge=0)]
    """Of an institution so far, both ways."""


class ModelScore(Model):
    """One model on the test rows."""

    auroc: Score
    ci95: Interval
    per_class: dict[str, float | None]
    """``None``: the class cannot be scored."""


class Cell(Model):
    """What one method did on one case."""

    version: Literal[1] = 1
    table: str
    dealing: str
    method: str
    seed: int
    configuration: Hex32
    models: dict[str, ModelScore] = Field(min_length=1)
    """By name: ``model``, or one of each institution."""
    seconds: Seconds_
    """Of the method itself, features apart."""
    spent: Seconds_
    """Of making this cell, scoring included: what a repeat costs."""
    traffic: dict[str, Traffic] = {}
    """Bytes of every party that sends or receives; none where nothing is sent."""
    curve: tuple[Point, ...] = ()
    """Round by round, where a method shows that."""
    facts: dict[str, float] = {}
    """Further measures of the method: the error of the released weights, epsilon."""


@dataclass(frozen=True)
class Arrays:
    """What a cell keeps of the test rows."""

    task: Task
    labels: NDArray[np.uint8]
    """(n, K)"""
    scores: dict[str, Floats]
    """Model -> (n, C)."""
    resamples: dict[str, Floats]
    """Model -> (:data:`REPEATS`,) macro AUROC of each resample of the patients:
    the same resamples for every cell of a table."""


def digest(configuration: Any) -> str:
    """SHA-256 of anything that JSON can spell."""
    return framing.digest(b"focal/cell/v2", canonical_json(configuration)).hex()


def measure(
    labels: NDArray[np.uint8], scores: Floats, groups: NDArray[np.int64], task: Task, classes: tuple[str, ...]
) -> tuple[ModelScore, Floats]:
    """(:class:`ModelScore`, resamples (:data:`REPEATS`,)) of one model."""
    per_class = auroc_per_class(labels, scores, task)
    resamples = resampled_auroc(labels, scores, groups, task, repeats=REPEATS)
    named = {name: None if np.isnan(v) else float(v) for name, v in zip(classes, per_class, strict=True)}
    return ModelScore(auroc=macro_auroc(labels, scores, task), ci95=interval(resamples), per_class=named), resamples


def interval(resamples: Floats) -> tuple[float, float]:
    """Ends of the 95 % percentile interval."""
    low, high = np.nanpercentile(resamples, [2.5, 97.5])
    return float(low), float(high)


F = TypeVar("F", bound=Model)


def read_finished(path: Path, kind: type[F], configuration: str) -> F | None:
    """The finished piece of work that ``path`` marks, if there is one. Raises :class:`FocalError` when the file is
    damaged or of another configuration."""
    if not path.exists():
        return None
    try:
        found = kind.model_validate_json(path.read_bytes())
    except ValidationError:
        raise FocalError(f"{path}: is no cell of this version", hint="delete the file: the cell is run again") from None
    made: str = found.configuration  # type: ignore[attr-defined]  # every kind of cell has one
    if made != configuration:
        raise FocalError(
            f"{path}: was made under another configuration ({made[:12]}, now {configuration[:12]})",
            hint="give another folder with --out, or delete this one: "
            "cells of two configurations do not belong in one table",
        )
    return found


class Store:
    """The cells of one results folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cells"

    def _path(self, key: Key, suffix: str) -> Path:
        return self.folder / f"{key}.{suffix}"

    def find(self, key: Key, configuration: str) -> Cell | None:
        """The finished cell, if there is one. Raises :class:`FocalError` when it is damaged
        or of another configuration."""
        return read_finished(self._path(key, "json"), Cell, configuration)

    def keep(self, cell: Cell, arrays: Arrays) -> None:
        key = Key(cell.table, cell.dealing, cell.method, cell.seed)
        buffer = io.BytesIO()
        named: dict[str, Any] = {f"scores/{m}": v for m, v in arrays.scores.items()}
        named |= {f"resamples/{m}": v for m, v in arrays.resamples.items()}
        np.savez_compressed(buffer, task=np.array(arrays.task), labels=arrays.labels, **named)
        private_write(self._path(key, "npz"), buffer.getvalue())
        write(cell, self._path(key, "json"))

    def arrays(self, cell: Cell) -> Arrays:
        path = self._path(Key(cell.table, cell.dealing, cell.method, cell.seed), "npz")
        try:
            with np.load(path) as f:
                parts = {kind: {m: f[f"{kind}/{m}"] for m in cell.models} for kind in ("scores", "resamples")}
                return Arrays(str(f["task"]), f["labels"], **parts)  # type: ignore[arg-type]  # a Task was written
        except (OSError, KeyError, ValueError, zipfile.BadZipFile):
            hint = f"delete {path.with_suffix('.json').name}: the cell is run again"
            raise FocalError(f"{path}: is missing or damaged", hint=hint) from None
