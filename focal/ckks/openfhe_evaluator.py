"""The evaluator that calls OpenFHE: what every other one must equal, limb for limb."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from focal.ckks import ring
from focal.ckks.evaluator import Ciphertext, Each, Plaintext
from focal.ckks.ring import Limb

if TYPE_CHECKING:
    from focal.ckks.scheme import Scheme


class OpenFheEvaluator:
    """:class:`~focal.ckks.evaluator.Evaluator` by the context of ``scheme``, on OpenFHE's own objects."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme, self.cc, self.most = scheme, scheme.cc, len(scheme.moduli)
        self._zeros: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()

    # ----------------------------------------------------------------- polynomials and slots

    def load(self, polynomials: Sequence[Sequence[Limb]], degree: int = 1) -> Ciphertext:
        """Built from bytes and added to an exact zero of this process: the same limbs.

        Polynomials from bytes bring their parameters along instead of sharing the context's, and OpenFHE makes new ones
        in each operation that drops or multiplies limbs: 6 ms instead of 0.1 to drop one limb, 9 instead of 1.5 for a
        product with a plaintext.
        """
        nothing = self._nothing(len(polynomials[0]), len(polynomials))
        ct = self.cc.EvalAdd(nothing, self.scheme.ciphertext(polynomials))
        if degree != self.degree(ct):
            ct.SetNoiseScaleDeg(degree)
            ct.SetScalingFactor(self.scheme.scale**degree)
        return ct

    def _nothing(self, limbs: int, polynomials: int = 2) -> Ciphertext:
        """The all-zero ciphertext, always the same object."""
        with self._lock:
            if (limbs, polynomials) not in self._zeros:
                fresh = self.scheme.throwaway(limbs, polynomials)
                self._zeros[limbs, polynomials] = self.cc.EvalSub(fresh, fresh)
            return self._zeros[limbs, polynomials]

    def zero(self, limbs: int) -> Ciphertext:
        return self.load([self.scheme.zero(limbs)] * 2)

    def limbs(self, x: Ciphertext) -> list[list[Limb]]:
        return self.scheme.limbs(x)

    def count(self, x: Ciphertext) -> int:
        return self.most - int(x.GetLevel())

    def degree(self, x: Ciphertext) -> int:
        return int(x.GetNoiseScaleDeg())

    def encode(self, slots: Any, limbs: int | None = None) -> Plaintext:
        return self.scheme.encode(slots, self.most if limbs is None else limbs)

    def plain(self, polynomial: Sequence[Limb]) -> Plaintext:
        return tuple(polynomial)  # the bindings make no plaintext of a polynomial: times knows what to do with one

    def plain_limbs(self, plain: Plaintext) -> list[Limb]:
        if isinstance(plain, tuple):
            return list(plain)
        # the bindings show a plaintext's polynomial only inside a ciphertext
        return self.limbs(self.cc.EvalAdd(self._nothing(self.most - plain.GetLevel()), plain))[0]

    # ----------------------------------------------------------------- sums

    def add(self, x: Ciphertext, y: Ciphertext) -> Ciphertext:
        return self.cc.EvalAdd(x, y)

    def subtract(self, x: Ciphertext, y: Ciphertext) -> Ciphertext:
        return self.cc.EvalSub(x, y)

    def add_plain(self, x: Ciphertext, plain: Plaintext) -> Ciphertext:
        return self.cc.EvalAdd(x, plain)

    def accumulate(self, onto: Ciphertext, x: Ciphertext) -> Ciphertext:
        self.cc.EvalAddInPlace(onto, x)
        return onto

    # ----------------------------------------------------------------- products

    def times(self, x: Ciphertext, factor: Plaintext | float) -> Ciphertext:
        if isinstance(factor, tuple):
            return self._each(x, factor, self.degree(x) + 1)
        return self.cc.EvalMult(x, factor)

    def times_integer(self, x: Ciphertext, factor: int) -> Ciphertext:
        primes = self.scheme.moduli[: self.count(x)]
        return self._each(x, [np.full(self.scheme.n, factor % q, np.uint64) for q in primes], self.degree(x))

    def _each(self, x: Ciphertext, polynomial: Sequence[Limb], degree: int) -> Ciphertext:
        """Every polynomial of x times this one."""
        rows = [
            [ring.multiply(limb, p, q) for limb, p, q in zip(e, polynomial, self.scheme.moduli, strict=False)]
            for e in self.limbs(x)
        ]
        return self.load(rows, degree)

    def products(
        self, xs: Sequence[Ciphertext], ys: Sequence[Ciphertext], onto: Ciphertext | None = None
    ) -> Ciphertext:
        for x, y in zip(xs, ys, strict=True):
            product = self.cc.EvalMultNoRelin(x, y)
            onto = product if onto is None else self.accumulate(onto, product)
        return onto

    def relinearise(self, x: Ciphertext) -> Ciphertext:
        return self.cc.Relinearize(x)

    def multiply(self, x: Ciphertext, y: Ciphertext) -> Ciphertext:
        return self.cc.EvalMult(x, y)

    def square(self, x: Ciphertext) -> Ciphertext:
        return self.cc.EvalSquare(x)

    def rescale(self, x: Ciphertext) -> Ciphertext:
        return self.cc.Rescale(x)

    def drop(self, x: Ciphertext, limbs: int) -> Ciphertext:
        more = self.count(x) - limbs
        return self.cc.LevelReduce(x, None, more) if more else x

    # ----------------------------------------------------------------- rotations

    def rotate(self, x: Ciphertext, rotation: int) -> Ciphertext:
        return self.cc.EvalRotate(x, rotation)

    def rotations(self, x: Ciphertext, rotations: Sequence[int], each: Each = map) -> list[Ciphertext]:
        if not rotations:
            return []
        digits, order = self.cc.EvalFastRotationPrecompute(x), 2 * self.scheme.n
        return list(each(lambda r: self.cc.EvalFastRotation(x, r, order, digits), rotations))

    # ----------------------------------------------------------------- keys

    def install_rotation(self, rotation: int, a: Sequence[Sequence[Limb]], b: Sequence[Sequence[Limb]]) -> None:
        self.cc.InsertEvalAutomorphismKey(self.scheme.rotation_key(rotation, a, b), self.scheme.tag)

    def install_relinearisation(self, a: Sequence[Sequence[Limb]], b: Sequence[Sequence[Limb]]) -> None:
        self.cc.InsertEvalMultKey([self.scheme.switching_key(a, b)], self.scheme.tag)
