"""What ``import focal`` offers: names that cost nothing before they are used, do what their docstrings show,
and are the commands."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from consortium import ENV, cli, config, focal, said
from docstrings import assert_example_holds, prepare
from patience import PATIENCE

import focal as face
from focal import api, configs
from focal.cli import runs as commands
from focal.cli.common import app
from focal.config import RunConfig
from focal.errors import ConfigError, FocalError
from focal.reading import read

FUNCTIONS = [name for name in face.__all__ if inspect.isfunction(getattr(face, name))]
SEEN = {"progress", "say", "show", "done"}
"""Parameters for those who look on: a command draws there."""


def python(program: str) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=ENV, timeout=PATIENCE).stdout.strip()


# --------------------------------------------------------------------------- names


def test_every_name_resolves_and_is_the_one_of_the_api() -> None:
    assert sorted(face.__all__) == face.__all__ and set(face.__all__) <= set(dir(face))
    assert {"audit", "evaluate", "explain", "load", "predict", "report", "train"} <= set(FUNCTIONS)
    for name in face.__all__:
        assert getattr(face, name) is getattr(api, name)
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        face.tarin  # noqa: B018


def test_no_module_takes_the_place_of_a_name() -> None:
    """Importing a module sets its name in ``focal``: a function of that name would be gone after
    the first such import."""
    package = Path(face.__file__).parent
    modules = {p.stem for p in package.glob("*.py")} | {p.parent.name for p in package.glob("*/__init__.py")}
    assert "api" in modules and modules & set(face.__all__) == set()


def test_importing_costs_nothing() -> None:
    mine = "sorted(m for m in sys.modules if m.partition('.')[0] in ('focal', 'pydantic', 'numpy'))"
    assert python(f"import sys, focal; print({mine})") == "['focal']"
    heavy = "sorted({'torch', 'numpy', 'openfhe', 'openpyxl', 'matplotlib', 'sklearn', 'zmq'} & set(sys.modules))"
    assert python(f"import sys, focal; [getattr(focal, name) for name in focal.__all__]; print({heavy})") == "[]"


# --------------------------------------------------------------------------- examples


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("examples"))


@pytest.mark.parametrize("name", sorted({"Run", *FUNCTIONS} - {"train"}))
def test_the_docstring_begins_with_an_example_that_holds(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of ``train`` is a whole run: test_example_scripts.py."""
    monkeypatch.chdir(folder)
    assert_example_holds(name)


def test_training_tells_its_onlookers_and_returns_the_run_that_it_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that one starts from is made first, with the same onlookers; what a run does is not repeated here."""
    from focal.runs import local

    def pretend(run: api.Run, show: Any, say: Any) -> Path:
        show({"event": "say", "party": run.config.name})
        for file in ("summary.json", "model.pt"):
            (run.folder / file).write_text("")
        return run.folder

    monkeypatch.setattr(local, "train", pretend)
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(config("first")))
    second = config("second", protocol="interactive", start="first.yaml")
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(second))
    lines: list[str] = []
    events: list[dict[str, Any]] = []
    done: list[api.Run] = []
    runs = tmp_path / "runs"
    run = api.train(tmp_path / "second.yaml", runs=runs, say=lines.append, show=events.append, done=done.append)
    assert [e["party"] for e in events] == ["first", "second"] and done[-1] is run
    assert [r.folder for r in done] == [runs / "first", runs / "second"] and run.config.start == runs / "first"
    assert lines == [
        f"first in {runs / 'first'}", f"starts from {runs / 'first'}", f"second in {runs / 'second'}"
    ]  # fmt: skip
    again = api.train(read(RunConfig, tmp_path / "first.yaml"), runs=runs)
    assert again.folder == runs / "first-2"


def test_a_run_is_a_path(tmp_path: Path) -> None:
    run = face.Run(tmp_path, RunConfig.model_validate(config("eyes")))
    assert Path(run) == tmp_path and os.fspath(run) == str(tmp_path)
    with pytest.raises(FocalError, match="finished"):
        run.summary  # noqa: B018
    with pytest.raises(ConfigError, match=r"config\.json"):
        face.Run.open(tmp_path)


# --------------------------------------------------------------------------- commands

CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "train": ("--config my.yaml --runs there", {"config": "my.yaml", "runs": Path("there")}),
    "evaluate": (
        "run --table t.csv --images i.zip --labels l.yaml --by sex --by age:50 --weights w --group cluster "
        "--allow-seen --device cpu --pool sites --key me.key.json",
        {
            "run": Path("run"),
            "table": Path("t.csv"),
            "images": Path("i.zip"),
            "labels": Path("l.yaml"),
            "by": ["sex", "age:50"],
            "weights": "w",
            "group": "cluster",
            "allow_seen": True,
            "device": "cpu",
            "pool": Path("sites"),
            "key": Path("me.key.json"),
        },
    ),
    "predict": (
        "run --images i.zip --out o.csv --table t.csv --weights w --window -160 240 --page 2 --device cpu",
        {
            "run": Path("run"),
            "images": Path("i.zip"),
            "out": Path("o.csv"),
            "table": Path("t.csv"),
            "weights": "w",
            "window": (-160.0, 240.0),
            "page": 2,
            "device": "cpu",
        },
    ),
    "explain": (
        "run --images i.zip --class D --table t.csv --weights w --window 0 4095 --page 1 --limit 3 --no-check",
        {
            "run": Path("run"),
            "images": Path("i.zip"),
            "label": "D",
            "table": Path("t.csv"),
            "weights": "w",
            "window": (0.0, 4095.0),
            "page": 1,
            "limit": 3,
            "check": False,
        },
    ),
    "report": ("run --out o.html --no-images", {"run": Path("run"), "out": Path("o.html"), "images": False}),
    "audit": (
        "run --from store --threads 3 --ray auto",
        {"run": Path("run"), "store": Path("store"), "threads": 3, "ray": "auto"},
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_command_is_its_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option of the command reaches the function, and the function has no setting that the command lacks."""
    arguments, expected = CALLS[name]
    calls: list[dict[str, Any]] = []
    signature = inspect.signature(getattr(api, name))

    def called(*args: Any, **kwargs: Any) -> None:
        calls.append(dict(signature.bind(*args, **kwargs).arguments))
        raise FocalError("it was called")

    monkeypatch.setattr(api, name, called)
    result = cli(name, *arguments.split())
    assert result.returncode == 1 and result.stderr.endswith("error: it was called\n")
    (call,) = calls
    assert {key: value for key, value in call.items() if key not in SEEN} == expected
    assert set(expected) == set(signature.parameters) - SEEN
    assert set(expected) == set(inspect.signature(getattr(commands, name)).parameters) - {"as_json"}


def test_every_function_is_its_command_but_one() -> None:
    """``focal simulate`` makes up a crowd of clinics, where the function takes arrays; ``load`` is for Python."""
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    assert commands & set(FUNCTIONS) == {*CALLS, "simulate"} and set(FUNCTIONS) - commands == {"load"}


def test_the_demo_is_training_of_the_configuration_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(api, "train", lambda config, **_: calls.append(config))
    assert cli("demo").returncode == 0 and calls == ["demo"]
    assert read(RunConfig, configs.find("demo")).name == "demo"


def test_the_version_is_said() -> None:
    result = cli("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"focal {face.__version__}\n", "")


def test_a_shell_completes_commands_and_options() -> None:
    program = "import sys; sys.argv[0] = 'focal'; from focal.cli import main; main()"

    def completed(words: str) -> set[str]:
        asked = {"_FOCAL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env={**ENV, **asked}, capture_output=True, text=True, timeout=PATIENCE)
        return set(done.stdout.split())

    assert completed("focal ev") == {"evaluate"}
    assert {"predict", "keys"} <= completed("focal ")
    assert completed("focal evaluate --ta") == {"--table"}


# --------------------------------------------------------------------------- packaged configurations


def test_a_word_names_a_packaged_configuration_and_all_else_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retina").mkdir()  # the folder of that name is not meant
    assert configs.find("retina") == configs.find(Path("retina")) == configs.FOLDER / "retina.yaml"
    assert {configs.find(name).stem for name in configs.names()} >= {"demo", "retina", "finetune-retina", "xray"}
    for path in ("retina.yaml", "./retina", "my/retina", tmp_path / "retina"):
        assert configs.find(path) == Path(path)
    with pytest.raises(ConfigError, match=r"'rentina'; known are .*retina, .* or give a file"):
        configs.find("rentina")
    assert "known are attack, demo" in said(focal("train", "--config", "rentina"))
