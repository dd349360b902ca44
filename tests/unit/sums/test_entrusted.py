"""Sums whose masks custodians keep: what opens, what does not, and what a second list would show."""

from __future__ import annotations

import numpy as np
import pytest

from focal.custody import inputs
from focal.errors import ProtocolError
from focal.measure import histogram
from focal.measure.declared import BINS
from focal.sums import entrusted, fixed

RUN, GROUP, COUNT = b"r" * 32, b"g" * 32, 4000
SITES, CUSTODIANS = ("north", "south", "clinic-1", "clinic-2"), ("custodian-1", "custodian-2")
PRIVATE = {name: bytes([i + 1]) * 32 for i, name in enumerate((*SITES, *CUSTODIANS))}
VALUES = {name: np.arange(COUNT) % (3 + i) for i, name in enumerate(SITES)}


def pair(mine: str, other: str, site: str, custodian: str) -> bytes:
    return inputs.pair_key(PRIVATE[mine], inputs.public_key(PRIVATE[other]), RUN, site, custodian)


def vector(site: str) -> bytes:
    masks = [entrusted.mask(pair(site, name, site, name), COUNT) for name in CUSTODIANS]
    return entrusted.masked(fixed.encode(VALUES[site].astype(float), 0), masks, entrusted.veil(GROUP, RUN, site, COUNT))


def masks_of(custodian: str, sites: tuple[str, ...]) -> np.ndarray:
    """As the custodian has them, from its own private key."""
    return sum(
        (entrusted.mask(pair(custodian, s, s, custodian), COUNT) for s in sites), start=np.zeros(COUNT, np.uint64)
    )


def total(sites: tuple[str, ...]) -> np.ndarray:
    return entrusted.added([(name, vector(name)) for name in sites], COUNT)


def veils(sites: tuple[str, ...], group: bytes = GROUP) -> np.ndarray:
    return sum((entrusted.veil(group, RUN, name, COUNT) for name in sites), start=np.zeros(COUNT, np.uint64))


def uniform(words: np.ndarray) -> bool:
    """4000 highest bytes have a mean of 127.5 +- 1.2."""
    return abs(float((words >> np.uint64(56)).mean()) - 127.5) < 7


def test_the_sum_opens_for_who_has_all_masks_and_the_group_key() -> None:
    left = total(SITES) - sum(masks_of(name, SITES) for name in CUSTODIANS) - veils(SITES)
    assert (fixed.decode(left, 0) == sum(VALUES.values())).all()


def test_nobody_else_has_anything() -> None:
    """Server and custodians lack the group key; whoever has that, and all custodians but one, lacks one's masks; a
    site's vector alone opens with nothing that is ever shown."""
    all_masks = sum(masks_of(name, SITES) for name in CUSTODIANS)
    assert uniform(total(SITES)) and uniform(total(SITES) - all_masks)
    assert uniform(total(SITES) - all_masks - veils(SITES, b"h" * 32))
    assert uniform(total(SITES) - masks_of("custodian-1", SITES) - veils(SITES))
    for site in SITES:
        bare = np.frombuffer(vector(site), "<u8") - veils((site,))
        assert uniform(bare) and uniform(bare - all_masks) and uniform(bare - masks_of("custodian-1", (site,)))
    for name in CUSTODIANS:
        assert uniform(masks_of(name, SITES)), "what a custodian gives"


def test_two_lists_that_differ_by_one_show_that_one() -> None:
    """Why there is one list, and never another: this is what the ledger keeps custodians from."""
    fewer = SITES[:-1]
    shown = np.frombuffer(vector(SITES[-1]), "<u8") - veils(SITES[-1:])
    for name in CUSTODIANS:
        shown = shown - (masks_of(name, SITES) - masks_of(name, fewer))
    assert (fixed.decode(shown, 0) == VALUES[SITES[-1]]).all()
    one = shown + (masks_of("custodian-2", SITES) - masks_of("custodian-2", fewer))
    assert uniform(one), "with one custodian that gives for one list only, nothing shows"


def test_streams_are_all_different() -> None:
    streams = [entrusted.veil(GROUP, RUN, name, 8) for name in SITES] + [entrusted.veil(GROUP, b"s" * 32, "north", 8)]
    streams += [entrusted.mask(pair(s, c, s, c), 8) for s in SITES for c in CUSTODIANS]
    streams.append(entrusted.mask(GROUP, 8))
    assert len({stream.tobytes() for stream in streams}) == len(streams)


def test_vectors_of_another_length_are_their_senders() -> None:
    for bad in (b"", vector("north")[:-8], vector("north") + bytes(8), vector("north")[:-1]):
        with pytest.raises(ProtocolError, match="'clinic-1' gave"):
            entrusted.added([("north", vector("north")), ("clinic-1", bad)], COUNT)


def test_a_site_may_take_from_the_others_unnoticed() -> None:
    """Moved from where they have many rows to where they have none: the sum is one of histograms. Nobody proves what it
    hands in, and only sums are seen."""
    others = np.zeros((1, 2, BINS), np.int64)
    others[0, 0, 10], others[0, 1, 4000] = 40, 30
    takes = np.zeros_like(others)
    takes[0, 1, 4000], takes[0, 1, 0] = -25, 25
    opened = fixed.decode(sum(fixed.encode(one.ravel().astype(float), 0) for one in (others, takes)), 0)
    found = histogram.from_sum(opened, 1)
    assert histogram.pooled_roc(others)[0].auroc == 1 and histogram.pooled_roc(found)[0].auroc < 0.2
