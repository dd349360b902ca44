"""The study behind the paper's tables: what is compared, kept, repeated within a budget and written."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import consortium
import numpy as np
import pytest
from eyes import EYES, NAMED, with_training, write_configs

from focal.baselines import spe_fl
from focal.baselines.logistic import baseline_scores
from focal.config import RunConfig
from focal.configs import FOLDER
from focal.data.rows import InstitutionRows
from focal.errors import FocalError
from focal.measure.metrics import macro_auroc
from focal.reading import read
from focal.reproduce import cases, methods, study
from focal.reproduce.cases import BY_PATIENT, SKEWED_3, Case, Source
from focal.reproduce.cells import Cell, Key, Store
from focal.reproduce.methods import (
    ALONE,
    BLIND,
    CONVERGED,
    FEDERATED,
    LOCAL_TRAINING,
    METHODS,
    MODEL,
    POOLED,
    Method,
    Outcome,
)
from focal.reproduce.study import Repeat, Study, reproduce


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_configs(tmp_path_factory.mktemp("configs"))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features from the labels and a generator: no torch, and something to learn."""

    def features(source: Source) -> np.ndarray:
        noise = np.random.default_rng(0).normal(0, 1, (len(source.table), 40))
        directions = np.random.default_rng(1).normal(0, 0.4, (4, 40))
        return (noise + source.table.labels @ directions).astype(np.float32)

    monkeypatch.setattr(Source, "features", property(features))


@pytest.fixture
def case(configs: Path, tmp_path: Path, given: None) -> Case:
    return Source(EYES, configs, tmp_path / "runs").case(SKEWED_3, 0)


def counted(
    name: str, calls: list[str], *, spent: float = 0.0, fail: Callable[[int], bool] = lambda n: False, **settings: Any
) -> Method:
    """A method with the twin's scores that notes each call, and fails at those where ``fail``
    (given their number) says so."""

    def run(case: Case) -> Outcome:
        calls.append(f"{name} {case.config.name}")
        if fail(len(calls)):
            raise FocalError(f"{name} has no luck", hint="try again")
        return replace(NAMED["twin"].run(case), seconds=spent)

    return Method(name, f"method {name}", "nothing", run, spent, settings)


# --------------------------------------------------------------------------- cases


def test_every_dealing_scores_the_same_rows_in_the_same_order(configs: Path, tmp_path: Path, given: None) -> None:
    source = Source(EYES, configs, tmp_path)
    dealt = [source.case(dealing, seed) for dealing in (BY_PATIENT, SKEWED_3) for seed in (0, 1)]
    orders = {tuple(case.order) for case in dealt}
    assert len(orders) == len(dealt)  # the institutions' test rows do come in different orders
    for case in dealt:
        test = InstitutionRows.union(case.rows).scored
        assert np.array_equal(case.by_table(test.labels), source.table.labels[source.table.test_rows])
        assert np.array_equal(case.by_table(test.features), source.features[source.table.test_rows])
        assert np.array_equal(case.groups, dealt[0].groups)


def test_projection_is_that_of_all_train_rows(case: Case) -> None:
    train = np.concatenate([own.features[own.split == "train"] for own in case.rows.values()])
    columns = case.projection.apply(train)[:, :-1]
    clip = 2 * np.sqrt(case.projection.features)
    assert np.linalg.norm(columns, axis=1).max() < clip  # so that the mean below is exactly the offset's
    assert np.abs(columns.mean(axis=0)).max() < 1e-5


def test_missing_data_names_the_file(configs: Path, tmp_path: Path) -> None:
    data = {"kind": "table", "table": str(tmp_path / "none.csv"), "images": str(consortium.dataset().images)}
    consortium.write_config(tmp_path, "eyes", dataset=data)
    with pytest.raises(FocalError, match="none.csv"):
        Source(EYES, tmp_path, tmp_path)


# --------------------------------------------------------------------------- methods


def test_single_and_pooled_models_are_those_of_a_run(case: Case) -> None:
    pooled, alone = baseline_scores(case.rows, case.task, seed=case.config.seed)
    ours = NAMED[ALONE].run(case).scores
    assert set(ours) == set(alone) == set(case.rows)
    for name, scores in alone.items():
        np.testing.assert_array_equal(ours[name], case.by_table(scores))
    np.testing.assert_array_equal(NAMED[POOLED].run(case).scores[MODEL], case.by_table(pooled))


@pytest.mark.parametrize("name", [name for name in NAMED if "fed" in name and name not in methods.DEALT])
def test_federated_methods_say_what_an_institution_pays(name: str, case: Case) -> None:
    if name == "fedavg-private":
        pytest.importorskip("opacus")
    outcome = NAMED[name].run(case)
    scores = outcome.scores[MODEL]
    assert scores.shape == case.labels.shape and np.isfinite(scores).all()
    assert set(outcome.traffic) == set(case.rows)
    smallest = (
        LOCAL_TRAINING["rounds"] * scores.shape[1] * case.projection.features * 8 // 4
    )  # a quarter: some rounds go on without some
    assert all(t.up > smallest and t.down > smallest for t in outcome.traffic.values())
    if outcome.curve:
        assert [p.bytes for p in outcome.curve] == sorted(p.bytes for p in outcome.curve)
        assert outcome.curve[-1].auroc == pytest.approx(macro_auroc(case.labels, scores, case.task), abs=1e-12)
        assert outcome.curve[-1].bytes == pytest.approx(np.mean([t.up + t.down for t in outcome.traffic.values()]))


def test_how_updates_are_added_does_not_change_the_head(case: Case) -> None:
    plain = NAMED["fedavg"].run(case).scores[MODEL]
    np.testing.assert_array_equal(plain, NAMED["fedavg"].run(case).scores[MODEL])  # one seed, one result
    for name in ("fedavg-masked", "encrypted-fedavg"):
        # masked sums round three parts to 2^-48, encrypted ones to 2^-15: 2^-15 sqrt(3 / 12) a value and round,
        # times columns of norm <= 17
        np.testing.assert_allclose(NAMED[name].run(case).scores[MODEL], plain, atol=6 * 2**-16 * 17 * 20**0.5)
    assert not np.array_equal(NAMED["fedprox"].run(case).scores[MODEL], plain)


@pytest.mark.parametrize("name", FEDERATED)
def test_several_dealings_change_federated_averaging_and_not_the_blind_head(
    name: str, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "DEALINGS", 2)
    made = NAMED[f"{name}-dealt"].run(case)
    assert len(made.scores) == methods.DEALINGS and set(made.traffic) == set(case.rows)
    for seed in (0, 1):
        np.testing.assert_array_equal(made.scores[f"dealing {seed}"], NAMED[name].run(case.dealt(seed)).scores[MODEL])
    again = NAMED[f"{name}-dealt"].run(case.dealt(1))
    assert not set(again.scores) & set(made.scores)  # another seed has other dealings
    assert np.abs(made.scores["dealing 0"] - made.scores["dealing 1"]).max() > 1e-3
    heads = [NAMED["twin"].run(case.dealt(seed)).scores[MODEL] for seed in range(5)]
    assert max(np.abs(head - heads[0]).max() for head in heads) < 1e-4  # sums in another order; columns are float32


@pytest.fixture(scope="module")
def seen(configs: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """With features of the images, for methods that read these."""
    return Source(EYES, configs, tmp_path_factory.mktemp("seen")).case(BY_PATIENT, 0)


def test_split_learning_begins_at_the_blind_head(seen: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rates of nearly nothing its scores are the twin's; with its own they are not,
    and what it sends is counted."""
    twin = NAMED["twin"].run(seen).scores[MODEL]
    short = methods.SPLIT.model_copy(update={"steps": 4, "average_every": 2, "augment": False})
    monkeypatch.setattr(
        methods, "SPLIT", short.model_copy(update={"head_rate": 1e-12, "rate": 1e-12, "bottleneck_rate": 1e-12})
    )
    np.testing.assert_allclose(NAMED["split"].run(seen).scores[MODEL], twin, atol=1e-4)  # float32 sums in another order
    monkeypatch.setattr(methods, "SPLIT", short)
    made = NAMED["split"].run(seen)
    assert np.abs(made.scores[MODEL] - twin).max() > 1e-2
    features, outputs, batch = seen.projection.features, twin.shape[1], methods.SPLIT_ROWS // 3
    sent = made.traffic["hospital-a"]
    average = (sent.up - 4 * batch * (features + outputs) * 8) / 2
    assert (
        average > 100_000 and sent.down - sent.up == 2 * average
    )  # two averages: one's own goes up, two others' come down


def test_spe_fl_sees_the_images_of_each_institution(seen: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spe_fl, "SIZE", 8)
    settings = replace(spe_fl.ABLATION["spe-fl-bare"], rounds=2, epochs=1)
    given: dict[str, Any] = {}
    real = spe_fl.spe_fl

    def noted(train: Any, *rest: Any) -> Any:
        given.update(train)
        return real(train, *rest)

    monkeypatch.setattr(spe_fl, "spe_fl", noted)
    made = methods._spe_fl(settings)(seen)
    for name, own in given.items():
        np.testing.assert_array_equal(own.labels, seen.rows[name].labels[seen.rows[name].split == "train"])
    assert (
        made.scores[MODEL].shape == seen.labels.shape and len(made.curve) == 2 and set(made.traffic) == set(seen.rows)
    )
    assert made.curve[-1].auroc == macro_auroc(seen.labels, made.scores[MODEL], seen.task)


def test_a_method_of_one_part_is_not_in_the_others(configs: Path, tmp_path: Path, given: None) -> None:
    calls: list[str] = []
    one = replace(counted("c", calls), dealings=(BY_PATIENT.name,))
    run(tmp_path, configs, [counted("a", calls), replace(counted("b", calls), tables=("xray",)), one])
    assert calls == ["a ocular-patient-3-s0", "c ocular-patient-3-s0", "a ocular-skewed-3-s0"]
    text = (tmp_path / "results.md").read_text()
    assert "method b" not in text and "method c: not run" not in text


def test_measures_at_the_threshold_are_shown_where_a_table_asks_for_them(
    configs: Path, tmp_path: Path, case: Case
) -> None:
    reproduce(
        0.0, tmp_path, configs, lambda text: None, tables=(replace(EYES, measures=True),), methods=[counted("a", [])]
    )
    accuracy, *_ = spe_fl.measure(case.labels, NAMED["twin"].run(case).scores[MODEL], case.task)
    assert f"| method a | {accuracy:.3f} |" in (tmp_path / "results.md").read_text()


# --------------------------------------------------------------------------- the budget


class Stub:
    """A source with a number of train rows and no data."""

    def __init__(self, name: str, rows: int) -> None:
        self.paper = replace(EYES, name=name, dealings=(BY_PATIENT,))
        self.table = type("Table", (), {"train_rows": np.arange(rows), "__len__": lambda _: 0})()


def study_of(sources: list[Any], seconds: float, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setattr(Repeat, "configuration", lambda self, method: "0" * 64)
    return Study(sources, [counted("m", [], spent=seconds)], Store(folder))


def finished(name: str, seed: int, spent: float) -> tuple[Key, Cell]:
    key = Key(name, BY_PATIENT.name, "m", seed)
    score = {"model": {"auroc": 0.5, "ci95": (0.4, 0.6), "per_class": {}}}
    return key, Cell.model_validate(
        {**key._asdict(), "configuration": "0" * 64, "models": score, "seconds": 1, "spent": spent}
    )


def planned(of: Study, budget: float) -> list[tuple[str, int]]:
    return [(repeat.source.paper.name, repeat.seed) for repeat in of.plan(budget)[0]]


def test_budget_never_drops_the_first_repeat_and_drops_the_longest_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [Stub("long", 0), Stub("short", 0)]
    of = study_of(sources, 1.0, tmp_path, monkeypatch)
    assert planned(of, 0.0) == [("long", 0), ("short", 0)]
    of.cells = dict([finished("long", 0, 100.0), finished("short", 0, 10.0)])
    assert of.seconds(Repeat(sources[0], BY_PATIENT, 1)) == 100.0  # type: ignore[arg-type]  # measured, not guessed
    assert planned(of, 110.0) == []
    assert planned(of, 135.0) == [("short", 1), ("short", 2)]
    assert planned(of, 235.0) == [("short", 1), ("long", 1), ("short", 2)]
    assert len(planned(of, 1e6)) == 2 * (study.SEEDS - 1)


def test_guesses_grow_with_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = Stub("few", 100), Stub("many", 4000)
    of = study_of([few, many], 10.0, tmp_path, monkeypatch)
    seconds = [of.seconds(Repeat(source, BY_PATIENT, 0)) for source in (few, many)]  # type: ignore[arg-type]
    assert 0 < seconds[0] < seconds[1]


# --------------------------------------------------------------------------- the study


def run(out: Path, configs: Path, methods_: list[Method], *, budget: float = 0.0) -> list[str]:
    lines: list[str] = []
    reproduce(budget, out, configs, lines.append, tables=(EYES,), methods=methods_)
    return lines


def test_finished_cells_are_not_run_again(configs: Path, tmp_path: Path, given: None) -> None:
    calls: list[str] = []
    run(tmp_path, configs, [counted("a", calls), counted("b", calls)])
    assert sorted(calls) == sorted(f"{m} ocular-{d.name}-s0" for m in "ab" for d in EYES.dealings)
    before = (tmp_path / "results.json").read_bytes()
    run(tmp_path, configs, [counted("a", calls), counted("b", calls)])
    assert len(calls) == 4
    assert json.loads(before)["tables"] == json.loads((tmp_path / "results.json").read_text())["tables"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "cells").iterdir()} == {0o600}


def test_interrupted_study_goes_on(configs: Path, tmp_path: Path, given: None) -> None:
    calls: list[str] = []

    def interrupt(number: int) -> bool:
        if number == 3:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, configs, [counted("a", calls, fail=interrupt), counted("b", calls, fail=interrupt)])
    assert "| method b |" in (tmp_path / "results.md").read_text()  # what is finished is there to be read
    run(tmp_path, configs, [counted("a", calls), counted("b", calls)])
    assert calls[2] == calls[3] == "a ocular-skewed-3-s0"
    assert len(calls) == 5


def test_larger_budget_adds_seeds(configs: Path, tmp_path: Path, given: None) -> None:
    calls: list[str] = []
    run(tmp_path, configs, [counted("a", calls)])
    run(tmp_path, configs, [counted("a", calls)], budget=60.0)
    assert len(calls) == len(set(calls)) == study.SEEDS * len(EYES.dealings)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["tables"]["ocular"]["parts"]["patient-3"]["seeds"] == list(range(study.SEEDS))


def test_results_of_another_configuration_are_an_error(
    configs: Path, tmp_path: Path, given: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, configs, [counted("a", [], rounds=3)])
    with pytest.raises(FocalError, match=r"ocular\.patient-3\.a\.0\.json.*another configuration"):
        run(tmp_path, configs, [counted("a", [], rounds=4)])
    run(tmp_path, configs, [counted("a", [], rounds=3)])
    monkeypatch.setattr(study, "ARITHMETIC", 1)
    with pytest.raises(FocalError, match="another configuration"):
        run(tmp_path, configs, [counted("a", [], rounds=3)])


@pytest.mark.parametrize(
    "change", [{"training": {"steps": 3}}, {"projection": {"kind": "whiten", "features": 32, "bound": 5.0}}]
)
def test_configuration_is_that_of_the_run(change: dict[str, Any], configs: Path, tmp_path: Path) -> None:
    own = Source(EYES, configs, tmp_path)
    data = {"kind": "table", "table": str(own.config.dataset.table), "images": str(own.config.dataset.images)}
    consortium.write_config(tmp_path, "eyes", dataset=data, **change)
    theirs, method = Source(EYES, tmp_path, tmp_path), NAMED["twin"]
    assert Repeat(own, BY_PATIENT, 0).configuration(method) != Repeat(theirs, BY_PATIENT, 0).configuration(method)


def test_configuration_is_of_the_data_and_not_of_its_place(configs: Path, tmp_path: Path) -> None:
    own = Source(EYES, configs, tmp_path)
    assert own.config.dataset.table is not None
    content = own.config.dataset.table.read_bytes()

    def elsewhere(table: bytes) -> str:
        path = tmp_path / "eyes.csv"
        path.write_bytes(table)
        consortium.write_config(
            tmp_path, "eyes", dataset={"kind": "table", "table": str(path), "images": str(own.config.dataset.images)}
        )
        return Repeat(Source(EYES, tmp_path, tmp_path), BY_PATIENT, 0).configuration(NAMED["twin"])

    mine = Repeat(own, BY_PATIENT, 0).configuration(NAMED["twin"])
    assert elsewhere(content) == mine
    assert elsewhere(b"".join(content.splitlines(keepends=True)[:-1])) != mine  # one row less


@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_damaged_cell_is_named(suffix: str, configs: Path, tmp_path: Path, given: None) -> None:
    run(tmp_path, configs, [counted("a", [])])
    path = tmp_path / "cells" / f"ocular.patient-3.a.0.{suffix}"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(FocalError, match=path.name):
        run(tmp_path, configs, [counted("a", [])])


def test_failed_cell_is_said_and_the_others_go_on(configs: Path, tmp_path: Path, given: None) -> None:
    calls: list[str] = []
    with pytest.raises(FocalError, match="2 cells failed"):
        run(tmp_path, configs, [counted("a", calls, fail=lambda n: True), counted("b", [])])
    text = (tmp_path / "results.md").read_text()
    assert "method a: not run (a has no luck)" in text and "| method b |" in text
    run(tmp_path, configs, [counted("a", calls), counted("b", calls)])
    assert [call[0] for call in calls] == ["a"] * 4
    assert "not run" not in (tmp_path / "results.md").read_text()


def test_table_without_data_is_skipped_with_its_reason(configs: Path, tmp_path: Path, given: None) -> None:
    lines: list[str] = []
    absent = replace(EYES, number=2, name="absent", config="absent.yaml")
    reproduce(0.0, tmp_path, configs, lines.append, tables=(EYES, absent), methods=[counted("a", [])])
    assert any("Table 2 is skipped" in line and "absent.yaml" in line for line in lines)
    assert "absent.yaml" in (tmp_path / "results.md").read_text()
    with pytest.raises(FocalError, match="no table has its data"):
        reproduce(0.0, tmp_path, configs, lines.append, tables=(absent,), methods=[counted("a", [])])


def test_incomplete_seeds_stay_out_of_the_tables(configs: Path, tmp_path: Path, given: None) -> None:
    run(tmp_path, configs, [counted("a", []), counted("b", [])], budget=60.0)
    for seed in range(1, study.SEEDS):
        (tmp_path / "cells" / f"ocular.patient-3.b.{seed}.json").unlink()
    run(tmp_path, configs, [counted("a", []), counted("b", [])])
    parts = json.loads((tmp_path / "results.json").read_text())["tables"]["ocular"]["parts"]
    assert parts["patient-3"]["seeds"] == [0]
    assert parts["skewed-3"]["seeds"] == list(range(study.SEEDS))


def test_what_fine_tunes_gets_the_same_rows_with_the_small_segment(configs: Path, tmp_path: Path, given: None) -> None:
    """Same patients at the same institutions, another configuration: in its case, and in the key of its cell."""
    data = read(RunConfig, configs / "eyes.yaml").dataset.model_dump(mode="json", exclude_none=True)
    consortium.write_config(configs, "small", dataset=data, training={"steps": 3})
    paper, seen = replace(EYES, small="small.yaml", dealings=(SKEWED_3,)), {}

    def noted(name: str, small: bool) -> Method:
        def run(case: Case) -> Outcome:
            seen[name] = case
            return NAMED["twin"].run(case)

        return Method(name, f"method {name}", "nothing", run, 0.0, small=small)

    made = [noted("large", False), noted("tuned", True)]
    reproduce(0.0, tmp_path, configs, lambda text: None, tables=(paper,), methods=made)
    large, small = seen["large"], seen["tuned"]
    assert large.config.training.steps != small.config.training.steps == 3
    for name, own in large.rows.items():
        np.testing.assert_array_equal(own.groups, small.rows[name].groups)
        np.testing.assert_array_equal(own.labels, small.rows[name].labels)
    np.testing.assert_array_equal(large.labels, small.labels)
    np.testing.assert_array_equal(large.order, small.order)
    keys = {Repeat(Source(paper, configs, tmp_path), SKEWED_3, 0).configuration(method) for method in made}
    assert len(keys) == 2
    assert (
        Repeat(Source(paper, configs, tmp_path), SKEWED_3, 0).configuration(replace(made[0], name="tuned")) not in keys
    )


# --------------------------------------------------------------------------- what is written


def test_tables_say_what_was_measured(configs: Path, tmp_path: Path, case: Case) -> None:
    blind = replace_run(NAMED[BLIND], NAMED["twin"].run)
    run(tmp_path, configs, [NAMED[ALONE], NAMED[POOLED], blind])
    text, content = (tmp_path / "results.md").read_text(), json.loads((tmp_path / "results.json").read_text())
    part = content["tables"]["ocular"]["parts"]["skewed-3"]
    rows = {row["title"]: row for row in part["rows"]}

    def auroc(scores: np.ndarray) -> float:
        return macro_auroc(case.labels, scores, case.task)

    alone = [auroc(scores) for scores in NAMED[ALONE].run(case).scores.values()]
    ours = auroc(NAMED["twin"].run(case).scores[MODEL])
    assert rows["every institution alone, mean"]["auroc"] == pytest.approx(np.mean(alone), abs=1e-12)
    assert rows["every institution alone, best"]["auroc"] == pytest.approx(max(alone), abs=1e-12)
    assert rows[blind.title]["auroc"] == pytest.approx(ours, abs=1e-12)
    low, high = rows[blind.title]["ci95"]
    assert low < ours < high
    assert part["gain_percent"]["over_mean"] == pytest.approx(100 * (ours / np.mean(alone) - 1), abs=1e-9)
    against = rows["pooled plaintext"]["blind_minus_this"]
    assert against["difference"] == pytest.approx(ours - rows["pooled plaintext"]["auroc"], abs=1e-12)
    assert f"| {blind.title} | {ours:.4f} |" in text and "+9.62 %" in text and "Not reproduced: everything." in text
    wanted = {target["target"]: target["reached"] for target in content["targets"]}
    assert wanted["Table 1, skewed-3: above every single institution"] == (ours > max(alone))
    assert wanted["Table 1, skewed-3: not below pooled plaintext by more than 0.005"] == (
        against["difference"] >= -0.005
    )
    assert (tmp_path / "table-1.png").read_bytes().startswith(b"\x89PNG")


def test_both_encrypted_heads_are_held_against_federated_averaging(configs: Path, tmp_path: Path, case: Case) -> None:
    quick = replace_run(NAMED[BLIND], NAMED["twin"].run)
    converged = replace_run(NAMED[CONVERGED], lambda case: NAMED["twin"].run(with_training(case, methods.CONVERGENCE)))
    paper = replace(EYES, name="severity")  # where the two differ
    made = [quick, converged, NAMED["fedavg"], NAMED["fedavg-dealt"]]
    reproduce(0.0, tmp_path, configs, lambda text: None, tables=(paper,), methods=made)
    text, content = (tmp_path / "results.md").read_text(), json.loads((tmp_path / "results.json").read_text())
    parts = content["tables"]["severity"]["parts"]
    assert converged.title not in {row["title"] for row in parts["patient-3"]["rows"]}
    rows = {row["method"]: row for row in parts["skewed-3"]["rows"]}
    reached = {target["target"]: target["reached"] for target in content["targets"]}
    for head, key in ((quick, "blind_minus_this"), (converged, "converged_minus_this")):
        gap = rows[head.name]["auroc"] - rows["fedavg"]["auroc"]
        assert rows["fedavg"][key]["difference"] == pytest.approx(gap, abs=1e-12)
        assert reached[f"Table 1, skewed-3: {head.title} not below FedAvg"] == (gap >= 0)
        assert f"{head.title} ends at {rows[head.name]['auroc']:.4f}" in text
        dealings = NAMED["fedavg-dealt"].run(case).scores.values()
        dealt = np.mean([macro_auroc(case.labels, scores, case.task) for scores in dealings])
        row = rows["fedavg-dealt"]
        assert row["auroc"] == pytest.approx(dealt, abs=1e-12) and row["range"][0] < dealt < row["range"][1]
        gap = rows[head.name]["auroc"] - dealt
        assert row[key]["difference"] == pytest.approx(gap, abs=1e-12) and row[key]["low"] < gap < row[key]["high"]
        assert reached[f"Table 1, skewed-3: {head.title} not below {row['title']}"] == (gap >= 0)
    assert rows[CONVERGED]["auroc"] != rows[BLIND]["auroc"]


def replace_run(method: Method, run_: Callable[[Case], Outcome]) -> Method:
    return replace(method, run=run_)


def test_the_papers_tables_are_complete() -> None:
    assert [paper.number for paper in cases.TABLES] == [1, 2, 3, 4]
    for paper in cases.TABLES:
        assert (FOLDER / paper.config).exists() and paper.small and (FOLDER / paper.small).exists() and paper.missing
    assert len({method.name for method in METHODS}) == len(METHODS)
