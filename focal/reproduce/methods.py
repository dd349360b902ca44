"""What is compared: each method turns a :class:`~focal.reproduce.cases.Case` into scores on its test rows,
with seconds and bytes.

Every method sees the same rows, features, split and measure. The single institutions and the pooled model are
scikit-learn's logistic regression on all raw features; those from images train more than a head; all others train the
one-vs-rest head on the R whitened columns, so that only the way of working together differs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from focal.baselines import scratch, spe_fl
from focal.baselines.encrypted import EncryptedSum
from focal.baselines.federated import Federated, MakeSum, MaskedSums, PlainSum, Round, Settings, federate, personalise
from focal.baselines.logistic import fit_rows
from focal.baselines.privacy import Privacy, federate_privately
from focal.baselines.scratch import train_from_scratch
from focal.config import InteractiveConfig, RunConfig
from focal.data.rows import InstitutionRows, read_kept
from focal.errors import FocalError
from focal.heads.linear import twin
from focal.measure.metrics import Floats, macro_auroc
from focal.measure.summary import read_summary
from focal.measure.traffic import Traffic
from focal.reproduce.cases import BY_PATIENT, SKEWED_3, SKEWED_8, Case
from focal.reproduce.cells import Point
from focal.runs import local
from focal.segments.lower import build_lower, weights_source
from focal.segments.projection import Projection
from focal.segments.trainable import VALUE_BYTES
from focal.task import outcomes
from focal.training.joint import Site, train_jointly
from focal.training.joint import scores as split_scores
from focal.training.split import Base

MODEL = "model"
"""The name of a method's model where it has one only."""
ALONE, POOLED, BLIND, ENCRYPTED_FEDAVG, SCRATCH = "alone", "pooled", "blind", "encrypted-fedavg", "scratch"
CONVERGED, PERSONAL = "blind-converged", "fedavg-personal"
"""Methods that tables speak of; the encrypted blind head is what the others are compared with."""


@dataclass(frozen=True)
class Outcome:
    """What a method did."""

    scores: dict[str, Floats]
    """Model -> (n, C) linear outputs on the test rows, in the table's order."""
    seconds: float
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    curve: tuple[Point, ...] = ()
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Method:
    """One row of a table."""

    name: str
    title: str
    sees: str
    """What leaves the institutions, and who sees it."""
    run: Callable[[Case], Outcome]
    rough_seconds: float
    """Of one repeat with 4000 rows on two cores: for the first estimate, until one has been measured."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What changes the result beside the run's configuration."""
    tables: tuple[str, ...] = ()
    """Names of the only tables that show it; none: all do."""
    small: bool = False
    """Whether it trains a network, and starts from the small segment that its rates were chosen for."""
    dealings: tuple[str, ...] = ()
    """Likewise of the only dealings: what takes minutes is not run on each."""

    def belongs(self, table: str, dealing: str) -> bool:
        """Whether this part of this table shows it."""
        return (not self.tables or table in self.tables) and (not self.dealings or dealing in self.dealings)


class _Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start


# --------------------------------------------------------------------------- without collaboration, and without secrecy


def _alone(case: Case) -> Outcome:
    test, clock = case.scored.features, _Clock()
    scores = {name: fit_rows(own, case.task, case.config.seed, name).scores(test) for name, own in case.rows.items()}
    return Outcome({name: case.by_table(s) for name, s in scores.items()}, clock.seconds)


def _pooled(case: Case) -> Outcome:
    test, clock = case.scored.features, _Clock()
    scores = fit_rows(InstitutionRows.union(case.rows), case.task, case.config.seed, "pooled").scores(test)
    return Outcome({MODEL: case.by_table(scores)}, clock.seconds)


def _twin(case: Case) -> Outcome:
    clock = _Clock()
    weights = _twin_weights(case)
    return Outcome({MODEL: case.by_table(case.projection.apply(case.scored.features) @ weights)}, clock.seconds)


def _twin_weights(case: Case) -> Floats:
    """(R, C) of the blind protocol's plaintext twin."""
    everyone, training = InstitutionRows.union(case.rows), case.config.training
    train = everyone.take(everyone.split == "train")
    labels = outcomes(train.labels, case.task)
    scalars = twin.Scalars.derive(training.degree, case.projection.eta, training.ridge, len(labels))
    return twin.train(case.projection.apply(train.features), 0.5 - labels.astype(np.float64), scalars, training.steps)[
        0
    ]


# --------------------------------------------------------------------------- encrypted


def _blind(case: Case) -> Outcome:
    """A real run: every party a process, real keys and sockets. An interrupted one goes on where it stopped."""
    return _encrypted(case, case.config)


CONVERGENCE = {"degree": 7, "steps": 10}
"""The highest degree, and where more steps no longer helped: with SqueezeNet's 64 columns, in five-fold
cross-validation inside the train rows of ODIR-5K and RetinaMNIST, two more added less than 0.0001 to the AUROC."""


def _converged(case: Case) -> Outcome:
    """The same run with :data:`CONVERGENCE`: what the quick settings leave to the exact logistic head,
    and what it costs."""
    config, training = case.config, case.config.training.model_copy(update=CONVERGENCE)
    return _encrypted(case, config.model_copy(update={"name": f"{config.name}-converged", "training": training}))


def _encrypted(case: Case, config: RunConfig) -> Outcome:
    folder = local.newest_finished(config, case.runs)
    if folder is None or not (folder / "parties").exists():  # one whose private files are gone cannot be scored again
        folder = local.train(local.open_run(config, case.runs), lambda event: None, lambda text: None)
    kept = {name: read_kept(folder / "parties" / name) for name in case.rows}
    rows = {name: own for name, (own, _) in kept.items()}
    if not np.array_equal(InstitutionRows.union(rows).scored.labels, case.scored.labels):
        raise FocalError(
            f"{folder}: its test rows are not those of seed {case.config.seed} here, "
            "so nothing can be compared row by row",
            hint="the table's split depends on the seed: give it a 'split' column",
        )
    first = next(iter(kept))
    projection = Projection.from_bytes((folder / "parties" / first / "projection.bin").read_bytes())
    scores = projection.apply(InstitutionRows.union(rows).scored.features) @ kept[first][1]
    summary = read_summary(folder)
    assert summary.max_abs_weight_error is not None and summary.auroc.plaintext_twin is not None
    local.clean(folder, cache=False, force=False)  # keys and features; the summary and the pictures stay
    seconds, traffic = summary.seconds, {name: Traffic(up=t.up, down=t.down) for name, t in summary.bytes.items()}
    facts = {"max_abs_weight_error": summary.max_abs_weight_error, "auroc_plaintext_twin": summary.auroc.plaintext_twin}
    spent = seconds.keys + seconds.upload + seconds.train + seconds.release
    return Outcome({MODEL: case.by_table(scores)}, spent, traffic, facts=facts)


# --------------------------------------------------------------------------- federated


def _federated(make_sum: MakeSum = PlainSum, **settings: Any) -> Callable[[Case], Outcome]:
    """FedAvg of the blind head's columns, targets and ridge; ``settings`` are fields
    of :class:`focal.baselines.federated.Settings`."""

    def run(case: Case) -> Outcome:
        chosen = _settings(case, settings)
        return _of_rounds(case, federate(case.rows, case.projection, case.task, chosen, make_sum))

    return run


DEALINGS = 5
"""How often rows are dealt anew where what matters is the dealing."""


def _dealt(make_sum: MakeSum) -> Callable[[Case], Outcome]:
    """FedAvg on :data:`DEALINGS` dealings of the same rows, a model for each: by what label skew does to it,
    not by one draw of it."""

    def run(case: Case) -> Outcome:
        first = case.config.seed * DEALINGS
        made = {f"dealing {seed}": _federated(make_sum)(case.dealt(seed)) for seed in range(first, first + DEALINGS)}
        seconds = float(np.mean([one.seconds for one in made.values()]))
        return Outcome(
            {name: one.scores[MODEL] for name, one in made.items()}, seconds, next(iter(made.values())).traffic
        )

    return run


def _personal(case: Case) -> Outcome:
    """FedAvg, then every institution goes on alone; a test row is scored by its own institution's head."""
    shared = federate(case.rows, case.projection, case.task, _settings(case, {}))
    clock = _Clock()
    _, scores = personalise(case.rows, case.projection, case.task, _settings(case, {}), shared.weights)
    outcome = _of_rounds(case, shared)
    return replace(outcome, scores={MODEL: case.by_table(scores)}, seconds=outcome.seconds + clock.seconds, curve=())


def _private(case: Case) -> Outcome:
    made, epsilon = federate_privately(case.rows, case.projection, case.task, _settings(case, {}), PRIVACY)
    return replace(_of_rounds(case, made), facts={"epsilon": epsilon, "delta": PRIVACY.delta})


LOCAL_TRAINING = {"rounds": 20, "epochs": 2, "batch": None}
"""Full batches at the projection's rate, twice a round. Chosen on a quarter of the train patients of
ODIR-5K and RetinaMNIST, held out and dealt three ways: no worse than one, five or ten epochs by more than
0.003, and above batches of 64 rows at 1, 0.3, 0.1 and 0.03 of the rate on average (whitened columns make
full batches converge in a few steps). That was with SqueezeNet's 64 columns; with the present features nothing was
chosen again."""


def _settings(case: Case, settings: Mapping[str, Any]) -> Settings:
    return Settings(**{"ridge": case.config.training.ridge, "seed": case.config.seed, **LOCAL_TRAINING, **settings})


def _of_rounds(case: Case, made: Federated) -> Outcome:
    last = made.rounds[-1]
    return Outcome({MODEL: case.by_table(made.scores)}, last.seconds, last.traffic, _curve(made.rounds))


def _curve(rounds: Sequence[Round]) -> tuple[Point, ...]:
    """Where a method stood after every round; bytes of a mean institution."""
    return tuple(
        Point(auroc=r.auroc, seconds=r.seconds, bytes=float(np.mean([t.up + t.down for t in r.traffic.values()])))
        for r in rounds
    )


def _federated_method(
    name: str, title: str, sees: str, make_sum: MakeSum = PlainSum, rough_seconds: float = 2, **settings: Any
) -> Method:
    return Method(name, title, sees, _federated(make_sum, **settings), rough_seconds, LOCAL_TRAINING | settings)


# --------------------------------------------------------------------------- from images


def _scratch(case: Case) -> Outcome:
    made = train_from_scratch(case.pixels(), case.task, scratch.Settings(seed=case.config.seed))
    twin = macro_auroc(case.labels, case.by_table(made.twin_scores), case.task)
    facts = {"max_abs_weight_error": made.max_abs_weight_error, "auroc_plaintext_twin": twin}
    return Outcome({MODEL: case.by_table(made.scores)}, made.seconds, made.traffic, facts=facts)


SPLIT = InteractiveConfig(steps=60, trainable="all", head_rate=0.1, rate=4e-4, bottleneck_rate=1e-3, average_every=5)
"""The rates are those of focal/configs/finetune-retina.yaml, chosen there on patients held out
of ODIR-5K's train rows."""
SPLIT_ROWS = 96
"""Of a joint step, over all institutions."""


def _split(case: Case) -> Outcome:
    """Plaintext split learning: the whole lower segment goes on from the projection and the head
    of the blind protocol's twin."""
    segment, _ = build_lower(case.config.lower, case.config.lower.weights)
    segment, _ = build_lower(segment.spec, weights_source(case.config.lower))
    sites = {name: Site(case.table, at[case.table.split[at] == "train"]) for name, at in case.parts.items()}
    batch, size = SPLIT_ROWS // len(sites), case.projection.features
    config = SPLIT.model_copy(update={"batch": batch, "features": size, "seed": case.config.seed})
    torch.set_num_threads(os.cpu_count() or 1)  # focal.ckks limits OpenMP, and with it torch, to one
    clock = _Clock()
    with TemporaryDirectory() as folder:
        made = train_jointly(
            segment,
            config,
            sites,
            folder=Path(folder),
            start=case.projection,
            base=Base(_twin_weights(case)),
            seed=case.config.seed,
            device=case.config.device,
        )
    spent = clock.seconds
    scores = split_scores(made.segment, made.weights, case.table, case.table.test_rows)
    m, rounds, average = len(sites), -(-config.steps // config.average_every), made.segment.count * VALUE_BYTES
    step = (
        batch * (size + made.weights.shape[1]) * VALUE_BYTES
    )  # activations and derivatives up, logits and gradients down
    traffic = Traffic(up=config.steps * step + rounds * average, down=config.steps * step + rounds * average * (m - 1))
    return Outcome({MODEL: scores}, spent, dict.fromkeys(sites, traffic))


def _spe_fl(settings: spe_fl.Settings) -> Callable[[Case], Outcome]:
    def run(case: Case) -> Outcome:
        train = {
            name: spe_fl.read_images(case.table, at[case.table.split[at] == "train"]) for name, at in case.parts.items()
        }
        test = spe_fl.read_images(case.table, case.table.test_rows)
        made = spe_fl.spe_fl(train, test, case.task, replace(settings, seed=case.config.seed), case.config.device)
        curve, last = _curve(made.rounds), made.rounds[-1]
        return Outcome({MODEL: made.scores}, last.seconds, last.traffic, curve, {"rounds": float(settings.rounds)})

    return run


# --------------------------------------------------------------------------- all of them

SEES_ALL, SEES_SUMS = "server: every update", "server: ciphertexts; institutions: every sum"
PRIVACY = Privacy(unit="patient", epsilon=8.0, delta=1e-5, clip=4.0)
"""What the differentially private head promises every patient; delta is well below one of some thousand patients."""

SPE_FL_TITLES = (
    "small ResNet",
    "without noise",
    "ten times the noise",
    "not encrypted",
    "not compressed",
    "none of the three",
)
"""What each of :data:`focal.baselines.spe_fl.ABLATION` changes."""

METHODS = (
    Method(ALONE, "every institution alone", "nothing leaves", _alone, 12),
    Method(POOLED, "pooled plaintext", "all features and labels in one place", _pooled, 15),
    Method("twin", "the blind head, not encrypted", "all features and labels in one place", _twin, 1),
    Method(BLIND, "encrypted blind head (FOCAL)", "server: ciphertexts; institutions: the final head", _blind, 90),
    Method(
        CONVERGED,
        f"encrypted blind head, degree {CONVERGENCE['degree']}, {CONVERGENCE['steps']} steps",
        "server: ciphertexts; institutions: the final head",
        _converged,
        240,
        CONVERGENCE,
        tables=("severity",),  # the other configurations have these settings already
        dealings=(SKEWED_3.name,),
    ),
    _federated_method("fedavg", "FedAvg", SEES_ALL),
    _federated_method("fedprox", "FedProx, mu 0.1", SEES_ALL, mu=0.1),
    _federated_method(
        "fedavg-partial", "FedAvg, half of them a round, 1 of 5 lost", SEES_ALL, fraction=0.5, dropout=0.2
    ),
    Method(PERSONAL, "FedAvg, then local fine-tuning (*)", SEES_ALL, _personal, 2, LOCAL_TRAINING),
    _federated_method(
        "fedavg-masked", "FedAvg, masked sums", "server: masked updates; institutions: every sum", MaskedSums, 2
    ),
    _federated_method(ENCRYPTED_FEDAVG, "FedAvg, encrypted sums", SEES_SUMS, EncryptedSum, 8),
    *(
        Method(
            f"{name}-dealt",
            f"{title}, mean of {DEALINGS} dealings",
            sees,
            _dealt(make_sum),
            DEALINGS * seconds,
            LOCAL_TRAINING | {"dealings": DEALINGS},
            dealings=(SKEWED_3.name, SKEWED_8.name),
        )
        for name, title, sees, make_sum, seconds in (
            ("fedavg", "FedAvg", SEES_ALL, PlainSum, 1),
            (ENCRYPTED_FEDAVG, "FedAvg, encrypted sums", SEES_SUMS, EncryptedSum, 3),
        )
    ),
    Method(
        "fedavg-private",
        f"FedAvg, differentially private (epsilon {PRIVACY.epsilon:g} for a patient)",
        "server: every update, trusted to add noise",
        _private,
        4,
        LOCAL_TRAINING | asdict(PRIVACY),
    ),
    Method(
        "split",
        f"plaintext split learning, all of a small segment, {SPLIT.steps} steps",
        "server: activations, derivatives, the head",
        _split,
        110,
        {**SPLIT.model_dump(mode="json"), "rows": SPLIT_ROWS},
        small=True,
        dealings=(BY_PATIENT.name,),
    ),
    Method(
        SCRATCH,
        f"fully encrypted FL from scratch (8 x 8 pixels, {scratch.Settings().steps} steps)",
        "server: ciphertexts; institutions: the final network",
        _scratch,
        60,
        asdict(scratch.Settings()),
        dealings=(BY_PATIENT.name,),
    ),
    *(
        Method(
            name,
            f"SPE-FL, {title}",
            "server: ciphertexts; institutions: every noisy sum" if chosen.encrypted else "server: every noisy update",
            _spe_fl(chosen),
            90,
            asdict(chosen),
            tables=("xray",),
        )
        for (name, chosen), title in zip(spe_fl.ABLATION.items(), SPE_FL_TITLES, strict=True)
    ),
)
HEADS = (BLIND, CONVERGED)
"""The encrypted blind head, with the quick settings of its configuration and with :data:`CONVERGENCE`."""
FEDERATED = ("fedavg", ENCRYPTED_FEDAVG)
"""Federated learning of the same head: what the encrypted blind head must not fall below where labels are skewed."""
DEALT = tuple(f"{name}-dealt" for name in FEDERATED)
"""The same on several dealings. The blind head needs one: it works on sums over all patients, whoever holds them."""
ASIDE = (PERSONAL, *DEALT)
"""What is not counted among the federated methods: scored by other heads on other rows (*),
or one of them once more."""
