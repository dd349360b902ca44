"""Secure sums: exact for the participants, uniform noise for the server, and nothing slips through unnoticed."""

from __future__ import annotations

import hashlib
import hmac
import struct
import time

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_aead_chacha20poly1305_ietf_encrypt, crypto_scalarmult

from focal.errors import FocalError, ProtocolError, Refused
from focal.sums.fixed import MEMBERS, decode, encode
from focal.sums.masked import MaskedSum, new_group_key, participants_digest

RUN = bytes(range(32))
SECRETS = [bytes([i + 1]) * 32 for i in range(6)]
NAMES = tuple(f"hospital-{i}" for i in range(6))
PUBLICS = {
    name: X25519PrivateKey.from_private_bytes(s).public_key().public_bytes_raw()
    for name, s in zip(NAMES, SECRETS, strict=True)
}
GROUP = b"g" * 32


def member(
    i: int,
    members: int,
    *,
    run_id: bytes = RUN,
    label: str = "moments",
    group: bytes = GROUP,
    names: tuple[str, ...] | None = None,
) -> MaskedSum:
    return MaskedSum(run_id, label, NAMES[i], names or NAMES[:members], SECRETS[i], PUBLICS, group)


def summed(values: np.ndarray) -> tuple[list[MaskedSum], dict[str, bytes]]:
    """Everybody's side and everybody's contribution; ``values`` (members, length)."""
    sides = [member(i, len(values)) for i in range(len(values))]
    return sides, {side.me: side.contribution(row) for side, row in zip(sides, values, strict=True)}


def framed(*fields: bytes) -> bytes:
    return b"".join(struct.pack("<Q", len(field)) + field for field in fields)


def stream(secret: bytes, purpose: bytes, members: int, *names: str) -> np.ndarray:
    """Words 8 to 15 of a mask by other means: HKDF from HMAC (RFC 5869), block 1 of ChaCha20 as libsodium's AEAD
    uses it (RFC 8439)."""
    listed = hashlib.sha256(framed(b"focal/sum/participants/v1", *(n.encode() for n in NAMES[:members]))).digest()
    info = framed(purpose, RUN, b"moments", listed, *(n.encode() for n in names))
    extracted = hmac.digest(bytes(32), secret, "sha256")
    key = hmac.digest(extracted, info + b"\1", "sha256")
    return np.frombuffer(crypto_aead_chacha20poly1305_ietf_encrypt(bytes(64), None, bytes(12), key)[:64], "<u8")


def pair_stream(i: int, j: int, members: int = 3) -> np.ndarray:
    shared = crypto_scalarmult(SECRETS[i], PUBLICS[NAMES[j]])
    return stream(shared, b"focal/sum/v1", members, NAMES[i], NAMES[j])


def group_stream(i: int, members: int = 3) -> np.ndarray:
    return stream(GROUP, b"focal/sum/group/v1", members, NAMES[i])


words = st.integers(0, 2**64 - 1)
tables = st.tuples(st.integers(2, 6), st.integers(1, 5)).flatmap(
    lambda shape: st.lists(st.lists(words, min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0])
)


class TestFixed:
    @given(st.lists(st.floats(-31.9, 31.9), min_size=1, max_size=20))
    def test_rounds_to_half_a_unit(self, values: list[float]) -> None:
        assert (
            np.abs(decode(encode(values)) - values).max() <= 2.0**-49
        )  # half of 2^-48; ldexp and the conversions are exact

    def test_two_complement(self) -> None:
        assert encode([-(2.0**-48), 0.0, 2.0**-48]).tolist() == [2**64 - 1, 0, 1]

    def test_counts_are_exact(self) -> None:
        counts = np.array([0.0, 1.0, -7.0, 2.0**53 - 1])
        assert decode(encode(counts, 0), 0).tolist() == counts.tolist()

    @pytest.mark.parametrize("sign", [1, -1])
    def test_largest_values_of_all_members_do_not_wrap(self, sign: int) -> None:
        largest = sign * np.nextafter(32.0, 0)
        total = encode([largest]) * np.uint64(MEMBERS)
        assert decode(total)[0] == largest * MEMBERS  # a power of two times a 53-bit number: exact

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 32.0, -32.0, 1e300])
    def test_refuses_without_telling_the_value(self, bad: float) -> None:
        with pytest.raises(
            FocalError, match="value 2 of 3 to be summed is not a finite number below 32 in magnitude"
        ) as e:
            encode([0.5, -0.25, bad])
        assert "0.5" not in str(e.value)

    def test_decode_needs_words(self) -> None:
        with pytest.raises(TypeError, match="float64"):
            decode(np.zeros(2))  # type: ignore[arg-type]


class TestOpening:
    @settings(max_examples=60, deadline=None)
    @given(tables)
    def test_everybody_opens_the_exact_sum(self, table: list[list[int]]) -> None:
        sides, contributions = summed(np.array(table, np.uint64))
        expected = [sum(column) % 2**64 for column in zip(*table, strict=True)]
        opened = [side.open(contributions) for side in sides]
        assert all(total.tolist() == expected for total in opened)
        assert len({side.digest(total) for side, total in zip(sides, opened, strict=True)}) == 1

    def test_reals_survive(self) -> None:
        values = np.random.default_rng(0).uniform(-1, 1, (5, 1000))
        sides = [member(i, 5) for i in range(5)]
        contributions = {side.me: side.contribution(encode(v)) for side, v in zip(sides, values, strict=True)}
        error = np.abs(decode(sides[3].open(contributions)) - values.sum(axis=0)).max()
        assert error <= 5 * 2.0**-49 + 5 * 5 * 2.0**-53  # five roundings to 2^-48, and numpy's own float64 sum

    def test_order_of_arrival_is_irrelevant(self) -> None:
        sides, contributions = summed(np.arange(12, dtype=np.uint64).reshape(4, 3))
        assert (sides[0].open(dict(reversed(contributions.items()))) == sides[0].open(contributions)).all()

    @settings(max_examples=40, deadline=None)
    @given(tables, st.data())
    def test_a_missing_contribution_is_named(self, table: list[list[int]], data: st.DataObject) -> None:
        sides, contributions = summed(np.array(table, np.uint64))
        lost = data.draw(st.sampled_from(sorted(contributions)))
        del contributions[lost]
        for side in sides:
            with pytest.raises(ProtocolError, match=f"no contribution from {lost}"):
                side.open(contributions)

    @settings(max_examples=40, deadline=None)
    @given(tables, st.data())
    def test_an_altered_contribution_changes_the_digest_or_is_refused(
        self, table: list[list[int]], data: st.DataObject
    ) -> None:
        sides, contributions = summed(np.array(table, np.uint64))
        honest = sides[0].digest(sides[0].open(contributions))
        victim = data.draw(st.sampled_from(sorted(contributions)))
        bit = data.draw(st.integers(0, 8 * len(contributions[victim]) - 1))
        changed = bytearray(contributions[victim])
        changed[bit // 8] ^= 1 << bit % 8
        contributions[victim] = bytes(changed)
        for side in sides:
            if side.me == victim:
                with pytest.raises(ProtocolError, match=f"relayed as {victim}'s is not the one it made"):
                    side.open(contributions)
            else:
                assert side.digest(side.open(contributions)) != honest

    @settings(max_examples=40, deadline=None)
    @given(tables, st.data())
    def test_a_duplicated_contribution_changes_the_digest_or_is_refused(
        self, table: list[list[int]], data: st.DataObject
    ) -> None:
        sides, contributions = summed(np.array(table, np.uint64))
        honest = sides[0].digest(sides[0].open(contributions))
        source, target = data.draw(st.permutations(sorted(contributions)))[:2]
        contributions[target] = contributions[source]
        for side in sides:
            if side.me == target:
                with pytest.raises(ProtocolError, match=f"relayed as {target}'s"):
                    side.open(contributions)
            else:
                assert side.digest(side.open(contributions)) != honest

    def test_an_uninvited_contribution_is_named(self) -> None:
        sides, contributions = summed(np.ones((3, 2), np.uint64))
        with pytest.raises(ProtocolError, match="hospital-9, who is not a participant"):
            sides[0].open({**contributions, "hospital-9": contributions["hospital-1"]})

    @pytest.mark.parametrize("change", [lambda d: d + bytes(8), lambda d: d[:-8], lambda d: d[:-1], lambda d: b""])
    def test_another_length_is_named(self, change) -> None:  # type: ignore[no-untyped-def]
        sides, contributions = summed(np.ones((3, 2), np.uint64))
        contributions["hospital-2"] = change(contributions["hospital-2"])
        with pytest.raises(ProtocolError, match="hospital-2 sent .* bytes, hospital-0 sent 16"):
            sides[0].open(contributions)

    def test_after_a_restart_a_broken_own_contribution_is_refused(self) -> None:
        _, contributions = summed(np.ones((3, 2), np.uint64))
        contributions["hospital-0"] = contributions["hospital-0"][:-1]
        with pytest.raises(ProtocolError, match="hospital-0's contribution of 15 bytes"):
            member(0, 3).open(contributions)  # this object has made nothing itself


class TestMasks:
    def test_a_contribution_looks_uniform(self) -> None:
        data = np.frombuffer(member(1, 3).contribution(np.zeros(1 << 15, np.uint64)), np.uint8)
        counts = np.bincount(data, minlength=256)
        chi2 = float(((counts - data.size / 256) ** 2 / (data.size / 256)).sum())
        assert 120 < chi2 < 390  # 255 degrees of freedom, deviation 22.6: six deviations either way

    def test_the_server_cannot_open(self) -> None:
        """The pairwise masks cancel in what the server adds up; the group mask is left."""
        _, contributions = summed(np.zeros((3, 1 << 15), np.uint64))
        total = sum(np.frombuffer(c, "<u8") for c in contributions.values())
        bits = np.unpackbits(np.asarray(total).view(np.uint8))
        assert abs(bits.mean() - 0.5) < 6 * 0.5 / np.sqrt(bits.size)  # six deviations of a fair coin

    def test_a_contribution_is_what_the_specification_says(self) -> None:
        """Against a second implementation; members of different versions must not open garbage."""
        values = np.arange(16, dtype=np.uint64)
        expected = values[8:] + group_stream(1) - pair_stream(0, 1) + pair_stream(1, 2)
        assert (np.frombuffer(member(1, 3).contribution(values), "<u8")[8:] == expected).all()

    def test_what_a_coalition_is_left_with(self) -> None:
        """Members 2 and 3 and the server strip everything they can compute:
        the stream that 0 and 1 share still covers each of the two."""
        values = np.arange(64, dtype=np.uint64).reshape(4, 16)
        _, contributions = summed(values)
        left = [np.frombuffer(contributions[NAMES[i]], "<u8")[8:] - group_stream(i, 4) for i in (0, 1)]
        for i in (0, 1):
            left[i] = left[i] - pair_stream(i, 2, 4) - pair_stream(i, 3, 4)
        assert (left[0] == values[0, 8:] + pair_stream(0, 1, 4)).all() and (
            left[1] == values[1, 8:] - pair_stream(0, 1, 4)
        ).all()
        assert (left[0] + left[1] == values[0, 8:] + values[1, 8:]).all()  # what any sum tells a coalition

    def test_streams_are_all_different(self) -> None:
        streams = [group_stream(i, 4) for i in range(4)] + [
            pair_stream(i, j, 4) for i in range(4) for j in range(i + 1, 4)
        ]
        assert len({stream.tobytes() for stream in streams}) == 10

    @pytest.mark.parametrize(
        "other",
        [
            member(0, 3, run_id=b"\1" * 32),
            member(0, 3, label="moments2"),
            member(0, 4),
            member(0, 3, names=(NAMES[1], NAMES[0], NAMES[2])),
            member(0, 3, group=b"h" * 32),
        ],
        ids=["run id", "label", "participants", "order of participants", "group key"],
    )
    def test_masks_depend_on(self, other: MaskedSum) -> None:
        zero = np.zeros(64, np.uint64)
        difference = np.frombuffer(other.contribution(zero), "<u8") - np.frombuffer(
            member(0, 3).contribution(zero), "<u8"
        )
        assert difference.all()  # one of 64 uniform words is zero with probability 2^-58

    def test_digest_is_bound_to_the_sum(self) -> None:
        opened = np.arange(4, dtype=np.uint64)
        sides = [member(0, 3), member(0, 3, run_id=b"\1" * 32), member(0, 3, label="x"), member(0, 4)]
        assert len({side.digest(opened) for side in sides} | {sides[0].digest(opened + np.uint64(1))}) == 5
        assert sides[0].digest(opened) == member(2, 3).digest(opened)

    def test_list_digest_is_unambiguous(self) -> None:
        assert len({participants_digest(names) for names in [("ab", "c"), ("a", "bc"), ("abc",), ("c", "ab")]}) == 4


class TestMadeOnce:
    def test_same_values_same_bytes_other_values_refused(self) -> None:
        side = member(0, 3)
        first = side.contribution(np.array([1, 2], np.uint64))
        assert (
            side.contribution(np.array([1, 2], np.uint64))
            == first
            == member(0, 3).contribution(np.array([1, 2], np.uint64))
        )
        with pytest.raises(Refused, match="already contributed other values to sum 'moments'"):
            side.contribution(np.array([1, 3], np.uint64))

    def test_values_are_left_alone(self) -> None:
        values = np.array([5, 6], np.uint64)
        member(0, 2).contribution(values)
        assert values.tolist() == [5, 6]

    @pytest.mark.parametrize("values", [np.zeros(3), np.zeros((2, 2), np.uint64), np.zeros(0, np.uint64)])
    def test_only_words(self, values: np.ndarray) -> None:
        with pytest.raises(TypeError, match="non-empty uint64 vector"):
            member(0, 2).contribution(values)


class TestBadSetUp:
    def make(self, **changes: object) -> MaskedSum:
        given: dict = {
            "run_id": RUN, "label": "s", "me": NAMES[0], "participants": NAMES[:3],
            "seal_secret": SECRETS[0], "seal_publics": PUBLICS, "group_key": GROUP,
        }  # fmt: skip
        return MaskedSum(**{**given, **changes})

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"participants": NAMES[:1]}, "1 participants"),
            ({"participants": tuple(f"h{i}" for i in range(MEMBERS + 1))}, "1025 participants"),
            ({"participants": (NAMES[0], NAMES[1], NAMES[0])}, "listed twice"),
            ({"me": "hospital-9"}, "hospital-9 is not one of its participants"),
            ({"group_key": b"short"}, "group key from hospital-0 has 5 bytes"),
            ({"seal_secret": SECRETS[1]}, "hospital-0: its private seal key does not belong"),
            ({"seal_publics": {NAMES[1]: PUBLICS[NAMES[1]]}}, "no public seal key of hospital-2"),
            ({"seal_publics": {**PUBLICS, NAMES[2]: b"short"}}, "key of hospital-2 is not a usable"),
            ({"seal_publics": {**PUBLICS, NAMES[2]: bytes(32)}}, "key of hospital-2 is not a usable"),
        ],
    )
    def test_names_who(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(FocalError, match=message):
            self.make(**changes)

    def test_group_keys_are_fresh(self) -> None:
        assert len(new_group_key()) == 32 and new_group_key() != new_group_key()


def test_two_million_values_take_less_than_a_second_per_peer() -> None:
    values = np.arange(2_000_000, dtype=np.uint64)
    side = member(0, 2)
    start = time.process_time()
    side.contribution(values)
    assert time.process_time() - start < 2.0  # one peer's stream and the group's: two streams
