"""Images without labels, as a table: what a finished model is asked about."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from focal.data.sheet import read_sheet
from focal.data.sources import Archive, EncodedImages, Folder
from focal.data.table import Table
from focal.errors import FocalError
from focal.task import Task

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def open_images(images: Path, classes: tuple[str, ...], task: Task, table_csv: Path | None) -> Table:
    """The images that the table's ``filename`` column names, in its order; without a table every one below ``images``.

    ``images`` is a folder or zip; without a table its images come sorted by name.
    """
    names = None if table_csv is None else read_sheet(table_csv).column("filename").tolist()
    store, held = _open(images)
    missing = [] if names is None else store.missing(names)
    if missing:
        raise FocalError(
            f"{images}: {len(missing)} of {len(names or [])} images are missing, the first is '{missing[0]}'"
        )
    chosen = np.array(held if names is None else names, dtype=np.str_)
    if not len(chosen):
        raise FocalError(f"{images}: holds no images", hint=f"expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return Table(
        name=images.stem,
        classes=classes,
        task=task,
        labels=np.zeros((len(chosen), len(classes)), np.uint8),
        groups=chosen,
        split=np.full(len(chosen), "test"),
        institution=None,
        filenames=chosen,
        columns={},
        images=EncodedImages(store, chosen),
    )


def _open(images: Path) -> tuple[Folder | Archive, list[str]]:
    """The folder or zip and the names of the images in it, sorted."""
    if images.is_dir():
        names = [str(p.relative_to(images)) for p in images.rglob("*") if p.is_file()]
        store: Folder | Archive = Folder(images)
    elif zipfile.is_zipfile(images):
        store = Archive(images)
        with zipfile.ZipFile(images) as z:
            names = z.namelist()
    else:
        raise FocalError(
            f"{images}: is neither a folder nor a zip", hint="--images names the folder or zip with the images"
        )
    return store, sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES))
