"""What is reproduced on which data: the paper's tables, how their rows are dealt to institutions,
and what is missing to do better.

::

    retina.yaml --load, features--> Source (one table, all rows) --partition, seed--> Case (sites' rows, projection)
                                                                                          |
                             every method, encrypted or not, starts from these rows  <----+

The features of a :class:`Source` and those of an encrypted run come from one cache, so that both see the same numbers.
Methods that fine-tune do so on the same rows with the small segment that their rates were chosen for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal.config import BlindRunConfig, ConsortiumConfig, PartitionConfig, RunConfig, weights_file
from focal.data import load
from focal.data.partition import partition
from focal.data.rows import InstitutionRows
from focal.data.table import Table
from focal.errors import FocalError
from focal.measure.metrics import Floats
from focal.reading import read
from focal.segments.projection import Projection, moment_values, pooled_moments, whiten
from focal.task import Task, scored_classes


@dataclass(frozen=True)
class Dealing:
    """How one table's rows become institutions."""

    name: str
    title: str
    institutions: int
    by: PartitionConfig


BY_PATIENT = Dealing("patient-3", "3 institutions by patient", 3, PartitionConfig(by="patient"))
SKEWED_3 = Dealing(
    "skewed-3", "3 label-skewed institutions (Dirichlet, alpha 0.5)", 3, PartitionConfig(by="dirichlet", alpha=0.5)
)
SKEWED_8 = Dealing(
    "skewed-8", "8 label-skewed institutions (Dirichlet, alpha 0.5)", 8, PartitionConfig(by="dirichlet", alpha=0.5)
)


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper, and what stands in for its data here."""

    number: int
    name: str
    title: str
    config: str
    """File in :data:`focal.configs.FOLDER`."""
    dealings: tuple[Dealing, ...]
    missing: str
    """What cannot be reproduced, said beside the table."""
    measures: bool = False
    """Whether accuracy, precision, recall and F1 are shown, as SPE-FL's authors do."""
    gain: float | None = None
    """The paper's gain over single institutions, percent."""
    small: str | None = None
    """A file with the same data and a small segment, for methods that train one (:attr:`Method.small`)."""


NO_WEIGHTS = (
    "Not reproduced: the paper's foundation models (weights not public), its private images, and its "
    "split point and parameters (its abstract states none). Here a small public network's frozen features stand in, "
    "so that AUROCs are lower than the paper's 0.98; what can be compared are differences between methods."
)

TABLES = (
    PaperTable(
        number=1,
        name="ocular",
        title="Ocular disease diagnosis: ODIR-5K, 8 classes",
        config="retina.yaml",
        small="retina64.yaml",
        dealings=(BY_PATIENT, SKEWED_3, SKEWED_8),
        missing=NO_WEIGHTS
        + " Rare classes have 28 to 61 test images: the macro AUROC is no better known than its interval says.",
        gain=9.62,
    ),
    PaperTable(
        number=2,
        name="severity",
        title="Severity: RetinaMNIST, 5 grades of diabetic retinopathy",
        config="severity.yaml",
        small="severity64.yaml",
        dealings=(BY_PATIENT, SKEWED_3),
        missing=NO_WEIGHTS + " Images have 28 x 28 pixels and no patient ids: intervals are by image.",
        gain=14.46,
    ),
    PaperTable(
        number=3,
        name="pathology",
        title="Pathology: LC25000 colon tiles, benign or adenocarcinoma",
        config="pathology.yaml",
        small="pathology64.yaml",
        dealings=(BY_PATIENT,),
        missing=NO_WEIGHTS
        + " Tiles are augmented copies of few clusters, so an AUROC near 1 is no evidence of anything.",
    ),
    PaperTable(
        number=4,
        name="xray",
        title="Chest X-ray: PneumoniaMNIST, normal or pneumonia (the task of SPE-FL)",
        config="xray.yaml",
        small="xray128.yaml",
        dealings=(BY_PATIENT,),
        measures=True,
        missing=NO_WEIGHTS
        + " SPE-FL (Gomathi et al.) is rebuilt from its abstract, with a small ResNet from random weights: "
        "its 99.6 % are of COVID images that are not here, and of a ResNet-50. "
        "Images have 28 x 28 pixels and no patient ids.",
    ),
)


@dataclass(frozen=True)
class Case:
    """One table dealt one way with one seed: what every method gets."""

    config: BlindRunConfig
    """What the encrypted run is made from."""
    runs: Path
    """Where encrypted runs lie, with the cache of features."""
    rows: Mapping[str, InstitutionRows]
    table: Table
    """For methods that read images."""
    parts: Mapping[str, NDArray[np.int64]]
    """Institution -> the table's rows that are its own, in the order of ``rows``."""
    pixels: Callable[[], Mapping[str, InstitutionRows]]
    """``rows`` with 8 x 8 grey pixels for features, read when asked for (:func:`focal.baselines.scratch.pixels`)."""
    dealt: Callable[[int], Case]
    """The same rows dealt the same way with another seed."""
    projection: Projection
    task: Task
    classes: tuple[str, ...]
    """The scored ones: a binary task's positive class."""
    labels: NDArray[np.uint8]
    """(n, K) of the test rows, in the table's order."""
    groups: NDArray[np.int64]
    """(n,) a number for each patient of the test rows."""
    order: NDArray[np.int64]
    """(n,) where each test row, in the table's order, stands in :attr:`scored`."""

    @cached_property
    def scored(self) -> InstitutionRows:
        """The test rows of all institutions, in the order of ``rows``."""
        return InstitutionRows.union(self.rows).scored

    @property
    def train_rows(self) -> int:
        return sum(int((own.split == "train").sum()) for own in self.rows.values())

    def by_table(self, scores: Floats) -> Floats:
        """(n, C) scores of :attr:`scored`, in the table's order: the same for every dealing and seed."""
        return np.ascontiguousarray(scores[self.order])


class Source:
    """One paper table's data on this machine. Raises :class:`FocalError` when it is not there."""

    def __init__(self, paper: PaperTable, configs: Path, runs: Path) -> None:
        self.paper, self.runs, self._where = paper, runs, (configs, runs)
        config = read(RunConfig, configs / paper.config)
        assert isinstance(config, BlindRunConfig)
        self.config = config
        weights = self.config.lower.weights
        needed = [self.config.dataset.table, self.config.dataset.images]
        needed.append(weights_file(weights))
        absent = [str(path) for path in needed if path is not None and not path.exists()]
        if absent:
            raise FocalError(f"not found: {', '.join(absent)}", hint="set FOCAL_DATA to the folder that holds it")
        self.table = load(self.config.dataset, self.config.seed)

    def run_config(self, dealing: Dealing, seed: int) -> BlindRunConfig:
        """The configuration of the encrypted run."""
        consortium = self.config.consortium.model_dump() | {
            "institutions": dealing.institutions,
            "partition": dealing.by,
        }
        name = f"{self.paper.name}-{dealing.name}-s{seed}"
        return self.config.model_copy(
            update={"name": name, "seed": seed, "consortium": ConsortiumConfig.model_validate(consortium)}
        )

    @cached_property
    def small(self) -> Source:
        """The same rows with the small segment. Its seeds deal them as this one's do."""
        return self if self.paper.small is None else Source(replace(self.paper, config=self.paper.small), *self._where)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What the configuration's paths hold: digests for names, so that a folder of results can
        move with its data."""
        data = self.config.dataset
        files = {"table": data.table, "file": data.file}
        weights = weights_file(self.config.lower.weights)
        if weights is not None and weights.is_file():
            files["weights"] = weights
        found = {
            name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if path is not None
        }
        return found | ({} if data.images is None or data.images.is_dir() else {"images": data.images.stat().st_size})

    @cached_property
    def pixels(self) -> NDArray[np.float32]:
        """(rows, 64)"""
        from focal.baselines.scratch import pixels

        return pixels(self.table.images, len(self.table))

    @cached_property
    def features(self) -> NDArray[np.float32]:
        """(rows, dim) of the whole table; computed once, then cached on disk."""
        from focal.segments.lower import build_lower, weights_source
        from focal.training.features import compute_features

        segment, _ = build_lower(self.config.lower, self.config.lower.weights)
        segment, _ = build_lower(segment.spec, weights_source(self.config.lower))
        every = np.arange(len(self.table))
        return compute_features(segment, self.table, every, device=self.config.device, cache=self.runs / "cache")

    def case(self, dealing: Dealing, seed: int) -> Case:
        """The table's rows dealt to institutions, and the projection that they agree on."""
        config, table = self.run_config(dealing, seed), self.table
        parts = partition(table, config.consortium.partition, config.consortium.institution_names(), seed)
        rows = {
            name: InstitutionRows(
                self.features[at], table.labels[at], table.groups[at].astype(str), table.split[at].astype(str)
            )
            for name, at in parts.items()
        }
        tested = np.concatenate([at[table.split[at] == "test"] for at in parts.values()])
        return Case(
            config=config,
            runs=self.runs,
            rows=rows,
            table=table,
            parts=parts,
            pixels=lambda: {name: replace(rows[name], features=self.pixels[at]) for name, at in parts.items()},
            dealt=lambda other: self.case(dealing, other),
            projection=pooled_projection(rows, config),
            task=table.task,
            classes=scored_classes(table.classes, table.task),
            labels=table.labels[table.test_rows],
            groups=np.unique(table.groups[table.test_rows], return_inverse=True)[1].astype(np.int64),
            order=np.argsort(tested, kind="stable"),
        )


def pooled_projection(rows: Mapping[str, InstitutionRows], config: BlindRunConfig) -> Projection:
    """The whitening of all institutions' train rows, as a run makes it from a secure sum."""
    settings = config.projection
    train = [own.features[own.split == "train"] for own in rows.values()]
    n, dim = sum(map(len, train)), train[0].shape[1]
    pooled = np.sum([moment_values(raw, settings.bound, n) for raw in train], axis=0)
    return whiten(
        pooled_moments(pooled, dim, settings.bound, n),
        settings.features,
        settings.bound,
        config.training.ridge,
        settings.floor,
    )
