"""The examples that docstrings of ``import focal`` begin with, and where they are run."""

from __future__ import annotations

import doctest
import inspect
import os
import shutil
from pathlib import Path

import yaml
from consortium import SEED, config, dataset, finished, write_csv, zip_images

import focal as face


def prepare(here: Path) -> Path:
    """A finished run, a configuration, new data with a column of sites."""
    shutil.copytree(finished().folder, here / "runs/eyes", copy_function=os.link)
    (here / "my.yaml").write_text(yaml.safe_dump(config("my")))
    rows = [{**row, "site": ("north", "south")[i % 2]} for i, row in enumerate(dataset().rows())]
    write_csv(here / "new.csv", rows)
    zip_images(here / "new.zip", SEED + 1)
    return here


def assert_example_holds(name: str) -> None:
    """The one of this name, in the present folder."""
    text = inspect.getdoc(getattr(face, name)) or ""
    assert text.split("\n\n")[1].startswith(">>> "), "a sentence, then the example"
    example = doctest.DocTestParser().get_doctest(text, {"focal": face}, name, None, None)
    told: list[str] = []
    result = doctest.DocTestRunner().run(example, out=told.append)
    assert result.attempted > 0 and result.failed == 0, "".join(told)
