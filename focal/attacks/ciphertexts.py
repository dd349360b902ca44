"""FOCAL's uploads as those see them who hold no key, or all keys but one: is there a picture in the bytes?

::

    run's board, blobs --> y (masked rows, N of 16 bytes), c0 = y + sum B_i, c1 = a           of every data chunk
                           minus the masks that a coalition knows, plus c1 times its key shares
    every polynomial   --decode as if it were a message--> slots --> (rows, R) values        signals, row by row
    attacker's own images --> features --> rows --masked; encrypted under the SAME joint key--> the same signals
                                                                   |
                           decoder trained on these pairs <--------+--> applied to the victim's rows

Row i's columns stand in known slots (:meth:`focal.heads.linear.layout.Layout.data_slots`), so a decoder gets, for each
patient, exactly the numbers that would be its columns if nothing were hidden. With no mask at all, or all masks known
(the positive control), they are, and the decoder is that of :mod:`focal.attacks.features`.

**Whence ciphertexts under the joint key.** Nobody publishes an encryption key. But round 1 of the key ceremony shows
h1 = a' s + e', a ring-LWE sample under the joint s: with a ternary v, ( -v h1 + e0 + m, v a' + e1 ) encrypts m. With a
colluding institution there is no need: its own rows and images are pairs of the run itself.
"""

from __future__ import annotations

import functools
import secrets as system
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from focal.attacks.view import MANIFEST, View
from focal.ckks import codec, ring, sampling
from focal.ckks.ring import Limb
from focal.ckks.scheme import DIGITS, Scheme
from focal.custody import inputs, keys
from focal.custody.inputs import Words
from focal.errors import FocalError
from focal.heads.linear.layout import TARGET_SCALE, Layout
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.protocols import of
from focal.protocols.blind import uploads
from focal.protocols.blind.uploads import Place
from focal.protocols.common.hearing import Heard

Array = NDArray[np.float64]
Ciphertext = list[list[Limb]]

H1 = [name for name, _ in keys.first_round_kinds([])].index("relinearisation/h1")
"""Which of a custodian's contributions of round 1."""
LIMBS = 2
"""Limbs of c0 that a decoder looks at: the others are the same integer by other primes."""


@dataclass
class Chunk:
    """One message of one institution."""

    words: Words
    """y: integers of 128 bits."""
    ciphertext: Ciphertext
    """(c0, c1), in evaluation form."""


@dataclass
class Known:
    """What a coalition adds to the server's bytes; nothing, by default."""

    masks: dict[Place, list[Words]] = field(default_factory=dict)
    """Of its custodians."""
    secrets: list[Sequence[Limb]] = field(default_factory=list)
    """Their key shares, as limbs."""


@dataclass
class Uploaded:
    """All chunks of one institution, as they can be read from a view."""

    scheme: Scheme
    layout: Layout
    start: int
    """Global number of its first row."""
    rows: int
    chunks: dict[Place, Chunk]

    def signals(self, known: Known | None = None, what: Literal["data", "target"] = "data") -> Array:
        """(rows, d): what each polynomial holds in each row's slots, of its columns or of its targets."""
        return np.hstack([self._by_rows(part, what) for part in polynomials(self.scheme, self.chunks, known)])

    def _by_rows(self, polynomial: Callable[[Place], Array], what: str) -> Array:
        """(rows, R or C), from N coefficients for each chunk."""
        out = []
        for block in self.layout.touched(self.start, self.start + self.rows):
            own = [place for place in self.chunks if place[:2] == (block, what)]
            slots = {place[2:]: ring.embed(polynomial(place)) for place in own}
            out.append({"data": read_rows, "target": read_targets}[what](self.layout, slots))
        whole = np.concatenate(out)
        first = self.start - self.layout.touched(self.start, self.start + 1)[0] * self.layout.block_rows
        return whole[first : first + self.rows]


def polynomials(
    scheme: Scheme, chunks: Mapping[Place, Chunk], known: Known | None = None
) -> list[Callable[[Place], Array]]:
    """What can be read of a chunk as if it were a message, by its place: N numbers each."""
    has = known or Known()

    def words(which: int, place: Place) -> Array:
        """Half of y, without the masks that are known: as signed numbers of 64 bits."""
        return _without(chunks[place].words, has.masks.get(place, ()))[:, which].view(np.int64).astype(np.float64)

    def limb(i: int, place: Place) -> Array:
        """c0 plus c1 times the key shares that are known, modulo the i-th prime."""
        q, (c0, c1) = scheme.moduli[i], chunks[place].ciphertext
        total = c0[i]
        for secret in has.secrets:
            total = ring.add(total, ring.multiply(secret[i], c1[i], q), q)
        return _centred(scheme, total, i)

    return [
        *(functools.partial(words, i) for i in (0, 1)),
        *(functools.partial(limb, i) for i in range(LIMBS)),
        lambda place: _centred(scheme, chunks[place].ciphertext[1][0], 0),
    ]


def read_rows(layout: Layout, slots: Mapping[tuple[int, int], NDArray[np.complex128]]) -> Array:
    """(block_rows, R) columns of a block from the slots of its data ciphertexts (g, h):
    what :meth:`Layout.data_slots` did, taken back."""
    p, k, half = layout.lane, layout.class_lanes, layout.half
    j, q = np.arange(layout.feature_lanes)[:, None], np.arange(p)[None, :]
    xi = np.zeros((layout.groups_of_rows, p, half), np.complex128)
    for (g, h), values in slots.items():
        skewed = np.roll(values, -g * layout.babies * k).reshape(layout.groups_of_rows, layout.feature_lanes, p, k)
        xi[:, q, (j * p + q + g * layout.babies + h) % half] = skewed[..., 0]
    whole = xi.reshape(-1, half)
    return layout.divisor * np.hstack([whole.real, whole.imag])


def read_targets(layout: Layout, slots: Mapping[tuple[int, int], NDArray[np.complex128]]) -> Array:
    """(block_rows, C) of a block's target ciphertexts (class group, 0), likewise."""
    p, k = layout.lane, layout.class_lanes
    groups = [
        slots[u, 0].real.reshape(layout.groups_of_rows, layout.feature_lanes, p * k)[:, 0].reshape(-1, k)
        for u in range(layout.class_groups)
    ]
    return np.hstack(groups)[:, : layout.outputs] / TARGET_SCALE


def _without(words: Words, masks: Sequence[Words]) -> Words:
    """Integers of 128 bits minus the offset and ``masks``, modulo 2^128."""
    low = words[:, 0].copy()
    high = words[:, 1] - np.uint64(1 << inputs.OFFSET_BITS - 64)
    for mask in masks:
        borrowed = low < mask[:, 0]
        low -= mask[:, 0]
        high -= mask[:, 1] + borrowed
    return np.stack([low, high], axis=1)


def _centred(scheme: Scheme, limb: Limb, i: int) -> Array:
    q = scheme.moduli[i]
    return ring.centred(ring.inverse_ntt(limb, q, scheme.roots[q]), q).astype(np.float64)


# --------------------------------------------------------------------------- from a run


class Read:
    """A blind run's board and blobs, as one view has them. Raises :class:`FocalError` for a run of another protocol,
    one that lost custodians, and when the view lacks what is asked for."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.manifest = Manifest.model_validate_json(view.received[MANIFEST])
        if of(self.manifest).joint:
            raise FocalError(f"{view.party}: only uploads of blind runs are read as rows")
        heard = Heard(self.manifest)
        for data in view.records():
            heard.add(data)
        self._said = {(record.sender, record.topic): record.body for record in heard}
        (self.run_id,) = {b.run_id for b in self._said.values() if isinstance(b, msg.RunStart)}
        self.scheme = Scheme(self.manifest.ckks, self.run_id)
        self.layout = of(self.manifest).plan.layout(self.manifest)
        accepted = [body for body in self._said.values() if isinstance(body, msg.UploadsAccepted)]
        if not accepted or any(isinstance(body, msg.Epoch) for body in self._said.values()):
            raise FocalError(
                f"{view.party}: the run never got to its uploads, or lost custodians", hint="give a finished run"
            )
        self.lists: dict[str, msg.Upload] = {name: self._said[name, "upload"] for name in accepted[0].present}  # type: ignore[misc]

    def uploaded(self, owner: str) -> Uploaded:
        """All that is there of ``owner``'s rows."""
        if owner not in self.lists:
            raise FocalError(f"'{owner}' uploaded nothing in this run", hint=f"these did: {', '.join(self.lists)}")
        placed = uploads.inputs(self.layout, self.lists)
        names = [m.name for m in self.manifest.custodians]
        chunks = {}
        for i, one in enumerate(placed):
            if one.owner == owner:
                chunks[one.place] = self._chunk(i, one, names)
        return Uploaded(self.scheme, self.layout, self.lists[owner].first_row, self.lists[owner].rows, chunks)

    def _chunk(self, i: int, one: uploads.Placed, names: Sequence[str]) -> Chunk:
        y = self.view.blob(one.chunk)
        given = [(name, self.view.blob(self._said[name, f"{uploads.ROUND}/reveal"].blobs[i])) for name in names]  # type: ignore[union-attr]
        lists = self._said[names[0], f"{uploads.ROUND}/commit"].lists  # type: ignore[union-attr]
        a = inputs.public_random(self.scheme, bytes.fromhex(self.run_id), lists, one.input.item, one.input.limbs)
        ciphertext = inputs.combine(self.scheme, a, [(one.owner, y)], given, one.input.factor)
        return Chunk(codec.unpack_masked(self.scheme, y, one.owner), ciphertext)

    def encryption_key(self) -> tuple[list[Limb], list[Limb]]:
        """(a', h1 = a' s + e'), one ring-LWE sample under the joint key."""
        return encryption_key(self.view, self.scheme, self.run_id, self._said)


def encryption_key(
    view: View, scheme: Scheme, run_id: str, said: Mapping[tuple[str, str], object]
) -> tuple[list[Limb], list[Limb]]:
    """Of any run, from what was said in round 1 of its key ceremony."""
    parts = [
        codec.unpack(scheme, codec.SWITCHING_B, view.blob(body.blobs[H1]), sender)[0]
        for (sender, _), body in said.items()
        if isinstance(body, msg.KeyReveal) and body.round == 1
    ]
    h1 = ring.total(parts, scheme.extended)
    a = keys.public_random(scheme, bytes.fromhex(run_id), "relinearisation", DIGITS)[0]
    return list(a), list(h1)


# --------------------------------------------------------------------------- the attacker's own


class Made(NamedTuple):
    """One message on its way to be encrypted."""

    place: Place
    message: inputs.Message
    limbs: int
    factor: int = 1


def of_rows(scheme: Scheme, layout: Layout, columns: Array, targets: Array) -> list[Made]:
    """The messages that an institution uploads of ``columns`` (p, R) and ``targets`` (p, C), from a block's beginning
    on."""
    out = []
    for place in layout.chunks(0, len(columns)):
        block, what, g, h = place
        own = layout.block_of(columns if what == "data" else targets, 0, block)
        message = inputs.message(
            scheme, layout.data_slots(own, g, h) if what == "data" else layout.target_slots(own, g)
        )
        out.append(Made(place, message, layout.chunk_limbs(what)))
    return out


def own_chunks(
    scheme: Scheme, made: Iterable[Made], key: tuple[Sequence[Limb], Sequence[Limb]], custodians: int
) -> dict[Place, Chunk]:
    """The attacker's own messages, under masks of its own, and encrypted under the joint ``key`` that
    :meth:`Read.encryption_key` found."""
    chunks = {}
    for place, message, limbs, factor in made:
        masks = [random_mask(scheme.n) for _ in range(custodians)]
        words = codec.unpack_masked(scheme, inputs.masked(scheme, message, masks), "own")
        chunks[place] = Chunk(words, encrypt(scheme, key, message, limbs, factor))
    return chunks


def random_mask(n: int) -> Words:
    """Uniform over [0, 2^124)."""
    words = np.frombuffer(system.token_bytes(16 * n), "<u8").reshape(n, 2).copy()
    words[:, 1] >>= np.uint64(128 - inputs.MASK_BITS)
    return words


def encrypt(
    scheme: Scheme, key: tuple[Sequence[Limb], Sequence[Limb]], message: inputs.Message, limbs: int, factor: int = 1
) -> Ciphertext:
    """``factor`` times ``message`` under a ring-LWE sample (a, a s + e)."""
    (a, b), (v, e0, e1) = key, (sampling.ternary(scheme.n), sampling.errors(scheme.n), sampling.errors(scheme.n))
    c0, c1 = [], []
    for i, q in enumerate(scheme.moduli[:limbs]):
        to = functools.partial(ring.ntt_signed, q=q, root=scheme.roots[q])
        small = to(v)
        large = ring.multiply(to(message), np.full(scheme.n, factor % q, np.uint64), q)
        plus = ring.add(large, to(e0), q)
        c0.append(ring.subtract(plus, ring.multiply(small, b[i], q), q))
        c1.append(ring.add(ring.multiply(small, a[i], q), to(e1), q))
    return [c0, c1]


# --------------------------------------------------------------------------- coalitions, in one process


@dataclass
class Stage:
    """Uploads of one institution to ``custodians`` custodians, in this process: the only place where every secret is.
    Runs erase keys and masks at their end, so what a coalition could have kept is made here, by the roles' own
    functions."""

    chunks: dict[Place, Chunk]
    masks: list[dict[Place, Words]]
    secrets: list[Sequence[Limb]]

    @classmethod
    def make(cls, scheme: Scheme, made: Iterable[Made], custodians: int) -> Stage:
        run_id, lists = bytes.fromhex(scheme.tag), system.token_hex(32)
        shares = [keys.SecretShare.draw(scheme, run_id) for _ in range(custodians)]
        masks: list[dict[Place, Words]] = [{} for _ in shares]
        chunks = {}
        for place, message, limbs, factor in made:
            item = "/".join(map(str, place))
            for own in masks:
                own[place] = random_mask(scheme.n)
            a = inputs.public_random(scheme, run_id, lists, item, limbs)
            y = inputs.masked(scheme, message, [own[place] for own in masks])
            given = [
                (str(i), inputs.contribution(scheme, share.limbs, a, [masks[i][place]], factor))
                for i, share in enumerate(shares)
            ]
            whole = inputs.combine(scheme, a, [("upload", y)], given, factor)
            chunks[place] = Chunk(codec.unpack_masked(scheme, y, "upload"), whole)
        return cls(chunks, masks, [list(share.limbs) for share in shares])

    def known_to(self, custodians: int) -> Known:
        """What the first so many custodians have."""
        masks = {place: [own[place] for own in self.masks[:custodians]] for place in self.chunks}
        return Known(masks, self.secrets[:custodians])
