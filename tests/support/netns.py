"""Several machines on one: network namespaces joined by a bridge, whose links can be slowed down and cut.

::

    +-- hub ------------------------------+
    |  bridge 10.77.0.1   (the server)    |      nothing of this is in the machine's own network:
    +---|-------------|-------------|-----+      no interface, no address, no route, no rule
        | veth        | veth        | veth
      north .2      south .3      west .4        one namespace each: its loopback and one cable

A cut cable has left the bridge: both ends still see a carrier, packets just vanish. It needs root, ``ip`` and ``tc``.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from consortium import ENV
from patience import PATIENCE

HUB = "10.77.0.1"
"""Address of the server."""
CABLE = "eth0"
MEGABYTE_A_SECOND = "8mbit"


class Network:
    """A hub and a namespace per site. Leaving the ``with`` deletes them all;
    what still runs in them must be ended before."""

    def __init__(self, sites: Iterable[str]) -> None:
        self._tag = f"focal-{os.getpid()}"
        self.hub, self.sites = f"{self._tag}-hub", tuple(sites)

    def namespace(self, site: str) -> str:
        return f"{self._tag}-{site}"

    def __enter__(self) -> Network:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _build(self) -> None:
        _run("ip netns add", self.hub)
        for command in (
            "link set lo up",
            "link add bridge type bridge",
            f"addr add {HUB}/24 dev bridge",
            "link set bridge up",
        ):
            _run("ip -n", self.hub, command)
        for number, site in enumerate(self.sites):
            there = self.namespace(site)
            _run("ip netns add", there)
            _run("ip -n", self.hub, f"link add {self._port(site)} type veth peer name {CABLE} netns", there)
            _run("ip -n", self.hub, f"link set {self._port(site)} master bridge up")
            for command in ("link set lo up", f"addr add 10.77.0.{number + 2}/24 dev {CABLE}", f"link set {CABLE} up"):
                _run("ip -n", there, command)

    def __exit__(self, *_: object) -> None:
        for name in (self.hub, *map(self.namespace, self.sites)):  # the bridge and the cables go with them
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def slow(self, site: str, rate: str = MEGABYTE_A_SECOND) -> None:
        """Both directions of the site's cable carry ``rate`` from now on."""
        for namespace, device in ((self.hub, self._port(site)), (self.namespace(site), CABLE)):
            _run("tc -n", namespace, f"qdisc replace dev {device} root tbf rate {rate} burst 64kb latency 400ms")

    def cut(self, site: str) -> None:
        """Packets to and from the site vanish from now on."""
        _run("ip -n", self.hub, f"link set {self._port(site)} nomaster")

    def join(self, site: str) -> None:
        """They arrive again."""
        _run("ip -n", self.hub, f"link set {self._port(site)} master bridge")

    @staticmethod
    def _port(site: str) -> str:
        return f"to-{site}"


class Machine:
    """A folder and a namespace: ``focal`` commands are given there as on a machine of its own."""

    def __init__(self, namespace: str, folder: Path) -> None:
        self.namespace, self.folder = namespace, folder
        folder.mkdir(parents=True)

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """One ``focal`` command to its end."""
        return subprocess.run(
            self._command(arguments),
            cwd=self.folder,
            env={**ENV, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def start(self, *arguments: object) -> Running:
        """A ``focal`` command that takes part in a run."""
        return Running(self._command(arguments), self.folder)

    def _command(self, arguments: Iterable[object]) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, sys.executable, "-m", "focal", *map(str, arguments)]


class Running:
    """A command at work; what it prints goes to a file."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._printed = folder / f"printed-{command[6]}.txt"
        with self._printed.open(
            "a"
        ) as out:  # ``ip netns exec`` becomes the command: a signal to the child is one to focal
            self.child = subprocess.Popen(command, cwd=folder, env={**ENV, "COLUMNS": "200"}, stdout=out, stderr=out)

    @property
    def printed(self) -> str:
        """All that this command printed here, earlier processes included."""
        return " ".join(self._printed.read_text().split())

    def end(self) -> int:
        return self.child.wait(PATIENCE)

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()


def enter(namespace: str) -> str:
    """Program text by which a process moves itself into ``namespace``: a prelude for :class:`consortium.Process`."""
    call = f"ctypes.CDLL(None).setns(os.open('/run/netns/{namespace}', os.O_RDONLY), 0x40000000)"
    return f"import ctypes, os\nassert {call} == 0\n"


@functools.cache
def missing() -> str:
    """Why there are no namespaces here; empty when they work."""
    try:
        with Network(["a"]) as network:
            network.slow("a")
            network.cut("a")
            network.join("a")
    except (OSError, subprocess.CalledProcessError) as e:
        return f"no network namespaces here (not root, or no ip, tc, veth, bridge, tbf): {e} {getattr(e, 'stderr', '')}"
    return ""


def _run(*words: str) -> None:
    subprocess.run(" ".join(words).split(), check=True, capture_output=True, text=True)
