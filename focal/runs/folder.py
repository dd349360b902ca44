"""The folder of a local run: what was configured, the parties' own folders, the result.

::

    runs/retina/
        config.json  manifest.json           what is run
        parties/<name>/                      each party's own folder (0700): identity, local.json,
                                             journal, blobs, log.txt
        summary.json  model.pt  *.png        the result
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from focal.config import RunConfig
from focal.errors import FocalError
from focal.manifest import Manifest
from focal.reading import read

if TYPE_CHECKING:
    from focal.measure.summary import Summary
    from focal.segments.upper import ReleasedModel


@dataclass
class Run(os.PathLike[str]):
    """A local run's folder. Whatever takes the path of one takes the run itself.

    >>> run = focal.Run.open("runs/eyes")
    >>> run.summary.auroc.encrypted > 0.5, run.finished
    (True, True)
    """

    folder: Path
    config: RunConfig

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """The run that lies in ``folder``."""
        return cls(Path(folder), read(RunConfig, Path(folder) / "config.json"))

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def manifest_file(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def manifest(self) -> Manifest:
        return read(Manifest, self.manifest_file)

    def party(self, name: str) -> Path:
        return self.folder / "parties" / name

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").exists() or (self.folder / "failed").exists()

    @property
    def summary(self) -> Summary:
        """What the run reached and what it cost. Raises :class:`focal.errors.FocalError` before its end."""
        from focal.measure.summary import read_summary

        return read_summary(self.folder)

    def model(self, weights: str | None = None) -> ReleasedModel:
        """The released model as a torch module; ``weights``: of the lower segment, when they moved."""
        from focal.segments.upper import ReleasedModel

        return ReleasedModel.load(self.folder, weights)


def check_beside(config: RunConfig) -> None:
    """Before a run that is compared with others begins: that those saw the same data, split by the same seed. One that
    was trained on this run's test patients would look better than it is."""
    for folder in config.compared:
        other = Run.open(folder).config
        if (other.dataset, other.seed) != (config.dataset, config.seed):
            raise FocalError(
                f"{folder}: was trained on other data, or another split of it, than '{config.name}' is tested on",
                hint="compare runs of the same 'dataset' and 'seed'",
            )
