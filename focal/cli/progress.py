"""How far a command is: bars, and lines worth reading above them."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

import focal
from focal import telling
from focal.cli import common


class Bars:
    """The picture of a running consortium: one bar per stage, and lines worth reading above them."""

    STAGES = {
        "data": "images",
        "features": "features",
        "keys": "key ceremony",
        "moments": "secure sum",
        "upload": "encrypt + upload",
        "train": "encrypted training",
        "release": "release",
    }

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(20),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=common.console,
        )
        self.tasks: dict[str, TaskID] = {}
        self.state: dict[str, dict[str, float]] = {}
        self.phase_of: dict[str, str] = {}

    def _end(self) -> None:
        if self.tasks:
            self.bars.stop()

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def done(self, run: focal.Run) -> None:
        """The result of a run that has ended. Another one may follow, with bars of its own."""
        from focal.reporting.table import print_results

        self._end()
        print_results(run.summary, common.console)
        common.say(f"result: {run.folder}/summary.json, model.pt, roc.png, per_class.png, timeline.png")
        self._begin()

    def line(self, text: str) -> None:
        from focal.config import printable

        self.bars.console.print(printable(text, keep="\n"), markup=False, soft_wrap=True)

    def show(self, event: dict[str, Any]) -> None:
        """Draw one event of one party."""
        kind, phase, party = event["event"], event.get("phase", ""), event["party"]
        if kind in ("say", "warn"):
            line = Text.assemble(("warning: ", "yellow"), event["text"]) if kind == "warn" else Text(event["text"])
            self.bars.console.print(line, soft_wrap=True)
        elif kind == "phase" and phase in self.STAGES:
            self._set(phase, party, 0.0)
            self.phase_of[party] = phase
        elif kind == "progress" and phase in self.STAGES:
            self._set(phase, party, event["done"] / max(event["total"], 1e-9))
        elif kind == "waiting" and event["names"]:
            stage = self.phase_of.get(party)
            if stage in self.tasks:
                self.bars.update(self.tasks[stage], note=f"{party} waits for {', '.join(event['names'][:3])}")
        if kind == "exit":
            for shares in self.state.values():
                if party in shares:
                    shares[party] = 1.0
            self._redraw()

    def _set(self, phase: str, party: str, share: float) -> None:
        if phase not in self.tasks:
            for earlier in self.tasks:  # a stage that begins ends the ones before it
                if list(self.STAGES).index(earlier) < list(self.STAGES).index(phase) and all(
                    v >= 1.0 for v in self.state[earlier].values()
                ):
                    self.bars.update(self.tasks[earlier], completed=1.0)
            self.bars.start()  # with the first stage; nothing happens for the others
            self.tasks[phase] = self.bars.add_task(self.STAGES[phase], total=1.0, note="")
        shares = self.state.setdefault(phase, {})
        shares[party] = max(share, shares.get(party, 0.0))
        before = self.phase_of.get(party)
        if before is not None and before != phase and before in self.state:
            self.state[before][party] = 1.0
        self.phase_of[party] = phase
        self._redraw()

    def _redraw(self) -> None:
        for phase, task in self.tasks.items():
            shares = self.state[phase]
            self.bars.update(
                task,
                completed=sum(shares.values()) / len(shares),
            )


class Bar:
    """A progress bar as a ``progress(done, total)`` function; drawn when it is called first."""

    def __init__(self, name: str) -> None:
        self.bars = Progress(
            TextColumn(name),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )

    def __enter__(self) -> telling.Progress:
        task = self.bars.add_task("")

        def show(done: int, total: int) -> None:
            self.bars.start()
            self.bars.update(task, completed=done, total=total)

        return show

    def __exit__(self, *_: object) -> None:
        self.bars.stop()
