"""Feature extraction: right, cached by content, private, shared between processes, quiet,
and honest about bad input."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patience import PATIENCE
from PIL import Image
from places import ROOT

from focal.config import LowerConfig
from focal.data import examine as examination
from focal.data.sources import ArrayImages, EncodedImages, Folder
from focal.data.synthetic import generate
from focal.data.table import Table
from focal.errors import FocalError
from focal.manifest import LowerSpec
from focal.segments.lower import LowerSegment, build_lower, preprocess
from focal.training import extraction, features
from focal.training.features import FeatureCache, Learner, compute_features

LOWER = LowerConfig(model="resnet10t", image_size=32)


@pytest.fixture(scope="module")
def segment() -> LowerSegment:
    return build_lower(LOWER, "random:0")[0]


@pytest.fixture
def table() -> Table:
    return generate(80, 0)


def test_features_are_the_segments_outputs(segment: LowerSegment, table: Table, tmp_path: Path) -> None:
    rows = np.array([7, 70, 3])
    got = compute_features(segment, table, rows, device="cpu", cache=tmp_path / "c")
    with torch.inference_mode():
        one_by_one = torch.cat(
            [segment(preprocess(table.images.read(int(r)), segment.spec).unsqueeze(0)) for r in rows]
        ).numpy()
    assert got.shape == (3, segment.spec.dim) and got.dtype == np.float32
    np.testing.assert_allclose(got, one_by_one, atol=1e-5)  # another batch size, another order of float32 sums


def test_the_cache_follows_content_not_names_or_order(
    segment: LowerSegment, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compute_features(segment, table, np.arange(40), device="cpu", cache=tmp_path)
    monkeypatch.setattr(extraction, "extract", lambda *_: pytest.fail("computed again"))
    renamed = table.take(np.arange(40)[::-1])
    assert (compute_features(segment, renamed, np.arange(40), device="cpu", cache=tmp_path)[::-1] == first).all()
    for change in (
        {"image_size": 48},
        {"mean": (0.0, 0.0, 0.0)},
        {"interpolation": "bilinear"},
        {"fit": "pad"},
        {"flip": True},
        {"cut": "layer1"},
    ):
        other, _ = build_lower(LOWER.model_copy(update=change), "random:0")
        with FeatureCache(tmp_path, other.spec) as cache:
            assert table.images.sha256(0) not in cache, f"another {change} is another feature"


def test_progress_counts_every_row_once(segment: LowerSegment, table: Table, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    compute_features(segment, table, np.arange(30), device="cpu", cache=tmp_path)
    rows = np.concatenate([np.arange(80), [79, 78]])  # 30 are cached, the last two are the same images again
    got = compute_features(
        segment, table, rows, device="cpu", cache=tmp_path, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[0] == (30, 82) and seen[-1] == (82, 82) and sorted(seen) == seen and len(seen) >= 3
    assert (got[-2:] == got[[79, 78]]).all()


def test_the_cache_is_private_and_names_nobody(segment: LowerSegment, table: Table, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        compute_features(segment, table, np.arange(4), device="cpu", cache=tmp_path / "c")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700
    files = list((tmp_path / "c").iterdir())
    assert files and all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in files)
    content = b"".join(f.read_bytes() for f in files)
    assert b"synthetic-" not in content and b"patient-" not in content and table.images.sha256(0).encode() in content


ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

WORKER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from focal.config import LowerConfig
from focal.data.synthetic import generate
from focal.segments.lower import build_lower
from focal.training import extraction, features
extraction.BATCH = 8
segment, _ = build_lower(LowerConfig(model="resnet10t", image_size=32), "random:0")

def compute(stop=None, rows=0):
    # ``stop``: a signal to itself, once, when ``rows`` are done that were not done before (it takes effect when it
    # does: more may be done by then)
    first, sent = [], []
    def report(done, total):
        print(done, flush=True)
        first.append(done)
        if stop and not sent and done >= min(first[0] + rows, total):
            sent.append(stop)
            os.kill(os.getpid(), stop)
    features.compute_features(segment, generate(80, 0), np.arange(80), device="auto", cache=Path(sys.argv[1]), \
progress=report)

if sys.argv[2:]:
    try:
        compute(signal.SIGINT, 16)
    except KeyboardInterrupt:
        print("interrupted", signal.getsignal(signal.SIGINT) is signal.default_int_handler, flush=True)
    compute(signal.SIGKILL, 8)
compute()
"""


def worker(folder: Path, *stops: str) -> subprocess.Popen[str]:
    """Fills the cache in ``folder``; with ``stops`` it is interrupted, and killed when it goes on. Its start takes
    seconds: torch and Lightning."""
    args = [sys.executable, "-c", WORKER, str(folder / "c"), *stops]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(args, cwd=folder, env=ENV, **pipes)


def test_processes_are_interrupted_killed_and_work_at_once(segment: LowerSegment, table: Table, tmp_path: Path) -> None:
    """Ctrl-C stays a KeyboardInterrupt; what was finished before it and before kill -9 is kept; two may write at once;
    Lightning says nothing and leaves nothing."""
    killed = worker(tmp_path, "stops")
    out, err = killed.communicate(timeout=PATIENCE)
    assert (killed.returncode, err) == (-signal.SIGKILL, "")
    before, told, after = out.partition("interrupted True\n")
    assert told and int(before.split()[-1]) >= 16, out
    assert int(after.split()[0]) >= int(before.split()[-1]), "what was finished is not computed again"
    other = worker(tmp_path)
    seen: list[int] = []
    stored = compute_features(
        segment, table, np.arange(80), device="cpu", cache=tmp_path / "c", progress=lambda done, _: seen.append(done)
    )
    assert seen[0] == int(after.split()[-1]), "what was finished is not computed again"
    out, err = other.communicate(timeout=PATIENCE)
    assert (other.returncode, err) == (0, "") and out.split()[-1] == "80" and all(x.isdigit() for x in out.split())
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    database = next((tmp_path / "c").glob("*.sqlite"))
    assert sqlite3.connect(database).execute("SELECT count(*) FROM kept").fetchone() == (80,)
    fresh = compute_features(segment, table, np.arange(80), device="cpu", cache=tmp_path / "fresh")
    # the other may have had a GPU, whose sums are the consortium's tolerance apart at most
    np.testing.assert_allclose(stored, fresh, atol=1e-3 if torch.cuda.is_available() else 1e-5)


def _fill(folder: Path, spec: LowerSpec, mine: str, start: Barrier) -> None:
    start.wait(30)
    with FeatureCache(folder, spec) as cache:
        for i in range(20):
            cache.put([f"{mine}-{i}"], np.zeros((1, spec.dim), np.float32))


def test_several_processes_may_open_a_new_cache_at_once(segment: LowerSegment, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for attempt in range(4):
        start = fork.Barrier(4)
        processes = [
            fork.Process(target=_fill, args=(tmp_path / str(attempt), segment.spec, str(k), start)) for k in range(4)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [p.exitcode for p in processes] == [0] * 4
        database = next((tmp_path / str(attempt)).glob("*.sqlite"))
        assert sqlite3.connect(database).execute("SELECT count(*) FROM kept").fetchone() == (80,)


class Poisoned(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x.mean((2, 3))
        return torch.where(x.sum() == 0, out, out * float("nan"))


def test_bad_input_is_an_error_and_not_a_feature(segment: LowerSegment, table: Table, tmp_path: Path) -> None:
    nan = LowerSegment(Poisoned(), segment.spec.model_copy(update={"mean": (0.0, 0.0, 0.0)}))
    with pytest.raises(FocalError, match="not finite"):
        compute_features(nan, table, [0], device="cpu", cache=tmp_path)
    with FeatureCache(tmp_path, nan.spec) as cache:
        assert table.images.sha256(0) not in cache
    with pytest.raises(FocalError, match="device 'tpu' is none of"):
        compute_features(segment, table, [0], device="tpu", cache=tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(FocalError, match="no usable GPU"):
            compute_features(segment, table, [0], device="cuda", cache=tmp_path)


class Counted:
    """A source that counts how often each row's bytes are read."""

    def __init__(self, images: EncodedImages) -> None:
        self.images, self.reads = images, Counter[int]()
        self.take = images.take

    def read(self, i: int) -> Image.Image:
        self.reads[i] += 1
        return self.images.read(i)

    def sha256(self, i: int) -> str:
        self.reads[i] += 1
        return self.images.sha256(i)

    def keyed(self, i: int) -> tuple[str, Callable[[], Image.Image]]:
        self.reads[i] += 1
        return self.images.keyed(i)


def test_a_file_is_read_once(segment: LowerSegment, table: Table, tmp_path: Path) -> None:
    """Its hash and its picture are of the same bytes; only the first one that is not known is read again."""
    (tmp_path / "images").mkdir()
    for i in range(12):
        table.images.read(i).save(tmp_path / "images" / f"{i}.png")
    names = np.array([f"{i}.png" for i in (*range(12), 3)])
    images: Any = Counted(EncodedImages(Folder(tmp_path / "images"), names))
    own = replace(table.take(np.arange(13)), images=images)
    compute_features(segment, own, [4, 5], device="cpu", cache=tmp_path / "c")
    images.reads.clear()
    rows = [4, 5, *range(4), *range(6, 13)]
    got = compute_features(segment, own, rows, device="cpu", cache=tmp_path / "c")
    assert images.reads == {**dict.fromkeys(rows, 1), 0: 2}
    assert (got[rows.index(3)] == got[rows.index(12)]).all()
    images.reads.clear()
    assert (compute_features(segment, own, rows, device="cpu", cache=tmp_path / "c") == got).all()
    assert set(images.reads.values()) == {1}


def filed(table: Table, folder: Path, broken: Sequence[int] = ()) -> tuple[Table, Any]:
    """The images in a folder, some of them torn, and the source that counts how often they are read."""
    folder.mkdir()
    for i in range(len(table)):
        path = folder / f"{i}.png"
        table.images.read(i).save(path)
        if i in broken:
            path.write_bytes(path.read_bytes()[:100])
    images: Any = Counted(EncodedImages(Folder(folder), np.array([f"{i}.png" for i in range(len(table))])))
    return replace(table, images=images), images


@pytest.mark.parametrize("room", [1 << 30, 0])
def test_what_a_look_decodes_is_computed_of_the_same_bytes(
    room: int, segment: LowerSegment, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the memory has no room for more, while the look goes on."""
    monkeypatch.setattr(features, "ROOM", room)
    monkeypatch.setattr(examination, "BATCH", 8)
    own, images = filed(table.take(np.arange(20)), tmp_path / "images")
    rows, told, computed = [*range(3, 18)], list[tuple[int, int]](), list[int]()
    honest = extraction.extract

    def noted(segment: LowerSegment, items: Any, *rest: Any) -> list[str]:
        computed.append(len(items))
        return honest(segment, items, *rest)

    monkeypatch.setattr(extraction, "extract", noted)
    where: Any = {"device": "cpu", "cache": tmp_path / "c"}
    with Learner(segment, own, rows, **where, progress=lambda done, total: told.append((done, total))) as learner:
        found = examination.examine(own, tmp_path / "c", taker=learner)
        assert computed == ([] if room else [5, 8, 2]), "three rows of the first eight are not asked for"
        learner.finish()
    assert images.reads == dict.fromkeys(range(20), 1) and told == ([(15, 15)] if room else [])
    looked = found.usable_table("refuse")
    got = compute_features(segment, looked, rows, **where)
    assert images.reads == dict.fromkeys(range(20), 1), "hashes are known, features are there"
    fresh = compute_features(segment, own, rows, device="cpu", cache=tmp_path / "fresh")
    np.testing.assert_allclose(got, fresh, atol=1e-5)
    assert looked.key(4) == looked.take([4]).key(0) == own.images.sha256(4)


def test_of_images_that_are_refused_nothing_is_computed(
    segment: LowerSegment, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, _ = filed(table.take(np.arange(12)), tmp_path / "images", broken=(2, 9))
    monkeypatch.setattr(extraction, "extract", lambda *_: pytest.fail("computed"))
    with Learner(segment, own, range(12), device="cpu", cache=tmp_path / "c") as learner:
        found = examination.examine(own, tmp_path / "c", taker=learner)
    with pytest.raises(FocalError, match="2 of 12 images cannot be used\n.*'2.png'.*\n.*'9.png'"):
        found.usable_table("refuse")
    left = found.usable_table("skip")
    assert left.keys is not None and left.keys.tolist() == [own.images.sha256(i) for i in range(12) if i not in (2, 9)]


def test_who_says_how_many_threads_compute_is_heard(
    segment: LowerSegment, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """focal.ckks leaves torch one, which is right beside other parties and a waste of a machine of one's own."""
    told: list[object] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    for row, threads in enumerate((3, None)):
        compute_features(
            segment,
            table,
            [row],
            device="cpu",
            cache=tmp_path,
            threads=threads,
            progress=lambda done, total: told.append("done") if done else None,
        )
    before = torch.get_num_threads()
    assert told == [3, "done", before, os.cpu_count(), "done", before]


def test_readers_beside_a_gpu_give_the_same_features(segment: LowerSegment, table: Table, tmp_path: Path) -> None:
    """Processes that read and decode, here beside a CPU."""
    kept: dict[str, np.ndarray[Any, Any]] = {}

    def keep(keys: Sequence[str], vectors: np.ndarray[Any, Any]) -> None:
        kept.update(zip(keys, vectors, strict=True))

    unread = extraction.Unread(table.images, range(40), segment.spec, frozenset())
    keys = extraction.extract(segment, unread, keep, "cpu", lambda done: None, readers=2)
    found = compute_features(segment, table, np.arange(40), device="cpu", cache=tmp_path)
    np.testing.assert_allclose(np.stack([kept[key] for key in keys]), found, atol=1e-5)


def test_who_finds_everything_in_the_cache_waits_for_no_lightning(
    segment: LowerSegment, table: Table, tmp_path: Path
) -> None:
    compute_features(segment, table, np.arange(3), device="cpu", cache=tmp_path)
    program = f"""
import sys
from pathlib import Path
from focal.config import LowerConfig
from focal.data.synthetic import generate
from focal.segments.lower import build_lower
from focal.training.features import compute_features
segment, _ = build_lower(LowerConfig(model="resnet10t", image_size=32), "random:0")
compute_features(segment, generate(80, 0), range(3), device="cpu", cache=Path({str(tmp_path)!r}))
sys.exit("lightning" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], env=ENV, timeout=PATIENCE).returncode == 0


def test_an_unusable_cache_is_named(segment: LowerSegment, table: Table, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FocalError, match="file/features-.*cannot be used"):
        compute_features(segment, table, [0], device="cpu", cache=tmp_path / "file")
    compute_features(segment, table, [0], device="cpu", cache=tmp_path / "c")
    database = next((tmp_path / "c").glob("*.sqlite"))
    database.write_bytes(b"no database" * 100)
    with pytest.raises(FocalError, match="cannot be used .*not a database") as e:
        compute_features(segment, table, [0], device="cpu", cache=tmp_path / "c")
    assert "deleted" in e.value.hint


def test_an_empty_request_is_an_empty_answer(segment: LowerSegment, table: Table, tmp_path: Path) -> None:
    assert compute_features(segment, table, [], device="cpu", cache=tmp_path).shape == (0, segment.spec.dim)


def test_grey_images_pass(segment: LowerSegment, table: Table, tmp_path: Path) -> None:
    images = ArrayImages(np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8))
    grey = Table(**{**{f: getattr(table.take([0, 1, 2]), f) for f in table.__dataclass_fields__}, "images": images})
    assert compute_features(segment, grey, [0, 1, 2], device="cpu", cache=tmp_path).shape == (3, segment.spec.dim)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    "config",
    [LOWER, LowerConfig(family="torchvision", model="squeezenet1_1"), LowerConfig(model="test_vit", image_size=160)],
)
def test_a_gpu_gives_the_features_of_a_cpu(config: LowerConfig, table: Table, tmp_path: Path) -> None:
    one, _ = build_lower(config, "random:0")
    cpu, gpu = (compute_features(one, table, np.arange(80), device=d, cache=tmp_path / d) for d in ("cpu", "cuda"))
    assert np.abs(cpu - gpu).max() < 1e-3, "the consortium's tolerance for the test image"
