"""The evaluator on the C kernels: OpenFHE's limbs, several times sooner.

A ciphertext is one array (elements, limbs, N) in OpenFHE's evaluation order, with its scale degree. OpenFHE itself only
encodes (everybody must have the same bits of a floating-point transform). A key switch is put together from its pieces
(:mod:`focal.ckks.native.polynomials`): rotations of one ciphertext share its digits, and products are summed before
they are reduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from focal.ckks import ring
from focal.ckks.evaluator import Each, RealOrComplex
from focal.ckks.native import Library, Words
from focal.ckks.native.polynomials import Polynomials
from focal.ckks.openfhe_evaluator import OpenFheEvaluator
from focal.ckks.ring import Limb

if TYPE_CHECKING:
    from focal.ckks.scheme import Scheme


@dataclass(frozen=True)
class Ciphertext:
    """Polynomials (2 or 3, limbs, N), or one (1, limbs, N) of an encoded plaintext; its slots stand at scale^degree."""

    words: Words
    degree: int = 1

    @property
    def limbs(self) -> int:
        return int(self.words.shape[1])


@dataclass(frozen=True)
class Key:
    """Both halves of a switching key, each (digits, all primes, N)."""

    a: Words
    b: Words


@lru_cache(maxsize=256)
def _places(n: int, k: int) -> Words:
    """Where X -> X^k takes each value from."""
    return ring.automorphism(n, k).astype(np.uint32)


class NativeEvaluator:
    """:class:`~focal.ckks.evaluator.Evaluator` on ``library``. ValueError when it does not take the scheme's primes."""

    keys: ClassVar[dict[str, dict[int | None, Key]]] = {}
    """Tag -> rotation, or ``None`` for relinearisation -> key. Of the process, like OpenFHE's; ``Scheme`` clears it."""

    def __init__(self, scheme: Scheme, library: Library) -> None:
        self.scheme, most, primes = scheme, len(scheme.moduli), scheme.extended
        roots = [scheme.roots[q] for q in primes]
        self.ring = Polynomials(library, primes[:most], primes[most:], roots, scheme.n, scheme.digit)
        self.most = most

    @cached_property
    def _openfhe(self) -> OpenFheEvaluator:
        return OpenFheEvaluator(self.scheme)

    # ----------------------------------------------------------------- polynomials and slots

    def load(self, polynomials: Sequence[Sequence[Limb]], degree: int = 1) -> Ciphertext:
        words = self.ring.library.empty(len(polynomials), len(polynomials[0]), self.scheme.n)
        for place, element in zip(words, polynomials, strict=True):
            for row, limb in zip(place, element, strict=True):
                row[:] = limb
        return Ciphertext(words, degree)

    def zero(self, limbs: int) -> Ciphertext:
        return self.load([self.scheme.zero(limbs)] * 2)

    def limbs(self, x: Ciphertext) -> list[list[Limb]]:
        return [list(element) for element in x.words]

    def count(self, x: Ciphertext) -> int:
        return x.limbs

    def degree(self, x: Ciphertext) -> int:
        return x.degree

    def encode(self, slots: RealOrComplex, limbs: int | None = None) -> Ciphertext:
        wanted, largest = self.most if limbs is None else limbs, np.abs(slots).max(initial=0.0)
        # a coefficient is a mean of slots times 2^45: where it fits q_0, OpenFHE's first limb is enough to know it
        asked = 1 if largest * self.scheme.scale < self.scheme.moduli[0] / 4 else wanted
        polynomial = self._openfhe.plain_limbs(self._openfhe.encode(slots, asked))
        if asked == wanted:
            return self.load([polynomial])
        return Ciphertext(self.ring.lift(np.ascontiguousarray(polynomial[0]), wanted)[None])

    def plain(self, polynomial: Sequence[Limb]) -> Ciphertext:
        return self.load([polynomial])

    def plain_limbs(self, plain: Ciphertext) -> list[Limb]:
        return list(plain.words[0])

    # ----------------------------------------------------------------- sums

    def add(self, x: Ciphertext, y: Ciphertext) -> Ciphertext:
        self._same(x, y)
        return Ciphertext(self.ring.add(x.words, y.words), x.degree)

    def subtract(self, x: Ciphertext, y: Ciphertext) -> Ciphertext:
        self._same(x, y)
        return Ciphertext(self.ring.subtract(x.words, y.words), x.degree)

    def add_plain(self, x: Ciphertext, plain: Ciphertext) -> Ciphertext:
        self._same(x, plain)
        total = x.words.copy()
        self.ring.add(total[:1], plain.words, out=total[:1])
        return Ciphertext(total, x.degree)

    def accumulate(self, onto: Ciphertext, x: Ciphertext) -> Ciphertext:
        self._same(onto, x)
        self.ring.add(onto.words, x.words, out=onto.words)
        return onto

    # ----------------------------------------------------------------- products

    def times(self, x: Ciphertext, factor: Ciphertext | float) -> Ciphertext:
        if isinstance(factor, Ciphertext):
            if factor.limbs != x.limbs:
                raise ValueError(f"a plaintext with {factor.limbs} limbs for a ciphertext with {x.limbs}")
            return Ciphertext(self.ring.multiply(x.words, factor.words[0]), x.degree + factor.degree)
        # OpenFHE adds a half and cuts off what stands behind the point: negative numbers are rounded towards zero
        return Ciphertext(self.ring.scale(x.words, int(float(factor) * self.scheme.scale + 0.5)), x.degree + 1)

    def times_integer(self, x: Ciphertext, factor: int) -> Ciphertext:
        return Ciphertext(self.ring.scale(x.words, factor), x.degree)

    def products(
        self,
        xs: Sequence[Ciphertext],
        ys: Sequence[Ciphertext],
        onto: Ciphertext | None = None,
    ) -> Ciphertext:
        limbs, degree = xs[0].limbs, xs[0].degree + ys[0].degree
        whole = [] if onto is None else [onto]
        if {x.limbs for x in (*xs, *ys, *whole)} != {limbs} or any(t.degree != degree for t in whole):
            raise ValueError("products of ciphertexts with different limbs or degrees")
        total = self.ring.products([x.words for x in xs], [y.words for y in ys], limbs, *(t.words for t in whole))
        return Ciphertext(total, degree)

    def relinearise(self, x: Ciphertext) -> Ciphertext:
        key = self._key(None)
        down = self.ring.mod_down(self.ring.switch(x.words[2], key.b, key.a))
        return Ciphertext(self.ring.add(down, x.words[:2], out=down), x.degree)

    def multiply(self, x: Ciphertext, y: Ciphertext) -> Ciphertext:
        return self.relinearise(self.products([x], [y]))

    def square(self, x: Ciphertext) -> Ciphertext:
        return self.multiply(x, x)

    def rescale(self, x: Ciphertext) -> Ciphertext:
        return Ciphertext(self.ring.rescale(x.words), x.degree - 1)

    def drop(self, x: Ciphertext, limbs: int) -> Ciphertext:
        return x if limbs == x.limbs else self.load([list(element[:limbs]) for element in x.words], x.degree)

    # ----------------------------------------------------------------- rotations

    def rotate(self, x: Ciphertext, rotation: int) -> Ciphertext:
        key = self._key(rotation)
        return self._turned(x, self.ring.switch(x.words[1], key.b, key.a), rotation)

    def rotations(self, x: Ciphertext, rotations: Sequence[int], each: Each = map) -> list[Ciphertext]:
        if not rotations:
            return []
        digits, keys = self.ring.mod_up(x.words[1]), {r: self._key(r) for r in rotations}
        return list(each(lambda r: self._turned(x, self.ring.inner(digits, keys[r].b, keys[r].a), r), rotations))

    def _turned(self, x: Ciphertext, switched: Words, rotation: int) -> Ciphertext:
        """In OpenFHE's order: its key is for the secret turned back, so what was switched is turned, then divided."""
        places = _places(self.scheme.n, self.scheme.automorphism(rotation))
        down = self.ring.mod_down(self.ring.permute(switched, places))
        self.ring.add(down[:1], self.ring.permute(x.words[:1], places), out=down[:1])
        return Ciphertext(down, x.degree)

    # ----------------------------------------------------------------- keys

    def install_rotation(self, rotation: int, a: Sequence[Sequence[Limb]], b: Sequence[Sequence[Limb]]) -> None:
        self._install(rotation, a, b)

    def install_relinearisation(self, a: Sequence[Sequence[Limb]], b: Sequence[Sequence[Limb]]) -> None:
        self._install(None, a, b)

    def _install(self, which: int | None, a: Sequence[Sequence[Limb]], b: Sequence[Sequence[Limb]]) -> None:
        halves = (np.array(half, np.uint64) for half in (a, b))
        self.keys.setdefault(self.scheme.tag, {})[which] = Key(*halves)

    def _key(self, which: int | None) -> Key:
        key = self.keys.get(self.scheme.tag, {}).get(which)
        if key is None:
            name = "relinearisation" if which is None else f"rotation {which}"
            raise RuntimeError(f"no key for {name} is installed under the tag {self.scheme.tag}")
        return key

    @staticmethod
    def _same(x: Ciphertext, y: Ciphertext) -> None:
        if (x.limbs, x.degree) != (y.limbs, y.degree):
            raise ValueError(f"{x.limbs} limbs at scale degree {x.degree} and {y.limbs} at {y.degree} cannot be added")
