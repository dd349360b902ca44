"""Custodians of a t-of-N key are wiped, again and again: at random moments, as many as the key can spare.

    python tests/support/losing.py --moments 20 --seed 1 [--joint]

Every run must end with the twin's weights, at the institutions and the custodians that are left, and none of these may
ever give two shares: whatever its ledger holds, it holds once, and no ciphertext is opened twice in whatever epochs. A
loss before all keys are made ends a run that has not begun: such a moment counts as none.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from consortium import Consortium
from patience import PATIENCE
from quick_joint import JointConsortium

from focal.heads.released import MAX_ERROR
from focal.net import messages as msg
from focal.protocols.common import approval, epochs

KEYS = [(2, 3), (3, 5)]
RECORDS = {False: 20, True: 60}
"""About as many records does a run have after its keys were made, for each custodian; by whether it is a joint one."""


def consortium(name: str, threshold: int, count: int, joint: bool = False, verify: str = "all") -> Consortium:
    custodians = {"custodians": count, "threshold": threshold, "verify": verify}
    if joint:
        return JointConsortium(name, consortium=custodians)
    return Consortium(name, training={"steps": 3}, consortium={"institutions": 3, **custodians})


def wait_for(c: Consortium, there: Callable[[dict[tuple[str, str], bytes]], object]) -> None:
    """Until the board says so. The server may not have made it yet."""
    deadline = time.monotonic() + PATIENCE
    while not ((c.folder("server") / "board.sqlite").exists() and there(c.board())):
        assert time.monotonic() < deadline, "\n".join(p.stands() for p in c.processes.values())
        time.sleep(0.02)


def keys_are_made(c: Consortium) -> Callable[[dict[tuple[str, str], bytes]], object]:
    return lambda board: all((name, "keys/joint") in board for name in c.custodians)


def lose(c: Consortium, *names: str) -> None:
    """Their machines are wiped; the test keeps their identities for itself."""
    for name in names:
        c.processes.pop(name).kill()
        for path in c.folder(name).iterdir():
            if path.name not in ("identity.json", "local.json"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def go_on_without(c: Consortium, *names: str) -> None:
    """People tell the server, and where it takes their word, the institutions sign."""
    approval.declare_lost(c.folder("server"), names)
    if epochs.needs_people(c.manifest, [name for name in c.custodians if name not in names]):
        for name in c.institutions:
            sign(c, name, *names)


def sign(c: Consortium, name: str, *lost: str) -> None:
    """A person at an institution signs what it waits with."""
    deadline, awaited = time.monotonic() + PATIENCE, c.folder(name) / approval.EPOCH_AWAITED
    while (waiting := approval.read_consent(awaited)) is None or set(waiting.lost) != set(lost):
        assert time.monotonic() < deadline and c.processes[name].child.poll() is None, c.processes[name].stands()
        time.sleep(0.02)
    approval.sign_epoch(c.folder(name), lost)


def error(c: Consortium) -> float:
    """Largest difference of a released weight from the twin's."""
    if isinstance(c, JointConsortium):
        return float(np.abs(c.head()[0] - c.joint_twin()[-1]).max())
    return float(np.abs(c.weights() - c.twin()).max())


def check_shares(c: Consortium, left: Iterable[str]) -> None:
    """Nobody gave two shares for one thing: in one epoch of a refresh, in all of them of what is opened."""
    for name in left:
        given = [row[:3] for row in c.ledger(name)]
        for column, what in ((1, "item"), (2, "digest")):
            assert len({(row[0], row[column]) for row in given}) == len(given), f"{name}: two shares for one {what}"
    opened: dict[str, set[str]] = {}
    for kind in (msg.OpeningShares, msg.ReleaseShares):
        for sender, topic, body in c.bodies(kind):
            for digest in body.ciphertexts:
                assert opened.setdefault(f"{sender}/{digest}", {topic}) == {topic}, f"{sender} opened {digest} twice"


def loss(name: str, threshold: int, count: int, rng: random.Random, joint: bool) -> str:
    """One run that loses all custodians it can spare, one after the other; tells when."""
    with consortium(name, threshold, count, joint) as c:
        c.start_all()
        wait_for(c, keys_are_made(c))
        told, lost = [], rng.sample(c.custodians, count - threshold)
        for i, victim in enumerate(lost):
            wanted = len(c.board()) + rng.randrange(RECORDS[joint] * count // len(lost))
            while len(c.board()) < wanted and c.processes["server"].child.poll() is None:
                time.sleep(0.02)
            if c.processes["server"].child.poll() is not None or c.processes[victim].child.poll() is not None:
                break  # it was over by then
            *_, (_, last) = c.board()
            lose(c, victim)
            if not any(who == victim and topic.startswith("release/shares") for who, topic in c.board()):
                go_on_without(c, *lost[: i + 1])
            told.append(f"{victim} after {last}")
        for victim in lost:
            c.processes.pop(victim, None)
        c.finish()
        check_shares(c, (n for n in c.custodians if n not in lost))
        found = error(c)
        assert found < MAX_ERROR, f"released weights err by {found:.1e}"
        shutil.rmtree(c.run.folder)  # half a gigabyte
        return f"{threshold}-of-{count}: {', '.join(told) or 'nothing in time'}; weights err by {found:.1e}"


def losses(moments: int, seed: int, joint: bool, say: Callable[[str], Any] = print) -> None:
    rng = random.Random(seed)
    for threshold, count in KEYS:
        for i in range(moments):
            say(loss(f"lost-{'j' * joint}{count}-{seed}-{i}", threshold, count, rng, joint))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--joint", action="store_true")
    options = parser.parse_args()
    losses(options.moments, options.seed, options.joint, lambda text: print(text, flush=True))
