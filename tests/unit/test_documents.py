"""What the pages and the docstrings name exists: a claim of SECURITY.md whose test is gone is a defect, and so is a
reference to a page that nobody can open.

::

    README, SECURITY, CONTRIBUTING, docs/*       \\                    files, links, tests, dotted names, file:function,
    every file of focal, tests, examples, scripts -- lost(text, whose) -- roles (:func:`...`), words in backticks
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import openfhe
import pytest
from places import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "experiments" / "README.md"]
SOURCES = [p for folder in ("focal", "tests", "examples", "scripts") for p in sorted((ROOT / folder).rglob("*.py"))]
HISTORY = {"CHANGELOG.md"}
"""It names what is no more."""
ELSEWHERE = {
    "results.md",
    "gpu.md",
    "docs/gpu.md",
    "leaks.md",
    "contract_check.py",
    "Security.md",
    "Threshold_FHE.md",
    "threshold-fhe.py",
}
"""What a command writes, what may lie beside a checkout, and OpenFHE's own files."""
THEIRS = {"SetAVector", "evalMultAB", "evalMultBAB", "evalMultFinal", "startPartIdx", "endPartIdx"}
"""Names of OpenFHE's in C++ and in its examples; those that Python has are looked up."""
PLANNED = re.compile(r"mine|nifti|oneshot|OneShot|custody/proof\.py")
"""What docs/extending.md has a reader add."""

ROLE = re.compile(r":(?:mod|func|class|meth|data|attr|exc|obj):`~?([\w.]+)`")
DOTTED = re.compile(r"(?<![\w/.@~-])focal(?:\.[A-Za-z_]\w*)+(?!\.?[\w*])")
FILE = re.compile(r"(?<![\w./{}*~-])((?:[\w-]+/)*[\w-]+\.(?:py|md|ipynb))\b(?!\()")
PLACE = re.compile(r"([\w/]+\.py):([A-Za-z_][\w.]*)")
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)")
PAIR = re.compile(r"(test_\w+\.py)::(test_\w+)")
TEST = re.compile(r"(?<![\w./*])(test_\w+)\b(?![.\w*])")
CODE = re.compile(r"`([A-Za-z_][\w.]*)(?:\(\))?`")


# --------------------------------------------------------------------------- what there is


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def files() -> dict[str, list[Path]]:
    """Every file of the project by its bare name."""
    found: dict[str, list[Path]] = {}
    for folder in ("focal", "tests", "docs", "examples", "scripts", "experiments"):
        for p in (ROOT / folder).rglob("*.*"):
            found.setdefault(p.name, []).append(p)
    for p in ROOT.glob("*.*"):
        found.setdefault(p.name, []).append(p)
    return found


def at(name: str, whose: Path) -> Path | None:
    """The file that a text of ``whose`` means: beside it, below the project, the package, tests or docs, or the only
    one of that name. A page may mean each of several modules by one bare name."""
    for folder in (whose.parent, ROOT, ROOT / "focal", ROOT / "tests", ROOT / "docs"):
        if (folder / name).is_file():
            return folder / name
    ends = [p for p in files().get(Path(name).name, []) if p.as_posix().endswith("/" + name)]
    return ends[0] if len(ends) == 1 or (ends and "/" not in name and whose.suffix == ".md") else None


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def modules() -> dict[str, Path]:
    return {module(p): p for p in SOURCES}


def defined(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Names that statements of a module or class bind, those within ``if`` and ``try`` too."""
    for statement in body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield statement.name, statement
        elif isinstance(statement, ast.Assign):
            yield from ((n.id, statement) for t in statement.targets for n in ast.walk(t) if isinstance(n, ast.Name))
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id, statement
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            yield from ((a.asname or a.name, statement) for a in statement.names)
        elif isinstance(statement, ast.If | ast.Try):
            yield from defined(statement.body)


@functools.cache
def names(path: Path) -> dict[str, ast.stmt]:
    return dict(defined(tree(path).body))


def has(path: Path, dotted: str, depth: int = 0) -> bool:
    """Whether the module at ``path`` has this name, or this member of a class, own, inherited or imported."""
    first, *rest = dotted.split(".")
    found = names(path).get(first)
    if found is None:
        face = path == ROOT / "focal" / "__init__.py"  # its names are those of the api
        return first.startswith("__") or (face and has(ROOT / "focal" / "api.py", dotted))
    if isinstance(found, ast.ImportFrom) and found.module in modules() and depth < 5:
        imported = next(a.name for a in found.names if (a.asname or a.name) == first)
        if inner := modules().get(f"{found.module}.{imported}"):
            return not rest or has(inner, ".".join(rest), depth + 1)
        return has(modules()[found.module], ".".join([imported, *rest]), depth + 1)
    if not rest or not isinstance(found, ast.ClassDef):
        return not rest or isinstance(found, ast.Import | ast.ImportFrom)
    members = {name for name, _ in defined(found.body)}
    members |= {n.attr for n in ast.walk(found) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    bases = [base.id for base in found.bases if isinstance(base, ast.Name)]
    return rest[0] in members or any(has(path, f"{base}.{rest[0]}", depth + 1) for base in bases)


def exists(dotted: str) -> bool:
    """A module, or a name in one: ``focal.heads.linear.engine.Engine.step``."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        if path := modules().get(".".join(parts[:cut])):
            return cut == len(parts) or has(path, ".".join(parts[cut:]))
    return False


@functools.cache
def anywhere() -> dict[str, list[Path]]:
    """Modules that bind a name at their top."""
    found: dict[str, list[Path]] = {}
    for path in SOURCES:
        for name in names(path):
            found.setdefault(name, []).append(path)
    return found


@functools.cache
def words() -> set[str]:
    """Every word of code: names, attributes, arguments, strings that are no docstrings, settings, targets of make."""
    found = THEIRS | set(dir(openfhe)) | set(dir(openfhe.CryptoContext))
    for path in (p for p in SOURCES if p != Path(__file__)):
        whole = tree(path)
        said = {id(n.value) for n in ast.walk(whole) if isinstance(n, ast.Expr)}
        for n in ast.walk(whole):
            found |= {str(getattr(n, field)) for field in ("id", "attr", "name", "arg") if getattr(n, field, None)}
            if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in said:
                found |= set(re.findall(r"[A-Za-z_]\w*", n.value))
    settings = [ROOT / name for name in ("Makefile", "pyproject.toml", "constraints.txt")]
    for path in [*(ROOT / "focal").rglob("*.yaml"), *settings]:
        found |= set(re.findall(r"[A-Za-z_]\w*", path.read_text()))
    return found


# --------------------------------------------------------------------------- what is named


def lost(text: str, whose: Path) -> list[str]:
    """What ``text``, of the file ``whose``, names and nobody has."""
    page = whose.suffix == ".md"
    out = [f for f in set(FILE.findall(text)) if Path(f).name not in ELSEWHERE and at(f, whose) is None]
    for file, name in set(PLACE.findall(text)):
        if (path := at(file, whose)) is None or not has_function(path, name):
            out.append(f"{file}:{name}")
    for file, name in set(PAIR.findall(text)):
        if (path := at(file, whose)) is None or not has_function(path, name):
            out.append(f"{file}::{name}")
    out += [t for t in set(TEST.findall(text)) if not a_test(t)]
    out += [d for d in set(DOTTED.findall(text)) if not exists(d)]
    for name in set(ROLE.findall(text)):
        first, *rest = name.split(".")
        here = not page and (has(whose, name) or (not rest and a_member(whose, name)))
        if not (exists(name) or (first != "focal" and (here or any(has(p, name) for p in anywhere().get(first, []))))):
            out.append(name)
    if page:
        out += [f for f in set(LINK.findall(text)) if not (whose.parent / f).exists()]
        for name in set(CODE.findall(text)):
            coded = len(name) > 3 and ("_" in name.strip("_") or re.search(r"[a-z][A-Z]", name) is not None)
            parts = re.findall(r"\w+", name) if coded else []
            out += [part for part in parts if not part.isupper() and not a_test(part)]
    planned = whose == ROOT / "docs" / "extending.md"
    return sorted({name for name in out if not (planned and PLANNED.search(name))})


def has_function(path: Path, name: str) -> bool:
    """A function or class of that name, at any depth, or a constant."""
    last = re.escape(name.rpartition(".")[2])
    return re.search(rf"\b(def|class) {last}\b|^{last}\b *(:[^=\n]*)?=", path.read_text(), re.M) is not None


def a_member(path: Path, name: str) -> bool:
    return any(name == getattr(n, "attr", getattr(n, "name", getattr(n, "id", None))) for n in ast.walk(tree(path)))


@functools.cache
def every_test() -> set[str]:
    """Functions and files of tests."""
    paths = list((ROOT / "tests").rglob("*.py"))
    return {p.stem for p in paths} | {name for p in paths for name in re.findall(r"def (test_\w+)\(", p.read_text())}


def a_test(name: str) -> bool:
    """A test, or a word of the code that only begins like one."""
    return name in every_test() or name in words()


# --------------------------------------------------------------------------- tests


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in HISTORY], ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    assert lost(page.read_text(), page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_on_a_page_is_no_wider_than_code(page: Path) -> None:
    """120 columns: what is written between fences does not wrap. Prose does."""
    blocks = "".join(page.read_text().split("```")[1::2])
    assert [line for line in blocks.splitlines() if len(line) > 120] == []


def test_what_a_source_file_names_exists() -> None:
    """Its docstrings and comments; imports are dotted names as well, and pass."""
    others = [p for p in SOURCES if p != Path(__file__)]
    assert {str(p.relative_to(ROOT)): missing for p in others if (missing := lost(p.read_text(), p))} == {}


def test_enough_is_looked_at() -> None:
    """A search that finds nothing would pass on every page."""
    security = (ROOT / "SECURITY.md").read_text()
    for pattern, least in ((TEST, 60), (PLACE, 20), (FILE, 20)):
        assert len(set(pattern.findall(security))) > least
    assert len(set(TEST.findall((ROOT / "docs" / "openfhe.md").read_text()))) > 15
    for pattern, least in ((ROLE, 100), (DOTTED, 200), (FILE, 25), (TEST, 5)):
        assert sum(len(set(pattern.findall(p.read_text()))) for p in SOURCES if "focal" in p.parts) > least


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("see heads/linear/engines.py", "heads/linear/engines.py"),
        ("as system.md has it", "system.md"),
        ("([kernels](docs/kernel.md))", "docs/kernel.md"),
        ("[the folder](focal/roles)", "focal/roles"),
        ("`custody/refresh.py:common_randomness`", "custody/refresh.py:common_randomness"),
        ("a test, test_nobody_reads_anything, performs it", "test_nobody_reads_anything"),
        ("tests/test_nothing.py", "tests/test_nothing.py"),
        ("test_ring.py::test_what_is_there_is_not_found", "test_ring.py::test_what_is_there_is_not_found"),
        (":mod:`focal.roles`", "focal.roles"),
        (":func:`focal.custody.refresh.combined`", "focal.custody.refresh.combined"),
        (":class:`~focal.data.table.Tables`", "focal.data.table.Tables"),
        (":meth:`Layout.chunk`", "Layout.chunk"),
        (":attr:`focal.heads.linear.layout.Layout.dividend`", "focal.heads.linear.layout.Layout.dividend"),
        ("whoever calls focal.simulated gets it", "focal.simulated"),
        ("`JointServers` hears it", "JointServers"),
        ("`row_tables`", "row_tables"),
        ("`Scheme.switching_keys`", "switching_keys"),
    ],
)
def test_what_is_not_there_is_found(text: str, name: str) -> None:
    """A name in a sentence, a letter or a folder wrong."""
    assert name in lost(text, ROOT / "README.md")


def test_what_is_there_is_not_found() -> None:
    text = """heads/linear/engine.py, [kernels](docs/kernels.md), `custody/refresh.py:common_random`, focal.simulate,
    :func:`focal.custody.refresh.combine`, :meth:`Layout.chunks`, :attr:`focal.heads.linear.layout.Layout.divisor`,
    :attr:`focal.api.Run.folder`, :mod:`focal.protocols`, focal.Run.open, test_what_is_there_is_not_found,
    `JointServer`, `row_table`, `Scheme.switching_key`"""
    assert lost(text, ROOT / "README.md") == []


def test_files_of_tests_have_names_of_their_own_and_import_none_of_each_other() -> None:
    """Pages and docstrings name them without a folder, and what two need lies in tests/support."""
    paths = [p for p in SOURCES if p.name.startswith("test_")]
    assert len({p.name for p in paths}) == len(paths) > 80
    for path in paths:
        assert re.findall(r"^ *(?:from|import) test_\w+", path.read_text(), re.M) == [], path


def test_what_is_planned_is_not_there_yet() -> None:
    """Where it is, docs/extending.md speaks of the past."""
    named = {f for f in FILE.findall((ROOT / "docs" / "extending.md").read_text()) if PLANNED.search(f)}
    assert len(named) > 5 and [f for f in named if at(f, ROOT / "README.md")] == []
