"""What a run began with: remembered beside it, so that it goes on with the same, and is not scored on what trained it.

::

    images, labels, patients, split  --digest-->  FOLDER/data.json (0600)  --the same again?--> every later start
    train rows' image hashes --------------------------^                  --seen before?-----> focal evaluate

The file stays at the institution. Whoever has an image can tell from it whether the image trained the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import ValidationError

from focal import framing
from focal.config import Hex32, Model
from focal.data.table import Table
from focal.errors import FocalError
from focal.files import canonical_json, private_write

FILE: Final = "data.json"
"""In an institution's folder."""


class Begun(Model):
    """One institution's data at the beginning of a run."""

    digest: Hex32
    """Over classes, labels, patients, split and image contents of all its rows."""
    trained: tuple[Hex32, ...]
    """SHA-256 of its train rows' images, as stored."""


def check_unchanged(folder: Path, table: Table) -> None:
    """Remember ``table`` in ``folder`` the first time; raise :class:`FocalError` when it is another one later.

    A label that changed between interruption and resume would be trained and scored as if it had always been there.
    """
    path, now = folder / FILE, _begun(table)
    if not path.exists():
        private_write(path, now.model_dump_json().encode())
    elif _read(path).digest != now.digest:
        raise FocalError(
            f"data set '{table.name}' is not the one that the run in {folder} began with: labels, patients, split or "
            "images are others",
            hint="put the old table and images back, or start a new run under another name",
        )


def _begun(table: Table) -> Begun:
    images = [table.key(i) for i in range(len(table))]
    said = canonical_json([table.classes, table.task, table.groups.tolist(), table.split.tolist(), images])
    whole = framing.digest(b"focal/begun/v2", said, np.ascontiguousarray(table.labels).tobytes())
    return Begun(digest=whole.hex(), trained=tuple(images[i] for i in table.train_rows))


def seen(run: Path, table: Table, rows: Iterable[int]) -> int:
    """How many of ``rows`` show an image that trained the model in ``run``, as far as the folder still says."""
    files = [path for path in (run / FILE, *run.glob(f"parties/*/{FILE}")) if path.exists()]
    trained = {image for path in files for image in _read(path).trained}
    return sum(table.key(int(i)) in trained for i in rows) if trained else 0


def _read(path: Path) -> Begun:
    try:
        return Begun.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise FocalError(
            f"{path}: cannot be read", hint="it says what the run began with; without it start a new run"
        ) from None
