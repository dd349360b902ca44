"""The server of joint steps: says who is in, computes on ciphertexts, asks for openings and refreshes, closes averages.

It waits for everybody who took part in the step before, but no longer than ``straggler_seconds``; whoever comes late is
named, left out of this step, and welcome in the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from focal.ckks.interactive import Weights
from focal.config import Model
from focal.errors import Refused
from focal.net import messages as msg
from focal.roles import ceremony
from focal.roles.interactive import steps as plan
from focal.roles.interactive.steps import JointSteps, Openings
from focal.roles.server import Server

H = TypeVar("H", bound=Model)


class JointServer(Server):
    """``run()`` serves one interactive run to its end; interrupted, the same call continues it."""

    @property
    def rotations(self) -> list[int]:
        return plan.layout(self.manifest).rotations

    def _protocol(self, joint: msg.JointKeys) -> None:
        with self.report.phase("train"):
            outputs = self._joint_steps(joint)
        with self.report.phase("release"):
            self._release(plan.released(self.manifest)[0], tuple(outputs[-2:]))

    # ----------------------------------------------------------------- joint steps

    def _joint_steps(self, joint: msg.JointKeys) -> list[str]:
        """Every step that is still to be taken; returns the digests of the weights after each."""
        self.steps = JointSteps(self.manifest, self.scheme, self.blobs.get, self.threads)
        try:
            last, total = self._last_step(), plan.total(self.manifest)
            done = [self.hear(self.me.name, f"step/{t}", msg.StepDone) for t in range(last.step + 1 if last else 0)]
            weights, chain = self.steps.start(ceremony.joint_digest(joint), done[-2:], self.blobs.get)
            outputs = [d.outputs[0] for d in done]
            if last:
                self._average(last.step)
            for step in range(len(outputs), total):
                self.report.progress(step, total)
                weights, chain, output = self._joint_step(step, weights, chain)
                outputs.append(output)
                self._average(step)
            self.report.progress(total, total)
            return outputs
        finally:
            self.steps.close()

    def _joint_step(self, step: int, weights: Weights, chain: str) -> tuple[Weights, str, str]:
        present = self._gather(step, "present", "activations", self.names, self._expected(step), msg.Activations)
        run, logits = self.steps.forward(step, weights, present)
        self._open(f"open/{step}/logits", logits)
        answered = self._gather(step, "answered", "derivatives", list(present), list(present), msg.Derivatives)
        after, gradients = self.steps.backward(step, weights, run, answered)
        self._open(f"open/{step}/gradients", gradients)
        weights, done, data = self.steps.finish(step, weights, after, self._refresh, chain, present, answered)
        output = self.blobs.put(data)
        self.say(f"step/{step}", done)
        return weights, done.chain, output

    def _open(self, topic: str, openings: Openings) -> None:
        """Ask the custodians to open each ciphertext to its owner; nobody waits for the answer here."""
        items, packed = openings
        if not items:
            return
        digests = self.net.put_many(packed, "custodians")
        self.say(topic, msg.OpeningRequest(items=items, ciphertexts=tuple(digests)))

    # ----------------------------------------------------------------- who is in

    def _expected(self, step: int) -> list[str]:
        """Who is waited for: those who finished the step before."""
        if step == 0:
            return self.names
        return list(self.hear(self.me.name, f"answered/{step - 1}", msg.Present).owners)

    def _gather(self, step: int, said: str, topic: str, names: list[str], expected: list[str], kind: type[H]) -> dict[str, H]:
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

    def _wait(self, topic: str, names: list[str], expected: list[str], headers: Callable[[list[str]], object]) -> list[str]:
        """Those of ``names`` who have said ``topic``, once all ``expected`` have or their time is up, and there are enough."""
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

    def _average(self, step: int) -> None:
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
                self.report.warn(f"average {number} is abandoned: nothing from {', '.join(missing)}; each goes on from its own parameters")
                break
            self.read_board(0.5)
        self.say(f"{topic}/closed", msg.AverageClosed(round=number, done=not missing))
