"""Attacks that train networks of their own: each finds what is there to find, and nothing where nothing is."""

from __future__ import annotations

import numpy as np
import torch
from leaking import SIDE, leaks

from focal.attacks import features
from focal.attacks.generator import Generator
from focal.attacks.hijack import Client, Hijack, Server, hijack


def signals(images: torch.Tensor) -> np.ndarray:
    """A stand-in for pooled features: 60 fixed random averages of an image."""
    mix = np.random.default_rng(0).standard_normal((3 * SIDE * SIDE, 60))
    return images.flatten(1).double().numpy() @ mix


def test_a_hijacked_segment_is_read_and_one_that_is_told_noise_is_not(images: torch.Tensor) -> None:
    """At 16 pixels and so few steps hardly any image leaks; how close claims come is seen long before."""
    small, settings = torch.nn.functional.interpolate(images, 16, mode="area"), Hijack(steps=250, width=8)
    noise, found = torch.Generator().manual_seed(0), []
    for answer in (None, lambda told: told.std() * torch.randn(told.shape, generator=noise)):
        server = Server(small[80:], settings, 0)
        read = hijack(Client(small[:80], settings.width, settings.victim_rate, 0), server, settings, answer)
        own, other = (x - x.mean(dim=0) for x in (read.flatten(1), small[:80].flatten(1)))
        found.append(float(torch.nn.functional.cosine_similarity(own, other, dim=1).mean()))
        with torch.no_grad():  # what the pilot sends is read in either case
            assert float((server.decoder(server.pilot(small[:80])) - small[:80]).square().mean()) < 0.02
    assert found[0] > found[1] + 0.05, found


def test_a_convolutional_decoder_reads_signals_and_nothing_in_noise(images: torch.Tensor) -> None:
    known, noise = signals(images), np.random.default_rng(1).standard_normal((160, 60))
    for seen, least, most in ((known, 20, 80), (noise, 0, 8)):
        decoder = Generator.fit(seen[80:], images[80:], 0, steps=300)
        found = leaks(features.claims(decoder, seen[:80], True), images, 80)
        assert least <= found <= most, found
