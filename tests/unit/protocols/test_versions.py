"""Whatever was made by an earlier version is refused in one sentence, which says why and what it must be taken for."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import pytest
from consortium import cli, config, said, write_config
from parties import identities, manifest_of
from serving import MANIFEST as SERVED
from serving import PEOPLE as DIALLING
from serving import Raw, Server

from focal.ckks import native
from focal.config import ANEW, OLD, OTHER, VERSION, LocalConfig, RunConfig
from focal.errors import ConfigError, FocalError, Refused
from focal.manifest import Manifest
from focal.net import answers, frames
from focal.net import messages as msg
from focal.net.encoding import decode, encode
from focal.net.hub import Hub
from focal.net.identity import Identity, open_record, sign_manifest
from focal.net.link import Link
from focal.net.store import Board, Journal
from focal.protocols.common.audit import recorded
from focal.protocols.start import run_role
from focal.reading import read, write
from focal.runs import local

PEOPLE = identities()
MANIFEST = manifest_of(PEOPLE)

OLD_BOARD = """CREATE TABLE record (
    seq INTEGER PRIMARY KEY, sender TEXT NOT NULL, topic TEXT NOT NULL, data BLOB NOT NULL, UNIQUE (sender, topic))"""
OLD_JOURNAL = """CREATE TABLE once (key TEXT PRIMARY KEY, value BLOB NOT NULL);
    CREATE TABLE state (key TEXT PRIMARY KEY, value BLOB NOT NULL); INSERT INTO once VALUES ('session', 'ab')"""


def test_the_sentence_says_why_and_what_to_do() -> None:
    assert "key ceremony" in OLD and "read everything" in OLD and "readable by its server" in OLD
    assert "new run" in ANEW and "new manifest" in ANEW


def old_record(name: str = "north") -> bytes:
    """As version 1 signed it."""
    fields = {"body": {"kind": "finished"}, "scope": "5e" * 32, "sender": name, "topic": "finished", "version": 1}
    record: bytes = msgpack.packb(fields)
    signed: bytes = msgpack.packb({"record": record, "signature": PEOPLE[name].sign(b"focal/record/v1" + record)})
    return signed


def database(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script)
    return path


def old_run(folder: Path, **changes: Any) -> Path:
    """A run's folder as version 1 left it: manifest, the server's board and journal."""
    fields = {**MANIFEST.model_dump(mode="json", exclude_none=True), "version": 1, **changes}
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(fields))
    with closing(sqlite3.connect(database(folder / "parties" / "server" / "board.sqlite", OLD_BOARD))) as db, db:
        db.execute("INSERT INTO record VALUES (1, 'north', 'finished', ?)", (old_record(),))
    database(folder / "parties" / "server" / "journal.sqlite", OLD_JOURNAL)
    return folder


def sentence(text: str, where: object = "") -> None:
    """``text`` is the one sentence about ``where``, and the way out."""
    text = " ".join(text.split())
    assert f"{where}{': ' if where else ''}{OLD}" in text and ANEW in text
    assert text.count(OLD) == 1


# --------------------------------------------------------------------------- manifests and folders


@pytest.mark.parametrize(
    "changes",
    [{}, {"members": []}, {"guard": True, "classes": 5}, {"version": 1.0}],
    ids=["whole", "empty", "malformed", "float"],
)
def test_an_old_manifest_before_all_else_that_may_be_wrong_with_it(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = old_run(tmp_path / "run", **changes) / "manifest.json"
    with pytest.raises(ConfigError) as e:
        read(Manifest, path)
    sentence(str(e.value), path)


@pytest.mark.parametrize(
    "command",
    [
        lambda f: ("audit", f),
        lambda f: ("audit", f / "manifest.json", "--from", f / "parties" / "server"),
        lambda f: ("manifest", "check", f / "manifest.json"),
        lambda f: ("manifest", "sign", f / "manifest.json", "--keys", f / "none.json"),
        lambda f: ("server", "--manifest", f / "manifest.json", "--local", f / "none.json"),
        lambda f: ("check", "--manifest", f / "manifest.json", "--local", f / "none.json"),
    ],
    ids=["audit", "audit-from", "check-manifest", "sign", "server", "check"],
)
def test_commands_on_an_old_run(tmp_path: Path, command: Callable[[Path], tuple[object, ...]]) -> None:
    folder = old_run(tmp_path / "run")
    result = cli(*command(folder))
    assert result.returncode == 1
    sentence(said(result), folder / "manifest.json")


@pytest.mark.parametrize("changed", [False, True], ids=["same configuration", "another configuration"])
def test_train_does_not_resume_an_old_run(tmp_path: Path, changed: bool) -> None:
    path = write_config(tmp_path, "before")
    folder = old_run(tmp_path / "runs" / "before")
    (folder / "config.json").write_text(json.dumps(config("before", **({"seed": 7} if changed else {}))))
    result = cli("train", "--config", path, "--runs", tmp_path / "runs")
    assert result.returncode == 1
    sentence(said(result), folder / "manifest.json")


def test_a_finished_old_run_does_not_stand_in_the_way_of_a_new_one(tmp_path: Path) -> None:
    wanted = RunConfig.model_validate(config("before"))
    folder = old_run(tmp_path / "before")
    write(wanted, folder / "config.json")
    (folder / "summary.json").write_text("{}")
    assert local.open_run(wanted, tmp_path).folder == tmp_path / "before-2"


# --------------------------------------------------------------------------- board and journal


def test_an_old_board_is_neither_served_nor_audited(tmp_path: Path) -> None:
    """Also under a new manifest."""
    path = old_run(tmp_path / "run") / "parties" / "server" / "board.sqlite"
    for use in (lambda: Board(path, MANIFEST), lambda: recorded(MANIFEST, path.parent)):
        with pytest.raises(FocalError) as e:
            use()
        sentence(str(e.value), path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM record").fetchone() == (1,) and db.execute(
            "PRAGMA user_version"
        ).fetchone() == (0,)


def test_an_old_folder_is_not_gone_on_with_under_a_new_manifest(tmp_path: Path) -> None:
    """The whole role: what a party kept of an old run is not mixed with a new one's."""
    manifest = MANIFEST
    for person in PEOPLE.values():
        manifest = sign_manifest(manifest, person)
    folder = old_run(tmp_path / "run") / "parties" / "server"
    PEOPLE["server"].save(folder / "identity.json")
    own = LocalConfig(name="server", keys=folder / "identity.json", state=folder)
    write(manifest, tmp_path / "new.json")
    write(own, folder / "local.json")
    told: list[dict[str, Any]] = []
    assert run_role("server", tmp_path / "new.json", folder / "local.json", told.append) == 1
    assert told[0]["text"] == f"native kernels: {native.description}"
    sentence(told[-1]["text"], folder / "journal.sqlite")
    assert not (folder / "aborted").exists()


def test_a_new_database_is_not_taken_for_an_old_one(tmp_path: Path) -> None:
    """Made, closed, opened; also where a kill came between the file and its tables."""
    for name, make in (("j.sqlite", Journal), ("b.sqlite", lambda path: Board(path, MANIFEST))):
        (tmp_path / name).touch(mode=0o600)
        for _ in range(2):
            make(tmp_path / name).close()
        with closing(sqlite3.connect(tmp_path / name)) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)


# --------------------------------------------------------------------------- records and the wire


def test_an_old_record_is_refused_whoever_shows_it() -> None:
    with pytest.raises(Refused) as e:
        open_record(MANIFEST, old_record())
    assert e.value.reason == "old-version"
    assert str(e.value) == f"refused (old-version): the record {OLD}\n  -> {ANEW}"


def test_what_version_2_made_has_a_sentence_of_its_own(tmp_path: Path, server: Server) -> None:
    """Manifest, database, record and party: its runs leak nothing, but steps and messages were others."""
    path = old_run(tmp_path / "run", version=2) / "manifest.json"
    with pytest.raises(ConfigError) as manifest:
        read(Manifest, path)
    Journal(tmp_path / "j.sqlite").close()
    with closing(sqlite3.connect(tmp_path / "j.sqlite")) as db:
        db.execute("PRAGMA user_version = 2")
    with pytest.raises(FocalError) as journal:
        Journal(tmp_path / "j.sqlite")
    fields = {"body": {"kind": "finished"}, "scope": "5e" * 32, "sender": "north", "topic": "finished", "version": 2}
    data: bytes = msgpack.packb(fields)
    with pytest.raises(Refused) as record:
        open_record(
            MANIFEST, msgpack.packb({"record": data, "signature": PEOPLE["north"].sign(b"focal/record/v2" + data)})
        )
    raw = Raw(server, "north")
    try:
        fault = raw.ask(frames.Hello(version=2, name="north", manifest=SERVED.hash.hex()))
    finally:
        raw.close()
    for told in (manifest.value, journal.value, record.value, fault):
        assert OTHER in told.message and OLD not in told.message, told
    assert record.value.reason == "old-version"


def test_a_signature_of_version_1_is_not_one_of_version_2() -> None:
    """The number is the new one, the domain is the old one."""
    data = PEOPLE["north"].sign_record("5e" * 32, "finished", msg.Finished())
    signed = decode(msg.Signed, data)
    old = msg.Signed(record=signed.record, signature=PEOPLE["north"].sign(b"focal/record/v1" + signed.record))
    with pytest.raises(FocalError, match="signature of 'north'"):
        open_record(MANIFEST, encode(old))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, SERVED)
    yield server
    server.stop()


def test_an_old_party_is_told(server: Server) -> None:
    raw = Raw(server, "north")
    try:
        fault = raw.ask(frames.Hello(version=1, name="north", manifest=SERVED.hash.hex()))
    finally:
        raw.close()
    assert fault.reason == "version" and fault.message.startswith("'north' speaks version 1")
    assert OLD in fault.message and ANEW in fault.message


def faults(hub: Hub, asker: Any, hello: frames.Hello, _: bytes) -> Any:
    """What a server of version 1 answers."""
    raise Refused(
        "version",
        f"'{asker.name}' speaks version {hello.version}, the server 1",
        hint="install the same focal everywhere",
    )


def welcomes(hub: Hub, *_: Any) -> Any:
    return frames.Welcome(version=1, session=hub.session), b""


@pytest.mark.parametrize("answer", [faults, welcomes])
def test_a_party_at_an_old_server_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    monkeypatch.setattr(Hub, "_hello", answer)
    server = Server(tmp_path, SERVED)
    try:
        with (
            pytest.raises(Refused) as e,
            Link(SERVED, DIALLING["north"], server.endpoint) as link,
        ):
            link.open(10)
    finally:
        server.stop()
    assert e.value.reason == "version" and "speaks version 1" in str(e.value)
    assert OLD in str(e.value) and ANEW in str(e.value)


def test_a_newer_server_is_not_called_an_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "VERSION", 4)
    server = Server(tmp_path, SERVED)
    raw = Raw(server, "north")
    try:
        fault = raw.ask(frames.Hello(version=3, name="north", manifest=SERVED.hash.hex()))
    finally:
        raw.close()
        server.stop()
    assert fault.reason == "version" and not any(why in fault.message for why in (OLD, OTHER))


def test_identities_are_those_of_before(tmp_path: Path) -> None:
    PEOPLE["north"].save(tmp_path / "north.json")
    assert json.loads((tmp_path / "north.json").read_text())["version"] == 1
    assert Identity.load(tmp_path / "north.json").name == "north"
