"""Every evaluator computes what it says: on slots, as numpy does; limb for limb, what OpenFHE's own calls give."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from opened import Opened

from focal.ckks import native, ring
from focal.ckks.evaluator import Ciphertext, Evaluator
from focal.ckks.native.evaluator import NativeEvaluator
from focal.ckks.openfhe_evaluator import OpenFheEvaluator
from focal.ckks.scheme import LIMBS, Scheme
from focal.config import CkksConfig
from focal.custody import inputs, keys

RUN = hashlib.sha256(b"test_evaluator").digest()
CONJUGATION = 2 * 16384 - 1
ROTATIONS = [1, -7, 512, CONJUGATION]


class Both:
    """What is installed, both have: OpenFHE, which everything is compared with, and the evaluator under test."""

    def __init__(self, *evaluators: Evaluator) -> None:
        self.evaluators = evaluators

    def install_rotation(self, *key: Any) -> None:
        for ev in self.evaluators:
            ev.install_rotation(*key)

    def install_relinearisation(self, *key: Any) -> None:
        for ev in self.evaluators:
            ev.install_relinearisation(*key)


class Keys:
    """Two custodians with joint keys, and three fresh ciphertexts of complex slots of at most 1 in magnitude."""

    def __init__(self, kernels: native.Library | None) -> None:
        self.scheme = Scheme(CkksConfig(), hashlib.sha256(RUN + repr(kernels).encode()).hexdigest())
        theirs = OpenFheEvaluator(self.scheme)
        self.ev: Evaluator = NativeEvaluator(self.scheme, kernels) if kernels else theirs
        self.scheme.__dict__["evaluator"] = Both(theirs, self.ev) if kernels else theirs
        shares = {name: keys.SecretShare.draw(self.scheme, RUN) for name in ("north", "south")}
        with ThreadPoolExecutor(1) as pool:
            keys.ceremony(self.scheme, RUN, shares, ROTATIONS, pool)
        self.scheme.__dict__["evaluator"] = self.ev
        self.secrets = list(shares.values())
        angles = np.random.default_rng(5).uniform(-np.pi, np.pi, (3, self.scheme.slots))
        self.slots = np.exp(1j * angles) * np.linspace(0.1, 1, self.scheme.slots)
        limbs = {name: share.limbs for name, share in shares.items()}
        made = [
            inputs.together(self.scheme, RUN, limbs, f"input {i}", {"a": x}, LIMBS)[0] for i, x in enumerate(self.slots)
        ]
        self.fresh = list(map(self.ev.load, made))
        self.plain = np.conj(self.slots[0][::-1])
        self.opened = Opened(self)  # type: ignore[arg-type]

    def theirs(self, x: Ciphertext) -> Any:
        """The same limbs as OpenFHE's object."""
        return self.scheme.ciphertext(self.ev.limbs(x))

    def read(self, x: Ciphertext, scale: float) -> np.ndarray:
        return ring.embed(self.opened.coefficients(x) / scale)


@pytest.fixture(scope="module", params=["openfhe", "native"])
def run(request: pytest.FixtureRequest) -> Iterator[Keys]:
    if request.param == "native" and native.library is None:
        pytest.skip(f"native kernels: {native.description}")
    made = Keys(native.library if request.param == "native" else None)
    yield made
    made.scheme.forget()


def conjugated(x: np.ndarray, rotation: int) -> np.ndarray:
    return np.conj(x) if rotation == CONJUGATION else np.roll(x, -rotation)


@dataclass(frozen=True)
class Case:
    """One call on ciphertexts x, y, z and an encoded plaintext p, in three ways."""

    name: str
    ours: Callable[[Evaluator, Any, Any, Any, Any], Ciphertext]
    theirs: Callable[[Any, Any, Any, Any, Any], Any]
    slots: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    factors: int = 1
    """How often a fresh ciphertext's noise comes in, times at most 1."""
    products: int = 0
    """How often a rescaling takes its prime for 2^45, of a product of at most 1."""
    switched: bool = False
    limbs: int = LIMBS
    degree: int = 1


CASES = [
    Case(
        "add", lambda ev, x, y, z, p: ev.add(x, y), lambda cc, x, y, z, p: cc.EvalAdd(x, y), lambda x, y, z, p: x + y, 2
    ),
    Case(
        "subtract",
        lambda ev, x, y, z, p: ev.subtract(x, y),
        lambda cc, x, y, z, p: cc.EvalSub(x, y),
        lambda x, y, z, p: x - y,
        2,
    ),
    Case(
        "add_plain",
        lambda ev, x, y, z, p: ev.add_plain(x, p),
        lambda cc, x, y, z, p: cc.EvalAdd(x, p),
        lambda x, y, z, p: x + p,
    ),
    Case(
        "accumulate",
        lambda ev, x, y, z, p: ev.accumulate(ev.add(x, y), z),
        lambda cc, x, y, z, p: cc.EvalAdd(cc.EvalAdd(x, y), z),
        lambda x, y, z, p: x + y + z,
        3,
    ),
    Case(
        "drop",
        lambda ev, x, y, z, p: ev.drop(x, 2),
        lambda cc, x, y, z, p: cc.LevelReduce(x, None, 4),
        lambda x, y, z, p: x,
        limbs=2,
    ),
    Case("drop nothing", lambda ev, x, y, z, p: ev.drop(x, LIMBS), lambda cc, x, y, z, p: x, lambda x, y, z, p: x),
    Case(
        "last limb",
        lambda ev, x, y, z, p: ev.drop(x, 1),
        lambda cc, x, y, z, p: cc.Compress(x, 1),
        lambda x, y, z, p: x,
        limbs=1,
    ),
    Case(
        "times a plaintext",
        lambda ev, x, y, z, p: ev.times(x, p),
        lambda cc, x, y, z, p: cc.EvalMult(x, p),
        lambda x, y, z, p: x * p,
        degree=2,
    ),
    *(
        Case(
            f"times {factor}",
            lambda ev, x, y, z, p, f=factor: ev.times(x, f),
            lambda cc, x, y, z, p, f=factor: cc.EvalMult(x, f),
            lambda x, y, z, p, f=factor: f * x,
            degree=2,
        )
        for factor in (0.3, -0.7, -(2.0**-30), 1)
    ),
    Case(
        "rescale",
        lambda ev, x, y, z, p: ev.rescale(ev.times(x, p)),
        lambda cc, x, y, z, p: cc.Rescale(cc.EvalMult(x, p)),
        lambda x, y, z, p: x * p,
        products=1,
        limbs=LIMBS - 1,
    ),
    Case(
        "multiply",
        lambda ev, x, y, z, p: ev.multiply(x, y),
        lambda cc, x, y, z, p: cc.EvalMult(x, y),
        lambda x, y, z, p: x * y,
        2,
        degree=2,
    ),
    Case(
        "square",
        lambda ev, x, y, z, p: ev.square(x),
        lambda cc, x, y, z, p: cc.EvalSquare(x),
        lambda x, y, z, p: x * x,
        2,
        degree=2,
    ),
    Case(
        "products",
        lambda ev, x, y, z, p: ev.rescale(ev.relinearise(ev.products([x, y, z], [y, z, x]))),
        lambda cc, x, y, z, p: cc.Rescale(
            cc.Relinearize(
                cc.EvalAdd(cc.EvalAdd(cc.EvalMultNoRelin(x, y), cc.EvalMultNoRelin(y, z)), cc.EvalMultNoRelin(z, x))
            )
        ),
        lambda x, y, z, p: x * y + y * z + z * x,
        6,
        3,
        limbs=LIMBS - 1,
    ),
    Case(
        "products onto others",
        lambda ev, x, y, z, p: ev.relinearise(ev.products([y], [z], ev.products([x], [y]))),
        lambda cc, x, y, z, p: cc.Relinearize(cc.EvalAdd(cc.EvalMultNoRelin(x, y), cc.EvalMultNoRelin(y, z))),
        lambda x, y, z, p: x * y + y * z,
        4,
        degree=2,
    ),
    *(
        Case(
            f"rotate {r}",
            lambda ev, x, y, z, p, r=r: ev.rotate(x, r),
            lambda cc, x, y, z, p, r=r: cc.EvalRotate(x, r),
            lambda x, y, z, p, r=r: conjugated(x, r),
            switched=True,
        )
        for r in ROTATIONS
    ),
    *(
        Case(
            f"rotations {r}",
            lambda ev, x, y, z, p, r=r: ev.rotations(x, ROTATIONS)[ROTATIONS.index(r)],
            lambda cc, x, y, z, p, r=r: cc.EvalFastRotation(x, r, 2 * 16384, cc.EvalFastRotationPrecompute(x)),
            lambda x, y, z, p, r=r: conjugated(x, r),
            switched=True,
        )
        for r in ROTATIONS
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_call_computes_what_numpy_does_and_gives_the_limbs_that_openfhe_does(run: Keys, case: Case) -> None:
    """Each part of a slot errs by the noise of ``factors`` fresh ciphertexts, each times a complex number
    of at most 1, so that both parts of it count; by the switch's bias; by the primes that rescalings take
    for 2^45; by encoding, 2^-37."""
    scheme, ev = run.scheme, run.ev
    encoded = ev.encode(run.plain)
    before = [ev.limbs(x) for x in run.fresh]
    found = case.ours(ev, *run.fresh, encoded)
    assert (ev.count(found), ev.degree(found)) == (case.limbs, case.degree)
    limbs = ev.limbs(found)
    assert [len(element) for element in limbs] == [case.limbs] * 2
    assert np.array_equal(before, [ev.limbs(x) for x in run.fresh]), "an argument was changed"

    expected = scheme.limbs(case.theirs(scheme.cc, *map(run.theirs, run.fresh), scheme.encode(run.plain)))
    assert np.array_equal(limbs, expected)

    if case.degree == 2:  # q_0 does not hold scale^2
        found = ev.rescale(found)
    wanted = case.slots(*run.slots, run.plain)
    products = max(1, case.factors // 2) if case.degree == 2 else case.products
    drift = products * max(abs(q / scheme.scale - 1) for q in scheme.moduli[1:])
    tolerance = 2 * case.factors * run.opened.fresh_error + run.opened.switching_bias * case.switched + drift + 2**-37
    assert tolerance < 1e-6
    error = run.read(found, scheme.scale) - wanted
    assert max(np.abs(error.real).max(), np.abs(error.imag).max()) < tolerance


@pytest.mark.parametrize("limbs", [1, 3, LIMBS])
def test_a_ciphertext_from_limbs_has_these_limbs(run: Keys, limbs: int) -> None:
    ev, primes = run.ev, run.scheme.moduli[:limbs]
    given = [ring.expand(label, primes, run.scheme.n) for label in (b"c0", b"c1")]
    loaded = ev.load(given)
    assert np.array_equal(ev.limbs(loaded), given) and (ev.count(loaded), ev.degree(loaded)) == (limbs, 1)
    assert np.array_equal(ev.limbs(ev.drop(loaded, 1)), [element[:1] for element in given])


def test_a_product_is_relinearised_also_where_it_was_loaded(run: Keys) -> None:
    """Three polynomials at scale degree 2: sums of products that another process made."""
    product = run.ev.products(run.fresh[:2], run.fresh[1:])
    loaded = run.ev.load(np.array(run.ev.limbs(product)), degree=2)  # type: ignore[arg-type]
    assert (run.ev.count(loaded), run.ev.degree(loaded)) == (LIMBS, 2)
    ours, theirs = (np.array(run.ev.limbs(run.ev.relinearise(ct))) for ct in (loaded, product))
    assert ours.shape == (2, LIMBS, run.scheme.n) and (ours == theirs).all()


def test_a_product_that_was_loaded_is_rescaled_like_one_that_was_computed(run: Keys) -> None:
    """It is told its scale degree, which no limb shows."""
    ev = run.ev
    product = ev.times(run.fresh[0], 0.5)
    loaded = ev.load(ev.limbs(product), degree=2)
    assert ev.degree(loaded) == 2 and ev.degree(ev.rescale(loaded)) == 1
    for f in (ev.rescale, lambda x: ev.rescale(ev.add(x, product))):
        assert np.array_equal(ev.limbs(f(loaded)), ev.limbs(f(product)))


@pytest.mark.parametrize("factor", [1, -3, 1 << 54, -(3**40)])
def test_an_integer_multiplies_every_residue(run: Keys, factor: int) -> None:
    """Noise and all: limbs and scale degree stay."""
    ev, x = run.ev, run.ev.drop(run.fresh[0], 4)
    found = ev.times_integer(x, factor)
    assert (ev.count(found), ev.degree(found)) == (4, 1)
    for element, before in zip(ev.limbs(found), ev.limbs(x), strict=True):
        for i, q in enumerate(run.scheme.moduli[:4]):
            assert [int(v) for v in element[i][:50]] == [int(v) * factor % q for v in before[i][:50]]
    assert np.array_equal(ev.limbs(ev.times_integer(found, 0)), np.zeros((2, 4, run.scheme.n)))


def test_a_polynomial_of_ones_own_multiplies_like_an_encoded_one(run: Keys) -> None:
    ev, x = run.ev, run.ev.drop(run.fresh[0], 3)
    encoded = ev.encode(run.plain, 3)
    own = ev.plain(ev.plain_limbs(encoded))
    assert np.array_equal(ev.plain_limbs(own), ev.plain_limbs(encoded))
    for f in (ev.times, lambda x, p: ev.rescale(ev.times(x, p))):
        assert np.array_equal(ev.limbs(f(x, own)), ev.limbs(f(x, encoded)))
        assert ev.degree(f(x, own)) == ev.degree(f(x, encoded))


@pytest.mark.parametrize("limbs", [2, LIMBS])
def test_a_factor_enlarges_the_message_and_not_the_noise(run: Keys, limbs: int) -> None:
    """2^20 times the slots, to within the noise of an encryption, and what rounding at 2^45 left
    of them, 2^-37 at most."""
    factor = 1 << 20
    shares = {str(i): share.limbs for i, share in enumerate(run.secrets)}
    found = run.ev.load(
        inputs.together(run.scheme, RUN, shares, f"enlarged {limbs}", {"a": run.slots[0]}, limbs, factor)[0]
    )
    error = np.abs(run.opened.complex_slots(found) / factor - run.slots[0]).max()
    assert error < run.opened.fresh_error / factor + 2**-37 < run.opened.fresh_error / 8


@pytest.mark.parametrize("limbs", [1, LIMBS])
def test_zero_is_all_zero(run: Keys, limbs: int) -> None:
    zero = run.ev.zero(limbs)
    assert (run.ev.count(zero), run.ev.degree(zero)) == (limbs, 1)
    assert np.array_equal(run.ev.limbs(zero), np.zeros((2, limbs, run.scheme.n)))


@pytest.mark.parametrize("limbs", [2, None])
def test_complex_slots_keep_their_imaginary_parts(run: Keys, limbs: int | None) -> None:
    """Rounding N coefficients leaves 2^-40 (root mean square) in a slot, six standard deviations are below 2^-37."""
    scheme, ev = run.scheme, run.ev
    polynomial = ev.plain_limbs(ev.encode(run.plain) if limbs is None else ev.encode(run.plain, limbs))
    assert len(polynomial) == (limbs or LIMBS)
    for limb, q in zip(polynomial, scheme.moduli, strict=False):
        coefficients = ring.centred(ring.inverse_ntt(limb, q, scheme.roots[q]), q)
        assert np.abs(ring.embed(coefficients / scheme.scale) - run.plain).max() < 2**-37


def test_rotations_may_be_done_by_a_pool(run: Keys) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = run.ev.rotations(run.fresh[0], ROTATIONS, pool.map)
    assert np.array_equal(
        *([run.ev.limbs(x) for x in turned] for turned in (found, run.ev.rotations(run.fresh[0], ROTATIONS)))
    )
    assert run.ev.rotations(run.fresh[0], []) == []


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_rotation_is_the_automorphism_that_the_scheme_names(run: Keys, rotation: int) -> None:
    """On coefficients: slots of X -> X^k, and OpenFHE's own index."""
    k = run.scheme.automorphism(rotation)
    assert k == run.scheme.cc.FindAutomorphismIndex(rotation) and run.scheme.conjugation == CONJUGATION
    limb, q = run.ev.plain_limbs(run.ev.encode(run.plain, 1))[0], run.scheme.moduli[0]
    moved = ring.centred(ring.inverse_ntt(limb[ring.automorphism(run.scheme.n, k)], q, run.scheme.roots[q]), q)
    assert np.abs(ring.embed(moved / run.scheme.scale) - conjugated(run.plain, rotation)).max() < 2**-37


@pytest.mark.parametrize("size", [0.0, 1.0, 2.0**13 - 1, 2.0**13 + 1, 2.0**40])
@pytest.mark.parametrize("limbs", [1, 2, LIMBS])
def test_encoded_slots_of_any_size_have_openfhes_limbs(run: Keys, size: float, limbs: int) -> None:
    """Up to 2^13 every coefficient fits q_0; the kernels then make the other limbs from the first."""
    slots = size * run.plain
    theirs = OpenFheEvaluator(run.scheme)
    found = run.ev.plain_limbs(run.ev.encode(slots, limbs))
    assert np.array_equal(found, theirs.plain_limbs(theirs.encode(slots, limbs)))


def test_the_kernels_refuse_what_does_not_belong_together(run: Keys) -> None:
    """OpenFHE looks at limbs and not at scale degrees, the kernels at both."""
    ev, (x, *_) = run.ev, run.fresh
    if not isinstance(ev, NativeEvaluator):
        pytest.skip("OpenFHE's own refusals are its own")
    low, squared, plain = ev.drop(x, 2), ev.times(x, 0.5), ev.encode(run.plain, 2)
    for refused in (
        lambda: ev.add(x, low),
        lambda: ev.subtract(x, squared),
        lambda: ev.accumulate(squared, x),
        lambda: ev.add_plain(x, plain),
        lambda: ev.times(x, plain),
        lambda: ev.products([x], [low]),
        lambda: ev.products([x, x], [x]),
        lambda: ev.products([low], [low], ev.products([x], [x])),
        lambda: ev.products([x], [x], ev.products([squared], [x])),
    ):
        with pytest.raises(ValueError):
            refused()


def test_a_key_that_is_not_installed_is_named_and_forgotten_keys_are_not_there(run: Keys) -> None:
    if not isinstance(run.ev, NativeEvaluator):
        pytest.skip("OpenFHE's own refusals are its own")
    with pytest.raises(RuntimeError, match="no key for rotation 77 is installed"):
        run.ev.rotate(run.fresh[0], 77)
    scheme = Scheme(CkksConfig(), "0" * 64)
    other = NativeEvaluator(scheme, run.ev.ring.library)
    with pytest.raises(RuntimeError, match="relinearisation"):
        other.square(run.fresh[0])
    NativeEvaluator.keys["0" * 64] = NativeEvaluator.keys[run.scheme.tag]
    assert np.array_equal(other.limbs(other.square(run.fresh[0])), run.ev.limbs(run.ev.square(run.fresh[0])))
    scheme.forget()
    with pytest.raises(RuntimeError, match="relinearisation"):
        other.square(run.fresh[0])
