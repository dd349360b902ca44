"""The examples run: the scripts as a person starts them, small; the notebook cell by cell, without Jupyter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from consortium import started
from docstrings import assert_example_holds, prepare
from places import ROOT

EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "simulate.ipynb"


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def test_training_from_python(tmp_path: Path) -> None:
    """A run, an evaluation on new images, predictions."""
    said = started(str(EXAMPLES / "train.py"), "--small", folder=tmp_path)
    assert "AUROC: encrypted 0." in said and "on 60 new images: AUROC 0." in said
    lines = (tmp_path / "runs" / "demo-small" / "predictions.csv").read_text().splitlines()
    assert len(lines) == 61 and lines[0] == "filename,healthy,mild,moderate,severe"


def test_training_on_own_images(tmp_path: Path) -> None:
    said = started(str(EXAMPLES / "own_dataset.py"), "--small", folder=tmp_path)
    encrypted = float(said.partition("AUROC: encrypted ")[2].partition(",")[0])
    assert encrypted > 0.5
    assert (tmp_path / "runs" / "shapes" / "model.pt").is_file()


def test_the_notebook_runs_and_its_head_is_the_twins(tmp_path: Path) -> None:
    """Its own assertion compares the weights. All cells share their names; the plot is drawn and not shown."""
    program = "\n\n".join("".join(cell["source"]) for cell in cells())
    program += "\nprint('the end', run.weights.shape)"
    said = started("-c", program, folder=tmp_path, MPLBACKEND="agg", FOCAL_SMALL="1")
    assert "the end (32, 1)" in said
    (encrypted,) = (line.split()[1] for line in said.splitlines() if line.startswith("encrypted "))
    assert float(encrypted) > 0.95 and said.count(" alone ") == 3


def test_the_docstring_of_train_begins_with_an_example_that_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(prepare(tmp_path))
    assert_example_holds("train")
