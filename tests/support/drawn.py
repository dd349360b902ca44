"""Messages drawn by hypothesis: valid ones of every kind, and ones that are spoiled in one place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from hypothesis import strategies as st

from focal.config import Model, printable
from focal.net import frames
from focal.net import messages as msg

HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)
NAME = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,31}", fullmatch=True)
TOPIC = st.from_regex(r"[a-z0-9-]{1,32}(/[A-Za-z0-9_.-]{1,64}){0,4}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PRINTABLE = TEXT.map(printable)
ITEM = st.from_regex(r"[A-Za-z0-9_.-]{1,64}(/[A-Za-z0-9_.-]{1,64}){0,7}", fullmatch=True)
SHORT = st.from_regex(r"[a-z][a-z-]{0,20}", fullmatch=True)

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "bytes": st.dictionaries(
        NAME,
        st.dictionaries(SHORT, st.dictionaries(st.sampled_from(["up", "down"]), st.integers(0, 1 << 60)), max_size=2),
        max_size=2,
    ),
    "sealed": st.dictionaries(NAME, st.binary(max_size=40), max_size=3),
    "participants": st.lists(NAME, max_size=3).map(tuple),
    "owners": st.lists(NAME, max_size=3).map(tuple),
    "present": st.lists(NAME, max_size=3).map(tuple),
    "incomplete": st.lists(NAME, max_size=3).map(tuple),
    "names": st.lists(NAME, max_size=3).map(tuple),
    "absent": st.dictionaries(NAME, st.sampled_from(get_args(msg.WhyAbsent)), max_size=3),
    "left_out": st.dictionaries(NAME, st.integers(0, 1 << 31), max_size=3),
    "active": st.lists(NAME, min_size=1, max_size=3).map(tuple),
    "number": st.integers(1, 8),
    "done": st.booleans(),
    "items": st.lists(ITEM, max_size=3).map(tuple),
    "eta_hex": st.floats(1e-300, 1e300).map(float.hex),
    "rotations": st.dictionaries(st.integers(-(1 << 14), 1 << 14).map(str), HEX, max_size=3),
    "sizes": st.lists(st.integers(-1, frames.MAX_BLOB), max_size=4).map(tuple),
    "signed": st.lists(st.binary(max_size=60), max_size=3).map(tuple),
    "features": st.binary(max_size=40),
    "seconds": st.floats(0, 30),
    "size": st.integers(1, frames.MAX_BLOB),
    "offset": st.integers(0, frames.MAX_BLOB),
    "highest": st.integers(-1, 1 << 31),
    "stored": st.integers(-1, frames.MAX_BLOB),
    "audience": st.sampled_from(["server", "custodians", "all"]),
    "sender": NAME,
    "about": NAME,
    "name": NAME,
    "topic": TOPIC,
}
BY_TYPE: list[tuple[str, st.SearchStrategy[Any]]] = [
    ("^[0-9a-f]{64}$", HEX),
    ("Ge(ge=1), Le(le=65536)", st.integers(1, 1 << 16)),
    ("class 'int'", st.integers(0, 1 << 31)),
    ("'^[a-z0-9-]{1,64}$'", SHORT),
    ("class 'str'", PRINTABLE),
]


def strategy(model: type[Model]) -> st.SearchStrategy[Any]:
    """Valid messages of one kind: by field name where the type says too little."""
    fields = {}
    for name, info in model.model_fields.items():
        if name in ("kind", "version") and info.default is not None and not info.is_required():
            continue
        if name == "sealed" and "Digest" in str(model.__annotations__.get(name)):
            fields[name] = st.dictionaries(NAME, HEX, max_size=3)
        elif name in FIELDS:
            fields[name] = FIELDS[name]
        elif "Digests" in str(model.__annotations__.get(name)):
            fields[name] = st.lists(HEX, max_size=3).map(tuple)
        else:
            described = f"{info.annotation} {info.metadata}"
            fitting = [s for marker, s in BY_TYPE if marker in described]
            assert fitting, f"say in FIELDS what values {model.__name__}.{name} takes"
            fields[name] = fitting[0]
    return st.builds(model, **fields)


def union(annotated: Any) -> tuple[type[Model], ...]:
    return get_args(get_args(annotated)[0])


BODIES, REQUESTS, REPLIES = union(msg.Body), union(frames.Request), union(frames.Reply)
RECORDS = st.builds(msg.Record, scope=HEX, sender=NAME, topic=TOPIC, body=st.one_of([strategy(b) for b in BODIES]))


def spoiled(value: Any, character: str) -> Iterator[Any]:
    """``value`` with ``character`` in one of its texts, each in turn: values and the keys of free dictionaries."""
    if isinstance(value, str):
        yield value + character
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from ({**value, key: bad} for bad in spoiled(inner, character))
            yield {**{k: v for k, v in value.items() if k != key}, key + character: inner}
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from ([*value[:i], bad, *value[i + 1 :]] for bad in spoiled(inner, character))
