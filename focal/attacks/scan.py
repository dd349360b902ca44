"""The algebraic scan: of all ring elements that a run publishes, does a small combination exist
that would spell out a secret?

Two published elements made from one secret with one ``a`` add up to something without that secret's mask
(docs/security-notes.md: that is how every share was read off an honest run once). Such a combination is
small in some limb, on all coefficients at once, and by chance never. So, per family (all that depends on
one party's secret) and per prime::

    base       every published polynomial of the family, and its images under the automorphisms of rotations
               and of refreshes' maps, and their inverses
    products   base x every published ``a``
    search     one, two and three terms with coefficients -1, 0, 1, at most one of them a product
    masks      L(h0) + 2^k h1 of every refresh, in which the mask cancels (:func:`unmasked`)
    owners     every contribution to an input without the masks of its owners, who know them: -(s a + e),
               as all of them together see it

By first coefficients only: pairs are found by sorting the first one, and a hit must be small on eight.
SMALL leaves room for errors, 2^26 of 2^45; eight coefficients are small by chance once in 2^144.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from focal.attacks.published import Published
from focal.ckks import ring

LOOK = 8
FIRST = np.arange(1, LOOK + 1)
"""Which coefficients: not the constant one, which every automorphism leaves where it is."""
SMALL = 1 << 26
"""Errors, and noise of relinearisation, stay below 2^16; three terms of them too."""


def under_one_mask(published: Published) -> list[str]:
    """Pairs of masked messages that differ by less than 2^64 in their first coefficients:
    their difference is one of rows, in the clear."""
    named = list(published.rows.items())
    high = np.array([words[:LOOK, 1] for _, words in named])
    apart = high[:, None] - high[None]  # modulo 2^64
    close = (np.minimum(apart, np.uint64(0) - apart) <= 1).all(axis=-1)
    return [
        f"{named[i][0]} and {named[j][0]} have one mask" for i, j in zip(*np.nonzero(np.triu(close, 1)), strict=True)
    ]


# --------------------------------------------------------------------------- the search


def coefficients(published: Published, limb: ring.Limb, q: int) -> np.ndarray:
    return ring.inverse_ntt(limb, q, published.scheme.roots[q])


def turned(values: np.ndarray, k: int, q: int) -> np.ndarray:
    """The first coefficients of a polynomial at X^k."""
    n = len(values)
    places = FIRST * pow(k, -1, 2 * n) % (2 * n)
    found = values[places % n]
    return np.where(places < n, found, (np.uint64(q) - found) % np.uint64(q))


def candidates(
    published: Published, family: str, q: int, products: bool
) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    """Names and first coefficients, (m, LOOK) each, of the base and of the products modulo q."""
    place = published.scheme.extended.index(q)
    own = [(name, limbs[place]) for name, limbs in published.families[family] if len(limbs) > place]
    whole = {name: coefficients(published, limb, q) for name, limb in own}
    order = 2 * published.scheme.n
    rotations = [r for r in published.rotations if r != published.scheme.conjugation]
    powers = {
        pow(5, sign * r % published.scheme.slots, order): f"rot {sign * r}" for r in rotations for sign in (1, -1)
    }
    mapped = {k for how in published.maps.values() for k in how.automorphisms} - {order - 1}
    powers |= {pow(k, sign, order): f"map {k}^{sign}" for k in sorted(mapped) for sign in (1, -1)}
    turns = {name: k for k, name in powers.items()} | {"conjugate": order - 1}
    names = [*whole, *(f"{t} {name}" for name in whole for t in turns)]
    base = [*(v[FIRST] for v in whole.values()), *(turned(v, k, q) for v in whole.values() for k in turns.values())]
    names += [f"public {name}" for name, limbs in published.public.items() if len(limbs) > place]
    base += [
        coefficients(published, limbs[place], q)[FIRST] for limbs in published.public.values() if len(limbs) > place
    ]
    made, labels = [], []
    for name, limb in own if products else []:
        for other, limbs in published.public.items():
            if len(limbs) > place:
                made.append(coefficients(published, ring.multiply(limb, limbs[place], q), q)[FIRST])
                labels.append(f"{name} x {other}")
    empty = np.empty((0, LOOK), np.uint64)
    return names, np.array(base), labels, np.array(made) if made else empty


def is_small(values: np.ndarray, q: int, small: int = SMALL) -> np.ndarray:
    return (np.minimum(values, np.uint64(q) - values) < small).all(axis=-1)


def small_combinations(
    names: Sequence[str], base: np.ndarray, labels: Sequence[str], made: np.ndarray, q: int, singles: int
) -> Iterator[str]:
    """All small combinations: one term (of the first ``singles``), two of anything,
    three with at most one product or image.

    ``singles``: how many of ``base`` are polynomials themselves; combinations of three take two of these.
    """
    every, told = np.concatenate([base, made]), [*names, *labels]
    modulus = np.uint64(q)
    for i in np.flatnonzero(is_small(every, q)):
        yield f"{told[i]} is small modulo {q}"
    order = np.argsort(every[:, 0], kind="stable")
    first = every[order, 0].astype(np.int64)

    def near(wanted: np.ndarray, say: Callable[[int, int], str | None]) -> Iterator[str]:
        """Rows of ``every`` that are within SMALL of a row of ``wanted``."""
        centre = wanted[:, 0].astype(np.int64)
        for shift in (0, q, -q):
            low, high = np.searchsorted(first, centre + shift - SMALL), np.searchsorted(first, centre + shift + SMALL)
            for row in np.flatnonzero(high > low):
                for at in order[low[row] : high[row]]:
                    if is_small((every[at] + modulus - wanted[row]) % modulus, q) and (found := say(int(row), int(at))):
                        yield found

    for sign, tables in (("-", every), ("+", (modulus - every) % modulus)):
        yield from near(tables, lambda i, at, sign=sign: f"{told[at]} {sign} {told[i]}" if at > i else None)  # type: ignore[misc]
    pairs = np.array(list(itertools.combinations(range(singles), 2)), dtype=np.int64).reshape(-1, 2)
    for s, t in itertools.product((1, -1), repeat=2):
        x, y = (
            base[pairs[:, c]] if sign > 0 else (modulus - base[pairs[:, c]]) % modulus for c, sign in ((0, s), (1, t))
        )

        def say(row: int, at: int, s: int = s, t: int = t) -> str | None:
            i, j = pairs[row]
            return None if at in (i, j) else f"{told[at]} = {s:+d} {told[i]} {t:+d} {told[j]}"

        yield from near((x + y) % modulus, say)


def unmasked(published: Published) -> list[str]:
    """Refreshes in which L(h0) + 2^k h1 is small in some limb, where L(h0) has coefficients:
    that of a trace has none elsewhere.

    The mask cancels there, so it is L(s c1) - 2^k s a + small: nothing but ``a`` hides it.
    """
    found, scheme = [], published.scheme
    for family, elements in published.families.items():
        own = dict(elements)
        for item, how in published.maps.items():
            small = max(
                SMALL, 1 << how.shift + 8
            )  # errors, and what division by 2^k rounds away, are 2^k times as large here
            primes = [q for q in scheme.moduli[: how.request] if q > 8 * small]
            for q in primes if f"h0/{item}[0]" in own else ():
                i = scheme.moduli.index(q)
                mapped = how.linear(own[f"h0/{item}[0]"][i], q)
                factor = np.full(scheme.n, (1 << how.shift) % q, np.uint64)
                total = ring.add(mapped, ring.multiply(own[f"h1/{item}[0]"][i], factor, q), q)
                where = np.flatnonzero(coefficients(published, mapped, q))[:LOOK]
                if len(where) < LOOK or is_small(coefficients(published, total, q)[where], q, small):
                    found.append(f"{family}: L(h0) + 2^{how.shift} h1 of {item} is small modulo {q}")
    return found


def scan(
    published: Published,
    families: Iterable[str] | None = None,
    primes: Iterable[int] | None = None,
    products: bool = False,
) -> list[str]:
    """All small combinations, as sentences. ``products``: with every public ``a`` as well (slower)."""
    found = []
    for family in families or published.families:
        for q in primes or published.scheme.extended:
            names, base, labels, made = candidates(published, family, q, products)
            place = published.scheme.extended.index(q)
            singles = sum(len(limbs) > place for _, limbs in published.families[family])
            if singles:
                found += [
                    f"{family}: {text} (mod {q})" for text in small_combinations(names, base, labels, made, q, singles)
                ]
    return found
