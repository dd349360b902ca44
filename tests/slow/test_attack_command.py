"""``focal attack`` from the command to the table: cells are kept, pictures come with --show only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from consortium import LOWER, cli, said

from focal.attacks import scenarios, study
from focal.measure.leaks import FOLDER, read_leaks
from focal.reporting.html import write_report

pytestmark = pytest.mark.slow

QUICK = (
    "fedavg.imprint",
    "split.features",
    "split.labels",
    "focal-blind.server",
    "focal-blind.all-keys",
    "focal-blind.membership",
    "focal-blind.server-labels",
    "focal-blind.all-keys-labels",
    "focal-blind.scan",
    "focal-blind.scan-planted",
    "focal-interactive.server",
    "focal-interactive.coalition",
    "focal-interactive.coalition-membership",
    "focal-interactive.averages-membership",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of some attacks on 400 generated images, most of them on two FOCAL runs that the command trains."""
    out = tmp_path_factory.mktemp("attacks")
    settings = {
        "name": "tiny",
        "dataset": {"kind": "synthetic", "samples": 400},
        "lower": LOWER,
        "projection": {"features": 32, "bound": 4.0},
        "training": {"steps": 2},
        "consortium": {"institutions": 3, "custodians": 2},
        "device": "cpu",
    }
    (out / "tiny.yaml").write_text(json.dumps(settings))
    told = run(out)
    assert "leaks.md" in told, told
    return out


def run(out: Path, *more: str) -> str:
    config = ("--config", str(out / "tiny.yaml"), "--out", str(out / "found"), "--seeds", "1")
    return said(cli("attack", *QUICK, *config, *more))


def test_the_table_has_every_attack_with_its_baselines(folder: Path) -> None:
    found = read_leaks(folder / "found")
    assert found is not None and {leak.name for leak in found.leaks} == set(QUICK)
    by_name = {leak.name: leak for leak in found.leaks}
    for leak in found.leaks:
        assert [leak.images, leak.separated, leak.relations].count(None) == 2
        assert leak.images is None or (leak.mean is not None and leak.random is not None and leak.control is not None)
    assert by_name["fedavg.imprint"].beats and by_name["split.features"].beats and by_name["focal-blind.all-keys"].beats
    assert not by_name["focal-blind.server"].beats
    assert (
        abs(by_name["focal-blind.server"].correlation or 0) < 0.1 < (by_name["focal-blind.all-keys"].correlation or 0)
    )
    assert by_name["focal-blind.all-keys-labels"].succeeds and not by_name["focal-blind.server-labels"].succeeds
    assert by_name["focal-blind.scan-planted"].succeeds and not by_name["focal-blind.scan"].succeeds
    assert by_name["focal-interactive.coalition-membership"].succeeds and not by_name["focal-interactive.server"].beats
    assert "| FOCAL, blind: decoder on ciphertexts |" in (folder / "found" / "leaks.md").read_text()
    assert (folder / "found" / "leaks.png").exists()


def test_every_attack_is_known_to_work_somewhere() -> None:
    for one in scenarios.SCENARIOS.values():
        assert one.teeth in scenarios.SCENARIOS, one.name


def test_finished_cells_are_not_run_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(*_: object) -> None:
        raise AssertionError("a finished cell is run again")

    monkeypatch.setattr(study.Study, "make", make)
    run(folder)


def test_cells_of_other_knowledge_are_not_mixed(folder: Path) -> None:
    (folder / "mine.yaml").write_text("name: mine\nwho: [server]\nactive: true\nknows: {public_images: 60}\n")
    assert "another configuration" in run(folder, "--threat", str(folder / "mine.yaml"))


def test_pictures_are_drawn_when_they_are_asked_for(folder: Path) -> None:
    found = folder / "found"
    assert not (found / "pictures").exists() and not list(found.glob("cells/*.npz"))
    said(cli("attack", "fedavg.imprint", "--config", folder / "tiny.yaml", "--out", found, "--seeds", "1", "--show"))
    assert [path.name for path in (found / "pictures").iterdir()] == ["fedavg.imprint.png"]
    (kept,) = found.glob("cells/*.npz")
    assert kept.stat().st_mode & 0o077 == 0


def test_a_finished_run_is_attacked_in_its_own_folder_and_its_page_says_so(folder: Path) -> None:
    manifest = folder / "found" / "runs" / "tiny" / "manifest.json"
    told = said(cli("attack", manifest.parent, "--attacks", "server,membership", "--seeds", "1"))
    assert "focal-blind.server 0" in told, told
    found = read_leaks(manifest.parent / FOLDER)
    assert found is not None and {leak.method for leak in found.leaks} == {"focal-blind"}
    page = write_report(manifest.parent, images=False, repeats=20, slow_repeats=20).read_text()
    assert "What attacks recovered" in page and "decoder on ciphertexts" in page


def test_a_finished_interactive_run_is_attacked_too(folder: Path) -> None:
    run = folder / "found" / "runs" / "tiny-joint"
    told = said(cli("attack", run, "--attacks", "coalition-membership", "--seeds", "1"))
    assert "focal-interactive.coalition-membership 0" in told, told
    assert "is an interactive run" in said(cli("attack", run, "focal-blind.server", "--seeds", "1"))
