"""A run goes on with the data that it began with, and knows which images trained it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from focal.data import begun
from focal.data.sources import EncodedImages, Folder
from focal.data.table import Table
from focal.errors import FocalError

N = 6


def png(i: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (i, 9 * i, 3)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Six images of three patients; the last two are test rows."""
    images, names = tmp_path / "images", np.array([f"{i}.png" for i in range(N)])
    images.mkdir()
    for i in range(N):
        (images / f"{i}.png").write_bytes(png(i))
    return Table(
        name="eyes",
        classes=("well", "sick"),
        task="binary",
        labels=np.eye(2, dtype=np.uint8)[np.arange(N) % 2],
        groups=np.array([f"p{i // 2}" for i in range(N)]),
        split=np.array(["train"] * 4 + ["test"] * 2),
        institution=None,
        filenames=names,
        columns={},
        images=EncodedImages(Folder(images), names),
    )


def relabelled(table: Table, tmp_path: Path) -> Table:
    labels = table.labels.copy()
    labels[0] = labels[0][::-1]
    return replace(table, labels=labels)


def repainted(table: Table, tmp_path: Path) -> Table:
    (tmp_path / "images/5.png").write_bytes(png(50))
    return table


CHANGES: dict[str, Callable[[Table, Path], Table]] = {
    "a label": relabelled,
    "an image of a test row": repainted,
    "a patient": lambda table, _: replace(table, groups=np.array(["p0", "p0", "p1", "p9", "p2", "p2"])),
    "the split": lambda table, _: replace(table, split=np.array(["train"] * 2 + ["test"] * 4)),
    "the order": lambda table, _: table.take([1, 0, 2, 3, 4, 5]),
    "a row less": lambda table, _: table.take(range(5)),
    "the classes": lambda table, _: replace(table, classes=("sick", "well")),
    "the task": lambda table, _: replace(table, task="multilabel"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_data_that_changed_since_the_run_began_is_refused(what: str, table: Table, tmp_path: Path) -> None:
    begun.check_unchanged(tmp_path, table)
    begun.check_unchanged(tmp_path, table)
    with pytest.raises(FocalError, match="'eyes' is not the one that the run in .* began with") as e:
        begun.check_unchanged(tmp_path, CHANGES[what](table, tmp_path))
    assert "put the old table and images back" in e.value.hint


def test_names_of_files_are_nobodys_business(table: Table, tmp_path: Path) -> None:
    begun.check_unchanged(tmp_path, table)
    (tmp_path / "images/0.png").rename(tmp_path / "images/other.png")
    names = np.array(["other.png", *table.filenames[1:]])
    images = EncodedImages(Folder(tmp_path / "images"), names)
    begun.check_unchanged(tmp_path, replace(table, filenames=names, images=images))
    kept = tmp_path / begun.FILE
    assert kept.stat().st_mode & 0o777 == 0o600 and b"png" not in kept.read_bytes() and b"p1" not in kept.read_bytes()


@pytest.mark.parametrize("folder", ["", "parties/north"])
def test_images_that_trained_a_model_are_known_again(folder: str, table: Table, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / folder).mkdir(parents=True)
    assert begun.seen(run, table, range(N)) == 0, "nothing is known"
    begun.check_unchanged(run / folder, table)
    assert begun.seen(run, table, range(N)) == 4 and begun.seen(run, table, [3, 4, 5]) == 1
    (run / folder / begun.FILE).write_bytes(b"{}")
    with pytest.raises(FocalError, match="data.json: cannot be read"):
        begun.seen(run, table, range(N))
