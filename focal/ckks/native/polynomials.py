"""Arithmetic of one scheme's polynomials on the C kernels: arrays (..., limbs, N) in OpenFHE's evaluation order.

Hybrid key switching (Han and Ki 2020) comes in pieces, so that several switches share one or sum before another::

    x (L, N) --mod_up--> digits (d, L + K, N) --inner with a key--> (2, L + K, N) --mod_down--> (2, L, N)

K primes make P. :meth:`Polynomials.mod_down` leaves out the rounding as OpenFHE does: its limbs are OpenFHE's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from focal.ckks.native import Library, Words


class Polynomials:
    """The primes ``moduli`` of Q and ``special`` of P with their ``roots``, ring ``n``, ``digit`` limbs to a digit.

    Raises ValueError for primes that the kernels do not take (native.h). Arrays in are contiguous; arrays out are new,
    or ``out``.
    """

    def __init__(
        self,
        library: Library,
        moduli: Sequence[int],
        special: Sequence[int],
        roots: Sequence[int],
        n: int,
        digit: int,
    ) -> None:
        self.library, self.n, self.digit = library, n, digit
        self.moduli, self.special = tuple(moduli), tuple(special)
        self._primes = [library.prime(q, root, n) for q, root in zip((*moduli, *special), roots, strict=True)]
        if None in self._primes:
            raise ValueError(f"the native kernels do not take these primes: {(*moduli, *special)}, ring {n}")
        primes = library.ffi.new("focal_prime *[]", self._primes)
        made = library.c.focal_ring_new(primes, len(self.moduli), len(self.special), digit)
        if made == library.ffi.NULL:
            raise MemoryError
        self._ring = library.ffi.gc(made, library.c.focal_ring_free)
        self._scratch = library.c.focal_scratch(self._ring)

    def _each(self, function: Any, x: Words, *others: Words, out: Words | None = None) -> Words:
        """``function`` of each element of ``x`` with the same one of ``others``; one without elements goes with all."""
        result = self.library.empty(*x.shape) if out is None else out
        limbs, words = x.shape[-2], self.library.words
        for i, place in enumerate(result.reshape(-1, limbs, self.n)):
            parts = [words(a if a.ndim == 2 else a.reshape(-1, limbs, self.n)[i]) for a in (x, *others)]
            function(self._ring, limbs, *parts, words(place))
        return result

    def add(self, x: Words, y: Words, out: Words | None = None) -> Words:
        """x + y."""
        return self._each(self.library.c.focal_ring_add, x, y, out=out)

    def subtract(self, x: Words, y: Words, out: Words | None = None) -> Words:
        """x - y."""
        return self._each(self.library.c.focal_ring_subtract, x, y, out=out)

    def multiply(self, x: Words, y: Words, out: Words | None = None) -> Words:
        """x y; a y of one polynomial (L, N) is every element's factor."""
        return self._each(self.library.c.focal_ring_multiply, x, y, out=out)

    def scale(self, x: Words, factor: int, out: Words | None = None) -> Words:
        """x times an integer."""
        limbs, words = x.shape[-2], self.library.words
        factors = words(np.array([factor % q for q in self.moduli[:limbs]], np.uint64))
        result = self.library.empty(*x.shape) if out is None else out
        for element, place in zip(x.reshape(-1, limbs, self.n), result.reshape(-1, limbs, self.n), strict=True):
            self.library.c.focal_ring_scale(self._ring, limbs, words(element), factors, words(place))
        return result

    def permute(self, x: Words, places: Words) -> Words:
        """x[..., places]: an automorphism by the table of :func:`focal.ckks.ring.automorphism`, as uint32."""
        if places.dtype != np.uint32 or places.shape != (self.n,) or int(places.max()) >= self.n:
            raise ValueError("a permutation is N places as uint32")
        out = self.library.empty(*x.shape)
        table = self.library.ffi.from_buffer("uint32_t[]", places)
        self.library.c.focal_permute(self.n, x.size // self.n, self.library.words(x), table, self.library.words(out))
        return out

    def products(self, xs: Sequence[Words], ys: Sequence[Words], limbs: int, onto: Words | None = None) -> Words:
        """(3, limbs, N): the sum of products of ciphertexts (2, L, N), not relinearised, on ``onto``, which is changed.

        Every x has one number of limbs, every y has one, and at least ``limbs``; the first ``limbs`` are used.
        """
        shapes = {x.shape for x in xs}, {y.shape for y in ys}
        if len(xs) != len(ys) or any(len(s) > 1 or (2, limbs, self.n) > min(s) for s in shapes if xs):
            raise ValueError(f"products of {shapes[0]} and {shapes[1]} with {limbs} limbs")
        total = self.library.empty(3, limbs, self.n) if onto is None else onto
        (x, _x), (y, _y) = self.library.rows(xs), self.library.rows(ys)
        x_limbs, y_limbs = (s[0].shape[1] if s else limbs for s in (xs, ys))
        onto_it, words = onto is not None, self.library.words(total)
        self.library.c.focal_products(self._ring, limbs, len(xs), x, x_limbs, y, y_limbs, onto_it, words)
        return total

    def rescale(self, x: Words) -> Words:
        """Without the last limb, divided by its prime and rounded."""
        limbs = x.shape[-2]
        out = self.library.empty(*x.shape[:-2], limbs - 1, self.n)
        self._divide(self.library.c.focal_rescale, limbs, x, out)
        return out

    def lift(self, limb: Words, limbs: int) -> Words:
        """(limbs, N) of the polynomial whose limb modulo q_0 is given; its coefficients are smaller than q_0 / 2."""
        words, scratch, out = self.library.words, self.library.empty(self._scratch), self.library.empty(limbs, self.n)
        self.library.c.focal_lift(self._ring, limbs, words(limb), words(scratch), words(out))
        return out

    def mod_up(self, x: Words) -> Words:
        """The digits of a polynomial (L, N), each modulo all L + K primes."""
        limbs = len(x)
        out = self.library.empty(self.library.c.focal_digits(self._ring, limbs), limbs + len(self.special), self.n)
        words, scratch = self.library.words, self.library.empty(self._scratch)
        self.library.c.focal_mod_up(self._ring, limbs, words(x), words(scratch), words(out))
        return out

    def inner(self, digits: Words, b: Words, a: Words) -> Words:
        """(2, L + K, N): the sum of digits times a key's halves ``b`` and ``a``, each (all digits, all primes, N)."""
        limbs, words = digits.shape[1] - len(self.special), self.library.words
        self._check(a, b)
        out = self.library.empty(2, *digits.shape[1:])
        self.library.c.focal_inner(self._ring, limbs, words(digits), words(b), words(a), words(out))
        return out

    def switch(self, x: Words, b: Words, a: Words) -> Words:
        """:meth:`inner` of :meth:`mod_up` of a polynomial (L, N), in one go."""
        limbs, words, scratch = len(x), self.library.words, self.library.empty(self._scratch)
        self._check(a, b)
        out = self.library.empty(2, limbs + len(self.special), self.n)
        self.library.c.focal_switch(self._ring, limbs, words(x), words(b), words(a), words(scratch), words(out))
        return out

    def _check(self, a: Words, b: Words) -> None:
        full = (self.library.c.focal_digits(self._ring, len(self.moduli)), len(self.moduli) + len(self.special), self.n)
        if a.shape != full or b.shape != full:
            raise ValueError(f"a key's halves are {full}, not {b.shape} and {a.shape}")

    def mod_down(self, x: Words) -> Words:
        """(elements, L + K, N) divided by P."""
        limbs = x.shape[-2] - len(self.special)
        out = self.library.empty(*x.shape[:-2], limbs, self.n)
        self._divide(self.library.c.focal_mod_down, limbs, x, out)
        return out

    def _divide(self, function: Any, limbs: int, x: Words, out: Words) -> None:
        words, scratch = self.library.words, self.library.empty(self._scratch)
        most = self.library.c.FOCAL_ELEMENTS
        elements, places = x.reshape(-1, *x.shape[-2:]), out.reshape(-1, *out.shape[-2:])
        for i in range(0, len(elements), most):
            some, place = elements[i : i + most], places[i : i + most]
            function(self._ring, len(some), limbs, words(some), words(scratch), words(place))
