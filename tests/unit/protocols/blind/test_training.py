"""Uploads that are larger than the memory: what is read again in every pass gives the same limbs,
and little of it is there at a time.

One run of four blocks, its refreshes recorded, is repeated from the same uploads with less and less memory,
as a verifier repeats the server's run: every request for a refresh, every step and the chain must be the same.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from manifests import manifest
from masked import LABEL, LISTS, Masking, upload_list

from focal.ckks import codec
from focal.custody import refresh
from focal.errors import FocalError, Refused
from focal.heads.linear.cost import layout_for
from focal.heads.linear.demand import kept_blocks
from focal.heads.linear.layout import DATA_LIMBS, Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.masks import TARGET_LIMBS
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.net.store import Blobs
from focal.protocols.blind import uploads
from focal.protocols.blind.compute import BlindCompute
from focal.protocols.common.voice import Given

STEPS = 3
ROWS = (300, 160, 340)
"""BlindCompute rows of three institutions: two of the four blocks hold rows of two of them."""
LAYOUT = layout_for(8192, 32, 8, sum(ROWS), 8, 4)
LIMB = 2 * 16384 * 8
"""Bytes of one limb of both polynomials of a ciphertext."""
DATA, TARGETS = LAYOUT.lane * DATA_LIMBS * LIMB, LAYOUT.blocks * LAYOUT.class_groups * TARGET_LIMBS * LIMB
"""Bytes of one block's data, and of the targets of all blocks."""

Ask = Callable[[list[str], list[Any]], list[Any]]


class Uploaded:
    """Three institutions' signed lists, their chunks on disk, and what was asked and answered
    in an honest run on them."""

    def __init__(self, folder: Path) -> None:
        self.rehearsal = Rehearsal(LAYOUT, custodians=2, run="streamed")
        self.blobs = Blobs(folder)
        declared = manifest()
        rows = iter(ROWS)
        members = tuple(
            m.model_copy(update={"rows": next(rows)}) if m.role == "institution" else m for m in declared.members
        )
        self.manifest: Manifest = declared.model_copy(update={"members": members, "share_blocks": True})
        self.row_table = LAYOUT.row_table(self.manifest.row_counts)
        self.masking = Masking(self.rehearsal)
        self.lists = {name: self._list(name, start, stop) for name, (start, stop) in self.row_table.items()}
        given = self.masking.given([placed.input for placed in uploads.inputs(LAYOUT, self.lists)])
        self.given = Given({name: [self.blobs.put(data) for data in own] for name, own in given.items()})
        self.asked: dict[str, str] = {}
        self.answered: dict[str, Any] = {}
        self.steps, self.chain = self.train(1 << 40, self._ask)

    def _list(self, name: str, start: int, stop: int) -> msg.Upload:
        rng = np.random.default_rng(start)
        x, targets = (
            rng.uniform(-1, 1, (stop - start, LAYOUT.features)),
            rng.uniform(-0.5, 0.5, (stop - start, LAYOUT.outputs)),
        )
        chunks = []
        for block, what, g, h in LAYOUT.chunks(start, stop):
            rows = LAYOUT.block_of(x if what == "data" else targets, start, block)
            slots = LAYOUT.data_slots(rows, g, h) if what == "data" else LAYOUT.target_slots(rows, g)
            item = uploads.item(LAYOUT, (block, what, g, h), name)
            chunks.append(self.blobs.put(self.masking.upload(name, item, slots)))
        return upload_list(start, stop, tuple(chunks))

    def _digest(self, ciphertext: Any) -> str:
        return codec.digest(refresh.request(self.rehearsal.scheme, ciphertext))

    def _ask(self, items: list[str], ciphertexts: list[Any]) -> list[Any]:
        fresh = self.rehearsal.refresh(items, ciphertexts)
        self.asked |= zip(items, map(self._digest, ciphertexts), strict=True)
        self.answered |= zip(items, fresh, strict=True)
        return fresh

    def again(self, items: list[str], ciphertexts: list[Any]) -> list[Any]:
        """The recorded answers, to the very ciphertexts that were asked for then."""
        assert [self.asked[i] for i in items] == [self._digest(ct) for ct in ciphertexts]
        return [self.answered[i] for i in items]

    def training(
        self, memory: int, fetch: Callable[[str], bytes] | None = None, folder: Path | None = None
    ) -> BlindCompute:
        scheme, run_id, fetch = self.rehearsal.scheme, self.rehearsal.run_id, fetch or self.blobs.get
        return BlindCompute(
            self.manifest, scheme, LAYOUT, run_id, self.lists, LISTS, self.given, fetch, 2, memory, folder
        )

    def train(
        self, memory: int, ask: Ask, fetch: Callable[[str], bytes] | None = None, folder: Path | None = None
    ) -> tuple[list[msg.StepDone], str]:
        training = self.training(memory, fetch, folder)
        try:
            (weights, chain), steps = training.start(), []
            for step in range(STEPS):
                weights, done, _ = training.step(step, weights, chain, ask)
                chain = done.chain
                steps.append(done)
            return steps, chain
        finally:
            training.close()


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory: pytest.TempPathFactory) -> Uploaded:
    assert LAYOUT.blocks == 4 and LAYOUT.lane == 4
    return Uploaded(tmp_path_factory.mktemp("uploads"))


def test_each_input_has_its_owners_and_its_name_once(uploaded: Uploaded) -> None:
    """Data and targets of a block are an input for each who has rows there, also where they share it."""
    placed = uploads.inputs(LAYOUT, uploaded.lists)
    assert len({p.input.item for p in placed}) == len(placed)
    listed = Counter(digest for upload in uploaded.lists.values() for digest in upload.chunks)
    assert Counter(p.chunk for p in placed) == listed
    for p in placed:
        assert p.input.limbs == 6 and p.input.owners == ((p.owner, LABEL),) and p.input.item.endswith(f"/{p.owner}")
        assert p.place[0] in LAYOUT.touched(*uploaded.row_table[p.owner])
    assert max(Counter(p.place for p in placed).values()) == 3, "no block is shared"
    proven = uploads.claims(uploaded.manifest, LAYOUT, b"", uploaded.lists)
    called = Counter(item for claim in proven for item in claim.items)
    assert called == Counter(p.input.item for p in placed), "custodians check other masks than they take off"


def test_data_of_an_institutions_own_block_need_no_mask_and_no_name(uploaded: Uploaded) -> None:
    layout = layout_for(8192, 32, 8, sum(ROWS), 8, 4, ROWS)
    lists = {
        name: uploaded.lists[name].model_copy(
            update={"first_row": owned[0], "chunks": ("0" * 64,) * len(layout.chunks(*owned))}
        )
        for name, owned in layout.row_table(uploaded.manifest.row_counts).items()
    }
    for p in uploads.inputs(layout, lists):
        data = p.place[1] == "data"
        assert p.input.limbs == (DATA_LIMBS if data else 6) and p.input.item.endswith("/-" if data else f"/{p.owner}")


class Alive:
    """Counts the data ciphertexts that a training has made and that are still there."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        self.lock = threading.RLock()
        original = BlindCompute._ciphertext

        def counted(training: BlindCompute, place: tuple[int, str, int, int]) -> Any:
            made = original(training, place)
            if place[1] == "data":
                with self.lock:
                    self.now += 1
                    self.most = max(self.most, self.now)
                weakref.finalize(made, self._gone)
            return made

        patch.setattr(BlindCompute, "_ciphertext", counted)

    def _gone(self) -> None:
        with self.lock:
            self.now -= 1


@pytest.mark.parametrize(
    ("memory", "kept"), [(0, 0), (TARGETS + DATA, 0), (TARGETS + 3 * DATA, 1), (TARGETS + 4 * DATA, 4)]
)
@pytest.mark.parametrize("stored", [False, True])
def test_less_memory_means_more_reading_and_the_same_limbs(
    uploaded: Uploaded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, memory: int, kept: int, stored: bool
) -> None:
    """``stored``: blocks that were made are kept on disk, in a file that nobody sees, and no chunk is read twice."""
    alive, read = Alive(monkeypatch), Counter[str]()

    def fetch(digest: str) -> bytes:
        read[digest] += 1
        return uploaded.blobs.get(digest)

    folder = tmp_path if stored else None
    assert uploaded.train(memory, uploaded.again, fetch, folder) == (uploaded.steps, uploaded.chain)
    assert not list(tmp_path.iterdir())
    assert alive.most <= max(2 * DATA, memory - TARGETS) / DATA * LAYOUT.lane
    for name, (start, stop) in uploaded.row_table.items():
        for (block, what, _, _), digest in zip(LAYOUT.chunks(start, stop), uploaded.lists[name].chunks, strict=True):
            # checked before the first step, whose forward pass needs no data
            passes = 1 if stored or what == "target" or block < kept else 1 + 2 * STEPS - 1
            assert read[digest] == passes


def test_what_stays_in_memory_is_within_the_budget() -> None:
    for blocks in range(2, 9):
        layout = Layout(8192, 32, 8, blocks * LAYOUT.block_rows, 8, 4, LAYOUT.babies)
        for budget in range(0, 10 * DATA, DATA // 3):
            kept = kept_blocks(layout, budget)
            targets = blocks * layout.class_groups * TARGET_LIMBS * LIMB
            passing = 0 if kept == blocks else 2
            assert 0 <= kept <= blocks and (kept == 0 or targets + (kept + passing) * DATA <= budget)
            assert kept == blocks or targets + (kept + 3) * DATA > budget  # one more would not fit
            whole = Layout(8192, 32, 8, 20 * LAYOUT.block_rows, 8, 4, LAYOUT.babies)
            assert kept_blocks(whole, budget, blocks) == kept  # of a worker that owns so many of more


def test_an_ill_formed_chunk_of_the_last_block_is_refused_before_anything_is_asked(uploaded: Uploaded) -> None:
    """Data of streamed blocks are needed long after the first refresh, and are checked before it all the same."""
    placed = [p.place for p in uploads.inputs(LAYOUT, uploaded.lists)]
    last = max(i for i, (_, what, _, _) in enumerate(placed) if what == "data")
    bad = uploaded.given.blobs["custodian 1"][last]

    def fetch(digest: str) -> bytes:
        data = uploaded.blobs.get(digest)
        return data[:-8] + b"\xff" * 8 if digest == bad else data

    def ask(items: list[str], ciphertexts: list[Any]) -> list[Any]:
        raise AssertionError("a share was asked for")

    with pytest.raises(Refused, match="'custodian 1'.*not below its modulus"):
        uploaded.train(0, ask, fetch)


def test_a_disk_that_changes_kept_blocks_is_named(uploaded: Uploaded, tmp_path: Path) -> None:
    training = uploaded.training(0, folder=tmp_path)
    try:
        block = training.block(3)
        assert block.data and training.scratch is not None
        size = os.fstat(training.scratch._file.fileno()).st_size
        for at in range(0, size, 4096):
            os.pwrite(training.scratch._file.fileno(), b"??", at)
        with pytest.raises(FocalError, match="other bytes than were written"):
            _ = training.block(3).data
    finally:
        training.close()
