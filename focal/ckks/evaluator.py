"""What can be computed on ciphertexts without a secret: one face, whoever does the arithmetic behind it.

::

    heads, custody, protocols --> scheme.evaluator: Evaluator <-- OpenFheEvaluator    calls of OpenFHE
                                                              <-- NativeEvaluator     the C kernels, where they are

Whoever recomputes a step must get the same limbs, so an implementation may differ from OpenFHE in speed and in nothing
else. Ciphertexts and plaintexts are opaque outside of focal/ckks; their polynomials are shown (:meth:`Evaluator.limbs`)
and taken (:meth:`Evaluator.load`).

A ciphertext has two polynomials of up to ``LIMBS`` limbs each and a *scale degree*: its slots stand in it times
scale^degree. Products add their factors' degrees; a rescaling takes one off, and one limb. Only what has the same limbs
and the same degree can be added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from focal.ckks.ring import Limb

Ciphertext = Any
"""Of the evaluator that made it."""
Plaintext = Any
"""Encoded slots, of the evaluator that made it."""

Slots = NDArray[np.complex128]
"""(S,) what a ciphertext holds: complex numbers."""
RealOrComplex = NDArray[np.float64] | Slots
"""(S,) what can be encoded."""

Each = Callable[..., Iterable[Any]]
"""``map``, or that of a pool of threads."""


class Evaluator(Protocol):
    """Deterministic, and may be called from several threads. Arguments stay as they are, unless it says otherwise."""

    # ----------------------------------------------------------------- polynomials and slots

    def load(self, polynomials: Sequence[Sequence[Limb]], degree: int = 1) -> Ciphertext:
        """(c0, c1), L limbs each, as a ciphertext of that scale degree, or a product's three polynomials.
        What others sent is checked first (codec)."""

    def zero(self, limbs: int) -> Ciphertext:
        """The ciphertext whose polynomials are zero, at scale degree 1."""

    def limbs(self, x: Ciphertext) -> list[list[Limb]]:
        """Its polynomials: ``[element][limb]``."""

    def count(self, x: Ciphertext) -> int:
        """How many limbs each of its polynomials has."""

    def degree(self, x: Ciphertext) -> int:
        """Its scale degree."""

    def encode(self, slots: Any, limbs: int | None = None) -> Plaintext:
        """Real or complex slots (S,) at scale degree 1 with ``limbs`` limbs, or all. Slots that are not given are 0.

        The transform is one of floating point. It is OpenFHE's everywhere: all must have the same bits.
        """

    def plain(self, polynomial: Sequence[Limb]) -> Plaintext:
        """A polynomial with L limbs as an encoded plaintext at scale degree 1, whoever encoded it."""

    def plain_limbs(self, plain: Plaintext) -> list[Limb]:
        """The polynomial of an encoded plaintext."""

    # ----------------------------------------------------------------- sums

    def add(self, x: Ciphertext, y: Ciphertext) -> Ciphertext:
        """x + y"""

    def subtract(self, x: Ciphertext, y: Ciphertext) -> Ciphertext:
        """x - y"""

    def add_plain(self, x: Ciphertext, plain: Plaintext) -> Ciphertext:
        """x + plain, both with the same limbs and scale degree."""

    def accumulate(self, onto: Ciphertext, x: Ciphertext) -> Ciphertext:
        """onto + x, for which the memory of ``onto`` may be used: it must not be looked at any more."""

    # ----------------------------------------------------------------- products

    def times(self, x: Ciphertext, factor: Plaintext | float) -> Ciphertext:
        """x times encoded slots with the same limbs, or a number, rounded to a multiple of 1 / scale. Not rescaled."""

    def times_integer(self, x: Ciphertext, factor: int) -> Ciphertext:
        """x times an integer: exact, its noise too; limbs and scale degree stay. The product must fit the limbs."""

    def products(
        self, xs: Sequence[Ciphertext], ys: Sequence[Ciphertext], onto: Ciphertext | None = None
    ) -> Ciphertext:
        """``onto`` + the sum of all x y, three polynomials: not relinearised and not rescaled.

        All have the same limbs; as many ys as xs, one at least. ``onto`` is treated as by :meth:`accumulate`.
        """

    def relinearise(self, x: Ciphertext) -> Ciphertext:
        """The same message in two polynomials; not rescaled."""

    def multiply(self, x: Ciphertext, y: Ciphertext) -> Ciphertext:
        """x y, relinearised and not rescaled; both have the same limbs."""

    def square(self, x: Ciphertext) -> Ciphertext:
        """x x, relinearised and not rescaled."""

    def rescale(self, x: Ciphertext) -> Ciphertext:
        """x divided by its last prime: one limb and one scale degree less."""

    def drop(self, x: Ciphertext, limbs: int) -> Ciphertext:
        """The first ``limbs`` limbs of x: the same message, which must fit them. x itself where it has no more."""

    # ----------------------------------------------------------------- rotations

    def rotate(self, x: Ciphertext, rotation: int) -> Ciphertext:
        """Slot i gets what slot i + ``rotation`` had, cyclic; for ``Scheme.conjugation``, its own complex conjugate.

        Its key must be installed.
        """

    def rotations(self, x: Ciphertext, rotations: Sequence[int], each: Each = map) -> list[Ciphertext]:
        """x rotated by each of ``rotations``, which share its digits:
        half the price (Halevi and Shoup 2018, section 5).

        ``each``: the map over them. It must not be one of the pool that the caller itself runs in.
        """

    # ----------------------------------------------------------------- keys

    def install_rotation(self, rotation: int, a: Sequence[Sequence[Limb]], b: Sequence[Sequence[Limb]]) -> None:
        """The key of one rotation under the scheme's tag: ``DIGITS`` polynomials a, and b, modulo QP.

        Only :func:`focal.custody.keys.install` calls it, with ``Scheme.process`` held.
        """

    def install_relinearisation(self, a: Sequence[Sequence[Limb]], b: Sequence[Sequence[Limb]]) -> None:
        """The relinearisation key, likewise; once under a tag."""
