"""Openings to owners: the noise inside, measured against what their smudging assumes; the smudging;
the limits that parties check.

Noise inside an opening is what is left of it when everything plain is taken away, the drift of FIXEDMANUAL included,
which is a fixed function of the plaintext. Two consortia with independent keys compute the same step on the same
plaintexts: half the energy of their difference is the noise of one, biases of key switching among it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from joint import SLOTS, answers, derivative, encrypted, engine, problem, rehearsal, uploads
from twice import FILLED, LAYOUT, Twice, noise_over_steps, rms

from focal.ckks import codec, integers, ring
from focal.custody import opening, release
from focal.errors import FocalError
from focal.heads.joint import limits
from focal.heads.joint.layout import GRADIENT_OPENED, OPENED
from focal.heads.joint.limits import CARRIED_NOISE
from focal.heads.joint.twin import Update
from focal.heads.linear.rehearsal import Rehearsal


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Rehearsal, Rehearsal]]:
    yield rehearsal(LAYOUT, "opening one"), rehearsal(LAYOUT, "opening two")


# --------------------------------------------------------------------- noise inside


@pytest.mark.parametrize("size", [0.1, 0.5, 1.0])
def test_fresh_noise_in_openings_grows_with_the_head_as_stated(pair: tuple[Rehearsal, Rehearsal], size: float) -> None:
    """The docstring of focal/custody/opening.py: logits 2^9.3 sqrt(1 + 5 w^2), gradients 2^10.6
    sqrt(1 + 3 w^2).

    At most twice that: the noise depends on the keys drawn, and with some it is a quarter.
    """
    rng, twice = np.random.default_rng(0), Twice(pair, Update(0.5, 0.9))
    x, delta, w = rng.standard_normal((128, 64)), rng.uniform(-0.5, 0.5, (128, 8)), size * rng.standard_normal((64, 8))
    z, dx = twice.openings(*twice.step([encrypted(run, LAYOUT, w, w) for run in pair], x, delta))
    twice.close()
    print(f"weights of {size}: noise of opened logits 2^{math.log2(z):.1f}, of gradients 2^{math.log2(dx):.1f}")
    for noise, stated in ((z, 2**9.3 * math.sqrt(1 + 5 * size**2)), (dx, 2**10.6 * math.sqrt(1 + 3 * size**2))):
        assert stated / 16 < noise < 2 * stated
    assert max(z, dx) < CARRIED_NOISE


def test_noise_over_four_steps(pair: tuple[Rehearsal, Rehearsal]) -> None:
    noise_over_steps(pair, 4)


# --------------------------------------------------------------------- smudging


def test_what_the_docstring_says_about_information() -> None:
    one = opening.information(1, 2 * SLOTS)
    assert math.log2(one) == pytest.approx(-52)
    assert opening.information(4096, 2 * SLOTS) == pytest.approx(4096 * one) == pytest.approx(2**-40)
    assert math.log2(math.sqrt(2**-40 / 2)) == pytest.approx(-20.5)
    assert opening.information(4096, 2 * SLOTS, 4 * opening.NOISE) == pytest.approx(2**-36)
    assert math.log2(opening.SIGMA) == pytest.approx(77.5)
    assert math.log2(opening.SIGMA * math.sqrt(3 * SLOTS) / 2**45 / OPENED) == pytest.approx(-11.2, abs=0.02)


def test_what_the_page_says_about_openings() -> None:
    """SECURITY.md, "The interactive protocol": what an opened value errs by, what a run carries, what larger values
    do."""
    n, eight = 2 * SLOTS, 6 * opening.SIGMA * math.sqrt(8 * SLOTS) / 2**45
    assert eight / OPENED == pytest.approx(4.1e-3, rel=0.02)
    assert eight / GRADIENT_OPENED == pytest.approx(1.0e-3, rel=0.05)
    for custodians, expected in ((3, 12.4), (8, 13.1)):  # weights of root mean square 1; as many of either kind
        heads = [limits.head_noise(Update(0.5, 0.9), step, 128, custodians) for step in range(1, 513)]
        fresh = ((2**9.3) ** 2 * 6 + (2**10.6) ** 2 * 4) / 2 * custodians / 3
        carried = math.log2(math.sqrt(fresh + 2 * np.mean(np.square(heads))))
        assert expected - 0.1 < carried < expected
    for noise, divergence in ((11, -58), (29, -22), (31, -18)):
        assert math.log2(opening.information(1, n, 2.0 ** (noise + 31))) == pytest.approx(divergence)
    wider = 2**-20.5 / 2**-30
    assert wider == pytest.approx(700, rel=0.05) and wider * 2**-11.2 == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(
    ("factor", "nats", "lost"), [(1, 2**-40, 2.6e-5), (4, 2**-36, 1.04e-4), (2**17.5, 2**-5, 4.76)]
)
def test_what_the_docstring_says_about_search(factor: float, nats: float, lost: float) -> None:
    """The bound is the best over all orders: no other does better.
    The last row is what the smudging of version 2.0 gave."""
    noise, n = factor * opening.NOISE, 2 * SLOTS
    assert opening.information(4096, n, noise) == pytest.approx(nats)
    left, order = opening.search_bits(128, 4096, n, noise)
    assert 128 - left == pytest.approx(lost, rel=0.01)
    for a in (order / 2, order * 0.9, order * 1.1, order * 2):
        assert (1 - 1 / a) * (128 - a * nats / math.log(2)) < left


def test_a_share_is_smudged_as_stated(pair: tuple[Rehearsal, Rehearsal]) -> None:
    """Shares of an all-zero opening are noise alone; 16384 samples know their deviation to 0.6 %, asked to 3 %."""
    scheme, primes = pair[0].scheme, pair[0].scheme.moduli[:2]
    zero = scheme.evaluator.zero(2)
    for lead, secret in zip((True, False), pair[0].secrets, strict=False):
        limbs = codec.unpack(scheme, codec.OPENING_SHARE, opening.share(scheme, secret.limbs, zero, lead), "")[0]
        values = integers.Centred(
            [ring.inverse_ntt(x, q, scheme.roots[q]) for x, q in zip(limbs, primes, strict=True)], primes
        )
        assert abs(rms(values.rounded) / opening.SIGMA - 1) < 0.03
        low = (values.low & np.uint64(0xFFFF)).astype(int)
        counts = np.bincount(low >> 8, minlength=256)  # 64 each: a float64 of that size would be even for 24 bits
        assert abs(((counts - 64) ** 2 / 64).sum() - 255) < 8 * math.sqrt(2 * 255)


def test_an_owner_reads_its_values_and_nobody_without_all_shares(pair: tuple[Rehearsal, Rehearsal]) -> None:
    """Six deviations: sigma sqrt(3) sqrt(N / 2) / 2^45, of 2^51 z and of 2^53 dX."""
    base, run = pair[0], engine(pair[0], LAYOUT, Update(0.5))
    x, delta, w = problem(LAYOUT)
    forward = run.forward(encrypted(base, LAYOUT, w, w), uploads(base, run, x, FILLED))
    backward = run.backward(encrypted(base, LAYOUT, w, w), forward, answers(base, run, delta, FILLED), FILLED)
    run.close()
    each = 6 * opening.SIGMA * math.sqrt(3 * SLOTS) / base.scheme.scale
    own = run.owners["b"]
    z = LAYOUT.logits(base.open(forward.logits["b"]), own)
    dx = LAYOUT.gradients(base.open(backward.gradients["b"]), own)
    assert np.abs(z - (x @ w)[32:64]).max() < each / OPENED < 2.6e-3
    assert np.abs(dx - (delta @ w.T)[32:64]).max() < each / GRADIENT_OPENED < 6.5e-4
    shares = [
        (str(i), opening.share(base.scheme, s.limbs, forward.logits["b"], i == 0)) for i, s in enumerate(base.secrets)
    ]
    found = LAYOUT.logits(release.open_slots(base.scheme, shares[:2], codec.OPENING_SHARE), own)
    assert abs(np.corrcoef(found.ravel(), z.ravel())[0, 1]) < 5 / math.sqrt(z.size)


@pytest.mark.parametrize("limbs", [1, 3])
def test_only_two_limbs_are_opened(pair: tuple[Rehearsal, Rehearsal], limbs: int) -> None:
    with pytest.raises(ValueError, match="exactly two limbs"):
        opening.share(pair[0].scheme, pair[0].secrets[0].limbs, pair[0].encrypt(np.zeros(SLOTS), limbs), True)


# --------------------------------------------------------------------- limits


def test_activations_and_heads_that_are_too_large_are_refused() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((32, 64)), rng.standard_normal((64, 8))
    limits.check_activations(1.8 * x)
    delta = derivative(x @ w, rng.integers(0, 8, 32))
    limits.check_head(delta @ w.T, delta)
    limits.check_head(np.full((32, 64), 1e-4), np.zeros((32, 8)))  # nothing but smudging
    for wrong in (3 * x, np.full((2, 64), np.nan), np.full((2, 64), np.inf)):
        with pytest.raises(FocalError, match="activations have a root mean square"):
            limits.check_activations(wrong)
    with pytest.raises(FocalError, match="the head has grown to"):
        limits.check_head(4 * delta @ w.T, delta)
