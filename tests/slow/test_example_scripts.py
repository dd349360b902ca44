"""The example scripts as a person starts them, small."""

from __future__ import annotations

from pathlib import Path

from consortium import started
from places import ROOT

EXAMPLES = ROOT / "examples"


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
