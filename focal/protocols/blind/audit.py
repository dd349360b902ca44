"""Replay audit of a blind run: the upload lists, then every step again with the recorded refresh shares."""

from __future__ import annotations

from focal.net import messages as msg
from focal.protocols.blind import plan, uploads
from focal.protocols.blind.compute import BlindCompute, Elsewhere
from focal.protocols.common import ceremony, inputs
from focal.protocols.common.audit import Audit


class BlindAudit(Audit):
    """The re-execution of one finished blind run."""

    def compute(self, joint: msg.JointKeys) -> BlindCompute:
        layout, keys = plan.layout(self.manifest), ceremony.joint_digest(joint)
        lists = self.recall_all(self.institutions, "upload", msg.Upload)
        active, seed = self.active("upload"), self.seed("upload")
        said = self.recall_all([*self.institutions, *active], inputs.KEY, msg.InputKey)
        inputs.check_keys(uploads.mask_keys(lists), active, said)
        digest = uploads.inputs_digest(self.manifest, self.scheme, layout, lists, keys)
        uploads.check_accepted(digest, self.recall_all(active, "uploads/accepted", msg.UploadsAccepted))
        self.say(
            f"uploads    {sum(len(u.chunks) for u in lists.values())} masked messages of {len(lists)} institutions"
        )
        wanted = [placed.input for placed in uploads.inputs(self.manifest, layout, lists)]
        given = self.contributions(uploads.ROUND, digest, wanted, uploads.claims(self.manifest, layout, seed, lists))
        self.say(f"inputs     {len(wanted)} ciphertexts, from what {len(given)} custodians gave for them")
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
            digest,
            given,
            self.blob,
            self.threads,
            elsewhere=cluster,
        )
