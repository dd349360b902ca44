"""FOCAL's uploads, and what all institutions but one know together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from focal.attacks import ciphertexts, coalition, features
from focal.attacks.bench import Bench
from focal.attacks.features import Decoder
from focal.attacks.scenarios.activations import head_of, shuffled
from focal.attacks.scenarios.registry import SIZE, Array, Found, scenario
from focal.attacks.scenarios.released import columns_of
from focal.attacks.scores import Trial, correlation, told_apart
from focal.attacks.threat import Threat
from focal.attacks.view import OUTSIDER, View
from focal.ckks.scheme import Scheme
from focal.heads.linear.layout import Layout


def _victims(bench: Bench) -> NDArray[np.int64]:
    return np.arange(len(bench.corpus.private))


def _own_columns(bench: Bench, most: int) -> tuple[Array, NDArray[np.int64]]:
    """Columns of the attacker's own images, by the run's projection: institutions alone have it, and may tell."""
    public = bench.corpus.public[:most]
    return columns_of(bench, public)[0], public


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
        [Trial(features.claims(decoder, shuffled(seen, seed), True), at)],
        correlation=_linear(own.signals(), columns, seen, columns_of(bench, bench.corpus.private)[0]),
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
    columns = columns_of(bench, bench.train[helper])[0]
    return Found(
        [Trial(features.claims(decoder, seen, True), at)],
        [Trial(features.claims(decoder, shuffled(seen, seed), True), at)],
        correlation=_linear(own, columns, seen, columns_of(bench, bench.corpus.private)[0]),
    )


CUSTODIANS = 3


def _stage(bench: Bench, threat: Threat, seed: int, colluding: int) -> Found:
    config = bench.config
    scheme = Scheme(config.ckks, f"{seed:064x}")
    true, at = columns_of(bench, bench.corpus.private)[0], _victims(bench)
    columns, public = _own_columns(bench, threat.knows.public_images)
    layout = Layout(scheme.slots, true.shape[1], bench.classes, len(true), 1, 1, 1, (len(true),))
    victim = ciphertexts.Stage.make(scheme, layout, true, CUSTODIANS)
    own = ciphertexts.Stage.make(scheme, layout, columns, CUSTODIANS)
    signals = own.uploaded.signals(own.known_to(colluding))
    seen = victim.uploaded.signals(victim.known_to(colluding))
    decoder = Decoder.fit(signals, bench.corpus.read(public, SIZE), seed)
    return Found(
        [Trial(features.claims(decoder, seen, True), at)],
        [Trial(features.claims(decoder, shuffled(seen, seed), True), at)],
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


head_of(
    32,
    "focal-interactive.coalition",
    "FOCAL, interactive: the last institution's summed head gradient",
    "all-but-one",
    "32 rows a step, read off successive heads (SECURITY.md); a frozen lower segment stands in for a trained one",
)
