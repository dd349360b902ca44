"""A table of a paper that does not exist, on the generated eyes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import consortium

from focal.reproduce.cases import BY_PATIENT, SKEWED_3, Case, PaperTable
from focal.reproduce.methods import METHODS

NAMED = {method.name: method for method in METHODS}
EYES = PaperTable(
    1, "ocular", "Eyes: generated", "eyes.yaml", (BY_PATIENT, SKEWED_3), "Not reproduced: everything.", gain=9.62
)


def write_configs(folder: Path) -> Path:
    """``eyes.yaml`` in ``folder``: four classes, patients, a split column."""
    rows = consortium.dataset().rows()
    held = {patient for i, patient in enumerate(sorted({row["patient"] for row in rows})) if i % 3 == 0}
    table = consortium.write_csv(
        folder / "eyes.csv", [{**row, "split": "test" if row["patient"] in held else "train"} for row in rows]
    )
    data = {"kind": "table", "table": str(table), "images": str(consortium.dataset().images)}
    consortium.write_config(folder, "eyes", dataset=data)
    return folder


def with_training(case: Case, changed: dict[str, int]) -> Case:
    config = case.config
    return replace(case, config=config.model_copy(update={"training": config.training.model_copy(update=changed)}))
