"""The features of images that the cache does not have: Lightning runs the lower segment over them.

::

    Unread: row --bytes--> sha256 --known--> nothing to do
                             |
                           new: decode, preprocess --batches--> Trainer.predict --> keep(keys, vectors), batch by batch
                                                      |
    (key, image), ready in the memory  ---------------+

A file is read once: its hash and its picture are of the same bytes. Beside a GPU processes of their own read, hash and
decode (:data:`READERS`); beside a CPU that would only take its time.
"""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, cast

import lightning
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from focal.data.sources import ImageSource
from focal.manifest import LowerSpec
from focal.segments.lower import LowerSegment, preprocess
from focal.training.vectors import Keep, finite, full_precision

BATCH = 32
READERS = 4
"""Processes that read and decode images while a GPU computes."""


Item = tuple[str, Tensor | None]
"""The hash of an image, and the image (3, s, s) uint8 where its features are to be computed."""


class Items(Protocol):
    """What a DataLoader asks for, one by one."""

    def __len__(self) -> int: ...

    def __getitem__(self, j: int, /) -> Item: ...


class Batch(NamedTuple):
    """Some rows in their order."""

    keys: list[str]
    """Of every row."""
    new: list[str]
    """Of those that are not known."""
    images: Tensor
    """(len(new), 3, s, s) uint8"""


def extract(
    segment: LowerSegment,
    items: Items,
    keep: Keep,
    accelerator: str,
    report: Callable[[int], None],
    readers: int | None = None,
) -> list[str]:
    """The keys of ``items``, in their order; the vectors of those that have an image were given to ``keep``.

    ``accelerator``: ``cpu`` or ``gpu``; ``readers``: processes that read and decode, 0 for none (default:
    :data:`READERS` of :class:`Unread` beside a GPU). Raises :class:`FocalError` for images that cannot be read, and
    features that are not finite.
    """
    if readers is None:
        readers = READERS if accelerator == "gpu" and isinstance(items, Unread) else 0
    loader: DataLoader[Item] = DataLoader(
        cast(Dataset[Item], items), batch_size=BATCH, collate_fn=_together, num_workers=readers
    )
    kept = _Keep(keep, report)
    with quiet(), interruptible(), full_precision():
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=1,
            callbacks=[kept],
            plugins=[LightningEnvironment()],  # on a cluster each party is its own process, not a rank of one job
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.predict(_Extractor(segment), loader, return_predictions=False)
    segment.cpu()
    return kept.keys


class Unread(Dataset[Item]):
    """Item ``j``: the hash of row ``rows[j]``, and its preprocessed image where the hash is not known."""

    def __init__(self, images: ImageSource, rows: Sequence[int], spec: LowerSpec, known: frozenset[str]) -> None:
        self.images, self.rows, self.spec, self.known = images, rows, spec, known

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, j: int, /) -> Item:
        key, decode = self.images.keyed(self.rows[j])
        return key, None if key in self.known else preprocess(decode().image, self.spec)


def _together(items: list[Item]) -> Batch:
    new = {key: image for key, image in items if image is not None}  # the same image in several rows counts once
    return Batch([key for key, _ in items], list(new), torch.stack(list(new.values())) if new else torch.empty(0))


class _Extractor(lightning.LightningModule):
    """The segment as something that a Trainer can run."""

    def __init__(self, segment: LowerSegment) -> None:
        super().__init__()
        self.segment = segment

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self.segment(batch.images) if batch.new else batch.images


class _Keep(lightning.Callback):
    """Checks and stores each batch as it is finished, and reports the progress."""

    def __init__(self, keep: Keep, report: Callable[[int], None]) -> None:
        self.keep, self.report = keep, report
        self.keys: list[str] = []

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        vectors = finite(outputs.cpu().numpy())
        if batch.new:
            self.keep(batch.new, vectors)
        self.keys += batch.keys
        self.report(len(self.keys))


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
