"""A custodian of a blind run: accepts the upload lists, then answers the plan's refreshes."""

from __future__ import annotations

from focal.net import messages as msg
from focal.protocols.blind import plan, uploads
from focal.protocols.blind.compute import BlindCompute
from focal.protocols.common import ceremony
from focal.protocols.common.custodian import Custodian


class BlindCustodian(Custodian):
    """``run()`` takes part in one blind run from the nonces to the release; interrupted, the same call continues it."""

    def answer(self) -> None:
        with self.report.phase("upload"):
            self.enter("upload")
            if self.verifies:
                self.install_keys()  # while the institutions encrypt
            lists = self._accept_uploads()
            self.catch_up()  # before the uploads are fetched: the others wait for our answer
            if self.verifies:
                self._fetch_uploads(lists)
        with self.report.phase("train"):
            self.enter("refresh")
            if self.verifies:
                memory = int(self.local.memory_gb * 1e9)
                self.verify(BlindCompute(self.manifest, self.scheme, self.layout, lists, self.fetch, self.threads, memory))
            else:
                self._answer_plan()

    def _accept_uploads(self) -> dict[str, msg.Upload]:
        """Exactly one valid list from every institution, and the same lists at every custodian, before the first share."""
        lists = self.hear_all(self.names, "upload", msg.Upload)
        commits = self.hear_all(self.names, "upload/commit", msg.UploadCommit)
        keys = ceremony.joint_digest(self.joint)
        digest = uploads.accept(self.manifest, self.scope, self.scheme, self.layout, commits, lists, keys)
        self.say("uploads/accepted", msg.UploadsAccepted(digest=digest))
        uploads.check_accepted(digest, self.hear_all(self.peers, "uploads/accepted", msg.UploadsAccepted))
        return lists

    def _fetch_uploads(self, lists: dict[str, msg.Upload]) -> None:
        """A verifier needs every chunk; they are kept on disk, so that a restart does not fetch them again."""
        wanted = [digest for upload in lists.values() for digest in upload.chunks]
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
