"""Every record of the system, versioned and typed, in one file.

A **record** is something one member says to the whole consortium, once, under its signature. Records go to the
server's board, an append-only list that everybody reads; large data stays beside it as blobs named by their SHA-256.
**Frames** carry both between one party and the server (:mod:`focal.net.frames`).

::

    institution --post(record)--> +-------- server --------+ <--post(record)-- custodian
                --put(blob)-----> | board: 1 2 3 4 5 ...   | <--put(blob)-----
                <-records since n | blobs: {sha256: bytes} | --records since n->
                                  +------------------------+

A member may say one thing under one topic: a second, different record of the same (sender, topic) is refused by the
server, and by every reader that sees both. That makes a resend harmless and a change of mind impossible.

A record has one spelling (:mod:`focal.net.encoding`), and no text that could steer a reader's terminal: all words of
others are of a few letters (:data:`Topic`, :data:`Item`, :data:`Label`, ...) or without control characters
(:data:`focal.config.Text`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import Field, model_validator

from focal.config import ANEW, Hex32, Model, Name, Text, earlier
from focal.errors import Refused
from focal.net.encoding import MAX_RECORD

Digest = Hex32
Topic = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}(/[A-Za-z0-9_.-]{1,64}){0,4}$")]
Label = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]
"""Name of a secure sum: ``moments``, ``average-3``."""
Item = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}(/[A-Za-z0-9_.-]{1,64}){0,7}$")]
"""What a plan calls a ciphertext: ``train/0/weights/-/0/-``."""
HexFloat = Annotated[str, Field(pattern=r"^0x[01]\.[0-9a-f]{1,13}p[+-][0-9]{1,4}$")]
"""A positive double as ``float.hex`` spells it."""
Rotation = Annotated[str, Field(pattern=r"^-?[0-9]{1,6}$")]
Phase = Annotated[str, Field(pattern=r"^[a-z][a-z-]{0,31}$")]
Index = Annotated[int, Field(ge=0, le=1 << 31)]
Bytes = Annotated[bytes, Field(max_length=1 << 20)]
WhyAbsent = Literal["absent", "incomplete", "upload", "mask-keys"]
"""Why an institution is on no roster; in words: :data:`focal.protocols.blind.roster.WHY`."""
Digests = Annotated[tuple[Digest, ...], Field(max_length=1 << 16)]

# --------------------------------------------------------------------------- records: what members say to all


class NonceCommit(Model):
    """Opens a run: a commitment to this member's share of the run id."""

    kind: Literal["nonce-commit"] = "nonce-commit"
    commitment: Hex32


class NonceReveal(Model):
    kind: Literal["nonce-reveal"] = "nonce-reveal"
    nonce: Hex32
    salt: Hex32


class RunStart(Model):
    """A member states the run id that it derived; everything that follows is under it."""

    kind: Literal["run-start"] = "run-start"
    run_id: Hex32


class TestFeatures(Model):
    """Features of the embedded test image: does everybody run the same lower segment?"""

    kind: Literal["test-features"] = "test-features"
    features: Bytes
    """float32, little-endian."""


class SumGroupKey(Model):
    """The first participant's group mask key, sealed to every other participant."""

    kind: Literal["sum-group-key"] = "sum-group-key"
    label: Label
    sealed: dict[Name, Bytes]


class SumCommit(Model):
    """Commitment to a contribution to a secure sum; nobody shows one before all participants have committed."""

    kind: Literal["sum-commit"] = "sum-commit"
    label: Label
    commitment: Hex32


class SumContribution(Model):
    kind: Literal["sum-contribution"] = "sum-contribution"
    label: Label
    participants: tuple[Name, ...]
    blob: Digest
    salt: Hex32


class SumOpened(Model):
    """A participant's word on what the sum opened to."""

    kind: Literal["sum-opened"] = "sum-opened"
    label: Label
    digest: Digest


class ProjectionProposed(Model):
    """The first institution's projection and step size."""

    kind: Literal["projection-proposed"] = "projection-proposed"
    blob: Digest
    eta_hex: HexFloat


class ProjectionAccepted(Model):
    """An institution recomputed what it must and agrees."""

    kind: Literal["projection-accepted"] = "projection-accepted"
    digest: Digest
    eta_hex: HexFloat


class KeyCommit(Model):
    """Commitment to a contribution to one key round."""

    kind: Literal["key-commit"] = "key-commit"
    round: Index
    commitment: Hex32


class KeyReveal(Model):
    kind: Literal["key-reveal"] = "key-reveal"
    round: Index
    salt: Hex32
    blobs: Digests


class KeyTranscript(Model):
    """Digest of everything that was committed and revealed in a round, as this custodian saw it."""

    kind: Literal["key-transcript"] = "key-transcript"
    round: Index
    digest: Digest


class ShareCheck(Model):
    """t-of-N: what a custodian shows of the pieces of its key share that it dealt."""

    kind: Literal["share-check"] = "share-check"
    blob: Digest


class Epoch(Model):
    """Which custodians answer from here on, as some are lost. The server proposes it; custodians agree and institutions
    consent by saying the same."""

    kind: Literal["epoch"] = "epoch"
    number: Annotated[int, Field(ge=1, le=8)]
    after: Digest
    """Of the proposal before, or the run id."""
    active: Annotated[tuple[Name, ...], Field(min_length=1, max_length=8)]
    stage: Index
    """The first that is made in it."""
    since: Index
    """The number of the epoch in force that it ends."""


class JointKeys(Model):
    """Digests of the joint relinearisation and rotation keys, as this custodian added them up."""

    kind: Literal["joint-keys"] = "joint-keys"
    relinearisation_h1: Digest
    relinearisation_b: Digest
    rotations: dict[Rotation, Digest]


class InputKey(Model):
    """A public X25519 key for the masks of this run: every institution's and every custodian's."""

    kind: Literal["input-key"] = "input-key"
    public: Hex32


class Upload(Model):
    """An institution's one and only list of masked training rows."""

    kind: Literal["upload"] = "upload"
    joint_keys: Digest
    projection: Digest
    eta_hex: HexFloat
    rows: Index
    first_row: Index
    mask_keys: Digest
    """Over its own public key for masks and every custodian's, as it saw them."""
    label: Hex32
    """Tells the masks of these rows from those of any others."""
    chunks: Digests
    """Digests of masked messages in plan order."""
    proofs: Digests
    """That data and targets are as large as agreed, at most."""


class Roster(Model):
    """The server's word that the uploads are closed, and whose rows training starts from, in manifest order: those
    whose lists stand on the board before it, agreed and complete. Everybody can check it. The same of test results."""

    kind: Literal["roster"] = "roster"
    present: tuple[Name, ...]
    incomplete: tuple[Name, ...]
    """Those whose lists name what the server was not given."""


class UploadsAccepted(Model):
    """A custodian holds one valid list from every institution of the roster; training starts with exactly these.

    ``digest`` covers the lists and the encoded mask, which depends on a floating-point unit: all need the same bits.
    """

    kind: Literal["uploads-accepted"] = "uploads-accepted"
    digest: Digest
    present: tuple[Name, ...]
    """Whose: institutions take it from custodians, not from the server."""
    rows: Index
    """Of all of them together."""
    roster: Digest
    """Of the server's signed roster, as this custodian heard it: afterwards it cannot be another one."""
    absent: dict[Name, WhyAbsent]
    """Everybody else, and what the board said of each when the uploads were closed."""


class InputCommit(Model):
    """Commitment to a custodian's contributions to inputs; nobody shows one before all custodians have committed,
    and before all institutions' proofs were found to hold."""

    kind: Literal["input-commit"] = "input-commit"
    lists: Digest
    """Over all that is put in, as this custodian saw it."""
    commitment: Hex32
    shares: Digest
    """Its shares of the range checks, one after the other."""


class Unproven(Model):
    """A custodian waits for people: these institutions' proofs do not hold, with the shares of all custodians."""

    kind: Literal["unproven"] = "unproven"
    names: tuple[Name, ...]


class InputReveal(Model):
    """A custodian's contributions to the inputs of a round, in their order."""

    kind: Literal["input-reveal"] = "input-reveal"
    commits: Digest
    """Over every custodian's commitment and shares of range checks, as this one saw them."""
    salt: Hex32
    blobs: Digests
    left_out: dict[Name, Index] = {}
    """Whose proofs do not hold, and how many rows each had brought: what was made for these is never shown."""


class RefreshRequest(Model):
    """The server asks for the collective refresh of some ciphertexts, in this order."""

    kind: Literal["refresh-request"] = "refresh-request"
    items: tuple[Item, ...]
    ciphertexts: Digests


class RefreshShares(Model):
    """A custodian's share for each ciphertext of a request."""

    kind: Literal["refresh-shares"] = "refresh-shares"
    items: tuple[Item, ...]
    ciphertexts: Digests
    shares: Digests


class StepDone(Model):
    """The server's statement of a finished step: a link in the chain of digests."""

    kind: Literal["step-done"] = "step-done"
    step: Index
    inputs: Digests
    outputs: Digests
    chain: Digest


class Activations(Model):
    """Interactive: an institution's masked activations of its rows of one joint step.
    Custodians read their limits off this header."""

    kind: Literal["activations"] = "activations"
    step: Index
    rows: Annotated[int, Field(ge=1, le=1 << 16)]
    joint_keys: Digest
    mask_keys: Digest
    """Over its own public key for masks and every custodian's, as it saw them."""
    label: Hex32
    """Tells the mask of this chunk from any other's."""
    chunk: Digest
    proof: Digest
    """That it is as large as agreed, at most."""


class Derivatives(Model):
    """Interactive: its masked loss derivatives of the same rows."""

    kind: Literal["derivatives"] = "derivatives"
    step: Index
    rows: Annotated[int, Field(ge=1, le=1 << 16)]
    label: Hex32
    chunk: Digest
    proof: Digest


class Present(Model):
    """Interactive: with whose activations (``present/STEP``) or derivatives (``answered/STEP``) the server goes on.

    Without owners: there is no such step, training has ended.
    """

    kind: Literal["present"] = "present"
    step: Index
    owners: tuple[Name, ...]


class OpeningRequest(Model):
    """Interactive: the server asks to open logits or activation gradients, each to its owner."""

    kind: Literal["opening-request"] = "opening-request"
    items: tuple[Item, ...]
    ciphertexts: Digests


class OpeningShares(Model):
    """A custodian's shares of an opening, each sealed to the owner of the rows."""

    kind: Literal["opening-shares"] = "opening-shares"
    items: tuple[Item, ...]
    ciphertexts: Digests
    sealed: dict[Name, Digest]


class AverageList(Model):
    """Interactive: who takes part in an average; proposed by the server,
    signed by each listed institution, once a round."""

    kind: Literal["average-list"] = "average-list"
    round: Index
    participants: tuple[Name, ...]


class AverageClosed(Model):
    """The server's word on a round: with ``done`` every listed institution has opened the same sum,
    otherwise the round is abandoned."""

    kind: Literal["average-closed"] = "average-closed"
    round: Index
    done: bool


class AverageSealed(Model):
    """The average of a round, sealed by the first participant to each institution that was absent."""

    kind: Literal["average-sealed"] = "average-sealed"
    round: Index
    sealed: dict[Name, Digest]


class ReleaseRequest(Model):
    """The server asks for the opening of the last refreshed weights."""

    kind: Literal["release-request"] = "release-request"
    items: tuple[Item, ...]
    ciphertexts: Digests


class ReleaseShares(Model):
    """A custodian's decryption shares, sealed to each institution; the server sees none in the clear."""

    kind: Literal["release-shares"] = "release-shares"
    items: tuple[Item, ...]
    ciphertexts: Digests
    sealed: dict[Name, Digest]


class ResultsHanded(Model):
    """With clinics: an institution's histogram of its test rows' scores, under masks (:mod:`focal.sums.entrusted`)."""

    kind: Literal["results-handed"] = "results-handed"
    public: Hex32 | None = None
    """Its X25519 key, drawn for this vector alone; None: it has no test rows."""
    counts: Digest | None = None


class ResultsAdded(Model):
    """A custodian's word on the one list of histograms: their sum, and that of its masks of them."""

    kind: Literal["results-added"] = "results-added"
    roster: Digest
    """Of the server's signed list, as this custodian heard it."""
    total: Digest
    masks: Digest


class Traffic(Model):
    """How many bytes every member sent and received by phase, as the server counted them until now."""

    kind: Literal["traffic"] = "traffic"
    bytes: dict[Name, dict[Phase, dict[Literal["up", "down"], int]]]


class ResumeNonce(Model):
    """A restarted custodian asks its peers what they last saw of it."""

    kind: Literal["resume-nonce"] = "resume-nonce"
    nonce: Hex32


class ResumeAnswer(Model):
    kind: Literal["resume-answer"] = "resume-answer"
    about: Name
    nonce: Hex32
    highest: int = Field(ge=-1, le=1 << 31)
    """How many ledger entries of ``about`` this peer has seen, minus one."""
    digest: Digest


class Finished(Model):
    """This member has all it needs and goes offline."""

    kind: Literal["finished"] = "finished"


class Abort(Model):
    """This member ends the run for everybody, and says why; a clinic ends its own part."""

    kind: Literal["abort"] = "abort"
    reason: Text = Field(max_length=500)


Body = Annotated[
    Union[  # noqa: UP007 - a discriminated union reads best as a list
        NonceCommit, NonceReveal, RunStart, TestFeatures, SumGroupKey, SumCommit, SumContribution, SumOpened,
        ProjectionProposed, ProjectionAccepted, KeyCommit, KeyReveal, KeyTranscript, ShareCheck, Epoch,
        JointKeys, InputKey, Upload, Roster, UploadsAccepted, InputCommit, Unproven, InputReveal,
        RefreshRequest, RefreshShares, StepDone, Activations, Derivatives, Present, OpeningRequest,
        OpeningShares, AverageList, AverageClosed, AverageSealed, ReleaseRequest, ReleaseShares, ResultsHanded,
        ResultsAdded, Traffic, ResumeNonce, ResumeAnswer, Finished, Abort,
    ],
    Field(discriminator="kind"),
]  # fmt: skip


class Record(Model):
    """One thing said once: who, under which run and topic, what."""

    version: Literal[3] = 3
    scope: Hex32
    """The session before the run id exists, the run id afterwards."""
    sender: Name
    topic: Topic
    body: Body

    @model_validator(mode="before")
    @classmethod
    def _of_this_version(cls, fields: Any) -> Any:
        """Whatever else a record of an old run holds: it is not to be trusted."""
        if isinstance(fields, dict) and (why := earlier(fields.get("version"))):
            raise Refused("old-version", f"the record {why}", hint=ANEW)
        return fields


class Signed(Model):
    """A record's bytes and the sender's Ed25519 signature over them."""

    record: Annotated[bytes, Field(max_length=MAX_RECORD)]
    signature: Annotated[bytes, Field(min_length=64, max_length=64)]
