"""Generated fundus images: the embedded default, so that a first run downloads nothing.

Each image is a retina seen by one of three cameras::

    patient --> eye --> fundus disc, optic disc, vessel tree, lesions --> camera --> image
                                                                 |          |
                    grade 0 healthy, 1 mild: microaneurysms,  <--+          +--> colour, vignetting, blur,
                    2 moderate: exudates too,                                    gain, noise
                    3 severe: many haemorrhages

The images are no medical data and prove nothing about medicine; they are hard in the ways that matter to the
system: lesion counts of neighbouring grades overlap, cameras differ more than grades do, and each camera's
clinic sees another mix of grades, so that one institution alone learns less than all of them together. Every
image is a pure function of (seed, row).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from focal.data.pictures import Picture
from focal.data.table import Table, seeded_split

CLASSES = ("healthy", "mild", "moderate", "severe")
SIZE = 96
TEST_FRACTION = 0.3
IMAGES_PER_PATIENT = 4
"""Two of each eye, as in screening programmes."""


@dataclass(frozen=True)
class Camera:
    """What one institution's fundus camera does to every image."""

    tint: tuple[float, float, float]
    """Gain of red, green, blue."""
    vignetting: float
    """Share of brightness lost at the rim."""
    blur: float
    """Gaussian radius in pixels."""
    noise: float
    """Standard deviation, on the 0..255 scale."""
    grades: tuple[float, float, float, float]
    """Mix of grades among the institution's patients."""


CAMERAS = (
    Camera((1.00, 1.00, 1.00), 0.25, 0.3, 4.0, (0.50, 0.30, 0.14, 0.06)),
    Camera((1.15, 0.85, 0.64), 0.40, 0.6, 6.0, (0.15, 0.42, 0.33, 0.10)),
    Camera((0.82, 1.06, 1.30), 0.30, 0.4, 5.0, (0.25, 0.08, 0.27, 0.40)),
)
"""Their order is the ``institution`` column: "0", "1", "2"."""


@dataclass(frozen=True)
class Lesion:
    """One kind of lesion: how many are expected at each grade, and what they look like."""

    expected: tuple[float, float, float, float]
    radius: tuple[float, float]
    """Smallest and largest, in pixels of the finished image."""
    colour: tuple[int, int, int]


LESIONS = (
    Lesion((0.5, 9.0, 9.0, 9.0), (0.8, 1.6), (96, 20, 14)),
    Lesion((0.3, 0.8, 12.0, 6.0), (1.2, 3.2), (250, 226, 150)),
    Lesion((0.2, 0.8, 4.0, 16.0), (1.8, 4.2), (86, 14, 10)),
)
"""Microaneurysms, exudates, haemorrhages: as in diabetic retinopathy,
the first appear first and the last mean danger."""

SPREAD = 4.0
"""Shape of the gamma factor on lesion counts: smaller is more overlap."""

GROUND = (196.0, 92.0, 46.0)
VESSEL = (140, 44, 28)


def generate(samples: int, seed: int) -> Table:
    """A multiclass table of ``samples`` images, about four of each patient, split by patient; (h, w) is (96, 96)."""
    rng = np.random.default_rng([seed, 3])
    patient = np.arange(samples) // IMAGES_PER_PATIENT
    count = int(patient[-1]) + 1
    camera = rng.permutation(np.arange(count) % len(CAMERAS))
    grade = np.array([rng.choice(len(CLASSES), p=CAMERAS[c].grades) for c in camera])
    groups = np.array([f"patient-{p}" for p in patient], dtype=np.str_)
    return Table(
        name="synthetic",
        classes=CLASSES,
        task="multiclass",
        labels=np.eye(len(CLASSES), dtype=np.uint8)[grade[patient]],
        groups=groups,
        split=seeded_split(groups, TEST_FRACTION, seed, "synthetic"),
        institution=camera[patient].astype(np.str_),
        filenames=np.array([f"synthetic-{i}.png" for i in range(samples)], dtype=np.str_),
        columns={},
        images=SyntheticImages(seed, np.arange(samples), grade[patient], camera[patient]),
    )


@dataclass(frozen=True)
class SyntheticImages:
    """Renders on demand; arrays are (n,)."""

    seed: int
    index: NDArray[np.int64]
    """Number of the image in the whole set, which with the seed determines it."""
    grade: NDArray[np.int64]
    camera: NDArray[np.int64]

    def read(self, i: int) -> Image.Image:
        return render(self.seed, int(self.index[i]), int(self.grade[i]), CAMERAS[self.camera[i]])

    def sha256(self, i: int) -> str:
        return self.keyed(i)[0]

    def keyed(self, i: int) -> tuple[str, Callable[[], Picture]]:
        image = self.read(i)
        return hashlib.sha256(image.tobytes()).hexdigest(), lambda: Picture(image, "generated", "RGB", 8)

    def take(self, rows: NDArray[np.int64]) -> SyntheticImages:
        return replace(self, index=self.index[rows], grade=self.grade[rows], camera=self.camera[rows])


def render(seed: int, index: int, grade: int, camera: Camera) -> Image.Image:
    """One RGB image (96, 96). The eye (disc, vessels) depends on ``index // 2``: both images of an eye
    show the same vessels."""
    eye = np.random.default_rng([seed, 4, index // 2])
    shot = np.random.default_rng([seed, 5, index])
    canvas = Image.new("RGB", (2 * SIZE, 2 * SIZE), tuple(int(v) for v in np.multiply(GROUND, eye.uniform(0.95, 1.05))))
    draw = ImageDraw.Draw(canvas)
    side = 1 if (index // 2) % 2 else -1
    disc = SIZE * (1 + side * eye.uniform(0.42, 0.52)), SIZE * eye.uniform(0.92, 1.08)
    _vessels(draw, disc, -side, eye)
    _dot(draw, disc, SIZE * eye.uniform(0.15, 0.19), (250, 205, 130))
    _dot(draw, (2 * SIZE - disc[0], disc[1]), SIZE * 0.14, tuple(int(0.8 * v) for v in GROUND))
    _lesions(draw, grade, shot)
    small = canvas.resize((SIZE, SIZE), Image.Resampling.BOX).filter(
        ImageFilter.GaussianBlur(camera.blur * shot.uniform(0.8, 1.2))
    )
    return Image.fromarray(_expose(np.asarray(small, np.float32), camera, shot))


def _vessels(draw: ImageDraw.ImageDraw, disc: tuple[float, float], towards: int, rng: np.random.Generator) -> None:
    """Four arcades leave the optic disc, wander, thin out and branch."""
    for angle in (0.9, 0.45, -0.45, -0.9):
        stack = [(disc, angle + rng.normal(0, 0.1), 5.0)]
        while stack:
            (x, y), heading, width = stack.pop()
            bends = rng.normal(0, 0.12, 8) - 0.06 * np.sign(heading)
            for bend in bends:
                heading += bend
                end = x + towards * 12 * np.cos(heading), y + 12 * np.sin(heading)
                draw.line([(x, y), end], fill=VESSEL, width=max(1, round(width)))
                (x, y), width = end, 0.93 * width
            if width > 1.6:
                stack += [((x, y), heading + turn, 0.75 * width) for turn in (0.5, -0.4)]


def _lesions(draw: ImageDraw.ImageDraw, grade: int, rng: np.random.Generator) -> None:
    """Spots scattered over the fundus; the counts are overdispersed, so that neighbouring grades overlap."""
    for lesion in LESIONS:
        for _ in range(rng.poisson(lesion.expected[grade] * rng.gamma(SPREAD, 1 / SPREAD))):
            distance, angle = SIZE * 0.85 * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
            centre = SIZE + distance * np.cos(angle), SIZE + distance * np.sin(angle)
            _dot(draw, centre, 2 * rng.uniform(*lesion.radius), lesion.colour)


def _dot(draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, colour: tuple[int, ...]) -> None:
    (x, y), r = centre, radius
    draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


@lru_cache(maxsize=1)
def _radius() -> NDArray[np.float32]:
    """(SIZE, SIZE, 1) distance from the centre; 1 is the rim of the fundus."""
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) * 2 / SIZE - 1
    return (np.hypot(axis[:, None], axis[None, :])[..., None] / 0.96).astype(np.float32)


def _expose(pixels: NDArray[np.float32], camera: Camera, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(h, w, 3) 0..255: tint, gain, vignetting and sensor noise inside a black rim."""
    radius = _radius()
    gain = rng.normal(1.0, 0.03) * np.asarray(camera.tint, np.float32)
    light = gain.astype(np.float32) * (1 - np.float32(camera.vignetting) * radius**2)
    noise = rng.normal(0.0, camera.noise, pixels.shape[:2])[..., None].astype(np.float32)
    return (np.clip(pixels * light + noise, 0, 255) * (radius < 1)).astype(np.uint8)
