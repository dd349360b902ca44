"""What is installed is what was tested: the wheel in an environment of its own, which sees no file of this checkout.

::

    focal/ pyproject.toml setup.py ...      --copied, pip wheel-->  focal-*.whl  --pip install-->  an empty environment
                                                                     the packages that focal needs  --.pth--^
"""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from consortium import ENV, said
from packaging.requirements import Requirement
from patience import PATIENCE
from places import ROOT

import focal
from focal import configs

CLEAN = {k: v for k, v in ENV.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
KERNELS = "focal/ckks/native/_kernels" + sysconfig.get_config_var("EXT_SUFFIX")
COMPILER = shutil.which("cc") or shutil.which("gcc")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def make(source: Path, **env: str) -> Path:
    """The wheel of this checkout's tracked files, made in the folder ``source``."""
    shutil.copytree(ROOT / "focal", source / "focal", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    out = source / "out"
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, env={**CLEAN, **env}, timeout=PATIENCE)
    assert built.returncode == 0, built.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("source"))


class Installed:
    """The environment, and what is run in it: in an empty folder."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.venv, self.cwd = folder / "venv", folder / "cwd"
        self.cwd.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.venv)], check=True, timeout=PATIENCE)
        command = [*PIP, "--python", str(self.venv), "install", "--no-deps", "--no-index", "--quiet", str(wheel)]
        subprocess.run(command, check=True, env=CLEAN, timeout=PATIENCE)
        (self.packages,) = self.venv.glob("lib/python*/site-packages")
        # A path in a .pth comes last, and the .pth files that lie there,
        # such as the one of this checkout, are not read.
        (self.packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, *command: object, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.venv / "bin" / str(command[0]), *map(str, command[1:])],
            cwd=self.cwd,
            capture_output=True,
            text=True,
            env={**CLEAN, **env},
            timeout=PATIENCE,
        )

    def python(self, program: str, **env: str) -> str:
        result = self.run("python", "-c", program, **env)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as z:
        names = {n for n in z.namelist() if ".dist-info/" not in n}
        facts = z.read(f"focal-{focal.__version__}.dist-info/METADATA").decode()
    tracked = {
        p for p in (ROOT / "focal").rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.suffix != ".so"
    }
    compiled = {KERNELS} if COMPILER else set()
    assert names == {str(p.relative_to(ROOT)) for p in tracked} | compiled
    assert {"focal/py.typed", "focal/configs/demo.yaml"} <= names
    for line in ("License-Expression: Apache-2.0", "License-File: LICENSE", "Provides-Extra: site"):
        assert f"\n{line}\n" in facts
    assert "\n# FOCAL\n" in facts, "the README is its description"


def test_what_every_extra_asks_for_is_what_is_tested_here(wheel: Path) -> None:
    """Offline: each requirement of the wheel, and those behind it, are met by what is installed, in its version."""
    with zipfile.ZipFile(wheel) as z:
        facts = email.message_from_bytes(z.read(f"focal-{focal.__version__}.dist-info/METADATA"))
    told = [Requirement(line) for line in facts.get_all("Requires-Dist") or []]
    extras = facts.get_all("Provides-Extra") or []
    assert {"site", "study", "ray", "dev"} <= set(extras)
    missing, seen = [], set()
    for extra in ["", *extras]:
        todo = [(f"focal[{extra}]", r) for r in told if r.marker is None or r.marker.evaluate({"extra": extra})]
        assert todo
        while todo:
            who, wanted = todo.pop()
            if wanted.name == "focal" or (str(wanted), extra) in seen:
                continue
            seen.add((str(wanted), extra))
            try:
                found = distribution(wanted.name)
            except PackageNotFoundError:
                missing.append(f"{who} needs {wanted}")
                continue
            if not wanted.specifier.contains(found.version, prereleases=True):
                missing.append(f"{who} needs {wanted}, here is {found.version}")
            behind = [Requirement(line) for line in found.requires or []]
            asked = wanted.extras or {""}
            todo += [
                (wanted.name, r)
                for r in behind
                if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in asked)
            ]
    assert not missing, missing


def test_it_is_the_wheels_focal_that_runs(installed: Installed) -> None:
    where = installed.python("import focal, importlib.metadata as m; print(focal.__file__, m.version('focal'))")
    assert where == f"{installed.packages}/focal/__init__.py {focal.__version__}"
    seen = installed.python("import sys; print(*sys.path, *sys.meta_path)")
    assert str(ROOT) not in seen.replace(os.fspath(ROOT / ".venv"), "")
    assert installed.run("focal", "--version").stdout == f"focal {focal.__version__}\n"


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_its_kernels_are_used(installed: Installed) -> None:
    program = "from focal.ckks import native; print(native.library is not None, native.description)"
    used, told = installed.python(program).split()
    assert used == "True" and told in ("portable", "avx2", "ifma")


def test_a_wheel_made_without_a_compiler_lacks_the_kernels_alone(wheel: Path, tmp_path: Path) -> None:
    """And whoever installs it is told how to come by them."""
    (tmp_path / "source").mkdir()
    without = make(tmp_path / "source", CC="false")
    found = []
    for path in (wheel, without):
        with zipfile.ZipFile(path) as z:
            found.append({n for n in z.namelist() if ".dist-info/" not in n})
    assert found[1] == found[0] - {KERNELS}
    bare = Installed(tmp_path, without)
    told = bare.python("from focal.ckks import native; print(native.description)")
    assert told.startswith("none (not built)") and "python -m focal.ckks.native" in told


def test_every_name_of_the_face_resolves(installed: Installed) -> None:
    program = "import focal; print(*(name for name in focal.__all__ if callable(getattr(focal, name))))"
    assert installed.python(program).split() == focal.__all__


def test_every_packaged_configuration_loads(installed: Installed) -> None:
    program = "from focal import config, configs, reading\n"
    program += "for name in configs.names(): print(reading.read(config.RunConfig, configs.find(name)).name)"
    assert installed.python(program, FOCAL_DATA="/data").split() == configs.names()


def test_the_report_finds_its_page(installed: Installed) -> None:
    assert installed.python("from focal.reporting import html; print(bool(html._template()))") == "True"


def test_the_demo_runs_to_its_end(installed: Installed) -> None:
    result = installed.run("focal", "demo", COLUMNS="200")
    assert result.returncode == 0 and "result: runs/demo/summary.json" in said(result)
    found = json.loads((installed.cwd / "runs/demo/summary.json").read_text())
    auroc = found["auroc"]
    assert abs(auroc["encrypted"] - auroc["plaintext_twin"]) < 0.002 and auroc["encrypted"] > 0.8
    assert str(ROOT) not in (installed.cwd / "runs/demo/parties/server/log.txt").read_text()
