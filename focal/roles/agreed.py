"""What follows from the manifest and the signed messages alone, so that every party derives the same."""

from __future__ import annotations

import hashlib

from focal.ckks.layout import Layout
from focal.ckks.plan import check_sharing, layout_for
from focal.config import Manifest
from focal.errors import ProtocolError, Refused
from focal.files import canonical_json
from focal.net import messages as msg
from focal.roles.hearing import check_opens

TRUST = (
    "blind: the institutions are trusted to encrypt honestly; one that does not reads relations on the joint key off the release, whoever "
    "verifies and guards (SECURITY.md)"
)
"""What everybody must be told who signs a blind run."""


def layout(manifest: Manifest) -> Layout:
    """The slot layout of a blind run. Raises :class:`focal.errors.FocalError` when it does not fit, as the planner does."""
    lanes, rows = manifest.layout, manifest.row_counts
    assert lanes is not None  # a blind manifest has one
    shape = layout_for(
        manifest.ckks.ring // 2,
        manifest.projection.features,
        manifest.outputs,
        manifest.rows,
        lanes.class_lanes,
        lanes.feature_lanes,
        () if manifest.share_blocks else tuple(rows.values()),
    )
    check_sharing(shape, rows, len(manifest.custodians))
    return shape


def row_table(manifest: Manifest, shape: Layout) -> dict[str, tuple[int, int]]:
    """Institution -> (first global row, one past its last) in the blocks of a blind run, in manifest order."""
    return shape.row_table(manifest.row_counts)


def batches(shape: Layout, manifest: Manifest) -> list[tuple[str, tuple[str, ...]]]:
    """Every batch of refreshes of the run, in order: (topic, plan items). Nothing else is ever refreshed."""
    out = []
    for t in range(manifest.training.steps):
        # the first step knows its logits: they are zero (engine.py)
        kinds = ["residual", "weights"] if manifest.training.degree == 3 or t == 0 else ["logits", "residual", "weights"]
        out += [(f"refresh/{t}/{kind}", tuple(shape.items(t, kind))) for kind in kinds]
    return out


def refreshes(shape: Layout, manifest: Manifest) -> int:
    """Collective refreshes of the run."""
    return sum(len(items) for _, items in batches(shape, manifest))


def release_items(shape: Layout, manifest: Manifest) -> tuple[str, ...]:
    """Plan items of the release: the weights of the last step, and nothing else."""
    return tuple(item.replace("/weights/", "/release/") for item in shape.items(manifest.training.steps - 1, "weights"))


def topic(item: str) -> str:
    """The topic of the batch that a refresh's plan item belongs to."""
    _, step, kind, *_ = item.split("/")
    return f"refresh/{step}/{kind}"


def uploads(manifest: Manifest, shape: Layout, lists: dict[str, msg.Upload], joint_keys: str) -> str:
    """Check every institution's signed list against the manifest; returns one digest over all lists.

    Raises :class:`Refused` (``upload``) naming the institution and what differs, or the ciphertext that was listed before: a copy of
    another's ciphertexts would be that one's rows, counted again as this one's.
    """
    eta = {u.eta_hex for u in lists.values()}
    projection = {u.projection for u in lists.values()}
    if len(eta) != 1 or len(projection) != 1:
        raise Refused("upload", f"the institutions ({', '.join(lists)}) do not agree on projection and step size")
    running = hashlib.sha256(b"focal/uploads/v1")
    table = row_table(manifest, shape)
    listed: dict[str, str] = {}
    for name, upload in lists.items():
        start, stop = table[name]
        for what, found, wanted in (
            ("joint keys", upload.joint_keys, joint_keys),
            ("rows", upload.rows, stop - start),
            ("first row", upload.first_row, start),
            ("number of chunks", len(upload.chunks), len(shape.chunks(start, stop))),
        ):
            if found != wanted:
                raise Refused("upload", f"the list of '{name}' has another {what} than was agreed ({found}, not {wanted})")
        for digest in upload.chunks:  # encryption is random: two honest ciphertexts never have one digest
            if digest in listed:
                where = "names it twice" if listed[digest] == name else f"names what stands in the list of '{listed[digest]}' too"
                raise Refused(
                    "upload",
                    f"ciphertext {digest[:12]} is no row of '{name}' alone: its list {where}",
                    hint=f"settle with {' and '.join(f'{n!r}' for n in dict.fromkeys([name, listed[digest]]))} who encrypted it, "
                    "then start a new run",
                )
            listed[digest] = name
        running.update(msg.encode(upload))
    return running.hexdigest()


def upload_digest(upload: msg.Upload) -> bytes:
    """What an institution commits to: its list, without what it can only add afterwards."""
    nothing = "0" * 64
    return hashlib.sha256(b"focal/upload/v2" + msg.encode(upload.model_copy(update={"salt": nothing, "committed": nothing}))).digest()


def commitments_digest(commits: dict[str, msg.UploadCommit]) -> str:
    """One digest over everybody's commitments to uploads."""
    return hashlib.sha256(b"focal/upload-commits/v2" + canonical_json({n: c.commitment for n, c in commits.items()})).hexdigest()


def check_committed(scope: str, commits: dict[str, msg.UploadCommit], lists: dict[str, msg.Upload]) -> None:
    """Raise :class:`Refused` (``commitment``) unless each list opens its commitment, and all were made in view of the same commitments."""
    seen = commitments_digest(commits)
    for name, upload in lists.items():
        check_opens(scope, "upload", name, commits[name], upload.salt, upload_digest(upload))
        if upload.committed != seen:
            raise Refused("commitment", f"'{name}' was shown other commitments to uploads than we were")


def check_answers(asked: msg.RefreshRequest, answers: dict[str, msg.RefreshShares]) -> None:
    """Raise unless every custodian answered exactly what was asked."""
    for name, answer in answers.items():
        if (answer.items, answer.ciphertexts) != (asked.items, asked.ciphertexts) or not len(answer.h0) == len(answer.h1) == len(
            asked.items
        ):
            raise ProtocolError(f"'{name}' answered another refresh than was asked for")


def other_uploads(name: str) -> Refused:
    """The error when a custodian accepted other upload lists than we hold."""
    return Refused("uploads", f"'{name}' accepted other upload lists than we were shown (or its processor encodes the mask differently)")
