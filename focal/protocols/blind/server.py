"""The server of a blind run: accepts the upload lists, then takes every step."""

from __future__ import annotations

from focal.ckks import codec
from focal.custody import projections
from focal.net import messages as msg
from focal.net.quotas import Quota
from focal.protocols.blind import results, roster, uploads
from focal.protocols.blind.compute import computing
from focal.protocols.blind.gathering import Gathering
from focal.protocols.blind.roster import Came
from focal.protocols.blind.uploads import Agreed
from focal.protocols.common.server import Server


class BlindServer(Gathering, Server):
    """``run()`` serves one blind run to its end; interrupted, the same call continues it."""

    def serve(self, joint: msg.JointKeys) -> list[msg.StepDone]:
        with self.report.phase("upload"):
            lists, digest = self._uploads(joint)
            wanted = [placed.input for placed in uploads.inputs(self.layout, lists)]
            given = self.contributions(uploads.ROUND, digest, wanted, ())
            self.attending = [name for name in lists if name not in given.left_out]
        with self.report.phase("train"):
            return self.train(computing(self, joint, lists, digest, given, self.blobs.get))

    def quotas(self) -> dict[str, Quota]:
        return uploads.quotas(self.manifest, self.layout)

    def after_release(self) -> None:
        if results.wanted(self.manifest):
            results.close(self)

    def check_record(self, record: msg.Record) -> None:
        super().check_record(record)
        if isinstance(record.body, msg.Upload):
            uploads.check_length(self.manifest, self.layout, record.sender, record.body)

    def _uploads(self, joint: msg.JointKeys) -> tuple[dict[str, msg.Upload], str]:
        """The lists of all who have come, once the uploads are closed, and their digest, as custodians accepted it."""
        agreed = self.agreed(joint)
        self._close(agreed)
        closed = self.hear(self.me.name, roster.CLOSED, msg.Roster)
        found = self.came(agreed)
        lists = roster.read(self.manifest, found, closed)
        self.say_left_out(found, closed)
        own = self.accepted(found, closed, lists)
        active = self.active(roster.ACCEPTED)
        uploads.check_accepted(own, self.hear_all(active, roster.ACCEPTED, msg.UploadsAccepted))
        return lists, own.digest

    def _close(self, agreed: Agreed) -> None:
        """Close the uploads when all have come, or when those who have not may be left out and enough have."""
        self.read_all()
        while not self.said(self.me.name, roster.CLOSED):
            found, incomplete = self.came(agreed), tuple[str, ...]()
            if ready := self._all_here(found, incomplete):  # what was given is looked at only then
                incomplete = tuple(name for name, upload in found.lists.items() if not self._complete(upload))
                ready = not incomplete or self._all_here(found, incomplete)
            if not ready:
                self.read_board(seconds=2.0)
                continue
            lists = found.complete(incomplete)
            roster.check_enough(self.manifest, lists, found.refused)
            self.say_as_read(roster.CLOSED, msg.Roster(present=tuple(lists), incomplete=incomplete))
            self.read_all()

    def _all_here(self, found: Came, incomplete: tuple[str, ...]) -> bool:
        """Have all come, or may those who have not be left out?"""
        absent = found.absent(self.manifest, incomplete)
        self.report.progress(len(self.names) - len(absent), len(self.names))
        words, lists = {name: roster.WHY[why] for name, why in absent.items()}, found.complete(incomplete)
        return not absent or self.may_close(words, roster.enough(self.manifest, lists))

    def _complete(self, upload: msg.Upload) -> bool:
        """Was the server given all that a list names, in the size that it has, for custodians to fetch?"""
        chunk, proof = codec.size(self.scheme, codec.MASKED), projections.PROOF_BYTES
        holds = self.hub.holds
        return all(holds(d, chunk) for d in upload.chunks) and all(holds(d, proof) for d in upload.proofs)
