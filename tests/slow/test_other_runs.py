"""The main job in other shapes: labels, layouts, a degree, and parties that are started by hand
in folders of their own."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from agreement import train
from consortium import LOWER, Dataset, Process, cli, config, dataset, runs, said, write_csv

from focal.manifest import Manifest
from focal.reading import read


def test_multilabel_four_institutions_share_a_block_degree_5(tmp_path: Path) -> None:
    """`A;B` labels, a split column whose val rows are ignored because there are test rows,
    an institution column, one refresh more."""
    summary = train(
        tmp_path,
        "multi",
        dataset={"table": str(dataset().multilabel)},
        training={"steps": 2, "degree": 5},
        layout={"class_lanes": 2, "feature_lanes": 2},
        consortium={"institutions": 4, "partition": {"by": "column"}, "share_blocks": True},
    )
    rows = dataset().rows(dataset().multilabel)
    train_rows = sum(r["split"] == "train" for r in rows)
    assert summary["params"]["rows"] == train_rows and summary["params"]["blocks"] == 1
    assert (summary["params"]["feature_lanes"], summary["params"]["class_lanes"], summary["release"]["openings"]) == (
        2,
        2,
        2,
    )
    assert len(summary["auroc"]["institutions"]) == 4 and summary["params"]["degree"] == 5
    manifest = read(Manifest, runs() / "multi" / "manifest.json")
    assert manifest.task == "multilabel" and manifest.classes == ("A", "B", "C")
    site = [m.rows for m in manifest.institutions]
    assert site == [sum(r["split"] == "train" and r["institution"] == f"site-{i}" for r in rows) for i in range(4)]


def test_clinics_and_their_test_results_by_subgroup(tmp_path: Path) -> None:
    """Every party a process, rows and subgroups from a table: one curve over all test rows, wherever they are."""
    rows = [{**row, "Sex": "FM"[i % 2] if i % 5 else ""} for i, row in enumerate(dataset().rows(dataset().binary))]
    clinics = ("clinic-1", "clinic-2", "clinic-3")
    own = {"institutions": 3, "clinics": list(clinics), "share_blocks": True, "pooled_by": ["sex:f,m"]}
    table = str(write_csv(tmp_path / "sexes.csv", rows))
    train(tmp_path, "crowd", dataset={"table": table, "classes": ["well", "sick"]}, consortium=own)
    tested = [row["Sex"] for row in rows if row["split"] == "test"]
    found = [json.loads(path.read_text()) for path in runs().glob("crowd/parties/*/pooled_roc.json")]
    assert len(found) == 6 and all(one == found[0] for one in found), "the clinics have stayed"
    assert (found[0]["sites"], found[0]["clinics"], found[0]["rows"]) == (6, 3, len(tested))
    groups = {name: group["rows"] for name, group in found[0]["subgroups"].items()}
    assert groups == {"sex f": tested.count("F"), "sex m": tested.count("M")} and "" in tested
    assert len(list(runs().glob("crowd/parties/*/pooled_roc.png"))) == 6


def test_binary_with_a_random_projection(tmp_path: Path) -> None:
    summary = train(
        tmp_path,
        "pair",
        dataset={"table": str(dataset().binary), "classes": ["well", "sick"]},
        projection={"kind": "random"},
        layout={"feature_lanes": 1},
    )
    assert summary["params"]["projection"] == "random" and summary["params"]["outputs"] == 1
    manifest = read(Manifest, runs() / "pair" / "manifest.json")
    assert manifest.task == "binary" and manifest.classes == ("well", "sick")


def test_several_machines_by_hand(tmp_path: Path) -> None:
    """Keys, manifest and local files as an operator makes them; each party knows its own folder only;
    a person approves the release."""
    members = ["hub", "keeper-1", "keeper-2", "north", "south", "west"]
    home = {name: tmp_path / name for name in members}
    for name in members:
        made = cli("keys", "new", "--name", name, "--out", home[name])
        assert made.returncode == 0, made.stderr
        assert stat.S_IMODE((home[name] / f"{name}.key.json").stat().st_mode) == 0o600

    tables = _three_tables(home)
    described = config("hands", dataset={"classes": ["healthy", "mild", "moderate", "severe"], "task": "multiclass"})
    described["consortium"] = {"approve": "human"}
    (tmp_path / "hands.yaml").write_text(yaml.safe_dump(described))
    manifest = tmp_path / "manifest.json"
    assert cli("manifest", "new", "--config", tmp_path / "hands.yaml", "--out", manifest).returncode == 0
    port = 20000 + os.getpid() % 20000
    own: dict[str, list[object]] = {
        "hub": ["--role", "server", "--endpoint", f"tcp://127.0.0.1:{port}"],
        **{name: ["--role", "custodian"] for name in members[1:3]},
        **{name: ["--role", "institution", "--rows", n] for name, n in tables.items()},
    }
    for name, options in own.items():
        added = cli("manifest", "add", manifest, *options, "--public", home[name] / f"{name}.public.json")
        assert added.returncode == 0, added.stderr
    for name in members:
        signed = cli("manifest", "sign", manifest, "--keys", home[name] / f"{name}.key.json")
        assert signed.returncode == 0, signed.stderr
    assert "signed by all" in said(signed)

    for name in members:  # everybody gets a copy, and writes the local file by hand
        (home[name] / "manifest.json").write_bytes(manifest.read_bytes())
        own_file: dict[str, Any] = {
            "name": name,
            "keys": str(home[name] / f"{name}.key.json"),
            "state": str(home[name] / "state"),
        }
        if name in tables:
            data = {"kind": "table", "table": str(home[name] / "mine.csv"), "images": str(dataset().images)}
            own_file |= {"data": data, "weights": LOWER["weights"], "device": "cpu", "cache": str(runs() / "cache")}
        (home[name] / "local.yaml").write_text(yaml.safe_dump(own_file))

    roles = {
        "hub": "server",
        "keeper-1": "custodian",
        "keeper-2": "custodian",
        "north": "institution",
        "south": "institution",
    }
    roles["west"] = "institution"
    parties = {
        name: Process(role, home[name] / "manifest.json", home[name] / "local.yaml") for name, role in roles.items()
    }
    try:
        for name in ("keeper-1", "keeper-2"):
            parties[name].reach(lambda e: "waits for: focal approve" in e.get("text", ""))
        assert parties["north"].child.poll() is None and not (home["north"] / "state" / "model.pt").exists()
        assert cli("approve", home["keeper-1"] / "state").returncode == 0
        with pytest.raises(subprocess.TimeoutExpired):  # one of two is not enough
            parties["north"].child.wait(3)
        assert cli("approve", home["keeper-2"] / "state").returncode == 0
        for name, process in parties.items():
            assert process.end() == 0, f"{name}: {process.errors}"
    finally:
        for process in parties.values():
            process.child.kill()
    models = set()
    for name in tables:
        summary = json.loads((home[name] / "state" / "summary.json").read_text())
        assert set(summary["auroc"]) == {"encrypted"} and set(summary["auroc_ci95"]) == {"encrypted"}
        assert "max_abs_weight_error" not in summary
        assert set(summary["bytes"]) == set(members) and summary["bytes"][name]["up"] > 0
        with np.load(home[name] / "state" / "rows.npz") as f:
            models.add(f["weights"].tobytes())
            assert len(f["features"]) == sum(1 for _ in (home[name] / "mine.csv").open()) - 1
    assert len(models) == 1, "the institutions hold different models"
    text = (home["hub"] / "state" / "events.jsonl").read_text()
    assert re.search(r'"phase": "train"', text) and Dataset.PATIENT not in text


def _three_tables(home: dict[str, Path]) -> dict[str, int]:
    """A table of its own for each of three institutions, split by patient; returns their train rows."""
    counts = {}
    rows = dataset().rows()
    for k, name in enumerate(("north", "south", "west")):
        mine = [r for r in rows if int(r["patient"].rpartition("-")[2]) % 3 == k]
        tested = {r["patient"] for r in mine if int(r["patient"].rpartition("-")[2]) // 3 % 3 == 0}
        lines = [
            f"{r['filename']},{r['label']},{r['patient']},{'test' if r['patient'] in tested else 'train'}" for r in mine
        ]
        (home[name] / "mine.csv").write_text("\n".join(["filename,label,patient,split", *lines]) + "\n")
        counts[name] = sum(line.endswith("train") for line in lines)
    return counts
