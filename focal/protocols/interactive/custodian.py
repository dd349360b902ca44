"""A custodian of joint steps: opens logits and gradients to their owners, refreshes the head, and counts what it opens.

Whatever its ``verify`` says, it reads off the institutions' signed headers who brought how many rows, and opens nothing
of a step in which an owner could single out another's gradient; its ledger ends the openings of one key. With
``verify: lockstep`` it computes every step itself and answers only for limbs equal to its own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal.ckks import codec
from focal.custody import opening
from focal.errors import Refused
from focal.heads.joint.layout import OPENING
from focal.net import messages as msg
from focal.protocols.common import ceremony, inputs, resuming
from focal.protocols.common.custodian import Custodian
from focal.protocols.interactive import plan
from focal.protocols.interactive.compute import JointCompute


class JointCustodian(Custodian):
    """``run()`` takes part in one interactive run from the nonces to the release;
    interrupted, the same call continues it."""

    def answer(self) -> None:
        with self.report.phase("train"):
            self.enter("refresh")
            self.joint_keys = ceremony.joint_digest(self.joint)
            if self.verifies:
                self.install_keys()
                self.verify(JointCompute(self.manifest, self.scheme, self.joint_keys, self.fetch, self.threads))
            else:
                self._answer_plan()

    def _answer_plan(self) -> None:
        """``verify: off``: answer each step's openings and refresh, for whatever ciphertexts the server presents."""
        total = plan.total(self.manifest)
        first = int(self.journal.read(f"{self.session}/joint") or b"0")
        if self.epochs.now.number:  # what was not done in the epoch before is done in this one
            first = min(first, plan.steps_before(self.manifest, self.epochs.now.stage))
        for step in range(first, total):
            self.report.progress(step, total)
            present = self.present(step)
            self.contribute(
                *plan.inputs(self.manifest, self.epochs.at(f"activations/{step}"), step, "activations", present)
            )
            self.open(f"open/{step}/logits", plan.opening_items(step, "logits", tuple(present)))
            answered = self.answered(step, present)
            self.contribute(
                *plan.inputs(self.manifest, self.epochs.at(f"derivatives/{step}"), step, "derivatives", answered)
            )
            self.open(f"open/{step}/gradients", plan.opening_items(step, "input-gradient", tuple(answered)))
            self.answer_batch(f"refresh/{step}/weights", (plan.weights_item(step),))
            self.journal.set(f"{self.session}/joint", str(step + 1).encode())
        self.report.progress(total, total)

    # ----------------------------------------------------------------- who is in

    def present(self, step: int) -> dict[str, msg.Activations]:
        headers: dict[str, msg.Activations] = self._headers(step, "present", "activations", msg.Activations)
        if other := [name for name, header in headers.items() if header.joint_keys != self.joint_keys]:
            raise Refused("upload", f"'{other[0]}' masked its rows under other joint keys than we signed")
        active = self.active(f"present/{step}")
        keys = self.hear_all([*headers, *active], inputs.KEY, msg.InputKey)
        inputs.check_keys({name: header.mask_keys for name, header in headers.items()}, active, keys)
        return headers

    def answered(self, step: int, present: Mapping[str, msg.Activations]) -> dict[str, msg.Derivatives]:
        headers: dict[str, msg.Derivatives] = self._headers(step, "answered", "derivatives", msg.Derivatives)
        for name, header in headers.items():
            if name not in present or header.rows != present[name].rows:
                raise Refused("owner", f"'{name}' sent derivatives of other rows than its activations in step {step}")
        return headers

    def _headers(self, step: int, said: str, topic: str, kind: Any) -> dict[str, Any]:
        """The signed headers of those with whom the server goes on, once they may be opened to."""
        owners = self.hear(self.manifest.server.name, f"{said}/{step}", msg.Present).owners
        if list(owners) != [n for n in self.names if n in owners]:
            raise Refused(
                "contributors", f"the server's list for step {step} is no list of institutions in manifest order"
            )
        headers = self.hear_all(owners, f"{topic}/{step}", kind)
        plan.check_headers(headers, step, self.manifest)
        plan.check_contributors(self.manifest, {name: header.rows for name, header in headers.items()})
        return headers

    # ----------------------------------------------------------------- openings

    def open(self, topic: str, items: tuple[str, ...], packed: list[bytes] | None = None) -> None:
        """Answer one request to open: the plan's items, each to its owner,
        and with ``packed`` nothing but these ciphertexts."""
        if not items:
            return
        server = self.manifest.server.name
        asked = self.hear(server, topic, msg.OpeningRequest)
        if asked.items != items or len(asked.ciphertexts) != len(items):
            raise Refused(
                "plan", f"the server asks to open {asked.items[:1]} under '{topic}', the plan has {items[:1]}"
            )
        if packed is not None and (mine := tuple(map(codec.digest, packed))) != asked.ciphertexts:
            differs = next(i for i, m, t in zip(items, mine, asked.ciphertexts, strict=True) if m != t)
            raise Refused(
                "lockstep", f"the server presents another ciphertext for '{differs}' than our own computation yields"
            )
        if self.repeat(topic):
            return
        self.net.phase = "openings"
        data = packed or [self.net.get(d) for d in asked.ciphertexts]
        owners = [item.rpartition("/")[2] for item in items]
        one, seed = functools.partial(self._opening_share, topic), self.seed(topic)
        shares = list(map(one, items, asked.ciphertexts, data))  # in order: the ledger's order is the plan's
        boxes = [
            self.identity.seal(self.manifest.member(owner), share, plan.opening_context(item, seed))
            for item, owner, share in zip(items, owners, shares, strict=True)
        ]
        digests = self.share_blobs(boxes, "all")
        self.say(
            topic,
            msg.OpeningShares(
                items=items, ciphertexts=asked.ciphertexts, sealed=dict(zip(owners, digests, strict=True))
            ),
        )
        self.net.phase = "refresh"

    def _opening_share(self, topic: str, item: str, digest: str, data: bytes) -> bytes:
        """Made once, the stored bytes ever after, and no more of them than the key may give."""
        epoch = self.epochs.at(topic)

        def make() -> bytes:
            polynomials = codec.unpack(self.scheme, OPENING, data, f"'{self.manifest.server.name}'")
            ciphertext = self.scheme.evaluator.load(polynomials)
            return opening.share(self.scheme, self.limbs(topic), ciphertext, lead=self.me.name == epoch.active[0])

        given, limit = resuming.entry(msg.OpeningShares, item, epoch.suffix), self._openings
        return self.ledger.answer(*given, digest, make, limit, epoch.number)

    @property
    def _openings(self) -> int:
        return plan.settings(self.manifest).max_openings_per_key

    def answer_batch(self, topic: str, items: tuple[str, ...], own: list[str] | None = None) -> msg.RefreshRequest:
        """A head is refreshed when the stages before it have ended: none is made anew behind it."""
        _, step, kind = topic.split("/")
        for part in range(2) if kind == "weights" else ():
            _, ends = plan.stage_end(self.manifest, len(plan.PARTS) * int(step) + part)
            self.hear_all(self.active(ends), ends, msg.OpeningShares if int(step) else msg.InputReveal)
        return super().answer_batch(topic, items, own)

    def added(self) -> NDArray[np.float64] | None:
        """Noise on the head (``dp_head_noise``). It goes into a share that is made once and recorded:
        verifiers get the same limbs."""
        deviation = plan.settings(self.manifest).dp_head_noise
        return plan.layout(self.manifest).noise_slots(deviation) if deviation else None
