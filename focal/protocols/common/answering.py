"""How a custodian answers a batch of refreshes: once, in the plan's order, and the guard after everybody else.

::

    server  request --+--------------------------------------------------------------------------------------> combine
    others            +--> shares, masks of 98 bits ---------------+                                              ^
    guard             +--> lockstep --> all of these, pinned, then weighed (focal.custody.refresh) --> its shares ---+
                                                                                        `-----> or ``range``, and no key

A share is a function of the plan item, the request and the own share of the key, is made once, and is on disk before it
leaves (:mod:`focal.custody.ledger`).
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal import framing
from focal.ckks import codec
from focal.ckks.ring import Limb
from focal.ckks.scheme import Scheme
from focal.config import LocalConfig
from focal.custody import refresh
from focal.custody.ledger import Large, Ledger
from focal.custody.refresh import Guard
from focal.errors import Refused
from focal.files import forget
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.net.encoding import encode
from focal.protocols.common import epochs, refreshing
from focal.protocols.common.keyholder import KeyHolder, key_files
from focal.protocols.common.party import Party
from focal.protocols.common.progress import Reporter

REFUSED = "refused"
"""In the journal: the run that this guard has refused to go on with."""
GROUP = 8
"""Shares that become durable, and then leave, together."""


class Answering(Party):
    """A custodian as far as it answers refreshes."""

    scheme: Scheme
    layout: Any
    ledger: Ledger
    key: KeyHolder
    verifies: bool
    """Does it answer for limbs equal to its own only?"""
    pool: ThreadPoolExecutor
    fetching: ThreadPoolExecutor
    sending: ThreadPoolExecutor

    def __init__(self, manifest: Manifest, local: LocalConfig, report: Reporter) -> None:
        super().__init__(manifest, local, report)
        self._coming: dict[str, Future[bytes]] = {}

    def limbs(self, topic: str) -> list[Limb]:
        """The key share that shares under ``topic`` are made with."""
        return self.key.limbs(topic)

    def guards(self, topic: str) -> bool:
        """Does this custodian answer the refreshes of this topic last?"""
        return epochs.guard(self.manifest, self.active(topic)) == self.me.name

    def _forget(self, *files: Path) -> None:
        """Unlink key files. What is in memory ends with the process."""
        forget(*files)

    def refresh(self, items: list[str], ciphertexts: list[Any]) -> list[Any]:
        """Answer the server's request, or each of its parts, only when it is, limb for limb, what we computed;
        then combine everybody's answers."""
        fresh: list[Any] = []
        for topic, place in refreshing.parts(items):
            part = items[place]
            packed = refreshing.requests(
                self.scheme, part, refreshing.taken(ciphertexts, place), self.pool, self.layout
            )
            own = list(map(self._passed, packed))
            refreshing.expand_ahead(self.scheme, self.seed(topic), part, own, self.pool, self.layout)
            self.answer_batch(topic, tuple(part), own)
            fresh += self.refreshed(topic)
        return fresh

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
            self._fetch_ahead([*asked.ciphertexts, *(digest for theirs in others.values() for digest in theirs.shares)])
            if guards:
                self._weigh(topic, asked, others)
            digests = self._answered(topic, items, asked.ciphertexts)
            self.say(topic, msg.RefreshShares(items=items, ciphertexts=asked.ciphertexts, shares=tuple(digests)))
        return asked

    def _answered(self, topic: str, items: tuple[str, ...], ciphertexts: tuple[str, ...]) -> list[str]:
        """Digests of the shares, which the server has: some are made while those before them,
        which are on disk, are sent."""
        # of a batch that is refused no share leaves
        self.ledger.check("refresh" + self.epochs.at(topic).suffix, list(zip(items, ciphertexts, strict=True)))
        digests, sent = list[str](), []
        for i in range(0, len(items), GROUP):
            shares = self._refresh_shares(topic, items[i : i + GROUP], ciphertexts[i : i + GROUP])
            made = {share.digest: share.data for share in shares}
            digests += made
            sent.append(self.sending.submit(self.share_blobs, made, "custodians"))
            if self.verifies:  # it adds them up itself
                list(map(self.passing.add, made, made.values()))
        for future in sent:
            future.result()
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
        weighed = framing.digest(b"focal/guard/v1", encode(asked), *map(encode, others.values()))
        self.ledger.pin(self.spelled(topic), weighed.hex())
        return others

    def _weigh(self, topic: str, asked: msg.RefreshRequest, others: dict[str, msg.RefreshShares]) -> None:
        """The guard's part: what all the others leave to be seen is small in every item, or the run ends here.

        The request and all answers were pinned before, and all of a batch (of a large one: each part) is weighed before
        any of it is answered: every decision is one bit, nobody may have two for one batch, and after a refusal there
        are no more. On ``range`` the key share is gone before the
        word is out, and the word says neither item nor size.
        """

        def small(i: int) -> bool:
            shares = [(name, self.fetch(theirs.shares[i])) for name, theirs in others.items()]
            bounds, data = self.bounds(topic, asked.items[i]), self.fetch(asked.ciphertexts[i])
            how = self.layout.refresh_map(asked.items[i])
            return refresh.small_enough(self.scheme, bounds, self.limbs(topic), data, shares, how)

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

    def _refresh_shares(self, topic: str, items: tuple[str, ...], digests: tuple[str, ...]) -> list[Large]:
        """The share for each plan item: made once, several at a time, the stored bytes ever after;
        stored in the plan's order."""
        asked = list(zip(items, digests, strict=True))

        def make(missing: list[int]) -> list[Large]:
            return list(self.pool.map(lambda i: self._made(topic, *asked[i]), missing))

        epoch = self.epochs.at(topic)
        return self.ledger.large("refresh" + epoch.suffix, asked, make, epoch.number)

    def _made(self, topic: str, item: str, digest: str) -> Large:
        """A fresh share."""
        data = self.fetch(digest)
        how = self.layout.refresh_map(item)
        c1 = codec.unpack(self.scheme, codec.ciphertext(how.request), data, f"'{self.manifest.server.name}'")[1]
        a = refresh.common_random(self.scheme, self.seed(topic), item, digest, how.limbs)
        bits = self._mask_bits(topic, item)
        return Large.of(refresh.share(self.scheme, self.limbs(topic), c1, a, bits, how, self.added()))

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
