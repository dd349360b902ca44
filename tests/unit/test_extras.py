"""What is installed for whom: bare focal runs servers, custodians and audits, and says what else would need more."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from bare import BARE, bare
from consortium import ENV
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from parties import identities, manifest_of
from patience import PATIENCE
from places import PROJECT, ROOT

from focal.config import LocalConfig
from focal.errors import FocalError
from focal.extras import EXTRAS, require
from focal.reading import write


def named(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(r).name) for r in requirements} - {"focal"}


def third_party() -> dict[str, str]:
    """Top-level module that the package imports, wherever it does -> one file that imports it."""
    found: dict[str, str] = {}
    for path in (ROOT / "focal").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name.partition(".")[0]: str(path) for name in names}
    return {name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, "focal"}}


def test_every_import_is_declared_where_it_belongs_and_nothing_else_is() -> None:
    """TensorBoard is imported by Lightning, for us; DICOM's decoders by pydicom, OpenSlide's library by OpenSlide."""
    for_us = {"tensorboard", "pylibjpeg", "pylibjpeg-libjpeg", "openslide-bin"}
    owners = {}
    for d in distributions():  # d.files would make an object of each of 10^5 files
        files = (line.partition(",")[0] for line in (d.read_text("RECORD") or "").splitlines())
        top = {file.partition("/")[0].partition(".")[0] for file in files}
        owners |= dict.fromkeys(top, canonicalize_name(d.metadata["Name"]))
    of = {extra: {owners[module] for module in modules} for extra, modules in EXTRAS.items()}
    assert of == {extra: named(PROJECT["optional-dependencies"][extra]) for extra in EXTRAS}
    imported = {owners[module] for module in third_party()}
    assert imported | for_us == named(PROJECT["dependencies"]).union(*of.values())


def test_every_requirement_has_a_lower_bound() -> None:
    every = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
    for requirement in map(Requirement, every):
        bounds = {s.operator for s in requirement.specifier}
        assert requirement.name == "focal" or bounds & {">=", "~="}, requirement


def test_what_is_missing_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    require("site", "anything")
    monkeypatch.setitem(EXTRAS, "site", ("torch", "no_such_module"))
    with pytest.raises(FocalError, match=r"^focal train needs the site packages: pip install 'focal\[site\]'$"):
        require("site", "focal train")


SITE = {
    "demo": "demo",
    "train": "train --config demo",
    "evaluate": "evaluate run --table t.csv --images i.zip",
    "predict": "predict run --images i.zip",
    "explain": "explain run --images i.zip",
    "report": "report run",
    "institution": "institution --manifest m.json --local l.json",
    "manifest new": "manifest new --config demo",
    "reproduce": "reproduce",
}


@pytest.mark.parametrize("name", SITE)
def test_a_command_of_a_site_says_in_one_sentence_what_it_needs(name: str, tmp_path: Path) -> None:
    result = bare(*SITE[name].split(), cwd=tmp_path)
    what, extra = "train" if name == "demo" else name, "study" if name == "reproduce" else "site"
    assert result.stderr.splitlines()[-1] == (
        f"error: focal {what} needs the {extra} packages: pip install 'focal[{extra}]'"
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr and not list(tmp_path.iterdir())


def test_the_bare_machine_of_these_tests_has_no_torch() -> None:
    for module in ("torch", "openpyxl", "opacus"):
        program = f"{BARE}\nimport {module}"
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=ENV, timeout=PATIENCE
        )
        assert f"No module named '{module}'" in result.stderr


def test_a_server_that_shall_compute_on_ray_says_what_it_needs(tmp_path: Path) -> None:
    """Before it opens a journal or a port."""
    people = identities()
    manifest, keys = manifest_of(people), tmp_path / "keys.json"
    people["server"].save(keys)
    write(manifest, tmp_path / "manifest.json")
    write(LocalConfig(name="server", keys=keys, state=tmp_path / "state", compute="ray"), tmp_path / "server.json")
    result = bare("server", "--manifest", "manifest.json", "--local", "server.json", cwd=tmp_path)
    assert "'server': compute: ray needs the ray packages: pip install 'focal[ray]'" in result.stderr
    assert result.returncode == 1 and "Traceback" not in result.stderr and not (tmp_path / "state").exists()
