"""After a restart: is this custodian's folder an old copy? Its peers remember how many of its shares they have seen.

::

    custodian      resume/NONCE                            at every start: an old copy does not know that it is one
    its peers      resume-answer/CUSTODIAN/NONCE           number and digest of its shares on the board
    custodian      its ledger has no fewer, these first?   else it gives nothing: a second share costs the key

Who is asked: all that are active, or would be in an epoch for which enough others speak
(:mod:`focal.protocols.common.epochs`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

from focal.custody.ledger import Ledger, ledger_digest
from focal.errors import FocalError, Refused
from focal.net import messages as msg
from focal.protocols.common import epochs
from focal.protocols.common.epochs import unspelled
from focal.protocols.common.party import Party

PROTOCOLS: dict[type, str] = {
    msg.RefreshShares: "refresh",
    msg.OpeningShares: "open",
    msg.ReleaseShares: "release",
}
"""Records that hand out shares -> the ledger's name for them."""


def entry(kind: type, item: str, suffix: str) -> tuple[str, str]:
    """(protocol, item) under which a ledger has a share of a plan item that was given in the epoch of this ``suffix``.

    In another epoch the same ciphertext may be refreshed again. It is never opened twice, in whatever epochs.
    """
    protocol = PROTOCOLS[kind]
    return (protocol + suffix, item) if kind is msg.RefreshShares else (protocol, item + suffix)


def check_ledger(party: Party, ledger: Ledger, needless: Callable[[], bool]) -> bool:
    """Raise :class:`Refused` (``old-ledger``; :class:`FocalError` where the others can go on without us) when a peer
    knows of shares that ``ledger`` does not. Waits for everybody's answer; False where it is ``needless`` before all
    have answered."""
    nonce, me = os.urandom(32).hex(), party.me.name
    topic, told = f"resume-answer/{me}/{nonce[:16]}", time.monotonic()
    party.say(f"resume/{nonce[:16]}", msg.ResumeNonce(nonce=nonce))
    while missing := [n for n in party.epochs.asked if n != me and not party.said(n, topic)]:
        party.read_board(seconds=2.0)
        if me not in party.epochs.now.active:  # given up: nothing is asked of it any more
            return True
        if needless():
            return False
        if time.monotonic() - told > 5.0:
            told = time.monotonic()
            party.report.waiting(missing, topic)
    ledger.was_said(shares_seen(party, me))
    others = [name for name in party.epochs.asked if name != me]
    for name, answer in party.hear_all(others, topic, msg.ResumeAnswer).items():
        if answer.nonce != nonce or answer.about != me:
            raise Refused("stale-answer", f"'{name}' answered another question about our ledger")
        if answer.highest + 1 > ledger.count or ledger.digest(answer.highest + 1) != answer.digest:
            if party.manifest.needed < len(party.manifest.custodians):  # no reason to end the run for all
                raise FocalError(
                    f"'{me}': '{name}' has seen shares that {ledger.path} does not hold: it is an old copy",
                    hint="restore the newest, or have the others go on without this custodian (focal epoch lost)",
                )
            raise Refused(
                "old-ledger",
                f"'{name}' has seen {answer.highest + 1} of our shares, {ledger.path} holds {ledger.count}: "
                "it is an old copy",
                hint="restore the newest copy, or start a new run",
            )
    return True


def answer_peers(party: Party, peers: list[str], asked: Iterable[msg.Record]) -> None:
    """Tell restarted peers what was last seen of them. ``asked``: records among which are all their questions."""
    for record in asked:
        peer, body = record.sender, record.body
        if not isinstance(body, msg.ResumeNonce) or record.scope != party.scope:
            continue
        if peer == party.me.name or peer not in peers:
            continue
        topic = f"resume-answer/{peer}/{record.topic.rpartition('/')[2]}"
        if not party.said(party.me.name, topic) and not party.repeat(topic):
            seen, nonce = shares_seen(party, peer), body.nonce
            said = msg.ResumeAnswer(about=peer, nonce=nonce, highest=len(seen) - 1, digest=ledger_digest(seen))
            party.say(topic, said)


def shares_seen(party: Party, peer: str) -> list[tuple[str, str, str]]:
    """(protocol, item, digest) of every share of ``peer`` on the board, and of every epoch that it agreed to, in
    order."""
    seen = []
    for record in party.heard:
        if record.sender != peer or record.scope != party.scope:
            continue
        topic, suffix = unspelled(record.topic)
        body = record.body
        if isinstance(body, msg.InputCommit):  # its contributions exist from then on
            seen.append(("input", topic.removesuffix("/commit") + suffix, body.lists))
        if isinstance(body, msg.Epoch):
            seen.append(("epoch", str(body.number), epochs.digest(party.run_id, body).hex()))
        if isinstance(body, msg.ResultsAdded):
            seen.append(("results", topic, body.roster))
        if isinstance(body, msg.RefreshShares | msg.OpeningShares | msg.ReleaseShares):
            # as many as there are pairs of: whoever says more items than ciphertexts has given no share of these
            seen += [(*entry(type(body), i, suffix), d) for i, d in zip(body.items, body.ciphertexts, strict=False)]
    return seen
