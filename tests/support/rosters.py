"""Founders and others whose rows a blind run may go without, every role a thread on one board."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from patience import PATIENCE

from focal.config import ConsortiumConfig, LocalConfig, ProjectionConfig, TrainingConfig
from focal.errors import FocalError, LeftOut
from focal.heads.linear import twin
from focal.heads.released import MAX_ERROR
from focal.net import messages as msg
from focal.net.identity import Identity, open_record, sign_manifest
from focal.protocols.blind import plan
from focal.protocols.common import approval
from focal.protocols.common.audit import audit, board_records
from focal.protocols.common.progress import Reporter
from focal.protocols.common.server import Server
from focal.protocols.together import Together
from focal.runs.simulate import ArrayInstitution, _agreed

WIDTH, CLASSES = 31, 3
ROWS = {"a": 40, "b": 30, "c": 50}
STEPS = 2


def given(name: str, count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Features that carry the label; (n, d), (n, K)."""
    rng = np.random.default_rng(sum(name.encode()))
    labels = np.eye(CLASSES, dtype=np.uint8)[np.arange(count) % CLASSES]
    features = rng.normal(size=(count, WIDTH)) + 2 * np.pad(labels, ((0, 0), (0, WIDTH - CLASSES)))
    return features.astype(np.float32), labels


class Stops(ArrayInstitution):
    """Goes away before it uploads anything."""

    def _upload(self, joint: msg.JointKeys) -> None:
        raise FocalError("the power is out")


class LiesAboutSizes(ArrayInstitution):
    """Its proof is about other rows than it uploads."""

    def _masked_rows(self, scheme: Any, keys: Any, joint: msg.JointKeys) -> msg.Upload:
        body = super()._masked_rows(scheme, keys, joint)
        proof = bytearray(self.blobs.get(body.proofs[0]))
        proof[-24] ^= 1  # the lowest byte of its last number
        return body.model_copy(update={"proofs": (self.blobs.put(bytes(proof)), body.proofs[1])})


class OtherStepSize(ArrayInstitution):
    """Its list carries another step size than was agreed."""

    def _masked_rows(self, scheme: Any, keys: Any, joint: msg.JointKeys) -> msg.Upload:
        return super()._masked_rows(scheme, keys, joint).model_copy(update={"eta_hex": (3.0).hex()})


class Consortium(Together):
    """Founders a, b, c and others, clinics among them; two custodians, the first of which verifies."""

    def __init__(self, folder: Path, others: dict[str, int], clinics: tuple[str, ...] = (), **settings: Any) -> None:
        self.folder, self.events = folder, list[dict[str, Any]]()
        counts = {name: ROWS[name] for name in "abc"} | others
        consortium = ConsortiumConfig(
            institutions=tuple(n for n in counts if n not in clinics), clinics=clinics, **{"custodians": 2} | settings
        )
        manifest, files = _agreed(
            folder, counts, WIDTH, tuple("xyz"), "multiclass", consortium,
            ProjectionConfig(features=32), TrainingConfig(steps=STEPS),
        )  # fmt: skip
        self.rows = {name: given(name, count) for name, count in counts.items()}
        self.kinds: dict[str, type[ArrayInstitution]] = {}
        self.tested: dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = {}
        """Test rows, of those that have any, and the columns that subgroups are told apart by."""
        self.columns: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
        super().__init__(manifest, files, self.events.append, dict.fromkeys(counts, self._institution))

    def _institution(self, local: LocalConfig, report: Reporter) -> ArrayInstitution:
        kind = self.kinds.get(local.name, ArrayInstitution)
        made = kind(self.manifest, *self.rows[local.name], local, report)
        made.tested = self.tested.get(local.name, made.tested)
        made.columns = self.columns.get(local.name, {})
        return made

    def list_first(self, name: str) -> None:
        """Before anybody starts: this member comes first in the manifest, which all sign again."""
        self.agree(members=tuple(sorted(self.manifest.members, key=lambda m: m.name != name)))

    def agree(self, **changes: Any) -> None:
        """Before anybody starts: all sign another manifest."""
        manifest = self.manifest.model_copy(update={**changes, "signatures": {}})
        for member in (m for m in manifest.members if not m.clinic):
            manifest = sign_manifest(manifest, Identity.load(self.files[member.name].keys))
        self.manifest = manifest

    def play(self, name: str, kind: type[ArrayInstitution]) -> None:
        """What an institution is from its next start on."""
        self.kinds[name] = kind

    def close_uploads(self, *names: str, parties: tuple[str, ...] = ("server", "custodian-1", "custodian-2")) -> None:
        """``focal close`` at the server and at every custodian, once they wait for exactly these."""
        for party in parties:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    approval.close_uploads(self.folder / party, names)
                    break
                except FocalError:
                    unexpected = {n: e for n, e in self.errors.items() if n not in names and type(e) is not LeftOut}
                    assert not unexpected and time.monotonic() < deadline, unexpected or f"{party} never waits"
                    time.sleep(0.05)

    def check(self, *names: str) -> None:
        """These have the weights that their rows alone give."""
        ended = [self.parties[name] for name in names]
        assert all(isinstance(party, ArrayInstitution) for party in ended)
        columns = np.concatenate([ended[0].projection.apply(self.rows[n][0]) for n in names])
        targets = np.concatenate([0.5 - self.rows[n][1].astype(float) for n in names])
        eta = plan.step_size(self.manifest, ended[0].projection.eta, len(columns))
        scalars = twin.Scalars.derive(3, eta, 0.1, len(columns))
        exact = twin.train(columns, targets, scalars, STEPS)[0]
        for party in ended:
            assert np.abs(party.weights - exact).max() < MAX_ERROR, party.me.name

    def said(self, kind: type) -> dict[str, Any]:
        """Sender -> what it said of a kind that each says once."""
        records = (open_record(self.manifest, data) for data in self.board())
        return {r.sender: r.body for r in records if isinstance(r.body, kind)}

    def board(self) -> list[bytes]:
        if self.alive("server"):
            server = self.parties["server"]
            assert isinstance(server, Server)
            return server.board.since(0, 1 << 40)
        return board_records(self.folder / "server")

    def audited(self) -> str:
        lines: list[str] = []
        audit(self.manifest, self.folder / "server", lines.append, threads=2)
        return "\n".join(lines)


def consortium(folder: Path, others: dict[str, int], clinics: tuple[str, ...] = (), **settings: Any) -> Consortium:
    return Consortium(folder, others, clinics, **settings)
