"""The server: relays, stores, computes on ciphertexts. It holds no key share and nothing in the clear.

Its board and blobs are what the others read (focal.net). Beside serving them it runs the engine: it adds the
institutions' ciphertexts into shared blocks, takes each training step, and asks the custodians for every collective refresh.
After a step the new weights are on disk; a restart goes on from there, and a refresh that was answered is not asked again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from focal.ckks import keys, refresh, ring, wire
from focal.ckks.context import LIMBS, Scheme
from focal.ckks.engine import Block, Engine, chunk_kind, zero_weights
from focal.ckks.twin import Scalars
from focal.config import LocalConfig, Manifest
from focal.net import messages as msg
from focal.net.store import Board
from focal.net.transport import Hub
from focal.roles import agreed, ceremony
from focal.roles.party import Audience, Party, merge
from focal.roles.progress import Reporter


class _OwnBoard:
    """The network as the server sees it: its own board and blobs, without a wire."""

    phase = doing = ""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def post(self, signed: bytes) -> int:
        return self.hub.board.append(signed, None)

    def wait(self, after: int, seconds: float) -> list[bytes]:
        self.hub.board.wait(after, seconds)
        if self.hub.failure is not None:
            raise self.hub.failure
        return self.hub.board.since(after, 1 << 24)

    def put_many(self, blobs: list[bytes], audience: Audience = "all", progress: Callable[[int, int], None] | None = None) -> list[str]:
        return [self.hub.publish(b, audience) for b in blobs]

    def get(self, digest: str) -> bytes:
        return self.hub.blobs.get(digest)

    @property
    def traffic(self) -> dict[str, dict[str, int]]:
        """What the members received is what the server sent."""
        total: dict[str, dict[str, int]] = {}
        for phases in self.hub.traffic.values():
            for phase, ways in phases.items():
                entry = total.setdefault(phase, {"up": 0, "down": 0})
                entry["up"] += ways["down"]
                entry["down"] += ways["up"]
        return total


class Server(Party):
    """``run()`` serves one run to its end; interrupted, the same call continues it."""

    role = "server"

    def __init__(self, manifest: Manifest, local: LocalConfig, report: Reporter) -> None:
        super().__init__(manifest, local, report)
        self.threads = local.threads or os.cpu_count() or 1
        self.pool = ThreadPoolExecutor(self.threads, thread_name_prefix="server")
        self.names = [m.name for m in manifest.institutions]
        self.custodians = [m.name for m in manifest.custodians]
        self.session = self.scope = self.journal.once("session", lambda: secrets.token_hex(32).encode()).decode()
        board = Board(self.folder / "board.sqlite", manifest)
        self.hub = Hub(manifest, self.identity, board, self.blobs, self.session, local.bind)
        self.net = _OwnBoard(self.hub)

    # ----------------------------------------------------------------- the script

    def run(self) -> None:
        self.hub.start()
        self.report.say(f"listening on {self.hub.endpoint}")
        try:
            with self.report.phase("gather"):
                self.agree_run()
            with self.report.phase("keys"):
                self.scheme = Scheme(self.manifest.ckks, self.scope)
                self.layout = agreed.layout(self.manifest)
                joint = self._install_keys()
            with self.report.phase("upload"):
                lists = self._uploads(joint)
            with self.report.phase("train"):
                weights = self._train(lists)
            with self.report.phase("release"):
                self._release(weights)
        finally:
            self.keep_traffic()
            self.hub.stop()

    # ----------------------------------------------------------------- keys

    def _install_keys(self) -> msg.JointKeys:
        """Add up the custodians' contributions, compare with what they signed, and give the sums to OpenFHE."""
        rotations = self.layout.rotations
        sums: dict[str, str] = {}
        for number, kinds in ((1, keys.first_round_kinds(rotations)), (2, keys.SECOND_ROUND)):
            round = f"keys/{number}"
            commits = self.hear_all(self.custodians, f"{round}/commit", msg.KeyCommit)
            reveals = self.hear_all(self.custodians, f"{round}/reveal", msg.KeyReveal)
            for name, reveal in reveals.items():
                self.opens(round, name, commits, reveal.salt, ceremony.blobs_digest(reveal.blobs))
            add = functools.partial(ceremony.sums, self.scheme, kinds, reveals, self.fetch, self.blobs.put, self.pool, self.report.progress)
            sums |= self.remembered(f"{round}/sums", add)
        joint = ceremony.joint(sums, sums)
        for name, theirs in self.hear_all(self.custodians, "keys/joint", msg.JointKeys).items():
            if theirs != joint:
                raise ceremony.disagreement(name)
        self.net.put_many([self.blobs.get(joint.public)], "all")
        self.say("keys/joint", joint)  # from here on institutions can fetch the public key
        keys.install(
            self.scheme, self.run_id, self.blobs.get(joint.multiplication), rotations, lambda r: self.blobs.get(sums[f"rotation/{r}"])
        )
        return joint

    # ----------------------------------------------------------------- uploads

    def _uploads(self, joint: msg.JointKeys) -> dict[str, msg.Upload]:
        lists = self.hear_all(self.names, "upload", msg.Upload)
        digest = agreed.uploads(self.manifest, self.layout, lists, ceremony.joint_digest(joint))
        for name, accepted in self.hear_all(self.custodians, "uploads/accepted", msg.UploadsAccepted).items():
            if accepted.digest != digest:
                raise agreed.other_uploads(name)
        return lists

    def _block(self, lists: dict[str, msg.Upload], b: int) -> Block:
        """Block b: every institution's chunks, checked and added up limb by limb."""
        parts: dict[tuple[str, int, int], list[tuple[str, str]]] = {}
        for name, upload in lists.items():
            plan = self.layout.chunks(*self.manifest.row_table[name])
            for (block, what, i, j), digest in zip(plan, upload.chunks, strict=True):
                if block == b:
                    parts.setdefault((what, i, j), []).append((name, digest))

        def ciphertext(key: tuple[str, int, int]) -> Any:
            kind = chunk_kind(key[0])
            primes = wire.moduli(self.scheme, kind)
            unpacked = [wire.unpack(self.scheme, kind, self.blobs.get(digest), f"'{name}'") for name, digest in parts[key]]
            return self.scheme.ciphertext([ring.total(element, primes) for element in zip(*unpacked, strict=True)])

        made = dict(zip(parts, self.pool.map(ciphertext, parts), strict=True))
        shape = self.layout
        return Block(
            [[made["data", g, h] for h in range(shape.babies)] for g in range(shape.giants)],
            [made["target", u, 0] for u in range(shape.class_groups)],
        )

    # ----------------------------------------------------------------- training

    def _train(self, lists: dict[str, msg.Upload]) -> list[Any]:
        training = self.manifest.training
        eta = float.fromhex(next(iter(lists.values())).eta_hex)
        scalars = Scalars.derive(training.degree, eta, training.ridge, self.manifest.rows)
        blocks = functools.lru_cache(maxsize=None)(functools.partial(self._block, lists))
        engine = Engine(self.scheme, self.layout, scalars, blocks, self.threads)
        try:
            first, weights, chain = self._last_step(lists)
            for step in range(first, training.steps):
                self.report.progress(step, training.steps)
                before = self._stored(weights)
                weights = engine.step(step, weights, self._refresh)
                after = self._stored(weights)
                chain = hashlib.sha256(b"focal/chain/v1" + bytes.fromhex(chain) + "".join((*before, *after)).encode()).hexdigest()
                self.say(f"step/{step}", msg.StepDone(step=step, inputs=before, outputs=after, chain=chain))
            self.report.progress(training.steps, training.steps)
            return weights
        finally:
            engine.close()

    def _last_step(self, lists: dict[str, msg.Upload]) -> tuple[int, list[Any], str]:
        """(first step to take, its weights, chain so far) from the last finished step on the board."""
        server, step = self.me.name, 0
        while self.said(server, f"step/{step}"):
            step += 1
        if step == 0:
            start = hashlib.sha256(b"focal/chain/v1" + b"".join(msg.encode(u) for u in lists.values())).hexdigest()
            return 0, zero_weights(self.scheme, self.layout), start
        done = self.hear(server, f"step/{step - 1}", msg.StepDone)
        kind = wire.ciphertext(LIMBS)
        weights = [self.scheme.ciphertext(wire.unpack(self.scheme, kind, self.blobs.get(d), "the server's own disk")) for d in done.outputs]
        return step, weights, done.chain

    def _stored(self, weights: list[Any]) -> tuple[str, ...]:
        """Digests of weight ciphertexts, which are on disk when this returns."""
        kind = wire.ciphertext(LIMBS)
        return tuple(self.blobs.put(wire.pack(self.scheme, kind, self.scheme.limbs(w))) for w in weights)

    def _refresh(self, items: list[str], ciphertexts: list[Any]) -> list[Any]:
        """Ask all custodians for a collective refresh of one batch and combine their shares."""
        _, step, kind, *_ = items[0].split("/")
        topic = f"refresh/{step}/{kind}"
        requests = list(self.pool.map(lambda ct: refresh.request(self.scheme, ct), ciphertexts))
        digests = tuple(self.net.put_many(requests, "custodians"))
        asked = msg.RefreshRequest(items=tuple(items), ciphertexts=digests)
        self.say(topic, asked)
        answers = self.hear_all(self.custodians, topic, msg.RefreshShares)
        agreed.check_answers(asked, answers)

        def combined(i: int) -> Any:
            a = refresh.common_random(self.scheme, self.run_id, items[i], digests[i])
            shares = [(name, self.blobs.get(s.h0[i]), self.blobs.get(s.h1[i])) for name, s in answers.items()]
            return refresh.combine(self.scheme, requests[i], a, shares)

        return list(self.pool.map(combined, range(len(items))))

    def keep_traffic(self) -> None:
        super().keep_traffic()
        self.journal.set("members", json.dumps(self.members_traffic()).encode())

    def members_traffic(self) -> dict[str, dict[str, dict[str, int]]]:
        """Bytes of every member by phase, earlier processes of this server included."""
        if not hasattr(self, "_members_before"):
            self._members_before = json.loads(self.journal.read("members") or b"{}")
        now = self.hub.traffic
        return {
            m.name: merge(self._members_before.get(m.name, {}), now.get(m.name, {})) for m in self.manifest.members if m.role != "server"
        }

    # ----------------------------------------------------------------- release

    def _release(self, weights: list[Any]) -> None:
        """Ask for the release and stay until every member has what it needs."""
        items = tuple(i.replace("/weights/", "/release/") for i in self.layout.items(self.manifest.training.steps - 1, "weights"))
        self.say("release/request", msg.ReleaseRequest(items=items, ciphertexts=self._stored(weights)))
        self.hear_all(self.custodians, "release/shares", msg.ReleaseShares)
        if not self.repeat("traffic"):
            self.say("traffic", msg.Traffic(bytes={**self.members_traffic(), self.me.name: merge(self._before, self.net.traffic)}))
        everybody = [*self.custodians, *self.names]
        while missing := [n for n in everybody if not self.said(n, "finished")]:
            self._read_board(seconds=2.0)
            self.report.progress(len(everybody) - len(missing), len(everybody))
        time.sleep(0.5)  # let the last acknowledgement leave before the socket closes
