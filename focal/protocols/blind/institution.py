"""An institution of a blind run: its images stay, encrypted projections of its features go once,
and a model comes back.

::

    images --lower segment--> features --secure sum--> moments --> projection --> columns --mask--> server
    (stay)                    (stay)      (masked)      (pooled)    (agreed)      (stay)
                                                                     ... training needs nothing from here ...
    released weights <--add up, decode-- sealed decryption shares of every custodian

After the upload it may go offline; the sealed result waits at the server.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from focal.ckks.scheme import Scheme
from focal.custody import inputs
from focal.custody.inputs import Message
from focal.custody.projections import SHARE_BYTES
from focal.data.rows import InstitutionRows, write_kept
from focal.errors import FocalError, LeftOut, Refused
from focal.files import private_write
from focal.heads import released
from focal.measure import declared
from focal.net import messages as msg
from focal.protocols.blind import plan, results, roster, uploads
from focal.protocols.common import ceremony
from focal.protocols.common import inputs as inputs_of
from focal.protocols.common.inputs import MaskKeys
from focal.protocols.common.institution import PROJECTION, Array, Institution
from focal.segments import projection as proj
from focal.task import outcomes

SHARES = "release/shares"
"""Topic of custodians' sealed shares of the result."""
FAULT_SECONDS = 10.0
"""How long it may take to find out whose fault it was, when the run is ended."""


class BlindInstitution(Institution):
    """``run()`` takes part in one blind run from the features to the model; interrupted, the same call continues it."""

    columns: Mapping[str, NDArray[np.str_]] = {}
    """Of own test rows, by name, (n,) each: what subgroups are told apart by."""
    _told_fault = ""

    # ----------------------------------------------------------------- the script

    def prepare(self) -> None:
        """Before anybody is spoken to: own data, lower segment, features."""
        with self.report.phase("features"):
            self.rows, self.test_features = self._features()
        train = self.rows.split == "train"
        self.check_rows(int(train.sum()))
        self.raw = self.rows.features[train]
        self.labels = outcomes(self.rows.labels[train], self.manifest.task)
        if warning := proj.rows_warning(len(self.raw), self.manifest.lower.dim):
            self.report.warn(f"{self.me.name}: {warning}")

    def run(self) -> None:
        self.enter("keys")
        self.agree_run()
        with self.report.phase("moments"):
            self.enter("moments")
            self.compare_test_features()
            size = self.manifest.projection.features
            self.projection = self.adopt_projection(size) if self.me.clinic else self.agree_projection(size)[0]
        answers = self.through_epochs(self._upload_and_wait)
        if answers is None:
            return
        with self.report.phase("release"):
            self._receive(answers)
        with self.report.phase("score"):
            self.score()
        self.finish()
        self.keep_traffic()

    def _upload_and_wait(self) -> dict[str, msg.ReleaseShares] | None:
        """The sealed shares of the result; None for a clinic that leaves before they are there."""
        with self.report.phase("upload"):
            self.enter("keys")
            joint = self.joint_keys()
            self.enter("upload")
            self._upload(joint)
        with self.report.phase("train"):
            self.enter("release")
            if self.me.clinic and not self.local.stay and not self._has_ended():
                self.report.say(
                    f"{self.me.name}: nothing is awaited from here any more; the same command fetches the model once "
                    "it is there"
                )
                return None
            self._wait_for_inputs()
            return self.hear_all(self.active(SHARES), SHARES, msg.ReleaseShares)

    def _has_ended(self) -> bool:
        """Has the run gone on without us, or to its end?"""
        self.read_all()

        def said_by_all(topic: str) -> bool:
            return all(self.said(name, topic) for name in self.active(topic))

        return self.me.name in self.left_out() or said_by_all(SHARES)

    def left_out(self) -> dict[str, str]:
        return roster.left_out(self.heard, self.scope, self.active, self.spelled)

    def _accepted(self) -> msg.UploadsAccepted:
        """Who is on the roster, in the same words of all custodians, of the record that the server shows us too; waits
        for them."""
        accepted = self.hear_all(self.active(roster.ACCEPTED), roster.ACCEPTED, msg.UploadsAccepted)
        first, server = next(iter(accepted.values())), self.manifest.server.name
        for name, theirs in accepted.items():
            if theirs != first:
                raise Refused("uploads", f"'{name}' accepted other upload lists than others did")
        self.hear(server, roster.CLOSED, msg.Roster)
        if self.heard.digest(server, self.spelled(roster.CLOSED)) != first.roster:
            raise Refused("uploads", "the server shows us another roster than custodians have accepted")
        return first

    def _wait_for_inputs(self) -> None:
        """Learn who is in, from all custodians. Raises :class:`LeftOut` where we are not."""
        accepted = self._accepted()
        if self.me.name not in accepted.present:
            self._leave(self.left_out().get(self.me.name, "by the word of all custodians"))
        reveals = self.hear_all(self.active(roster.REVEAL), roster.REVEAL, msg.InputReveal)
        without = inputs_of.same_left_out(roster.REVEAL, reveals)
        self.without = self.left_out()
        if self.me.name in without:
            whose = ""
            with contextlib.suppress(FocalError):  # of a proof that is none there is nothing to compute
                whose = self._whose_fault()
            self._leave(f"{self.without[self.me.name]}{whose and f'; {whose}'}")
        MaskKeys(self).forget()
        for name, why in self.without.items():
            self.report.warn(f"{self.me.name}: the run goes on without '{name}': {why}")
        self.attending = [name for name in accepted.present if name not in without]
        self.rows_of_all = accepted.rows - sum(without.values())

    # ----------------------------------------------------------------- a proof that does not hold

    def idle(self) -> None:
        """Say whose fault it is, where custodians wait for people as our proof does not hold."""
        super().idle()
        with contextlib.suppress(FocalError):  # what others sent is no reason to end here: the script meets it again
            self._whose_fault()

    def forget_secrets(self) -> None:
        # afterwards it cannot be told; the server may have kept from us that somebody asks
        self._within(FAULT_SECONDS, lambda: self._whose_fault(asked=False))
        super().forget_secrets()

    def _whose_fault(self, asked: bool = True) -> str:
        """Which custodians gave wrong shares of the checks of our proofs, in words; said once, remembered, and empty
        where nobody asks, or leaves us out. Not ``asked``: also then, where there is a share that is wrong."""
        custodians, topic = self.active(roster.UNPROVEN), self.spelled(roster.UNPROVEN)
        asking = [name for name in custodians if self.run_id and self._accused_by(name)]
        there = [(name, what) for name in custodians for what in (inputs_of.KEY, roster.ACCEPTED, roster.COMMIT)]
        there += [(self.manifest.server.name, roster.CLOSED), (self.me.name, roster.UPLOAD)]
        if asked and not asking or not self.run_id or not all(self.said(*one) for one in there):
            return ""
        if self.me.name not in self._accepted().present:
            return ""
        if not MaskKeys(self).file.exists() and self.journal.get(f"{self.session}/{topic}/whose") is None:
            return ""  # all were satisfied, and the key is gone
        wrong, withheld, holds = self.remembered(f"{topic}/whose", lambda: self._weigh_shares(custodians))
        if not (asking or wrong or withheld):
            return ""
        told = "all custodians gave the right shares of the check of its proofs: the fault is its own"
        if wrong or withheld:
            gave = [f"{', '.join(wrong)} gave wrong shares of the check of its proofs"] if wrong else []
            none = [f"the server has no shares of {', '.join(withheld)} for it"] if withheld else []
            told = f"{', and '.join(gave + none)}: ask there, and tell the other custodians"
        elif holds:
            told = f"its proofs hold, with the shares of all custodians: {', '.join(asking)} said otherwise without a "
            told += "reason: ask there, and tell the other custodians"
        if told != self._told_fault:
            self._told_fault = told
            self.report.warn(f"{self.me.name}: {told}")
        return told

    def _accused_by(self, custodian: str) -> bool:
        """Has it said that our proofs do not hold, and waits for people, or goes on without us?"""
        for topic, kind, field in (
            (roster.UNPROVEN, msg.Unproven, "names"),
            (roster.REVEAL, msg.InputReveal, "left_out"),
        ):
            if self.said(custodian, topic):
                body = self.heard.get(self.scope, custodian, self.spelled(topic), kind)
                if self.me.name in getattr(body, field):
                    return True
        return False

    def _weigh_shares(self, custodians: list[str]) -> tuple[list[str], list[str], bool]:
        """Which custodians gave wrong shares of the checks of our proofs; those whose shares the server does not give
        us; and whether our proofs hold, by the check that every custodian makes."""
        layout, scheme, size = plan.layout(self.manifest), Scheme(self.manifest.ckks, self.scope), SHARE_BYTES
        present = self._accepted().present
        upload = self.hear(self.me.name, roster.UPLOAD, msg.Upload)
        own = uploads.claims(self.manifest, layout, self.seed(uploads.ROUND), {self.me.name: upload})
        first = present.index(self.me.name) * len(own)
        given, withheld = dict[str, list[bytes]](), list[str]()
        for name, commit in self.hear_all(custodians, roster.COMMIT, msg.InputCommit).items():
            try:
                data = inputs_of.shares_of(name, commit, self.net.get)
            except Refused as e:
                if e.reason not in inputs_of.NOT_GIVEN:
                    raise
                withheld.append(name)
                continue
            if len(data) != size * len(own) * len(present):
                data = b""
            given[name] = [data[i * size : (i + 1) * size] for i in range(first, first + len(own))]
        keys = MaskKeys(self)
        keys.meet(custodians)
        if (wrong := keys.wrong_shares(scheme, own, given, self.blobs.get)) or withheld:
            return wrong, withheld, False
        weighed = [inputs_of.weigh(scheme, claim, self.blobs.get) for claim in own]
        return [], [], not inputs_of.unproven(own, weighed, {name: b"".join(shares) for name, shares in given.items()})

    def _leave(self, why: str) -> NoReturn:
        MaskKeys(self).forget()
        raise LeftOut(
            f"'{self.me.name}': the run goes on without it: {why}",
            hint="it gets no model of this run, and its uploaded rows stay masked; ask for a new run",
        )

    # ----------------------------------------------------------------- features

    def _features(self) -> tuple[InstitutionRows, NDArray[np.float32]]:
        # torch is imported here, not above: the command line checks keys, manifest and link before it takes seconds
        from focal.segments.lower import build_lower, features_of_test_image
        from focal.training.features import compute_features

        assert self.local.weights is not None
        spec = self.manifest.lower
        segment, source = build_lower(spec, self.local.weights)
        self.report.say(f"{self.me.name}: lower segment {spec.model}, {source}")
        table = self.load_data(segment, "train", "test")
        wanted = np.flatnonzero(np.isin(table.split, ("train", "test")))
        features = compute_features(
            segment,
            table,
            wanted,
            device=self.local.device,
            cache=self.cache,
            threads=self.local.threads,
            progress=self.report.progress,
        )
        rows = InstitutionRows(features, table.labels[wanted], table.groups[wanted], table.split[wanted])
        self.columns = table.take(wanted[table.split[wanted] == "test"]).columns
        return rows, features_of_test_image(segment)

    # ----------------------------------------------------------------- upload

    def _upload(self, joint: msg.JointKeys) -> None:
        """Mask every chunk once, store it, send it, and sign the one list of them."""
        self.scheme = scheme = Scheme(self.manifest.ckks, self.scope)
        if not self.repeat(roster.UPLOAD):
            self.read_all()
            if self.said(self.manifest.server.name, roster.CLOSED):
                self._leave(self._why_closed())
            keys = MaskKeys(self)
            keys.say()
            keys.meet(self.active("upload"))
            body = self._masked_rows(scheme, keys, joint)
            self.send_stored([*body.chunks, *body.proofs], "custodians")
            self.say(roster.UPLOAD, body)
        self.report.say(
            f"{self.me.name}: the rows are uploaded; the rest needs nothing from here, the result can be fetched later"
        )

    def _why_closed(self) -> str:
        closing, now = self.manifest.closing, time.time()
        if closing is None or now >= closing.timestamp():
            return "the uploads were closed before it came"
        return (
            "the server closed the uploads before it came, and before the closing date "
            f"({closing:%Y-%m-%d %H:%M} UTC): ask the custodians whether people there have said so"
        )

    def _masked_rows(self, scheme: Scheme, keys: MaskKeys, joint: msg.JointKeys) -> msg.Upload:
        """The list of all chunks, which are in the own store."""
        layout, active, seed = plan.layout(self.manifest), self.active("upload"), self.seed("upload")
        start, _ = plan.row_table(self.manifest, layout)[self.me.name]
        stop = start + len(self.raw)
        columns, targets = self.projection.apply(self.raw), plan.targets(self.labels)
        uploads.check_size(self.me.name, columns)
        places, label = layout.chunks(start, stop), keys.label("rows", columns.tobytes(), targets.tobytes())

        def message(place: uploads.Place) -> Message:
            block, what, g, h = place
            rows = layout.block_of(columns if what == "data" else targets, start, block)
            return inputs.message(
                scheme, layout.data_slots(rows, g, h) if what == "data" else layout.target_slots(rows, g)
            )

        def chunk(place: uploads.Place) -> str:
            called = uploads.item(layout, place, self.me.name)
            return self.blobs.put(keys.masked(scheme, message(place), label, called, active))

        def proof(what: str) -> str:
            own = [i for i, place in enumerate(places) if place[1] == what]
            statement = uploads.statement_of(
                self.manifest, layout, seed, self.me.name, (start, stop), what, tuple(digests[i] for i in own)
            )
            return self.blobs.put(keys.proof(statement, lambda: (message(places[i]) for i in own), active))

        digests: list[str] = []
        for digest in self.pool.map(chunk, places):
            digests.append(digest)
            self.report.progress(len(digests), len(places))
        return msg.Upload(
            joint_keys=ceremony.joint_digest(joint),
            projection=self.projection_digest,
            eta_hex=self.projection.eta_hex,
            rows=stop - start,
            first_row=start,
            mask_keys=keys.digest(active),
            label=label,
            chunks=tuple(digests),
            proofs=tuple(self.pool.map(proof, uploads.PROVEN)),
        )

    # ----------------------------------------------------------------- the result

    def _receive(self, answers: dict[str, msg.ReleaseShares]) -> None:
        """The model from every custodian's sealed shares."""
        layout = plan.layout(self.manifest)
        self.weights = released.weights(layout, self.opened_slots(answers, layout.class_groups))
        self._save_model()

    def _save_model(self) -> None:
        self.save_head(plan.model(self.manifest, self.projection, self.weights))
        private_write(self.folder / PROJECTION, self.projection.to_bytes())
        write_kept(self.folder, self.rows, self.weights)

    def test_subgroups(self, rows: int) -> NDArray[np.bool_]:
        found, missing = declared.members(self.manifest.pooled_by, self.columns, rows)
        if missing:
            self.report.warn(f"{self.me.name}: no column '{', '.join(missing)}': no row counts in subgroups by it")
        return found

    def add_counts(self, counts: NDArray[np.int64]) -> None:
        if not results.wanted(self.manifest):
            super().add_counts(counts)
            return
        results.hand_in(self, counts)
        if not self.me.clinic or self.local.stay or results.there(self):
            results.receive(self)

    def test_outputs(self) -> tuple[NDArray[np.uint8], Array, NDArray[np.str_]]:
        """Own test rows: labels (n, K), the released model's linear outputs (n, C), patients (n,)."""
        own = self.rows.take(self.rows.split == "test")
        return own.labels, self.projection.apply(own.features) @ self.weights, own.groups
