"""What a ciphertext holds, noise and all, with everybody's share of the key; and how much of that is noise."""

from __future__ import annotations

import numpy as np

from focal.ckks import integers, ring
from focal.heads.linear.rehearsal import Rehearsal


class Opened:
    """Exact decryption without smudging: what nobody in the protocol can do, because nobody holds all shares."""

    def __init__(self, run: Rehearsal) -> None:
        self.run, self.scheme = run, run.scheme
        self.q = self.scheme.moduli[0]
        self.whole = ring.total([s.limbs for s in run.secrets], self.scheme.extended)

    @property
    def secret(self) -> ring.Limb:
        """The joint secret modulo q_0."""
        return self.whole[0]

    def coefficients(self, ciphertext: object) -> np.ndarray:
        """c0 + c1 s modulo q_0 as N signed integers: scale times the message, plus the noise."""
        c0, c1 = (element[0] for element in self.scheme.evaluator.limbs(ciphertext))
        phase = ring.add(c0, ring.multiply(c1, self.secret, self.q), self.q)
        return ring.centred(ring.inverse_ntt(phase, self.q, self.scheme.roots[self.q]), self.q)

    @property
    def fresh_error(self) -> float:
        """Bound on a slot of an input's noise: 3.19 a coefficient and custodian, 1/12 for the encoding's rounding;
        eight deviations."""
        m, n = len(self.run.secrets), self.scheme.n
        return 8 * (3.19**2 * m + 1 / 12) ** 0.5 * (n / 2) ** 0.5 / self.scheme.scale

    @property
    def public_error(self) -> float:
        """Bound on a slot of the noise v e + e_0 + e_1 s of an encryption under a joint public key.

        Per coefficient 3.19 sqrt(1 + N (m + m) 2/3) with m shares (v is ternary, e and s are sums of m). In
        a slot that is a sum of products of two Gaussians, whose tail is exp(-2 t): twelve standard
        deviations, 10^-6 over all slots.
        """
        m, n = len(self.run.secrets), self.scheme.n
        return 12 * 3.19 * (1 + n * 2 * m * 2 / 3) ** 0.5 * (n / 2) ** 0.5 / self.scheme.scale

    @property
    def switching_bias(self) -> float:
        """Bound on what one key switch adds to the slots nearest 1, zeta and its neighbours.

        Division by P is one too low, on average, on every coefficient of c1 (docs/openfhe.md, section 5). At zeta =
        exp(i pi / N) these add up to 2 N / pi, times s(zeta), a complex Gaussian of variance 2 N m / 3. One key in 10^7
        passes four deviations.
        """
        m, n = len(self.run.secrets), self.scheme.n
        return 2 * n / np.pi * 4 * (2 * n * m / 3) ** 0.5 / self.scheme.scale

    def slots(self, ciphertext: object) -> np.ndarray:
        return self.complex_slots(ciphertext).real

    def complex_slots(self, ciphertext: object) -> np.ndarray:
        """By all of its limbs: a message need not fit the first."""
        c0, c1 = self.scheme.evaluator.limbs(ciphertext)
        primes, phase = self.scheme.moduli[: len(c0)], []
        for x, y, s, q in zip(c0, c1, self.whole, primes, strict=False):
            phase.append(ring.inverse_ntt(ring.add(x, ring.multiply(y, s, q), q), q, self.scheme.roots[q]))
        return ring.embed(integers.Centred(phase, primes).rounded / self.scheme.scale)
