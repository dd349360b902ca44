"""What both ends of a connection share: socket options, byte counts, the recording of a view, waking a poll."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from pathlib import Path
from typing import Literal

import zmq

from focal.net.encoding import MAX_RECORD
from focal.net.frames import PIECE
from focal.net.identity import Identity

Audience = Literal["server", "custodians", "all"]
Directions = dict[str, dict[str, int]]
"""phase -> ``up``/``down`` -> bytes; ``up`` is what the member sent."""

MAX_FRAME = MAX_RECORD + PIECE + (64 << 10)
MAX_PHASES = 32
PHASE = re.compile(rb"[a-z][a-z-]{0,31}")


def secure(sock: zmq.Socket[bytes], identity: Identity) -> None:
    """Options that both ends share. Heartbeats of ZeroMQ itself notice a peer that vanished without a word."""
    sock.linger = 0
    sock.ipv6 = False
    sock.maxmsgsize = MAX_FRAME
    sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
    sock.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, 120_000)
    # TCP retries at intervals that double: after a stall of a minute it would wait for another before it tries again.
    # Dial anew instead.
    sock.setsockopt(zmq.TCP_MAXRT, 30_000)
    sock.curve_secretkey = identity.curve_secret
    sock.curve_publickey = identity.curve_public


class Meter:
    """Bytes by phase, counted in one thread and read in others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: Directions = {}

    def count(self, phase: str, direction: Literal["up", "down"], size: int) -> None:
        with self._lock:
            if phase not in self._phases and len(self._phases) >= MAX_PHASES:
                phase = "other"
            self._phases.setdefault(phase, {"up": 0, "down": 0})[direction] += size

    def snapshot(self) -> Directions:
        with self._lock:
            return {phase: dict(both) for phase, both in self._phases.items()}


class Recorder:
    """Appends every byte that a party received to two files, so that a test can look for what must not be there."""

    def __init__(self, folder: Path | None) -> None:
        self._files: list[int] = []
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._files = [os.open(folder / name, flags, 0o600) for name in ("headers.bin", "payloads.bin")]

    def add(self, header: bytes, payload: bytes) -> None:
        for fd, data in zip(self._files, (header, payload), strict=False):  # no files: nothing is recorded
            os.write(fd, data)

    def close(self) -> None:
        for fd in self._files:
            os.close(fd)
        self._files = []


class Wake:
    """Lets another thread end a poll."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def fileno(self) -> int:
        return self._read.fileno()

    def __call__(self) -> None:
        with contextlib.suppress(OSError):  # full: the poll ends anyway; closed: there is nobody to wake
            self._write.send(b"!")

    def drain(self) -> None:
        with contextlib.suppress(OSError):
            while self._read.recv(4096):
                pass

    def close(self) -> None:
        self._read.close()
        self._write.close()
