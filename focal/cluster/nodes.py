"""The nodes of a party's Ray cluster: who they are, and whether they may compute.

A node is taken when it has the focal, Python and limbs of the driver, sees the party's blobs where the driver does, and
has the memory that its share of the layout needs. The cluster is taken when it turns away who has no token.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from focal.config import CkksConfig
from focal.errors import FocalError

LOOK_SECONDS = 120.0
"""How long a node may take to start a process and compute the probe."""
KNOCK_SECONDS = 30.0
TRIES = 3
DOCS = "docs/several-machines.md, 'Several machines for one party'"


@dataclass(frozen=True)
class Node:
    """What a node says of itself."""

    id: str
    name: str
    """Host name and address, as errors say it."""
    cores: int
    memory: int
    """Bytes that Ray may give to workers there (``ray start --memory``)."""
    python: str
    ray: str
    focal: str | None
    """Its version, and a digest of its source; None: not installed there."""
    native: str
    digest: str
    """Of limbs (:mod:`focal.ckks.probe`)."""
    sees: bool
    """Is a file of the party's blobs there?"""

    def describe(self) -> str:
        """One line of ``focal cluster check``."""
        return (
            f"{self.name}: {self.cores} cores, {self.memory / 1e9:.1f} GB; focal {self.focal or 'missing'}, "
            f"ray {self.ray}, Python {self.python}, kernels {self.native or '?'}, limbs {self.digest[:16] or '?'}"
        )


class Cluster:
    """This process as the driver of its party's cluster. ``address``: ``auto``, ``host:port``, or None for a cluster
    on this machine that ends with it, of ``threads`` processors and, where that is said, ``memory`` bytes.

    Raises :class:`FocalError` when there is no such cluster, no token, or a cluster that asks for none.
    """

    def __init__(self, address: str | None, threads: int, memory: int | None = None) -> None:
        self.name = f"the Ray cluster at {address}" if address else "the Ray cluster of this machine"
        if ray.is_initialized():
            raise FocalError(f"{self.name}: this process is on a Ray cluster already", hint="one party a process")
        options: dict[str, Any] = {"address": address or "local"}
        self.folder: str | None = None
        if address is None:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # what it starts inherits it
            # Ray opens its folders to everybody: they lie in one that nobody else enters
            self.folder = tempfile.mkdtemp(prefix="focal-ray-", dir="/tmp")  # paths of sockets must be short
            options |= {"num_cpus": threads, "include_dashboard": False, "_memory": memory}
            options["_temp_dir"] = f"{self.folder}/ray"
        elif not _token_there():
            raise FocalError(
                f"{self.name}: there is no token on this machine, and without one anybody who reaches a port "
                "runs code there",
                hint="on one machine: ray get-auth-token --generate; copy ~/.ray/auth_token (0600) to every node; "
                f"start Ray with RAY_AUTH_MODE=token everywhere ({DOCS})",
            )
        self._init(address, options)
        try:
            self._check_guarded()
        except BaseException:
            self.close()
            raise

    def _init(self, address: str | None, options: dict[str, Any]) -> None:
        main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGTERM)
        for attempt in range(TRIES if address is None else 1):  # on a busy machine Ray's own processes may be late
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
                return
            except Exception as e:  # Ray raises all kinds of them
                ray.shutdown()
                reason, denied = str(e).strip().splitlines(), isinstance(e, ray.exceptions.AuthenticationError)
            finally:
                if main:  # Ray takes it; a party ends in its own way
                    signal.signal(signal.SIGTERM, handler)
            time.sleep(attempt)
        if denied or (address not in (None, "auto") and knocked(str(address), dict(os.environ)) == TURNED_AWAY):
            raise FocalError(
                f"{self.name}: it has another token than this machine",
                hint="copy ~/.ray/auth_token (0600) from one of its nodes",
            )
        why = reason[0][:200] if reason else "no reason given"
        if address is None:
            raise FocalError(f"{self.name}: it does not start ({why})", hint="its logs are in /tmp/ray/session_latest")
        raise FocalError(
            f"{self.name}: no connection ({why})",
            hint="this process must run on one of its nodes: RAY_AUTH_MODE=token ray start --address=HEAD:6379, "
            "or leave out ray_address",
        )

    def _check_guarded(self) -> None:
        """Knock without a token, in another process: this one's mode is settled."""
        address = ray.get_runtime_context().gcs_address
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"RAY_AUTH_MODE": "disabled"}
        answer = next((a for a in (knocked(address, env) for _ in range(TRIES)) if a in (TURNED_AWAY, LET_IN)), None)
        if answer == LET_IN:
            raise FocalError(
                f"{self.name} lets in who has no token: whoever reaches its ports runs code there",
                hint=f"stop it (ray stop on every node) and start it with RAY_AUTH_MODE=token on every node ({DOCS})",
            )
        if answer is None:
            raise FocalError(f"{self.name}: it cannot be told whether it asks for a token", hint="is it still there?")

    # ----------------------------------------------------------------- nodes

    def nodes(self, params: CkksConfig, file: Path | None = None) -> list[Node]:
        """All nodes that are alive, after each has computed the probe and looked for ``file``.

        Raises :class:`FocalError` naming a node that does not answer.
        """
        look, alive = ray.remote(_look()), self.alive()
        asked = [
            look.options(num_cpus=0, scheduling_strategy=on_node(id), max_retries=0).remote(
                params.model_dump(), str(file) if file else None
            )
            for id in alive
        ]
        return [self._heard(alive[id], answer) for id, answer in zip(alive, asked, strict=True)]

    def alive(self) -> dict[str, dict[str, Any]]:
        """Id -> what Ray says of the node."""
        return {n["NodeID"]: n for n in ray.nodes() if n["Alive"]}

    def _heard(self, said: dict[str, Any], answer: Any) -> Node:
        resources, name = said["Resources"], f"{said['NodeManagerHostname']} ({said['NodeManagerAddress']})"
        try:
            seen = ray.get(answer, timeout=LOOK_SECONDS)
        except ray.exceptions.RayError as e:
            reason = str(e).strip().splitlines()[-1][:200]
            raise FocalError(
                f"{self.name}: node {name} does not answer ({reason})",
                hint="the same Python, ray and focal must be installed on every node",
            ) from None
        return Node(said["NodeID"], name, int(resources.get("CPU", 0)), int(resources.get("memory", 0)), **seen)

    def checked(
        self, found: Sequence[Node], params: CkksConfig, file: Path | None, need: Callable[[int], int] | None = None
    ) -> list[Node]:
        """Those of :meth:`nodes` that compute: all that were given processors. ``file``: one of the party's blobs;
        ``need``: nodes -> bytes that each of them needs.

        Raises :class:`FocalError` naming the first node that may not compute, why, and the way out.
        """
        own, nodes = _look()(params.model_dump(), None), [n for n in found if n.cores > 0]
        if not nodes:
            raise FocalError(f"{self.name}: no node has processors", hint="ray start with --num-cpus above 0")
        for node in nodes:
            self._check(node, own, file, need(len(nodes)) if need else 0)
        return nodes

    def _check(self, node: Node, own: dict[str, Any], file: Path | None, need: int) -> None:
        where = f"{self.name}: node {node.name}"
        if (node.focal, node.python, node.ray) != (own["focal"], own["python"], own["ray"]):
            raise FocalError(
                f"{where} has focal {node.focal or '(missing)'}, Python {node.python} and ray {node.ray}, this process "
                f"{own['focal']}, {own['python']} and {own['ray']}",
                hint="install the same versions there, then start Ray on that node again",
            )
        if node.digest != own["digest"]:
            raise FocalError(
                f"{where} computes other limbs than this process ({node.digest[:16]}, not {own['digest'][:16]}; "
                f"kernels there {node.native}, here {own['native']})",
                hint="FOCAL_NATIVE=0 ray start there tells whether its kernels or its OpenFHE are to blame; "
                "take the node out of the cluster until it gives the same",
            )
        if not node.sees:
            raise FocalError(
                f"{where} does not see {file}",
                hint="share the folder 'blobs' of this party's state (only that one) with the node, under the same "
                "path and for the same user",
            )
        if node.memory < need:
            raise FocalError(
                f"{where} has {node.memory / 1e9:.1f} GB for workers, the layout needs {need / 1e9:.1f} GB of it",
                hint="a smaller memory_gb in the local file, more nodes, or ray start --memory=BYTES there",
            )

    def close(self) -> None:
        ray.shutdown()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def on_node(id: str) -> NodeAffinitySchedulingStrategy:
    """There or nowhere."""
    return NodeAffinitySchedulingStrategy(id, soft=False)


TURNED_AWAY, LET_IN = 10, 11
KNOCK = f"""
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1])
except AuthenticationError:
    sys.exit({TURNED_AWAY})
sys.exit({LET_IN})
"""
"""What a stranger's process does. Anything but its two exits is no answer, and no answer is refused."""


def knocked(address: str, env: dict[str, str]) -> int | None:
    """What the head node at ``address`` says to a process with these variables: ``TURNED_AWAY``, ``LET_IN``, or
    something else."""
    command = [sys.executable, "-c", KNOCK, address]
    try:
        return subprocess.run(command, env=env, capture_output=True, timeout=KNOCK_SECONDS).returncode
    except subprocess.TimeoutExpired:
        return None


def _token_there() -> bool:
    """Where Ray looks for one, in its order."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    file = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(file) if file else Path.home() / ".ray" / "auth_token"
    return path.is_file() and bool(path.read_text().strip())


def _look() -> Callable[[dict[str, Any], str | None], dict[str, Any]]:
    """The function that looks at a machine. It is made here, so that it travels as itself: a node without focal,
    or with another one, can still say so."""

    def look(params: dict[str, Any], file: str | None) -> dict[str, Any]:
        import hashlib
        import os
        import sys
        from importlib.metadata import PackageNotFoundError, version
        from importlib.util import find_spec
        from pathlib import Path

        found: dict[str, Any] = {
            "python": ".".join(map(str, sys.version_info[:3])),
            "ray": version("ray"),
            "focal": None,
            "native": "",
            "digest": "",
            "sees": file is None or os.access(file, os.R_OK),
        }
        package = find_spec("focal")
        if package is None or package.origin is None:
            return found
        folder, source = Path(package.origin).parent, hashlib.sha256()
        for path in sorted(folder.rglob("*.py")):
            source.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
        try:
            found["focal"] = f"{version('focal')} ({source.hexdigest()[:8]})"
            from focal.ckks import native, probe
            from focal.config import CkksConfig

            found |= {"native": native.description, "digest": probe.limbs_digest(CkksConfig(**params))}
        except (ImportError, AttributeError, PackageNotFoundError):  # another one
            pass
        return found

    return look
