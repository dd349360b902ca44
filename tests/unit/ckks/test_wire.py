"""Canonical bytes: every round trip, every refusal, and one digest pinned for ever."""

from __future__ import annotations

import itertools
import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import openfhe
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opened import Opened

from focal.ckks import codec, ring
from focal.ckks import scheme as context
from focal.ckks.scheme import LIMBS, REFRESH_LIMBS, Scheme
from focal.config import CkksConfig
from focal.errors import FocalError, Refused
from focal.heads.linear.layout import Layout
from focal.heads.linear.rehearsal import Rehearsal

KINDS = [codec.ciphertext(n) for n in (1, 3, LIMBS)] + [
    codec.refresh_share(REFRESH_LIMBS, 4), codec.refresh_share(REFRESH_LIMBS, LIMBS), codec.refresh_share(4, 4),
    codec.DECRYPTION, codec.PUBLIC_B, codec.SWITCHING_B,
]  # fmt: skip

FIELDS = {  # name in the error -> (offset, struct code, another value)
    "magic": (0, "4s", b"FOCK"),
    "format version": (4, "H", 2),
    "kind": (6, "H", 2),
    "level": (8, "H", 4),
    "scale degree": (10, "H", 2),
    "number of polynomials": (12, "I", 1),
    "number of limbs": (16, "I", 2),
    "slots": (20, "I", 4096),
    "scale": (24, "d", 2.0**46),
    "parameter hash": (32, "32s", bytes(32)),
    "key tag": (64, "64s", b"f" * 64),
}


def small_scheme() -> Any:
    """What wire reads of a Scheme, with 64 coefficients: for tests with many examples."""
    moduli = (1152921504606748673, *[35184373006337] * (LIMBS - 1))
    extended = (*moduli, *moduli[:1] * 2)
    return SimpleNamespace(
        n=64, slots=32, scale=2.0**45, hash=bytes(range(32)), tag="ab" * 32, moduli=moduli, extended=extended
    )


def polynomials(scheme: Any, kind: codec.Kind, seed: bytes = b"golden") -> list[list[ring.Limb]]:
    return [ring.expand(seed + bytes([i]), primes, scheme.n) for i, primes in enumerate(codec.shape(scheme, kind))]


def same(x: list[list[ring.Limb]], y: list[list[ring.Limb]]) -> bool:
    return len(x) == len(y) and all(
        len(p) == len(q) and all(np.array_equal(a, b) for a, b in zip(p, q, strict=True))
        for p, q in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_round_trip(rehearsal: Rehearsal, kind: codec.Kind) -> None:
    scheme = rehearsal.scheme
    limbs = polynomials(scheme, kind)
    data = codec.pack(scheme, kind, limbs)
    assert len(data) == codec.size(scheme, kind)
    assert same(codec.unpack(scheme, kind, data, "north"), limbs)


def test_a_ciphertext_costs_a_fifth_less_than_sixteen_bytes_a_coefficient(rehearsal: Rehearsal) -> None:
    assert codec.size(rehearsal.scheme, codec.ciphertext(LIMBS)) == 128 + 2 * 16384 * (8 + 5 * 6)


def test_kinds_are_not_mistaken_for_each_other(rehearsal: Rehearsal) -> None:
    """A contribution to an input and a public-key half have the same length and moduli."""
    scheme = rehearsal.scheme
    given = codec.input_b(LIMBS)
    data = codec.pack(scheme, given, polynomials(scheme, given))
    with pytest.raises(Refused, match="kind differs") as caught:
        codec.unpack(scheme, codec.PUBLIC_B, data, "custodian-2")
    assert caught.value.reason == "header" and "custodian-2" in str(caught.value)


def test_shares_are_not_mistaken_for_those_of_another_refresh() -> None:
    """Of a ciphertext with more limbs to one with fewer: the same length, where primes are as wide."""
    scheme = small_scheme()
    kinds = [codec.refresh_share(*limbs) for limbs in ((3, 5), (5, 3), (4, 4))]
    assert len({codec.size(scheme, kind) for kind in kinds}) == 1
    for kind, other in itertools.permutations(kinds, 2):
        data = codec.pack(scheme, kind, polynomials(scheme, kind))
        with pytest.raises(Refused, match="north.*(level|number of limbs) differs"):
            codec.unpack(scheme, other, data, "north")


@pytest.mark.parametrize(("element", "limb"), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 3)])
@pytest.mark.parametrize("native", [True, False])
def test_every_residue_of_a_share_is_checked(
    monkeypatch: pytest.MonkeyPatch, native: bool, element: int, limb: int
) -> None:
    """The first value that is none, as the last residue of a limb of either half."""
    if not native:
        monkeypatch.setattr(codec.native, "library", None)
    scheme, kind = small_scheme(), codec.refresh_share(3, 4)
    limbs = polynomials(scheme, kind)
    limbs[element][limb][-1] = scheme.moduli[limb] - 1
    assert same(codec.unpack(scheme, kind, codec.pack(scheme, kind, limbs), "north"), limbs)
    limbs[element][limb][-1] += 1
    with pytest.raises(Refused, match="north: a refresh share.*modulus") as caught:
        codec.unpack(scheme, kind, codec.pack(scheme, kind, limbs), "north")
    assert caught.value.reason == "coefficient"


def test_a_share_packs_with_its_own_limbs_only() -> None:
    scheme, kind = small_scheme(), codec.refresh_share(3, 4)
    for wrong in (codec.refresh_share(4, 4), codec.refresh_share(3, 5), codec.ciphertext(3)):
        with pytest.raises(ValueError):
            codec.pack(scheme, kind, polynomials(scheme, wrong))


def test_shapes_are_checked_before_packing(rehearsal: Rehearsal) -> None:
    scheme = rehearsal.scheme
    limbs = polynomials(scheme, codec.ciphertext(3))
    for wrong in (limbs[:1], [limbs[0], limbs[1][:2]], [limbs[0], [x[:100] for x in limbs[1]]]):
        with pytest.raises(ValueError):
            codec.pack(scheme, codec.ciphertext(3), wrong)


@pytest.mark.parametrize("field", FIELDS)
def test_every_header_field_is_checked(field: str) -> None:
    scheme, kind = small_scheme(), codec.ciphertext(3)
    offset, code, value = FIELDS[field]
    data = bytearray(codec.pack(scheme, kind, polynomials(scheme, kind)))
    struct.pack_into(f"<{code}", data, offset, value)
    with pytest.raises(Refused, match=f"north.*{field} differs") as caught:
        codec.unpack(scheme, kind, bytes(data), "north")
    assert caught.value.reason == "header"


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: b"", lambda d: d[:100]])
def test_a_wrong_length_is_refused(change: Any) -> None:
    scheme, kind = small_scheme(), codec.ciphertext(3)
    with pytest.raises(Refused, match="north") as caught:
        codec.unpack(scheme, kind, change(codec.pack(scheme, kind, polynomials(scheme, kind))), "north")
    assert caught.value.reason == "length"


@pytest.mark.parametrize(("element", "limb", "at"), [(0, 0, 0), (0, 0, 63), (0, 2, 5), (1, 0, 0), (1, 2, 63)])
@pytest.mark.parametrize("above", [0, 1])
def test_a_value_that_is_not_below_its_modulus_is_refused(element: int, limb: int, at: int, above: int) -> None:
    """q itself and q + 1, in the first and the last limb of both polynomials; q - 1 passes."""
    scheme, kind = small_scheme(), codec.ciphertext(3)
    limbs = [[x.copy() for x in p] for p in polynomials(scheme, kind)]
    q = scheme.moduli[limb]
    limbs[element][limb][at] = q - 1
    assert same(codec.unpack(scheme, kind, codec.pack(scheme, kind, limbs), "north"), limbs)
    limbs[element][limb][at] = q + above
    with pytest.raises(Refused, match="north") as caught:
        codec.unpack(scheme, kind, codec.pack(scheme, kind, limbs), "north")
    assert caught.value.reason == "coefficient"


def test_a_ciphertext_of_another_run_is_refused(rehearsal: Rehearsal) -> None:
    other = Scheme(CkksConfig(), "00" * 32)
    data = codec.pack(other, codec.ciphertext(3), polynomials(other, codec.ciphertext(3)))
    with pytest.raises(Refused, match="key tag differs"):
        codec.unpack(rehearsal.scheme, codec.ciphertext(3), data, "north")


@given(st.binary(max_size=600))
@settings(deadline=None)
def test_random_bytes_are_refused(data: bytes) -> None:
    scheme = small_scheme()
    for pad in (data, data.ljust(codec.size(scheme, codec.DECRYPTION), b"\0")):
        with pytest.raises(Refused):
            codec.unpack(scheme, codec.DECRYPTION, pad, "north")


@given(st.integers(0, 10**6))
@settings(deadline=None)
def test_truncations_are_refused(length: int) -> None:
    scheme = small_scheme()
    data = codec.pack(scheme, codec.ciphertext(3), polynomials(scheme, codec.ciphertext(3)))
    with pytest.raises(Refused):
        codec.unpack(scheme, codec.ciphertext(3), data[: length % len(data)], "north")


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=300)
def test_a_flipped_bit_is_refused_or_is_another_ciphertext_with_another_digest(bit: int) -> None:
    """In the header always refused. A coefficient that stays below its modulus is somebody's lawful message,
    but never *this* one."""
    scheme, kind = small_scheme(), codec.ciphertext(1)
    limbs = polynomials(scheme, kind)
    data = bytearray(codec.pack(scheme, kind, limbs))
    original = bytes(data)
    bit %= 8 * len(data)
    data[bit // 8] ^= 1 << bit % 8
    try:
        found = codec.unpack(scheme, kind, bytes(data), "north")
    except Refused:
        return
    assert bit >= 8 * codec.HEADER.size
    assert not same(found, limbs)
    assert codec.pack(scheme, kind, found) == data, "two spellings of one ciphertext"
    assert codec.digest(bytes(data)) != codec.digest(original)


def test_equal_ciphertexts_have_equal_digests_whatever_openfhe_serialises(rehearsal: Rehearsal) -> None:
    """A ciphertext that came through a template serialises differently from the one it was made of;
    its digest does not."""
    scheme, kind = rehearsal.scheme, codec.ciphertext(3)
    made = scheme.cc.EvalMult(scheme.throwaway(3), 2.0)  # OpenFHE writes its degree 2, a template always 1
    data = codec.pack(scheme, kind, scheme.limbs(made))
    rebuilt = scheme.ciphertext(codec.unpack(scheme, kind, data, "north"))
    assert bytes(openfhe.Serialize(made, openfhe.BINARY)) != bytes(openfhe.Serialize(rebuilt, openfhe.BINARY))
    assert codec.digest(data) == codec.digest(codec.pack(scheme, kind, scheme.limbs(rebuilt)))


def test_the_format_does_not_drift() -> None:
    """Digest of a fixed ciphertext under the default parameters.
    If this fails, old ledgers and audits no longer verify."""
    scheme = Scheme(CkksConfig(), "0123456789abcdef" * 4)
    data = codec.pack(scheme, codec.ciphertext(3), polynomials(scheme, codec.ciphertext(3)))
    assert scheme.hash.hex() == "8224dbad0f8603f721af2134389d24f85904f7de456b5acdd0112a4581a58277"
    assert codec.digest(data) == "ba8e4ab133bc6b3a964f17ad9bb8ab13cd6e051e92e83c345a906eeae7e84cd1"


def test_parameters_that_fall_short_of_the_standard_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert context.MAX_LOG_QP == {
        16384: 438,
        32768: 881,
    }  # homomorphicencryption.org standard, table 1, ternary, 128 bits
    monkeypatch.setattr(context, "MAX_LOG_QP", {16384: 404, 32768: 404})
    with pytest.raises(FocalError, match="405 bits exceeds the 404"):
        Scheme(CkksConfig(), "a")


def test_a_larger_ring_works() -> None:
    """Keys of two custodians, one product, one rotation and one refresh at N = 2^15, opened exactly."""
    run = Rehearsal(Layout(16384, 64, 128, 100, 128, 1, 8), custodians=2, params=CkksConfig(ring=32768), run="large")
    scheme, ev, opened = run.scheme, run.scheme.evaluator, Opened(run)
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, scheme.slots))
    rotation = run.layout.rotations[-2]  # the last one conjugates
    product = ev.rotate(ev.rescale(ev.multiply(run.encrypt(x), run.encrypt(y))), rotation)
    low = ev.drop(product, REFRESH_LIMBS)
    (refreshed,) = run.refresh(["train/0/residual/0/0/-"], [low])
    # the noise of both factors, one rotation, and one rescaling that takes its prime for 2^45
    drift = max(abs(q / scheme.scale - 1) for q in scheme.moduli[1:])
    tolerance = 2 * opened.fresh_error + opened.switching_bias + drift
    assert tolerance < 1e-6
    assert np.abs(opened.slots(refreshed) - np.roll(x * y, -rotation)).max() < tolerance
