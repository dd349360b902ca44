"""Every message has one spelling, and a decoder raises nothing but ProtocolError whatever bytes it gets."""

from __future__ import annotations

from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focal.config import Model
from focal.errors import ProtocolError
from focal.net import messages as msg

HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)
NAME = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,31}", fullmatch=True)
TOPIC = st.from_regex(r"[a-z0-9-]{1,32}(/[A-Za-z0-9_.-]{1,64}){0,4}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "bytes": st.dictionaries(
        NAME, st.dictionaries(TEXT, st.dictionaries(TEXT, st.integers(0, 1 << 60), max_size=2), max_size=2), max_size=2
    ),
    "sealed": st.dictionaries(NAME, st.binary(max_size=40), max_size=3),
    "participants": st.lists(NAME, max_size=3).map(tuple),
    "owners": st.lists(NAME, max_size=3).map(tuple),
    "done": st.booleans(),
    "items": st.lists(TEXT, max_size=3).map(tuple),
    "rotations": st.dictionaries(TEXT, HEX, max_size=3),
    "sizes": st.lists(st.integers(-1, msg.MAX_BLOB), max_size=4).map(tuple),
    "signed": st.lists(st.binary(max_size=60), max_size=3).map(tuple),
    "features": st.binary(max_size=40),
    "seconds": st.floats(0, 30),
    "size": st.integers(1, msg.MAX_BLOB),
    "offset": st.integers(0, msg.MAX_BLOB),
    "highest": st.integers(-1, 1 << 31),
    "stored": st.integers(-1, msg.MAX_BLOB),
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
    ("class 'str'", TEXT),
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


BODIES, REQUESTS, REPLIES = union(msg.Body), union(msg.Request), union(msg.Reply)
RECORDS = st.builds(msg.Record, scope=HEX, sender=NAME, topic=TOPIC, body=st.one_of([strategy(b) for b in BODIES]))


@settings(max_examples=400, deadline=None)
@given(RECORDS)
def test_records_round_trip(record: msg.Record) -> None:
    data = msg.encode(record)
    assert msg.decode(msg.Record, data) == record
    assert msg.encode(msg.decode(msg.Record, data)) == data


@pytest.mark.parametrize("body", BODIES, ids=lambda b: b.__name__)
def test_every_kind_of_record_round_trips(body: type[Model]) -> None:
    @settings(max_examples=5, deadline=None, database=None)
    @given(strategy(body))
    def check(message: Model) -> None:
        record = msg.Record(scope="00" * 32, sender="a", topic="t", body=message)  # type: ignore[arg-type]
        assert type(msg.decode(msg.Record, msg.encode(record)).body) is body

    check()


@settings(max_examples=200, deadline=None)
@given(st.one_of([strategy(r) for r in REQUESTS]), st.one_of([strategy(r) for r in REPLIES]))
def test_frames_round_trip(request: Model, reply: Model) -> None:
    assert msg.decode(msg.REQUEST, msg.encode(request)) == request
    assert msg.decode(msg.REPLY, msg.encode(reply)) == reply


ADAPTERS: list[Any] = [msg.REQUEST, msg.REPLY, msg.Record, msg.Signed]


def decodes_or_refuses(adapter: Any, data: bytes) -> None:
    try:
        message = msg.decode(adapter, data)
    except ProtocolError:
        return
    assert msg.encode(message) == data


PACKABLE = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.binary(max_size=20) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT | st.sampled_from(["kind", "body", "version"]), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(ADAPTERS), st.binary(max_size=200) | PACKABLE.map(msgpack.packb))
def test_random_bytes_raise_protocol_error_only(adapter: Any, data: bytes) -> None:
    decodes_or_refuses(adapter, data)


@settings(max_examples=600, deadline=None)
@given(RECORDS.map(msg.encode), st.data())
def test_mutated_records_raise_protocol_error_only(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data) - 1))
    how = draw.draw(st.sampled_from(["flip", "cut", "drop", "insert", "append"]))
    byte = draw.draw(st.binary(min_size=1, max_size=1))
    mutated = {
        "flip": data[:at] + bytes([data[at] ^ (byte[0] or 1)]) + data[at + 1 :],
        "cut": data[:at],
        "drop": data[:at] + data[at + 1 :],
        "insert": data[:at] + byte + data[at:],
        "append": data + byte,
    }[how]
    decodes_or_refuses(msg.Record, mutated)


BODY = {"kind": "nonce-reveal", "nonce": "ab" * 32, "salt": "cd" * 32}
REVEAL = {
    "version": 1,
    "scope": "00" * 32,
    "sender": "a",
    "topic": "t",
    "body": {"kind": "nonce-reveal", "nonce": "ab" * 32, "salt": "cd" * 32},
}


def ordered(value: Any) -> Any:
    return {k: ordered(value[k]) for k in sorted(value)} if isinstance(value, dict) else value


def test_the_sorted_spelling_is_accepted() -> None:
    data = msgpack.packb(ordered(REVEAL))
    assert msg.encode(msg.decode(msg.Record, data)) == data


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(msgpack.packb(dict(reversed(ordered(REVEAL).items()))), id="unsorted"),
        pytest.param(msgpack.packb(ordered({**REVEAL, "body": {**BODY, "nonce": "AB" * 32}})), id="uppercase hex"),
        pytest.param(msgpack.packb(ordered({**REVEAL, "version": 1.0})), id="float version"),
        pytest.param(msgpack.packb(ordered({**REVEAL, "version": True})), id="bool version"),
        pytest.param(msgpack.packb(ordered({**REVEAL, "sender": b"a"}), use_bin_type=True), id="bytes as text"),
        pytest.param(msgpack.packb(ordered({k: v for k, v in REVEAL.items() if k != "version"})), id="default left out"),
        pytest.param(msgpack.packb(ordered({**REVEAL, "extra": 1})), id="unknown field"),
        pytest.param(msgpack.packb(ordered({**REVEAL, "topic": "t\n"})), id="newline in topic"),
        pytest.param(msgpack.packb(ordered({**REVEAL, "topic": "../t"})), id="path in topic"),
        pytest.param(msgpack.packb(ordered(REVEAL)) + b"\xc0", id="trailing byte"),
        pytest.param(msgpack.packb(ordered(REVEAL)).replace(b"\xa1t", b"\xd9\x01t"), id="long string header"),
        pytest.param(b"\x86" + msgpack.packb(ordered(REVEAL))[1:] + b"\xa7version\x01", id="key twice"),
        pytest.param(b"\x91" * 5000 + b"\xc0", id="deep nesting"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="announces four thousand million elements"),
        pytest.param(bytes(msg.MAX_RECORD + 5000), id="too long"),
    ],
)
def test_other_spellings_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        msg.decode(msg.Record, data)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 31.0])
def test_wait_takes_only_sane_times(seconds: float) -> None:
    with pytest.raises(ProtocolError):
        msg.decode(msg.REQUEST, msgpack.packb({"after": 0, "kind": "wait", "seconds": seconds}))


def test_error_of_a_hostile_message_is_short_and_printable() -> None:
    """Its text goes into logs and replies."""
    data = msgpack.packb({"\x1b[2J\n" * 90_000: 1, "kind": "wait", "after": 0, "seconds": 1.0})
    with pytest.raises(ProtocolError) as e:
        msg.decode(msg.REQUEST, data)
    assert len(str(e.value)) < 400 and str(e.value).isprintable()
