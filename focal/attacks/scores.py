"""What counts as a leak, and how sure the count is.

::

    claims (m, 3, s, s) --nearest private image--> named j --PSNR, SSIM against j--> leaked images j, each once
      about given rows:   leaked if j is the claimed row                (row i's ciphertext decodes to image i)
      about a batch:      leaked if j is in the batch                   (32 images, in no order)

    mean image, random public images --the same criterion--> what an attacker claims who has seen nothing

An image leaks if the claim's nearest neighbour among **all** private images of the institution (of its label, where
claims name a row) is the true one, *and* PSNR >= 19 dB or SSIM >= 0.5. At most as many claims as images are counted,
and two claims that name one image leak one image. So a picture that looks like every fundus, which reaches 19 dB on
many of them, names one of them at most.

Counts come with Wilson's 95 % interval; 0 of 512 is "at most 0.7 %". PSNR and SSIM are torchmetrics', on [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from focal.errors import FocalError

PSNR = 19.0
"""dB; the usual line of the literature on gradient inversion."""
SSIM = 0.5
Z95 = 1.959963984540054
"""Quantile 0.975 of the normal distribution."""
CHUNK = 64
"""Images whose distances or SSIM are computed at once."""


class Count(NamedTuple):
    """k of n, with Wilson's 95 % interval."""

    k: int
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        if self.k == 0:
            return f"0 of {self.n} (at most {100 * self.high:.2g} %)"
        return f"{self.k} of {self.n} ({100 * self.low:.3g} to {100 * self.high:.3g} %)"


def wilson(k: int, n: int) -> Count:
    """Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927)."""
    if not 0 <= k <= n or n < 1:
        raise FocalError(f"{k} of {n} is no count")
    p, z2 = k / n, Z95**2
    middle, half = p + z2 / (2 * n), Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)
    return Count(k, n, 0.0 if k == 0 else low, 1.0 if k == n else high)


@dataclass(frozen=True)
class Private:
    """The images that an attack is scored on. Attacks never see it."""

    images: Tensor
    """(n, 3, s, s) in [0, 1]: all of the institution's that a claim may be mistaken for."""
    labels: NDArray[np.int64]
    """(n,) the class of each."""
    target: NDArray[np.int64]
    """(t,) which of them were attacked."""


@dataclass(frozen=True)
class Claims:
    """What an attack says that the private images are."""

    images: Tensor
    """(m, 3, s, s) in [0, 1], the attack's best first."""
    rows: NDArray[np.int64] | None = None
    """(m,) claim i is about attacked image ``rows[i]``, counted in the order in which it was attacked; None: the attack
    cannot say which is which."""


class Judged(NamedTuple):
    """How good one attack's claims are."""

    leaked: Count
    psnr: float
    """dB, mean over the attacked images of the best claim about each; -inf without claims."""
    ssim: float
    best: list[tuple[int, int]]
    """(claim, private image) of the pairs that come closest, the best first; each image once."""
    each: list[tuple[int, float, bool]]
    """(claim, PSNR, leaked) of those pairs."""


def judge(claims: Claims, private: Private) -> Judged:
    """Count the leaked images among ``private.target``. Raises :class:`FocalError` for claims that are no images of
    that size or name no attacked row."""
    n, shape = len(private.target), private.images.shape[1:]
    images = claims.images[:n].clamp(0, 1)
    if images.shape[1:] != shape or not bool(torch.isfinite(images).all()):
        raise FocalError(
            f"an attack claims images of shape {tuple(images.shape[1:])}, the private ones have {tuple(shape)}"
        )
    if not len(images):
        return Judged(wilson(0, n), -math.inf, 0.0, [], [])
    errors = _squared_errors(images, private.images)
    rows = None if claims.rows is None else np.asarray(claims.rows)[:n]
    if rows is not None and (rows.min() < 0 or rows.max() >= n):
        raise FocalError(f"an attack claims to know row {int(rows.max())}, {n} were attacked")
    about: NDArray[np.int64]
    if rows is None:
        about = errors.argmin(axis=1)
        named = np.isin(about, private.target)
    else:
        about = private.target[rows]
        others = private.labels[None, :] != private.labels[about][:, None]
        named = np.where(others, np.inf, errors).argmin(axis=1) == about
    against = private.images[torch.from_numpy(about)].float()
    psnr, ssim = _psnr(images.float(), against), _ssim(images.float(), against)
    good = named & ((psnr >= PSNR) | (ssim >= SSIM))
    hit = np.unique(about[good])
    order = np.lexsort([-psnr, ~good])
    best, seen = [], set()
    for i in order.tolist():
        if (j := int(about[i])) not in seen and j in private.target:
            best.append((i, j))
            seen.add(j)
    kept = [i for i, _ in best]
    return Judged(
        wilson(len(hit), n),
        float(psnr[kept].mean()) if kept else float(psnr.mean()),
        float(ssim[kept].mean()) if kept else float(ssim.mean()),
        best,
        [(i, float(psnr[i]), bool(good[i])) for i in kept],
    )


class Trial(NamedTuple):
    """One batch that was attacked, and what was claimed of it."""

    claims: Claims
    target: NDArray[np.int64]
    """(t,) positions of the batch among the private images."""


class Total(NamedTuple):
    """The trials of one attack together."""

    leaked: Count
    psnr: float | None
    """dB, mean over trials that claimed anything."""
    ssim: float | None
    best: list[tuple[int, int, int]]
    """(trial, claim, private image) of the pairs that come closest, leaked ones first."""


def judge_all(trials: Sequence[Trial], private: Private) -> Total:
    """Count over all trials, each against its own batch and mistaken for any of the private images."""
    found = [judge(trial.claims, replace(private, target=trial.target)) for trial in trials]
    some = [one for one in found if one.best]
    best = [(t, claim, image) for t, one in enumerate(found) for claim, image in one.best]
    quality = {(t, claim): (psnr, good) for t, one in enumerate(found) for claim, psnr, good in one.each}
    best.sort(key=lambda pair: (not quality[pair[:2]][1], -quality[pair[:2]][0]))
    return Total(
        wilson(sum(one.leaked.k for one in found), sum(one.leaked.n for one in found)),
        float(np.mean([one.psnr for one in some])) if some else None,
        float(np.mean([one.ssim for one in some])) if some else None,
        best,
    )


def baselines(trials: Sequence[Trial], private: Private, public: Tensor, seed: int) -> dict[str, Total]:
    """What is claimed by somebody who has ``public`` (p, 3, s, s) images and no view at all: their mean for everybody,
    and one of them at random for each. As many as there are images, and about rows where the attack's claims are."""
    rng, mean = np.random.default_rng([seed, 20]), public.mean(dim=0, keepdim=True)
    means, drawn = [], []
    for trial in trials:
        n = len(trial.target)
        rows = None if trial.claims.rows is None else np.arange(n)
        means.append(Trial(Claims(mean.expand(n, -1, -1, -1), rows), trial.target))
        drawn.append(Trial(Claims(public[torch.from_numpy(rng.integers(0, len(public), n))], rows), trial.target))
    return {"mean": judge_all(means, private), "random": judge_all(drawn, private)}


def _squared_errors(claims: Tensor, images: Tensor) -> NDArray[np.float64]:
    """(m, n) mean squared error of every pair, in double precision: close images differ late."""
    flat = images.flatten(1).double()
    parts = [torch.cdist(part.flatten(1).double(), flat).square() for part in claims.split(CHUNK)]
    return (torch.cat(parts) / flat.shape[1]).numpy()


def _psnr(claims: Tensor, images: Tensor) -> NDArray[np.float64]:
    """(m,) dB, 100 at most: what is exact has no finite one."""
    found = peak_signal_noise_ratio(claims, images, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return found.clamp(max=100.0).double().numpy()


def _ssim(claims: Tensor, images: Tensor) -> NDArray[np.float64]:
    """(m,)"""
    pairs = zip(claims.split(CHUNK), images.split(CHUNK), strict=True)
    parts = [structural_similarity_index_measure(a, b, data_range=1.0, reduction="none") for a, b in pairs]
    return torch.cat([part.reshape(-1) for part in parts]).double().numpy()  # type: ignore[union-attr]


# --------------------------------------------------------------------------- attacks that claim no images


class Told(NamedTuple):
    """How well a score tells two kinds of rows apart."""

    auc: float
    """Area under the ROC curve; 0.5: not at all."""
    tpr: float
    """True positives where 1 % of the others are taken for positive."""
    n: int
    """Rows of both kinds together."""


def told_apart(positive: ArrayLike, negative: ArrayLike) -> Told:
    """Scores of those that are (members, patients with the disease), and of those that are not. Raises
    :class:`FocalError` where either is empty."""
    a, b = np.asarray(positive, np.float64).ravel(), np.asarray(negative, np.float64).ravel()
    if not len(a) or not len(b):
        raise FocalError("nothing to tell apart: there are rows of one kind only")
    truth, score = np.repeat([1, 0], [len(a), len(b)]), np.concatenate([a, b])
    false, true, _ = roc_curve(truth, score, drop_intermediate=False)
    return Told(float(roc_auc_score(truth, score)), float(true[false <= 0.01].max()), len(truth))


def correlation(claimed: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """Mean over rows of the correlation of claimed and true features (n, d), each column centred by the true mean, so
    that an attacker who claims the mean for everybody gets 0."""
    a, b = claimed - true.mean(axis=0), true - true.mean(axis=0)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean(np.where(norms > 0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1), 0.0)))
