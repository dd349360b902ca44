"""What several parties compute of a joint step: the server, every verifying custodian, and an auditor. And what all derive alike.

A step is a function of the weights before, of the signed headers of who was present and who answered, and of the recorded refresh
answers. Each link of the chain is::

    chain_0 = H(manifest, joint keys, masks)      chain_{t+1} = H(chain_t || headers of t || weights after t)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from focal.ckks import wire
from focal.ckks.context import LIMBS, REFRESH_LIMBS, Scheme
from focal.ckks.engine import Ciphertext, Refresh
from focal.ckks.interactive import (
    ACTIVATIONS,
    DERIVATIVES,
    OPENING,
    Backward,
    Forward,
    InteractiveEngine,
    InteractiveLayout,
    Update,
    Weights,
    check_steps,
    row_table,
    zero_weights,
)
from focal.ckks.interactive import check_contributors as check
from focal.ckks.plan import blob_bytes
from focal.config import InteractiveConfig, Manifest
from focal.errors import Refused
from focal.net import messages as msg
from focal.roles.facts import common_facts
from focal.roles.training import Fetch

WEIGHTS = wire.ciphertext(LIMBS)

TRUST = (
    "interactive: the institutions are trusted to encrypt honestly; one that does not can learn the joint key from its own openings, "
    "whoever verifies; each learns the head, and the others' summed gradients (SECURITY.md)"
)
"""What everybody must be told who signs or starts an interactive run."""
Header = msg.Activations | msg.Derivatives
Openings = tuple[tuple[str, ...], list[bytes]]
"""Plan items and canonical ciphertexts, one for each owner."""


def settings(manifest: Manifest) -> InteractiveConfig:
    """The interactive part of a manifest that has one."""
    assert manifest.interactive is not None
    return manifest.interactive


def layout(manifest: Manifest) -> InteractiveLayout:
    """The slot layout of a joint batch."""
    return InteractiveLayout(manifest.ckks.ring // 2, settings(manifest).features, manifest.outputs)


def batches(manifest: Manifest) -> dict[str, int]:
    """Institution -> the most rows that it brings to a joint step."""
    return {m.name: manifest.batch(m.name) for m in manifest.institutions}


def table(manifest: Manifest) -> dict[str, range]:
    """Institution -> its rows of the joint batch. Raises :class:`focal.errors.FocalError` when they do not fit the ring."""
    return row_table(layout(manifest), batches(manifest))


def update(manifest: Manifest) -> Update:
    """The head's step. Raises :class:`focal.errors.FocalError` when its noise would outgrow the release's smudging."""
    found = Update(settings(manifest).head_rate, settings(manifest).momentum)
    check_steps(found, total(manifest), sum(batches(manifest).values()), len(manifest.custodians))
    return found


def weights_item(step: int) -> str:
    return f"train/{step}/weights/-/merged/-"


def opening_items(step: int, kind: str, owners: tuple[str, ...]) -> tuple[str, ...]:
    """Plan items of an opening; ``kind`` is ``logits`` or ``input-gradient``.

    None in the first step: its weights are the all-zero ciphertext, so everybody knows that logits and gradients are zero.
    """
    return () if step == 0 else tuple(f"train/{step}/{kind}/-/-/{owner}" for owner in owners)


def opening_context(item: str, run_id: bytes) -> bytes:
    """What a sealed opening share is bound to."""
    return f"open/{item}".encode() + run_id


def total(manifest: Manifest) -> int:
    """Joint steps of the run: as many as were asked for and as the openings of one key allow, two for each institution and step."""
    config = settings(manifest)
    return min(config.steps, 1 + config.max_openings_per_key // (2 * len(manifest.institutions)))


def schedule(manifest: Manifest) -> InteractiveConfig:
    """The settings with the steps that the run really takes: what the institutions' training follows."""
    return settings(manifest).model_copy(update={"steps": total(manifest)})


def round_after(manifest: Manifest, step: int) -> int | None:
    """The averaging round (1, 2, ...) that follows joint step ``step``, if any; one follows the last step."""
    every, done = settings(manifest).average_every, step + 1
    return -(-done // every) if done % every == 0 or done == total(manifest) else None


def released(manifest: Manifest) -> tuple[tuple[str, ...], list[str]]:
    """What is released in the end: the last weights and those of the step before, from which the momentum is read.

    Returns the plan items of the release and the topics of the refreshes that they come from.
    """
    steps = total(manifest)
    last = range(max(0, steps - 2), steps)
    return tuple(f"train/{t}/release/-/merged/-" for t in last), [f"refresh/{t}/weights" for t in last]


def describe(manifest: Manifest) -> str:
    """What a run will cost, in lines that a person can check before it begins."""
    config, shape, owners, n = settings(manifest), layout(manifest), table(manifest), manifest.ckks.ring
    update(manifest)
    custodians, mb, count = len(manifest.custodians), 1e6, total(manifest)
    up = blob_bytes(n, ACTIVATIONS.limbs, 2) + blob_bytes(n, DERIVATIVES.limbs, 2)
    share, opened = blob_bytes(n, 1, 1), blob_bytes(n, OPENING.limbs, 2)
    refreshed = blob_bytes(n, REFRESH_LIMBS, 2) + blob_bytes(n, REFRESH_LIMBS, 1) + blob_bytes(n, LIMBS, 1)
    asked = 2 * len(owners) * (opened + share) + refreshed
    lines = [
        f"joint step: {sum(map(len, owners.values()))} of {shape.rows} rows ({', '.join(f'{k} {len(v)}' for k, v in owners.items())}), "
        f"R = {shape.features}, {len(shape.rotations)} rotation keys; {count} steps",
        f"bytes:      an institution and step {up / mb:.1f} MB up, {2 * custodians * share / mb:.1f} MB down; "
        f"a custodian and step {asked / mb:.1f} MB, and the uploads if it verifies; disk at the server "
        f"{count * (len(owners) * up + custodians * asked) / 1e9:.1f} GB at most",
        f"openings:   {2 * len(owners)} a step, {2 * len(owners) * (count - 1)} of at most {config.max_openings_per_key} under this key",
    ]
    if manifest.start is None:
        lines.append("start:      a blind run's projection and an untrained head; a trained one takes a minute more (start: RUN)")
    if count < config.steps:
        lines.append(f"            the key allows {count} of {config.steps} steps: continue in a new run with start: RUN")
    return "\n".join(lines)


class JointSteps:
    """Joint steps on ciphertexts from signed headers. ``fetch`` yields chunks; they are checked here, before OpenFHE sees them."""

    def __init__(self, manifest: Manifest, scheme: Scheme, fetch: Fetch, threads: int) -> None:
        self.scheme, self.fetch = scheme, fetch
        config = settings(manifest)
        self.layout = layout(manifest)
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="chunks")
        self.engine = InteractiveEngine(
            scheme,
            self.layout,
            table(manifest),
            update(manifest),
            threads,
            min_rows_of_others=config.min_rows_of_others,
        )
        self._begin = b"focal/joint-chain/v1" + manifest.hash

    def close(self) -> None:
        self.engine.close()
        self.pool.shutdown()

    def start(self, joint_keys: str, done: Sequence[msg.StepDone] = (), fetch: Fetch | None = None) -> tuple[Weights, str]:
        """Head and chain to go on from: the untrained head, or after ``done``, the last steps (two are enough), from the own disk."""
        masks = bytes.fromhex(self.engine.mask_digest)
        weights, chain = zero_weights(self.scheme), hashlib.sha256(self._begin + bytes.fromhex(joint_keys) + masks).hexdigest()
        for step in done:
            weights, chain = Weights(self._load(step.outputs[0], fetch or self.fetch), weights.now), step.chain
        return weights, chain

    def forward(self, step: int, weights: Weights, headers: Mapping[str, msg.Activations]) -> tuple[Forward, Openings]:
        """The logits of everybody who is present, to be opened."""
        uploads = self._ciphertexts(headers, ACTIVATIONS)
        run = self.engine.forward(weights, uploads)
        return run, self._openings(step, "logits", run.logits)

    def backward(self, step: int, weights: Weights, run: Forward, headers: Mapping[str, msg.Derivatives]) -> tuple[Backward, Openings]:
        """The activation gradients of everybody who answered, to be opened; the new head, to be refreshed."""
        uploads = self._ciphertexts(headers, DERIVATIVES)
        done = self.engine.backward(weights, run, uploads, {name: header.rows for name, header in headers.items()})
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
        said = hashlib.sha256(b"".join(map(msg.encode, headers))).digest()
        link = hashlib.sha256(b"focal/joint-chain/v1" + bytes.fromhex(chain) + said + data).hexdigest()
        inputs = tuple(h.chunk for h in headers)
        return before, msg.StepDone(step=step, inputs=inputs, outputs=(wire.digest(data),), chain=link), data

    def dump(self, ciphertext: Ciphertext) -> bytes:
        """Canonical bytes of a weight ciphertext."""
        return wire.pack(self.scheme, WEIGHTS, self.scheme.limbs(ciphertext))

    def _load(self, digest: str, fetch: Fetch) -> Ciphertext:
        """A weight ciphertext from bytes that this party wrote itself."""
        return self.scheme.ciphertext(wire.unpack(self.scheme, WEIGHTS, fetch(digest), "the own disk"))

    # ----------------------------------------------------------------- help

    def _ciphertexts(self, headers: Mapping[str, Header], kind: wire.Kind) -> dict[str, Ciphertext]:
        def one(name: str) -> Ciphertext:
            return self.scheme.adopt(self.scheme.ciphertext(wire.unpack(self.scheme, kind, self.fetch(headers[name].chunk), f"'{name}'")))

        return dict(zip(headers, self.pool.map(one, headers), strict=True))

    def _openings(self, step: int, kind: str, ciphertexts: Mapping[str, Ciphertext]) -> Openings:
        items = opening_items(step, kind, tuple(ciphertexts))
        cts = ciphertexts.values() if items else []
        return items, list(self.pool.map(lambda ct: wire.pack(self.scheme, OPENING, self.scheme.limbs(ct)), cts))


def check_headers(headers: Mapping[str, Header], step: int, manifest: Manifest) -> None:
    """Raise :class:`Refused` (``upload``) unless each header is of this step, within its institution's batch, and of a chunk of its own."""
    limits, sent = batches(manifest), dict[str, str]()
    for name, header in headers.items():
        if (other := sent.setdefault(header.chunk, name)) != name:  # encryption is random: it is a copy
            raise Refused("upload", f"'{name}' and '{other}' sent one ciphertext as their rows of step {step}")
        if header.step != step or not 1 <= header.rows <= limits[name]:
            raise Refused("upload", f"'{name}' sent {header.rows} rows for step {header.step}; step {step} takes 1 to {limits[name]}")


def check_contributors(manifest: Manifest, rows: Mapping[str, int]) -> None:
    """Raise :class:`Refused` unless a step with these rows keeps every owner from singling out another's gradient."""
    config = settings(manifest)
    check(rows, batches(manifest), config.min_rows_of_others)


def facts(manifest: Manifest, scheme: Scheme) -> dict[str, Any]:
    """What a summary says of an interactive run."""
    shape, steps = layout(manifest), total(manifest)
    own = {"rows": manifest.rows, "joint_rows": shape.rows, "interactive": json.loads(settings(manifest).model_dump_json())}
    openings = 2 * len(manifest.institutions) * (steps - 1) + min(2, steps)
    return common_facts(manifest, scheme, shape, steps, openings, steps, own)


def average_label(number: int) -> str:
    """Label of the secure sum of an averaging round."""
    return f"average-{number}"
