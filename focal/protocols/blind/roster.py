"""Who has come: the roster of a blind run, with which the uploads are closed.

::

    institutions   upload  upload  ...                          who does not come by then is left out
    server                               uploads/closed         when all have come, at the closing date, or by people
    custodians                                  uploads/accepted      the same roster, read off the board
    range checks                                      inputs/commit, inputs/reveal        whose proofs fail, neither
                                                                                          where people say so

Nobody waits for an institution after that, nor does one that sends something else than was agreed end the run: it is
left out, by name and with the reason. What a roster must be follows from the board (:func:`read`), but for one thing,
which only the server knows: whether it was given all that a list names. It says so for all to see. Where nothing but
that, silence, or keys that were shown otherwise keep somebody out, custodians wait as for one who has not come
(:meth:`Came.absent`): until the closing date, or for a person's word. After that date a server keeps out whom it likes.

A range check that fails is the fault of the institution, or of a custodian that gave a wrong share of it. Only that
institution can tell (:meth:`focal.protocols.common.inputs.MaskKeys.wrong_shares`). So people at every custodian are
asked before the run goes on without it, whatever the date (:data:`UNPROVEN`).

A roster has more than two thirds of the founders (:attr:`Manifest.most_founders`; clinics have not signed for
anybody's privacy), and a quarter of the manifest's rows (:data:`FEWEST`). Custodians sign who is on it, who is not and
why, and the server's record of it; institutions go by their word.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from focal.errors import Refused
from focal.exchange import usable
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.protocols.blind import plan
from focal.protocols.blind.plan import Layout
from focal.protocols.blind.uploads import ROUND, Agreed, check_list
from focal.protocols.common import ceremony, inputs
from focal.protocols.common.approval import ABSENT
from focal.protocols.common.epochs import Epochs
from focal.protocols.common.hearing import B, Heard

UPLOAD, CLOSED, ACCEPTED = "upload", "uploads/closed", "uploads/accepted"
"""Topics of an institution's list, of the server's roster, and of a custodian's word on it."""
COMMIT, UNPROVEN, REVEAL = f"{ROUND}/commit", f"{ROUND}/unproven", f"{ROUND}/reveal"
"""Topics of a custodian's shares of the range checks, of its waiting for people, where proofs do not hold, and of its
word that they do not."""
WHY = {
    "absent": ABSENT,
    "incomplete": "its list names what the server was not given",
    "upload": "its list is not as agreed",
    "mask-keys": "its keys for masks are of no use, or others than custodians were shown",
    "unproven": "its proof of the size of its rows does not hold, by the word of all custodians",
}
"""Why an institution is left out, in words."""
DISPUTED = (
    "its proof of the size of its rows does not fit the shares of all custodians: ask it, its log says whose fault"
)
"""Why people are asked, in words."""
FEWEST = 4
"""One in so many of the manifest's rows must be there. What weights carry was bounded for all of them
(:attr:`Layout.divisor`) and grows, with a quarter of the rows and a step that is as stable
(:func:`focal.protocols.blind.plan.step_size`), to twice that: 2^2 below what their release hides."""

SKEW = 600.0
"""Seconds by which clocks may differ."""


@dataclass
class Came:
    """Who has an upload on the board, up to some record."""

    lists: dict[str, msg.Upload] = field(default_factory=dict)
    """Those that are as agreed, in manifest order."""
    refused: dict[str, Refused] = field(default_factory=dict)
    """Those that are not, and what is wrong with each: their signature is under it."""
    unlike: dict[str, Refused] = field(default_factory=dict)
    """Those that met other keys for masks than are shown here: theirs is the fault, or the server's."""

    def complete(self, incomplete: Collection[str]) -> dict[str, msg.Upload]:
        """The lists of all but these."""
        return {name: upload for name, upload in self.lists.items() if name not in incomplete}

    def absent(self, manifest: Manifest, incomplete: Collection[str]) -> dict[str, msg.WhyAbsent]:
        """Whom nothing but the server's word, or silence, keeps out, and why; founders first."""
        here, why = {*self.lists, *self.refused} - set(incomplete), self.why(manifest, incomplete)
        return {m.name: why[m.name] for m in (*manifest.founders, *manifest.clinics) if m.name not in here}

    def why(self, manifest: Manifest, incomplete: Collection[str]) -> dict[str, msg.WhyAbsent]:
        """Everybody whose list does not count, and what the board says of it."""
        here = {*self.lists, *self.refused}
        why: dict[str, msg.WhyAbsent] = {m.name: "absent" for m in manifest.institutions if m.name not in here}
        why |= {name: "upload" if e.reason == "upload" else "mask-keys" for name, e in self.faults.items()}
        return why | {name: "incomplete" for name in incomplete}

    @property
    def faults(self) -> dict[str, Refused]:
        """What is wrong with the lists that do not count."""
        return {**self.refused, **self.unlike}


def came(
    manifest: Manifest,
    shape: Layout,
    agreed: Agreed,
    heard: Heard,
    scope: str,
    spelled: Callable[[str], str],
    active: tuple[str, ...],
) -> Came:
    """Who has come before the uploads were closed, or until now.

    ``spelled``: a topic as it is said in its epoch; ``active``: the custodians whose masks the rows are under.
    """
    found: dict[str, msg.Upload] = {}
    keys: dict[str, msg.InputKey] = {}
    for record in heard:
        if record.scope != scope:
            continue
        if record.topic == spelled(CLOSED) and record.sender == manifest.server.name:
            break
        if isinstance(record.body, msg.InputKey) and record.topic == spelled(inputs.KEY):
            keys[record.sender] = record.body
        if isinstance(record.body, msg.Upload) and record.topic == spelled(UPLOAD):
            found[record.sender] = record.body
    out = Came()
    for member in manifest.institutions:
        if (upload := found.get(member.name)) is None:
            continue
        name, own = member.name, keys.get(member.name)
        try:
            check_list(manifest, shape, agreed, name, upload)
            if own is not None and not usable(own.public):
                raise Refused("mask-keys", f"the key for masks of '{name}' is not a usable X25519 key")
        except Refused as e:
            out.refused[name] = e
            continue
        try:
            inputs.check_keys({name: upload.mask_keys}, active, keys)
            out.lists[name] = upload
        except Refused as e:
            out.unlike[name] = e
    return out


def read(manifest: Manifest, found: Came, roster: msg.Roster) -> dict[str, msg.Upload]:
    """The lists of all on the server's roster, in manifest order.

    Raises :class:`Refused`: ``roster`` where it is not what the board says, or where too few have come (``upload``,
    ``mask-keys``: where it is for what one of them sent).
    """
    for name in roster.present:
        if name in found.faults:
            raise found.faults[name]
    lists = found.complete(roster.incomplete)
    if tuple(lists) != roster.present or not set(roster.incomplete) <= set(found.lists):
        differ = sorted(set(lists) ^ set(roster.present)) or list(roster.present)
        raise Refused(
            "roster", f"the server closes the uploads with another roster than its board has ({', '.join(differ)})"
        )
    check_enough(manifest, lists, found.refused)
    return lists


def agreed(accepted: Mapping[str, msg.ProjectionAccepted], joint: msg.JointKeys) -> Agreed:
    """What every list repeats, from the word of all founders. Raises :class:`Refused` (``projection``) where they have
    not agreed."""
    first = next(iter(accepted.values()))
    for name, theirs in accepted.items():
        if theirs != first:
            raise Refused(
                "projection", f"'{name}' accepted another projection or step size than '{next(iter(accepted))}'"
            )
    return Agreed(ceremony.joint_digest(joint), first.digest, first.eta_hex)


def leave_out(manifest: Manifest, lists: Mapping[str, msg.Upload], failed: Mapping[str, Refused]) -> dict[str, int]:
    """Whom the run goes on without, as their claims do not hold, and how many rows each had brought. Raises as
    :func:`check_enough` where too few are left."""
    check_enough(manifest, {name: upload for name, upload in lists.items() if name not in failed}, failed)
    return {name: lists[name].rows for name in failed}


def left_out(
    heard: Heard, scope: str, active: Callable[[str], Sequence[str]], spelled: Callable[[str], str]
) -> dict[str, str]:
    """Institution -> why the run goes on without it, by the word of all custodians; nobody before all have said so.

    ``active``: the custodians who answer under a topic.
    """

    def said(topic: str, kind: type[B]) -> list[B]:
        names = active(topic)
        there = all((name, spelled(topic)) in heard for name in names)
        return list(heard.get_all(scope, names, spelled(topic), kind).values()) if there else []

    found: dict[str, str] = {}
    if accepted := said(ACCEPTED, msg.UploadsAccepted):
        same = set.intersection(*(set(body.absent) for body in accepted))
        found |= {name: WHY[why] for name, why in accepted[0].absent.items() if name in same}
    if reveals := said(REVEAL, msg.InputReveal):
        found |= dict.fromkeys(set.intersection(*(set(body.left_out) for body in reveals)), WHY["unproven"])
    return dict(sorted(found.items()))


def of_board(manifest: Manifest, heard: Heard) -> dict[str, str]:
    """:func:`left_out`, from the records of a run that is over."""
    scope = next((r.scope for r in heard if isinstance(r.body, msg.UploadsAccepted)), "")
    epochs = Epochs(manifest, plan, bytes.fromhex(scope))
    for record in heard:
        epochs.take(record)
    return left_out(heard, scope, lambda topic: epochs.at(topic).active, epochs.spelled)


def check_enough(manifest: Manifest, lists: Mapping[str, msg.Upload], refused: Mapping[str, Refused]) -> None:
    """Raise unless these lists are enough to train on: :class:`Refused` for what one of those left out has sent, or
    else (``roster``) as too few have come."""
    if enough(manifest, lists):
        return
    for fault in refused.values():
        raise fault
    founders, rows = _weight(manifest, lists)
    raise Refused(
        "roster",
        f"{founders} of {len(manifest.founders)} institutions that are no clinics are left, with {rows} of "
        f"{manifest.rows} rows: a model needs {manifest.most_founders} of them at least, and a quarter of the rows",
        hint="start a new run with those who do come, and with a later closing date",
    )


def enough(manifest: Manifest, lists: Mapping[str, msg.Upload]) -> bool:
    """Have so many come that there is a model?"""
    founders, rows = _weight(manifest, lists)
    return founders >= manifest.most_founders and FEWEST * rows >= manifest.rows


def _weight(manifest: Manifest, lists: Mapping[str, msg.Upload]) -> tuple[int, int]:
    """How many founders, and how many rows."""
    return sum(m.name in lists for m in manifest.founders), sum(upload.rows for upload in lists.values())


def early(closing: datetime.datetime | None, heard: float) -> bool:
    """Did a server that closed at ``heard`` (seconds since 1970) do so before the date, by more than clocks differ?"""
    return closing is not None and heard < closing.timestamp() - SKEW


def due(manifest: Manifest) -> bool:
    """Is the closing date over, by our own clock?"""
    return past(manifest.closing)


def past(date: datetime.datetime | None) -> bool:
    """Is there a date, and is it over?"""
    return date is not None and datetime.datetime.now(datetime.timezone.utc) >= date
