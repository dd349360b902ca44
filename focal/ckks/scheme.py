"""One CKKS context, generated locally from the agreed parameters, and the byte templates to talk through.

OpenFHE objects enter and leave as limbs (:mod:`focal.ckks.codec`). To build an object from limbs, they are written over
the limbs of an object of the same shape that this process made itself, and that byte string, whose structure is ours,
is deserialised. Foreign bytes never reach the deserializer: it can crash the process (docs/openfhe.md, section 3).

::

    foreign bytes --check length, header, every value < q--> limbs --write into own template--> OpenFHE object
"""

from __future__ import annotations

import math
import statistics
import struct
import threading
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import openfhe

from focal import framing
from focal.ckks import native, ring
from focal.ckks.evaluator import Evaluator
from focal.ckks.native.evaluator import NativeEvaluator
from focal.ckks.openfhe_evaluator import OpenFheEvaluator
from focal.ckks.ring import Limb
from focal.config import CkksConfig
from focal.errors import FocalError
from focal.files import canonical_json

DEPTH = 5
"""Multiplicative depth: sigmoid 2, backward 1, and the three limbs that a collective refresh
takes (docs/kernels.md)."""
LIMBS = DEPTH + 1
DIGITS = 3
"""dnum of hybrid key switching."""
REFRESH_LIMBS = 3
"""Limbs of a ciphertext that is handed to the collective refresh, where its map says nothing else:
150 bits, for masks of 148 (custody/refresh.py)."""
OPENING_LIMBS = 2
"""Limbs of a ciphertext that is opened to its owner during training (custody/opening.py)."""
MAX_LOG_QP = {16384: 438, 32768: 881}
"""Largest log2(QP) for 128-bit classical security with ternary secrets (homomorphicencryption.org
standard, table 1)."""


def parse(data: bytes, n: int) -> list[list[tuple[int, int]]]:
    """Limb offsets and moduli in OpenFHE 1.6 BINARY bytes of a ciphertext, key or key map made by this process.

    Returns one list per polynomial of (offset of N little-endian uint64, modulus). Not a parser for foreign bytes.
    """
    needle, position = struct.pack("<Q", n), 0
    found: list[tuple[int, int]] = []
    while (i := data.find(needle, position)) >= 0:
        position = i + 1
        first = not found and data[i - 9 : i] == b"\x00\x00\x00\x40\x01\x00\x00\x00\x00"
        end = i + 8 + 8 * n
        if (first or data[i - 5 : i] == b"\x00\x00\x00\x40\x01") and end + 8 <= len(data):
            q = struct.unpack_from("<Q", data, end)[0]
            if q % (2 * n) == 1:
                found.append((i, q))
                position = end + 8
    elements: list[list[tuple[int, int]]] = []
    k = 0
    while k < len(found):
        # the limb count stands before the first limb's header, which is longer for the very first limb (class versions)
        count = struct.unpack_from("<Q", data, found[k][0] - (13 if k == 0 else 5) - 8)[0]
        elements.append([(i + 8, q) for i, q in found[k : k + count]])
        k += count
    return elements


class Template:
    """Bytes of one kind of object, with the places of its limbs."""

    def __init__(self, data: bytes, n: int, load: Any) -> None:
        self.data, self.n, self.load = data, n, load
        self.elements = parse(data, n)

    def build(self, polynomials: Sequence[Sequence[Limb]]) -> Any:
        """The object with ``polynomials[element][limb]`` written over the template's. Shapes must match exactly."""
        buffer = bytearray(self.data)
        for places, limbs in zip(self.elements, polynomials, strict=True):
            for (offset, _), limb in zip(places, limbs, strict=True):
                buffer[offset : offset + 8 * self.n] = limb.astype("<u8", copy=False).tobytes()
        built = self.load(bytes(buffer), openfhe.BINARY)
        if built is None:
            raise RuntimeError("OpenFHE returned nothing for a locally made template")
        return built


class Scheme:
    """A CKKS context under one key tag.

    ``tag`` names the joint key; OpenFHE keeps evaluation keys in process-global maps under it, so every run has its
    own. Parties of one run in one process share them (:func:`focal.custody.keys.install`), and the throw-away key too:
    nothing is put into these maps while one of them computes.
    Raises :class:`FocalError` when the parameters fall short of 128-bit security.
    """

    process = threading.Lock()
    """Held by whoever changes OpenFHE's maps."""
    installed: ClassVar[dict[str, bytes]] = {}
    """Tag -> digest of the evaluation keys that OpenFHE has under it."""
    _made: ClassVar[dict[CkksConfig, tuple[Any, Any, bytes]]] = {}
    """Context, throw-away key and serialised map of its one rotation key."""

    def __init__(self, params: CkksConfig, tag: str) -> None:
        self.params, self.tag = params, tag
        self.n = params.ring
        self.slots = params.ring // 2
        self.scale = 2.0**params.scale_bits
        with Scheme.process:
            if params not in self._made:
                self.cc = self._generate()
                # From here on deserialising no longer rebuilds CRT tables that exist already:
                # 3.2 -> 0.4 ms a ciphertext.
                openfhe.DisablePrecomputeCRTTablesAfterDeserializaton()
                self.key = (
                    self.cc.KeyGen()
                )  # a throw-away key: templates are made with it, nothing is ever encrypted for it
                self._made[params] = self.cc, self.key, self._rotation_map(self._spare_rotation)
            self.cc, self.key, key_map = self._made[params]
        elements = parse(key_map, self.n)
        self.moduli = tuple(q for _, q in elements[0][:LIMBS])
        """q_0 ... q_5"""
        self.extended = tuple(q for _, q in elements[0])
        """q_0 ... q_5 and the primes of P, modulo which evaluation keys live."""
        self.log_qp = sum(math.log2(q) for q in self.extended)
        if self.log_qp > MAX_LOG_QP[self.n]:
            raise FocalError(
                f"ckks: log2(QP) = {self.log_qp:.0f} bits exceeds the {MAX_LOG_QP[self.n]} of the HE "
                f"standard (128 bits, ring {self.n})",
                hint="use a larger ring or a smaller scale",
            )
        said = {"ring": self.n, "moduli": self.extended, "scale_bits": params.scale_bits, "digits": DIGITS}
        self.hash = framing.digest(b"focal/ckks/v1", canonical_json(said))
        """Parameter hash: what must be equal for limbs to mean the same."""
        self._templates: dict[Any, Template] = {}
        self._lock = threading.Lock()
        self._key_map = key_map

    # ----------------------------------------------------------------- context

    def _generate(self) -> Any:
        p = openfhe.CCParamsCKKSRNS()
        p.SetSecurityLevel(openfhe.HEStd_128_classic)
        p.SetSecretKeyDist(openfhe.UNIFORM_TERNARY)
        p.SetRingDim(self.n)
        p.SetMultiplicativeDepth(DEPTH)
        p.SetScalingModSize(self.params.scale_bits)
        p.SetFirstModSize(self.params.first_bits)
        p.SetKeySwitchTechnique(openfhe.HYBRID)
        p.SetNumLargeDigits(DIGITS)
        p.SetScalingTechnique(openfhe.FIXEDMANUAL)
        p.SetBatchSize(self.slots)
        p.SetCKKSDataType(openfhe.COMPLEX)  # with REAL, encoding drops imaginary parts
        try:
            cc = openfhe.GenCryptoContext(p)
        except RuntimeError as e:
            raise FocalError(
                f"ckks: OpenFHE rejects these parameters for 128-bit security ({str(e).splitlines()[0][:160]})"
            ) from None
        for feature in (openfhe.PKE, openfhe.KEYSWITCH, openfhe.LEVELEDSHE):
            cc.Enable(feature)
        return cc

    @cached_property
    def evaluator(self) -> Evaluator:
        """What computes on ciphertexts under this tag: the native kernels where they are installed, else OpenFHE."""
        return NativeEvaluator(self, native.library) if native.library else OpenFheEvaluator(self)

    @property
    def digit(self) -> int:
        """Limbs of a digit of hybrid key switching; the last one may have fewer."""
        return -(-LIMBS // DIGITS)

    @property
    def conjugation(self) -> int:
        """The rotation that is none: it conjugates every slot. OpenFHE's number for it."""
        return 2 * self.n - 1

    def automorphism(self, rotation: int) -> int:
        """The k of X -> X^k that rotates by ``rotation``, or conjugates."""
        return ring.exponent(self.n, rotation)

    @property
    def security_bits(self) -> int:
        """Classical security in bits; construction fails below it."""
        return 128

    @cached_property
    def roots(self) -> dict[int, int]:
        """Modulus (of P too) -> the primitive 2N-th root of unity that OpenFHE's transform uses,
        read from our own bytes: it stands behind each limb."""
        found = {}
        for offset, q in parse(self._key_map, self.n)[0]:
            behind = (struct.unpack_from("<Q", self._key_map, offset + 8 * self.n + i)[0] for i in range(64))
            found[q] = next(w for w in behind if 1 < w < q and pow(w, self.n, q) == q - 1)
        return found

    def switch_ms(self, limbs: int, repeats: int = 9) -> float:
        """Milliseconds of one key switch with ``limbs`` limbs on this thread and machine:
        the median, a warm-up apart."""
        ev, rotation, key = self.evaluator, self._spare_rotation, self._key_map
        halves = [[np.frombuffer(key, "<u8", self.n, at) for at, _ in element] for element in parse(key, self.n)]
        with Scheme.process:
            ev.install_rotation(rotation, halves[:DIGITS], halves[DIGITS:])
        zero, taken = ev.zero(limbs), []
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            ev.rotate(zero, rotation)
            taken.append(1e3 * (time.perf_counter() - begun))
        return statistics.median(taken[1:])

    def close(self) -> None:
        """Forget the evaluation keys of *all* tags, which OpenFHE keeps for the life of the process
        (it cannot forget one tag's)."""
        with Scheme.process:
            self._clear()

    def forget(self) -> None:
        """This tag's evaluation keys are needed no more: OpenFHE forgets them as soon as it has no other tag's."""
        with Scheme.process:
            NativeEvaluator.keys.pop(self.tag, None)
            if self.installed.pop(self.tag, None) is not None and not self.installed:
                self._clear()

    def _clear(self) -> None:
        openfhe.ClearEvalMultKeys()
        self.cc.ClearEvalAutomorphismKeys()
        NativeEvaluator.keys.clear()
        self.installed.clear()
        self._made.clear()

    # ----------------------------------------------------------------- templates

    @property
    def _spare_rotation(self) -> int:
        return self.slots // 2 - 1234  # any rotation with an automorphism index that is easy to find in bytes

    def _rotation_map(self, rotation: int) -> bytes:
        # OpenFHE keeps this key (6 MB) under the throw-away tag: it can only forget the keys of all tags,
        # other runs' among them.
        made = self.cc.EvalAutomorphismKeyGen(self.key.secretKey, [self.automorphism(rotation)])
        return bytes(openfhe.Serialize(made, openfhe.BINARY))

    def _template(self, name: Any, make: Any, load: Any) -> Template:
        with self._lock:
            if name not in self._templates:
                self._templates[name] = Template(bytes(openfhe.Serialize(make(), openfhe.BINARY)), self.n, load)
            return self._templates[name]

    def throwaway(self, limbs: int, polynomials: int = 2) -> Any:
        """A ciphertext of zero for the throw-away key with ``limbs`` limbs, under the joint tag: for its shape.
        With three polynomials it is a product that was not relinearised, of scale degree 2."""
        plain = self.cc.MakeCKKSPackedPlaintext([0.0], 1, LIMBS - limbs)
        ct = self.cc.Encrypt(self.key.publicKey, plain)
        ct.SetKeyTag(self.tag)
        return ct if polynomials == 2 else self.cc.EvalMultNoRelin(ct, ct)

    def ciphertext(self, polynomials: Sequence[Sequence[Limb]]) -> Any:
        """(c0, c1), each L limbs, as OpenFHE's ciphertext with L limbs, scale degree 1, under the joint tag; or the
        three polynomials of a product, scale degree 2.

        It is slow to compute with: ``Evaluator.load`` gives one that is not.
        """
        shape, load = (len(polynomials[0]), len(polynomials)), openfhe.DeserializeCiphertextString
        return self._template(("ciphertext", *shape), lambda: self.throwaway(*shape), load).build(polynomials)

    def public_key(self, b: Sequence[Limb], a: Sequence[Limb]) -> Any:
        """(b, a) as a public key with the joint tag."""
        key = self._template("public", lambda: self.key.publicKey, openfhe.DeserializePublicKeyString).build([b, a])
        key.SetKeyTag(self.tag)
        return key

    def switching_key(self, a: Sequence[Sequence[Limb]], b: Sequence[Sequence[Limb]]) -> Any:
        """An evaluation key from its ``DIGITS`` a and b polynomials modulo QP."""
        make = lambda: self.cc.KeySwitchGen(self.key.secretKey, self.key.secretKey)  # noqa: E731
        key = self._template("switching", make, openfhe.DeserializeEvalKeyString).build([*a, *b])
        key.SetKeyTag(self.tag)
        return key

    def rotation_key(self, rotation: int, a: Sequence[Sequence[Limb]], b: Sequence[Sequence[Limb]]) -> Any:
        """A map with the one automorphism key of ``rotation``.

        One serialised map serves every rotation: the automorphism index is a 32-bit word in its header.
        """
        with self._lock:
            name = ("rotation", rotation)
            if name not in self._templates:
                old = struct.pack("<I", self.automorphism(self._spare_rotation))
                new = struct.pack("<I", self.automorphism(rotation))
                head = self._key_map[: parse(self._key_map, self.n)[0][0][0]]
                if head.count(old) != 1:
                    raise RuntimeError("the automorphism index is not where it was in OpenFHE 1.6's key maps")
                self._templates[name] = Template(
                    head.replace(old, new) + self._key_map[len(head) :], self.n, openfhe.DeserializeEvalKeyMapString
                )
            template = self._templates.pop(name)  # 6 MB each, needed once
        return template.build([*a, *b])

    # ----------------------------------------------------------------- objects -> limbs

    def zero(self, limbs: int) -> list[Limb]:
        """The zero polynomial."""
        return [np.zeros(self.n, dtype=np.uint64)] * limbs

    def limbs(self, thing: Any) -> list[list[Limb]]:
        """Polynomials and limbs of any OpenFHE object of this process."""
        data = bytes(openfhe.Serialize(thing, openfhe.BINARY))
        return [
            [np.frombuffer(data, "<u8", self.n, offset) for offset, _ in element] for element in parse(data, self.n)
        ]

    def encode(self, values: Any, limbs: int = LIMBS) -> Any:
        """Slots (S,), real or complex -> plaintext with ``limbs`` limbs at scale degree 1."""
        return self.cc.MakeCKKSPackedPlaintext(values, 1, LIMBS - limbs)
