"""What bad input gets: an error that names the party, the file and the way out; nothing is lost, nothing hangs.

Every process here has a time limit, and every error is checked to be no traceback. What goes wrong during a run:
test_bad_parties.py.
"""

from __future__ import annotations

import io
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from consortium import LOWER, SAMPLES, Consortium, Process, cli, dataset, failed, runs, said, write_config, write_csv

from focal.config import LocalConfig
from focal.errors import FocalError
from focal.manifest import Manifest
from focal.net.identity import MANIFEST_DOMAIN, Identity, sign_manifest
from focal.protocols.together import Together
from focal.reading import read, write

# --------------------------------------------------------------------------- before anything starts


def refused(tmp_path: Path, name: str, **changes: Any) -> str:
    """What `focal train` says to a configuration that it must refuse.
    Nothing is left that would be in the way of a corrected one."""
    result = cli("train", "--config", write_config(tmp_path, name, **changes), "--runs", tmp_path / "runs")
    assert result.returncode == 1
    assert not list(tmp_path.glob("runs/*/parties/*/journal.sqlite")), "a party had started"
    return said(result)


def table(tmp_path: Path, change: Callable[[int, dict[str, str]], Any]) -> Path:
    rows = dataset().rows()
    for i, row in enumerate(rows):
        change(i, row)
    return write_csv(tmp_path / "table.csv", list(rows))


def test_unknown_key_and_value(tmp_path: Path) -> None:
    text = refused(tmp_path, "wrong", training={"step": 2})
    assert "wrong.yaml" in text and "training.step" in text and "ridge" in text
    assert "interpolation" in refused(tmp_path, "wrong", lower={"interpolation": "cubic"})
    assert "bilinear" in refused(tmp_path, "wrong", lower={"interpolation": "cubic"})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    text = refused(tmp_path, "away", dataset={"images": "/nowhere/images.zip"})
    assert "/nowhere/images.zip" in text and "FOCAL_DATA" in text


def test_a_table_without_its_columns(tmp_path: Path) -> None:
    path = table(tmp_path, lambda i, row: row.pop("label"))
    text = refused(tmp_path, "columns", dataset={"table": str(path)})
    assert str(path) in text and "no column 'label'" in text and "filename,label" in text


def test_a_missing_image(tmp_path: Path) -> None:
    path = table(tmp_path, lambda i, row: row.update(filename="gone.png") if i == 7 else None)
    text = refused(tmp_path, "missing", dataset={"table": str(path)})
    assert "images.zip" in text and "1 of 120 images" in text and "gone.png" in text


def test_a_label_that_the_classes_lack(tmp_path: Path) -> None:
    path = table(tmp_path, lambda i, row: row.update(label="dreadful") if i == 7 else None)
    text = refused(
        tmp_path, "label", dataset={"table": str(path), "classes": ["healthy", "mild", "moderate", "severe"]}
    )
    assert str(path) in text and "line 9" in text and "dreadful" in text and "dataset.classes" in text


def test_one_class_in_the_whole_table(tmp_path: Path) -> None:
    path = table(tmp_path, lambda i, row: row.update(label="healthy"))
    text = refused(tmp_path, "one", dataset={"table": str(path), "classes": ["healthy", "mild"]})
    assert "same label" in text and "two classes" in text


def test_too_many_features_and_classes_for_the_ring(tmp_path: Path) -> None:
    """2 lanes x 128 rows x 32 classes fill the 8192 slots: with feature lanes one group of rows must stay empty."""
    path = table(tmp_path, lambda i, row: row.update(label=f"class-{i % 32}"))
    layout = {"class_lanes": 32, "feature_lanes": 2}
    lower = {"family": "torchvision", "model": "squeezenet1_1"}  # 512 features
    text = refused(
        tmp_path, "wide", dataset={"table": str(path)}, lower=lower, projection={"features": 256}, layout=layout
    )
    assert "256 features" in text and "32" in text and "larger ckks ring" in text


def test_more_features_than_the_lower_segment_has(tmp_path: Path) -> None:
    text = refused(tmp_path, "deep", projection={"features": 128})
    assert "128" in text and "64" in text


def test_too_few_institutions(tmp_path: Path) -> None:
    text = refused(tmp_path, "two", consortium={"institutions": 2})
    assert "at least 3 institutions" in text and "accept_leak" in text


def test_damaged_weights(tmp_path: Path) -> None:
    """A weights file with one number that is not finite."""
    path = _weights(tmp_path, float("nan"))
    text = refused(tmp_path, "nan", lower={"weights": str(path)})
    assert str(path) in text and "not finite" in text


def _weights(tmp_path: Path, poison: float) -> Path:
    """The test segment's weights with one value replaced, which reaches every feature."""
    import timm

    torch.manual_seed(0)
    state = timm.create_model(LOWER["model"], img_size=LOWER["image_size"], num_classes=0).state_dict()
    state["patch_embed.proj.bias"][0] = poison
    torch.save(state, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


# --------------------------------------------------------------------------- at the start of a party


@pytest.fixture(scope="module")
def idle() -> Iterator[Consortium]:
    """A prepared consortium of which only the server runs."""
    with Consortium("idle", consortium={"verify": "none"}) as c:
        c.start("server").reach(lambda e: "listening" in e.get("text", ""))
        yield c


def altered(c: Consortium, path: Path, **changes: Any) -> Path:
    """Another manifest, signed by everybody."""
    write(c.sign(**changes), path)
    return path


def test_another_manifest_then_the_right_one(idle: Consortium, tmp_path: Path) -> None:
    other = altered(idle, tmp_path / "other.json", name="other")
    text = failed(idle.start("hospital-a", manifest=other))
    assert text.startswith("hospital-a: refused (manifest)") and "copy the signed manifest" in text
    # nothing is lost: with the right file the same state folder goes on
    again = idle.start("hospital-a")
    again.reach(lambda e: e["event"] == "waiting")
    again.kill()


def test_a_party_that_is_not_on_the_allow_list(idle: Consortium, tmp_path: Path) -> None:
    """A manifest that lists other keys for hospital-b, signed by everybody:
    the server's manifest does not have them."""
    stranger = Identity.new("hospital-b")
    stranger.save(tmp_path / "stranger.json")
    rows = idle.manifest.member("hospital-b").rows
    members = [
        stranger.member("institution", rows=rows) if m.name == "hospital-b" else m for m in idle.manifest.members
    ]
    other = idle.manifest.model_copy(update={"members": tuple(members), "signatures": {}})
    for name in idle.roles:
        other = sign_manifest(
            other, stranger if name == "hospital-b" else Identity.load(idle.folder(name) / "identity.json")
        )
    write(other, tmp_path / "other.json")
    keys = idle.folder("hospital-b") / "identity.json"
    idle.change_local("hospital-b", keys=tmp_path / "stranger.json")
    text = failed(idle.start("hospital-b", manifest=tmp_path / "other.json"))
    idle.change_local("hospital-b", keys=keys)
    assert "'hospital-b'" in text and "allow-list" in text and "focal manifest add" in text


def test_a_wrong_server_key(idle: Consortium, tmp_path: Path) -> None:
    server = idle.manifest.server.model_copy(update={"curve": Identity.new("server").curve_public.decode()})
    unsigned = idle.manifest.model_copy(update={"members": (server, *idle.manifest.members[1:]), "signatures": {}})
    for name in idle.roles:
        if name != "server":
            unsigned = sign_manifest(unsigned, Identity.load(idle.folder(name) / "identity.json"))
    identity = Identity.load(idle.folder("server") / "identity.json")
    complete = unsigned.model_copy(
        update={
            "signatures": {**unsigned.signatures, "server": identity.sign(MANIFEST_DOMAIN + unsigned.canonical()).hex()}
        }
    )
    write(complete, tmp_path / "other.json")
    text = failed(idle.start("custodian-1", manifest=tmp_path / "other.json"))
    assert (
        text.startswith("custodian-1:")
        and "has not the server key of this manifest" in text
        and "same signed manifest" in text
    )


def test_a_port_in_use() -> None:
    with Consortium("port") as c, socket.socket() as taken:
        endpoint = c.manifest.server.endpoint or ""
        taken.bind(("127.0.0.1", int(endpoint.rpartition(":")[2])))
        taken.listen()
        text = failed(c.start("server"))
        assert endpoint in text and "in use" in text and "choose another port" in text
        taken.close()
        c.start("server").reach(lambda e: "listening" in e.get("text", ""))


def test_nobody_answers() -> None:
    with Consortium("alone") as c:
        text = failed(c.start("custodian-1", wait=1.5))
        assert "within 1.5 s" in text and str(c.manifest.server.endpoint) in text and "start the server" in text


def test_local_files_that_do_not_fit(idle: Consortium) -> None:
    idle.change_local("custodian-1", verify="lockstep")
    text = failed(idle.start("custodian-1"))
    idle.change_local("custodian-1", verify=None)
    assert "custodian-1" in text and "verify: lockstep" in text and "make both say the same" in text

    keys = idle.folder("custodian-2") / "identity.json"
    keys.chmod(0o644)
    text = failed(idle.start("custodian-2"))
    keys.chmod(0o600)
    assert str(keys) in text and "chmod 600" in text

    idle.change_local("custodian-2", keys=idle.folder("custodian-1") / "identity.json")
    text = failed(idle.start("custodian-2"))
    idle.change_local("custodian-2", keys=keys)
    assert "custodian-2" in text and "is that of 'custodian-1'" in text and "focal keys new" in text

    wrong_role = Process("custodian", idle.run.manifest_file, idle.folder("hospital-a") / "local.json")
    assert "focal institution" in failed(wrong_role)


def test_signatures_that_are_missing_or_wrong(idle: Consortium, tmp_path: Path) -> None:
    signatures = idle.manifest.signatures
    left_out = {k: v for k, v in signatures.items() if k != "hospital-c"}
    exchanged = {**signatures, "hospital-c": signatures["hospital-b"]}
    for name, found, words in (("missing", left_out, "has not signed"), ("wrong", exchanged, "is not valid")):
        path = tmp_path / f"{name}.json"
        write(idle.manifest.model_copy(update={"signatures": found}), path)
        text = failed(idle.start("hospital-a", manifest=path))
        assert "'hospital-c'" in text and words in text and "focal manifest sign" in text
    changed: Manifest = idle.manifest.model_copy(update={"approve": "human"})
    write(changed, tmp_path / "changed.json")
    assert "is not valid for these bytes" in failed(idle.start("hospital-a", manifest=tmp_path / "changed.json"))


def test_files_that_are_no_manifest(idle: Consortium, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    for content, words in (
        ("{", "neither YAML nor JSON"),
        ("[1]", "mapping"),
        ('{"name": "x"}', "members"),
        (None, "cannot be read"),
    ):
        broken.unlink(missing_ok=True)
        if content is not None:
            broken.write_text(content)
        text = failed(idle.start("custodian-1", manifest=broken))
        assert str(broken) in text and words in text


def threads(c: Consortium) -> Together:
    """The consortium's parties as threads of this process, which has torch:
    for what a party does before it needs the network."""
    files = {name: read(LocalConfig, c.folder(name) / "local.json") for name in c.roles}
    return Together(c.manifest, files, lambda event: None)


def fails(parties: Together, name: str) -> str:
    """What a party said that could not begin. The server goes on."""
    with pytest.raises(FocalError) as e:
        parties.start(name)
        parties.finish(name)
    assert parties.alive("server") and not list(parties.parties["server"].folder.glob("aborted"))
    return " ".join(str(e.value).split())


def test_own_data_that_does_not_fit(tmp_path: Path) -> None:
    """Three institutions with real segments: an image that cannot be decoded, other weights,
    another number of rows than declared."""
    c = Consortium("data", quick=False)
    broken = tmp_path / "broken.zip"
    with zipfile.ZipFile(dataset().images) as old, zipfile.ZipFile(broken, "w") as new:
        first = old.namelist()[int((c.folder("hospital-a") / "rows.txt").read_text().split()[0])]
        for name in old.namelist():
            new.writestr(name, b"no image" if name == first else old.read(name))
    data = c.run.config.dataset
    own = {"rows": c.folder("hospital-a") / "rows.txt", "images": broken}
    c.change_local("hospital-a", data=data.model_copy(update=own))
    c.change_local("hospital-b", weights="random:1")
    rows = (c.folder("hospital-c") / "rows.txt").read_text().split()
    (c.folder("hospital-c") / "rows.txt").write_text("\n".join(rows[: len(rows) // 2]))

    with threads(c) as parties:
        parties.start("server")
        image = fails(parties, "hospital-a")
        assert str(broken) in image and "cannot be decoded" in image and "replace the file" in image
        weights = fails(parties, "hospital-b")
        assert "sha256" in weights and "file that the consortium agreed on" in weights
        declared = c.manifest.member("hospital-c").rows
        counted = fails(parties, "hospital-c")
        assert f"declares {declared} training rows" in counted and "hospital-c" in counted and "new manifest" in counted


def test_features_that_are_not_finite(tmp_path: Path) -> None:
    """Weights that overflow are told before there is a manifest; what comes out of them is not kept
    (test_bad_input_is_an_error_and_not_a_feature)."""
    with pytest.raises(FocalError, match="not finite.*\n.*lower.mean"):
        Consortium("overflow", quick=False, lower={"weights": str(_weights(tmp_path, 3e38))})


def test_the_data_of_these_tests_is_intact() -> None:
    """No test above changed what the others share."""
    with zipfile.ZipFile(io.BytesIO(dataset().images.read_bytes())) as z:
        assert z.testzip() is None and len(z.namelist()) == SAMPLES
    assert runs().is_dir()
