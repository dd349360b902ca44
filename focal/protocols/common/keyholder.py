"""A custodian's share of the secret key: drawn, used in the key rounds, dealt where fewer than all suffice, and erased.

::

    secret-RUN.key       s_i, from the first round on: N-of-N keeps it until the release
    ephemeral-RUN.key    u_i of the relinearisation key, until round 2 is on disk
    dealing-RUN.key      t-of-N: what the polynomial around s_i is expanded from, and a private key for pieces, until
                         all are checked: whoever has stored the boxes has no use for an identity that is stolen later
    share-RUN.key        t-of-N: S_i, the sum of what it was dealt, and keys of zero-shares (focal.custody.sharing);
                         s_i is erased then

    round 1, 2           focal.custody.keys: committed, revealed, the same transcript
    round 3              t-of-N: sealed pieces, likewise; then everybody's check values, and the checks

Each file (0600) is the only copy, made once and remembered by its digest.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from focal import framing
from focal.ckks import codec
from focal.ckks.ring import Limb
from focal.ckks.scheme import Scheme
from focal.custody import inputs, keys, sharing
from focal.errors import FocalError, ProtocolError, Refused
from focal.files import forget, private_write
from focal.net import messages as msg
from focal.net.identity import open_for_group, seal_for_group
from focal.protocols.common import ceremony
from focal.protocols.common.epochs import Epoch
from focal.protocols.common.hearing import check_opens
from focal.protocols.common.inputs import mask_files
from focal.protocols.common.party import Party

DEALING = "keys/3"
"""Topics of the round in which shares of a t-of-N key are dealt."""


KEY, MASKS = ("secret", "ephemeral", "dealing", "share"), ("masks", "results")
"""What files with something secret are called: of the key, and of masks."""


def key_files(party: Party) -> list[Path]:
    """All files of this run with something secret of the key, there or not, and those with keys for masks."""
    run = party.scope[:16]
    return [*(party.folder / f"{what}-{run}.key" for what in KEY), *mask_files(party)]


def every_key(folder: Path) -> list[Path]:
    """Those of whatever run, for a folder whose run was ended: nothing in it may be used again, and its run id need not
    be known (:meth:`Party.forget_secrets`)."""
    return [file for what in (*KEY, *MASKS) for file in folder.glob(f"{what}-*.key")]


class KeyHolder:
    """``party``'s share of this run's key."""

    def __init__(self, party: Party, scheme: Scheme, rotations: tuple[int, ...], pool: ThreadPoolExecutor) -> None:
        self.party, self.scheme, self.rotations, self.pool = party, scheme, rotations, pool
        self.peers = [m.name for m in party.manifest.custodians]
        self.needed, self.point = party.manifest.needed, 1 + self.peers.index(party.me.name)
        self.shared = self.needed < len(self.peers)
        """Is it a t-of-N key?"""

    def limbs(self, topic: str) -> list[Limb]:
        """What multiplies c1 in shares given under ``topic``: adds up to the joint secret over those who are active
        there."""
        return self._substitute(self.party.epochs.at(topic)) if self.shared else self.share.limbs

    @functools.lru_cache(maxsize=2)  # noqa: B019 (one holder a process)
    def _substitute(self, epoch: Epoch) -> list[Limb]:
        points = [1 + self.peers.index(name) for name in epoch.active]
        return self._dealt.substitute(self.scheme, points, epoch.seed)

    # ----------------------------------------------------------------- files

    def _file(self, what: str) -> Path:
        return self.party.folder / f"{what}-{self.party.scope[:16]}.key"

    def _kept(self, what: str, make: Callable[[], bytes]) -> bytes:
        """The file's bytes, made at the first call. Raises :class:`FocalError` when it is gone, or another one."""
        file, me, key = self._file(what), self.party.me.name, f"{self.party.session}/{what}"
        if not file.exists():
            if self.party.journal.get(key) is not None:
                raise FocalError(
                    f"'{me}': the key share {file} is gone",
                    hint="restore the newest copy; without one a t-of-N key goes on without this custodian "
                    "(focal epoch lost), and an N-of-N key cannot do without it: start a new run",
                )
            private_write(file, make())
        data = file.read_bytes()
        digest = hashlib.sha256(data).digest()
        if self.party.journal.once(key, lambda: digest) != digest:
            raise FocalError(
                f"'{me}': {file} is not the share that was drawn for this run",
                hint="restore the file, or start a new run",
            )
        return data

    @functools.cached_property
    def share(self) -> keys.SecretShare:
        """s_i, drawn once."""
        ephemeral = self._file("ephemeral")

        def draw() -> bytes:
            drawn = keys.SecretShare.draw(self.scheme, self.party.run_id)
            private_write(ephemeral, drawn.dump_ephemeral())
            return drawn.dump()

        data = self._kept("secret", draw)
        read = ephemeral.read_bytes() if ephemeral.exists() else None
        return keys.SecretShare.load(self.scheme, self.party.run_id, data, read)

    @functools.cached_property
    def _dealt(self) -> sharing.Share:
        """S_i and the keys of zero-shares, once it was dealt."""

        def missing() -> bytes:
            raise FocalError(f"'{self.party.me.name}': no share of this key was dealt to it yet")

        data = self._kept("share", missing)
        return sharing.Share.load(self.scheme, data, self.point, len(self.peers))

    # ----------------------------------------------------------------- rounds

    def ceremony(self) -> msg.JointKeys:
        """All rounds; returns the joint keys, as every custodian has signed them."""
        party, first_kinds = self.party, keys.first_round_kinds(self.rotations)

        def first() -> list[str]:
            digests = []
            for i, contribution in enumerate(self.share.first_round(self.rotations, self.pool)):
                digests.append(party.blobs.put(contribution))
                party.report.progress(i + 1, len(first_kinds))
            return digests

        def second() -> list[str]:
            h0, h1 = (party.blobs.get(sums[f"relinearisation/{half}"]) for half in ("h0", "h1"))
            return list(map(party.blobs.put, self.share.second_round(h0, h1)))

        revealed = self._round(1, first)
        sums = self._sums(1, first_kinds, revealed)
        joint = ceremony.joint(sums, self._sums(2, keys.SECOND_ROUND, self._round(2, second)))
        if self.shared:
            if party.journal.get(f"{party.session}/share") is None:  # its file goes with the release
                self._deal({name: reveal.blobs[1] for name, reveal in revealed.items()})
            forget(*(self._file(what) for what in ("secret", "dealing")))
        party.say("keys/joint", joint)
        for name, theirs in party.hear_all(self.peers, "keys/joint", msg.JointKeys).items():
            if theirs != joint:
                raise ceremony.disagreement(name)
        return joint

    def _round(self, number: int, make: Callable[[], list[str]]) -> dict[str, msg.KeyReveal]:
        """One commit-then-reveal round; returns what everybody revealed, once all have signed the same transcript of
        it."""
        party, round = self.party, f"keys/{number}"
        own = party.remembered(f"{round}/blobs", make)
        if number == 2:  # u_i has done its work, and what was made with it is on disk
            forget(self._file("ephemeral"))
            if "share" in self.__dict__:  # after a restart nobody has asked for it yet
                self.share.ephemeral = None
        salt, commits = party.commit(
            round, self.peers, ceremony.blobs_digest(own), lambda c: msg.KeyCommit(round=number, commitment=c)
        )
        party.send_stored(own, "custodians")
        party.say(f"{round}/reveal", msg.KeyReveal(round=number, salt=salt.hex(), blobs=tuple(own)))
        reveals = party.hear_all(self.peers, f"{round}/reveal", msg.KeyReveal)
        for name, reveal in reveals.items():
            check_opens(party.scope, round, name, commits[name], reveal.salt, ceremony.blobs_digest(reveal.blobs))
        self._same_transcript(number)
        return reveals

    def _sums(
        self, number: int, kinds: list[tuple[str, codec.Kind]], reveals: dict[str, msg.KeyReveal]
    ) -> dict[str, str]:
        """Key name -> digest of its sum over all custodians, which is kept in the own store."""
        party = self.party
        add = functools.partial(
            ceremony.sums, self.scheme, kinds, reveals, party.fetch, party.blobs.put, self.pool, party.report.progress
        )
        return dict(party.remembered(f"keys/{number}/sums", add))

    def _same_transcript(self, number: int) -> None:
        """Go on only when all custodians signed the same list of commitments and reveals."""
        self._same(f"keys/{number}/transcript", number, ceremony.transcript(self.party.heard, self.peers, number))

    def _same(self, topic: str, number: int, digest: str) -> None:
        """Go on only when all custodians signed the same ``digest`` of what they were shown in a round."""
        self.party.say(topic, msg.KeyTranscript(round=number, digest=digest))
        for name, theirs in self.party.hear_all(self.peers, topic, msg.KeyTranscript).items():
            if theirs.digest != digest:
                raise Refused(
                    "transcript",
                    f"'{name}' saw other messages in key round {number}: the server told us different things",
                )

    # ----------------------------------------------------------------- t-of-N

    def _deal(self, h1: dict[str, str]) -> None:
        """Share s_i with all, and keep the sum of what all shared with us. ``h1``: custodian -> digest of that part of
        its first round."""
        party, count = self.party, len(self.peers)
        drawn = self._kept("dealing", lambda: sharing.new_seed() + inputs.new_key())
        seed, private = drawn[: sharing.SEED_BYTES], drawn[sharing.SEED_BYTES :]
        party.say(f"{DEALING}/key", msg.InputKey(public=inputs.public_key(private)))
        publics = party.hear_all(self.peers, f"{DEALING}/key", msg.InputKey)
        own = sharing.pieces(self.scheme, self.share.limbs, seed, self.needed, count)
        others = [name for name in self.peers if name != party.me.name]

        def key(dealer: str, receiver: str) -> bytes:
            other = receiver if dealer == party.me.name else dealer
            return inputs.pair_key(private, publics[other].public, party.run_id, dealer, receiver)

        def sealed() -> list[str]:
            boxes = []
            for name in others:
                data = sharing.pack(self.scheme, own[self.peers.index(name)])
                boxes.append(seal_for_group(key(party.me.name, name), data, self._context(party.me.name, name)))
            return list(map(party.blobs.put, boxes))

        reveals = self._round(3, sealed)
        transcript = bytes.fromhex(ceremony.transcript(party.heard, self.peers, 3))

        def shown() -> str:
            return party.blobs.put(sharing.check_values(self.scheme, party.run_id, transcript, own, self.needed))

        check = party.remembered(f"{DEALING}/check", shown)
        party.send_stored([check], "custodians")
        party.say(f"{DEALING}/check", msg.ShareCheck(blob=check))
        checks = party.hear_all(self.peers, f"{DEALING}/check", msg.ShareCheck)
        self._same(f"{DEALING}/checked", 3, ceremony.checks_digest(checks))
        a = sharing.challenge(self.scheme, party.run_id, transcript)

        def dealt(name: str) -> list[Limb]:
            values = sharing.check_dealer(
                self.scheme, party.fetch(checks[name].blob), party.fetch(h1[name]), self.needed, count, name
            )
            if name == party.me.name:
                return own[self.point - 1]
            boxes, receivers = reveals[name].blobs, [other for other in self.peers if other != name]
            if len(boxes) != len(receivers):
                raise ProtocolError(f"'{name}' dealt {len(boxes)} pieces of its key share to {len(receivers)} others")
            box = party.fetch(boxes[receivers.index(party.me.name)])
            data = open_for_group(key(name, party.me.name), box, self._context(name, party.me.name), name)
            piece = sharing.unpack(self.scheme, data, f"'{name}'")
            sharing.check_piece(self.scheme, piece, values[self.point - 1], a, name)
            return piece

        place = self.peers.index
        zeros = {1 + place(name): sharing.zero_key(key(*sorted((party.me.name, name), key=place))) for name in others}
        made = sharing.Share(sharing.add_up(self.scheme, list(map(dealt, self.peers))), self.point, zeros)
        self._kept("share", lambda: made.dump(self.scheme))
        self.__dict__.pop("share", None)  # s_i, whose file goes now
        party.report.say(
            f"{party.me.name}: any {self.needed} of {count} custodians can use the key; its own part of it is erased"
        )

    def _context(self, dealer: str, receiver: str) -> bytes:
        return framing.framed(b"focal/threshold/sealed/v1", self.party.run_id, dealer.encode(), receiver.encode())
