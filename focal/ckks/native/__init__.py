"""C kernels on limbs, where they are installed: numpy's (:mod:`focal.ckks.ring`) and OpenFHE's residues, sooner.

``library`` is what this process uses, or ``None``. The C sources lie beside this file and are compiled at installation
(build.py), if there is a compiler. ``FOCAL_NATIVE`` decides otherwise: ``0`` uses none, ``portable``, ``avx2`` or
``ifma`` that variant instead of the best one that the processor has. docs/native.md explains the kernels.
"""

from __future__ import annotations

import importlib
import math
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal.ckks.native import build

VARIANTS = ("portable", "avx2", "ifma")
"""What kernels are made of, slowest first: C, AVX2 with FMA, AVX-512 with IFMA."""

Words = NDArray[np.uint64]


class Memory:
    """Arrays whose memory is used again: fresh pages, which the system zeroes, cost as much as a transform."""

    MOST = 1 << 26
    """Bytes that are kept for later; what is more goes back to the system."""

    def __init__(self, module: Any) -> None:
        self.ffi, self.c = module.ffi, module.lib
        self._kept: dict[int, list[Any]] = {}
        self._bytes = 0
        self._lock = threading.RLock()  # the garbage collector may give an array back while this thread takes one

    def empty(self, *shape: int) -> Words:
        """An array of any content. Its memory comes back when nobody has it any more."""
        count = math.prod(shape)
        with self._lock:
            kept = self._kept.get(count)
            block = kept.pop() if kept else None
            self._bytes -= 8 * count if block else 0
        if block is None:
            block = self.c.focal_words_new(count)
            if block == self.ffi.NULL:
                raise MemoryError
        owner = self.ffi.gc(block, lambda words: self._back(words, count))
        return np.frombuffer(self.ffi.buffer(owner, 8 * count), np.uint64).reshape(shape)

    def _back(self, block: Any, count: int) -> None:
        with self._lock:
            if keep := self._bytes + 8 * count <= self.MOST:
                self._kept.setdefault(count, []).append(block)
                self._bytes += 8 * count
        if not keep:
            self.c.focal_words_free(block)

    def __del__(self) -> None:
        for blocks in self._kept.values():
            for block in blocks:
                self.c.focal_words_free(block)


class Library:
    """A compiled module's kernels of one variant. Arrays are contiguous. Calls run without the GIL, from any thread."""

    def __init__(self, module: Any, variant: str) -> None:
        self.ffi, self.c, self.variant = module.ffi, module.lib, variant
        self.empty = Memory(module).empty
        self._code = VARIANTS.index(variant)
        self._primes: dict[tuple[int, int, int], Any] = {}
        self._lock = threading.Lock()

    @classmethod
    def variants(cls, module: Any) -> list[str]:
        """What this processor runs, best last."""
        mask = module.lib.focal_variants()
        return [name for i, name in enumerate(VARIANTS) if mask >> i & 1]

    def words(self, array: Words) -> Any:
        """A contiguous array as C sees it. What was read out of the middle of some bytes may lie between words:
        of it, a copy."""
        return self.ffi.from_buffer("uint64_t[]", array if array.flags.aligned else array.copy())

    def rows(self, arrays: Sequence[Words]) -> tuple[Any, Any]:
        """Several arrays as pointers to each, and what keeps them alive."""
        kept = [self.words(a) for a in arrays]
        return self.ffi.new("uint64_t *[]", kept), kept

    # ----------------------------------------------------------------- modulo any q < 2^61

    def add(self, x: Words, y: Words, q: int) -> Words:
        """(x + y) mod q."""
        out = self.empty(*x.shape)
        self.c.focal_add(self._code, self.words(x), self.words(y), q, x.size, self.words(out))
        return out

    def subtract(self, x: Words, y: Words, q: int) -> Words:
        """(x - y) mod q."""
        out = self.empty(*x.shape)
        self.c.focal_subtract(self._code, self.words(x), self.words(y), q, x.size, self.words(out))
        return out

    def multiply(self, x: Words, y: Words, q: int) -> Words:
        """(x y) mod q."""
        out = self.empty(*x.shape)
        self.c.focal_multiply(self._code, self.words(x), self.words(y), q, x.size, self.words(out))
        return out

    def residues(self, words: Sequence[Words], bits: int, offset: int, q: int) -> Words:
        """(sum of words[i] 2^(bits i) + offset) mod q."""
        out = self.empty(len(words[0]))
        rows, _kept = self.rows(words)
        self.c.focal_residues(rows, len(words), bits, offset % q, q, out.size, self.words(out))
        return out

    # ----------------------------------------------------------------- bytes

    def pack(self, limb: Words, width: int) -> bytearray:
        """The ``width`` low bytes of each residue."""
        out = bytearray(limb.size * width)
        self.c.focal_pack(self.words(limb), limb.size, width, self.ffi.from_buffer("uint8_t[]", out))
        return out

    def unpack(self, data: bytes, offset: int, n: int, width: int, q: int) -> Words | None:
        """``n`` residues from ``data``; ``None`` when one is not below q. ValueError when ``data`` ends before."""
        if offset < 0 or len(data) < offset + n * width:
            raise ValueError(f"{len(data)} bytes do not hold {n} residues of {width} bytes at {offset}")
        out = self.empty(n)
        fine = self.c.focal_unpack(self.ffi.from_buffer("uint8_t[]", data) + offset, n, width, q, self.words(out))
        return out if fine else None

    # ----------------------------------------------------------------- sums with signs

    def signed_sums(self, bits: bytes, lanes: NDArray[np.int64]) -> NDArray[np.int64]:
        """(256, 4): 256 sums of all ``n`` integers of four words each, ``lanes`` (n, 4),
        word by word, with public signs.

        The j-th sum has a minus before integer i where bit i mod 8 of ``bits[256 (i / 8) + j]`` is 0.
        ValueError when there are too few bits, or n is no multiple of 16.
        """
        n, rows, width = len(lanes), self.c.FOCAL_ROWS, self.c.FOCAL_LANES
        if lanes.shape != (n, width) or lanes.dtype != np.int64 or n % 16 or 8 * len(bits) < rows * n:
            raise ValueError(f"{8 * len(bits)} bits are no signs for integers {lanes.shape} of {lanes.dtype}")
        sums = np.empty((rows, width), np.int64)
        x, out = self.ffi.from_buffer("int64_t[]", np.ascontiguousarray(lanes)), self.ffi.from_buffer("int64_t[]", sums)
        self.c.focal_signed_sums(self._code, self.ffi.from_buffer("uint8_t[]", bits), x, n, out)
        return sums

    # ----------------------------------------------------------------- one prime

    def prime(self, q: int, root: int, n: int) -> Any:
        """The tables of a prime's transform, made once; ``None`` when the kernels do not take it (native.h)."""
        with self._lock:
            key = q, root, n
            if key not in self._primes:
                made = self.c.focal_prime_new(self._code, q, root, n)
                self._primes[key] = None if made == self.ffi.NULL else self.ffi.gc(made, self.c.focal_prime_free)
            return self._primes[key]

    def forward(self, prime: Any, coefficients: NDArray[Any]) -> Words:
        """Evaluation form of residues (uint64), or of signed coefficients between -q and q (int64)."""
        out = self.empty(len(coefficients))
        if coefficients.dtype == np.int64:
            self.c.focal_forward_signed(prime, self.ffi.from_buffer("int64_t[]", coefficients), self.words(out))
        else:
            self.c.focal_forward(prime, self.words(coefficients), self.words(out))
        return out

    def inverse(self, prime: Any, limb: Words) -> Words:
        """Coefficients of an evaluation form."""
        out = self.empty(len(limb))
        self.c.focal_inverse(prime, self.words(limb), self.words(out))
        return out


def _found() -> tuple[Library | None, str]:
    """The library, and one line about it."""
    wanted = os.environ.get("FOCAL_NATIVE", "")
    if wanted == "0":
        return None, "none: FOCAL_NATIVE=0"
    try:
        module = importlib.import_module(build.MODULE)
    except ImportError as e:
        why = "not built" if isinstance(e, ModuleNotFoundError) else str(e)
        way_out = "with a C compiler, python -m focal.ckks.native makes them"
        return None, f"none ({why}): OpenFHE and numpy compute, slower; {way_out}"
    made_from = getattr(module.lib, "focal_made_from", None)
    if made_from is None or module.ffi.string(made_from()).decode() != build.digest():
        return None, "none (made from other sources than these): python -m focal.ckks.native makes them anew"
    able = Library.variants(module)
    if wanted and wanted not in able:
        return None, f"none: FOCAL_NATIVE={wanted}, and this processor has {', '.join(able)}"
    chosen = wanted or able[-1]
    return Library(module, chosen), chosen


library, description = _found()
