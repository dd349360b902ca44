"""A whole consortium in this process: arrays in, weights out.

::

    {name: (features, labels)} --> manifest, identities, local files in a temporary folder
                                     |
        every role a thread (focal.protocols.together): keys, secure sum, projection, encrypted training, release
                                     |
    Simulated  <-- weights, projection, what the run was, its plaintext twin

Everything is encrypted as between hospitals and computed by the same code; only nobody is kept from anything, for all
is in one memory.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from focal.config import CkksConfig, ConsortiumConfig, LayoutConfig, LocalConfig, ProjectionConfig, TrainingConfig
from focal.errors import FocalError
from focal.manifest import LayoutSpec, LowerSpec, Manifest
from focal.net.identity import Identity, sign_manifest
from focal.protocols import of
from focal.protocols.blind import plan
from focal.protocols.blind.institution import BlindInstitution
from focal.protocols.common.facts import phase_seconds
from focal.protocols.common.progress import Reporter
from focal.protocols.common.server import Server
from focal.protocols.together import Make, Together
from focal.runs.provision import half_of_memory, members
from focal.segments.projection import Projection
from focal.task import Task, infer, outcomes
from focal.telling import Show

Array = NDArray[np.float64]
WIDTHS: tuple[int, ...] = get_args(ProjectionConfig.model_fields["features"].annotation)
"""What R may be."""


@dataclass(frozen=True, eq=False)
class Simulated:
    """What a simulated run leaves: the released weights, and what is needed to use and to judge them."""

    weights: Array
    """(R, C), as the institutions decoded them."""
    twin: Array
    """(R, C), of the same training in plaintext."""
    projection: Projection
    """From features to the R columns that were encrypted."""
    task: Task
    facts: dict[str, Any]
    """Rows, steps, parameters, security, release, guard, seconds by phase, bytes by member: as in ``summary.json``."""
    width: int
    """Features that were given."""

    def outputs(self, features: ArrayLike) -> Array:
        """(n, C) linear outputs of the released head: the larger, the likelier; C = 1 where there are two classes."""
        rows = np.asarray(features, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise FocalError(f"features have shape {rows.shape}, this model takes (rows, {self.width})")
        return self.projection.apply(_widened(rows, self.projection.dim)) @ self.weights


def simulate(
    institutions: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    custodians: int = 3,
    steps: int = 5,
    features: int | None = None,
    bound: float = 32.0,
    ridge: float = 0.1,
    degree: Literal[3, 5, 7] = 3,
    projection: Literal["whiten", "random"] = "whiten",
    verify: Literal["first", "all", "none"] = "first",
    folder: Path | None = None,
    show: Show = lambda event: None,
) -> Simulated:
    """Train one head on the encrypted rows of several institutions, all parties in this process (blind protocol).

    Example::

        import numpy as np
        import focal

        rng = np.random.default_rng(0)
        def hospital(n):
            features = rng.normal(size=(n, 40))
            return features, (features[:, 0] + features[:, 1] > 0).astype(int)

        run = focal.simulate({"a": hospital(60), "b": hospital(80), "c": hospital(40)}, custodians=2, steps=2)
        print(run.weights.shape, abs(run.weights - run.twin).max())
        scores = run.outputs(rng.normal(size=(5, 40)))

    Args:
        institutions: name -> (features (n, d), labels). Labels are class numbers (n,), or a 0/1 matrix (n, C) of labels
            that do not exclude each other. At least three institutions. Fewer features than R - 1 are filled by zeros.
        features: R, the columns that are encrypted, the bias among them; default 64, or 32 where d is below 63.
        bound: features are clipped to [-bound, bound]; give them on a scale where that cuts little.
        verify: which custodians re-run every step; the first of them is the guard.
        folder: keep every party's folder there; default: a temporary one that is deleted.
        show: receives every event of every party (:mod:`focal.protocols.common.progress`).

    Raises:
        FocalError: arrays that do not fit, fewer than three institutions, NaN, labels of one class.
        ConfigError: a setting that is not allowed.
    """
    begun = time.monotonic()
    rows, classes, task, width = _checked(institutions)
    size = features if features is not None else WIDTHS[1] if width >= WIDTHS[1] - 1 else WIDTHS[0]
    if size not in WIDTHS:
        raise FocalError(f"features is {size}, it must be one of {', '.join(map(str, WIDTHS))}")
    rows = {name: (_widened(x, size - 1), y) for name, (x, y) in rows.items()}
    with tempfile.TemporaryDirectory(prefix="focal-") as temporary:
        home = folder if folder is not None else Path(temporary)
        manifest, files = _agreed(
            home,
            {name: len(x) for name, (x, _) in rows.items()},
            max(width, size - 1),
            classes,
            task,
            ConsortiumConfig(institutions=tuple(rows), custodians=custodians, verify=verify),
            ProjectionConfig(kind=projection, features=size, bound=bound),
            TrainingConfig(steps=steps, ridge=ridge, degree=degree),
        )
        make: dict[str, Make] = {n: partial(ArrayInstitution, manifest, *arrays) for n, arrays in rows.items()}
        with Together(manifest, files, show, make) as parties:
            try:
                parties.start()
                parties.finish()
                return _result(manifest, parties, home, width, time.monotonic() - begun)
            finally:
                parties.stop()
                server = parties.parties.get(manifest.server.name)
                if isinstance(server, Server) and "scheme" in server.__dict__:
                    server.scheme.forget()


class ArrayInstitution(BlindInstitution):
    """An institution whose rows are arrays in this process: no images, no lower segment, no model file in the end."""

    def __init__(
        self,
        manifest: Manifest,
        features: NDArray[np.float32],
        labels: NDArray[np.uint8],
        local: LocalConfig,
        report: Reporter,
    ) -> None:
        super().__init__(manifest, local, report)
        self.raw, self._given = features, labels
        self.tested = features[:0], labels[:0]
        """Features and labels (n, K) of own test rows; ``columns`` are theirs."""

    def check_source(self) -> None:
        """The rows were given."""

    def prepare(self) -> None:
        self.check_rows(len(self.raw))
        self.labels = outcomes(self._given, self.manifest.task)

    def compare_test_features(self) -> None:
        """There is no lower segment to compare."""

    def _save_model(self) -> None:
        """The weights stay in memory."""

    def score(self) -> None:
        """Test rows are for the curve over all sites."""
        if self.manifest.pooled_roc:
            labels, outputs, _ = self.test_outputs()
            self._pool_scores(labels, outputs)

    def test_outputs(self) -> tuple[NDArray[np.uint8], Array, NDArray[np.str_]]:
        features, labels = self.tested
        return labels, self.projection.apply(features) @ self.weights, np.arange(len(labels)).astype(str)


# --------------------------------------------------------------------------- before the run


def _checked(
    institutions: Mapping[str, tuple[ArrayLike, ArrayLike]],
) -> tuple[dict[str, tuple[NDArray[np.float32], NDArray[np.uint8]]], tuple[str, ...], Task, int]:
    """Rows with (n, K) labels, class names, the task, and how many features there are."""
    if len(institutions) < 3:
        raise FocalError(
            f"{len(institutions)} institutions are too few: with two, each would learn the other's moments; give three"
        )
    given = {name: (np.asarray(x), np.asarray(y)) for name, (x, y) in institutions.items()}
    for name, (x, y) in given.items():
        if x.ndim != 2 or not len(x) or x.dtype.kind not in "fiu":
            raise FocalError(
                f"'{name}': features have shape {x.shape} and type {x.dtype}, not numbers of shape (rows, features)"
            )
        with np.errstate(over="ignore"):
            finite = np.isfinite(x.astype(np.float32)).all()
        if not finite:
            raise FocalError(f"'{name}': features hold NaN or numbers that float32 cannot hold")
        if len(y) != len(x) or y.ndim not in (1, 2):
            raise FocalError(
                f"'{name}': labels have shape {y.shape} for {len(x)} rows, they must have (rows,) or (rows, classes)"
            )
        if (
            y.dtype.kind not in "biuf"
            or (y.astype(np.int64) != y).any()
            or (y < 0).any()
            or (y.ndim == 2 and (y > 1).any())
        ):
            raise FocalError(f"'{name}': labels must be class numbers 0, 1, 2, ..., or a matrix of 0 and 1")
    widths, forms = {x.shape[1] for x, _ in given.values()}, {y.shape[1:] for _, y in given.values()}
    if len(widths) > 1 or len(forms) > 1:
        what, found = ("numbers of features", widths) if len(widths) > 1 else ("forms of labels", forms)
        raise FocalError(f"the institutions have different {what}: {', '.join(sorted(map(str, found)))}")
    (form,), (width,) = forms, widths
    count = form[0] if form else 1 + max(int(y.max()) for _, y in given.values())
    if count < 2:
        raise FocalError("labels tell fewer than two classes apart: there is nothing to learn")
    rows = {
        name: (x.astype(np.float32), y.astype(np.uint8) if form else np.eye(count, dtype=np.uint8)[y.astype(np.int64)])
        for name, (x, y) in given.items()
    }
    return rows, tuple(str(c) for c in range(count)), infer(count, several=bool(form)), width


def _widened(x: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """``x`` with columns of zeros up to ``width``: they have no variance, and no weight comes of them."""
    return np.pad(x, ((0, 0), (0, max(0, width - x.shape[1]))))


def _agreed(
    home: Path,
    rows: dict[str, int],
    dim: int,
    classes: tuple[str, ...],
    task: Task,
    consortium: ConsortiumConfig,
    projection: ProjectionConfig,
    training: TrainingConfig,
) -> tuple[Manifest, dict[str, LocalConfig]]:
    """The manifest, signed by all, and everybody's local file."""
    names = ["server", *consortium.custodian_names(), *rows]
    cores = os.cpu_count() or 1
    files, identities = {}, {}
    for name in names:
        identities[name] = Identity.new(name)
        keys = home / name / "identity.json"
        identities[name].save(keys)
        threads = max(1, cores // len(rows)) if name in rows else cores
        files[name] = LocalConfig(name=name, keys=keys, state=home / name, threads=threads)
    lower = LowerSpec(
        family="timm", model="arrays", cut="none", image_size=0, interpolation="bilinear",
        mean=(0, 0, 0), std=(1, 1, 1), weights_sha256="0" * 64, dim=dim,
    )  # fmt: skip
    manifest = Manifest(
        name="simulation",
        dataset="arrays",
        members=members(consortium, identities, rows, "tcp://127.0.0.1:1"),  # nobody dials it
        classes=classes,
        task=task,
        lower=lower,
        projection=projection,
        training=training,
        ckks=CkksConfig(),
        layout=LayoutSpec(class_lanes=1, feature_lanes=1),
        share_blocks=consortium.share_blocks,
        closing=consortium.closing,
        pooled_roc=consortium.pooled_roc,
        pooled_by=consortium.pooled_by,
        pooled_until=consortium.pooled_until,
        pooled_least=consortium.pooled_least,
    )
    # making, adding up and installing a key costs about what sending it on a slow link does
    manifest, _ = of(manifest).plan.settled(manifest, LayoutConfig(), half_of_memory())
    for name in (n for n in identities if n not in consortium.clinics):
        manifest = sign_manifest(manifest, identities[name])
    return manifest, files


# --------------------------------------------------------------------------- after it


def _result(manifest: Manifest, parties: Together, home: Path, width: int, seconds: float) -> Simulated:
    institutions = [p for p in parties.parties.values() if isinstance(p, ArrayInstitution)]
    server = parties.parties[manifest.server.name]
    assert isinstance(server, Server)
    first = institutions[0]
    if not all(np.array_equal(first.weights, other.weights) for other in institutions):
        raise FocalError("the institutions decoded different weights from the same shares", hint="report this")
    ordered = [parties.parties[m.name] for m in manifest.institutions]
    columns = np.concatenate([first.projection.apply(p.raw) for p in ordered if isinstance(p, ArrayInstitution)])
    labels = np.concatenate([p.labels for p in ordered if isinstance(p, ArrayInstitution)])
    exact = plan.trained_in_clear(manifest, first.projection.eta, columns, labels)
    facts = of(manifest).plan.facts(manifest, first.scheme)
    facts["params"].pop("lower")  # there is none
    facts |= {
        "protocol": manifest.protocol,
        "run_id": first.scope,
        "rows": manifest.row_counts,
        "max_abs_weight_error": float(np.abs(first.weights - exact).max()),
        "seconds": {**phase_seconds(home / server.me.name), "total": seconds},
        "bytes": server.members_traffic(),
    }
    return Simulated(first.weights, exact, first.projection, manifest.task, facts, width)
