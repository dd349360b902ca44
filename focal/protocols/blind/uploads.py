"""Upload lists of a blind run: committed, then signed, then the same at everybody."""

from __future__ import annotations

import hashlib

from focal.ckks.scheme import Scheme
from focal.config import Manifest
from focal.errors import Refused
from focal.files import canonical_json
from focal.heads.linear.engine import mask_digest
from focal.heads.linear.layout import Layout
from focal.net import messages as msg
from focal.protocols.blind.compute import scalars_of
from focal.protocols.blind.plan import row_table
from focal.protocols.common.hearing import check_opens


def check_lists(manifest: Manifest, shape: Layout, lists: dict[str, msg.Upload], joint_keys: str) -> str:
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


def check_accepted(digest: str, answers: dict[str, msg.UploadsAccepted]) -> None:
    """Raise :class:`Refused` (``uploads``) when a custodian accepted other upload lists than we hold."""
    for name, accepted in answers.items():
        if accepted.digest != digest:
            raise Refused(
                "uploads",
                f"'{name}' accepted other upload lists than we were shown (or its processor encodes the mask differently)",
            )


def accept(
    manifest: Manifest,
    scope: str,
    scheme: Scheme,
    layout: Layout,
    commits: dict[str, msg.UploadCommit],
    lists: dict[str, msg.Upload],
    joint_keys: str,
) -> str:
    """Check what training starts from: exactly one valid list from each institution, and each opens its commitment.

    Returns one digest over lists and encoded masks, which every custodian signs. Raises :class:`Refused` (``upload``, ``commitment``).
    """
    digest = inputs_digest(manifest, scheme, layout, lists, joint_keys)
    check_committed(scope, commits, lists)
    return digest


def inputs_digest(manifest: Manifest, scheme: Scheme, layout: Layout, lists: dict[str, msg.Upload], joint_keys: str) -> str:
    """One digest over all that training starts from: the upload lists, checked against the manifest, and the encoded masks."""
    digest = check_lists(manifest, layout, lists, joint_keys)
    encoded = mask_digest(scheme, layout, scalars_of(manifest, lists), row_table(manifest, layout))
    return hashlib.sha256(b"focal/inputs/v1" + bytes.fromhex(digest) + bytes.fromhex(encoded)).hexdigest()
