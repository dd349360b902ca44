"""An institution of a blind run: its images stay, encrypted projections of its features go once, and a model comes back.

::

    images --lower segment--> features --secure sum--> moments --> projection --> columns --encrypt--> server
    (stay)                    (stay)      (masked)      (pooled)    (agreed)      (stay)    (CKKS)
                                                                     ... training needs nothing from here ...
    released weights <--add up, decode-- sealed decryption shares of every custodian

After the upload it may go offline; the sealed result waits at the server.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from focal.ckks import codec
from focal.ckks.scheme import Scheme
from focal.config import DatasetConfig
from focal.custody import keys
from focal.data.rows import InstitutionRows, write_kept
from focal.files import private_write
from focal.heads import released
from focal.heads.linear.engine import chunk_kind
from focal.net import messages as msg
from focal.protocols.blind import plan, uploads
from focal.protocols.common import ceremony
from focal.protocols.common.institution import PROJECTION, Array, Institution
from focal.segments import projection as proj
from focal.task import outcomes


class BlindInstitution(Institution):
    """``run()`` takes part in one blind run from the features to the model; interrupted, the same call continues it."""

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
            self.projection, _ = self.agree_projection(self.manifest.projection.features)
        with self.report.phase("upload"):
            self.enter("keys")
            joint = self.joint_keys()
            self.enter("upload")
            self._upload(joint)
        with self.report.phase("train"):
            self.enter("release")
            answers = self.hear_all(self.custodians, "release/shares", msg.ReleaseShares)
        with self.report.phase("release"):
            self._receive(answers)
        with self.report.phase("score"):
            self.score()
        self.finish()
        self.keep_traffic()

    # ----------------------------------------------------------------- features

    def _features(self) -> tuple[InstitutionRows, NDArray[np.float32]]:
        # torch is imported here, not above: the command line checks keys, manifest and link before it takes seconds
        from focal.data import load
        from focal.segments.lower import build_lower, test_image_features
        from focal.training.features import compute_features

        assert self.local.data is not None and self.local.weights is not None
        spec = self.manifest.lower
        config: DatasetConfig = self.local.data.model_copy(update={"classes": self.manifest.classes, "task": self.manifest.task})
        table = load(config, self.local.seed)
        segment, source = build_lower(spec, self.local.weights)
        self.report.say(f"{self.me.name}: lower segment {spec.model}, {source}")
        cache = self.local.cache or self.folder / "features"
        wanted = np.flatnonzero(np.isin(table.split, ("train", "test")))
        features = compute_features(segment, table, wanted, device=self.local.device, cache=cache, progress=self.report.progress)
        rows = InstitutionRows(features, table.labels[wanted], table.groups[wanted], table.split[wanted])
        return rows, test_image_features(segment)

    # ----------------------------------------------------------------- encryption

    def _upload(self, joint: msg.JointKeys) -> None:
        """Encrypt every chunk once, store it, commit to the one list of them; when all have committed, send and sign it."""
        self.scheme = scheme = Scheme(self.manifest.ckks, self.scope)
        layout = plan.layout(self.manifest)
        public = keys.joint_public_key(scheme, self.run_id, self.net.get(joint.public))
        start, stop = plan.row_table(self.manifest, layout)[self.me.name]
        columns, targets = self.projection.apply(self.raw), 0.5 - self.labels.astype(np.float64)
        places = layout.chunks(start, stop)

        def chunk(i: int) -> bytes:
            block, what, g, h = places[i]
            values = columns if what == "data" else targets
            rows = layout.block_of(values, start, block)
            slots = layout.data_slots(rows, g, h) if what == "data" else layout.target_slots(rows, g)
            kind = chunk_kind(what)
            return self.blobs.put(codec.encrypt(scheme, public, slots, kind)).encode()

        digests = []
        for digest in self.pool.map(lambda i: self.journal.once(f"{self.session}/chunk/{i}", lambda: chunk(i)), range(len(places))):
            digests.append(digest.decode())
        nothing = "0" * 64
        body = msg.Upload(
            joint_keys=ceremony.joint_digest(joint),
            projection=self.projection_digest,
            eta_hex=self.projection.eta_hex,
            rows=stop - start,
            first_row=start,
            chunks=tuple(digests),
            salt=nothing,
            committed=nothing,
        )
        # whoever is in league with a custodian could otherwise make its rows of ours: nothing leaves before all are bound to theirs
        salt, commits = self.commit("upload", self.names, uploads.upload_digest(body), lambda c: msg.UploadCommit(commitment=c))
        self.send_stored(digests, "custodians")
        self.say("upload", body.model_copy(update={"salt": salt.hex(), "committed": uploads.commitments_digest(commits)}))
        self.report.say(
            f"{self.me.name}: uploaded {len(digests)} ciphertexts; the rest needs nothing from here, the result can be fetched later"
        )

    # ----------------------------------------------------------------- the result

    def _receive(self, answers: dict[str, msg.ReleaseShares]) -> None:
        """The model from every custodian's sealed shares."""
        layout = plan.layout(self.manifest)
        self.weights = released.weights(layout, self.opened_slots(answers, layout.class_groups))
        self._save_model()

    def _save_model(self) -> None:
        from focal.segments.upper import UpperHead

        self.save_head(UpperHead.from_projection(self.projection, self.weights, self.manifest.task))
        private_write(self.folder / PROJECTION, self.projection.to_bytes())
        write_kept(self.folder, self.rows, self.weights)

    def test_outputs(self) -> tuple[NDArray[np.uint8], Array, NDArray[np.str_]]:
        """Own test rows: labels (n, K), the released model's linear outputs (n, C), patients (n,)."""
        own = self.rows.take(self.rows.split == "test")
        return own.labels, self.projection.apply(own.features) @ self.weights, own.groups
