"""Processes that are born with focal's imports behind them: forks of an interpreter that does nothing else.

::

    test --program, arguments, environment, pipes--> nursery --fork--> a party: a process like any other,
         <-------- its number, later its status ---------                       without its second of imports

Some 400 parties start in this suite. What each runs, its sockets, signals and exit are those of ``python -c PROGRAM``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STATUS = struct.Struct("<i")
LARGEST = 1 << 18
"""Bytes of a request: programs are short."""


class Nursery:
    """The interpreter that is forked."""

    def __init__(self, env: dict[str, str]) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST)
        command = [sys.executable, str(Path(__file__)), str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, stdin=subprocess.DEVNULL)
        theirs.close()

    def start(self, program: str, arguments: list[str], env: dict[str, str], limit: int) -> Fork:
        ends = [os.pipe() for _ in range(4)]  # standard input, output, error; the status
        given = [ends[0][0], *(end[1] for end in ends[1:])]
        request = {"program": program, "arguments": arguments, "env": env, "limit": limit}
        with self._lock:
            socket.send_fds(self._control, [json.dumps(request).encode()], given)
            (pid,) = STATUS.unpack(self._control.recv(STATUS.size))
        for end in given:
            os.close(end)
        return Fork(pid, ends[0][1], *(end[0] for end in ends[1:]))


_first = threading.Lock()


def nursery(born: Mapping[str, str] | None = None) -> Nursery:
    """The nursery of this test session, or one of its own for what libraries read while they are loaded (``born``).
    It ends when the session does: its control socket is closed then."""
    with _first:  # several threads may ask for it first; a second one would end with the children that it has by then
        return _nursery(tuple((born or {}).items()))


@functools.cache
def _nursery(born: tuple[tuple[str, str], ...]) -> Nursery:
    return Nursery({**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **dict(born)})


class Fork:
    """A forked process, with what :class:`subprocess.Popen` has and tests use."""

    def __init__(self, pid: int, stdin: int, stdout: int, stderr: int, status: int) -> None:
        self.pid, self.returncode = pid, None
        self.stdin, self.stdout, self.stderr = os.fdopen(stdin, "w"), os.fdopen(stdout), os.fdopen(stderr)
        self._status = status
        self._lock = threading.Lock()

    returncode: int | None

    def wait(self, timeout: float | None = None) -> int:
        with self._lock:
            if self.returncode is None:
                if not select.select([self._status], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
                (self.returncode,) = STATUS.unpack(os.read(self._status, STATUS.size))
                os.close(self._status)
                self.stdin.close()
            return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# --------------------------------------------------------------------------- in the nursery


def _raise_children(control: socket.socket) -> dict[str, Any]:
    """Fork one child for every request, and tell when it ends. Returns in the children, with what they are to do."""
    children: dict[int, tuple[int, int]] = {}
    """pidfd -> process, where its status goes."""
    while True:
        ready = select.select([control, *children], [], [])[0]
        for fd in ready:
            if fd in children:
                pid, status = children.pop(fd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(BrokenPipeError):
                    os.write(status, STATUS.pack(code))
                os.close(status)
                os.close(fd)
        if control in ready:
            data, fds, _, _ = socket.recv_fds(control, LARGEST, 4)
            if not data:
                os._exit(0)  # the tests are over; children that are left end with their standard input
            pid = os.fork()
            if pid == 0:
                for number, fd in enumerate(fds[:3]):
                    os.dup2(fd, number)
                os.closerange(3, max([control.fileno(), *fds, *children, *(s for _, s in children.values())]) + 1)
                control.detach()
                return dict(json.loads(data))
            children[os.pidfd_open(pid)] = pid, fds[3]
            for fd in fds[:3]:
                os.close(fd)
            control.send(STATUS.pack(pid))


if __name__ == "__main__":
    from focal.protocols import PROTOCOLS

    for protocol in PROTOCOLS.values():
        for role in ("server", "custodian", "institution"):
            protocol.part(role)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = _raise_children(socket.socket(fileno=int(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1)  # where every thread stands, to standard error
    os.environ.clear()
    os.environ.update(job["env"])
    if job["limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    sys.argv = ["focal", *job["arguments"]]
    exec(compile(job["program"], "<party>", "exec"), {"__name__": "__main__"})
