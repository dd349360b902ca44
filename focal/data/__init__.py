"""Data sets and how they are dealt to institutions.

``load`` turns a :class:`focal.config.DatasetConfig` into a :class:`~focal.data.table.Table`;
:func:`focal.data.partition.partition` deals its rows. The readers import what they need when they are called, so that
this package costs nothing to import.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from focal.config import DatasetConfig
from focal.errors import FocalError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from focal.data.table import Table


def load(config: DatasetConfig, seed: int) -> Table:
    """The data set that ``config`` describes, restricted to ``config.rows`` when that is given.

    ``seed`` draws the split of a table that has none, and the synthetic images. The checks are those of the whole set:
    a part of it may lack test rows. Rows of one class only are an error, or a warning where ``config.classes`` says
    that there are others elsewhere (:func:`focal.data.partition.partition`, which sees all institutions, refuses them).
    Raises :class:`FocalError` naming file and way out.
    """
    table = _read(config, seed).check_trainable()
    try:
        table.check_classes()
    except FocalError as e:
        if config.classes is None:
            raise
        warnings.warn(f"{e.message}; only the other institutions' rows can teach the rest", stacklevel=2)
    return table if config.rows is None else table.take(read_rows(config.rows, len(table)))


def load_for_scoring(config: DatasetConfig) -> Table:
    """A table to be scored by a finished model, with that model's ``classes`` and ``task`` in ``config``.

    Labels may be missing (then all 0). Without a ``split`` column every row is a test row.
    Nothing is asked of train rows.
    """
    if config.kind in ("table", "slides"):
        from focal.data.table import read_unsplit_table

        return read_unsplit_table(config)
    return _read(config, seed=0)


def _read(config: DatasetConfig, seed: int) -> Table:
    if config.kind in ("table", "slides"):
        from focal.data.table import read_table

        return read_table(config, seed)
    if config.kind == "medmnist":
        from focal.data.medmnist import read_medmnist

        return read_medmnist(config)
    from focal.data.synthetic import generate

    return generate(config.samples, seed)


def read_rows(path: Path, n: int) -> NDArray[np.int64]:
    """Row numbers, one a line, each in [0, ``n``) and none twice. Raises :class:`FocalError` naming the file."""
    import numpy as np

    way_out = "'dataset.rows' names a text file with one row number a line, counted from 0"
    try:
        rows = np.array([int(line) for line in path.read_text().split()], dtype=np.int64)
    except OSError as e:
        raise FocalError(f"{path}: cannot be read ({e.strerror})", hint=way_out) from None
    except (ValueError, OverflowError):
        raise FocalError(f"{path}: holds something that is no row number", hint=way_out) from None
    if len(rows) == 0 or rows.min() < 0 or rows.max() >= n or len(np.unique(rows)) != len(rows):
        raise FocalError(f"{path}: must hold between 1 and {n} different row numbers from 0 to {n - 1}", hint=way_out)
    return rows
