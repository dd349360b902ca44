"""What one party sees: everything an attack may start from, and nothing of a victim's.

::

    a finished run                                      a plaintext method
    board (signed records, all members read them) --+   the honest client's code, run on what the server sent
    blobs that the server would give this party  ---+--> View: received, sent, owned
    the party's own folder --------------------------+         |
                                                               +--> attack --> claims --> scored elsewhere

A view holds bytes and arrays by name. It has no reference to a run, to a client or to another party's folder, and an
attack gets nothing else: what a malicious server *chooses* (a model) is the attack's own, and the honest client's
answer to it is what was received. Who colludes pools views (:meth:`View.pooled`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focal.errors import FocalError
from focal.files import private_write
from focal.manifest import Manifest
from focal.net.audiences import AUDIENCES, recorded_audiences
from focal.net.identity import Identity
from focal.protocols.common.audit import board_records
from focal.reading import read

BOARD, BLOB = "record", "blob"
"""How names of what was received begin: ``record/17``, ``blob/<digest>``."""
IDENTITY = "identity.json"
"""A member's private keys, in its own folder."""
MANIFEST = "manifest"
"""The signed manifest among what was received: all have it, and so have outsiders."""
OUTSIDER = "outsider"
"""Who is no member and has copied every stored byte of the server."""


class Stored(Mapping[str, bytes]):
    """Files by name, read when they are asked for: a run's blobs are gigabytes."""

    def __init__(self, files: Mapping[str, Path | bytes]) -> None:
        self.files = dict(files)

    def __getitem__(self, name: str) -> bytes:
        held = self.files[name]
        return held if isinstance(held, bytes) else held.read_bytes()

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def paths(self) -> list[Path]:
        """Where what is not in memory lies."""
        return [held for held in self.files.values() if isinstance(held, Path)]

    def __or__(self, other: Stored) -> Stored:
        return Stored(self.files | other.files)


@dataclass(frozen=True)
class View:
    """One party's, or a coalition's."""

    party: str
    """Its name; of a coalition, all names with a plus between."""
    received: Mapping[str, Any]
    sent: Mapping[str, Any]
    owned: Mapping[str, Any]
    """Its own files: keys that are left, its own rows, its journal."""

    @classmethod
    def of(cls, run: Path, party: str) -> View:
        """The view of a member of a finished run in the folder ``run``, or of an :data:`OUTSIDER`.

        Raises :class:`FocalError` when the run has no such member.
        """
        manifest = read(Manifest, run / "manifest.json")
        names = [member.name for member in manifest.members]
        if party not in [*names, OUTSIDER]:
            raise FocalError(f"{run}: has no party '{party}'", hint=f"members are {', '.join(names)}; or '{OUTSIDER}'")
        store = run / "parties" / manifest.server.name
        records = {f"{BOARD}/{i}": data for i, data in enumerate(board_records(store))}
        blobs = {f"{BLOB}/{digest}": path for digest, path in _blobs(store, _audience(manifest, party))}
        own = run / "parties" / party
        files = {str(path.relative_to(own)): path for path in sorted(own.rglob("*")) if path.is_file()}
        if party == manifest.server.name:  # its blobs and its board are what it received
            files = {name: path for name, path in files.items() if path not in set(blobs.values())}
        return cls(
            party,
            Stored({MANIFEST: (run / "manifest.json").read_bytes(), **records, **blobs}),
            Stored({}),
            Stored(files),
        )

    @classmethod
    def pooled(cls, views: Sequence[View]) -> View:
        """What colluding parties see together. Their own files keep their names under the party's."""
        received, owned = Stored({}), dict[str, Path | bytes]()
        for view in views:
            assert isinstance(view.received, Stored) and isinstance(view.owned, Stored)
            received |= view.received
            owned |= {f"{view.party}/{name}": held for name, held in view.owned.files.items()}
        return cls("+".join(view.party for view in views), received, Stored({}), Stored(owned))

    @property
    def parties(self) -> tuple[str, ...]:
        return tuple(self.party.split("+"))

    def identity(self, name: str) -> Identity | None:
        """The private keys of a member whose folder is in the view; None of any other."""
        held = self.owned.get(f"{name}/{IDENTITY}", self.owned.get(IDENTITY) if name == self.party else None)
        if held is None:
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / IDENTITY
            private_write(path, held)
            return Identity.load(path)

    def records(self) -> list[bytes]:
        """The board, in order."""
        names = [name for name in self.received if name.startswith(f"{BOARD}/")]
        return [self.received[name] for name in sorted(names, key=lambda name: int(name.partition("/")[2]))]

    def blob(self, digest: str) -> bytes:
        """Raises :class:`FocalError` for one that this party cannot fetch."""
        name = f"{BLOB}/{digest}"
        if name not in self.received:
            raise FocalError(f"{self.party}: cannot fetch the blob {digest[:16]}")
        return bytes(self.received[name])


def _audience(manifest: Manifest, party: str) -> int:
    """The narrowest of :data:`focal.net.audiences.AUDIENCES` that ``party`` belongs to."""
    if party in (manifest.server.name, OUTSIDER):
        return AUDIENCES.index("server")
    return AUDIENCES.index("custodians" if party in {m.name for m in manifest.custodians} else "all")


def _blobs(store: Path, least: int) -> Iterator[tuple[str, Path]]:
    """(digest, file) of what the server would let a party of this audience fetch."""
    allowed = recorded_audiences(store / "blobs")
    for folder in sorted((store / "blobs").glob("[0-9a-f][0-9a-f]")):
        for path in sorted(folder.iterdir()):
            digest = folder.name + path.name
            if least == 0 or (digest in allowed and AUDIENCES.index(allowed[digest]) >= least):
                yield digest, path
