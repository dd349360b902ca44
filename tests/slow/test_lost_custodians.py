"""Custodians whose machines are wiped in the middle of a run: it goes on without them, to the same weights."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from consortium import Consortium, cli, said
from losing import check_shares, consortium, error, go_on_without, lose, sign, wait_for
from scan import of_run, under_one_mask

from focal.heads.released import MAX_ERROR
from focal.net import messages as msg
from focal.protocols.common import approval
from focal.protocols.common.audit import audit
from focal.protocols.start import LEFT_OUT


def lost_at(c: Consortium, sender: str, topic: str, *names: str) -> None:
    """These are wiped as soon as ``sender`` has said ``topic``."""
    c.start_all()
    wait_for(c, lambda board: (sender, topic) in board)
    lose(c, *names)


def ends_well(c: Consortium, *lost: str) -> list[str]:
    """Everybody who is left; returns what the audit says."""
    c.finish()
    check_shares(c, (n for n in c.custodians if n not in lost))
    assert error(c) < MAX_ERROR
    lines: list[str] = []
    audit(c.manifest, c.folder("server"), lines.append)
    return lines


def test_a_guard_that_is_lost_while_it_trains_has_a_successor(tmp_path: Path) -> None:
    """Two of four do, and institutions consent to another guard. The old copy of the lost one is told that the others
    go on without it, and what it still has of the key is erased."""
    with consortium("lost-guard", 2, 4) as c:
        c.start_all()
        wait_for(c, lambda board: ("custodian-1", "refresh/1/weights") in board)
        shutil.copytree(c.folder("custodian-1"), tmp_path / "copy", ignore=shutil.ignore_patterns("*.tmp"))
        lose(c, "custodian-1")
        go_on_without(c, "custodian-1")
        wait_for(c, lambda board: ("custodian-3", "epoch/1/agreed") in board)
        c.processes["custodian-3"].child.send_signal(signal.SIGSTOP)  # or the run would be over
        shutil.rmtree(c.folder("custodian-1"))
        shutil.copytree(tmp_path / "copy", c.folder("custodian-1"))
        restored = c.start("custodian-1")
        assert restored.end() == LEFT_OUT and "'custodian-1' was given up" in restored.errors
        assert not list(c.folder("custodian-1").glob("*.key"))
        c.processes["custodian-3"].child.send_signal(signal.SIGCONT)
        c.processes.pop("custodian-1")
        ends_well(c, "custodian-1")
        topics = {topic for _, topic in c.board()}
        assert "step/0" in topics and "step/2/e1" in topics and "step/0/e1" not in topics
        assert not any(topic.endswith("/e1") for who, topic in c.board() if who == "custodian-1")


def test_rows_are_masked_anew_for_those_who_are_left(tmp_path: Path) -> None:
    """Lost before it had shown what takes its masks away: nobody else could. Three of five do."""
    with consortium("lost-early", 3, 5, verify="first") as c:
        lost_at(c, "custodian-4", "inputs/commit", "custodian-4")
        go_on_without(c, "custodian-4")
        ends_well(c, "custodian-4")
        first, second = ({s: b for s, t, b in c.bodies(msg.Upload) if t == topic} for topic in ("upload", "upload/e1"))
        if second:  # or all had shown theirs by then
            assert first.keys() == second.keys() == set(c.institutions)
            assert not {d for u in first.values() for d in u.chunks} & {d for u in second.values() for d in u.chunks}
        published = of_run(c.run.folder / "parties", c.manifest)
        assert not under_one_mask(published)


def test_a_release_that_was_asked_for_is_of_other_ciphertexts_the_second_time() -> None:
    """By a share of each, one could tell what is opened twice from noise that should hide it."""
    with consortium("lost-late", 2, 4) as c:
        lost_at(c, "server", "release/request", "custodian-3")
        go_on_without(c, "custodian-3")
        ends_well(c, "custodian-3")
        asked = {topic: body.ciphertexts for _, topic, body in c.bodies(msg.ReleaseRequest)}
        if len(asked) > 1:  # or its share was there already
            assert asked.keys() == {"release/request", "release/request/e1"}
            assert not set(asked["release/request"]) & set(asked["release/request/e1"])


def test_two_of_three_go_on_when_people_say_that_the_third_is_lost() -> None:
    """By the commands that people give: one to the server, one at every institution."""
    with consortium("lost-third", 2, 3, verify="first") as c:
        checked = said(cli("manifest", "check", c.run.manifest_file))
        assert "any 2 of 3 custodians together have the key" in checked and "3 of 3 institutions sign it" in checked
        lost_at(c, "custodian-3", "refresh/0/weights", "custodian-3")
        told = said(cli("epoch", "lost", c.folder("server"), "custodian-3"))
        assert "given up: custodian-3" in told
        for name in c.institutions[:2]:
            sign(c, name, "custodian-3")
        c.processes["custodian-1"].reach(lambda e: "goes on with custodian-1, custodian-2" in e.get("text", ""))
        assert not any("/e1" in topic for _, topic in c.board() if topic.startswith("refresh"))
        third = c.institutions[2]
        c.processes[third].reach(lambda e: "focal epoch sign" in e.get("text", ""))
        assert "goes on without custodian-3" in said(cli("epoch", "sign", c.folder(third), "custodian-2"))
        signed = said(cli("epoch", "sign", c.folder(third), "custodian-3"))
        assert "goes on with custodian-1, custodian-2" in signed
        ends_well(c, "custodian-3")


def test_one_may_be_lost_as_soon_as_the_keys_are_made() -> None:
    """The others have just been started, and ask each other what they have seen before they agree to anything."""
    with consortium("lost-first", 2, 3, verify="first") as c:
        role = "from focal.protocols.common.custodian import Custodian\n"
        dies = f"import os\n{role}Custodian.turn = lambda self: os._exit(9)\n"
        c.start("server", "custodian-1", "custodian-3", *c.institutions)
        assert c.start("custodian-2", prelude=dies).end() == 9
        lose(c, "custodian-2")
        go_on_without(c, "custodian-2")
        ends_well(c, "custodian-2")


def test_a_custodian_that_is_given_up_when_it_has_done_its_work_costs_nothing() -> None:
    """An institution comes back late, the server was started again, and somebody took a custodian's leaving for a
    loss."""
    with consortium("lost-after", 2, 4) as c:
        late = c.institutions[2]
        c.start_all()
        wait_for(c, lambda board: (late, "upload") in board)
        c.processes.pop(late).kill()
        wait_for(c, lambda board: all((name, "finished") in board for name in c.custodians))
        c.processes["server"].kill()
        approval.declare_lost(c.folder("server"), ["custodian-2"])
        c.start("server", late)
        c.finish()
        assert error(c) < MAX_ERROR
        assert not any(topic.startswith("epoch") for _, topic in c.board())


def test_commands_about_epochs_say_what_they_need(tmp_path: Path) -> None:
    assert "no server's state folder" in said(cli("epoch", "lost", tmp_path, "custodian-1"))
    assert "no epoch waits for a signature" in said(cli("epoch", "sign", tmp_path, "custodian-1"))


def test_an_n_of_n_key_goes_on_without_nobody() -> None:
    """The server says why, and goes on as soon as the custodian is back."""
    with Consortium("lost-none", training={"steps": 2}) as c:
        c.start_all()
        wait_for(c, lambda board: ("server", "step/0") in board)
        c.processes["custodian-2"].kill()
        assert "given up: custodian-2" in said(cli("epoch", "lost", c.folder("server"), "custodian-2", "custodian-9"))
        c.processes["server"].reach(lambda e: "1 custodians are left of the 2" in e.get("text", ""))
        c.processes["server"].reach(lambda e: "custodian-9 cannot be given up" in e.get("text", ""))
        c.start("custodian-2")
        c.finish()
        assert error(c) < MAX_ERROR
        assert not any(topic.startswith("epoch") for _, topic in c.board())


@pytest.mark.parametrize(
    ("changes", "told"), [({"threshold": 3}, "more than the 2 custodians"), ({"threshold": 1}, "2")]
)
def test_a_threshold_that_no_key_can_have_is_refused(changes: dict[str, int], told: str) -> None:
    from focal.config import ConsortiumConfig

    with pytest.raises(ValueError, match=told):
        ConsortiumConfig(custodians=2, **changes)  # type: ignore[arg-type]
