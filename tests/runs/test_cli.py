"""The commands a person types: what they print, write and refuse. Whole runs: test_blind_run.py;
running parties: test_bad_input.py."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from consortium import ENV, Dataset, Finished, cli, config, dataset, finished, focal, said, write_config, write_csv
from manifests import MEMBERS, manifest, member
from patience import PATIENCE

from focal.config import LayoutConfig, LocalConfig, RunConfig
from focal.data import load, pictures
from focal.data.sources import EncodedImages
from focal.data.table import Table
from focal.errors import FocalError
from focal.manifest import LayoutSpec, Manifest
from focal.protocols.blind.institution import BlindInstitution
from focal.protocols.common.progress import Reporter
from focal.reading import read, write
from focal.runs import local


def refused(*arguments: object) -> str:
    """What a command says when it refuses; one or two lines, no traceback, status 1."""
    result = cli(*arguments)
    assert result.returncode == 1
    assert "error: " in result.stderr
    return said(result)


# --------------------------------------------------------------------------- the program


def test_help_lists_every_command() -> None:
    result = focal("--help")
    assert result.returncode == 0
    for command in (
        "demo",
        "train",
        "evaluate",
        "predict",
        "explain",
        "report",
        "approve",
        "server",
        "custodian",
        "institution",
        "keys",
        "manifest",
        "bench",
    ):
        assert command in result.stdout


def test_unknown_commands_and_options_are_usage_errors() -> None:
    for arguments in (
        ["trian"],
        ["train"],
        ["train", "--confg", "x"],
        ["manifest", "add", "m.json", "--role", "boss", "--public", "p"],
    ):
        result = cli(*arguments)
        assert result.returncode == 2 and "Traceback" not in result.stderr


@pytest.mark.parametrize("role", ["server", "custodian"])
def test_server_and_custodians_never_import_torch(role: str) -> None:
    parts = f"from focal.protocols import PROTOCOLS\nfor protocol in PROTOCOLS.values(): protocol.part({role!r})"
    program = f"import sys, focal.cli, focal.protocols.start\n{parts}\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=PATIENCE, env=ENV).returncode == 0


# --------------------------------------------------------------------------- keys and manifest


def test_keys_new_makes_a_private_and_a_public_file_and_overwrites_neither(tmp_path: Path) -> None:
    assert cli("keys", "new", "--name", "north", "--out", tmp_path).returncode == 0
    private, public = tmp_path / "north.key.json", tmp_path / "north.public.json"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes(), public.read_bytes()
    secrets = {json.loads(before[0])[k] for k in ("sign", "seal", "curve")}
    assert not any(s in before[1].decode() for s in secrets)
    text = refused("keys", "new", "--name", "north", "--out", tmp_path)
    assert str(private) in text and "not overwritten" in text
    assert (private.read_bytes(), public.read_bytes()) == before


def test_keys_new_refuses_a_name_that_no_manifest_takes(tmp_path: Path) -> None:
    text = refused("keys", "new", "--name", "St. Mary's", "--out", tmp_path)
    assert "St. Mary's" in text and "lower-case" in text
    assert not list(tmp_path.iterdir())


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A manifest without members, and keys of three parties beside it."""
    path = tmp_path / "manifest.json"
    assert cli("manifest", "new", "--config", write_config(tmp_path, "m"), "--out", path).returncode == 0
    for name in ("hub", "keeper", "north"):
        assert cli("keys", "new", "--name", name, "--out", tmp_path).returncode == 0
    return path


def test_manifest_new_pins_the_model_and_does_not_overwrite(begun: Path, tmp_path: Path) -> None:
    m = read(Manifest, begun)
    assert (
        m.members == ()
        and m.lower.dim == 64
        and m.classes == ("healthy", "mild", "moderate", "severe")
        and m.dataset == "eyes"
    )
    assert str(begun) in refused("manifest", "new", "--config", tmp_path / "m.yaml", "--out", begun)
    assert read(Manifest, begun) == m


def test_more_columns_than_the_lower_segment_gives_are_refused_before_anybody_signs(
    begun: Path, tmp_path: Path
) -> None:
    wide, out = {"kind": "whiten", "features": 128, "bound": 4.0}, tmp_path / "wide.json"
    text = refused("manifest", "new", "--config", write_config(tmp_path, "wide", projection=wide), "--out", out)
    assert "projection.features is 128" in text and "64 features" in text and "65 or less" in text
    assert not out.exists()
    edited = read(Manifest, begun).model_dump(mode="json") | {"projection": wide}
    begun.write_text(json.dumps(edited))
    assert "projection.features is 128" in refused("manifest", "check", begun)


def test_an_interactive_manifest_from_its_beginning_to_its_check(tmp_path: Path) -> None:
    """The check says what trains, what a joint step costs, and what the protocol takes on trust."""
    path = tmp_path / "joint.json"
    interactive = {"steps": 20, "features": 32, "trainable": "norm"}
    made = write_config(tmp_path, "joint", protocol="interactive", interactive=interactive)
    assert cli("manifest", "new", "--config", made, "--out", path).returncode == 0
    members = {
        "hub": ("server", "--endpoint", "tcp://10.0.0.1:7788"),
        "one": ("custodian", "--verify", "lockstep"),
        "two": ("custodian",),
    }
    members |= {name: ("institution", "--rows", "40") for name in ("north", "south", "west")}
    for name, role in members.items():
        assert cli("keys", "new", "--name", name, "--out", tmp_path).returncode == 0
        added = cli("manifest", "add", path, "--public", tmp_path / f"{name}.public.json", "--role", *role)
        assert added.returncode == 0, said(added)
    assert "joint step: 96 of" in said(added)  # three batches of 32
    m = read(Manifest, path)
    assert m.layout is None and m.interactive is not None and m.interactive.trainable == "norm"
    text = said(cli("manifest", "check", path))
    assert (
        "'norm' of the lower segment trains" in text
        and "20 steps" in text
        and "checked to within a factor of 2^11 only" in text
    )
    wide = write_config(tmp_path, "wide", protocol="interactive", interactive={"features": 128})
    assert "64 features" in refused("manifest", "new", "--config", wide, "--out", tmp_path / "wide.json")


def test_manifest_check_says_whose_blocks_are_whose_and_what_sharing_them_costs(tmp_path: Path) -> None:
    path, lanes = tmp_path / "manifest.json", LayoutSpec(class_lanes=4, feature_lanes=1)
    write(manifest(layout=lanes), path)
    text = " ".join(said(cli("manifest", "check", path)).split())
    assert "3 own block(s)" in text and "blocks north 0, south 1, west 2" in text and "share_blocks" not in text
    write(manifest(layout=lanes, share_blocks=True), path)
    text = " ".join(said(cli("manifest", "check", path)).split())
    assert "1 shared block(s)" in text and "blocks north 0, south 0, west 0" in text
    assert (
        "share_blocks: true: masks keep every institution to its own rows" in text
        and "leave 2^-79 of what it writes into others'" in text
    )
    many = tuple(member(f"clinic-{i}", "institution", 1000 + i, rows=1) for i in range(101))
    write(
        manifest(layout=lanes, share_blocks=True, members=(*(m for m in MEMBERS if m.role != "institution"), *many)),
        path,
    )
    assert "101 institutions share block 0; with 2 custodians at most 100 may" in " ".join(
        refused("manifest", "check", path).split()
    )


def test_manifest_add_needs_what_the_role_needs(begun: Path, tmp_path: Path) -> None:
    for role, missing in (("server", "endpoint"), ("institution", "rows")):
        text = refused("manifest", "add", begun, "--role", role, "--public", tmp_path / "hub.public.json")
        assert missing in text and role in text
    broken = tmp_path / "broken.json"
    broken.write_text("[]")
    assert str(broken) in refused("manifest", "add", begun, "--role", "custodian", "--public", broken)
    assert "focal keys new" in refused(
        "manifest", "add", begun, "--role", "custodian", "--public", tmp_path / "away.json"
    )
    assert read(Manifest, begun).members == ()


def test_manifest_add_twice_and_sign_too_early(begun: Path, tmp_path: Path) -> None:
    added = cli(
        "manifest",
        "add",
        begun,
        "--role",
        "custodian",
        "--public",
        tmp_path / "keeper.public.json",
        "--verify",
        "lockstep",
    )
    assert added.returncode == 0 and read(Manifest, begun).custodians[0].verify == "lockstep"
    again = refused("manifest", "add", begun, "--role", "custodian", "--public", tmp_path / "keeper.public.json")
    assert "same name" in again
    assert "exactly one server" in refused("manifest", "sign", begun, "--keys", tmp_path / "keeper.key.json")
    assert read(Manifest, begun).signatures == {}


def test_adding_a_member_voids_earlier_signatures_and_a_stranger_cannot_sign(tmp_path: Path) -> None:
    run = local.open_run(RunConfig.model_validate(config("signed")), tmp_path)
    local.prepare(run, lambda text: None)
    assert len(run.manifest.signatures) == 6
    assert cli("keys", "new", "--name", "late", "--out", tmp_path).returncode == 0
    text = refused("manifest", "sign", run.manifest_file, "--keys", tmp_path / "late.key.json")
    assert "'late' is not a member" in text
    added = cli(
        "manifest",
        "add",
        run.manifest_file,
        "--role",
        "institution",
        "--rows",
        30,
        "--public",
        tmp_path / "late.public.json",
    )
    assert added.returncode == 0 and "earlier signatures are void" in said(added)
    assert run.manifest.signatures == {} and run.manifest.rows == 88 + 30
    signed = cli("manifest", "sign", run.manifest_file, "--keys", tmp_path / "late.key.json")
    assert signed.returncode == 0 and "still to sign: server, custodian-1" in said(signed)


# --------------------------------------------------------------------------- data


def torn(folder: Path) -> Path:
    """The data set's images in a folder, one of a train row and one of a test row torn."""
    with zipfile.ZipFile(dataset().images) as z:
        z.extractall(folder)
    for row in (next(i for i, r in enumerate(load_table().split) if r == "train"), int(load_table().test_rows[0])):
        path = folder / f"{Dataset.NAME}{row:03d}.png"
        path.write_bytes(path.read_bytes()[:200])
    return folder


def load_table() -> Table:
    return load(RunConfig.model_validate(config("any")).dataset, config("any")["seed"])


def test_data_check_says_what_there_is_and_names_every_bad_image(tmp_path: Path) -> None:
    result = cli("data", "check", dataset().table, dataset().images)
    assert result.returncode == 0 and "rows      120 (" in result.stdout and "120 PNG RGB of 8 bits" in result.stdout
    assert "--rows 88" in cli("data", "check", "--config", write_config(tmp_path, "eyes")).stdout
    bad = refused("data", "check", dataset().table, torn(tmp_path / "images"))
    assert "2 of 120 images cannot be used" in bad and bad.count("cannot be decoded") == 2 and "bad_images" in bad
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "[bold]a[.png").write_bytes(b"cut")
    (odd / "b.png").write_bytes((tmp_path / f"images/{Dataset.NAME}119.png").read_bytes())
    head = "filename,label,patient,split"
    (tmp_path / "odd.csv").write_text(f"{head}\n[bold]a[.png,x,1,train\nb.png,x,2,train\nb.png,y,3,test\n")
    settings = {"kind": "table", "table": str(tmp_path / "odd.csv"), "images": str(odd), "bad_images": "skip"}
    skipping = write_config(tmp_path, "odd", dataset={**settings, "classes": ["x", "y"]})
    told = cli("data", "check", "--config", skipping)
    assert told.returncode == 0 and "'[bold]a[.png'" in told.stdout, "names are no markup"
    assert "nothing to look at" in refused("data", "check", dataset().table)


def test_images_that_are_skipped_are_nobodys(tmp_path: Path) -> None:
    bad = {"images": str(torn(tmp_path / "images"))}
    run = local.open_run(RunConfig.model_validate(config("torn", dataset=bad)), tmp_path)
    with pytest.raises(FocalError, match="2 of 120 images cannot be used"):
        local.prepare(run, lambda text: None)
    run = local.open_run(RunConfig.model_validate(config("torn2", dataset={**bad, "bad_images": "skip"})), tmp_path)
    said: list[str] = []
    manifest = local.prepare(run, said.append)
    assert manifest.rows == 87 and any("2 images cannot be read and are left out" in line for line in said)
    dealt = [int(n) for name in "abc" for n in (run.party(f"hospital-{name}") / "rows.txt").read_text().split()]
    assert len(dealt) == len(set(dealt)) == 118


def test_a_run_decodes_every_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher, which looks at all images, computes their features; an institution reads its own once, to know
    them by their content, and one that has a cache of its own decodes them once, whatever it does with them."""
    reads, decoded = Counter[str](), Counter[str]()
    honest, honest_bytes = pictures.decode, EncodedImages._bytes

    def counted(data: bytes, where: str, *rest: Any) -> pictures.Picture:
        decoded[where] += 1
        return honest(data, where, *rest)

    def counted_bytes(images: EncodedImages, i: int) -> bytes:
        reads[str(images.names[i])] += 1
        return honest_bytes(images, i)

    monkeypatch.setattr("focal.data.sources.decode", counted)
    monkeypatch.setattr(EncodedImages, "_bytes", counted_bytes)
    run = local.open_run(RunConfig.model_validate(config("once")), tmp_path)
    manifest = local.prepare(run, lambda text: None)
    assert (len(reads), set(reads.values())) == (120, {1}) == (len(decoded), set(decoded.values()))
    for name, cache in {"hospital-a": tmp_path / "cache", "hospital-b": tmp_path / "own"}.items():
        reads.clear(), decoded.clear()
        mine = read(LocalConfig, run.party(name) / "local.json").model_copy(update={"cache": cache})
        party = BlindInstitution(manifest, mine, Reporter(name, tmp_path / f"{name}.jsonl", lambda event: None))
        try:
            rows, _ = party._features()
        finally:
            party.close()
        count = len((run.party(name) / "rows.txt").read_text().split())
        assert len(rows.features) == count == len(reads) and set(reads.values()) == {1}
        assert list(decoded.values()) == [1] * (count if cache == tmp_path / "own" else 0)


def test_a_members_rows_are_counted_where_its_data_are(tmp_path: Path) -> None:
    made, path = write_config(tmp_path, "begun"), tmp_path / "m.json"
    assert cli("manifest", "new", "--config", made, "--out", path).returncode == 0
    assert cli("keys", "new", "--name", "north", "--out", tmp_path).returncode == 0
    data = {"kind": "table", "table": str(dataset().table), "images": str(dataset().images)}
    settings = {"name": "north", "keys": str(tmp_path / "north.key.json"), "state": str(tmp_path / "state")}
    mine = tmp_path / "north.yaml"
    mine.write_text(yaml.safe_dump({**settings, "data": data, "weights": "random:0", "seed": config("begun")["seed"]}))
    add = (
        "manifest",
        "add",
        path,
        "--role",
        "institution",
        "--public",
        tmp_path / "north.public.json",
        "--local",
        mine,
    )
    assert "88 training rows, not 40" in refused(*add, "--rows", 40)
    added = cli(*add)
    assert added.returncode == 0, said(added)
    assert read(Manifest, path).institutions[0].rows == 88


# --------------------------------------------------------------------------- a finished run


@pytest.fixture(scope="module")
def run() -> Finished:
    return finished()


def test_approve_needs_a_custodians_folder(run: Finished, tmp_path: Path) -> None:
    assert "no custodian's state folder" in refused("approve", tmp_path)


def test_scoring_a_folder_without_a_model(tmp_path: Path) -> None:
    text = refused("evaluate", tmp_path, "--table", dataset().table, "--images", dataset().images)
    assert str(tmp_path) in text and "runs/NAME" in text


def test_scoring_other_labels_names_both_sets(run: Finished) -> None:
    text = refused("evaluate", run.folder, "--table", dataset().binary, "--images", dataset().images)
    assert "binary.csv" in text and "sick" in text and "moderate" in text


def test_scoring_with_other_weights(run: Finished) -> None:
    options = ["--table", dataset().table, "--images", dataset().images, "--allow-seen", "--weights", "random:5"]
    text = refused("evaluate", run.folder, *options)
    assert "random:5" in text and "sha256" in text


def test_scoring_another_hospitals_table_by_subgroup(run: Finished, tmp_path: Path) -> None:
    """Its own words for the classes, an age column, and one row that has no counterpart."""
    rows = [{**row, "label": f"their-{row['label']}", "age": 30 + i} for i, row in enumerate(dataset().rows())]
    table = write_csv(tmp_path / "there.csv", [{**rows[0], "label": "unreadable"}, *rows[1:]])
    words = {f"their-{name}": name for name in ("healthy", "mild", "moderate", "severe")}
    labels = tmp_path / "labels.yaml"
    labels.write_text(yaml.safe_dump({"labels": {**words, "unreadable": None}}))
    options = ["--table", table, "--images", dataset().images]
    assert "their-mild" in refused("evaluate", run.folder, *options)
    assert "trained this model" in refused("evaluate", run.folder, *options, "--labels", labels)
    options.append("--allow-seen")
    result = cli("evaluate", run.folder, *options, "--labels", labels, "--by", "age:60,120", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.strip().splitlines()[-1])
    assert (found["n"], found["left_out"]) == (119, 1)
    assert {name: part["n"] for name, part in found["subgroups"]["age:60,120"].items()} == {
        "below 60": 29,
        "60 to below 120": 60,
        "120 and above": 30,
    }
    assert f"{found['trained_on']} of these images trained the model" in result.stdout
    assert "1 rows of the table are left out" in result.stdout and "calibration error:" in result.stdout
    assert "age 200 and above" in refused("evaluate", run.folder, *options, "--labels", labels, "--by", "age:200")


def test_explanations_and_the_report_with_them_leave_with_clean(run: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "eyes"
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("blobs"))
    result = cli("explain", folder, "--images", dataset().images, "--limit", 2)
    assert result.returncode == 0 and "random down to head" in result.stdout and Dataset.NAME not in said(result)
    assert "is no class" in refused("explain", folder, "--images", dataset().images, "--class", "gout")
    page = folder / "report.html"
    assert cli("report", folder).returncode == 0 and page.stat().st_size > 100_000
    removed = cli("clean", folder)
    assert str(page) in removed.stdout and str(folder / "explanations") in removed.stdout
    assert not page.exists() and not (folder / "explanations").exists()
    assert cli("report", folder, "--no-images").returncode == 0
    assert str(page) not in cli("clean", folder).stdout and page.exists()


def test_predicting_images_that_are_not_there(run: Finished, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "new.csv", [{"filename": f"{Dataset.NAME}000.png"}, {"filename": "away.png"}])
    out = tmp_path / "p.csv"
    text = refused("predict", run.folder, "--images", dataset().images, "--table", table, "--out", out)
    assert "away.png" in text and not out.exists()
    write_csv(table, [{"filename": f"{Dataset.NAME}000.png"}])
    assert cli("predict", run.folder, "--images", dataset().images, "--table", table, "--out", out).returncode == 0
    assert len(out.read_text().splitlines()) == 2


def test_a_second_run_of_the_same_name_goes_beside_the_first(run: Finished) -> None:
    stored = RunConfig.model_validate(yaml.safe_load((run.folder / "config.json").read_text()))
    following = local.open_run(stored, run.folder.parent)
    assert following.folder.name == "eyes-2"
    (following.folder / "config.json").unlink()
    following.folder.rmdir()


def test_lanes_that_are_no_power_of_two_are_refused(tmp_path: Path) -> None:
    text = refused("train", "--config", write_config(tmp_path, "lanes", layout={"class_lanes": 3}), "--runs", tmp_path)
    assert "layout.class_lanes" in text and "lanes.yaml" in text
    assert LayoutConfig(class_lanes=4).class_lanes == 4
