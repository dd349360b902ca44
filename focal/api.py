"""What FOCAL does, as functions; :mod:`focal` offers them. ``focal train``, ``evaluate``, ``predict``, ``explain``,
``report`` and ``audit`` are calls of the function of that name and print what it returns. ``focal simulate`` is not:
the function takes arrays, the command makes up a crowd of clinics (:mod:`focal.runs.crowd`).

A run is given as its folder, or as the :class:`Run` that :func:`train` returned. Nothing here writes to the
terminal: whoever wants to see how far a call is gives it a function, ``say`` for lines worth reading,
``progress(done, total)`` for a bar. What cannot be done, because a file is missing or a package is not installed, is
a :class:`FocalError` that says so in a line or two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from focal import configs
from focal.config import RunConfig as RunConfig
from focal.config import weights_file
from focal.errors import FocalError as FocalError
from focal.extras import require
from focal.manifest import Manifest
from focal.reading import read
from focal.runs.folder import Run as Run
from focal.telling import Progress, Say, Show

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from focal.reporting.explain import Explanations
    from focal.runs.evaluate import Predictions
    from focal.runs.simulate import Simulated
    from focal.segments.upper import ReleasedModel

StrPath = str | os.PathLike[str]


def train(
    config: RunConfig | StrPath,
    *,
    runs: StrPath = "runs",
    say: Say = lambda text: None,
    show: Show = lambda event: None,
    done: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Start (or continue) a whole consortium on this machine and wait for its result.

    >>> run = focal.train("my.yaml")
    >>> run.summary.auroc.encrypted > 0.5
    True
    >>> run.folder
    PosixPath('runs/my')
    >>> run.model().meta.classes
    ('healthy', 'mild', 'moderate', 'severe')

    ``config`` is the name of a packaged configuration (:func:`focal.configs.names`), a file, or a :class:`RunConfig`;
    ``runs`` is the folder that holds the runs. ``show`` gets every event of every party
    (:class:`focal.protocols.common.progress.Reporter`). ``done`` gets each run when it has ended: first the one that
    this one starts from, where it had to be made, and last the one that is returned.
    """
    require("site", "focal train")
    from focal.runs import local
    from focal.runs.folder import check_beside

    if isinstance(config, RunConfig):
        beside = Path()
    else:
        file = configs.find(config)
        config, beside = read(RunConfig, file), file.parent
    _check_data(config)

    def finished(other: Path) -> Path:
        """The folder of a run that this one names: of a configuration, its newest one."""
        if other.suffix != ".yaml":
            return other
        found = local.newest_finished(read(RunConfig, beside / other), Path(runs))
        return found or train(beside / other, runs=runs, say=say, show=show, done=done).folder

    if config.earlier is not None:
        start = finished(config.earlier)
        say(f"starts from {start}")
        config = config.model_copy(update={"start": start})
    if config.compared:
        config = config.model_copy(update={"beside": tuple(map(finished, config.compared))})
        check_beside(config)
    run = local.open_run(config, Path(runs))
    say(f"{config.name} in {run.folder}" + (" (continued)" if run.manifest_file.exists() else ""))
    local.train(run, show, say)
    done(run)
    return run


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
    show: Show = lambda event: None,
) -> Simulated:
    """Train one head on the encrypted rows of several institutions, all parties in this process:
    arrays in, weights out.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> def hospital(rows):
    ...     features = rng.normal(size=(rows, 40))
    ...     return features, (features[:, 0] + features[:, 1] > 0).astype(int)
    >>> hospitals = {"a": hospital(60), "b": hospital(80), "c": hospital(40)}
    >>> run = focal.simulate(hospitals, custodians=2, steps=2)
    >>> run.weights.shape, bool(abs(run.weights - run.twin).max() < 1e-3)
    ((32, 1), True)

    The blind protocol with real keys and real shares, over a network within the process; nobody is kept from anything.
    Labels are class numbers (n,), or a 0/1 matrix (n, C). What the other settings are:
    :func:`focal.runs.simulate.simulate`.
    """
    from focal.runs import simulate as simulation

    return simulation.simulate(
        institutions,
        custodians=custodians,
        steps=steps,
        features=features,
        bound=bound,
        ridge=ridge,
        degree=degree,
        projection=projection,
        verify=verify,
        show=show,
    )


def _check_data(config: RunConfig) -> None:
    """One clear line when the configured data is not there."""
    files = [config.dataset.table, config.dataset.images, weights_file(config.lower.weights)]
    missing = [str(f) for f in files if f is not None and not f.exists()]
    if missing:
        hint = "put the files there, or set FOCAL_DATA to the folder that holds them"
        raise FocalError(f"{config.name}: not found: {', '.join(missing)}", hint=hint)


def load(run: StrPath, *, weights: str | None = None) -> ReleasedModel:
    """The released model, lower segment and head, as a torch module: preprocessed images (n, 3, s, s) to logits (n, C).

    >>> model = focal.load("runs/eyes")
    >>> import torch
    >>> size = model.meta.lower.image_size
    >>> model.probabilities(torch.zeros(2, 3, size, size)).shape
    torch.Size([2, 4])

    ``run`` may also be a ``model.pt``; :func:`focal.segments.lower.preprocess` makes an input of an image. ``weights``:
    source of the lower segment's weights, default the one recorded. OpenFHE is not needed. Raises :class:`FocalError`
    when the weights are not those that the model was trained on.
    """
    require("site", "focal.load")
    from focal.segments.upper import ReleasedModel

    return ReleasedModel.load(Path(run), weights)


def evaluate(
    run: StrPath,
    table: StrPath,
    images: StrPath,
    *,
    labels: Mapping[str, str | None] | StrPath | None = None,
    by: Sequence[str] = (),
    weights: str | None = None,
    group: str = "patient",
    allow_seen: bool = False,
    device: str = "auto",
    pool: StrPath | None = None,
    key: StrPath | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a finished run on new data: another hospital's, by site and by subgroup.

    >>> found = focal.evaluate("runs/eyes", "new.csv", "new.zip", by=["site"])
    >>> found["n"], sorted(found["measures"]["auroc"])
    (120, ['ci95', 'macro', 'per_class'])
    >>> sorted(found["subgroups"]["site"])
    ['north', 'south']

    ``table`` is a CSV with ``filename,label,patient[,split]``, ``images`` the folder or zip that holds them.
    ``labels`` translates the table's labels (``{theirs: ours}``, ``None`` leaves out; or a YAML file that says
    ``labels:``), ``by`` names columns (``sex``) or bands of one (``age:50,65``). ``pool`` is the folder with all sites'
    public files and ``key`` this site's own: one ROC curve over all, and no site's scores shown. What is returned:
    :func:`focal.runs.evaluate.evaluate`.
    """
    require("site", "focal evaluate")
    from focal.runs import evaluate as evaluation

    if (pool is None) != (key is None):
        raise FocalError(
            "--pool and --key go together", hint="focal keys new makes this site's NAME.key.json and NAME.public.json"
        )
    if labels is None:
        words = None
    elif isinstance(labels, Mapping):
        words = evaluation.LabelMap(labels=dict(labels))
    else:
        words = read(evaluation.LabelMap, Path(labels))
    return evaluation.evaluate(
        Path(run),
        Path(table),
        Path(images),
        labels=words,
        by=by,
        weights=weights,
        group=group,
        allow_seen=allow_seen,
        device=device,
        cache=_cache(run),
        progress=progress,
        pool=None if pool is None else Path(pool),
        key=None if key is None else Path(key),
    )


def predict(
    run: StrPath,
    images: StrPath,
    out: StrPath | None = None,
    *,
    table: StrPath | None = None,
    weights: str | None = None,
    window: tuple[float, float] | None = None,
    page: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Predictions:
    """The probability of every class for every image.

    >>> found = focal.predict("runs/eyes", "new.zip", "predictions.csv")
    >>> found.classes, found.probabilities.shape
    (('healthy', 'mild', 'moderate', 'severe'), (120, 4))

    ``images`` is a folder or zip; ``table`` a CSV whose ``filename`` column chooses and orders them. ``window`` and
    ``page`` are what the model was trained with, where its data set declared them (docs/data.md).
    With ``out`` they are written there too, readable by their owner only: the names are those of patients' images.
    """
    require("site", "focal predict")
    from focal.runs import evaluate as evaluation

    return evaluation.predict(
        Path(run),
        Path(images),
        None if out is None else Path(out),
        table_csv=None if table is None else Path(table),
        weights=weights,
        window=window,
        page=page,
        device=device,
        cache=_cache(run),
        progress=progress,
    )


def explain(
    run: StrPath,
    images: StrPath,
    *,
    label: str | None = None,
    table: StrPath | None = None,
    weights: str | None = None,
    window: tuple[float, float] | None = None,
    page: int | None = None,
    limit: int = 32,
    check: bool = True,
    progress: Progress | None = None,
) -> Explanations:
    """Draw where the model looks, and check that this depends on what it has learned.

    >>> found = focal.explain("runs/eyes", "new.zip", limit=2)
    >>> found.folder
    PosixPath('runs/eyes/explanations')
    >>> found.steps[0].randomised
    'head'

    Explained is class ``label`` (default: each image's most probable one) of at most ``limit`` images. The pictures are
    patients' images. ``check`` compares the maps with those of a model that is randomised from the head downwards;
    ``found.verdict`` says what follows.
    """
    require("site", "focal explain")
    from focal.reporting.explain import explain_run

    return explain_run(
        Path(run),
        Path(images),
        label=label,
        table_csv=None if table is None else Path(table),
        weights=weights,
        window=window,
        page=page,
        limit=limit,
        check=check,
        progress=progress,
    )


def report(run: StrPath, out: StrPath | None = None, *, images: bool = True, say: Say = lambda text: None) -> Path:
    """Write one self-contained HTML page about a run, and return its path.

    >>> focal.report("runs/eyes", images=False)
    PosixPath('runs/eyes/report.html')

    ``run`` may also be an institution's state folder. Without ``images`` the page holds aggregates only.
    """
    require("site", "focal report")
    from focal.reporting.html import write_report

    return write_report(Path(run), None if out is None else Path(out), images=images, say=say)


def audit(
    run: StrPath,
    *,
    store: StrPath | None = None,
    threads: int | None = None,
    ray: str | None = None,
    say: Say = lambda text: None,
) -> str:
    """Run a finished run again from its signed messages and ciphertexts, and compare every digest.

    >>> chain = focal.audit("runs/eyes")
    >>> len(chain)
    64

    Returns the last link of the chain of steps: who audited the same run has the same. ``run`` may also be the
    manifest, with ``store`` the server's state folder. ``ray``: the Ray cluster that takes the steps of a blind run,
    ``auto``, ``host:port``, or ``local`` for one of this machine. Raises :class:`focal.errors.Refused` at the first
    thing that is not what its inputs give.
    """
    from focal.protocols.common import audit

    path = Path(run)
    manifest = read(Manifest, path / "manifest.json" if path.is_dir() else path)
    where = path / "parties" / manifest.server.name if store is None else Path(store)
    return audit.audit(manifest, where, say, threads, ray)


def _cache(run: StrPath) -> Path | None:
    """Features that the run itself computed are not computed again."""
    shared = Path(run).parent / "cache"
    return shared if shared.is_dir() else None
