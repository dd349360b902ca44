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
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal.ckks import codec
from focal.ckks.scheme import Scheme
from focal.config import LocalConfig, Manifest, Member
from focal.custody import keys, refresh, release
from focal.custody.inputs import Input
from focal.custody.ledger import Ledger, ledger_digest
from focal.custody.projections import Proof
from focal.custody.refresh import Guard
from focal.errors import FocalError, Refused
from focal.files import forget, private_write
from focal.heads.masks import only_classes
from focal.net import messages as msg
from focal.protocols.common import ceremony, inputs, refreshing
from focal.protocols.common.approval import APPROVED, AWAITED, Release, read_release
from focal.protocols.common.hearing import check_opens
from focal.protocols.common.inputs import Claim, MaskKeys
from focal.protocols.common.party import Party
from focal.protocols.common.progress import Reporter
from focal.protocols.common.voice import Compute, Given

PROTOCOLS: dict[type, str] = {msg.RefreshShares: "refresh", msg.OpeningShares: "open", msg.ReleaseShares: "release"}
"""Records that hand out shares -> the ledger's name for them."""
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
        self.verifies, self.guards = declared == "lockstep", self.me.guard
        self.peers = [m.name for m in manifest.custodians]
        self.names = [m.name for m in manifest.institutions]
        self.layout = self.plan.layout(manifest)
        self.threads = local.threads or os.cpu_count() or 1
        self.pool = ThreadPoolExecutor(self.threads, thread_name_prefix="custodian")
        self.fetching = ThreadPoolExecutor(FETCHING, thread_name_prefix="fetching")
        self.sending = ThreadPoolExecutor(1, thread_name_prefix="sending")
        self._coming: dict[str, Future[bytes]] = {}

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
            self.joint = self._key_ceremony()
        self.answer()
        with self.report.phase("release"):
            self.enter("release")
            self._release()
        self.keep_traffic()

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
        rotations = self.layout.rotations
        first_kinds = keys.first_round_kinds(rotations)

        def first() -> list[str]:
            digests = []
            for i, contribution in enumerate(self.share.first_round(rotations, self.pool)):
                digests.append(self.blobs.put(contribution))
                self.report.progress(i + 1, len(first_kinds))
            return digests

        sums = self._round(1, first_kinds, first)
        h0, h1 = (sums[f"relinearisation/{half}"] for half in ("h0", "h1"))
        second = self._round(
            2,
            keys.SECOND_ROUND,
            lambda: list(map(self.blobs.put, self.share.second_round(self.blobs.get(h0), self.blobs.get(h1)))),
        )
        joint = ceremony.joint(sums, second)
        self.say("keys/joint", joint)
        for name, theirs in self.hear_all(self.peers, "keys/joint", msg.JointKeys).items():
            if theirs != joint:
                raise ceremony.disagreement(name)
        self.masks.say()
        return joint

    @functools.cached_property
    def masks(self) -> MaskKeys:
        """This run's keys for the institutions' masks."""
        return MaskKeys(self)

    @property
    def _key_file(self) -> Path:
        return self.folder / f"secret-{self.scope[:16]}.key"

    @property
    def _ephemeral_file(self) -> Path:
        """u_i of the relinearisation key: from the first round until the second is on disk."""
        return self.folder / f"ephemeral-{self.scope[:16]}.key"

    def forget_secrets(self) -> None:
        """Nobody may go on with the run, so its key share has no use but a thief's:
        others' shares may be known by now."""
        if "ledger" in self.__dict__:  # the scope is the run's, and there is a share
            self._forget(self._key_file, self._ephemeral_file, self.masks.file)

    def _forget(self, *files: Path) -> None:
        """Unlink key files. What is in memory ends with the process."""
        forget(*files)

    @functools.cached_property
    def share(self) -> keys.SecretShare:
        """This run's key share, drawn once; the file is the only copy."""
        if not self._key_file.exists():
            if self.journal.get(f"{self.session}/secret") is not None:
                raise FocalError(
                    f"'{self.me.name}': the key share {self._key_file} is gone",
                    hint="an N-of-N key cannot do without it: start a new run",
                )
            drawn = keys.SecretShare.draw(self.scheme, self.run_id)
            private_write(self._ephemeral_file, drawn.dump_ephemeral())
            private_write(self._key_file, drawn.dump())
            self.journal.once(f"{self.session}/secret", lambda: hashlib.sha256(self._key_file.read_bytes()).digest())
        data = self._key_file.read_bytes()
        if (
            self.journal.once(f"{self.session}/secret", lambda: hashlib.sha256(data).digest())
            != hashlib.sha256(data).digest()
        ):
            raise FocalError(
                f"'{self.me.name}': {self._key_file} is not the share that was drawn for this run",
                hint="restore the file, or start a new run",
            )
        ephemeral = self._ephemeral_file.read_bytes() if self._ephemeral_file.exists() else None
        return keys.SecretShare.load(self.scheme, self.run_id, data, ephemeral)

    def _round(self, number: int, kinds: list[tuple[str, codec.Kind]], make: Callable[[], list[str]]) -> dict[str, str]:
        """One commit-then-reveal round; returns key name -> digest of the sum, which is kept in the own store."""
        round = f"keys/{number}"
        own = self.remembered(f"{round}/blobs", make)
        if number == 2:  # u_i has done its work, and what was made with it is on disk
            self._forget(self._ephemeral_file)
            if (
                "share" in self.__dict__
            ):  # after a restart nobody has asked for it yet, and it may have done its work too
                self.share.ephemeral = None
        salt, commits = self.commit(
            round, self.peers, ceremony.blobs_digest(own), lambda c: msg.KeyCommit(round=number, commitment=c)
        )
        self.send_stored(own, "custodians")
        self.say(f"{round}/reveal", msg.KeyReveal(round=number, salt=salt.hex(), blobs=tuple(own)))
        reveals = self.hear_all(self.peers, f"{round}/reveal", msg.KeyReveal)
        for name, reveal in reveals.items():
            check_opens(self.scope, round, name, commits[name], reveal.salt, ceremony.blobs_digest(reveal.blobs))
        self._same_transcript(number)
        add = functools.partial(
            ceremony.sums, self.scheme, kinds, reveals, self.fetch, self.blobs.put, self.pool, self.report.progress
        )
        return dict(self.remembered(f"{round}/sums", add))

    def _same_transcript(self, number: int) -> None:
        """Go on only when all custodians signed the same list of commitments and reveals."""
        round = f"keys/{number}"
        seen = "".join(self.heard.digest(p, f"{round}/{part}") for part in ("commit", "reveal") for p in self.peers)
        digest = hashlib.sha256(b"focal/transcript/v1" + seen.encode()).hexdigest()
        self.say(f"{round}/transcript", msg.KeyTranscript(round=number, digest=digest))
        for name, theirs in self.hear_all(self.peers, f"{round}/transcript", msg.KeyTranscript).items():
            if theirs.digest != digest:
                raise Refused(
                    "transcript",
                    f"'{name}' saw other messages in key round {number}: the server told us different things",
                )

    # ----------------------------------------------------------------- inputs

    def contribute(self, round: str, lists: str, wanted: Sequence[Input], claims: Sequence[Claim]) -> None:
        """This custodian's part of the inputs of a round: made once, committed to before any custodian shows one,
        and shown once every institution's claim was found to hold.

        ``lists`` is a digest of all that is put in; everybody must have agreed to it before.
        """

        def meet() -> None:  # once all is made, the key may be gone
            self.masks.meet(dict.fromkeys(name for one in wanted for name, _ in one.owners))

        def make() -> bytes:
            meet()
            one = functools.partial(self.masks.contribution, self.scheme, self.share.limbs, self.run_id, lists)
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
                self.ledger.pin(
                    claim.topic, hashlib.sha256(claim.statement.hash + bytes.fromhex(claim.proof)).hexdigest()
                )
            one = functools.partial(self.masks.projected, self.scheme, fetch=self.fetch)
            return proofs, list(self.pool.map(one, claims, proofs))

        def shares() -> bytes:
            checks = zip(claims, *weighed(), strict=True)
            made = b"".join(self.masks.range_share(claim, proof, masks) for claim, proof, (masks, _) in checks)
            return self.share_blobs([made], "all")[0].encode()

        made = self.ledger.answer("input", round, lists, make)
        own = tuple(made[at : at + 32].hex() for at in range(0, len(made), 32))
        given = self.journal.once(f"{self.session}/{round}/shares", shares).decode()
        salt, commits = self.commit(
            round,
            self.peers,
            inputs.committed(lists, own),
            lambda c: msg.InputCommit(lists=lists, commitment=c, shares=given),
        )
        inputs.check_lists(round, lists, commits)
        if self.journal.get(f"{self.session}/said/{round}/reveal") is None:
            proofs, projected = weighed()
            others = {name: self.net.get(theirs.shares) for name, theirs in commits.items()}
            inputs.check_range(claims, proofs, [uploads for _, uploads in projected], others)
        self.send_stored(list(own), "custodians")
        self.say(f"{round}/reveal", msg.InputReveal(commits=inputs.commits_digest(commits), salt=salt.hex(), blobs=own))

    def contributions(self, round: str, lists: str, wanted: Sequence[Input], claims: Sequence[Claim]) -> Given:
        """Everybody's, after our own."""
        self.contribute(round, lists, wanted, claims)
        commits = self.hear_all(self.peers, f"{round}/commit", msg.InputCommit)
        reveals = self.hear_all(self.peers, f"{round}/reveal", msg.InputReveal)
        return inputs.check(self.scope, round, lists, len(wanted), commits, reveals)

    # ----------------------------------------------------------------- steps

    def verify(self, compute: Compute) -> None:
        """``verify: lockstep``: take every step ourselves and answer only for limbs equal to our own."""
        number = int(self.journal.read(f"{self.session}/verified") or b"0")
        done = [
            msg.decode(msg.StepDone, self.journal.once(f"{self.session}/step/{step}", bytes)) for step in range(number)
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
        self.journal.once(f"{self.session}/step/{step}", functools.partial(msg.encode, statement))
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
        refreshing.expand_ahead(self.scheme, self.run_id, items, own, self.pool, self.layout)
        asked = self.answer_batch(topic, tuple(items), own)
        answers = self.hear_all(self.peers, topic, msg.RefreshShares)
        return refreshing.combine(self.scheme, self.run_id, asked, answers, self.fetch, self.pool, self.layout)

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
        others = self._pinned(topic, asked) if self.guards else {}
        if not self.repeat(topic):
            theirs = others.values()
            self._fetch_ahead(
                [
                    *asked.ciphertexts[:AHEAD],
                    *(d for o in theirs for d in o.h0[:AHEAD]),
                    *(d for o in theirs for d in o.h1[:AHEAD]),
                ]
            )
            if self.guards:
                self._weigh(asked, others)
            digests = self._answered(items, asked.ciphertexts)
            self.say(
                topic,
                msg.RefreshShares(
                    items=items, ciphertexts=asked.ciphertexts, h0=tuple(digests[::2]), h1=tuple(digests[1::2])
                ),
            )
        return asked

    def _answered(self, items: tuple[str, ...], ciphertexts: tuple[str, ...]) -> list[str]:
        """Digests of h0, h1, h0, h1, ..., which the server has: some are made while those before them,
        which are on disk, are sent."""
        self.ledger.check(
            "refresh", list(zip(items, ciphertexts, strict=True))
        )  # of a batch that is refused no share leaves
        sent = []
        for i in range(0, len(items), GROUP):
            made = [
                half for pair in self._refresh_shares(items[i : i + GROUP], ciphertexts[i : i + GROUP]) for half in pair
            ]
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
        others = self.hear_all([p for p in self.peers if p != self.me.name], topic, msg.RefreshShares)
        refreshing.check_answers(asked, others)
        self.ledger.pin(
            topic, hashlib.sha256(b"focal/guard/v1" + b"".join(map(msg.encode, (asked, *others.values())))).hexdigest()
        )
        return others

    def _weigh(self, asked: msg.RefreshRequest, others: dict[str, msg.RefreshShares]) -> None:
        """The guard's part: what all the others leave to be seen is small in every item, or the run ends here.

        The request and all answers were pinned before, and all of a batch is weighed before any of it is answered:
        every decision is one bit, and nobody may have two for one batch. On ``range`` the key share is gone before the
        word is out, and the word says neither item nor size.
        """

        def small(i: int) -> bool:
            h0 = [(name, self.fetch(theirs.h0[i])) for name, theirs in others.items()]
            return refresh.small_enough(
                self.scheme, self.bounds(asked.items[i]), self.share.limbs, self.fetch(asked.ciphertexts[i]), h0
            )

        if not all(list(self.pool.map(small, range(len(asked.items))))):
            self.journal.set(REFUSED, self.scope.encode())
            self._refuse()

    def _refuse(self) -> None:
        """End the run without a key share; again after a restart, should the word not have got out."""
        self._forget(self._key_file, self._ephemeral_file, self.masks.file)
        raise Refused(
            "range",
            "what is to be refreshed is larger than anything a training step gives: "
            "an upload, a share or the request is malformed",
            hint="the key share is deleted, and this run is over; 'focal audit' tells whether it was the server",
        )

    def _refresh_shares(self, items: tuple[str, ...], digests: tuple[str, ...]) -> list[tuple[bytes, bytes]]:
        """(h0, h1) for each plan item: made once, several at a time, the stored bytes ever after;
        stored in the plan's order."""
        asked = list(zip(items, digests, strict=True))

        def make(missing: list[int]) -> list[bytes]:
            return list(self.pool.map(lambda i: self._made(*asked[i]), missing))

        out = []
        for stored in self.ledger.answers("refresh", asked, make):
            end = H0_FIRST + int.from_bytes(stored[:H0_FIRST], "little")
            out.append((stored[H0_FIRST:end], stored[end:]))
        return out

    def _made(self, item: str, digest: str) -> bytes:
        """A fresh share, as the ledger stores it."""
        data = self.fetch(digest)
        how = self.layout.refresh_map(item)
        c1 = codec.unpack(self.scheme, codec.ciphertext(how.request), data, f"'{self.manifest.server.name}'")[1]
        a = refresh.common_random(self.scheme, self.run_id, item, codec.digest(data), how.limbs)
        h0, h1 = refresh.share(self.scheme, self.share.limbs, c1, a, self._mask_bits(item), how, self.added())
        return len(h0).to_bytes(H0_FIRST, "little") + h0 + h1

    def bounds(self, item: str) -> Guard:
        """Widths of masks and the guard's bound for a plan item."""
        return refresh.guard(self.scheme, len(self.peers), self.layout.refresh_map(item))

    def _mask_bits(self, item: str) -> int:
        """How wide this custodian's masks are: the guard's hide what it has let pass, the others' an honest message."""
        bounds = self.bounds(item)
        if self.manifest.guard is None:
            return bounds.alone_bits
        return bounds.guard_bits if self.guards else bounds.others_bits

    def added(self) -> NDArray[np.float64] | None:
        """Slots that this custodian adds to what is refreshed: nothing, unless its protocol says so."""
        return None

    # ----------------------------------------------------------------- after a restart

    def catch_up(self) -> None:
        """Do the peers know of shares that this ledger does not? Then the folder is an old copy, and giving a
        second share for something already answered would cost the key. Asked at every start: an old copy does
        not know that it was restarted."""
        if self.journal.get(f"{self.session}/said/release/shares") is not None:
            return  # every share was given, only stored bytes leave from here on, and the peers may be gone
        nonce = os.urandom(32).hex()
        start = nonce[:16]
        self.say(f"resume/{start}", msg.ResumeNonce(nonce=nonce))
        others = [p for p in self.peers if p != self.me.name]
        for name, answer in self.hear_all(others, f"resume-answer/{self.me.name}/{start}", msg.ResumeAnswer).items():
            if answer.nonce != nonce or answer.about != self.me.name:
                raise Refused("stale-answer", f"'{name}' answered another question about our ledger")
            if answer.highest + 1 > self.ledger.count or self.ledger.digest(answer.highest + 1) != answer.digest:
                held = self.ledger.count
                raise Refused(
                    "old-ledger",
                    f"'{name}' has seen {answer.highest + 1} of our shares, "
                    f"{self.ledger.path} holds {held}: it is an old copy",
                    hint="restore the newest copy, or start a new run",
                )

    def idle(self) -> None:
        """Answer restarted peers: what did we last see of them?"""
        for record in self.heard:
            peer = record.sender
            if (
                not isinstance(record.body, msg.ResumeNonce)
                or peer == self.me.name
                or peer not in self.peers
                or record.scope != self.scope
            ):
                continue
            answer_topic = f"resume-answer/{peer}/{record.topic.rpartition('/')[2]}"
            if not self.said(self.me.name, answer_topic) and not self.repeat(answer_topic):
                seen = self._shares_seen(peer)
                self.say(
                    answer_topic,
                    msg.ResumeAnswer(
                        about=peer, nonce=record.body.nonce, highest=len(seen) - 1, digest=ledger_digest(seen)
                    ),
                )

    def _shares_seen(self, peer: str) -> list[tuple[str, str, str]]:
        """(protocol, item, digest) of every share of ``peer`` on the board, in order."""
        seen = []
        for record in self.heard:
            if record.sender == peer and isinstance(
                record.body, msg.InputCommit
            ):  # its contributions exist from then on
                seen.append(("input", record.topic.removesuffix("/commit"), record.body.lists))
            if record.sender == peer and isinstance(
                record.body, msg.RefreshShares | msg.OpeningShares | msg.ReleaseShares
            ):
                protocol = PROTOCOLS[type(record.body)]
                seen += [
                    (protocol, item, digest)
                    for item, digest in zip(record.body.items, record.body.ciphertexts, strict=True)
                ]
        return seen

    # ----------------------------------------------------------------- release

    def _release(self) -> None:
        """Shares of the last refreshed weights, sealed to each institution; then the key share is deleted."""
        if not self.repeat("release/shares"):
            items, ciphertexts, weights = self._last_weights()
            self._wait_for_approval(items, ciphertexts)
            shares = b"".join(map(self._release_share, items, ciphertexts, weights))
            sealed = {m.name: self._sealed(m, shares) for m in self.manifest.institutions}
            self.say("release/shares", msg.ReleaseShares(items=items, ciphertexts=ciphertexts, sealed=sealed))
        # Every sealed share is on our disk and acknowledged from the server's: the key has done its work.
        self._forget(self._key_file, self.masks.file)
        self.report.say("the key share was used for the last time and is deleted")
        self.hear_all(self.peers, "release/shares", msg.ReleaseShares)  # stay until then: a peer may restart and ask
        self.finish()

    def _release_share(self, item: str, digest: str, weights: object) -> bytes:
        lead = self.me.name == self.peers[0]
        make = functools.partial(release.share, self.scheme, self.share.limbs, weights, lead, self.plan.CARRIED_NOISE)
        return self.ledger.answer("release", item, digest, make)

    def _sealed(self, institution: Member, shares: bytes) -> str:
        """The shares of all class groups in one box that only ``institution`` opens; the box's digest."""
        context = f"release/{institution.name}".encode() + self.run_id
        box = self.journal.once(
            f"{self.session}/sealed/{institution.name}", lambda: self.identity.seal(institution, shares, context)
        )
        return self.share_blobs([box], "all")[0]

    def _last_weights(self) -> tuple[tuple[str, ...], tuple[str, ...], list[Any]]:
        """Plan items, digests and ciphertexts of the last refreshed weights, recomputed from signed messages;
        the ciphertexts without what stands in lanes that hold no class.

        Raises :class:`Refused` (``release``) when the server presents anything else.
        """
        released = self.plan.released(self.manifest)
        weights: list[Any] = []
        for topic in released.topics:
            asked = self.hear(self.manifest.server.name, topic, msg.RefreshRequest)
            answers = self.hear_all(self.peers, topic, msg.RefreshShares)
            weights += refreshing.combine(self.scheme, self.run_id, asked, answers, self.fetch, self.pool, self.layout)
        shown = map(self.scheme.evaluator.limbs, weights)
        digests = tuple(codec.digest(codec.pack(self.scheme, codec.ciphertext(len(p[0])), p)) for p in shown)
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
