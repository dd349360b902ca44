"""The benchmark's scan of a run's ring elements finds a second sample of one secret, and nothing without it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from focal.attacks.published import Published
from focal.attacks.scenarios.ring import plant, scanned
from focal.ckks.scheme import Scheme
from focal.config import CkksConfig
from focal.custody import keys
from focal.measure.leaks import Leak, Relations

RUN = b"ring" * 8


def test_a_ceremony_has_no_small_combination_and_one_with_a_second_sample_has() -> None:
    scheme = Scheme(CkksConfig(), RUN.hex())
    share, published = keys.SecretShare.draw(scheme, RUN), Published(scheme, [1])
    published.add_keys(RUN)
    with ThreadPoolExecutor(2) as pool:
        made = list(share.first_round([1], pool))
    for (name, kind), data in zip(keys.first_round_kinds([1]), made, strict=True):
        published.add("custodian", name, kind, data)
    honest = scanned(published, 0)
    assert honest.found == 0 and honest.looked == sum(map(len, published.families.values()))
    plant(published)
    assert scanned(published, 0).found >= 1 and scanned(published, 1).found >= 1


def test_a_combination_counts_as_found_and_none_does_not() -> None:
    fields = {"method": "m", "title": "t", "threat": "x", "active": False, "seed": 0, "assumes": "", "seconds": 0.0}
    for found in (0, 2):
        relations = Relations(found=found, looked=9)
        leak = Leak(name="a.b", configuration="0" * 64, teeth="a.b", relations=relations, **fields)
        assert leak.succeeds == (found > 0) and not leak.beats
