"""What a run is: the configuration a person writes, the manifest a consortium signs, the local file that stays at home.

::

    retina.yaml  --focal train-->  manifest.json   + one local file per party   (all on this machine)
    RunConfig                      Manifest          LocalConfig

    several machines:  focal manifest new | add | sign  ->  manifest.json  (the same bytes everywhere)
                       each party writes its own LocalConfig by hand: data, keys, device, policy

All models are frozen and reject unknown keys, so that a misspelt option is an error and never silently a default.
Below it stand :mod:`focal.errors`, :mod:`focal.files` and :mod:`focal.task` only: every other module may import it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from focal.errors import ConfigError
from focal.files import canonical_json, load_yaml, private_write
from focal.task import Task, fits, output_count

OLD = (
    "was made by a version of FOCAL before 2, whose key ceremony let whoever kept its messages read everything: "
    "treat all of it as readable by its server"
)
"""Of manifests, folders, boards, records: why they are refused, and what they must be taken for."""
OTHER = (
    "was made by version 2 of FOCAL, whose messages and training steps were others: it can be read by that version only"
)
"""The same of version 2."""
ANEW = "start a new run with a new manifest, in new folders (the parties' key files stay good)"

VERSION = 3
"""Of manifests, records, databases and frames."""


def earlier(version: object) -> str | None:
    """Why what says that it is of ``version`` is refused, if that is an earlier one."""
    return OLD if version == 1 else OTHER if version == 2 else None


# What could rewrite a terminal's screen, or show a line's words in another order than they have: C0, DEL, C1,
# line and paragraph separators, and the marks that embed, override or isolate a direction of writing.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str, keep: str = "") -> str:
    """``text`` with a question mark for every control character, line separator and bidi override
    that is not in ``keep``."""
    return _STEERING.sub(lambda found: found[0] if found[0] in keep else "?", text)


def _no_controls(text: str) -> str:
    if _STEERING.search(text):
        raise ValueError("holds control characters, line separators or bidi overrides")
    return text


Text = Annotated[str, AfterValidator(_no_controls)]
"""Free text that another member may read on a terminal."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0)]
Protocol = Literal["blind", "interactive"]
OWN_FIELD: dict[Protocol, str] = {"blind": "layout", "interactive": "interactive"}
"""The field that a manifest of this protocol needs, and no other has."""


class Model(BaseModel):
    """Frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# --------------------------------------------------------------------------- data


class DatasetConfig(Model):
    """Where images and labels come from."""

    kind: Literal["table", "medmnist", "synthetic"]
    """``table``: a CSV beside images; ``medmnist``: an ``.npz`` of MedMNIST; ``synthetic``: generated fundus images."""
    table: Path | None = None
    """``table``: the CSV with columns ``filename,label[,patient][,split][,institution]``."""
    images: Path | None = None
    """``table``: the folder or zip that holds the images."""
    file: Path | None = None
    """``medmnist``: the ``.npz``; its stem names the set (``retinamnist``)."""
    classes: tuple[str, ...] | None = None
    """Class order; default: the sorted labels found in the table."""
    task: Task | None = None
    """Default: ``multilabel`` when a label contains ``;``, ``binary`` with two classes, else ``multiclass``."""
    group: str = "patient"
    """The column whose rows belong together: never split between train and test or between institutions."""
    test_fraction: float = Field(0.25, gt=0, lt=1)
    """Used only where the table has no ``split`` column: the share of groups held out, seeded."""
    samples: int = Field(1500, ge=60, le=100_000)
    """``synthetic``: how many images are generated."""
    rows: Path | None = None
    """A text file of row numbers (one a line): the part of the data set that is this institution's."""

    @model_validator(mode="after")
    def _needs(self) -> DatasetConfig:
        need = {"table": ("table", "images"), "medmnist": ("file",), "synthetic": ()}[self.kind]
        for field in need:
            if getattr(self, field) is None:
                raise ValueError(f"dataset kind '{self.kind}' needs '{field}'")
        return self


class PartitionConfig(Model):
    """How one data set is dealt to institutions (local runs only; on several machines each brings its own)."""

    by: Literal["column", "patient", "dirichlet"] = "patient"
    """``column``: the table's ``institution`` column; ``patient``: groups at random;
    ``dirichlet``: label-skewed groups."""
    alpha: float = Field(0.5, gt=0)
    """``dirichlet``: smaller is more skewed."""


class LowerConfig(Model):
    """The frozen lower segment of the foundation model, up to its cut layer."""

    family: Literal["timm", "torchvision"] = "timm"
    model: str = "vit_tiny_patch16_224"
    cut: str = "pooled"
    """``pooled``: the model's pooled features; otherwise the name of a module whose output is pooled to a vector."""
    image_size: int = Field(224, ge=16, le=1024)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Subtracted from RGB on the 0..255 scale."""
    std: tuple[Positive, Positive, Positive] = (58.395, 57.12, 57.375)
    """Divided by, on the 0..255 scale."""
    weights: str = "pretrained"
    """``pretrained`` (timm's hub), ``random:SEED``, or a file with a state dict."""


class ProjectionConfig(Model):
    """From raw features to the R columns that are encrypted."""

    kind: Literal["whiten", "random"] = "whiten"
    features: Literal[32, 64, 128, 256] = 64
    """R: R - 1 components and the bias column."""
    bound: float = Field(32.0, gt=0)
    """B: every raw feature is clipped to [-B, B]; a constant of the manifest, never computed from patients' data."""


class TrainingConfig(Model):
    """Full-batch gradient descent of the one-vs-rest head."""

    steps: int = Field(5, ge=2, le=50)
    """One step alone would release a gradient whose noise its institution knows (SECURITY.md,
    "What is not protected")."""
    ridge: float = Field(0.1, gt=0, le=1)
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
    seed: int = Field(0, ge=0)
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
    pooled_roc: bool = False
    """A ROC curve over all institutions' test rows, from histograms that they add up by secure sum
    (:attr:`Manifest.pooled_roc`)."""

    @model_validator(mode="after")
    def _names_differ(self) -> ConsortiumConfig:
        if self.threshold is not None and self.threshold > self.custodians:
            raise ValueError(f"threshold {self.threshold} is more than the {self.custodians} custodians")
        names = ["server", *self.custodian_names(), *self.institution_names()]
        if len(set(names)) != len(names):
            raise ValueError("institutions need different names, other than 'server' and 'custodian-N'")
        return self

    def institution_names(self) -> tuple[str, ...]:
        if isinstance(self.institutions, tuple):
            return self.institutions
        return tuple(f"hospital-{chr(ord('a') + i)}" if i < 26 else f"hospital-{i}" for i in range(self.institutions))

    def custodian_names(self) -> tuple[str, ...]:
        return tuple(f"custodian-{i + 1}" for i in range(self.custodians))


class RunConfig(Model):
    """A whole local run: ``focal train --config retina``."""

    name: Name
    protocol: Protocol = "blind"
    dataset: DatasetConfig
    lower: LowerConfig = LowerConfig()
    projection: ProjectionConfig = ProjectionConfig()
    training: TrainingConfig = TrainingConfig()
    interactive: InteractiveConfig = InteractiveConfig()
    start: Path | None = None
    """Interactive: where this run begins. The folder of a finished run, or another configuration (``.yaml``,
    beside this one): its newest finished run, which is made first when there is none."""
    ckks: CkksConfig = CkksConfig()
    layout: LayoutConfig = LayoutConfig()
    consortium: ConsortiumConfig = ConsortiumConfig()
    device: str = "auto"
    """Where lower segments run: ``auto``, ``cpu`` or ``cuda``."""
    precision: str = "32-true"
    """Interactive: Lightning's precision flag (``bf16-mixed`` on a GPU that has it)."""
    logger: Literal["csv", "tensorboard"] = "csv"
    """Interactive: where each institution's loss and rate are logged, in its own folder."""
    seed: int = 0

    @property
    def dataset_name(self) -> str:
        """The data file's stem; it names the data set in ``summary.json``."""
        source = self.dataset.table or self.dataset.file
        return source.stem if source else "synthetic"


# --------------------------------------------------------------------------- manifest


class Member(Model):
    """One party of the consortium with its public keys."""

    name: Name
    role: Literal["server", "institution", "custodian"]
    sign: Hex32
    """Ed25519 verification key."""
    seal: Hex32
    """X25519 public key: sealed messages and pairwise masks."""
    curve: Annotated[Text, Field(min_length=40, max_length=40)]
    """CurveZMQ public key (Z85)."""
    endpoint: Text | None = None
    """Server: where the others dial to, ``tcp://host:port``."""
    rows: int | None = Field(None, ge=1)
    """Institution: the number of its training rows."""
    verify: Literal["off", "lockstep"] | None = None
    """Custodian: whether it re-runs every step before it answers."""
    guard: bool = False
    """Custodian that verifies: it answers every refresh last, and only when what is to be refreshed is small
    (focal.custody.refresh)."""

    @model_validator(mode="after")
    def _fits(self) -> Member:
        if self.guard and self.verify != "lockstep":
            raise ValueError(f"member '{self.name}': a guard is a custodian with verify: lockstep")
        for field, role in (("endpoint", "server"), ("rows", "institution"), ("verify", "custodian")):
            if (getattr(self, field) is not None) != (self.role == role):
                raise ValueError(f"member '{self.name}': '{field}' belongs to a {role}, and every {role} needs it")
        return self


class LowerSpec(Model):
    """The lower segment as the consortium pins it."""

    family: Literal["timm", "torchvision"]
    model: Text
    cut: Text
    image_size: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    weights_sha256: Hex32
    """SHA-256 over the names and tensors of the segment's state dict, not of a file: formats differ, weights do not."""
    dim: int = Field(ge=1)
    """Length of the raw feature vector."""


class LayoutSpec(Model):
    """The layout that was planned: k class lanes, f feature lanes."""

    class_lanes: int = Field(ge=1)
    feature_lanes: int = Field(ge=1)

    @model_validator(mode="after")
    def _powers(self) -> LayoutSpec:
        for field, value in self:
            if value & (value - 1):
                raise ValueError(f"{field} must be a power of two, not {value}")
        return self


class Manifest(Model):
    """Everything the members agree on before anything secret exists.
    Signed by each over a domain and :meth:`canonical`."""

    version: Literal[3] = 3
    name: Name
    protocol: Protocol = "blind"
    dataset: Text
    members: tuple[Member, ...]
    classes: tuple[Text, ...]
    task: Task
    lower: LowerSpec
    projection: ProjectionConfig
    training: TrainingConfig
    ckks: CkksConfig
    layout: LayoutSpec | None = None
    """Blind: the layout that was planned."""
    interactive: InteractiveConfig | None = None
    start: Hex32 | None = None
    """Interactive: SHA-256 of the released model from which all begin."""
    approve: Literal["auto", "human"] = "auto"
    accept_leak: bool = False
    threshold: int | None = Field(None, ge=2, le=8)
    """t of a t-of-N key: any t custodians can use it, and N - t of them may be lost. None: all N are needed, and no
    fewer have the key."""
    share_blocks: bool = False
    """Blind: rows of several institutions share blocks of data: fewer blocks for many small institutions. Each is kept
    to its own rows by a mask (``focal manifest check`` says how well), for which custodians contribute more."""
    pooled_roc: bool = False
    """After the release all institutions add up histograms of their test rows' scores: a ROC curve over all sites,
    and no site's scores shown. Every institution has to come back for it."""
    signatures: dict[Name, Text] = {}
    """Member name -> Ed25519 signature (hex), :func:`focal.net.identity.sign_manifest`."""

    @model_validator(mode="after")
    def _members_fit(self) -> Manifest:
        names = [m.name for m in self.members]
        if len(set(names)) != len(names):
            raise ValueError("two members have the same name")
        for field in ("sign", "seal", "curve"):
            if len({getattr(m, field) for m in self.members}) != len(names):
                raise ValueError(
                    f"two members have the same '{field}' key; every member needs its own (focal keys new)"
                )
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have the same name")
        if not fits(len(self.classes), self.task):
            raise ValueError(f"task '{self.task}' does not fit {len(self.classes)} classes")
        needed = OWN_FIELD[self.protocol]
        if getattr(self, needed) is None:
            raise ValueError(f"protocol '{self.protocol}' needs '{needed}'")
        return self

    def check_complete(self) -> None:
        """Raise unless the members can run any protocol: one server, 2 to 8 custodians, enough institutions.

        What its own protocol needs of them as well: :func:`focal.protocols.check_complete`.
        """
        if len(self.by_role("server")) != 1:
            raise ConfigError("a manifest needs exactly one server (focal manifest add --role server)")
        if not 2 <= len(self.custodians) <= 8:
            raise ConfigError(f"a manifest needs 2 to 8 custodians, this one has {len(self.custodians)}")
        if self.needed > len(self.custodians):
            raise ConfigError(
                f"threshold: {self.threshold} custodians are to suffice, this manifest has {len(self.custodians)}"
            )
        guards = [m.name for m in self.custodians if m.guard]
        verifiers = [m.name for m in self.custodians if m.verify == "lockstep"]
        if len(guards) > 1:
            raise ConfigError(
                f"{' and '.join(guards)} are both marked as guard; a run has one, "
                "because only one custodian can answer last (focal manifest add --no-guard for the others)"
            )
        if verifiers and not guards:
            raise ConfigError(
                f"{', '.join(verifiers)} verifies, but no custodian is the guard, so "
                "that one hospital with malformed ciphertexts and one reader of the shares would have the joint key; "
                f"add {verifiers[0]} with focal manifest add --guard"
            )
        least = 2 if self.accept_leak else 3
        if len(self.institutions) < least:
            raise ConfigError(
                f"a manifest needs at least {least} institutions, this one has {len(self.institutions)}; "
                "with two, each learns the other's pooled moments (accept_leak: true, or --accept-leak, allows it)"
            )

    def by_role(self, role: str) -> tuple[Member, ...]:
        return tuple(m for m in self.members if m.role == role)

    @property
    def server(self) -> Member:
        return self.by_role("server")[0]

    @property
    def institutions(self) -> tuple[Member, ...]:
        return self.by_role("institution")

    @property
    def custodians(self) -> tuple[Member, ...]:
        return self.by_role("custodian")

    @property
    def needed(self) -> int:
        """t: how many custodians it takes to use the key."""
        return self.threshold or len(self.custodians)

    @property
    def guard(self) -> Member | None:
        """The custodian that answers every refresh last; None where nobody verifies."""
        return next((m for m in self.custodians if m.guard), None)

    def member(self, name: str) -> Member:
        for m in self.members:
            if m.name == name:
                return m
        raise ConfigError(f"'{name}' is not a member of the manifest ({', '.join(m.name for m in self.members)})")

    @property
    def rows(self) -> int:
        """n: training rows of all institutions together."""
        return sum(m.rows or 0 for m in self.institutions)

    @property
    def outputs(self) -> int:
        """C: columns of the head; a binary task trains its positive class only."""
        return output_count(len(self.classes), self.task)

    @property
    def row_counts(self) -> dict[str, int]:
        """Institution -> its training rows, in manifest order. Where they lie in blocks:
        :func:`focal.protocols.blind.plan.row_table`."""
        return {m.name: m.rows or 0 for m in self.institutions}

    def canonical(self) -> bytes:
        """The bytes that are signed and hashed: JSON, sorted keys, no spaces, without the signatures."""
        unsaid = {"threshold"} if self.threshold is None else set()  # as it was spelled before there were such keys
        return canonical_json(self.model_dump(mode="json", exclude={"signatures", *unsaid}))

    @property
    def hash(self) -> bytes:
        """SHA-256 of :meth:`canonical`."""
        return hashlib.sha256(b"focal/manifest/v2" + self.canonical()).digest()


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
    """Institution: ``pretrained``, ``random:SEED`` or a file; must hash to the manifest's ``weights_sha256``."""
    device: str = "auto"
    precision: str = "32-true"
    logger: Literal["csv", "tensorboard"] = "csv"
    threads: int | None = Field(None, ge=1)
    """Worker threads for encrypted arithmetic; default: the number of processors."""
    memory_gb: float = Field(2.0, gt=0)
    """Server and custodian: encrypted rows kept in memory while training;
    the others are read from disk in every pass."""
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
    seed: int = 0
    """Institution: seeds the split of a table that has no ``split`` column, and its batches."""
    start: Path | None = None
    """Institution, interactive: the released model (a run's folder or ``model.pt``)
    that the manifest's ``start`` pins."""


# --------------------------------------------------------------------------- reading and writing

M = TypeVar("M", bound=Model)


def expand(value: Any, path: Path) -> Any:
    """Replace ``${NAME}`` in strings by the environment; an unset one is an error that names it and the file."""
    if isinstance(value, dict):
        return {k: expand(v, path) for k, v in value.items()}
    if isinstance(value, list):
        return [expand(v, path) for v in value]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise ConfigError(f"{path}: uses ${{{match[1]}}}, which is not set (export {match[1]}=/path/to/folder)")
        return found

    return re.sub(r"\$\{(\w+)\}", lookup, value)


def explain(error: ValidationError, path: Path | str, model: type[Model] | None = None) -> ConfigError:
    """A pydantic error as lines of ``file: field: what is wrong``; an unknown key is shown with the keys that exist."""
    lines = []
    for e in error.errors():
        field = ".".join(str(x) for x in e["loc"] if "[" not in str(x)) or "(whole file)"
        text = e["msg"].removeprefix("Value error, ")
        if e["type"] == "extra_forbidden":
            known = _keys(model, e["loc"][:-1]) if model else []
            text = "unknown key" + (f"; known are {', '.join(known)}" if known else "")
        got = f" (got {e['input']!r})" if isinstance(e["input"], str | int | float) else ""
        lines.append(f"{path}: {printable(f'{field}: {text}')}{got}")  # keys and tags may be another member's
    return ConfigError("\n".join(lines))


def _keys(model: Any, loc: tuple[int | str, ...]) -> list[str]:
    """Field names of the (nested) model that an error's location points to."""
    for part in loc:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        model = field.annotation
    return list(getattr(model, "model_fields", {}))


def read(model: type[M], path: Path | str) -> M:
    """Read YAML or JSON into ``model``. Raises :class:`ConfigError` naming file, field and allowed values;
    first of all where a manifest is of an old run.

    ``${NAME}`` stands for the environment's value in what people write. A manifest is what all have signed,
    and a random key of a member may spell ``${HA}``: Z85 has these characters.
    """
    path = Path(path)
    try:
        raw = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({e.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: is neither YAML nor JSON ({printable(str(e), keep=chr(10))})") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must hold a mapping of options")
    if model is Manifest and (why := earlier(raw.get("version"))):  # before all else that may be wrong with it
        raise ConfigError(f"{path}: {why}", hint=ANEW)
    try:
        return model.model_validate(raw if model is Manifest else expand(raw, path))
    except ValidationError as e:
        raise explain(e, path, model) from None


def write(model: Model, path: Path) -> None:
    """Write ``model`` as JSON (which is YAML too), 0600."""
    private_write(path, json.dumps(model.model_dump(mode="json", exclude_none=True), indent=2).encode() + b"\n")
