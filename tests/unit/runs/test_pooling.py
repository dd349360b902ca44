"""Pooled evaluation by files: the curve is that of all rows, one site's counts stay hidden,
and what could undo that is refused."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import cli

from focal.errors import FocalError, ProtocolError, Refused
from focal.measure.histogram import BINS, Counts, score_histogram
from focal.measure.metrics import macro_auroc
from focal.runs.pooling import COUNTS, PUBLIC, Pool
from focal.segments.upper import ModelMeta
from focal.sums import fixed
from focal.sums.masked import stream

SITES = ("north", "south", "west")
META: Any = ModelMeta.model_construct(
    run_id="1" * 64, manifest_hash="2" * 64, task="multiclass", classes=("a", "b", "c")
)
SIZE = 3 * 2 * BINS


def rows(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.eye(3, dtype=np.uint8)[rng.integers(0, 3, n)]
    return labels, 1.5 * labels + rng.normal(-1, 1, (n, 3))


def counts(seed: int) -> Counts:
    return score_histogram(*rows(seed), "multiclass")


def new_key(folder: Path, name: str) -> Path:
    """The two files of ``focal keys new``; returns the private one."""
    assert cli("keys", "new", "--name", name, "--out", folder).returncode == 0
    return folder / f"{name}.key.json"


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    """Private files by site, each in a folder of its own; the public ones are in ``sites`` as well."""
    found = {name: new_key(tmp_path / name, name) for name in SITES}
    (tmp_path / "sites").mkdir()
    for name, key in found.items():
        (tmp_path / "sites" / f"{name}{PUBLIC}").write_text((key.parent / f"{name}{PUBLIC}").read_text())
    return found


def contributed(tmp_path: Path, keys: dict[str, Path]) -> dict[str, Pool]:
    pools = {name: Pool(tmp_path / "sites", key, META) for name, key in keys.items()}
    for k, pool in enumerate(pools.values()):
        pool.add(counts(k))
    return pools


def test_every_site_reads_the_curve_of_all_rows(tmp_path: Path, keys: dict[str, Path]) -> None:
    first = Pool(tmp_path / "sites", keys["north"], META)
    first.add(counts(0))
    assert (first.result()["missing"], first.result()["auroc"]) == (["south", "west"], None)
    assert not (tmp_path / "sites" / "pooled_roc.json").exists()

    pools = contributed(tmp_path, keys)  # north again: the same bytes
    found = [pool.result() for pool in pools.values()]
    assert found[0] == found[1] == found[2] and found[0]["missing"] == []
    labels, scores = (np.concatenate(parts) for parts in zip(*map(rows, range(3)), strict=True))
    assert 0 < found[0]["bound"] < 0.01
    assert abs(found[0]["auroc"] - macro_auroc(labels, scores, "multiclass")) <= found[0]["bound"]
    written = json.loads((tmp_path / "sites" / "pooled_roc.json").read_text())
    assert (
        written["rows"] == 900 and written["auroc"] == found[0]["auroc"] and set(written["classes"]) == {"a", "b", "c"}
    )
    assert (tmp_path / "sites" / "pooled_roc.png").stat().st_size > 10_000


def test_masks_hide_a_site_as_long_as_one_other_keeps_its_key(tmp_path: Path, keys: dict[str, Path]) -> None:
    """north's file less the public stream and what west shares with north is noise;
    less what south shares as well it is north's counts."""
    pool = contributed(tmp_path, keys)["north"]
    shared = dict(
        zip(SITES[1:], pool._sum._added, strict=True)
    )  # north is first: it adds what it shares with the others
    left = np.frombuffer(pool._read(pool.sites["north"]), "<u8") - stream(pool._sum._group["north"], SIZE)
    truth = fixed.encode(counts(0).ravel().astype(float), 0)
    assert (left == truth).mean() < 0.01
    left -= stream(shared["west"], SIZE)
    assert (left == truth).mean() < 0.01
    left -= stream(shared["south"], SIZE)
    assert (left == truth).all()


def test_other_counts_are_refused_for_good_and_another_folder_is_another_exchange(
    tmp_path: Path, keys: dict[str, Path]
) -> None:
    pool = Pool(tmp_path / "sites", keys["north"], META)
    pool.add(counts(0))
    sent = (tmp_path / "sites" / f"north{COUNTS}").read_bytes()
    (tmp_path / "sites" / f"north{COUNTS}").unlink()
    again = Pool(tmp_path / "sites", keys["north"], META)  # a new process
    with pytest.raises(Refused, match="gave other counts to this exchange before"):
        again.add(counts(7))
    assert not (tmp_path / "sites" / f"north{COUNTS}").exists()
    Pool(tmp_path / "sites", keys["north"], META).add(counts(0))
    assert (tmp_path / "sites" / f"north{COUNTS}").read_bytes() == sent
    (kept,) = keys["north"].parent.glob(f"*{COUNTS}")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600

    (tmp_path / "sites").rename(tmp_path / "second")
    second = Pool(tmp_path / "second", keys["north"], META)
    second.add(counts(7))
    assert second.fingerprint != pool.fingerprint
    anew = (tmp_path / "second" / f"north{COUNTS}").read_bytes()
    assert (np.frombuffer(anew[96:], "<u8") == np.frombuffer(sent[96:], "<u8")).mean() < 0.01  # other masks


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: data[:-1], "west.counts: is not"),
        (lambda data: data + b"x", "west.counts: is not"),
        (lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:], "a signature of 'west' is not valid"),
        (lambda data: bytes([data[0] ^ 1]) + data[1:], "a signature of 'west' is not valid"),
        (lambda data: data[:64] + bytes(32) + data[96:], "west.counts: belongs to another exchange"),
    ],
)
def test_a_spoiled_file_is_named(tmp_path: Path, keys: dict[str, Path], spoil: Any, says: str) -> None:
    pools = contributed(tmp_path, keys)
    path = tmp_path / "sites" / f"west{COUNTS}"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ProtocolError, match=says):
        pools["north"].result()


def test_another_model_or_another_key_is_another_exchange(tmp_path: Path, keys: dict[str, Path]) -> None:
    pools = contributed(tmp_path, keys)
    other = META.model_copy(update={"run_id": "3" * 64})
    stranger = Pool(tmp_path / "sites", keys["west"], other)
    stranger.add(counts(2))
    with pytest.raises(ProtocolError, match="the same model, the same public files"):
        pools["north"].result()
    assert stranger.fingerprint != pools["west"].fingerprint
    swapped = new_key(tmp_path / "fake", "south")
    (tmp_path / "sites" / f"south{PUBLIC}").write_text((swapped.parent / f"south{PUBLIC}").read_text())
    assert Pool(tmp_path / "sites", keys["north"], META).fingerprint != pools["north"].fingerprint


def test_a_folder_that_cannot_be_used_says_why(tmp_path: Path, keys: dict[str, Path]) -> None:
    sites = tmp_path / "sites"
    (sites / f"copy{PUBLIC}").write_text((sites / f"west{PUBLIC}").read_text())
    with pytest.raises(FocalError, match="is the public file of 'west'"):
        Pool(sites, keys["north"], META)
    west = json.loads((sites / f"west{PUBLIC}").read_text())
    (sites / f"copy{PUBLIC}").write_text(json.dumps(west | {"name": "copy"}))
    with pytest.raises(FocalError, match="two sites have one key"):
        Pool(sites, keys["north"], META)
    (sites / f"copy{PUBLIC}").write_text("[]")
    with pytest.raises(FocalError, match="is no public identity"):
        Pool(sites, keys["north"], META)
    (sites / f"copy{PUBLIC}").unlink()
    with pytest.raises(FocalError, match=f"no east{PUBLIC} that belongs to"):
        Pool(sites, new_key(tmp_path / "east", "east"), META)
    with pytest.raises(FocalError, match=f"no north{PUBLIC} that belongs to"):
        Pool(sites, new_key(tmp_path / "other", "north"), META)
    (sites / f"west{PUBLIC}").unlink()
    with pytest.raises(FocalError, match="2 public files; counts are added up over 3 sites or more"):
        Pool(sites, keys["north"], META)


def test_a_malformed_sum_is_an_error(tmp_path: Path, keys: dict[str, Path]) -> None:
    pools = contributed(tmp_path, keys)
    for file in keys["west"].parent.glob(f"*{COUNTS}"):
        file.unlink()  # west forgets what it gave
    wrong = counts(2)
    wrong[0, 0, 0] -= 10_000
    Pool(tmp_path / "sites", keys["west"], META).add(wrong)
    with pytest.raises(ProtocolError, match="negative or enormous counts"):
        pools["north"].result()
