"""What a party tells the person who started it, and what it remembers for the timeline.

A role reports to a :class:`Reporter`; where that goes (a progress bar, or JSON lines that the local launcher reads
from a pipe) is the command line's choice. Reports never hold file names or patient ids.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from focal.config import printable
from focal.telling import Show


class Reporter:
    """Progress of one party. ``events`` is its timeline on disk: one JSON line per finished phase."""

    def __init__(self, party: str, events: Path, sink: Show) -> None:
        self.party, self.events, self.sink = party, events, sink
        self.current = ""
        events.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Everything inside belongs to ``name``: keys, features, moments, upload, train, release, score."""
        before, self.current = self.current, name
        self._send("phase")
        start, clock, cpu = time.time(), time.monotonic(), time.process_time()
        try:
            yield
        finally:
            self._note(name, start, {"seconds": time.monotonic() - clock, "cpu": time.process_time() - cpu})
            self.current = before

    def spent(self, name: str, start: float, seconds: float) -> None:
        """Seconds of ``name`` that lie scattered within another phase, since ``start`` (Unix time)."""
        self._note(name, start, {"seconds": seconds, "cpu": 0.0})

    def _note(self, name: str, start: float, spent: dict[str, float]) -> None:
        line = json.dumps({"party": self.party, "phase": name, "start": start, **spent})
        with os.fdopen(os.open(self.events, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as f:
            f.write(line + "\n")

    def progress(self, done: float, total: float) -> None:
        """How far the current phase is."""
        self._send("progress", done=done, total=total)

    def waiting(self, names: list[str], topic: str) -> None:
        """Nothing to do until these members say something."""
        self._send("waiting", names=names, topic=topic)

    def say(self, text: str) -> None:
        """A line worth reading."""
        self._send("say", text=text)

    def warn(self, text: str) -> None:
        """A line that must be read."""
        self._send("warn", text=text)

    def error(self, text: str) -> None:
        self._send("error", text=text)

    def _send(self, event: str, **fields: Any) -> None:
        clean = {key: printable(value, keep="\n") if isinstance(value, str) else value for key, value in fields.items()}
        self.sink({"party": self.party, "event": event, "phase": self.current, **clean})


def json_lines(event: dict[str, Any]) -> None:
    """Sink for a process that the local launcher started: one JSON line per event on standard output."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


def timeline(folder: Path) -> list[dict[str, Any]]:
    """Finished phases from an events file, oldest first."""
    path = folder / "events.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line]
