"""An institution, as far as protocols do not matter: secure sums, the projection agreed from them,
the released slots, its own score.

::

    features --secure sum--> moments --> projection, by the first institution, checked by all
    (stay)      (masked)      (pooled)    (agreed)                          |
                                                                  its protocol: training
                                                                            |
    model, score  <--add up, decode-- sealed decryption shares of every custodian
"""

from __future__ import annotations

import abc
import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from focal import framing
from focal.ckks import codec
from focal.ckks.evaluator import Slots
from focal.ckks.scheme import Scheme
from focal.config import LocalConfig
from focal.custody import release
from focal.errors import FocalError, ProtocolError, Refused, refusing
from focal.files import forget, private_write
from focal.manifest import Manifest
from focal.measure.traffic import merge
from focal.net import messages as msg
from focal.net.identity import open_for_group, seal_for_group
from focal.protocols.common import approval, ceremony
from focal.protocols.common.facts import phase_seconds
from focal.protocols.common.hearing import check_opens
from focal.protocols.common.keyholder import every_key
from focal.protocols.common.party import Party
from focal.protocols.common.progress import Reporter, timeline
from focal.segments import projection as proj
from focal.segments.projection import Projection
from focal.sums import fixed
from focal.sums.masked import MaskedSum, contribution_digest, group_key_context, new_group_key
from focal.task import scored_classes

if TYPE_CHECKING:
    from focal.data.table import Table
    from focal.segments.lower import LowerSegment
    from focal.segments.upper import UpperHead

Array = NDArray[np.float64]
MOMENTS = "moments"
"""Label of a run's first secure sum, over all institutions: class counts, and before them what a projection needs."""
ACCEPTED = "projection/accepted"
"""Topic of a founder's word that a projection follows from the pooled moments."""
PROJECTION = "projection.bin"
"""In an institution's folder: the agreed projection."""
HISTOGRAM = "histogram"
"""Label of the secure sum of all test rows' score histograms, after the release."""


class Institution(Party):
    """``run()`` takes part in one run from the features to the model; interrupted, the same call continues it."""

    role = "institution"
    scheme: Scheme
    raw: NDArray[np.float32]
    """(n, d) features of own training rows, before any projection."""
    labels: NDArray[np.uint8]
    """(n, C) their targets: one column per output."""
    test_features: NDArray[np.float32]
    """(d,) of the embedded test image."""

    def __init__(self, manifest: Manifest, local: LocalConfig, report: Reporter) -> None:
        super().__init__(manifest, local, report)
        self.check_source()
        self.names = [m.name for m in manifest.founders]
        """Institutions that agree on what all begin with."""
        self.attending = [m.name for m in manifest.institutions]
        """Those whose rows the run has, and who get its result."""
        self.rows_of_all: int | None = None
        """Of all who are in, where not all of the manifest may be."""
        self.without: dict[str, str] = {}
        """Institutions that were left out, and why."""
        self.custodians = [m.name for m in manifest.custodians]
        self.pool = self.workers()

    def workers(self) -> Executor:
        """What encrypts and proves, several rows at a time."""
        return ThreadPoolExecutor(self.local.threads or os.cpu_count() or 1, thread_name_prefix="institution")

    def check_source(self) -> None:
        """Raise unless the local file says where this institution's rows come from."""
        if self.local.data is None or self.local.weights is None:
            raise FocalError(
                f"'{self.me.name}': the local file needs 'data' and 'weights'",
                hint="name the institution's own images and the lower segment's weights",
            )

    def forget_secrets(self) -> None:
        """What was masked for a run that was ended must stay masked: no key of whatever run is left in its folder."""
        forget(*every_key(self.folder))

    def close(self) -> None:
        super().close()
        self.pool.shutdown(cancel_futures=True)

    def idle(self) -> None:
        """Consent to go on without lost custodians, where it takes people's word and a person here has given it."""
        if not self.epochs.pending:
            return
        proposal = self.epochs.proposed[-1]
        lost = tuple(m.name for m in self.manifest.custodians if m.name not in proposal.active)
        wanted = approval.Consent(run_id=self.scope, epoch=proposal, lost=lost)
        topic = f"epoch/{proposal.number}/consent"
        if not self.epochs.needs_people or self.journal.get(f"{self.session}/said/{topic}") is not None:
            return
        if approval.read_consent(self.folder / approval.EPOCH_SIGNED) == wanted:
            self.say(topic, proposal)
            return
        awaited = self.folder / approval.EPOCH_AWAITED
        if approval.read_consent(awaited) != wanted:
            private_write(awaited, wanted.model_dump_json().encode())
            self.report.warn(
                f"{self.me.name}: the others want to go on without {', '.join(lost)}; ask there, and if that is so: "
                f"focal epoch sign {self.folder} {' '.join(lost)}"
            )

    # ----------------------------------------------------------------- the script

    def check_rows(self, count: int) -> None:
        """Raise unless the data set has as many training rows as the manifest declares; a clinic's, no more."""
        if self.me.clinic and 0 < count <= (self.me.rows or 0):
            return
        if count != self.me.rows:
            raise FocalError(
                f"'{self.me.name}': the manifest declares {'at most ' * self.me.clinic}{self.me.rows} training rows, "
                f"the data set has {count}",
                hint="use the data that was declared, or agree on a new manifest (focal manifest new, add, sign)",
            )

    # ----------------------------------------------------------------- features

    def load_data(self, segment: LowerSegment | None, *splits: str) -> Table:
        """The own table, and in the cache the features that ``segment`` gives of the rows of these ``splits``.

        Every file is read once for all this. Raises :class:`FocalError` that names every bad image, or when the table
        is not the one with which the run began.
        """
        from focal.data import load
        from focal.data.begun import check_unchanged
        from focal.data.examine import examine
        from focal.training.features import Learner

        data = self.local.data
        assert data is not None
        agreed = {"classes": self.manifest.classes, "task": self.manifest.task}
        table = load(data.model_copy(update=agreed), self.local.seed)
        with contextlib.ExitStack() as ends:
            learner = None
            if segment is not None:
                rows = np.flatnonzero(np.isin(table.split, splits))
                learner = ends.enter_context(
                    Learner(
                        segment,
                        table,
                        rows,
                        device=self.local.device,
                        cache=self.cache,
                        threads=self.local.threads,
                        progress=self.report.progress,
                    )
                )
            found = examine(table, self.cache, taker=learner)
            # rows that were dealt (data.rows) had their images when they were
            table = found.usable_table(data.bad_images if data.rows is None else "refuse")
            if found.problems:
                self.report.warn(f"{self.me.name}: {len(found.problems)} images cannot be read and are left out")
            check_unchanged(self.folder, table)
            if learner is not None:
                learner.finish()
        return table

    @property
    def cache(self) -> Path:
        """Where features are kept, and what is known of images."""
        return self.local.cache or self.folder / "features"

    def compare_test_features(self) -> None:
        """Everybody runs the same lower segment: the features of the embedded test image agree to 1e-3."""
        from focal.segments.lower import check_test_features

        if not self.me.clinic:
            self.say("test-features", msg.TestFeatures(features=self.test_features.astype("<f4").tobytes()))
        for name, theirs in self.hear_all(self.names, "test-features", msg.TestFeatures).items():
            whole = theirs.features if len(theirs.features) % 4 == 0 else b""
            with refusing("test-features"):
                check_test_features(self.test_features, np.frombuffer(whole, "<f4"), name)

    # ----------------------------------------------------------------- secure sum and projection

    def agree_projection(self, size: int) -> tuple[Projection, Array]:
        """The projection to ``size`` columns, and (C,) rows of each class over all institutions.

        Pooled moments by secure sum; the first institution's projection of them, checked and signed by all.
        """
        m = self.manifest
        dim, bound, ridge = m.lower.dim, m.projection.bound, m.training.ridge
        proj.check_features(size, dim)
        rows = m.founder_rows
        whiten = m.projection.kind == "whiten"
        own = (
            proj.moment_values(self.raw, bound, rows)
            if whiten
            else proj.random_moment_values(self.raw, self.run_id, size, bound, rows)
        )
        opened = self.secure_sum(MOMENTS, tuple(self.names), np.concatenate([own, self.labels.sum(axis=0) / rows]))
        opened, counts = opened[: len(own)], np.rint(opened[len(own) :] * rows)
        if whiten:
            moments = proj.pooled_moments(opened, dim, bound, rows)
        else:
            moments = proj.random_pooled_moments(opened, self.run_id, size, dim, bound, rows)
        self.check_classes(counts, rows)

        key, first, context = self.projection_key(), self.names[0], self._projection_context
        if self.me.name == first:
            with refusing("moments"):
                made = (
                    proj.whiten(moments, size, bound, ridge, m.projection.floor)
                    if whiten
                    else proj.random_projection(moments, self.run_id, size, dim, bound, ridge)
                )
            sealed = self.journal.once(
                f"{self.session}/projection", lambda: seal_for_group(key, made.to_bytes(), context)
            )
            (blob,) = self.share_blobs([sealed], "all")
            self.say("projection/proposed", msg.ProjectionProposed(blob=blob, eta_hex=made.eta_hex))
        projection = self._proposed_projection(key)
        with refusing("moments"):
            if whiten:
                proj.check_whiten(projection, moments, size, bound, ridge, m.projection.floor)
            else:
                proj.check_random(projection, moments, self.run_id, size, dim, bound, ridge)
        mine = self._accepts(projection, key)
        self.say(ACCEPTED, mine)
        self._check_accepted(mine)
        return projection, counts

    def adopt_projection(self, size: int) -> Projection:
        """A clinic's: that which all founders have checked and signed. It cannot check it against pooled moments, of
        which it has no part: it trusts that one of the founders did."""
        m = self.manifest
        proj.check_features(size, m.lower.dim)
        key = self.projection_key()
        projection = self._proposed_projection(key)
        proj.check_frame(projection, m.projection.kind, size, m.lower.dim, m.projection.bound)
        self._check_accepted(self._accepts(projection, key))
        return projection

    @property
    def _projection_context(self) -> bytes:
        return framing.framed(b"focal/projection/sealed/v1", self.run_id)

    def projection_key(self) -> bytes:
        """What the projection is sealed with, for institutions' eyes only: the key of the group that has its moments.
        Clinics must not have that; where there are any, all have another one."""
        everybody = tuple(m.name for m in (*self.manifest.founders, *self.manifest.clinics))  # the first one draws it
        return self._group_key("projection" if self.manifest.clinics else MOMENTS, everybody)

    def _proposed_projection(self, key: bytes) -> Projection:
        first = self.names[0]
        proposed = self.hear(first, "projection/proposed", msg.ProjectionProposed)
        opened = open_for_group(key, self.net.get(proposed.blob), self._projection_context, first)
        projection = Projection.from_bytes(opened)
        if proposed.eta_hex != projection.eta_hex:
            raise Refused("projection", f"'{first}' states another step size than its projection has")
        return projection

    def _accepts(self, projection: Projection, key: bytes) -> msg.ProjectionAccepted:
        """What whoever accepts this projection says, and what uploads repeat."""
        # under the group's key: everybody reads this, and a plain hash would confirm a guess
        self.projection_digest = framing.digest(b"focal/projection/v2", key, projection.to_bytes()).hex()
        return msg.ProjectionAccepted(digest=self.projection_digest, eta_hex=projection.eta_hex)

    def _check_accepted(self, mine: msg.ProjectionAccepted) -> None:
        for name, theirs in self.hear_all(self.names, ACCEPTED, msg.ProjectionAccepted).items():
            if theirs != mine:
                raise Refused(
                    "projection",
                    f"'{name}' accepted another projection: '{self.names[0]}' or the server told us different things",
                )

    def secure_sum(
        self, label: str, names: tuple[str, ...], values: Array, fraction_bits: int = fixed.FRACTION_BITS
    ) -> Array:
        """The sum over the institutions ``names``. Made once, committed before it is shown,
        used only when all signed the same digest.

        Raises :class:`Refused`: ``commitment`` (a contribution is not what was committed to), ``participants``,
        ``sum``, ``second-list``. ``fraction_bits``: of a value on its way (:mod:`focal.sums.fixed`); 0 for counts.
        """
        masked = MaskedSum(
            self.run_id,
            label,
            self.me.name,
            names,
            self.identity.seal_secret,
            {m.name: bytes.fromhex(m.seal) for m in self.manifest.institutions},
            self._group_key(label, names),
        )
        own = self.journal.once(
            f"{self.session}/sum/{label}",
            lambda: self.blobs.put(masked.contribution(fixed.encode(values, fraction_bits))).encode(),
        ).decode()
        # Whoever contributed last could choose the sum by adding up the others' contributions first:
        # nobody shows one before all are bound.
        round = f"sum/{label}"
        salt, commits = self.commit(
            round, list(names), contribution_digest(names, own), lambda c: msg.SumCommit(label=label, commitment=c)
        )
        self.send_stored([own], "all")
        self.say(
            f"{round}/contribution", msg.SumContribution(label=label, participants=names, blob=own, salt=salt.hex())
        )
        contributions = {}
        for name, theirs in self.hear_all(names, f"{round}/contribution", msg.SumContribution).items():
            if (theirs.label, theirs.participants) != (label, names):
                raise Refused(
                    "participants",
                    f"'{name}' contributed to a sum of other participants ({', '.join(theirs.participants)})",
                )
            check_opens(self.scope, round, name, commits[name], theirs.salt, contribution_digest(names, theirs.blob))
            contributions[name] = self.fetch(theirs.blob)
        opened = masked.open(contributions)
        digest = masked.digest(opened).hex()
        self.say(f"sum/{label}/opened", msg.SumOpened(label=label, digest=digest))
        for name, theirs_ in self.hear_all(names, f"sum/{label}/opened", msg.SumOpened).items():
            if theirs_.digest != digest:
                raise Refused("sum", f"'{name}' opened another sum: the server showed us different contributions")
        return fixed.decode(opened, fraction_bits)

    def _group_key(self, label: str, names: tuple[str, ...]) -> bytes:
        """The group mask's key: drawn by the first participant, sealed to each of the others;
        the server never has it."""
        topic = f"sum/{label}/group-key"
        context = group_key_context(self.run_id, label, names)
        first = self.manifest.member(names[0])
        if self.me.name == first.name:
            key = self.journal.once(f"{self.session}/{topic}", new_group_key)
            if not self.repeat(topic):
                sealed = {n: self.identity.seal(self.manifest.member(n), key, context) for n in names[1:]}
                self.say(topic, msg.SumGroupKey(label=label, sealed=sealed))
            return key
        box = self.hear(first.name, topic, msg.SumGroupKey).sealed.get(self.me.name)
        if box is None:
            raise ProtocolError(f"'{first.name}' sealed no group key for us")
        return self.identity.unseal(first, box, context)

    def check_classes(self, positives: Array, rows: int) -> None:
        """Is there something to learn over all ``rows`` together?"""
        classes = scored_classes(self.manifest.classes, self.manifest.task)
        empty = [c for c, n in zip(classes, positives, strict=True) if not 0 < n < rows]
        if len(empty) == len(classes) or (self.manifest.task == "multiclass" and len(empty) >= len(classes) - 1 > 0):
            raise Refused(
                "one-class",
                "all training rows of all institutions have the same label",
                hint="there is nothing to learn: check the labels, or bring rows of a second class",
            )
        if empty:
            self.report.warn(
                f"no institution has training rows that tell class {', '.join(empty)} apart; "
                "its column of the model will mean nothing"
            )

    # ----------------------------------------------------------------- encryption

    def joint_keys(self) -> msg.JointKeys:
        """The joint keys, as every single custodian signed them and the server uses them."""
        signed = self.hear_all([*self.custodians, self.manifest.server.name], "keys/joint", msg.JointKeys)
        joint = signed[self.custodians[0]]
        for name, theirs in signed.items():
            if theirs != joint:
                raise ceremony.disagreement(name)
        return joint

    # ----------------------------------------------------------------- the result

    def opened_slots(self, answers: dict[str, msg.ReleaseShares], count: int) -> list[Slots]:
        """Open the sealed shares of every custodian, add them up, decode:
        slots of each of ``count`` released ciphertexts."""
        lead, *_ = answers
        first, epoch = answers[lead], self.epochs.at("release/shares")
        size = codec.size(self.scheme, codec.DECRYPTION)
        opened: dict[str, bytes] = {}
        for name, answer in answers.items():
            if (answer.items, answer.ciphertexts) != (first.items, first.ciphertexts) or len(answer.items) != count:
                raise ProtocolError(f"'{name}' released another ciphertext than '{lead}'")
            if self.me.name not in answer.sealed:
                raise ProtocolError(f"'{name}' sealed no share for us")
            context = release.sealed_context(self.me.name, epoch.seed)
            opened[name] = self.identity.unseal(
                self.manifest.member(name), self.net.get(answer.sealed[self.me.name]), context
            )
            if len(opened[name]) != size * count:
                raise ProtocolError(f"'{name}' sealed shares of another length")
        return [
            release.open_slots(self.scheme, [(name, data[u * size : (u + 1) * size]) for name, data in opened.items()])
            for u in range(count)
        ]

    def save_head(self, head: UpperHead) -> None:
        """Write ``model.pt``: the head, and which run, classes and lower segment it belongs to."""
        from focal.segments.upper import ModelMeta, save

        m = self.manifest
        meta = ModelMeta(
            dataset=m.dataset,
            classes=m.classes,
            task=m.task,
            lower=m.lower,
            weights=str(self.local.weights),
            run_id=self.scope,
            manifest_hash=m.hash.hex(),
            interactive=m.interactive,
        )
        save(self.folder / "model.pt", head, meta)

    def score(self) -> None:
        """The released model on own test rows; with ``pooled_roc`` also on those of all institutions together."""
        labels, outputs, groups = self.test_outputs()
        self._score(labels, outputs, groups)
        if self.manifest.pooled_roc:
            self._pool_scores(labels, outputs)

    def _pool_scores(self, labels: NDArray[np.uint8], outputs: Array) -> None:
        """One ROC curve over everybody's test rows: each adds its histogram, nobody shows a score."""
        from focal.measure import histogram

        self.enter("release")
        self.add_counts(histogram.with_subgroups(labels, outputs, self.manifest.task, self.test_subgroups(len(labels))))

    def add_counts(self, counts: NDArray[np.int64]) -> None:
        """Add the own counts (1 + S, C, 2, BINS) to everybody's, who are there at one time."""
        self.report.waiting(self.attending, "histograms of everybody's test rows, for the ROC curve over all of them")
        total = self.secure_sum(HISTOGRAM, tuple(self.attending), counts.ravel().astype(float), 0)
        told = self.write_pooled(total, self.attending)
        if self.me.name == self.attending[0]:  # the others have the same
            self.report.say(told)

    def write_pooled(self, total: Array, present: Sequence[str]) -> str:
        """Write the curves over the rows of these institutions, from the sum of their counts; returns what to tell."""
        from focal.measure import declared, histogram

        m, names = self.manifest, scored_classes(self.manifest.classes, self.manifest.task)
        groups = [one.name for one in declared.subgroups(m.pooled_by)]
        everybody, *others = map(histogram.pooled_roc, histogram.parts_of_sum(total, len(names), len(groups)))
        clinics, by_name = sum(x.name in present for x in m.clinics), dict(zip(groups, others, strict=True))
        return histogram.write_pooled(everybody, names, len(present), self.folder, clinics, by_name)

    def test_subgroups(self, rows: int) -> NDArray[np.bool_]:
        """(S, n): is each of the ``rows`` own test rows in each subgroup that the manifest declares?"""
        return np.zeros((0, rows), bool)

    def _score(self, labels: NDArray[np.uint8], outputs: Array, groups: NDArray[np.str_]) -> None:
        """This site's own summary."""
        if not len(labels):
            self.report.warn(f"{self.me.name}: no test rows, so no score of its own")
            return
        from focal.measure.scores import score_outputs
        from focal.measure.summary import build_summary, write_summary

        reported = self.hear(self.manifest.server.name, "traffic", msg.Traffic).bytes
        try:
            auroc, interval = score_outputs(labels, outputs, groups, self.manifest.task, seed=self.local.seed)
        except FocalError as e:  # few test rows, or one class only: the model is there all the same
            self.report.warn(f"{self.me.name}: no score of its own: {e.message}")
            return
        facts = self.plan.facts(self.manifest, self.scheme)
        if self.rows_of_all is not None:
            facts["params"]["rows"] = self.rows_of_all
        facts["left_out"] = self.without
        traffic: dict[str, Any] = {**reported, self.me.name: merge(self._before, self.net.traffic)}
        summary = build_summary(
            protocol=self.manifest.protocol,
            dataset=self.manifest.dataset,
            auroc=auroc,
            auroc_ci95=interval,
            seconds={**phase_seconds(self.folder), "total": sum(span["seconds"] for span in timeline(self.folder))},
            traffic=traffic,
            **facts,
        )
        write_summary(summary, self.folder)

    @abc.abstractmethod
    def test_outputs(self) -> tuple[NDArray[np.uint8], Array, NDArray[np.str_]]:
        """Own test rows: labels (n, K), the released model's linear outputs (n, C), patients (n,)."""
