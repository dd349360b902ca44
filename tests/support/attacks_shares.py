"""Lies about refreshes and the release; a server that computes something else."""

from __future__ import annotations

import dataclasses
import os
import signal
from typing import Any

import numpy as np
from lying import CONSTANT, SHIFT, LyingServer, replace

from focal.ckks import codec, ring
from focal.ckks.scheme import REFRESH_LIMBS, Scheme
from focal.custody import keys, refresh
from focal.custody.ledger import Large
from focal.net import messages as msg
from focal.protocols.blind import plan, uploads
from focal.protocols.common import inputs as speaking
from focal.protocols.common.custodian import Custodian

# --------------------------------------------------------------------------- lies about refreshes and the release


class ForgedRefresh(LyingServer):
    """The first refresh is asked for ciphertexts of the server's own making: one of :meth:`forge` for each item,
    labels for the rest."""

    puppets: tuple[str, ...] = ("custodian-3",)

    def __init__(self, *kinds: str) -> None:
        super().__init__()
        self.kinds = kinds

    def begins(self) -> None:
        topic, items = plan.batches(self.manifest, plan.layout(self.manifest))[0]
        self.post("server", topic, self.request(items, self.kinds))

    def request(self, items: tuple[str, ...], kinds: tuple[str, ...]) -> msg.RefreshRequest:
        kinds += tuple(f"labels {i}" for i in range(len(kinds), len(items)))
        forged = (
            self.hub.publish(self.forge(kind, item), "custodians") for kind, item in zip(kinds, items, strict=True)
        )
        return msg.RefreshRequest(items=items, ciphertexts=tuple(forged))

    def forge(self, kind: str, item: str) -> bytes:
        """``constant``: c1 = 2^135; ``shifted``: c1 = a + 2^12 with the ``a`` of (0, 0) under this item;
        ``labels``: hospital-b's encrypted targets; anything else: random limbs that the word determines."""
        scheme, primes = self.scheme, self.scheme.moduli[:REFRESH_LIMBS]
        c0, c1 = scheme.zero(REFRESH_LIMBS), ring.expand(kind.encode(), primes, scheme.n)
        if kind == "constant":
            c1 = [np.full(scheme.n, CONSTANT % q, np.uint64) for q in primes]
        elif kind == "shifted":
            a = refresh.common_random(scheme, bytes.fromhex(self.run_id), item, codec.digest(self._packed(c0, c0)))
            c1 = [ring.add(limb, np.full(scheme.n, SHIFT, np.uint64), q) for limb, q in zip(a, primes, strict=False)]
        elif kind.startswith("labels"):
            return self._labels(int(kind.partition(" ")[2] or 0))
        return self._packed(c0, c1)

    def _labels(self, which: int) -> bytes:
        """Encrypted targets, down to the limbs of a request: hospital-b's of every class group, then the others'."""
        lists = {m.name: self.body(m.name, "upload") for m in self.manifest.institutions}
        names = [m.name for m in self.manifest.custodians]
        given: dict[str, msg.InputReveal] = {name: self.body(name, f"{uploads.ROUND}/reveal") for name in names}
        placed = list(enumerate(uploads.inputs(plan.layout(self.manifest), lists)))
        order = ("hospital-b", "hospital-a", "hospital-c")
        found = [(i, p) for name in order for i, p in placed if p.place[1] == "target" and p.input.owners[0][0] == name]
        i, wanted = found[which]
        polynomials = speaking.combined(
            self.scheme,
            bytes.fromhex(self.run_id),
            self.body(names[0], f"{uploads.ROUND}/commit").lists,
            wanted.input,
            [(wanted.input.owners[0][0], self.hub.blobs.get(wanted.chunk))],
            [(name, reveal.blobs[i]) for name, reveal in given.items()],
            self.hub.blobs.get,
        )
        return self._packed(*(limbs[:REFRESH_LIMBS] for limbs in polynomials))

    def _packed(self, c0: Any, c1: Any) -> bytes:
        return codec.pack(self.scheme, codec.ciphertext(REFRESH_LIMBS), [c0, c1])


class AnsweredForgery(ForgedRefresh):
    """:class:`ForgedRefresh` whose puppet answers after custodian-2, honestly and with its own key:
    the guard gets to weigh all."""

    def heard(self, record: msg.Record) -> None:
        super().heard(record)
        if record.sender == "custodian-2" and isinstance(record.body, msg.RefreshShares):
            self.post("custodian-3", record.topic, self.answer(record.body))

    def answer(self, asked: Any) -> msg.RefreshShares:
        """custodian-3's shares of what ``asked`` names."""
        (file,) = (self.server.folder.parent / "custodian-3").glob("secret-*.key")
        share = keys.SecretShare.load(self.scheme, bytes.fromhex(self.run_id), file.read_bytes())
        layout, bits = plan.layout(self.manifest), refresh.guard(self.scheme, 3).others_bits
        shares = []
        for item, digest in zip(asked.items, asked.ciphertexts, strict=True):
            c1 = codec.unpack(self.scheme, codec.ciphertext(REFRESH_LIMBS), self.hub.blobs.get(digest), "puppet")[1]
            how = layout.refresh_map(item)
            a = refresh.common_random(self.scheme, bytes.fromhex(self.run_id), item, digest, how.limbs)
            made = refresh.share(self.scheme, share.limbs, c1, a, bits, how)
            shares.append(self.hub.publish(made, "custodians"))
        return msg.RefreshShares(items=asked.items, ciphertexts=asked.ciphertexts, shares=tuple(shares))


class TwoAnswers(AnsweredForgery):
    """The guard, restarted after it was killed between weighing and answering, is shown other shares of custodian-3."""

    def __init__(self, restarted: bool) -> None:
        super().__init__("labels", "labels 1")
        self.restarted = restarted

    def begins(self) -> None:
        if not self.restarted:
            return super().begins()
        topic, _ = plan.batches(self.manifest, plan.layout(self.manifest))[0]
        self.show("custodian-1", "custodian-3", topic, self.answer(self.body("custodian-3", topic)))
        return None


def out_of_lockstep() -> None:
    """A victim that guards, but takes whatever the server presents: what the guard refuses by itself."""
    made = Custodian.__init__

    def init(self: Custodian, *args: Any) -> None:
        made(self, *args)
        self.verifies = False

    replace(Custodian, __init__=init)


def dies_when_it_has_weighed() -> None:
    """kill -9 of a guard between its decision and its shares."""
    replace(Custodian, _refresh_shares=lambda *_: os.kill(os.getpid(), signal.SIGKILL))


def dies_when_it_has_refused() -> None:
    """kill -9 of a guard whose key share is gone and whose word is not yet out."""
    forget = Custodian._forget

    def forgotten(self: Custodian, *files: Any) -> None:
        forget(self, *files)
        if len(files) > 3:  # all that is secret
            os.kill(os.getpid(), signal.SIGKILL)

    replace(Custodian, _forget=forgotten)


def lies_in(half: str, bits: int, item: str) -> None:
    """A custodian that adds 2^bits in every slot to its own ``h0`` or ``h1`` of one plan item: h1 is uniform anyway,
    and a verifier takes both as input."""
    made = Custodian._made

    def lying(self: Custodian, topic: str, about: str, digest: str) -> Large:
        honest = made(self, topic, about, digest)
        if about != item:
            return honest
        scheme, kind = self.scheme, refresh.kind(self.layout.refresh_map(item))
        halves = codec.unpack(scheme, kind, honest.data, "itself")
        own = halves[int(half == "h1")]
        for i, (x, q) in enumerate(zip(own, scheme.moduli, strict=False)):
            own[i] = ring.add(x, np.full(scheme.n, (1 << bits) % q, np.uint64), q)
        return Large.of(codec.pack(scheme, kind, halves))

    replace(Custodian, _made=lying)


def sends_a_huge(what: str) -> None:
    """An institution whose masked messages hold 2^127 in one coefficient,
    those of ``what``: 16 bytes that a format cannot refuse."""
    masked = speaking.MaskKeys.masked

    def huge(self: speaking.MaskKeys, scheme: Scheme, message: Any, label: str, item: str, custodians: Any) -> bytes:
        data = bytearray(masked(self, scheme, message, label, item, custodians))
        if f"/{what}/" in item:
            data[codec.HEADER.size + 15] = 0x80
        return bytes(data)

    replace(speaking.MaskKeys, masked=huge)


class OutOfPlan(ForgedRefresh):
    """custodian-1 is asked for the plan's items in another order, custodian-2 for one ciphertext under both."""

    def begins(self) -> None:
        topic, items = plan.batches(self.manifest, plan.layout(self.manifest))[0]
        self.post("server", topic, self.request(items, ("same", "same")))
        self.show("custodian-1", "server", topic, self.request(items[::-1], ("one", "two")))


class TwoRequests(ForgedRefresh):
    """custodian-1 is shown two requests under one plan item, custodian-2 the first of them,
    and after a restart the second."""

    puppets: tuple[str, ...] = ("custodian-1", "custodian-3")

    def __init__(self, restarted: bool) -> None:
        super().__init__()
        self.restarted = restarted

    def begins(self) -> None:
        topic, items = plan.batches(self.manifest, plan.layout(self.manifest))[0]
        self.post("server", topic, self.request(items, ("one", "two")))
        second = self.sign("server", topic, self.request(items, ("three", "two")))
        self.lie("custodian-1", "server", topic, lambda data: [data, second])
        if self.restarted:
            self.lie("custodian-2", "server", topic, lambda _: [second])


def dies_with_shares_made() -> None:
    """kill -9 when the refresh shares are in the ledger and before anybody has seen them."""
    replace(Custodian, share_blobs=lambda *_: os.kill(os.getpid(), signal.SIGKILL))


class FalseRelease(LyingServer):
    """custodian-1 is asked to open hospital-b's encrypted rows, custodian-2 weights that are not the last ones."""

    puppets: tuple[str, ...] = ("custodian-3",)

    def begins(self) -> None:
        last = self.manifest.training.steps - 1
        items = tuple(i.replace("/weights/", "/release/") for i in plan.layout(self.manifest).items(last, "weights"))
        before: msg.StepDone = self.body("server", f"step/{last - 1}")
        rows: msg.Upload = self.body("hospital-b", "upload")
        self.post("server", "release/request", msg.ReleaseRequest(items=items, ciphertexts=before.outputs))
        self.show(
            "custodian-1",
            "server",
            "release/request",
            msg.ReleaseRequest(items=items, ciphertexts=rows.chunks[: len(items)]),
        )


class ForgetfulBoard(LyingServer):
    """Denies a restored custodian its own earlier records, so that nothing but its peers' word
    tells it that it is old."""

    puppets: tuple[str, ...] = ("custodian-3",)

    def begins(self) -> None:
        for record in self.records():
            own = msg.UploadsAccepted | msg.InputCommit | msg.InputReveal | msg.RefreshShares | msg.ResumeNonce
            if record.sender == "custodian-2" and isinstance(record.body, own):
                self.lie("custodian-2", "custodian-2", record.topic, lambda _: [])


# --------------------------------------------------------------------------- a server that computes something else


def wrong_rate() -> None:
    """The server's engine takes steps that are a thousandth too large."""
    from focal.protocols.blind import compute

    honest = compute.scalars_of

    def hasty(*args: Any) -> Any:
        scalars = honest(*args)
        return dataclasses.replace(scalars, rate=1.001 * scalars.rate)

    replace(compute, scalars_of=hasty)


def wrong_limb() -> None:
    """The server changes one residue of one input by one."""
    from focal.protocols.blind import compute

    honest = compute.combined
    changed: list[bool] = []

    def altered(scheme: Scheme, *rest: Any) -> Any:
        polynomials = honest(scheme, *rest)
        if not changed:
            changed.append(True)
            limb = polynomials[0][0].copy()
            limb[5] = (int(limb[5]) + 1) % scheme.moduli[0]
            polynomials[0][0] = limb
        return polynomials

    replace(compute, combined=altered)
