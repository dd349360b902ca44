"""Rules that hold for the whole package, checked in its source and in fresh interpreters."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from patience import PATIENCE
from places import PACKAGE, ROOT

from focal.config import RUN_CONFIGS, Protocol
from focal.manifest import OWN_FIELDS
from focal.protocols import PROTOCOLS


def python(program: str) -> str:
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=PATIENCE).stdout.strip()


def part(path: Path) -> str:
    """The package or module right below ``focal`` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(source: str) -> set[str]:
    """Every module that ``source`` imports, wherever the import stands, and ``module.name`` for every name
    that it takes from one."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that they can be read here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


PARTS = {part(p) for p in PACKAGE.rglob("*.py")}
IMPORTS = [(p, imported(p.read_text())) for p in sorted(PACKAGE.rglob("*.py"))]
LAYERS = re.findall(r"^\w+", (PACKAGE.parent / "docs/architecture.md").read_text().split("```")[1], re.M)
"""From above to below."""


def parts_of(modules: set[str]) -> set[str]:
    """What of the package is imported; ``__init__`` for the package itself."""
    own = (name.split(".")[1:] for name in modules if name.split(".")[0] == "focal")
    return {rest[0] if rest and rest[0] in PARTS else "__init__" for rest in own}


def test_every_part_of_the_package_imports_from_the_layers_below_it_only() -> None:
    assert sorted(LAYERS) == sorted(PARTS), "docs/architecture.md must name every part, and once"
    below = {name: set(LAYERS[i + 1 :]) for i, name in enumerate(LAYERS)}
    for path, names in IMPORTS:
        upward = parts_of(names) - {part(path)} - below[part(path)]
        assert not upward, f"{path.relative_to(PACKAGE)} imports {', '.join(sorted(upward))} from above or beside it"


def test_no_file_is_too_long_to_be_one_idea() -> None:
    long = {
        str(path.relative_to(PACKAGE)): lines
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix in (".py", ".h", ".c", ".html", ".css", ".js", ".sql", ".yaml")
        if path.name != "_kernels.c"  # written by cffi
        if (lines := len(path.read_text().splitlines())) > 500
    }
    assert not long


def test_an_import_is_seen_wherever_it_stands() -> None:
    lazy = "def f():\n    from focal.cli import app"
    typed = "if TYPE_CHECKING:\n    import focal.runs.local"
    assert parts_of(imported(f"from focal import cli, __version__\n{lazy}\n{typed}\nimport focal")) == {
        "cli",
        "runs",
        "__init__",
    }


@pytest.mark.parametrize(
    ("library", "where"),
    [("openfhe", {"ckks"}), ("matplotlib", {"reporting", "reproduce"}), ("ray", {"cluster"})],
)
def test_a_library_is_imported_in_its_own_places_only(library: str, where: set[str]) -> None:
    """Only ``ckks`` touches ciphertexts through OpenFHE; roles, measures and runs draw nothing themselves;
    nothing between parties knows Ray."""
    assert {part(path) for path, names in IMPORTS if any(name.split(".")[0] == library for name in names)} == where


def users(pattern: str) -> set[str]:
    return {part(path) for path, _ in IMPORTS if re.search(pattern, path.read_text())}


def test_only_three_packages_compute_on_ciphertexts() -> None:
    """Through the evaluator: whoever else holds a ciphertext loads it from limbs, shows them, and hands it on."""
    assert users(r"scheme\.evaluator\b(?!\.(load|limbs)\b)") == {"ckks", "custody", "heads"}
    assert users(r"scheme\.evaluator\b") > {"ckks", "custody", "heads"}, "others load ciphertexts"


def test_only_ckks_touches_openfhes_context() -> None:
    """``scheme.cc``, of which the evaluator is one of several users."""
    assert users(r"\bcc\.[A-Z]|\.cc\b") == {"ckks"}
    assert users(r"\.[GS]et[A-Z]\w*\(") == {"ckks"}, "a method of OpenFHE's objects"


def asked(source: str) -> list[int]:
    """Lines that ask for a protocol by its name, by the field that only one of them has, or by a class of one of them;
    an assertion asks nothing, it tells a type checker what was asked before."""
    names, found, tree = ("blind", "interactive"), [], ast.parse(source)
    asserted = {id(leaf) for node in ast.walk(tree) if isinstance(node, ast.Assert) for leaf in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [leaf for side in (node.left, *node.comparators) for leaf in ast.walk(side)]
            named = any(isinstance(leaf, ast.Constant) and leaf.value in names for leaf in sides)
            fields = {leaf.attr for leaf in sides if isinstance(leaf, ast.Attribute)}
            if (
                named
                or "protocol" in fields
                or "interactive" in fields
                and any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops)
            ):
                found.append(node.lineno)
        elif (
            isinstance(node, ast.Dict)
            and any(isinstance(key, ast.Constant) and key.value == "blind" for key in node.keys)
            or id(node) not in asserted
            and _tests_a_class(node)
        ):
            found.append(node.lineno)
    return found


def _tests_a_class(node: ast.AST) -> bool:
    """``isinstance(config, BlindRunConfig)``, or ``case BlindRunConfig()``."""
    if isinstance(node, ast.MatchClass):
        kinds = [node.cls]
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
        kinds = node.args[1:]
    else:
        return False
    said = [getattr(leaf, "attr", getattr(leaf, "id", "")) for kind in kinds for leaf in ast.walk(kind)]
    return any(name.startswith(("Blind", "Interactive", "Joint")) for name in said)


def test_nobody_outside_the_protocols_asks_for_one_by_name() -> None:
    """``manifest`` names the fields that belong to each."""
    found = [
        f"{p.relative_to(PACKAGE)}:{line}"
        for p, _ in IMPORTS
        if part(p) != "protocols"
        for line in asked(p.read_text())
    ]
    assert [where.split(":")[0] for where in found] == ["manifest.py"] * 2, found
    pages = [page.name for page in PACKAGE.rglob("*.html") if re.search(r"protocol\s*[!=]=", page.read_text())]
    assert not pages


def test_a_protocol_is_registered_everywhere_or_nowhere() -> None:
    names = set(get_args(Protocol))
    configs = {kind.model_fields["protocol"].default for kind in RUN_CONFIGS}
    assert names == configs == set(OWN_FIELDS) == set(PROTOCOLS)


def test_only_the_blind_plan_says_which_head_a_run_has() -> None:
    """Its layout, engine and twin: roles, comparisons and simulations ask the plan."""
    head = {"twin", "layout.Layout", "cost.layout_for", "engine.Engine", "engine.zero_weights", "engine.mask_digest"}
    named = {f"focal.heads.linear.{name}" for name in head}
    found = {path.relative_to(PACKAGE) for path, names in IMPORTS if names & named}
    assert {str(p) for p in found if p.parts[0] in ("protocols", "runs")} == {"protocols/blind/plan.py"}


@pytest.mark.parametrize(
    "question",
    [
        'summary.protocol == "blind"',
        '"interactive" != m.protocol',
        'm.protocol in ("blind",)',
        "a.protocol == b",
        "meta.interactive is None",
        "if m.interactive is not None and two: pass",
        '{"blind": 1, "interactive": 2}[m.protocol]',
        "isinstance(config, InteractiveRunConfig)",
        "isinstance(config, (Path, config.BlindRunConfig))",
        "match config:\n    case BlindRunConfig(): pass",
    ],
)
def test_every_way_to_ask_is_seen(question: str) -> None:
    assert asked(question)


@pytest.mark.parametrize("module", ["ckks.scheme", "custody.keys", "heads.linear.rehearsal", "ckks.codec"])
def test_openmp_is_limited_before_openfhe_is_imported(module: str) -> None:
    """Whatever is imported first: two OpenMP processes on two cores make a product 30 times slower."""
    watch = "import os, sys, builtins; real = builtins.__import__; seen = []\n"
    watch += "def hook(name, *a, **k):\n"
    watch += (
        "    if name == 'openfhe' and 'openfhe' not in sys.modules: seen.append(os.environ.get('OMP_NUM_THREADS'))\n"
    )
    watch += "    return real(name, *a, **k)\nbuiltins.__import__ = hook\n"
    assert python(f"{watch}import focal.{module}\nprint(seen[0])") == "1"


@pytest.mark.parametrize("library", ["torch", "ray"])
@pytest.mark.parametrize("role", ["server", "custodian"])
def test_server_and_custodian_never_import_torch_nor_ray_by_themselves(role: str, library: str) -> None:
    """Of no protocol."""
    parts = f"for protocol in PROTOCOLS.values(): protocol.part({role!r})"
    program = (
        f"import sys, focal.protocols.start\nfrom focal.protocols import PROTOCOLS\n{parts}\n"
        f"print({library!r} in sys.modules)"
    )
    assert python(program) == "False"


def test_unit_tests_lie_in_the_packages_folders() -> None:
    """And what is slow lies in its own."""
    tests = ROOT / "tests"
    for file in (tests / "unit").rglob("test_*.py"):
        assert (PACKAGE / file.parent.relative_to(tests / "unit")).is_dir(), f"{file} tests no package"
    names = [file.name for file in tests.rglob("test_*.py")]
    assert len(set(names)) == len(names)
    marked = [
        f for folder in ("unit", "runs") for f in (tests / folder).rglob("*.py") if "mark." + "slow" in f.read_text()
    ]
    assert not marked
