"""An active server of plaintext split learning: it has no use for the task, and steers the lower segment instead.

::

    server   public images --pilot--> z' --decoder--> images        trained together, until z' gives images back
                                      |
                              discriminator: is it z', or z?
                                      |
    victim   own images --lower segment--> z ---^      gets d (how unlike z' is z) / d z, and takes a step with it

Pasquini, Ateniese and Bernaschi, "Unleashing the Tiger: Inference Attacks on Split Learning", CCS 2021 (FSHA). What the
victim is told are gradients of a loss that it never sees, so it follows. When z cannot be told from z', the decoder of
z' reads z. The server needs public images of the same kind, and many steps: :class:`Hijack` says how many.

The victim's segment is honest and starts at random; the server knows the shape of what it sends, and nothing else. The
distance of the two is Wasserstein's with a penalty on the gradient, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Hijack:
    """How long, and how large."""

    steps: int = 1500
    batch: int = 32
    rate: float = 2e-3
    """Of pilot and decoder."""
    victim_rate: float = 5e-4
    """Of the lower segment; the victim's own choice. At 1e-4, the paper's, it takes many times as long."""
    critic_rate: float = 1e-3
    penalty: float = 10.0
    """Of the discriminator's gradient; the paper's is 500, for a network and rates that are smaller."""
    width: int = 16
    """Channels of what travels."""


class Client:
    """An honest institution of split learning, with the lower segment that it trains as it is told."""

    def __init__(self, images: Tensor, width: int, rate: float, seed: int) -> None:
        self.images, self.order = images, torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.segment = nn.Sequential(
                nn.Conv2d(3, width, 3, stride=2, padding=1), nn.GELU(),
                nn.Conv2d(width, width, 3, stride=2, padding=1), nn.GELU(),
                nn.Conv2d(width, width, 3, padding=1),
            )  # fmt: skip
        self.optimizer = torch.optim.Adam(self.segment.parameters(), rate)

    def send(self, count: int) -> Tensor:
        """What the server is sent of a random batch."""
        at = torch.randint(len(self.images), (count,), generator=self.order)
        self._sent = self.segment(self.images[at])
        return self._sent.detach()

    def take(self, gradient: Tensor) -> None:
        """A step with the server's answer, d loss / d what was sent."""
        self.optimizer.zero_grad()
        self._sent.backward(gradient)
        self.optimizer.step()

    def send_all(self) -> Tensor:
        """Every own row once, in order, at the end: an epoch as any other."""
        with torch.no_grad():
            return self.segment(self.images)


class Server:
    """The attacker: pilot, decoder and discriminator, on public images of its own."""

    def __init__(self, public: Tensor, settings: Hijack, seed: int) -> None:
        self.public, self.settings, self.draw = public, settings, torch.Generator().manual_seed(seed + 1)
        w = settings.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self.pilot = nn.Sequential(
                nn.Conv2d(3, w, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(w, w, 3, stride=2, padding=1)
            )
            self.decoder = nn.Sequential(
                nn.Conv2d(w, w, 3, padding=1), nn.GELU(),
                nn.ConvTranspose2d(w, w, 4, stride=2, padding=1), nn.GELU(),
                nn.ConvTranspose2d(w, 3, 4, stride=2, padding=1), nn.Sigmoid(),
            )  # fmt: skip
            self.critic = nn.Sequential(
                nn.Conv2d(w, 2 * w, 3, stride=2, padding=1), nn.LeakyReLU(0.2),
                nn.Conv2d(2 * w, 2 * w, 3, stride=2, padding=1), nn.LeakyReLU(0.2),
                nn.Flatten(), nn.LazyLinear(1),
            )  # fmt: skip
            with torch.no_grad():
                self.critic(self.pilot(public[:1]))
        both = [*self.pilot.parameters(), *self.decoder.parameters()]
        self.autoencoding = torch.optim.Adam(both, settings.rate)
        self.telling = torch.optim.Adam(self.critic.parameters(), settings.critic_rate, betas=(0.5, 0.9))

    def answer(self, sent: Tensor) -> Tensor:
        """Learn from one batch, and say the gradient that makes the next one more like the pilot's."""
        at = torch.randint(len(self.public), (len(sent),), generator=self.draw)
        images = self.public[at]
        piloted = self.pilot(images)
        self.autoencoding.zero_grad()
        functional.mse_loss(self.decoder(piloted), images).backward()
        self.autoencoding.step()
        own = piloted.detach()
        self.telling.zero_grad()
        loss = self.critic(sent).mean() - self.critic(own).mean()
        (loss + self.settings.penalty * self._steepness(own, sent)).backward()
        self.telling.step()
        seen = sent.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(-self.critic(seen).mean(), seen)
        return gradient

    def _steepness(self, own: Tensor, sent: Tensor) -> Tensor:
        """Gulrajani et al., "Improved Training of Wasserstein GANs", 2017."""
        mix = torch.rand(len(own), 1, 1, 1, generator=self.draw)
        between = (mix * own + (1 - mix) * sent).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        return (slope.flatten(1).norm(dim=1) - 1).square().mean()

    def read(self, sent: Tensor) -> Tensor:
        """Images, by the decoder of the pilot's."""
        with torch.no_grad():
            return self.decoder(sent)


def hijack(
    client: Client, server: Server, settings: Hijack, answer: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """(n, 3, s, s) what the server reads of every row after ``settings.steps`` batches; ``answer``: what the victim is
    told instead, for a control."""
    for _ in range(settings.steps):
        sent = client.send(settings.batch)
        told = server.answer(sent)
        client.take(told if answer is None else answer(told))
    return server.read(client.send_all())
