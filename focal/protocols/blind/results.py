"""One ROC curve over the test rows of founders and clinics, who are never there at one time: through the custodians.

::

    custodians     results/key       a public key, once all shares of the release are given
    institutions   results/handed    whoever comes for its model: its histogram, under a mask of each custodian
    server         results/closed    when all that have the model have, at the date (``pooled_until``), or by people
    custodians     results/added     the sum of the histograms, and that of the own masks: for this list, and no other
    institutions   pooled_roc.json   founders, who wait for it; a clinic that is there then

What is added up and how it is hidden: :mod:`focal.sums.entrusted`. **One list, once.** Each custodian reads off its own
board who has handed in before the server closed, and gives its masks for exactly these, where nobody is missing, the
date is over, or a person there has said so (``focal close``, as for uploads). The ledger remembers the list, peers
remember that masks were given, should the folder be an old copy, and the key is erased then. There is no second list,
so no two that differ by one.

A list has ``pooled_least`` clinics at least, and more than two thirds of the founders (else what the others of a small
rest know together says more of the last one). Of fewer nothing is ever added up.

A site may hand in what it likes, and less than nothing: a sum that cannot be is found, and nobody knows whose fault it
is.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from focal.custody import inputs
from focal.errors import ProtocolError, Refused
from focal.exchange import usable
from focal.files import forget
from focal.manifest import Manifest
from focal.measure import declared
from focal.net import messages as msg
from focal.protocols.blind import roster
from focal.protocols.common.approval import ABSENT
from focal.protocols.common.hearing import Heard
from focal.protocols.common.inputs import RunKey
from focal.protocols.common.party import Party
from focal.sums import entrusted, fixed

if TYPE_CHECKING:
    from focal.measure.histogram import Counts
    from focal.protocols.blind.custodian import BlindCustodian
    from focal.protocols.blind.institution import BlindInstitution
    from focal.protocols.blind.server import BlindServer

KEY, HANDED, CLOSED, ADDED = "results/key", "results/handed", "results/closed", "results/added"
"""Topics of a custodian's key, of an institution's histogram, of the server's list, and of a custodian's sums."""
RELEASED = "release/shares"


def wanted(manifest: Manifest) -> bool:
    """Are test results added up through the custodians?"""
    return manifest.pooled_roc and bool(manifest.clinics)


@dataclass(frozen=True)
class Handed:
    """A masked histogram, and the key that its masks are of."""

    public: str
    counts: str


def handed(manifest: Manifest, heard: Heard, scope: str, attending: Sequence[str]) -> dict[str, Handed | None]:
    """Who of those that have the model has handed in before the server closed, or until now; None: it has nothing to
    hand in, or nothing of use."""
    found: dict[str, Handed | None] = {}
    for record in heard:
        if record.scope != scope:
            continue
        if record.topic == CLOSED and record.sender == manifest.server.name:
            break
        body = record.body
        if isinstance(body, msg.ResultsHanded) and record.topic == HANDED:
            there = body.public is not None and body.counts is not None and usable(body.public)
            found[record.sender] = Handed(str(body.public), str(body.counts)) if there else None
    return {name: found[name] for name in attending if name in found}


def listed(manifest: Manifest, names: Collection[str]) -> tuple[str, ...]:
    """Whose results are added up, in manifest order, where these have handed in: nobody's where they are too few."""
    clinics, founders = (sum(m.name in names for m in group) for group in (manifest.clinics, manifest.founders))
    enough = clinics >= manifest.pooled_least and founders >= manifest.most_founders
    return tuple(m.name for m in manifest.institutions if m.name in names) if enough else ()


def count(manifest: Manifest) -> int:
    """How many counts each hands in."""
    return declared.counted(manifest.outputs, manifest.pooled_by)


def _counted(found: Mapping[str, Handed | None], but: Collection[str]) -> dict[str, Handed]:
    """Those with something to add up, but for these."""
    return {name: theirs for name, theirs in found.items() if theirs is not None and name not in but}


def _missing(attending: Sequence[str], found: Collection[str], incomplete: Sequence[str]) -> dict[str, str]:
    """Who is waited for, and why."""
    missing = {name: ABSENT for name in attending if name not in found}
    return missing | dict.fromkeys(incomplete, roster.WHY["incomplete"])


def _pair(private: bytes, public: str, run_id: bytes, site: str, custodian: str) -> bytes:
    return inputs.pair_key(private, public, run_id, site, custodian)


# --------------------------------------------------------------------------- an institution


def hand_in(party: BlindInstitution, counts: Counts) -> None:
    """Hand in the own counts (1 + S, C, 2, BINS), once; or say that there are none."""
    custodians, size = party.active(RELEASED), count(party.manifest)
    if not party.repeat(HANDED):
        party.read_all()
        if party.said(party.me.name, HANDED):  # a second vector would be under the same veil
            party.report.warn(f"{party.me.name}: its test results were handed in, as a newer copy of its folder knows")
            return
        if party.said(party.manifest.server.name, CLOSED):
            party.report.warn(f"{party.me.name}: the list of test results was closed before its own were there")
            return
        if not counts[0].any():
            party.say(HANDED, msg.ResultsHanded())
            return
        keys = party.hear_all(custodians, KEY, msg.InputKey)

        def make() -> dict[str, str]:
            private = inputs.new_key()  # for this vector alone, and never on disk
            pairs = [_pair(private, keys[name].public, party.run_id, party.me.name, name) for name in custodians]
            masks = [entrusted.mask(pair, size) for pair in pairs]
            values = fixed.encode(counts.ravel().astype(float), 0)
            veil = entrusted.veil(party.projection_key(), party.run_id, party.me.name, size)
            return {
                "public": inputs.public_key(private),
                "counts": party.blobs.put(entrusted.masked(values, masks, veil)),
            }

        made = party.remembered(HANDED, make)
        party.send_stored([made["counts"]], "custodians")
        party.say(HANDED, msg.ResultsHanded(**made))


def there(party: BlindInstitution) -> bool:
    """Have all custodians given their sums (as far as the board was read)?"""
    return all(party.said(name, ADDED) for name in party.active(RELEASED))


def receive(party: BlindInstitution) -> None:
    """Wait until the list is closed, and write the curves of all who are on it (:mod:`focal.measure.histogram`)."""
    m, server = party.manifest, party.manifest.server.name
    party.report.waiting([server], CLOSED)
    present = party.hear(server, CLOSED, msg.Roster).present
    if not present:
        party.report.warn(
            f"{party.me.name}: fewer than {m.pooled_least} clinics, or too few others, have handed in test results: "
            "none are added up"
        )
        return
    added = party.hear_all(party.active(RELEASED), ADDED, msg.ResultsAdded)
    first, roster_digest, size = next(iter(added.values())), party.heard.digest(server, CLOSED), count(m)
    for name, theirs in added.items():
        if (theirs.roster, theirs.total) != (roster_digest, first.total):
            raise Refused("results", f"'{name}' added up the test results of others than the server shows us")
    total = entrusted.unpacked(party.fetch(first.total), size, server)
    for name, theirs in added.items():
        total -= entrusted.unpacked(party.fetch(theirs.masks), size, name)
    key = party.projection_key()
    for name in present:
        total -= entrusted.veil(key, party.run_id, name, size)
    try:
        told = party.write_pooled(fixed.decode(total, 0), present)
    except ProtocolError as e:  # one of many sent what cannot be: the model is there all the same
        party.report.warn(f"{party.me.name}: no ROC curve over all sites: {e.message}")
        return
    if party.me.name == present[0]:  # the others have the same
        party.report.say(told)


# --------------------------------------------------------------------------- the server


def close(party: BlindServer) -> None:
    """Close the one list, when nobody is missing or those who are may be, and wait for the custodians' sums."""
    m, size = party.manifest, 8 * count(party.manifest)
    party.read_all()
    while not party.said(party.me.name, CLOSED):
        found = handed(m, party.heard, party.scope, party.attending)
        there = _counted(found, ())
        incomplete = tuple(name for name, theirs in there.items() if not party.hub.holds(theirs.counts, size))
        missing = _missing(party.attending, found, incomplete)
        party.report.progress(len(found), len(party.attending))
        if missing and not party.may_close(missing, what="results"):
            party.read_board(seconds=2.0)
            continue
        present = listed(m, _counted(found, incomplete))
        party.say_as_read(CLOSED, msg.Roster(present=present, incomplete=incomplete))
        party.read_all()
    if party.hear(party.me.name, CLOSED, msg.Roster).present:
        party.hear_all(party.active(RELEASED), ADDED, msg.ResultsAdded)


# --------------------------------------------------------------------------- a custodian


def key_of(party: Party) -> RunKey:
    """A custodian's key for these masks."""
    return RunKey(party, KEY, f"results-{party.scope[:16]}")


def gave(party: Party) -> bool:
    """Has this custodian given its masks, or are none to be given? Then its peers may be gone."""
    server = party.manifest.server.name
    if party.said(server, CLOSED) and not party.hear(server, CLOSED, msg.Roster).present:
        return True
    return party.has_said(ADDED) or (party.has_said(KEY) and not key_of(party).file.exists())


def add_up(party: BlindCustodian) -> None:
    """Give the sums for the one list, or for none; the key is erased then."""
    key, server = key_of(party), party.manifest.server.name
    key.say()
    closed = party.hear(server, CLOSED, msg.Roster)
    found = handed(party.manifest, party.heard, party.scope, party.attending)
    there = _counted(found, closed.incomplete)
    if closed.present != listed(party.manifest, there) or not set(closed.incomplete) <= _counted(found, ()).keys():
        raise Refused("results", "the server closes the list of test results with others than its board has")
    if closed.present and not party.repeat(ADDED):
        _wait_for_all(party, found, closed)
        list_digest = party.heard.digest(server, CLOSED)
        given = party.ledger.answer("results", ADDED, list_digest, lambda: _sums(party, key, there, closed.present))
        total, masks = given[:32].hex(), given[32:].hex()
        party.send_stored([total, masks], "all")
        party.say(ADDED, msg.ResultsAdded(roster=list_digest, total=total, masks=masks))
    forget(key.file)
    if closed.present:
        party.hear_all(party.active(RELEASED), ADDED, msg.ResultsAdded)  # a peer may restart and ask


def _wait_for_all(party: BlindCustodian, found: Collection[str], closed: msg.Roster) -> None:
    """Until nobody is missing, or those who are may be: by the date, where the server did not close before it, or by a
    person here. It may say of whom it likes that it was not given all."""
    in_time = not roster.early(party.manifest.pooled_until, party.remembered(f"{CLOSED}/heard", time.time))
    missing = _missing(party.attending, found, closed.incomplete)
    while missing and not party.may_close(missing, in_time, what="results"):
        party.read_board(seconds=2.0)


def _sums(party: BlindCustodian, key: RunKey, found: dict[str, Handed], present: Sequence[str]) -> bytes:
    """Digests of the sum of all vectors, and of that of the own masks, which are in the own store."""
    size = count(party.manifest)
    total = entrusted.added(((name, party.net.get(found[name].counts)) for name in present), size)
    masks = np.zeros(size, np.uint64)
    for name in present:
        masks += entrusted.mask(_pair(key.private, found[name].public, party.run_id, name, party.me.name), size)
    return b"".join(bytes.fromhex(party.blobs.put(entrusted.packed(one))) for one in (total, masks))
