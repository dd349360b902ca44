"""Parties that break the protocol, as real processes: this side runs inside the hostile process,
before focal's own ``main``.

::

    victims (honest processes) <==CURVE==> hub of a LyingServer
                                             +-- its board: what was really posted
                                             +-- its lies:  (reader, sender, topic) -> what the reader is shown
                                             +-- puppets:   members in league with it, whose keys it has

A :class:`LyingServer` takes no part in the run of its own accord: it relays, loses every ``abort`` (so that each victim
must find out by itself), and lies. It can sign for its puppets, never for a victim, except what a victim would have
signed in another run. Liars among the other members are the functions below: each replaces one method of a role.
``stages.py`` is the tests' side.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import secrets
import signal
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from focal.ckks import codec, ring
from focal.ckks.scheme import REFRESH_LIMBS, Scheme
from focal.custody import inputs, keys, refresh
from focal.custody.ledger import Part, ledger_digest
from focal.manifest import Manifest
from focal.net import frames
from focal.net import messages as msg
from focal.net.encoding import encode
from focal.net.hub import Hub
from focal.net.identity import RECORD_DOMAIN, Identity, commitment, open_record
from focal.net.store import Board
from focal.protocols.blind import plan, roster, uploads
from focal.protocols.blind.custodian import BlindCustodian
from focal.protocols.blind.institution import BlindInstitution
from focal.protocols.common import ceremony
from focal.protocols.common import inputs as speaking
from focal.protocols.common.custodian import Custodian
from focal.protocols.common.institution import Institution
from focal.protocols.common.party import Party
from focal.protocols.common.server import Server
from focal.sums.masked import contribution_digest

CONSTANT = 1 << 135
"""A constant c1: above the others' refresh masks (2^98), below the modulus of the request (2^150)."""
SHIFT = 1 << 12
"""c1 = a + SHIFT looks uniformly random."""
OTHER_RUN = "ab" * 32
NO_KEY = "00" * 32
"""An X25519 key of low order: whatever the other's is, the key that both share is zero."""

Lie = Callable[[bytes], list[bytes]]
"""What a reader is shown in the place of a record."""


# --------------------------------------------------------------------------- the lying server


class LyingServer:
    """A server that relays. Subclasses say in :meth:`begins` what they lie about; ``puppets`` are in league with it."""

    puppets: tuple[str, ...] = ()
    session: str | None = None
    """Another session name than the one of its state folder."""

    def __init__(self) -> None:
        self.lies: dict[tuple[str, str, str], Lie] = {}
        self.swapped: dict[tuple[str, str], str] = {}
        """(reader, digest) -> digest of the blob whose bytes are sent instead."""
        self.ready = False
        self.server: Server
        self._opened: dict[bytes, msg.Record] = {}

    # ----------------------------------------------------------------- what a subclass overrides

    def begins(self) -> None:
        """Prepare the lies; readers see nothing of the board before this returns."""

    def heard(self, record: msg.Record) -> None:
        """After each record that was posted. Here: puppets tell a restarted custodian that they
        never saw a share of it, and the uploads are closed when all institutions have said what theirs are."""
        if isinstance(record.body, msg.Upload):
            said = {r.sender for r in self.records() if isinstance(r.body, msg.Upload)}
            if (names := tuple(m.name for m in self.manifest.institutions if m.name in said)) and len(names) == 3:
                self.post("server", roster.CLOSED, msg.Roster(present=names, incomplete=()))
        if isinstance(record.body, msg.ResumeNonce):
            for name in self.puppets:
                if self.manifest.member(name).role == "custodian":
                    answer = msg.ResumeAnswer(
                        about=record.sender, nonce=record.body.nonce, highest=-1, digest=ledger_digest([])
                    )
                    self.post(name, f"resume-answer/{record.sender}/{record.topic.partition('/')[2]}", answer)

    # ----------------------------------------------------------------- its means

    @property
    def manifest(self) -> Manifest:
        return self.server.manifest

    @property
    def hub(self) -> Hub:
        return self.server.hub

    @functools.cached_property
    def run_id(self) -> str:
        """The run id, once somebody stated it."""
        return next(r.scope for r in self.records() if isinstance(r.body, msg.RunStart))

    @functools.cached_property
    def scheme(self) -> Scheme:
        return Scheme(self.manifest.ckks, self.run_id)

    def open(self, data: bytes) -> msg.Record:
        """A signed record; every one is looked at often, so each signature is checked once."""
        if data not in self._opened:
            self._opened[data] = open_record(self.manifest, data)
        return self._opened[data]

    def records(self) -> list[msg.Record]:
        return [self.open(data) for data in self.hub.board.since(0, 1 << 40)]

    def body(self, sender: str, topic: str) -> Any:
        return next(r.body for r in self.records() if (r.sender, r.topic) == (sender, topic))

    def sign(self, name: str, topic: str, body: Any, scope: str = "") -> bytes:
        folder = self.server.folder.parent
        return Identity.load(folder / name / "identity.json").sign_record(scope or self.run_id, topic, body)

    def post(self, name: str, topic: str, body: Any, scope: str = "") -> None:
        """Put a puppet's (or the server's own) record on the board."""
        assert name in (*self.puppets, "server")
        self.hub.board.append(self.sign(name, topic, body, scope), None)

    def lie(self, reader: str, sender: str, topic: str, lie: Lie) -> None:
        self.lies[reader, sender, topic] = lie

    def show(self, reader: str, sender: str, topic: str, body: Any) -> None:
        """``reader`` is shown that the puppet ``sender`` said ``body``."""
        assert sender in (*self.puppets, "server")
        data = self.sign(sender, topic, body)
        self.lie(reader, sender, topic, lambda _: [data])

    def another_run(self, data: bytes) -> list[bytes]:
        """What the sender of ``data`` would have said under this topic in another run of the same manifest."""
        record = self.open(data)
        return [self.sign(record.sender, record.topic, record.body, OTHER_RUN)]

    def view(self, reader: str) -> list[bytes]:
        """The board as ``reader`` is shown it. It only ever grows at the end: a lie depends on its record alone."""
        out: list[bytes] = []
        for data in self.hub.board.since(0, 1 << 40) if self.ready else []:
            record = self.open(data)
            lie = self.lies.get((reader, record.sender, record.topic))
            out += [data] if lie is None else lie(data)
        return out


def install(lying: LyingServer) -> None:
    """Make this process's server the lying one."""
    append, get = Board.append, Hub._get

    def run(server: Server) -> None:
        lying.server = server
        if lying.session:
            server.hub.session = lying.session
        server.hub.start()
        lying.begins()
        lying.ready = True
        while True:  # until the test ends it
            time.sleep(1)

    def appended(board: Board, data: bytes, sender: str | None) -> int:
        record = open_record(board._manifest, data)
        if isinstance(record.body, msg.Abort):
            return len(board)
        number = append(board, data, sender)
        lying.heard(record)
        return number

    def answer(hub: Hub, asker: Any, wait: frames.Wait) -> None:
        lines = tuple(lying.view(asker.name)[wait.after :])
        hub._answer(asker, lambda: (frames.Records(first=wait.after + 1, signed=lines), b""))

    def hold(hub: Hub, asker: Any, wait: frames.Wait) -> bool:
        if wait.seconds and len(lying.view(asker.name)) <= wait.after:
            hub._waits[asker] = (time.monotonic() + wait.seconds, wait.after)
        else:
            answer(hub, asker, wait)
        return True

    def answer_waits(hub: Hub) -> None:
        for asker, (deadline, after) in list(hub._waits.items()):
            if time.monotonic() >= deadline or len(lying.view(asker.name)) > after:
                del hub._waits[asker]
                answer(hub, asker, frames.Wait(after=after, seconds=0))

    def gotten(hub: Hub, asker: Any, wanted: frames.Get, payload: bytes) -> Any:
        digest = lying.swapped.get((asker.name, wanted.digest), wanted.digest)
        return get(hub, asker, wanted.model_copy(update={"digest": digest}), payload)

    replace(Server, run=run)
    replace(Board, append=appended)
    replace(Hub, _hold=hold, _answer_waits=answer_waits, _get=gotten)


def replace(target: Any, **by: Any) -> None:
    """Put other functions in the place of a role's, or of a module's."""
    for name, function in by.items():
        setattr(target, name, function)


def shows(reader: str, sender: str, topic: str, make: Callable[[Any], Any]) -> None:
    """A server that is honest but for this: ``reader`` is shown that its puppet ``sender`` said
    ``make(body)`` under ``topic``."""
    answer, records = Hub._answer, Hub._records
    asking = [""]

    def answered(hub: Hub, asker: Any, reply: Any) -> None:
        asking[0] = asker.name
        answer(hub, asker, reply)

    def shown(hub: Hub, after: int) -> Any:
        header, payload = records(hub, after)
        return header.model_copy(update={"signed": tuple(other(hub, data) for data in header.signed)}), payload

    def other(hub: Hub, data: bytes) -> bytes:
        record = open_record(hub.manifest, data)
        if (asking[0], record.sender, record.topic) != (reader, sender, topic):
            return data
        identity = Identity.load(hub.board.path.parents[1] / sender / "identity.json")
        return identity.sign_record(record.scope, topic, make(record.body))

    replace(Hub, _answer=answered, _records=shown)


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
    _says(
        Custodian,
        "keys/1/reveal",
        lambda self, body: body.model_copy(update={"blobs": body.blobs[::-1]}),
        after=msg.KeyReveal,
    )
    _believes_itself()


def copies() -> None:
    """A custodian that hands in custodian-1's commitment and contribution as its own."""
    _says(Custodian, "keys/1/commit", lambda self, _: self.hear("custodian-1", "keys/1/commit", msg.KeyCommit))
    _says(Custodian, "keys/1/reveal", lambda self, _: self.hear("custodian-1", "keys/1/reveal", msg.KeyReveal))
    _believes_itself()


def _says(role: type[Party], topic: str, change: Callable[[Any, Any], Any], after: Any = None) -> None:
    """Replace what ``role`` says under ``topic``; with ``after`` only when all its peers have said theirs."""
    say = role.say

    def changed(self: Any, about: str, body: Any) -> None:
        if about == topic:
            if after is not None:
                self.hear_all([p for p in self.peers if p != self.me.name], topic, after)
            body = change(self, body)
        say(self, about, body)

    replace(role, say=changed)


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
    _says(Custodian, REVEAL, lambda self, body: body.model_copy(update={"blobs": body.blobs[::-1]}))


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

    _says(Custodian, REVEAL, cancelling, after=msg.InputReveal)


def copies_inputs() -> None:
    """A custodian that hands in custodian-1's commitment and contributions as its own."""
    _says(
        Custodian,
        f"{uploads.ROUND}/commit",
        lambda self, _: self.hear("custodian-1", f"{uploads.ROUND}/commit", msg.InputCommit),
    )
    _says(Custodian, REVEAL, lambda self, _: self.hear("custodian-1", REVEAL, msg.InputReveal))


def contributes(how: str) -> None:
    """A custodian that contributes to one input less than there are (``fewer``), or for ``other lists``: well
    committed and revealed."""
    contribute = Custodian.contribute

    def changed(self: Custodian, round: str, lists: str, wanted: Any, claims: Any) -> None:
        contribute(self, round, *((lists, wanted[:-1]) if how == "fewer" else ("55" * 32, wanted)), claims)

    replace(Custodian, contribute=changed)


def copies_rows() -> None:
    """An institution that lists hospital-a's masked messages as its own."""
    _says(
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


# --------------------------------------------------------------------------- lies about refreshes and the release


class ForgedRefresh(LyingServer):
    """The first refresh is asked for ciphertexts of the server's own making: one of :meth:`forge` for each item,
    labels for the rest."""

    puppets: tuple[str, ...] = ("custodian-3",)

    def __init__(self, *kinds: str) -> None:
        super().__init__()
        self.kinds = kinds

    def begins(self) -> None:
        topic, items = plan.batches(self.manifest, plan.layout(self.manifest))[0]
        self.post("server", topic, self.request(items, self.kinds))

    def request(self, items: tuple[str, ...], kinds: tuple[str, ...]) -> msg.RefreshRequest:
        kinds += tuple(f"labels {i}" for i in range(len(kinds), len(items)))
        forged = (
            self.hub.publish(self.forge(kind, item), "custodians") for kind, item in zip(kinds, items, strict=True)
        )
        return msg.RefreshRequest(items=items, ciphertexts=tuple(forged))

    def forge(self, kind: str, item: str) -> bytes:
        """``constant``: c1 = 2^135; ``shifted``: c1 = a + 2^12 with the ``a`` of (0, 0) under this item;
        ``labels``: hospital-b's encrypted targets; anything else: random limbs that the word determines."""
        scheme, primes = self.scheme, self.scheme.moduli[:REFRESH_LIMBS]
        c0, c1 = scheme.zero(REFRESH_LIMBS), ring.expand(kind.encode(), primes, scheme.n)
        if kind == "constant":
            c1 = [np.full(scheme.n, CONSTANT % q, np.uint64) for q in primes]
        elif kind == "shifted":
            a = refresh.common_random(scheme, bytes.fromhex(self.run_id), item, codec.digest(self._packed(c0, c0)))
            c1 = [ring.add(limb, np.full(scheme.n, SHIFT, np.uint64), q) for limb, q in zip(a, primes, strict=False)]
        elif kind.startswith("labels"):
            return self._labels(int(kind.partition(" ")[2] or 0))
        return self._packed(c0, c1)

    def _labels(self, which: int) -> bytes:
        """Encrypted targets, down to the limbs of a request: hospital-b's of every class group, then the others'."""
        lists = {m.name: self.body(m.name, "upload") for m in self.manifest.institutions}
        names = [m.name for m in self.manifest.custodians]
        given: dict[str, msg.InputReveal] = {name: self.body(name, f"{uploads.ROUND}/reveal") for name in names}
        placed = list(enumerate(uploads.inputs(plan.layout(self.manifest), lists)))
        order = ("hospital-b", "hospital-a", "hospital-c")
        found = [(i, p) for name in order for i, p in placed if p.place[1] == "target" and p.input.owners[0][0] == name]
        i, wanted = found[which]
        polynomials = speaking.combined(
            self.scheme,
            bytes.fromhex(self.run_id),
            self.body(names[0], f"{uploads.ROUND}/commit").lists,
            wanted.input,
            [(wanted.input.owners[0][0], self.hub.blobs.get(wanted.chunk))],
            [(name, reveal.blobs[i]) for name, reveal in given.items()],
            self.hub.blobs.get,
        )
        return self._packed(*(limbs[:REFRESH_LIMBS] for limbs in polynomials))

    def _packed(self, c0: Any, c1: Any) -> bytes:
        return codec.pack(self.scheme, codec.ciphertext(REFRESH_LIMBS), [c0, c1])


class AnsweredForgery(ForgedRefresh):
    """:class:`ForgedRefresh` whose puppet answers after custodian-2, honestly and with its own key:
    the guard gets to weigh all."""

    def heard(self, record: msg.Record) -> None:
        super().heard(record)
        if record.sender == "custodian-2" and isinstance(record.body, msg.RefreshShares):
            self.post("custodian-3", record.topic, self.answer(record.body))

    def answer(self, asked: Any) -> msg.RefreshShares:
        """custodian-3's shares of what ``asked`` names."""
        (file,) = (self.server.folder.parent / "custodian-3").glob("secret-*.key")
        share = keys.SecretShare.load(self.scheme, bytes.fromhex(self.run_id), file.read_bytes())
        layout, bits = plan.layout(self.manifest), refresh.guard(self.scheme, 3).others_bits
        h0, h1 = [], []
        for item, digest in zip(asked.items, asked.ciphertexts, strict=True):
            c1 = codec.unpack(self.scheme, codec.ciphertext(REFRESH_LIMBS), self.hub.blobs.get(digest), "puppet")[1]
            how = layout.refresh_map(item)
            a = refresh.common_random(self.scheme, bytes.fromhex(self.run_id), item, digest, how.limbs)
            for into, blob in zip((h0, h1), refresh.share(self.scheme, share.limbs, c1, a, bits, how), strict=True):
                into.append(self.hub.publish(blob, "custodians"))
        return msg.RefreshShares(items=asked.items, ciphertexts=asked.ciphertexts, h0=tuple(h0), h1=tuple(h1))


class TwoAnswers(AnsweredForgery):
    """The guard, restarted after it was killed between weighing and answering, is shown other shares of custodian-3."""

    def __init__(self, restarted: bool) -> None:
        super().__init__("labels", "labels 1")
        self.restarted = restarted

    def begins(self) -> None:
        if not self.restarted:
            return super().begins()
        topic, _ = plan.batches(self.manifest, plan.layout(self.manifest))[0]
        self.show("custodian-1", "custodian-3", topic, self.answer(self.body("custodian-3", topic)))
        return None


def out_of_lockstep() -> None:
    """A victim that guards, but takes whatever the server presents: what the guard refuses by itself."""
    made = Custodian.__init__

    def init(self: Custodian, *args: Any) -> None:
        made(self, *args)
        self.verifies = False

    replace(Custodian, __init__=init)


def dies_when_it_has_weighed() -> None:
    """kill -9 of a guard between its decision and its shares."""
    replace(Custodian, _refresh_shares=lambda *_: os.kill(os.getpid(), signal.SIGKILL))


def dies_when_it_has_refused() -> None:
    """kill -9 of a guard whose key share is gone and whose word is not yet out."""
    forget = Custodian._forget

    def forgotten(self: Custodian, *files: Any) -> None:
        forget(self, *files)
        if len(files) > 3:  # all that is secret
            os.kill(os.getpid(), signal.SIGKILL)

    replace(Custodian, _forget=forgotten)


def lies_in(half: str, bits: int, item: str) -> None:
    """A custodian that adds 2^bits in every slot to its own ``h0`` or ``h1`` of one plan item: h1 is uniform anyway,
    and a verifier takes both as input."""
    made = Custodian._made

    def lying(self: Custodian, topic: str, about: str, digest: str) -> tuple[Part, ...]:
        h0, h1 = made(self, topic, about, digest)
        if about != item:
            return h0, h1
        scheme, how = self.scheme, self.layout.refresh_map(item)
        kind, part = (codec.refresh_h0(how.request), h0) if half == "h0" else (codec.refresh_h1(how.limbs), h1)
        (own,) = codec.unpack(scheme, kind, part.data, "itself")
        lie = [
            ring.add(x, np.full(scheme.n, (1 << bits) % q, np.uint64), q)
            for x, q in zip(own, scheme.moduli, strict=False)
        ]
        packed = Part.of(codec.pack(scheme, kind, [lie]))
        return (packed, h1) if half == "h0" else (h0, packed)

    replace(Custodian, _made=lying)


def sends_a_huge(what: str) -> None:
    """An institution whose masked messages hold 2^127 in one coefficient,
    those of ``what``: 16 bytes that a format cannot refuse."""
    masked = speaking.MaskKeys.masked

    def huge(self: speaking.MaskKeys, scheme: Scheme, message: Any, label: str, item: str, custodians: Any) -> bytes:
        data = bytearray(masked(self, scheme, message, label, item, custodians))
        if f"/{what}/" in item:
            data[codec.HEADER.size + 15] = 0x80
        return bytes(data)

    replace(speaking.MaskKeys, masked=huge)


class OutOfPlan(ForgedRefresh):
    """custodian-1 is asked for the plan's items in another order, custodian-2 for one ciphertext under both."""

    def begins(self) -> None:
        topic, items = plan.batches(self.manifest, plan.layout(self.manifest))[0]
        self.post("server", topic, self.request(items, ("same", "same")))
        self.show("custodian-1", "server", topic, self.request(items[::-1], ("one", "two")))


class TwoRequests(ForgedRefresh):
    """custodian-1 is shown two requests under one plan item, custodian-2 the first of them,
    and after a restart the second."""

    puppets: tuple[str, ...] = ("custodian-1", "custodian-3")

    def __init__(self, restarted: bool) -> None:
        super().__init__()
        self.restarted = restarted

    def begins(self) -> None:
        topic, items = plan.batches(self.manifest, plan.layout(self.manifest))[0]
        self.post("server", topic, self.request(items, ("one", "two")))
        second = self.sign("server", topic, self.request(items, ("three", "two")))
        self.lie("custodian-1", "server", topic, lambda data: [data, second])
        if self.restarted:
            self.lie("custodian-2", "server", topic, lambda _: [second])


def dies_with_shares_made() -> None:
    """kill -9 when the refresh shares are in the ledger and before anybody has seen them."""
    replace(Custodian, share_blobs=lambda *_: os.kill(os.getpid(), signal.SIGKILL))


class FalseRelease(LyingServer):
    """custodian-1 is asked to open hospital-b's encrypted rows, custodian-2 weights that are not the last ones."""

    puppets: tuple[str, ...] = ("custodian-3",)

    def begins(self) -> None:
        last = self.manifest.training.steps - 1
        items = tuple(i.replace("/weights/", "/release/") for i in plan.layout(self.manifest).items(last, "weights"))
        before: msg.StepDone = self.body("server", f"step/{last - 1}")
        rows: msg.Upload = self.body("hospital-b", "upload")
        self.post("server", "release/request", msg.ReleaseRequest(items=items, ciphertexts=before.outputs))
        self.show(
            "custodian-1",
            "server",
            "release/request",
            msg.ReleaseRequest(items=items, ciphertexts=rows.chunks[: len(items)]),
        )


class ForgetfulBoard(LyingServer):
    """Denies a restored custodian its own earlier records, so that nothing but its peers' word
    tells it that it is old."""

    puppets: tuple[str, ...] = ("custodian-3",)

    def begins(self) -> None:
        for record in self.records():
            own = msg.UploadsAccepted | msg.InputCommit | msg.InputReveal | msg.RefreshShares | msg.ResumeNonce
            if record.sender == "custodian-2" and isinstance(record.body, own):
                self.lie("custodian-2", "custodian-2", record.topic, lambda _: [])


# --------------------------------------------------------------------------- a server that computes something else


def wrong_rate() -> None:
    """The server's engine takes steps that are a thousandth too large."""
    from focal.protocols.blind import compute

    honest = compute.scalars_of

    def hasty(*args: Any) -> Any:
        scalars = honest(*args)
        return dataclasses.replace(scalars, rate=1.001 * scalars.rate)

    replace(compute, scalars_of=hasty)


def wrong_limb() -> None:
    """The server changes one residue of one input by one."""
    from focal.protocols.blind import compute

    honest = compute.combined
    changed: list[bool] = []

    def altered(scheme: Scheme, *rest: Any) -> Any:
        polynomials = honest(scheme, *rest)
        if not changed:
            changed.append(True)
            limb = polynomials[0][0].copy()
            limb[5] = (int(limb[5]) + 1) % scheme.moduli[0]
            polynomials[0][0] = limb
        return polynomials

    replace(compute, combined=altered)


# --------------------------------------------------------------------------- gates: an honest run stops as a test wants


def gates() -> None:
    """Stop at the end of each phase until the test opens the gate: ``stages.py`` takes its copies there."""
    for role, method, name in (
        (Custodian, "_key_ceremony", "gathered"),
        (Institution, "agree_projection", "gathered"),
        (BlindInstitution, "_upload", "keyed"),
        (BlindCustodian, "_accept_uploads", "keyed"),
        (Custodian, "contribute", "accepted"),
        (Custodian, "verify", "uploaded"),
        (BlindCustodian, "_answer_plan", "uploaded"),
        (Server, "train", "uploaded"),
        (Custodian, "_release", "trained"),
        (Server, "_release", "trained"),
    ):
        setattr(role, method, _gated(getattr(role, method), name))


def _gated(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def wait(self: Party, *args: Any) -> Any:
        opened: Path = self.folder.parent / f"open-{name}"
        (self.folder / f"at-{name}").touch()
        while not opened.exists():
            self.read_board(0.05)  # a custodian at the gate still answers one that asks what its ledger must hold
        return method(self, *args)

    return wait
