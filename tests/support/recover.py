"""Attacks that need no algebra: quotients and roundings of published elements that would be a secret if
a protocol had gone wrong.

Each takes a :class:`scan.Published` and the name of one custodian, and yields guesses of its share: N integers each.
A guess that is wrong is uniform modulo a prime of 45 bits or more, so it meets a ternary coefficient once in 2^43.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scan import OWNERS, Published

from focal.ckks import ring
from focal.ckks.scheme import LIMBS, Scheme

Guess = np.ndarray


def guesses(published: Published, custodian: str) -> Iterator[tuple[str, Guess]]:
    """(attack, guess of the share) for every attack."""
    yield from from_two_key_messages(published, custodian)
    yield from by_quotients(published, custodian)
    yield from by_rounding(published, custodian)


def from_two_key_messages(published: Published, custodian: str) -> Iterator[tuple[str, Guess]]:
    """P g x - a s + e and a s + e' of one ``a`` add up to P g x (docs/security-notes.md).
    Every pair of key messages is tried."""
    scheme, own = published.scheme, dict(published.families[custodian])
    q, last = scheme.moduli[0], scheme.moduli[-1]
    special = math.prod(scheme.extended[LIMBS:])
    names = [n for n in own if n.endswith("[0]") and len(own[n]) == len(scheme.extended)]
    for i, x in enumerate(names):
        for y in names[i + 1 :]:
            for sign in (1, -1):
                plus = ring.add if sign > 0 else ring.subtract
                noise = ring.centred(
                    ring.inverse_ntt(plus(own[x][LIMBS - 1], own[y][LIMBS - 1], last), last, scheme.roots[last]), last
                )
                total = ring.inverse_ntt(plus(own[x][0], own[y][0], q), q, scheme.roots[q])
                rest = ring.subtract(total, (noise % q).astype(np.uint64), q)
                yield (
                    f"{x} {'+-'[sign < 0]} {y}",
                    ring.centred(ring.multiply(rest, constant(scheme.n, pow(special, -1, q)), q), q),
                )


def by_quotients(published: Published, custodian: str) -> Iterator[tuple[str, Guess]]:
    """h0 / c1, (h0 + h1) / (c1 - a), h1 / a, an opening / c1, B / a, and of neighbours
    (B - B') / (a - a'): exact where a mask or an error is missing, or one error is used twice. B is a
    contribution to an input, also as its owners see it."""
    own = dict(published.families[custodian])
    for name, limbs in own.items():
        item = name.partition("/")[2].partition("[")[0]
        if not name.startswith("h0/") or f"c1/{item}" not in published.public:
            continue
        a, c1, h1 = published.public[f"a/{item}"], published.public[f"c1/{item}"], own[f"h1/{item}[0]"]
        for i, q in enumerate(published.scheme.moduli[: min(len(limbs), len(h1))]):
            yield f"h0/c1 {item}", quotient(published, limbs[i], c1[i], q)
            yield f"h1/a {item}", quotient(published, h1[i], a[i], q)
            yield (
                f"(h0+h1)/(c1-a) {item}",
                quotient(published, ring.add(limbs[i], h1[i], q), ring.subtract(c1[i], a[i], q), q),
            )
    q = published.scheme.moduli[0]
    for seen in (False, True):  # by everybody, and by its owners
        neighbour = None
        for name in own:
            if not name.startswith("input/") or name.endswith(f"{OWNERS}[0]") != seen:
                continue
            item = name.removeprefix("input/").removesuffix("[0]")
            b, a = own[name][0], published.public[f"a/{item.removesuffix(OWNERS)}"][0]
            yield f"B/a {item}", quotient(published, b, a, q)
            if neighbour is not None:
                yield (
                    f"(B-B')/(a-a') {item}",
                    quotient(published, ring.subtract(b, neighbour[0], q), ring.subtract(a, neighbour[1], q), q),
                )
            neighbour = b, a
    for name, limbs in own.items():
        if "/release/" in name:
            before = f"a/{name.replace('/release/', '/weights/').partition('[')[0]}"
            if before in published.public:
                yield f"{name} / c1", quotient(published, limbs[0], published.public[before][0], q)


def by_rounding(published: Published, custodian: str) -> Iterator[tuple[str, Guess]]:
    """h0 = s c1 - M with c1 = 2^k: the high bits are s."""
    scheme = published.scheme
    for name, limbs in published.families[custodian]:
        if name.startswith("h0/"):
            value = composed(published.scheme, limbs, scheme.moduli[: len(limbs)])
            for k in (100, 105, 110, 120, 135):
                yield f"{name} / 2^{k}", np.array([int(v + (1 << k - 1)) >> k for v in value], dtype=object)


def composed(scheme: Scheme, limbs: Sequence[ring.Limb], primes: Sequence[int]) -> np.ndarray:
    """Centred integer coefficients, by Chinese remainders."""
    modulus = math.prod(primes)
    total = np.zeros(scheme.n, dtype=object)
    for limb, q in zip(limbs, primes, strict=True):
        rest = modulus // q
        total = (
            total + ring.inverse_ntt(limb, q, scheme.roots[q]).astype(object) * (rest * pow(rest, -1, q))
        ) % modulus
    return np.where(total > modulus // 2, total - modulus, total)


def quotient(published: Published, over: ring.Limb, under: ring.Limb, q: int) -> Guess:
    inverse = np.array([pow(int(v), -1, q) if v else 0 for v in under], np.uint64)
    return ring.centred(ring.inverse_ntt(ring.multiply(over, inverse, q), q, published.scheme.roots[q]), q)


def constant(n: int, value: int) -> ring.Limb:
    return np.full(n, value, np.uint64)


def right(guess: Guess, secret: np.ndarray) -> int:
    """How many coefficients a guess has right, with either sign."""
    return max(int((guess == secret).sum()), int((-guess == secret).sum()))
