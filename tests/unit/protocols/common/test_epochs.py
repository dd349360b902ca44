"""Which custodians answer, from when on, and who must agree to that; from records alone."""

from __future__ import annotations

from typing import Any

import pytest
from parties import ROLES, manifest_of

from focal.config import InteractiveConfig
from focal.errors import FocalError, Refused
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.net.identity import Identity
from focal.protocols.blind import plan as blind
from focal.protocols.common import epochs
from focal.protocols.common.epochs import Epochs
from focal.protocols.interactive import plan as joint

RUN = b"\x05" * 32
C = [f"custodian-{i}" for i in range(1, 9)]
INSTITUTIONS = [name for name, (role, _) in ROLES.items() if role == "institution"]


def manifest(count: int, threshold: int | None, verify: str = "off", **changes: Any) -> Manifest:
    people = {name: Identity.new(name) for name in [*ROLES, *C]}
    others = [people[n].member(role, **own) for n, (role, own) in ROLES.items() if role != "custodian"]
    first = {"verify": verify, "guard": verify == "lockstep"}
    custodians = [people[n].member("custodian", **(first if n == C[0] else {"verify": "off"})) for n in C[:count]]
    return manifest_of(people, members=(*others, *custodians), threshold=threshold, **changes)


class Board:
    """Records in an order, and the epochs that follow from them."""

    def __init__(self, m: Manifest, stages: Any = blind) -> None:
        self.epochs = Epochs(m, stages, RUN)

    def say(self, sender: str, topic: str, body: Any = None) -> None:
        body = body or msg.Finished()
        self.epochs.take(msg.Record(scope=RUN.hex(), sender=sender, topic=topic, body=body))

    def propose(self, *lost: str) -> msg.Epoch:
        proposal = self.epochs.next(lost)
        self.say("server", f"epoch/{proposal.number}", proposal)
        return proposal

    def agree(self, proposal: msg.Epoch, *names: str) -> None:
        for name in names or proposal.active:
            self.say(name, f"epoch/{proposal.number}/agreed", proposal)

    def change(self, *lost: str) -> None:
        self.agree(self.propose(*lost))


def refused(act: Any) -> str:
    with pytest.raises(Refused) as caught:
        act()
    assert caught.value.reason == "epoch"
    return str(caught.value)


# --------------------------------------------------------------------------- who may go on


@pytest.mark.parametrize(
    ("count", "threshold", "quorum", "gone"), [(3, 2, 3, 0), (4, 2, 3, 1), (5, 2, 4, 1), (5, 3, 4, 1), (5, 4, 5, 0)]
)
def test_quorums_are_those_of_the_table(count: int, threshold: int, quorum: int, gone: int) -> None:
    m = manifest(count, threshold)
    assert epochs.quorum(m) == quorum
    assert count - max(quorum, threshold) == gone
    assert 2 * quorum - count > threshold - 1, "two quorums share more than the liars"
    assert 2 * (quorum - 1) - count <= threshold - 1, "and fewer would not do"


def test_the_guard_is_not_taken_away_by_custodians_alone() -> None:
    """Else a server would choose who guards, among those that are trusted with less."""
    m = manifest(5, 2, verify="lockstep")
    changed = [c.model_copy(update={"verify": "lockstep"}) if c.name == C[3] else c for c in m.members]
    m = m.model_copy(update={"members": tuple(changed)})
    assert epochs.needs_people(m, C[1:5]) and not epochs.needs_people(m, C[:4])
    board = Board(m)
    board.change(C[0])
    assert board.epochs.pending
    for name in INSTITUTIONS:
        board.say(name, "epoch/1/consent", board.epochs.proposed[-1])
    assert not board.epochs.pending


def test_two_sets_of_consents_share_more_than_a_third() -> None:
    for count in range(3, 20):
        m = manifest(3, 2).model_copy(update={})
        needed = 2 * count // 3 + 1
        assert 2 * needed - count > count / 3
    assert epochs.consents_needed(m) == 3 == len(INSTITUTIONS)


def test_an_epoch_is_in_force_when_all_that_are_left_have_agreed() -> None:
    board = Board(manifest(4, 2))
    proposal = board.propose(C[1])
    assert proposal.active == (C[0], C[2], C[3]) and board.epochs.pending
    board.agree(proposal, C[0], C[2])
    assert board.epochs.pending and board.epochs.now.number == 0
    assert board.epochs.asked == proposal.active, "who has just been started asks these, and agrees then"
    board.agree(proposal, C[3])
    assert not board.epochs.pending and board.epochs.now.active == proposal.active


def test_where_too_few_are_left_people_must_consent() -> None:
    board = Board(manifest(3, 2))
    proposal = board.propose(C[0])
    board.agree(proposal)
    for name in INSTITUTIONS:
        assert board.epochs.pending and board.epochs.asked == tuple(C[:3])
        board.say(name, "epoch/1/consent", proposal)
    assert board.epochs.now.active == (C[1], C[2])


def test_who_has_no_word_in_an_epoch_ends_nothing() -> None:
    """A clinic that says something else than was proposed, or a custodian that was given up."""
    m = manifest(3, 2)
    clinic = Identity.new("clinic-1").member("institution", rows=9, clinic=True)
    board = Board(m.model_copy(update={"members": (*m.members, clinic)}))
    proposal = board.propose(C[0])
    other = proposal.model_copy(update={"stage": 7})
    board.say("clinic-1", "epoch/1/consent", other)
    board.say(C[0], "epoch/1/agreed", other)
    board.agree(proposal)
    for name in INSTITUTIONS:
        board.say(name, "epoch/1/consent", proposal)
    assert not board.epochs.pending
    assert epochs.consents_needed(board.epochs.manifest) == epochs.consents_needed(m)


def test_founders_that_were_left_out_count_where_people_consent() -> None:
    """Among those of whom two thirds must, and by their own word. What one of them says otherwise is nobody's word, and
    ends nothing."""
    m = manifest(3, 2)
    board = Board(m)
    accepted = msg.UploadsAccepted(
        digest="0" * 64, present=("south", "west"), rows=9, roster="0" * 64, absent={"north": "absent"}
    )
    for name in C[:3]:
        board.say(name, "uploads/accepted", accepted)
    proposal = board.propose(C[0])
    board.agree(proposal)
    for name in ("south", "west"):
        board.say(name, "epoch/1/consent", proposal)
    board.say("north", "epoch/1/consent", proposal.model_copy(update={"stage": 7}))
    assert board.epochs.pending
    board.say("north", "epoch/1/consent", proposal)
    assert not board.epochs.pending


def test_two_that_have_just_been_started_do_not_wait_for_each_others_word() -> None:
    board = Board(manifest(3, 2))
    proposal = board.propose(C[0])
    for name in INSTITUTIONS:
        board.say(name, "epoch/1/consent", proposal)
    assert board.epochs.pending and board.epochs.asked == (C[1], C[2])


@pytest.mark.parametrize("count", range(3, 9))
def test_an_honest_one_is_asked_where_custodians_go_on_by_themselves(count: int) -> None:
    for threshold in range(2, count):
        assert epochs.quorum(manifest(count, threshold)) - 1 >= threshold, "not all of so many others lie"


def test_consents_do_not_stand_for_custodians_that_are_left() -> None:
    board = Board(manifest(3, 2))
    proposal = board.propose(C[0])
    for name in INSTITUTIONS:
        board.say(name, "epoch/1/consent", proposal)
    board.agree(proposal, C[1])
    assert board.epochs.pending
    for name in (C[0], "north"):  # neither is one of those
        board.say(name, "epoch/1/agreed", proposal)
    assert board.epochs.pending


def test_a_proposal_that_nobody_could_end_is_replaced_by_the_next() -> None:
    board = Board(manifest(5, 2))
    first = board.propose(C[4])
    board.agree(first, C[0], C[1])
    second = board.propose(C[3])
    assert second.number == 2 and second.active == tuple(C[:3])
    board.agree(first, C[2], C[3])  # too late for the first
    assert board.epochs.pending
    board.agree(second)
    assert board.epochs.pending, "three of five are no quorum"
    for name in INSTITUTIONS:
        board.say(name, "epoch/2/consent", second)
    assert [e.number for e in board.epochs.in_force] == [0, 2]


# --------------------------------------------------------------------------- what no server may propose


def test_an_epoch_takes_custodians_away_and_nothing_else() -> None:
    board, after = Board(manifest(4, 2)), RUN.hex()

    def proposed(*active: str, number: int = 1, after: str = after, topic: str = "") -> Any:
        body = msg.Epoch(number=number, after=after, active=active, stage=0, since=0)
        return lambda: board.say("server", topic or f"epoch/{number}", body)

    assert "other custodians" in refused(proposed(*C[:4]))  # nobody less
    assert "other custodians" in refused(proposed(C[0], C[4]))  # somebody else
    assert "other custodians" in refused(proposed(C[1], C[0]))  # another order
    assert "of the 2" in refused(proposed(C[0]))
    assert "follow" in refused(proposed(*C[:3], number=2))
    assert "follow" in refused(proposed(*C[:3], topic="epoch/2"))
    assert "follow" in refused(proposed(*C[:3], after="00" * 32))
    board.change(C[0])
    assert "other custodians" in refused(proposed(*C[:2], number=2, after=board.epochs.next([C[1]]).after)), (
        "back again"
    )


def test_an_n_of_n_key_has_no_second_epoch() -> None:
    board = Board(manifest(3, None))
    with pytest.raises(FocalError, match="2 custodians are left of the 3"):
        board.epochs.next([C[0]])
    body = msg.Epoch(number=1, after=RUN.hex(), active=(C[1], C[2]), stage=0, since=0)
    assert "of the 3" in refused(lambda: board.say("server", "epoch/1", body))


def test_somebody_who_looks_must_be_left_where_the_manifest_names_one() -> None:
    board = Board(manifest(4, 2, verify="lockstep"))
    with pytest.raises(FocalError, match="verifies"):
        board.epochs.next([C[0]])
    board.change(C[1])
    assert epochs.guard(board.epochs.manifest, board.epochs.now.active) == C[0]


def test_the_guard_that_is_lost_has_a_successor() -> None:
    m = manifest(4, 2, verify="lockstep")
    changed = [c.model_copy(update={"verify": "lockstep"}) if c.name == C[2] else c for c in m.members]
    m = m.model_copy(update={"members": tuple(changed)})
    assert epochs.guard(m, C[:4]) == C[0] and epochs.guard(m, C[1:4]) == C[2]


def test_one_who_agreed_to_something_else_was_shown_something_else() -> None:
    """A server that proposes two epochs under one number is found out by whoever sees both sides."""
    board = Board(manifest(5, 2))
    board.propose(C[0])
    other = msg.Epoch(number=1, after=RUN.hex(), active=(C[0], C[2], C[3], C[4]), stage=0, since=0)
    assert "shown another epoch 1" in refused(lambda: board.agree(other, C[2]))


def test_what_others_than_the_server_propose_is_nothing() -> None:
    board = Board(manifest(4, 2))
    board.say(C[1], "epoch/1", msg.Epoch(number=1, after=RUN.hex(), active=(C[1], C[2], C[3]), stage=0, since=0))
    assert not board.epochs.proposed


# --------------------------------------------------------------------------- from which stage on


def test_a_blind_run_goes_on_from_its_first_unfinished_stage() -> None:
    board = Board(manifest(4, 2))
    for name in C[:3]:
        board.say(name, "inputs/reveal")
    assert board.epochs._reached() == 0, "one has not shown its part of the inputs"
    board.say(C[3], "inputs/reveal")
    board.say("server", "step/0")
    board.say("server", "refresh/1/logits")
    board.change(C[0])
    assert board.epochs.now.stage == 2
    at = {t: board.epochs.at(t).number for t in ("upload", "inputs/commit", "refresh/0/weights", "step/0")}
    assert set(at.values()) == {0}
    assert board.epochs.spelled("refresh/1/logits") == "refresh/1/logits/e1"
    assert board.epochs.spelled("release/request") == "release/request/e1"
    assert board.epochs.spelled("keys/1/commit") == "keys/1/commit"
    assert not board.epochs.released_again


def test_inputs_that_were_not_complete_are_made_anew() -> None:
    board = Board(manifest(4, 2))
    board.say(C[0], "inputs/reveal")
    board.change(C[1])
    assert {board.epochs.spelled(t) for t in ("upload", "inputs/key")} == {"upload/e1", "inputs/key/e1"}
    for name in board.epochs.now.active:
        board.say(name, "inputs/reveal/e1")
    assert board.epochs._reached() == 1, "those of the new epoch"


def test_a_release_that_was_asked_for_is_asked_for_again() -> None:
    m = manifest(4, 2)
    board = Board(m)
    for name in C[:4]:
        board.say(name, "inputs/reveal")
    for step in range(m.training.steps):
        board.say("server", f"step/{step}")
    board.say("server", "release/request")
    board.change(C[2])
    assert board.epochs.released_again
    assert board.epochs.spelled("refresh/again/release") == "refresh/again/release/e1"
    assert board.epochs.spelled(f"step/{m.training.steps - 1}") == f"step/{m.training.steps - 1}"


def test_a_joint_step_has_three_stages() -> None:
    m = manifest(4, 2, protocol="interactive", interactive=InteractiveConfig(), layout=None)
    board = Board(m, joint)
    for topic in ("inputs/0/activations/reveal", "inputs/0/derivatives/reveal"):
        for name in C[:4]:
            board.say(name, topic)
    board.say("server", "step/0")
    for name in C[:4]:
        board.say(name, "open/1/logits")
    board.change(C[3])
    assert board.epochs.now.stage == 4, "derivatives of step 1"
    again = {"derivatives/1", "answered/1", "inputs/1/derivatives/commit", "open/1/gradients", "refresh/1/weights"}
    kept = {"activations/1", "present/1", "inputs/1/activations/commit", "open/1/logits", "step/0", "inputs/key"}
    assert {board.epochs.spelled(t) for t in again} == {f"{t}/e1" for t in again}
    assert {board.epochs.spelled(t) for t in kept} == kept
    assert board.epochs.spelled("average/1/list") == "average/1/list"


def test_an_epoch_begins_with_the_stage_that_was_reached_and_no_other() -> None:
    """All that are shown the board in another order than the server's would go on from elsewhere."""
    board = Board(manifest(4, 2))
    for name in C[:4]:
        board.say(name, "inputs/reveal")
    board.say("server", "step/0")
    proposal = board.epochs.next([C[0]])
    assert proposal.stage == 2
    for stage in (0, 1, 3):
        other = proposal.model_copy(update={"stage": stage})
        assert "from stage" in refused(lambda other=other: board.say("server", "epoch/1", other))


def test_an_epoch_says_which_one_it_ends() -> None:
    """Readers who were shown agreements in another order would have other epochs behind it."""
    board = Board(manifest(5, 2))
    board.change(C[4])
    proposal = board.epochs.next([C[3]])
    assert proposal.since == 1
    other = proposal.model_copy(update={"since": 0})
    assert "after epoch 0, not 1" in refused(lambda: board.say("server", "epoch/2", other))


def test_when_all_shares_of_the_release_are_given_nobody_who_is_lost_matters() -> None:
    """They have erased their keys and left, and nobody would ever agree; institutions may still come."""
    board = Board(manifest(4, 2))
    for name in C[:3]:
        board.say(name, "release/shares")
    assert not board.epochs.given
    proposal = board.epochs.next([C[0]])
    board.say(C[3], "release/shares")
    assert board.epochs.given
    assert "shares of the release" in refused(lambda: board.say("server", "epoch/1", proposal))


def test_randomness_is_another_one_in_every_epoch() -> None:
    board = Board(manifest(4, 2))
    board.change(C[3])
    assert board.epochs.in_force[0].seed == RUN != board.epochs.now.seed
    other = Board(manifest(4, 2))
    other.change(C[2])
    assert board.epochs.now.seed != other.epochs.now.seed


def test_a_topic_tells_its_epoch() -> None:
    assert epochs.unspelled("refresh/3/logits/e12") == ("refresh/3/logits", "/e12")
    assert epochs.unspelled("refresh/3/logits") == ("refresh/3/logits", "")


@pytest.mark.parametrize(
    ("count", "threshold", "told"),
    [
        (3, None, "all 3 custodians together have the key; none may be lost"),
        (3, 2, "none may be lost without people's word, 1 when 3 of 3 institutions sign it"),
        (5, 3, "1 may be lost and the run goes on by itself, 2 when 3 of 3 institutions sign it"),
        (4, 3, "any 3 of 4 custodians together have the key; none may be lost without people's word, 1 when"),
    ],
)
def test_what_is_told_to_whoever_signs(count: int, threshold: int | None, told: str) -> None:
    assert told in epochs.tolerance(manifest(count, threshold))
