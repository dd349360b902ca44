"""The examples say what they mean, and keep nobody's outputs. They run in test_example_scripts.py."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
from places import ROOT

from focal.config import RunConfig
from focal.data import load
from focal.data.partition import partition
from focal.reading import read

EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "simulate.ipynb"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def test_the_notebook_keeps_no_outputs() -> None:
    """They would be somebody's, and of another version."""
    assert len(cells()) > 5
    for cell in cells():
        assert cell["outputs"] == [] and cell["execution_count"] is None
        ast.parse("".join(cell["source"]))


def test_own_data_are_read_as_the_script_means_them(tmp_path: Path) -> None:
    own = example("own_dataset")
    own.write_data(tmp_path, 60)
    config = read(RunConfig, own.write_configuration(tmp_path, 3))
    table = load(config.dataset, config.seed)
    assert table.classes == ("round", "square") and table.task == "binary" and len(table) == 120
    assert config.training.steps == 3 and config.consortium.institution_names() == own.SITES
    parts = partition(table, config.consortium.partition, own.SITES, config.seed)
    for name, rows in parts.items():
        assert set(np.array(table.institution)[rows]) == {name}
        for split in ("train", "test"):
            assert {tuple(row) for row in table.labels[rows][table.split[rows] == split]} == {(1, 0), (0, 1)}


def test_the_miniature_of_the_demo_is_a_configuration() -> None:
    train = example("train")
    demo = read(RunConfig, ROOT / "focal" / "configs" / "demo.yaml")
    small = train.miniature(demo)
    assert small.dataset.samples == 240 and small.projection.features == 32 and small.name == "demo-small"
    assert small.projection.bound == demo.projection.bound and small.lower.weights == demo.lower.weights
