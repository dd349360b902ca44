"""What people report of programs like this one, each made here as small as it gets: right, or one clear sentence.

Tables: tests/unit/data/test_tables.py; images: tests/unit/data/test_images.py; models: tests/unit/segments.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from consortium import ENV, cli, config, dataset, finished, said, write_config
from manifests import MEMBERS
from patience import PATIENCE

from focal.config import LocalConfig, RunConfig
from focal.manifest import Member
from focal.reading import read, write
from focal.runs import local
from focal.runs.evaluate import LabelMap
from focal.runs.folder import Run


def refused(*arguments: object) -> str:
    result = cli(*arguments)
    assert result.returncode == 1 and "Traceback" not in said(result)
    return said(result)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"seed": 1 << 32}, "seed: Input should be less than 4294967296"),
        ({"device": "cuda:1"}, "'auto', 'cpu' or 'cuda'"),
        ({"device": "mps"}, "'auto', 'cpu' or 'cuda'"),
        ({"dataset": {"classes": ["a", "a"]}}, "two classes have the same name"),
        ({"protocol": "interactive", "precision": "fp16"}, "precision: Input should be '32-true'"),
        ({"lower": {"weights": "random:12345678901234567890"}}, "a number below 2^63"),
    ],
)
def test_settings_that_no_run_could_end_with_are_refused_before_it_begins(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    assert says in refused("train", "--config", write_config(tmp_path, "odd", **change), "--runs", tmp_path / "runs")


@pytest.mark.skipif(__import__("torch").cuda.is_available(), reason="here is a GPU")
def test_a_gpu_that_is_not_there_is_missed_before_anything_is_computed(tmp_path: Path) -> None:
    made = write_config(tmp_path, "far", device="cuda")
    assert "finds no usable GPU" in refused("train", "--config", made, "--runs", tmp_path / "runs")
    assert not (tmp_path / "runs/far/manifest.json").exists()
    corrected = read(RunConfig, write_config(tmp_path, "far"))
    assert local.open_run(corrected, tmp_path / "runs").config == corrected, "no run had begun"


def test_scoring_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    """Every party is done and the summary is not there: Ctrl-C at "scoring", or a crash there. The server leaves while
    institutions still start; they need none."""
    shutil.copytree(finished().folder, tmp_path / "eyes")
    run = Run.open(tmp_path / "eyes")
    before = run.summary
    for file in ("summary.json", "model.pt", "roc.png"):
        (run.folder / file).unlink()
    assert local.train(local.open_run(run.config, tmp_path), lambda event: None, lambda text: None) == run.folder
    assert run.summary.auroc == before.auroc and (run.folder / "model.pt").exists()


def test_modules_in_the_working_directory_are_not_run(tmp_path: Path) -> None:
    (tmp_path / "statistics").with_suffix(".py").write_text("raise SystemExit('another program')")
    command = [*local.program("focal"), "--version"]
    result = subprocess.run(command, cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0 and result.stdout.startswith("focal "), result.stderr


HOMELESS = """
import os, pwd, sys
def nobody(*_): raise KeyError("uid not found")
pwd.getpwuid = nobody
os.environ.pop("HOME", None)
sys.argv = ["focal", "--version"]
from focal.cli import main
try:
    main()
except SystemExit:
    import focal.reporting.plots
    print(os.environ["HOME"])
"""


def test_a_user_without_a_home_and_an_entry_in_passwd_can_draw(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", HOMELESS], cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=PATIENCE
    )
    assert result.returncode == 0, result.stderr
    assert "focal-home-" in result.stdout and not Path(result.stdout.split()[-1]).exists()


def test_folders_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = refused("train", "--config", write_config(tmp_path, "eyes"), "--runs", tmp_path / "file/runs")
    assert f"error: {tmp_path / 'file/runs'}" in text and len(text.splitlines()) == 1
    assert "is a folder" in refused("predict", finished().folder, "--images", dataset().images, "--out", tmp_path)


def test_json_beyond_sixteen_bits(tmp_path: Path) -> None:
    words = LabelMap(labels={"\U0001f441 left": "a"})
    write(words, tmp_path / "words.json")
    assert r"\ud83d\udc41" in (tmp_path / "words.json").read_text()
    assert read(LabelMap, tmp_path / "words.json") == words
    (tmp_path / "twice.json").write_text('{"labels": {"a": "x", "a": "y"}}')
    with pytest.raises(Exception, match="the key 'a' is written twice"):
        read(LabelMap, tmp_path / "twice.json")


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://[::1]:7788", "tcp://::1:7788", "tcp://hub:99999", "tcp://hub:0", "tcp://hub", "hub:7788", "tcp://*:7788"],
)
def test_endpoints_that_nobody_can_dial_are_refused_before_anybody_signs(endpoint: str) -> None:
    server = json.loads(next(m for m in MEMBERS if m.role == "server").model_dump_json())
    with pytest.raises(ValueError, match="is not tcp://HOST:PORT"):
        Member.model_validate(server | {"endpoint": endpoint})
    assert Member.model_validate(server | {"endpoint": "tcp://hub.example-1.org:7788"})


def test_a_folder_that_was_moved_goes_on_where_it_lies(tmp_path: Path) -> None:
    made = RunConfig.model_validate(config("eyes"))
    local.prepare(local.open_run(made, tmp_path / "here"), lambda text: None)
    (tmp_path / "here").rename(tmp_path / "there")
    run = local.open_run(made, tmp_path / "there")
    local.prepare(run, lambda text: None)
    for member in run.manifest.members:
        mine = read(LocalConfig, run.party(member.name) / "local.json")
        assert mine.keys.exists() and mine.state == run.party(member.name)
        assert mine.data is None or mine.data.rows is not None and mine.data.rows.exists()


def test_a_configuration_may_be_corrected_until_its_run_has_begun(tmp_path: Path) -> None:
    first, second = (RunConfig.model_validate(config("eyes", seed=seed)) for seed in (3, 4))
    local.open_run(first, tmp_path)
    assert local.open_run(second, tmp_path).config == second
    local.prepare(local.open_run(second, tmp_path), lambda text: None)
    with pytest.raises(Exception, match="unfinished run of another configuration"):
        local.open_run(first, tmp_path)
