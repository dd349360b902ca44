"""Raw features of an institution's images: computed once with Lightning, then kept in a private cache.

::

    rows --sha256 of each image--> cache (SQLite, one file per lower segment) --hit----------------> (n, dim) float32
                                       |                                                           ^
                                      miss --decode, resize--> Trainer.predict(lower segment) -----+ stored batch by
                                                                       batch, so a killed process keeps what it finished

The key of a vector is its image's content, and the file is named by the hash of weights, cut and preprocessing: renamed
images and re-ordered tables hit, other weights never do. Features describe patients: the folder is 0700, the files
0600, and no file name is stored.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from focal.data.slides import SlideImages
from focal.data.table import Table
from focal.errors import FocalError
from focal.files import canonical_json
from focal.manifest import LowerSpec
from focal.segments.lower import LowerSegment, preprocess
from focal.training.slides import pool_slides

BATCH = 32
BUSY_S = 60.0
"""How long a process waits while another one writes to the same cache."""

Progress = Callable[[int, int], None]


def compute_features(
    segment: LowerSegment, table: Table, rows: ArrayLike, *, device: str, cache: Path, progress: Progress | None = None
) -> NDArray[np.float32]:
    """(len(rows), dim) float32 features of the table's ``rows``, from ``cache`` where it has them.

    ``device`` is ``auto``, ``cpu`` or ``cuda``; ``progress(done, total)`` counts rows. Raises :class:`FocalError` for
    an image that cannot be read, a feature that is not finite, a missing GPU, and a cache that cannot be written.
    """
    wanted = np.asarray(rows, dtype=np.int64)
    report = progress or (lambda done, total: None)
    with FeatureCache(cache, segment.spec) as store:
        keys = [table.images.sha256(int(row)) for row in wanted]
        missing = {key: int(row) for key, row in zip(keys, wanted, strict=True) if key not in store}
        found = sum(key not in missing for key in keys)
        report(found, len(keys))
        if missing:
            copies = len(keys) - found - len(missing)  # the same image in several rows is computed once

            def show(done: int) -> None:
                report(found + done + copies * (done == len(missing)), len(keys))

            if isinstance(table.images, SlideImages):
                on = "cuda" if accelerator(device) == "gpu" else "cpu"
                with _full_precision():
                    pool_slides(segment, table.images, missing, store, on, show)
            else:
                _predict(segment, table, missing, store, device, show)
        return store.get(keys)


# --------------------------------------------------------------------------- the cache


class FeatureCache:
    """Vectors by image content, for one lower segment. Several processes may read and write at once.
    A context manager."""

    def __init__(self, folder: Path, spec: LowerSpec) -> None:
        self.dim = spec.dim
        self.path = (
            folder / f"features-{hashlib.sha256(canonical_json(spec.model_dump(mode='json'))).hexdigest()[:32]}.sqlite"
        )
        with self._explained():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileExistsError):  # made here for its mode, which SQLite gives to its -wal and -shm files too
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
            self._enter_wal()
            self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may cost the last batches, never the file
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS features (image TEXT PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID"
            )

    def _enter_wal(self) -> None:
        """SQLite's own busy timeout does not cover this change, when several processes open a new file at once."""
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as e:
                if "locked" not in str(e) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def __contains__(self, key: str) -> bool:
        return self._vector(key) is not None

    def put(self, keys: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Store (len(keys), dim) vectors in one transaction."""
        little = vectors.astype("<f4")
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            rows = [(key, vector.tobytes()) for key, vector in zip(keys, little, strict=True)]
            self._db.executemany("INSERT OR REPLACE INTO features VALUES (?, ?)", rows)
            self._db.execute("COMMIT")

    def get(self, keys: Sequence[str]) -> NDArray[np.float32]:
        """(len(keys), dim) float32; every key must be present."""
        vectors = np.empty((len(keys), self.dim), np.float32)
        for i, key in enumerate(keys):
            vector = self._vector(key)
            if vector is None:
                raise FocalError(
                    f"{self.path}: lost a feature while it was being read",
                    hint="delete the file; it will be computed again",
                )
            vectors[i] = vector
        return vectors

    def _vector(self, key: str) -> NDArray[np.float32] | None:
        with self._explained():
            row = self._db.execute("SELECT vector FROM features WHERE image = ?", (key,)).fetchone()
        return np.frombuffer(row[0], "<f4") if row and len(row[0]) == 4 * self.dim else None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the file or the disk, as a line that names the file."""
        try:
            yield
        except (sqlite3.Error, OSError) as e:
            raise FocalError(
                f"{self.path}: the feature cache cannot be used ({getattr(e, 'strerror', None) or e})",
                hint="free disk space and check permissions; a damaged cache can be deleted, it will be computed again",
            ) from None


# --------------------------------------------------------------------------- prediction with Lightning


class _Images(Dataset[Tensor]):
    """Item ``j`` is the preprocessed image of row ``rows[j]``."""

    def __init__(self, table: Table, rows: Sequence[int], spec: LowerSpec) -> None:
        self.table, self.rows, self.spec = table, rows, spec

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, j: int) -> Tensor:
        return preprocess(self.table.images.read(self.rows[j]), self.spec)


class _Extractor(lightning.LightningModule):
    """The segment as something that a Trainer can run."""

    def __init__(self, segment: LowerSegment) -> None:
        super().__init__()
        self.segment = segment

    def predict_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self.segment(batch)


class _Keep(lightning.Callback):
    """Checks and stores each batch as it is finished, and reports the progress."""

    def __init__(self, keys: Sequence[str], store: FeatureCache, report: Callable[[int], None]) -> None:
        self.keys, self.store, self.report, self.done = keys, store, report, 0

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        vectors = outputs.cpu().numpy()
        if not np.isfinite(vectors).all():
            raise FocalError(
                "the lower segment gives features that are not finite numbers",
                hint="check its weights and 'lower.mean' and 'lower.std'; half-precision weights may be damaged",
            )
        self.store.put(self.keys[self.done : self.done + len(vectors)], vectors)
        self.done += len(vectors)
        self.report(self.done)


def _predict(
    segment: LowerSegment,
    table: Table,
    missing: dict[str, int],
    store: FeatureCache,
    device: str,
    report: Callable[[int], None],
) -> None:
    """Compute the rows in ``missing`` (content hash -> row) and put them into ``store``."""
    chosen = accelerator(device)
    images = DataLoader(_Images(table, list(missing.values()), segment.spec), batch_size=BATCH)
    with quiet(), interruptible(), _full_precision():
        trainer = lightning.Trainer(
            accelerator=chosen,
            devices=1,
            callbacks=[_Keep(list(missing), store, report)],
            plugins=[LightningEnvironment()],  # on a cluster each party is its own process, not a rank of one job
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.predict(_Extractor(segment), images, return_predictions=False)
    segment.cpu()


def accelerator(device: str) -> str:
    """Lightning's name for ``auto``, ``cpu`` or ``cuda``. Raises :class:`FocalError` for another device,
    or a GPU that is not there."""
    if device not in ("auto", "cpu", "cuda"):
        raise FocalError(f"device '{device}' is none of auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise FocalError(
            "device 'cuda': torch finds no usable GPU", hint="set 'device: auto', or check the driver (nvidia-smi)"
        )
    if device == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    return "gpu" if device == "cuda" else "cpu"


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C stays a KeyboardInterrupt: Lightning turns it into SystemExit and leaves further ones ignored."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32 in convolutions: its 10-bit mantissa would make a GPU's features differ from a CPU's by more
    than the consortium accepts."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@contextmanager
def quiet(names: Iterable[str] = ("lightning", "lightning.pytorch", "lightning.fabric")) -> Iterator[None]:
    """Silence Lightning's notes on hardware and data loaders, for the length of a prediction."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
