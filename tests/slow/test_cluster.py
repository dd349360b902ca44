"""A party's blocks on Ray workers of this machine: the limbs of threads, whoever computes and whoever is lost; and
clusters and nodes that are refused.

Each cluster is real: Ray's own processes, several seconds to start. What is recorded (spread.py) answers every engine
alike, and an engine that asks for the refresh of another ciphertext fails.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import Consortium, cli, focal, free_port, said
from patience import PATIENCE
from places import ROOT

if find_spec("ray") is None:
    pytest.skip("ray is not installed: pip install 'focal[ray]'", allow_module_level=True)
# Workers unpickle what spread.py makes: it must be on their path before Ray starts them.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(ROOT), str(ROOT / "tests/support"), os.environ.get("PYTHONPATH")])
)

from spread import Recorded  # noqa: E402

from focal.cluster.nodes import Cluster, Node  # noqa: E402
from focal.cluster.shards import RayShards  # noqa: E402
from focal.config import CkksConfig  # noqa: E402
from focal.errors import FocalError  # noqa: E402
from focal.heads.linear.cost import layout_for  # noqa: E402
from focal.heads.linear.engine import Engine, Shards  # noqa: E402
from focal.net.store import DiskError  # noqa: E402

GB = 1 << 30
LAYOUT = layout_for(8192, 32, 6, 5000, 4, 1, (5000,))
"""3 blocks, 2 class groups, 4 babies: two workers have neither as many blocks nor whole class groups."""
PARAMS = CkksConfig()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two processors on this machine."""
    made = Cluster(None, 2, memory=2 * GB)
    yield made
    made.close()


@pytest.fixture(scope="module")
def found(cluster: Cluster) -> list[Node]:
    return cluster.nodes(PARAMS)


@pytest.fixture(scope="module", params=[3, 5], ids=["degree3", "degree5"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(LAYOUT, request.param, tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="module")
def expected(recorded: Recorded) -> list[list[str]]:
    """By threads of this process."""
    return steps(recorded, None)


def steps(recorded: Recorded, shards: Shards | None, count: int = 2) -> list[list[str]]:
    """Digests of the weights after each step."""
    own = recorded.job.shard(2, LAYOUT.blocks)
    engine = Engine(own.scheme, LAYOUT, recorded.scalars, own.block, 2, shards)
    weights, out = recorded.weights(), []
    for step in range(count):
        weights = engine.step(step, weights, recorded.refresh)
        out.append(recorded.digests(weights))
    return out


def workers(cluster: Cluster, found: list[Node], recorded: Recorded, per_node: int, kind: type[RayShards] = RayShards):  # type: ignore[no-untyped-def]
    told: list[str] = []
    made = kind(cluster, found, recorded.job, LAYOUT, recorded.run.scheme, lambda n: GB // 4, told.append, per_node)
    return made, told


@pytest.mark.parametrize("count", [1, 2])
def test_any_number_of_workers_gives_the_limbs_of_threads(
    cluster: Cluster, found: list[Node], recorded: Recorded, expected: list[list[str]], count: int
) -> None:
    shards, told = workers(cluster, found, recorded, count)
    assert len(shards.seats) == count and sorted(b for s in shards.seats for b in s.blocks) == [0, 1, 2]
    assert steps(recorded, shards) == expected and told == []
    shards.dismiss()


class Killing(RayShards):
    """Its second worker is killed as soon as it has been asked for the first sums of a step after the first."""

    killed = 0

    def _got(self, refs: list[Any]) -> list[Any]:
        if self.armed and not self.killed:
            self.killed = self.seats[1].pid
            time.sleep(0.05)  # in the middle of the products
            os.kill(self.killed, signal.SIGKILL)
        return super()._got(refs)

    armed = False

    def backward(self, logits: Any, residuals: Any) -> Any:
        self.armed = logits is not None or residuals is not None
        try:
            return super().backward(logits, residuals)
        finally:
            self.armed = False


def test_a_worker_killed_in_the_middle_of_a_step_changes_no_limb(
    cluster: Cluster, found: list[Node], recorded: Recorded, expected: list[list[str]]
) -> None:
    shards, told = workers(cluster, found, recorded, 2, Killing)
    before = {seat.pid for seat in shards.seats}
    assert steps(recorded, shards) == expected
    assert shards.lost == 1 and len(told) == 1 and "its part is made again" in told[0]
    after = {seat.pid for seat in shards.seats}
    assert shards.killed in before - after and len(before & after) == 1 and len(after) == 2
    shards.dismiss()


def test_two_nodes_give_the_limbs_of_threads() -> None:
    """Each has a worker with a part of the blocks. What that costs is printed too (docs/scale.md)."""
    lines = support("spread_cost.py", "--rows", "3000", "--features", "32", "--class-lanes", "8", "--nodes", "2")
    assert lines[1] == {"nodes": 2, "blocks of each worker": [2, 1]}
    assert lines[-1] == {"same_limbs": True} and [line["step"] for line in lines[2:-1]] == [0, 1, 2]
    assert all(line["ray"]["workers"] > 0 for line in lines[2:-1])


def support(script: str, *words: str) -> list[Any]:
    """The lines of JSON that one of tests/support prints; a process of its own, for Ray is one a process."""
    command = [sys.executable, str(ROOT / "tests/support" / script), *words]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=env, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def test_a_node_lost_in_the_middle_of_a_step_changes_no_limb() -> None:
    """The other node takes its blocks."""
    happened = support("losing_node.py")[-1]
    assert happened["same"] and happened["told"], happened
    assert happened["before"] == [[0, 2], [1]] and happened["after"] == [[0, 1, 2]]


def test_what_a_worker_finds_wrong_is_raised_as_it_is(
    cluster: Cluster, found: list[Node], recorded: Recorded, tmp_path: Path
) -> None:
    """Nobody is asked again: it would find the same."""
    digest = recorded.job.blocks[1]
    file = recorded.job.folder / digest[:2] / digest[2:]
    data = file.read_bytes()
    shards, told = workers(cluster, found, recorded, 1)
    file.write_bytes(data[:-1])
    try:
        with pytest.raises(DiskError, match="the disk returns other bytes than were written") as caught:
            shards.backward(None, None)
    finally:
        file.write_bytes(data)
        shards.dismiss()
    assert str(file) in str(caught.value) and "delete the file" in caught.value.hint and not told


def test_workers_limit_openmp_and_know_no_key_of_the_driver(
    cluster: Cluster, found: list[Node], recorded: Recorded
) -> None:
    """The first is asserted in the worker (spread.FileJob.shard)."""
    shards, _ = workers(cluster, found, recorded, 1)
    environ = Path(f"/proc/{shards.seats[0].pid}/environ").read_bytes()
    assert b"RAY_AUTH_MODE=token" in environ
    shards.dismiss()


# --------------------------------------------------------------------------- who is refused


def test_nodes_that_may_not_compute_are_named(cluster: Cluster, found: list[Node], tmp_path: Path) -> None:
    name = socket.gethostname()
    assert [n.cores for n in cluster.checked(found, PARAMS, None, lambda n: GB)] == [2]
    with pytest.raises(FocalError, match=rf"node {name} .* has 2\.1 GB for workers, the layout needs 3\.0 GB"):
        cluster.checked(found, PARAMS, None, lambda n: 3 * 10**9)
    missing = tmp_path / "ab" / "cd"
    with pytest.raises(FocalError, match=f"node {name} .* does not see {missing}"):
        cluster.checked(cluster.nodes(PARAMS, missing), PARAMS, missing)
    others = {
        "has focal 9.9, Python": {"focal": "9.9"},
        r"has focal \(missing\), Python": {"focal": None, "digest": ""},
        "Python 3.8.1 and": {"python": "3.8.1"},
        "ray 2.9.0, this process": {"ray": "2.9.0"},
        "computes other limbs than this process": {"digest": "0" * 64},
    }
    for words, other in others.items():
        with pytest.raises(FocalError, match=f"node {name} .*{words}"):
            cluster.checked([replace(found[0], **other)], PARAMS, None)  # type: ignore[arg-type]


def test_a_process_is_on_one_cluster_at_a_time(cluster: Cluster) -> None:
    with pytest.raises(FocalError, match="this process is on a Ray cluster already"):
        Cluster(None, 1)
    assert len(cluster.alive()) == 1


def test_a_cluster_without_a_token_here_is_not_even_asked(tmp_path: Path) -> None:
    answer = driver("127.0.0.1:1", tmp_path)
    assert "there is no token on this machine" in answer and "ray get-auth-token --generate" in answer


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Any]:
    """Starts a head node of its own, with these variables; yields a function that returns its address."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**env: str) -> str:
        port = free_port()
        # fmt: off
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--num-cpus=1",
            "--include-dashboard=false", f"--temp-dir={short}", "--min-worker-port=0", "--max-worker-port=0",
        ]
        # fmt: on
        log = (tmp_path / "head.log").open("wb")
        started.append(subprocess.Popen(command, env=outside(tmp_path) | env, stdout=log, stderr=log))
        deadline = time.monotonic() + PATIENCE
        while b"Ray runtime started" not in (tmp_path / "head.log").read_bytes():
            assert started[-1].poll() is None and time.monotonic() < deadline, (tmp_path / "head.log").read_text()
            time.sleep(0.2)
        return next(
            line.split("'")[1].rpartition("=")[2]
            for line in (tmp_path / "head.log").read_text().splitlines()
            if "ray start --address" in line
        )

    short = Path("/tmp") / f"ray-{os.getpid()}"  # sockets lie in it, and their paths must be short
    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
    shutil.rmtree(short, ignore_errors=True)


def outside(home: Path) -> dict[str, str]:
    """The environment of somebody with this home, and nothing of Ray in it."""
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(home)}


DRIVER = """
import sys
from focal.cluster.nodes import Cluster
from focal.config import CkksConfig
from focal.errors import FocalError
try:
    cluster = Cluster(sys.argv[1], 1)
    print([node.cores for node in cluster.checked(cluster.nodes(CkksConfig()), CkksConfig(), None)])
    cluster.close()
except FocalError as e:
    print(e)
"""


def driver(address: str, home: Path, **env: str) -> str:
    """What a driver says of a cluster."""
    command = [sys.executable, "-c", DRIVER, address]
    result = subprocess.run(
        command, env=outside(home) | env, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_cluster_that_lets_strangers_in_is_refused(head: Any, tmp_path: Path) -> None:
    answer = driver(head(RAY_AUTH_MODE="disabled"), tmp_path, RAY_AUTH_TOKEN="ab" * 32)
    assert "lets in who has no token: whoever reaches its ports runs code there" in answer


def test_a_cluster_with_a_token_takes_those_who_have_it(head: Any, tmp_path: Path) -> None:
    address = head(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="ab" * 32)
    assert "it has another token than this machine" in driver(address, tmp_path, RAY_AUTH_TOKEN="cd" * 32)
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir(exist_ok=True)
    token.write_text("ab" * 32)
    assert driver(address, tmp_path).strip() == "[1]"


# --------------------------------------------------------------------------- whole runs

RECORDING = """
import focal.cluster.nodes, pickle
from ray._private.serialization import SerializationContext
from focal.custody.keys import SecretShare
from pathlib import Path
_serialize, _draw = SerializationContext.serialize, SecretShare.draw
_sent, _share = Path({sent!r}).open("ab"), Path({share!r})

def serialize(self, value):
    made = _serialize(self, value)
    _sent.write(bytes(value) if isinstance(value, bytes) else made.to_bytes())
    _sent.flush()
    return made

def draw(*arguments):
    made = _draw(*arguments)
    _share.write_bytes(pickle.dumps((made.dump(), [bytes(limb) for limb in made.limbs])))
    return made

SerializationContext.serialize, SecretShare.draw = serialize, draw
"""
"""A party that writes down what it hands to Ray, and its share."""


def test_a_run_whose_server_and_verifier_compute_on_ray(tmp_path: Path) -> None:
    """It ends as every run does, threads audit it, and Ray audits it; nothing of the verifier's key share was handed
    to Ray."""
    sent, share = tmp_path / "sent", tmp_path / "share"
    with Consortium("ray", folder=tmp_path) as c:
        for name in ("server", "custodian-1"):
            c.change_local(name, compute="ray", threads=1)
        c.start("custodian-1", prelude=RECORDING.format(sent=str(sent), share=str(share)))
        c.start(*(name for name in c.roles if name != "custodian-1"))
        c.finish()
        assert np.abs(c.weights() - c.twin()).max() < 1e-3
        for audited in (cli("audit", c.run.folder), focal("audit", c.run.folder, "--ray", "local")):
            assert audited.returncode == 0 and "every digest is the same" in said(audited), audited.stderr
    ternary, limbs = pickle.loads(share.read_bytes())
    data = sent.read_bytes()
    assert len(data) > 1 << 20 and b"JointKeys" in data, "nothing was recorded"
    for secret in (ternary, np.frombuffer(ternary, np.int8).astype(np.int64).tobytes(), *limbs):
        assert all(secret[at : at + 64] not in data for at in range(0, len(secret), 4096))
