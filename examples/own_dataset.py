"""Your own images: a CSV, a folder and a configuration. This script makes all three, and trains on them.

    python examples/own_dataset.py            # 480 images
    python examples/own_dataset.py --small    # 180 images

::

    own/images/p017-1.png ...     own/table.csv                             own/shapes.yaml --focal.train--> runs/shapes
                                  filename,label,patient,split,institution
                                  p017-1.png,round,p017,train,west

Replace the three functions by your files. A patient is never split between train and test; without a `split` column a
quarter of the patients is held out; without `institution` patients are dealt at random (`partition: {by: patient}`).
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import focal

SITES = ("north", "south", "west")
CONFIGURATION = """\
name: shapes
dataset:
  kind: table
  table: {folder}/table.csv
  images: {folder}/images       # a folder or a zip
lower:                          # up to where the network stays at home, and whose weights
  family: timm
  model: test_vit
  cut: pooled
  image_size: 64
  weights: random:0             # `pretrained` or a file is what you want: these are random
projection:
  features: 32                  # columns that are encrypted
  bound: 4.0
training:
  steps: {steps}
consortium:
  institutions: [north, south, west]
  custodians: 2
  partition: {{by: column}}       # the table says whose rows they are
"""


def draw(shape: str, rng: np.random.Generator) -> Image.Image:
    """One image, 64 x 64: a round or a square spot on a noisy ground."""
    image = Image.fromarray(rng.integers(60, 120, (64, 64, 3), dtype=np.uint8))
    x, y, size = rng.integers(8, 30), rng.integers(8, 30), rng.integers(14, 24)
    colour = tuple(int(c) for c in rng.integers(140, 255, 3))
    paint = ImageDraw.Draw(image).ellipse if shape == "round" else ImageDraw.Draw(image).rectangle
    paint([x, y, x + size, y + size], fill=colour)
    return image


def write_data(folder: Path, patients: int) -> None:
    """Two images of each patient, and the table."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "table.csv").open("w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["filename", "label", "patient", "split", "institution"])
        for p in range(patients):
            shape, site = ("round", "square")[p // 2 % 2], SITES[p % 3]
            for i in (1, 2):
                name = f"p{p:03d}-{i}.png"
                draw(shape, rng).save(folder / "images" / name)
                rows.writerow([name, shape, f"p{p:03d}", "test" if p % 5 == 4 else "train", site])


def write_configuration(folder: Path, steps: int) -> Path:
    path = folder / "shapes.yaml"
    path.write_text(CONFIGURATION.format(folder=folder.absolute(), steps=steps))
    return path


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--folder", type=Path, default=Path("own"))
    arguments.add_argument("--runs", type=Path, default=Path("runs"))
    arguments.add_argument("--small", action="store_true")
    given = arguments.parse_args()

    write_data(given.folder, patients=90 if given.small else 240)
    configuration = write_configuration(given.folder, steps=2 if given.small else 5)
    run = focal.train(configuration, runs=given.runs, say=print)
    auroc = run.summary.auroc
    print(f"AUROC: encrypted {auroc.encrypted:.3f}, the same training in the clear {auroc.plaintext_twin:.3f}")
    print(f"look at: focal report {run.folder}")


if __name__ == "__main__":
    main()
