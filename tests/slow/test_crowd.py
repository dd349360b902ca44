"""``focal simulate``: clinics that come once, are interrupted, come back, or do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from consortium import cli

from focal.errors import FocalError
from focal.heads.released import MAX_ERROR
from focal.measure.summary import read_summary
from focal.runs.crowd import Crowd, describe, simulate_crowd


def test_a_crowd_ends_with_the_twins_weights(tmp_path: Path) -> None:
    crowd = Crowd(
        clinics=8, rows=(20, 40), loss=0.125, late=0.25, custodians=2, features=32, classes=3, steps=2, seed=3
    )
    lines: list[str] = []
    found = simulate_crowd(crowd, tmp_path / "crowd", lambda event: None, lines.append)
    assert found["came"] == 7 and found["lost"] == 1 and found["error"] < MAX_ERROR
    assert abs(found["auroc"] - found["auroc_twin"]) < 1e-3 < found["auroc"]
    assert found["visit_cpu_s"] > 0 and 0 < found["smallest_up_mb"] <= found["visit_mb"]
    kept = json.loads((tmp_path / "crowd" / "crowd.json").read_text())["visits"]
    assert sorted(visit["outcome"] for visit in kept.values()) == ["came back"] * 2 + ["lost"] + ["once"] * 5
    assert found["rows"] == 1200 + sum(visit["rows"] for visit in kept.values() if visit["outcome"] != "lost")
    assert all((visit["up"] > 0) and (visit["seconds"] > 0) for visit in kept.values() if visit["outcome"] != "lost")
    summary = read_summary(tmp_path / "crowd")
    (lost,) = [name for name, visit in kept.items() if visit["outcome"] == "lost"]
    assert summary.params["clinics"] == 8 and summary.left_out == {lost: "it has not come"}
    assert (tmp_path / "crowd" / "timeline.png").stat().st_size > 10_000
    assert "measured" in describe(found) and "model" in describe(found)
    pooled = found["pooled"]
    assert (pooled["sites"], pooled["clinics"]) == (10, 7) and pooled["back_cpu_s"] > 0
    assert abs(pooled["auroc"] - pooled["exact"]) <= pooled["bound"] < 0.01 and "7 clinics among them" in describe(
        found
    )
    with pytest.raises(FocalError, match="holds something already"):
        simulate_crowd(crowd, tmp_path / "crowd", lambda event: None, lines.append)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"loss": 0.7, "late": 0.5}, "shares of all clinics"),
        ({"loss": -0.1}, "shares of all clinics"),
        ({"rows": (0, 5)}, "at least three founders"),
        ({"rows": (9, 5)}, "at least three founders"),
        ({"founders": 2}, "at least three founders"),
    ],
)
def test_crowds_that_cannot_be(wrong: dict[str, object], why: str) -> None:
    with pytest.raises(FocalError, match=why):
        Crowd(**wrong)  # type: ignore[arg-type]


def test_rows_that_are_no_range(tmp_path: Path) -> None:
    result = cli("simulate", "--rows", "many", "--out", tmp_path / "crowd")
    assert result.returncode == 1 and "write it as 20..2000" in result.stderr + result.stdout
