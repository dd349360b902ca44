"""Replay audit of an interactive run: every joint step again, from signed headers, uploads and recorded refresh shares."""

from __future__ import annotations

from typing import Any

from focal.ckks import wire
from focal.ckks.interactive import InteractiveLayout, Weights
from focal.errors import Refused
from focal.net import messages as msg
from focal.roles import ceremony
from focal.roles.audit import Audit
from focal.roles.interactive import steps as plan
from focal.roles.interactive.steps import JointSteps, Openings


class JointAudit(Audit):
    """The re-execution of one finished interactive run."""

    def _layout(self) -> InteractiveLayout:
        return plan.layout(self.manifest)

    def run(self) -> str:
        """Check everything; returns the last link of the chain. Raises :class:`FocalError` naming the first thing that differs."""
        joint = self._begin()
        outputs, chain = self._joint_steps(ceremony.joint_digest(joint))
        asked = self.heard.get(self.scope, self.server, "release/request", msg.ReleaseRequest)
        items = plan.released(self.manifest)[0]
        if (asked.items, asked.ciphertexts) != (items, tuple(outputs[-len(items) :])):
            raise Refused("release", "the server asked to release something else than the last refreshed weights")
        for name, answer in self._all(self.custodians, "release/shares", msg.ReleaseShares).items():
            if (answer.items, answer.ciphertexts) != (asked.items, asked.ciphertexts):
                raise Refused("release", f"'{name}' released something else than the last refreshed weights")
        self.say("release    the last refreshed weights, those before them, and nothing else")
        return chain

    def _joint_steps(self, joint_keys: str) -> tuple[list[str], str]:
        steps = JointSteps(self.manifest, self.scheme, self._blob, self.threads)
        outputs: list[str] = []
        try:
            weights, chain = steps.start(joint_keys)
            for step in range(plan.total(self.manifest)):
                weights, done = self._joint_step(steps, step, weights, chain, joint_keys)
                chain = done.chain
                outputs += done.outputs
                self.say(f"step {step}     {len(done.inputs)} uploads, chain {chain[:16]}")
            return outputs, chain
        finally:
            steps.close()

    def _joint_step(self, steps: JointSteps, step: int, weights: Weights, chain: str, joint_keys: str) -> tuple[Weights, msg.StepDone]:
        present = self._headers(step, "present", "activations", msg.Activations)
        if any(header.joint_keys != joint_keys for header in present.values()):
            raise Refused("upload", f"step {step}: somebody encrypted under other joint keys")
        run, openings = steps.forward(step, weights, present)
        self._opened(f"open/{step}/logits", openings)
        answered = self._headers(step, "answered", "derivatives", msg.Derivatives)
        after, openings = steps.backward(step, weights, run, answered)
        self._opened(f"open/{step}/gradients", openings)
        weights, done, _ = steps.finish(step, weights, after, self._recorded, chain, present, answered)
        if self.heard.get(self.scope, self.server, f"step/{step}", msg.StepDone) != done:
            raise Refused("step", f"step {step}: the recorded outcome is not what its inputs give")
        return weights, done

    def _headers(self, step: int, said: str, topic: str, kind: Any) -> dict[str, Any]:
        owners = self.heard.get(self.scope, self.server, f"{said}/{step}", msg.Present).owners
        headers: dict[str, Any] = self._all(list(owners), f"{topic}/{step}", kind)
        plan.check_headers(headers, step, self.manifest)
        plan.check_contributors(self.manifest, {name: header.rows for name, header in headers.items()})
        return headers

    def _opened(self, topic: str, openings: Openings) -> None:
        """Every custodian answered for exactly what the step gives."""
        items, packed = openings
        if not items:
            return
        digests = tuple(map(wire.digest, packed))
        for name, answer in self._all(self.custodians, topic, msg.OpeningShares).items():
            if (answer.items, answer.ciphertexts) != (items, digests):
                raise Refused("opening", f"'{name}' opened something else under '{topic}' than the step gives")
