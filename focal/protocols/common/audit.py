"""Replay audit: run a finished run again from what was recorded, on any machine, and compare every digest.

::

    board (signed records) + blobs --> signatures, run id, key sums, upload lists
                                   --> every training step, with the recorded refresh shares
                                   --> every request, every step, the chain, the release: equal or named

Needs the server's store and the manifest, no key and no data. One altered limb anywhere changes a digest.
"""

from __future__ import annotations

import abc
import os
import sqlite3
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from focal.ckks import codec
from focal.ckks.scheme import Scheme
from focal.custody import keys
from focal.custody.inputs import Input
from focal.errors import FocalError, Refused
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.net.identity import check_signatures
from focal.net.store import Blobs, check_format
from focal.protocols import of
from focal.protocols.common import ceremony, inputs, refreshing
from focal.protocols.common.epochs import Epochs
from focal.protocols.common.hearing import B, Heard, check_opens, derive_run_id
from focal.protocols.common.inputs import Claim
from focal.protocols.common.keyholder import DEALING
from focal.protocols.common.voice import Compute, Given
from focal.telling import Say


class Audit(abc.ABC):
    """The re-execution of one finished run. ``store`` is the server's state folder; it is only read.
    ``ray``: address of a Ray cluster that takes the steps of a blind run, or ``local``; None: threads do.

    The voice that *recalls* (:mod:`focal.protocols.common.voice`); :meth:`compute` has the protocol's steps.
    """

    def __init__(
        self,
        manifest: Manifest,
        store: Path,
        say: Say,
        threads: int | None = None,
        ray: str | None = None,
    ) -> None:
        check_signatures(manifest)
        self.manifest, self.say, self.ray = manifest, say, ray
        self.heard = recorded(manifest, store)
        self.blobs = Blobs(store / "blobs")
        self.threads = threads or os.cpu_count() or 1
        self.pool = ThreadPoolExecutor(self.threads)
        self.custodians = [m.name for m in manifest.custodians]
        self.institutions = [m.name for m in manifest.institutions]
        self.server = manifest.server.name
        self.plan = of(manifest).plan
        self.epochs = Epochs(manifest, self.plan, b"")
        self.layout = self.plan.layout(manifest)

    def run(self) -> str:
        """Check everything; returns the last link of the chain. Raises :class:`FocalError` naming the first
        thing that differs."""
        self._run_id()
        self.say(f"run id     {self.scope[:16]}: nonces and signatures hold")
        joint = self._keys()
        self.say(
            f"joint keys {len(joint.rotations) + 2} sums of {len(self.custodians)} contributions, "
            "as every custodian signed them"
        )
        compute = self.compute(joint)
        done = []
        try:
            for statement in compute.steps(self):
                self.say(f"step {statement.step}     {len(statement.inputs)} inputs, chain {statement.chain[:16]}")
                done.append(statement)
        finally:
            compute.close()
        self.say(f"release    {self._release(done)}")
        return done[-1].chain

    @abc.abstractmethod
    def compute(self, joint: msg.JointKeys) -> Compute:
        """The steps of the run, from recorded uploads."""

    # ----------------------------------------------------------------- parts

    def recall_all(self, names: Sequence[str], topic: str, kind: Any) -> Any:
        return self.heard.get_all(self.scope, names, self.epochs.spelled(topic), kind)

    def recall(self, topic: str, kind: type[B]) -> B:
        """What the server said under ``topic``."""
        return self.heard.get(self.scope, self.server, self.epochs.spelled(topic), kind)

    def _run_id(self) -> None:
        names = [m.name for m in self.manifest.openers]
        session = next((r.scope for r in self.heard if r.topic == "nonce/commit" and r.sender in names), "")
        self.scope = session
        commits, reveals = (
            self.recall_all(names, "nonce/commit", msg.NonceCommit),
            self.recall_all(names, "nonce/reveal", msg.NonceReveal),
        )
        self.run_id = derive_run_id(self.manifest, session, commits, reveals)
        self.scope = self.run_id.hex()
        self.epochs = Epochs(self.manifest, self.plan, self.run_id)
        for record in self.heard:
            self.epochs.take(record)
        for name, start in self.recall_all(names, "run/start", msg.RunStart).items():
            if start.run_id != self.scope:
                raise Refused("run-id", f"'{name}' worked under another run id")

    def _keys(self) -> msg.JointKeys:
        self.scheme = Scheme(self.manifest.ckks, self.scope)
        made: dict[str, bytes] = {}
        sums: dict[str, str] = {}
        for number, kinds in ((1, keys.first_round_kinds(self.layout.rotations)), (2, keys.SECOND_ROUND)):
            round = f"keys/{number}"
            commits, reveals = (
                self.recall_all(self.custodians, f"{round}/commit", msg.KeyCommit),
                self.recall_all(self.custodians, f"{round}/reveal", msg.KeyReveal),
            )
            for name, reveal in reveals.items():
                check_opens(self.scope, round, name, commits[name], reveal.salt, ceremony.blobs_digest(reveal.blobs))
            sums |= ceremony.sums(
                self.scheme,
                kinds,
                reveals,
                self.blob,
                lambda b: made.__setitem__(codec.digest(b), b),
                self.pool,
                lambda done, total: None,
            )
            if number == 1 and self.manifest.needed < len(self.custodians):
                checks = self.recall_all(self.custodians, f"{DEALING}/check", msg.ShareCheck)
                ceremony.check_dealing(self.scheme, self.manifest.needed, reveals, checks, self.blob)
        joint = ceremony.joint(sums, sums)
        for name, theirs in self.recall_all([*self.custodians, self.server], "keys/joint", msg.JointKeys).items():
            if theirs != joint:
                raise Refused("joint-keys", f"'{name}' signed other joint keys than the contributions add up to")
        ceremony.install(self.scheme, self.run_id, joint, made.__getitem__)
        return joint

    def contributions(self, round: str, lists: str, wanted: Sequence[Input], claims: Sequence[Claim]) -> Given:
        """What every custodian had committed to and gave for the inputs of a round, whose claims are checked again."""
        commits = self.recall_all(self.active(round), f"{round}/commit", msg.InputCommit)
        reveals = self.recall_all(self.active(round), f"{round}/reveal", msg.InputReveal)
        weighed = list(self.pool.map(lambda claim: inputs.weigh(self.scheme, claim, self.blob), claims))
        shares = {name: self.blob(theirs.shares) for name, theirs in commits.items()}
        left_out = self.leave_out(inputs.unproven(claims, weighed, shares))
        for name, reveal in reveals.items():
            inputs.check_left_out(round, name, reveal, left_out)
        return inputs.check(self.scope, self.epochs.spelled(round), lists, len(wanted), commits, reveals)

    def leave_out(self, failed: Mapping[str, Refused]) -> dict[str, int]:
        """Whom the run went on without, as their claims do not hold, and how many rows each had brought. By default
        there is no run then: raises."""
        return inputs.refuse(failed)

    def done(self, step: int, statement: msg.StepDone, data: list[bytes]) -> None:
        if self.recall(f"step/{step}", msg.StepDone) != statement:
            raise Refused("step", f"step {step}: the recorded outcome is not what its inputs give")

    def refresh(self, items: list[str], ciphertexts: list[Any]) -> list[Any]:
        """The recorded answers to a refresh, after the recorded request was found to be what we computed."""
        fresh: list[Any] = []
        for topic, place in refreshing.parts(items):
            asked, part = self.recall(topic, msg.RefreshRequest), items[place]
            own = refreshing.requests(self.scheme, part, refreshing.taken(ciphertexts, place), self.pool, self.layout)
            for item, mine, theirs in zip(part, own, asked.ciphertexts, strict=True):
                if codec.digest(mine) != theirs:
                    raise Refused(
                        "request",
                        f"'{item}': the server asked for the refresh of another ciphertext than its inputs give",
                    )
            fresh += self.refreshed(topic)
        return fresh

    def refreshed(self, topic: str) -> list[Any]:
        """What a recorded batch of refreshes gave."""
        asked, answers = (
            self.recall(topic, msg.RefreshRequest),
            self.recall_all(self.active(topic), topic, msg.RefreshShares),
        )
        return refreshing.combine(self.scheme, self.seed(topic), asked, answers, self.blob, self.pool, self.layout)

    def active(self, topic: str) -> tuple[str, ...]:
        """The custodians who answered under this topic."""
        return self.epochs.at(topic).active

    def seed(self, topic: str) -> bytes:
        """What stood for the run id in what was derived for this topic."""
        return self.epochs.at(topic).seed

    def _release(self, done: list[msg.StepDone]) -> str:
        """What is released, or asked for: with ``approve: human`` custodians may wait for this audit's word."""
        released, asked = self.plan.released(self.manifest), self.recall("release/request", msg.ReleaseRequest)
        if asked.items != released.items:
            raise Refused("release", "the server asked to release something that is not in the plan")
        ciphertexts = released.ciphertexts(done)
        if self.epochs.released_again:
            weights = [w for topic in released.topics for w in self.refreshed(topic)]
            fresh = refreshing.once_more(self, weights, self.scheme, self.layout)
            ciphertexts = refreshing.digests(self.scheme, fresh)
        if asked.ciphertexts != ciphertexts:
            raise Refused("release", "the server asked to release something else than the last refreshed weights")
        active, topic = self.active("release/shares"), self.epochs.spelled("release/shares")
        if not any((name, topic) in self.heard for name in active):
            return "is asked for of the last refreshed weights and nothing else; no custodian has given its share yet"
        for name, answer in self.recall_all(active, "release/shares", msg.ReleaseShares).items():
            if (answer.items, answer.ciphertexts) != (asked.items, asked.ciphertexts):
                raise Refused("release", f"'{name}' released something else than the last refreshed weights")
        return "the last refreshed weights and nothing else"

    def blob(self, digest: str) -> bytes:
        """A blob of the store; :class:`focal.net.store.Blobs` checks its SHA-256."""
        return self.blobs.get(digest)


def recorded(manifest: Manifest, store: Path) -> Heard:
    """All records of a server's board, every signature checked."""
    heard = Heard(manifest)
    for data in board_records(store):
        heard.add(data)
    return heard


def board_records(store: Path) -> list[bytes]:
    """All records of a server's board, in order, without writing to it. ``store``: its state folder."""
    path = store / "board.sqlite"
    if not path.exists():
        raise FocalError(f"{path}: not found", hint="name the run's folder, or with --from the server's state folder")
    try:
        db = sqlite3.connect(f"file:{path.absolute()}?mode=ro", uri=True)
        try:
            check_format(path, db)
            return [bytes(row[0]) for row in db.execute("SELECT data FROM record ORDER BY seq")]
        finally:
            db.close()
    except sqlite3.Error as e:
        raise FocalError(
            f"{path}: cannot be read as a board ({e})", hint="is the server still running? stop it, or copy the folder"
        ) from None


def audit(
    manifest: Manifest,
    store: Path,
    say: Say,
    threads: int | None = None,
    ray: str | None = None,
) -> str:
    """Audit a run of any protocol; returns the last link of its chain. ``ray`` is for blind runs
    (:class:`Audit`)."""
    if ray is not None and of(manifest).joint:
        raise FocalError("only a blind run can be audited on a Ray cluster", hint="leave out --ray")
    chain: str = of(manifest).part("audit")(manifest, store, say, threads, ray).run()
    return chain
