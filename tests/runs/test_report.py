"""``focal report``: what the page says is what the run says, it fetches nothing, shows no patient unasked,
and a real browser likes it."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, headless
from consortium import Dataset, config, finished
from PIL import Image

from focal.config import RunConfig
from focal.data.rows import InstitutionRows, read_kept
from focal.errors import FocalError
from focal.measure.losses import read_losses
from focal.measure.summary import read_summary
from focal.reporting.explain import explain_images, explain_run
from focal.reporting.html import _jpeg, write_report
from focal.reporting.losses import plot_losses
from focal.reporting.table import model_rows
from focal.runs import local
from focal.segments import upper
from focal.segments.projection import Projection
from focal.segments.upper import ModelMeta, ReleasedModel


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run, so that what is written into it disturbs nobody."""
    folder = tmp_path_factory.mktemp("report") / "eyes"
    source = finished().folder
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("blobs", "cache"))
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return write_report(run, repeats=100, slow_repeats=5)


@pytest.fixture(scope="module")
def joint(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished interactive run with everything but encryption: its institutions' training is that of the plaintext
    twin. Compared with FedAvg, and with the blind run."""
    from focal.data import load
    from focal.protocols.interactive import plan
    from focal.segments.lower import build_lower
    from focal.training.joint import Site, train_jointly

    chosen = {
        "steps": 3,
        "batch": 8,
        "features": 32,
        "average_every": 2,
        "min_rows_of_others": 16,
        "trainable": "last",
        "blocks": 1,
    }
    settings = config("tuned", protocol="interactive", interactive={**chosen, "rate": 0.05, "schedule": "constant"})
    settings |= {"fedavg": True, "beside": [str(run)]}
    run = local.open_run(RunConfig.model_validate(settings), tmp_path_factory.mktemp("joint"))
    manifest = local.prepare(run, lambda text: None)
    names = [m.name for m in manifest.institutions]
    data = {
        name: run.config.dataset.model_copy(update={"rows": run.party(name) / "rows.txt", "classes": manifest.classes})
        for name in names
    }
    tables = {name: load(part, run.config.seed) for name, part in data.items()}
    sites = {name: Site(table, np.flatnonzero(table.split == "train")) for name, table in tables.items()}
    lower, _ = build_lower(manifest.lower, "random:0")
    logs = run.folder / "twin"
    schedule = plan.schedule(manifest)
    matrix = np.random.default_rng(1).normal(0, manifest.lower.dim**-0.5, (31, manifest.lower.dim)).astype(np.float32)
    start = Projection("random", matrix, np.zeros(31, np.float32), 4.0, 32, (1.0).hex())
    trained = train_jointly(lower, schedule, sites, folder=logs, start=start, seed=schedule.seed, device="cpu")
    head = trained.segment.head(trained.weights, manifest.task)
    head.trained = {name: p.detach() for name, p in trained.segment.trained().items() if name.startswith("lower.")}
    pinned = {
        "dataset": manifest.dataset,
        "weights": "random:0",
        "run_id": "01" * 32,
        "manifest_hash": manifest.hash.hex(),
    }
    meta = ModelMeta(
        classes=manifest.classes, task=manifest.task, lower=manifest.lower, interactive=manifest.interactive, **pinned
    )
    for name in names:
        upper.save(run.party(name) / "model.pt", head, meta)
        (run.party(name) / "projection.bin").write_bytes(start.to_bytes())
        (logs / name).rename(run.party(name) / "lightning")
        (run.party(name) / "events.jsonl").write_text(
            json.dumps({"party": name, "phase": "features", "start": 0.0, "seconds": 1.0}) + "\n"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("focal.runs.compare_joint.absences", lambda *_: {})  # nobody was, and there is no server's board
        local.finish(run, manifest, 0, lambda text: None)
    return run.folder


@pytest.fixture(scope="module")
def joint_page(joint: Path) -> Path:
    return write_report(joint, repeats=100, slow_repeats=5)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless() as found:
        yield found


def text(path: Path) -> str:
    """The page's words, without markup, style and images."""
    body = re.sub(r"<style>.*?</style>", "", path.read_text(), flags=re.S)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


def signed(value: float) -> str:
    """As the page writes a difference."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def changed(run: Path, tmp_path: Path, **fields: object) -> Path:
    """A copy of the run without its rows, with other values in its summary."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("parties", "report.html"))
    summary = copy / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), **fields}))
    return copy


def test_an_interactive_run_is_compared_with_what_it_was_asked_for(joint: Path, run: Path) -> None:
    """The frozen model that a blind run released, on the same test patients; FedAvg of the whole network, whose heads
    were apart for two steps; and what both are less than the encrypted one, resample by resample."""
    summary, blind = read_summary(joint), read_summary(run)
    others, minus = summary.auroc.others, summary.encrypted_minus
    assert others and minus and set(others) == {"fedavg", "eyes"} == set(summary.auroc_ci95.others or {})
    assert others["eyes"] == pytest.approx(blind.auroc.encrypted, abs=1e-9)
    assert others["fedavg"] != summary.auroc.plaintext_twin
    for name, score in {**others, **(summary.auroc.institutions or {})}.items():
        assert minus[name].difference == pytest.approx(summary.auroc.encrypted - score)
        assert minus[name].ci95[0] <= minus[name].difference <= minus[name].ci95[1] and 0 < minus[name].p <= 1
    assert minus["plaintext_twin"].difference == 0 and minus["plaintext_twin"].p == 1  # it was made by the twin
    rows = {name: note for name, _, _, note, _ in model_rows(summary)}
    assert f"encrypted {minus['fedavg'].difference:+.3f}" in rows["fedavg"]


# --------------------------------------------------------------------------- what it says


def test_the_page_says_what_the_run_says(run: Path, page: Path) -> None:
    summary, words = read_summary(run), text(page)
    assert page == run / "report.html" and page.stat().st_mode & 0o777 == 0o600
    auroc, (low, high) = summary.auroc, summary.auroc_ci95.encrypted
    assert f"Macro AUROC, encrypted {auroc.encrypted:.3f} 95 % interval {low:.3f} to {high:.3f}" in words
    for name, score in (auroc.institutions or {}).items():
        assert f"{name} alone {score:.3f}" in words
    for heading in (
        "Results",
        "Class by class",
        "Calibration",
        "Institution by institution",
        "Time and traffic",
        "Security statement",
    ):
        assert heading in words
    checkers = [name for name, policy in summary.verify.items() if policy == "lockstep"]
    assert checkers and f"Verified in lockstep by {', '.join(checkers)}" in words
    assert f"key shares of the release flooded by {summary.release.flooding_bits:.0f} bits" in words
    assert "Not protected" in words and "Rows larger than true ones" in words
    assert "projection.features" in words and "lower.model" in words


def test_measures_and_differences_are_those_of_the_rows(page: Path, run: Path) -> None:
    words, summary = text(page), read_summary(run)
    pooled = summary.auroc.pooled_plaintext
    assert pooled is not None
    assert (
        f"pooled plaintext {signed(summary.auroc.encrypted - pooled)}" in words
    )  # computed again from the rows, as the summary's figures were
    measures = re.search(r"The encrypted model by other measures .*? AUROC ([\d.]+) ", words)
    assert measures and float(measures[1]) == pytest.approx(summary.auroc.encrypted, abs=6e-4)


def test_no_file_name_or_patient_is_on_it_and_images_only_when_wanted(run: Path, page: Path, tmp_path: Path) -> None:
    plain = write_report(run, tmp_path / "plain.html", images=False, repeats=10, slow_repeats=2)
    for path in (page, plain):
        words = re.sub(
            r"base64,[A-Za-z0-9+/=]+", "", path.read_text()
        )  # a picture spells any four letters sooner or later
        assert len(words) < len(path.read_text()) / 2, "the pictures are still in it"
        assert Dataset.NAME not in words and Dataset.PATIENT not in words
        assert str(run.parent) not in words and "/tmp" not in words
    assert page.read_text().count("data:image/jpeg") == 4 and "This page shows patients' images" in text(
        page
    )  # one a class
    assert "data:image/jpeg" not in plain.read_text() and "left out on request" in text(plain)


def test_stored_explanations_are_shown_without_their_names(run: Path, tmp_path: Path) -> None:
    from consortium import dataset

    folder, steps = explain_run(run, dataset().images, limit=2)
    assert Dataset.NAME in (folder / "index.json").read_text()
    try:
        page = write_report(run, tmp_path / "stored.html", repeats=10, slow_repeats=2)
    finally:
        shutil.rmtree(folder)
    assert text(page).count("explained for") == 2 and Dataset.NAME not in page.read_text()
    assert all(step.randomised in text(page) for step in steps)


def test_a_cleaned_run_still_has_a_report(run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    copy = changed(run, tmp_path)
    words = text(write_report(copy, images=False, say=said.append))
    assert f"{read_summary(run).auroc.encrypted:.3f}" in words and "no longer on this machine" in words
    assert "against pooled" not in words.lower().replace(
        "against pooled plaintext", "", 1
    )  # the card stays, the paired test goes
    assert any("focal clean" in line for line in said)
    assert (copy / "report.html").read_text().count("data:image/png") == 3  # roc, per_class, timeline


def test_nobody_verifying_is_in_red(run: Path, tmp_path: Path) -> None:
    copy = changed(run, tmp_path, verify=dict.fromkeys(read_summary(run).verify, "off"))
    page = write_report(copy, images=False)
    assert "Nobody verified." in text(page) and "Server checked by nobody" in text(page)
    assert '<div class="box bad"><p><b>Nobody verified.' in page.read_text() and "Verified in lockstep" not in text(
        page
    )


def test_an_institution_reports_from_its_own_folder(run: Path, tmp_path: Path) -> None:
    """On several machines: its state folder, and a summary without what it cannot know.
    One with test rows of one class says so."""
    content = json.loads((run / "summary.json").read_text())
    del content["max_abs_weight_error"]
    for field in ("auroc", "auroc_ci95"):
        content[field] = {"encrypted": content[field]["encrypted"]}
    measured = 0
    for name in read_summary(run).auroc.institutions or {}:
        state = tmp_path / name
        shutil.copytree(run / "parties" / name, state)
        (state / "summary.json").write_text(json.dumps(content))
        words = text(write_report(state, repeats=50, slow_repeats=3))
        assert f"{name} One model" in words and "focal explain RUN" in words
        assert "Encrypted model against" not in words and "Against pooled plaintext" not in words
        own = InstitutionRows.union({name: read_kept(state)[0]}).scored
        several = len(np.unique(own.labels, axis=0)) > 1
        assert ("The encrypted model by other measures" in words) == several
        assert ("not on this page: AUROC is undefined: the test rows hold one class only" in words) != several
        measured += several
    assert measured


# --------------------------------------------------------------------------- an interactive run


def test_a_fine_tuned_model_is_measured_by_the_features_of_its_own_segment(joint: Path, joint_page: Path) -> None:
    """Computed again from images, split and ``model.pt``: figures of the summary,
    which features before training would miss."""
    summary, words = read_summary(joint), text(joint_page)
    measured = re.search(r"The encrypted model by other measures .*? AUROC ([\d.]+) ([\d.]+) to ([\d.]+) ", words)
    assert measured and float(measured[1]) == pytest.approx(summary.auroc.encrypted, abs=6e-4)
    pooled, alone = summary.auroc.pooled_plaintext, summary.auroc.institutions or {}
    assert pooled is not None and alone
    for other, score in {
        "pooled plaintext": pooled,
        **{f"{name} alone": value for name, value in alone.items()},
    }.items():
        assert f"{other} {signed(summary.auroc.encrypted - score)} " in words
    trained = {name: len(path.read_text().split()) for name in alone if (path := joint / "parties" / name / "rows.txt")}
    for name in alone:
        row = re.search(rf"classes it cannot score .*?{name} (\d+) (\d+) ", words)
        assert row and int(row[1]) + int(row[2]) == trained[name]
    assert "Observed against predicted frequency" in joint_page.read_text()
    assert Dataset.NAME not in joint_page.read_text() and Dataset.PATIENT not in joint_page.read_text()


def test_an_interactive_run_states_what_it_gives_away(joint: Path, joint_page: Path, page: Path) -> None:
    words, summary = text(joint_page), read_summary(joint)
    assert "interactive protocol" in words and "checked to within a factor only" in words
    assert "learns the head from its own openings" in words
    assert (
        re.search(rf"ciphertexts opened, at most: .*? {summary.release.openings} ", words)
        and "(the final weights)" not in words
    )
    assert "rows of other institutions in a step, at least 16 " in words
    assert "its own logits and gradients of each step" in words and "every average of the trained parameters" in words
    assert "pooled feature moments" not in words and "pooled moments" not in words  # only class counts are pooled
    assert (
        "interactive.trainable last" in words and "projection.features" not in words and "training.steps" not in words
    )
    values = sum(value.numel() for value in upper.load(joint)[0].trained.values())
    assert f"trained in the lower segment {values} values (last)" in words and upper.released_digest(joint) in words
    blind = text(page)
    assert (
        "checked to within a factor only" not in blind
        and "pooled feature moments" in blind
        and "interactive.steps" not in blind
        and "Loss by joint step" not in blind
    )


def test_the_loss_is_that_of_the_logs(joint: Path, joint_page: Path, tmp_path: Path) -> None:
    logs = [read_losses(path) for path in sorted(joint.glob("parties/*/lightning"))]
    assert [sorted(log) for log in logs] == [[0, 1, 2]] * 3
    assert f"differs by at most {read_summary(joint).params['loss_difference']:.1e} of its value" in text(joint_page)
    plot_losses(logs, [read_losses(path) for path in joint.glob("twin/*")], tmp_path / "loss.png")
    drawn = base64.b64encode((tmp_path / "loss.png").read_bytes()).decode()
    assert drawn in joint_page.read_text() and "Loss by joint step" in text(joint_page)
    with pytest.raises(FocalError, match="no joint step has a loss of every institution"):
        plot_losses([{0: 1.0}, {1: 1.0}], [], tmp_path / "none.png")


def test_overlays_are_drawn_by_the_fine_tuned_segment(joint: Path, joint_page: Path) -> None:
    from focal.data import load
    from focal.reading import read

    tuned, settings = ReleasedModel.load(joint), read(RunConfig, joint / "config.json")
    before = ReleasedModel(
        upper.lower_segment(tuned.meta.model_copy(update={"interactive": None})), tuned.head, tuned.meta
    ).eval()
    table, page = load(settings.dataset, settings.seed), joint_page.read_text()
    images = [table.images.read(int(row)) for row in table.test_rows]
    shown = [image for image, one in zip(images, explain_images(tuned, images), strict=True) if _jpeg(one) in page]
    assert len(shown) == 4  # one of each class
    assert not any(_jpeg(one) in page for one in explain_images(before, shown))
    assert "The maps are those of the fine-tuned lower segment." in text(joint_page)


def test_a_cleaned_interactive_run_and_one_institutions_folder_say_what_is_missing(joint: Path, tmp_path: Path) -> None:
    words = text(write_report(changed(joint, tmp_path), images=False))
    assert "no longer on this machine (focal clean)" in words and "Loss by joint step" not in words
    assert "checked to within a factor only" in words
    state = tmp_path / "hospital-a"
    shutil.copytree(joint / "parties" / "hospital-a", state)
    shutil.copy(joint / "summary.json", state)
    words = text(write_report(state))
    assert "measure its model with: focal evaluate RUN" in words and "Loss by joint step" in words


def test_a_run_that_is_not_finished_has_none(tmp_path: Path) -> None:
    with pytest.raises(FocalError, match="summary.json: cannot be read"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------- in a browser


@pytest.mark.parametrize(("fixture", "title"), [("page", "eyes"), ("joint_page", "tuned")])
def test_a_browser_shows_everything_and_asks_for_nothing(
    browser: Browser, fixture: str, title: str, request: pytest.FixtureRequest
) -> None:
    page: Path = request.getfixturevalue(fixture)
    browser.open(page)
    assert browser.run("return document.title") == f"{title}: FOCAL report"
    images = browser.run(
        "return [...document.images].map(i => [i.complete && i.naturalWidth > 0 && i.clientWidth > 40, i.alt])"
    )
    assert len(images) >= 8 and all(shown and alt for shown, alt in images)
    assert browser.console() == []
    asked = [url for url in browser.requests() if not url.startswith("data:")]
    assert asked == [page.absolute().as_uri()]
    broken = browser.run(
        "return [...document.querySelectorAll('nav a')].filter(a => !document.querySelector(a.hash)).length"
    )
    assert broken == 0
    styled = browser.run("return getComputedStyle(document.querySelector('section')).borderRadius")
    assert styled != "0px"
    picture = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("L"))
    assert picture.std() > 20 and picture.max() == 255


@pytest.mark.parametrize("fixture", ["page", "joint_page"])
@pytest.mark.parametrize("width", [1280, 700, 500])  # chromium's windows are at least 500 wide
def test_nothing_sticks_out_of_the_window(
    browser: Browser, fixture: str, width: int, request: pytest.FixtureRequest
) -> None:
    browser.open(request.getfixturevalue(fixture), width)
    inner, needed = browser.run("return [document.documentElement.clientWidth, document.documentElement.scrollWidth]")
    assert needed <= inner <= width
    hidden = browser.run(
        "return [...document.querySelectorAll('h1, h2, h3, p, li, figcaption, .card')]"
        ".filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 60))"
    )
    assert hidden == []


def test_intervals_are_drawn_where_the_numbers_say(browser: Browser, page: Path, run: Path) -> None:
    browser.open(page)
    rows = browser.run(
        "return [...document.querySelectorAll('table.models tbody tr')].map(r => [r.cells[1].textContent,"
        " r.querySelector('circle').getBoundingClientRect().x])"
    )
    order = [float(score) for score, _ in rows]
    assert len(rows) == len(read_summary(run).auroc.institutions or {}) + 3 and len(set(order)) > 1
    by_place = [score for score, _ in sorted(rows, key=lambda row: row[1])]
    assert [float(score) for score in by_place] == sorted(order)


def test_names_are_text_and_never_markup(browser: Browser, run: Path, tmp_path: Path) -> None:
    hostile = "<img src=http://192.0.2.1/x onerror=alert(1)><script>document.title='taken'</script>"
    copy = changed(run, tmp_path, dataset=hostile)
    page = write_report(copy, images=False)
    browser.open(page)
    assert hostile in browser.run("return document.querySelector('header p').textContent")
    assert browser.run("return document.title") != "taken"
    assert not any("192.0.2.1" in url for url in browser.requests())
