"""All of a data set, looked at before anything is trained on it: every image is decoded, every problem told at once.

::

    rows --bytes, sha256 (threads)--> known: what it was --------------------------+--> what people should know
                        |                                                          |    rows, patients, classes, sizes
                        +-----------> new: decoded --> format, bits, size, kept ---+    one image under two labels ...
                                         |  |
                                         |  +--> its picture, to whoever computes features of it (Taker)
                                         +--> cannot be: the file and why, of all of them

What was decoded once is kept by its content beside the features (:mod:`focal.data.kept`): the next look is as fast as
the disk. Nothing of it is sent anywhere.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from focal.data.kept import Kept
from focal.data.pictures import ImageError
from focal.data.sources import EncodedImages, ImageSource
from focal.data.synthetic import SyntheticImages
from focal.data.table import SPLITS, Table
from focal.errors import FocalError
from focal.task import scored_classes
from focal.telling import Progress

TOLD = 50
"""Problems that are named; the others are counted."""
BATCH = 64
"""Rows after which what was found is kept."""


class Taker(Protocol):
    """Has a use for the pictures that a look decodes, so that it need not decode them again."""

    def wants(self, row: int, key: str) -> bool:
        """Whether it does for this one. Called in threads, as :meth:`take` is."""
        ...

    def take(self, key: str, image: Image.Image) -> None:
        """The decoded image with hash ``key``."""
        ...

    def rest(self) -> None:
        """Called where no thread is at work, every :data:`BATCH` rows."""
        ...


class Facts(NamedTuple):
    """What one image's file was."""

    format: str
    mode: str
    bits: int
    width: int
    height: int
    plain: bool
    """One colour throughout, as of an export that failed."""


@dataclass(frozen=True)
class Examined:
    """What a look at all images of ``table`` found."""

    table: Table
    keys: tuple[str, ...]
    """(n,) hashes; ``""`` of what could not be read."""
    facts: Mapping[str, Facts]
    """By hash."""
    problems: Mapping[int, FocalError]
    """Row -> why it has no image."""

    def usable(self, bad_images: Literal["refuse", "skip"]) -> NDArray[np.int64]:
        """Numbers of the rows that have an image. Raises :class:`FocalError` that names all others, unless they are to
        be skipped and it is their own fault: what a setting or a package would mend is no bad image."""
        skip = bad_images == "skip"
        refused = [error for error in self.problems.values() if not (skip and type(error) is ImageError)]
        if refused:
            told = [f"data set '{self.table.name}': {len(refused)} of {len(self.table)} images cannot be used"]
            told += [f"  {error.message}" for error in refused[:TOLD]]
            told += [f"  and {len(refused) - TOLD} more"] if len(refused) > TOLD else []
            hints = dict.fromkeys(error.hint for error in refused if error.hint)
            if all(type(error) is ImageError for error in refused):
                hints["or leave such images out with 'dataset.bad_images: skip'"] = None
            raise FocalError("\n".join(told), hint="; ".join(hints))
        return np.array([row for row in range(len(self.table)) if row not in self.problems], dtype=np.int64)

    def usable_table(self, bad_images: Literal["refuse", "skip"]) -> Table:
        """The table of the :meth:`usable` rows, with the hashes of their images: nobody reads them for that again."""
        rows = self.usable(bad_images)
        keys, table = np.array(self.keys)[rows], self.table
        table = table if len(rows) == len(table) else table.take(rows)
        return replace(table, keys=keys) if (keys != "").all() else table

    def lines(self) -> list[str]:
        """What there is, for people to compare with what they think they have."""
        t = self.table
        splits = Counter(t.split.tolist())
        counted = ", ".join(f"{splits[split]} {split}" for split in SPLITS if split in splits)
        told = [f"rows      {len(t)} ({counted}) of {len(set(t.groups.tolist()))} patients or groups"]
        per_class = [
            f"{name} {int(t.labels[t.train_rows, k].sum())} + {int(t.labels[t.test_rows, k].sum())}"
            for k, name in enumerate(t.classes)
        ]
        told.append(f"classes   {', '.join(per_class)} (train + test; {t.task})")
        if len(scored_classes(t.classes, t.task)) < len(t.classes):
            told.append(f"positive  {scored_classes(t.classes, t.task)[0]}")
        found = [self.facts[key] for key in self.keys if key in self.facts]
        if found:
            kinds = Counter(f"{f.format} {f.mode} of {f.bits} bits" for f in found)
            told.append(f"images    {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}")
            sizes = Counter((f.width, f.height) for f in found)
            least, most = (f"{end(f.width for f in found)} x {end(f.height for f in found)}" for end in (min, max))
            (width, height), count = sizes.most_common(1)[0]
            told.append(f"sizes     {least} to {most}, most often {width} x {height} ({count})")
        return told

    def declared(self, bad_images: Literal["refuse", "skip"]) -> int:
        """Training rows that a manifest declares for this data set (``focal manifest add --rows``)."""
        usable = self.usable(bad_images)
        return int((self.table.split[usable] == "train").sum())

    def warnings(self) -> list[str]:
        """What makes scores too good, or a model worse, and is nobody's intention."""
        t = self.table
        told = list(t.notes)
        rows: dict[str, list[int]] = {}
        for row, key in enumerate(self.keys):
            if key:
                rows.setdefault(key, []).append(row)
        several = [at for at in rows.values() if len(at) > 1]
        both = sum({"train", "test"} <= set(t.split[at].tolist()) for at in several)
        patients = sum(len(set(t.groups[at].tolist())) > 1 for at in several)
        labels = sum(bool((t.labels[at] != t.labels[at[0]]).any()) for at in several)
        if several:
            told.append(f"{len(several)} images stand in several rows, {sum(map(len, several))} of them")
        if both:
            told.append(f"{both} images stand in train and in test: scores will be too good")
        if patients:
            told.append(f"{patients} images stand under several patients")
        if labels:
            told.append(f"{labels} images have different labels in different rows")
        if plain := sum(key in self.facts and self.facts[key].plain for key in self.keys):
            told.append(f"{plain} images are of one colour throughout: was their export cut short?")
        for what, at in {"learned": t.train_rows, "scored": t.test_rows}.items():
            if none := [name for name, count in zip(t.classes, t.labels[at].sum(0), strict=True) if not count]:
                told.append(f"no row here from which these classes could be {what}: {', '.join(none)}")
        if unnamed := _unnamed(t):
            kinds = Counter(Path(name).suffix.lower() or "without a suffix" for name in unnamed)
            told.append(
                f"{len(unnamed)} files beside the images stand in no row: "
                + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
            )
        return told


def examine(
    table: Table, cache: Path | None = None, progress: Progress | None = None, taker: Taker | None = None
) -> Examined:
    """Decode every image of ``table`` that ``cache`` does not know or ``taker`` wants, on all cores: each file is read
    once.

    ``progress(done, total)`` counts rows. Generated images that nobody wants are taken as they are.
    Nothing is raised for an image that cannot be had: it is in
    :attr:`Examined.problems`.
    """
    keys, facts, problems = [""] * len(table), dict[str, Facts](), dict[int, FocalError]()
    if isinstance(table.images, SyntheticImages) and taker is None:
        return Examined(table, tuple(keys), facts, problems)
    kept = nullcontext() if cache is None else Kept(cache / "decoded-v2.sqlite")
    with kept as store, ThreadPoolExecutor(os.cpu_count()) as pool:
        known = {} if store is None else {key: Facts(*json.loads(value)) for key, value in store.values().items()}
        for start in range(0, len(table), BATCH):
            at = range(start, min(start + BATCH, len(table)))
            new = []
            for row, (key, found) in zip(
                at, pool.map(lambda row: _look(table.images, row, known, taker), at), strict=True
            ):
                keys[row] = key
                if isinstance(found, FocalError):
                    problems[row] = found
                else:
                    facts[key] = found
                    if key not in known:
                        new.append((key, json.dumps(found).encode()))
            if store is not None and new:
                store.keep(new)
            if progress is not None:
                progress(at.stop, len(table))
            if taker is not None:
                taker.rest()
    return Examined(table, tuple(keys), facts, problems)


def _look(
    images: ImageSource, row: int, known: Mapping[str, Facts], taker: Taker | None
) -> tuple[str, Facts | FocalError]:
    key = ""
    try:
        key, decode = images.keyed(row)
        wanted = taker is not None and taker.wants(row, key)
        if key in known and not wanted:
            return key, known[key]
        picture = decode()
        if taker is not None and wanted:
            taker.take(key, picture.image)
    except FocalError as e:
        return key, e
    return key, Facts(picture.format, picture.mode, picture.bits, *picture.image.size, _plain(picture.image))


def _plain(image: Image.Image) -> bool:
    """Whether an RGB image is of one colour throughout."""
    extrema: Any = image.getextrema()
    return all(low == high for low, high in extrema)


def _unnamed(table: Table) -> list[str]:
    """Files where the images lie that no row names."""
    if not isinstance(table.images, EncodedImages):
        return []
    named = set(table.filenames.tolist())
    return [name for name in table.images.store.files() if name not in named]
