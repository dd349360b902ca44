"""Which layout: a small cost model over class lanes k, feature lanes f and babies B, and the choice in a sentence.

The model counts key switches (what training time is made of), bytes (what a slow link waits for) and memory, with the
unit costs below. It chooses the least predicted seconds of upload + training + refresh traffic, among layouts whose
release error stays within 1e-3 and whose memory fits; in shared blocks also of what a verifying custodian sends and
fetches for the inputs of all institutions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from focal.ckks.codec import HEADER, MASKED_BYTES
from focal.ckks.scheme import DIGITS, LIMBS, REFRESH_LIMBS, Scheme
from focal.config import CkksConfig, LayoutConfig
from focal.errors import FocalError
from focal.heads.linear.layout import DATA_LIMBS, Layout, power_of_two
from focal.heads.masks import TARGET_LIMBS
from focal.heads.released import MAX_ERROR, expected_error

# Milliseconds at N = 2^14 on one thread of an AMD EPYC without AVX-512, native kernels with AVX2, nothing beside it.
SWITCH = {6: 5.1, 5: 4.1, 4: 2.9}
"""One key switch, by limbs."""
HOIST, HOISTED = 1.0, 1.9
"""The digits of a ciphertext, and each rotation once they are there; 4 limbs."""
PRODUCT = 0.17
"""One product and its addition, not relinearised; 4 limbs."""
RESIDUAL = {3: 13.5, 5: 25.0, 7: 30.0}
"""The sigmoid of one ciphertext of logits, by degree."""
MASKED = 11.0
"""One owner's data at one place of a shared block: made of its message and three contributions, 6 limbs, and masked."""
REFRESH_SERVER, REFRESH_CUSTODIAN = 11.0, 10.0
"""One collective refresh at the server and at each custodian, packing included."""
CROWDED = 1.35
"""Where all parties of a run share a machine: how much longer a step takes than the sum of its prices. They share
caches, memory and disk too, and what goes between them costs processor time. Measured on two cores, R = 64 and R = 256,
3 custodians: within 10 % (a quiet machine)."""
KINDS = {3: ("logits", "weights"), 5: ("logits", "residual", "weights"), 7: ("logits", "residual", "weights")}
"""Kinds of plan items that a step has refreshed, by degree."""
BLOCK_MEMORY = 2 << 30
"""Bytes of encrypted rows in memory, where nobody says otherwise (``memory_gb``): the other blocks stream from disk."""
KEY_CUSTODIAN = 25.0
"""One rotation key: generated, packed, added up."""
MAX_SHARING = 200
"""Institutions with rows in one shared block, times custodians: as many as have been measured. What the weights carry
does not grow with them (tests/slow/test_release_noise.py: 60 institutions, 3 custodians)."""

SHARED_BLOCKS = (
    "share_blocks: true: masks keep every institution to its own rows of a block, and leave 2^-79 of what it writes "
    "into others'; of nothing that the size check lets pass can that be seen, but the check needs custodians that "
    "follow the protocol (SECURITY.md)"
)
"""What everybody must be told who signs a manifest with shared blocks."""


@dataclass(frozen=True)
class Cost:
    """What a layout costs. Bytes are those on the wire."""

    layout: Layout
    upload_bytes: dict[str, int]
    """Institution -> bytes of its masked rows."""
    input_bytes: int
    """One custodian's contributions to the encryption of all rows, up."""
    key_bytes: int
    """One custodian's key contributions, up."""
    refresh_bytes: int
    """One custodian and step, up and down."""
    memory_bytes: int
    """The server's ciphertexts and keys."""
    mask_seconds: float
    """Masking the data of shared blocks, once, on ``threads`` threads (where they fit the memory)."""
    step_seconds: float
    """Training step on ``threads`` threads, refresh included."""
    link_seconds: float
    """The slowest institution's upload at the given link speed."""
    release_error: float

    def describe(self, steps: int, computing: int = 1, slowness: float = 1.0) -> str:
        """What the planner chose, in three lines a person can check. ``computing`` parties train on the same
        threads: the server, and the custodians that verify it where all run on one machine, of which
        :func:`slowness` has been measured."""
        chosen, mb, longer = self.layout, 1e6, computing * slowness * (CROWDED if computing > 1 else 1.0)
        seconds, masked = self.step_seconds * longer, self.mask_seconds * longer
        word = "about" if computing > 1 else "at least"  # several machines wait for each other's messages besides
        sharing = f" ({computing} parties compute on the same cores)" if computing > 1 else ""
        largest = max(self.upload_bytes.values())
        own = "shared" if chosen.shared else "own"
        masking = f", {masked:.0f} s to mask shared data" if chosen.shared else ""
        return (
            f"layout: k = {chosen.class_lanes} class lanes, f = {chosen.feature_lanes} feature lanes, "
            f"{chosen.blocks} {own} block(s) of {chosen.block_rows} rows, {chosen.class_groups} class group(s), "
            f"{len(chosen.rotations)} rotation keys\n"
            f"bytes:  upload {largest / mb:.0f} MB per institution at most; keys {self.key_bytes / mb:.0f} and inputs "
            f"{self.input_bytes / mb:.0f} MB up per custodian, refresh {self.refresh_bytes / mb:.1f} MB per custodian "
            f"and step; server memory {self.memory_bytes / 1e9:.1f} GB\n"
            f"time:   {word} {seconds:.1f} s per step, {seconds * steps:.0f} s for {steps} steps{masking}{sharing}; "
            f"upload {self.link_seconds:.0f} s on the slowest link; expected release error {self.release_error:.1e}"
        )


def slowness(scheme: Scheme) -> float:
    """How many times the unit costs of this module a key switch takes here: for what a person is told.
    The choice of a layout does not depend on it, so that every machine makes the same one."""
    return scheme.switch_ms(DATA_LIMBS) / (SWITCH[4] * scheme.n / 16384)


def blob_bytes(n: int, limbs: int, elements: int, extended: bool = False) -> int:
    """A blob of focal.ckks.codec at the default moduli: one or, extended, three primes of 60 bits, the others of 45."""
    return HEADER.size + elements * n * (8 + 6 * (limbs - 1) + (16 if extended else 0))


def share_bytes(n: int, request: int, limbs: int) -> int:
    """A share of the refresh of a ciphertext with ``request`` limbs to one with ``limbs``."""
    return blob_bytes(n, request, 1) + blob_bytes(n, limbs, 1) - HEADER.size


def masked_bytes(n: int) -> int:
    """A masked message."""
    return HEADER.size + n * MASKED_BYTES


def cost(
    layout: Layout,
    params: CkksConfig,
    rows: Mapping[str, int],
    custodians: int,
    degree: int,
    link_mbyte_s: float,
    threads: int,
) -> Cost:
    """Predict the cost of one layout. ``rows``: how many each institution has."""
    n, unit = params.ring, params.ring / 16384
    b, g, blocks, groups = layout.babies, layout.giants, layout.blocks, layout.class_groups
    per_pair = (2 * g - 1 + len(layout.lane_folds)) * SWITCH[4] + HOIST + (g - 1) * HOISTED + 2 * layout.lane * PRODUCT
    per_group = HOIST + (b - 1) * HOISTED + 2 * b * SWITCH[4]
    switching = groups * (per_group + blocks * (per_pair + RESIDUAL[degree])) * unit
    items = [item for kind in KINDS[degree] for item in layout.items(1, kind)]
    step = (switching / threads + len(items) * (REFRESH_SERVER + custodians * REFRESH_CUSTODIAN / threads) * unit) / 1e3
    touched = {name: len(layout.touched(*owned)) for name, owned in layout.row_table(rows).items()}
    upload = {name: count * (layout.lane + groups) * masked_bytes(n) for name, count in touched.items()}
    given = {what: blob_bytes(n, layout.chunk_limbs(what), 1) for what in ("data", "target")}
    filled = sum(touched.values())
    inputs = filled * (layout.lane * given["data"] + groups * given["target"])
    masking = filled * layout.lane * MASKED * unit / threads / 1e3 if layout.shared else 0.0
    keys = (3 + len(layout.rotations)) * blob_bytes(n, LIMBS, DIGITS, extended=True)
    asked = blob_bytes(n, REFRESH_LIMBS, 2)
    refresh = sum(asked + share_bytes(n, REFRESH_LIMBS, layout.refresh_map(item).limbs) for item in items)
    encrypted = (
        min(blocks * layout.lane * 2 * DATA_LIMBS * n * 8, BLOCK_MEMORY) + blocks * groups * 2 * TARGET_LIMBS * n * 8
    )
    held = encrypted + len(layout.rotations) * 2 * DIGITS * (LIMBS + 2) * n * 8
    return Cost(
        layout,
        upload,
        inputs,
        keys,
        refresh,
        held,
        masking,
        step,
        max(upload.values()) / 1e6 / link_mbyte_s,
        expected_error(params.ring // 2, 2.0**params.scale_bits, layout, custodians),
    )


def whose(layout: Layout, rows: Mapping[str, int]) -> str:
    """Which blocks hold rows of which institution, in one line."""
    parts = []
    for name, owned in layout.row_table(rows).items():
        blocks = layout.touched(*owned)
        parts.append(f"{name} {blocks[0]}" + (f"-{blocks[-1]}" if len(blocks) > 1 else ""))
    return ", ".join(parts)


def check_sharing(layout: Layout, rows: Mapping[str, int], custodians: int) -> None:
    """Raise :class:`FocalError` when more institutions share a block than the release's smudging covers
    (:data:`MAX_SHARING`)."""
    sharing = Counter(b for owned in layout.row_table(rows).values() for b in layout.touched(*owned))
    block, most = max(sharing.items(), key=lambda found: found[1])
    if most * custodians > MAX_SHARING and most > 1:
        raise FocalError(
            f"layout: {most} institutions share block {block}; with {custodians} custodians at most "
            f"{MAX_SHARING // custodians} may, or the weights would carry more noise than their release hides",
            hint="use share_blocks: false, fewer custodians or, for smaller blocks, more class lanes",
        )


def babies_for(slots: int, features: int, outputs: int, rows: int, k: int, f: int, owners: tuple[int, ...] = ()) -> int:
    """B for given lanes: the balance moves to more babies when there are more blocks, which share them.
    Every baby and every giant has a rotation key of its own, which a run of ten steps pays for."""
    lane = features // 2 // f
    best, best_price = 1, math.inf
    for b in (1 << i for i in range(lane.bit_length())):
        layout = Layout(slots, features, outputs, rows, k, f, b, owners)
        g = layout.giants
        price = (b - 1) * HOISTED + 2 * b * SWITCH[4] + layout.blocks * ((2 * g - 1) * SWITCH[4] + (g - 1) * HOISTED)
        price += len(layout.rotations) * KEY_CUSTODIAN / 10
        if price < best_price:
            best, best_price = b, price
    return best


def layout_for(
    slots: int,
    features: int,
    outputs: int,
    rows: int,
    class_lanes: int,
    feature_lanes: int,
    owners: tuple[int, ...] = (),
) -> Layout:
    """The layout with these lanes: a pure function of public numbers, so that every party derives the same one.

    ``owners``: rows of each institution where each has blocks of its own.
    """
    babies = babies_for(slots, features, outputs, rows, class_lanes, feature_lanes, owners)
    return Layout(slots, features, outputs, rows, class_lanes, feature_lanes, babies, owners)


def choose(
    params: CkksConfig,
    features: int,
    outputs: int,
    rows: Mapping[str, int],
    custodians: int,
    steps: int,
    degree: int,
    wish: LayoutConfig,
    threads: int,
    memory_bytes: float,
    share_blocks: bool = False,
) -> Cost:
    """The cheapest layout that fits; ``wish`` fixes lanes that a person chose, ``rows`` are those of each institution.

    Raises :class:`FocalError` saying what does not fit: features x classes, institutions in one block,
    memory, or the release error.
    """
    slots, total, owners = params.ring // 2, sum(rows.values()), () if share_blocks else tuple(rows.values())
    lanes: Sequence[int] = (
        [wish.class_lanes] if wish.class_lanes else [1 << i for i in range(power_of_two(outputs).bit_length())]
    )
    feature_lanes: Sequence[int] = [wish.feature_lanes] if wish.feature_lanes else [1, 2, 4, 8]
    priced, reasons = [], []
    for k in lanes:
        for f in feature_lanes:
            try:
                layout = layout_for(slots, features, outputs, total, k, f, owners)
                check_sharing(layout, rows, custodians)
            except FocalError as e:
                reasons.append(e.message)
                continue
            c = cost(layout, params, rows, custodians, degree, wish.link_mbyte_s, threads)
            if c.release_error > MAX_ERROR:
                reasons.append(
                    f"layout: k = {k}, f = {f}: the release would err by {c.release_error:.1e} on a weight, "
                    f"more than {MAX_ERROR:.0e}"
                )
            elif c.memory_bytes > memory_bytes:
                reasons.append(
                    f"layout: k = {k}, f = {f}: needs {c.memory_bytes / 1e9:.1f} GB at the server, "
                    f"{memory_bytes / 1e9:.1f} GB are free"
                )
            else:
                priced.append(c)
    if not priced:
        raise FocalError(
            f"no layout fits {features} features x {outputs} outputs x {total} rows: {reasons[0]}",
            hint="fewer projection features, fewer class lanes or a larger ckks ring",
        )

    def price(c: Cost) -> float:
        sent = 2 * c.key_bytes
        if share_blocks:  # many small institutions: what a verifier fetches for all of them outweighs one's upload
            sent += c.input_bytes * custodians + sum(c.upload_bytes.values()) + c.refresh_bytes * steps
        return c.mask_seconds + c.step_seconds * steps + c.link_seconds + sent / 1e6 / wish.link_mbyte_s

    return min(priced, key=price)
