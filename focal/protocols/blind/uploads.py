"""Upload lists of a blind run: signed, then the same at everybody; and what inputs they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from focal import framing
from focal.ckks.scheme import Scheme
from focal.custody import projections
from focal.custody.inputs import Input
from focal.custody.projections import Statement
from focal.errors import FocalError, Refused
from focal.heads.linear.cost import masked_bytes
from focal.manifest import Manifest
from focal.measure import declared
from focal.net import messages as msg
from focal.net.encoding import encode
from focal.net.quotas import FILE, Quota
from focal.protocols.blind.plan import Layout, encoded, row_table
from focal.protocols.common.inputs import Claim


@dataclass(frozen=True)
class Agreed:
    """What every institution's list repeats."""

    joint_keys: str
    projection: str
    eta_hex: str


def check_list(manifest: Manifest, shape: Layout, agreed: Agreed, name: str, upload: msg.Upload) -> None:
    """Check an institution's signed list against the manifest and what was agreed in the run.

    Raises :class:`Refused` (``upload``) naming the institution and what differs. A list may name what another names:
    under its own masks that is noise, and no rows of anybody's.
    """
    start, stop = row_table(manifest, shape)[name]
    most, rows = stop - start, upload.rows
    fits = 0 < rows <= most if manifest.member(name).clinic else rows == most
    for what, found, wanted in (
        ("projection", upload.projection, agreed.projection),
        ("step size", upload.eta_hex, agreed.eta_hex),
        ("joint keys", upload.joint_keys, agreed.joint_keys),
        ("rows", rows, rows if fits else most),
        ("first row", upload.first_row, start),
        ("number of chunks", len(upload.chunks), len(shape.chunks(start, start + max(1, rows))) if fits else -1),
        ("number of proofs", len(upload.proofs), len(PROVEN)),
    ):
        if found != wanted:
            raise Refused("upload", f"the list of '{name}' has another {what} than was agreed ({found}, not {wanted})")


def check_length(manifest: Manifest, shape: Layout, name: str, upload: msg.Upload) -> None:
    """Raise :class:`Refused` (``upload``) for a list that names more than a member's rows can need: everybody reads the
    board and keeps it in memory."""
    table = row_table(manifest, shape)
    most = len(shape.chunks(*table[name])) if name in table else 0
    if len(upload.chunks) > most or len(upload.proofs) > len(PROVEN):
        raise Refused(
            "upload",
            f"the list of '{name}' names {len(upload.chunks)} chunks and {len(upload.proofs)} proofs, where its rows "
            f"need {most} and {len(PROVEN)} at most",
        )


SPOKEN = 64 << 10
"""Bytes of all short records of an institution, some thirty, and then some."""
SEALED, DIGEST = 256, 68
"""Bytes of a name with a sealed key, and of a digest, in a record."""


def quotas(manifest: Manifest, shape: Layout) -> dict[str, Quota]:
    """Institution -> how much of the server's disk and board a run needs of it, at most: its masked rows and proofs,
    once in each epoch that there can be and once more, as rows may be corrected before their list is signed; its part
    of pooled moments and histograms; the projection."""
    epochs = 1 + len(manifest.custodians) - manifest.needed
    times = 1 + epochs
    dim, size = manifest.lower.dim, masked_bytes(manifest.ckks.ring)
    counts = FILE + 8 * declared.counted(manifest.outputs, manifest.pooled_by) if manifest.pooled_roc else 0
    moments = FILE + 8 * ((dim + 1) * (dim + 2) // 2 + manifest.outputs)
    projection = FILE + 4 * manifest.projection.features * (dim + 2) + 1024
    table, found = row_table(manifest, shape), {}
    for member in manifest.institutions:
        chunks = len(shape.chunks(*table[member.name]))
        blobs = counts + times * (chunks * (FILE + size) + len(PROVEN) * (FILE + projections.PROOF_BYTES))
        board = SPOKEN + epochs * DIGEST * (chunks + len(PROVEN))
        if not member.clinic:
            blobs += moments + projection
            board += 4 * dim + 3 * SEALED * len(manifest.institutions)
        found[member.name] = Quota(blobs, board)
    return found


def lists_digest(lists: Mapping[str, msg.Upload]) -> str:
    """One digest over the lists of all institutions that have come, in manifest order."""
    return framing.digest(b"focal/uploads/v1", *map(encode, lists.values())).hex()


MAX_RMS = 4.0
"""Largest root mean square of an institution's projected features; over all institutions it is 1,
where features are whitened."""
PROVEN = ("data", "target")
"""What an institution proves to be in range."""
ROUND = "inputs"
"""Where custodians contribute to all of them."""
Place = tuple[int, str, int, int]
"""Where a chunk belongs, as :meth:`Layout.chunks` counts: block, ``data`` or ``target``, g or class group, h or 0."""


@dataclass(frozen=True)
class Placed:
    """An input of the run: where its ciphertext belongs, and what its owner uploaded for it."""

    place: Place
    owner: str
    input: Input
    chunk: str
    """Digest of the owner's masked message."""


def inputs(shape: Layout, lists: dict[str, msg.Upload]) -> list[Placed]:
    """All inputs, in the order in which custodians contribute to them.

    Each has one owner, in blocks that several share too: their owners' masks come before the sum.
    """
    return [
        Placed(
            place, name, Input(item(shape, place, name), shape.chunk_limbs(place[1]), ((name, upload.label),)), digest
        )
        for name, upload in lists.items()
        for place, digest in zip(shape.chunks(*span(upload)), upload.chunks, strict=True)
    ]


def span(upload: msg.Upload) -> tuple[int, int]:
    """First global row of a list's owner, one past the last that it says it brings: masks leave its targets there, and
    its data where a block is shared."""
    return upload.first_row, upload.first_row + upload.rows


def live(shape: Layout, lists: Iterable[msg.Upload]) -> Layout:
    """The layout in which blocks of nobody who has come are in no step."""
    blocks = sorted({block for upload in lists for block in shape.touched(*span(upload))})
    return shape if len(blocks) == shape.blocks else dataclasses.replace(shape, live=tuple(blocks))


def item(shape: Layout, place: Place, name: str) -> str:
    """What the input of institution ``name`` at ``place`` is called, once in a run: data of a block that has one owner
    do without its name."""
    return "/".join(map(str, (*place, name if shape.shared or place[1] == "target" else "-")))


def claims(manifest: Manifest, shape: Layout, seed: bytes, lists: dict[str, msg.Upload]) -> list[Claim]:
    """What every institution proves of its uploads, in manifest order; of each, data and targets."""
    found = []
    for name, upload in lists.items():
        places = shape.chunks(*span(upload))
        for what, proof in zip(PROVEN, upload.proofs, strict=True):
            own = [i for i, place in enumerate(places) if place[1] == what]
            digests = tuple(upload.chunks[i] for i in own)
            statement = statement_of(manifest, shape, seed, name, span(upload), what, digests)
            found.append(Claim(statement, tuple(item(shape, places[i], name) for i in own), upload.label, proof))
    return found


def statement_of(
    manifest: Manifest,
    shape: Layout,
    seed: bytes,
    name: str,
    rows: tuple[int, int],
    what: str,
    digests: tuple[str, ...],
) -> Statement:
    """That the data, or the targets, of institution ``name`` have columns of root mean square :data:`MAX_RMS`,
    or targets of 1/2, at most, over its own global ``rows``: a bound on all their slots together."""
    start, stop = rows
    filled = (stop - start) / (len(shape.touched(start, stop)) * shape.block_rows)
    n, scale = manifest.ckks.ring, 2.0**manifest.ckks.scale_bits
    rms = shape.size_of(what, MAX_RMS) * filled**0.5
    return Statement(seed, name, what, digests, projections.norm_bound(scale, n, len(digests), rms))


def check_size(name: str, columns: NDArray[np.float64]) -> None:
    """Raise :class:`FocalError` when the own columns (n, R) are larger than can be proven."""
    rms = float(np.sqrt(np.mean(np.square(columns))))
    if not rms <= MAX_RMS:
        worst = int(np.argmax(np.square(columns).sum(axis=0)))
        beyond = int((np.abs(columns[:, worst]) > MAX_RMS).sum())
        raise FocalError(
            f"'{name}': its projected features have a root mean square of {rms:.3g}; {MAX_RMS:g} is the most that a "
            f"run takes. Column {worst} is the largest, in {beyond} of {len(columns)} rows beyond it; nothing was sent",
            hint="whitened features have 1 over all institutions: look for images that are unlike everybody else's",
        )


def accepted(
    manifest: Manifest,
    scheme: Scheme,
    layout: Layout,
    lists: dict[str, msg.Upload],
    roster: str,
    absent: dict[str, msg.WhyAbsent],
) -> msg.UploadsAccepted:
    """What whoever holds these lists says of them, or expects every custodian to have said. ``roster``: digest of the
    server's record."""
    rows, digest = sum(upload.rows for upload in lists.values()), inputs_digest(manifest, scheme, layout, lists)
    return msg.UploadsAccepted(digest=digest, present=tuple(lists), rows=rows, roster=roster, absent=absent)


def check_accepted(own: msg.UploadsAccepted, answers: dict[str, msg.UploadsAccepted]) -> None:
    """Raise :class:`Refused` (``uploads``) when a custodian accepted other upload lists than we hold, or another roster
    of the server, or says of the same lists that they are others': institutions go by its word."""
    for name, theirs in answers.items():
        if (theirs.roster, theirs.absent) != (own.roster, own.absent):
            raise Refused("uploads", f"'{name}' was shown another roster, or other reasons for it, than we were")
        if theirs != own:
            raise Refused(
                "uploads",
                f"'{name}' accepted other upload lists than we were shown (or its processor "
                "encodes the mask differently)",
            )


def inputs_digest(manifest: Manifest, scheme: Scheme, layout: Layout, lists: dict[str, msg.Upload]) -> str:
    """One digest over all that training starts from: the lists of all who have come, and the encoded masks."""
    spans = {name: span(upload) for name, upload in lists.items()}
    masks = encoded(manifest, scheme, layout, lists, spans)
    listed = lists_digest(lists)
    return framing.digest(b"focal/inputs/v1", bytes.fromhex(listed), bytes.fromhex(masks)).hex()
