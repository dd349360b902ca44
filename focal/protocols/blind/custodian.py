"""A custodian of a blind run: accepts the upload lists, then answers the plan's refreshes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from focal.errors import Refused
from focal.net import messages as msg
from focal.protocols.blind import plan, results, roster, uploads
from focal.protocols.blind.compute import computing
from focal.protocols.blind.gathering import Gathering
from focal.protocols.common import inputs
from focal.protocols.common.custodian import Custodian
from focal.protocols.common.inputs import mask_files


class BlindCustodian(Gathering, Custodian):
    """``run()`` takes part in one blind run from the nonces to the release; interrupted, the same call continues it."""

    def answer(self) -> None:
        """Contribute to the inputs of all who came, then answer every refresh: computing along, or as asked."""
        with self.report.phase("upload"):
            self.enter("upload")
            if self.epochs.at(inputs.KEY).number:  # rows are masked anew, with other keys
                self.masks.say()
            if self.verifies:
                self.install_keys()  # while the institutions mask their rows
            self.lists, digest = self._accept_uploads()
            lists = self.lists
            wanted = [placed.input for placed in uploads.inputs(self.layout, lists)]
            claims = uploads.claims(self.manifest, self.layout, self.seed(uploads.ROUND), lists)
            self._fetch(digest for upload in lists.values() for digest in (*upload.chunks, *upload.proofs))
            given = self.contributions(uploads.ROUND, digest, wanted, claims)
            self.attending = [name for name in lists if name not in given.left_out]
            if self.verifies:
                shown = (inputs.shown(wanted, own, given.left_out) for own in given.blobs.values())
                self._fetch(digest for own in shown for digest in own)
            self._forget(*mask_files(self))  # all that they mask is made
        with self.report.phase("train"):
            self.enter("refresh")
            if self.verifies:
                self.verify(computing(self, self.joint, lists, digest, given, self.fetch))
            else:
                self._answer_plan()

    def _accept_uploads(self) -> tuple[dict[str, msg.Upload], str]:
        """Exactly one valid list from every institution of the roster, and the same lists at every custodian,
        before anything is made for them."""
        closed = self.hear(self.manifest.server.name, roster.CLOSED, msg.Roster)
        found = self.came(self.agreed(self.joint))
        lists = roster.read(self.manifest, found, closed)
        absent = found.absent(self.manifest, closed.incomplete)
        heard = self.remembered(f"{self.spelled(roster.CLOSED)}/heard", time.time)
        in_time = not roster.early(self.manifest.closing, heard)  # else its date is no reason
        words = {name: roster.WHY[why] for name, why in absent.items()}
        while absent and not self.has_said(roster.ACCEPTED) and not self.may_close(words, in_time):
            self.read_board(seconds=2.0)
        self.say_left_out(found, closed)
        own = self.accepted(found, closed, lists)
        self.say(roster.ACCEPTED, own)
        active = self.active(roster.ACCEPTED)
        uploads.check_accepted(own, self.hear_all(active, roster.ACCEPTED, msg.UploadsAccepted))
        return lists, own.digest

    def after_release(self) -> None:
        if results.wanted(self.manifest):
            results.add_up(self)

    @property
    def gave_all(self) -> bool:
        masks = results.wanted(self.manifest) and not results.gave(self)
        return super().gave_all and not masks

    def leave_out(self, failed: Mapping[str, Refused]) -> dict[str, int]:
        """A malformed proof is its sender's fault, and everybody sees it. One that does not fit may be a custodian's,
        which gave a wrong share: people are asked."""
        members = (*self.manifest.founders, *self.manifest.clinics)
        disputed = [m.name for m in members if m.name in failed and failed[m.name].reason == "range-sum"]
        if disputed:
            self.say(roster.UNPROVEN, msg.Unproven(names=tuple(disputed)))  # they can tell, if the run ends here too
        left_out = roster.leave_out(self.manifest, self.lists, failed)
        for name in disputed:
            self.report.warn(
                f"{self.me.name}: {failed[name].message}. The fault is that of '{name}' or of one of these custodians: "
                f"ask '{name}', which is told whose. To go on without it, every custodian: "
                f"focal close {self.folder} {' '.join(disputed)}"
            )
        while disputed and not self.people_let(dict.fromkeys(disputed, roster.DISPUTED), "proofs"):
            self.read_board(seconds=2.0)
        for name, fault in failed.items():
            self.report.warn(f"{self.me.name}: the run goes on without '{name}': {fault.message}")
        return left_out

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
        present = (self.lists[name] for name in self.attending)
        batches = plan.batches(self.manifest, uploads.live(self.layout, present))
        for i, (topic, items) in enumerate(batches):
            self.answer_batch(topic, items)
            self.report.progress(i + 1, len(batches))
