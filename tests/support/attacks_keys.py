"""Lies about the run id, its end, key rounds, sums and the projection."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import sqlite3
from collections.abc import Iterable
from typing import Any

import numpy as np
from lying import NO_KEY, OTHER_RUN, LyingServer, replace, says

from focal.net import messages as msg
from focal.net.encoding import encode
from focal.net.identity import RECORD_DOMAIN, Identity, commitment
from focal.protocols.common import ceremony
from focal.protocols.common import inputs as speaking
from focal.protocols.common.custodian import Custodian
from focal.protocols.common.institution import Institution
from focal.sums.masked import contribution_digest

# --------------------------------------------------------------------------- lies about the run id


class TwoNonces(LyingServer):
    """custodian-3's nonce is one for custodian-1 and another for custodian-2."""

    puppets: tuple[str, ...] = ("custodian-3", "hospital-a", "hospital-b", "hospital-c")

    def begins(self) -> None:
        for name in self.puppets:
            for topic, body in self._nonce(name, b"\1" * 32):
                self.post(name, topic, body, self.hub.session)
        for topic, body in self._nonce("custodian-3", b"\2" * 32):
            other = self.sign("custodian-3", topic, body, self.hub.session)
            self.lie("custodian-2", "custodian-3", topic, lambda _, other=other: [other])  # type: ignore[misc]

    def _nonce(self, name: str, nonce: bytes) -> list[tuple[str, Any]]:
        salt = bytes(32)
        committed = commitment(bytes.fromhex(self.hub.session), "nonce", name, salt, hashlib.sha256(nonce).digest())
        return [
            ("nonce/commit", msg.NonceCommit(commitment=committed.hex())),
            ("nonce/reveal", msg.NonceReveal(nonce=nonce.hex(), salt=salt.hex())),
        ]

    def heard(self, record: msg.Record) -> None:
        if isinstance(record.body, msg.RunStart) and record.sender == "custodian-1":
            for name in self.puppets:
                self.post(name, "run/start", record.body, record.scope)


class ReplayedRun(LyingServer):
    """An earlier run again, under a new session: as it was to custodian-1; to custodian-2, whose random
    generator repeats itself (a virtual machine that was rolled back), everybody else says the same nonces
    once more, newly signed."""

    puppets: tuple[str, ...] = ("custodian-1", "custodian-3", "hospital-a", "hospital-b", "hospital-c")
    session = "cd" * 32

    def begins(self) -> None:
        db = sqlite3.connect(self.server.folder / "old.sqlite")
        old = [bytes(row[0]) for row in db.execute("SELECT data FROM record ORDER BY seq")]
        db.close()
        self.lie("custodian-1", "custodian-1", "nonce/commit", lambda _: old)
        for topic in ("nonce/commit", "nonce/reveal", "run/start"):
            self.lie("custodian-1", "custodian-2", topic, lambda _: [])
        again: dict[str, list[bytes]] = {name: [] for name in self.puppets}
        for record in (self.open(data) for data in old):
            if record.sender in again and isinstance(record.body, msg.NonceReveal):
                nonce, salt = bytes.fromhex(record.body.nonce), bytes(32)
                sealed = commitment(
                    bytes.fromhex(self.hub.session), "nonce", record.sender, salt, hashlib.sha256(nonce).digest()
                )
                for topic, body in (
                    ("nonce/commit", msg.NonceCommit(commitment=sealed.hex())),
                    ("nonce/reveal", msg.NonceReveal(nonce=nonce.hex(), salt=salt.hex())),
                ):
                    again[record.sender].append(self.sign(record.sender, topic, body, self.hub.session))
        everything = [data for both in again.values() for data in both]
        self.lie("custodian-2", "custodian-2", "nonce/commit", lambda own: [own, *everything])
        self.lie("custodian-2", "custodian-1", "nonce/commit", lambda _: [])


def repeats_randomness(nonce: str) -> None:
    """This party's random generator gives what it gave in an earlier run."""
    replace(secrets, token_bytes=lambda n=None: bytes.fromhex(nonce))


# --------------------------------------------------------------------------- lies about who ended the run


class AbortsOfAnotherRun(LyingServer):
    """hospital-a ended another run: custodian-1 hears of it before it knows this run's id, custodian-2 afterwards."""

    def begins(self) -> None:
        other = self.sign("hospital-a", "abort", msg.Abort(reason="disk on fire"), OTHER_RUN)
        self.lie("custodian-1", "custodian-2", "nonce/commit", lambda data: [other, data])
        self.lie("custodian-2", "custodian-1", "run/start", lambda data: [data, other])


class SteersTerminals(LyingServer):
    """custodian-3 ends this run, and says why with codes that clear a terminal and set its title."""

    puppets: tuple[str, ...] = ("custodian-3",)

    def begins(self) -> None:
        body = msg.Abort.model_construct(reason="\x1b[2J\x1b]0;all is well\x07\u202etxt.exe")
        record = encode(msg.Record.model_construct(scope=self.run_id, sender="custodian-3", topic="abort", body=body))
        signature = Identity.load(self.server.folder.parent / "custodian-3" / "identity.json").sign(
            RECORD_DOMAIN + record
        )
        ended = encode(msg.Signed(record=record, signature=signature))
        self.lie("custodian-1", "custodian-1", "run/start", lambda data: [data, ended])


# --------------------------------------------------------------------------- lies in the key rounds


class MixedUpRound(LyingServer):
    """Three custodians, three lies about the reveals of round 1: replayed from another run, shown twice, dropped."""

    def begins(self) -> None:
        self.lie("custodian-1", "custodian-2", "keys/1/reveal", self.another_run)
        self.lie("custodian-2", "custodian-1", "keys/1/reveal", lambda data: [data, data])
        self.lie("custodian-3", "custodian-2", "keys/1/reveal", lambda _: [])


class SwappedContributions(LyingServer):
    """custodian-1 is sent custodian-3's part of the first key where custodian-2's belongs."""

    def heard(self, record: msg.Record) -> None:
        if record.topic == "keys/1/reveal":
            reveals: dict[str, Any] = {r.sender: r.body for r in self.records() if r.topic == record.topic}
            if {"custodian-2", "custodian-3"} <= set(reveals):
                self.swapped["custodian-1", reveals["custodian-2"].blobs[0]] = reveals["custodian-3"].blobs[0]


class TwoContributions(LyingServer):
    """custodian-3 makes two contributions to round 1, each well committed and revealed: one for each of the others."""

    puppets: tuple[str, ...] = ("custodian-3",)

    def begins(self) -> None:
        for reader, fill in (("custodian-1", "11"), ("custodian-2", "22")):
            blobs, salt = (fill * 32,), bytes(32)
            sealed = commitment(bytes.fromhex(self.run_id), "keys/1", "custodian-3", salt, ceremony.blobs_digest(blobs))
            for topic, body in (
                ("keys/1/commit", msg.KeyCommit(round=1, commitment=sealed.hex())),
                ("keys/1/reveal", msg.KeyReveal(round=1, salt=salt.hex(), blobs=blobs)),
            ):
                if reader == "custodian-1":
                    self.post("custodian-3", topic, body)
                else:
                    self.show(reader, "custodian-3", topic, body)

    def heard(self, record: msg.Record) -> None:
        if isinstance(record.body, msg.KeyTranscript) and record.sender == "custodian-1":
            self.post("custodian-3", record.topic, record.body)


class OtherKeysAfterRestart(LyingServer):
    """After a restart: another commitment list for custodian-1, other joint keys for hospital-a,
    a key for masks that everybody can finish for hospital-b."""

    puppets: tuple[str, ...] = ("custodian-3",)

    def begins(self) -> None:
        self.show("custodian-1", "custodian-3", "keys/1/commit", msg.KeyCommit(round=1, commitment="33" * 32))
        joint: msg.JointKeys = self.body("custodian-3", "keys/joint")
        other = self.body("custodian-3", "keys/1/reveal").blobs[0]
        for sender in ("custodian-3", "server"):
            self.show("hospital-a", sender, "keys/joint", joint.model_copy(update={"relinearisation_h1": other}))
        self.show("hospital-b", "custodian-3", speaking.KEY, msg.InputKey(public=NO_KEY))


def rushes() -> None:
    """A custodian that reveals another contribution than it committed to, after it has seen everybody else's."""
    says(
        Custodian,
        "keys/1/reveal",
        lambda self, body: body.model_copy(update={"blobs": body.blobs[::-1]}),
        after=msg.KeyReveal,
    )
    _believes_itself()


def copies() -> None:
    """A custodian that hands in custodian-1's commitment and contribution as its own."""
    says(Custodian, "keys/1/commit", lambda self, _: self.hear("custodian-1", "keys/1/commit", msg.KeyCommit))
    says(Custodian, "keys/1/reveal", lambda self, _: self.hear("custodian-1", "keys/1/reveal", msg.KeyReveal))
    _believes_itself()


def _believes_itself() -> None:
    """A liar does not stumble over its own lie."""
    from focal.protocols.common import keyholder

    check = keyholder.check_opens

    def lenient(scope: str, round: str, name: str, *rest: Any) -> None:
        if name != "custodian-3":
            check(scope, round, name, *rest)

    replace(keyholder, check_opens=lenient)


# --------------------------------------------------------------------------- lies about sums and the projection

COMMIT, SUM = "sum/moments/commit", "sum/moments/contribution"


class TwoSums(LyingServer):
    """hospital-b contributes different values for the two others."""

    puppets: tuple[str, ...] = ("hospital-b",)

    def contribution(self, seed: int, participants: Iterable[str] = ()) -> tuple[msg.SumCommit, msg.SumContribution]:
        """A contribution of the right length, and its commitment; random values, as masked ones are."""
        dim, classes = self.manifest.lower.dim, len(self.manifest.classes)
        size = dim + dim * (dim + 1) // 2 + classes
        blob = np.random.default_rng(seed).integers(0, 1 << 64, size, dtype=np.uint64).astype("<u8").tobytes()
        names = tuple(participants) or tuple(m.name for m in self.manifest.institutions)
        digest, salt = self.hub.publish(blob, "all"), bytes(32)
        sealed = commitment(
            bytes.fromhex(self.run_id), "sum/moments", "hospital-b", salt, contribution_digest(names, digest)
        )
        return (
            msg.SumCommit(label="moments", commitment=sealed.hex()),
            msg.SumContribution(label="moments", participants=names, blob=digest, salt=salt.hex()),
        )

    def contributes(self, seed: int) -> None:
        commit, contribution = self.contribution(seed)
        self.post("hospital-b", COMMIT, commit)
        self.post("hospital-b", SUM, contribution)

    def shows(self, reader: str, seed: int, participants: Iterable[str] = ()) -> None:
        commit, contribution = self.contribution(seed, participants)
        self.show(reader, "hospital-b", COMMIT, commit)
        self.show(reader, "hospital-b", SUM, contribution)

    def begins(self) -> None:
        self.contributes(1)
        self.shows("hospital-c", 2)

    def heard(self, record: msg.Record) -> None:
        if isinstance(record.body, msg.SumOpened) and record.sender == "hospital-a":
            self.post("hospital-b", record.topic, record.body)


class OtherParticipants(TwoSums):
    """hospital-b contributes to a sum of two for hospital-a, and a second time when hospital-c has contributed."""

    def begins(self) -> None:
        self.contributes(1)
        self.shows("hospital-a", 2, ("hospital-a", "hospital-b"))
        second = self.sign("hospital-b", SUM, self.contribution(3)[1])
        self.lie("hospital-c", "hospital-c", SUM, lambda own: [own, second])


def contributes_last() -> None:
    """An institution that commits to something, opens the sum of what all others then show,
    and doubles it with its own contribution."""
    from focal.protocols.common import institution
    from focal.sums.masked import MaskedSum

    say, check = Institution.say, institution.check_opens
    contributed, opens = MaskedSum.contribution, MaskedSum.open
    mine: list[tuple[MaskedSum, bytes]] = []

    def contribution(self: MaskedSum, values: Any) -> bytes:
        mine.append((self, contributed(self, values)))
        return mine[-1][1]

    def changed(self: Any, topic: str, body: Any) -> None:
        if topic == SUM:
            others = [n for n in self.names if n != self.me.name]
            given = {n: self.fetch(c.blob) for n, c in self.hear_all(others, SUM, msg.SumContribution).items()}
            masked, own = mine[-1]
            total = opens(masked, {**given, self.me.name: own})
            chosen = (np.frombuffer(own, "<u8") + total).tobytes()
            body = body.model_copy(update={"blob": self.share_blobs([chosen], "all")[0]})
        say(self, topic, body)

    def lenient(scope: str, round: str, name: str, *rest: Any) -> None:
        if name != "hospital-b":
            check(scope, round, name, *rest)

    replace(MaskedSum, contribution=contribution, _check=lambda *_: None)
    replace(Institution, say=changed)
    replace(institution, check_opens=lenient)


def proposes(how: str) -> None:
    """The first institution's projection is not the whitening: ``rotated`` among its own directions,
    or ``chosen`` to single out a few raw features. It still says that it checked it."""
    from focal.segments import projection as proj

    whiten = proj.whiten

    def lying(*args: Any) -> Any:
        honest = whiten(*args)
        matrix, offset = honest.matrix.copy(), honest.offset.copy()
        if how == "rotated":  # by 45 degrees in the plane of the first two rows: these span what the honest ones span
            turn = np.array([[1, 1], [-1, 1]], np.float32) / np.sqrt(np.float32(2))
            matrix[:2], offset[:2] = turn @ matrix[:2], turn @ offset[:2]
        else:
            matrix[:] = np.eye(*matrix.shape, dtype=np.float32) * np.abs(matrix).max()
            offset[:] = -matrix @ args[0].mean.astype(np.float32)
        return dataclasses.replace(honest, matrix=matrix, offset=offset)

    replace(proj, whiten=lying, check_whiten=lambda *args: None)
