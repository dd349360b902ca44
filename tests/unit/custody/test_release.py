"""The release: what noise the weights carry, what the smudging adds, and what is left of the weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from carried import assert_carried_noise
from opened import Opened
from polynomials import coefficients, rms

from focal.ckks import codec, ring, sampling
from focal.ckks.scheme import LIMBS, REFRESH_LIMBS
from focal.custody import release
from focal.errors import Refused
from focal.heads import released
from focal.heads.joint.limits import HEAD_NOISE
from focal.heads.linear.cost import layout_for
from focal.heads.linear.layout import WEIGHT_SCALE, Layout
from focal.heads.linear.rehearsal import Rehearsal

ITEM = "train/0/weights/-/0/-"


@pytest.fixture(scope="module")
def weights(small: Layout) -> np.ndarray:
    return np.random.default_rng(6).uniform(-0.5, 0.5, (small.features, small.outputs))


@pytest.fixture(scope="module")
def refreshed(rehearsal: Rehearsal, small: Layout, weights: np.ndarray) -> Any:
    part = WEIGHT_SCALE / small.copies * small.weight_slots(weights, 0)  # the refresh adds up the copies
    return rehearsal.refresh([ITEM], [rehearsal.encrypt(part, REFRESH_LIMBS)])[0]


@pytest.fixture(scope="module")
def shares(rehearsal: Rehearsal, refreshed: Any) -> list[tuple[str, bytes]]:
    return [
        (f"custodian-{i}", release.share(rehearsal.scheme, s.limbs, refreshed, lead=i == 0))
        for i, s in enumerate(rehearsal.secrets)
    ]


def test_the_test_inverts_the_embedding() -> None:
    x = np.random.default_rng(0).standard_normal(1024)
    np.testing.assert_allclose(coefficients(ring.embed(x)), x, atol=1e-12)


# --------------------------------------------------------------------- carried noise


def test_a_refreshed_encryption_of_zero_carries_little(rehearsal: Rehearsal, opened: Opened) -> None:
    """The decrypted polynomial is the noise: a fresh ciphertext's 2^9.7, of which the fold over 128 groups of
    rows makes 2^13.2, all of it on every 128th coefficient, and the refresh's own 2^2.5. What hides it goes by
    the sum of squares (release.py)."""
    (ct,) = rehearsal.refresh([ITEM], [rehearsal.encrypt(np.zeros(rehearsal.scheme.slots), REFRESH_LIMBS)])
    noise = opened.coefficients(ct)
    print(f"refreshed zero: rms 2^{math.log2(rms(noise)):.1f}, largest 2^{math.log2(np.abs(noise).max()):.1f}")
    assert rms(noise) < release.CARRIED_NOISE


def test_trained_weights_carry_less_noise_than_the_smudging_assumes() -> None:
    """Other layouts, more rows and more custodians: test_release_noise.py."""
    assert_carried_noise(class_lanes=8, feature_lanes=1, rows=600, custodians=2)


# --------------------------------------------------------------------- smudging


def test_the_constants_are_those_of_thirty_bits() -> None:
    assert release.flooding_bits() == pytest.approx(30)
    assert release.flooding_bits(2 * release.CARRIED_NOISE) == pytest.approx(28)
    assert math.log2(release.SIGMA) == pytest.approx(30.79, abs=0.01)
    assert release.sigma(4 * release.CARRIED_NOISE) == 4 * release.SIGMA
    assert release.flooding_bits(4 * release.CARRIED_NOISE, 4 * release.CARRIED_NOISE) == pytest.approx(30)


def test_what_the_smudging_gives_is_what_the_page_says() -> None:
    """SECURITY.md, "Smudging of the release", and the head's in "The interactive protocol"."""
    n, ratio = 1 << 14, release.CARRIED_NOISE / release.SIGMA
    divergence = n * ratio**2 / 2
    assert divergence == pytest.approx(n * 2**-release.KAPPA / 24)
    assert math.log2(divergence) == pytest.approx(-20.6, abs=0.05)
    assert math.log2(math.sqrt(divergence / 2)) == pytest.approx(-10.8, abs=0.05)
    assert math.log2(ratio / math.sqrt(2 * math.pi)) == pytest.approx(-18, abs=0.2)
    assert release.flooding_bits(release.CARRIED_NOISE / 4) == pytest.approx(34)
    assert math.log2(release.sigma(HEAD_NOISE)) == pytest.approx(32.8, abs=0.05)
    two = [release.flooding_bits(2**inside, HEAD_NOISE) - 1 for inside in (5.7, 6.4)]
    assert two == pytest.approx([49.6, 48.2], abs=0.05)


def test_gaussians_come_in_the_number_and_size_asked_for() -> None:
    """Mean and deviation of 99,999 samples, six standard errors; the largest is what so many Gaussians
    have, not a cut-off's."""
    found = sampling.gaussian(99_999, 3.0)
    assert found.shape == (99_999,)
    assert abs(found.mean()) < 6 * 3 / 99_999**0.5
    assert abs(found.std() / 3 - 1) < 6 / (2 * 99_999) ** 0.5
    assert 3.5 < np.abs(found).max() / 3 < 7
    assert sampling.gaussian(1, 1.0) != sampling.gaussian(1, 1.0)


def test_a_share_is_smudged_for_the_noise_that_is_stated(rehearsal: Rehearsal) -> None:
    scheme, q = rehearsal.scheme, rehearsal.scheme.moduli[0]
    zero = scheme.evaluator.zero(LIMBS)
    data = release.share(scheme, rehearsal.secrets[1].limbs, zero, False, 4 * release.CARRIED_NOISE)
    (limb,) = codec.unpack(scheme, codec.DECRYPTION, data, "")[0]
    noise = ring.centred(ring.inverse_ntt(limb, q, scheme.roots[q]), q)
    assert abs(rms(noise) / (4 * release.SIGMA) - 1) < 0.03


def test_the_smudging_is_gaussian_with_the_stated_deviation(rehearsal: Rehearsal) -> None:
    """Shares of the all-zero ciphertext are the noise alone. 2 x 16384 samples:
    the deviation is known to 0.4 %, asked to 2 %."""
    scheme, q = rehearsal.scheme, rehearsal.scheme.moduli[0]
    zero = scheme.evaluator.zero(LIMBS)
    noise = []
    for lead, secret in zip((True, False), rehearsal.secrets, strict=False):
        (limb,) = codec.unpack(scheme, codec.DECRYPTION, release.share(scheme, secret.limbs, zero, lead), "")[0]
        noise.append(ring.centred(ring.inverse_ntt(limb, q, scheme.roots[q]), q).astype(float))
    both = np.concatenate(noise)
    print(f"smudging: standard deviation {both.std() / release.SIGMA:.4f} of SIGMA")
    assert abs(both.std() / release.SIGMA - 1) < 0.02
    assert abs(both.mean()) < 6 * release.SIGMA / len(both) ** 0.5
    assert abs((both**4).mean() / both.var() ** 2 - 3) < 6 * (24 / len(both)) ** 0.5, "not a Gaussian's fourth moment"
    assert abs(np.corrcoef(noise[0], noise[1])[0, 1]) < 6 / scheme.n**0.5
    for e in noise:  # every circular lag: 16384 values of deviation 1 / sqrt(N), seven of them is 10^-8 in all
        lags = np.fft.irfft(np.abs(np.fft.rfft(e)) ** 2)[1:] / (e @ e)
        assert np.abs(lags).max() < 7 / scheme.n**0.5, "coefficients are not independent"
    slots = np.concatenate([ring.embed(e) for e in noise]) / (release.SIGMA * (scheme.n / 2) ** 0.5)
    for part in (slots.real, slots.imag):  # 16384 samples each
        assert abs(part.std() - 1) < 0.03, "not spherical: what lies in this half of the noise is not hidden"


# --------------------------------------------------------------------- opening


def test_the_opened_weights_err_by_what_is_predicted(
    rehearsal: Rehearsal, small: Layout, refreshed: Any, weights: np.ndarray
) -> None:
    """Mean of the largest error over six releases, within a factor 2. (In the protocol there is exactly one.)"""
    predicted = released.expected_error(small.slots, rehearsal.scheme.scale, small, len(rehearsal.secrets))
    measured = [float(np.abs(rehearsal.release([refreshed]) - weights).max()) for _ in range(6)]
    print(f"largest error of a released weight: predicted {predicted:.1e}, measured {np.mean(measured):.1e}")
    assert predicted / 2 < np.mean(measured) < 2 * predicted
    assert predicted < released.MAX_ERROR
    assert released.precision_bits(small.slots, rehearsal.scheme.scale, small, 3) == pytest.approx(
        -math.log2(predicted)
    )


def test_opening_gives_the_same_bits_everywhere(rehearsal: Rehearsal, shares: list[tuple[str, bytes]]) -> None:
    one, two = release.open_slots(rehearsal.scheme, shares), release.open_slots(rehearsal.scheme, shares[::-1])
    assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("present", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)])
def test_fewer_than_all_shares_open_nothing(
    rehearsal: Rehearsal, small: Layout, shares: list[tuple[str, bytes]], weights: np.ndarray, present: tuple[int, ...]
) -> None:
    """128 weights: a chance correlation has deviation 1 / sqrt(128), five of them;
    and the size is that of q_0, not of a weight."""
    found = released.weights(small, [release.open_slots(rehearsal.scheme, [shares[i] for i in present])])
    assert abs(np.corrcoef(found.ravel(), weights.ravel())[0, 1]) < 5 / weights.size**0.5
    assert np.median(np.abs(found)) > 100


@pytest.mark.parametrize("spoil", [lambda d: d[:-1], lambda d: b"X" + d[1:], lambda d: d[:-1] + b"\xff"])
def test_a_malformed_share_names_its_custodian(
    rehearsal: Rehearsal, shares: list[tuple[str, bytes]], spoil: Any
) -> None:
    with pytest.raises(Refused, match="custodian-2"):
        release.open_slots(rehearsal.scheme, [*shares[:2], ("custodian-2", spoil(shares[2][1]))])


def test_prediction_follows_custodians_and_copies() -> None:
    one, many = layout_for(8192, 64, 8, 100, 8, 1), layout_for(8192, 64, 8, 100, 2, 1)
    assert (one.copies, many.copies) == (32, 128)
    error = released.expected_error(8192, 2.0**45, one, 2)
    assert released.expected_error(8192, 2.0**45, one, 8) == pytest.approx(2 * error)
    assert released.expected_error(8192, 2.0**45, many, 2) == pytest.approx(error / 2)
    assert released.expected_error(8192, 2.0**46, one, 2) == pytest.approx(error / 2)
