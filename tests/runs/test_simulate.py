"""A consortium in one process: arrays in, the twin's weights out; what its roles do when one stops or cannot go on."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import rows
from patience import PATIENCE
from three import three

from focal.errors import FocalError
from focal.heads.linear import twin
from focal.heads.released import MAX_ERROR
from focal.protocols.common import server
from focal.runs.simulate import ArrayInstitution, simulate

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(30, 31)).astype(np.float32)
LABELS = np.arange(30) % 3


def test_the_example_runs_without_torch_and_gives_the_weights_of_the_twin() -> None:
    """Two classes. The weights err by less than the planner guarantees, and the outputs are the twin's to as much."""
    text = (simulate.__doc__ or "").split("Example::")[1].split("Args:")[0]
    check = f"""
import sys
assert run.weights.shape == run.twin.shape == (32, 1) and scores.shape == (5, 1)
assert 0 < abs(run.weights - run.twin).max() == run.facts["max_abs_weight_error"] < {MAX_ERROR}
columns = run.projection.apply(rng.normal(size=(5, 40)))
assert abs(columns @ run.weights - columns @ run.twin).max() < {MAX_ERROR} * abs(columns).sum(axis=1).max()
facts = run.facts
assert facts["rows"] == dict(a=60, b=80, c=40) and facts["params"]["rows"] == 180 and facts["steps"] == 2
assert facts["security_bits"] == 128 and facts["verify"] == {{"custodian-1": "lockstep", "custodian-2": "off"}}
assert facts["guard"]["name"] == "custodian-1" and facts["bytes"]["a"]["upload"]["up"] > 5 * 10**5
assert facts["seconds"]["total"] >= facts["seconds"]["train"] > 0
features, labels = hospital(400)
assert ((run.outputs(features)[:, 0] > 0) == labels).mean() > 0.6
assert not {{"torch", "sklearn", "matplotlib", "timm"}} & set(sys.modules)
"""
    program = textwrap.dedent(text) + check
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr


def one_hot(rows: int, count: int) -> np.ndarray[Any, Any]:
    return np.eye(count, dtype=int)[np.arange(rows) % count]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"c": None}, "2 institutions are too few"),
        ({"c": (ROWS[0], LABELS)}, r"'c': features have shape \(31,\)"),
        ({"c": (ROWS.astype(str), LABELS)}, "'c': features have shape"),
        ({"c": (ROWS[:0], LABELS[:0])}, r"'c': features have shape \(0, 31\)"),
        ({"c": (np.where(ROWS > 2, np.nan, ROWS), LABELS)}, "'c': features hold NaN"),
        ({"c": (ROWS.astype(float) * 1e39, LABELS)}, "'c': features hold NaN or numbers that float32 cannot hold"),
        ({"c": (ROWS, LABELS[:-1])}, r"'c': labels have shape \(29,\) for 30 rows"),
        ({"c": (ROWS, LABELS - 1)}, "'c': labels must be class numbers"),
        ({"c": (ROWS, LABELS + 0.5)}, "'c': labels must be class numbers"),
        ({"c": (ROWS, 2 * one_hot(30, 3))}, "'c': labels must be class numbers"),
        ({"c": (ROWS, one_hot(30, 3))}, "different forms of labels"),
        ({"c": (ROWS[:, :30], LABELS)}, "different numbers of features: 30, 31"),
        ({n: (ROWS, 0 * LABELS) for n in "abc"}, "nothing to learn"),
    ],
)
def test_arrays_that_do_not_fit(change: dict[str, Any], words: str) -> None:
    given = {"a": (ROWS, LABELS), "b": (ROWS, LABELS), **change}
    with pytest.raises(FocalError, match=words) as e:
        simulate({name: arrays for name, arrays in given.items() if arrays is not None})
    assert "\n" not in e.value.message


def test_settings_that_are_not_allowed() -> None:
    with pytest.raises(FocalError, match="features is 48, it must be one of 32, 64, 128, 256"):
        simulate({n: (ROWS, LABELS) for n in "abc"}, features=48)


def test_who_cannot_go_on_tells_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of one class over all institutions: they say so, the others end with it, and nobody goes on afterwards."""
    # members that are there stay so as long as their links are open; no need to look for those who left
    monkeypatch.setattr(server, "ALIVE_SECONDS", 0.5)
    with three(tmp_path, ROWS, np.zeros_like(LABELS)) as run:
        run.start()
        with pytest.raises(FocalError, match="same label") as e:
            run.finish()
        assert "ended the run" not in str(e.value)
        assert set(run.errors) == set(run.files)
        for name in ("server", "custodian-1", "custodian-2"):
            assert "ended the run" in str(run.errors[name])
            assert "same label" in (tmp_path / name / "aborted").read_text()
        run.start("custodian-1")
        with pytest.raises(FocalError):
            run.finish()
        assert "this run was ended" in str(run.errors["custodian-1"])


def test_parties_that_stop_in_training_go_on_where_they_stood(tmp_path: Path) -> None:
    """A custodian and the server stop after the first step and start again: no share is made twice, and all decode the
    twin's weights."""
    stepped, ending = threading.Event(), threading.Event()

    def show(event: dict[str, Any]) -> None:
        """The server waits after its first step, or all would be over before it stops."""
        if event["party"] == "server" and event["phase"] == "train" and event.get("done", 0) >= 1:
            stepped.set()
            ending.wait(PATIENCE)

    steps = 4
    with three(tmp_path, ROWS, LABELS, steps, show) as run:
        run.start()
        assert stepped.wait(PATIENCE), run.errors
        ending.set()
        run.stop("custodian-2", "server")
        before = shares(tmp_path / "custodian-2")
        assert 1 <= len(before) < 2 * steps - 1, "it was not stopped in training"
        run.start("custodian-2", "server")
        run.finish()
        after = shares(tmp_path / "custodian-2")
        assert after[: len(before)] == before and len(set(after)) == len(after)
        ends = [p for p in run.parties.values() if isinstance(p, ArrayInstitution)]
        assert len(ends) == 3 and len({p.weights.tobytes() for p in ends}) == 1
        columns, targets = np.tile(ends[0].projection.apply(ROWS), (3, 1)), np.tile(0.5 - np.eye(3)[LABELS], (3, 1))
        exact = twin.train(columns, targets, twin.Scalars.derive(3, ends[0].projection.eta, 0.1, 90), steps)[0]
        assert np.abs(ends[0].weights - exact).max() < MAX_ERROR


def shares(folder: Path) -> list[tuple[Any, ...]]:
    """What a custodian's ledger holds."""
    (path,) = folder.glob("ledger-*.sqlite")
    return rows(path, "SELECT protocol, item, digest, share FROM shares ORDER BY number")
