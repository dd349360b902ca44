"""Whole slides: one row of a table is a slide, of which the tiles that show tissue stand for it.

::

    slide (a pyramid, gigabytes)                    at the chosen micrometres a pixel
      overview --saturation, Otsu--> tissue mask --> grid of tiles, enough tissue --> at most max_tiles, evenly spread
                                                                                        |
                          mean over tiles <-- features <-- lower segment <-- tiles(i) --+  read one by one
                          (focal.training.slides)

Tiles are read while the ones before them are computed; no more than :data:`AHEAD` of them are held at once. The regions
that are read come from the level of the pyramid that is next finer than what is asked for.

Tissue: Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9 (1979), on the saturation;
the floor and the non-overlapping grid are those of CLAM (Lu et al., Nature Biomedical Engineering 5 (2021)).
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from focal.config import SlidesConfig
from focal.data.pictures import MOST_PIXELS, ImageError, Picture
from focal.errors import FocalError
from focal.extras import require

OVERVIEW = 1024
"""Longest side of the picture in which tissue is looked for."""
SATURATED = 8
"""Of 255: what is less coloured is glass, whatever Otsu finds on an empty slide."""
AHEAD = 64
"""Tiles that are read before they are asked for."""
READERS = 2


@dataclass(frozen=True)
class SlideImages:
    """Whole slides of a folder. Safe in threads and processes: a slide is opened where it is read."""

    folder: Path
    names: NDArray[np.str_]
    settings: SlidesConfig

    def keyed(self, i: int) -> tuple[str, Callable[[], Picture]]:
        """The hash, and what gives the overview of slide ``i``, to look at: nothing is trained on it."""
        return self.sha256(i), lambda: self._overview(i)

    def read(self, i: int) -> Image.Image:
        raise FocalError(
            f"{self._where(i)} is a whole slide: it is many tiles, and here one picture is needed",
            hint="slides are trained on in blind runs; for other uses cut them into images",
        )

    def tiles(self, i: int) -> Iterator[Image.Image]:
        """RGB tiles of tissue of slide ``i``, (tile, tile) each, row by row. At least one, or :class:`ImageError`."""
        where, side = self._where(i), self.settings.tile
        with self._opened(i) as slide:
            scale = self.settings.mpp / self._base_mpp(slide, where)
            if scale < 0.99:
                raise FocalError(
                    f"{where} has {self._base_mpp(slide, where):.3g} micrometres a pixel, coarser than asked for",
                    hint="set 'dataset.slides.mpp' to what all slides have",
                )
            level = slide.get_best_level_for_downsample(scale * 1.01)
            region = max(1, round(side * scale / slide.level_downsamples[level]))

            def read(corner: tuple[int, int]) -> Image.Image:
                found = slide.read_region(corner, level, (region, region))
                return _on_white(found).resize((side, side), Image.Resampling.BOX if region > side else None)

            corners = self._corners(slide, where, side * scale)
            with ThreadPoolExecutor(READERS) as pool:
                waiting: deque[Future[Image.Image]] = deque()
                try:
                    for corner in corners:
                        waiting.append(pool.submit(read, corner))
                        if len(waiting) >= AHEAD:
                            yield waiting.popleft().result()
                    while waiting:
                        yield waiting.popleft().result()
                finally:
                    for left in waiting:
                        left.cancel()

    def sha256(self, i: int) -> str:
        """Of the file (and, for formats that keep pixels in a folder beside it, of that folder's), and the settings."""
        path = self.folder / str(self.names[i])
        beside = path.with_suffix("")
        digest = hashlib.sha256(json.dumps(self.settings.model_dump(mode="json"), sort_keys=True).encode())
        try:
            for part in (path, *(sorted(p for p in beside.rglob("*") if p.is_file()) if beside.is_dir() else ())):
                with part.open("rb") as f:
                    for piece in iter(lambda: f.read(1 << 22), b""):  # noqa: B023
                        digest.update(piece)
        except OSError as e:
            raise ImageError(f"{self._where(i)} cannot be read ({e.strerror})", hint="put the file back") from None
        return digest.hexdigest()

    def take(self, rows: NDArray[np.int64]) -> SlideImages:
        return replace(self, names=self.names[rows])

    def _overview(self, i: int) -> Picture:
        with self._opened(i) as slide:
            kind = str(slide.properties.get("openslide.vendor") or "slide")
            return Picture(_overview(slide, self._where(i)), kind, "RGB", 8)

    def _where(self, i: int) -> str:
        return f"{self.folder}: slide '{self.names[i]}'"

    @contextmanager
    def _opened(self, i: int) -> Iterator[Any]:
        require("slides", "'kind: slides'")
        import openslide

        try:
            with openslide.OpenSlide(self.folder / str(self.names[i])) as slide:
                yield slide
        except openslide.OpenSlideUnsupportedFormatError:
            raise ImageError(
                f"{self._where(i)} is in no slide format that OpenSlide knows",
                hint="remove its line from the table, or read single pictures with 'kind: table'",
            ) from None
        except (openslide.OpenSlideError, OSError) as e:
            raise ImageError(
                f"{self._where(i)} cannot be read ({str(e)[:100]})", hint="replace the file, or remove its line"
            ) from None

    def _base_mpp(self, slide: Any, where: str) -> float:
        """Micrometres a pixel of the largest picture, which the scanner writes into the file."""
        said = slide.properties.get("openslide.mpp-x")
        if self.settings.base_mpp is not None:
            return self.settings.base_mpp
        try:
            found = float(said)
        except (TypeError, ValueError):
            found = 0.0
        if not 0.01 < found < 100:
            raise FocalError(
                f"{where} does not say how many micrometres a pixel of it is",
                hint="set 'dataset.slides.base_mpp' (0.25 for a scan at 40x, 0.5 at 20x)",
            )
        return found

    def _corners(self, slide: Any, where: str, step: float) -> list[tuple[int, int]]:
        """Upper left corners, in pixels of the largest picture, of the tiles (``step`` wide there) that are used."""
        width, height = slide.dimensions
        mask = tissue(_overview(slide, where))
        sums = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # of all pixels above and to the left
        columns, rows = (np.arange(int(size // step) + 1) * step for size in (width, height))
        x = np.rint(columns * (mask.shape[1] / width)).astype(int)
        y = np.rint(rows * (mask.shape[0] / height)).astype(int)
        inside = sums[np.ix_(y[1:], x[1:])] - sums[np.ix_(y[:-1], x[1:])]
        inside = inside - sums[np.ix_(y[1:], x[:-1])] + sums[np.ix_(y[:-1], x[:-1])]
        area = np.maximum(np.outer(np.diff(y), np.diff(x)), 1)
        at = np.argwhere(inside >= self.settings.tissue * area)
        if not len(at):
            raise ImageError(
                f"{where} has no tile of which {self.settings.tissue:.0%} is tissue",
                hint="remove its line from the table, or lower 'dataset.slides.tissue' or '.mpp'",
            )
        if len(at) > self.settings.max_tiles:
            at = at[np.linspace(0, len(at) - 1, self.settings.max_tiles).round().astype(int)]
        return [(round(columns[column]), round(rows[row])) for row, column in at]


def tissue(overview: Image.Image) -> NDArray[np.bool_]:
    """(h, w) of an RGB overview: where it is more coloured than glass."""
    saturation = np.asarray(overview.convert("HSV"))[..., 1]
    return saturation > max(SATURATED, _otsu(np.bincount(saturation.reshape(-1), minlength=256)))


def _otsu(histogram: NDArray[np.int64]) -> int:
    """The value up to which one of two classes reaches, whose means are as far apart as can be."""
    below = histogram.cumsum()
    moments = (histogram * np.arange(256)).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moments[-1] * below / below[-1] - moments) ** 2 / (below * above)
    return int(np.nanargmax(np.where(below * above > 0, between, -1)))


def _overview(slide: Any, where: str) -> Image.Image:
    """At most :data:`OVERVIEW` pixels wide and high. Read from the pyramid: a slide without one would be read whole."""
    scale = max(slide.dimensions) / OVERVIEW
    width, height = slide.level_dimensions[slide.get_best_level_for_downsample(scale)]
    if width * height > MOST_PIXELS:
        raise FocalError(f"{where} is no pyramid: it has no small overview", hint="save it as a pyramidal TIFF")
    return slide.get_thumbnail((OVERVIEW, OVERVIEW)).convert("RGB")


def _on_white(region: Image.Image) -> Image.Image:
    """RGB; where a scanner did not look, there is glass."""
    ground = Image.new("RGBA", region.size, "white")
    return Image.alpha_composite(ground, region).convert("RGB")
