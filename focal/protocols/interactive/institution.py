"""An institution that fine-tunes: its Lightning module runs the lower segment,
the upper one is encrypted somewhere else.

::

    images --lower segment, bottleneck--> activations --EncryptedUpper--> own logits --loss--> derivatives --> gradients
    (stay)            ^  (trains)                                                                                 |
                      `----------------------------- AdamW, averages by secure sum -------------------------------'

In the end it has the averaged lower segment, and the head from the custodians' sealed shares.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from focal.ckks.scheme import Scheme
from focal.config import InteractiveConfig, LocalConfig
from focal.errors import FocalError
from focal.extras import require
from focal.files import private_write
from focal.heads.linear.layout import WEIGHT_SCALE
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.protocols.common import ceremony
from focal.protocols.common.institution import MOMENTS, PROJECTION, Array, Institution
from focal.protocols.common.progress import Reporter
from focal.protocols.interactive import plan
from focal.task import class_counts, outcomes

if TYPE_CHECKING:
    from focal.protocols.interactive.beginning import Beginning
    from focal.protocols.interactive.upper import EncryptedUpper


class JointInstitution(Institution):
    """``run()`` takes part in one interactive run; interrupted, the same call continues it after
    the last finished step."""

    def __init__(self, manifest: Manifest, local: LocalConfig, report: Reporter) -> None:
        super().__init__(manifest, local, report)
        self.round: int | None = None
        """The averaging round that is under way here."""

    def prepare(self) -> None:
        """Before anybody is spoken to: own data, lower segment, what trains of it."""
        from focal.segments.lower import build_lower, features_of_test_image
        from focal.segments.trainable import TrainableSegment
        from focal.training.features import compute_features

        m, config = self.manifest, self.config
        assert self.local.weights is not None
        if self.local.logger == "tensorboard":
            require("study", "logger: tensorboard")
        with self.report.phase("features"):
            lower, source = build_lower(m.lower, self.local.weights)
            begun = self._start() if m.start is not None else None
            self.table = self.load_data(lower if begun is None else None, "train")
            self.train_rows = np.flatnonzero(self.table.split == "train")
            self.check_rows(len(self.train_rows))
            self.labels = outcomes(self.table.labels[self.train_rows], m.task)
            self.test_features = features_of_test_image(lower)
            self.base = begun.base if begun else None
            self.segment = TrainableSegment(lower, config, begun.projection if begun else None, seed=config.seed)
            if begun is None:
                self.raw = compute_features(
                    lower,
                    self.table,
                    self.train_rows,
                    device=self.local.device,
                    cache=self.cache,
                    threads=self.local.threads,
                )
            elif begun.trained:
                self.segment.load_trained(begun.trained)
            size = self.segment.check_average(config.max_average_mb)
            received = size * (len(self.names) - 1)
            self.report.say(
                f"{self.me.name}: lower segment {m.lower.model}, {source}; "
                f"{self.segment.count} parameters train ({config.trainable}); every {config.average_every} steps an "
                f"average sends {size / 1e6:.1f} MB and receives {received / 1e6:.1f} MB"
            )

    @property
    def config(self) -> InteractiveConfig:
        """The interactive settings, with as many steps as this key's openings allow and the own batch."""
        return plan.schedule(self.manifest).model_copy(update={"batch": plan.batch(self.manifest, self.me.name)})

    def _start(self) -> Beginning:
        """What the run takes from the released model that the manifest pins."""
        from focal.protocols.interactive.beginning import beginning
        from focal.segments.upper import released_digest

        if self.local.start is None:
            raise FocalError(
                f"'{self.me.name}': the manifest starts from a released model, the local file names none",
                hint="set 'start' in the local file to the folder of that run",
            )
        if released_digest(self.local.start) != self.manifest.start:
            raise FocalError(
                f"'{self.me.name}': {self.local.start} is not the released model that the manifest starts from",
                hint="use the model of the run that the consortium agreed on",
            )
        return beginning(self.local.start, self.config)

    # ----------------------------------------------------------------- the script

    def run(self) -> None:
        self.enter("keys")
        self.agree_run()
        with self.report.phase("moments"):
            self.enter("moments")
            self.compare_test_features()
            counts = self.agree_start()
        with self.report.phase("keys"):
            self.enter("keys")
            joint = self.joint_keys()
        with self.report.phase("train"):
            self.enter("upload")
            self._fine_tune(joint, counts)
        with self.report.phase("release"):
            self.enter("release")
            self._receive(self.through_epochs(self._released))
        with self.report.phase("score"):
            self.score()
        self.finish()
        self.keep_traffic()

    def _released(self) -> dict[str, msg.ReleaseShares]:
        return self.hear_all(self.active("release/shares"), "release/shares", msg.ReleaseShares)

    def agree_start(self) -> Array:
        """(C,) rows of each class over all institutions; where no model is given to start from, also the bottleneck:
        a blind projection."""
        if self.base is None:
            from focal.segments.trainable import Bottleneck

            projection, counts = self.agree_projection(self.config.features)
            self.segment.bottleneck = Bottleneck.from_projection(projection)
            private_write(self.folder / PROJECTION, projection.to_bytes())
            return counts
        counts = np.rint(
            self.secure_sum(MOMENTS, tuple(self.names), self.labels.sum(axis=0) / self.manifest.rows)
            * self.manifest.rows
        )
        self.check_classes(counts, self.manifest.rows)
        return counts

    def _fine_tune(self, joint: msg.JointKeys, counts: Array) -> None:
        """Every joint step that is still to come, under an encrypted head."""
        from focal.protocols.interactive.upper import EncryptedUpper

        self.scheme = scheme = Scheme(self.manifest.ckks, self.scope)
        upper, start = EncryptedUpper(self, scheme, ceremony.joint_digest(joint)), time.time()
        try:
            self.fine_tune(upper, counts)
        finally:
            self.report.spent("upload", start, upper.on_the_wire)
        upper.keys.forget()

    def fine_tune(self, upper: EncryptedUpper, counts: Array) -> None:
        """Every joint step that is still to come, under Lightning. ``counts``: rows with each outcome
        over all institutions."""
        import torch

        from focal.training.split import Based, Batches, Loss, SplitSegment, fit

        if self.local.threads:
            torch.set_num_threads(self.local.threads)  # focal.ckks limits OpenMP, and with it torch, to one
        task, rows, config = self.manifest.task, self.manifest.rows, self.config
        under = upper if self.base is None else Based(upper, self.base)
        loss = Loss(task, class_counts(counts, rows, task), config)
        module = SplitSegment(self.segment, under, loss, config, rows=len(self.train_rows))
        first, parameters = upper.joining()
        fit(
            module,
            Batches(self.table, self.train_rows, self.manifest.lower, config, name=self.me.name, seed=config.seed),
            folder=self.folder / "lightning",
            start_step=first,
            parameters=parameters,
            device=self.local.device,
            loggers=self._loggers(),
            precision=self.local.precision,
        )
        self.segment.cpu()

    def _loggers(self) -> list[Any]:
        """Those beside Lightning's CSV files."""
        if self.local.logger == "csv":
            return []
        from lightning.pytorch.loggers import TensorBoardLogger

        return [TensorBoardLogger(self.folder / "lightning", name="tensorboard")]

    def idle(self) -> None:
        """An averaging round may be closed without a result while this institution waits in it."""
        super().idle()
        from focal.protocols.interactive.upper import Abandoned

        server, topic = self.manifest.server.name, f"average/{self.round}/closed"
        if (
            self.round is not None
            and self.said(server, topic)
            and not self.heard.get(self.scope, server, topic, msg.AverageClosed).done
        ):
            raise Abandoned

    # ----------------------------------------------------------------- the result

    def _receive(self, answers: dict[str, msg.ReleaseShares]) -> None:
        """The head and its velocity from the sealed shares, and the model with the averaged lower segment."""
        layout, steps = plan.layout(self.manifest), plan.total(self.manifest)
        slots = self.opened_slots(answers, min(2, steps))
        read = [layout.read_weights(s) / WEIGHT_SCALE for s in slots]
        velocity = read[-1] - (read[-2] if steps > 1 else 0.0)
        self.weights = read[-1]
        if self.base is not None:
            self.weights = self.weights + self.base.at(steps)
            velocity = velocity + self.base.at(steps) - self.base.at(steps - 1)
        self.velocity = velocity
        self._save_model()

    def _save_model(self) -> None:
        from focal.protocols.interactive.beginning import VELOCITY

        head = self.segment.head(self.weights, self.manifest.task)
        head.trained = {name: p.detach() for name, p in self.segment.trained().items() if name.startswith("lower.")}
        self.save_head(head)
        with open(os.open(self.folder / VELOCITY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as f:
            np.save(f, self.velocity)

    def test_outputs(self) -> tuple[NDArray[np.uint8], Array, NDArray[np.str_]]:
        held = np.flatnonzero(self.table.split == "test")
        outputs = self._outputs(held) if len(held) else np.empty((0, self.manifest.outputs))
        return self.table.labels[held], outputs, self.table.groups[held]

    def _outputs(self, rows: NDArray[np.int64]) -> Array:
        """(n, C) linear outputs of the released model on own rows."""
        import torch

        from focal.segments.upper import load, lower_segment
        from focal.training.features import compute_features

        head, meta = load(self.folder)
        lower = lower_segment(meta, self.local.weights, head.trained)
        raw = compute_features(
            lower,
            self.table,
            rows,
            device=self.local.device,
            cache=self.folder / "features",
            threads=self.local.threads,
        )
        return head(torch.from_numpy(raw)).double().numpy()
