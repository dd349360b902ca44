"""What several parties compute of a joint step: the server, every verifying custodian, and an auditor.

A step is a function of the weights before, of the signed headers of who was present and who answered,
and of the recorded refresh answers. Each link of the chain is::

    chain_0 = H(manifest, joint keys, masks)      chain_{t+1} = H(chain_t || headers of t || weights after t)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from focal import framing
from focal.ckks import codec
from focal.ckks.scheme import LIMBS, Scheme
from focal.heads.joint.engine import Backward, Forward, InteractiveEngine, Weights, zero_weights
from focal.heads.joint.layout import OPENING
from focal.heads.moves import Ciphertext, Refresh
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.net.encoding import encode
from focal.protocols.common.inputs import combined
from focal.protocols.common.voice import Fetch, Voice
from focal.protocols.interactive import plan
from focal.protocols.interactive.plan import Header

WEIGHTS = codec.ciphertext(LIMBS)
Uploads = Mapping[str, Ciphertext]
"""Owner -> its activations or derivatives."""
Openings = tuple[tuple[str, ...], list[bytes]]
"""Plan items and canonical ciphertexts, one for each owner."""


class JointVoice(Voice, Protocol):
    """How a party answers for a joint step (:mod:`focal.protocols.common.voice`)."""

    def present(self, step: int) -> dict[str, msg.Activations]:
        """Headers of those with whom the step begins, in manifest order."""
        ...

    def answered(self, step: int, present: Mapping[str, msg.Activations]) -> dict[str, msg.Derivatives]:
        """Headers of those of them with whom it goes on."""
        ...

    def open(self, topic: str, items: tuple[str, ...], packed: list[bytes]) -> None:
        """Ciphertexts are opened, each to its owner."""
        ...


class JointCompute:
    """Joint steps on ciphertexts from signed headers. ``fetch`` yields masked chunks and contributions;
    they are checked here."""

    def __init__(self, manifest: Manifest, scheme: Scheme, joint_keys: str, fetch: Fetch, threads: int) -> None:
        self.manifest, self.scheme, self.fetch = manifest, scheme, fetch
        self.total = plan.total(manifest)
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="chunks")
        self.engine = InteractiveEngine(
            scheme,
            plan.layout(manifest),
            plan.table(manifest),
            plan.update(manifest),
            threads,
            min_rows_of_others=plan.settings(manifest).min_rows_of_others,
        )
        masks = bytes.fromhex(self.engine.mask_digest)
        self.chain = framing.digest(b"focal/joint-chain/v1", manifest.hash, bytes.fromhex(joint_keys), masks).hex()
        """The chain's beginning."""

    def close(self) -> None:
        self.engine.close()
        self.pool.shutdown()

    def steps(
        self, voice: JointVoice, done: Sequence[msg.StepDone] = (), fetch: Fetch | None = None
    ) -> Iterator[msg.StepDone]:
        """Take every step that follows after ``done``, whose outputs ``fetch`` yields from the own disk;
        yield each one's statement."""
        weights, chain = zero_weights(self.scheme), self.chain
        for earlier in done[-2:]:  # the head, and the one before it for the momentum
            weights, chain = Weights(self._load(earlier.outputs[0], fetch or self.fetch), weights.now), earlier.chain
        for step in range(len(done), self.total):
            present = voice.present(step)
            uploads = self._uploads(voice, step, "activations", present)
            run, (items, packed) = self.forward(step, weights, uploads)
            voice.open(f"open/{step}/logits", items, packed)
            answered = voice.answered(step, present)
            uploads = self._uploads(voice, step, "derivatives", answered)
            after, (items, packed) = self.backward(
                step, weights, run, uploads, {name: header.rows for name, header in answered.items()}
            )
            voice.open(f"open/{step}/gradients", items, packed)
            weights, statement, data = self.finish(step, weights, after, voice.refresh, chain, present, answered)
            voice.done(step, statement, [data])
            chain = statement.chain
            yield statement

    def forward(self, step: int, weights: Weights, uploads: Uploads) -> tuple[Forward, Openings]:
        """The logits of everybody who is present, to be opened."""
        run = self.engine.forward(weights, uploads)
        return run, self._openings(step, "logits", run.logits)

    def backward(
        self, step: int, weights: Weights, run: Forward, uploads: Uploads, rows: Mapping[str, int]
    ) -> tuple[Backward, Openings]:
        """The activation gradients of everybody who answered, to be opened; the new head, to be refreshed."""
        done = self.engine.backward(weights, run, uploads, rows)
        return done, self._openings(step, "input-gradient", done.gradients)

    def finish(
        self,
        step: int,
        weights: Weights,
        run: Backward,
        ask: Refresh,
        chain: str,
        present: Mapping[str, msg.Activations],
        answered: Mapping[str, msg.Derivatives],
    ) -> tuple[Weights, msg.StepDone, bytes]:
        """The head after the step, the statement of it, and the new weights' bytes."""
        before = self.engine.finish(step, weights, run, ask)
        data = self.dump(before.now)
        headers: list[Header] = [*present.values(), *answered.values()]
        link = framing.digest(b"focal/joint-link/v1", bytes.fromhex(chain), data, *map(encode, headers)).hex()
        inputs = tuple(h.chunk for h in headers)
        return before, msg.StepDone(step=step, inputs=inputs, outputs=(codec.digest(data),), chain=link), data

    def dump(self, ciphertext: Ciphertext) -> bytes:
        """Canonical bytes of a weight ciphertext."""
        return codec.pack(self.scheme, WEIGHTS, self.scheme.evaluator.limbs(ciphertext))

    def _load(self, digest: str, fetch: Fetch) -> Ciphertext:
        """A weight ciphertext from bytes that this party wrote itself."""
        return self.scheme.evaluator.load(codec.unpack(self.scheme, WEIGHTS, fetch(digest), "the own disk"))

    # ----------------------------------------------------------------- help

    def _uploads(self, voice: JointVoice, step: int, what: str, headers: Mapping[str, Header]) -> Uploads:
        """Each owner's ciphertext, from its masked chunk and what the custodians give for it."""
        epoch = voice.epochs.at(f"{what}/{step}")
        round, lists, wanted, claims = plan.inputs(self.manifest, epoch, step, what, headers)
        given = voice.contributions(round, lists, wanted, claims)

        def one(i: int, name: str) -> Ciphertext:
            chunk, blobs = (
                self.fetch(headers[name].chunk),
                [(custodian, own[i]) for custodian, own in given.blobs.items()],
            )
            made = combined(self.scheme, epoch.seed, lists, wanted[i], [(f"'{name}'", chunk)], blobs, self.fetch)
            return self.scheme.evaluator.load(made)

        return dict(zip(headers, self.pool.map(one, range(len(headers)), headers), strict=True))

    def _openings(self, step: int, kind: str, ciphertexts: Mapping[str, Ciphertext]) -> Openings:
        items = plan.opening_items(step, kind, tuple(ciphertexts))
        cts = ciphertexts.values() if items else []
        limbs = self.scheme.evaluator.limbs
        return items, list(self.pool.map(lambda ct: codec.pack(self.scheme, OPENING, limbs(ct)), cts))
