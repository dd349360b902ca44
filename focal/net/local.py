"""The network without a wire: board and blobs in this process, for roles that are threads of it.

::

    LocalLink (a party's thread) --request--> LocalHub: answers made in that thread --> board, blobs
         `-- waits while nobody serves: a hub may stop, and the server's next one takes its place

What a member is told is decided by :mod:`focal.net.answers`, and what it hears is checked by :mod:`focal.net.requests`,
as over the wire: signatures, audiences, digests, refusals, counts of bytes. Only the connections are missing, and with
them what keeps the parties apart: whoever runs this process sees everything in it. For simulations, and for tests of
what roles do.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Mapping
from typing import Any

from focal.config import VERSION, Model
from focal.errors import FocalError, ProtocolError, Told
from focal.manifest import Manifest
from focal.net import frames
from focal.net.answers import Answers, Asker
from focal.net.encoding import encode
from focal.net.identity import Identity
from focal.net.quotas import Quota
from focal.net.requests import Future, Requests
from focal.net.store import Blobs, Board

ENDPOINT = "this process"


class LocalNetwork:
    """Where links find the hub. One condition tells of all that somebody may wait for: a hub, a record, an end."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.hub: LocalHub | None = None
        self.links: dict[str, LocalLink] = {}
        """Member -> its open link."""

    def stir(self) -> None:
        """Let all who wait look again."""
        with self.changed:
            self.changed.notify_all()


class LocalHub(Answers):
    """The server's end. Requests are answered in the threads of those who ask, one member's one after the other."""

    LAST_WORD = FAREWELL = 0.0
    endpoint = ENDPOINT

    def __init__(
        self,
        network: LocalNetwork,
        manifest: Manifest,
        board: Board,
        blobs: Blobs,
        session: str,
        quotas: Mapping[str, Quota] | None = None,
    ) -> None:
        super().__init__(manifest, board, blobs, session, quotas)
        self._network = network
        self._turns = {m.name: threading.Lock() for m in manifest.members}
        self._writing = [threading.Lock() for _ in range(256)]
        """By the first byte of a blob's digest: two that send the same one do so one after the other."""
        self._under_way = 0
        self._stopping = False

    def start(self) -> None:
        """Serve."""
        self._open()
        self.board.listen(self._network.stir)
        with self._network.changed:
            self._network.hub = self
            self._network.changed.notify_all()

    def stop(self) -> None:
        """Stop serving, as soon as what is asked now is answered."""
        with self._network.changed:
            self._stopping = True
            self._network.hub = None
            self._network.changed.notify_all()
            self._network.changed.wait_for(lambda: not self._under_way)
        self.board.unlisten(self._network.stir)
        self._close()

    def behind(self, seconds: float, first: int | None = None) -> list[str]:
        self._look()
        return super().behind(seconds, first)

    def silent(self, seconds: float) -> list[str]:
        self._look()
        return super().silent(seconds)

    def _look(self) -> None:
        """Here a member is there as long as its link is open."""
        with self._network.changed:
            for name in self._network.links:
                self.seen[name] = time.monotonic()

    def answer(self, link: LocalLink, message: Model, payload: bytes, size: int) -> tuple[Model, bytes, int] | None:
        """The answer to a request of ``size`` bytes, and its size; None when hub or link end before there is one."""
        with self._network.changed:
            if self._stopping:
                return None
            self._under_way += 1
        try:
            asker = Asker(b"", b"", link.name, link.phase)
            self._meters[link.name].count(link.phase, "up", size)
            self.seen[link.name] = time.monotonic()
            if isinstance(message, frames.Wait):
                if not self._grown(link, message):
                    return None
                after = message.after
                header, data = self._attempt(asker, lambda: self._records(link.name, after))
            else:
                put = message.digest if isinstance(message, frames.Put) else None
                with self._turns[link.name], self._writing[int(put[:2], 16)] if put else contextlib.nullcontext():
                    header, data = self._attempt(asker, lambda: self._handlers[type(message)](asker, message, payload))
            answered = len(encode(header)) + len(data)
            self._meters[link.name].count(link.phase, "down", answered)
            self._was_told(link.name, header)
            return header, data, answered
        finally:
            with self._network.changed:
                self._under_way -= 1
                if self._stopping:
                    self._network.changed.notify_all()

    def _grown(self, link: LocalLink, wait: frames.Wait) -> bool:
        """Wait for a record that ``link`` has not seen, or until its time is up; False when hub or link end."""
        with self._network.changed:
            over = self._network.changed.wait_for
            over(lambda: self.board.length(link.name) > wait.after or self._stopping or link.closed, wait.seconds)
            return not (self._stopping or link.closed)


class LocalLink(Requests):
    """A party's end. Like :class:`focal.net.link.Link` it waits for an absent server; :meth:`close` ends every wait."""

    def __init__(self, network: LocalNetwork, manifest: Manifest, identity: Identity) -> None:
        identity.entry(manifest)
        super().__init__(manifest, identity.name, ENDPOINT)
        self.closed = False
        self._network = network

    def open(self, timeout: float) -> frames.Welcome:
        """Say hello. Raises :class:`FocalError` when nobody serves within ``timeout`` seconds, or :class:`Refused`."""
        with self._network.changed:
            if not self._network.changed.wait_for(lambda: self._network.hub is not None or self.closed, timeout):
                raise FocalError(f"no server in this process within {timeout:g} s", hint="start the server's thread")
            self._network.links[self.name] = self
        hello = frames.Hello(version=VERSION, name=self.name, manifest=self.manifest.hash.hex())
        welcome = self._ask(hello, frames.Welcome)[0]
        self.session = welcome.session
        return welcome

    def close(self) -> None:
        """Hang up. Requests under way raise :class:`FocalError` in their callers."""
        with self._network.changed:
            self.closed = True
            if self._network.links.get(self.name) is self:
                del self._network.links[self.name]
            self._network.changed.notify_all()

    def _submit(self, message: Model, expect: type[Model], payload: bytes = b"", *, bulk: bool = False) -> Future:
        future: Future = concurrent.futures.Future()
        try:
            future.set_result(self._answered(message, expect, payload))
        except FocalError as e:
            future.set_exception(e)
        return future

    def _answered(self, message: Model, expect: type[Model], payload: bytes) -> tuple[Any, bytes]:
        size = len(encode(message)) + len(payload)
        while True:
            hub = self._serving()
            self._meter.count(self.phase, "up", size)
            answer = hub.answer(self, message, payload, size)
            if answer is not None:
                break
        reply, data, answered = answer
        self._meter.count(self.phase, "down", answered)
        if isinstance(reply, frames.Fault):
            raise Told(reply.reason, reply.message)
        if not isinstance(reply, expect):
            raise ProtocolError(f"the server answered with '{type(reply).__name__}' where '{expect.__name__}' belongs")
        return reply, data

    def _serving(self) -> LocalHub:
        """The hub, as soon as there is one. Raises :class:`FocalError` when the link is closed
        or the session another."""
        with self._network.changed:
            self._network.changed.wait_for(lambda: self._network.hub is not None or self.closed)
            hub = self._network.hub
        if self.closed or hub is None:
            raise FocalError(f"the link of '{self.name}' to {ENDPOINT} is closed")
        if self.session and hub.session != self.session:
            raise FocalError(
                "the server came back without the state of this session",
                hint="restore the server's state folder, or begin a new run with fresh state folders everywhere",
            )
        return hub
