"""The result contract, its validator, and what the terminal says of it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import CONTRACT
from rich.console import Console
from summaries import CUSTODIANS, SITES, summary

from focal.errors import FocalError
from focal.measure.summary import PHASES, Auroc, AurocInterval, Summary, read_summary, write_summary
from focal.measure.traffic import Traffic, add_up, human_bytes, merge, mirrored
from focal.reporting.html import write_report
from focal.reporting.table import print_results


def printed(result: Summary) -> str:
    out = io.StringIO()
    print_results(result, Console(file=out, width=140))
    return out.getvalue()


def test_a_local_run_satisfies_the_shared_contract_check(tmp_path: Path) -> None:
    if not CONTRACT.is_file():
        pytest.skip(f"{CONTRACT} is not here")
    write_summary(summary(), tmp_path)
    ran = subprocess.run([sys.executable, str(CONTRACT), str(tmp_path)], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip()) == (0, "the contract holds")


def test_written_private_and_read_back_equal(tmp_path: Path) -> None:
    path = write_summary(summary(), tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_summary(tmp_path) == read_summary(path) == summary()


def test_totals_and_empty_phases_are_filled_in() -> None:
    traffic = {
        p: {"keys": {"up": 1, "down": 2}, "openings": {"up": 10, "down": 20}} for p in ("server", *SITES, *CUSTODIANS)
    }
    party = summary(traffic=traffic).bytes["hospital-a"]
    assert (party.up, party.down) == (11, 22)
    assert set(party.by_phase) == {*PHASES, "openings"}
    assert party.by_phase["release"].up == 0


def test_a_phase_that_the_contract_does_not_know_counts_as_set_up() -> None:
    party = summary(traffic={p: {"lunch": {"up": 1, "down": 2}} for p in ("server", *SITES, *CUSTODIANS)}).bytes[
        "hospital-a"
    ]
    assert (party.by_phase["keys"].up, party.by_phase["keys"].down) == (1, 2)


def test_several_machines_leave_out_what_one_site_cannot_know(tmp_path: Path) -> None:
    site = summary(
        auroc=Auroc(encrypted=0.8), auroc_ci95=AurocInterval(encrypted=(0.7, 0.9)), max_abs_weight_error=None,
        traffic={"hospital-a": {"upload": {"up": 3, "down": 4}}},
    )  # fmt: skip
    written = json.loads(write_summary(site, tmp_path).read_text())
    assert written["auroc"] == {"encrypted": 0.8}
    assert "max_abs_weight_error" not in written
    assert "institutions" not in printed(site) and "0.800" in printed(site)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seconds": {"keys": 1.0}}, "seconds.total"),
        (
            {"seconds": dict.fromkeys(("keys", "features", "upload", "train", "release", "total"), float("nan"))},
            "seconds.keys",
        ),
        ({"max_abs_weight_error": None}, "max_abs_weight_error missing"),
        ({"traffic": {"server": {}}}, "bytes lacks custodian-1, custodian-2, hospital-a"),
        ({"verify": dict.fromkeys(CUSTODIANS, "maybe")}, "verify.custodian-1"),
        ({"verify": {"custodian-1": "off"}}, "verify"),
        ({"params": {}}, "params"),
        ({"params": {"x": float("inf")}}, "not JSON compliant"),
        ({"steps": 0}, "steps"),
        ({"release": {"openings": 1}}, "release.flooding_bits"),
    ],
)
def test_what_breaks_the_contract_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FocalError, match=words):
        summary(**changes)


def test_unreadable_summaries_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(FocalError, match="cannot be read"):
        read_summary(tmp_path)
    for text in ("{", "[]", '{"protocol": "blind"}', "\x00"):
        (tmp_path / "summary.json").write_text(text)
        with pytest.raises(FocalError, match="summary.json"):
            read_summary(tmp_path)


def test_the_table_has_every_model_its_interval_and_the_costs() -> None:
    lines = [" ".join(line.split()) for line in printed(summary()).splitlines()]
    text = "\n".join(lines)
    assert "hospital-b alone 0.740 0.700 to 0.770" in text and "pooled plaintext 0.765 0.750 to 0.780" in text
    assert "encrypted 0.765 0.740 to 0.790 5 steps on ciphertexts; above 3 of 3 institutions alone" in text
    assert "plaintext twin 0.766" in text and "weights within 2.0e-05" in text
    assert "43.0 in all" in text and "custodian-2: 101 MB up, 5 B down" in text and "30-bit noise" in text


def test_who_was_left_out_and_why_is_read_back_and_printed(tmp_path: Path) -> None:
    out = {f"clinic-{i}": "it has not come" for i in range(12)} | {"hospital-d": "its list is not as agreed"}
    write_summary(summary(left_out=out), tmp_path)
    assert read_summary(tmp_path).left_out == out and summary().left_out is None
    text = " ".join(printed(summary(left_out=out)).split())
    assert "Left out: hospital-d: its list is not as agreed." in text and "Left out" not in printed(summary())
    assert "clinic-9 and 2 others: it has not come." in text and "clinic-10" not in text
    assert "Left out: hospital-d: its list is not as agreed." in write_report(tmp_path, images=False).read_text()


def test_nobody_verifying_is_said_loudly_and_somebody_is_named() -> None:
    assert "WARNING: nobody verifies" in printed(summary())
    verified = printed(summary(verify={"custodian-1": "lockstep", "custodian-2": "off"}))
    assert "WARNING" not in verified and "custodian-1 re-ran every step" in verified


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (101e6, "101 MB"), (2.5e9, "2.5 GB")]
)
def test_human_bytes(count: float, text: str) -> None:
    assert human_bytes(count) == text


def test_bytes_are_added_up_by_phase_and_seen_from_both_ends() -> None:
    before = {"upload": {"up": 5, "down": 1}, "keys": {"up": 2, "down": 3}}
    now = {"upload": {"up": 10, "down": 0}, "average": {"up": 1}}
    after = merge(before, now)
    assert list(after) == ["average", "keys", "upload"]  # whatever the order of phases was
    assert after == {
        "average": {"up": 1, "down": 0},
        "keys": {"up": 2, "down": 3},
        "upload": {"up": 15, "down": 1},
    }
    assert mirrored(after)["upload"] == {"up": 1, "down": 15} and mirrored(mirrored(after)) == after
    rounds = {"a": Traffic(up=1, down=2)}, {"b": Traffic(up=4, down=0)}, {"a": Traffic(up=10, down=20)}
    assert add_up(*rounds) == {"a": Traffic(up=11, down=22), "b": Traffic(up=4, down=0)} and add_up() == {}
