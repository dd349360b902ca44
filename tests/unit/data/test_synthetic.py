"""The generated images: the same everywhere, different cameras, and a grade that can be seen."""

from __future__ import annotations

import time

import numpy as np

from focal.config import DatasetConfig
from focal.data import load
from focal.data.synthetic import CAMERAS, CLASSES, LESIONS, SIZE, generate, render


def test_every_image_is_a_function_of_seed_and_row() -> None:
    one, other = generate(80, 0), generate(80, 0)
    assert [one.images.sha256(i) for i in range(8)] == [other.images.sha256(i) for i in range(8)]
    assert one.images.sha256(3) != generate(80, 1).images.sha256(3)
    part = one.take([5, 3])
    assert part.images.sha256(1) == one.images.sha256(3), "a part shows the same images as the whole"
    assert one.images.read(0).size == (SIZE, SIZE) and one.images.read(0).mode == "RGB"


def test_the_table_has_patients_cameras_and_all_grades() -> None:
    table = load(DatasetConfig(kind="synthetic", samples=600), 0)
    assert (table.name, table.classes, table.task, len(table)) == ("synthetic", CLASSES, "multiclass", 600)
    assert table.institution is not None and set(table.institution) == {"0", "1", "2"}
    for group in set(table.groups):
        rows = table.groups == group
        assert len(set(table.institution[rows])) == 1 == len(set(table.split[rows])), (
            "one patient, one clinic, one side of the split"
        )
    assert (table.labels[table.train_rows].sum(0) > 20).all() and (table.labels[table.test_rows].sum(0) > 10).all()


def test_cameras_differ_in_colour_and_grades_in_lesions() -> None:
    mean = {
        c: np.mean([np.asarray(render(0, i, 0, camera), float) for i in range(12)], (0, 1, 2))
        for c, camera in enumerate(CAMERAS)
    }
    # Blue is tinted 1, 0.64 and 1.3; gain varies by 3 % an image, so 0.9 % in a mean of 12.
    assert mean[1][2] < 0.8 * mean[0][2] < 0.8 * mean[2][2]

    plain = CAMERAS[0].__class__((1.0, 1.0, 1.0), 0.0, 0.3, 0.0, CAMERAS[0].grades)

    def bright(grade: int) -> float:
        """Share of pixels as blue as exudates (and the optic disc): blue 150 before blur, ground 46."""
        return float(np.mean([(np.asarray(render(0, i, grade, plain))[..., 2] > 120).mean() for i in range(24)]))

    def dark(grade: int) -> float:
        """Share of pixels as dark as haemorrhages: red 86, ground 196, vessels 140, inside the fundus."""
        pixels = [np.asarray(render(0, i, grade, plain))[20:76, 20:76, 0] for i in range(24)]
        return float(np.mean([(p < 115).mean() for p in pixels]))

    assert bright(2) > bright(3) > bright(1), "exudates mark the moderate grade"
    assert dark(3) > dark(2) > dark(1) > dark(0), "haemorrhages the severe one, microaneurysms the mild one"
    assert all(lesion.expected[0] < min(lesion.expected[1:]) for lesion in LESIONS)


def test_a_demo_is_rendered_in_seconds() -> None:
    images = generate(1500, 0).images
    started = time.process_time()
    for i in range(100):
        images.read(i)
    # 1500 images must take less than 10 s of one core: 0.67 s for 100. It takes about 0.15 s.
    assert time.process_time() - started < 0.67
