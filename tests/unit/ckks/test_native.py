"""The C kernels give numpy's and OpenFHE's residues, bit for bit: in every variant, at both ring sizes, at the edges.

The library is compiled here with IFMA emulated, so that all three variants run on any processor; the one that is
installed is used by everything else, and compared in ``test_what_is_installed_is_what_is_used``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import PATIENCE

from focal.ckks import codec, native, ring, sampling
from focal.ckks.native import Library, build
from focal.ckks.native.polynomials import Polynomials
from focal.ckks.scheme import DIGITS, LIMBS, Scheme
from focal.config import CkksConfig
from focal.custody import projections

ROOT = Path(__file__).parents[3]
COMPILER = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


def compiled(folder: Path, name: str, flags: tuple[str, ...] = ()) -> Any:
    path = build.build(folder, name, ("FOCAL_EMULATE_IFMA",), flags)
    assert path is not None, "the compiler's message is above"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return compiled(tmp_path_factory.mktemp("native"), "_kernels_for_tests")


@pytest.fixture(params=native.VARIANTS)
def library(module: Any, request: pytest.FixtureRequest) -> Library:
    if request.param not in Library.variants(module):
        pytest.skip(f"this processor has no {request.param}")
    return Library(module, request.param)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """What :mod:`focal.ckks.ring`, ``sampling`` and ``codec`` do without kernels."""
    monkeypatch.setattr(native, "library", None)


@functools.lru_cache
def scheme(n: int) -> Scheme:
    return Scheme(CkksConfig(ring=n), "native".ljust(64, "-"))


RINGS = [1 << 14, 1 << 15]


def edges(q: int, n: int, seed: int) -> Iterator[np.ndarray]:
    """Residues that stretch every range, and random ones."""
    yield np.zeros(n, np.uint64)
    yield np.full(n, q - 1, np.uint64)
    yield np.where(np.arange(n) % 2, np.uint64(q - 1), np.uint64(0))
    yield np.where(np.arange(n) < n // 2, np.uint64(q // 2), np.uint64(q // 2 + 1))
    yield np.random.default_rng(seed).integers(0, q, n, dtype=np.uint64)


# --------------------------------------------------------------------------- limbs


@pytest.mark.parametrize("q", [3, 4, 97, (1 << 46) - 21, (1 << 46) + 15, (1 << 50) - 27, (1 << 60) - 93, (1 << 61) - 1])
@pytest.mark.parametrize("n", [1, 7, 257])
def test_sums_and_products_are_those_of_integers(library: Library, q: int, n: int) -> None:
    for x in edges(q, n, 1):
        for y in edges(q, n, 2):
            pairs = [(int(a), int(b)) for a, b in zip(x, y, strict=True)]
            assert library.add(x, y, q).tolist() == [(a + b) % q for a, b in pairs]
            assert library.subtract(x, y, q).tolist() == [(a - b) % q for a, b in pairs]
            assert library.multiply(x, y, q).tolist() == [a * b % q for a, b in pairs]


@pytest.mark.parametrize("q", [97, 35184373006337, 1152921504606748673])
def test_residues_of_words_are_those_of_integers(library: Library, q: int) -> None:
    rng = np.random.default_rng(3)
    words = [rng.integers(0, 1 << 56, 300, dtype=np.uint64) for _ in range(3)]
    words[0][:4] = [0, 1, (1 << 56) - 1, (1 << 64) - 1]
    for offset in (0, 5, -(1 << 140)):
        integers = [sum(int(w[i]) << 56 * k for k, w in enumerate(words)) + offset for i in range(300)]
        assert library.residues(words, 56, offset, q).tolist() == [x % q for x in integers]


def test_residues_of_masks_are_the_same_without_kernels(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    words, q = sampling.uniform(1000, 150), 1152921504606748673
    found = []
    for used in (library, None):
        monkeypatch.setattr(native, "library", used)
        found.append(sampling.residues(words, -(1 << 149), q).tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize("width", range(1, 9))
def test_bytes_and_back(library: Library, width: int) -> None:
    for n in (1, 2, 3, 8, 100):
        limb = np.random.default_rng(n).integers(0, 1 << 64, n, dtype=np.uint64) >> np.uint64(64 - 8 * width)
        limb[-1] = (1 << 8 * width) - 1
        data = bytes(library.pack(limb, width))
        assert data == b"".join(int(x).to_bytes(width, "little") for x in limb)
        around = b"\xff" * 5 + data + b"\xff" * 9
        if width < 8:
            back = library.unpack(around, 5, n, width, 1 << 8 * width)
            assert back is not None and back.tolist() == limb.tolist()
        assert library.unpack(around, 5, n, width, (1 << 8 * width) - 1) is None, "the last is not below it"


@pytest.mark.parametrize("at", [0, 1, 50, 98, 99])
def test_one_residue_that_is_not_below_its_modulus_is_seen_wherever_it_stands(library: Library, at: int) -> None:
    q = 35184373006337
    limb = np.full(100, q - 1, np.uint64)
    back = library.unpack(bytes(library.pack(limb, 6)), 0, 100, 6, q)
    assert back is not None and back.tolist() == limb.tolist()
    limb[at] = q
    assert library.unpack(bytes(library.pack(limb, 6)), 0, 100, 6, q) is None


def test_what_ends_too_soon_is_not_read(library: Library) -> None:
    with pytest.raises(ValueError, match="599 bytes do not hold 100 residues of 6 bytes at 0"):
        library.unpack(bytes(599), 0, 100, 6, 97)
    with pytest.raises(ValueError):
        library.unpack(bytes(600), 1, 100, 6, 97)


def test_canonical_bytes_are_the_same_without_kernels(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    s = scheme(1 << 14)
    polynomials = [ring.expand(label, s.moduli, s.n) for label in (b"c0", b"c1")]
    kind = codec.ciphertext(LIMBS)
    monkeypatch.setattr(native, "library", library)
    data = codec.pack(s, kind, polynomials)
    read = codec.unpack(s, kind, data, "somebody")
    monkeypatch.setattr(native, "library", None)
    assert data == codec.pack(s, kind, polynomials)
    assert np.array_equal(read, polynomials) and np.array_equal(codec.unpack(s, kind, data, "somebody"), polynomials)


# --------------------------------------------------------------------------- sums with signs


@pytest.mark.parametrize("n", [16, 48, 1 << 14])
def test_sums_with_signs_are_numpys(library: Library, plain: None, n: int) -> None:
    """The largest lanes of both signs, and random ones; one byte of signs at a time, and bits that nobody asked for."""
    rng, most = np.random.default_rng(n), (1 << 32) - 1
    units, edges = np.eye(n, 4, dtype=np.int64), np.tile([most, -most, 0, 1 << 31], (n, 1))
    for x in (rng.integers(-most, most, (n, 4)), np.full((n, 4), most), edges, units):
        for bits in (
            rng.bytes(32 * n),
            bytes(32 * n),
            b"\xff" * (32 * n + 5),
            bytes([1, 2, 4, 8, 16, 32, 64, 128]) * (4 * n),
        ):
            found = library.signed_sums(bits, x)
            assert found.dtype == np.int64 and np.array_equal(found, projections.signed_sums(bits[: 32 * n], x))
    assert found[0].tolist() == [1, -1, -1, -1], (
        "the last signs give row 0 a plus before every eighth integer, from the first on"
    )


def test_signs_and_lanes_that_do_not_fit_are_refused(library: Library) -> None:
    x = np.zeros((32, 4), np.int64)
    library.signed_sums(bytes(1024), x)
    with pytest.raises(ValueError):
        library.signed_sums(bytes(1023), x)
    for lanes in (x[:, :3], x[:, 0], x[:24], x.astype(np.uint64), x.astype(np.int32)):
        with pytest.raises(ValueError):
            library.signed_sums(bytes(1024), lanes)
    strided = np.arange(256).reshape(32, 8)[:, ::2]
    assert np.array_equal(library.signed_sums(bytes(1024), strided), np.tile(-strided.sum(axis=0), (256, 1)))


# --------------------------------------------------------------------------- memory


def test_memory_that_nobody_has_is_used_again_and_no_other(module: Any) -> None:
    memory = native.Memory(module)
    first, second = memory.empty(2, 8), memory.empty(16)
    address, part = first.ctypes.data, first[1]
    assert address % 64 == 0 and second.ctypes.data != address and first.shape == (2, 8)
    del first
    assert memory.empty(16).ctypes.data != address, "a view of it is still there"
    del part
    assert memory.empty(15).ctypes.data != address, "another size"
    assert memory.empty(16).ctypes.data == address


def test_no_more_memory_is_kept_than_said(module: Any) -> None:
    memory = native.Memory(module)
    memory.MOST = 8 * 40
    arrays = [memory.empty(16) for _ in range(3)]
    del arrays
    assert sum(map(len, memory._kept.values())) == 2 and memory._bytes == 8 * 32
    again = [memory.empty(16) for _ in range(3)]
    assert len({a.ctypes.data for a in again}) == 3 and memory._bytes == 0


def test_threads_never_get_the_same_memory(module: Any) -> None:
    memory = native.Memory(module)

    def use(mark: int) -> bool:
        for _ in range(200):
            array = memory.empty(64)
            array[:] = mark
            if not (array == mark).all():
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(16)))


# --------------------------------------------------------------------------- transforms


@pytest.mark.parametrize("n", RINGS)
def test_transforms_are_numpys(library: Library, plain: None, n: int) -> None:
    s = scheme(n)
    for q in s.extended:
        prime = library.prime(q, s.roots[q], n)
        for x in edges(q, n, 4):
            values = ring.ntt(x, q, s.roots[q])
            assert np.array_equal(library.forward(prime, x), values)
            assert np.array_equal(library.inverse(prime, values), x)
            assert np.array_equal(library.inverse(prime, x), ring.inverse_ntt(x, q, s.roots[q]))


@pytest.mark.parametrize("q", [(1 << 46) - 3407871, (1 << 50) - 3014655, (1 << 50) + 1179649, (1 << 60) - 262143])
@pytest.mark.parametrize("n", [1 << 8, 1 << 9, 1 << 13, 1 << 16])
def test_transforms_at_the_ends_of_every_arithmetic(library: Library, plain: None, q: int, n: int) -> None:
    """The largest primes below 2^46, 2^50 and 2^60, the smallest above 2^50; the smallest and the largest rings."""
    assert q % (1 << 17) == 1
    root = next(r for g in range(2, 100) if pow(r := pow(g, (q - 1) // (2 * n), q), n, q) == q - 1)
    prime = library.prime(q, root, n)
    for x in edges(q, n, 5):
        values = ring.ntt(x, q, root)
        assert np.array_equal(library.forward(prime, x), values)
        assert np.array_equal(library.inverse(prime, x), ring.inverse_ntt(x, q, root))


@pytest.mark.parametrize("n", RINGS)
def test_signed_coefficients_are_transformed_as_their_residues(library: Library, plain: None, n: int) -> None:
    s = scheme(n)
    for q in (s.moduli[0], s.moduli[1]):
        signed = np.resize(np.array([0, 1, -1, 40, -40, q // 2, -(q // 2), q - 1, 1 - q]), n)
        before = signed.copy()
        found = library.forward(library.prime(q, s.roots[q], n), signed)
        assert np.array_equal(found, ring.ntt((signed % q).astype(np.uint64), q, s.roots[q]))
        assert np.array_equal(signed, before)


def test_what_the_kernels_do_not_take_numpy_does(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prime of 61 bits, a ring of 64, a number that is no root, words that do not lie side by side."""
    q, n = 2305843009211662337, 1 << 14
    root = next(r for g in range(2, 100) if pow(r := pow(g, (q - 1) // (2 * n), q), n, q) == q - 1)
    assert library.prime(q, root, n) is None
    assert library.prime(97, 3, 64) is None and library.prime(35184373006337, 5, n) is None
    x = np.random.default_rng(6).integers(0, q, 2 * n, dtype=np.uint64)
    found = []
    for used in (library, None):
        monkeypatch.setattr(native, "library", used)
        found.append([ring.ntt(x[:n], q, root), ring.multiply(x[::2], x[1::2], q), ring.add(x[::2], x[:n], q)])
    assert np.array_equal(found[0], found[1])


def test_ring_uses_the_kernels(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of ring's and sampling's face, with them and without."""
    s = scheme(1 << 14)
    q, root = s.moduli[1], s.roots[s.moduli[1]]
    x, y = ring.expand(b"two", [q, q], s.n)
    small = np.resize(np.array([-1, 0, 1]), s.n)
    calls: list[str] = []
    for name in ("add", "subtract", "multiply", "forward", "inverse"):
        real = getattr(library, name)
        monkeypatch.setattr(library, name, lambda *a, n=name, f=real: (calls.append(n), f(*a))[1])
    found = []
    for used in (library, None):
        monkeypatch.setattr(native, "library", used)
        sums = ring.add(x, y, q), ring.subtract(x, y, q), ring.multiply(x, y, q)
        found.append([*sums, ring.ntt(x, q, root), ring.ntt_signed(small, q, root), ring.inverse_ntt(x, q, root)])
    assert np.array_equal(found[0], found[1])
    assert calls == ["add", "subtract", "multiply", "forward", "forward", "inverse"]


# --------------------------------------------------------------------------- polynomials, against OpenFHE


class Theirs:
    """A context with keys of its own, the key of one rotation among them; two ciphertexts per number of limbs.

    ``edges``: their residues are 0 and q - 1 in turns, and all q - 1, which OpenFHE takes as well as any others.
    """

    ROTATION = 8

    def __init__(self, n: int) -> None:
        self.scheme = s = scheme(n)
        self.cc, self.n = s.cc, n
        pair = self.cc.KeyGen()
        self.public, tag = pair.publicKey, pair.secretKey.GetKeyTag()
        self.tag = tag
        self.cc.EvalMultKeyGen(pair.secretKey)
        self.cc.EvalRotateKeyGen(pair.secretKey, [self.ROTATION])
        self.turned = self._halves(s.limbs(self.cc.GetEvalAutomorphismKeyMap(tag)))
        self.squared = self._halves(s.limbs(self.cc.GetEvalMultKeyVector(tag)[0]))
        self.places = ring.automorphism(n, s.automorphism(self.ROTATION)).astype(np.uint32)

    def _halves(self, polynomials: list[list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        both = np.array(polynomials).reshape(2, DIGITS, -1, self.n)
        return np.ascontiguousarray(both[0]), np.ascontiguousarray(both[1])

    def pair(self, limbs: int, kind: str) -> tuple[Any, Any]:
        rng, s = np.random.default_rng(limbs), self.scheme
        if kind == "encrypted":
            return tuple(self.cc.Encrypt(self.public, s.encode(rng.uniform(-1, 1, s.slots), limbs)) for _ in range(2))
        full, alternating = ([list(edges(q, self.n, 7))[i] for q in s.moduli[:limbs]] for i in (1, 2))
        made = s.ciphertext([full, alternating]), s.ciphertext([alternating, full])
        for x in made:
            x.SetKeyTag(self.tag)
        return made

    def limbs(self, x: Any) -> np.ndarray:
        return np.array(self.scheme.limbs(x))


@functools.lru_cache
def theirs(n: int) -> Theirs:
    return Theirs(n)


def polynomials(library: Library, n: int) -> Polynomials:
    s = scheme(n)
    roots = [s.roots[q] for q in s.extended]
    return Polynomials(library, s.moduli, s.extended[LIMBS:], roots, n, LIMBS // DIGITS)


def switched(k: Polynomials, x: np.ndarray, key: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """In two steps and in one."""
    a, b = key
    found = k.inner(k.mod_up(x), b, a)
    assert np.array_equal(found, k.switch(x, b, a))
    return found


@pytest.mark.parametrize("kind", ["encrypted", "edges"])
@pytest.mark.parametrize("n", RINGS)
def test_polynomials_are_openfhes(library: Library, n: int, kind: str) -> None:
    """Sums, product, relinearisation, rotation, rescaling, at every number of limbs; in the large ring two."""
    t, k = theirs(n), polynomials(library, n)
    for limbs in range(1, LIMBS + 1) if n == RINGS[0] else (2, LIMBS - 1):
        a, b = t.pair(limbs, kind)
        x, y = t.limbs(a), t.limbs(b)
        assert np.array_equal(k.add(x, y), t.limbs(t.cc.EvalAdd(a, b)))
        assert np.array_equal(k.subtract(x, y), t.limbs(t.cc.EvalSub(a, b)))
        product = t.cc.EvalMultNoRelin(a, b)
        ours = k.products([x], [y], limbs)
        assert np.array_equal(ours, t.limbs(product))
        down = k.mod_down(switched(k, ours[2], t.squared))
        assert np.array_equal(k.add(down, ours[:2]), t.limbs(t.cc.Relinearize(product)))
        turned = k.mod_down(k.permute(switched(k, x[1], t.turned), t.places))
        k.add(turned[:1], k.permute(x[:1], t.places), out=turned[:1])
        assert np.array_equal(turned, t.limbs(t.cc.EvalRotate(a, t.ROTATION)))
        if limbs > 1:
            assert np.array_equal(k.rescale(x), t.limbs(t.cc.Rescale(a)))


@pytest.mark.parametrize("count", [1, 4, 5, 9, 33])
def test_sums_of_products_are_numpys(library: Library, plain: None, count: int) -> None:
    """As many as fit a sum before it is reduced, and more; the largest residues; on top of others; at fewer limbs."""
    s, k, limbs = scheme(1 << 14), polynomials(library, 1 << 14), 2
    rng = np.random.default_rng(count)
    xs, ys = ([np.empty((2, m, s.n), np.uint64) for _ in range(count)] for m in (3, 2))
    for z in (*xs, *ys):
        for i, q in enumerate(s.moduli[: z.shape[1]]):
            z[:, i] = np.where(np.arange(s.n) < s.n // 2, np.uint64(q - 1), rng.integers(0, q, s.n, dtype=np.uint64))
    expected = np.zeros((3, limbs, s.n), np.uint64)
    for x, y in zip(xs, ys, strict=True):
        for part, pairs in enumerate([[(0, 0)], [(0, 1), (1, 0)], [(1, 1)]]):
            for i, j in pairs:
                for limb, q in enumerate(s.moduli[:limbs]):
                    new = ring.multiply(x[i, limb], y[j, limb], q)
                    expected[part, limb] = ring.add(expected[part, limb], new, q)
    total = k.products(xs, ys, limbs)
    assert np.array_equal(total, expected)
    twice = np.array([[ring.add(v, v, q) for v, q in zip(part, s.moduli, strict=False)] for part in expected])
    assert np.array_equal(k.products(xs, ys, limbs, onto=total), twice)


def test_a_factor_multiplies_every_element(library: Library, plain: None) -> None:
    s, k = scheme(1 << 14), polynomials(library, 1 << 14)
    x = np.array([ring.expand(label, s.moduli[:3], s.n) for label in (b"c0", b"c1")])
    y = np.array(ring.expand(b"plain", s.moduli[:3], s.n))
    by_polynomial, by_number = k.multiply(x, y), k.scale(x, -(1 << 70) + 3)
    for i, q in enumerate(s.moduli[:3]):
        number = np.full(s.n, (-(1 << 70) + 3) % q, np.uint64)
        for e in range(2):
            assert np.array_equal(by_polynomial[e, i], ring.multiply(x[e, i], y[i], q))
            assert np.array_equal(by_number[e, i], ring.multiply(x[e, i], number, q))


def test_shapes_that_would_be_read_past_their_ends_are_refused(library: Library) -> None:
    s, k = scheme(1 << 14), polynomials(library, 1 << 14)
    x = np.zeros((2, 2, s.n), np.uint64)
    for arguments in (([x], [x], 3), ([x], [x, x], 2), ([x, x], [x, x[:1]], 2)):
        with pytest.raises(ValueError):
            k.products(*arguments)
    few, all_of_them = np.zeros((2, 8, s.n), np.uint64), np.zeros((3, 8, s.n), np.uint64)
    for halves in ((few, all_of_them), (all_of_them, few)):
        with pytest.raises(ValueError):
            k.inner(k.mod_up(x[1]), *halves)
        with pytest.raises(ValueError):
            k.switch(x[1], *halves)
    for places in (np.full(s.n, s.n, np.uint32), np.zeros(s.n, np.int64), np.zeros(s.n - 1, np.uint32)):
        with pytest.raises(ValueError):
            k.permute(x, places)


def test_any_number_of_polynomials_is_divided(library: Library) -> None:
    """Three are divided at a time."""
    s, k = scheme(1 << 14), polynomials(library, 1 << 14)
    x = np.array([ring.expand(bytes([i]), (*s.moduli[:2], *s.extended[LIMBS:]), s.n) for i in range(7)])
    low = np.ascontiguousarray(x[:, :2])
    assert np.array_equal(k.mod_down(x), [k.mod_down(one[None])[0] for one in x])
    assert np.array_equal(k.rescale(low), [k.rescale(one[None])[0] for one in low])


def test_threads_share_everything(library: Library) -> None:
    s, k, t = scheme(1 << 14), polynomials(library, 1 << 14), theirs(1 << 14)
    inputs = [np.array(ring.expand(bytes([i]), s.moduli, s.n)) for i in range(8)]
    one = [k.mod_down(switched(k, x, t.turned)) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        assert np.array_equal(one, list(pool.map(lambda x: k.mod_down(switched(k, x, t.turned)), inputs)))


# --------------------------------------------------------------------------- built and found, or not


def test_what_is_installed_is_what_is_used() -> None:
    """Where the library was built, this process has it, in the best variant, and it is this version's."""
    if native.library is None:
        pytest.skip(f"kernels: {native.description}")
    assert native.description == native.library.variant
    wanted = os.environ.get("FOCAL_NATIVE") or Library.variants(importlib.import_module(build.MODULE))[-1]
    assert native.library.variant == wanted


def described(folder: Path = ROOT, **env: str) -> list[Any]:
    """Whether the focal in ``folder`` has a library, and what it says."""
    program = "import json, focal.ckks.native as n; print(json.dumps([n.library is not None, n.description]))"
    command = [sys.executable, "-c", program]
    env = {**os.environ, "PYTHONPATH": str(folder), **env}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.skipif(native.library is None, reason="not built here")
def test_the_environment_chooses() -> None:
    assert described(FOCAL_NATIVE="0") == [False, "none: FOCAL_NATIVE=0"]
    assert described(FOCAL_NATIVE="portable") == [True, "portable"]
    used, told = described(FOCAL_NATIVE="quick")
    assert not used and "FOCAL_NATIVE=quick" in told and "portable" in told and "\n" not in told


def test_a_library_from_other_sources_is_not_used_nor_one_that_is_not_there(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FOCAL_NATIVE", raising=False)
    monkeypatch.setitem(sys.modules, build.MODULE, module)
    assert native._found()[1] == native.VARIANTS[-1], "the emulated one is its best"
    monkeypatch.setattr(build, "HERE", tmp_path)
    shutil.copytree(ROOT / "focal/ckks/native", tmp_path, dirs_exist_ok=True)
    assert native._found()[0] is not None
    (tmp_path / "ring.c").write_text((tmp_path / "ring.c").read_text() + " ")
    library, told = native._found()
    assert library is None and "other sources" in told and "python -m focal.ckks.native" in told
    monkeypatch.setitem(sys.modules, build.MODULE, None)  # as if it were not there
    library, told = native._found()
    assert library is None and "python -m focal.ckks.native" in told and "\n" not in told


def test_without_a_compiler_one_line_says_so(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "focal", tmp_path / "focal", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "CC": "false"}
    command = [sys.executable, "-m", "focal.ckks.native"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env, timeout=PATIENCE)
    assert done.returncode == 1 and done.stdout.count("\n") == 1 and "focal runs without them" in done.stdout
    assert not list(tmp_path.rglob("*.so"))
    told = described(tmp_path, FOCAL_NATIVE="")
    assert not told[0] and told[1].startswith("none (not built)")
