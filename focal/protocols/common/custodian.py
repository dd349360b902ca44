"""A custodian: one share of the secret key, and a short list of what it may be used for.

::

    nonce -> round 1 -> round 2 -> joint keys -> (uploads accepted) ---> inputs -> refresh, refresh, ... --> release
             commit, reveal, same transcript      blind: exactly these   commit,   the plan's items only     the last W
                                                                         reveal                              only

Every answer is a function of the plan, of public digests and of the own share, is made once, and is on disk before it
leaves (focal.custody.ledger). With ``verify: lockstep`` the custodian re-runs every step with the project's own
engine and answers only for limbs equal to its own: it is the voice that *checks*
(:mod:`focal.protocols.common.voice`). With ``verify: off`` it trusts the server to compute what was agreed. One
verifier is the guard. It answers each batch of refreshes last::

    server  request --+--------------------------------------------------------------------------------------> combine
    others            +--> shares, masks of 98 bits ---------------+                                              ^
    guard             +--> lockstep --> all of these, pinned, then weighed (focal.custody.refresh) --> its shares ---+
                                                                                        `-----> or ``range``, and no key
"""

from __future__ import annotations

import abc
import functools
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal.ckks import codec
from focal.ckks.ring import Limb
from focal.ckks.scheme import Scheme
from focal.config import LocalConfig
from focal.custody import refresh, release
from focal.custody.inputs import Input
from focal.custody.ledger import Ledger
from focal.custody.projections import Proof
from focal.custody.refresh import Guard
from focal.errors import FocalError, Refused
from focal.files import forget, private_write
from focal.heads.masks import only_classes
from focal.manifest import Manifest, Member
from focal.net import messages as msg
from focal.net.encoding import decode, encode
from focal.protocols.common import ceremony, epochs, inputs, refreshing, resuming
from focal.protocols.common.approval import APPROVED, AWAITED, Release, read_release
from focal.protocols.common.epochs import LeftOut
from focal.protocols.common.inputs import Claim, MaskKeys
from focal.protocols.common.keyholder import KeyHolder, key_files
from focal.protocols.common.party import Party
from focal.protocols.common.progress import Reporter
from focal.protocols.common.voice import Compute, Given

REFUSED = "refused"
"""In the journal: the run that this guard has refused to go on with."""
FETCHING = 6
"""Blobs that are fetched at a time: each waits for the server, the wire and the own disk, one after the other."""
AHEAD = 16
"""Items of a batch whose request and others' shares are sent before they are used: they fit into
:data:`focal.protocols.common.party.RECENT`."""
GROUP = 4
"""Shares that become durable, and then leave, together."""
H0_FIRST = 8
"""A stored refresh share is h0's length (8 bytes, little-endian), h0, h1."""


class Custodian(Party):
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
        self.layout = self.plan.layout(manifest)
        self.threads = local.threads or os.cpu_count() or 1
        self.pool = ThreadPoolExecutor(self.threads, thread_name_prefix="custodian")
        self.fetching = ThreadPoolExecutor(FETCHING, thread_name_prefix="fetching")
        self.sending = ThreadPoolExecutor(1, thread_name_prefix="sending")
        self._coming: dict[str, Future[bytes]] = {}
        self._masks: dict[int, MaskKeys] = {}
        self._caught_up = False

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

    def limbs(self, topic: str) -> list[Limb]:
        """The key share that shares under ``topic`` are made with."""
        return self.key.limbs(topic)

    def forget_secrets(self) -> None:
        """Nobody may go on with the run, so its key share has no use but a thief's:
        others' shares may be known by now."""
        if "key" in self.__dict__:  # the scope is the run's, and there is a share
            self._forget(*key_files(self))

    def _forget(self, *files: Path) -> None:
        """Unlink key files. What is in memory ends with the process."""
        forget(*files)

    # ----------------------------------------------------------------- epochs

    def turn(self) -> None:
        """Agree to what is proposed, first of all on disk, and wait until it is in force."""
        self.read_all()
        self._check_not_given_up()
        self.catch_up()
        while True:
            if self.epochs.proposed and self.me.name in self.epochs.proposed[-1].active:
                list(map(self._agree, self.epochs.proposed))
            if not self.epochs.pending:
                break
            self.read_board(seconds=2.0)
        self._check_not_given_up()

    def _check_not_given_up(self) -> None:
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
        self.ledger.enter(proposal.number, epochs.digest(self.run_id, proposal).hex())
        self.say(topic, proposal)
        self.report.warn(
            f"{self.me.name}: goes on with {', '.join(proposal.active)} in epoch {proposal.number}, "
            "and answers in no older one"
        )

    def guards(self, topic: str) -> bool:
        """Does this custodian answer the refreshes of this topic last?"""
        return epochs.guard(self.manifest, self.active(topic)) == self.me.name

    # ----------------------------------------------------------------- inputs

    def contribute(self, round: str, lists: str, wanted: Sequence[Input], claims: Sequence[Claim]) -> None:
        """This custodian's part of the inputs of a round: made once, committed to before any custodian shows one,
        and shown once every institution's claim was found to hold.

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
        def weighed() -> tuple[list[Proof], list[tuple[list[int], list[int]]]]:
            meet()
            proofs = [Proof.load(self.fetch(claim.proof), f"'{claim.statement.institution}'") for claim in claims]
            for claim in claims:  # one proof gets a share; two of them would show the masks
                digest = hashlib.sha256(claim.statement.hash + bytes.fromhex(claim.proof)).hexdigest()
                self.ledger.pin(claim.topic + epoch.suffix, digest)
            one = functools.partial(self.masks.projected, self.scheme, fetch=self.fetch)
            return proofs, list(self.pool.map(one, claims, proofs))

        def shares() -> bytes:
            checks = zip(claims, *weighed(), strict=True)
            made = b"".join(self.masks.range_share(claim, proof, masks) for claim, proof, (masks, _) in checks)
            return self.share_blobs([made], "all")[0].encode()

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
        if self.journal.get(f"{self.session}/said/{self.spelled(f'{round}/reveal')}") is None:
            proofs, projected = weighed()
            others = {name: self.net.get(theirs.shares) for name, theirs in commits.items()}
            inputs.check_range(claims, proofs, [uploads for _, uploads in projected], others)
        self.send_stored(list(own), "custodians")
        self.say(f"{round}/reveal", msg.InputReveal(commits=inputs.commits_digest(commits), salt=salt.hex(), blobs=own))

    def contributions(self, round: str, lists: str, wanted: Sequence[Input], claims: Sequence[Claim]) -> Given:
        """Everybody's, after our own."""
        self.contribute(round, lists, wanted, claims)
        commits = self.hear_all(self.active(round), f"{round}/commit", msg.InputCommit)
        reveals = self.hear_all(self.active(round), f"{round}/reveal", msg.InputReveal)
        return inputs.check(self.scope, self.spelled(round), lists, len(wanted), commits, reveals)

    # ----------------------------------------------------------------- steps

    def verify(self, compute: Compute) -> None:
        """``verify: lockstep``: take every step ourselves and answer only for limbs equal to our own."""
        number = int(self.journal.read(f"{self.session}/verified") or b"0")
        done = [
            decode(msg.StepDone, self.journal.once(f"{self.session}/{self.spelled(f'step/{step}')}", bytes))
            for step in range(number)
        ]
        try:
            self.report.progress(number, compute.total)
            for statement in compute.steps(self, done, self.blobs.get):
                self.report.progress(statement.step + 1, compute.total)
        finally:
            compute.close()

    def install_keys(self) -> None:
        """Give OpenFHE the joint evaluation keys, as this custodian added them up."""
        ceremony.install(self.scheme, self.run_id, self.joint, self.blobs.get)

    def done(self, step: int, statement: msg.StepDone, data: list[bytes]) -> None:
        """Kept on disk; then the server must say the same."""
        keeping = [self.pool.submit(self.blobs.put, weights) for weights in data]
        self.journal.once(f"{self.session}/{self.spelled(f'step/{step}')}", functools.partial(encode, statement))
        if self.hear(self.manifest.server.name, f"step/{step}", msg.StepDone) != statement:
            raise Refused("lockstep", f"the server's step {step} has another outcome than our own computation")
        for kept in keeping:
            kept.result()
        self.journal.set(f"{self.session}/verified", str(step + 1).encode())

    # ----------------------------------------------------------------- refresh

    def refresh(self, items: list[str], ciphertexts: list[Any]) -> list[Any]:
        """Answer the server's request only when it is, limb for limb, what we computed;
        then combine everybody's answers."""
        own = [
            self._passed(data) for data in refreshing.requests(self.scheme, items, ciphertexts, self.pool, self.layout)
        ]
        topic = refreshing.topic(items[0])
        refreshing.expand_ahead(self.scheme, self.seed(topic), items, own, self.pool, self.layout)
        self.answer_batch(topic, tuple(items), own)
        return self.refreshed(topic)

    def refreshed(self, topic: str) -> list[Any]:
        """What a batch of refreshes gave, from its request and everybody's answers."""
        asked = self.hear(self.manifest.server.name, topic, msg.RefreshRequest)
        answers = self.hear_all(self.active(topic), topic, msg.RefreshShares)
        return refreshing.combine(self.scheme, self.seed(topic), asked, answers, self.fetch, self.pool, self.layout)

    def _passed(self, data: bytes) -> str:
        """Keep at hand what the server has too, and is asked for if it is forgotten here; returns its digest."""
        digest = codec.digest(data)
        self.passing.add(digest, data)
        return digest

    def answer_batch(self, topic: str, items: tuple[str, ...], own: list[str] | None = None) -> msg.RefreshRequest:
        """Answer one batch: the plan's items in the plan's order, and with ``own`` digests nothing
        but these ciphertexts."""
        asked = self.hear(self.manifest.server.name, topic, msg.RefreshRequest)
        if asked.items != items or len(asked.ciphertexts) != len(items):
            raise Refused("plan", f"the server asks for {asked.items[:1]} under '{topic}', the plan has {items[:1]}")
        if own is not None and tuple(own) != asked.ciphertexts:
            differs = next(
                item for item, mine, theirs in zip(items, own, asked.ciphertexts, strict=True) if mine != theirs
            )
            raise Refused(
                "lockstep", f"the server presents another ciphertext for '{differs}' than our own computation yields"
            )
        guards = self.guards(topic)
        others = self._pinned(topic, asked) if guards else {}
        if not self.repeat(topic):
            theirs = others.values()
            self._fetch_ahead(
                [
                    *asked.ciphertexts[:AHEAD],
                    *(d for o in theirs for d in o.h0[:AHEAD]),
                    *(d for o in theirs for d in o.h1[:AHEAD]),
                ]
            )
            if guards:
                self._weigh(topic, asked, others)
            digests = self._answered(topic, items, asked.ciphertexts)
            self.say(
                topic,
                msg.RefreshShares(
                    items=items, ciphertexts=asked.ciphertexts, h0=tuple(digests[::2]), h1=tuple(digests[1::2])
                ),
            )
        return asked

    def _answered(self, topic: str, items: tuple[str, ...], ciphertexts: tuple[str, ...]) -> list[str]:
        """Digests of h0, h1, h0, h1, ..., which the server has: some are made while those before them,
        which are on disk, are sent."""
        # of a batch that is refused no share leaves
        self.ledger.check("refresh" + self.epochs.at(topic).suffix, list(zip(items, ciphertexts, strict=True)))
        sent = []
        for i in range(0, len(items), GROUP):
            shares = self._refresh_shares(topic, items[i : i + GROUP], ciphertexts[i : i + GROUP])
            made = [half for pair in shares for half in pair]
            sent.append((made, self.sending.submit(self.share_blobs, made, "custodians")))
        digests = []
        for made, future in sent:
            digests += future.result()
            if self.verifies:  # it adds them up itself
                list(map(self.passing.add, digests[-len(made) :], made))
        return digests

    def _fetch_ahead(self, digests: list[str]) -> None:
        """Have these sent; whoever asks for one waits for what is under way already."""
        for digest in digests:
            if self.passing.get(digest) is None and digest not in self.blobs:
                self._coming[digest] = self.fetching.submit(super().fetch, digest)

    def fetch(self, digest: str) -> bytes:
        coming = self._coming.pop(digest, None)
        return coming.result() if coming is not None else super().fetch(digest)

    def _pinned(self, topic: str, asked: msg.RefreshRequest) -> dict[str, msg.RefreshShares]:
        """Everybody else's answers, which the guard waits for. They are the same after a restart
        as when they were weighed."""
        others = self.hear_all([p for p in self.active(topic) if p != self.me.name], topic, msg.RefreshShares)
        refreshing.check_answers(asked, others)
        weighed = hashlib.sha256(b"focal/guard/v1" + b"".join(map(encode, (asked, *others.values()))))
        self.ledger.pin(self.spelled(topic), weighed.hexdigest())
        return others

    def _weigh(self, topic: str, asked: msg.RefreshRequest, others: dict[str, msg.RefreshShares]) -> None:
        """The guard's part: what all the others leave to be seen is small in every item, or the run ends here.

        The request and all answers were pinned before, and all of a batch is weighed before any of it is answered:
        every decision is one bit, and nobody may have two for one batch. On ``range`` the key share is gone before the
        word is out, and the word says neither item nor size.
        """

        def small(i: int) -> bool:
            h0 = [(name, self.fetch(theirs.h0[i])) for name, theirs in others.items()]
            bounds, data = self.bounds(topic, asked.items[i]), self.fetch(asked.ciphertexts[i])
            return refresh.small_enough(self.scheme, bounds, self.limbs(topic), data, h0)

        if not all(list(self.pool.map(small, range(len(asked.items))))):
            self.journal.set(REFUSED, self.scope.encode())
            self._refuse()

    def _refuse(self) -> None:
        """End the run without a key share; again after a restart, should the word not have got out."""
        self._forget(*key_files(self))
        raise Refused(
            "range",
            "what is to be refreshed is larger than anything a training step gives: "
            "an upload, a share or the request is malformed",
            hint="the key share is deleted, and this run is over; 'focal audit' tells whether it was the server",
        )

    def _refresh_shares(
        self, topic: str, items: tuple[str, ...], digests: tuple[str, ...]
    ) -> list[tuple[bytes, bytes]]:
        """(h0, h1) for each plan item: made once, several at a time, the stored bytes ever after;
        stored in the plan's order."""
        asked = list(zip(items, digests, strict=True))

        def make(missing: list[int]) -> list[bytes]:
            return list(self.pool.map(lambda i: self._made(topic, *asked[i]), missing))

        out, epoch = [], self.epochs.at(topic)
        for stored in self.ledger.answers("refresh" + epoch.suffix, asked, make, epoch=epoch.number):
            end = H0_FIRST + int.from_bytes(stored[:H0_FIRST], "little")
            out.append((stored[H0_FIRST:end], stored[end:]))
        return out

    def _made(self, topic: str, item: str, digest: str) -> bytes:
        """A fresh share, as the ledger stores it."""
        data = self.fetch(digest)
        how = self.layout.refresh_map(item)
        c1 = codec.unpack(self.scheme, codec.ciphertext(how.request), data, f"'{self.manifest.server.name}'")[1]
        a = refresh.common_random(self.scheme, self.seed(topic), item, codec.digest(data), how.limbs)
        bits = self._mask_bits(topic, item)
        h0, h1 = refresh.share(self.scheme, self.limbs(topic), c1, a, bits, how, self.added())
        return len(h0).to_bytes(H0_FIRST, "little") + h0 + h1

    def bounds(self, topic: str, item: str) -> Guard:
        """Widths of masks and the guard's bound for a plan item."""
        return refresh.guard(self.scheme, len(self.active(topic)), self.layout.refresh_map(item))

    def _mask_bits(self, topic: str, item: str) -> int:
        """How wide this custodian's masks are: the guard's hide what it has let pass, the others' an honest message."""
        bounds = self.bounds(topic, item)
        if self.manifest.guard is None:
            return bounds.alone_bits
        return bounds.guard_bits if self.guards(topic) else bounds.others_bits

    def added(self) -> NDArray[np.float64] | None:
        """Slots that this custodian adds to what is refreshed: nothing, unless its protocol says so."""
        return None

    # ----------------------------------------------------------------- after a restart

    def catch_up(self) -> None:
        """Give nothing before the peers have said that this folder is no old copy."""
        if not self._caught_up and self.journal.get(f"{self.session}/said/{self.spelled('release/shares')}") is None:
            resuming.check_ledger(self, self.ledger)
        self._caught_up = True  # or every share was given: only stored bytes leave, and the peers may be gone

    def idle(self) -> None:
        resuming.answer_peers(self, self.peers)

    # ----------------------------------------------------------------- release

    def _release(self) -> None:
        """Shares of the last refreshed weights, sealed to each institution; then the key share is deleted."""
        topic = "release/shares"
        if not self.repeat(topic):
            items, ciphertexts, weights = self._last_weights()
            self._wait_for_approval(items, ciphertexts)
            shares = b"".join(map(self._release_share, items, ciphertexts, weights))
            sealed = {m.name: self._sealed(m, shares) for m in self.manifest.institutions}
            self.say(topic, msg.ReleaseShares(items=items, ciphertexts=ciphertexts, sealed=sealed))
        # Every sealed share is on our disk and acknowledged from the server's: the key has done its work. Where one of
        # the others may still be lost, it has not before all have given theirs.
        if self.manifest.needed < len(self.peers):
            self.hear_all(self.active(topic), topic, msg.ReleaseShares)
        self._forget(*key_files(self))
        self.report.say("the key share was used for the last time and is deleted")
        self.hear_all(self.active(topic), topic, msg.ReleaseShares)  # stay until then: a peer may restart and ask
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
        context = f"release/{institution.name}".encode() + epoch.seed
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
            weights = self.refresh(
                list(refreshing.again(len(weights))), refreshing.lowered(self.scheme, weights, self.layout)
            )
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
