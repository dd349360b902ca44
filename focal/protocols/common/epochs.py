"""Epochs: which custodians answer from when on, as some of a t-of-N key are lost (:mod:`focal.custody.sharing`).

A run begins in epoch 0, with every custodian. An epoch only ever takes custodians away, so that there are N - t of them
at most::

    server       epoch/1: those who are left, the first stage that has not ended on the board, the digest of epoch/0
    custodian    writes it down: no answer in an older epoch any more   -->   epoch/1/agreed, the same record
    institution  only where a person says that the lost are lost: focal epoch sign   -->   epoch/1/consent
    everybody    all active have agreed, and enough others consented: it is in force

A run has stages (``plan.stage``), and everybody checks on the own view of the board that the epoch begins with the
right one (the server speaks only where its board has not grown meanwhile). From there on all is made anew in the new
epoch, under topics, randomness and ledger entries of its own (``refresh/3/logits/e1``); what had ended stays. So a
ciphertext may be refreshed once more, with another ``a`` and other masks, and is never opened twice: openings of a
stage that is made anew are of other ciphertexts, and before a release is asked for again the weights pass one more
refresh.

**Against forks.** A server with t - 1 liars needs one honest custodian to use the key. It must not have two of them in
two runs, each told that the other is lost. So an epoch needs more than (N + t - 1) / 2 custodians who agree: two such
sets share an honest one, who signs one record under one number and then answers in no older epoch; and an older epoch
needs all of its active ones. Where fewer are left, or the guard is lost, more than two thirds of the institutions must
consent, by a person who has asked the lost custodian: two such sets share more than a third. A custodian that is
restored from an old copy may sign twice: it counts as one of the t - 1.

Quorums as in Castro and Liskov, "Practical Byzantine Fault Tolerance", OSDI 1999.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from focal import framing
from focal.errors import FocalError, Refused
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.net.encoding import encode

SUFFIX = re.compile(r"/e[0-9]{1,2}$")
"""Of topics after epoch 0."""


class EpochChanged(Exception):
    """The server has proposed a new epoch: what is under way is left, and the script goes on from its beginning (its
    journal knows what was made)."""


class Stages(Protocol):
    """What a protocol's plan says of the stages of a run."""

    def stages(self, manifest: Manifest) -> int:
        """How many there are before the release."""
        ...

    def stage(self, manifest: Manifest, topic: str) -> int | None:
        """In which one something is said under ``topic``, spelled as in epoch 0; None where epochs do not matter."""
        ...

    def stage_end(self, manifest: Manifest, stage: int) -> tuple[bool, str]:
        """The topic that ends a stage, and whether the server says it, or else every active custodian."""
        ...


@dataclass(frozen=True)
class Epoch:
    """One epoch that is, or was, in force."""

    number: int
    active: tuple[str, ...]
    """Custodians who answer, in manifest order."""
    stage: int
    """The first that is taken in it."""
    seed: bytes
    """What stands for the run id wherever something is derived that must be another one in another epoch."""

    @property
    def suffix(self) -> str:
        return f"/e{self.number}" if self.number else ""


class Epochs:
    """The epochs of one run, as records tell; every party that reads the board derives the same."""

    def __init__(self, manifest: Manifest, stages: Stages, run_id: bytes) -> None:
        self.manifest, self.stages, self.run_id, self.scope = manifest, stages, run_id, run_id.hex()
        names = tuple(m.name for m in manifest.custodians)
        self.in_force = [Epoch(0, names, 0, run_id)]
        self.proposed: list[msg.Epoch] = []
        """All that the server has proposed."""
        self._said: set[tuple[str, str]] = set()
        self._words: set[str] = set()
        """Who has said the newest proposal too."""

    # ----------------------------------------------------------------- from records

    def take(self, record: msg.Record) -> None:
        """One record more, in the board's order. Raises :class:`Refused` (``epoch``) for a proposal that no server may
        make."""
        if record.scope != self.scope:
            return
        self._said.add((record.sender, record.topic))
        if isinstance(record.body, msg.Epoch) and record.sender == self.manifest.server.name:
            self._check(record.topic, record.body)
            self.proposed.append(record.body)
            self._words = set()
        elif isinstance(record.body, msg.Epoch) and self.pending:
            newest = self.proposed[-1]
            number, same = newest.number, record.body == newest
            agrees = record.sender in newest.active and record.topic == f"epoch/{number}/agreed"
            founder = record.sender in {m.name for m in self.manifest.founders}
            if agrees and not same:
                raise Refused("epoch", f"'{record.sender}' was shown another epoch {number} than we were")
            # another consent is nobody's: an institution that was left out must not end the run by one
            if same and (agrees or (founder and record.topic == f"epoch/{number}/consent")):
                self._words.add(record.sender)
                if self._backed and self._words.issuperset(newest.active):
                    self.in_force.append(Epoch(number, newest.active, newest.stage, digest(self.run_id, newest)))

    def _check(self, topic: str, proposal: msg.Epoch) -> None:
        number, (active, after) = len(self.proposed) + 1, self._before
        if topic != f"epoch/{number}" or (proposal.number, proposal.after) != (number, after):
            raise Refused("epoch", f"the server proposes an epoch that does not follow from the one before ('{topic}')")
        if not set(proposal.active) < set(active) or list(proposal.active) != [
            n for n in active if n in proposal.active
        ]:
            raise Refused(
                "epoch",
                f"the server proposes epoch {number} with other custodians than some of the {len(active)} before",
            )
        if why := impossible(self.manifest, proposal.active):
            raise Refused("epoch", f"the server proposes epoch {number}, in which {why}")
        if self.given:
            raise Refused("epoch", f"the server proposes epoch {number} when all shares of the release were given")
        if proposal.since != self.now.number:
            raise Refused(
                "epoch", f"the server proposes epoch {number} after epoch {proposal.since}, not {self.now.number}"
            )
        if proposal.stage != (reached := self._reached()):
            raise Refused("epoch", f"the server proposes epoch {number} from stage {proposal.stage} on, not {reached}")

    @property
    def _before(self) -> tuple[tuple[str, ...], str]:
        """Who is active in what a next proposal follows, and its digest."""
        if not self.proposed:
            return self.in_force[0].active, self.scope
        return self.proposed[-1].active, digest(self.run_id, self.proposed[-1]).hex()

    def _reached(self) -> int:
        """The first stage that has not ended: those from the newest epoch's on belong to it."""
        now = self.in_force[-1]
        stage, count = now.stage, self.stages.stages(self.manifest)
        while stage < count:
            by_server, topic = self.stages.stage_end(self.manifest, stage)
            names = (self.manifest.server.name,) if by_server else now.active
            if not all((name, topic + now.suffix) in self._said for name in names):
                break
            stage += 1
        return stage

    @property
    def given(self) -> bool:
        """Did all active custodians give their shares of the release? Then nobody who is lost matters any more."""
        topic = "release/shares" + self.now.suffix
        return all((name, topic) in self._said for name in self.now.active)

    @property
    def pending(self) -> bool:
        """Is the newest proposal still to come into force?"""
        return bool(self.proposed) and self.proposed[-1].number != self.in_force[-1].number

    @property
    def _backed(self) -> bool:
        """Are those of the newest proposal enough to go on by themselves, or do institutions consent?"""
        consents = sum(m.name in self._words for m in self.manifest.founders)
        return not self.needs_people or consents >= consents_needed(self.manifest)

    @property
    def needs_people(self) -> bool:
        """Must institutions consent to the newest proposal?"""
        return needs_people(self.manifest, self.proposed[-1].active)

    @property
    def asked(self) -> tuple[str, ...]:
        """Who must have answered before a custodian that was started gives anything: those who are active, or will be.

        Nobody waits for one that is lost, and nobody has agreed yet where all have just been started. Of a proposal
        that custodians back by themselves, t others at least are asked, an honest one among them.
        """
        return self.proposed[-1].active if self.pending and self._backed else self.now.active

    def next(self, lost: Sequence[str]) -> msg.Epoch:
        """The proposal of an epoch without ``lost``. Raises :class:`FocalError` when there can be none."""
        before, after = self._before
        active = tuple(name for name in before if name not in lost)
        if why := impossible(self.manifest, active):
            raise FocalError(f"without {', '.join(lost)} {why}", hint="bring one of them back, or start a new run")
        number, stage, since = len(self.proposed) + 1, self._reached(), self.now.number
        return msg.Epoch(number=number, after=after, active=active, stage=stage, since=since)

    # ----------------------------------------------------------------- what follows from them

    @property
    def now(self) -> Epoch:
        return self.in_force[-1]

    def at(self, topic: str) -> Epoch:
        """The epoch that something said under ``topic``, spelled as in epoch 0, belongs to."""
        stage = self.stages.stage(self.manifest, topic)
        if stage is None:
            return self.in_force[0]
        return next(epoch for epoch in reversed(self.in_force) if epoch.stage <= stage)

    @property
    def released_again(self) -> bool:
        """Did the newest epoch begin after the last step, when the release may have been asked for already?"""
        return self.now.number > 0 and self.now.stage == self.stages.stages(self.manifest)

    def spelled(self, topic: str) -> str:
        """``topic`` as it is said: after epoch 0 with the epoch's number."""
        return topic + self.at(topic).suffix


def digest(run_id: bytes, epoch: msg.Epoch) -> bytes:
    """Of a proposal, in this run."""
    return framing.digest(b"focal/epoch/v1", run_id, encode(epoch))


def guard(manifest: Manifest, active: Sequence[str]) -> str | None:
    """The custodian that answers every refresh last: the manifest's guard, or the first other one that verifies, should
    it be lost."""
    if manifest.guard is None:
        return None
    verifiers = [m.name for m in manifest.custodians if m.verify == "lockstep" and m.name in active]
    return manifest.guard.name if manifest.guard.name in active else next(iter(verifiers), None)


def impossible(manifest: Manifest, active: Sequence[str]) -> str | None:
    """Why no epoch can have these custodians only; None when one can."""
    needed = manifest.needed
    if len(active) < needed:
        return f"{len(active)} custodians are left of the {needed} that this key needs"
    if manifest.guard is not None and guard(manifest, active) is None:
        return "no custodian is left that verifies, and the manifest names one"
    return None


def needs_people(manifest: Manifest, active: Sequence[str]) -> bool:
    """Do these go on with institutions' consent only? Where they are no quorum, and where the manifest's guard is not
    among them: a server that could take the guard away by itself would choose who guards."""
    return len(active) < quorum(manifest) or guard(manifest, active) != (manifest.guard and manifest.guard.name)


def quorum(manifest: Manifest) -> int:
    """So many custodians may go on by themselves: two such sets share one that is honest, should t - 1 not be."""
    return (len(manifest.custodians) + manifest.needed - 1) // 2 + 1


def consents_needed(manifest: Manifest) -> int:
    """So many institutions must consent where fewer custodians are left: more than two thirds, clinics aside. Founders
    that were left out count."""
    return manifest.most_founders


def unspelled(topic: str) -> tuple[str, str]:
    """A topic as in epoch 0, and what was added to it."""
    plain = SUFFIX.sub("", topic)
    return plain, topic[len(plain) :]


def tolerance(manifest: Manifest) -> str:
    """How many custodians may collude, and be lost, in a line that a person can check."""
    n, t = len(manifest.custodians), manifest.needed
    if t == n:
        return f"all {n} custodians together have the key; none may be lost"
    alone, people = max(0, n - max(t, quorum(manifest))), n - t
    by_itself = (
        f"{alone} may be lost and the run goes on by itself" if alone else "none may be lost without people's word"
    )
    consents = f"{consents_needed(manifest)} of {len(manifest.founders)} institutions"
    more = f", {people} when {consents} sign it (focal epoch sign)"
    text = f"any {t} of {n} custodians together have the key; {by_itself}{more if people > alone else ''}"
    if manifest.guard is not None:
        others = [m.name for m in manifest.custodians if m.verify == "lockstep" and m is not manifest.guard]
        after = f"; should {manifest.guard.name} be lost, "
        text += after + (
            f"{others[0]} guards, with institutions' consent" if others else "the run ends: nobody else verifies"
        )
    return text
