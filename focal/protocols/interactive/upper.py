"""The upper segment as one institution sees it: activations go up, its own logits come down;
derivatives up, gradients down.

::

    activations (n, R) --mask--> chunk + signed header --> server ... custodians
                                                                          |
                       logits (n, C) <-- add up, decode <--sealed shares--+

This is the seam between Lightning and the network (:class:`focal.training.split.Upper`). Everything that leaves was
made once and is on the own disk before it leaves: a restarted process sends the same messages again or none.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from focal import framing
from focal.ckks import codec
from focal.ckks.evaluator import Slots
from focal.ckks.scheme import Scheme
from focal.custody import inputs, release
from focal.errors import Refused
from focal.heads.joint import limits
from focal.net import messages as msg
from focal.protocols.common.inputs import MaskKeys
from focal.protocols.interactive import plan
from focal.training.split import Skipped

if TYPE_CHECKING:
    from focal.protocols.interactive.institution import JointInstitution

Array = NDArray[np.float64]


class Abandoned(Exception):
    """The server has closed this averaging round without a result."""


class EncryptedUpper:
    """Implements :class:`focal.training.split.Upper` for ``party``."""

    def __init__(self, party: JointInstitution, scheme: Scheme, joint_keys: str) -> None:
        self.party, self.scheme, self.joint_keys = party, scheme, joint_keys
        self.keys = MaskKeys(party)
        self.keys.say()
        self.layout = plan.layout(party.manifest)
        self.first = plan.table(party.manifest)[party.me.name].start
        self.server = party.manifest.server.name
        self.on_the_wire = 0.0
        """Seconds that activations and derivatives took to the server."""

    # ----------------------------------------------------------------- the seam

    def logits(self, step: int, activations: Array) -> Array:
        """Activations (n, R) -> own logits (n, C). Raises :class:`Skipped` when the step went on without us."""
        self.party.report.progress(step, plan.total(self.party.manifest))
        limits.check_activations(activations)
        return self.party.through_epochs(lambda: self._logits(step, activations))

    def gradients(self, step: int, derivatives: Array) -> Array:
        """d loss / d logit (n, C) -> d loss / d activation (n, R). Raises :class:`Skipped` likewise."""
        limits.check_derivatives(derivatives, self.layout.lanes)
        gradients = self.party.through_epochs(lambda: self._gradients(step, derivatives))
        limits.check_head(gradients, derivatives)
        return gradients

    # What all custodians have opened has ended: in a new epoch only the one that is under way is made anew.

    def _logits(self, step: int, activations: Array) -> Array:
        topic = f"activations/{step}"
        self._still_wanted(f"present/{step}")
        label, chunk, proof = self.send(step, "activations", activations)
        header = msg.Activations(
            step=step,
            rows=len(activations),
            joint_keys=self.joint_keys,
            mask_keys=self.mask_keys(topic),
            label=label,
            chunk=chunk,
            proof=proof,
        )
        self.party.say(topic, header)
        self._still_wanted(f"present/{step}", wait=True)
        return self.receive(step, "logits", len(activations))

    def _gradients(self, step: int, derivatives: Array) -> Array:
        self._still_wanted(f"answered/{step}")
        label, chunk, proof = self.send(step, "derivatives", derivatives)
        header = msg.Derivatives(step=step, rows=len(derivatives), label=label, chunk=chunk, proof=proof)
        self.party.say(f"derivatives/{step}", header)
        self._still_wanted(f"answered/{step}", wait=True)
        return self.receive(step, "gradients", len(derivatives))

    def mask_keys(self, topic: str) -> str:
        """Digest over the keys for masks that were met."""
        return self.keys.digest(self.party.active(topic))

    # ----------------------------------------------------------------- messages, to and fro

    def send(self, step: int, what: Literal["activations", "derivatives"], values: Array) -> tuple[str, str, str]:
        """Mask once, prove its size, keep, send; returns the label of the mask,
        and the digests of message and proof."""
        party, slots = (
            self.party,
            {"activations": self.layout.activation_slots, "derivatives": self.layout.derivative_slots}[what],
        )
        epoch, active = party.epochs.at(f"{what}/{step}"), party.active(f"{what}/{step}")
        item = plan.input_item(epoch, step, what, party.me.name)

        def make() -> bytes:
            self.keys.meet(active)
            message = inputs.message(self.scheme, slots(values, self.first))
            label = self.keys.label(item, message.tobytes())
            digest = party.blobs.put(self.keys.masked(self.scheme, message, label, item, active))
            statement = plan.statement(party.manifest, epoch.seed, party.me.name, step, what, len(values), digest)
            proof = party.blobs.put(self.keys.proof(statement, lambda: [message], active))
            return " ".join((label, digest, proof)).encode()

        made = party.journal.once(f"{party.session}/chunk/{what}/{step}{epoch.suffix}", make)
        label, digest, proof = made.decode().split()
        self.party.net.phase = "upload"
        data, start = [self.party.blobs.get(d) for d in (digest, proof)], time.monotonic()
        self.party.net.put_many(data, "custodians")
        self.on_the_wire += time.monotonic() - start
        return label, digest, proof

    def receive(self, step: int, what: Literal["logits", "gradients"], rows: int) -> Array:
        """(``rows``, C or R): what every custodian opened to us."""
        kind, read = {"logits": ("logits", self.layout.logits), "gradients": ("input-gradient", self.layout.gradients)}[
            what
        ]
        return read(self._opened(step, what, kind), range(self.first, self.first + rows))

    def average(self, round: int, parameters: Array, rows: int) -> Array:
        """The average of everybody's parameters, weighted by rows; our own ones where the round came to nothing."""
        before, self.party.net.phase = self.party.net.phase, "average"
        try:
            listed = self.party.hear(self.server, f"average/{round}/list", msg.AverageList)
            if self.party.me.name not in listed.participants:
                missed = self._missed(round, listed.participants)
                if missed is None:
                    raise Skipped(f"average {round} came to nothing")
                return missed
            return self._averaged(round, listed, parameters)
        finally:
            self.party.net.phase = before

    def _still_wanted(self, topic: str, wait: bool = False) -> None:
        """Raise :class:`Skipped` when the server has gone on without us."""
        if not wait:
            self.party.read_all()
        if not wait and not self.party.said(self.server, topic):
            return
        if self.party.me.name not in self.party.hear(self.server, topic, msg.Present).owners:
            raise Skipped(f"the consortium went on without '{self.party.me.name}'", resume=self.joining()[0])

    def _opened(self, step: int, what: str, kind: str) -> Slots:
        """Slots of what every custodian opened to us."""
        party, topic = self.party, f"open/{step}/{what}"
        if not plan.opening_items(step, kind, (party.me.name,)):
            sent = {"logits": "activations", "gradients": "derivatives"}[what]
            party.hear_all(party.active(topic), f"inputs/{step}/{sent}/reveal", msg.InputReveal)  # they have ended too
            return np.zeros(self.layout.slots, np.complex128)
        (item,) = plan.opening_items(step, kind, (party.me.name,))
        party.net.phase = "openings"
        answers = party.hear_all(party.active(topic), topic, msg.OpeningShares)
        lead, *_ = answers
        first, seed = answers[lead], party.seed(topic)
        shares = []
        for name, answer in answers.items():
            if (answer.items, answer.ciphertexts) != (first.items, first.ciphertexts) or item not in answer.items:
                raise Refused("opening", f"'{name}' opened another ciphertext than '{lead}' under '{topic}'")
            if party.me.name not in answer.sealed:
                raise Refused("opening", f"'{name}' sealed no share for us under '{topic}'")
            box = party.net.get(answer.sealed[party.me.name])
            shares.append(
                (
                    name,
                    party.identity.unseal(party.manifest.member(name), box, plan.opening_context(item, seed)),
                )
            )
        return release.open_slots(self.scheme, shares, codec.OPENING_SHARE)

    # ----------------------------------------------------------------- averages

    def _averaged(self, round: int, listed: msg.AverageList, parameters: Array) -> Array:
        party, names, topic = self.party, listed.participants, f"average/{round}"
        if list(names) != [n for n in party.names if n in names] or len(names) < 3:
            raise Refused(
                "participants",
                f"the server proposes an average over {', '.join(names)}: at least three, in manifest order",
            )
        try:
            party.round = round
            party.say(f"{topic}/agreed", listed)
            for name, theirs in party.hear_all(names, f"{topic}/agreed", msg.AverageList).items():
                if theirs != listed:
                    raise Refused(
                        "participants", f"'{name}' was proposed another list for average {round} than we were"
                    )
            weight = (party.me.rows or 0) / sum(party.manifest.member(n).rows or 0 for n in names)
            total = party.secure_sum(plan.average_label(round), names, weight * parameters)
            if not party.hear(
                self.server, f"{topic}/closed", msg.AverageClosed
            ).done:  # heard before a restart, when nobody waited in it
                raise Abandoned
        except Abandoned:
            party.report.warn(f"{party.me.name}: average {round} was abandoned; going on from the own parameters")
            raise Skipped(f"average {round} was abandoned") from None
        finally:
            party.round = None
        absent = [m for m in party.manifest.institutions if m.name not in names]
        if absent and party.me.name == names[0] and not party.repeat(f"{topic}/sealed"):
            boxes = [party.identity.seal(m, total.tobytes(), self._context(round)) for m in absent]
            sealed = dict(zip((m.name for m in absent), party.share_blobs(boxes, "all"), strict=True))
            party.say(f"{topic}/sealed", msg.AverageSealed(round=round, sealed=sealed))
        return total

    def _missed(self, round: int, names: tuple[str, ...]) -> Array | None:
        """The average of a round that we were not part of, as its first participant sealed it to us;
        None when there is none."""
        party, topic = self.party, f"average/{round}"
        if not party.hear(self.server, f"{topic}/closed", msg.AverageClosed).done:
            return None
        deadline = time.monotonic() + plan.settings(party.manifest).straggler_seconds
        while not party.said(names[0], f"{topic}/sealed"):
            if time.monotonic() > deadline:
                party.report.warn(
                    f"{party.me.name}: '{names[0]}' does not send average {round}; going on from the own parameters"
                )
                return None
            party.read_board(1.0)
        sealed = party.hear(names[0], f"{topic}/sealed", msg.AverageSealed).sealed
        if party.me.name not in sealed:
            raise Refused("average", f"'{names[0]}' sealed no average {round} for us")
        data = party.identity.unseal(
            party.manifest.member(names[0]), party.net.get(sealed[party.me.name]), self._context(round)
        )
        return np.frombuffer(data, np.float64)

    def joining(self) -> tuple[int, Array | None]:
        """The first joint step that a process that starts now can take part in,
        and the average that it must begin with, if any.

        A step that the server has begun with us is still ours: what we sent for it lies on our disk.
        """
        party, every = self.party, plan.settings(self.party.manifest).average_every
        party.read_all()
        step = 0
        while party.said(self.server, f"present/{step}"):
            step += 1
        if step and party.me.name in self._present(step - 1) and not party.said(self.server, f"step/{step - 1}"):
            step -= 1
        for number in range(step // every, 0, -1):  # of the rounds that were closed without us, the newest one
            topic = f"average/{number}"
            if not (
                party.said(self.server, f"{topic}/closed")
                and party.hear(self.server, f"{topic}/closed", msg.AverageClosed).done
            ):
                continue
            names = party.hear(self.server, f"{topic}/list", msg.AverageList).participants
            if party.me.name in names:
                break
            average = self._missed(number, names)
            if average is not None:
                return step, average
        return step, None

    def _present(self, step: int) -> tuple[str, ...]:
        return self.party.hear(self.server, f"present/{step}", msg.Present).owners

    def _context(self, round: int) -> bytes:
        return framing.framed(b"focal/average/sealed/v1", self.party.run_id, str(round).encode())
