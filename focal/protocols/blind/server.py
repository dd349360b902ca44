"""The server of a blind run: accepts the upload lists, then takes every step."""

from __future__ import annotations

from focal.ckks import codec
from focal.custody import projections
from focal.net import messages as msg
from focal.protocols.blind import roster, uploads
from focal.protocols.blind.compute import BlindCompute, elsewhere
from focal.protocols.blind.gathering import Gathering
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
            memory = int(self.local.memory_gb * 1e9)
            compute = BlindCompute(
                self.manifest,
                self.scheme,
                self.layout,
                self.seed(uploads.ROUND),
                lists,
                digest,
                given,
                self.blobs.get,
                self.threads,
                memory,
                self.folder,
                elsewhere(self.local, self.blobs.folder, joint, self.report.warn),
            )
            return self.train(compute)

    def _uploads(self, joint: msg.JointKeys) -> tuple[dict[str, msg.Upload], str]:
        """The lists of all who have come, once the uploads are closed, and their digest, as custodians accepted it."""
        agreed = self.agreed(joint)
        self._close(agreed)
        closed = self.hear(self.me.name, roster.CLOSED, msg.Roster)
        found = self.came(agreed)
        lists = roster.read(self.manifest, found, closed)
        self.say_left_out(found, closed)
        digest = uploads.inputs_digest(self.manifest, self.scheme, self.layout, lists)
        active = self.active("uploads/accepted")
        uploads.check_accepted(digest, self.hear_all(active, "uploads/accepted", msg.UploadsAccepted))
        return lists, digest

    def _close(self, agreed: Agreed) -> None:
        """Close the uploads when all have come, or when those who have not may be left out and enough have."""
        self.read_all()
        while not self.said(self.me.name, roster.CLOSED):
            found = self.came(agreed)
            incomplete = tuple(name for name, upload in found.lists.items() if not self._complete(upload))
            lists = {name: upload for name, upload in found.lists.items() if name not in incomplete}
            absent = found.absent(self.manifest, incomplete)
            if absent and not self.may_close(absent, roster.enough(self.manifest, lists)):
                self.report.progress(len(self.names) - len(absent), len(self.names))
                self.read_board(seconds=2.0)
                continue
            roster.check_enough(self.manifest, lists, found.refused)
            self._say_as_read(roster.CLOSED, msg.Roster(present=tuple(lists), incomplete=incomplete))
            self.read_all()

    def _complete(self, upload: msg.Upload) -> bool:
        """Was the server given all that a list names, in the size that it has, for custodians to fetch?"""
        chunk, proof = codec.size(self.scheme, codec.MASKED), projections.PROOF_BYTES
        holds = self.hub.holds
        return all(holds(d, chunk) for d in upload.chunks) and all(holds(d, proof) for d in upload.proofs)
