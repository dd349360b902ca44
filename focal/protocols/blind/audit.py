"""Replay audit of a blind run: the upload lists, then every step again with the recorded refresh shares."""

from __future__ import annotations

from collections.abc import Mapping

from focal.errors import Refused
from focal.net import messages as msg
from focal.protocols.blind import plan, roster, uploads
from focal.protocols.blind.compute import BlindCompute, Elsewhere
from focal.protocols.common.audit import Audit


class BlindAudit(Audit):
    """The re-execution of one finished blind run."""

    def compute(self, joint: msg.JointKeys) -> BlindCompute:
        """What takes the steps again, once all that came before them was found as the protocol has it."""
        layout, active, seed = plan.layout(self.manifest), self.active("upload"), self.seed("upload")
        founders, spelled = [m.name for m in self.manifest.founders], self.epochs.spelled
        agreed = roster.agreed(self.recall_all(founders, "projection/accepted", msg.ProjectionAccepted), joint)
        found = roster.came(self.manifest, layout, agreed, self.heard, self.scope, spelled, active)
        closed = self.recall(roster.CLOSED, msg.Roster)
        self.lists = lists = roster.read(self.manifest, found, closed)
        record = self.heard.digest(self.server, spelled(roster.CLOSED))
        absent = found.why(self.manifest, closed.incomplete)
        own = uploads.accepted(self.manifest, self.scheme, layout, lists, record, absent)
        uploads.check_accepted(own, self.recall_all(active, roster.ACCEPTED, msg.UploadsAccepted))
        self.say(
            f"uploads    {sum(len(u.chunks) for u in lists.values())} masked messages of {len(lists)} institutions"
        )
        wanted = [placed.input for placed in uploads.inputs(layout, lists)]
        given = self.contributions(
            uploads.ROUND, own.digest, wanted, uploads.claims(self.manifest, layout, seed, lists)
        )
        for name, why in roster.left_out(self.heard, self.scope, self.active, spelled).items():
            self.say(f"left out   {name}: {why}")
        self.say(f"inputs     {len(wanted)} ciphertexts, from what {len(given.blobs)} custodians gave for them")
        cluster = None
        if self.ray is not None:
            address = None if self.ray == "local" else self.ray
            cluster = Elsewhere(address, self.blobs.folder.absolute(), joint, self.say)
        return BlindCompute(
            self.manifest,
            self.scheme,
            layout,
            seed,
            lists,
            own.digest,
            given,
            self.blob,
            self.threads,
            elsewhere=cluster,
        )

    def leave_out(self, failed: Mapping[str, Refused]) -> dict[str, int]:
        return roster.leave_out(self.manifest, self.lists, failed)
