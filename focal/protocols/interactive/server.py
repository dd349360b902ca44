"""The server of joint steps: says who is in, computes on ciphertexts, asks for openings and refreshes, closes averages.

It waits for everybody who took part in the step before, but no longer than ``straggler_seconds``; whoever comes late is
named, left out of this step, and welcome in the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from focal.config import Model
from focal.errors import Refused
from focal.net import messages as msg
from focal.protocols.common import ceremony
from focal.protocols.common.server import Server
from focal.protocols.interactive import plan
from focal.protocols.interactive.compute import JointCompute

H = TypeVar("H", bound=Model)


class JointServer(Server):
    """``run()`` serves one interactive run to its end; interrupted, the same call continues it."""

    def serve(self, joint: msg.JointKeys) -> list[msg.StepDone]:
        with self.report.phase("train"):
            compute = JointCompute(
                self.manifest, self.scheme, ceremony.joint_digest(joint), self.blobs.get, self.threads
            )
            return self.train(compute)

    def present(self, step: int) -> dict[str, msg.Activations]:
        return self._gather(step, "present", "activations", self.names, self._expected(step), msg.Activations)

    def answered(self, step: int, present: Mapping[str, msg.Activations]) -> dict[str, msg.Derivatives]:
        return self._gather(step, "answered", "derivatives", list(present), list(present), msg.Derivatives)

    def open(self, topic: str, items: tuple[str, ...], packed: list[bytes]) -> None:
        """Ask the custodians to open each ciphertext to its owner; nobody waits for the answer here."""
        if items:
            digests = self.net.put_many(packed, "custodians")
            self.say(topic, msg.OpeningRequest(items=items, ciphertexts=tuple(digests)))

    # ----------------------------------------------------------------- who is in

    def _expected(self, step: int) -> list[str]:
        """Who is waited for: those who finished the step before."""
        if step == 0:
            return self.names
        return list(self.hear(self.me.name, f"answered/{step - 1}", msg.Present).owners)

    def _gather(
        self, step: int, said: str, topic: str, names: list[str], expected: list[str], kind: type[H]
    ) -> dict[str, H]:
        """The headers of those with whom the server goes on, in manifest order. Decided once, and on the board."""
        decided, wanted = f"{said}/{step}", f"{topic}/{step}"
        self.read_all()
        if not self.said(self.me.name, decided):
            here = self._wait(wanted, names, expected, lambda owners: self._headers(owners, wanted, kind, step))
            self.say(decided, msg.Present(step=step, owners=tuple(here)))
            self.read_all()
        owners = self.hear(self.me.name, decided, msg.Present).owners
        return self._headers(list(owners), wanted, kind, step)

    def _headers(self, owners: list[str], topic: str, kind: type[H], step: int) -> dict[str, H]:
        headers = self.hear_all(owners, topic, kind)
        plan.check_headers(headers, step, self.manifest)  # type: ignore[arg-type]
        return headers

    def _wait(
        self, topic: str, names: list[str], expected: list[str], headers: Callable[[list[str]], object]
    ) -> list[str]:
        """Those of ``names`` who have said ``topic``, once all ``expected`` have or their time is up,
        and there are enough."""
        deadline, told = time.monotonic() + plan.settings(self.manifest).straggler_seconds, time.monotonic()
        while True:
            here = [n for n in names if self.said(n, topic)]
            missing = [n for n in expected if n not in here]
            late = time.monotonic() > deadline
            enough = self._enough({n: h.rows for n, h in headers(here).items()})  # type: ignore[attr-defined]
            if enough and (not missing or late):
                if missing:
                    self.report.warn(f"{topic}: goes on without {', '.join(missing)}, which can join at the next step")
                return here
            self.read_board(0.5 if enough else 2.0)
            if time.monotonic() - told > 5.0:
                told = time.monotonic()
                self.report.waiting(missing or [n for n in names if n not in here], topic)

    def _enough(self, rows: dict[str, int]) -> bool:
        try:
            plan.check_contributors(self.manifest, rows)
        except Refused:
            return False
        return True

    # ----------------------------------------------------------------- averages

    def after(self, step: int) -> None:
        """After a step that ends a round: propose who takes part, wait for their word on the sum, close the round."""
        number = plan.round_after(self.manifest, step)
        if number is None:
            return
        self.read_all()
        topic = f"average/{number}"
        owners = self.hear(self.me.name, f"answered/{step}", msg.Present).owners
        self.say(f"{topic}/list", msg.AverageList(round=number, participants=owners))
        if self.said(self.me.name, f"{topic}/closed"):
            return
        deadline = time.monotonic() + plan.settings(self.manifest).straggler_seconds
        opened = f"sum/{plan.average_label(number)}/opened"
        while missing := [n for n in owners if not self.said(n, opened)]:
            if time.monotonic() > deadline:
                self.report.warn(
                    f"average {number} is abandoned: nothing from {', '.join(missing)}; "
                    "each goes on from its own parameters"
                )
                break
            self.read_board(0.5)
        self.say(f"{topic}/closed", msg.AverageClosed(round=number, done=not missing))
