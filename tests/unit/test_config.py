"""Configuration: errors name file, field and what is allowed; the manifest's signed bytes are stable;
private files are private."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from manifests import MEMBERS, key, manifest, member
from patience import PATIENCE
from pydantic import ValidationError

from focal import configs, framing
from focal.config import (
    BlindRunConfig,
    ConsortiumConfig,
    DatasetConfig,
    InteractiveRunConfig,
    LocalConfig,
    ProjectionConfig,
    RunConfig,
    TrainingConfig,
    weights_file,
)
from focal.errors import ConfigError
from focal.files import canonical_json, private_write
from focal.manifest import LayoutSpec, Manifest, Member
from focal.protocols import check_complete
from focal.reading import expand, read, write

LOWER = manifest().lower
BASE = "name: retina\ndataset: {kind: synthetic}\n"
JOINT = BASE + "protocol: interactive\n"


def refused(tmp_path: Path, text: str, model: type = RunConfig) -> str:
    """What the user is told about a file with this text."""
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as e:
        read(model, path)
    assert str(path) in str(e.value)
    return str(e.value).replace(f"{path}: ", "")


class TestReading:
    def test_defaults_are_those_of_the_design(self, tmp_path: Path) -> None:
        (tmp_path / "run.yaml").write_text(BASE)
        config = read(RunConfig, tmp_path / "run.yaml")
        assert (config.projection.kind, config.projection.features, config.projection.bound) == ("whiten", 64, 32.0)
        assert (config.training.steps, config.training.ridge, config.training.degree) == (5, 0.1, 3)
        assert (config.ckks.ring, config.ckks.scale_bits, config.ckks.first_bits) == (16384, 45, 60)
        assert config.dataset_name == "synthetic" and config.protocol == "blind"

    def test_json_is_read_too(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text(
            json.dumps({"name": "a", "dataset": {"kind": "medmnist", "file": "x/retinamnist.npz"}})
        )
        assert read(RunConfig, tmp_path / "run.json").dataset_name == "retinamnist"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (BASE + "projetion: {kind: whiten}\n", "projetion: unknown key"),
            (BASE + "training: {step: 3}\n", "training.step: unknown key"),
            (BASE + "projection: {kind: pca}\n", "projection.kind: Input should be 'whiten' or 'random' (got 'pca')"),
            (
                BASE + "projection: {features: 65}\n",
                "projection.features: Input should be 32, 64, 128, 256 or 512 (got 65)",
            ),
            (BASE + "training: {steps: 0}\n", "training.steps: Input should be greater than or equal to 2 (got 0)"),
            (BASE + "training: {steps: 51}\n", "training.steps: Input should be less than or equal to 50 (got 51)"),
            (BASE + "training: {ridge: 0}\n", "training.ridge: Input should be greater than 0 (got 0)"),
            (BASE + "training: {degree: 4}\n", "training.degree: Input should be 3, 5 or 7 (got 4)"),
            (BASE + "ckks: {ring: 8192}\n", "ckks.ring: Input should be 16384 or 32768 (got 8192)"),
            (
                BASE + "consortium: {custodians: 9}\n",
                "consortium.custodians: Input should be less than or equal to 8 (got 9)",
            ),
            (BASE + "protocol: open\n", "protocol: Input should be 'blind' or 'interactive' (got 'open')"),
            ("name: Retina 1\ndataset: {kind: synthetic}\n", "name: String should match pattern"),
            ("dataset: {kind: synthetic}\n", "name: Field required"),
            ("name: a\ndataset: {kind: table}\n", "dataset: dataset kind 'table' needs 'table'"),
            ("name: a\ndataset: {kind: table, table: x.csv}\n", "dataset: dataset kind 'table' needs 'images'"),
            ("name: a\ndataset: {kind: medmnist}\n", "dataset: dataset kind 'medmnist' needs 'file'"),
            (
                "name: a\ndataset: {kind: synthetic, window: [0, 9]}\n",
                "dataset: 'window' is a setting of kind 'table', and this data set is of kind 'synthetic'",
            ),
            (
                "name: a\ndataset: {kind: table, table: a.csv, images: b, slides: {mpp: 1}}\n",
                "dataset: 'slides' is a setting of kind 'slides', and this data set is of kind 'table'",
            ),
            (
                "name: a\ndataset: {kind: medmnist, file: a.npz, bad_images: skip}\n",
                "dataset: 'bad_images' is a setting of kind 'table' and 'slides', and this data set is of kind",
            ),
            (
                "name: a\ndataset: {kind: synthetic, samples: 3}\n",
                "dataset.samples: Input should be greater than or equal to 60 (got 3)",
            ),
        ],
    )
    def test_names_the_field_and_what_is_allowed(self, tmp_path: Path, text: str, message: str) -> None:
        assert message in refused(tmp_path, text)

    @pytest.mark.parametrize(
        ("text", "key", "owner"),
        [
            (BASE + "interactive: {steps: 3}\n", "interactive", "interactive"),
            (BASE + "start: other.yaml\n", "start", "interactive"),
            (BASE + "precision: bf16-mixed\n", "precision", "interactive"),
            (BASE + "protocol: blind\nlogger: csv\n", "logger", "interactive"),
            (JOINT + "layout: {class_lanes: 2}\n", "layout", "blind"),
            (JOINT + "training: {steps: 3}\n", "training.steps", "blind"),
            (JOINT + "training: {degree: 5}\n", "training.degree", "blind"),
            (JOINT + "projection: {features: 64}\n", "projection.features", "blind"),
        ],
    )
    def test_a_setting_of_the_other_protocol_is_refused(self, tmp_path: Path, text: str, key: str, owner: str) -> None:
        """It would not be read: whoever wrote it must hear that."""
        (other,) = {"blind", "interactive"} - {owner}
        said = f"{key}: '{key.split('.')[-1]}' belongs to protocol {owner}, and this run is of protocol {other}"
        assert refused(tmp_path, text).split(" (got")[0] == said

    def test_an_interactive_run_shares_no_blocks(self, tmp_path: Path) -> None:
        message = refused(tmp_path, JOINT + "consortium: {share_blocks: true}\n")
        assert message == "(whole file): 'consortium.share_blocks' belongs to protocol blind"

    def test_known_keys_are_those_of_the_protocol(self, tmp_path: Path) -> None:
        blind, joint = (refused(tmp_path, text + "colour: red\n") for text in (BASE, JOINT))
        assert "layout" in blind and "interactive" not in blind
        assert "interactive" in joint and "layout" not in joint

    @pytest.mark.parametrize("protocol", ["open", "[blind]", "null"])
    def test_of_an_unknown_protocol_nothing_else_is_said(self, tmp_path: Path, protocol: str) -> None:
        message = refused(tmp_path, BASE + f"protocol: {protocol}\nlayout: {{}}\ncolour: red\n")
        assert message.split(" (got")[0] == "protocol: Input should be 'blind' or 'interactive'"

    def test_a_configuration_is_one_of_its_protocol(self) -> None:
        """However it is made; and it stays one."""
        data = DatasetConfig(kind="synthetic")
        for protocol, kind in (("blind", BlindRunConfig), ("interactive", InteractiveRunConfig)):
            made = RunConfig(name="a", protocol=protocol, dataset=data)  # type: ignore[arg-type]
            again = [
                RunConfig.model_validate(made.model_dump()),
                RunConfig.model_validate_json(made.model_dump_json()),
                made.model_copy(update={"seed": 0}),
                pickle.loads(pickle.dumps(made)),
            ]
            assert type(made) is kind and made.protocol == protocol
            assert all(type(one) is kind and one == made for one in again)
        assert type(RunConfig(name="a", dataset=data)) is BlindRunConfig  # type: ignore[call-arg]

    @pytest.mark.parametrize("name", configs.names())
    def test_packaged_configurations_hold_what_their_protocol_reads(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FOCAL_DATA", "/data")
        config = read(RunConfig, configs.find(name))
        assert config.name == name and isinstance(config, InteractiveRunConfig) == (name == "finetune-retina")

    def test_every_problem_is_listed(self, tmp_path: Path) -> None:
        lines = refused(tmp_path, BASE + "projection: {kind: pca}\ntraining: {steps: 0}\nextra: 1\n").splitlines()
        assert {line.split(":")[0] for line in lines} == {"projection.kind", "training.steps", "extra"}

    @pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n", "7\n"])
    def test_not_a_mapping(self, tmp_path: Path, text: str) -> None:
        assert refused(tmp_path, text) == "must hold a mapping of options"

    @pytest.mark.parametrize(
        "data", [b"a: [1, 2\n", b"\xff\xfe\x00", b"a: \x00b", b"a: 'open\n", b"a: !!python/object:os.system {}\n"]
    )
    def test_not_yaml(self, tmp_path: Path, data: bytes) -> None:
        """The last one is a constructor that only an unsafe loader would run."""
        path = tmp_path / "run.yaml"
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="run.yaml: is neither YAML nor JSON"):
            read(RunConfig, path)

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="gone.yaml: cannot be read .No such file"):
            read(RunConfig, tmp_path / "gone.yaml")
        with pytest.raises(ConfigError, match="cannot be read .Is a directory"):
            read(RunConfig, tmp_path)

    def test_models_are_frozen(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            TrainingConfig().steps = 7  # type: ignore[misc]


class TestEnvironment:
    def test_expands_everywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FOCAL_TEST_A", "/data")
        value = {
            "a": "${FOCAL_TEST_A}/x",
            "b": ["${FOCAL_TEST_A}${FOCAL_TEST_A}", 3],
            "c": {"d": "$FOCAL_TEST_A"},
            "e": None,
        }
        expected = {"a": "/data/x", "b": ["/data/data", 3], "c": {"d": "$FOCAL_TEST_A"}, "e": None}
        assert expand(value, Path("f")) == expected

    def test_in_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FOCAL_TEST_A", "/data")
        (tmp_path / "run.yaml").write_text("name: a\ndataset: {kind: medmnist, file: '${FOCAL_TEST_A}/xray.npz'}\n")
        assert read(RunConfig, tmp_path / "run.yaml").dataset.file == Path("/data/xray.npz")

    def test_unset_names_variable_and_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("FOCAL_TEST_B", raising=False)
        message = refused(tmp_path, "name: a\ndataset: {kind: medmnist, file: '${FOCAL_TEST_B}/x.npz'}\n")
        assert message == "uses ${FOCAL_TEST_B}, which is not set (export FOCAL_TEST_B=/path/to/folder)"

    def test_a_manifest_is_read_as_it_was_signed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keys are random, and Z85 spells ``${HA}`` now and then."""
        monkeypatch.setenv("HA", "other")
        first = MEMBERS[0]
        lucky = manifest(members=(first.model_copy(update={"curve": "${HA}" + first.curve[5:]}), *MEMBERS[1:]))
        write(lucky, tmp_path / "manifest.json")
        assert read(Manifest, tmp_path / "manifest.json") == lucky

    def test_values_are_not_expanded_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FOCAL_TEST_A", "${FOCAL_TEST_B}")
        assert expand("${FOCAL_TEST_A}", Path("f")) == "${FOCAL_TEST_B}"


class TestConsortium:
    def test_names(self) -> None:
        assert ConsortiumConfig(institutions=28).institution_names()[::9] == (
            "hospital-a",
            "hospital-j",
            "hospital-s",
            "hospital-27",
        )
        assert len(set(ConsortiumConfig(institutions=28).institution_names())) == 28
        assert ConsortiumConfig(institutions=("kiel", "ulm", "bern")).institution_names() == ("kiel", "ulm", "bern")
        assert ConsortiumConfig(custodians=2).custodian_names() == ("custodian-1", "custodian-2")


class TestMembers:
    @pytest.mark.parametrize(
        ("role", "fields", "message"),
        [
            ("server", {}, "'endpoint' belongs to a server"),
            ("institution", {}, "'rows' belongs to a institution"),
            ("custodian", {}, "'verify' belongs to a custodian"),
            ("institution", {"rows": 3, "endpoint": "tcp://x:1"}, "'endpoint' belongs to a server"),
            ("server", {"endpoint": "tcp://x:1", "verify": "off"}, "'verify' belongs to a custodian"),
            ("custodian", {"verify": "off", "rows": 3}, "'rows' belongs to a institution"),
            ("institution", {"rows": 0}, "rows"),
            ("custodian", {"verify": "sometimes"}, "'off' or 'lockstep'"),
        ],
    )
    def test_each_role_has_its_field_and_no_other(self, role: str, fields: dict[str, object], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            member("m", role, 1, **fields)

    @pytest.mark.parametrize("field", ["sign", "seal"])
    @pytest.mark.parametrize("bad", ["0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n"])
    def test_keys_are_32_bytes_of_lower_case_hex(self, field: str, bad: str) -> None:
        good = {"name": "m", "role": "institution", "rows": 3, "sign": key(1), "seal": key(2), "curve": "c" * 40}
        with pytest.raises(ValidationError, match=field):
            Member.model_validate({**good, field: bad})


class TestManifest:
    def test_tables_follow_the_manifest_order(self) -> None:
        m = manifest()
        assert m.row_counts == {"north": 40, "south": 50, "west": 60}
        assert m.rows == 150 and m.server.name == "relay"
        assert [c.name for c in m.custodians] == ["first-custodian", "second-custodian"]
        turned = manifest(members=MEMBERS[::-1])
        assert list(turned.row_counts) == ["west", "south", "north"]
        assert turned.hash != m.hash

    def test_outputs(self) -> None:
        assert manifest().outputs == 3
        assert manifest(task="binary", classes=("no", "yes")).outputs == 1
        assert manifest(task="multiclass", classes=("no", "yes")).outputs == 2

    def test_joint_steps_need_three_institutions_and_batches_of_members_only(self) -> None:
        joint = {"protocol": "interactive", "layout": None, "interactive": {"batches": {"north": 4}}}
        two = {"members": tuple(m for m in MEMBERS if m.name != "west"), "accept_leak": True}
        check_complete(manifest(**joint))
        check_complete(manifest(**two))
        with pytest.raises(ConfigError, match="an interactive run needs at least three institutions"):
            check_complete(manifest(**joint, **two))
        with pytest.raises(
            ConfigError, match="interactive.batches names east, which is no institution of the manifest"
        ):
            check_complete(manifest(**{**joint, "interactive": {"batches": {"east": 4, "north": 4}}}))
        with pytest.raises(ConfigError, match="2 to 8 custodians"):
            check_complete(manifest(**joint, **{"members": tuple(m for m in MEMBERS if m.name != "second-custodian")}))

    def test_member_by_name(self) -> None:
        assert manifest().member("south").rows == 50
        with pytest.raises(ConfigError, match="'east' is not a member of the manifest .relay, north"):
            manifest().member("east")

    def test_complete(self) -> None:
        manifest().check_complete()

    @pytest.mark.parametrize(
        ("keep", "message"),
        [
            (lambda m: m.role != "server", "exactly one server"),
            (lambda m: m.name != "second-custodian", "2 to 8 custodians, this one has 1"),
            (lambda m: m.name != "west", "at least 3 institutions, this one has 2; with two, each learns the other's"),
        ],
    )
    def test_incomplete(self, keep, message: str) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(ConfigError, match=message):
            manifest(members=tuple(m for m in MEMBERS if keep(m))).check_complete()

    def test_two_institutions_only_knowingly(self) -> None:
        two = tuple(m for m in MEMBERS if m.name != "west")
        manifest(members=two, accept_leak=True).check_complete()
        with pytest.raises(ConfigError, match="at least 2 institutions"):
            manifest(members=two[:3] + two[4:], accept_leak=True).check_complete()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"members": (*MEMBERS, member("north", "institution", 9, rows=3))}, "two members have the same name"),
            ({"members": (*MEMBERS, MEMBERS[1].model_copy(update={"name": "east"}))}, "the same 'sign' key"),
            (
                {"members": (*MEMBERS, MEMBERS[1].model_copy(update={"name": "east", "sign": key(9)}))},
                "the same 'seal' key",
            ),
            (
                {"members": (*MEMBERS, MEMBERS[1].model_copy(update={"name": "east", "sign": key(9), "seal": key(8)}))},
                "the same 'curve' key",
            ),
            ({"task": "binary"}, "task 'binary' does not fit 3 classes"),
            ({"task": "multiclass", "classes": ("one",)}, "task 'multiclass' does not fit 1 classes"),
            ({"layout": {"class_lanes": 3, "feature_lanes": 1}}, "class_lanes must be a power of two, not 3"),
            ({"layout": {"class_lanes": 8, "feature_lanes": 0}}, "greater than or equal to 1"),
            ({"layout": None}, "protocol 'blind' needs 'layout'"),
            ({"interactive": {}}, "'interactive' belongs to protocol interactive"),
            ({"start": key(1)}, "'start' belongs to protocol interactive"),
            ({"protocol": "interactive", "layout": None}, "protocol 'interactive' needs 'interactive'"),
            ({"protocol": "interactive", "interactive": {}}, "'layout' belongs to protocol blind"),
            (
                {"protocol": "interactive", "interactive": {}, "layout": None, "share_blocks": True},
                "'share_blocks' belongs to protocol blind",
            ),
            ({"version": 1}, "version"),
            ({"bonus": 1}, "bonus"),
        ],
    )
    def test_does_not_fit(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            manifest(**changes)


class TestCanonical:
    def test_pinned(self) -> None:
        """Everybody signs these bytes: a change of their spelling is a new version of the protocol."""
        m = manifest()
        assert (
            hashlib.sha256(m.canonical()).hexdigest()
            == "3025f691ca78fec98e44bee0b2138c0d5adeae4a39d73acc35facf3d54216c1e"
        )
        assert m.hash == framing.digest(b"focal/manifest/v2", m.canonical())

    def test_is_plain_sorted_json(self) -> None:
        text = manifest().canonical()
        assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")).encode()
        assert b'"bound":32.0' in text and b"signatures" not in text

    def test_signatures_are_excluded(self) -> None:
        signed = manifest(signatures={"north": "ab" * 64})
        assert signed.canonical() == manifest().canonical() and signed.hash == manifest().hash

    @pytest.mark.parametrize(
        "changes",
        [
            {"name": "other"},
            {"dataset": "other"},
            {"classes": ("N", "G", "D")},
            {"task": "multiclass"},
            {"projection": ProjectionConfig(bound=31.0)},
            {"projection": ProjectionConfig(floor=0.03)},
            {"lower": LOWER.model_copy(update={"flip": True})},
            {"lower": LOWER.model_copy(update={"model_args": {"global_pool": "avg"}})},
            {"training": TrainingConfig(ridge=0.2)},
            {"layout": LayoutSpec(class_lanes=4, feature_lanes=1)},
            {"approve": "human"},
            {"accept_leak": True},
            {"members": (*MEMBERS[:1], MEMBERS[1].model_copy(update={"rows": 41}), *MEMBERS[2:])},
        ],
        ids=lambda c: next(iter(c)),
    )
    def test_everything_else_counts(self, changes: dict[str, object]) -> None:
        assert manifest(**changes).hash != manifest().hash

    def test_what_is_not_used_is_spelled_as_before_it_could_be(self) -> None:
        said = json.loads(manifest().canonical())
        assert not {"model_args", "pool", "flip", "fit", "trim"} & set(said["lower"])
        assert set(said["projection"]) == {"kind", "bound", "features"}
        used = manifest(lower=LOWER.model_copy(update={"pool": "mean+std"}), projection=ProjectionConfig(floor=0.03))
        said = json.loads(used.canonical())
        assert said["lower"]["pool"] == "mean+std" and said["projection"]["floor"] == 0.03

    def test_survives_a_file(self, tmp_path: Path) -> None:
        """Also through YAML with other spacing and order: what is signed is the content."""
        m = manifest(signatures={"north": "ab" * 64})
        write(m, tmp_path / "m.json")
        again = read(Manifest, tmp_path / "m.json")
        assert again == m and again.canonical() == m.canonical()
        shuffled = dict(reversed(json.loads((tmp_path / "m.json").read_text()).items()))
        (tmp_path / "m2.json").write_text(json.dumps(shuffled, indent=7))
        assert read(Manifest, tmp_path / "m2.json").hash == m.hash

    def test_whole_numbers_for_reals_are_the_same_manifest(self) -> None:
        assert (
            manifest(projection=ProjectionConfig(bound=32)).hash
            == manifest(projection=ProjectionConfig(bound=32.0)).hash
        )

    def test_canonical_json(self) -> None:
        assert canonical_json({"b": 1, "a": ["é", None, 0.1]}) == b'{"a":["\\u00e9",null,0.1],"b":1}'
        with pytest.raises(ValueError, match="JSON"):
            canonical_json({"a": float("nan")})


class TestLocalFile:
    def test_round_trip(self, tmp_path: Path) -> None:
        data = DatasetConfig(kind="table", table=Path("t.csv"), images=Path("i.zip"), classes=("a", "b"))
        local = LocalConfig(name="north", keys=Path("/k"), state=Path("/s"), data=data, threads=2)
        write(local, tmp_path / "l.yaml")
        assert read(LocalConfig, tmp_path / "l.yaml") == local

    def test_needs_its_own_fields(self, tmp_path: Path) -> None:
        assert refused(tmp_path, "name: north\nstate: /s\n", LocalConfig) == "keys: Field required"
        message = refused(tmp_path, "name: north\nkeys: /k\nstate: /s\nthreads: 0\n", LocalConfig)
        assert message == "threads: Input should be greater than or equal to 1 (got 0)"

    def test_a_cluster_has_an_address_only_where_it_is_used(self, tmp_path: Path) -> None:
        mine = "name: north\nkeys: /k\nstate: /s\nray_address: auto\n"
        assert "'ray_address' belongs to compute: ray" in refused(tmp_path, mine, LocalConfig)
        (tmp_path / "l.yaml").write_text(f"{mine}compute: ray\n")
        assert read(LocalConfig, tmp_path / "l.yaml").ray_address == "auto"


class TestPrivateWrite:
    def test_only_the_owner_reads(self, tmp_path: Path) -> None:
        old = os.umask(0)  # the most permissive environment
        try:
            private_write(tmp_path / "deep" / "secret", b"x")
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "deep" / "secret").stat().st_mode) == 0o600

    def test_replaces_whole_and_tightens(self, tmp_path: Path) -> None:
        path = tmp_path / "secret"
        path.write_bytes(b"old and longer")
        path.chmod(0o644)
        private_write(path, b"new")
        assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(tmp_path) == ["secret"]

    def test_a_failed_write_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "secret"
        private_write(path, b"old")

        def full(fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            private_write(path, b"new")
        assert path.read_bytes() == b"old"

    def test_models_are_written_private(self, tmp_path: Path) -> None:
        write(manifest(), tmp_path / "m.json")
        assert stat.S_IMODE((tmp_path / "m.json").stat().st_mode) == 0o600


def test_config_stands_on_tasks_alone() -> None:
    code = (
        "import sys, focal.config; "
        "print(sorted(m for m in sys.modules if m.startswith('focal.') or m in ('torch', 'openfhe')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert found.stdout.strip() == "['focal.config', 'focal.settings', 'focal.task']"


class TestLower:
    @pytest.mark.parametrize(
        ("lower", "problem"),
        [
            ("{pool: mean+std}", "'pool: mean[+]std' is of a cut by name"),
            ("{cut: [blocks.1, blocks.1]}", "'cut' names a module twice"),
            ("{model_args: {init_values: 1e-5}}", "'init_values' is the text '1e-5': .*1.0e-5"),
            ("{model_args: {img_size: 512}}", "'img_size' is not for 'model_args' .the image size is 'image_size'"),
            ("{fit: stretch}", "lower.fit: Input should be 'squash', 'crop' or 'pad'"),
        ],
    )
    def test_refused(self, lower: str, problem: str, tmp_path: Path) -> None:
        (tmp_path / "run.yaml").write_text(f"{BASE}lower: {lower}\n")
        with pytest.raises(ConfigError, match=problem):
            read(RunConfig, tmp_path / "run.yaml")

    def test_the_floor_is_of_a_whitening_and_a_device_one_that_there_is(self, tmp_path: Path) -> None:
        for line, problem in (
            ("projection: {kind: random, floor: 0.03}", "'floor' belongs to kind whiten"),
            ("projection: {floor: 0.001}", "projection.floor: .* greater than or equal to 0.01"),
            ("device: gpu", "device: Input should be 'auto', 'cpu' or 'cuda'"),
        ):
            (tmp_path / "run.yaml").write_text(f"{BASE}{line}\n")
            with pytest.raises(ConfigError, match=problem):
                read(RunConfig, tmp_path / "run.yaml")

    def test_which_file_weights_name(self, tmp_path: Path) -> None:
        for weights in ("pretrained", "random:0", "package:some-weights"):
            assert weights_file(weights) is None
        (tmp_path / "odd#name.pth").touch()
        assert weights_file("w.pth") == weights_file("w.pth#teacher") == Path("w.pth")
        assert weights_file(str(tmp_path / "odd#name.pth")) == tmp_path / "odd#name.pth"
