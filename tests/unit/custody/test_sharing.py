"""A key of which any t shares do: dealt, checked, used by every active set alike, and of no use to fewer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

from focal.ckks import codec, integers, ring
from focal.ckks.ring import Limb
from focal.ckks.scheme import LIMBS, REFRESH_LIMBS, Scheme
from focal.config import CkksConfig
from focal.custody import keys, opening, refresh, release, sharing
from focal.errors import Refused

RUN, TRANSCRIPT = b"\x07" * 32, b"\x09" * 32
Element = Sequence[Limb]


class Dealt:
    """Keys of ``count`` custodians, any ``threshold`` of whom can use them."""

    def __init__(self, threshold: int, count: int) -> None:
        self.scheme = Scheme(CkksConfig(), RUN.hex())
        self.primes, self.threshold, self.count = self.scheme.moduli, threshold, count
        self.own = [keys.SecretShare.draw(self.scheme, RUN) for _ in range(count)]
        self.secret = ring.total([s.limbs[:LIMBS] for s in self.own], self.primes)
        self.seeds = [sharing.new_seed() for _ in range(count)]
        self.pieces = [
            sharing.pieces(self.scheme, s.limbs, seed, threshold, count)
            for s, seed in zip(self.own, self.seeds, strict=True)
        ]
        pair = {frozenset(p): bytes(p) * 16 for p in itertools.combinations(range(1, count + 1), 2)}
        self.shares = [
            sharing.Share(
                sharing.add_up(self.scheme, [dealt[j] for dealt in self.pieces]),
                j + 1,
                {k: sharing.zero_key(pair[frozenset((j + 1, k))]) for k in range(1, count + 1) if k != j + 1},
            )
            for j in range(count)
        ]

    def sets(self) -> list[tuple[int, ...]]:
        points = range(1, self.count + 1)
        return [a for size in range(self.threshold, self.count + 1) for a in itertools.combinations(points, size)]

    def used(self, active: Sequence[int], seed: bytes = RUN) -> dict[str, list[Limb]]:
        return {str(j): self.shares[j - 1].substitute(self.scheme, active, seed) for j in active}

    def phase(self, element: Sequence[Element]) -> np.ndarray:
        """c0 + c1 s as integers, by the secret that nobody has."""
        c0, c1 = element
        primes = self.primes[: len(c0)]
        limbs = [
            ring.inverse_ntt(ring.add(x, ring.multiply(y, s, q), q), q, self.scheme.roots[q])
            for x, y, s, q in zip(c0, c1, self.secret, primes, strict=False)
        ]
        return integers.Centred(limbs, primes).rounded

    def encrypted(self, slots: np.ndarray, limbs: int) -> list[list[Limb]]:
        """(a s + m, -a) without noise: a message under the joint secret."""
        ev, primes = self.scheme.evaluator, self.primes[:limbs]
        a = ring.expand(b"a of a test", primes, self.scheme.n)
        plain = ev.plain_limbs(ev.encode(slots, limbs))
        c0 = [
            ring.subtract(m, ring.multiply(x, s, q), q)
            for m, x, s, q in zip(plain, a, self.secret, primes, strict=False)
        ]
        return [c0, a]


@pytest.fixture(scope="module")
def few() -> Dealt:
    return Dealt(2, 4)


@pytest.fixture(scope="module", params=[(2, 3), (3, 5), (7, 8)], ids="{0[0]}-of-{0[1]}".format)
def dealt(request: pytest.FixtureRequest) -> Dealt:
    return Dealt(*request.param)


def test_substitutes_of_every_active_set_add_up_to_the_secret(dealt: Dealt) -> None:
    for active in dealt.sets():
        total = ring.total(list(dealt.used(active).values()), dealt.primes)
        assert all(np.array_equal(x, y) for x, y in zip(total, dealt.secret, strict=True)), active


def test_one_fewer_adds_up_to_something_else(dealt: Dealt) -> None:
    active = list(range(1, dealt.threshold + 1))
    fewer = [s for j, s in dealt.used(active).items() if j != "1"]
    if fewer:
        assert not np.array_equal(ring.total(fewer, dealt.primes)[0], dealt.secret[0])
    with pytest.raises(ValueError, match="not among"):
        dealt.shares[-1].substitute(dealt.scheme, active, RUN)


def test_every_active_set_refreshes_and_opens_with_the_noise_of_additive_shares(dealt: Dealt) -> None:
    """Coefficients of Lagrange are as large as any residue, and the noise is 3.19 sqrt(active) all the same."""
    scheme, slots = dealt.scheme, np.linspace(-1, 1, dealt.scheme.slots)
    element = dealt.encrypted(slots, REFRESH_LIMBS)
    asked = codec.pack(scheme, codec.ciphertext(REFRESH_LIMBS), element)
    before = dealt.phase(element)
    for active in dealt.sets()[:: max(1, len(dealt.sets()) // 4)]:
        made, _ = refresh.together(scheme, RUN, dealt.used(active), f"train/0/weights/{active[0]}/{len(active)}", asked)
        fresh = scheme.evaluator.limbs(made)
        noise = dealt.phase(fresh) - before
        assert noise.std() == pytest.approx(3.19 * len(active) ** 0.5, rel=0.1), active
        shares = [
            (j, release.share(scheme, s, made, lead=i == 0)) for i, (j, s) in enumerate(dealt.used(active).items())
        ]
        error = np.abs(release.open_slots(scheme, shares) - slots).max()
        bound = 8 * release.SIGMA * len(active) ** 0.5 * (scheme.n / 2) ** 0.5 / scheme.scale
        assert error < bound < 0.2


def test_an_opening_to_an_owner_likewise(few: Dealt) -> None:
    scheme, slots = few.scheme, np.linspace(-1, 1, few.scheme.slots)
    two = scheme.evaluator.load(few.encrypted(slots, 2))
    shares = [(j, opening.share(scheme, s, two, lead=j == "2")) for j, s in few.used((2, 4)).items()]
    found = release.open_slots(scheme, shares, codec.OPENING_SHARE)
    assert np.abs(found - slots).max() < 8 * opening.SIGMA * 2**0.5 * (scheme.n / 2) ** 0.5 / scheme.scale


def test_a_share_survives_its_file(few: Dealt) -> None:
    share = few.shares[2]
    back = sharing.Share.load(few.scheme, share.dump(few.scheme), share.point, few.count)
    assert back.keys == share.keys and back.point == share.point
    assert all(np.array_equal(x, y) for x, y in zip(back.limbs, share.limbs, strict=True))


# --------------------------------------------------------------------------- what fewer than t see


def test_fewer_pieces_than_t_are_those_of_any_secret(few: Dealt) -> None:
    """To one piece of a 2-of-4 key and any secret belongs exactly one polynomial: nothing tells them apart. And its
    coefficients are uniform: chi-square over 64 classes of the first limb, beyond 6 deviations once in 10^9."""
    q = few.primes[0]
    other = few.own[1].limbs
    piece = few.pieces[0][2]  # at 3
    slope = ring.multiply(ring.subtract(piece[0], other[0], q), np.full(few.scheme.n, pow(3, -1, q), np.uint64), q)
    again = ring.add(ring.multiply(slope, np.full(few.scheme.n, 3, np.uint64), q), other[0], q)
    assert np.array_equal(again, piece[0])
    counts = np.bincount((piece[0].astype(object) * 64 // q).astype(int), minlength=64)
    expected = few.scheme.n / 64
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - 63) < 6 * (2 * 63) ** 0.5


def test_without_zero_shares_more_than_t_show_a_combination_of_their_masks(few: Dealt) -> None:
    """Four are active and one of them tells its share: two honest refresh shares of one item, under one ``a``, add up
    to something small, their masks and errors. With zero-shares they add up to nothing that is."""
    scheme, active, liar = few.scheme, (1, 2, 3, 4), 1
    asked = few.encrypted(np.zeros(scheme.slots), REFRESH_LIMBS)
    a = refresh.common_random(scheme, RUN, "train/0/x", "00" * 32)

    def seen(secrets: dict[str, list[Limb]]) -> np.ndarray:
        # S_j = (1 - j / liar) s + (j / liar) S_liar: a combination of two whose parts of s cancel
        weights = {j: sharing.coefficient(active, 0, j) * (1 - Fraction(j, liar)) for j in (2, 3)}
        factors = {2: weights[3], 3: -weights[2]}
        common = np.lcm.reduce([f.denominator for f in factors.values()])
        total = [np.zeros(scheme.n, np.uint64) for _ in few.primes]
        for j, factor in factors.items():
            share = refresh.share(scheme, secrets[str(j)], asked[1], a, 98)
            _, own = codec.unpack(scheme, refresh.kind(refresh.IDENTITY), share, "")
            known = sharing.coefficient(active, 0, j) * Fraction(j, liar)
            for i, q in enumerate(few.primes):
                part = _times(few.shares[liar - 1].limbs[i], known, q)  # what the liar's share explains of s^_j
                mine = ring.add(own[i], ring.multiply(part, a[i], q), q)
                total[i] = ring.add(total[i], _times(mine, factor * int(common), q), q)
        values = [ring.inverse_ntt(x, q, scheme.roots[q]) for x, q in zip(total, few.primes, strict=True)]
        return np.abs(integers.Centred(values, few.primes).rounded)

    plain = {
        str(j): [
            _times(x, sharing.coefficient(active, 0, j), q)
            for x, q in zip(few.shares[j - 1].limbs, few.primes, strict=True)
        ]
        for j in active
    }
    assert seen(plain).max() < 2.0**110
    assert np.median(seen(few.used(active))) > 2.0**270


def test_zero_shares_differ_between_epochs(few: Dealt) -> None:
    one, other = (few.shares[1].substitute(few.scheme, (1, 2, 3), seed) for seed in (RUN, b"\x01" * 32))
    assert not np.array_equal(one[0], other[0])


def _times(limb: Limb, factor: Fraction, q: int) -> Limb:
    value = factor.numerator * pow(factor.denominator, -1, q) % q
    return ring.multiply(limb, np.full(len(limb), value, np.uint64), q)


# --------------------------------------------------------------------------- dealers that lie


@pytest.fixture(scope="module")
def h1(few: Dealt) -> bytes:
    with ThreadPoolExecutor(1) as pool:
        _, h1 = few.own[0].first_round([], pool)
    return h1


def shown(few: Dealt, dealt: Sequence[Element]) -> bytes:
    return sharing.check_values(few.scheme, RUN, TRANSCRIPT, dealt, few.threshold)


def check(few: Dealt, data: bytes, h1: bytes) -> list[list[Limb]]:
    return sharing.check_dealer(few.scheme, data, h1, few.threshold, few.count, "custodian-1")


def left_of(few: Dealt, piece: Element, value: Element, a: Element) -> np.ndarray:
    """A check value less D times the piece times a."""
    left = []
    for v, p, x, q in zip(value, piece, a, few.primes, strict=True):
        product = ring.multiply(ring.multiply(p, x, q), np.full(few.scheme.n, sharing.DENOMINATOR, np.uint64), q)
        left.append(ring.inverse_ntt(ring.subtract(v, product, q), q, few.scheme.roots[q]))
    return integers.Centred(left, few.primes).rounded


def test_honest_pieces_pass_and_their_errors_are_wide(few: Dealt, h1: bytes) -> None:
    """An error of 2^60 stays above 3.19 in the mean of whatever pieces there are."""
    values, a = check(few, shown(few, few.pieces[0]), h1), sharing.challenge(few.scheme, RUN, TRANSCRIPT)
    for piece, value in zip(few.pieces[0], values, strict=True):
        sharing.check_piece(few.scheme, piece, value, a, "custodian-1")
        assert left_of(few, piece, value, a).std() == pytest.approx(sharing.SIGMA, rel=0.1)


def coalitions() -> list[tuple[int, tuple[int, ...]]]:
    """(N, the points of t - 1) of every t-of-N key."""
    return [
        (n, known) for n in range(3, 9) for t in range(2, n) for known in itertools.combinations(range(1, n + 1), t - 1)
    ]


def test_check_values_tell_nothing_of_the_errors_of_keys_to_whoever_knows_t_minus_1_pieces() -> None:
    """What is left of h1 in each is whole, for every t-of-N key, coalition and piece: no fraction whose denominator
    would divide what they know. And a Gaussian of 2^60 hides it."""
    for count, known in coalitions():
        for point in range(1, count + 1):
            parts = [sharing.coefficient((0, *known), point, k) for k in (0, *known)]
            assert all((sharing.DENOMINATOR * c).denominator == 1 for c in parts), (count, known, point)
        assert sharing.information(known, count, 1 << 14) < 2.0**-59
    known_modulo = [
        math.lcm(*(sharing.part(known, j).denominator for j in range(1, n + 1))) for n, known in coalitions()
    ]
    assert max(known_modulo) == 448, "what they would know without D"


def test_pieces_that_were_not_taken_d_times_would_give_the_share_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a 3-of-7 key, 5 and 7 know the errors of custodian 1's key contribution modulo 35, and so the errors."""
    monkeypatch.setattr(sharing, "DENOMINATOR", 1)
    case, known, moduli = Dealt(3, 7), (5, 7), {}
    with ThreadPoolExecutor(1) as pool:
        _, data = case.own[0].first_round([], pool)
    (own, *_) = codec.unpack(case.scheme, codec.SWITCHING_B, data, "")
    a = sharing._bound(case.scheme, RUN)
    truth = [
        ring.inverse_ntt(ring.subtract(h, ring.multiply(x, s, q), q), q, case.scheme.roots[q])
        for h, x, s, q in zip(own, a, case.own[0].limbs, case.primes, strict=False)
    ]
    error = integers.Centred(truth, case.primes).rounded.astype(int)
    values = codec.unpack(case.scheme, codec.check_values(10), shown(case, case.pieces[0]), "")[7:]
    for j in (1, 2, 3):
        share = sharing.part(known, j)
        total = [np.zeros(case.scheme.n, np.uint64) for _ in case.primes]
        for i, q in enumerate(case.primes):
            explained = ring.total(
                [[_times(case.pieces[0][k - 1][i], sharing.coefficient((0, *known), j, k), q)] for k in known],
                [q],
            )[0]
            left = ring.subtract(values[j - 1][i], ring.multiply(a[i], explained, q), q)
            left = ring.subtract(
                _times(left, Fraction(share.denominator), q), _times(own[i], Fraction(share.numerator), q), q
            )
            total[i] = ring.inverse_ntt(left, q, case.scheme.roots[q])
        d = share.denominator
        digits = integers.digits(total, case.primes)  # d e_j - p e', exactly, mod d
        place, found = 1, np.zeros(case.scheme.n, object)
        for digit, prime in zip(digits, case.primes, strict=True):
            found += digit.astype(object) * place
            place *= prime
        found = np.where(found > place // 2, found - place, found)
        moduli[d] = (-found * pow(share.numerator, -1, d)) % d if d > 1 else found * 0
    for d, residue in moduli.items():
        assert np.array_equal(residue, error % d), d
    assert np.lcm.reduce(list(moduli)) == 35


@pytest.mark.parametrize("place", [0, 1, 3])
def test_pieces_on_no_polynomial_are_refused(few: Dealt, h1: bytes, place: int) -> None:
    """Off by one, in one coefficient of one piece."""
    dealt = [list(piece) for piece in few.pieces[0]]
    for i, q in enumerate(few.primes):
        off = np.zeros(few.scheme.n, np.int64)
        off[5] = 1
        dealt[place][i] = ring.add(dealt[place][i], ring.ntt_signed(off, q, few.scheme.roots[q]), q)
    with pytest.raises(Refused, match="'custodian-1' dealt") as caught:
        check(few, shown(few, dealt), h1)
    assert caught.value.reason == "threshold"


def test_pieces_of_another_secret_are_refused(few: Dealt, h1: bytes) -> None:
    with pytest.raises(Refused, match="another key share than its keys"):
        check(few, shown(few, few.pieces[1]), h1)


def test_a_piece_that_is_not_the_one_shown_is_refused(few: Dealt, h1: bytes) -> None:
    values, a = check(few, shown(few, few.pieces[0]), h1), sharing.challenge(few.scheme, RUN, TRANSCRIPT)
    with pytest.raises(Refused, match="sealed another piece to us"):
        sharing.check_piece(few.scheme, few.pieces[0][1], values[0], a, "custodian-1")


def test_what_was_shown_for_other_boxes_is_refused(few: Dealt) -> None:
    """a_v is drawn when all boxes are fixed: values for another transcript say nothing about these."""
    data = sharing.check_values(few.scheme, RUN, b"\x01" * 32, few.pieces[0], few.threshold)
    values = codec.unpack(few.scheme, codec.check_values(few.count + few.threshold), data, "")
    a = sharing.challenge(few.scheme, RUN, TRANSCRIPT)
    with pytest.raises(Refused, match="another piece"):
        sharing.check_piece(few.scheme, few.pieces[0][0], values[0], a, "custodian-1")
