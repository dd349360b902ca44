"""The ring itself: does a small combination of what a run publishes spell out a secret?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from focal.attacks import scan
from focal.attacks.bench import Bench
from focal.attacks.published import Published, of_view
from focal.attacks.scenarios.registry import Found, scenario
from focal.attacks.threat import Threat
from focal.attacks.view import View
from focal.ckks import ring, sampling
from focal.measure.leaks import Relations

PLANTED = "planted"


def scanned(published: Published, seed: int) -> Relations:
    """One prime of Q and one of P, others with another seed: a combination over the ring is small modulo each."""
    scheme = published.scheme
    primes = [scheme.moduli[seed % len(scheme.moduli)], scheme.extended[-1 - seed % 2]]
    found = scan.scan(published, primes=primes) + scan.under_one_mask(published) + scan.unmasked(published)
    return Relations(found=len(found), looked=sum(map(len, published.families.values())))


def plant(published: Published) -> None:
    """A second sample with the same ``a`` and secret as a custodian's first one: what every version before 2 showed.
    It differs from the first by fresh errors, and no key is needed to make it."""
    scheme = published.scheme
    family = next(name for name, own in published.families.items() if any(what.startswith("relin") for what, _ in own))
    name, first = next(one for one in published.families[family] if one[0].startswith("relinearisation/h1"))
    errors = sampling.errors(scheme.n)
    second = [
        ring.add(limb, ring.ntt((errors % q).astype(np.uint64), q, scheme.roots[q]), q)
        for limb, q in zip(first, scheme.extended, strict=False)
    ]
    published.families[family].append((f"{PLANTED} {name}", second))


ASSUMES = (
    "all that is published and what one institution opens, under every automorphism: one to three terms, "
    "by party, two primes; refreshes whose masks cancel"
)


def _family(method: str, title: str, run_of: Callable[[Bench], Path]) -> None:
    def made(bench: Bench) -> Published:
        run = run_of(bench)
        return of_view(View.pooled([View.of(run, "server"), View.of(run, bench.names[0])]))

    @scenario(
        f"{method}.scan",
        f"{title}: small combinations of ring elements",
        "server-and-hospital",
        ASSUMES,
        f"{method}.scan-planted",
    )
    def scan_run(bench: Bench, threat: Threat, seed: int) -> Found:
        return Found(relations=scanned(made(bench), seed))

    @scenario(
        f"{method}.scan-planted",
        f"control: {title}, a second sample of one secret put in",
        "server-and-hospital",
        ASSUMES,
    )
    def scan_planted(bench: Bench, threat: Threat, seed: int) -> Found:
        published = made(bench)
        plant(published)
        return Found(relations=scanned(published, seed))


_family("focal-blind", "FOCAL, blind", lambda bench: bench.run)
_family("focal-interactive", "FOCAL, interactive", lambda bench: bench.joint_run)
