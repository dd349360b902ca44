"""Where a person decides (``approve: human``): the release that a custodian waits with, and the one that was approved.

::

    custodian --> awaits-approval.json --> focal approve FOLDER --> approved.json --> custodian: the very same release?
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from focal import framing
from focal.config import Hex32, Model, Name
from focal.errors import FocalError
from focal.files import canonical_json, private_write
from focal.net.messages import Epoch

M = TypeVar("M", bound=Model)

AWAITED, APPROVED = "awaits-approval.json", "approved.json"
"""In a custodian's folder: the release that waits for a person, and the one that a person has approved last."""


class Release(Model):
    """What a person approves: the opening of certain ciphertexts of one run, and of nothing else."""

    run_id: Hex32
    digest: Hex32
    """Over run id, plan items and ciphertext digests."""

    @classmethod
    def of(cls, run_id: str, items: tuple[str, ...], ciphertexts: tuple[str, ...]) -> Release:
        asked = canonical_json({"run": run_id, "items": items, "ciphertexts": ciphertexts})
        return cls(run_id=run_id, digest=framing.digest(b"focal/approval/v1", asked).hex())

    @property
    def short(self) -> str:
        """For a person's eyes."""
        return f"{self.run_id[:16]}, release {self.digest[:16]}"


LOST, EPOCH_AWAITED, EPOCH_SIGNED = "lost.json", "awaits-epoch.json", "signed-epoch.json"
"""In the server's folder: the custodians that are given up. In an institution's: the epoch that waits for a person, and
the one that a person has signed last."""


def declare_lost(folder: Path, names: Sequence[str]) -> list[str]:
    """Tell the server, whose state folder this is, to go on without these custodians too; returns all that are given
    up."""
    lost = [*read_lost(folder), *(n for n in names if n not in read_lost(folder))]
    private_write(folder / LOST, canonical_json(lost))
    return lost


def read_lost(folder: Path) -> list[str]:
    """Custodians that people have given up."""
    try:
        return [str(name) for name in json.loads((folder / LOST).read_bytes())]
    except FileNotFoundError:
        return []


class Consent(Model):
    """What a person consents to: that a run goes on without certain custodians."""

    run_id: Hex32
    epoch: Epoch
    lost: tuple[Name, ...]


def read_consent(path: Path) -> Consent | None:
    """What stands in ``path``; None when there is no such file, or something else in it."""
    return _read(Consent, path)


def sign_epoch(folder: Path, lost: Sequence[str]) -> Consent:
    """Let this institution consent to the epoch that it waits with, and to no other one; returns it.

    Raises :class:`FocalError` when it waits with none, or with one that goes on without others than ``lost``.
    """
    wanted = read_consent(folder / EPOCH_AWAITED)
    if wanted is None:
        raise FocalError(
            f"{folder}: no epoch waits for a signature there",
            hint="when the others want to go on without a custodian, the institution says 'focal epoch sign'",
        )
    if set(lost) != set(wanted.lost):
        raise FocalError(
            f"{folder}: the epoch that waits there goes on without {', '.join(wanted.lost)}",
            hint="name all of these, once you have asked each",
        )
    private_write(folder / EPOCH_SIGNED, wanted.model_dump_json().encode())
    return wanted


CLOSING_AWAITED, CLOSING_SIGNED = "awaits-closing.json", "closed.json"
"""In a server's or custodian's folder: for whom it waits, and without whom a person lets it go on."""


Awaited = Literal["uploads", "proofs", "results"]
MISSING: dict[Awaited, str] = {
    "uploads": "uploads are missing",
    "proofs": "proofs do not hold",
    "results": "test results are missing",
}
"""What a closing is about, in words."""
ABSENT = "it has not come"
"""Why, of one of whom nothing is known."""


class Closing(Model):
    """Without whom a run may go on."""

    run_id: Hex32
    epoch: int
    what: Awaited = "uploads"
    """What is awaited of them: that they come, that their proofs hold, or their test results. Who may go on without
    them for one reason may not for another."""
    missing: dict[Name, str]
    """Who, founders first, and why."""

    def allows(self, wanted: Closing) -> bool:
        """Are those of ``wanted`` among these, for the same kind of reason, in the same epoch?"""
        same = (self.run_id, self.epoch, self.what) == (wanted.run_id, wanted.epoch, wanted.what)
        return same and wanted.missing.keys() <= self.missing.keys()

    def nameless(self) -> list[str]:
        """Who they are, where a person need not name them: none has come. Raises :class:`FocalError` where server,
        institution or custodian may be wrong: that takes a person who has asked."""
        if named := [name for name, why in self.missing.items() if why != ABSENT]:
            raise FocalError(
                f"{', '.join(named)}: there is more to decide than that they have not come",
                hint="ask them, and name all that are to be left out",
            )
        return list(self.missing)


class Closings(Model):
    """All that people have said in one folder: a later word takes back no earlier one, which a restarted party asks
    for again."""

    words: tuple[Closing, ...] = ()


def await_closing(folder: Path, wanted: Closing) -> None:
    """Write down for whom a party waits."""
    if wanted != _read(Closing, folder / CLOSING_AWAITED):
        private_write(folder / CLOSING_AWAITED, wanted.model_dump_json().encode())


def may_close(folder: Path, wanted: Closing) -> bool:
    """Has a person let this party go on without all of these, for this reason, in this epoch?"""
    return any(word.allows(wanted) for word in _words(folder))


def _words(folder: Path) -> tuple[Closing, ...]:
    return (_read(Closings, folder / CLOSING_SIGNED) or Closings()).words


def awaited_closing(folder: Path) -> Closing:
    """For whom this server or custodian waits now, and why. Raises :class:`FocalError` when it is nobody."""
    wanted = _read(Closing, folder / CLOSING_AWAITED)
    if wanted is None:
        raise FocalError(
            f"{folder}: nobody waits there for uploads, nor for test results",
            hint="a server does until all have come, a custodian when the server goes on without somebody, or when a "
            "proof does not hold",
        )
    return wanted


def close_uploads(folder: Path, names: Sequence[str]) -> Closing:
    """Let this server or custodian go on without those for whom it waits now; returns them.

    ``names``: who they are expected to be. Raises :class:`FocalError` when it waits for nobody, or for others.
    """
    wanted = awaited_closing(folder)
    if set(names) != set(wanted.missing):
        raise FocalError(
            f"{folder}: {MISSING[wanted.what]} of {', '.join(wanted.missing)}",
            hint="name all of these, once you have asked each",
        )
    said = Closings(words=(*(word for word in _words(folder) if word != wanted), wanted))
    private_write(folder / CLOSING_SIGNED, said.model_dump_json().encode())
    return wanted


def read_release(path: Path) -> Release | None:
    """What stands in ``path``; None when there is no such file, or something else in it
    (a file of an earlier version)."""
    return _read(Release, path)


def _read(kind: type[M], path: Path) -> M | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def approve(folder: Path) -> Release:
    """Let this custodian make the release that it waits with, and no other one; returns it.

    Raises :class:`FocalError` when it waits with none.
    """
    wanted = read_release(folder / AWAITED)
    if wanted is None:
        raise FocalError(
            f"{folder}: no release waits for approval there",
            hint="when training is done the custodian says 'the release waits for'",
        )
    private_write(folder / APPROVED, wanted.model_dump_json().encode())
    return wanted
