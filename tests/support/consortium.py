"""The smallest real consortium: real processes, sockets and keys,
and images small enough that a whole run takes seconds.

::

    dataset()        120 generated fundus images in one zip, CSVs that label them in several ways   (once in a session)
    finished()       `focal train` on them, every byte that any party received recorded             (once in a session)
    Consortium       manifest and local files of a run, its processes started, killed and restarted one by one

Institutions need seconds to import torch. Where a test is not about images, their process runs with :data:`QUICK`: the
same role with features from a file and without a torch model at the end. Hostile parties are made the same way: a
prelude replaces one method of the role. Parties that are started one by one are forks of an interpreter that has
focal's imports behind it (``forks.py``); ``focal train`` starts its own as everywhere.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import recorded
import yaml
from forks import nursery
from numpy.typing import NDArray
from patience import PATIENCE
from places import ROOT
from shared import copy, once, worker_folder

from focal.config import LocalConfig, RunConfig
from focal.manifest import Manifest
from focal.net.identity import Identity, open_record, sign_manifest
from focal.reading import read, write
from focal.runs import local

SAMPLES = 120
SEED = 1
"""Every class has train and test rows."""
LOWER: dict[str, Any] = {
    "family": "timm",
    "model": "test_vit",
    "cut": "pooled",
    "image_size": 64,
    "weights": "random:0",
}
"""timm's own miniature ViT: 64 features in milliseconds."""
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


# --------------------------------------------------------------------------- data


class Dataset:
    """Files of a small data set. File names and patient ids are marked,
    so that they can be looked for where they must not be."""

    NAME, PATIENT = "scan-of-", "record-number-"  # long enough not to be in random bytes by chance

    def __init__(self, folder: Path) -> None:
        self.folder, self.images = folder, folder / "images.zip"
        self.table = folder / "eyes.csv"
        """Four classes, patients, no split column."""
        self.binary = folder / "binary.csv"
        """``sick`` or ``well``, with a ``split`` column."""
        self.multilabel = folder / "multilabel.csv"
        """``A;B`` labels, with a ``split`` column that also says ``val``, and an ``institution`` column."""

    def rows(self, table: Path | None = None) -> list[dict[str, str]]:
        with (table or self.table).open(newline="") as f:
            return list(csv.DictReader(f))


@functools.cache
def dataset() -> Dataset:
    """The data set of this test session."""
    return Dataset(once("data", _make_dataset))


def zip_images(path: Path, seed: int) -> None:
    """The generated images of one seed, under the data set's names."""
    from focal.data.synthetic import generate

    images = generate(SAMPLES, seed).images
    with zipfile.ZipFile(path, "w") as z:
        for i in range(SAMPLES):
            png = io.BytesIO()
            images.read(i).save(png, "PNG")
            z.writestr(f"{Dataset.NAME}{i:03d}.png", png.getvalue())


def _make_dataset(folder: Path) -> None:
    from focal.data.synthetic import CLASSES, generate

    data, table = Dataset(folder), generate(SAMPLES, SEED)
    zip_images(data.images, SEED)
    grade = table.labels.argmax(axis=1)
    patient = [f"{Dataset.PATIENT}{g.removeprefix('patient-')}" for g in table.groups]
    split = ["test" if int(p.rpartition("-")[2]) % 3 == 0 else "train" for p in patient]
    plain: list[dict[str, Any]] = [
        {"filename": f"{Dataset.NAME}{i:03d}.png", "patient": patient[i]} for i in range(SAMPLES)
    ]
    write_csv(data.table, [{**row, "label": CLASSES[g]} for row, g in zip(plain, grade, strict=True)])
    write_csv(
        data.binary,
        [{**row, "label": "sick" if g else "well", "split": s} for row, g, s in zip(plain, grade, split, strict=True)],
    )
    labels = [
        ";".join(c for c, has in zip("ABC", (g in (0, 1), g in (1, 2), g == 3), strict=True) if has) for g in grade
    ]
    held = ["val" if s == "test" and int(p.rpartition("-")[2]) % 2 else s for s, p in zip(split, patient, strict=True)]
    site = [f"site-{int(p.rpartition('-')[2]) % 4}" for p in patient]
    columns = zip(plain, labels, held, site, strict=True)
    write_csv(data.multilabel, [{**row, "label": c, "split": s, "institution": i} for row, c, s, i in columns])


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def runs() -> Path:
    """The folder that holds the runs of this worker: they share one cache of features."""
    return worker_folder() / "runs"


def config(name: str, **changes: Any) -> dict[str, Any]:
    """A run configuration as a mapping: the four-class table, 3 institutions, 2 custodians; a blind one has R = 32
    and 2 steps."""
    base: dict[str, Any] = {
        "name": name,
        "dataset": {"kind": "table", "table": str(dataset().table), "images": str(dataset().images)},
        "lower": LOWER,
        "projection": {"kind": "whiten", "features": 32, "bound": 4.0},
        "training": {"steps": 2},
        "consortium": {"institutions": 3, "custodians": 2, "pooled_roc": True},
        "device": "cpu",
        "seed": SEED,
    }
    if changes.get("protocol") == "interactive":
        del base["projection"]["features"], base["training"]
    return {
        k: {**v, **changes[k]} if isinstance(v, dict) and k in changes else changes.get(k, v)
        for k, v in {**changes, **base}.items()
    }


def write_config(folder: Path, name: str, **changes: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config(name, **changes)))
    return path


# --------------------------------------------------------------------------- commands


def focal(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run one ``focal`` command to its end."""
    command = [sys.executable, "-m", "focal", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, env={**ENV, "COLUMNS": "200", **env}
    )


def started(*command: str, folder: Path, **env: str) -> str:
    """What a program prints; it must end well."""
    env = {**ENV, "PYTHONPATH": str(ROOT), **env}
    program = [sys.executable, *command]
    result = subprocess.run(program, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same command inside this process, which has its imports behind it. Not for roles: they handle signals."""
    from focal.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("sys.argv", ["focal", *map(str, arguments)]))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        ended = stack.enter_context(pytest.raises(SystemExit))
        main()
    return subprocess.CompletedProcess(sys.argv, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def said(result: subprocess.CompletedProcess[str]) -> str:
    """What a command told its user, in one line and without a traceback."""
    text = result.stdout + result.stderr
    assert "Traceback" not in text, text
    return " ".join(text.split())


# --------------------------------------------------------------------------- one run that many tests look at


class Finished:
    """A run of ``focal train`` with everything that was on its wires."""

    def __init__(self, folder: Path, made: Path) -> None:
        self.folder, self.wires, self.output = folder, made / "wires", (made / "output.txt").read_text()
        self.cache = made / "runs" / "cache"
        self.key_shares, self.mask_keys = (
            {path.name: path.read_bytes() for path in (made / what).iterdir()} for what in ("shares", "masks")
        )

    def party(self, name: str) -> Path:
        return self.folder / "parties" / name

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "summary.json").read_text()))

    @property
    def manifest(self) -> Manifest:
        return read(Manifest, self.folder / "manifest.json")

    def received(self, name: str) -> bytes:
        """Every byte that ``name`` received."""
        return b"".join((self.wires / name / part).read_bytes() for part in ("headers.bin", "payloads.bin"))


@functools.cache
def finished() -> Finished:
    """The run of this session, in a copy of this worker's: ``runs() / "eyes"``."""
    made = once("finished", _make_finished)
    copy(made / "runs" / "eyes", runs() / "eyes")
    return Finished(runs() / "eyes", made)


def _make_finished(made: Path) -> None:
    folder = made / "runs" / "eyes"
    kept = {"secret": made / "shares", "masks": made / "masks"}
    for into in kept.values():
        into.mkdir()
    config_file = str(write_config(made, "eyes"))
    command, recording = recorded.train(made / "wires", "--config", config_file, "--runs", str(made / "runs"))
    env = {**ENV, "COLUMNS": "200", **recording}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    stop = threading.Event()

    def watch() -> None:  # these keys are deleted at the end, and a test must know what to look for
        while not stop.wait(0.05):
            for file in folder.glob("parties/custodian-*/*.key"):
                into = kept.get(file.name.partition("-")[0])
                if into and not (copied := into / file.parent.name).exists():
                    with contextlib.suppress(OSError):
                        copied.write_bytes(file.read_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        output = child.communicate(timeout=PATIENCE)[0]
    finally:
        child.kill()
        stop.set()
        watcher.join()
    assert child.returncode == 0, output
    (made / "output.txt").write_text(output)


# --------------------------------------------------------------------------- parties one by one


QUICK = """
import os, types
import numpy as np
from focal.files import private_write
from focal.protocols.blind.institution import BlindInstitution as Institution

def _features(self):
    with np.load(self.folder / "given.npz") as f:
        return types.SimpleNamespace(**f), np.zeros(4, np.float32)

def compare_test_features(self): ...

def _save_model(self):
    private_write(self.folder / "projection.bin", self.projection.to_bytes())
    private_write(self.folder / "weights.bin", self.weights.tobytes())

Institution.compare = Institution.compare_test_features
Institution._features, Institution.compare_test_features, Institution._save_model = \
_features, compare_test_features, _save_model
Institution.score = lambda self: None
"""
"""An institution without torch: features come from ``given.npz``, the weights go to ``weights.bin``.
The protocol is untouched."""


class Process:
    """One party's process, started as the local launcher starts it; its events are collected."""

    def __init__(
        self,
        role: str,
        manifest: Path,
        local_file: Path,
        *,
        prelude: str = "",
        limit: int = 0,
        wait: float = 30,
        born: Mapping[str, str] | None = None,
        **env: str,
    ) -> None:
        """``limit``: bytes that a file may grow to before the disk is full. ``born``: see forks.py."""
        self.name = local_file.parent.name
        arguments = [role, "--manifest", str(manifest), "--local", str(local_file), "--events"]
        arguments += [] if role == "server" else ["--wait", str(wait)]
        self.events: list[dict[str, Any]] = []
        self._grown = threading.Condition()
        program = f"{prelude}\nfrom focal.cli import main\nmain()"
        self.child = nursery(born).start(program, arguments, {**ENV, **env}, limit)
        self._errors: list[str] = []
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_events, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read_events(self) -> None:
        for line in self.child.stdout:
            with self._grown:
                self.events.append(json.loads(line))
                self._grown.notify_all()

    def _read_errors(self) -> None:
        self._errors.extend(self.child.stderr)

    def reach(self, test: Callable[[dict[str, Any]], bool], timeout: float = PATIENCE) -> None:
        """Wait for an event that fits ``test``."""
        deadline = time.monotonic() + timeout
        with self._grown:
            while not any(map(test, self.events)):
                assert self.child.poll() is None, f"{self.name} ended with {self.child.returncode}: {self.errors}"
                assert time.monotonic() < deadline, (
                    f"{self.name} did not get there in {timeout} s; last: {self.events[-3:]}"
                )
                self._grown.wait(0.1)

    def reach_phase(self, phase: str, done: int = 0) -> None:
        """Wait until the party is in ``phase`` and has got ``done`` units of it done."""
        if done:
            self.reach(lambda e: e["event"] == "progress" and e["phase"] == phase and e["done"] >= done)
        else:
            self.reach(lambda e: e["event"] == "phase" and e["phase"] == phase)

    def kill(self) -> None:
        """kill -9."""
        self.child.kill()
        self.end()

    def end(self, timeout: float = PATIENCE) -> int:
        """Wait for the process to end; returns its status."""
        status = self.child.wait(timeout)
        for reader in self._readers:
            reader.join(10)
        assert "Traceback" not in self.errors, self.errors
        return status

    def ends_within(self, seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(seconds)
        return self.child.poll() is not None

    def stands(self) -> str:
        """Where the party is: how it ended, or its last events and where each of its threads stands."""
        if (status := self.child.poll()) is not None:
            return f"{self.name} ended with {status}: {self.errors}"
        self.child.send_signal(signal.SIGUSR1)
        self.ends_within(2)
        return f"{self.name} did not end; last: {self.events[-3:]}; {self.errors}"

    @property
    def errors(self) -> str:
        """What it wrote to standard error."""
        return "".join(self._errors)


def failed(process: Process) -> str:
    """What a party said when it refused to go on."""
    assert process.end() == 1, process.errors
    return " ".join(process.errors.split())


def elsewhere(endpoint: str, address: str) -> str:
    """Program text: the server of ``endpoint`` listens at, and is found at, ``address``."""
    return f"""
import zmq
def _elsewhere(name):
    reach = getattr(zmq.Socket, name)
    setattr(zmq.Socket, name, \
lambda socket, address: reach(socket, {address!r} if address == {endpoint!r} else address))
_elsewhere("bind")
_elsewhere("connect")
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Consortium:
    """A prepared run whose processes the test starts itself. Leaving the ``with`` kills what still runs."""

    prelude = ""
    """Program text that every party begins with."""
    born: Mapping[str, str] = {}
    """What the environment of every party held when its libraries were loaded."""

    def __init__(self, name: str, *, quick: bool = True, folder: Path | None = None, **changes: Any) -> None:
        """In ``folder``, or below :func:`runs`."""
        self.run = local.open_run(RunConfig.model_validate(config(name, **changes)), folder or runs())
        self.manifest = local.prepare(self.run, lambda text: None)
        self.roles = {m.name: m.role for m in self.manifest.members}
        self.custodians = [m.name for m in self.manifest.custodians]
        self.institutions = [m.name for m in self.manifest.institutions]
        self.quick = quick
        self.processes: dict[str, Process] = {}
        if quick:
            for name_ in self.institutions:
                self._give(name_)

    def settle(self, *names: str) -> None:
        """After folders of parties were copied here: their files are those that lie here."""
        for name in names:
            self.change_local(name, keys=self.folder(name) / "identity.json", state=self.folder(name))

    def _give(self, name: str) -> None:
        """Features for :data:`QUICK`: columns that carry the label, so that there is something to learn."""
        rng = np.random.default_rng(len(name) + ord(name[-1]))
        n = self.manifest.member(name).rows or 0
        labels = np.eye(len(self.manifest.classes), dtype=np.uint8)[np.arange(n) % len(self.manifest.classes)]
        features = rng.normal(size=(n, self.manifest.lower.dim)).astype(np.float32)
        features[:, : labels.shape[1]] += labels
        self.give(name, features=features, labels=labels, groups=np.arange(n).astype(str), split=np.full(n, "train"))

    def give(self, name: str, **arrays: NDArray[Any]) -> None:
        np.savez(self.folder(name) / "given.npz", **arrays)  # type: ignore[arg-type]

    def given(self, name: str) -> dict[str, NDArray[Any]]:
        with np.load(self.folder(name) / "given.npz") as f:
            return dict(f)

    def folder(self, name: str) -> Path:
        return self.run.party(name)

    def change_local(self, name: str, **changes: Any) -> None:
        """Rewrite a party's local file."""
        path = self.folder(name) / "local.json"
        write(read(LocalConfig, path).model_copy(update=changes), path)

    def sign(self, **changes: Any) -> Manifest:
        """Another manifest of the same members, signed by all of them."""
        manifest = self.manifest.model_copy(update={**changes, "signatures": {}})
        for name in self.roles:
            manifest = sign_manifest(manifest, Identity.load(self.folder(name) / "identity.json"))
        return manifest

    def start(
        self, *names: str, manifest: Path | None = None, prelude: str = "", limit: int = 0, wait: float = 30, **env: str
    ) -> Process:
        """Start (or restart) parties; returns the last one."""
        for name in names:
            role = self.roles[name]
            source = self.prelude + (QUICK if self.quick and role == "institution" else "") + prelude
            self.processes[name] = Process(
                role,
                manifest or self.run.manifest_file,
                self.folder(name) / "local.json",
                prelude=source,
                limit=limit,
                wait=wait,
                born=self.born,
                **env,
            )
        return self.processes[names[-1]]

    def start_all(self, **options: Any) -> None:
        self.start(*self.roles, **options)

    def finish(self) -> None:
        """Wait until every party has ended well, or one has not."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            ended = [process.child.poll() for process in self.processes.values()]
            if any(ended) or None not in ended:
                break
            time.sleep(0.05)
        else:
            raise AssertionError("\n".join(process.stands() for process in self.processes.values()))
        # one that failed first: it is why the others still wait
        for name, process in sorted(self.processes.items(), key=lambda item: not item[1].child.poll()):
            status = process.end(max(1.0, deadline - time.monotonic()))
            assert status == 0, f"{name}: {status}: {process.errors}"

    def __enter__(self) -> Consortium:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            if process.child.poll() is None:
                process.child.send_signal(signal.SIGKILL)
                process.child.wait()

    # ----------------------------------------------------------------- what lies on disk

    def board(self) -> dict[tuple[str, str], bytes]:
        """(sender, topic) -> record bytes, read from a copy: the server may be dead or alive."""
        return {
            (str(s), str(t)): d
            for s, t, d in rows(self.folder("server") / "board.sqlite", "SELECT sender, topic, data FROM record")
        }

    def bodies(self, kind: type[Any]) -> Iterator[tuple[str, str, Any]]:
        """(sender, topic, body) of every record of one kind."""
        for (sender, topic), data in self.board().items():
            body = open_record(self.manifest, data).body
            if isinstance(body, kind):
                yield sender, topic, body

    def ledger(self, name: str) -> list[tuple[Any, ...]]:
        """Given shares of a custodian, in order."""
        (path,) = self.folder(name).glob("ledger-*.sqlite")
        return rows(path, "SELECT protocol, item, digest, share FROM shares ORDER BY number")

    def complete_blobs(self) -> set[str]:
        """Digests of the blobs that the server has whole."""
        return {p.parent.name + p.name for p in (self.folder("server") / "blobs").glob("??/*")}

    def weights(self) -> NDArray[np.float64]:
        """(R, C) released weights of a :data:`QUICK` run, the same at every institution."""
        found = [(self.folder(n) / "weights.bin").read_bytes() for n in self.institutions]
        assert len(set(found)) == 1, "the institutions decoded different weights"
        return np.frombuffer(found[0]).reshape(self.manifest.projection.features, -1)

    def twin(self) -> NDArray[np.float64]:
        """(R, C) weights of the plaintext twin on the institutions' rows."""
        from focal.heads.linear import twin
        from focal.segments.projection import Projection

        projection = Projection.from_bytes((self.folder(self.institutions[0]) / "projection.bin").read_bytes())
        given = [self.given(n) for n in self.institutions]
        columns = np.concatenate([projection.apply(g["features"]) for g in given])
        targets = 0.5 - np.concatenate([g["labels"] for g in given])
        training = self.manifest.training
        scalars = twin.Scalars.derive(training.degree, projection.eta, training.ridge, self.manifest.rows)
        return twin.train(columns, targets, scalars, training.steps)[0]


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    """Rows of a database that a process may hold open: read from a copy of it and its log,
    copied again where a write came between."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with tempfile.TemporaryDirectory() as folder:
            for suffix in ("", "-wal"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copy(f"{database}{suffix}", folder)
            with contextlib.closing(sqlite3.connect(Path(folder) / database.name)) as connection:
                try:
                    return connection.execute(query).fetchall()
                except sqlite3.DatabaseError:
                    if time.monotonic() > deadline:
                        raise
        time.sleep(0.05)
