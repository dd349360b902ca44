"""A custodian of a blind run: accepts the upload lists, then answers the plan's refreshes."""

from __future__ import annotations

from collections.abc import Iterable

from focal.net import messages as msg
from focal.protocols.blind import plan, uploads
from focal.protocols.blind.compute import BlindCompute, elsewhere
from focal.protocols.common import ceremony, inputs
from focal.protocols.common.custodian import Custodian
from focal.protocols.common.inputs import mask_files


class BlindCustodian(Custodian):
    """``run()`` takes part in one blind run from the nonces to the release; interrupted, the same call continues it."""

    def answer(self) -> None:
        with self.report.phase("upload"):
            self.enter("upload")
            if self.epochs.at(inputs.KEY).number:  # rows are masked anew, with other keys
                self.masks.say()
            if self.verifies:
                self.install_keys()  # while the institutions mask their rows
            lists, digest = self._accept_uploads()
            wanted = [placed.input for placed in uploads.inputs(self.manifest, self.layout, lists)]
            claims = uploads.claims(self.manifest, self.layout, self.seed(uploads.ROUND), lists)
            self._fetch(digest for upload in lists.values() for digest in (*upload.chunks, *upload.proofs))
            if self.verifies:
                given = self.contributions(uploads.ROUND, digest, wanted, claims)
                self._fetch(digest for own in given.values() for digest in own)
            else:
                self.contribute(uploads.ROUND, digest, wanted, claims)
            self._forget(*mask_files(self))  # all that they mask is made
        with self.report.phase("train"):
            self.enter("refresh")
            if self.verifies:
                memory = int(self.local.memory_gb * 1e9)
                compute = BlindCompute(
                    self.manifest,
                    self.scheme,
                    self.layout,
                    self.seed(uploads.ROUND),
                    lists,
                    digest,
                    given,
                    self.fetch,
                    self.threads,
                    memory,
                    elsewhere(self.local, self.blobs.folder, self.joint, self.report.warn),
                )
                self.verify(compute)
            else:
                self._answer_plan()

    def _accept_uploads(self) -> tuple[dict[str, msg.Upload], str]:
        """Exactly one valid list from every institution, and the same lists at every custodian,
        before anything is made for them."""
        lists = self.hear_all(self.names, "upload", msg.Upload)
        active = self.active("upload")
        said = self.hear_all([*self.names, *active], inputs.KEY, msg.InputKey)
        inputs.check_keys(uploads.mask_keys(lists), active, said)
        digest = uploads.inputs_digest(
            self.manifest, self.scheme, self.layout, lists, ceremony.joint_digest(self.joint)
        )
        self.say("uploads/accepted", msg.UploadsAccepted(digest=digest))
        uploads.check_accepted(digest, self.hear_all(active, "uploads/accepted", msg.UploadsAccepted))
        return lists, digest

    def _fetch(self, digests: Iterable[str]) -> None:
        """Every custodian checks all masked rows, a verifier computes with them. Kept on disk:
        a restart does not fetch them again."""
        wanted = list(digests)
        missing = [digest for digest in wanted if digest not in self.blobs]
        there = len(wanted) - len(missing)
        for i, _ in enumerate(self.fetching.map(lambda digest: self.blobs.put(self.net.get(digest)), missing)):
            self.report.progress(there + i + 1, len(wanted))

    def _answer_plan(self) -> None:
        """``verify: off``: answer the plan's batches in order, for whatever ciphertexts the server presents."""
        batches = plan.batches(self.manifest)
        for i, (topic, items) in enumerate(batches):
            self.answer_batch(topic, items)
            self.report.progress(i + 1, len(batches))
