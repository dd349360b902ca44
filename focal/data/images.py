"""Images without labels, as a table: what a finished model is asked about."""

from __future__ import annotations

import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from focal.config import printable
from focal.data.pictures import FORMATS, HEAD, Reading, is_picture
from focal.data.sheet import read_sheet
from focal.data.sources import Archive, EncodedImages, Folder
from focal.data.table import Table
from focal.errors import FocalError
from focal.task import Task

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".j2k", ".dcm"}


def open_images(
    images: Path,
    classes: tuple[str, ...],
    task: Task,
    table_csv: Path | None,
    reading: Reading = Reading(),  # noqa: B008
) -> Table:
    """The images that the table's ``filename`` column names, in its order; without a table every one below ``images``.

    ``images`` is a folder or zip; without a table its images come sorted by name, and a warning counts the files that
    are none: by what they hold, not by their names. Files that systems leave behind (hidden ones, ``__MACOSX``,
    ``Thumbs.db``) are passed over.
    """
    names = None if table_csv is None else read_sheet(table_csv).column("filename").tolist()
    store = _open(images)
    held = _pictures(store, store.files()) if names is None else []
    missing = [] if names is None else store.missing(names)
    if missing:
        raise FocalError(
            f"{images}: {len(missing)} of {len(names or [])} images are missing, the first is '{missing[0]}'"
        )
    chosen = np.array(held if names is None else names, dtype=np.str_)
    if not len(chosen):
        raise FocalError(f"{images}: holds no images", hint=f"what is read: {', '.join(FORMATS)}, DICOM")
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
        images=EncodedImages(store, chosen, reading),
    )


def _open(images: Path) -> Folder | Archive:
    if images.is_dir():
        return Folder(images)
    if zipfile.is_zipfile(images):
        return Archive(images)
    raise FocalError(
        f"{images}: is neither a folder nor a zip", hint="--images names the folder or zip with the images"
    )


def _is_text(name: str) -> bool:
    """Python keeps the bytes of names that are not UTF-8 as surrogates, which nothing can write."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _pictures(store: Folder | Archive, files: list[str]) -> list[str]:
    """Those of ``files`` that are pictures. Raises :class:`FocalError` for a name that is no text."""
    odd = [name for name in files if not _is_text(name)]
    if odd:
        shown = odd[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        raise FocalError(
            f"{store.path}: {len(odd)} file names are not UTF-8, the first is '{printable(shown)}'",
            hint="rename them (convmv -f latin1 -t utf8 does it for a whole folder)",
        )
    held, skipped = [], Counter[str]()
    for name in files:
        # a damaged picture keeps the suffix of one: it is refused by name later, and not passed over here
        if Path(name).suffix.lower() in SUFFIXES or is_picture(store.head(name, HEAD)):
            held.append(name)
        else:
            skipped[Path(name).suffix.lower() or "without a suffix"] += 1
    if skipped:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in skipped.most_common())
        n = sum(skipped.values())
        warnings.warn(f"{store.path}: {n} file{'s' * (n > 1)} skipped that hold no image: {kinds}", stacklevel=3)
    return held
