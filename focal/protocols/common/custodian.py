"""A custodian: one share of the secret key, and a short list of what it may be used for.

::

    nonce -> round 1 -> round 2 -> joint keys -> (uploads accepted) ---> inputs -> refresh, refresh, ... --> release
             commit, reveal, same transcript      blind: exactly these   commit,   the plan's items only     the last W
                                                                         reveal                              only

Every answer is a function of the plan, of public digests and of the own share, is made once, and is on disk before it
leaves (focal.custody.ledger). With ``verify: lockstep`` the custodian re-runs every step with the project's own
engine and answers only for limbs equal to its own: it is the voice that *checks*
(:mod:`focal.protocols.common.voice`). With ``verify: off`` it trusts the server to compute what was agreed.
How refreshes are answered: :mod:`focal.protocols.common.answering`.
"""

from __future__ import annotations

import abc
import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from focal import framing
from focal.ckks.scheme import Scheme
from focal.config import LocalConfig
from focal.custody import release
from focal.custody.inputs import Input
from focal.custody.ledger import Ledger
from focal.errors import FocalError, LeftOut, Refused
from focal.files import private_write
from focal.heads.masks import only_classes
from focal.manifest import Manifest, Member
from focal.net import messages as msg
from focal.net.encoding import decode, encode
from focal.protocols.common import ceremony, epochs, inputs, refreshing, resuming
from focal.protocols.common.answering import REFUSED, Answering
from focal.protocols.common.approval import APPROVED, AWAITED, Release, read_release
from focal.protocols.common.inputs import Claim, MaskKeys, Weighed
from focal.protocols.common.keyholder import KeyHolder, every_key, key_files
from focal.protocols.common.progress import Reporter
from focal.protocols.common.voice import Compute, Given

FETCHING = 6
"""Blobs that are fetched at a time: each waits for the server, the wire and the own disk, one after the other."""


class Custodian(Answering):
    """``run()`` takes part in one run from the nonces to the release; interrupted, the same call continues it.
    What lies between the keys and the release is its protocol's: :meth:`answer`."""

    role = "custodian"

    def __init__(self, manifest: Manifest, local: LocalConfig, report: Reporter) -> None:
        super().__init__(manifest, local, report)
        declared = self.me.verify
        if local.verify is not None and local.verify != declared:
            raise FocalError(
                f"'{self.me.name}': the local file says verify: {local.verify}, the signed manifest says {declared}",
                hint="make both say the same",
            )
        self.verifies = declared == "lockstep"
        self.peers = [m.name for m in manifest.custodians]
        self.names = [m.name for m in manifest.institutions]
        self.attending = self.names
        """Institutions whose rows the run has, and who get its result."""
        self.layout = self.plan.layout(manifest)
        self.threads = local.threads or os.cpu_count() or 1
        self.pool = ThreadPoolExecutor(self.threads, thread_name_prefix="custodian")
        self.fetching = ThreadPoolExecutor(FETCHING, thread_name_prefix="fetching")
        self.sending = ThreadPoolExecutor(1, thread_name_prefix="sending")
        self._masks: dict[int, MaskKeys] = {}
        self._caught_up = False
        self._nonces: list[msg.Record] = []
        """Questions of restarted peers, among the records that were looked at."""
        self._looked_at = 0

    # ----------------------------------------------------------------- the script

    def run(self) -> None:
        self.enter("keys")
        with self.report.phase("gather"):
            self.agree_run()
            self._forget_other_releases()
            if self.journal.read(REFUSED) == self.scope.encode():
                self._refuse()
        with self.report.phase("keys"):
            self.scheme = Scheme(self.manifest.ckks, self.scope)
            if self.manifest.guard is not None:
                refreshing.bounds(self.scheme, len(self.peers), self.layout).check()
            self.ledger = Ledger(self.folder / f"ledger-{self.scope[:16]}.sqlite")
            self.key = KeyHolder(self, self.scheme, tuple(self.layout.rotations), self.pool)
            self.joint = self._key_ceremony()
        self.through_epochs(self._answer_all)
        self.keep_traffic()

    def _answer_all(self) -> None:
        self.answer()
        with self.report.phase("release"):
            self.enter("release")
            self._release()

    @abc.abstractmethod
    def answer(self) -> None:
        """Everything between the keys and the release."""

    def _forget_other_releases(self) -> None:
        """Nobody shall be asked to approve what an earlier run in this folder waited with."""
        waiting = read_release(self.folder / AWAITED)
        if waiting is not None and waiting.run_id != self.scope:
            (self.folder / AWAITED).unlink()

    def close(self) -> None:
        super().close()
        self.pool.shutdown(cancel_futures=True)
        self.fetching.shutdown(cancel_futures=True)
        self.sending.shutdown(cancel_futures=True)
        if "ledger" in self.__dict__:
            self.ledger.close()

    # ----------------------------------------------------------------- keys

    def _key_ceremony(self) -> msg.JointKeys:
        joint = self.key.ceremony()
        self.masks.say()
        return joint

    @property
    def masks(self) -> MaskKeys:
        """The keys for the institutions' masks of this epoch."""
        number = self.epochs.at(inputs.KEY).number
        if number not in self._masks:
            self._masks[number] = MaskKeys(self)
        return self._masks[number]

    def forget_secrets(self) -> None:
        """Nobody may go on with the run, so its key share has no use but a thief's:
        others' shares may be known by now. Also one that an earlier process drew, before this one knows of what run."""
        self._forget(*every_key(self.folder))

    # ----------------------------------------------------------------- epochs

    def turn(self) -> None:
        """Agree to what is proposed, first of all on disk, and wait until it is in force."""
        if self.has_said("release/shares"):
            self.read_all()  # it may be asked for again
        while True:
            self.catch_up()
            if self.epochs.proposed and self.me.name in self.epochs.proposed[-1].active:
                list(map(self._agree, self.epochs.proposed))
            if not self.epochs.pending:
                break
            self.read_board(seconds=2.0)
        if self.me.name not in self.epochs.now.active:
            self._forget(*key_files(self))
            raise LeftOut(
                f"'{self.me.name}' was given up: the others go on without it (epoch {self.epochs.now.number})",
                hint="its key share is deleted; the run needs nothing from here any more",
            )

    def _agree(self, proposal: msg.Epoch) -> None:
        topic = f"epoch/{proposal.number}/agreed"
        if self.said(self.me.name, topic):
            return
        said = resuming.shares_seen(self, self.me.name)
        self.ledger.enter(proposal.number, epochs.digest(self.run_id, proposal).hex(), said)
        self.say(topic, proposal)
        self.report.warn(
            f"{self.me.name}: goes on with {', '.join(proposal.active)} in epoch {proposal.number}, "
            "and answers in no older one"
        )

    # ----------------------------------------------------------------- inputs

    def contribute(self, round: str, lists: str, wanted: Sequence[Input], claims: Sequence[Claim]) -> None:
        """This custodian's part of the inputs of a round: made once, committed to before any custodian shows one,
        and shown where the claims of the institutions whose inputs they are were found to hold.

        ``lists`` is a digest of all that is put in; everybody must have agreed to it before.
        """

        epoch, topic, names = self.epochs.at(round), self.spelled(round), self.active(round)

        def meet() -> None:  # once all is made, the key may be gone
            self.masks.meet(dict.fromkeys(name for one in wanted for name, _ in one.owners))

        def make() -> bytes:
            meet()
            one = functools.partial(self.masks.contribution, self.scheme, self.limbs(round), epoch.seed, lists)
            digests = []
            for data in self.pool.map(one, wanted):
                digests.append(self.blobs.put(data))
                self.report.progress(len(digests), len(wanted))
            return bytes.fromhex("".join(digests))

        @functools.cache
        def weighed() -> list[tuple[bytes, Weighed | Refused]]:
            meet()
            for claim in claims:  # one proof gets a share; two of them would show the masks
                claimed = framing.digest(b"focal/claim/v1", claim.statement.hash, bytes.fromhex(claim.proof))
                self.ledger.pin(claim.topic + epoch.suffix, claimed.hex())
            return list(self.pool.map(functools.partial(self.masks.weighed, self.scheme, fetch=self.fetch), claims))

        def shares() -> bytes:
            return self.share_blobs([b"".join(share for share, _ in weighed())], "all")[0].encode()

        made = self.ledger.answer("input", topic, lists, make, epoch=epoch.number)
        own = tuple(made[at : at + 32].hex() for at in range(0, len(made), 32))
        given = self.journal.once(f"{self.session}/{topic}/shares", shares).decode()
        salt, commits = self.commit(
            round,
            names,
            inputs.committed(lists, own),
            lambda c: msg.InputCommit(lists=lists, commitment=c, shares=given),
        )
        inputs.check_lists(topic, lists, commits)

        def left_out() -> dict[str, int]:
            others = {name: inputs.shares_of(name, theirs, self.net.get) for name, theirs in commits.items()}
            return self.leave_out(inputs.unproven(claims, [found for _, found in weighed()], others))

        without: dict[str, int] = self.remembered(f"{topic}/left-out", left_out)
        self.send_stored(inputs.shown(wanted, own, without), "custodians")
        seen = inputs.commits_digest(commits)
        self.say(f"{round}/reveal", msg.InputReveal(commits=seen, salt=salt.hex(), blobs=own, left_out=without))

    def leave_out(self, failed: Mapping[str, Refused]) -> dict[str, int]:
        """Whom the run goes on without, as their claims do not hold, and how many rows each had brought. By default
        there is no run then: raises."""
        return inputs.refuse(failed)

    def contributions(self, round: str, lists: str, wanted: Sequence[Input], claims: Sequence[Claim]) -> Given:
        """Everybody's, after our own."""
        self.contribute(round, lists, wanted, claims)
        commits = self.hear_all(self.active(round), f"{round}/commit", msg.InputCommit)
        reveals = self.hear_all(self.active(round), f"{round}/reveal", msg.InputReveal)
        for name, reveal in reveals.items():
            inputs.check_left_out(round, name, reveal, reveals[self.me.name].left_out)
        return inputs.check(self.scope, self.spelled(round), lists, len(wanted), commits, reveals)

    # ----------------------------------------------------------------- steps

    def verify(self, compute: Compute) -> None:
        """``verify: lockstep``: take every step ourselves and answer only for limbs equal to our own."""
        verified, done = int(self.journal.read(f"{self.session}/verified") or b"0"), list[msg.StepDone]()
        while (kept := self.journal.get(self._kept_step(len(done)))) is not None and len(done) < verified:
            done.append(decode(msg.StepDone, kept))
        number = len(done)
        try:
            self.report.progress(number, compute.total)
            for statement in compute.steps(self, done, self.blobs.get):
                self.report.progress(statement.step + 1, compute.total)
        finally:
            compute.close()

    def _kept_step(self, step: int) -> str:
        return f"{self.session}/{self.spelled(f'step/{step}')}"

    def install_keys(self) -> None:
        """Give OpenFHE the joint evaluation keys, as this custodian added them up."""
        ceremony.install(self.scheme, self.run_id, self.joint, self.blobs.get)

    def done(self, step: int, statement: msg.StepDone, data: list[bytes]) -> None:
        """Kept on disk; then the server must say the same."""
        keeping = [self.pool.submit(self.blobs.put, weights) for weights in data]
        self.journal.once(self._kept_step(step), functools.partial(encode, statement))
        if self.hear(self.manifest.server.name, f"step/{step}", msg.StepDone) != statement:
            raise Refused("lockstep", f"the server's step {step} has another outcome than our own computation")
        for kept in keeping:
            kept.result()
        self.journal.set(f"{self.session}/verified", str(step + 1).encode())

    # ----------------------------------------------------------------- after a restart

    def catch_up(self) -> None:
        """Give nothing, and agree to nothing, before the peers have said that this folder is no old copy. Where every
        share was given, only stored bytes leave, and the peers may be gone."""

        def needless() -> bool:
            return self.gave_all and not self.epochs.pending

        if not self._caught_up and not needless():
            self._caught_up = resuming.check_ledger(self, self.ledger, needless)

    @property
    def gave_all(self) -> bool:
        """Was all given that ever will be, as far as epochs are known?"""
        return self.has_said("release/shares")

    def after_release(self) -> None:
        """What a protocol does when all shares are given, and the key share is gone."""

    def idle(self) -> None:
        new, self._looked_at = self.heard.since(self._looked_at), len(self.heard)
        self._nonces += [record for record in new if isinstance(record.body, msg.ResumeNonce)]
        resuming.answer_peers(self, self.peers, self._nonces)

    # ----------------------------------------------------------------- release

    def _release(self) -> None:
        """Shares of the last refreshed weights, sealed to each institution; then the key share is deleted."""
        topic = "release/shares"
        if not self.repeat(topic):
            items, ciphertexts, weights = self._last_weights()
            self._wait_for_approval(items, ciphertexts)
            shares = b"".join(map(self._release_share, items, ciphertexts, weights))
            sealed = {name: self._sealed(self.manifest.member(name), shares) for name in self.attending}
            self.say(topic, msg.ReleaseShares(items=items, ciphertexts=ciphertexts, sealed=sealed))
        # Every sealed share is on our disk and acknowledged from the server's: the key has done its work. Where one of
        # the others may still be lost, it has not before all have given theirs.
        if self.manifest.needed < len(self.peers):
            self.hear_all(self.active(topic), topic, msg.ReleaseShares)
        self._forget(*key_files(self))
        self.report.say("the key share was used for the last time and is deleted")
        self.hear_all(self.active(topic), topic, msg.ReleaseShares)  # stay until then: a peer may restart and ask
        self.after_release()
        self.finish()

    def _release_share(self, item: str, digest: str, weights: object) -> bytes:
        topic, epoch = "release/shares", self.epochs.at("release/shares")
        lead = self.me.name == epoch.active[0]
        make = functools.partial(release.share, self.scheme, self.limbs(topic), weights, lead, self.plan.CARRIED_NOISE)
        given = resuming.entry(msg.ReleaseShares, item, epoch.suffix)
        return self.ledger.answer(*given, digest, make, epoch=epoch.number)

    def _sealed(self, institution: Member, shares: bytes) -> str:
        """The shares of all class groups in one box that only ``institution`` opens; the box's digest."""
        epoch = self.epochs.at("release/shares")
        context = release.sealed_context(institution.name, epoch.seed)
        box = self.journal.once(
            f"{self.session}/sealed/{institution.name}{epoch.suffix}",
            lambda: self.identity.seal(institution, shares, context),
        )
        return self.share_blobs([box], "all")[0]

    def _last_weights(self) -> tuple[tuple[str, ...], tuple[str, ...], list[Any]]:
        """Plan items, digests and ciphertexts of the last refreshed weights, recomputed from signed messages;
        the ciphertexts without what stands in lanes that hold no class.

        Raises :class:`Refused` (``release``) when the server presents anything else.
        """
        released = self.plan.released(self.manifest)
        weights: list[Any] = [w for topic in released.topics for w in self.refreshed(topic)]
        if self.epochs.released_again:
            weights = refreshing.once_more(self, weights, self.scheme, self.layout)
        digests = refreshing.digests(self.scheme, weights)
        request = self.hear(self.manifest.server.name, "release/request", msg.ReleaseRequest)
        if request.items != released.items or request.ciphertexts != digests:
            raise Refused("release", "the server asks to open something else than the last refreshed weights")
        kept = [
            only_classes(self.scheme, self.layout, group, w) for group, w in zip(released.groups, weights, strict=True)
        ]
        return released.items, digests, kept

    def _wait_for_approval(self, items: tuple[str, ...], ciphertexts: tuple[str, ...]) -> None:
        """Where a person decides: until ``focal approve`` has approved exactly this release of this run."""
        if "human" not in (self.manifest.approve, self.local.approve):
            return
        wanted = Release.of(self.scope, items, ciphertexts)
        private_write(self.folder / AWAITED, wanted.model_dump_json().encode())
        self.report.say(f"training is done; the release waits for: focal approve {self.folder} (run {wanted.short})")
        while read_release(self.folder / APPROVED) != wanted:
            self.read_board(seconds=1.0)
        (self.folder / AWAITED).unlink(missing_ok=True)
        self.report.say("the release is approved")
