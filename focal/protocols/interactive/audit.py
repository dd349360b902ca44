"""Replay audit of an interactive run: every joint step again, from signed headers,
uploads and recorded refresh shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from focal.ckks import codec
from focal.errors import Refused
from focal.net import messages as msg
from focal.protocols.common import ceremony, inputs
from focal.protocols.common.audit import Audit
from focal.protocols.interactive import plan
from focal.protocols.interactive.compute import JointCompute


class JointAudit(Audit):
    """The re-execution of one finished interactive run."""

    def compute(self, joint: msg.JointKeys) -> JointCompute:
        self.joint_keys = ceremony.joint_digest(joint)
        return JointCompute(self.manifest, self.scheme, self.joint_keys, self.blob, self.threads)

    def present(self, step: int) -> dict[str, msg.Activations]:
        headers: dict[str, msg.Activations] = self._headers(step, "present", "activations", msg.Activations)
        if any(header.joint_keys != self.joint_keys for header in headers.values()):
            raise Refused("upload", f"step {step}: somebody masked rows under other joint keys")
        active = self.active(f"present/{step}")
        keys = self.recall_all([*headers, *active], inputs.KEY, msg.InputKey)
        inputs.check_keys({name: header.mask_keys for name, header in headers.items()}, active, keys)
        return headers

    def answered(self, step: int, present: Mapping[str, msg.Activations]) -> dict[str, msg.Derivatives]:
        headers: dict[str, msg.Derivatives] = self._headers(step, "answered", "derivatives", msg.Derivatives)
        return headers

    def _headers(self, step: int, said: str, topic: str, kind: Any) -> dict[str, Any]:
        owners = self.recall(f"{said}/{step}", msg.Present).owners
        headers: dict[str, Any] = self.recall_all(list(owners), f"{topic}/{step}", kind)
        plan.check_headers(headers, step, self.manifest)
        plan.check_contributors(self.manifest, {name: header.rows for name, header in headers.items()})
        return headers

    def open(self, topic: str, items: tuple[str, ...], packed: list[bytes]) -> None:
        """Every custodian answered for exactly what the step gives."""
        if not items:
            return
        digests = tuple(map(codec.digest, packed))
        for name, answer in self.recall_all(self.active(topic), topic, msg.OpeningShares).items():
            if (answer.items, answer.ciphertexts) != (items, digests):
                raise Refused("opening", f"'{name}' opened something else under '{topic}' than the step gives")
