"""What every role shares, without processes: who is believed to have ended the run,
and which session a party was done with."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from parties import identities, manifest_of

from focal.config import VERSION, LocalConfig
from focal.errors import ProtocolError, Refused
from focal.net import frames
from focal.net import messages as msg
from focal.net.encoding import decode
from focal.net.identity import sign_manifest
from focal.protocols.common.party import Party
from focal.protocols.common.progress import Reporter
from focal.protocols.start import enter

PEOPLE = identities()
MANIFEST = manifest_of(PEOPLE)
for _person in PEOPLE.values():
    MANIFEST = sign_manifest(MANIFEST, _person)
MEMBERS = [m.name for m in MANIFEST.members if m.role != "server"]
SESSION, ANOTHER = "5e" * 32, "ab" * 32


class Net:
    """A board in memory. ``first``: what its owner is shown before everything else."""

    phase = ""
    traffic: dict[str, dict[str, int]] = {}

    def __init__(self, board: list[bytes], first: list[bytes] | None = None) -> None:
        self.board, self.first = board, first or []

    def post(self, signed: bytes) -> int:
        if signed not in self.board:
            self.board.append(signed)
        return len(self.board)

    def wait(self, after: int, seconds: float) -> list[bytes]:
        threading.Event().wait(0.01 if seconds else 0)
        return [*self.first, *self.board][after:]

    def put_many(self, *_: Any) -> list[str]:
        raise AssertionError("a party that only agrees on a run sends no blob")

    def get(self, digest: str) -> bytes:
        raise AssertionError("a party that only agrees on a run fetches no blob")


def party(folder: Path, name: str) -> Party:
    role = type("Role", (Party,), {"role": MANIFEST.member(name).role, "run": lambda self: None})
    keys = folder / f"{name}.key.json"
    if not keys.exists():
        PEOPLE[name].save(keys)
    local, report = (
        LocalConfig(name=name, keys=keys, state=folder / name),
        Reporter(name, folder / name / "events.jsonl", lambda e: None),
    )
    made: Party = role(MANIFEST, local, report)
    return made


def gathered(folder: Path) -> tuple[list[bytes], str]:
    """The board of a session in which all agreed on a run, and its id."""
    board: list[bytes] = []
    parties = [party(folder, name) for name in MEMBERS]
    for p in parties:
        p.opened(Net(board), SESSION)
    threads = [threading.Thread(target=p.agree_run) for p in parties]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    (run_id,) = {p.run_id.hex() for p in parties}
    for p in parties:
        p.journal.close()
    return board, run_id


def abort(scope: str) -> bytes:
    return PEOPLE["north"].sign_record(scope, "abort", msg.Abort(reason="the disk is on fire"))


@pytest.fixture
def agreed(tmp_path: Path) -> tuple[Path, list[bytes], str]:
    return (tmp_path, *gathered(tmp_path))


@pytest.mark.parametrize("first", [True, False], ids=["before the run id is known", "afterwards"])
@pytest.mark.parametrize("scope", ["session", "run", "another"])
def test_an_abort_is_believed_only_in_its_own_run(
    agreed: tuple[Path, list[bytes], str], scope: str, first: bool
) -> None:
    folder, board, run_id = agreed
    said = abort({"session": SESSION, "run": run_id, "another": ANOTHER}[scope])
    me = party(folder, "custodian-1")
    me.opened(Net(board, [said]) if first else Net([*board, said]), SESSION)
    with pytest.raises(ProtocolError) as e:
        me.agree_run()
        me.read_all()
    if scope == "another":
        assert (
            isinstance(e.value, Refused)
            and e.value.reason == "other-run"
            and "fire" not in str(e.value)
            and not me.ended
        )
    else:
        assert "'north' ended the run: the disk is on fire" in str(e.value) and me.ended
    known = scope != "session" or not first
    assert bool(me.run_id) == known, "where a run id was stated it is decided when ours is known, and no earlier"


def test_a_waiting_party_hears_of_an_abort_under_the_run_id_once_it_knows_it(
    agreed: tuple[Path, list[bytes], str],
) -> None:
    """The nonces come later than the abort: it waits for them and neither ends too early nor hangs."""
    folder, board, run_id = agreed
    shown = board[:3]
    me = party(folder, "custodian-1")
    me.opened(Net(shown, [abort(run_id)]), SESSION)
    ended: list[Exception] = []

    def agree() -> None:
        try:
            me.agree_run()
        except ProtocolError as e:
            ended.append(e)

    waiting = threading.Thread(target=agree)
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive() and not me.ended
    shown.extend(r for r in board[3:] if r not in shown)
    waiting.join(30)
    assert not waiting.is_alive() and me.ended and "'north' ended the run" in str(ended[0])


def test_an_abort_of_another_run_does_not_hide_a_true_one(agreed: tuple[Path, list[bytes], str]) -> None:
    folder, board, _ = agreed
    other = PEOPLE["south"].sign_record(ANOTHER, "abort", msg.Abort(reason="another day"))
    me = party(folder, "custodian-1")
    me.opened(Net(board, [other, abort(SESSION)]), SESSION)
    with pytest.raises(ProtocolError, match="'north' ended the run"):
        me.agree_run()


def test_reasons_are_cleaned_before_they_are_said(tmp_path: Path) -> None:
    me = party(tmp_path, "custodian-1")
    net = Net([])
    me.opened(net, SESSION)
    me.abort(ProtocolError("in /home/anna/scans\x1b[2J \u202esomebody\x07: broke"))
    me.heard.add(net.board[0])
    said = me.heard.get(SESSION, "custodian-1", "abort", msg.Abort).reason
    assert said == "in (file) ?somebody?: broke"


def test_finished_counts_for_the_session_that_was_entered_last(tmp_path: Path) -> None:
    def again() -> Party:
        return party(tmp_path, "north")

    me = again()
    assert not me.finished
    me.opened(Net([]), SESSION)
    assert not me.finished
    me.finish()
    assert me.finished
    me.journal.close()
    me = again()
    assert me.finished, "forgotten in a restart"
    me.opened(Net([]), ANOTHER)
    assert not me.finished, "a second session in the same folder is not the first one"
    me.journal.close()
    assert not again().finished


def test_a_session_named_like_a_run(tmp_path: Path) -> None:
    """What a party says before it knows the run counts in its session only:
    a server may not name that like a run of the party."""
    me = party(tmp_path, "north")
    me.journal.once(f"used/{ANOTHER}", SESSION.encode)
    with pytest.raises(Refused, match="replayed-run"):
        me.opened(Net([]), ANOTHER)
    me.opened(Net([]), SESSION)


class Here(Net):
    """A server that answers."""

    def open(self, timeout: float) -> frames.Welcome:
        return frames.Welcome(version=VERSION, session=SESSION)


class Ending(Here):
    """A server that is there when a party comes, and takes no word of it any more."""

    def post(self, signed: bytes) -> int:
        threading.Event().wait()
        raise AssertionError


def test_a_party_that_has_finished_and_starts_again_waits_for_nobody(tmp_path: Path) -> None:
    """The server ends when all have said so, perhaps between this party's return and its first question.
    What did not get out is said."""
    me, board = party(tmp_path, "north"), []  # type: ignore[var-annotated]
    me.opened(Net([]), SESSION)
    me.finish()  # on a board that is lost: as a kill between the journal and the post
    me.close()
    for network in (Ending(board), Here(board)):
        again = party(tmp_path, "north")
        again.prepare = lambda: pytest.fail("it goes through its script again")  # type: ignore[method-assign]
        assert not enter(again, network, 0.2)  # type: ignore[arg-type]
        again.close()
    assert [decode(msg.Record, decode(msg.Signed, data).record).topic for data in board] == ["finished"]
