"""All ring elements that a run publishes, by the party whose secret they depend on: what the scan adds up.

Read off the server's folder, and the boxes that members of the view can open. With private keys for masks that were
kept, which a run erases, also what the owners of inputs see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from focal.attacks.view import MANIFEST, View
from focal.ckks import codec, ring
from focal.ckks.scheme import DIGITS, Scheme
from focal.custody import inputs, keys, refresh, release
from focal.custody.inputs import Input, Words
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.net.identity import Identity
from focal.net.store import Blobs
from focal.protocols import of
from focal.protocols.blind import uploads
from focal.protocols.common.audit import recorded
from focal.protocols.common.epochs import Epoch, Epochs, unspelled
from focal.protocols.common.hearing import Heard
from focal.protocols.common.inputs import KEY
from focal.protocols.interactive import plan as joint_plan
from focal.protocols.interactive.plan import opening_context

OWNERS = " to its owners"
"""In the name of a contribution without its masks."""


@dataclass
class Published:
    """What one run shows: polynomials by family, and all public randomness."""

    scheme: Scheme
    rotations: Sequence[int]
    families: dict[str, list[tuple[str, Sequence[ring.Limb]]]] = field(default_factory=dict)
    """Family -> (name, limbs in evaluation form, in the order of ``scheme.extended``)."""
    public: dict[str, Sequence[ring.Limb]] = field(default_factory=dict)
    """Every ``a``, sum and c1 that anybody may multiply with."""
    requests: dict[str, list[list[ring.Limb]]] = field(default_factory=dict)
    """Plan item -> (c0, c1) that was to be refreshed."""
    maps: dict[str, refresh.Map] = field(default_factory=dict)
    """Plan item -> what its refresh applied."""
    rows: dict[tuple[str, str], Words] = field(default_factory=dict)
    """(institution, input) -> what it sent: integers of 128 bits."""
    masks: dict[tuple[str, str, str], Words] = field(default_factory=dict)
    """(custodian, institution, input) -> the mask that both know, of custodians whose keys for masks were kept."""

    def add(self, family: str, name: str, kind: codec.Kind, data: bytes) -> None:
        for i, polynomial in enumerate(codec.unpack(self.scheme, kind, data, name)):
            self.families.setdefault(family, []).append((f"{name}[{i}]", polynomial))

    def add_answer(self, family: str, item: str, share: bytes, how: refresh.Map) -> None:
        """A refresh share, as ``h0/ITEM[0]`` and ``h1/ITEM[0]``, and the map that its mask went through."""
        halves = codec.unpack(self.scheme, refresh.kind(how), share, item)
        self.families.setdefault(family, []).extend((f"h{i}/{item}[0]", half) for i, half in enumerate(halves))
        self.maps[item] = how

    def add_input(
        self, family: str, item: str, a: Sequence[ring.Limb], data: bytes, masks: Sequence[Words] = (), factor: int = 1
    ) -> None:
        """A contribution to an input, and what is left of it for those who know ``masks``, of all its owners;
        ``factor``: the input's."""
        self.public[f"a/{item}"] = a
        kind = codec.input_b(len(a))
        self.add(family, f"input/{item}", kind, data)
        if masks:
            ((_, seen),) = self.families[family][-1:]
            for words in masks:
                seen = ring.total([seen, self.evaluated(words, len(a), factor)], self.scheme.moduli[: len(a)])
            self.families[family].append((f"input/{item}{OWNERS}[0]", seen))

    def add_rows(self, family: str, item: str, data: bytes, limbs: int, factor: int = 1) -> None:
        """An institution's masked message, as the polynomial that goes into the input."""
        words = self.rows[family, item] = codec.unpack_masked(self.scheme, data, family)
        self.families.setdefault(family, []).append((f"rows/{item}[0]", self.evaluated(words, limbs, factor)))

    def evaluated(self, words: Words, limbs: int, factor: int) -> list[ring.Limb]:
        """Integers of 128 bits, times ``factor``, modulo the primes, as a polynomial in evaluation form."""
        out = []
        for q in self.scheme.moduli[:limbs]:
            low, high = (words[:, i] % np.uint64(q) for i in range(2))
            low, high = (ring.multiply(x, np.full(self.scheme.n, factor % q, np.uint64), q) for x in (low, high))
            whole = ring.add(low, ring.multiply(high, np.full(self.scheme.n, 2**64 % q, np.uint64), q), q)
            out.append(ring.ntt(whole, q, self.scheme.roots[q]))
        return out

    def add_keys(self, run_id: bytes) -> None:
        """The public randomness of the ceremony."""
        for label in ("relinearisation", *(f"rotation/{r}" for r in self.rotations)):
            for i, a in enumerate(keys.public_random(self.scheme, run_id, label, DIGITS)):
                self.public[f"a/{label}[{i}]"] = a


def of_view(view: View) -> Published:
    """All that members who pool ``view`` can read: the server's bytes, and boxes that they open."""
    manifest = Manifest.model_validate_json(view.received[MANIFEST])
    heard = Heard(manifest)
    for data in view.records():
        heard.add(data)
    identities = {m.name: found for m in manifest.members if (found := view.identity(m.name)) is not None}
    return _read(manifest, list(heard.since(0)), view.blob, identities, {})


def of_run(parties: Path, manifest: Manifest, kept: Mapping[str, bytes] | None = None) -> Published:
    """Everything in the server's folder of a finished run, and what was sealed:
    the identities of the run lie beside it.

    ``kept``: private keys for masks of custodians, which are erased in the run;
    with all of them, also what the owners of inputs see.
    """
    identities = {m.name: Identity.load(parties / m.name / "identity.json") for m in manifest.members}
    stored = parties / "server"
    return _read(manifest, list(recorded(manifest, stored)), Blobs(stored / "blobs").get, identities, kept or {})


def _read(
    manifest: Manifest,
    board: Iterable[msg.Record],
    blob: Callable[[str], bytes],
    identities: Mapping[str, Identity],
    kept: Mapping[str, bytes],
) -> Published:
    bodies: list[tuple[str, str, str, Any]] = [(r.sender, *unspelled(r.topic), r.body) for r in board]
    run_id = next(b.run_id for _, _, _, b in bodies if isinstance(b, msg.RunStart))
    epochs = Epochs(manifest, of(manifest).plan, bytes.fromhex(run_id))
    list(map(epochs.take, board))
    at = {epoch.suffix: epoch for epoch in epochs.in_force}
    scheme = Scheme(manifest.ckks, run_id)
    joint: Any = next(b for _, _, _, b in bodies if b.kind == "joint-keys")
    out = Published(scheme, sorted(map(int, joint.rotations)))
    out.add_keys(bytes.fromhex(run_id))
    for i, polynomial in enumerate(codec.unpack(scheme, codec.SWITCHING_B, blob(joint.relinearisation_h1), "h1")):
        out.public[f"h1[{i}]"] = polynomial
    kinds = {1: keys.first_round_kinds(out.rotations), 2: keys.SECOND_ROUND}
    layout = of(manifest).plan.layout(manifest)

    def unsealed(sender: str, reader: str, digest: str, context: bytes) -> bytes:
        return identities[reader].unseal(manifest.member(sender), blob(digest), context)

    asked: set[str] = set()
    for sender, _, suffix, body in bodies:
        if isinstance(body, msg.KeyReveal) and body.round in kinds:
            for (name, kind), digest in zip(kinds[body.round], body.blobs, strict=True):
                out.add(sender, name, kind, blob(digest))
        elif isinstance(body, msg.ShareCheck):
            count = len(manifest.custodians) + manifest.needed
            out.add(sender, "pieces", codec.check_values(count), blob(body.blob))
        if suffix not in at:  # no share was given in it
            continue
        epoch = at[suffix]
        if isinstance(body, msg.RefreshRequest):
            for item, digest in zip(body.items, body.ciphertexts, strict=True):
                how, name = layout.refresh_map(item), item + suffix
                out.public[f"a/{name}"] = refresh.common_random(scheme, epoch.seed, item, digest, how.limbs)
                out.requests[name] = codec.unpack(scheme, codec.ciphertext(how.request), blob(digest), "")
                if digest not in asked:  # in another epoch the same ciphertext may be asked for again
                    out.public[f"c1/{name}"] = out.requests[name][1]
                asked.add(digest)
        elif isinstance(body, msg.RefreshShares):
            for item, share in zip(body.items, body.shares, strict=True):
                out.add_answer(sender, item + suffix, blob(share), layout.refresh_map(item))
        elif isinstance(body, msg.ReleaseShares):
            reader = next((m.name for m in manifest.institutions if m.name in identities), None)
            if reader is None:
                continue
            data = unsealed(sender, reader, body.sealed[reader], release.sealed_context(reader, epoch.seed))
            size = codec.size(scheme, codec.DECRYPTION)
            for i, item in enumerate(body.items):
                out.add(sender, item + suffix, codec.DECRYPTION, data[i * size : (i + 1) * size])
        elif isinstance(body, msg.OpeningShares):
            for item in body.items:
                reader = item.rpartition("/")[2]
                if reader not in identities:
                    continue
                data = unsealed(sender, reader, body.sealed[reader], opening_context(item, epoch.seed))
                out.add(sender, item + suffix, codec.OPENING_SHARE, data)
    said: dict[tuple[str, str, str], Any] = {(sender, topic, suffix): body for sender, topic, suffix, body in bodies}
    _add_inputs(out, said, epochs, rounds(manifest, said, epochs), blob, kept)
    return out


def _add_inputs(
    out: Published,
    said: Mapping[tuple[str, str, str], Any],
    epochs: Epochs,
    found: Iterable[tuple[Epoch, str, Sequence[Input], Sequence[Sequence[str]]]],
    blob: Callable[[str], bytes],
    kept: Mapping[str, bytes],
) -> None:
    """Owners' masked rows and custodians' contributions of every round (:func:`rounds`); with ``kept``, the masks."""
    scheme, run_id = out.scheme, bytes.fromhex(out.scheme.tag)
    for epoch, round, wanted, chunks in found:
        for i, one in enumerate(wanted):
            named = one.item if one.item.endswith(epoch.suffix) else one.item + epoch.suffix
            for (name, label), digest in zip(one.owners, chunks[i], strict=True):
                out.add_rows(name, named, blob(digest), one.limbs, one.factor)
                for custodian, private in kept.items():
                    public = said[name, KEY, epochs.at(KEY).suffix].public
                    key = inputs.pair_key(private, public, run_id, name, custodian)
                    out.masks[custodian, name, named] = inputs.mask(key, label, one.item, scheme.n)
            for custodian in epoch.active:
                revealed: msg.InputReveal = said[custodian, f"{round}/reveal", epoch.suffix]
                lists = said[custodian, f"{round}/commit", epoch.suffix].lists
                a = inputs.public_random(scheme, epoch.seed, lists, one.item, one.limbs)
                masks = (
                    [out.masks[custodian, name, named] for name, _ in one.owners] if kept and custodian in kept else []
                )
                out.add_input(custodian, named, a, blob(revealed.blobs[i]), masks, one.factor)


def rounds(
    manifest: Manifest, said: Mapping[tuple[str, str, str], Any], epochs: Epochs
) -> Iterator[tuple[Epoch, str, Sequence[Input], Sequence[Sequence[str]]]]:
    """(epoch, round, inputs, digests of their owners' masked messages) of every round of contributions that was
    ended."""
    if not of(manifest).joint:
        epoch = epochs.at(uploads.ROUND)
        lists = {m.name: said[m.name, "upload", epoch.suffix] for m in manifest.institutions}
        placed = uploads.inputs(of(manifest).plan.layout(manifest), lists)
        yield epoch, uploads.ROUND, [p.input for p in placed], [(p.chunk,) for p in placed]
        return
    for step in range(joint_plan.total(manifest)):
        for decided, what in (("present", "activations"), ("answered", "derivatives")):
            epoch = epochs.at(f"{decided}/{step}")
            owners = said[manifest.server.name, f"{decided}/{step}", epoch.suffix].owners
            headers = {name: said[name, f"{what}/{step}", epoch.suffix] for name in owners}
            round, _, wanted, _ = joint_plan.inputs(manifest, epoch, step, what, headers)
            yield epoch, round, wanted, [(header.chunk,) for header in headers.values()]
