"""What the pages name exists: a claim of SECURITY.md whose test is gone is a defect."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_test_and_file_that_security_names_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    source = "".join(p.read_text() for p in (ROOT / "tests").glob("*.py"))
    named = {n for n in re.findall(r"\b(test_\w+)\b(?!\.py)", text) if not (ROOT / "tests" / f"{n}.py").exists()}
    assert len(named) > 60
    assert sorted(n for n in named if f"def {n}(" not in source) == []
    files = set(re.findall(r"[\w/]+\.py\b", text))
    assert len(files) > 20
    assert sorted(f for f in files if not any((ROOT / at / f).exists() for at in ("", "focal", "tests"))) == []


def test_every_function_that_security_names_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    named = set(re.findall(r"([\w/]+\.py):([\w.]+)", text))
    assert len(named) > 20
    lost = []
    for file, function in named:
        path = next(p for p in (ROOT / at / file for at in ("", "focal", "tests")) if p.exists())
        if not re.search(rf"\b(def|class) {function.rpartition('.')[2]}\b|^{function} ?=", path.read_text(), re.M):
            lost.append(f"{file}:{function}")
    assert lost == []
