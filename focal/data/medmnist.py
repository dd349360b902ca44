"""MedMNIST sets: one ``.npz`` with ``{train,val,test}_{images,labels}``, checked against its published MD5.

Source: Yang et al., "MedMNIST v2", Scientific Data 10:41 (2023), doi 10.1038/s41597-022-01721-8; files from Zenodo
record 10519652. MD5 is what the authors publish; it finds damaged and rebuilt files, not hostile ones, so a mismatch is
a warning. Arrays are read without pickle, so a hostile file cannot run code.
"""

from __future__ import annotations

import hashlib
import shutil
import urllib.request
import warnings
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from focal.config import DatasetConfig
from focal.data.sources import ArrayImages
from focal.data.table import SPLITS, Table, own_groups, scored_split
from focal.errors import FocalError
from focal.task import Task, fits, infer

PUBLISHED_MD5 = {
    "retinamnist": "bd4c0672f1bba3e3a89f0e4e876791e4",
    "pneumoniamnist": "28209eda62fecd6e6a2d98b1501bb15f",
}
"""Of the 28 x 28 files."""

CLASS_NAMES = {
    "retinamnist": ("grade-0", "grade-1", "grade-2", "grade-3", "grade-4"),
    "pneumoniamnist": ("normal", "pneumonia"),
}

DOWNLOAD = "https://zenodo.org/records/10519652/files/{name}.npz?download=1"
TIMEOUT_S = 10.0


def read_medmnist(config: DatasetConfig) -> Table:
    """The set in ``config.file``, downloaded first when it is not there and the network allows.
    Raises :class:`FocalError`."""
    path = config.file
    if path is None:  # config.DatasetConfig refuses such a file before anything is read
        raise FocalError("the MedMNIST set names no file", hint="set 'file' to the .npz")
    if not path.exists():
        _download(path)
    arrays = _arrays(path)
    raw = np.concatenate([arrays[f"{part}_labels"] for part in SPLITS])
    split = np.repeat(np.array(SPLITS), [len(arrays[f"{part}_labels"]) for part in SPLITS])
    classes, task, labels = _labels(raw, config, path)
    return Table(
        name=path.stem,
        classes=classes,
        task=task,
        labels=labels,
        groups=own_groups(len(labels)),
        split=scored_split(split),
        institution=None,
        filenames=np.array([f"{part}-{i}" for i, part in enumerate(split)], dtype=np.str_),
        columns={},
        images=ArrayImages(np.concatenate([arrays[f"{part}_images"] for part in SPLITS])),
    )


def _labels(
    raw: NDArray[np.integer], config: DatasetConfig, path: Path
) -> tuple[tuple[str, ...], Task, NDArray[np.uint8]]:
    """(n, 1) class numbers, or (n, K) 0/1 for the multi-label sets -> class order, task and (n, K) 0/1."""
    several = raw.shape[1] > 1
    if raw.min() < 0 or (several and raw.max() > 1):
        odd = int(raw.min()) if raw.min() < 0 else int(raw.max())
        allowed = "0 and 1 say for each class whether an image has it" if several else "classes are numbered from 0"
        raise FocalError(f"{path}: holds the label {odd}, but {allowed}", hint="correct the labels in the file")
    count = raw.shape[1] if several else int(raw.max()) + 1
    classes = config.classes or CLASS_NAMES.get(path.stem) or tuple(f"class-{k}" for k in range(count))
    task = config.task or infer(len(classes), several)
    if len(classes) < count or (several and len(classes) != count) or not fits(len(classes), task):
        raise FocalError(
            f"{path}: holds {count} classes, which does not fit a {task} task with the classes {', '.join(classes)}",
            hint="correct or leave out 'dataset.classes' and 'dataset.task'",
        )
    return classes, task, raw.astype(np.uint8) if several else np.eye(len(classes), dtype=np.uint8)[raw[:, 0]]


def _arrays(path: Path) -> dict[str, NDArray[np.uint8]]:
    """The six arrays, their shapes checked against each other."""
    _warn_unless_published(path)
    names = [f"{part}_{what}" for part in SPLITS for what in ("images", "labels")]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
        raise FocalError(
            f"{path}: is not a MedMNIST file ({e})", hint=f"get {path.stem}.npz from medmnist.com again"
        ) from None
    for name in names:
        kind, pixels = arrays[name].dtype, name.endswith("images")
        if kind != np.uint8 if pixels else kind.kind not in "iu":
            wanted = "pixels must be uint8, from 0 to 255" if pixels else "labels must be whole numbers"
            raise FocalError(
                f"{path}: '{name}' holds {kind} values, but {wanted}", hint="write the file again with this type"
            )
    shapes = {arrays[name].shape[1:] for name in names if name.endswith("images")}
    fits = all(len(arrays[f"{part}_images"]) == len(arrays[f"{part}_labels"]) for part in SPLITS)
    two_d = all(arrays[name].ndim == 2 for name in names if name.endswith("labels"))
    if len(shapes) != 1 or next(iter(shapes))[2:] not in ((), (3,)) or not fits or not two_d:
        raise FocalError(
            f"{path}: images and labels do not fit each other", hint=f"get {path.stem}.npz from medmnist.com again"
        )
    return arrays


def _warn_unless_published(path: Path) -> None:
    published = PUBLISHED_MD5.get(path.stem)
    if published is None:
        return
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as f:
            for piece in iter(lambda: f.read(1 << 20), b""):
                digest.update(piece)
    except OSError as e:
        raise FocalError(f"{path}: cannot be read ({e.strerror})", hint="'dataset.file' names the .npz") from None
    if digest.hexdigest() != published:
        warnings.warn(
            f"{path.name} has MD5 {digest.hexdigest()}, MedMNIST publishes {published}: "
            "results are not comparable with published ones",
            stacklevel=4,
        )


def _download(path: Path) -> None:
    """Fetch ``path`` from MedMNIST's Zenodo record; a broken-off download leaves nothing behind."""
    url = DOWNLOAD.format(name=path.stem)
    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply, partial.open("wb") as f:
            shutil.copyfileobj(reply, f)
        partial.replace(path)
    except OSError:  # URLError and timeouts are OSErrors
        partial.unlink(missing_ok=True)
        raise FocalError(
            f"{path}: no such file, and it could not be downloaded from zenodo.org",
            hint=f"put {path.stem}.npz (from https://zenodo.org/records/10519652) into {path.parent}",
        ) from None
