"""Whole slides: tiles of tissue at the magnification that is asked for, pooled, kept, and read a few at a time."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from focal.config import DatasetConfig, InteractiveRunConfig, LowerConfig, SlidesConfig
from focal.data import load
from focal.data.pictures import ImageError
from focal.data.slides import AHEAD, SlideImages, tissue
from focal.errors import FocalError
from focal.segments.lower import build_lower, preprocess
from focal.training.features import compute_features

pytest.importorskip("openslide", reason="slides are tested where OpenSlide is installed")
tifffile = pytest.importorskip("tifffile", reason="the slides of this test are written with tifffile")

SIDE = 1024
PINK = (200, 80, 140)


def slide(path: Path, tint: int = 0, mpp: float | None = 0.5, blank: bool = False) -> Path:
    """1024 x 1024 at 0.5 micrometres, a pyramid of 3 levels. Left of the middle is tissue, right of it glass;
    each 256 x 256 field of the tissue has a red of its own."""
    base = np.full((SIDE, SIDE, 3), 240, np.uint8)
    if not blank:
        base[:, : SIDE // 2] = PINK
        for row in range(4):
            for column in range(2):
                base[row * 256 : (row + 1) * 256, column * 256 : (column + 1) * 256, 0] = tint + 160 + row * 20 + column
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as t:
        for factor in (1, 2, 4):
            t.write(
                base[::factor, ::factor],
                tile=(128, 128),
                photometric="rgb",
                compression="zlib",
                subfiletype=int(factor > 1),
                **resolution,
            )
    return path


def slides(folder: Path, names: list[str], **settings: object) -> SlideImages:
    return SlideImages(folder, np.array(names), SlidesConfig(**settings))


def reds(tiles: list[Image.Image]) -> list[int]:
    return [int(np.asarray(tile)[..., 0].mean().round()) for tile in tiles]


def test_tiles_of_tissue_come_at_the_magnification_that_is_asked_for(tmp_path: Path) -> None:
    slide(tmp_path / "a.tif")
    fields = [160 + row * 20 + column for row in range(4) for column in range(2)]
    for mpp, side in ((0.5, 256), (1.0, 128), (2.0, 64)):
        found = list(slides(tmp_path, ["a.tif"], mpp=mpp, tile=side).tiles(0))
        assert all(tile.size == (side, side) and tile.mode == "RGB" for tile in found)
        assert reds(found) == fields, f"at {mpp} micrometres a pixel a tile is one field"
    assert len(list(slides(tmp_path, ["a.tif"], mpp=0.5, tile=64).tiles(0))) == 16 * 8
    few = reds(list(slides(tmp_path, ["a.tif"], mpp=0.5, tile=256, max_tiles=3).tiles(0)))
    assert len(few) == 3 and few[0] == fields[0] and few[-1] == fields[-1], "evenly spread"


def test_half_a_tile_of_tissue_is_enough_or_not(tmp_path: Path) -> None:
    slide(tmp_path / "a.tif")
    whole, half = (len(list(slides(tmp_path, ["a.tif"], tile=340, tissue=t).tiles(0))) for t in (0.9, 0.4))
    assert (whole, half) == (3, 6)


def test_what_is_wrong_with_a_slide_is_one_sentence(tmp_path: Path) -> None:
    slide(tmp_path / "unsaid.tif", mpp=None)
    slide(tmp_path / "blank.tif", blank=True)
    slide(tmp_path / "good.tif")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "good.tif").read_bytes()[:3000])
    (tmp_path / "text.svs").write_text("no slide")
    names = ["unsaid.tif", "blank.tif", "cut.tif", "text.svs", "gone.svs", "good.tif"]
    images = slides(tmp_path, names)
    for row, kind, says in (
        (0, FocalError, "does not say how many micrometres.*\n.*base_mpp"),
        (1, ImageError, "no tile of which 50% is tissue"),
        (2, ImageError, "slide 'cut.tif' "),
        (3, ImageError, "no slide format that OpenSlide knows"),
        (4, ImageError, "slide 'gone.svs' "),
    ):
        with pytest.raises(kind, match=says):
            list(images.tiles(row))
    with pytest.raises(FocalError, match="coarser than asked for"):
        list(slides(tmp_path, names, mpp=0.1).tiles(5))
    with pytest.raises(FocalError, match="is a whole slide: it is many tiles"):
        images.read(5)
    with pytest.raises(ImageError, match="'gone.svs' cannot be read"):
        images.sha256(4)
    key, overview = images.keyed(5)
    assert overview().image.size == (SIDE, SIDE) and key == images.sha256(5)
    assert len(list(slides(tmp_path, names, base_mpp=0.5).tiles(0))) > 0


def test_glass_is_no_tissue_and_noise_on_glass_neither() -> None:
    noise = np.random.default_rng(0).integers(236, 241, (64, 64, 3)).astype(np.uint8)
    assert not tissue(Image.fromarray(noise)).any()
    noise[:32] = PINK
    found = tissue(Image.fromarray(noise))
    assert found[:32].all() and not found[32:].any()


def test_tiles_are_read_a_few_ahead_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openslide

    count, region = [0], openslide.OpenSlide.read_region

    def read_region(self: object, *arguments: object) -> Image.Image:
        count[0] += 1
        return region(self, *arguments)

    slide(tmp_path / "a.tif")
    images = slides(tmp_path, ["a.tif"], tile=32)
    monkeypatch.setattr(openslide.OpenSlide, "read_region", read_region)
    tiles = images.tiles(0)
    for taken in range(1, 100):
        next(tiles)
        assert count[0] <= taken + AHEAD + 2, "the overview may be read so too"
    tiles.close()
    assert count[0] < 32 * 16, "what nobody asks for is not read"


def test_a_table_of_slides_becomes_means_of_tiles_and_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    lines = ["filename,label,split"]
    for i in range(4):
        slide(folder / f"{i}.tif", tint=8 * i)
        lines.append(f"{i}.tif,{'AB'[i % 2]},{'train' if i < 2 else 'test'}")
    (tmp_path / "slides.csv").write_text("\n".join(lines))
    config = DatasetConfig(
        kind="slides",
        table=tmp_path / "slides.csv",
        images=folder,
        group="none",
        slides=SlidesConfig(mpp=1.0, tile=64),
    )
    table = load(config, 0)
    lower = LowerConfig(family="torchvision", model="squeezenet1_1", image_size=32, weights="random:1")
    segment, _ = build_lower(lower, lower.weights)
    found = compute_features(segment, table, range(4), device="cpu", cache=tmp_path / "cache")
    assert isinstance(table.images, SlideImages)
    with torch.inference_mode():
        tiles = torch.stack([preprocess(tile, segment.spec) for tile in table.images.tiles(2)])
        expected = segment(tiles).mean(0).numpy()
    assert np.allclose(found[2], expected, atol=1e-5) and not np.allclose(found[2], found[1], atol=1e-5)
    shown: list[tuple[int, int]] = []
    again = compute_features(
        segment, table, range(4), device="cpu", cache=tmp_path / "cache", progress=lambda *at: shown.append(at)
    )
    assert np.array_equal(again, found) and shown == [(4, 4)], "nothing is computed twice"
    other = SlideImages(folder, table.filenames, SlidesConfig(mpp=2.0, tile=64))
    assert other.sha256(0) != table.images.sha256(0), "other tiles are other features"
    with zipfile.ZipFile(tmp_path / "slides.zip", "w") as z:
        for i in range(4):
            z.write(folder / f"{i}.tif", f"{i}.tif")
    with pytest.raises(FocalError, match="slides cannot be read inside a zip"):
        load(config.model_copy(update={"images": tmp_path / "slides.zip"}), 0)


def test_the_interactive_protocol_takes_no_slides(tmp_path: Path) -> None:
    dataset = {"kind": "slides", "table": tmp_path / "a.csv", "images": tmp_path}
    with pytest.raises(ValueError, match="'slides' belongs to protocol blind"):
        InteractiveRunConfig.model_validate({"name": "x", "dataset": dataset})
