"""A custodian: one share of the secret key, and a short list of what it may be used for.

::

    nonce --> round 1 --> round 2 --> joint keys --> uploads accepted --> refresh, refresh, ... --> release
              commit, reveal, same transcript         exactly these         the plan's items only     the last W only

Every answer is a function of the plan, of public digests and of the own share, is made once, and is on disk before it
leaves (focal.ckks.ledger). With ``verify: lockstep`` the custodian re-runs every step with the project's own engine and
answers only for limbs equal to its own; with ``verify: off`` it trusts the server to compute what was agreed.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from focal.ckks import keys, refresh, release, wire
from focal.ckks.context import REFRESH_LIMBS, Scheme
from focal.ckks.ledger import Ledger, ledger_digest
from focal.config import LocalConfig, Manifest, Member, private_write
from focal.errors import FocalError, Refused
from focal.net import messages as msg
from focal.roles import agreed, ceremony
from focal.roles.party import Party
from focal.roles.progress import Reporter

H0_FIRST = 8
"""A stored refresh share is h0's length (8 bytes, little-endian), h0, h1."""


class Custodian(Party):
    """``run()`` takes part in one run from the nonces to the release; interrupted, the same call continues it."""

    role = "custodian"

    def __init__(self, manifest: Manifest, local: LocalConfig, report: Reporter) -> None:
        super().__init__(manifest, local, report)
        declared = self.me.verify
        if local.verify is not None and local.verify != declared:
            raise FocalError(
                f"'{self.me.name}': the local file says verify: {local.verify}, the signed manifest says {declared}",
                hint="make both say the same",
            )
        if declared == "lockstep":
            raise FocalError(
                f"'{self.me.name}': verify: lockstep is not available in this version",
                hint="declare verify: off in the manifest and in the local file",
            )
        self.peers = [m.name for m in manifest.custodians]
        self.names = [m.name for m in manifest.institutions]
        self.pool = ThreadPoolExecutor(local.threads or os.cpu_count() or 1, thread_name_prefix="custodian")

    # ----------------------------------------------------------------- the script

    def run(self) -> None:
        self.enter("keys")
        with self.report.phase("gather"):
            self.agree_run()
        with self.report.phase("keys"):
            self.scheme = Scheme(self.manifest.ckks, self.scope)
            self.layout = agreed.layout(self.manifest)
            self.ledger = Ledger(self.folder / f"ledger-{self.scope[:16]}.sqlite")
            self.joint = self._key_ceremony()
        with self.report.phase("upload"):
            self.enter("upload")
            self._accept_uploads()
        with self.report.phase("train"):
            self.enter("refresh")
            self._catch_up()
            batches = agreed.batches(self.layout, self.manifest)
            for i, (topic, items) in enumerate(batches):
                self._answer_refresh(topic, items)
                self.report.progress(i + 1, len(batches))
        with self.report.phase("release"):
            self.enter("release")
            self._release()
        self.keep_traffic()

    # ----------------------------------------------------------------- keys

    def _key_ceremony(self) -> msg.JointKeys:
        rotations = self.layout.rotations
        share = self.share
        first_kinds = keys.first_round_kinds(rotations)

        def first() -> list[str]:
            digests = []
            for i, contribution in enumerate(share.first_round(rotations, self.pool)):
                digests.append(self.blobs.put(contribution))
                self.report.progress(i + 1, len(first_kinds))
            return digests

        sums = self._round(1, first_kinds, first)
        second = self._round(
            2, keys.SECOND_ROUND, lambda: [self.blobs.put(b) for b in share.second_round(self.blobs.get(sums["switching"]))]
        )
        joint = ceremony.joint(sums, second)
        self.say("keys/joint", joint)
        for name, theirs in self.hear_all(self.peers, "keys/joint", msg.JointKeys).items():
            if theirs != joint:
                raise ceremony.disagreement(name)
        return joint

    @property
    def _key_file(self) -> Path:
        return self.folder / f"secret-{self.scope[:16]}.key"

    @functools.cached_property
    def share(self) -> keys.SecretShare:
        """This run's key share, drawn once; the file is the only copy."""
        if not self._key_file.exists():
            if self.journal.get(f"{self.session}/secret") is not None and self.journal.get(f"{self.session}/said/release/shares") is None:
                raise FocalError(
                    f"'{self.me.name}': the key share {self._key_file} is gone", hint="an N-of-N key cannot do without it: start a new run"
                )
            private_write(self._key_file, keys.SecretShare.draw(self.scheme, self.run_id).dump())
            self.journal.once(f"{self.session}/secret", lambda: hashlib.sha256(self._key_file.read_bytes()).digest())
        data = self._key_file.read_bytes()
        if self.journal.once(f"{self.session}/secret", lambda: hashlib.sha256(data).digest()) != hashlib.sha256(data).digest():
            raise FocalError(
                f"'{self.me.name}': {self._key_file} is not the share that was drawn for this run",
                hint="restore the file, or start a new run",
            )
        return keys.SecretShare.load(self.scheme, self.run_id, data)

    def _round(self, number: int, kinds: list[tuple[str, wire.Kind]], make: Callable[[], list[str]]) -> dict[str, str]:
        """One commit-then-reveal round; returns key name -> digest of the sum, which is kept in the own store."""
        round = f"keys/{number}"
        own = self.remembered(f"{round}/blobs", make)
        salt, commits = self.commit(round, self.peers, ceremony.blobs_digest(own), lambda c: msg.KeyCommit(round=number, commitment=c))
        self.send_stored(own, "custodians")
        self.say(f"{round}/reveal", msg.KeyReveal(round=number, salt=salt.hex(), blobs=tuple(own)))
        reveals = self.hear_all(self.peers, f"{round}/reveal", msg.KeyReveal)
        for name, reveal in reveals.items():
            self.opens(round, name, commits, reveal.salt, ceremony.blobs_digest(reveal.blobs))
        self._same_transcript(number)
        add = functools.partial(ceremony.sums, self.scheme, kinds, reveals, self.fetch, self.blobs.put, self.pool, self.report.progress)
        return dict(self.remembered(f"{round}/sums", add))

    def _same_transcript(self, number: int) -> None:
        """Go on only when all custodians signed the same list of commitments and reveals."""
        round = f"keys/{number}"
        seen = "".join(self.record_digest(p, f"{round}/{part}") for part in ("commit", "reveal") for p in self.peers)
        digest = hashlib.sha256(b"focal/transcript/v1" + seen.encode()).hexdigest()
        self.say(f"{round}/transcript", msg.KeyTranscript(round=number, digest=digest))
        for name, theirs in self.hear_all(self.peers, f"{round}/transcript", msg.KeyTranscript).items():
            if theirs.digest != digest:
                raise Refused("transcript", f"'{name}' saw other messages in key round {number}: the server told us different things")

    # ----------------------------------------------------------------- uploads

    def _accept_uploads(self) -> None:
        """Exactly one valid list from every institution, and the same lists at every custodian, before the first share."""
        digest = agreed.uploads(
            self.manifest, self.layout, self.hear_all(self.names, "upload", msg.Upload), ceremony.joint_digest(self.joint)
        )
        self.say("uploads/accepted", msg.UploadsAccepted(digest=digest))
        for name, theirs in self.hear_all(self.peers, "uploads/accepted", msg.UploadsAccepted).items():
            if theirs.digest != digest:
                raise agreed.other_uploads(name)

    # ----------------------------------------------------------------- refresh

    def _answer_refresh(self, topic: str, items: tuple[str, ...]) -> None:
        asked = self.hear(self.manifest.server.name, topic, msg.RefreshRequest)
        if asked.items != items or len(asked.ciphertexts) != len(items):
            raise Refused("plan", f"the server asks for {asked.items[:1]} under '{topic}', the plan has {items[:1]}")
        if not self.repeat(topic):
            shares = [self._refresh_share(item, digest) for item, digest in zip(items, asked.ciphertexts, strict=True)]
            digests = self.share_blobs([b for pair in shares for b in pair], "custodians")
            self.say(topic, msg.RefreshShares(items=items, ciphertexts=asked.ciphertexts, h0=tuple(digests[::2]), h1=tuple(digests[1::2])))

    def _refresh_share(self, item: str, digest: str) -> tuple[bytes, bytes]:
        """(h0, h1) for one plan item: made once, the stored bytes ever after."""

        def make() -> bytes:
            data = self.fetch(digest)
            c1 = wire.unpack(self.scheme, wire.ciphertext(REFRESH_LIMBS), data, f"'{self.manifest.server.name}'")[1]
            a = refresh.common_random(self.scheme, self.run_id, item, wire.digest(data))
            h0, h1 = refresh.share(self.scheme, self.share.key, c1, a)
            return len(h0).to_bytes(H0_FIRST, "little") + h0 + h1

        stored = self.ledger.answer("refresh", item, digest, make)
        end = H0_FIRST + int.from_bytes(stored[:H0_FIRST], "little")
        return stored[H0_FIRST:end], stored[end:]

    # ----------------------------------------------------------------- after a restart

    def _catch_up(self) -> None:
        """After a restart: do the peers know of shares that this ledger does not? Then it is an old copy, and giving a
        second share for something already answered would cost the key."""
        number = int(self.journal.read(f"{self.session}/starts") or b"0")
        self.journal.set(f"{self.session}/starts", str(number + 1).encode())
        if number == 0:
            return
        nonce = self.journal.once(f"{self.session}/resume/{number}", lambda: os.urandom(32)).hex()
        self.say(f"resume/{number}", msg.ResumeNonce(nonce=nonce))
        others = [p for p in self.peers if p != self.me.name]
        for name, answer in self.hear_all(others, f"resume-answer/{self.me.name}/{number}", msg.ResumeAnswer).items():
            if answer.nonce != nonce or answer.about != self.me.name:
                raise Refused("stale-answer", f"'{name}' answered another question about our ledger")
            if answer.highest + 1 > self.ledger.count or self.ledger.digest(answer.highest + 1) != answer.digest:
                held = self.ledger.count
                raise Refused(
                    "old-ledger",
                    f"'{name}' has seen {answer.highest + 1} of our shares, {self.ledger.path} holds {held}: it is an old copy",
                    hint="restore the newest copy, or start a new run",
                )

    def idle(self) -> None:
        """Answer restarted peers: what did we last see of them?"""
        for (peer, topic), record in list(self._heard.items()):
            if not isinstance(record.body, msg.ResumeNonce) or peer == self.me.name or peer not in self.peers or record.scope != self.scope:
                continue
            answer_topic = f"resume-answer/{peer}/{topic.rpartition('/')[2]}"
            if not self.said(self.me.name, answer_topic) and not self.repeat(answer_topic):
                seen = self._shares_seen(peer)
                self.say(
                    answer_topic, msg.ResumeAnswer(about=peer, nonce=record.body.nonce, highest=len(seen) - 1, digest=ledger_digest(seen))
                )

    def _shares_seen(self, peer: str) -> list[tuple[str, str, str]]:
        """(protocol, item, digest) of every share of ``peer`` on the board, in order."""
        seen = []
        for (sender, _), record in self._heard.items():
            if sender == peer and isinstance(record.body, msg.RefreshShares | msg.ReleaseShares):
                protocol = "refresh" if isinstance(record.body, msg.RefreshShares) else "release"
                seen += [(protocol, item, digest) for item, digest in zip(record.body.items, record.body.ciphertexts, strict=True)]
        return seen

    # ----------------------------------------------------------------- release

    def _release(self) -> None:
        """Shares of the last refreshed weights, sealed to each institution; then the key share is deleted."""
        if not self.repeat("release/shares"):
            items, ciphertexts, weights = self._last_weights()
            self._wait_for_approval()
            shares = b"".join(map(self._release_share, items, ciphertexts, weights))
            sealed = {m.name: self._sealed(m, shares) for m in self.manifest.institutions}
            self.say("release/shares", msg.ReleaseShares(items=items, ciphertexts=ciphertexts, sealed=sealed))
        # Every sealed share is on our disk and acknowledged from the server's: the key has done its work.
        self._key_file.unlink(missing_ok=True)
        self.report.say("the key share was used for the last time and is deleted")
        self.hear_all(self.peers, "release/shares", msg.ReleaseShares)  # stay until then: a peer may restart and ask
        self.say("finished", msg.Finished())

    def _release_share(self, item: str, digest: str, weights: object) -> bytes:
        lead = self.me.name == self.peers[0]
        return self.ledger.answer("release", item, digest, lambda: release.share(self.scheme, self.share.key, weights, lead))

    def _sealed(self, institution: Member, shares: bytes) -> str:
        """The shares of all class groups in one box that only ``institution`` opens; the box's digest."""
        context = f"release/{institution.name}".encode() + self.run_id
        box = self.journal.once(f"{self.session}/sealed/{institution.name}", lambda: self.identity.seal(institution, shares, context))
        return self.share_blobs([box], "all")[0]

    def _last_weights(self) -> tuple[tuple[str, ...], tuple[str, ...], list[object]]:
        """Plan items, digests and ciphertexts of the last refreshed weights, recomputed from signed messages.

        Raises :class:`Refused` (``release``) when the server presents anything else.
        """
        topic, items = agreed.batches(self.layout, self.manifest)[-1]
        server = self.manifest.server.name
        asked = self.hear(server, topic, msg.RefreshRequest)
        answers = self.hear_all(self.peers, topic, msg.RefreshShares)
        agreed.check_answers(asked, answers)
        weights = [self._combined(i, item, asked, answers) for i, item in enumerate(items)]
        digests = tuple(
            wire.digest(wire.pack(self.scheme, wire.ciphertext(len(self.scheme.moduli)), self.scheme.limbs(w))) for w in weights
        )
        released = tuple(item.replace("/weights/", "/release/") for item in items)
        request = self.hear(server, "release/request", msg.ReleaseRequest)
        if request.items != released or request.ciphertexts != digests:
            raise Refused("release", "the server asks to open something else than the last refreshed weights")
        return released, digests, weights

    def _combined(self, i: int, item: str, asked: msg.RefreshRequest, answers: dict[str, msg.RefreshShares]) -> object:
        data = self.fetch(asked.ciphertexts[i])
        a = refresh.common_random(self.scheme, self.run_id, item, wire.digest(data))
        return refresh.combine(self.scheme, data, a, [(n, self.fetch(s.h0[i]), self.fetch(s.h1[i])) for n, s in answers.items()])

    def _wait_for_approval(self) -> None:
        if "human" not in (self.manifest.approve, self.local.approve):
            return
        self.report.say(f"training is done; the release waits for: focal approve {self.folder}")
        while not approved(self.folder):
            self._read_board(seconds=1.0)
        self.report.say("the release is approved")


def approved(folder: Path) -> bool:
    """Has a person run ``focal approve`` for this custodian?"""
    return (folder / "approved").exists()


def approve(folder: Path) -> None:
    """Let this custodian release the final weights."""
    private_write(folder / "approved", f"{time.time():.0f}\n".encode())
