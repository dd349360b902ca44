"""What every test file may use.

Threads are limited before anything imports OpenFHE, torch or numpy (docs/openfhe.md, section 1): the workers
and the processes that they start have all processors busy, and two threads that spin for one product beside
them take ten times as long as one. From whatever starts the tests they take nothing over: a ``make`` would show in what
the ``make`` of a test prints, and a shell's background job ignores Ctrl-C, as every process that a test interrupts then
would.
"""

from __future__ import annotations

import os
import signal

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
for made in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(made, None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import shutil  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import shared  # noqa: E402
from places import DATA  # noqa: E402

from focal.ckks import integers, ring  # noqa: E402
from focal.heads.linear.layout import Layout  # noqa: E402
from focal.heads.linear.rehearsal import Rehearsal  # noqa: E402

SLOW, UNIT = (Path(__file__).parent / name for name in ("slow", "unit"))
FIRST = ("test_network.py", "test_lost_custodians.py", "test_wheel.py", "test_split.py", "test_features.py")
"""Files that take longest: one that begins last keeps its worker busy for minutes after the other has nothing left."""


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # workers inherit the folder
        shared.begin()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(shared.session_folder(), ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What lies in ``slow/`` is slow. Whole runs come first, so that two workers (``--dist loadfile``) end at about
    the same time; before them what takes longest, and first of all what waits for stalled links: the other worker has
    the processors meanwhile."""
    for item in items:
        if SLOW in item.path.parents:
            item.add_marker(pytest.mark.slow)
    last = len(FIRST)
    order = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: (order.get(item.path.name, last), UNIT in item.path.parents))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What compares with plain training asks torch for all processors,
    and would leave it so for every test after it."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads = lambda count: None  # type: ignore[attr-defined]


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


@pytest.fixture(scope="session")
def small() -> Layout:
    """One block, one class group, 16 features, 8 outputs."""
    return Layout(8192, 16, 8, 300, 8, 1, 4)


@pytest.fixture(scope="session")
def rehearsal(small: Layout) -> Rehearsal:
    """Three custodians with joint keys. Its evaluation keys live until somebody's ``Scheme.close``."""
    return Rehearsal(small, custodians=3, run="tests")


@pytest.fixture(scope="session")
def opened(rehearsal: Rehearsal) -> Opened:
    return Opened(rehearsal)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real data sets; the test is skipped where there is none."""
    if not DATA.is_dir():
        pytest.skip(f"no real data in {DATA} (set FOCAL_DATA)")
    return DATA
