"""Train from Python: a whole consortium on this machine, then its model on images that it has not seen.

    python examples/train.py                  # the packaged configuration `demo`
    python examples/train.py --small          # the same in miniature
    python examples/train.py --config my.yaml # your own file, or another packaged name

The run's folder is runs/<name>, as with the command `focal train`; interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import focal
from focal import configs
from focal.data.synthetic import CLASSES, generate
from focal.reading import read

SMALL = {
    "name": "demo-small",
    "lower": {"model": "test_vit", "cut": "pooled", "image_size": 64},  # timm's own miniature ViT
    "dataset": {"samples": 240},
    "projection": {"features": 32},
    "training": {"steps": 2},
    "consortium": {"custodians": 2},
}


def miniature(config: focal.RunConfig) -> focal.RunConfig:
    """``config`` with fewer and smaller images, columns, steps and custodians. Settings are frozen: change a copy."""
    plain = config.model_dump()
    for key, change in SMALL.items():
        plain[key] = plain[key] | change if isinstance(change, dict) else change
    return focal.RunConfig.model_validate(plain)


def new_images(folder: Path, count: int) -> Path:
    """Another hospital's images, of patients that are in no run: a folder, and a table of what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    made = generate(count, seed=1)  # the demo's are those of seed 0
    with (folder / "table.csv").open("w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["filename", "label", "patient"])
        for i in range(count):
            made.images.read(i).save(folder / f"{i:03d}.png")
            rows.writerow([f"{i:03d}.png", CLASSES[made.labels[i].argmax()], made.groups[i]])
    return folder / "table.csv"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--config", default="demo")
    arguments.add_argument("--small", action="store_true")
    arguments.add_argument("--runs", type=Path, default=Path("runs"))
    given = arguments.parse_args()

    config = read(focal.RunConfig, configs.find(given.config))
    if given.small:
        config = miniature(config)
    run = focal.train(config, runs=given.runs, say=print)
    auroc = run.summary.auroc
    print(f"AUROC: encrypted {auroc.encrypted:.3f}, the same training in the clear {auroc.plaintext_twin:.3f}")
    for name, alone in (auroc.institutions or {}).items():
        print(f"       {name} alone {alone:.3f}")

    if config.dataset.kind == "synthetic":
        table = new_images(run.folder / "new", 60 if given.small else 200)
        found = focal.evaluate(run, table, table.parent)
        low, high = found["measures"]["auroc"]["ci95"]
        print(f"on {found['n']} new images: AUROC {found['measures']['auroc']['macro']:.3f} ({low:.3f} to {high:.3f})")
        predicted = focal.predict(run, table.parent, run.folder / "predictions.csv")
        print(f"{len(predicted.probabilities)} predictions in {run.folder / 'predictions.csv'}")


if __name__ == "__main__":
    main()
