"""The server of a blind run: accepts the upload lists, then takes every step."""

from __future__ import annotations

from focal.net import messages as msg
from focal.protocols.blind import uploads
from focal.protocols.blind.compute import BlindCompute
from focal.protocols.common import ceremony
from focal.protocols.common.server import Server


class BlindServer(Server):
    """``run()`` serves one blind run to its end; interrupted, the same call continues it."""

    def serve(self, joint: msg.JointKeys) -> list[msg.StepDone]:
        with self.report.phase("upload"):
            lists = self._uploads(joint)
        with self.report.phase("train"):
            memory = int(self.local.memory_gb * 1e9)
            return self.train(BlindCompute(self.manifest, self.scheme, self.layout, lists, self.blobs.get, self.threads, memory))

    def _uploads(self, joint: msg.JointKeys) -> dict[str, msg.Upload]:
        lists = self.hear_all(self.names, "upload", msg.Upload)
        commits = self.hear_all(self.names, "upload/commit", msg.UploadCommit)
        keys = ceremony.joint_digest(joint)
        digest = uploads.accept(self.manifest, self.scope, self.scheme, self.layout, commits, lists, keys)
        uploads.check_accepted(digest, self.hear_all(self.custodians, "uploads/accepted", msg.UploadsAccepted))
        return lists
