"""Several things are hashed, keyed or made a seed in one way, and nowhere but in ``focal/framing.py``."""

from __future__ import annotations

import ast
import hashlib
import hmac
import itertools
import re
from pathlib import Path

import pytest
from places import PACKAGE

from focal import framing

BY_THEMSELVES = {
    "framing.py": "the one place",
    "net/requests.py": "one blob, piece by piece",
    "net/store.py": "one file, piece by piece",
    "data/medmnist.py": "one file, piece by piece",
    "ckks/native/build.py": "runs before the package is there",
    "cluster/nodes.py": "runs on machines without the package",
    "ckks/ring.py": "the counter of a stream, four bytes after a seed that is framed",
    "segments/lower.py": "published weights keep their digests",
    "data/sources.py": "an image's key: caches and earlier runs say by it what they have seen",
    "data/slides.py": "an image's key: caches and earlier runs say by it what they have seen",
}
"""Files of focal that hash more than one thing without a frame, and why."""


def test_each_field_stands_after_its_length() -> None:
    data = b"\x0b" + bytes(7) + b"focal/it/v1" + b"\x02" + bytes(7) + b"ab" + bytes(8)
    assert framing.framed(b"focal/it/v1", b"ab", b"") == data
    assert framing.digest(b"focal/it/v1", b"ab", b"") == hashlib.sha256(data).digest()
    assert framing.keyed(b"key", b"focal/it/v1", b"ab", b"") == hmac.digest(b"key", data, "sha256")


def test_fields_that_come_one_by_one_give_the_same_digest() -> None:
    running = framing.Digest(b"focal/it/v1", b"a")
    running.add(b"b", bytes(300))
    running.add()
    assert running.digest() == framing.digest(b"focal/it/v1", b"a", b"b", bytes(300))
    assert running.hexdigest() == running.digest().hex()


def test_no_two_lists_of_fields_are_told_the_same() -> None:
    """All lists of up to three fields of up to two of these letters, a length's among them."""
    letters = [b"".join(word) for n in range(3) for word in itertools.product((b"\0", b"\1", b"a"), repeat=n)]
    lists = [fields for n in range(4) for fields in itertools.product(letters, repeat=n)]
    assert len({framing.framed(*fields) for fields in lists}) == len(lists)
    assert len({b"".join(fields) for fields in lists}) < len(lists), "without lengths some are"


def several(source: str) -> list[int]:
    """Lines that hash more than one thing: a MAC by hand, a running hash, or a hash of what was joined,
    there or under a name."""
    tree, found = ast.parse(source), []
    names = {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module in _LIBRARIES
             for a in n.names}  # fmt: skip
    joined = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AugAssign) and (isinstance(node, ast.AugAssign) or _joins(node.value))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    running = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target, value in _pairs(node)
        if isinstance(target, ast.Name) and isinstance(value, ast.Call) and _hashes(value, names)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if _hashes(node, names):
            said = ast.unparse(node.func)
            many = said in ("hmac.digest", "hmac.new") or any(
                _joins(a) or isinstance(a, ast.Name) and a.id in joined for a in node.args
            )
        else:
            of = node.func.value if isinstance(node.func, ast.Attribute) and node.func.attr == "update" else None
            many = isinstance(of, ast.Name) and of.id in running or isinstance(of, ast.Call) and _hashes(of, names)
        if many:
            found.append(node.lineno)
    return found


_LIBRARIES = ("hashlib", "hmac")


def _hashes(call: ast.Call, names: set[str]) -> bool:
    said = ast.unparse(call.func)
    return said.split(".")[0] in _LIBRARIES and said != "hmac.compare_digest" or said in names


def _joins(value: ast.expr) -> bool:
    """Is it a sum, a join or a text of several, or made from such a one by its own methods?"""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        return value.func.attr == "join" or _joins(value.func.value)
    added = isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add)
    return added or isinstance(value, ast.JoinedStr) and len(value.values) > 1


def _pairs(node: ast.Assign) -> list[tuple[ast.expr, ast.expr]]:
    return [
        pair
        for target in node.targets
        for pair in (
            zip(target.elts, node.value.elts, strict=False)
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            else [(target, node.value)]
        )
    ]


@pytest.mark.parametrize(
    "source",
    [
        "hashlib.sha256(b'focal/it/v1' + a)",
        "hashlib.sha256(b''.join(parts)).digest()",
        "hashlib.blake2b(f'{a}{b}'.encode())",
        "said = a + b\nhashlib.sha256(said)",
        "said = a\nsaid += b\nhashlib.sha256(said)",
        "found = hashlib.sha256(a)\nfound.update(b)",
        "folder, found = 1, hashlib.sha256()\nfound.update(b)",
        "hmac.digest(key, a, 'sha256')",
        "from hashlib import sha256 as h\nh(a + b)",
    ],
)
def test_it_is_seen_when_several_things_are_hashed(source: str) -> None:
    assert several(source) == [source.count("\n") + 1]


def test_one_thing_may_be_hashed_by_itself() -> None:
    assert several("hashlib.sha256(data).digest()\nhmac.compare_digest(a, b)\nx = a + b\nd.update(x)") == []


def test_several_things_are_hashed_in_one_place_only() -> None:
    found = {
        str(path.relative_to(PACKAGE)): lines
        for path in sorted(PACKAGE.rglob("*.py"))
        if (lines := several(path.read_text()))
    }
    assert found.keys() - BY_THEMSELVES.keys() == set(), f"hash it with focal.framing: {found}"
    assert found.keys() == BY_THEMSELVES.keys(), "a reason that is needed no longer"


def domains() -> list[tuple[Path, str]]:
    """(file, domain) of every call of ``focal.framing`` that spells one out."""
    pattern = r"framing\.(?:digest|framed|Digest)\(\s*b\"([^\"]*)\"|framing\.keyed\(\s*[\w.]+,\s*b\"([^\"]*)\""
    return [(p, a or b) for p in sorted(PACKAGE.rglob("*.py")) for a, b in re.findall(pattern, p.read_text())]


def test_a_domain_names_its_use_and_a_version() -> None:
    found = domains()
    assert len(found) > 40
    assert [d for _, d in found if not re.fullmatch(r"focal(/[a-z-]+)+/v[0-9]", d)] == []
