"""Scoring a local run beside its baselines, and a finished run folder on new images:
from files to AUROC and probabilities."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from consortium import cli
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from focal.baselines.logistic import baseline_scores
from focal.config import InteractiveConfig, LowerConfig
from focal.data.rows import InstitutionRows, read_kept
from focal.errors import ConfigError, FocalError
from focal.measure.metrics import MEASURES, log_odds, macro_auroc
from focal.measure.scores import score_outputs
from focal.reading import read
from focal.runs.compare import score_local_run
from focal.runs.evaluate import LabelMap, evaluate, predict
from focal.segments import upper
from focal.segments.projection import Projection
from focal.segments.trainable import TrainableSegment
from focal.segments.upper import ModelMeta, ReleasedModel, UpperHead

CLASSES = ("dark", "red", "green")
DIM = 40


def projection(dim: int = DIM, features: int = 32) -> Projection:
    rng = np.random.default_rng(0)
    matrix = rng.normal(0, 1 / np.sqrt(dim), (features - 1, dim)).astype(np.float32)
    zeros = np.zeros(features - 1, np.float32)
    return Projection(kind="whiten", matrix=matrix, offset=zeros, bound=32.0, features=features, eta_hex=(0.5).hex())


def institution(seed: int, split: tuple[str, ...] = ("train", "train", "test")) -> InstitutionRows:
    """90 rows of three classes, two rows a patient; equal patient ids at every institution."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 90)
    x = rng.normal(0, 1, (90, DIM)) + np.random.default_rng(9).normal(0, 0.5, (3, DIM))[y]
    patients = np.array([f"p{i // 2}" for i in range(90)])
    return InstitutionRows(
        x.astype(np.float32), np.eye(3, dtype=np.uint8)[y], patients, np.array([split[(i // 2) % 3] for i in range(90)])
    )


# --------------------------------------------------------------------------- a local run


def test_local_scores_are_on_the_union_of_test_rows_and_only_train_rows_train() -> None:
    sites = {name: institution(seed) for seed, name in enumerate(("a", "b", "c"))}
    weights = np.random.default_rng(5).normal(0, 1, (32, 3))
    found = score_local_run(sites, projection(), weights, weights + 1e-4, "multiclass", repeats=50)
    test = {name: own.split == "test" for name, own in sites.items()}
    labels = np.concatenate([own.labels[test[name]] for name, own in sites.items()])
    features = np.concatenate([own.features[test[name]] for name, own in sites.items()])
    np.testing.assert_array_equal(found.labels, labels)
    assert found.auroc.encrypted == macro_auroc(labels, projection().apply(features) @ weights, "multiclass")
    assert found.max_abs_weight_error == pytest.approx(1e-4)
    assert set(found.auroc.institutions or {}) == set(sites) == set(found.auroc_ci95.institutions or {})
    assert found.auroc.pooled_plaintext is not None and found.auroc.pooled_plaintext > 0.8
    assert found.auroc_ci95.encrypted[0] < found.auroc.encrypted < found.auroc_ci95.encrypted[1]
    # Labels of test rows turned round: the models must not change, so every AUROC of two classes turns round with them.
    turned = {
        name: InstitutionRows(
            own.features, np.where(test[name][:, None], own.labels[:, ::-1], own.labels), own.groups, own.split
        )
        for name, own in sites.items()
    }
    again = score_local_run(turned, projection(), weights, weights, "multiclass", repeats=50)
    per_class = found.per_class["pooled_plaintext"], again.per_class["pooled_plaintext"]
    assert per_class[0][1] == per_class[1][1]
    assert per_class[1][0] < 0.5 < per_class[0][0]


def test_equal_patient_ids_of_two_institutions_are_two_patients() -> None:
    """The same site three times over is three times the patients: the interval narrows by about sqrt(3)."""
    weights = np.random.default_rng(5).normal(0, 1, (32, 3))
    site = institution(0)
    widths = []
    for names in ("a", "abc"):
        low, high = score_local_run(
            dict.fromkeys(names, site), projection(), weights, weights, "multiclass"
        ).auroc_ci95.encrypted
        widths.append(high - low)
    assert widths[1] < 0.75 * widths[0]  # 0.58 expected; 1 if ids were joined


def test_val_stands_in_only_where_there_is_no_test() -> None:
    weights = np.random.default_rng(5).normal(0, 1, (32, 3))
    both = {"a": institution(0, ("train", "val", "val")), "b": institution(1)}
    assert (
        len(score_local_run(both, projection(), weights, weights, "multiclass", repeats=5).labels) == 30
    )  # b's test rows
    val = {"a": both["a"], "b": institution(1, ("train", "train", "val"))}
    assert len(score_local_run(val, projection(), weights, weights, "multiclass", repeats=5).labels) == 90
    with pytest.raises(FocalError, match="no test rows"):
        score_local_run({"a": institution(0, ("train",) * 3)}, projection(), weights, weights, "multiclass")


def test_one_class_institution_is_a_warning_and_scores_one_half() -> None:
    sites = {"a": institution(0), "b": institution(1)}
    one = np.zeros_like(sites["b"].labels)
    one[:, 0] = 1
    lone = np.where((sites["b"].split == "train")[:, None], one, sites["b"].labels)
    sites["b"] = InstitutionRows(sites["b"].features, lone, sites["b"].groups, sites["b"].split)
    weights = np.random.default_rng(5).normal(0, 1, (32, 3))
    with pytest.warns(UserWarning, match="b: its training rows hold one class"):
        found = score_local_run(sites, projection(), weights, weights, "multiclass", repeats=5)
    assert (found.auroc.institutions or {})["b"] == 0.5


def test_a_site_scores_its_own_test_rows() -> None:
    own = institution(0).take(institution(0).split == "test")
    outputs = projection().apply(own.features) @ np.random.default_rng(5).normal(0, 1, (32, 3))
    auroc, interval = score_outputs(own.labels, outputs, own.groups, "multiclass", repeats=50)
    assert auroc.encrypted == macro_auroc(own.labels, outputs, "multiclass")
    assert auroc.institutions is None and interval.encrypted[0] < auroc.encrypted < interval.encrypted[1]


def test_baselines_are_scored_on_the_same_rows_as_the_run() -> None:
    sites = {name: institution(seed) for seed, name in enumerate(("a", "b"))}
    pooled, alone = baseline_scores(sites, "multiclass")
    test = InstitutionRows.union(sites).scored
    assert pooled.shape == alone["a"].shape == alone["b"].shape == test.labels.shape and set(alone) == {"a", "b"}
    found = score_local_run(sites, projection(), np.zeros((32, 3)), np.zeros((32, 3)), "multiclass", repeats=5)
    assert found.auroc.pooled_plaintext == macro_auroc(test.labels, pooled, "multiclass")
    assert (found.auroc.institutions or {})["b"] == macro_auroc(test.labels, alone["b"], "multiclass")


def test_kept_rows_are_read_back_and_damage_is_named(tmp_path: Path) -> None:
    own = institution(0)
    np.savez(
        tmp_path / "rows.npz",
        weights=np.ones((32, 3)),
        features=own.features,
        labels=own.labels,
        groups=own.groups,
        split=own.split,
    )
    rows, weights = read_kept(tmp_path)
    assert all(
        np.array_equal(getattr(rows, name), getattr(own, name)) for name in ("features", "labels", "groups", "split")
    )
    assert weights.shape == (32, 3) and weights.dtype == np.float64
    (tmp_path / "rows.npz").write_bytes(b"PK\3\4 cut off")
    with pytest.raises(FocalError, match=r"rows.npz: cannot be read \(damaged"):
        read_kept(tmp_path)
    with pytest.raises(FocalError, match="away/rows.npz: cannot be read"):
        read_kept(tmp_path / "away")


# --------------------------------------------------------------------------- a finished run on new images


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 36 images of three colours, their tables, and a finished run whose head has learned the colours."""
    from focal.segments.lower import build_lower, lower_spec, preprocess

    root = tmp_path_factory.mktemp("site")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    y = np.arange(36) % 3
    colours = np.array([[30, 30, 30], [150, 40, 40], [40, 150, 40]])
    rows = []
    for i, c in enumerate(y):
        pixels = np.clip(colours[c] + rng.normal(0, 60, (1, 1, 3)) + rng.normal(0, 20, (32, 32, 3)), 0, 255).astype(
            np.uint8
        )
        Image.fromarray(pixels).save(root / "images" / f"eye{i:02}.png")
        rows.append(
            {
                "filename": f"eye{i:02}.png",
                "label": CLASSES[c],
                "patient": f"p{i // 2}",
                "split": "test" if i >= 12 else "train",
            }
        )
    write_csv(root / "all.csv", rows)
    write_csv(root / "unsplit.csv", [{k: row[k] for k in ("filename", "label", "patient")} for row in rows])
    write_csv(root / "other.csv", [row | {"label": "melanoma"} for row in rows])
    # Another hospital: its own words for the same three classes, two words for one of them,
    # two rows that nobody could read, four sites.
    words = {"dark": ("night", "dusk"), "red": ("rouge",) * 2, "green": ("vert",) * 2}
    there = [
        {
            "filename": r["filename"],
            "label": "blurred" if i in (4, 9) else words[r["label"]][i // 3 % 2],
            "patient": r["patient"],
        }
        | {"institution": f"clinic-{i // 9}", "sex": "FM"[i // 2 % 2] if i else "", "age": str(30 + i)}
        for i, r in enumerate(rows)
    ]
    write_csv(root / "there.csv", there)
    (root / "labels.yaml").write_text("labels: {night: dark, dusk: dark, rouge: red, vert: green, blurred: null}\n")
    write_csv(root / "names.csv", [{"filename": row["filename"]} for row in reversed(rows[:5])])
    write_csv(root / "train.csv", rows[:12])
    with zipfile.ZipFile(root / "images.zip", "w") as z:
        for row in rows:
            z.write(root / "images" / row["filename"], row["filename"])

    segment, _ = build_lower(LowerConfig(model="resnet10t", image_size=32), "random:0")
    spec = lower_spec(segment)
    images = torch.stack(
        [preprocess(Image.open(root / "images" / row["filename"]).convert("RGB"), spec) for row in rows]
    )
    with torch.inference_mode():
        columns = projection(spec.dim).apply(segment(images).numpy())
    weights = np.linalg.solve(columns.T @ columns + np.eye(32), columns.T @ (np.eye(3)[y] - 0.3)) * 4
    meta: dict[str, Any] = dict(dataset="eyes", classes=CLASSES, task="multiclass", lower=spec, weights="random:0")
    run = root / "run"
    head = UpperHead.from_projection(projection(spec.dim), weights, "multiclass")
    upper.save(run / "model.pt", head, ModelMeta(**meta, run_id="01" * 32, manifest_hash="02" * 32))
    return root


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def test_evaluate_scores_test_rows_and_agrees_with_predict(site: Path) -> None:
    found = evaluate(site / "run", site / "all.csv", site / "images.zip", device="cpu", repeats=200)
    assert set(found) == {
        "auroc",
        "auroc_per_class",
        "auroc_ci95",
        "n",
        "left_out",
        "trained_on",
        "dataset",
        "measures",
        "subgroups",
        "pooled",
    }
    assert found["pooled"] is None
    assert (found["left_out"], found["subgroups"], set(found["measures"])) == (0, {}, set(MEASURES))
    json.dumps(found, allow_nan=False)
    assert (found["n"], found["dataset"]) == (24, "all")
    assert evaluate(site / "run", site / "unsplit.csv", site / "images", device="cpu", repeats=5)["n"] == 36
    assert found["auroc"] == pytest.approx(np.mean(list(found["auroc_per_class"].values())))
    assert found["auroc"] > 0.6 and found["auroc_ci95"][0] <= found["auroc"] <= found["auroc_ci95"][1]
    # The released module, image by image, gives the same ranking.
    model = ReleasedModel.load(site / "run")
    from focal.segments.lower import preprocess

    rows = read_csv(site / "all.csv")[12:]
    images = torch.stack(
        [preprocess(Image.open(site / "images" / row["filename"]).convert("RGB"), model.meta.lower) for row in rows]
    )
    with torch.inference_mode():
        logits = model(images).numpy()
    for c, name in enumerate(CLASSES):
        expected = roc_auc_score([row["label"] == name for row in rows], logits[:, c])
        assert found["auroc_per_class"][name] == pytest.approx(expected, abs=1e-12)


def test_predict_writes_private_probabilities_in_order(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.csv"
    assert len(predict(site / "run", site / "images", out, device="cpu").filenames) == 36
    assert out.stat().st_mode & 0o777 == 0o600
    rows = read_csv(out)
    assert [row["filename"] for row in rows] == [f"eye{i:02}.png" for i in range(36)]
    model = ReleasedModel.load(site / "run" / "model.pt")
    from focal.segments.lower import preprocess

    images = torch.stack(
        [preprocess(Image.open(site / "images" / row["filename"]).convert("RGB"), model.meta.lower) for row in rows]
    )
    with torch.inference_mode():
        expected = model.probabilities(images).numpy()
    # Six digits are written; batches of another size move float32 features by 1e-6 of their size.
    np.testing.assert_allclose([[float(row[c]) for c in CLASSES] for row in rows], expected, atol=1e-4)

    named = predict(site / "run", site / "images.zip", out, table_csv=site / "names.csv", device="cpu").filenames
    assert list(named) == [f"eye{i:02}.png" for i in (4, 3, 2, 1, 0)]
    assert [row["filename"] for row in read_csv(out)] == [f"eye{i:02}.png" for i in (4, 3, 2, 1, 0)]


@pytest.fixture(scope="module")
def tuned(site: Path) -> Path:
    """An interactive run's folder: parameters of the lower segment lie beside its head."""
    head, meta = upper.load(site / "run")
    config = InteractiveConfig(trainable="norm", features=32)
    grown = TrainableSegment(upper.lower_segment(meta), config)
    with torch.no_grad():
        for p in grown.trained().values():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    head.trained = {name: p.detach().clone() for name, p in grown.trained().items() if name.startswith("lower.")}
    assert head.trained
    run = site / "tuned"
    upper.save(run / "model.pt", head, meta.model_copy(update={"interactive": config}))
    return run


def logits(run: Path, site: Path) -> NDArray[np.float32]:
    """(36, 3) of the released module, image by image."""
    from focal.segments.lower import preprocess

    model = ReleasedModel.load(run)
    images = [Image.open(site / "images" / f"eye{i:02}.png").convert("RGB") for i in range(36)]
    with torch.inference_mode():
        return model(torch.stack([preprocess(image, model.meta.lower) for image in images])).numpy()


def test_a_trained_lower_segment_is_the_one_that_predicts(site: Path, tuned: Path, tmp_path: Path) -> None:
    """Its features never mix with the initial ones, though both lie in one cache."""
    probabilities = []
    for folder in (site / "run", tuned):
        predict(folder, site / "images", tmp_path / "p.csv", device="cpu", cache=tmp_path / "cache")
        probabilities.append([[float(row[c]) for c in CLASSES] for row in read_csv(tmp_path / "p.csv")])
    expected = upper.class_probabilities(torch.from_numpy(logits(tuned, site)), "multiclass").numpy()
    np.testing.assert_allclose(probabilities[1], expected, atol=1e-4)
    assert np.abs(np.subtract(*probabilities)).max() > 0.01


def test_an_interactive_run_is_evaluated_at_another_hospital(site: Path, tuned: Path, tmp_path: Path) -> None:
    """Translated labels, sites and all, by the fine-tuned segment;
    a cache that holds the initial features does not mislead it."""
    labels = read(LabelMap, site / "labels.yaml")
    found = [
        evaluate(
            run,
            site / "there.csv",
            site / "images",
            labels=labels,
            by=["institution"],
            device="cpu",
            cache=tmp_path,
            repeats=50,
        )
        for run in (site / "run", tuned)
    ]
    kept = np.array([i not in (4, 9) for i in range(36)])
    y, clinic = np.arange(36) % 3, np.arange(36) // 9
    for run, scores in zip((site / "run", tuned), found, strict=True):
        raw = log_odds(logits(run, site).astype(np.float64), "multiclass")
        for rows, values in ((kept, scores), (kept & (clinic == 2), scores["subgroups"]["institution"]["clinic-2"])):
            for c, name in enumerate(CLASSES):
                assert values["auroc_per_class"][name] == pytest.approx(
                    roc_auc_score(y[rows] == c, raw[rows, c]), abs=1e-12
                )
    assert found[0]["auroc_per_class"] != found[1]["auroc_per_class"]
    with pytest.raises(FocalError, match="weights 'random:1' are not the lower segment"):
        evaluate(tuned, site / "all.csv", site / "images", weights="random:1", device="cpu")


def scored(site: Path, table: str, **options: Any) -> dict[str, Any]:
    return evaluate(site / "run", site / table, site / "images", device="cpu", repeats=50, slow_repeats=5, **options)


def test_three_hospitals_draw_one_curve_over_all_and_show_no_score(site: Path, tmp_path: Path) -> None:
    """As people do it: keys, public files to everybody, each evaluates its own table,
    and whose files are complete has the curve."""
    rows, sites = read_csv(site / "unsplit.csv"), tmp_path / "sites"
    for k, name in enumerate(("north", "south", "west")):
        write_csv(tmp_path / f"{name}.csv", rows[12 * k : 12 * k + 12])
        assert cli("keys", "new", "--name", name, "--out", tmp_path / name).returncode == 0
        sites.mkdir(exist_ok=True)
        shutil.copy(tmp_path / name / f"{name}.public.json", sites)

    def run(name: str) -> str:
        options = [
            "--images",
            site / "images",
            "--device",
            "cpu",
            "--pool",
            sites,
            "--key",
            tmp_path / name / f"{name}.key.json",
            "--json",
        ]
        result = cli("evaluate", site / "run", "--table", tmp_path / f"{name}.csv", *options)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "not here yet: south.counts, west.counts" in " ".join(run("north").split())
    run("south")
    last = run("west")
    found = json.loads(last.splitlines()[-1])["pooled"]
    assert found["missing"] == [] and found["fingerprint"] in last and "pooled_roc.png" in last
    whole = scored(site, "unsplit.csv")["auroc"]
    assert abs(found["auroc"] - whole) <= found["bound"] < 0.02
    assert (
        json.loads(run("north").splitlines()[-1])["pooled"] == found
        and (sites / "pooled_roc.png").stat().st_size > 10_000
    )
    alone = cli("evaluate", site / "run", "--table", site / "all.csv", "--images", site / "images", "--pool", sites)
    assert alone.returncode == 1 and "--pool and --key go together" in alone.stderr


def test_other_labels_are_an_error_with_both_sets(site: Path) -> None:
    with pytest.raises(FocalError, match="labels are melanoma, but the run's classes are dark, red, green"):
        scored(site, "other.csv")
    some = LabelMap(labels={"night": "dark", "dusk": "dark", "blurred": None})
    with pytest.raises(
        FocalError, match="are blurred, dusk, .* classes are dark, red, green; not translated: rouge, vert"
    ):
        scored(site, "there.csv", labels=some)
    with pytest.raises(FocalError, match="leads to purple, but the run's classes are dark, red, green"):
        scored(site, "all.csv", labels=LabelMap(labels={"violet": "purple"}))
    nothing = LabelMap(labels=dict.fromkeys(("night", "dusk", "rouge", "vert", "blurred")))
    with pytest.raises(FocalError, match="no row has a label that the run knows"):
        scored(site, "there.csv", labels=nothing)


def test_another_hospitals_words_score_like_ours(site: Path) -> None:
    """The same images under translated labels, without the rows that have no counterpart."""
    found = scored(site, "there.csv", labels=read(LabelMap, site / "labels.yaml"))
    assert (found["n"], found["left_out"]) == (34, 2)
    kept = [
        {k: row[k] for k in ("filename", "label")}
        for i, row in enumerate(read_csv(site / "all.csv"))
        if i not in (4, 9)
    ]
    write_csv(site / "kept.csv", kept)
    assert found["auroc_per_class"] == scored(site, "kept.csv", group="none")["auroc_per_class"]


def test_a_row_with_two_of_our_classes_does_not_fit_a_run_with_one(site: Path, tmp_path: Path) -> None:
    rows = read_csv(site / "unsplit.csv")
    for label in ("red;green", ""):
        write_csv(tmp_path / "several.csv", [row | ({"label": label} if i == 2 else {}) for i, row in enumerate(rows)])
        with pytest.raises(FocalError, match="several.csv: line 4: needs exactly one of the classes dark, red, green"):
            evaluate(site / "run", tmp_path / "several.csv", site / "images")


def test_sites_and_subgroups_are_scored_on_their_own_rows(site: Path) -> None:
    labels = read(LabelMap, site / "labels.yaml")
    found = scored(site, "there.csv", labels=labels, by=["institution", "sex", "age:40,60"])["subgroups"]
    assert {name: part["n"] for name, part in found["institution"].items()} == {
        "clinic-0": 8,
        "clinic-1": 8,
        "clinic-2": 9,
        "clinic-3": 9,
    }
    assert {name: part["n"] for name, part in found["sex"].items()} == {"F": 15, "M": 18, "not given": 1}
    assert {name: part["n"] for name, part in found["age:40,60"].items()} == {
        "below 40": 8,
        "40 to below 60": 20,
        "60 and above": 6,
    }
    assert found["sex"]["not given"]["auroc"] is None and found["sex"]["not given"]["auroc_ci95"] is None
    # One site's figures are those of a table with its rows alone.
    write_csv(site / "clinic.csv", [row for row in read_csv(site / "there.csv") if row["institution"] == "clinic-2"])
    alone = scored(site, "clinic.csv", labels=labels)
    assert alone["auroc_per_class"] == found["institution"]["clinic-2"]["auroc_per_class"]
    assert alone["auroc_ci95"] == found["institution"]["clinic-2"]["auroc_ci95"]


def test_a_class_missing_at_a_site_is_shown_as_such(site: Path) -> None:
    rows = [
        row | {"institution": "east" if row["label"] != "red" else "west"} for row in read_csv(site / "unsplit.csv")
    ]
    write_csv(site / "sites.csv", rows)
    found = scored(site, "sites.csv", by=["institution"])["subgroups"]["institution"]
    assert found["east"]["auroc_per_class"]["red"] is None and found["east"]["auroc"] is not None
    assert found["west"]["auroc"] is None  # nothing but red


def test_subgroups_that_are_not_there_are_errors(site: Path) -> None:
    labels = read(LabelMap, site / "labels.yaml")
    with pytest.raises(FocalError, match="'age 90 and above' is empty"):
        scored(site, "there.csv", labels=labels, by=["age:90"])
    with pytest.raises(FocalError, match=r"no column 'eye' to split by\n.*institution, sex, age"):
        scored(site, "there.csv", labels=labels, by=["eye"])


def test_a_label_map_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("labels: {0: dark}\n")
    with pytest.raises(ConfigError, match="map.yaml: labels"):
        read(LabelMap, tmp_path / "map.yaml")


def test_bad_input_is_named(site: Path, tmp_path: Path) -> None:
    run, images = site / "run", site / "images"
    with pytest.raises(FocalError, match="no released model"):
        evaluate(tmp_path, site / "all.csv", images)
    with pytest.raises(FocalError, match="every row is marked 'train'"):
        evaluate(run, site / "train.csv", images)
    with pytest.raises(FocalError, match="no column 'label'"):
        evaluate(run, site / "names.csv", images)
    with pytest.raises(FocalError, match="nowhere.csv: cannot be read"):
        evaluate(run, site / "nowhere.csv", images)
    with pytest.raises(FocalError, match="weights 'random:1' are not the lower segment"):
        evaluate(run, site / "all.csv", images, weights="random:1", device="cpu")
    with pytest.raises(FocalError, match="neither a folder nor a zip"):
        predict(run, site / "all.csv", tmp_path / "out.csv")
    with pytest.raises(FocalError, match="holds no images"):
        predict(run, tmp_path, tmp_path / "out.csv")
    write_csv(tmp_path / "missing.csv", [{"filename": "gone.png"}])
    with pytest.raises(FocalError, match="1 of 1 images are missing"):
        predict(run, images, tmp_path / "out.csv", table_csv=tmp_path / "missing.csv")
    assert not (tmp_path / "out.csv").exists()
