"""Features of a frozen segment, and gradients of heads over them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from focal.attacks import features
from focal.attacks.bench import Bench
from focal.attacks.features import Decoder
from focal.attacks.hijack import Client, Hijack, Server, hijack
from focal.attacks.scenarios.registry import SIZE, Array, Found, scenario
from focal.attacks.scores import Claims, Trial, correlation, told_apart
from focal.attacks.threat import Threat
from focal.attacks.view import View


@lru_cache(maxsize=2)
def public_decoder(bench: Bench, most: int, seed: int) -> Decoder:
    """From raw features to images, fitted on public ones."""
    public = bench.corpus.public[:most]
    return Decoder.fit(bench.features(public), bench.corpus.read(public, SIZE), seed)


def shuffled(values: Array, seed: int) -> Array:
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
    decoder, at = public_decoder(bench, threat.knows.public_images, seed), np.arange(len(own))
    view = View("server", {"activations": own}, {}, {})
    seen: Array = view.received["activations"]
    return Found(
        [Trial(features.claims(decoder, seen, True), at)],
        [Trial(features.claims(decoder, shuffled(seen, seed), True), at)],
        correlation=correlation(seen, own),
    )


HIJACKED = 32
"""Pixels of the images whose lower segment is hijacked."""


@scenario(
    "split.hijack",
    "plaintext split learning: lower segment hijacked (FSHA)",
    "active-server",
    f"{Hijack().steps} batches of {Hijack().batch} images of {HIJACKED} px, small lower segment that starts unknown, "
    f"its rate {Hijack().victim_rate:g}",
)
def _split_hijack(bench: Bench, threat: Threat, seed: int) -> Found:
    settings, at = Hijack(), np.arange(len(bench.corpus.private))
    own, public = bench.corpus.read(bench.corpus.private, HIJACKED), bench.corpus.public[: threat.knows.public_images]
    noise = torch.Generator().manual_seed(seed)

    def random(told: Tensor) -> Tensor:
        """A gradient of that size, and of nothing."""
        return told.std() * torch.randn(told.shape, generator=noise)

    read = []
    for answer in (None, random):
        client = Client(own, settings.width, settings.victim_rate, seed)
        server = Server(bench.corpus.read(public, HIJACKED), settings, seed)
        read.append([Trial(Claims(hijack(client, server, settings, answer), at), at)])
    return Found(read[0], read[1], HIJACKED)


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
    decoder, rng = public_decoder(bench, threat.knows.public_images, seed), np.random.default_rng([seed, 29])
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


def head_of(size: int, name: str, title: str, threat: str, assumes: str, reproduced: str | None = None) -> None:
    """A scenario of gradients of the head, of batches of ``size`` images each."""

    @scenario(name, title, threat, assumes, "head-1.gradient", reproduced)
    def run(bench: Bench, threat: Threat, seed: int) -> Found:
        order = np.random.default_rng([seed, 30]).permutation(len(bench.corpus.private))
        whole = order[: len(order) // size * size]
        batches, ordered = list(whole.reshape(-1, size)), size == 1
        trials, read = _head_trials(bench, threat, seed, batches, ordered)
        decoder = public_decoder(bench, threat.knows.public_images, seed)
        noise, control, start = shuffled(read, seed), [], 0
        for trial in trials:
            n = len(trial.claims.images)
            control.append(Trial(features.claims(decoder, noise[start : start + n], ordered), trial.target))
            start += n
        right = correlation(read, bench.features(bench.corpus.private[whole])) if ordered else None
        return Found(trials, control, correlation=right)


head_of(
    1,
    "head-1.gradient",
    "gradient of a head over frozen features, one row (MAUI)",
    "passive-server",
    f"features exact from the gradient, decoder of {SIZE} px",
)
head_of(
    8,
    "head-8.gradient",
    "gradient of a head over frozen features, 8 rows",
    "passive-server",
    "every class of a batch gives one mixture of its rows",
)
head_of(
    32,
    "encrypted-fedavg.sum",
    "encrypted FedAvg: the opened sum, less one's own",
    "hospital",
    "two other institutions with 16 rows each in a step of a head",
    "encrypted-fedavg",
)
