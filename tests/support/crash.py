"""Pull the plug, again and again: kill -9 of a random party at a random moment, restart it,
until enough kills were survived.

    python tests/support/crash.py --kills 100 --seed 1        (make crash; a few minutes)

Every run must finish, its weights must agree with the plaintext twin, and no custodian may ever give two
shares: whatever its ledger held at any kill is in its ledger at the end, byte for byte, and every item
and every digest stands in it once.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sqlite3
import time
from collections import Counter

import numpy as np
from consortium import Consortium

from focal.heads.released import MAX_ERROR

PER_RUN = 12
"""Kills in one run, before it is left alone to finish."""
BEGIN = ("gather", "train", "keys", "upload")
"""The server's phase in which the kills begin, run by run: from the first second on,
few runs would get as far as the training."""


def crash_run(name: str, kills: int, rng: random.Random, begin: str) -> Counter[str]:
    """One run with up to ``kills`` kills from phase ``begin`` on;
    returns how often each role was killed in which phase."""
    survived: Counter[str] = Counter()
    consortium = {"institutions": 3, "custodians": 2, "verify": "first"}
    with Consortium(name, training={"steps": 3}, consortium=consortium) as c:
        c.start_all()
        c.processes["server"].reach_phase(begin)
        before: dict[str, list[tuple[object, ...]]] = {}
        while sum(survived.values()) < kills:
            time.sleep(rng.uniform(0.05, 1.5))
            alive = [n for n, p in c.processes.items() if p.child.poll() is None]
            if "server" not in alive or len(alive) == 1:
                break
            victim = rng.choice(alive)
            process = c.processes[victim]
            phase = next((e["phase"] for e in reversed(process.events) if e["event"] == "phase"), "start")
            process.kill()
            survived[f"{c.roles[victim]} in {phase}"] += 1
            before = {n: _ledger(c, n) or before.get(n, []) for n in c.custodians}
            time.sleep(rng.choice((0.0, 0.0, 0.5)))
            c.start(victim)
            for n, p in c.processes.items():
                assert p.child.poll() in (None, 0), f"{n} gave up after the kill of {victim} in {phase}: {p.errors}"
        c.finish()
        for n, rows in before.items():
            after = _ledger(c, n)
            assert after[: len(rows)] == rows, f"{n}: a share changed"
            for column, what in ((1, "item"), (2, "digest")):
                assert len({(row[0], row[column]) for row in after}) == len(after), f"{n}: two shares for one {what}"
        error = float(np.abs(c.weights() - c.twin()).max())
        assert error < MAX_ERROR, f"released weights err by {error:.1e}"
    return survived


def _ledger(c: Consortium, name: str) -> list[tuple[object, ...]]:
    """Shares given so far. Read in place, under SQLite's own locks: a copy of a database at work may be torn."""
    for path in c.folder(name).glob("ledger-*.sqlite"):
        with contextlib.closing(sqlite3.connect(path)) as db:
            if db.execute(
                "SELECT 1 FROM sqlite_master WHERE name = 'shares'"
            ).fetchone():  # or it was killed before it made the table
                return db.execute("SELECT protocol, item, digest, share FROM shares ORDER BY number").fetchall()
    return []


def crash(kills: int, seed: int) -> Counter[str]:
    """As many runs as it takes for ``kills`` kills."""
    rng, total = random.Random(seed), Counter[str]()
    number = 0
    while sum(total.values()) < kills:
        begin = BEGIN[number % len(BEGIN)]
        number += 1
        total += crash_run(f"crash-{seed}-{number}", min(PER_RUN, kills - sum(total.values())), rng, begin)
        print(f"run {number}: {sum(total.values())} of {kills} kills survived", flush=True)
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for what, count in sorted(crash(options.kills, options.seed).items()):
        print(f"{count:4}  {what}")
