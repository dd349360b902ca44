"""Whose test results are added up, from records alone; what a manifest may say of it."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from parties import CLINICS, ROLES, with_clinics

from focal.custody import inputs
from focal.errors import ConfigError
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.net.identity import Identity
from focal.protocols.blind import plan, results
from focal.protocols.common.hearing import Heard

RUN = "7e" * 32
PEOPLE = {name: Identity.new(name) for name in [*ROLES, *CLINICS]}


def manifest(**changes: Any) -> Manifest:
    return with_clinics(PEOPLE, **changes)


PUBLIC = inputs.public_key(b"k" * 32)
FOUNDERS = ("north", "south", "west")
M = manifest(pooled_roc=True, pooled_least=2)


def board(*said: tuple[str, str, Any], scope: str = RUN) -> Heard:
    heard = Heard(M)
    for sender, topic, body in said:
        heard.add(PEOPLE[sender].sign_record(scope, topic, body))
    return heard


def handed(name: str, public: str | None = PUBLIC, topic: str = results.HANDED) -> tuple[str, str, Any]:
    return name, topic, msg.ResultsHanded(public=public, counts="ab" * 32 if public else None)


CLOSED = ("server", results.CLOSED, msg.Roster(present=(), incomplete=()))


def test_who_has_handed_in_before_the_server_closed() -> None:
    heard = board(handed("clinic-2"), handed("north"), handed("west", None), CLOSED, handed("clinic-1"))
    found = results.handed(M, heard, RUN, (*FOUNDERS, *CLINICS))
    assert list(found) == ["north", "west", "clinic-2"] and found["west"] is None


def test_outsiders_count_for_nothing() -> None:
    """Who has no model of the run, custodians, another run, another topic, a key that gives everybody the same
    secret."""
    attending = (*FOUNDERS, "clinic-1")
    useless = "00" * 32
    heard = board(
        handed("clinic-2"), handed("custodian-1"), handed("server"), handed("clinic-1", useless),
        handed("south", topic="results/other"),
    )  # fmt: skip
    assert results.handed(M, heard, RUN, attending) == {"clinic-1": None}
    assert not results.handed(M, board(handed("north"), scope="11" * 32), RUN, attending)


def test_a_list_has_enough_clinics_and_founders_or_nobody() -> None:
    everybody = (*FOUNDERS, *CLINICS)
    assert results.listed(M, everybody) == everybody == tuple(m.name for m in M.institutions)
    assert results.listed(M, [*FOUNDERS, "clinic-1"]) == () == results.listed(M, ["north", "south", *CLINICS])
    assert results.listed(M, ()) == ()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"pooled_roc": False, "pooled_by": ("age:50",)}, "are about pooled_roc"),
        ({"pooled_roc": False, "pooled_until": datetime.datetime(2027, 1, 1, tzinfo=datetime.timezone.utc)}, "about"),
        ({"pooled_by": ("age",)}, "'age' names no subgroups"),
        ({"pooled_least": 3}, "of 3 clinics are needed, this manifest has 2"),
    ],
)
def test_manifests_that_cannot_be(changes: dict[str, Any], why: str) -> None:
    plan.check_members(M)
    with pytest.raises(ConfigError, match=why):
        plan.check_members(manifest(**{"pooled_roc": True, "pooled_least": 2} | changes))


def test_who_signs_is_told_what_is_added_up() -> None:
    date = datetime.datetime(2027, 1, 1, 12, tzinfo=datetime.timezone.utc)
    (told,) = (line for line in plan.describe(M).splitlines() if line.startswith("results"))
    assert "until all have come back or people close: of 2 clinics at least" in told and "also by" not in told
    told = plan.describe(manifest(pooled_roc=True, pooled_until=date, pooled_by=("age:50",)))
    assert "until 2027-01-01 12:00 UTC" in told and "also by age:50" in told
    assert "results " not in plan.describe(manifest())


def test_what_is_not_used_is_not_in_what_is_signed() -> None:
    """A manifest of before has the bytes that it had."""
    assert b"pooled_by" not in manifest().canonical() and b"pooled_least" not in manifest().canonical()
    said = manifest(pooled_roc=True, pooled_by=("age:50",), pooled_least=2).canonical()
    assert b'"pooled_by":["age:50"]' in said and b'"pooled_least":2' in said
