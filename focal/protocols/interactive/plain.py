"""Plaintext split learning: the same modules, batches, averages and sockets as the interactive
protocol, and no encryption.

What it protects is the transport. The server sees every activation, derivative and weight; it exists to be compared
with: encrypted training costs so many times the seconds of this. Custodians have nothing to do and are not started::

    python -m focal.protocols.interactive.plain server      --manifest M --local L
    python -m focal.protocols.interactive.plain institution --manifest M --local L
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from focal import framing
from focal.config import LocalConfig
from focal.heads.joint.twin import twin_step
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.net.transport import Link
from focal.protocols.common.progress import Reporter, json_lines
from focal.protocols.interactive import plan
from focal.protocols.interactive.institution import JointInstitution
from focal.protocols.interactive.server import JointServer
from focal.protocols.interactive.upper import EncryptedUpper
from focal.reading import read

Array = NDArray[np.float64]
NO_KEYS = "0" * 64
"""Stands in headers where the digest of the joint keys does."""


def _array(data: bytes, columns: int) -> Array:
    return np.frombuffer(data, "<f8").reshape(-1, columns)


class PlainServer(JointServer):
    """The head in the clear."""

    def run(self) -> None:
        self.hub.start()
        _agree(self)
        shape = plan.layout(self.manifest)
        self.weights: Array = np.zeros((shape.features, shape.outputs))
        before, update, total = self.weights, plan.update(self.manifest), plan.total(self.manifest)
        try:
            with self.report.phase("train"):
                for step in range(total):
                    self.report.progress(step, total)
                    present = self._gather(
                        step, "present", "activations", self.names, self._expected(step), msg.Activations
                    )
                    x = {n: _array(self.blobs.get(h.chunk), shape.features) for n, h in present.items()}
                    self._give(f"open/{step}/logits", {n: v @ self.weights for n, v in x.items()})
                    answered = self._gather(
                        step, "answered", "derivatives", list(present), list(present), msg.Derivatives
                    )
                    delta = {n: _array(self.blobs.get(h.chunk), shape.outputs) for n, h in answered.items()}
                    self._give(f"open/{step}/gradients", {n: d @ self.weights.T for n, d in delta.items()})
                    rows, wanted = (np.concatenate([part[n] for n in answered]) for part in (x, delta))
                    self.weights, before = twin_step(self.weights, before, rows, wanted, update), self.weights
                    self.after(step)
            while not all(self.said(n, "finished") for n in self.names):
                self.read_board(1.0)
            time.sleep(0.5)
        finally:
            self.keep_traffic()
            self.hub.stop()

    def _give(self, topic: str, values: dict[str, Array]) -> None:
        digests = self.net.put_many([v.tobytes() for v in values.values()], "all")
        self.say(topic, msg.OpeningShares(items=(), ciphertexts=(), sealed=dict(zip(values, digests, strict=True))))


class PlainInstitution(JointInstitution):
    """The same module under a head that answers in the clear."""

    def run(self) -> None:
        _agree(self)
        counts = self.agree_start()
        with self.report.phase("train"):
            self.fine_tune(ClearUpper(self), counts)
        self.finish()
        self.keep_traffic()


def _agree(party: PlainServer | PlainInstitution) -> None:
    party.run_id = framing.digest(b"focal/plain-split/v1", party.session.encode())
    party.scope = party.run_id.hex()


class ClearUpper(EncryptedUpper):
    """Arrays travel instead of ciphertexts; all else is the same, averages by secure sum included."""

    def __init__(self, party: PlainInstitution) -> None:
        self.party, self.server, self.joint_keys = party, party.manifest.server.name, NO_KEYS
        self.layout = plan.layout(party.manifest)
        self.columns = {"logits": self.layout.outputs, "gradients": self.layout.features}

    def mask_keys(self, topic: str) -> str:
        return NO_KEYS

    def send(self, step: int, what: str, values: Array) -> tuple[str, str, str]:
        return NO_KEYS, self.party.net.put_many([np.ascontiguousarray(values, "<f8").tobytes()], "server")[0], NO_KEYS

    def receive(self, step: int, what: str, rows: int) -> Array:
        given = self.party.hear(self.server, f"open/{step}/{what}", msg.OpeningShares).sealed[self.party.me.name]
        return _array(self.party.net.get(given), self.columns[what])


def main(arguments: list[str]) -> None:
    """``ROLE --manifest M --local L [--events]``: one party, to its end."""
    role, _, manifest_file, _, local_file = arguments[:5]
    manifest, local = read(Manifest, Path(manifest_file)), read(LocalConfig, Path(local_file))
    report = Reporter(local.name, Path(local.state) / "events.jsonl", json_lines)
    if role == "server":
        PlainServer(manifest, local, report).run()
        return
    party = PlainInstitution(manifest, local, report)
    link = Link(manifest, party.identity)
    link.phase = "upload"
    party.opened(link, link.open(120).session)
    try:
        party.prepare()
        party.run()
    finally:
        link.close()


if __name__ == "__main__":
    main(sys.argv[1:])
