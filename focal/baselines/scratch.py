"""Fully encrypted federated learning from scratch: no pretrained network, and weights that nobody reads before the end.

::

    institution   8 x 8 grey pixels, in the clear   W encrypted --> gradient of its rows, encrypted --+
                        ^  two refreshes of each chunk of rows  |                                     |  server adds,
    custodians          +---- masked shares, through the server +<------------ refresh of W ----------+  steps
                                                                      30 times, then W is opened to the institutions

What the abstract of Bian et al. (2026) names as the opponent, without its parameters; the model is POSEIDON (Sav et
al., NDSS 2021). The network and its encrypted gradient are :mod:`focal.heads.two_layer`'s; keys, refreshes and the
opening are made by the functions that the roles of a run call. Every share is made, packed, unpacked and checked; all
parties work in this process, one after another, so that seconds are those of all of them together, keys included (what
all institutions compute alike, once), and of no wire.

**Configuration, fixed on 2026-11-21 before the first run on any table.** Inputs: the table's images made grey,
averaged over 8 x 8 areas, pixels mapped to [-1, 1]; the first, a corner, gives its place to the constant 1, without
which squares know no linear terms. 16 hidden units with square activation, one-vs-rest outputs under the sigmoid's
cubic. 30 steps of plain SGD on 16 rows of every institution (two ciphertexts of 8), drawn without replacement until
all had their turn; one that has fewer brings all of them. Mean gradient over all rows of a step. Step size and
initial weights were chosen on 1500 generated images only (focal/data/synthetic.py), 48 rows a step: deviation
1 / sqrt(inputs) as is usual (1/4, 1/2 and 3/2 of it learned no better, by 0.003), and of the rates 0.03, 0.06, 0.1,
0.14 and 0.2 the largest of which twice as much never diverged (12 steps, 20 seeds; 200 steps, 5 seeds). On those
images it scored 0.49 after 12 steps, by chance, and 0.63 after 200. 30 steps are about the seconds of an encrypted
blind run. Whatever the tables give is reported.

**Bytes** are those of the payloads. Keys: a custodian sends its contributions and fetches the others'; an institution
fetches the joint public and evaluation keys. A step: W down, gradients up; a refresh request up to the server and down
to every custodian, a share of each up, the refreshed ciphertext down. The server draws nothing and holds no secret, so
that its bytes are the others' again and not counted.

**Secrecy** holds against a server that follows the protocol. Nobody can repeat a step, since rows are in the clear in
it, so custodians do not verify what they refresh, as they do in a run of the blind protocol; and they take the
server's word for what they open.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from focal.baselines.federated import Array
from focal.ckks import codec
from focal.ckks.evaluator import Slots
from focal.ckks.scheme import LIMBS, REFRESH_LIMBS, Scheme
from focal.config import CkksConfig
from focal.custody import refresh, release
from focal.custody.consortium import Consortium
from focal.data.rows import InstitutionRows
from focal.data.sources import ImageSource
from focal.errors import FocalError
from focal.heads import two_layer
from focal.heads.two_layer import Carried, EncryptedNetwork, NetworkLayout, Weights
from focal.measure.traffic import Traffic
from focal.task import Task, outcomes

SIDE = 8
"""Pixels of a side; the network has SIDE x SIDE inputs."""
THREADS = 2
CARRIED_NOISE = 2.0**16
"""t of the opening (:mod:`focal.custody.release`): root mean square noise of the last weights.
Those of all steps may add up, and they depend on the keys drawn: test_scratch.py has the measurements."""
WEIGHTS, GRADIENT = codec.ciphertext(LIMBS), codec.ciphertext(REFRESH_LIMBS)


@dataclass(frozen=True)
class Settings:
    """The fixed configuration; another seed is another start and other batches."""

    steps: int = 30
    batch: int = 16
    """Rows of an institution in a step."""
    rate: float = 0.06
    size: float = 1.0
    """Deviation of the initial weights, times the square root of a unit's inputs."""
    custodians: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Scratch:
    """What came of it."""

    weights: Weights
    scores: Array
    """(n, C) linear outputs on :attr:`focal.data.rows.InstitutionRows.scored`."""
    twin_scores: Array
    """The same of the plaintext twin."""
    max_abs_weight_error: float
    """Between both's weights."""
    seconds: float
    """Keys, training and opening."""
    traffic: dict[str, Traffic]
    """Of institutions, and of ``custodian-1`` and so on."""


# --------------------------------------------------------------------------- pixels and batches


def pixels(images: ImageSource, count: int) -> NDArray[np.float32]:
    """(count, 64) inputs of the first ``count`` images, from -1 to 1, the corner 1.
    Raises :class:`FocalError` for an unreadable one."""

    def small(i: int) -> NDArray[np.uint8]:
        return np.asarray(images.read(i).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)).reshape(-1)

    with ThreadPoolExecutor(THREADS) as pool:
        x = np.stack(list(pool.map(small, range(count)))).astype(np.float32) / 127.5 - 1
    x[:, 0] = 1
    return x


@dataclass(frozen=True)
class Site:
    """An institution's train rows, and the order of their turns."""

    x: Array
    """(n, 64)"""
    targets: Array
    """(n, C) = 1/2 - y"""
    turns: NDArray[np.int64]
    """(steps, rows) row numbers of every step."""


def sites(rows: Mapping[str, InstitutionRows], task: Task, settings: Settings) -> dict[str, Site]:
    """``rows``' features are :func:`pixels`. Raises :class:`FocalError` naming an institution that has no train rows,
    or other features."""
    found = {}
    for k, (name, own) in enumerate(rows.items()):
        train = own.take(own.split == "train")
        if not len(train.labels):
            raise FocalError(
                f"{name}: has no train rows", hint="leave that institution out, or mark some of its rows 'train'"
            )
        if train.features.shape[1] != two_layer.INPUTS:
            raise FocalError(
                f"{name}: its rows have {train.features.shape[1]} values, not {two_layer.INPUTS}",
                hint="give grey pixels",
            )
        labels = outcomes(train.labels, task)
        rng, n = np.random.default_rng([settings.seed, 9, k]), len(labels)
        batch = min(settings.batch, n)
        order = np.concatenate([rng.permutation(n) for _ in range(-(-settings.steps * batch // n))])
        turns = order[: settings.steps * batch].reshape(settings.steps, batch)
        found[name] = Site(train.features.astype(np.float64), 0.5 - labels.astype(np.float64), turns)
    return found


# --------------------------------------------------------------------------- training


def train_from_scratch(
    rows: Mapping[str, InstitutionRows],
    task: Task,
    settings: Settings,
    params: CkksConfig | None = None,
    threads: int = THREADS,
) -> Scratch:
    """Train on all institutions' rows, whose features are :func:`pixels`, and score their test rows.

    It ends with :meth:`Scheme.close`, which forgets the evaluation keys of the whole process. Raises
    :class:`FocalError` when rows or classes do not fit, or when the twin, which runs first, leaves the
    range that a refresh hides.
    """
    own, test = sites(rows, task, settings), InstitutionRows.union(rows).scored
    outputs = next(iter(own.values())).targets.shape[1]
    with threadpool_limits(limits=1):
        start = Weights.draw(outputs, settings.size, settings.seed)
        expected = train_twin(start, list(own.values()), settings)
        started = time.perf_counter()
        run = EncryptedRun(tuple(own), outputs, settings.custodians, params, threads)
        try:
            weights = run.net.start(start)
            for s in range(settings.steps):
                weights = run.step(s, weights, own, settings.rate)
            opened = run.open(weights)
            seconds = time.perf_counter() - started
        finally:
            run.close()
    x = test.features.astype(np.float64)
    error = max(np.abs(opened.first - expected.first).max(), np.abs(opened.second - expected.second).max())
    return Scratch(opened, opened.scores(x), expected.scores(x), float(error), seconds, run.traffic)


def train_twin(weights: Weights, own: Sequence[Site], settings: Settings) -> Weights:
    """The same steps in the clear. Raises :class:`FocalError` where a value leaves the range that a refresh hides."""
    for s in range(settings.steps):
        x, targets = (np.concatenate([getattr(site, what)[site.turns[s]] for site in own]) for what in ("x", "targets"))
        reach = two_layer.reach(weights, x, targets, settings.rate)
        if not reach < two_layer.RANGE:  # NaN compares false
            raise FocalError(
                f"from scratch: step {s} would refresh values up to {reach:.3g}, "
                f"and they must stay below {two_layer.RANGE:g}",
                hint="training diverges on these rows: a smaller step size or initial size keeps it in range",
            )
        weights = two_layer.step(weights, x, targets, settings.rate)
    return weights


class EncryptedRun:
    """Institutions ``names``, a server and custodians in this process, with keys of their own,
    counting what they send and receive."""

    def __init__(
        self, names: tuple[str, ...], outputs: int, custodians: int, params: CkksConfig | None, threads: int
    ) -> None:
        self.names, self.custodians = names, tuple(f"custodian-{i + 1}" for i in range(custodians))
        self._up = dict.fromkeys((*names, *self.custodians), 0)
        self._down = dict(self._up)
        self.run_id = secrets.token_bytes(32)
        self.scheme = Scheme(params or CkksConfig(), self.run_id.hex())
        self.layout = NetworkLayout(self.scheme.slots, outputs)
        self._pool = ThreadPoolExecutor(threads)
        self.consortium = self._make_keys()
        self.net = EncryptedNetwork(self.scheme, self.layout, self.public, threads)

    def close(self) -> None:
        """Forget all evaluation keys of the process."""
        self.net.close()
        self._pool.shutdown()
        self.scheme.close()

    @property
    def traffic(self) -> dict[str, Traffic]:
        return {name: Traffic(up=up, down=self._down[name]) for name, up in self._up.items()}

    def step(self, s: int, weights: Carried, own: Mapping[str, Site], rate: float) -> Carried:
        """One step of all: weights with all limbs -> new weights, refreshed."""
        n = sum(len(site.turns[s]) for site in own.values())
        known = (
            weights if s == 0 else Carried(*self._sent(weights, WEIGHTS, to=self.names))
        )  # everybody draws the start
        here = self.net.spread(known)  # by every institution alike, hence once
        found = []
        for name, site in own.items():
            at = site.turns[s]

            def through(items: list[str], asked: list[Any], name: str = name) -> list[Any]:
                return self._refresh(items, asked, name)

            part = self.net.gradients(f"train/{s}/{name}", here, site.x[at], site.targets[at], rate / n, through)
            found.append(Carried(*self._sent(part, GRADIENT, by=name)))
        return self.net.updated(f"train/{s}", weights, found, self._refresh)

    def open(self, weights: Carried) -> Weights:
        """By smudged shares of all custodians, to every institution."""
        return self.layout.read_weights(*map(self._opened, self.net.readable(weights)))

    # ----------------------------------------------------------------- custodians

    def _make_keys(self) -> Consortium:
        """The custodians, after both rounds of the ceremony."""
        made = Consortium(self.scheme, self.run_id, self.custodians, self.layout.rotations, self._pool)
        self.public = made.public
        for name, sent in made.sent.items():
            self._up[name] += sent
            self._down[name] += sum(made.sent.values()) - sent
        for name in self.names:
            self._down[name] += made.joint_bytes
        return made

    def _refresh(self, items: list[str], ciphertexts: list[Any], name: str | None = None) -> list[Any]:
        """Every custodian's share of each, combined by the server; for institution ``name``,
        or for the server itself."""
        asked = list(self._pool.map(lambda ct: refresh.request(self.scheme, ct), ciphertexts))
        answered = list(
            self._pool.map(self.consortium.answered, items, asked)
        )  # counted here: that runs in several threads
        for custodian in self.custodians:
            self._down[custodian] += sum(map(len, asked))
            self._up[custodian] += sum(given[custodian] for _, given in answered)
        refreshed = [ct for ct, _ in answered]
        if name is None:
            return refreshed
        self._up[name] += sum(map(len, asked))
        return self._sent(refreshed, WEIGHTS, to=(name,))

    def _opened(self, ciphertext: Any) -> Slots:
        (one,) = self._sent([release.one_limb(self.scheme, ciphertext)], codec.ciphertext(1), to=self.custodians)
        shares = self.consortium.opened(partial(release.share, noise=CARRIED_NOISE), one)
        for custodian, data in shares:
            self._up[custodian] += len(data)
            for name in self.names:
                self._down[name] += len(data)
        return release.open_slots(self.scheme, shares)

    def _sent(
        self, ciphertexts: Sequence[Any], kind: codec.Kind, *, by: str | None = None, to: Sequence[str] = ()
    ) -> list[Any]:
        """What is read from the bytes that institution ``by`` sends to the server, or the server to each of ``to``."""
        sent = [codec.pack(self.scheme, kind, self.scheme.evaluator.limbs(ct)) for ct in ciphertexts]
        if by is not None:
            self._up[by] += sum(map(len, sent))
        for name in to:
            self._down[name] += sum(map(len, sent))
        return [self.scheme.evaluator.load(codec.unpack(self.scheme, kind, data, by or "the server")) for data in sent]
