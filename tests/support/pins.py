"""What must stay to the bit, however the code is rearranged: ring elements, records, results, refusals.

Their digests are in ``pins.json``. ``python tests/support/pins.py`` makes all of it again, shows what changed as
``old -> new``, and pins that.

A small blind and a small interactive run, by the real roles as real processes, in which nothing is left to chance::

    what a role draws       SHAKE-256 of the party, of how many bytes it asks for, and how often it asked for so many
                            (keys for masks too: the streams of the masks follow)
    nonces of boxes         a hash of key and text
    keys of the members     from their names
    pools of threads        work at once, in the order in which they are given work
    the server's address    a name that every process looks up: a port would be another one each time, and all sign it

The source text that does this (:data:`FIXED`) names what Python, NaCl and ZeroMQ offer, and nothing of
focal: code may move. Draws are counted, so a change that draws the same in another order changes the
pins, and not what the protocol does.

Nor to the processor. Kernels of BLAS, numpy and the C library are chosen by what it can do, and round in ways of their
own: the parties' libraries are loaded under :data:`OLDEST`, where each takes what runs on every x86-64. Features are
quarters of integers. :func:`probe` tells whether a machine rounds likewise all the same; FOCAL's own kernels are free
(``FOCAL_NATIVE``), for they compute with integers.

Left out: the body of the record ``traffic``, which counts bytes, those of waiting among them. Everything else on the
board is pinned as it lies there, signatures and digests of sealed boxes included.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import ast  # noqa: E402
import contextlib  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
import shutil  # noqa: E402
import struct  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import types  # noqa: E402
from collections.abc import Iterable, Iterator, Mapping  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import openfhe  # noqa: E402
import scan  # noqa: E402
from consortium import Consortium, rows  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from patience import PATIENCE  # noqa: E402
from places import ROOT  # noqa: E402
from quick_joint import PRELUDE  # noqa: E402
from zmq.utils import z85  # noqa: E402

import focal  # noqa: E402
from focal.config import DatasetConfig, LocalConfig  # noqa: E402
from focal.manifest import Manifest  # noqa: E402
from focal.net import messages as msg  # noqa: E402
from focal.net.identity import Identity, open_record, sign_manifest  # noqa: E402
from focal.protocols.interactive.plan import batch as batch_of  # noqa: E402
from focal.reading import write  # noqa: E402

ROUNDING = "floating point of this machine"
PINS = Path(__file__).with_name("pins.json")
ENDPOINT = "tcp://127.0.0.1:1"
"""What the manifest says. Nobody listens there: see FIXED."""
Section = dict[str, str]
"""What is pinned -> its digest."""
OLDEST = {
    "OPENBLAS_CORETYPE": "Prescott",  # SSE3: products and eigenvectors
    "NPY_DISABLE_CPU_FEATURES": " ".join(np._core._multiarray_umath.__cpu_dispatch__),  # type: ignore[attr-defined]
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-FMA,-FMA4",  # sines, logarithms without fused steps
    "ATEN_CPU_CAPABILITY": "default",  # torch, should a party ever load it here
    "MKL_CBWR": "COMPATIBLE",
}
"""Environment under which libraries take the kernels that run, and round, on every x86-64."""

FIXED = '''
import hashlib, os, random, sys, threading
from concurrent.futures import Future, ThreadPoolExecutor
import nacl.public, nacl.secret, zmq

PARTY, ENDPOINT, SOCKET = (os.environ[f"FOCAL_PIN_{name}"] for name in ("PARTY", "ENDPOINT", "SOCKET"))
asked = {}

def stream(count, *what):
    """Bytes for this party and ``what``; others each time they are asked for."""
    number = asked[what] = asked.get(what, 0) + 1
    return hashlib.shake_256(repr((PARTY, what, number)).encode()).digest(count)

# ---- what a role draws. Under ``secrets`` lies this function of ``random``. The names of a link's requests (8 bytes)
# stay random: their number depends on the time, and nobody but the server sees them.

system = os.urandom

def urandom(count):
    frame = sys._getframe(1)
    while frame.f_globals["__name__"] in ("random", "secrets"):
        frame = frame.f_back
    of_role = frame.f_globals["__name__"].startswith("focal.") and threading.current_thread() is threading.main_thread()
    return stream(count, "drawn", count) if of_role and count >= 32 else system(count)

os.urandom = random._urandom = urandom

def at_once(pool, call, /, *given, **named):
    future = Future()
    try:
        future.set_result(call(*given, **named))
    except BaseException as e:
        future.set_exception(e)
    return future

ThreadPoolExecutor.submit = at_once

# ---- boxes

def with_nonce(kind):
    encrypt = kind.encrypt
    kind.encrypt = lambda box, text: encrypt(box, text, hashlib.sha256(bytes(box) + text).digest()[: kind.NONCE_SIZE])

with_nonce(nacl.public.Box)
with_nonce(nacl.secret.SecretBox)

# ---- the server's address

def looked_up(name):
    reach = getattr(zmq.Socket, name)
    setattr(zmq.Socket, name, lambda socket, address: reach(socket, SOCKET if address == ENDPOINT else address))

looked_up("bind")
looked_up("connect")
'''

BLIND: dict[str, Any] = {
    "protocol": "blind",
    "projection": {"kind": "whiten", "features": 32, "bound": 4.0},
    "training": {"steps": 2},
    "layout": {"class_lanes": 2, "feature_lanes": 4},
    "accept_leak": True,
}
"""Two class groups, the second not full; baby and giant steps; a mask between feature lanes;
a step from all-zero weights and one from others."""
INTERACTIVE: dict[str, Any] = {
    "protocol": "interactive",
    "projection": {"kind": "whiten", "features": 32, "bound": 4.0},
    "training": {"steps": 2},
    "interactive": {
        "steps": 2,
        "batch": 8,
        "batches": {"hospital-c": 5},
        "features": 32,
        "head_rate": 0.2,
        "momentum": 0.5,
        "average_every": 2,
        "straggler_seconds": 3600.0,
        "min_rows_of_others": 13,
        "dp_head_noise": 0.001,
    },
}
"""A step without openings and one with; an average; noise on the head."""
RUNS = {"blind": BLIND, "interactive": INTERACTIVE}
ROWS = {
    "blind": {"hospital-a": 14, "hospital-b": 9},
    "interactive": {"hospital-a": 14, "hospital-b": 9, "hospital-c": 11},
}
"""Training rows of the institutions: as few of them as each protocol allows."""
CLASSES = ("A", "B", "C")
DIM = 40
LOWER = {
    "family": "timm",
    "model": "none",
    "cut": "pooled",
    "image_size": 64,
    "interpolation": "bilinear",
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
    "weights_sha256": "0" * 64,
    "dim": DIM,
}
"""No segment at all: features are given."""


class Fixed(Consortium):
    """A consortium with two custodians, the first of them the guard, in a folder of its own."""

    born = OLDEST

    def __init__(self, protocol: str) -> None:
        given = ROWS[protocol]
        folder = Path(tempfile.mkdtemp(prefix="focal-pins-"))
        self.run = types.SimpleNamespace(  # type: ignore[assignment]
            folder=folder, manifest_file=folder / "manifest.json", party=lambda member: folder / "parties" / member
        )
        self.custodians, self.institutions = ["custodian-1", "custodian-2"], list(given)
        self.roles = {"server": "server", **dict.fromkeys(self.custodians, "custodian")}
        self.roles |= dict.fromkeys(self.institutions, "institution")
        self.quick, self.processes = protocol == "blind", {}
        identities = {member: identity(member) for member in self.roles}
        own: dict[str, dict[str, Any]] = {
            "server": {"endpoint": ENDPOINT},
            "custodian-1": {"verify": "lockstep", "guard": True},
            "custodian-2": {"verify": "off"},
            **{member: {"rows": count} for member, count in given.items()},
        }
        members = [identities[member].member(role, **own[member]) for member, role in self.roles.items()]
        agreed = {
            "name": protocol,
            "dataset": "pins",
            "members": [member.model_dump() for member in members],
            "classes": CLASSES,
            "task": "multiclass",
            "lower": LOWER,
            "ckks": {},
        }
        self.manifest = Manifest.model_validate({**agreed, **RUNS[protocol]})
        for member, keys in identities.items():
            keys.save(self.folder(member) / "identity.json")
            self.manifest = sign_manifest(self.manifest, keys)
            institution = {"data": DatasetConfig(kind="synthetic"), "weights": "random:0"} if member in given else {}
            paths = {"keys": self.folder(member) / "identity.json", "state": self.folder(member)}
            write(LocalConfig(name=member, threads=1, **paths, **institution), self.folder(member) / "local.json")
        write(self.manifest, self.run.manifest_file)
        for member, count in given.items():
            self._give_rows(member, count)

    def _give_rows(self, member: str, count: int) -> None:
        """Features that carry the label, in quarters: sums of products are exact, in whatever order they are added."""
        labels = np.eye(len(CLASSES), dtype=np.uint8)[np.arange(count) % len(CLASSES)]
        if self.quick:
            features = fractions(f"{member}/features", count, DIM) + np.pad(labels, ((0, 0), (0, DIM - len(CLASSES))))
            many = {"groups": np.arange(count).astype(str), "split": np.full(count, "train")}
            self.give(member, features=features.astype(np.float32), labels=labels, **many)
        else:
            batch = batch_of(self.manifest, member)
            x = np.hstack([fractions(f"{member}/activations", batch, 31), np.ones((batch, 1))])
            self.give(member, x=x, labels=labels[:batch].astype(float))

    def start(self, *names: str, prelude: str = "", **options: Any) -> Any:
        for name in names:
            source = FIXED + (PRELUDE if self.roles[name] == "institution" and not self.quick else "") + prelude
            socket = f"ipc://{self.run.folder}/socket"
            env = {"FOCAL_PIN_PARTY": name, "FOCAL_PIN_ENDPOINT": ENDPOINT, "FOCAL_PIN_SOCKET": socket}
            process = super().start(name, prelude=source, **env, **options)
        return process

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        shutil.rmtree(self.run.folder)


def identity(name: str) -> Identity:
    """Keys of a member, from its name."""
    sign, seal, curve = (hashlib.sha256(f"pins/{name}/{use}".encode()).digest() for use in ("sign", "seal", "curve"))
    return Identity(name, sign, seal, z85.encode(curve))


def fractions(label: str, rows: int, columns: int) -> NDArray[np.float64]:
    """(rows, columns) multiples of 1/4 in [-1, 1], the same for one ``label``."""
    raw = np.frombuffer(hashlib.shake_256(label.encode()).digest(rows * columns), np.uint8).reshape(rows, columns)
    return (raw % 9 - 4.0) / 4


# --------------------------------------------------------------------------- what a run leaves


def told(parts: Iterable[bytes]) -> str:
    """A digest that is long enough to tell changes by."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


def of_run(protocol: str) -> dict[str, Section]:
    """What is pinned of a run, section by section, causes before their effects."""
    with Fixed(protocol) as c:
        c.start_all(wait=PATIENCE)
        c.finish()
        published = scan.of_run(c.run.folder / "parties", c.manifest)
        return {
            f"{protocol}: manifest": {"hash": c.manifest.hash.hex()[:16]},
            f"{protocol}: records": dict(records(c)),
            f"{protocol}: ring elements": dict(ring_elements(published)),
            f"{protocol}: results": dict(results(c)),
        }


def records(c: Consortium) -> Iterator[tuple[str, str]]:
    """``sender topic kind`` of every record and a digest of it with its signature, in the order of this run's board."""
    board = rows(c.folder("server") / "board.sqlite", "SELECT sender, topic, data FROM record ORDER BY seq")
    for sender, topic, data in board:
        body = open_record(c.manifest, data).body
        yield f"{sender} {topic} {body.kind}", "(varies)" if isinstance(body, msg.Traffic) else told([data])


def ring_elements(published: scan.Published) -> Iterator[tuple[str, str]]:
    """``family name`` of what depends on a secret or on rows, and of what is public: all limbs of all polynomials."""
    found: dict[str, list[bytes]] = {}
    named = [(f"{family} {name}", limbs) for family, elements in published.families.items() for name, limbs in elements]
    named += [(f"public {name}", limbs) for name, limbs in published.public.items()]
    named += [(f"request {item}", limbs) for item, polynomials in published.requests.items() for limbs in polynomials]
    for name, limbs in named:  # the polynomials of one element: name[0], name[1], ...
        found.setdefault(name.partition("[")[0], []).extend(limb.astype("<u8").tobytes() for limb in limbs)
    for name, parts in found.items():
        yield name, told(parts)


def results(c: Consortium) -> Iterator[tuple[str, str]]:
    """What every institution decoded: the head, the projection, all that was opened to it."""
    for name in c.institutions:
        for file in ("projection.bin", "weights.bin", "velocity.bin"):
            with contextlib.suppress(FileNotFoundError):  # each protocol has two of them
                yield f"{name} {file}", told([(c.folder(name) / file).read_bytes()])
        if (c.folder(name) / "opened.npz").exists():
            with np.load(c.folder(name) / "opened.npz") as opened:
                yield from ((f"{name} {key}", told([opened[key].tobytes()])) for key in sorted(opened.files))


# --------------------------------------------------------------------------- what is read off the source


def refusals() -> Section:
    """``reason: text`` of all that the source refuses or calls a breach of the protocol, and how often it says so.

    What is filled in stands as ``{}``; a reason that comes from elsewhere too.
    """
    found: dict[str, int] = {}
    for path in sorted(Path(focal.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("Refused", "fault"):
                line = ": ".join(map(_template, node.args[:2]))
            elif name == "ProtocolError":
                line = f"(no reason): {_template(node.args[0])}"
            else:
                continue
            found[line] = found.get(line, 0) + 1
    return {line: str(count) for line, count in sorted(found.items())}


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):  # FocalError("...")
        return str(node.args[0].value)
    return "".join(map(_template, node.values)) if isinstance(node, ast.JoinedStr) else "{}"


# --------------------------------------------------------------------------- does this machine round likewise?


def rounding() -> Section:
    """:func:`probe` under :data:`OLDEST`."""
    env = {**os.environ, **OLDEST, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, PINS.parent)))}
    told = subprocess.run(
        [sys.executable, "-c", "import json, pins; print(json.dumps(pins.probe()))"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return dict(json.loads(told.stdout))


def probe() -> Section:
    """Digests of what the runs need of floating point, made without focal: no change of focal hides behind these."""
    raw = np.frombuffer(hashlib.shake_256(b"probe").digest(8 * 34 * DIM), "<u8").reshape(34, DIM) / 2.0**64
    values, vectors = np.linalg.eigh(raw.T @ raw)
    flat = np.resize(raw, 16384)
    gaussian = np.sqrt(-2 * np.log(flat)) * np.exp(2j * np.pi * flat)
    return {
        "products": told([(raw.T @ raw).tobytes(), (raw @ vectors.astype(np.float32).T.astype(np.float64)).tobytes()]),
        "eigenvectors": told([values.tobytes(), vectors.tobytes(), np.linalg.eigvalsh(raw.T @ raw).tobytes()]),
        "logarithms, sines": told([gaussian.tobytes()]),
        "transform": told([np.fft.ifft(gaussian).tobytes()]),
        "encoding": told(_encoded(flat[:8192] - 0.5)),
    }


def _encoded(slots: NDArray[np.float64]) -> Iterator[bytes]:
    """Every limb of an encoded plaintext, in a context of OpenFHE like that of the runs."""
    p, n = openfhe.CCParamsCKKSRNS(), 16384
    p.SetSecurityLevel(openfhe.HEStd_128_classic)
    p.SetRingDim(n)
    p.SetMultiplicativeDepth(5)
    p.SetScalingModSize(45)
    p.SetFirstModSize(60)
    p.SetScalingTechnique(openfhe.FIXEDMANUAL)
    p.SetBatchSize(n // 2)
    p.SetNumLargeDigits(3)
    cc = openfhe.GenCryptoContext(p)
    for feature in (openfhe.PKE, openfhe.KEYSWITCH, openfhe.LEVELEDSHE):
        cc.Enable(feature)
    some = cc.Encrypt(cc.KeyGen().publicKey, cc.MakeCKKSPackedPlaintext([0.0]))
    shown = cc.EvalAdd(cc.EvalSub(some, some), cc.MakeCKKSPackedPlaintext(slots))  # (m, 0)
    data, needle, position = bytes(openfhe.Serialize(shown, openfhe.BINARY)), struct.pack("<Q", n), 0
    while (i := data.find(needle, position)) >= 0:  # a limb: N, N words, a prime that is 1 modulo 2 N
        position, end = i + 1, i + 8 + 8 * n
        if end + 8 <= len(data) and struct.unpack_from("<Q", data, end)[0] % (2 * n) == 1:
            yield data[i + 8 : end]
            position = end


# --------------------------------------------------------------------------- pins, and what differs from them


def pinned() -> dict[str, Section]:
    return dict(json.loads(PINS.read_text()))


def differences(old: Mapping[str, Section], new: Mapping[str, Section]) -> list[str]:
    """``section: what: old -> new`` for all that is not as pinned in the sections of ``new``; causes come first."""
    out = []
    for section, values in new.items():
        was = old.get(section, {})
        pairs = [(name, was.get(name, "(none)"), values.get(name, "(none)")) for name in dict.fromkeys([*values, *was])]
        out += [f"{section}: {name}: {before} -> {after}" for name, before, after in pairs if before != after]
    return out


def main() -> None:
    new = {ROUNDING: rounding(), "refusals": refusals()}
    for protocol in RUNS:
        new |= of_run(protocol)
    changed = differences(pinned() if PINS.exists() else {}, new)
    print("\n".join(changed) or "nothing changed")
    ordered = {section: dict(sorted(values.items())) for section, values in new.items()}
    PINS.write_text(json.dumps(ordered, indent=1) + "\n")


if __name__ == "__main__":
    main()
