"""The server of a blind run: accepts the upload lists, then takes every step."""

from __future__ import annotations

from focal.net import messages as msg
from focal.protocols.blind import uploads
from focal.protocols.blind.compute import BlindCompute, elsewhere
from focal.protocols.common import ceremony, inputs
from focal.protocols.common.server import Server


class BlindServer(Server):
    """``run()`` serves one blind run to its end; interrupted, the same call continues it."""

    def serve(self, joint: msg.JointKeys) -> list[msg.StepDone]:
        with self.report.phase("upload"):
            lists, digest = self._uploads(joint)
            wanted = [placed.input for placed in uploads.inputs(self.manifest, self.layout, lists)]
            given = self.contributions(uploads.ROUND, digest, wanted, ())
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
                elsewhere(self.local, self.blobs.folder, joint, self.report.warn),
            )
            return self.train(compute)

    def _uploads(self, joint: msg.JointKeys) -> tuple[dict[str, msg.Upload], str]:
        lists = self.hear_all(self.names, "upload", msg.Upload)
        active = self.active("upload")
        keys = self.hear_all([*self.names, *active], inputs.KEY, msg.InputKey)
        inputs.check_keys(uploads.mask_keys(lists), active, keys)
        digest = uploads.inputs_digest(self.manifest, self.scheme, self.layout, lists, ceremony.joint_digest(joint))
        uploads.check_accepted(digest, self.hear_all(active, "uploads/accepted", msg.UploadsAccepted))
        return lists, digest
