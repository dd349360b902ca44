"""Files of settings: YAML or JSON to a model and back, and what is wrong with one, in words.

An error names the file, the field and what is allowed there.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from focal.config import ANEW, RUN_CONFIGS, Model, RunConfig, earlier, printable
from focal.errors import ConfigError
from focal.files import load_yaml, private_write
from focal.manifest import Manifest

M = TypeVar("M", bound=Model)


def expand(value: Any, path: Path) -> Any:
    """Replace ``${NAME}`` in strings by the environment; an unset one is an error that names it and the file."""
    if isinstance(value, dict):
        return {k: expand(v, path) for k, v in value.items()}
    if isinstance(value, list):
        return [expand(v, path) for v in value]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise ConfigError(f"{path}: uses ${{{match[1]}}}, which is not set (export {match[1]}=/path/to/folder)")
        return found

    return re.sub(r"\$\{(\w+)\}", lookup, value)


def explain(error: ValidationError, path: Path | str, model: type[Model] | None = None) -> ConfigError:
    """A pydantic error as lines of ``file: field: what is wrong``; an unknown key is shown with the keys that exist,
    or with the protocol that has it."""
    lines = []
    for e in error.errors():
        field = ".".join(str(x) for x in e["loc"] if "[" not in str(x)) or "(whole file)"
        text = e["msg"].removeprefix("Value error, ")
        if e["type"] == "extra_forbidden":
            known = _keys(model, e["loc"][:-1]) if model else []
            text = _elsewhere(model, e["loc"]) or "unknown key" + (f"; known are {', '.join(known)}" if known else "")
        got = f" (got {e['input']!r})" if isinstance(e["input"], str | int | float) else ""
        lines.append(f"{path}: {printable(f'{field}: {text}')}{got}")  # keys and tags may be another member's
    return ConfigError("\n".join(lines))


def _keys(model: Any, loc: tuple[int | str, ...]) -> list[str]:
    """Field names of the (nested) model that an error's location points to."""
    for part in loc:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        model = field.annotation
    return list(getattr(model, "model_fields", {}))


def _elsewhere(model: Any, loc: tuple[int | str, ...]) -> str:
    """Which protocol has a key that a run configuration of another one holds."""
    if model not in RUN_CONFIGS:
        return ""
    has = [kind for kind in RUN_CONFIGS if loc[-1] in _keys(kind, loc[:-1])]
    own, others = (", ".join(k.model_fields["protocol"].default for k in kinds) for kinds in ([model], has))
    return f"'{loc[-1]}' belongs to protocol {others}, and this run is of protocol {own}" if has else ""


def read(model: type[M], path: Path | str) -> M:
    """Read YAML or JSON into ``model``. Raises :class:`ConfigError` naming file, field and allowed values;
    first of all where a manifest is of an old run.

    ``${NAME}`` stands for the environment's value in what people write. A manifest is what all have signed,
    and a random key of a member may spell ``${HA}``: Z85 has these characters.
    """
    path = Path(path)
    try:
        raw = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({e.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: is neither YAML nor JSON ({printable(str(e), keep=chr(10))})") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must hold a mapping of options")
    if model is Manifest and (why := earlier(raw.get("version"))):  # before all else that may be wrong with it
        raise ConfigError(f"{path}: {why}", hint=ANEW)
    fields = raw if model is Manifest else expand(raw, path)
    kind: type[Model] = model
    try:
        if model is RunConfig:
            kind = RunConfig.kind(fields)
        return model.model_validate(fields)
    except ValidationError as e:
        raise explain(e, path, kind) from None


def write(model: Model, path: Path) -> None:
    """Write ``model`` as JSON (which is YAML too), 0600."""
    private_write(path, json.dumps(model.model_dump(mode="json", exclude_none=True), indent=2).encode() + b"\n")
