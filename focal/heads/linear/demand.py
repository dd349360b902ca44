"""What a party needs that computes with the rows: a server, a custodian that verifies it, an audit; on one machine or
several of the same kind.

A model of seconds, bytes and memory from unit costs (:class:`Prices`): those of this machine where they were measured
(``focal bench scale``), else those that the planner counts with. Two things it leaves out, and a run takes that much
longer: the time in which parties wait for each other's messages, and what other programs take of a machine.

Uploads may be larger than the memory: what of a block's data does not fit streams from disk in every pass
(:mod:`focal.protocols.blind.compute`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from focal.ckks.scheme import DIGITS, LIMBS, REFRESH_LIMBS
from focal.config import CkksConfig
from focal.heads.linear import cost
from focal.heads.linear.engine import WINDOW
from focal.heads.linear.layout import DATA_LIMBS, Layout
from focal.heads.masks import TARGET_LIMBS

PROCESS_BYTES = 400 << 20
"""A process before it has keys and blocks: Python, OpenFHE, Ray."""
READ, ADDED = 1.5, 11.0
"""CPU milliseconds of one ciphertext of rows: read again in a pass, and added up once from what institutions and
custodians sent. N = 2^14, on the machine of :mod:`focal.heads.linear.cost`."""
PASSES = 2
"""How often a step reads data that do not fit the memory: forward and backward."""


def kept_blocks(layout: Layout, memory: int, blocks: int | None = None) -> int:
    """How many of the first blocks' data can stay within ``memory`` bytes, beside all targets and two blocks
    on their way through; of ``blocks``, or of all."""
    limb, count = 2 * (2 * layout.slots) * 8, len(layout.live_blocks) if blocks is None else blocks
    data = layout.lane * DATA_LIMBS * limb  # limb: both polynomials of a ciphertext
    fit = (memory - count * layout.class_groups * TARGET_LIMBS * limb) // data
    return count if fit >= count else max(0, fit - 2)


def worker_bytes(layout: Layout, memory: int, workers: int, copies: int = 2) -> int:
    """What each of so many workers needs at most, when blocks are dealt evenly. ``copies`` of refreshed logits: on a
    cluster as they were sent, and as they are computed with; in one process 1."""
    limb, n = 2 * (2 * layout.slots) * 8, 2 * layout.slots
    blocks = -(-len(layout.live_blocks) // workers)
    keys = (len(layout.rotations) + 1) * 2 * DIGITS * (LIMBS + 2) * n * 8
    data = layout.lane * DATA_LIMBS * limb
    kept = min(memory, blocks * data) + 2 * data
    pairs = (blocks * layout.class_groups * (TARGET_LIMBS + copies * LIMBS) + WINDOW * DATA_LIMBS) * limb
    # rotated weights; sums of three polynomials, as ciphertexts and on their way
    each = layout.class_groups * layout.babies * (DATA_LIMBS + 2 * DATA_LIMBS * 3 // 2) * limb
    return PROCESS_BYTES + keys + kept + pairs + each


@dataclass(frozen=True)
class Prices:
    """CPU seconds of one thing of a layout's."""

    added: float
    """A ciphertext of rows, once, from all that was sent for it."""
    read: float
    """One, in a pass, that did not fit the memory."""
    group: float
    """A class group in a step, however many blocks there are: rotations of its weights, and of its sums."""
    pair: float
    """A block and a class group in a step, forward and backward."""
    asked: float
    """A refresh at the server: the request, and adding up the answers."""
    answered: float
    """A refresh at a custodian: its share."""
    beside_server: float = 0.0
    """A refresh at the server beside arithmetic: hashes, files, sockets, encryption; by one thread."""
    beside_custodian: float = 0.0

    @classmethod
    def of(cls, layout: Layout, degree: int) -> Prices:
        """As the planner counts (:mod:`focal.heads.linear.cost`)."""
        unit, b, g = 2 * layout.slots / 16384 / 1e3, layout.babies, layout.giants
        turned = (g - 1) * cost.HOISTED + (2 * g - 1 + len(layout.lane_folds)) * cost.SWITCH[DATA_LIMBS]
        return cls(
            added=ADDED * unit,
            read=READ * unit,
            group=(cost.HOIST + (b - 1) * cost.HOISTED + 2 * b * cost.SWITCH[DATA_LIMBS]) * unit,
            pair=(turned + cost.HOIST + 2 * layout.lane * cost.PRODUCT + cost.RESIDUAL[degree]) * unit,
            asked=cost.REFRESH_SERVER * unit,
            answered=cost.REFRESH_CUSTODIAN * unit,
        )


@dataclass(frozen=True)
class Machine:
    """One of a party's machines. Bytes a second of what it reads from its disk, to the server or the custodians, and to
    the party's other machines."""

    threads: int
    memory: int = cost.BLOCK_MEMORY
    """Bytes that encrypted rows may take (``memory_gb``)."""
    disk: float = 500e6
    link: float = 125e6
    inner: float = 1.25e9


@dataclass(frozen=True)
class Demand:
    """What a party with so many machines needs. Bytes are those of the whole party where nothing else is said."""

    machines: int
    once_seconds: float
    """Before the first step: the ciphertexts of all rows."""
    compute_seconds: float
    """Of a step, with what is read from disk."""
    refresh_seconds: float
    """Of a step: this party's part of refreshes, or what the link takes if that is longer: they overlap."""
    inner_seconds: float
    """Of a step: between the party's machines."""
    once_bytes: float
    """Over the link before the first step: keys, masked rows, contributions."""
    step_bytes: float
    """Over the link in a step, both ways; a server's is that with one custodian that does not verify."""
    inner_bytes: float
    """Between the party's machines in a step, all together."""
    memory_bytes: float
    """Each machine."""
    disk_bytes: float
    """Before the first step, on all machines together."""
    step_disk_bytes: float
    """What every step adds to it."""

    @property
    def step_seconds(self) -> float:
        return self.compute_seconds + self.refresh_seconds + self.inner_seconds


@dataclass(frozen=True)
class Sizes:
    """Bytes of what a run sends and stores."""

    uploads: float
    """Masked rows of all institutions."""
    contributions: float
    """One custodian's, to the inputs of all."""
    keys: float
    """One custodian's contributions to all evaluation keys."""
    request: float
    """All that is asked for in a step."""
    share: float
    """One custodian's answers in a step."""
    weights: float
    """After a step."""
    items: int
    """Refreshes of a step."""

    @classmethod
    def of(cls, layout: Layout, params: CkksConfig, rows: Mapping[str, int], degree: int) -> Sizes:
        """Of a run in which all come; ``rows``: how many each institution has."""
        n, blob = params.ring, cost.blob_bytes
        touched = sum(len(layout.touched(*owned)) for owned in layout.row_table(rows).values())
        data, target = (blob(n, layout.chunk_limbs(what), 1) for what in ("data", "target"))
        items = [item for kind in cost.KINDS[degree] for item in layout.items(1, kind)]
        return cls(
            uploads=touched * (layout.lane + layout.class_groups) * cost.masked_bytes(n),
            contributions=touched * (layout.lane * data + layout.class_groups * target),
            keys=(3 + len(layout.rotations)) * blob(n, LIMBS, DIGITS, extended=True),
            request=len(items) * blob(n, REFRESH_LIMBS, 2),
            share=sum(cost.share_bytes(n, REFRESH_LIMBS, layout.refresh_map(item).limbs) for item in items),
            weights=layout.class_groups * blob(n, DATA_LIMBS, 2),
            items=len(items),
        )


def demand(
    layout: Layout,
    params: CkksConfig,
    rows: Mapping[str, int],
    custodians: int,
    degree: int,
    prices: Prices,
    machine: Machine,
    machines: int = 1,
    server: bool = False,
) -> Demand:
    """What a custodian that verifies needs, or the ``server``; ``rows``: how many each institution has."""
    size, limb = Sizes.of(layout, params, rows, degree), 2 * params.ring * 8
    count, groups, cores = len(layout.live_blocks), layout.class_groups, machine.threads * machines
    own = -(-count // machines)
    streamed = (own - kept_blocks(layout, machine.memory, own)) * layout.lane
    pairs, row_bytes = own * groups, cost.blob_bytes(params.ring, DATA_LIMBS, 2)
    compute = (groups * prices.group + pairs * prices.pair + PASSES * streamed * prices.read) / machine.threads
    reading = PASSES * streamed * row_bytes / machine.disk
    # the machine that holds the weights makes requests and adds answers up alone, as it does without others;
    # a custodian that verifies makes the requests, too, and fetches the others' answers
    arithmetic = prices.asked if server else prices.asked + prices.answered
    beside = prices.beside_server if server else prices.beside_custodian
    crossed = size.request + size.share if server else custodians * size.share
    refresh = max(size.items * (arithmetic / machine.threads + beside), crossed / machine.link)
    others = (machines - 1) / machines
    logits = count * groups * (REFRESH_LIMBS + LIMBS) * limb * others
    sums = (machines - 1) * groups * layout.babies * DATA_LIMBS * limb * 3 / 2
    inner = logits + sums + (machines - 1) * groups * DATA_LIMBS * limb
    blobs = size.uploads + custodians * (size.contributions + size.keys)
    kept = size.request + custodians * size.share if server else size.share
    return Demand(
        machines=machines,
        once_seconds=count * (layout.lane + groups) * prices.added / cores,
        compute_seconds=compute + reading,
        refresh_seconds=refresh,
        inner_seconds=(logits + sums / machines) / machine.inner,
        once_bytes=blobs,
        step_bytes=crossed,
        inner_bytes=inner,
        memory_bytes=worker_bytes(layout, machine.memory, machines, 1 if machines == 1 else 2),
        disk_bytes=blobs + machines * streamed * row_bytes,
        step_disk_bytes=kept + size.weights,
    )


@dataclass(frozen=True)
class Audit:
    """What it takes to make a whole run again from what its server keeps."""

    seconds: float
    read_bytes: float
    """Keys, masked rows, contributions; requests, answers and weights of every step."""


def audit(
    layout: Layout,
    params: CkksConfig,
    rows: Mapping[str, int],
    custodians: int,
    degree: int,
    prices: Prices,
    machine: Machine,
    steps: int,
    machines: int = 1,
) -> Audit:
    """An audit computes every step as a custodian that verifies does, and gives no share."""
    found = demand(layout, params, rows, custodians, degree, prices, machine, machines, server=True)
    step = found.compute_seconds + found.inner_seconds
    step += Sizes.of(layout, params, rows, degree).items * prices.asked / machine.threads
    return Audit(found.once_seconds + steps * step, found.once_bytes + steps * found.step_disk_bytes)
