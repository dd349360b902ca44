"""A look at all images of a data set: every problem at once, what people should know, nothing decoded twice."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from focal.config import DatasetConfig
from focal.data import load
from focal.data import pictures as reading
from focal.data.examine import Examined, examine
from focal.errors import FocalError

N = 24


def png(i: int, **options: Any) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (8 + i % 3, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG", **options)
    return out.getvalue()


def deep() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900).save(out, "PNG")
    return out.getvalue()


def config(folder: Path, files: dict[str, bytes | None] | None = None, **options: Any) -> DatasetConfig:
    """Images ``0.png`` .. ``23.png``, the last eight of them test rows; two are of one patient. ``files`` are put over
    them, or are gone."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for name, data in ({f"{i}.png": png(i) for i in range(N)} | (files or {})).items():
        if data is not None:
            (images / name).write_bytes(data)
    lines = [f"{i}.png,{'well' if i % 3 else 'sick'},p{i // 2},{'train' if i < 16 else 'test'}" for i in range(N)]
    table = folder / "eyes.csv"
    table.write_text("\n".join(["filename,label,patient,split", *lines]))
    return DatasetConfig(kind="table", table=table, images=images, classes=("well", "sick"), **options)


def looked(made: DatasetConfig, cache: Path | None = None) -> Examined:
    return examine(load(made, 0), cache)


def test_what_there_is(tmp_path: Path) -> None:
    found = looked(config(tmp_path, {"notes.txt": b"x", "0.txt": b"x", "old.jpg": b"x", ".DS_Store": b"x"}))
    assert found.lines() == [
        "rows      24 (16 train, 8 test) of 12 patients or groups",
        "classes   well 10 + 6, sick 6 + 2 (train + test; binary)",
        "positive  sick",
        "images    24 PNG RGB of 8 bits",
        "sizes     6 x 8 to 6 x 10, most often 6 x 8 (8)",
    ]
    assert found.declared("refuse") == 16
    assert found.warnings() == ["3 files beside the images stand in no row: 2 .txt, 1 .jpg"]


def test_every_bad_image_is_named_with_its_reason(tmp_path: Path) -> None:
    bad = {"3.png": png(3)[:60], "17.png": b"", "5.png": deep()}
    with pytest.raises(FocalError) as e:
        looked(config(tmp_path, bad)).usable("refuse")
    assert "3 of 24 images cannot be used" in e.value.message
    for name, why in {"3.png": "cannot be decoded", "17.png": "the file is empty", "5.png": "more than 8 bits"}.items():
        assert any(f"'{name}'" in line and why in line for line in e.value.message.splitlines()), name
    assert "dataset.window" in e.value.hint and "bad_images" not in e.value.hint, "a window would mend one of them"


def test_many_bad_images_are_counted(tmp_path: Path) -> None:
    found = looked(config(tmp_path))
    many = Examined(found.table.take(np.zeros(80, int)), (), {}, dict.fromkeys(range(60), FocalError("x", hint="y")))
    with pytest.raises(FocalError, match="60 of 80.*\n(  x\n){50}  and 10 more\n  -> y$"):
        many.usable("refuse")


def test_bad_images_may_be_skipped_and_settings_that_are_missing_may_not(tmp_path: Path) -> None:
    made = config(tmp_path, {"3.png": b"", "17.png": b"cut", "0.png": None}, bad_images="skip")
    found = looked(made)
    assert found.usable("skip").tolist() == [i for i in range(N) if i not in (0, 3, 17)]
    assert found.declared("skip") == 14
    with pytest.raises(FocalError, match="3 of 24 images cannot be used"):
        found.usable("refuse")
    (tmp_path / "images/5.png").write_bytes(deep())
    with pytest.raises(FocalError, match="1 of 24 images cannot be used"):
        looked(made).usable("skip")


def test_missing_files_are_all_named(tmp_path: Path) -> None:
    made = config(tmp_path)
    for name in ("0.png", "7.png"):
        (tmp_path / f"images/{name}").unlink()
    with pytest.raises(FocalError, match="2 of 24 images of eyes.csv are missing: '0.png', '7.png'"):
        load(made, 0)
    nothing = made.model_copy(update={"images": tmp_path, "bad_images": "skip"})
    with pytest.raises(FocalError, match="24 of 24 images"):
        load(nothing, 0)


def test_one_image_in_several_rows(tmp_path: Path) -> None:
    same = {"1.png": png(0), "17.png": png(4), "6.png": png(2)}
    assert looked(config(tmp_path, same)).warnings() == [
        "3 images stand in several rows, 6 of them",
        "1 images stand in train and in test: scores will be too good",
        "2 images stand under several patients",
        "2 images have different labels in different rows",
    ]


def test_what_no_export_should_have_left(tmp_path: Path) -> None:
    black, line = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (9, 9), (3, 3, 4)).save(black, "PNG")
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(line, "PNG")
    plain = {"4.png": black.getvalue(), "5.png": line.getvalue()}
    made = config(tmp_path, plain).model_copy(update={"classes": ("well", "sick", "worse")})
    cache, found = tmp_path / "cache", looked(made.model_copy(update={"task": "multilabel"}), tmp_path / "cache")
    assert found.warnings() == looked(made, cache).warnings(), "and remembered"
    assert found.warnings() == [
        "1 images are of one colour throughout: was their export cut short?",
        "no row here from which these classes could be learned: worse",
        "no row here from which these classes could be scored: worse",
    ]


def test_what_is_known_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, cache = config(tmp_path, {"3.png": b"cut"}), tmp_path / "state" / "cache"
    first = looked(made, cache)
    read: list[str] = []
    honest = reading.decode

    def counted(data: bytes, where: str, *rest: Any) -> reading.Picture:
        read.append(where)
        return honest(data, where, *rest)

    monkeypatch.setattr("focal.data.sources.decode", counted)
    (tmp_path / "images/9.png").write_bytes(png(99))
    again = looked(made, cache)
    assert sorted(where[-8:] for where in read) == [" '3.png'", " '9.png'"], "the bad one, and the new one"
    assert again.lines() == first.lines() and set(again.problems) == {3}
    assert cache.parent.stat().st_mode & 0o777 == 0o700
    assert (cache.stat().st_mode & 0o777, next(cache.glob("*.sqlite")).stat().st_mode & 0o777) == (0o700, 0o600)
    assert all(name not in next(cache.glob("*.sqlite")).read_bytes() for name in (b"9.png", b"p4"))


def test_progress_counts_rows(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    examine(load(config(tmp_path), 0), None, lambda done, total: told.append((done, total)))
    assert told == [(24, 24)]


def test_test_rows_of_one_label_are_refused_where_they_are_to_be_scored(tmp_path: Path) -> None:
    table = load(config(tmp_path), 0)
    assert table.check_scorable() is table
    well = np.flatnonzero((table.split == "train") | (table.labels[:, 0] == 1))
    with pytest.raises(FocalError, match="all 6 test rows have the same label"):
        table.take(well).check_scorable()


def test_generated_images_are_taken_as_they_are() -> None:
    found = examine(load(DatasetConfig(kind="synthetic", samples=80), 0))
    assert len(found.usable("refuse")) == 80 and found.warnings() == []
