"""How a party answers for a step. The steps of a run are taken by three kinds of parties, in one loop,
which asks its voice::

                     asks (server)                    checks (verify: lockstep)             recalls (audit)
    refresh          asks every custodian, waits      answers for its own limbs, waits      compares with what was asked
    done             on disk, then on the board       on disk, then compares                compares

and in joint steps also::

    contributions    waits for every custodian's       gives its own first                  looks them up
    present          decides who is in, says so       hears who is in, checks the headers   looks both up, checks them
    answered         likewise                         likewise, and whose rows they are     likewise
    open             asks the custodians              answers for its own limbs             compares every answer

The roles are these voices: :class:`focal.protocols.common.server.Server`, ``custodian.Custodian`` and ``audit.Audit``,
with what a protocol adds. The loop is ``steps`` of the protocol's ``compute`` module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from focal.custody.inputs import Input
from focal.net import messages as msg
from focal.protocols.common.epochs import Epochs

Fetch = Callable[[str], bytes]
"""Digest -> the blob's bytes."""


@dataclass(frozen=True)
class Given:
    """What custodians gave for the inputs of a round."""

    blobs: Mapping[str, Sequence[str]]
    """Custodian -> digests of its contributions, in the inputs' order."""
    left_out: tuple[str, ...] = ()
    """Institutions whose claims do not hold: contributions to their inputs are never shown."""


class Voice(Protocol):
    """How a party answers for a step."""

    epochs: Epochs
    """Which custodians answer, and from when on."""

    def contributions(self, round: str, lists: str, wanted: Sequence[Input], claims: Sequence[Any]) -> Given:
        """What every custodian gave for the inputs of a round, once all had committed to it and weighed
        the institutions' claims."""
        ...

    def refresh(self, items: list[str], ciphertexts: list[Any]) -> list[Any]:
        """Refreshed ciphertexts of one batch of plan items."""
        ...

    def done(self, step: int, statement: msg.StepDone, data: list[bytes]) -> None:
        """A step was taken: ``data`` are the new weights' bytes, whose digests are the statement's outputs."""
        ...


class Compute(Protocol):
    """The steps of one run on ciphertexts: a protocol's ``compute`` module makes it."""

    total: int
    """Steps of the run."""

    def steps(
        self, voice: Any, done: Sequence[msg.StepDone] = (), fetch: Fetch | None = None
    ) -> Iterator[msg.StepDone]:
        """Take every step that follows after ``done``, whose outputs ``fetch`` yields from the own disk;
        yield each one's statement."""
        ...

    def close(self) -> None: ...
