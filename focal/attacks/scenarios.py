"""Which attack meets which view: one function each, from a threat model and a seed to claims and their control.

Every function makes the honest parties' messages first and hands the attack a view of them; what it returns is scored
by :mod:`focal.attacks.study` alone. ``teeth`` names the row where the same attack meets something to see: an attack
that finds nothing there is no evidence for anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from focal.attacks import april, ciphertexts, clients, coalition, features, imprint, inversion
from focal.attacks.bench import Bench
from focal.attacks.clients import Batch
from focal.attacks.features import Decoder
from focal.attacks.membership import membership
from focal.attacks.scores import Claims, Told, Trial, correlation, told_apart
from focal.attacks.threat import Threat
from focal.attacks.view import OUTSIDER, View
from focal.baselines.spe_fl import new_network
from focal.ckks.scheme import Scheme
from focal.heads.linear import twin
from focal.heads.linear.layout import Layout

Array = NDArray[np.float64]

SIZE = 64
"""Pixels of the images that decoders and blocks of small attacks work on."""


@dataclass
class Found:
    """What an attack claims, and what it claims of nothing."""

    trials: list[Trial] = field(default_factory=list)
    control: list[Trial] = field(default_factory=list)
    """The same attack, on messages that depend on no image."""
    size: int = SIZE
    told: Told | None = None
    control_told: Told | None = None
    correlation: float | None = None


Run = Callable[[Bench, Threat, int], Found]


@dataclass(frozen=True)
class Scenario:
    """One row of the table."""

    name: str
    title: str
    threat: str
    assumes: str
    run: Run
    teeth: str
    reproduced: str | None = None

    @property
    def method(self) -> str:
        return self.name.partition(".")[0]

    def answers_to(self, target: str) -> bool:
        """Is it meant by ``fedsgd.imprint``, ``fedsgd``, or, of a family of methods, ``secure-sum`` and ``focal``?"""
        return target in (self.name, self.method) or self.method.startswith(f"{target}-")


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str, title: str, threat: str, assumes: str, teeth: str | None = None, reproduced: str | None = None
) -> Callable[[Run], Run]:
    """Put a function on the list."""

    def put(run: Run) -> Run:
        SCENARIOS[name] = Scenario(name, title, threat, assumes, run, teeth or name, reproduced)
        return run

    return put


# --------------------------------------------------------------------------- gradients of whole networks


def _batch(bench: Bench, at: NDArray[np.int64], size: int) -> Batch:
    rows = bench.corpus.private[at]
    return Batch(bench.corpus.read(rows, size), torch.from_numpy(bench.labels(rows)))


IMPRINT, BINS, BATCH = 224, 1024, 32


@scenario(
    "fedsgd.imprint",
    "FedSGD: imprint block",
    "active-server",
    f"one batch of {BATCH} images of {IMPRINT} px, {BINS} bins",
)
def _fedsgd_imprint(bench: Bench, threat: Threat, seed: int) -> Found:
    size = min(IMPRINT, bench.config.lower.image_size)
    at = bench.corpus.draw(BATCH, seed)
    model = imprint.imprint(
        new_network(bench.classes, seed), bench.public_images(size, threat.knows.public_images), BINS
    )
    sent = clients.gradients(model, _batch(bench, at, size))
    return _read_imprint([sent], [at], size, seed)


def _read_imprint(sent: Sequence[clients.Update], targets: Sequence[NDArray[np.int64]], size: int, seed: int) -> Found:
    rng = np.random.default_rng([seed, 25])

    def trials(updates: Sequence[clients.Update]) -> list[Trial]:
        return [
            Trial(imprint.from_imprint(clients.seen("server", one), size, len(at)), at)
            for one, at in zip(updates, targets, strict=True)
        ]

    return Found(trials(sent), trials([clients.random_like(one, rng) for one in sent]), size)


@scenario(
    "fedsgd.trap", "FedSGD: trap weights", "active-server", f"one batch of {BATCH} images of {SIZE} px, 1024 rows"
)
def _fedsgd_trap(bench: Bench, threat: Threat, seed: int) -> Found:
    at = bench.corpus.draw(BATCH, seed)
    model = imprint.trap(new_network(bench.classes, seed), SIZE, 1024, seed)
    sent = clients.gradients(model, _batch(bench, at, SIZE))
    rng = np.random.default_rng([seed, 25])
    read = [
        Trial(imprint.from_trap(clients.seen("server", one), SIZE, BATCH), at)
        for one in (sent, clients.random_like(sent, rng))
    ]
    return Found(read[:1], read[1:])


INVERTED, INVERTED_SIZE = 4, 32


@scenario(
    "fedsgd.inversion",
    "FedSGD: Inverting Gradients",
    "passive-server",
    f"gradients of one image each, {INVERTED_SIZE} px, small smooth network, label read off the gradient",
)
def _fedsgd_inversion(bench: Bench, threat: Threat, seed: int) -> Found:
    at = bench.corpus.draw(INVERTED, seed)
    model = inversion.small_network(bench.classes, INVERTED_SIZE, seed)
    whole, rng = _batch(bench, at, INVERTED_SIZE), np.random.default_rng([seed, 25])
    images: list[list[torch.Tensor]] = [[], []]
    for i in range(len(at)):
        sent = clients.gradients(model, Batch(whole.images[i : i + 1], whole.labels[i : i + 1]))
        labels = whole.labels[i : i + 1] if threat.knows.labels else None
        for kind, one in enumerate((sent, clients.random_like(sent, rng))):
            view = clients.seen("server", one, model)
            images[kind].append(inversion.invert(view, model, labels, INVERTED_SIZE, inversion.Search(), seed).images)
    read = [[Trial(Claims(torch.cat(one), np.arange(len(at))), at)] for one in images]
    return Found(read[0], read[1], INVERTED_SIZE)


APRIL_SIZE, APRIL = 128, 32


@scenario(
    "fedsgd.april",
    "FedSGD on a ViT: position embeddings (APRIL)",
    "passive-server",
    f"gradients of one image each, {APRIL_SIZE} px, unmodified ViT-Ti/16",
)
def _fedsgd_april(bench: Bench, threat: Threat, seed: int) -> Found:
    at = bench.corpus.draw(APRIL, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = timm.create_model(
            "vit_tiny_patch16_224", img_size=APRIL_SIZE, num_classes=bench.classes, pretrained=False
        )
    model, rng = april.Scaled(network), np.random.default_rng([seed, 25])
    whole, images = _batch(bench, at, APRIL_SIZE), ([], [])  # type: tuple[Batch, tuple[list, list]]
    for i in range(len(at)):
        sent = clients.gradients(model, Batch(whole.images[i : i + 1], whole.labels[i : i + 1]))
        for kind, one in enumerate((sent, clients.random_like(sent, rng))):
            images[kind].append(april.from_positions(clients.seen("server", one), APRIL_SIZE).images)
    read = [[Trial(Claims(torch.cat(one), np.arange(len(at))), at)] for one in images]
    return Found(read[0], read[1], APRIL_SIZE)


STEPS, RATE, GAIN = 4, 0.05, 1e-3


def _fedavg(bench: Bench, threat: Threat, seed: int) -> tuple[clients.Update, NDArray[np.int64]]:
    """An institution's update under a rigged model, after :data:`STEPS` local steps."""
    at = bench.corpus.draw(BATCH, seed)
    public = bench.public_images(SIZE, threat.knows.public_images)
    model = imprint.imprint(new_network(bench.classes, seed), public, BINS, gain=GAIN)
    return clients.update(model, _batch(bench, at, SIZE), BATCH // STEPS, RATE), at


LOCAL = f"{STEPS} local steps of {BATCH // STEPS} images of {SIZE} px, rate {RATE:g}, {BINS} bins"


@scenario("fedavg.imprint", "FedAvg: imprint block", "active-server", LOCAL, reproduced="fedavg")
def _fedavg_imprint(bench: Bench, threat: Threat, seed: int) -> Found:
    sent, at = _fedavg(bench, threat, seed)
    return _read_imprint([sent], [at], SIZE, seed)


EPSILON, DELTA, ROUNDS, CLIP = 8.0, 1e-5, 20, 4.0


@scenario(
    "dp-fedavg.imprint",
    f"FedAvg, noise at the institution, epsilon {EPSILON:g}: imprint block",
    "active-server",
    f"{LOCAL}; delta {DELTA:g}, {ROUNDS} rounds, clip {CLIP:g}, institution's whole update",
    "fedavg.imprint",
)
def _dp_imprint(bench: Bench, threat: Threat, seed: int) -> Found:
    from focal.baselines.privacy import noise_multiplier

    sent, at = _fedavg(bench, threat, seed)
    noisy = clients.with_gaussian_noise(
        sent, CLIP, noise_multiplier(EPSILON, DELTA, ROUNDS), np.random.default_rng([seed, 26])
    )
    return _read_imprint([noisy], [at], SIZE, seed)


@scenario(
    "spe-fl.imprint",
    "SPE-FL's clipping, Poisson noise and compression, not encrypted: imprint block",
    "active-server",
    LOCAL,
    "fedavg.imprint",
    "spe-fl-plain",
)
def _spe_imprint(bench: Bench, threat: Threat, seed: int) -> Found:
    from focal.baselines.spe_fl import Settings

    sent, at = _fedavg(bench, threat, seed)
    s = Settings()
    noisy = clients.with_poisson_noise(sent, s.clip, s.noise, s.keep, np.random.default_rng([seed, 26]))
    return _read_imprint([noisy], [at], SIZE, seed)


EACH = 8


def _sum_of(institutions: int) -> None:
    """Secure sums: the server sees the sum of all institutions' gradients and no single one."""

    @scenario(
        f"secure-sum-{institutions}.imprint",
        f"secure sum of {institutions} institutions: imprint block",
        "active-server",
        f"FedSGD, {EACH} images of {SIZE} px from each, {BINS} bins",
        reproduced="fedavg-masked" if institutions == 3 else None,
    )
    def run(bench: Bench, threat: Threat, seed: int) -> Found:
        at = bench.corpus.draw(min(EACH * institutions, len(bench.corpus.private)), seed)
        public = bench.public_images(SIZE, threat.knows.public_images)
        model, whole = imprint.imprint(new_network(bench.classes, seed), public, BINS), _batch(bench, at, SIZE)
        parts = [
            clients.gradients(model, Batch(x, y))
            for x, y in zip(whole.images.split(EACH), whole.labels.split(EACH), strict=True)
        ]
        return _read_imprint([clients.added(parts)], [at], SIZE, seed)


for _institutions in (3, 8, 40):
    _sum_of(_institutions)


# --------------------------------------------------------------------------- features, and heads over them


@lru_cache(maxsize=2)
def _decoder(bench: Bench, most: int, seed: int) -> Decoder:
    """From raw features to images, fitted on public ones."""
    public = bench.corpus.public[:most]
    return Decoder.fit(bench.features(public), bench.corpus.read(public, SIZE), seed)


def _shuffled(values: Array, seed: int) -> Array:
    """A control that depends on nobody's image: every column drawn with its own mean and deviation."""
    noise = np.random.default_rng([seed, 27]).standard_normal(values.shape)
    return values.mean(axis=0) + values.std(axis=0) * noise


@scenario(
    "split.features",
    "plaintext split learning: decoder on activations",
    "passive-server",
    f"pooled features of every row; images of {SIZE} px",
    reproduced="split",
)
def _split_features(bench: Bench, threat: Threat, seed: int) -> Found:
    own = bench.features(bench.corpus.private)
    decoder, at = _decoder(bench, threat.knows.public_images, seed), np.arange(len(own))
    view = View("server", {"activations": own}, {}, {})
    seen: Array = view.received["activations"]
    return Found(
        [Trial(features.claims(decoder, seen, True), at)],
        [Trial(features.claims(decoder, _shuffled(seen, seed), True), at)],
        correlation=correlation(seen, own),
    )


@scenario(
    "split.labels",
    "plaintext split learning: labels from derivatives",
    "passive-server",
    "first step of a softmax head; the commonest class against the others",
)
def _split_labels(bench: Bench, threat: Threat, seed: int) -> Found:
    rows = bench.corpus.private
    labels, own, rng = bench.labels(rows), bench.features(rows), np.random.default_rng([seed, 28])
    weights = 0.01 * rng.standard_normal((own.shape[1], bench.classes))
    z = own @ weights
    p = np.exp(z - z.max(axis=1, keepdims=True))
    sent = p / p.sum(axis=1, keepdims=True) - np.eye(bench.classes)[labels]
    common = int(np.bincount(labels).argmax())
    score, positive = -sent[:, common], labels == common
    mixed = rng.permutation(score)
    return Found(
        told=told_apart(score[positive], score[~positive]),
        control_told=told_apart(mixed[positive], mixed[~positive]),
    )


def _head_trials(
    bench: Bench, threat: Threat, seed: int, batches: Sequence[NDArray[np.int64]], ordered: bool
) -> tuple[list[Trial], Array]:
    """A softmax head's gradient over each batch, read as features, decoded; and the features that were read."""
    decoder, rng = _decoder(bench, threat.knows.public_images, seed), np.random.default_rng([seed, 29])
    dim = bench.features(bench.corpus.private[:1]).shape[1]
    weights, bias = 0.01 * rng.standard_normal((bench.classes, dim)), np.zeros(bench.classes)
    read, trials = [], []
    for at in batches:
        rows = bench.corpus.private[at]
        sent = features.head_gradient(bench.features(rows), bench.labels(rows), weights, bias)
        read.append(features.from_head(View("server", sent, {}, {}), len(at)))
        if not ordered:
            trials.append(Trial(features.claims(decoder, read[-1], False), at))
    whole = np.concatenate(read)
    if ordered:
        trials = [Trial(features.claims(decoder, whole, True), np.concatenate(batches))]
    return trials, whole


def _head_of(size: int, name: str, title: str, threat: str, assumes: str, reproduced: str | None = None) -> None:
    @scenario(name, title, threat, assumes, "head-1.gradient", reproduced)
    def run(bench: Bench, threat: Threat, seed: int) -> Found:
        order = np.random.default_rng([seed, 30]).permutation(len(bench.corpus.private))
        whole = order[: len(order) // size * size]
        batches, ordered = list(whole.reshape(-1, size)), size == 1
        trials, read = _head_trials(bench, threat, seed, batches, ordered)
        decoder = _decoder(bench, threat.knows.public_images, seed)
        noise, control, start = _shuffled(read, seed), [], 0
        for trial in trials:
            n = len(trial.claims.images)
            control.append(Trial(features.claims(decoder, noise[start : start + n], ordered), trial.target))
            start += n
        right = correlation(read, bench.features(bench.corpus.private[whole])) if ordered else None
        return Found(trials, control, correlation=right)


_head_of(
    1,
    "head-1.gradient",
    "gradient of a head over frozen features, one row (MAUI)",
    "passive-server",
    f"features exact from the gradient, decoder of {SIZE} px",
)
_head_of(
    8,
    "head-8.gradient",
    "gradient of a head over frozen features, 8 rows",
    "passive-server",
    "every class of a batch gives one mixture of its rows",
)
_head_of(
    32,
    "encrypted-fedavg.sum",
    "encrypted FedAvg: the opened sum, less one's own",
    "hospital",
    "two other institutions with 16 rows each in a step of a head",
    "encrypted-fedavg",
)


# --------------------------------------------------------------------------- released heads


def _blind_head(bench: Bench) -> Callable[[Array, NDArray[np.int64]], Array]:
    """How a blind run trains: its plaintext twin."""
    training = bench.config.training

    def train(x: Array, y: NDArray[np.int64]) -> Array:
        top = float(np.linalg.eigvalsh(x.T @ x / len(x))[-1])
        scalars = twin.Scalars.derive(training.degree, 1 / (1.1 * top / 4 + training.ridge), training.ridge, len(x))
        return twin.train(x, 0.5 - np.eye(bench.classes)[y], scalars, training.steps)[0]

    return train


def _memorising(x: Array, y: NDArray[np.int64], classes: int) -> Array:
    """A least squares head almost without a ridge: it remembers every row."""
    kernel = x.T @ x + 1e-6 * len(x) * np.eye(x.shape[1])
    return np.asarray(np.linalg.solve(kernel, x.T @ (2 * np.eye(classes)[y] - 1)), np.float64)


ALONE = 200


@scenario(
    "memorising-head.membership",
    "a released head that overfits: membership (LiRA, 64 shadows)",
    "hospital",
    f"least squares on raw features of {ALONE} rows; half of the candidates are members",
)
def _memorising_membership(bench: Bench, threat: Threat, seed: int) -> Found:
    def train(x: Array, y: NDArray[np.int64]) -> Array:
        return _memorising(x, y, bench.classes)

    ours, others = (
        np.random.default_rng([seed, 31 + i]).permutation(rows)[:ALONE]
        for i, rows in enumerate((bench.corpus.private, bench.corpus.public))
    )
    sides = [(np.c_[bench.features(rows), np.ones(len(rows))], bench.labels(rows)) for rows in (ours, others)]
    return _membership(sides, train, train(*sides[0]), seed)


def _membership(
    sides: Sequence[tuple[Array, NDArray[np.int64]]],
    train: Callable[[Array, NDArray[np.int64]], Array],
    released: Array,
    seed: int,
    known: tuple[Array, NDArray[np.int64]] | None = None,
    unrelated: Array | None = None,
) -> Found:
    """``unrelated``: a head trained without either side, for the control; by default a random one."""
    if unrelated is None:
        unrelated = np.random.default_rng([seed, 33]).standard_normal(released.shape) * released.std()
    return Found(
        told=membership(released, sides[0], sides[1], train, seed, known),
        control_told=membership(unrelated, sides[0], sides[1], train, seed, known),
    )


def _columns(bench: Bench, rows: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
    """Columns of a run, after the projection that all institutions know, and classes."""
    return bench.projection(bench.everybody).apply(bench.features(rows)), bench.labels(rows)


def _released(bench: Bench) -> Array:
    """(R, C) of the run, as any institution has them."""
    from focal.data.rows import read_kept

    return read_kept(bench.run / "parties" / bench.names[0])[1]


@scenario(
    "focal-blind.membership",
    "FOCAL, blind: membership from the released head (LiRA, 64 shadows)",
    "hospital",
    "candidates' features are known; half of the candidates are the victim's training rows",
    "memorising-head.membership",
    "blind",
)
def _focal_membership(bench: Bench, threat: Threat, seed: int) -> Found:
    private, public = bench.corpus.private, bench.corpus.public
    n = min(len(private), len(public))
    sides = [_columns(bench, rows[:n]) for rows in (private, public)]
    return _membership(sides, _blind_head(bench), _released(bench), seed)


@scenario(
    "focal-blind.coalition-head",
    "FOCAL, blind: membership from the released head, all other institutions' rows known",
    "all-but-one",
    "as focal-blind.membership; the coalition's rows are in every shadow",
    "memorising-head.membership",
    "blind",
)
def _focal_coalition_head(bench: Bench, threat: Threat, seed: int) -> Found:
    private, public = bench.corpus.private, bench.corpus.public
    n = min(len(private), len(public))
    sides = [_columns(bench, rows[:n]) for rows in (private, public)]
    known = _columns(bench, np.concatenate([at for name, at in bench.train.items() if name != bench.victim]))
    train = _blind_head(bench)
    return _membership(sides, train, _released(bench), seed, known, unrelated=train(*known))


# --------------------------------------------------------------------------- FOCAL's uploads


def _victims(bench: Bench) -> NDArray[np.int64]:
    return np.arange(len(bench.corpus.private))


def _own_columns(bench: Bench, most: int) -> tuple[Array, NDArray[np.int64]]:
    """Columns of the attacker's own images, by the run's projection: institutions alone have it, and may tell."""
    public = bench.corpus.public[:most]
    return _columns(bench, public)[0], public


def _from_run(bench: Bench, threat: Threat, seed: int, party: str) -> Found:
    view = View.of(bench.run, party)
    read = ciphertexts.Read(view)
    columns, public = _own_columns(bench, threat.knows.public_images)
    own = ciphertexts.own_uploads(
        read.scheme, read.layout, columns, read.encryption_key(), len(read.manifest.custodians)
    )
    decoder = Decoder.fit(own.signals(), bench.corpus.read(public, SIZE), seed)
    at = _victims(bench)
    seen = read.uploaded(bench.victim).signals()[: len(at)]
    return Found(
        [Trial(features.claims(decoder, seen, True), at)],
        [Trial(features.claims(decoder, _shuffled(seen, seed), True), at)],
        correlation=_linear(own.signals(), columns, seen, _columns(bench, bench.corpus.private)[0]),
    )


def _linear(signals: Array, columns: Array, seen: Array, true: Array) -> float:
    """Correlation of the victim's columns with what a linear fit on the attacker's own pairs makes of its signals."""
    scale = signals.std(axis=0) + 1e-300
    fit = np.linalg.lstsq((signals - signals.mean(axis=0)) / scale, columns[:, :-1], rcond=None)[0]
    return correlation((seen - signals.mean(axis=0)) / scale @ fit, true[:, :-1])


BYTES = (
    f"all bytes of the victim's upload; decoder of {SIZE} px on own pairs under the same joint key, "
    "the projection known"
)


@scenario(
    "focal-blind.server",
    "FOCAL, blind: decoder on ciphertexts",
    "passive-server",
    BYTES,
    "focal-blind.all-keys",
    "blind",
)
def _focal_server(bench: Bench, threat: Threat, seed: int) -> Found:
    return _from_run(bench, threat, seed, "server")


@scenario("focal-blind.outsider", "FOCAL, blind: decoder on stored bytes", "outsider", BYTES, "focal-blind.all-keys")
def _focal_outsider(bench: Bench, threat: Threat, seed: int) -> Found:
    return _from_run(bench, threat, seed, OUTSIDER)


@scenario(
    "focal-blind.custodian",
    "FOCAL, blind: decoder on what the guard may fetch",
    "custodian",
    BYTES,
    "focal-blind.all-keys",
)
def _focal_custodian(bench: Bench, threat: Threat, seed: int) -> Found:
    return _from_run(bench, threat, seed, "custodian-1")


@scenario(
    "focal-blind.server-and-hospital",
    "FOCAL, blind: decoder on ciphertexts, pairs of the run itself",
    "server-and-hospital",
    "the first institution's own rows, images and uploads are the pairs",
    "focal-blind.all-keys",
)
def _focal_server_hospital(bench: Bench, threat: Threat, seed: int) -> Found:
    helper = bench.names[0]
    view = View.pooled([View.of(bench.run, "server"), View.of(bench.run, helper)])
    read, at = ciphertexts.Read(view), _victims(bench)
    own = read.uploaded(helper).signals()
    decoder = Decoder.fit(own, bench.corpus.read(bench.train[helper], SIZE), seed)
    seen = read.uploaded(bench.victim).signals()[: len(at)]
    columns = _columns(bench, bench.train[helper])[0]
    return Found(
        [Trial(features.claims(decoder, seen, True), at)],
        [Trial(features.claims(decoder, _shuffled(seen, seed), True), at)],
        correlation=_linear(own, columns, seen, _columns(bench, bench.corpus.private)[0]),
    )


CUSTODIANS = 3


def _stage(bench: Bench, threat: Threat, seed: int, colluding: int) -> Found:
    config = bench.config
    scheme = Scheme(config.ckks, f"{seed:064x}")
    true, at = _columns(bench, bench.corpus.private)[0], _victims(bench)
    columns, public = _own_columns(bench, threat.knows.public_images)
    layout = Layout(scheme.slots, true.shape[1], bench.classes, len(true), 1, 1, 1, (len(true),))
    victim = ciphertexts.Stage.make(scheme, layout, true, CUSTODIANS)
    own = ciphertexts.Stage.make(scheme, layout, columns, CUSTODIANS)
    signals = own.uploaded.signals(own.known_to(colluding))
    seen = victim.uploaded.signals(victim.known_to(colluding))
    decoder = Decoder.fit(signals, bench.corpus.read(public, SIZE), seed)
    return Found(
        [Trial(features.claims(decoder, seen, True), at)],
        [Trial(features.claims(decoder, _shuffled(seen, seed), True), at)],
        correlation=_linear(signals, columns, seen, true),
    )


@scenario(
    "focal-blind.server-and-custodians",
    "FOCAL, blind: decoder on what all custodians but one leave",
    "server-and-custodians",
    f"uploads to {CUSTODIANS} custodians in one process; masks and key shares of {CUSTODIANS - 1} known",
    "focal-blind.all-keys",
)
def _focal_custodians(bench: Bench, threat: Threat, seed: int) -> Found:
    return _stage(bench, threat, seed, CUSTODIANS - 1)


@scenario(
    "focal-blind.all-keys",
    "control: all custodians of FOCAL together",
    "all-keys",
    f"uploads to {CUSTODIANS} custodians in one process; all masks and key shares known",
)
def _focal_all_keys(bench: Bench, threat: Threat, seed: int) -> Found:
    return _stage(bench, threat, seed, CUSTODIANS)


# --------------------------------------------------------------------------- all institutions but one


@scenario(
    "focal-blind.coalition-moments",
    "FOCAL: pooled moments, all other institutions' rows known",
    "all-but-one",
    "the last institution's mean and covariance, exact; membership of candidates by their leverage; control: the "
    "coalition's own moments",
)
def _focal_moments(bench: Bench, threat: Threat, seed: int) -> Found:
    others = np.concatenate([at for name, at in bench.train.items() if name != bench.victim])
    pooled = coalition.moments_of(bench.features(bench.everybody))
    last = coalition.last_one(pooled, coalition.moments_of(bench.features(others)))
    without = coalition.moments_of(bench.features(others))
    private, public = (bench.features(rows) for rows in (bench.corpus.private, bench.corpus.public))
    return Found(
        told=told_apart(coalition.leverage(last, private), coalition.leverage(last, public)),
        control_told=told_apart(coalition.leverage(without, private), coalition.leverage(without, public)),
    )


_head_of(
    32,
    "focal-interactive.coalition",
    "FOCAL, interactive: the last institution's summed head gradient",
    "all-but-one",
    "32 rows a step, read off successive heads (SECURITY.md); a frozen lower segment stands in for a trained one",
)
