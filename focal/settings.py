"""What a configuration and an institution's own file both say: which images, and which lower segment.

Whole configurations are :mod:`focal.config`, from where all this can be imported too. Below it stands
:mod:`focal.task` only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from focal.task import Task

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
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["32-true", "64-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"]
"""Lightning's names."""
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
"""Of every generator there is: some take no more bits."""
ModelArg = bool | int | float | Text
WHITEN_FLOOR = 0.1
"""Of a whitening, where nothing else is said (:class:`AnyProjectionConfig`)."""
Family = Literal["timm", "torchvision"]
"""Where a lower segment's model is from (:mod:`focal.segments.backbone`)."""


class Model(BaseModel):
    """Frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


NO_GROUP = "none"
"""A data set's ``group`` where no two rows belong together."""


class SlidesConfig(Model):
    """Which tiles of a whole slide stand for it; its features are the mean of theirs."""

    mpp: float = Field(0.5, gt=0, le=32)
    """Micrometres a pixel of a tile: 10 / magnification, so 0.5 is 20x."""
    tile: int = Field(224, ge=16, le=2048)
    """Pixels of a tile's side."""
    max_tiles: int = Field(500, ge=1, le=100_000)
    """Of a slide; where more have tissue, this many of them, evenly spread."""
    tissue: float = Field(0.5, gt=0, le=1)
    """The least share of a tile that is tissue."""
    base_mpp: float | None = Field(None, gt=0, le=32)
    """Micrometres a pixel of the slides' largest picture; default: as the scanner wrote it into each file."""


OF_TABLES = {"table", "images", "columns", "unlabelled_is_negative", "group", "test_fraction", "bad_images"}
OF_KINDS = {
    "table": {*OF_TABLES, "classes", "task", "window", "page"},
    "slides": {*OF_TABLES, "classes", "task", "slides"},
    "medmnist": {"file", "classes", "task"},
    "synthetic": {"samples"},
}
"""Kind of a data set -> the settings of :class:`DatasetConfig` that it reads, beside ``kind`` and ``rows``."""


class DatasetConfig(Model):
    """Where images and labels come from. A setting of another kind is an error."""

    kind: Literal["table", "slides", "medmnist", "synthetic"]
    """``table``: a CSV beside images; ``slides``: a CSV beside whole slides; ``medmnist``: an ``.npz`` of MedMNIST;
    ``synthetic``: generated fundus images."""
    table: Path | None = None
    """``table``, ``slides``: CSV or .xlsx with columns ``filename,label,patient[,split][,institution]``."""
    columns: dict[str, str | tuple[str, ...]] = {}
    """Columns that have other names there: ``{filename: image, patient: Patient ID}``; labels that have a column for
    each class, with 0 or 1 in it: ``{label: [N, D, C]}``."""
    images: Path | None = None
    """``table``: the folder or zip that holds the images; ``slides``: the folder that holds the slides."""
    file: Path | None = None
    """``medmnist``: the ``.npz``; its stem names the set (``retinamnist``)."""
    classes: tuple[str, ...] | None = None
    """Class order; default: the sorted labels found in the table."""
    task: Task | None = None
    """Default: ``multilabel`` when a label contains ``;``, ``binary`` with two classes, else ``multiclass``."""
    unlabelled_is_negative: bool = False
    """Multilabel: an image without a label has none of the classes. Otherwise such a row is refused."""
    group: str = "patient"
    """The column whose rows belong together: never split between train and test or between institutions.
    ``none``: every row is another patient's."""
    test_fraction: float = Field(0.25, gt=0, lt=1)
    """Used only where the table has no ``split`` column: the share of groups held out, seeded."""
    samples: int = Field(1500, ge=60, le=100_000)
    """``synthetic``: how many images are generated."""
    rows: Path | None = None
    """A text file of row numbers (one a line): the part of the data set that is this institution's."""
    window: tuple[float, float] | None = None
    """Of pictures of more than 8 bits (DICOM: after rescaling, instead of the file's own window): the values that are
    shown black and white, ``[-160, 240]``. Such pictures are refused where neither is given."""
    page: int | None = Field(None, ge=1)
    """Of files that hold several pictures (pages of a TIFF, frames of a DICOM or GIF): which, counted from 1.
    Such files are refused where it is not given."""
    bad_images: Literal["refuse", "skip"] = "refuse"
    """Of images that cannot be read or decoded: end with all their names, or leave their rows out. A manifest declares
    the rows that are left (``focal data check`` says how many)."""
    slides: SlidesConfig = SlidesConfig()
    """``slides``: magnification and choice of tiles."""

    @model_validator(mode="after")
    def _needs(self) -> DatasetConfig:
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"window {list(self.window)}: black must be below white")
        files = ("table", "images")
        need = {"table": files, "slides": files, "medmnist": ("file",), "synthetic": ()}[self.kind]
        for field in need:
            if getattr(self, field) is None:
                raise ValueError(f"dataset kind '{self.kind}' needs '{field}'")
        for field, info in type(self).model_fields.items():
            if field not in OF_KINDS[self.kind] | {"kind", "rows"} and getattr(self, field) != info.default:
                of = " and ".join(f"'{kind}'" for kind, fields in OF_KINDS.items() if field in fields)
                raise ValueError(f"'{field}' is a setting of kind {of}, and this data set is of kind '{self.kind}'")
        for ours, theirs in self.columns.items():
            if isinstance(theirs, tuple) and (ours != "label" or len(set(theirs)) < max(len(theirs), 2)):
                raise ValueError("columns: only 'label' may have several columns, two or more, each once")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError("two classes have the same name")
        return self


class SegmentOptions(Model):
    """What a configuration says of a lower segment and a manifest pins in the same words. Unused, a manifest leaves
    it out."""

    model_args: dict[Text, ModelArg | tuple[ModelArg, ...]] = {}
    """Passed on to timm: ``{global_pool: avg}`` (RETFound), ``{init_values: 1.0e-5, dynamic_img_size: true}`` (UNI)."""
    pool: Literal["mean", "mean+std", "class+mean"] = "mean"
    """How a cut's maps and tokens become a vector; ``mean+std``: both, concatenated; ``class+mean``: the class token,
    then the mean of the patch tokens (Virchow)."""
    flip: bool = False
    """Features are the mean of those of the image and of its mirror image, made at the institution."""
    fit: Literal["squash", "crop", "pad"] = "squash"
    """How an image becomes a square: pressed into it; its middle, cut out; or whole, with black borders."""
    trim: Literal["none", "black"] = "none"
    """``black``: dark borders, as around a fundus, are cut off before."""

    @field_validator("model_args")
    @classmethod
    def _numbers_are_numbers(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name, value in given.items():
            if name in ("img_size", "num_classes", "pretrained", "in_chans"):
                raise ValueError(f"'{name}' is not for 'model_args' (the image size is 'image_size')")
            if isinstance(value, str) and re.fullmatch(r"[-+.0-9]+e[-+]?[0-9]+", value, re.IGNORECASE):
                raise ValueError(
                    f"'{name}' is the text '{value}': YAML reads it as a number when it has a dot (1.0e-5)"
                )
        return given

    @property
    def cuts(self) -> tuple[str, ...]:
        """Where the segment ends: one name, or several whose features are concatenated."""
        cut: str | tuple[str, ...] = getattr(self, "cut")  # noqa: B009  (a field of those who inherit)
        return (cut,) if isinstance(cut, str) else cut


class LowerConfig(SegmentOptions):
    """The frozen lower segment of the foundation model, up to its cut layer.

    What is not set of image size, interpolation, mean and std is the model's own, as it was published.
    """

    family: Family = "timm"
    model: str = "vit_tiny_patch16_224"
    """A model of timm, ``hf-hub:OWNER/NAME[@REVISION]`` or ``local-dir:FOLDER``; of torchvision: squeezenet1_1."""
    cut: str | Annotated[tuple[str, ...], Field(min_length=2)] = "pooled"
    """``pooled``: the model's pooled features; otherwise the name of a module whose output is pooled to a vector,
    or several names."""
    image_size: int | None = Field(None, ge=16, le=1024)
    interpolation: Literal["bilinear", "bicubic"] | None = None
    mean: tuple[float, float, float] | None = None
    """Subtracted from RGB on the 0..255 scale."""
    std: tuple[Positive, Positive, Positive] | None = None
    """Divided by, on the 0..255 scale."""
    weights: str = "pretrained"
    """``pretrained`` (timm's hub), ``random:SEED``, ``package:NAME`` (an installed package that holds them), or a file
    with a state dict; ``FILE#PREFIX`` where it holds several."""

    @model_validator(mode="after")
    def _pools_something(self) -> LowerConfig:
        if self.pool != "mean" and set(self.cuts) == {"pooled"}:
            raise ValueError(f"'pool: {self.pool}' is of a cut by name; 'pooled' is what the model itself pools")
        if len(set(self.cuts)) != len(self.cuts):
            raise ValueError("'cut' names a module twice")
        return self


def weights_file(weights: str) -> Path | None:
    """The file that a source of weights names; None where it names none."""
    if weights == "pretrained" or weights.startswith(("random:", "package:")):
        return None
    whole, (name, _, _) = Path(weights), weights.rpartition("#")
    return whole if whole.exists() or not name else Path(name)
