"""Every attack finds what is there to find, and nothing in messages that depend on no image: at tiny sizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from leaking import CLASSES, SIDE, leaks
from torch import nn

from focal.attacks import april, clients, coalition, features, imprint, inversion
from focal.attacks.clients import Batch, Update
from focal.attacks.hijack import Client
from focal.attacks.membership import membership
from focal.attacks.scores import Claims, Private, judge
from focal.attacks.view import View


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.GELU(), nn.Flatten(), nn.Linear(4 * 36, CLASSES))


def batch(images: torch.Tensor, n: int) -> Batch:
    return Batch(images[:n], torch.arange(n) % CLASSES)


def control(sent: Update) -> View:
    return clients.seen("server", clients.random_like(sent, np.random.default_rng(0)))


def of_imprint(images: torch.Tensor) -> tuple[nn.Module, Callable[[View], Claims]]:
    return imprint.imprint(small(), images[80:], 256), lambda view: imprint.from_imprint(view, SIDE, 8)


def of_trap(images: torch.Tensor) -> tuple[nn.Module, Callable[[View], Claims]]:
    return imprint.trap(small(), SIDE, 512, 0), lambda view: imprint.from_trap(view, SIDE, 8)


@pytest.mark.parametrize(("rigged", "least"), [(of_imprint, 7), (of_trap, 2)])
def test_rigged_models_copy_images(images: torch.Tensor, rigged: Callable, least: int) -> None:
    model, read = rigged(images)
    sent = clients.gradients(model, batch(images, 8))
    assert leaks(read(clients.seen("server", sent)), images, 8) >= least
    assert leaks(read(control(sent)), images, 8) == 0


def test_an_imprint_block_reads_local_steps_and_secure_sums(images: torch.Tensor) -> None:
    model = imprint.imprint(small(), images[80:], 256, gain=1e-3)
    stepped = clients.update(model, batch(images, 8), 4, 0.05)
    assert leaks(imprint.from_imprint(clients.seen("server", stepped), SIDE, 8), images, 8) >= 5
    one = batch(images, 9)
    parts = [clients.gradients(model, Batch(*p)) for p in zip(one.images.split(3), one.labels.split(3), strict=True)]
    assert leaks(imprint.from_imprint(clients.seen("server", clients.added(parts)), SIDE, 9), images, 9) >= 7


def test_noise_of_a_stated_size_hides_what_the_imprint_block_copied(images: torch.Tensor) -> None:
    model, read = of_imprint(images)
    sent, rng = clients.gradients(model, batch(images, 8)), np.random.default_rng(1)
    for noisy in (clients.with_gaussian_noise(sent, 1.0, 1.0, rng), clients.with_poisson_noise(sent, 3, 1, 0.25, rng)):
        assert leaks(read(clients.seen("server", noisy)), images, 8) == 0


def test_clipping_and_noise_are_as_stated() -> None:
    sent = {"a": np.full((50, 40), 3.0, np.float32), "b": np.full(100, 4.0, np.float32)}
    norm = np.sqrt(sum(float(np.square(v).sum()) for v in clients.clipped(sent, 2.0).values()))
    assert norm == pytest.approx(2.0, rel=1e-5)
    nothing = {name: np.zeros_like(v) for name, v in sent.items()}
    drawn = clients.with_gaussian_noise(nothing, 2.0, 1.5, np.random.default_rng(0))["a"]
    assert drawn.std() == pytest.approx(3.0, rel=0.05)
    spread = clients.with_poisson_noise(sent, 2.0, 1.0, 1.0, np.random.default_rng(0))
    cut = clients.clipped(sent, 2.0)
    size = np.sqrt(sum(float(np.square(spread[name] - cut[name]).sum()) for name in sent))
    assert size == pytest.approx(2.0, rel=0.05)


def test_position_embeddings_give_the_image_away(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=CLASSES)
    larger = torch.nn.functional.interpolate(images[:80], 32, mode="bilinear")
    sent = clients.gradients(april.Scaled(vit), Batch(larger[:1], torch.tensor([1])))
    read = april.from_positions(clients.seen("server", sent), 32)
    assert float((read.images - larger[:1]).abs().max()) < 1e-3
    none = april.from_positions(control(sent), 32)
    assert judge(none, Private(larger, np.zeros(80, np.int64), np.arange(1))).leaked.k == 0


def test_a_gradient_is_inverted(images: torch.Tensor) -> None:
    model = inversion.small_network(CLASSES, SIDE, 0)
    sent = clients.gradients(model, Batch(images[:1], torch.tensor([2])))
    assert inversion.label_of(clients.seen("server", sent, model)) == 2
    search = inversion.Search(steps=150)
    found = inversion.invert(clients.seen("server", sent, model), model, None, SIDE, search, 0)
    assert leaks(Claims(found.images, np.arange(1)), images, 1) == 1
    none = inversion.invert(control(sent), model, None, SIDE, search, 0)
    assert leaks(Claims(none.images, np.arange(1)), images, 1) == 0


def test_the_victim_takes_the_steps_that_it_is_told_and_no_others(images: torch.Tensor) -> None:
    client = Client(images[:8], 4, 1e-2, 0)
    before = [p.detach().clone() for p in client.segment.parameters()]
    sent = client.send(4)
    client.take(torch.zeros_like(sent))
    assert all(torch.equal(a, b) for a, b in zip(before, client.segment.parameters(), strict=True))
    client.send(4)
    client.take(torch.ones_like(sent))
    assert not all(torch.equal(a, b) for a, b in zip(before, client.segment.parameters(), strict=True))
    assert client.send_all().shape[0] == 8


def signals(images: torch.Tensor) -> np.ndarray:
    """A stand-in for pooled features: 60 fixed random averages of an image."""
    mix = np.random.default_rng(0).standard_normal((3 * SIDE * SIDE, 60))
    return images.flatten(1).double().numpy() @ mix


def test_a_decoder_reads_features_and_nothing_else(images: torch.Tensor) -> None:
    seen = signals(images)
    decoder = features.Decoder.fit(seen[80:], images[80:], 0)
    assert leaks(features.claims(decoder, seen[:80], True), images, 80) > 25
    noise = np.random.default_rng(1).standard_normal(seen.shape)
    blind = features.Decoder.fit(noise[80:], images[80:], 0)
    assert leaks(features.claims(blind, noise[:80], True), images, 80) <= 2 * CLASSES


def test_a_heads_gradient_of_one_row_is_its_features_and_of_many_a_mixture(images: torch.Tensor) -> None:
    own, labels = signals(images)[:8], np.array([0, 0, 0, 1, 1, 1, 2, 3])
    weights, bias = np.zeros((CLASSES, 60)), np.zeros(CLASSES)
    one = features.head_gradient(own[:1], labels[:1], weights, bias)
    np.testing.assert_allclose(features.from_head(View("server", one, {}, {}), 1), own[:1], rtol=1e-9)
    many = features.from_head(View("server", features.head_gradient(own, labels, weights, bias), {}, {}), 8)
    assert 1 <= len(many) <= CLASSES
    assert np.abs(many[:, None] - own[None]).max(axis=2).min() > 1e-3


def rows(n: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dim)), rng.integers(0, CLASSES, n)


def memorise(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.solve(x.T @ x + 1e-3 * np.eye(x.shape[1]), x.T @ (2.0 * np.eye(CLASSES)[y] - 1))


def test_membership_of_a_head_that_memorises_and_of_one_that_saw_neither() -> None:
    members, others = rows(60, 50, 0), rows(60, 50, 1)
    assert membership(memorise(*members), members, others, memorise, 0).auc > 0.85
    unrelated = membership(memorise(*rows(60, 50, 2)), members, others, memorise, 0)
    assert abs(unrelated.auc - 0.5) < 0.15


def test_a_coalition_has_the_last_institutions_moments_to_the_bit() -> None:
    every = rows(90, 20, 0)[0]
    last = coalition.last_one(coalition.moments_of(every), coalition.moments_of(every[:60]))
    np.testing.assert_allclose(last.mean, every[60:].mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(last.second, every[60:].T @ every[60:] / 30, atol=1e-12)
    fewer = coalition.last_one(coalition.moments_of(every), coalition.moments_of(every[:80]))  # 10 rows, 20 dimensions
    members, strangers = coalition.leverage(fewer, every[80:]), coalition.leverage(fewer, rows(50, 20, 3)[0])
    assert members.min() > strangers.max()
