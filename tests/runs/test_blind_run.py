"""The main job with real processes: `focal train` on small images,
and the same roles by hand in folders of their own."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from agreement import check_agreement
from consortium import ENV, Dataset, Finished, cli, dataset, finished
from patience import PATIENCE
from places import CONTRACT

from focal.measure.metrics import macro_auroc
from focal.segments.projection import Projection


@pytest.fixture(scope="module")
def run() -> Finished:
    return finished()


# --------------------------------------------------------------------------- one command


def test_train_meets_the_result_contract(run: Finished) -> None:
    check_agreement(run.folder)
    if CONTRACT.exists():
        checked = subprocess.run(
            [sys.executable, CONTRACT, run.folder], capture_output=True, text=True, timeout=PATIENCE
        )
        assert checked.returncode == 0, checked.stdout
    summary = run.summary
    assert summary["protocol"] == "blind" and summary["dataset"] == "eyes" and summary["steps"] == 2
    assert summary["security_bits"] >= 128 and summary["release"]["flooding_bits"] >= 30
    assert summary["release"]["openings"] == summary["params"].get("class_groups", 1)
    assert set(summary["auroc"]["institutions"]) == {"hospital-a", "hospital-b", "hospital-c"}
    assert set(summary["bytes"]) == {"server", "custodian-1", "custodian-2", "hospital-a", "hospital-b", "hospital-c"}
    for name, both in summary["bytes"].items():
        for way in ("up", "down"):
            assert both[way] == sum(phase[way] for phase in both["by_phase"].values()), name
    assert summary["bytes"]["server"]["down"] == sum(b["up"] for n, b in summary["bytes"].items() if n != "server")
    for plot in ("roc.png", "per_class.png", "timeline.png"):
        assert (run.folder / plot).stat().st_size > 1000


def test_the_summary_says_who_verifies(run: Finished) -> None:
    assert run.summary["verify"] == {"custodian-1": "lockstep", "custodian-2": "off"}


def test_the_run_says_what_it_does_not_protect(run: Finished) -> None:
    off = all(m.verify == "off" for m in run.manifest.custodians)
    assert ("verify: off" in run.output) == off
    assert "Traceback" not in run.output


def test_every_institution_has_the_roc_curve_of_all_sites_and_no_one_a_score(run: Finished) -> None:
    """Histograms by secure sum: the AUROC of all test rows, within the bound that the histograms state."""
    rows = [np.load(path) for path in sorted(run.folder.glob("parties/*/rows.npz"))]
    projection = Projection.from_bytes((run.party("hospital-a") / "projection.bin").read_bytes())
    held = [r["split"] == "test" for r in rows]
    scores = [projection.apply(r["features"][own]) @ r["weights"] for r, own in zip(rows, held, strict=True)]
    exact = macro_auroc(
        np.concatenate([r["labels"][own] for r, own in zip(rows, held, strict=True)]),
        np.concatenate(scores),
        "multiclass",
    )
    pooled = [json.loads(path.read_text()) for path in sorted(run.folder.glob("parties/hospital-*/pooled_roc.json"))]
    assert len(pooled) == 3 and pooled[0] == pooled[1] == pooled[2]
    assert len(list(run.folder.glob("parties/hospital-*/pooled_roc.png"))) == 3
    assert abs(pooled[0]["auroc"] - exact) <= pooled[0]["bound"] + 1e-12 < 0.02
    assert pooled[0]["rows"] == sum(map(len, scores)) and pooled[0]["sites"] == 3
    assert f"all 3 sites ({pooled[0]['rows']})" in run.output
    for part in scores:  # the order of float64 bytes on a wire
        for name in ("server", "custodian-1", "hospital-a", "hospital-b", "hospital-c"):
            assert not any(part[i, :2].tobytes() in run.received(name) for i in range(len(part)))


def test_upload_bytes_are_those_of_the_chunks(run: Finished) -> None:
    """Each institution sends each ciphertext once: blobs, records and requests differ from the chunks' bytes
    by less than 1 percent."""
    size = {p.parent.name + p.name: p.stat().st_size for p in (run.party("server") / "blobs").glob("??/*")}
    for name in ("hospital-a", "hospital-b", "hospital-c"):
        own = sum(s for d, s in size.items() if (run.party(name) / "blobs" / d[:2] / d[2:]).exists())
        sums = sum(run.summary["bytes"][name]["by_phase"][phase]["up"] for phase in ("moments", "release"))
        sent = run.summary["bytes"][name]["by_phase"]["upload"]["up"]
        assert 0 < own - sums <= sent + 1000 and sent < 1.01 * own


def test_everything_private_is_0600_and_the_key_shares_are_gone(run: Finished) -> None:
    files = [p for p in run.folder.rglob("*") if p.is_file()]
    assert len(files) > 50
    open_to_others = [str(p) for p in files if stat.S_IMODE(p.stat().st_mode) & 0o077]
    assert open_to_others == []
    assert stat.S_IMODE(run.folder.stat().st_mode) == 0o700
    assert set(run.key_shares) == {"custodian-1", "custodian-2"}, (
        "no key share was ever seen: the next line would mean nothing"
    )
    assert list(run.folder.rglob("secret-*.key")) == []
    cache = [p for p in run.cache.iterdir() if p.is_file()]
    assert cache and not any(stat.S_IMODE(p.stat().st_mode) & 0o077 for p in cache)


def test_logs_and_events_name_no_image_and_no_patient(run: Finished) -> None:
    logs = [*run.folder.rglob("log.txt"), *run.folder.rglob("events.jsonl"), *run.folder.rglob("summary.json")]
    assert len(logs) >= 13
    for text in [run.output, *(p.read_text() for p in logs)]:
        assert Dataset.NAME not in text and Dataset.PATIENT not in text


def test_the_model_loads_where_openfhe_cannot_be_imported(run: Finished) -> None:
    program = """
import sys
sys.modules["openfhe"] = None  # importing it raises from here on
import torch
from focal.segments.upper import ReleasedModel
model = ReleasedModel.load(sys.argv[1])
p = model.probabilities(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
assert p.shape == (2, 4) and torch.allclose(p.sum(1), torch.ones(2)), p
print(*model.meta.classes)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, run.folder], capture_output=True, text=True, timeout=PATIENCE, env=ENV
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["healthy", "mild", "moderate", "severe"]


def test_evaluate_and_predict_score_new_tables(run: Finished, tmp_path: Path) -> None:
    """On the run's own test rows `evaluate` must find the run's own AUROC; `predict` gives a distribution per image."""
    held = np.load(run.party("hospital-a") / "rows.npz")
    assert {"train", "test"} == set(held["split"])
    test_patients = {g for n in ("a", "b", "c") for g, s in _groups(run, f"hospital-{n}") if s == "test"}
    rows = [r for r in dataset().rows() if r["patient"] in test_patients]
    table = tmp_path / "new.csv"
    table.write_text(
        "filename,label,patient\n" + "".join(f"{r['filename']},{r['label']},{r['patient']}\n" for r in rows)
    )
    scored = cli("evaluate", run.folder, "--table", table, "--images", dataset().images, "--json")
    assert scored.returncode == 0, scored.stderr
    result = json.loads(scored.stdout.strip().splitlines()[-1])
    assert result["n"] == len(rows) and set(result["auroc_per_class"]) == set(run.manifest.classes)
    # float32 logits here, float64 in the run: no pair of these rows is that close
    assert result["auroc"] == pytest.approx(run.summary["auroc"]["encrypted"], abs=1e-9)

    out = tmp_path / "predictions.csv"
    predicted = cli("predict", run.folder, "--images", dataset().images, "--out", out)
    assert predicted.returncode == 0, predicted.stderr
    lines = out.read_text().splitlines()
    assert lines[0] == "filename,healthy,mild,moderate,severe" and len(lines) == 121
    sums = [sum(map(float, line.split(",")[1:])) for line in lines[1:]]
    assert max(abs(s - 1) for s in sums) < 4e-6  # four numbers rounded to six places
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def _groups(run: Finished, name: str) -> list[tuple[str, str]]:
    with np.load(run.party(name) / "rows.npz") as f:
        return list(zip(f["groups"].tolist(), f["split"].tolist(), strict=True))


# --------------------------------------------------------------------------- other shapes


# --------------------------------------------------------------------------- several machines
