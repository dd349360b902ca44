"""Gradients and updates of whole networks, and sums of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from focal.attacks import april, clients, imprint, inversion
from focal.attacks.bench import Bench
from focal.attacks.clients import Batch
from focal.attacks.scenarios.registry import SIZE, Found, scenario
from focal.attacks.scores import Claims, Trial
from focal.attacks.threat import Threat
from focal.baselines.spe_fl import new_network


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
    size = min(IMPRINT, bench.segment.spec.image_size)
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
