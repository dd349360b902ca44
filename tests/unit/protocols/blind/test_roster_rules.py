"""Who is on a roster, from records alone."""

from __future__ import annotations

import datetime
from typing import Any, cast

import numpy as np
import pytest
from parties import CLINICS, ROLES, manifest_of, with_clinics

from focal.ckks import codec
from focal.ckks.scheme import Scheme
from focal.custody import inputs as masks
from focal.custody import projections
from focal.errors import ConfigError, FocalError, Refused
from focal.heads.linear.layout import Layout
from focal.manifest import Manifest, Member
from focal.measure import declared
from focal.net import messages as msg
from focal.net.identity import Identity, check_signatures, sign_manifest
from focal.net.quotas import FILE
from focal.protocols.blind import plan, roster, uploads
from focal.protocols.blind.roster import CLOSED, UPLOAD
from focal.protocols.common import inputs
from focal.protocols.common.hearing import Heard
from focal.protocols.common.server import Server
from focal.protocols.interactive.server import JointServer

RUN = "7e" * 32
NOTHING = "0" * 64
AGREED = uploads.Agreed(joint_keys=NOTHING, projection=NOTHING, eta_hex=(2.0).hex())
CUSTODIANS = ("custodian-1", "custodian-2")
PEOPLE = {name: Identity.new(name) for name in [*ROLES, *CLINICS]}


def manifest(**changes: Any) -> Manifest:
    return with_clinics(PEOPLE, **changes)


M = manifest()
SHAPE: Layout = plan.layout(M)
TABLE = plan.row_table(M, SHAPE)


class Board:
    """Records as somebody hears them."""

    def __init__(self) -> None:
        self.heard = Heard(M)
        self.keys: dict[str, msg.InputKey] = {}
        for i, name in enumerate(CUSTODIANS):
            self.say(name, inputs.KEY, msg.InputKey(public=masks.public_key(bytes([i + 1]) * 32)))

    def say(self, sender: str, topic: str, body: Any, scope: str = RUN) -> None:
        if isinstance(body, msg.InputKey):
            self.keys[sender] = body
        self.heard.add(PEOPLE[sender].sign_record(scope, topic, body))

    def upload(self, name: str, rows: int | None = None, scope: str = RUN, **changes: Any) -> None:
        self.say(name, inputs.KEY, msg.InputKey(public=changes.pop("key", masks.public_key(name.encode()[:1] * 32))))
        start, stop = TABLE[name]
        count = rows if rows is not None else stop - start
        body = msg.Upload(
            joint_keys=NOTHING,
            projection=NOTHING,
            eta_hex=(2.0).hex(),
            rows=count,
            first_row=start,
            mask_keys=inputs.keys_digest(name, CUSTODIANS, self.keys),
            label=NOTHING,
            chunks=(NOTHING,) * len(SHAPE.chunks(start, start + max(1, count))),
            proofs=(NOTHING, NOTHING),
        )
        self.say(name, UPLOAD, body.model_copy(update=changes), scope)

    def close(self, *present: str, incomplete: tuple[str, ...] = ()) -> None:
        self.say("server", CLOSED, msg.Roster(present=present, incomplete=incomplete))

    def came(self) -> roster.Came:
        return roster.came(M, SHAPE, AGREED, self.heard, RUN, lambda topic: topic, CUSTODIANS)

    def read(self) -> dict[str, msg.Upload]:
        body = self.heard.get(RUN, "server", CLOSED, msg.Roster)
        return roster.read(M, self.came(), body)


def refused(act: Any, reason: str = "roster") -> str:
    with pytest.raises(Refused) as caught:
        act()
    assert caught.value.reason == reason
    return str(caught.value)


def founders() -> Board:
    board = Board()
    for name in ("south", "north", "west"):
        board.upload(name)
    return board


def test_a_roster_is_who_has_come_before_it() -> None:
    board = founders()
    board.upload("clinic-1", rows=7)
    board.close("north", "south", "west", "clinic-1")
    board.upload("clinic-2")
    assert list(board.read()) == ["north", "south", "west", "clinic-1"], "in the manifest's order"
    assert board.came().absent(M, ()) == {"clinic-2": "absent"}


@pytest.mark.parametrize(
    "present", [("north", "south"), ("south", "north", "west"), ("north", "south", "west", "clinic-1"), ()]
)
def test_another_roster_than_the_board_has_is_refused(present: tuple[str, ...]) -> None:
    board = founders()
    board.close(*present)
    assert "another roster than its board has" in refused(board.read)


def test_who_sent_less_is_left_out_by_the_servers_word() -> None:
    """Custodians wait for it as for one who has not come."""
    board = founders()
    board.upload("clinic-2")
    board.close("north", "south", "west", incomplete=("clinic-2",))
    assert list(board.read()) == ["north", "south", "west"]
    assert board.came().absent(M, ("clinic-2",)) == {"clinic-1": "absent", "clinic-2": "incomplete"}
    board = founders()
    board.close("north", "south", "west", incomplete=("clinic-2",))
    refused(board.read)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"eta_hex": (3.0).hex()}, "step size"),
        ({"projection": "1" * 64}, "projection"),
        ({"joint_keys": "1" * 64}, "joint keys"),
        ({"first_row": 0}, "first row"),
        ({"proofs": (NOTHING,)}, "number of proofs"),
        ({"chunks": (NOTHING,)}, "number of chunks"),
        ({"rows": 21}, "rows"),
        ({"rows": 0}, "rows"),
    ],
)
def test_a_list_that_is_not_as_agreed_is_nobodys(changes: dict[str, Any], why: str) -> None:
    """More rows than a clinic's ticket among them. A server that has it on its roster is refused for it."""
    board = founders()
    board.upload("clinic-2", **changes)
    found = board.came()
    assert set(found.refused) == {"clinic-2"} and f"'clinic-2' has another {why}" in str(found.refused["clinic-2"])
    board.close("north", "south", "west")
    assert len(board.read()) == 3
    board = founders()
    board.upload("clinic-2", **changes)
    board.close("north", "south", "west", "clinic-2")
    assert why in refused(board.read, "upload")


def test_a_list_is_as_long_as_its_senders_rows_need_at_most() -> None:
    """Everybody keeps it in memory: a server does not put it on the board."""
    start, stop = TABLE["clinic-2"]
    board = founders()
    board.upload("clinic-2", rows=1)
    short = board.came().lists["clinic-2"]
    most = len(SHAPE.chunks(start, stop))
    assert most >= len(short.chunks)
    uploads.check_length(M, SHAPE, "clinic-2", short.model_copy(update={"chunks": (NOTHING,) * most}))
    for longer in ({"chunks": (NOTHING,) * (most + 1)}, {"proofs": (NOTHING,) * 3}):
        long = short.model_copy(update=longer)
        refused(lambda long=long: uploads.check_length(M, SHAPE, "clinic-2", long), "upload")
    refused(lambda: uploads.check_length(M, SHAPE, "custodian-1", short), "upload")


def test_a_quota_is_what_the_rows_of_the_manifest_need() -> None:
    """A clinic's: all chunks and proofs, and once more for rows that were corrected, where no custodian may be lost;
    not one chunk more. A t-of-N key's rows may be masked anew."""
    found, scheme = uploads.quotas(M, SHAPE), Scheme(M.ckks, RUN)
    chunks = len(SHAPE.chunks(*TABLE["clinic-2"]))
    exact = chunks * (FILE + codec.size(scheme, codec.MASKED)) + 2 * (FILE + projections.PROOF_BYTES)
    assert found["clinic-2"].blobs == 2 * exact
    assert found.keys() == {m.name for m in M.institutions}, "custodians follow the protocol"
    assert JointServer.quotas is Server.quotas and Server.quotas(cast(Server, None)) == {}, "nobody's in other runs"
    assert found["north"].blobs > uploads.quotas(M, SHAPE)["clinic-1"].blobs
    anew = uploads.quotas(M.model_copy(update={"threshold": 2, "members": (*M.members, another_custodian())}), SHAPE)
    assert anew["clinic-2"].blobs == 3 * exact
    with_results = uploads.quotas(M.model_copy(update={"pooled_roc": True, "pooled_by": ("sex:f,m",)}), SHAPE)
    assert with_results["clinic-2"].blobs - 2 * exact == FILE + 8 * 3 * M.outputs * 2 * declared.BINS
    longest = founders()
    longest.upload("clinic-2", label="f" * 64)
    record = PEOPLE["clinic-2"].sign_record(RUN, UPLOAD, longest.heard.get(RUN, "clinic-2", UPLOAD, msg.Upload))
    assert len(record) + 30 * 300 < found["clinic-2"].board < len(record) + 2 * uploads.SPOKEN


def another_custodian() -> Member:
    return Identity.new("custodian-3").member("custodian", verify="off")


def test_a_founder_brings_what_the_manifest_says() -> None:
    board = Board()
    board.upload("north", rows=39)
    assert "'north' has another rows" in str(board.came().refused["north"])


def test_keys_for_masks_that_others_were_not_shown_or_all_know() -> None:
    """The first may be the server's fault: custodians wait for such a one as for somebody who has not come."""
    board = founders()
    board.upload("clinic-1", mask_keys="2" * 64)
    found = board.came()
    assert "other keys than we were shown" in str(found.unlike["clinic-1"]) and "clinic-1" in found.absent(M, ())
    board.close("north", "south", "west", "clinic-1")
    assert "other keys" in refused(board.read, "mask-keys")
    board = Board()
    board.upload("clinic-1", key="00" * 32)
    assert "not a usable X25519 key" in str(board.came().refused["clinic-1"])


def test_what_was_said_in_another_run_does_not_count() -> None:
    board = founders()
    board.upload("clinic-1", scope="6d" * 32)
    assert "clinic-1" in board.came().absent(M, ())


def test_too_few_or_too_small_a_part_of_the_rows_is_no_model() -> None:
    board = Board()
    board.upload("north")
    board.upload("south")
    board.close("north", "south")
    assert "2 of 3 institutions that are no clinics are left" in refused(board.read)
    board = Board()
    for name in ("north", "south", "clinic-1", "clinic-2"):
        board.upload(name)
    board.close("north", "south", "clinic-1", "clinic-2")
    assert "2 of 3 institutions that are no clinics" in refused(board.read), "clinics sign nothing for anybody"
    found = founders().came()
    large = M.model_copy(
        update={"members": tuple(m.model_copy(update={"rows": 581}) if m.name == "clinic-1" else m for m in M.members)}
    )
    assert large.rows == 751 and sum(u.rows for u in found.lists.values()) == 150
    assert "150 of 751 rows" in refused(lambda: roster.check_enough(large, found.lists, {}))
    roster.check_enough(M, found.lists, {})


def test_two_rosters_have_two_digests() -> None:
    """So that custodians that were shown different ones do not accept the same."""
    lists = founders().came().lists
    fewer = {name: upload for name, upload in lists.items() if name != "west"}
    assert uploads.lists_digest(lists) != uploads.lists_digest(fewer)
    out: dict[str, msg.WhyAbsent] = {"clinic-1": "absent", "clinic-2": "upload"}
    own = msg.UploadsAccepted(
        digest=uploads.lists_digest(lists), present=tuple(lists), rows=150, roster=NOTHING, absent=out
    )
    uploads.check_accepted(own, {"custodian-1": own})
    lies: list[dict[str, Any]] = [
        {"digest": uploads.lists_digest(fewer)},
        {"present": tuple(fewer)},
        {"rows": 90},
        {"roster": "1" * 64},
        {"absent": {**out, "clinic-2": "incomplete"}},
    ]
    for lie in lies:
        refused(lambda said=lie: uploads.check_accepted(own, {"custodian-1": own.model_copy(update=said)}), "uploads")


def test_blocks_of_nobody_who_came_are_in_no_step() -> None:
    own = manifest().model_copy(update={"share_blocks": False})
    shape = plan.layout(own)
    table = plan.row_table(own, shape)
    present = [
        founders().came().lists[n].model_copy(update={"first_row": table[n][0], "rows": table[n][1] - table[n][0]})
        for n in ("north", "west")
    ]
    live = uploads.live(shape, present)
    assert live.live_blocks == (0, 2) and shape.blocks == 5
    assert list(live.items(1, "logits")) == [f"train/1/logits/{b}/0/-" for b in (0, 2)]
    assert uploads.live(shape, [u.model_copy(update={"first_row": 0, "rows": 5 * shape.block_rows}) for u in present])
    assert plan.batches(own, live)[0][0] == "refresh/0/weights"


def test_a_step_is_smaller_where_rows_are_missing() -> None:
    """150 rows are the founders'. On 100 of them the largest eigenvalue is at most 1.5 times as large."""
    assert plan.step_size(M, 2.0, 150) == plan.step_size(M, 2.0, 180) == 2.0
    assert plan.step_size(M, 2.0, 75) == 1.0
    lists = {name: upload for name, upload in founders().came().lists.items() if name != "west"}
    scalars = plan.scalars_of(M, lists)
    assert scalars.rate == pytest.approx(2.0 * (90 / 150) / 90) and scalars.decay == pytest.approx(1 - 1.2 * 0.1)
    x = np.random.default_rng(0).normal(size=(150, 5)) * np.repeat([1.0, 3.0], 75)[:, None]
    of_all, of_some = (np.linalg.eigvalsh(part.T @ part / len(part))[-1] for part in (x, x[75:]))
    assert plan.step_size(M, 1 / of_all, 75) * of_some <= 1 + 1e-9 < of_some / of_all


def test_a_server_that_closes_early_is_told_from_clocks_that_differ() -> None:
    date = datetime.datetime(2026, 12, 24, 18, tzinfo=datetime.timezone.utc)
    at = date.timestamp()
    assert not roster.early(None, 0.0)
    assert roster.early(date, at - 601) and not roster.early(date, at - 599) and not roster.early(date, at + 5)


def test_who_signs_a_closing_date_is_told_how_many_may_be_left_out() -> None:
    date = datetime.datetime(2026, 12, 24, 18, tzinfo=datetime.timezone.utc)
    assert not any("closing" in text for text in plan.warnings(M))
    (told,) = (text for text in plan.warnings(M.model_copy(update={"closing": date})) if "closing" in text)
    assert "down to 3 of the 3 that are no clinics" in told


@pytest.mark.parametrize(("count", "least"), [(2, 2), (3, 3), (4, 3), (5, 4), (6, 5), (7, 5), (10, 7)])
def test_a_roster_has_more_than_two_thirds_of_the_founders(count: int, least: int) -> None:
    """So that whoever chooses who is left out needs two thirds, rounded down, to have one that is honest alone."""
    one = next(m for m in M.members if m.name == "north")
    some = tuple(one.model_copy(update={"name": f"founder-{i}"}) for i in range(count))
    m = M.model_copy(update={"members": some})
    assert m.most_founders == least > 2 * count / 3 and least - 1 == 2 * count // 3
    lists = dict.fromkeys((f.name for f in some[:least]), founders().came().lists["north"])
    assert roster.enough(m, lists) and not roster.enough(m, dict(list(lists.items())[1:]))


# --------------------------------------------------------------------------- clinics in a manifest


def test_a_clinic_need_not_sign_and_an_institution_must() -> None:
    signed = M
    for name in ROLES:
        signed = sign_manifest(signed, PEOPLE[name])
    check_signatures(signed)
    unsigned = signed.model_copy(update={"signatures": {n: s for n, s in signed.signatures.items() if n != "north"}})
    with pytest.raises(FocalError, match="'north' has not signed"):
        check_signatures(unsigned)


def test_founders_are_as_many_as_institutions_had_to_be() -> None:
    few = [m for m in M.members if m.name not in ("north",)]
    with pytest.raises(ConfigError, match="at least 3 institutions that are no clinics, this one has 2"):
        M.model_copy(update={"members": tuple(few)}).check_complete()


def test_a_manifest_without_clinics_is_spelled_as_it_was() -> None:
    plain = manifest_of(PEOPLE)
    assert b"clinic" not in plain.canonical() and b"closing" not in plain.canonical()
    assert b"clinic" in M.canonical()


def test_a_seal_key_of_low_order_is_refused_before_anybody_signs() -> None:
    weak = M.model_copy(
        update={"members": tuple(m.model_copy(update={"seal": "00" * 32}) if m.clinic else m for m in M.members)}
    )
    M.check_complete()
    with pytest.raises(ConfigError, match="seal key of clinic-1, clinic-2"):
        weak.check_complete()


@pytest.mark.parametrize("reason", ["unknown-blob", "audience"])
def test_shares_that_are_not_there_have_a_name(reason: str) -> None:
    """Whose they are: the server's word for a blob says it of nobody."""

    def fetch(digest: str) -> bytes:
        raise Refused(reason, "no such blob")

    commit = msg.InputCommit(lists=NOTHING, commitment=NOTHING, shares=NOTHING)
    assert "of 'south-keys'" in refused(lambda: inputs.shares_of("south-keys", commit, fetch), reason)
