"""The lying server, and what all liars are made of; ``attacks.py`` has the whole."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from focal.ckks.scheme import Scheme
from focal.custody.ledger import ledger_digest
from focal.manifest import Manifest
from focal.net import frames
from focal.net import messages as msg
from focal.net.hub import Hub
from focal.net.identity import Identity, open_record
from focal.net.store import Board
from focal.protocols.blind import roster
from focal.protocols.blind.custodian import BlindCustodian
from focal.protocols.blind.institution import BlindInstitution
from focal.protocols.common.custodian import Custodian
from focal.protocols.common.institution import Institution
from focal.protocols.common.party import Party
from focal.protocols.common.server import Server

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
    records = Hub._records

    def shown(hub: Hub, asking: str, after: int) -> Any:
        header, payload = records(hub, asking, after)
        return header.model_copy(update={"signed": tuple(other(hub, asking, data) for data in header.signed)}), payload

    def other(hub: Hub, asking: str, data: bytes) -> bytes:
        record = open_record(hub.manifest, data)
        if (asking, record.sender, record.topic) != (reader, sender, topic):
            return data
        identity = Identity.load(hub.board.path.parents[1] / sender / "identity.json")
        return identity.sign_record(record.scope, topic, make(record.body))

    replace(Hub, _records=shown)


def says(role: type[Party], topic: str, change: Callable[[Any, Any], Any], after: Any = None) -> None:
    """Replace what ``role`` says under ``topic``; with ``after`` only when all its peers have said theirs."""
    say = role.say

    def changed(self: Any, about: str, body: Any) -> None:
        if about == topic:
            if after is not None:
                self.hear_all([p for p in self.peers if p != self.me.name], topic, after)
            body = change(self, body)
        say(self, about, body)

    replace(role, say=changed)


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
