"""Bad networks and bad clocks: three hospitals in network namespaces, a slow link, links that stall, clocks that jump.

::

    north --cable--+                          +-- hub: the server of the consortium
    south --cable--+-- bridge (tests/support/netns.py)-+
    west  --cable--+     1 MB/s, or cut for 40 s, while processes are killed behind it
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import netns
import numpy as np
import pytest
import yaml
from consortium import LOWER, QUICK, Consortium, Process, cli, dataset, said, write_csv
from netns import HUB, Machine, Network, Running, enter
from patience import PATIENCE
from places import ROOT

from focal.heads.released import MAX_ERROR
from focal.net.frames import PIECE
from focal.net.link import Link
from focal.net.messages import InputReveal, Upload
from focal.net.store import Journal
from focal.protocols.common.progress import timeline

SITES = ("north", "south", "west")
ENDPOINT = f"tcp://{HUB}:7788"
SILENT = f"for {Link.QUIET:.0f} s; still trying"
DOCUMENT = ROOT / "docs" / "several-machines.md"


@pytest.fixture
def network() -> Iterator[Network]:
    if why := netns.missing():
        pytest.skip(why)
    with Network(SITES) as net:
        yield net


def until(test: Callable[[], Any], what: str, timeout: float = PATIENCE) -> None:
    deadline = time.monotonic() + timeout
    while not test():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.05)


def carried(state: Path, phase: str, way: str) -> int:
    """Bytes that a party has sent (``up``) or received (``down``) in a phase, as it counted them."""
    journal = Journal(state / "journal.sqlite")
    try:
        return int(json.loads(journal.read("traffic") or b"{}").get(phase, {}).get(way, 0))
    finally:
        journal.close()


def sent(state: Path, phase: str) -> int:
    return carried(state, phase, "up")


def test_a_cut_cable_carries_nothing(network: Network) -> None:
    """The tests below mean something only if packets really vanish, and arrive again."""
    connect = (
        "import socket\ntry: socket.create_connection(('10.77.0.1', 9), timeout=0.5)\n"
        "except OSError as e: print(type(e).__name__)"
    )

    def attempt() -> str:
        command = [sys.executable, "-c", enter(network.namespace("west")) + connect]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    assert attempt() == "ConnectionRefusedError"  # the hub answers that nobody listens
    network.cut("west")
    assert attempt() == "TimeoutError"
    network.join("west")
    assert attempt() == "ConnectionRefusedError"


def test_a_slow_cable_is_slow(network: Network) -> None:
    """A megabyte takes a second, less the bucket of 64 kB that passes at once."""
    program = f"""
import socket, threading, time
{enter(network.hub)}
listening = socket.create_server(("{HUB}", 9))
{enter(network.namespace("west"))}
west = socket.create_connection(("{HUB}", 9))  # a socket stays in the namespace in which it was made
hub, _ = listening.accept()
threading.Thread(target=west.sendall, args=(bytes(1_000_000),)).start()
got, start = 0, time.monotonic()
while got < 1_000_000:
    got += len(hub.recv(1 << 16))
print(time.monotonic() - start)
"""

    def seconds() -> float:
        return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30).stdout)

    network.slow("west")
    assert seconds() > 0.9


# --------------------------------------------------------------------------- the walk-through


class Hospitals:
    """docs/several-machines.md, step by step: central and three hospitals, each with its own folder and network."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.machines = {site: Machine(network.namespace(site), folder / site) for site in SITES}
        self.machines["central"] = Machine(network.hub, folder / "central")
        self.running: dict[tuple[str, str], Running] = {}

    def at(self, place: str, *command: object) -> str:
        """A command that needs no network, given in the place's folder; what it printed."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder / place)
            result = cli(*command)
        assert result.returncode == 0, said(result)
        return said(result)

    def carry(self, name: str, there: str, to: str) -> None:
        """A file goes from one place to another, as by mail."""
        (self.folder / to / name).write_bytes((self.folder / there / name).read_bytes())

    def write(self, place: str, name: str, content: dict[str, Any]) -> None:
        (self.folder / place / name).write_text(yaml.safe_dump(content))

    def start(self, place: str, role: str) -> Running:
        local = "server.yaml" if role == "server" else f"{role}.yaml"
        self.running[place, role] = self.machines[place].start(role, "--manifest", "manifest.json", "--local", local)
        return self.running[place, role]

    def end(self) -> None:
        for running in self.running.values():
            running.kill()

    # ----------------------------------------------------------------- the sections of the document

    def identities(self) -> None:
        for place, name in (("central", "central"), *((site, n) for site in SITES for n in (site, f"{site}-keys"))):
            assert f"{name}.public.json (send it)" in self.at(place, "keys", "new", "--name", name)
            assert (self.folder / place / f"{name}.key.json").stat().st_mode & 0o077 == 0
            if place != "central":
                self.carry(f"{name}.public.json", place, "central")

    def data(self) -> dict[str, int]:
        """Each hospital's own table and images; returns training rows by site."""
        counts = {}
        for number, site in enumerate(SITES):
            # every hospital needs test patients of both classes, and every third patient of this table is one
            rows = [
                r for r in dataset().rows(dataset().binary) if int(r["patient"].rpartition("-")[2]) // 9 % 3 == number
            ]
            write_csv(self.folder / site / "scans.csv", rows)
            (self.folder / site / "scans.zip").symlink_to(dataset().images)
            counts[site] = sum(r["split"] == "train" for r in rows)
        return counts

    def manifest(self, rows: dict[str, int]) -> None:
        """The document's own configuration, with a model that takes milliseconds and two steps."""
        text = re.search(r"```yaml\n(# eyes\.yaml.*?)```", DOCUMENT.read_text(), re.DOTALL)
        assert text is not None
        config = yaml.safe_load(text[1])
        config["dataset"] |= {"classes": ["well", "sick"], "task": "binary"}
        self.write("central", "eyes.yaml", {**config, "lower": LOWER, "training": {"steps": 2}})
        self.at("central", "manifest", "new", "--config", "eyes.yaml", "--out", "manifest.json")
        add = ("manifest", "add", "manifest.json", "--role")
        self.at("central", *add, "server", "--public", "central.public.json", "--endpoint", ENDPOINT)
        self.at("central", *add, "custodian", "--public", "north-keys.public.json", "--verify", "lockstep")
        self.at("central", *add, "custodian", "--public", "south-keys.public.json")
        for site in SITES:
            planned = self.at("central", *add, "institution", "--public", f"{site}.public.json", "--rows", rows[site])
        assert "layout:" in planned and "bytes:" in planned
        place = "central"
        for signer in ("central", "north", "north-keys", "south", "south-keys", "west"):
            next_place = signer.removesuffix("-keys")
            if next_place != place:
                self.carry("manifest.json", place, next_place)
            place = next_place
            signed = self.at(place, "manifest", "sign", "manifest.json", "--keys", f"{signer}.key.json")
        assert "signed by all" in signed
        for other in ("central", "north", "south"):
            self.carry("manifest.json", place, other)
        checks = {self.at(p, "manifest", "check", "manifest.json") for p in ("central", *SITES)}
        assert len(checks) == 1 and "north-keys re-run(s) every step" in checks.pop()

    def local_files(self) -> None:
        bind = {"name": "central", "keys": "central.key.json", "state": "state/server", "bind": "tcp://*:7788"}
        self.write("central", "server.yaml", bind)
        for site in SITES:
            verify = {"verify": "lockstep"} if site == "north" else {}
            keys = {"name": f"{site}-keys", "keys": f"{site}-keys.key.json", "state": "state/custodian", **verify}
            self.write(site, "custodian.yaml", keys)
            data = {"kind": "table", "table": "scans.csv", "images": "scans.zip"}
            local = {
                "name": site,
                "keys": f"{site}.key.json",
                "state": "state/institution",
                "data": data,
                "weights": "random:0",
            }
            self.write(site, "institution.yaml", {**local, "device": "auto"})


def test_three_hospitals_on_three_machines_one_behind_a_slow_link(network: Network, tmp_path: Path) -> None:
    """The document's commands, each where it belongs. West has 1 MB/s, and its institution is killed
    in the middle of its upload."""
    hospitals = Hospitals(network, tmp_path)
    try:
        hospitals.identities()
        hospitals.manifest(hospitals.data())
        hospitals.local_files()
        network.slow("west")
        server = hospitals.start("central", "server")
        until(lambda: "listening" in server.printed, server.printed)
        check = hospitals.machines["west"].run("check", "--manifest", "manifest.json", "--local", "institution.yaml")
        assert check.returncode == 0 and "keys are accepted on both sides" in said(check), said(check)

        custodians = [hospitals.start(site, "custodian") for site in ("north", "south")]
        network.slow("west", "800kbit")  # until it is killed: its 0.9 MB take seconds, and nobody can miss them
        for site in SITES:
            hospitals.start(site, "institution")
        west, state = hospitals.running["west", "institution"], hospitals.folder / "west" / "state" / "institution"
        arrived = hospitals.folder / "central" / "state" / "server" / "blobs"
        prepared = hospitals.folder / "west" / "state" / "institution" / "blobs"

        def there() -> set[str]:
            return {p.parent.name + p.name for p in arrived.glob("??/*")}

        def in_the_middle() -> bool:
            own = {p.parent.name + p.name for p in prepared.glob("??/*")}
            return bool(own & there()) and bool(own - there())

        until(in_the_middle, "west uploads")
        west.kill()
        complete = there()
        network.slow("west")
        hospitals.start("west", "institution")

        for site, custodian in zip(("north", "south"), custodians, strict=True):
            until(
                lambda c=custodian: "the release waits for: focal approve state/custodian" in c.printed, "the release"
            )  # type: ignore[misc]
            assert "approved: state/custodian" in hospitals.at(site, "approve", "state/custodian")
        for (place, role), running in hospitals.running.items():
            assert running.end() == 0, f"{place} {role}: {running.printed}"
            assert SILENT not in running.printed and "lost the connection" not in running.printed, running.printed

        own = {p.parent.name + p.name: p.stat().st_size for p in prepared.glob("??/*")}
        again = sum(size for digest, size in own.items() if digest in complete)
        assert again > 0, "nothing of west's was complete at the kill: the next line would mean nothing"
        # the new process sends what was not complete, less what had begun to arrive; headers and requests are small
        assert sent(state, "upload") < sum(own.values()) - again + PIECE

        for site in SITES:
            result = hospitals.folder / site / "state" / "institution"
            summary = json.loads((result / "summary.json").read_text())
            assert 0 <= summary["auroc"]["encrypted"] <= 1 and summary["verify"] == {
                "north-keys": "lockstep",
                "south-keys": "off",
            }
            assert set(summary["auroc"]) == {"encrypted"} and all(s >= 0 for s in summary["seconds"].values())
            for path in (hospitals.folder / site / "state").rglob("*"):
                assert path.stat().st_mode & 0o077 == 0, path
        models = {(hospitals.folder / s / "state" / "institution" / "projection.bin").read_bytes() for s in SITES}
        assert len(models) == 1
        out = hospitals.at("north", "predict", "state/institution", "--images", "scans.zip", "--out", "predictions.csv")
        assert "predictions.csv" in out
        with (hospitals.folder / "north" / "predictions.csv").open(newline="") as f:
            assert len(list(csv.DictReader(f))) == len(dataset().rows())
    finally:
        hospitals.end()


# --------------------------------------------------------------------------- stalls


class Spread:
    """A consortium whose parties live in different places of a network.
    The server writes down all that it receives, in ``wires``."""

    def __init__(self, network: Network, c: Consortium, homes: dict[str, tuple[str, ...]], wires: Path) -> None:
        self.network, self.c, self.wires = network, c, wires
        self.place = {name: home for home, names in homes.items() for name in names}
        members = tuple(
            m.model_copy(update={"endpoint": ENDPOINT}) if m.role == "server" else m for m in c.manifest.members
        )
        c.manifest = c.sign(members=members)
        c.run.manifest_file.write_text(c.manifest.model_dump_json())

    def start(self, *names: str) -> None:
        for name in names:
            record = f"import recorded; recorded.into({str(self.wires)!r})\n" if name == "server" else ""
            self.c.start(name, prelude=enter(self.network.namespace(self.place[name])) + record)

    def while_sending(self, name: str) -> list[Path]:
        """Wait until ``name`` is in the middle of sending its blobs; returns those that the server has whole."""
        own, there = self.c.folder(name) / "blobs", self.c.folder("server") / "blobs"

        def arrived() -> list[Path]:
            return [p for p in own.glob("??/*") if (there / p.parent.name / p.name).exists()]

        until(lambda: 3 < len(arrived()) < len(list(own.glob("??/*"))), f"{name} is sending")
        return arrived()

    def assert_sent_once(self, blobs: list[Path]) -> None:
        received = (self.wires / "server" / "payloads.bin").read_bytes()
        for data in (
            p.read_bytes() for p in blobs
        ):  # 64 bytes of ciphertext in each piece, behind the header that all share
            assert all(received.count(data[at + 256 : at + 320]) == 1 for at in range(0, len(data) - 320, PIECE)), (
                "a piece was sent again"
            )

    def assert_silent(self, *names: str) -> None:
        """These parties, and no others, said that nothing answers, and later that it does again."""
        for name in self.place:
            errors = self.c.processes[name].errors
            assert (SILENT in errors and "answers again" in errors) == (name in names), f"{name}: {errors}"

    def assert_ended_well(self) -> None:
        """The weights are right, and every custodian made each of its shares once: the inputs,
        the weights of two steps, three blocks' logits in the second, and the release."""
        assert np.abs(self.c.weights() - self.c.twin()).max() < MAX_ERROR
        for name in self.c.custodians:
            shares = self.c.ledger(name)
            assert (
                len(shares)
                == 1 + 2 + 3 + 1
                == len({item for _, item, _, _ in shares})
                == len({d for _, _, d, _ in shares})
            )


def test_stalls_in_an_upload_in_a_refresh_and_around_a_kill(network: Network, tmp_path: Path) -> None:
    """A cable is cut for 40 s in the middle of an upload; meanwhile two processes behind another cut cable
    are killed and restarted."""
    homes = {
        "north": ("custodian-1", "hospital-a"),
        "south": ("custodian-2", "hospital-c"),
        "west": ("hospital-b",),
        "hub": ("server",),
    }
    with Consortium("stalled", training={"steps": 2}, layout={"class_lanes": 4, "feature_lanes": 4}) as c:
        spread = Spread(network, c, homes, tmp_path)
        network.slow("west")
        spread.start(*c.roles)
        c.processes["hospital-b"].reach_phase("upload")
        complete = spread.while_sending("hospital-b")
        network.cut("west")
        began = time.monotonic()

        c.processes["hospital-c"].reach(lambda e: "uploaded" in e.get("text", ""))
        network.cut("south")
        for name in ("custodian-2", "hospital-c"):
            c.processes[name].kill()
        spread.start("custodian-2", "hospital-c")
        time.sleep(3.0)  # they dial, and nothing answers
        network.join("south")

        time.sleep(max(0.0, began + 40 - time.monotonic()))
        network.join("west")
        c.processes["custodian-1"].reach_phase("train", done=1)
        network.cut("north")  # the verifier vanishes in the middle of a refresh, for less than Link.QUIET
        time.sleep(3.0)
        network.join("north")
        c.finish()

        spread.assert_silent("hospital-b")
        spread.assert_sent_once(complete)
        spread.assert_ended_well()
        # hospital-b was never restarted: what it sent is its ciphertexts, and the window that was under way
        # when the link was given up
        own = sum(p.stat().st_size for p in (c.folder("hospital-b") / "blobs").glob("??/*"))
        assert (
            own
            <= sent(c.folder("hospital-b"), "upload") + sent(c.folder("hospital-b"), "moments")
            < own + (Link.WINDOW + 1) * PIECE
        )


def test_custodians_behind_slow_links_that_stall_for_a_minute(network: Network, tmp_path: Path) -> None:
    """Both custodians have 1 MB/s. One is cut off while it sends its key contributions,
    the verifier in the middle of a refresh."""
    homes = {
        "north": ("custodian-1",),
        "south": ("custodian-2",),
        "hub": ("server", "hospital-a", "hospital-b", "hospital-c"),
    }
    with Consortium("stalled-custodians", training={"steps": 2}, layout={"class_lanes": 4, "feature_lanes": 4}) as c:
        spread = Spread(network, c, homes, tmp_path)
        network.slow("north")
        network.slow("south")
        spread.start(*c.roles)
        c.processes["custodian-2"].reach_phase("keys")
        complete = spread.while_sending("custodian-2")
        network.cut("south")
        time.sleep(Link.QUIET + 10)
        assert "keys/2/commit" not in {topic for _, topic in c.board()}, "the key ceremony went on without custodian-2"
        network.join("south")

        verifier = c.processes["custodian-1"]
        verifier.reach(lambda e: e["event"] == "progress" and e["phase"] == "train" and e["done"] >= 1)
        given = len(c.ledger("custodian-1"))
        network.cut("north")
        time.sleep(60)  # TCP's own intervals have doubled by then (focal/net/wire.py)
        assert all(p.child.poll() is None for p in c.processes.values()), (
            "somebody went on without the verifier, or gave up"
        )
        network.join("north")
        c.finish()

        assert 1 < given < 1 + 2 + 3, "the verifier was not cut off in the middle of the training"
        spread.assert_silent("custodian-1", "custodian-2")
        spread.assert_sent_once(complete)
        spread.assert_ended_well()
        # the verifier has fetched every masked message of every institution, and what the other custodian
        # gave for the inputs, once
        chunks = [digest for _, _, upload in c.bodies(Upload) for digest in upload.chunks]
        chunks += [digest for name, _, made in c.bodies(InputReveal) if name == "custodian-2" for digest in made.blobs]
        fetched = sum((c.folder("custodian-1") / "blobs" / d[:2] / d[2:]).stat().st_size for d in chunks)
        assert fetched < carried(c.folder("custodian-1"), "upload", "down") < fetched + PIECE


# --------------------------------------------------------------------------- clocks


def jump(seconds: float, after: float) -> str:
    """Program text: the wall clock jumps by ``seconds``, ``after`` seconds from now."""
    return f"""
import time as _time
_real, _start = _time.time, _time.monotonic()
_time.time = lambda: _real() + ({seconds} if _time.monotonic() - _start > {after} else 0)
"""


SUMMARY = "\nfrom focal.protocols.common.institution import Institution\nscore = Institution.score\n"
"""Before :data:`QUICK`: keeps the scoring that it switches off."""
ALONE = """
from focal.data.rows import InstitutionRows
given = Institution._features
def _features(self):
    rows, test = given(self)
    return InstitutionRows(**vars(rows)), test
Institution._features, Institution.score, Institution._pool_scores = _features, score, lambda *_: None
"""
"""After it: one institution scores, and waits for no other's histogram."""


def test_clocks_that_jump() -> None:
    """An hour forward at the server, a day back at a custodian and an institution, in the middle:
    durations use the monotonic clock."""
    day, hour = -86400.0, 3600.0
    with Consortium("clocks") as c:
        given = c.given("hospital-a")
        held = 24  # test rows, so that it scores and writes a summary
        c.give(
            "hospital-a",
            **{k: np.concatenate([v, v[:held]]) for k, v in given.items() if k != "split"},
            split=_split(given, held),
        )
        began = time.monotonic()
        c.start("server", prelude=jump(hour, after=4))
        c.start("custodian-1", prelude=jump(day, after=4))
        c.start("custodian-2", "hospital-b", "hospital-c")
        c.processes["hospital-a"] = Process(
            "institution",
            c.run.manifest_file,
            c.folder("hospital-a") / "local.json",
            prelude=jump(day, after=4) + SUMMARY + QUICK + ALONE,
        )
        c.finish()
        passed = time.monotonic() - began
        assert passed > 5, "it was over before any clock jumped"
        c.give("hospital-a", **given)
        assert np.abs(c.weights() - c.twin()).max() < MAX_ERROR
        for name in ("server", "custodian-1", "hospital-a"):
            spans = timeline(c.folder(name))
            assert len(spans) >= 4 and all(0 <= e["seconds"] < passed for e in spans)
            assert sum(e["seconds"] for e in spans) < passed
        seconds = json.loads((c.folder("hospital-a") / "summary.json").read_text())["seconds"]
        assert 0 < seconds["total"] < passed and all(0 <= s < passed for s in seconds.values())


def _split(given: dict[str, Any], held: int) -> Any:
    return np.concatenate([given["split"], np.full(held, "test")])
