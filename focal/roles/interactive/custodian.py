"""A custodian of joint steps: opens logits and gradients to their owners, refreshes the head, and counts what it opens.

Whatever its ``verify`` says, it reads off the institutions' signed headers who brought how many rows, and opens nothing of a step in
which an owner could single out another's gradient; its ledger ends the openings of one key. With ``verify: lockstep`` it computes
every step itself and answers only for limbs equal to its own.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal.ckks import opening, wire
from focal.ckks.interactive import HEAD_NOISE, OPENING, Weights
from focal.ckks.masks import only_classes
from focal.errors import Refused
from focal.net import messages as msg
from focal.roles import ceremony
from focal.roles.custodian import Custodian
from focal.roles.interactive import steps as plan
from focal.roles.interactive.steps import JointSteps


class JointCustodian(Custodian):
    """``run()`` takes part in one interactive run from the nonces to the release; interrupted, the same call continues it."""

    carried = HEAD_NOISE
    steps: JointSteps
    """With ``verify: lockstep``."""

    @property
    def rotations(self) -> list[int]:
        return plan.layout(self.manifest).rotations

    def _protocol(self) -> None:
        with self.report.phase("train"):
            self.enter("refresh")
            self._catch_up()
            self.joint_keys = ceremony.joint_digest(self.joint)
            total, first = plan.total(self.manifest), int(self.journal.read(f"{self.session}/joint") or b"0")
            weights, chain = self._start(first) if self.verifies else (None, "")
            try:
                for step in range(first, total):
                    self.report.progress(step, total)
                    weights, chain = self._joint_step(step, weights, chain)
                    self.journal.set(f"{self.session}/joint", str(step + 1).encode())
                self.report.progress(total, total)
            finally:
                if self.verifies:
                    self.steps.close()

    def _start(self, first: int) -> tuple[Weights, str]:
        """The own computation at step ``first``: its weights are on the own disk."""
        self._install_keys()
        self.steps = JointSteps(self.manifest, self.scheme, self.net.get, self.local.threads or os.cpu_count() or 1)
        last = range(max(0, first - 2), first)
        done = [msg.decode(msg.StepDone, self.journal.once(f"{self.session}/step/{step}", bytes)) for step in last]
        return self.steps.start(self.joint_keys, done, self.blobs.get)

    # ----------------------------------------------------------------- one step

    def _joint_step(self, step: int, weights: Any, chain: str) -> tuple[Any, str]:
        server = self.manifest.server.name
        present = self._headers(step, "present", "activations", msg.Activations)
        if other := [name for name, header in present.items() if header.joint_keys != self.joint_keys]:
            raise Refused("upload", f"'{other[0]}' encrypted under other joint keys than we signed")
        if not self.verifies:
            self._open(f"open/{step}/logits", plan.opening_items(step, "logits", tuple(present)))
            answered = self._answered(step, present)
            self._open(f"open/{step}/gradients", plan.opening_items(step, "input-gradient", tuple(answered)))
            self._answer(f"refresh/{step}/weights", (plan.weights_item(step),))
            return None, ""
        run, (items, own) = self.steps.forward(step, weights, present)
        self._open(f"open/{step}/logits", items, own)
        answered = self._answered(step, present)
        after, (items, own) = self.steps.backward(step, weights, run, answered)
        self._open(f"open/{step}/gradients", items, own)
        weights, done, data = self.steps.finish(step, weights, after, self._refresh_in_lockstep, chain, present, answered)
        self.blobs.put(data)
        self.journal.once(f"{self.session}/step/{step}", functools.partial(msg.encode, done))
        if self.hear(server, f"step/{step}", msg.StepDone) != done:
            raise Refused("lockstep", f"the server's step {step} has another outcome than our own computation")
        return weights, done.chain

    def _headers(self, step: int, said: str, topic: str, kind: Any) -> dict[str, Any]:
        """The signed headers of those with whom the server goes on, once they may be opened to."""
        owners = self.hear(self.manifest.server.name, f"{said}/{step}", msg.Present).owners
        if list(owners) != [n for n in self.names if n in owners]:
            raise Refused("contributors", f"the server's list for step {step} is no list of institutions in manifest order")
        headers = self.hear_all(owners, f"{topic}/{step}", kind)
        plan.check_headers(headers, step, self.manifest)
        plan.check_contributors(self.manifest, {name: header.rows for name, header in headers.items()})
        return headers

    def _answered(self, step: int, present: dict[str, msg.Activations]) -> dict[str, msg.Derivatives]:
        headers: dict[str, msg.Derivatives] = self._headers(step, "answered", "derivatives", msg.Derivatives)
        for name, header in headers.items():
            if name not in present or header.rows != present[name].rows:
                raise Refused("owner", f"'{name}' sent derivatives of other rows than its activations in step {step}")
        return headers

    # ----------------------------------------------------------------- openings

    def _open(self, topic: str, items: tuple[str, ...], own: list[bytes] | None = None) -> None:
        """Answer one request to open: the plan's items, each to its owner, and with ``own`` nothing but these ciphertexts."""
        if not items:
            return
        server = self.manifest.server.name
        asked = self.hear(server, topic, msg.OpeningRequest)
        if asked.items != items or len(asked.ciphertexts) != len(items):
            raise Refused("plan", f"the server asks to open {asked.items[:1]} under '{topic}', the plan has {items[:1]}")
        if own is not None and (mine := tuple(map(wire.digest, own))) != asked.ciphertexts:
            differs = next(i for i, m, t in zip(items, mine, asked.ciphertexts, strict=True) if m != t)
            raise Refused("lockstep", f"the server presents another ciphertext for '{differs}' than our own computation yields")
        if self.repeat(topic):
            return
        self.net.phase = "openings"
        data = own or [self.net.get(d) for d in asked.ciphertexts]
        owners = [item.rpartition("/")[2] for item in items]
        shares = list(map(self._opening_share, items, asked.ciphertexts, data))  # in order: the ledger's order is the plan's
        boxes = [
            self.identity.seal(self.manifest.member(owner), share, plan.opening_context(item, self.run_id))
            for item, owner, share in zip(items, owners, shares, strict=True)
        ]
        digests = self.share_blobs(boxes, "all")
        self.say(topic, msg.OpeningShares(items=items, ciphertexts=asked.ciphertexts, sealed=dict(zip(owners, digests, strict=True))))
        self.net.phase = "refresh"

    def _opening_share(self, item: str, digest: str, data: bytes) -> bytes:
        """Made once, the stored bytes ever after, and no more of them than the key may give."""

        def make() -> bytes:
            ciphertext = self.scheme.ciphertext(wire.unpack(self.scheme, OPENING, data, f"'{self.manifest.server.name}'"))
            return opening.share(self.scheme, self.share.limbs, ciphertext, lead=self.me.name == self.peers[0])

        return self.ledger.answer("open", item, digest, make, limit=plan.settings(self.manifest).max_openings_per_key)

    def _added(self) -> NDArray[np.float64] | None:
        """Noise on the head (``dp_head_noise``). It goes into a share that is made once and recorded: verifiers get the same limbs."""
        deviation = plan.settings(self.manifest).dp_head_noise
        return plan.layout(self.manifest).noise_slots(deviation) if deviation else None

    # ----------------------------------------------------------------- release

    def _released(self) -> tuple[tuple[str, ...], list[str]]:
        return plan.released(self.manifest)

    def _released_classes(self, weights: list[object]) -> list[object]:
        return [only_classes(self.scheme, plan.layout(self.manifest), 0, w) for w in weights]
