"""Set-up on machines that this one is not: fake interpreters drive the real scripts, and nothing is installed.

    fake python  --runs-->  probe_python.py (the real one, told another version, C library or libstdc++)  find-python.sh
    fake python  --plays--  venv, pip, import openfhe (it writes down what it was asked)                    setup.sh

Every test has its own HOME, PATH and pyenv folder, so that the interpreters of the machine it runs on cannot be found.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from patience import PATIENCE
from places import PROJECT, ROOT

BASH = shutil.which("bash") or "/bin/bash"

PROBED = """#!{real}
import ctypes, importlib.util, platform, runpy, sys
assert sys.argv[1] == "-E", sys.argv
sys.argv = sys.argv[2:]
sys.version_info = {version} + ("final", 0)
sys._base_executable = {path!r}
sys.platform = "linux"
platform.machine = lambda: {machine!r}
platform.libc_ver = lambda: {libc}

class Library:
    _handle = 1
    def __init__(self, name):
        if name in {absent}:
            raise OSError(name + ": cannot open shared object file")
    class dlvsym:
        def __new__(cls, handle, symbol, version):
            return {new_cxx}

ctypes.CDLL = Library
real_find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in {absent} else real_find_spec(name)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def fake_python(
    path: Path,
    release: tuple[int, int, int],
    *,
    machine: str = "x86_64",
    libc: tuple[str, str] = ("glibc", "2.39"),
    absent: tuple[str, ...] = (),
    new_cxx: bool = True,
) -> Path:
    """An interpreter that runs the real probe and says it is ``release``, on a machine as described."""
    facts = {"machine": machine, "libc": libc, "absent": absent, "new_cxx": new_cxx}
    return script(path, PROBED.format(real=sys.executable, version=release, path=str(path), **facts))


def broken_shim(path: Path) -> Path:
    """What pyenv puts on PATH for a version that is installed but not active."""
    return script(path, f"#!/bin/sh\necho 'pyenv: {path.name}: command not found' >&2\nexit 127\n")


def find(tmp: Path, *, path: str = "bin", **env: str) -> subprocess.CompletedProcess[str]:
    """Run find-python.sh where only ``tmp`` can be seen; ``path`` holds folders of it, separated by colons."""
    folders = ":".join(str(tmp / p) for p in path.split(":"))
    env = {"PATH": folders, "HOME": str(tmp / "home"), "FOCAL_PYTHON_DIRS": str(tmp / "system"), **env}
    return subprocess.run(
        [BASH, str(ROOT / "scripts/find-python.sh")], env=env, capture_output=True, text=True, timeout=PATIENCE
    )


def found(result: subprocess.CompletedProcess[str]) -> Path:
    assert result.returncode == 0, result.stderr
    assert result.stderr == "" and result.stdout.count("\n") == 1
    return Path(result.stdout.strip())


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a search without success."""
    assert result.returncode == 1 and result.stdout == ""
    assert (
        result.stderr.startswith("focal set-up: ") and result.stderr.endswith(".\n") and result.stderr.count("\n") == 1
    )
    return result.stderr


# --------------------------------------------------------------------------- which interpreter


def test_probe_of_this_interpreter_agrees_with_openfhe() -> None:
    """Unfaked: the tests run where ``import openfhe`` works, so the probe must say yes and name
    a Python of this version."""
    probe = subprocess.run(
        [sys.executable, "-E", str(ROOT / "scripts/probe_python.py")], capture_output=True, text=True, timeout=PATIENCE
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    loads = subprocess.run([sys.executable, "-c", "import openfhe"], env=env, capture_output=True, timeout=PATIENCE)
    assert loads.returncode == 0 and probe.returncode == 0, probe.stdout
    base = Path(probe.stdout.strip())
    assert base == base.resolve() and base != Path(sys.executable)
    told = subprocess.run(
        [str(base), "-c", "import sys; print(*sys.version_info[:3])"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert told.stdout.split() == [str(x) for x in sys.version_info[:3]]


def test_broken_shim_and_wrong_versions_are_passed_over(tmp_path: Path) -> None:
    broken_shim(tmp_path / "shims/python3.10")
    broken_shim(tmp_path / "shims/python")
    fake_python(tmp_path / "shims/python3", (3, 11, 7))
    fake_python(tmp_path / "bin/python3", (3, 13, 0))
    good = fake_python(tmp_path / "late/python3.10", (3, 10, 13))
    assert found(find(tmp_path, path="shims:bin:late")) == good


def test_a_name_that_lies_about_its_version_is_passed_over(tmp_path: Path) -> None:
    fake_python(tmp_path / "bin/python3.10", (3, 11, 7))
    good = fake_python(tmp_path / "bin/python", (3, 10, 4))
    assert found(find(tmp_path)) == good


def test_3_10_wins_over_3_12_wherever_it_is(tmp_path: Path) -> None:
    newer = fake_python(tmp_path / "bin/python3.12", (3, 12, 1))
    assert found(find(tmp_path)) == newer
    older = fake_python(tmp_path / "system/python3.10", (3, 10, 13))
    assert found(find(tmp_path)) == older


@pytest.mark.parametrize(
    "place",
    ["home/.pyenv/versions/3.10.9/bin/python3.10", "my pyenv/versions/3.10.2/bin/python3.10", "system/python3.10"],
)
def test_places_beside_path(tmp_path: Path, place: str) -> None:
    broken_shim(tmp_path / "bin/python3.10")
    good = fake_python(tmp_path / place, (3, 10, 13))
    env = {"PYENV_ROOT": str(tmp_path / "my pyenv")} if place.startswith("my") else {}
    assert found(find(tmp_path, **env)) == good


def test_uv_is_asked_and_told_not_to_download(tmp_path: Path) -> None:
    good = fake_python(tmp_path / "uv/cpython-3.10/bin/python3.10", (3, 10, 13))
    answer = f'[ "$UV_PYTHON_DOWNLOADS" = never ] && [ "$4" = 3.10 ] && echo "{good}"'
    script(tmp_path / "home/.local/bin/uv", f"#!/bin/sh\n{answer}\n")
    assert found(find(tmp_path)) == good


def test_none_says_what_to_install(tmp_path: Path) -> None:
    broken_shim(tmp_path / "bin/python3.10")
    fake_python(tmp_path / "bin/python3", (3, 11, 7))
    sentence = refusal(find(tmp_path))
    assert "install Python 3.10" in sentence and "PYTHON=" in sentence


@pytest.mark.parametrize(
    ("release", "facts", "words"),
    [
        ((3, 10, 13), {"absent": ("ensurepip",)}, "apt install python3.10-venv"),
        ((3, 10, 13), {"absent": ("libgomp.so.1",)}, "apt install libgomp1"),
        ((3, 10, 13), {"libc": ("glibc", "2.31")}, "no glibc 2.34 or newer"),
        ((3, 10, 13), {"libc": ("", "")}, "no glibc 2.34 or newer"),
        ((3, 10, 13), {"machine": "aarch64"}, "x86_64"),
        ((3, 12, 1), {"libc": ("glibc", "2.36")}, "install Python 3.10 instead"),
        ((3, 12, 1), {"new_cxx": False}, "without GLIBCXX_3.4.32"),
    ],
)
def test_right_version_but_something_missing(
    tmp_path: Path, release: tuple[int, int, int], facts: dict, words: str
) -> None:
    name = f"python{release[0]}.{release[1]}"
    almost = fake_python(tmp_path / "bin" / name, release, **facts)
    sentence = refusal(find(tmp_path))
    assert words in sentence and str(almost) in sentence
    good = fake_python(tmp_path / "system" / name, release)
    assert found(find(tmp_path)) == good


def test_python_overrides_the_search(tmp_path: Path) -> None:
    fake_python(tmp_path / "bin/python3.10", (3, 10, 13))
    chosen = fake_python(tmp_path / "my python/python", (3, 12, 4))
    assert found(find(tmp_path, PYTHON=str(chosen))) == chosen
    wrong = fake_python(tmp_path / "other/python", (3, 11, 7))
    assert "is Python 3.11.7" in refusal(find(tmp_path, PYTHON=str(wrong)))
    assert "does not run" in refusal(find(tmp_path, PYTHON=str(tmp_path / "nothing")))
    assert "does not run" in refusal(find(tmp_path, PYTHON=str(broken_shim(tmp_path / "shim"))))


# --------------------------------------------------------------------------- the environment

PLAYED = """#!/bin/sh
case "$*" in
*probe_python.py*) echo '{path}' ;;
"-m venv"*)
    echo venv >>'{log}'
    for dir; do :; done
    rm -rf "$dir"; mkdir -p "$dir/bin"; cp "$0" "$dir/bin/python"; echo "VIRTUAL_ENV=$dir" >"$dir/bin/activate" ;;
"-m pip install"*"--constraint constraints.txt"*) echo pip >>'{log}'; echo "$*" >'{log}.pip'; exit "${{FAKE_PIP:-0}}" ;;
"-c import openfhe") if [ -n "$FAKE_OPENFHE" ]; then printf 'Traceback\\n%s\\n' "$FAKE_OPENFHE" >&2; exit 1; fi ;;
"-c "*) echo 'Python 3.10.99' ;;
*) exit 64 ;;
esac
"""


class Checkout:
    """A copy of the set-up files and a fake interpreter that writes down every use of venv and pip."""

    def __init__(self, tmp: Path) -> None:
        self.log = tmp / "log"
        self.folder = tmp / "a checkout"
        for name in ("scripts", "focal/ckks/native"):
            shutil.copytree(ROOT / name, self.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "constraints.txt", "setup.py"):
            shutil.copy(ROOT / name, self.folder)
        self.python = self.interpreter(tmp / "bin/python3.10")

    def interpreter(self, path: Path) -> Path:
        return script(path, PLAYED.format(path=path, log=self.log))

    def setup(self, **env: str) -> tuple[int, str, list[str]]:
        """Exit status, everything printed, and what venv and pip were used for this time."""
        self.log.write_text("")
        env = {"PATH": f"{self.python.parent}:/usr/bin:/bin", "HOME": str(self.folder), **env}
        run = [BASH, str(self.folder / "scripts/setup.sh")]
        done = subprocess.run(
            run, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE
        )
        return done.returncode, done.stdout, self.log.read_text().split()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_second_setup_does_nothing(checkout: Checkout) -> None:
    status, text, used = checkout.setup()
    assert (status, used) == (0, ["venv", "pip"]) and "is ready" in text
    status, text, used = checkout.setup()
    assert (status, used) == (0, []) and text.count("\n") == 1 and "Python 3.10.99" in text


def test_changed_pins_are_installed_into_the_same_environment(checkout: Checkout) -> None:
    checkout.setup()
    with (checkout.folder / "constraints.txt").open("a") as f:
        f.write("six==1.17.0\n")
    assert checkout.setup()[2] == ["pip"]


def test_changed_c_sources_are_compiled_and_the_kernels_are_named(checkout: Checkout) -> None:
    assert "native kernels: Python 3.10.99\n" in checkout.setup()[1], (
        "what the played interpreter says to every question"
    )
    with (checkout.folder / "focal/ckks/native/ring.c").open("a") as f:
        f.write("/* more */\n")
    assert checkout.setup()[2] == ["pip"]


def test_another_interpreter_rebuilds(checkout: Checkout, tmp_path: Path) -> None:
    checkout.setup()
    other = checkout.interpreter(tmp_path / "other/python3.10")
    assert checkout.setup(PYTHON=str(other))[2] == ["venv", "pip"]
    assert checkout.setup(PYTHON=str(other))[2] == []
    assert checkout.setup()[2] == [], "without PYTHON a working .venv stays as it is"


def test_moved_checkout_and_lost_interpreter_rebuild(checkout: Checkout) -> None:
    checkout.setup()
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))
    assert checkout.setup()[2] == ["venv", "pip"], "scripts in .venv name the old folder"
    (checkout.folder / ".venv/bin/python").unlink()
    assert checkout.setup()[2] == ["venv", "pip"]


def test_failed_install_is_told_and_finished_later(checkout: Checkout) -> None:
    status, text, _ = checkout.setup(FAKE_PIP="1")
    assert status == 1 and "pip could not install" in text and "is ready" not in text
    assert checkout.setup()[::2] == (0, ["pip"])


def test_openfhe_that_does_not_load_is_told(checkout: Checkout) -> None:
    status, text, _ = checkout.setup(FAKE_OPENFHE="ImportError: version GLIBCXX_3.4.32 not found")
    assert status == 1 and "GLIBCXX_3.4.32 not found" in text and "Traceback" not in text and "is ready" not in text
    assert checkout.setup()[0] == 0


CPU = {"TORCH": "cpu", "TORCH_INDEX": "file:///wheels"}


def test_a_machine_without_gpu_takes_its_own_wheels_of_torch(checkout: Checkout) -> None:
    assert checkout.setup(**CPU)[::2] == (0, ["venv", "pip"])
    asked = checkout.log.with_name("log.pip").read_text()
    pins = re.findall(r"^torch(?:vision)?==.*", (ROOT / "constraints.txt").read_text(), re.M)
    assert len(pins) == 2 and all(f" {pin}+cpu " in asked for pin in pins) and f" {CPU['TORCH_INDEX']} " in asked
    assert checkout.setup()[2] == [], "it stays what it is"
    assert checkout.setup(TORCH="cuda")[2] == ["venv", "pip"]
    assert "+cpu" not in checkout.log.with_name("log.pip").read_text()
    assert checkout.setup()[2] == []
    assert checkout.setup(**CPU, FAKE_PIP="1")[2] == ["venv", "pip"]
    assert checkout.setup(**CPU)[2] == ["pip"], "what a failed install left is finished"


def test_without_an_index_of_cpu_wheels_one_sentence_says_what_to_set(checkout: Checkout) -> None:
    status, text, used = checkout.setup(TORCH="cpu")
    assert (status, used) == (1, []) and text.count("\n") == 1 and "TORCH_INDEX" in text
    status, text, used = checkout.setup(TORCH="gpu")
    assert (status, used) == (1, []) and text.count("\n") == 1 and "TORCH=gpu" in text


def test_no_python_leaves_nothing_behind(checkout: Checkout, tmp_path: Path) -> None:
    status, text, used = checkout.setup(PYTHON=str(tmp_path / "nothing"))
    assert (status, used) == (1, []) and "does not run" in text and not (checkout.folder / ".venv").exists()


# --------------------------------------------------------------------------- pins and commands


def dependencies() -> list[Requirement]:
    every = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
    return [r for r in map(Requirement, every) if r.name != "focal"]


@pytest.mark.parametrize("python", ["3.10", "3.12"])
def test_every_dependency_has_one_exact_pin(python: str) -> None:
    lines = [Requirement(x) for x in (ROOT / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    pins = [p for p in lines if not p.marker or p.marker.evaluate({"python_version": python})]
    names = [canonicalize_name(p.name) for p in pins]
    assert len(set(names)) == len(names)
    assert all(len(p.specifier) == 1 and str(p.specifier).startswith("==") for p in pins)
    assert {canonicalize_name(r.name) for r in dependencies()} <= set(names)
    if python == f"{sys.version_info[0]}.{sys.version_info[1]}":
        wanted = dict(zip(names, (str(p.specifier) for p in pins), strict=True))
        for r in dependencies():
            if r.marker and not r.marker.evaluate():
                continue
            assert r.specifier.contains(version(r.name)), f"{r.name}: older than pyproject.toml asks for"
            assert wanted[canonicalize_name(r.name)] == f"=={version(r.name)}", (
                f"{r.name}: constraints.txt and .venv differ"
            )


def test_set_up_names_no_package_registry() -> None:
    """Where packages come from is the business of the machine's pip, not of this project."""
    for file in [
        ROOT / "pyproject.toml",
        ROOT / "constraints.txt",
        ROOT / "Makefile",
        ROOT / ".ci/run",
        *(ROOT / "scripts").iterdir(),
    ]:
        if file.is_file():
            text = file.read_text().replace('--extra-index-url "$TORCH_INDEX"', "")
            assert not any(word in text for word in ("://", "index-url", "find-links")), file


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_lists_every_command_and_shows_the_data_folder(tmp_path: Path) -> None:
    env = {**os.environ, "FOCAL_DATA": str(tmp_path)}
    listed = subprocess.run(["make"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE).stdout
    commands = (
        "help setup demo train-retina train-severity train-pathology train-xray bench test lint types check clean"
    )
    for command in commands.split():
        assert f"make {command} " in listed
    assert f"FOCAL_DATA={tmp_path}" in listed


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("name", ["retina", "severity", "pathology", "xray"])
def test_each_training_names_its_configuration(name: str) -> None:
    plan = subprocess.run(
        ["make", "-n", f"train-{name}"], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    ).stdout
    assert plan.splitlines()[-1] == f".venv/bin/focal train --config {name}"
    assert "scripts/setup.sh" in plan
