"""Steps over rows from disk: files that a server would read, weights that are the twin's, and nothing that is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from focal.bench import scale, step
from focal.bench.step import Measured, Problem, Step, folder_for, measure
from focal.errors import FocalError
from focal.heads.linear.demand import Prices
from focal.net.store import DiskError


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem(400, 32, 3, 2, class_lanes=4)


def test_weights_are_the_twins_and_all_files_are_read(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    get = step.Blobs.get

    def noted(self: step.Blobs, digest: str) -> bytes:
        read.append(digest)
        return get(self, digest)

    monkeypatch.setattr(step.Blobs, "get", noted)
    counted: list[tuple[int, int]] = []
    found = measure(problem, tmp_path, 0, 2, lambda *at: counted.append(at))
    assert found.error < 1e-3
    assert found.file_bytes == problem.upload_bytes + 2 * problem.contribution_bytes
    assert len(read) == len(set(read)) == 3 * problem.inputs, "each input: masked rows, two contributions; all distinct"
    assert [done for done, _ in counted] == sorted(done for done, _ in counted) and counted[-1][0] == counted[-1][1]
    first, later = found.steps
    assert first.forward == 0 < later.forward and min(first.reading, later.reading, later.backward) > 0
    assert min(later.refreshing, later.custodians) > 0 and found.peak_bytes > 0
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_gone_ends_it_and_nothing_is_left(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = step._steps

    def without_one(*given: object) -> object:
        next(p for p in tmp_path.glob("*/??/*") if p.is_file()).unlink()
        return steps(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(step, "_steps", without_one)
    with pytest.raises(DiskError):
        measure(problem, tmp_path, 0, 2, lambda done, total: None)
    assert not list(tmp_path.iterdir())


def test_interrupted_it_leaves_nothing(problem: Problem, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(problem, tmp_path, 0, 2, stop)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_told_before(tmp_path: Path) -> None:
    with pytest.raises(FocalError, match="GB are free") as caught, folder_for(Problem(10**9, 64, 8, 3), tmp_path):
        pass
    assert "--folder" in caught.value.hint


def test_a_million_rows_are_those_of_the_issue() -> None:
    million = Problem(1_000_000, 64, 8, 3)
    assert (million.layout.blocks, million.layout.class_groups, million.pairs) == (123, 8, 984)
    assert "123 blocks x 8 class groups" in million.describe(0, 1)


def measured(problem: Problem, group: float, pair: float) -> tuple[Problem, Measured]:
    """As a machine with these prices takes it."""
    groups, blocks, lane = problem.layout.class_groups, problem.layout.blocks, problem.layout.lane
    engine = groups * group + blocks * groups * pair
    items = problem.pairs + groups
    step = Step(
        wall=1, cpu=1, forward=engine / 4, backward=3 * engine / 4, reading=2 * blocks * lane * 0.001,
        refreshing=items * 0.01, custodians=items * 2 * 0.02,
    )  # fmt: skip
    first = Step(1, 1, 0, 1, problem.inputs * 0.005, 0, 0)
    return problem, Measured(problem.manifest, problem.layout, 0, (first, step), 0, 0.0)


@pytest.fixture
def prices() -> Prices:
    few, many = (Problem(blocks * 8192, 64, 8, 2, babies=32) for blocks in (2, 6))
    beside = {role: {"encryption_cpu_ms": 1.0, "rest_cpu_ms": ms} for role, ms in (("server", 2.0), ("guard", 3.0))}
    return scale.prices_of([measured(few, 0.07, 0.02), measured(many, 0.07, 0.02)], beside)


def test_prices_are_told_from_few_and_many_blocks(prices: Prices) -> None:
    expected = Prices(0.005, 0.001, 0.07, 0.02, 0.01, 0.02, 0.003, 0.004)
    for name, value in vars(expected).items():
        assert getattr(prices, name) == pytest.approx(value), name


def test_the_model_says_what_is_measured_and_what_is_not(
    prices: Prices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"disk_bytes_per_second": 4e8, "refresh": {}, "largest_weight_error": 1e-4}
    monkeypatch.setattr(scale, "unit_costs", lambda *_: (prices, facts))
    result, found = scale.scale(scale.Wish(), tmp_path, print, lambda done, total: None)
    assert [(one.rows, one.machines) for one in found] == [(r, m) for r in (100_000, 1_000_000) for m in (1, 2, 4, 8)]
    words = [line.split()[0] for line in result.text.splitlines()]
    assert {"measured", "exact", "model"} <= set(words)
    assert [one["step_seconds"] for one in result.numbers["model"]] == [one.seconds for one in found]
    seconds = [one.parts["compute"] for one in found]
    assert seconds[:4] == sorted(seconds[:4], reverse=True) and seconds[4:] == sorted(seconds[4:], reverse=True)
    assert scale.disk_speed(tmp_path) > 0
