"""Files and the text in them: what is written whole or not at all, JSON with one spelling, YAML without surprises.

Imports nothing of the package.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml


def private_write(path: Path, data: bytes) -> None:
    """Write ``path`` whole or not at all, readable by its owner only, on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except OSError:
        tmp.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def forget(*files: Path) -> None:
    """Unlink files, for good even if the power fails next; those that are not there stay so."""
    for file in files:
        file.unlink(missing_ok=True)
    for parent in {file.parent for file in files}:
        sync_folder(parent)


def sync_folder(folder: Path | str) -> None:
    """Wait until the names in a folder are on disk: a file is not safe before its name is."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of ``data`` at ``offset`` (bytes): the system may take less at a time."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def canonical_json(value: Any) -> bytes:
    """One spelling for one value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def load_yaml(text: str) -> Any:
    """What YAML, or JSON, spells. Raises :class:`yaml.YAMLError`, also for a key that is written twice."""
    if text.lstrip().startswith("{"):  # YAML knows no pairs of surrogates, as JSON spells what is beyond 16 bits
        with suppress(json.JSONDecodeError):
            return json.loads(text, object_pairs_hook=_unique)
    return yaml.load(text, _UniqueKeys)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise yaml.YAMLError(f"the key {next(k for k in sorted(keys) if keys.count(k) > 1)!r} is written twice")
    return dict(pairs)


class _UniqueKeys(yaml.SafeLoader):
    """A key that is written twice is an error: one of the two would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(k, deep=deep) for k, _ in node.value]
        twice = {k for k in keys if keys.count(k) > 1}
        if twice:
            raise yaml.YAMLError(f"the key {sorted(map(str, twice))[0]!r} is written twice")
        return super().construct_mapping(node, deep=deep)


# YAML 1.2's booleans only: `verify: off` is a word here, not False.
_BOOL = "tag:yaml.org,2002:bool"
_UniqueKeys.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_UniqueKeys.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
