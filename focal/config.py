"""What a run is: the configuration a person writes, and the local file that stays at home.

::

    retina.yaml  --focal train-->  manifest.json   + one local file per party   (all on this machine)
    RunConfig                      focal.manifest    LocalConfig

    several machines:  focal manifest new | add | sign  ->  manifest.json  (the same bytes everywhere)
                       each party writes its own LocalConfig by hand: data, keys, device, policy

A run is of one protocol, and a configuration has the settings that this protocol reads::

    RunConfig                 what both read
    +- BlindRunConfig         protocol: blind, which is what a file means that names none
    +- InteractiveRunConfig   protocol: interactive

All models are frozen and reject unknown keys, so that a misspelt option, or one that the run's protocol does not read,
is an error and never silently a default. Below it stand :mod:`focal.settings`, which it hands on, and
:mod:`focal.task`: every other module may import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    Field,
    ModelWrapValidatorHandler,
    model_validator,
)

from focal.settings import ANEW as ANEW
from focal.settings import NO_GROUP as NO_GROUP
from focal.settings import OLD as OLD
from focal.settings import OTHER as OTHER
from focal.settings import VERSION as VERSION
from focal.settings import WHITEN_FLOOR as WHITEN_FLOOR
from focal.settings import DatasetConfig as DatasetConfig
from focal.settings import Device as Device
from focal.settings import Family as Family
from focal.settings import Hex32 as Hex32
from focal.settings import LowerConfig as LowerConfig
from focal.settings import Model as Model
from focal.settings import ModelArg as ModelArg
from focal.settings import Name as Name
from focal.settings import Positive as Positive
from focal.settings import Precision as Precision
from focal.settings import Seed as Seed
from focal.settings import SegmentOptions as SegmentOptions
from focal.settings import SlidesConfig as SlidesConfig
from focal.settings import Text as Text
from focal.settings import earlier as earlier
from focal.settings import printable as printable
from focal.settings import weights_file as weights_file


class PartitionConfig(Model):
    """How one data set is dealt to institutions (local runs only; on several machines each brings its own)."""

    by: Literal["column", "patient", "dirichlet"] = "patient"
    """``column``: the table's ``institution`` column; ``patient``: groups at random;
    ``dirichlet``: label-skewed groups."""
    alpha: float = Field(0.5, gt=0)
    """``dirichlet``: smaller is more skewed."""


class AnyProjectionConfig(Model):
    """From raw features to columns, in both protocols. The interactive one begins with it, where it has no start;
    how many columns it has say its own settings."""

    kind: Literal["whiten", "random"] = "whiten"
    bound: float = Field(32.0, gt=0)
    """B: every raw feature is clipped to [-B, B]; a constant of the manifest, never computed from patients' data."""
    floor: float = Field(WHITEN_FLOOR, ge=0.01, le=1)
    """``whiten``: eigenvalues below this part of the largest count as if they were this large, so that noise is not
    blown up. Smaller where there are many rows and columns."""

    @model_validator(mode="after")
    def _floor_of_a_whitening(self) -> AnyProjectionConfig:
        if self.kind != "whiten" and self.floor != WHITEN_FLOOR:
            raise ValueError("'floor' belongs to kind whiten")
        return self


class ProjectionConfig(AnyProjectionConfig):
    """From raw features to the R columns that are encrypted."""

    features: Literal[32, 64, 128, 256, 512] = 64
    """R: R - 1 components and the bias column."""


class AnyTrainingConfig(Model):
    """What the step size depends on that is agreed with a projection, in both protocols."""

    ridge: float = Field(0.1, gt=0, le=1)


class TrainingConfig(AnyTrainingConfig):
    """Full-batch gradient descent of the one-vs-rest head."""

    steps: int = Field(5, ge=2, le=50)
    """One step alone would release a gradient whose noise its institution knows (SECURITY.md,
    "What is not protected")."""
    degree: Literal[3, 5, 7] = 3
    """Degree of the sigmoid polynomial; 5 and 7 cost one more refresh per block and class group."""


class InteractiveConfig(Model):
    """The interactive protocol: how joint steps go, and what trains at the institutions."""

    steps: int = Field(200, ge=1, le=100_000)
    """Joint steps; every institution that is present brings one batch to each."""
    batch: int = Field(32, ge=1, le=4096)
    """Rows that an institution brings to a joint step at most."""
    batches: dict[Name, Annotated[int, Field(ge=1, le=4096)]] = {}
    """Institutions that bring another number: ``{small-clinic: 8}``."""
    features: Literal[32, 64, 128, 256] = 64
    """R: the bottleneck before the cut, R - 1 learned features and the bias column."""
    trainable: Literal["all", "last", "norm", "lora", "adapter", "bottleneck"] = "all"
    """What trains beside the bottleneck: the whole segment, its last ``blocks``, its normalisations' scale and shift,
    LoRA or adapters."""
    blocks: int = Field(2, ge=1)
    """``last``: how many blocks."""
    rank: int = Field(8, ge=1, le=256)
    """``lora`` and ``adapter``: their inner width."""
    head_rate: float = Field(0.1, gt=0, lt=100)
    """Step size of the encrypted head (SGD), divided by the rows present."""
    momentum: float = Field(0.9, ge=0, lt=1)
    rate: float = Field(2e-4, gt=0)
    """Peak rate of the lower segment (AdamW)."""
    bottleneck_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["one-cycle", "constant"] = "one-cycle"
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    class_weights: float = Field(0.5, ge=0, le=1)
    """Classes weigh n^-p in the loss, n their rows over all institutions; 0: all the same."""
    augment: bool = True
    """Flips and brightness."""
    average_every: int = Field(5, ge=1)
    """Joint steps between two averages of the trainable parameters."""
    max_average_mb: float = Field(64.0, gt=0, le=64)
    """Largest contribution of an institution to one average; more trainable parameters are refused
    before the run begins."""
    proximal: float = Field(0.0, ge=0)
    """FedProx: weight of the squared distance to the last average."""
    straggler_seconds: float = Field(60.0, gt=0)
    """How long a joint step waits for an institution before it goes on without it."""
    min_rows_of_others: int = Field(32, ge=1)
    """No opening to an owner of a step in which the others have fewer rows together."""
    max_openings_per_key: int = Field(4096, ge=2)
    """Openings over all owners that a custodian gives under one key."""
    dp_head_noise: float = Field(0.0, ge=0)
    """Standard deviation of the noise that each custodian adds to every head weight at each step; 0: none."""
    seed: Seed = 0
    """Draws the bottleneck and the order of batches: the same for all."""


class CkksConfig(Model):
    """CKKS parameters; 128-bit security by the HE standard is enforced whatever is written here."""

    ring: Literal[16384, 32768] = 16384
    scale_bits: int = Field(45, ge=40, le=50)
    first_bits: int = Field(60, ge=55, le=60)


class LayoutConfig(Model):
    """How rows, features and classes share the slots; ``None``: the planner chooses (and prints what it chose)."""

    class_lanes: Literal[1, 2, 4, 8, 16, 32] | None = None
    """k, a power of two."""
    feature_lanes: Literal[1, 2, 4, 8] | None = None
    """f, a power of two."""
    link_mbyte_s: float = Field(12.5, gt=0)
    """The slowest institution's upload speed that the planner weighs against compute."""


def numbered(institutions: int) -> tuple[str, ...]:
    """The names of institutions that were given none."""
    return tuple(f"hospital-{chr(ord('a') + i)}" if i < 26 else f"hospital-{i}" for i in range(institutions))


class ConsortiumConfig(Model):
    """Who takes part in a local run."""

    institutions: (
        Annotated[int, Field(ge=2, le=500, strict=True)] | Annotated[tuple[Name, ...], Field(min_length=2)]
    ) = 3
    """How many, or their names."""
    custodians: int = Field(3, ge=2, le=8)
    partition: PartitionConfig = PartitionConfig()
    approve: Literal["auto", "human"] = "auto"
    """``human``: every custodian waits for ``focal approve RUN`` before the release."""
    verify: Literal["first", "all", "none"] = "first"
    """Which custodians re-run every step before they answer (lockstep). The first of them is the guard,
    which answers last."""
    accept_leak: bool = False
    """Allow fewer than three institutions although each then learns the other's pooled moments."""
    threshold: int | None = Field(None, ge=2, le=8)
    """How many custodians suffice to use the key; default: all (:attr:`Manifest.threshold`)."""
    share_blocks: bool = False
    """Put rows of several institutions into one block (:attr:`Manifest.share_blocks`)."""
    clinics: tuple[Name, ...] = ()
    """Institutions, beside the others, that come once, and may stay away (:attr:`Member.clinic`)."""
    closing: AwareDatetime | None = None
    """Until when rows may be uploaded, in a blind run (:attr:`Manifest.closing`)."""
    pooled_roc: bool = False
    """A ROC curve over all institutions' test rows, from histograms that they add up by secure sum
    (:attr:`Manifest.pooled_roc`)."""
    pooled_by: tuple[str, ...] = ()
    """Also by subgroup, in a blind run: ``age:50,65``, ``sex:female,male`` (:attr:`Manifest.pooled_by`)."""
    pooled_until: AwareDatetime | None = None
    """Until when clinics may hand in their test results (:attr:`Manifest.pooled_until`)."""
    pooled_least: int = Field(3, ge=2)
    """Of fewer clinics none are added up (:attr:`Manifest.pooled_least`)."""

    @model_validator(mode="after")
    def _names_differ(self) -> ConsortiumConfig:
        if self.threshold is not None and self.threshold > self.custodians:
            raise ValueError(f"threshold {self.threshold} is more than the {self.custodians} custodians")
        names = ["server", *self.custodian_names(), *self.institution_names(), *self.clinics]
        if len(set(names)) != len(names):
            raise ValueError("institutions need different names, other than 'server' and 'custodian-N'")
        return self

    def site_names(self) -> tuple[str, ...]:
        """Founders and clinics."""
        return (*self.institution_names(), *self.clinics)

    def institution_names(self) -> tuple[str, ...]:
        return self.institutions if isinstance(self.institutions, tuple) else numbered(self.institutions)

    def custodian_names(self) -> tuple[str, ...]:
        return tuple(f"custodian-{i + 1}" for i in range(self.custodians))


Protocol = Literal["blind", "interactive"]
"""Of each there is one of :data:`RUN_CONFIGS`."""


class _Said(BaseModel):
    """What a configuration says of its protocol, whatever else it holds."""

    protocol: Protocol = "blind"


class RunConfig(Model):
    """A whole local run: ``focal train --config retina``.

    Whoever makes one gets that of its protocol: ``RunConfig(name="eyes", dataset=...)`` is a :class:`BlindRunConfig`.
    """

    name: Name
    protocol: Protocol
    dataset: DatasetConfig
    lower: LowerConfig = LowerConfig()
    projection: AnyProjectionConfig = AnyProjectionConfig()
    training: AnyTrainingConfig = AnyTrainingConfig()
    ckks: CkksConfig = CkksConfig()
    consortium: ConsortiumConfig = ConsortiumConfig()
    device: Device = "auto"
    """Where lower segments run: ``auto``, ``cpu`` or ``cuda``."""
    seed: Seed = 0

    def __new__(cls, **fields: Any) -> Any:
        return super().__new__(cls.kind(fields) if cls is RunConfig else cls)

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_protocol(cls, fields: Any, handler: ModelWrapValidatorHandler[RunConfig]) -> RunConfig:
        if cls is RunConfig and not isinstance(fields, RunConfig):
            return cls.kind(fields).model_validate(fields)
        return handler(fields)

    @staticmethod
    def kind(fields: Mapping[str, Any]) -> type[RunConfig]:
        """That of the protocol which the fields of a configuration say."""
        said = _Said.model_validate(fields).protocol
        return next(kind for kind in RUN_CONFIGS if kind.model_fields["protocol"].default == said)

    @property
    def earlier(self) -> Path | None:
        """The configuration whose finished run this one starts from."""
        return None

    @property
    def compared(self) -> tuple[Path, ...]:
        """Runs whose models are scored beside this one's."""
        return ()

    @property
    def dataset_name(self) -> str:
        """The data file's stem; it names the data set in ``summary.json``."""
        source = self.dataset.table or self.dataset.file
        return source.stem if source else "synthetic"


class BlindRunConfig(RunConfig):
    """A run of the blind protocol."""

    protocol: Literal["blind"] = "blind"
    projection: ProjectionConfig = ProjectionConfig()
    training: TrainingConfig = TrainingConfig()
    layout: LayoutConfig = LayoutConfig()


class InteractiveRunConfig(RunConfig):
    """A run of the interactive protocol."""

    protocol: Literal["interactive"] = "interactive"
    interactive: InteractiveConfig = InteractiveConfig()
    start: Path | None = None
    """Where this run begins. The folder of a finished run, or another configuration (``.yaml``, beside this one):
    its newest finished run, which is made first when there is none."""
    fedavg: bool = False
    """Compare with FedAvg of the whole network in plaintext as well, at the same rhythm of averages
    (:mod:`focal.baselines.whole`); it takes as long as the twin."""
    beside: tuple[Path, ...] = ()
    """Other runs of the same data whose released models are scored on this run's test patients too: each as in
    ``start``."""
    precision: Precision = "32-true"
    """Lightning's precision flag (``bf16-mixed`` on a GPU that has it)."""
    logger: Literal["csv", "tensorboard"] = "csv"
    """Where each institution's loss and rate are logged, in its own folder."""

    @property
    def earlier(self) -> Path | None:
        return self.start if self.start is not None and self.start.suffix == ".yaml" else None

    @property
    def compared(self) -> tuple[Path, ...]:
        return self.beside

    @model_validator(mode="after")
    def _takes_every_step_with_all(self) -> InteractiveRunConfig:
        if self.dataset.kind == "slides":
            raise ValueError("dataset kind 'slides' belongs to protocol blind")
        for field in ("share_blocks", "clinics", "closing", "pooled_by", "pooled_until"):
            if getattr(self.consortium, field):
                raise ValueError(f"'consortium.{field}' belongs to protocol blind")
        return self


RUN_CONFIGS: tuple[type[RunConfig], ...] = (BlindRunConfig, InteractiveRunConfig)


# --------------------------------------------------------------------------- local file


class LocalConfig(Model):
    """What one party keeps to itself: ``focal institution --manifest M --local L.yaml``."""

    name: Name
    keys: Path
    """The party's private identity, written by ``focal keys new`` (0600)."""
    state: Path
    """Folder for this party's journal, ledger, ciphertexts and results."""
    data: DatasetConfig | None = None
    """Institution: its own images and labels."""
    weights: str | None = None
    """Institution: ``pretrained``, ``random:SEED``, ``package:NAME`` or a file; must hash to the manifest's
    ``weights_sha256``."""
    device: Device = "auto"
    precision: Precision = "32-true"
    logger: Literal["csv", "tensorboard"] = "csv"
    threads: int | None = Field(None, ge=1)
    """Worker threads for encrypted arithmetic; default: the number of processors."""
    memory_gb: float = Field(2.0, gt=0)
    """Server and custodian: encrypted rows kept in memory while training, with ``compute: ray`` by each worker; the
    others are kept in a file of the state folder, 0.8 MB a ciphertext (by workers they are made again), and read in
    every pass."""
    compute: Literal["threads", "ray"] = "threads"
    """Server and verifying custodian, blind: who takes the steps, threads of this process or workers on a Ray cluster
    of this party's own (``pip install focal[ray]``)."""
    ray_address: str | None = None
    """Of that cluster: ``auto``, when this machine is one of its nodes and of no other's, or ``host:port``; by default
    one is started here, and ends with the process."""
    verify: Literal["off", "lockstep"] | None = None
    """Custodian: must repeat what the manifest says of it."""
    approve: Literal["auto", "human"] | None = None
    """Custodian: may be stricter than the manifest, never laxer."""
    lost_seconds: float | None = Field(None, ge=30)
    """Server: a custodian that was not heard of for so long is given up, where the manifest's threshold allows it; by
    default people say so (``focal epoch lost``)."""
    bind: str | None = None
    """Server: where to listen when it differs from the manifest's endpoint, ``tcp://*:port``."""
    cache: Path | None = None
    """Institution: folder for cached features; default: inside ``state``."""
    seed: Seed = 0
    """Institution: seeds the split of a table that has no ``split`` column, and its batches."""
    stay: bool = False
    """Clinic: stay until the model is there. By default it leaves after its upload, and comes back for it."""
    start: Path | None = None
    """Institution, interactive: the released model (a run's folder or ``model.pt``)
    that the manifest's ``start`` pins."""

    @model_validator(mode="after")
    def _no_address_without_cluster(self) -> LocalConfig:
        if self.ray_address is not None and self.compute != "ray":
            raise ValueError("'ray_address' belongs to compute: ray")
        return self
