"""What server and custodians of a blind run do until it is settled who is in (:mod:`focal.protocols.blind.roster`)."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping

from focal.ckks.scheme import Scheme
from focal.net import messages as msg
from focal.protocols.blind import roster, uploads
from focal.protocols.blind.plan import Layout
from focal.protocols.blind.roster import Came
from focal.protocols.blind.uploads import Agreed
from focal.protocols.common import approval
from focal.protocols.common.approval import Awaited, Closing
from focal.protocols.common.party import Party

WAITING_SECONDS = 5.0
"""How often it is shown for whom a party waits."""
SHOWN = 10
"""So many names stand in one line; ``focal close`` shows all of them."""
PATIENT_SECONDS = 60.0
"""After this time it is said, once, what a person can do."""
NAMES: dict[Awaited, str] = {"uploads": "uploads", "proofs": "word of people", "results": "test results"}
"""What is awaited, in words."""


class Gathering(Party):
    """A server or custodian as far as it waits for institutions that come, or do not."""

    layout: Layout
    threads: int
    scheme: Scheme
    _waiting_told = 0.0

    @functools.cached_property
    def _waits_since(self) -> dict[str, float]:
        """By what is awaited."""
        return {}

    def left_out(self) -> dict[str, str]:
        return roster.left_out(self.heard, self.scope, self.active, self.spelled)

    def agreed(self, joint: msg.JointKeys) -> Agreed:
        """What every list repeats (:func:`focal.protocols.blind.roster.agreed`); waits for the founders."""
        founders = [m.name for m in self.manifest.founders]
        return roster.agreed(self.hear_all(founders, "projection/accepted", msg.ProjectionAccepted), joint)

    def came(self, agreed: Agreed) -> Came:
        """Who has come, as far as the board was read, before the uploads were closed."""
        active = tuple(self.active(roster.UPLOAD))
        return roster.came(self.manifest, self.layout, agreed, self.heard, self.scope, self.spelled, active)

    def may_close(self, missing: Mapping[str, str], enough: bool = True, what: Awaited = "uploads") -> bool:
        """May the run go on without these? Where a person here has said so, or at the date if ``enough`` have come;
        asks for the word of one. ``missing``: who, and why, founders first.

        In a later epoch rows are masked anew, after the date: then people say so.
        """
        date = self.manifest.closing if what == "uploads" else self.manifest.pooled_until
        over = roster.due(self.manifest) if what == "uploads" else roster.past(date)
        if enough and over and (what == "results" or self.epochs.at(roster.UPLOAD).number == 0):
            return True
        if self.people_let(missing, what):
            return True
        now = time.monotonic()
        if now - self._waits_since.setdefault(what, now) > PATIENT_SECONDS:
            self._waits_since[what] = math.inf  # said once
            when = f"until {date:%Y-%m-%d %H:%M} UTC; " if date else ""
            named, more = list(missing)[:SHOWN], len(missing) - SHOWN
            self.report.say(
                f"{self.me.name}: waits for the {NAMES[what]} of {', '.join(named)}"
                f"{f' and {more} others' if more > 0 else ''}, {when}to go on without them: "
                f"focal close {self.folder}{'' if more > 0 else f' {chr(32).join(named)}'}"
            )
        return False

    def people_let(self, missing: Mapping[str, str], what: Awaited = "uploads") -> bool:
        """Has a person here said that the run may go on without these? Asks for the word of one. ``missing``: who, and
        why, founders first."""
        epoch = self.epochs.at(roster.UPLOAD).number
        wanted = Closing(run_id=self.scope, epoch=epoch, what=what, missing=dict(missing))
        if approval.may_close(self.folder, wanted):
            return True
        approval.await_closing(self.folder, wanted)
        now = time.monotonic()
        if now - self._waiting_told > WAITING_SECONDS:
            self._waiting_told = now
            self.report.waiting(list(missing), NAMES[what])
        return False

    def accepted(self, found: Came, closed: msg.Roster, lists: dict[str, msg.Upload]) -> msg.UploadsAccepted:
        """What every custodian must say of who is in, and of their lists."""
        record = self.heard.digest(self.manifest.server.name, self.spelled(roster.CLOSED))
        absent = found.why(self.manifest, closed.incomplete)
        return uploads.accepted(self.manifest, self.scheme, self.layout, lists, record, absent)

    def say_left_out(self, found: Came, closed: msg.Roster) -> None:
        """Whose rows the run goes on without, and why."""
        why = {name: roster.WHY[why] for name, why in found.why(self.manifest, closed.incomplete).items()}
        why |= {name: e.message for name, e in found.faults.items()}
        for name, reason in list(why.items())[:20]:
            self.report.warn(f"the run goes on without '{name}': {reason}")
        if len(why) > 20:
            self.report.warn(f"and without {len(why) - 20} others")
