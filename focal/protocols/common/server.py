"""The server: relays, stores, computes on ciphertexts. It holds no key share and nothing in the clear.

Its board and blobs are what the others read (focal.net). Beside serving them it takes every step of the run, and
is the voice that *asks* (:mod:`focal.protocols.common.voice`): the custodians for each collective refresh, and in
the end for the release. After a step the new weights are on disk; a restart goes on from there, and a refresh
that was answered is not asked again.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from focal.ckks.scheme import Scheme
from focal.config import LocalConfig
from focal.custody import keys
from focal.custody.inputs import Input
from focal.custody.projections import SHARE_BYTES
from focal.errors import FocalError, ProtocolError, Refused
from focal.manifest import Manifest
from focal.measure.traffic import merge, mirrored
from focal.net import messages as msg
from focal.net.answers import Answers
from focal.net.local import LocalHub, LocalNetwork
from focal.net.quotas import Quota
from focal.net.store import Board
from focal.net.transport import Hub
from focal.protocols.common import ceremony, inputs, refreshing
from focal.protocols.common.approval import read_lost
from focal.protocols.common.hearing import check_opens
from focal.protocols.common.inputs import Claim
from focal.protocols.common.party import Audience, Party
from focal.protocols.common.progress import Reporter
from focal.protocols.common.voice import Compute, Given
from focal.telling import Progress

FAREWELL_SECONDS = 60.0
"""How long the board stays at most after a run was ended, so that everybody hears of it and nobody waits
for a server that is gone."""
ALIVE_SECONDS = 15.0
"""A member that was not heard of for so long is not waited for: links beat every few seconds."""


class _OwnBoard:
    """The network as the server sees it: its own board and blobs, without a wire."""

    phase = doing = ""

    def __init__(self, hub: Answers) -> None:
        self.hub = hub

    def post(self, signed: bytes) -> int:
        return self.hub.board.append(signed, None)

    def wait(self, after: int, seconds: float) -> list[bytes]:
        self.hub.board.wait(after, seconds)
        if self.hub.failure is not None:
            raise self.hub.failure
        return self.hub.board.since(after, 1 << 24)

    def put_many(
        self,
        blobs: list[bytes] | dict[str, bytes],
        audience: Audience = "all",
        progress: Progress | None = None,
    ) -> list[str]:
        return self.hub.publish_all(blobs, audience)

    def get(self, digest: str) -> bytes:
        return self.hub.blobs.get(digest)

    @property
    def traffic(self) -> dict[str, dict[str, int]]:
        """What the members received is what the server sent."""
        return merge(*map(mirrored, self.hub.traffic.values()))

    def close(self) -> None:
        """Nothing to close: the hub stops when the role ends."""


class Server(Party):
    """``run()`` serves one run to its end; interrupted, the same call continues it. Without ``network`` it listens
    on its endpoint. What lies between the keys and the release is its protocol's: :meth:`serve`."""

    role = "server"

    def __init__(
        self, manifest: Manifest, local: LocalConfig, report: Reporter, network: LocalNetwork | None = None
    ) -> None:
        super().__init__(manifest, local, report)
        self.threads = local.threads or os.cpu_count() or 1
        self.pool = ThreadPoolExecutor(self.threads, thread_name_prefix="server")
        self.names = [m.name for m in manifest.institutions]
        self.attending = self.names
        """Institutions whose rows the run has, and who get its result."""
        self.layout = self.plan.layout(manifest)
        self.custodians = [m.name for m in manifest.custodians]
        self.session = self.scope = self.journal.once("session", lambda: secrets.token_hex(32).encode()).decode()
        quotas = self.quotas()
        self.board = Board(self.folder / "board.sqlite", manifest, self.check_record, quotas)
        self.hub: Hub | LocalHub
        if network is None:
            self.hub = Hub(manifest, self.identity, self.board, self.blobs, self.session, local.bind, quotas=quotas)
        else:
            self.hub = LocalHub(network, manifest, self.board, self.blobs, self.session, quotas)
        self.net = _OwnBoard(self.hub)
        self._told: set[str] = set()
        """What was warned of."""
        self._may_go_on = False
        """May the run go on without some of its custodians? From when their keys are made."""

    # ----------------------------------------------------------------- the script

    def run(self) -> None:
        self.hub.start()
        self.report.say(f"listening on {self.hub.endpoint}")
        try:
            with self.report.phase("gather"):
                self.agree_run()
            with self.report.phase("keys"):
                self.scheme = Scheme(self.manifest.ckks, self.scope)
                joint = self._install_keys()
            self._may_go_on = True
            self.through_epochs(lambda: self._serve_all(joint))
        except ProtocolError as e:
            self.report.error(str(e))
            self.abort(e)
            self._farewell()
            raise
        finally:
            self.keep_traffic()
            self.hub.stop()

    def _serve_all(self, joint: msg.JointKeys) -> None:
        done = self.serve(joint)
        with self.report.phase("release"):
            self._release(done)

    def _farewell(self) -> None:
        """Stay until every member that is there has been sent the first word of the end (one that makes keys asks
        late), and a moment more. Who has heard it, or said it, asks no more."""
        with contextlib.suppress(FocalError):
            self.read_board(seconds=0.0)
        ours, without = {self.session, self.scope}, {*(m.name for m in self.manifest.clinics), *self.left_out()}
        ended = [
            i
            for i, record in enumerate(self.heard, 1)
            if isinstance(record.body, msg.Abort) and record.scope in ours and record.sender not in without
        ]
        first, deadline = ended[0] if ended else None, time.monotonic() + FAREWELL_SECONDS
        while time.monotonic() < deadline and any(
            not self.said(n, "abort") for n in self.hub.behind(ALIVE_SECONDS, first)
        ):
            time.sleep(0.1)
        time.sleep(self.hub.FAREWELL)

    def quotas(self) -> Mapping[str, Quota]:
        """How much of the disk and of the board members may fill: by default none has a limit."""
        return {}

    def check_record(self, record: msg.Record) -> None:
        """Raise :class:`focal.errors.Refused` for what no member may put on the board: a commitment beside shares of
        range checks that not everybody can have."""
        if isinstance(record.body, msg.InputCommit) and not self.hub.shows(record.body.shares, SHARE_BYTES):
            raise Refused(
                "inputs",
                f"'{record.sender}' commits without shares of its range checks that everybody can have",
            )

    @abc.abstractmethod
    def serve(self, joint: msg.JointKeys) -> list[msg.StepDone]:
        """Everything between the keys and the release; returns the statements of all steps."""

    # ----------------------------------------------------------------- keys

    def _install_keys(self) -> msg.JointKeys:
        """Add up the custodians' contributions, compare with what they signed, and give the sums to the evaluator."""
        rotations = self.layout.rotations
        sums: dict[str, str] = {}
        for number, kinds in ((1, keys.first_round_kinds(rotations)), (2, keys.SECOND_ROUND)):
            round = f"keys/{number}"
            commits = self.hear_all(self.custodians, f"{round}/commit", msg.KeyCommit)
            reveals = self.hear_all(self.custodians, f"{round}/reveal", msg.KeyReveal)
            for name, reveal in reveals.items():
                check_opens(self.scope, round, name, commits[name], reveal.salt, ceremony.blobs_digest(reveal.blobs))
            add = functools.partial(
                ceremony.sums, self.scheme, kinds, reveals, self.fetch, self.blobs.put, self.pool, self.report.progress
            )
            sums |= self.remembered(f"{round}/sums", add)
        joint = ceremony.joint(sums, sums)
        for name, theirs in self.hear_all(self.custodians, "keys/joint", msg.JointKeys).items():
            if theirs != joint:
                raise ceremony.disagreement(name)
        self.say("keys/joint", joint)
        ceremony.install(self.scheme, self.run_id, joint, self.blobs.get)
        return joint

    # ----------------------------------------------------------------- inputs

    def contributions(self, round: str, lists: str, wanted: Sequence[Input], claims: Sequence[Claim]) -> Given:
        """What every custodian committed to and gave for the inputs of a round; waits for all.
        The claims are for them to check."""
        commits = self.hear_all(self.active(round), f"{round}/commit", msg.InputCommit)
        reveals = self.hear_all(self.active(round), f"{round}/reveal", msg.InputReveal)
        return inputs.check(self.scope, self.spelled(round), lists, len(wanted), commits, reveals)

    # ----------------------------------------------------------------- steps

    def train(self, compute: Compute) -> list[msg.StepDone]:
        """Every step that is still to be taken; returns the statements of all."""
        done = self.steps_done()
        try:
            if done:
                self.after(done[-1].step)  # an earlier process may have stopped before it
            self.report.progress(len(done), compute.total)
            for statement in compute.steps(self, list(done), self.blobs.get):
                done.append(statement)
                self.after(statement.step)
                self.report.progress(len(done), compute.total)
        finally:
            compute.close()
        return done

    def after(self, step: int) -> None:
        """What a protocol does between two steps; again after a restart."""

    def steps_done(self) -> list[msg.StepDone]:
        """The statements of the finished steps, from the board; their weights are on disk."""
        self.read_all()
        done: list[msg.StepDone] = []
        while self.said(self.me.name, f"step/{len(done)}"):
            done.append(self.hear(self.me.name, f"step/{len(done)}", msg.StepDone))
        return done

    def done(self, step: int, statement: msg.StepDone, data: list[bytes]) -> None:
        """The new weights are on disk before the step is on the board."""
        list(self.pool.map(self.blobs.put, data))
        self.say(f"step/{step}", statement)

    def refresh(self, items: list[str], ciphertexts: list[Any]) -> list[Any]:
        """Ask all custodians for a collective refresh of one batch and combine their shares; each part while they
        answer the next one."""
        fresh: list[Any] = []
        parts = refreshing.parts(items)
        for i, (topic, place) in enumerate(parts):
            self._ask(topic, items[place], refreshing.taken(ciphertexts, place))
            if i > 0:
                fresh += self.refreshed(parts[i - 1][0])
        return fresh + self.refreshed(parts[-1][0])

    def _ask(self, topic: str, items: list[str], ciphertexts: list[Any]) -> None:
        packed = refreshing.requests(self.scheme, items, ciphertexts, self.pool, self.layout)
        digests = self.net.put_many(packed, "custodians")
        self.say(topic, msg.RefreshRequest(items=tuple(items), ciphertexts=tuple(digests)))

    def refreshed(self, topic: str) -> list[Any]:
        """What a batch of refreshes gave, from its request and every custodian's answer."""
        asked = self.hear(self.me.name, topic, msg.RefreshRequest)
        seed = self.seed(topic)
        refreshing.expand_ahead(self.scheme, seed, asked.items, asked.ciphertexts, self.pool, self.layout)
        answers = self.hear_all(self.active(topic), topic, msg.RefreshShares)
        return refreshing.combine(self.scheme, seed, asked, answers, self.blobs.get, self.pool, self.layout)

    # ----------------------------------------------------------------- custodians that are lost

    def idle(self) -> None:
        """Propose an epoch without the custodians that people, or a silence, have declared lost."""
        if not self._may_go_on or self.epochs.given or not (lost := self._lost()):
            return
        try:
            proposal = self.epochs.next(lost)
        except FocalError as e:
            self._warn_once(f"{e.message}; {e.hint}")
            return
        if self.say_as_read(f"epoch/{proposal.number}", proposal):
            self.report.warn(f"{', '.join(lost)} given up: epoch {proposal.number} with {', '.join(proposal.active)}")
            self.read_all()

    def say_as_read(self, topic: str, body: Any) -> bool:
        """Say what follows from the board as we have read it; False where it has grown since, and nothing was said."""
        topic = self.spelled(topic)
        signed = self.identity.sign_record(self.scope, topic, body)
        said = bool(self.board.append(signed, None, after=self._count))
        if said:
            self.journal.once(f"{self.session}/said/{topic}", lambda: signed)
        return said

    def _warn_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.report.warn(text)

    def _lost(self) -> list[str]:
        """Custodians that are active, or were to be, and are given up."""
        active = (self.epochs.proposed[-1] if self.epochs.proposed else self.epochs.now).active
        declared, seconds = read_lost(self.folder), self.local.lost_seconds
        if unknown := [name for name in declared if name not in self.custodians]:
            self._warn_once(f"{', '.join(unknown)} cannot be given up: no custodian of this run has such a name")
        silent = self.hub.silent(seconds) if seconds is not None else []
        return [name for name in active if name in declared or name in silent]

    def keep_traffic(self) -> None:
        super().keep_traffic()
        self.journal.set("members", json.dumps(self.members_traffic()).encode())

    def members_traffic(self) -> dict[str, dict[str, dict[str, int]]]:
        """Bytes of every member by phase, earlier processes of this server included."""
        now = self.hub.traffic
        return {
            m.name: merge(self._members_before.get(m.name, {}), now.get(m.name, {}))
            for m in self.manifest.members
            if m.role != "server"
        }

    @functools.cached_property
    def _members_before(self) -> dict[str, Any]:
        """By earlier processes."""
        return dict(json.loads(self.journal.read("members") or b"{}"))

    def close(self) -> None:
        super().close()
        self.pool.shutdown(cancel_futures=True)
        self.board.close()

    # ----------------------------------------------------------------- release

    def after_release(self) -> None:
        """What a protocol does when all shares are given."""

    def _release(self, done: list[msg.StepDone]) -> None:
        """Ask for the release and stay until every member has what it needs."""
        released = self.plan.released(self.manifest)
        ciphertexts = released.ciphertexts(done)
        if self.epochs.released_again:
            weights = [w for topic in released.topics for w in self.refreshed(topic)]
            fresh = refreshing.once_more(self, weights, self.scheme, self.layout)
            ciphertexts = refreshing.digests(self.scheme, fresh)
        self.say("release/request", msg.ReleaseRequest(items=released.items, ciphertexts=ciphertexts))
        self.hear_all(self.active("release/shares"), "release/shares", msg.ReleaseShares)
        if not self.repeat("traffic"):
            self.say(
                "traffic",
                msg.Traffic(bytes={**self.members_traffic(), self.me.name: merge(self._before, self.net.traffic)}),
            )
        self.after_release()
        everybody = [*self.active("release/shares"), *self.attending]
        while missing := [n for n in everybody if not self.said(n, "finished")]:
            self.read_board(seconds=2.0)
            self.report.progress(len(everybody) - len(missing), len(everybody))
        time.sleep(self.hub.LAST_WORD)
