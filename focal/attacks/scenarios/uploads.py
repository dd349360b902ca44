"""FOCAL's uploads, and what all institutions but one know together."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from focal.attacks import ciphertexts, coalition, features
from focal.attacks.bench import Bench
from focal.attacks.ciphertexts import Uploaded
from focal.attacks.features import Decoder
from focal.attacks.generator import Generator
from focal.attacks.scenarios.activations import shuffled
from focal.attacks.scenarios.registry import SIZE, Array, Found, Run, scenario
from focal.attacks.scenarios.released import columns_of
from focal.attacks.scores import Trial, correlation, told_apart
from focal.attacks.threat import Threat
from focal.attacks.view import OUTSIDER, View
from focal.ckks.scheme import Scheme
from focal.heads.linear.layout import Layout


def _own_columns(bench: Bench, most: int) -> tuple[Array, NDArray[np.int64]]:
    """Columns of the attacker's own images, by the run's projection: institutions alone have it, and may tell."""
    public = bench.corpus.public[:most]
    return columns_of(bench, public)[0], public


def targets_of(bench: Bench, rows: NDArray[np.int64]) -> Array:
    """(n, C) targets, as an institution uploads them."""
    return 0.5 - np.eye(bench.classes)[bench.labels(rows)]


class Pairs(NamedTuple):
    """What a decoder is fitted on, and what it is put to."""

    own: Array
    """(p, d) signals of the attacker's own rows."""
    rows: NDArray[np.int64]
    """(p,) of the table."""
    seen: Array
    """(n, d) signals of the victim's rows, of which there may be more than are looked at."""


What = Literal["data", "target"]
Fit = Callable[[Array, Tensor, int], Callable[[Array], Tensor]]
"""From signals, their images and a seed to a decoder."""
Make = Callable[[Bench, int, int, What], Pairs]
"""From a bench, how many public images, a seed, and what to look at (``data``, ``target``) to pairs."""


def _from_run(party: str) -> Make:
    """All bytes that ``party`` can get, and pairs of its own making under the same joint key."""

    @lru_cache(maxsize=4)
    def both(bench: Bench, most: int, seed: int) -> dict[What, Pairs]:
        read = ciphertexts.Read(View.of(bench.run, party))
        columns, public = _own_columns(bench, most)
        made = ciphertexts.of_rows(read.scheme, read.layout, columns, targets_of(bench, public))
        chunks = ciphertexts.own_chunks(read.scheme, made, read.encryption_key(), len(read.manifest.custodians))
        own, victim = Uploaded(read.scheme, read.layout, 0, len(columns), chunks), read.uploaded(bench.victim)
        kinds: tuple[What, ...] = get_args(What)
        return {what: Pairs(own.signals(what=what), public, victim.signals(what=what)) for what in kinds}

    return lambda bench, most, seed, what: both(bench, most, seed)[what]


def _with_helper(bench: Bench, most: int, seed: int, what: What) -> Pairs:
    """Pairs of the run itself: a colluding institution's rows and uploads."""
    helper = bench.names[0]
    read = ciphertexts.Read(View.pooled([View.of(bench.run, "server"), View.of(bench.run, helper)]))
    own, seen = (read.uploaded(name).signals(what=what) for name in (helper, bench.victim))
    return Pairs(own, bench.train[helper], seen)


CUSTODIANS = 3


def _staged(colluding: int) -> Make:
    """Uploads to :data:`CUSTODIANS` custodians in one process, of whom so many collude."""

    def make(bench: Bench, most: int, seed: int, what: What) -> Pairs:
        scheme, private = Scheme(bench.config.ckks, f"{seed:064x}"), bench.corpus.private
        columns, public = _own_columns(bench, most)
        layout = Layout(scheme.slots, columns.shape[1], bench.classes, len(private), 1, 1, 1, (len(private),))
        out = []
        for x, rows in ((columns, public), (columns_of(bench, private)[0], private)):
            made = ciphertexts.of_rows(scheme, layout, x, targets_of(bench, rows))
            stage = ciphertexts.Stage.make(scheme, [one for one in made if one.place[1] == what], CUSTODIANS)
            uploaded = Uploaded(scheme, layout, 0, len(x), stage.chunks)
            out.append(uploaded.signals(stage.known_to(colluding), what))
        return Pairs(out[0], public, out[1])

    return make


def _linear(signals: Array, columns: Array, seen: Array, true: Array) -> float:
    """Correlation of the victim's columns with what a linear fit on the attacker's own pairs makes of its signals."""
    scale = signals.std(axis=0) + 1e-300
    fit = np.linalg.lstsq((signals - signals.mean(axis=0)) / scale, columns[:, :-1], rcond=None)[0]
    return correlation((seen - signals.mean(axis=0)) / scale @ fit, true[:, :-1])


# --------------------------------------------------------------------------- three attacks on each view


def decoded(bench: Bench, pairs: Pairs, seed: int, fit: Fit) -> tuple[list[Trial], list[Trial]]:
    """Claims about the victim's rows, and about signals that are nobody's."""
    decoder = fit(pairs.own, bench.corpus.read(pairs.rows, SIZE), seed)
    at = np.arange(len(pairs.seen))
    return (
        [Trial(features.claims(decoder, pairs.seen, True), at)],
        [Trial(features.claims(decoder, shuffled(pairs.seen, seed), True), at)],
    )


def labelled(pairs: Pairs, own: NDArray[np.int64], true: NDArray[np.int64], seed: int) -> Found:
    """The commonest class against the others (label leak, arXiv 2102.08504), by a logistic regression on the
    attacker's own pairs; control: signals that are nobody's."""
    common = int(np.bincount(true).argmax())
    centre, scale = pairs.own.mean(axis=0), pairs.own.std(axis=0) + 1e-300
    fit = LogisticRegression(C=0.1, max_iter=300).fit((pairs.own - centre) / scale, own == common)
    said = [fit.decision_function((x - centre) / scale) for x in (pairs.seen, shuffled(pairs.seen, seed))]
    told = [told_apart(score[true == common], score[true != common]) for score in said]
    return Found(told=told[0], control_told=told[1])


def _family(key: str, title: str, threat: str, make: Make, assumes: str, network: bool = True) -> None:
    """The rows of one view: two decoders, and labels. ``focal-blind.all-keys`` is what each shows to work."""

    def images(fit: Fit) -> Run:
        def run(bench: Bench, threat: Threat, seed: int) -> Found:
            pairs = make(bench, threat.knows.public_images, seed, "data")
            pairs = pairs._replace(seen=pairs.seen[: len(bench.corpus.private)])
            trials, control = decoded(bench, pairs, seed, fit)
            columns, true = (columns_of(bench, rows)[0] for rows in (pairs.rows, bench.corpus.private))
            return Found(trials, control, correlation=_linear(pairs.own, columns, pairs.seen, true))

        return run

    def labels(bench: Bench, threat: Threat, seed: int) -> Found:
        pairs = make(bench, threat.knows.public_images, seed, "target")
        private = bench.corpus.private
        pairs = pairs._replace(seen=pairs.seen[: len(private)])
        return labelled(pairs, bench.labels(pairs.rows), bench.labels(private), seed)

    name, teeth = f"focal-blind.{key}", "focal-blind.all-keys"
    reproduced = "blind" if key == "server" else None
    scenario(name, title.format("decoder"), threat, assumes, teeth, reproduced)(images(Decoder.fit))
    if network:
        scenario(
            f"{name}-network", title.format("convolutional decoder"), threat, assumes, f"{teeth}-network", reproduced
        )(images(Generator.fit))
        scenario(f"{name}-labels", title.format("labels"), threat, LABELS, f"{teeth}-labels", None)(labels)


BYTES = (
    f"all bytes of the victim's upload; decoder of {SIZE} px on own pairs under the same joint key, "
    "the projection known"
)
LABELS = "all bytes of the victim's targets, the commonest class against the others; own pairs under the same key"
STAGED = f"uploads to {CUSTODIANS} custodians in one process; "

_family("server", "FOCAL, blind: {} on ciphertexts", "passive-server", _from_run("server"), BYTES)
_family("outsider", "FOCAL, blind: {} on stored bytes", "outsider", _from_run(OUTSIDER), BYTES, network=False)
_family("custodian", "FOCAL, blind: {} on what the guard may fetch", "custodian", _from_run("custodian-1"), BYTES)
_family(
    "server-and-hospital",
    "FOCAL, blind: {} on ciphertexts, pairs of the run itself",
    "server-and-hospital",
    _with_helper,
    "the first institution's own rows, images and uploads are the pairs",
    network=False,
)
_family(
    "server-and-custodians",
    "FOCAL, blind: {} on what all custodians but one leave",
    "server-and-custodians",
    _staged(CUSTODIANS - 1),
    f"{STAGED}masks and key shares of {CUSTODIANS - 1} known",
)
_family(
    "all-keys",
    "control: all custodians of FOCAL together, {}",
    "all-keys",
    _staged(CUSTODIANS),
    f"{STAGED}all masks and key shares known",
)


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
