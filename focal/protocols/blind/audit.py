"""Replay audit of a blind run: the upload lists, then every step again with the recorded refresh shares."""

from __future__ import annotations

from focal.net import messages as msg
from focal.protocols.blind import plan, uploads
from focal.protocols.blind.compute import BlindCompute
from focal.protocols.common import ceremony
from focal.protocols.common.audit import Audit


class BlindAudit(Audit):
    """The re-execution of one finished blind run."""

    def compute(self, joint: msg.JointKeys) -> BlindCompute:
        layout, keys = plan.layout(self.manifest), ceremony.joint_digest(joint)
        lists = self.recall_all(self.institutions, "upload", msg.Upload)
        commits = self.recall_all(self.institutions, "upload/commit", msg.UploadCommit)
        digest = uploads.accept(self.manifest, self.scope, self.scheme, layout, commits, lists, keys)
        uploads.check_accepted(digest, self.recall_all(self.custodians, "uploads/accepted", msg.UploadsAccepted))
        self.say(f"uploads    {sum(len(u.chunks) for u in lists.values())} ciphertexts of {len(lists)} institutions")
        return BlindCompute(self.manifest, self.scheme, layout, lists, self.blob, self.threads)
