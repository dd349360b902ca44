"""Lies about uploads, and liars among those who make the inputs."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
from lying import NO_KEY, LyingServer, replace, says, shows

from focal.ckks import codec, ring
from focal.ckks.scheme import REFRESH_LIMBS
from focal.custody import inputs
from focal.net import messages as msg
from focal.protocols.blind import plan, uploads
from focal.protocols.common import ceremony
from focal.protocols.common import inputs as speaking
from focal.protocols.common.custodian import Custodian
from focal.protocols.common.institution import Institution
from focal.protocols.common.party import Party

# --------------------------------------------------------------------------- lies about uploads


class FalseUploads(LyingServer):
    """The institutions are puppets; a list holds the right number of masked messages, zeros.
    Subclasses say to whom it lies how."""

    puppets: tuple[str, ...] = ("hospital-a", "hospital-b", "hospital-c", "custodian-3")

    def upload(self, name: str, **changes: Any) -> msg.Upload:
        """A list of ``name``."""
        layout = plan.layout(self.manifest)
        start, stop = plan.row_table(self.manifest, layout)[name]
        zeros = codec.pack_masked(self.scheme, np.zeros((self.scheme.n, 2), np.uint64))
        accepted: msg.ProjectionAccepted = self.body("hospital-a", "projection/accepted")
        fields = {
            "joint_keys": ceremony.joint_digest(self.body("custodian-1", "keys/joint")),
            "projection": accepted.digest,
            "eta_hex": accepted.eta_hex,
            "rows": stop - start,
            "first_row": start,
            "mask_keys": speaking.keys_digest(name, self.custodians, self.keys),
            "label": "0" * 64,
            "proofs": (self.hub.publish(b"no proof", "custodians"),) * len(uploads.PROVEN),
            "chunks": (self.hub.publish(zeros, "custodians"),) * len(layout.chunks(start, stop)),
        }
        return msg.Upload.model_validate({**fields, **changes})

    @property
    def custodians(self) -> list[str]:
        return [m.name for m in self.manifest.custodians]

    @property
    def keys(self) -> dict[str, msg.InputKey]:
        """Everybody's public key for masks."""
        own = {
            name: msg.InputKey(public=inputs.public_key(bytes([i + 1]) * 32)) for i, name in enumerate(self.puppets[:3])
        }
        return {**own, **{name: self.body(name, speaking.KEY) for name in self.custodians}}

    def begins(self) -> None:
        for name in self.puppets[:3]:
            self.post(name, speaking.KEY, self.keys[name])
            self.post(name, "upload", self.upload(name))

    def heard(self, record: msg.Record) -> None:
        super().heard(record)
        victims = [m.name for m in self.manifest.custodians if m.name not in self.puppets]
        if isinstance(record.body, msg.UploadsAccepted) and record.sender == victims[0]:
            for name in self.puppets[3:]:
                self.post(name, record.topic, record.body)


class TwoLists(FalseUploads):
    """hospital-b signed two lists; each custodian is shown another one."""

    def begins(self) -> None:
        super().begins()
        self.show("custodian-2", "hospital-b", "upload", self.upload("hospital-b", label="1" * 64))


class OtherProjectionOrLeftOut(FalseUploads):
    """custodian-1: hospital-c masked rows under a projection of its own. custodian-2:
    hospital-c's list is kept from it, and training begins."""

    def begins(self) -> None:
        super().begins()
        self.show("custodian-1", "hospital-c", "upload", self.upload("hospital-c", projection="44" * 32))
        self.lie("custodian-2", "hospital-c", "upload", lambda _: [])
        topic, items = plan.batches(self.manifest, plan.layout(self.manifest))[0]
        kind = codec.ciphertext(REFRESH_LIMBS)
        zeros = codec.header(self.scheme, kind) + bytes(codec.size(self.scheme, kind) - codec.HEADER.size - 1)
        asked = tuple(self.hub.publish(zeros + bytes([i]), "custodians") for i in range(len(items)))
        self.post("server", topic, msg.RefreshRequest(items=items, ciphertexts=asked))


class SecondUploads(FalseUploads):
    """Everybody but custodian-2, whose ledger has contributed to other lists, is a puppet."""

    puppets: tuple[str, ...] = ("hospital-a", "hospital-b", "hospital-c", "custodian-1", "custodian-3")


class OtherListAfterRestart(LyingServer):
    """custodian-1, restarted after it has contributed, is shown another list of hospital-b."""

    puppets: tuple[str, ...] = ("hospital-b", "custodian-2", "custodian-3")

    def begins(self) -> None:
        upload: msg.Upload = self.body("hospital-b", "upload")
        self.show("custodian-1", "hospital-b", "upload", upload.model_copy(update={"label": "1" * 64}))


class SwappedChunk(LyingServer):
    """custodian-1 is sent another masked message in the place of the first that hospital-b signed."""

    def heard(self, record: msg.Record) -> None:
        super().heard(record)
        if isinstance(record.body, msg.Upload) and record.sender == "hospital-b":
            first, second = record.body.chunks[:2]
            self.swapped["custodian-1", first] = second


class SwappedInput(LyingServer):
    """custodian-1 is sent custodian-2's contribution in the place of custodian-3's."""

    def heard(self, record: msg.Record) -> None:
        super().heard(record)
        given: dict[str, Any] = {r.sender: r.body for r in self.records() if isinstance(r.body, msg.InputReveal)}
        if {"custodian-2", "custodian-3"} <= set(given):
            self.swapped["custodian-1", given["custodian-3"].blobs[0]] = given["custodian-2"].blobs[0]


# --------------------------------------------------------------------------- liars among those who make the inputs

REVEAL = f"{uploads.ROUND}/reveal"


def reveals_otherwise() -> None:
    """A custodian that reveals other contributions than it had committed to."""
    says(Custodian, REVEAL, lambda self, body: body.model_copy(update={"blobs": body.blobs[::-1]}))


def cancels() -> None:
    """A custodian that waits for what the others reveal, and then reveals what takes it away again:
    c0 would be what the institutions sent, and the phase a multiple of the key."""

    def cancelling(self: Any, body: msg.InputReveal) -> msg.InputReveal:
        others = [self.hear(name, REVEAL, msg.InputReveal).blobs for name in self.peers if name != self.me.name]
        blobs = []
        for own in zip(*others, strict=True):
            data = [self.net.get(digest) for digest in own]
            kind = next(k for k in map(codec.input_b, range(1, 7)) if codec.size(self.scheme, k) == len(data[0]))
            primes = codec.moduli(self.scheme, kind)
            total = ring.total([codec.unpack(self.scheme, kind, blob, "others")[0] for blob in data], primes)
            minus = [ring.subtract(np.zeros_like(x), x, q) for x, q in zip(total, primes, strict=True)]
            blobs.append(codec.pack(self.scheme, kind, [minus]))
        return body.model_copy(update={"blobs": tuple(self.share_blobs(blobs, "custodians"))})

    says(Custodian, REVEAL, cancelling, after=msg.InputReveal)


def copies_inputs() -> None:
    """A custodian that hands in custodian-1's commitment and contributions as its own."""
    says(
        Custodian,
        f"{uploads.ROUND}/commit",
        lambda self, _: self.hear("custodian-1", f"{uploads.ROUND}/commit", msg.InputCommit),
    )
    says(Custodian, REVEAL, lambda self, _: self.hear("custodian-1", REVEAL, msg.InputReveal))


def contributes(how: str) -> None:
    """A custodian that contributes to one input less than there are (``fewer``), or for ``other lists``: well
    committed and revealed."""
    contribute = Custodian.contribute

    def changed(self: Custodian, round: str, lists: str, wanted: Any, claims: Any) -> None:
        contribute(self, round, *((lists, wanted[:-1]) if how == "fewer" else ("55" * 32, wanted)), claims)

    replace(Custodian, contribute=changed)


def copies_rows() -> None:
    """An institution that lists hospital-a's masked messages as its own."""
    says(
        Institution,
        "upload",
        lambda self, body: body.model_copy(update={"chunks": self.hear("hospital-a", "upload", msg.Upload).chunks}),
    )


def shows_another_key(reader: str, sender: str) -> None:
    """The server shows ``reader`` another public key for masks, which its puppet ``sender`` has signed too."""
    shows(
        reader,
        sender,
        speaking.KEY,
        lambda body: body.model_copy(update={"public": inputs.public_key(bytes([7]) * 32)}),
    )


def has_no_key() -> None:
    """A party whose public key for masks gives everybody the same shared key, zero."""
    replace(inputs, public_key=lambda private: NO_KEY)


def dies_saying(topic: str) -> None:
    """kill -9 of a party that is about to say something under ``topic``."""
    say = Party.say

    def dying(self: Party, about: str, body: Any) -> None:
        if about == topic:
            os.kill(os.getpid(), signal.SIGKILL)
        say(self, about, body)

    replace(Party, say=dying)
