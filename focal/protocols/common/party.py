"""What every role shares: saying things once, hearing what others said, agreeing on a run.

::

    say(topic, body)    sign, remember in the journal, post to the board
    hear(who, topic)    wait until the board holds it; every signature is checked here, by the reader
    commit / reveal     nobody can choose what it says after hearing the others

A party trusts the server with delivery only. It checks who signed, that nobody said two things under one topic, and
that everything belongs to this run.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from focal.config import LocalConfig, Model, printable
from focal.errors import FocalError, ProtocolError, Refused
from focal.files import canonical_json
from focal.manifest import Manifest, Member
from focal.measure.traffic import merge
from focal.net import messages as msg
from focal.net.encoding import encode
from focal.net.identity import Identity, check_signatures, commitment
from focal.net.recent import Recent
from focal.net.store import Blobs, Journal
from focal.protocols import check_complete, of
from focal.protocols.common.epochs import EpochChanged, Epochs
from focal.protocols.common.hearing import Heard, derive_run_id
from focal.protocols.common.progress import Reporter
from focal.telling import Progress

B = TypeVar("B", bound=Model)
T = TypeVar("T")
Audience = Literal["server", "custodians", "all"]


RECENT = 64 << 20
"""Bytes of the last blobs that a party keeps in memory. The requests of a batch of refreshes fit into it, and so does
one custodian's answer."""


class Network(Protocol):
    """What a party needs from the network: a :class:`focal.net.transport.Link`, its like within one process
    (:class:`focal.net.local.LocalLink`), or the server's own board."""

    phase: str

    def post(self, signed: bytes) -> int: ...
    def wait(self, after: int, seconds: float) -> list[bytes]: ...
    def put_many(
        self,
        blobs: list[bytes] | dict[str, bytes],
        audience: Audience = "all",
        progress: Progress | None = None,
    ) -> list[str]: ...
    def get(self, digest: str) -> bytes: ...
    @property
    def traffic(self) -> dict[str, dict[str, int]]: ...
    def close(self) -> None: ...


class Party(abc.ABC):
    """A member at work on one session of one manifest. Subclasses are the roles."""

    role: str

    def __init__(self, manifest: Manifest, local: LocalConfig, report: Reporter) -> None:
        check_complete(manifest)
        check_signatures(manifest)
        self.manifest, self.local, self.report = manifest, local, report
        self.plan = of(manifest).plan
        self.me: Member = manifest.member(local.name)
        if self.me.role != self.role:
            raise FocalError(
                f"'{local.name}' is {self.me.role} in the manifest, not {self.role}",
                hint=f"start it with: focal {self.me.role}",
            )
        self.identity = Identity.load(local.keys)
        if self.identity.name != local.name:
            raise FocalError(
                f"'{local.name}': the key file {local.keys} is that of '{self.identity.name}'",
                hint=f"'keys' in the local file must name the file that focal keys new wrote for '{local.name}'",
            )
        self.identity.entry(manifest)
        self.folder = Path(local.state)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.journal = Journal(self.folder / "journal.sqlite")
        room = RECENT * (1 + len(manifest.custodians) if self.computes else 1)
        self.blobs = Blobs(self.folder / "blobs", room)
        self.passing = Recent(room)
        """Blobs that this party has no copy of on its disk."""
        self.net: Network
        self.session = ""
        self.scope = ""
        self.run_id = b""
        self.heard = Heard(manifest)
        self.epochs = Epochs(manifest, self.plan, b"")
        """Which custodians answer, and from when on."""
        self._bound = False
        """Does what is under way end with its epoch?"""
        self._turned = 0
        """How many proposals of epochs were heeded."""
        self.ended = False
        """Another member has ended the run."""
        self._aborts: list[msg.Record] = []
        """Said by others, and not yet believed: under a run id, and ours is not known yet."""
        self._count = 0

    def prepare(self) -> None:  # noqa: B027 (most roles have nothing to do here)
        """What is done before anybody is spoken to."""

    @abc.abstractmethod
    def run(self) -> None:
        """The role, from the first word to the last; interrupted, the same call continues it."""

    @property
    def computes(self) -> bool:
        """Does this party add up everybody's answers to a refresh? Then it needs each of them several times."""
        return self.me.role == "server" or self.me.verify == "lockstep"

    # ----------------------------------------------------------------- saying and hearing

    def say(self, topic: str, body: Any) -> None:
        """Say ``body`` under ``topic``: once. The same again is harmless, anything else is a defect and refused."""
        self.net.post(self._decided(topic, body))

    def _decided(self, topic: str, body: Any) -> bytes:
        """The signed record, which is in the journal from here on."""
        topic = self.spelled(topic)
        signed = self.identity.sign_record(self.scope, topic, body)
        if self.journal.once(f"{self.session}/said/{topic}", lambda: signed) != signed:
            raise Refused("second-record", f"'{self.me.name}' was about to say a second thing under '{topic}'")
        return signed

    def repeat(self, topic: str) -> bool:
        """Post again what was said under ``topic`` before a restart; False when nothing was."""
        signed = self.journal.get(f"{self.session}/said/{self.spelled(topic)}")
        if signed is not None:
            self.net.post(signed)
        return signed is not None

    def has_said(self, topic: str) -> bool:
        """Did this party say something under ``topic``, perhaps before a restart?"""
        return self.journal.get(f"{self.session}/said/{self.spelled(topic)}") is not None

    def remembered(self, key: str, make: Callable[[], Any]) -> Any:
        """A JSON value that is made once in a session and comes back after a restart."""
        return json.loads(self.journal.once(f"{self.session}/{key}", lambda: canonical_json(make())))

    def said(self, sender: str, topic: str) -> bool:
        """Has ``sender`` said something under ``topic`` (as far as the board was read)?"""
        return (sender, self.spelled(topic)) in self.heard

    def hear(self, sender: str, topic: str, kind: type[B]) -> B:
        """What ``sender`` said under ``topic``; waits for it. Raises ProtocolError when it is of another kind."""
        return self.hear_all([sender], topic, kind)[sender]

    def hear_all(self, senders: Iterable[str], topic: str, kind: type[B]) -> dict[str, B]:
        """What each of ``senders`` said under ``topic``, in their order; waits for all."""
        names, told = list(senders), time.monotonic()
        while missing := [n for n in names if not self.said(n, topic)]:
            self.read_board(seconds=2.0)
            if time.monotonic() - told > 5.0 and any(not self.said(n, topic) for n in missing):
                told = time.monotonic()
                self.report.waiting(missing, topic)
        return self.heard.get_all(self.scope, names, self.spelled(topic), kind)

    def read_all(self) -> None:
        """Read the board to its present end."""
        while self.read_board(0.0):
            pass

    def read_board(self, seconds: float) -> int:
        """Read what is new, waiting for it at most ``seconds``; returns how many records there were."""
        batch = self.net.wait(self._count, seconds)
        for data in batch:
            self._count += 1
            record = self.heard.add(data)
            self.epochs.take(record)
            if isinstance(record.body, msg.Abort) and record.sender != self.me.name:
                self._heard_abort(record, record.body.reason)
        self.idle()
        if self._bound and self.epochs.proposed[self._turned :]:
            raise EpochChanged
        return len(batch)

    def _heed_aborts(self, records: Iterable[msg.Record]) -> None:
        """End when another member has ended this run. The server may have kept an abort of another one:
        that is refused (``other-run``).

        A member that knows the run id says it under that, perhaps before we know it. It waits here until we do:
        every nonce was said before it, so an honest server cannot keep us from knowing.
        """
        for record in records:
            if not self.run_id and (record.scope != self.session or self._has_begun()):
                continue
            assert isinstance(record.body, msg.Abort)
            if self.run_id and record.sender in self.left_out():
                self._aborts.remove(record)
                self.report.warn(
                    f"'{record.sender}' wants to end the run, which goes on without it: {record.body.reason}"
                )
                continue
            if record.scope not in (self.session, self.run_id.hex()):
                raise Refused("other-run", f"the server shows that '{record.sender}' ended another run than this one")
            self.ended = True
            raise ProtocolError(
                f"'{record.sender}' ended the run: {record.body.reason}",
                hint="settle the cause, then start a new run: this one has used up its keys",
            )

    def _has_begun(self) -> bool:
        """Has everybody stated the run id, which we shall know soon?"""
        return all((member.name, "run/start") in self.heard for member in self.manifest.openers)

    def left_out(self) -> dict[str, str]:
        """Institution -> why the run goes on without it. What it says ends nothing any more. Nobody, unless a protocol
        has such."""
        return {}

    def _heard_abort(self, record: msg.Record, reason: str) -> None:
        if self.manifest.member(record.sender).clinic:  # one that gives up is one that does not come
            self.report.warn(f"'{record.sender}' gave up: {reason}")
            return
        self._aborts.append(record)
        self._heed_aborts([record])

    def forget_secrets(self) -> None:  # noqa: B027
        """The run was ended for good: delete what has a use in it only. It may be known of no run yet."""

    def idle(self) -> None:  # noqa: B027
        """Called whenever the board was read; for roles that answer questions at any time."""

    # ----------------------------------------------------------------- epochs

    def spelled(self, topic: str) -> str:
        """A topic as it is said in its epoch."""
        return self.epochs.spelled(topic)

    def active(self, topic: str) -> list[str]:
        """The custodians who answer under this topic, in manifest order."""
        return list(self.epochs.at(topic).active)

    def seed(self, topic: str) -> bytes:
        """What stands for the run id wherever something is derived for this topic."""
        return self.epochs.at(topic).seed

    def through_epochs(self, act: Callable[[], T]) -> T:
        """``act``'s value; from its beginning again whenever a new epoch is proposed, once that is in force. It must be
        of the kind that a restart goes through again: what was made comes back from the journal."""
        while True:
            self.turn()
            self._turned, self._bound = len(self.epochs.proposed), True
            try:
                return act()
            except EpochChanged:
                continue
            finally:
                self._bound = False

    def turn(self) -> None:
        """Wait while a proposed epoch is still to come into force."""
        while self.epochs.pending:
            self.read_board(seconds=2.0)

    # ----------------------------------------------------------------- blobs

    def share_blobs(self, blobs: list[bytes] | dict[str, bytes], audience: Audience) -> list[str]:
        """Send blobs, or digest -> blob, to the server; returns their digests. What the server has is not sent
        again."""
        return self.net.put_many(blobs, audience)

    def send_stored(self, digests: list[str], audience: Audience) -> None:
        """Send blobs that lie in this party's own store, a few at a time."""
        for i in range(0, len(digests), 8):
            self.net.put_many([self.blobs.get(d) for d in digests[i : i + 8]], audience)
            self.report.progress(min(i + 8, len(digests)), len(digests))

    def fetch(self, digest: str) -> bytes:
        """A blob from the own store or else from the server."""
        if digest in self.blobs:
            return self.blobs.get(digest)
        if (data := self.passing.get(digest)) is None:
            data = self.net.get(digest)
            self.passing.add(digest, data)
        return data

    # ----------------------------------------------------------------- commit, then reveal

    def commit(
        self, round: str, names: list[str], digest: bytes, say: Callable[[str], Any]
    ) -> tuple[bytes, dict[str, Any]]:
        """Commit to a message and wait for everybody's commitment.

        The own message and the complete list of commitments are on disk before anything is revealed; after a restart
        only that list counts. Returns the own salt and the commitments by name.
        Raises :class:`Refused` (``second-list``) when the server now shows another list.
        """
        plain, round = round, self.spelled(round)
        salt = self.journal.once(f"{self.session}/{round}/salt", lambda: secrets.token_bytes(32))
        own = commitment(bytes.fromhex(self.scope), round, self.me.name, salt, digest)
        if self.journal.once(f"{self.session}/{round}/commitment", lambda: own) != own:
            raise Refused(
                "second-contribution", f"'{self.me.name}' was about to make a second contribution to '{round}'"
            )
        body = say(own.hex())
        self.say(f"{plain}/commit", body)
        commits = self.hear_all(names, f"{plain}/commit", type(body))
        listed = canonical_json({name: hashlib.sha256(encode(c)).hexdigest() for name, c in commits.items()})
        if self.journal.once(f"{self.session}/{round}/commits", lambda: listed) != listed:
            raise Refused("second-list", f"the server shows another list of commitments for '{round}' than before")
        return salt, commits

    # ----------------------------------------------------------------- the run id

    def agree_run(self) -> None:
        """Nonces of every custodian and founder, committed, then revealed; their hash is the run id."""
        names = [m.name for m in self.manifest.openers]
        if self.me.name in names:
            nonce = self.journal.once(f"{self.session}/nonce", lambda: secrets.token_bytes(32))
            salt, commits = self.commit(
                "nonce", names, hashlib.sha256(nonce).digest(), lambda c: msg.NonceCommit(commitment=c)
            )
            self.say("nonce/reveal", msg.NonceReveal(nonce=nonce.hex(), salt=salt.hex()))
        else:
            commits = self.hear_all(names, "nonce/commit", msg.NonceCommit)
        reveals = self.hear_all(names, "nonce/reveal", msg.NonceReveal)
        self.run_id = derive_run_id(self.manifest, self.session, commits, reveals)
        if self.journal.once(f"used/{self.run_id.hex()}", self.session.encode) != self.session.encode():
            raise Refused("replayed-run", "the server replays a run that this party has taken part in before")
        self.scope = self.run_id.hex()
        self.epochs = Epochs(self.manifest, self.plan, self.run_id)
        for record in self.heard:
            self.epochs.take(record)
            # in its epoch, as whoever heard it then: of somebody who was left out there
            self._heed_aborts([abort for abort in self._aborts if abort is record])
        if self.me.name in names:
            self.say("run/start", msg.RunStart(run_id=self.scope))
        for name, start in self.hear_all(names, "run/start", msg.RunStart).items():
            if start.run_id != self.scope:
                raise Refused("run-id", f"'{name}' derived another run id: the server showed it other nonces")

    # ----------------------------------------------------------------- life

    def enter(self, phase: str) -> None:
        """Bytes are counted under ``phase`` from here on: keys, moments, upload, refresh, release."""
        self.net.phase = phase
        self.keep_traffic()

    def keep_traffic(self) -> None:
        """Remember the bytes so far; a restarted process adds to them."""
        self.journal.set("traffic", json.dumps(merge(self._before, self.net.traffic)).encode())

    @functools.cached_property
    def _before(self) -> dict[str, dict[str, int]]:
        """By earlier processes."""
        return dict(json.loads(self.journal.read("traffic") or b"{}"))

    def opened(self, net: Network, session: str) -> None:
        """The link to the server is open: from here on this party is in ``session``,
        whatever earlier ones its folder has seen."""
        if self.journal.get(f"used/{session}") is not None:  # or what this party says now would count in that run
            raise Refused("replayed-run", "the server names its session like a run that this party has taken part in")
        self.net, self.session, self.scope = net, session, session
        self.journal.set("entered", session.encode())

    def finish(self) -> None:
        """Say that this party has all it needs. Remembered first: the server may be gone when
        a restarted process would ask."""
        signed = self._decided("finished", msg.Finished())
        self.journal.set("finished", self.session.encode())
        self.net.post(signed)

    def finish_again(self, seconds: float) -> None:
        """An earlier process of this party has finished: say so once more, should the word not have got out,
        and wait for nothing else.

        If it did, the server may end at any moment, and nobody would ever answer what is asked of it then.
        """
        self._within(seconds, lambda: self.repeat("finished"))

    @property
    def finished(self) -> bool:
        """Did an earlier process of this party get all it needed from the session that was entered last?"""
        finished = self.journal.read("finished")
        return finished is not None and finished == self.journal.read("entered")

    def leave(self) -> None:
        """Remember the bytes and close the link, where this party got as far as having one."""
        if self.session:
            with contextlib.suppress(FocalError):
                self.keep_traffic()
            self.net.close()

    def close(self) -> None:
        """Let go of the folder, so that another party may go on in it: a process's end does the same."""
        self.journal.close()

    def abort(self, error: Exception) -> None:
        """Tell the others that this party will not go on, as far as they can be reached within a few seconds."""
        if not self.scope or self.ended:
            return

        record = self.identity.sign_record(self.scope, "abort", msg.Abort(reason=_without_paths(str(error))[:500]))
        self._within(10.0, lambda: self.net.post(record))

    @staticmethod
    def _within(seconds: float, tell: Callable[[], object]) -> None:
        """Tell the server something, and give it up after ``seconds``: a post waits for a server
        that is away, for ever."""

        def telling() -> None:
            with contextlib.suppress(FocalError):  # the link may be what failed
                tell()

        thread = threading.Thread(target=telling, daemon=True)
        thread.start()
        thread.join(seconds)


def _without_paths(text: str) -> str:
    """An error's first line without the names of local files and control characters: it is for other members' eyes."""
    return printable(re.sub(r"/[^\s'\",;:)]+", "(file)", text.partition("\n")[0]))
