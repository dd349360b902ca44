"""Interactive runs as their institutions see them: the head, the summed gradient, the averages, read off real folders.

::

    sealed shares of openings --own identity--> own logits z, own gradients dX = delta W'     at every joint step
    own images, seed          --replayed------> own activations X, own delta                  the same as in the run
         W_t    = least squares of dX on delta                                                SECURITY.md measures it
         G_t    = n / rate (b (W_t - W_t-1) - (W_t+1 - W_t))  =  sum over all rows of x delta'
         G_t  - own X' delta                                  =  that of the others: of the last one, to a coalition
    masked contributions --group key--> every average, pooled moments      less one's own part: the others'

Everything is from a :class:`View`: records, blobs that the server hands out, the parties' own identities and images.
Parties keep neither activations nor derivatives, and need not: training is a function of the seed, the own images and
what was opened (:mod:`focal.training.split`), so whoever has these trains once more (:class:`Replay`).

Peers on consecutive models: arXiv 2410.04661. Membership by a candidate's own gradient: Li et al., "Effective passive
membership inference attacks in federated learning against overparameterized models", ICLR 2023; here as the matched
filter, with the covariance of public rows' gradients.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from focal.attacks.view import MANIFEST, View
from focal.ckks import codec
from focal.ckks.scheme import Scheme
from focal.custody import release
from focal.errors import FocalError
from focal.heads.joint.twin import RATE_BITS, Update, row_rate
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.net.identity import Identity
from focal.protocols import of
from focal.protocols.common.hearing import Heard
from focal.protocols.interactive import plan
from focal.sums import fixed
from focal.sums.masked import MaskedSum, group_key_context

if TYPE_CHECKING:
    from focal.data.table import Table
    from focal.segments.lower import LowerSegment
    from focal.segments.trainable import TrainableSegment

Array = NDArray[np.float64]

SHRINK = 0.1
"""Of the covariance of candidates' gradients towards its mean eigenvalue."""


class JointRead:
    """An interactive run's board and blobs, as one view has them. Raises :class:`FocalError` for a run of another
    protocol, and for one that lost custodians."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.manifest = Manifest.model_validate_json(view.received[MANIFEST])
        if not of(self.manifest).joint:
            raise FocalError(f"{view.party}: only interactive runs have joint steps")
        heard = Heard(self.manifest)
        for data in view.records():
            heard.add(data)
        self.said: Mapping[tuple[str, str], Any] = {(record.sender, record.topic): record.body for record in heard}
        if any(isinstance(body, msg.Epoch) for body in self.said.values()):
            raise FocalError(f"{view.party}: the run lost custodians", hint="give a run that lost none")
        (run_id,) = {b.run_id for b in self.said.values() if isinstance(b, msg.RunStart)}
        self.run_id = bytes.fromhex(run_id)
        self.scheme, self.layout = Scheme(self.manifest.ckks, run_id), plan.layout(self.manifest)
        self.table, self.steps = plan.table(self.manifest), plan.total(self.manifest)
        self.names = tuple(m.name for m in self.manifest.founders)

    def identity(self, name: str) -> Identity:
        """The private keys of a member whose folder is in the view."""
        found = self.view.identity(name)
        if found is None:
            raise FocalError(f"{self.view.party}: has no keys of '{name}'")
        return found

    def rows(self, name: str, step: int) -> int:
        """How many it brought to a joint step."""
        return int(self.said[name, f"activations/{step}"].rows)

    def opened(self, name: str, step: int, what: str) -> Array:
        """``logits`` (n, C) or ``gradients`` (n, R) of a member's own rows, as it had them. Zeros in the first step."""
        kind, read = {"logits": ("logits", self.layout.logits), "gradients": ("input-gradient", self.layout.gradients)}[
            what
        ]
        own, start = self.identity(name), self.table[name].start
        rows = range(start, start + self.rows(name, step))
        if not plan.opening_items(step, kind, (name,)):
            return read(np.zeros(self.layout.slots, np.complex128), rows)
        (item,) = plan.opening_items(step, kind, (name,))
        context, shares = plan.opening_context(item, self.run_id), []
        for custodian in self.manifest.custodians:
            sealed = self.said[custodian.name, f"open/{step}/{what}"].sealed[name]
            shares.append((custodian.name, own.unseal(custodian, self.view.blob(sealed), context)))
        return read(release.open_slots(self.scheme, shares, codec.OPENING_SHARE), rows)

    def total(self, label: str, name: str) -> Array:
        """The secure sum ``label``, as the participant ``name`` opens it; not its first, who draws the group's key."""
        own = self.identity(name)
        given = {m: self.said[m, f"sum/{label}/contribution"] for m in self.names}
        first = self.manifest.member(self.names[0])
        context = group_key_context(self.run_id, label, self.names)
        key = own.unseal(first, self.said[first.name, f"sum/{label}/group-key"].sealed[name], context)
        publics = {m.name: bytes.fromhex(m.seal) for m in self.manifest.institutions}
        masked = MaskedSum(self.run_id, label, name, self.names, own.seal_secret, publics, key)
        return fixed.decode(masked.open({m: self.view.blob(body.blob) for m, body in given.items()}))


@dataclass
class Own:
    """What one institution of the coalition trained with at each joint step."""

    segment: TrainableSegment | None = None
    activations: list[Array] = field(default_factory=list)
    derivatives: list[Array] = field(default_factory=list)
    gradients: list[Array] = field(default_factory=list)
    """dX, as they were opened to it."""
    parameters: list[Array] = field(default_factory=list)
    """What it gave to each average, not yet weighted."""
    segments: list[Array] = field(default_factory=list)
    """Its trained parameters at the beginning of each step."""


class Replay:
    """One institution's training once more, from its images and what was opened to it: an upper segment
    (:class:`focal.training.split.Upper`) that reads the view."""

    def __init__(self, read: JointRead, name: str) -> None:
        self.read, self.name, self.own = read, name, Own()

    def logits(self, step: int, activations: Array) -> Array:
        self.own.activations.append(activations)
        self.own.segments.append(self.segment.vector())
        return self.read.opened(self.name, step, "logits")

    def gradients(self, step: int, derivatives: Array) -> Array:
        self.own.derivatives.append(derivatives)
        self.own.gradients.append(self.read.opened(self.name, step, "gradients"))
        return self.own.gradients[-1]

    def average(self, round: int, parameters: Array, rows: int) -> Array:
        self.own.parameters.append(parameters)
        return self.read.total(plan.average_label(round), self.read.names[-1])

    def train(self, table: Table, rows: NDArray[np.int64], lower: LowerSegment) -> Own:
        """``table``, ``rows``: the institution's own training images."""
        from focal.segments.projection import Projection, moment_count
        from focal.segments.trainable import Bottleneck, TrainableSegment
        from focal.task import class_counts
        from focal.training.split import Batches, Loss, SplitSegment, fit

        m, config = self.read.manifest, plan.schedule(self.read.manifest)
        config = config.model_copy(update={"batch": plan.batch(m, self.name)})
        self.segment: TrainableSegment = TrainableSegment(lower, config, seed=config.seed)
        held = self.read.view.owned
        data = held.get(f"{self.name}/projection.bin", held.get("projection.bin"))
        if data is None:
            raise FocalError(
                f"{self.name}: began from a released model", hint="attack a run without 'start', and with kind whiten"
            )
        self.segment.bottleneck = Bottleneck.from_projection(Projection.from_bytes(data))
        moments = self.read.total("moments", self.read.names[-1])
        counts = np.rint(moments[moment_count(m.lower.dim) :] * m.rows)
        loss = Loss(m.task, class_counts(counts, m.rows, m.task), config)
        module = SplitSegment(self.segment, self, loss, config, rows=len(rows))
        batches = Batches(table, rows, m.lower, config, name=self.name, seed=config.seed)
        with tempfile.TemporaryDirectory() as folder:
            fit(module, batches, folder=Path(folder), device="cpu", checkpoint_every=0)
        self.own.segment = self.segment
        return self.own


class Coalition:
    """All that some institutions read of the others' training. The last institution must be among them."""

    def __init__(self, read: JointRead, own: Mapping[str, Own]) -> None:
        self.read, self.own = read, own
        self.others = tuple(name for name in read.names if name not in own)

    def rows_of_others(self, step: int) -> int:
        return sum(self.read.rows(name, step) for name in self.others)

    @cached_property
    def heads(self) -> list[Array]:
        """W_t (R, C) before each step, from the activation gradients that were opened; the first is zero."""
        out: list[Array] = [np.zeros((self.read.layout.features, self.read.manifest.outputs))]
        for t in range(1, self.read.steps):
            parts = [(own.derivatives[t], own.gradients[t]) for own in self.own.values()]
            out.append(head_of(*(np.concatenate(part) for part in zip(*parts, strict=True))))
        return out

    def gradient(self, step: int) -> Array:
        """(R, C) sum of x delta' over the others' rows of a step, but the last one, whose head is not opened."""
        n = sum(self.read.rows(name, step) for name in self.read.names)
        own = sum(o.activations[step].T @ o.derivatives[step] for o in self.own.values())
        return np.asarray(summed_gradient(plan.update(self.read.manifest), self.heads, step, n) - own)

    def change(self, round: int) -> Array:
        """(count,) how the others' parameters, weighted by rows, moved up to averaging ``round`` = 1, 2, ..."""
        member = self.read.manifest.member
        total = sum(member(name).rows or 0 for name in self.read.names)
        theirs = sum(member(name).rows or 0 for name in self.others)
        own = sum((member(name).rows or 0) / total * o.parameters[round - 1] for name, o in self.own.items())
        average = self.read.total(plan.average_label(round), self.read.names[-1])
        every = plan.settings(self.read.manifest).average_every
        before = next(iter(self.own.values())).segments[(round - 1) * every]
        return np.asarray((average - own) * total / theirs - before)


def head_of(derivatives: Array, gradients: Array) -> Array:
    """W (R, C) from rows' derivatives (n, C) and what was opened of dX = delta W' (n, R), with its noise."""
    return np.asarray(np.linalg.lstsq(derivatives, gradients, rcond=1e-6)[0].T)


def summed_gradient(update: Update, heads: Sequence[Array], step: int, rows: int) -> Array:
    """(R, C) sum of x delta' over all ``rows`` of a step, from the heads around it."""
    moved = heads[step + 1] - heads[step] - (update.momentum * (heads[step] - heads[step - 1]) if step else 0.0)
    return np.asarray(-moved * 2**RATE_BITS / row_rate(update, rows))


def coalition(view: View, table: Table, rows: Mapping[str, NDArray[np.int64]], lower: LowerSegment) -> Coalition:
    """What the institutions whose folders are in ``view`` read; ``rows``: their own training rows of ``table``."""
    read = JointRead(view)
    return Coalition(read, {name: Replay(read, name).train(table, rows[name], lower) for name in view.parties})


def as_batch(gradient: Array) -> dict[str, Array]:
    """A summed head gradient (R, C) as :func:`focal.attacks.features.from_head` reads it: the last column is the
    bias."""
    return {"weight": gradient.T[:, :-1], "bias": gradient[-1]}


def own_gradients(x: Array, labels: NDArray[np.int64], weights: Array) -> Array:
    """(n, R C) what each candidate would add to the sum, under the head ``weights`` (R, C)."""
    return np.einsum("nr,nc->nrc", x, derivatives(x @ weights, labels)).reshape(len(x), -1)


def derivatives(z: Array, labels: NDArray[np.int64]) -> Array:
    """(n, C) d cross-entropy / d logits."""
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(p / p.sum(axis=1, keepdims=True) - np.eye(z.shape[1])[labels])


def matched(seen: Array, candidates: Array, public: Array, rows: int) -> Array:
    """(n,) how much more of each candidate's gradient (n, p) there is in ``seen`` (p,), a sum of ``rows``, than public
    ones (m, p) explain: the matched filter, in units of its own deviation over the public ones."""
    mean = public.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(public.T))
    floor = max(SHRINK * float(values.mean()), 1e-12)
    left = ((seen - rows * mean) @ vectors) / np.sqrt(np.maximum(values, floor))
    turned = ((candidates - mean) @ vectors) / np.sqrt(np.maximum(values, floor))
    length = np.linalg.norm(turned, axis=1)
    return np.asarray(turned @ left / np.maximum(length, 1e-12))


def bottleneck_part(change: Array, columns: int, dim: int) -> Array:
    """(R - 1, dim) of a vector of trained parameters: the bottleneck's matrix, which stands before its offset, last."""
    own = change[len(change) - (columns - 1) * (dim + 1) :]
    return own[: (columns - 1) * dim].reshape(columns - 1, dim)


def directions(matrix: Array, mean: Array, spread: float, most: int) -> Array:
    """(m, dim) features along which a bottleneck's ``matrix`` moved, the largest first, both ways from the ``mean``
    public features, as far as those spread: what is left of rows once AdamW has divided their sum by its own size."""
    _, values, right = np.linalg.svd(matrix - matrix.mean(axis=0), full_matrices=False)
    there = right[: min(most // 2, int((values > 1e-9 * values[0]).sum()))]
    return np.concatenate([mean + sign * spread * there for sign in (1, -1)])


def folders(parties: Sequence[str], run: Path) -> View:
    """The pooled view of ``parties`` of a run; of one, its own."""
    return View.pooled([View.of(run, name) for name in parties])
