"""What a collective refresh costs beside its arithmetic: the real server and custodians, real sockets, one machine.

::

    process of a role:   CPU = arithmetic  (ring, sampling, native kernels, OpenFHE, the expansion of ``a``)
                             + encryption  (threads of ZeroMQ: CurveZMQ, sockets)
                             + the rest    (Python, SHA-256, SQLite, files, copies)

Keys are made here, from a seed, and all that leads to the first step is left out: custodians answer the batch of logits
of step 1, once to warm up and once measured, with a guard among them.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from focal.bench.result import Result
from focal.ckks import codec, native, ring
from focal.ckks.scheme import REFRESH_LIMBS, Scheme
from focal.config import CkksConfig, LocalConfig, ProjectionConfig, TrainingConfig
from focal.custody import refresh
from focal.custody.ledger import Ledger
from focal.manifest import LayoutSpec, LowerSpec, Manifest
from focal.net.identity import Identity, sign_manifest
from focal.net.link import Link
from focal.protocols.blind import plan
from focal.protocols.blind.custodian import BlindCustodian
from focal.protocols.blind.server import BlindServer
from focal.protocols.common.epochs import Epochs
from focal.protocols.common.keyholder import KeyHolder
from focal.protocols.common.progress import Reporter

SCOPE = "5e" * 32
"""Run id and session of the benchmark."""
MILLION = 984
"""Items of a step at 10^6 rows, R = 64, eight classes, one to a ciphertext: 123 blocks of eight groups."""
GROUPS = 8
PARTS = ("arithmetic", "encryption", "rest")


class CpuClock:
    """CPU seconds of this process that went into arithmetic, over all threads."""

    def __init__(self) -> None:
        self._lock, self._own, self.spent = threading.Lock(), threading.local(), 0.0

    @contextmanager
    def _while(self, counts: bool) -> Iterator[None]:
        """Time from here on counts, or not, until the end: an inner word is stronger than an outer one."""
        before, now = getattr(self._own, "counts", False), time.thread_time()
        self._add(before, now)
        self._own.counts = counts
        try:
            yield
        finally:
            self._add(counts, time.thread_time())
            self._own.counts = before

    def _add(self, counts: bool, now: float) -> None:
        if counts:
            with self._lock:
                self.spent += now - self._own.since
        self._own.since = now

    def watch(self, where: Any, counts: bool, *names: str) -> None:
        """Have these functions of a module or an object counted, or left out: in a process that does nothing but this
        benchmark, so that nothing of the roles has to know of a clock."""
        for name in names:
            setattr(where, name, self._watched(getattr(where, name), counts))

    def _watched(self, function: Callable[..., Any], counts: bool) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            with self._while(counts):
                return function(*given, **named)

        return timed


def refreshes(items: int, custodians: int) -> Result:
    """CPU milliseconds an item of server, guard and another custodian, for a batch of ``items`` (a multiple of 8)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest, identities = consortium({"north": items // GROUPS * 8192 - 100, "south": 100}, custodians)
        for name, identity in identities.items():
            manifest = sign_manifest(manifest, identity)
            identity.save(folder / f"{name}.json")
        context = multiprocessing.get_context("spawn")
        pipes: dict[str, Connection] = {}
        processes = []
        endpoint = ""
        for member in ["server", *(m.name for m in manifest.custodians)]:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_role, args=(member, manifest, folder, endpoint, theirs), name=member, daemon=True
            )
            process.start()
            theirs.close()  # or the end of a process that fails would not be seen
            pipes[member] = ours
            processes.append(process)
            endpoint = ours.recv() or endpoint
        for pipe in pipes.values():
            pipe.send("go")
        spent = {member: pipe.recv() for member, pipe in pipes.items()}
        for pipe in pipes.values():
            pipe.send("end")
        for process in processes:
            process.join()
    kinds = {"server": "server", "custodian-1": "guard", "custodian-2": "custodian"}
    numbers: dict[str, Any] = {"items": items, "custodians": custodians}
    lines = [f"refresh of {items} items, {custodians} custodians, native kernels: {native.description}"]
    for member, kind in kinds.items():
        each = {part: 1e3 * spent[member][part] / items for part in PARTS}
        numbers[kind] = {f"{part}_cpu_ms": value for part, value in each.items()} | {"wall_s": spent[member]["wall"]}
        lines.append(
            f"  {kind}: CPU ms an item {', '.join(f'{part} {each[part]:.2f}' for part in PARTS)}; "
            f"{MILLION} items (by proportion, not run): {MILLION * each['rest'] / 1e3:.1f} s beside "
            f"{MILLION * each['encryption'] / 1e3:.1f} s of encryption"
        )
    return Result("\n".join(lines), numbers)


def consortium(
    rows: Mapping[str, int], custodians: int, features: int = 64, classes: int = GROUPS, class_lanes: int = 1
) -> tuple[Manifest, dict[str, Identity]]:
    """A manifest that nobody has signed, of a run that there will never be; ``rows``: institution -> how many.
    The first custodian verifies and guards."""
    roles: dict[str, tuple[Any, dict[str, Any]]] = {
        "server": ("server", {"endpoint": "tcp://127.0.0.1:9"}),
        **{name: ("institution", {"rows": count}) for name, count in rows.items()},
    }
    for i in range(custodians):
        own = {"verify": "lockstep", "guard": True} if i == 0 else {"verify": "off"}
        roles[f"custodian-{i + 1}"] = ("custodian", own)
    identities = {name: Identity.new(name) for name in roles}
    return Manifest(
        name="bench", dataset="none", classes=tuple(f"class-{i}" for i in range(classes)), task="multiclass",
        protocol="blind", accept_leak=True,
        members=tuple(identities[name].member(role, **own) for name, (role, own) in roles.items()),
        lower=LowerSpec(
            family="timm", model="none", cut="pooled", image_size=32, interpolation="bilinear",
            mean=(0, 0, 0), std=(1, 1, 1), weights_sha256="0" * 64, dim=features,
        ),
        projection=ProjectionConfig(features=features),
        training=TrainingConfig(steps=3), ckks=CkksConfig(),
        layout=LayoutSpec(class_lanes=class_lanes, feature_lanes=1),
    ), identities  # fmt: skip


def _role(name: str, manifest: Manifest, folder: Path, endpoint: str, pipe: Connection) -> None:
    """One process: a party that has come as far as the first step."""
    os.nice(5)
    local = LocalConfig(name=name, keys=folder / f"{name}.json", state=folder / name, threads=1)
    report = Reporter(name, folder / name / "events.jsonl", lambda event: None)
    kind = BlindServer if name == "server" else _Answering
    if name == "server":
        local = local.model_copy(update={"bind": "tcp://127.0.0.1:*"})
    party: Any = kind(manifest, local, report)
    party.scheme = Scheme(manifest.ckks, SCOPE)
    if name == "server":
        party.hub.start()
        pipe.send(party.hub.endpoint)
        act: Callable[[int], Any] = _asking(party)
    else:
        link = Link(manifest, party.identity, endpoint=endpoint)
        party.opened(link, link.open(60).session)
        pipe.send("")
        act = party.begin()
    party.scope, party.run_id = SCOPE, bytes.fromhex(SCOPE)
    party.epochs = Epochs(manifest, party.plan, party.run_id)
    clock = _watched()
    pipe.recv()
    act(1)
    before, wall = _cpu(), time.monotonic()
    counted = clock.spent
    act(2)
    now = _cpu()
    all_of_it, encryption = now[0] - before[0], now[1] - before[1]
    arithmetic = clock.spent - counted
    pipe.send(
        {
            "arithmetic": arithmetic,
            "encryption": encryption,
            "rest": all_of_it - encryption - arithmetic,
            "wall": time.monotonic() - wall,
        }
    )
    pipe.recv()
    os._exit(0)


def _batch(manifest: Manifest, step: int) -> list[tuple[str, tuple[str, ...]]]:
    """The batches of a step's logits."""
    return [
        (topic, items)
        for topic, items in plan.batches(manifest, plan.layout(manifest))
        if topic.startswith(f"refresh/{step}/logits")
    ]


def _asking(server: BlindServer) -> Callable[[int], Any]:
    scheme, secrets = server.scheme, [_secret(server.scheme, name) for name in server.custodians]
    secret = ring.total(secrets, scheme.moduli)
    primes = scheme.moduli[:REFRESH_LIMBS]

    def request(number: int) -> Any:
        """An encryption of small noise."""
        c1 = ring.expand(number.to_bytes(4, "little"), primes, scheme.n)
        error = np.random.default_rng(number).integers(-8, 8, scheme.n)
        c0 = [
            ring.subtract(ring.ntt_signed(error, q, scheme.roots[q]), ring.multiply(s, x, q), q)
            for x, s, q in zip(c1, secret, primes, strict=False)
        ]
        return scheme.evaluator.load([c0, c1])

    def act(step: int) -> None:
        server.refresh(*asked[step])

    asked = {}
    for step in (1, 2):
        items = [item for _, part in _batch(server.manifest, step) for item in part]
        asked[step] = items, [request(1000 * step + i) for i in range(len(items))]
    return act


class _DrawnKey(KeyHolder):
    """A share from a seed: no ceremony was held."""

    @functools.cached_property
    def _drawn(self) -> list[ring.Limb]:
        return _secret(self.scheme, self.party.me.name)

    def limbs(self, topic: str) -> list[ring.Limb]:
        return self._drawn


class _Answering(BlindCustodian):
    """Answers batches with such a key, and repeats no step."""

    def begin(self) -> Callable[[int], None]:
        self.key = _DrawnKey(self, self.scheme, (), self.pool)
        self.ledger = Ledger(self.folder / "ledger.sqlite")
        self.verifies = False
        return self.act

    def act(self, step: int) -> None:
        for topic, items in _batch(self.manifest, step):
            self.answer_batch(topic, items)


def _secret(scheme: Scheme, name: str) -> list[Any]:
    drawn = np.random.default_rng(list(name.encode())).integers(-1, 2, scheme.n)
    return [ring.ntt_signed(drawn, q, scheme.roots[q]) for q in scheme.moduli]


def _watched() -> CpuClock:
    clock = CpuClock()
    clock.watch(refresh, True, "request", "share", "small_enough", "combine", "common_random")
    clock.watch(codec, False, "pack", "unpack")
    if native.library:
        clock.watch(native.library, True, "pack", "unpack")
    return clock


def _cpu() -> tuple[float, float]:
    """CPU seconds of this process, and of ZeroMQ's threads in it."""
    encrypting = 0.0
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().startswith("ZMQ"):
            encrypting += int((task / "schedstat").read_text().split()[0]) / 1e9
    return time.process_time(), encrypting
