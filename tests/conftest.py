"""What every test file may use. ``OMP_NUM_THREADS`` is set before anything imports OpenFHE or torch (openfhe-facts, section 6)."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from focal.ckks import ring  # noqa: E402
from focal.ckks.layout import Layout  # noqa: E402
from focal.ckks.rehearsal import Rehearsal  # noqa: E402


class Opened:
    """Exact decryption without smudging: what nobody in the protocol can do, because nobody holds all shares."""

    def __init__(self, run: Rehearsal) -> None:
        self.run, self.scheme = run, run.scheme
        self.q = self.scheme.moduli[0]
        self.secret = ring.total([self.scheme.limbs(s.key)[0] for s in run.secrets], self.scheme.moduli)[0]

    def coefficients(self, ciphertext: object) -> np.ndarray:
        """c0 + c1 s modulo q_0 as N signed integers: scale times the message, plus the noise."""
        c0, c1 = (element[0] for element in self.scheme.limbs(ciphertext))
        phase = ring.add(c0, ring.multiply(c1, self.secret, self.q), self.q)
        return ring.centred(ring.inverse_ntt(phase, self.q, self.scheme.roots[self.q]), self.q)

    def slots(self, ciphertext: object) -> np.ndarray:
        return ring.embed(self.coefficients(ciphertext) / self.scheme.scale).real


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
    folder = Path(os.environ.get("FOCAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder} (set FOCAL_DATA)")
    return folder
