"""Every message has one spelling, and a decoder raises nothing but ProtocolError whatever bytes it gets."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from drawn import BODIES, RECORDS, REPLIES, REQUESTS, TEXT, spoiled, strategy
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from focal.config import ANEW, Model
from focal.errors import ProtocolError, Refused
from focal.net import frames
from focal.net import messages as msg
from focal.net.encoding import MAX_RECORD, decode, encode


@settings(max_examples=120, deadline=None)
@given(RECORDS)
def test_records_round_trip(record: msg.Record) -> None:
    data = encode(record)
    assert decode(msg.Record, data) == record
    assert encode(decode(msg.Record, data)) == data


@pytest.mark.parametrize("body", BODIES, ids=lambda b: b.__name__)
def test_every_kind_of_record_round_trips(body: type[Model]) -> None:
    @settings(max_examples=5, deadline=None, database=None)
    @given(strategy(body))
    def check(message: Model) -> None:
        record = msg.Record(scope="00" * 32, sender="a", topic="t", body=message)  # type: ignore[arg-type]
        assert type(decode(msg.Record, encode(record)).body) is body

    check()


@settings(max_examples=200, deadline=None)
@given(st.one_of([strategy(r) for r in REQUESTS]), st.one_of([strategy(r) for r in REPLIES]))
def test_frames_round_trip(request: Model, reply: Model) -> None:
    assert decode(frames.REQUEST, encode(request)) == request
    assert decode(frames.REPLY, encode(reply)) == reply


ADAPTERS: list[Any] = [frames.REQUEST, frames.REPLY, msg.Record, msg.Signed]


def decodes_or_refuses(adapter: Any, data: bytes) -> None:
    try:
        message = decode(adapter, data)
    except ProtocolError:
        return
    assert encode(message) == data


PACKABLE = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.binary(max_size=20) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXT | st.sampled_from(["kind", "body", "version"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(ADAPTERS), st.binary(max_size=200) | PACKABLE.map(msgpack.packb))
def test_random_bytes_raise_protocol_error_only(adapter: Any, data: bytes) -> None:
    decodes_or_refuses(adapter, data)


@settings(max_examples=150, deadline=None)
@given(RECORDS.map(encode), st.data())
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
    "version": 3,
    "scope": "00" * 32,
    "sender": "a",
    "topic": "t",
    "body": {"kind": "nonce-reveal", "nonce": "ab" * 32, "salt": "cd" * 32},
}


def ordered(value: Any) -> Any:
    return {k: ordered(value[k]) for k in sorted(value)} if isinstance(value, dict) else value


def test_the_sorted_spelling_is_accepted() -> None:
    data = msgpack.packb(ordered(REVEAL))
    assert encode(decode(msg.Record, data)) == data


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(msgpack.packb(dict(reversed(ordered(REVEAL).items()))), id="unsorted"),
        pytest.param(msgpack.packb(ordered({**REVEAL, "body": {**BODY, "nonce": "AB" * 32}})), id="uppercase hex"),
        pytest.param(msgpack.packb(ordered({**REVEAL, "version": 3.0})), id="float version"),
        pytest.param(msgpack.packb(ordered({**REVEAL, "version": True})), id="bool version"),
        pytest.param(msgpack.packb(ordered({**REVEAL, "sender": b"a"}), use_bin_type=True), id="bytes as text"),
        pytest.param(
            msgpack.packb(ordered({k: v for k, v in REVEAL.items() if k != "version"})), id="default left out"
        ),
        pytest.param(msgpack.packb(ordered({**REVEAL, "extra": 1})), id="unknown field"),
        pytest.param(msgpack.packb(ordered({**REVEAL, "topic": "t\n"})), id="newline in topic"),
        pytest.param(msgpack.packb(ordered({**REVEAL, "topic": "../t"})), id="path in topic"),
        pytest.param(msgpack.packb(ordered(REVEAL)) + b"\xc0", id="trailing byte"),
        pytest.param(msgpack.packb(ordered(REVEAL)).replace(b"\xa1t", b"\xd9\x01t"), id="long string header"),
        pytest.param(b"\x86" + msgpack.packb(ordered(REVEAL))[1:] + b"\xa7version\x02", id="key twice"),
        pytest.param(b"\x91" * 5000 + b"\xc0", id="deep nesting"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="announces four thousand million elements"),
        pytest.param(bytes(MAX_RECORD + 5000), id="too long"),
    ],
)
def test_other_spellings_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(msg.Record, data)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 31.0])
def test_wait_takes_only_sane_times(seconds: float) -> None:
    with pytest.raises(ProtocolError):
        decode(frames.REQUEST, msgpack.packb({"after": 0, "kind": "wait", "seconds": seconds}))


def test_error_of_a_hostile_message_is_short_and_printable() -> None:
    """Its text goes into logs and replies."""
    data = msgpack.packb({"\x1b[2J\n" * 90_000: 1, "kind": "wait", "after": 0, "seconds": 1.0})
    for adapter, bad in (
        (frames.REQUEST, data),
        (frames.REQUEST, msgpack.packb({"kind": "\x1b[2J\u202e"})),  # pydantic quotes an unknown kind
        (msg.Record, msgpack.packb(ordered({**REVEAL, "sender": "a\x1b[2J"}))),
    ):
        with pytest.raises(ProtocolError) as e:
            decode(adapter, bad)
        assert len(str(e.value)) < 400 and str(e.value).isprintable()


FULL = {
    "items": ("train/0/weights/-/0/-",),
    "bytes": {"a": {"keys": {"up": 1, "down": 2}}},
    "rotations": {"-4": "ab" * 32},
}
FULL |= {
    "sealed": {"a": "ab" * 32},
    "participants": ("a",),
    "owners": ("a",),
    "doing": "keys",
    "eta_hex": "0x1.8p-3",
    "label": "moments",
}


@pytest.mark.parametrize("model", [*BODIES, *REQUESTS, *REPLIES], ids=lambda m: m.__name__)
@pytest.mark.parametrize("character", ["\n", "\x00", "\x1b", "\x7f", "\x9b", "\u2028", "\u202e", "\u2066"], ids=ascii)
def test_no_text_of_any_message_may_steer_a_terminal(model: type[Model], character: str) -> None:
    @settings(max_examples=1, deadline=None, database=None, derandomize=True)
    @given(strategy(model))
    def check(message: Model) -> None:
        fields = message.model_dump()
        given = {k: str(model.__annotations__[k]) for k in fields}
        other = {"sealed": "Bytes", "label": "Hex32"}  # of another type here
        fields |= {k: v for k, v in FULL.items() if k in fields and other.get(k, "-") not in given[k]}
        model.model_validate(fields)  # these would be accepted
        for bad in spoiled(fields, character):
            with pytest.raises(ValidationError):
                model.model_validate(bad)

    check()


@pytest.mark.parametrize("good", ["0x1.8000000000000p-3", (0.1).hex(), (5e-324).hex(), (1.7e308).hex()])
def test_step_sizes_are_spelt_as_floats_are(good: str) -> None:
    assert msg.ProjectionAccepted(digest="ab" * 32, eta_hex=good).eta_hex == good


@pytest.mark.parametrize(
    "bad", ["", "seven", "1.5", "0x1p+0", "-0x1.8p+0", "0X1.8P+0", "0x1.8p+0 ", "nan", "inf", "0x1.80000000000000p+0"]
)
def test_other_step_sizes_are_refused(bad: str) -> None:
    with pytest.raises(ValidationError):
        msg.ProjectionAccepted(digest="ab" * 32, eta_hex=bad)


def test_a_record_of_an_old_run_says_what_it_is() -> None:
    """Whatever else it holds: its messages are readable by its server."""
    for body in (BODY, {"kind": "sum-contribution", "label": "moments"}):
        with pytest.raises(Refused, match="readable by its server") as e:
            decode(msg.Record, msgpack.packb(ordered({**REVEAL, "version": 1, "body": body})))
        assert e.value.reason == "old-version" and ANEW in str(e.value)
