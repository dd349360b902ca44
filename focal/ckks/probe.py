"""One of everything that must give the same limbs on every machine, in a digest.

Integer arithmetic is the same everywhere. Encoding goes through a floating-point transform, and a machine may lack the
native kernels, have another variant of them, or another OpenFHE.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np

from focal import framing
from focal.ckks import codec, ring
from focal.ckks.scheme import DIGITS, Scheme
from focal.config import CkksConfig

TAG = hashlib.sha256(b"focal/probe").hexdigest()
"""Evaluation keys of the probe are under it: random limbs, keys of nothing."""


@functools.lru_cache(maxsize=1)  # OpenFHE takes a relinearisation key once
def limbs_digest(params: CkksConfig) -> str:
    """SHA-256 (hex) over a product, relinearised and rescaled, a rotation, and a product with an encoded plaintext."""
    scheme = Scheme(params, TAG)
    ev = scheme.evaluator

    def drawn(label: str, polynomials: int, primes: tuple[int, ...]) -> list[list[ring.Limb]]:
        return [ring.expand(f"focal/probe/{label}/{i}".encode(), primes, scheme.n) for i in range(polynomials)]

    halves = [drawn(half, DIGITS, scheme.extended) for half in ("a", "b")]
    with Scheme.process:
        ev.install_rotation(1, *halves)
        ev.install_relinearisation(*halves)
    x, y = (ev.load(drawn(name, 2, scheme.moduli[:4])) for name in ("x", "y"))
    plain = ev.encode(np.arange(scheme.slots) % 7 / 7, 4)
    made = [ev.rescale(ev.relinearise(ev.products([x], [y]))), ev.rotate(x, 1), ev.times(x, plain)]
    found = framing.Digest(b"focal/probe/v1", scheme.hash)
    for ct in made:
        found.add(codec.pack(scheme, codec.ciphertext(ev.count(ct)), ev.limbs(ct)))
    scheme.forget()
    return found.hexdigest()
