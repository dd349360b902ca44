"""What was said: signed records, checked by whoever reads them. Shared by the roles, who wait for more,
and by the audit, who cannot."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from focal import framing
from focal.config import Model
from focal.errors import ProtocolError, Refused
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.net.identity import commitment, open_record

B = TypeVar("B", bound=Model)


class Heard:
    """Records by (sender, topic): every one signed by its sender, and never two under one topic."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._records: dict[tuple[str, str], msg.Record] = {}
        self._digests: dict[tuple[str, str], str] = {}
        self._order: list[msg.Record] = []

    def add(self, data: bytes) -> msg.Record:
        """Check and keep one signed record.

        Raises:
            ProtocolError: malformed, not by a member, or wrongly signed.
            Refused: ``second-record``.
        """
        record = open_record(self.manifest, data)
        key = (record.sender, record.topic)
        if key in self._records:
            raise Refused("second-record", f"the server shows two records of '{record.sender}' under '{record.topic}'")
        self._records[key] = record
        self._order.append(record)
        self._digests[key] = hashlib.sha256(data).hexdigest()
        return record

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._records

    def __iter__(self) -> Iterator[msg.Record]:
        """All records, in the order in which the board has them."""
        return iter(self.since(0))

    def __len__(self) -> int:
        return len(self._order)

    def since(self, count: int) -> list[msg.Record]:
        """All records but the first ``count``: whoever looks at every one need not begin anew when some were added."""
        return self._order[count:]

    def get(self, scope: str, sender: str, topic: str, kind: type[B]) -> B:
        """What ``sender`` said. Raises when it is missing, of another run (``other-run``) or of another kind."""
        record = self._records.get((sender, topic))
        if record is None:
            raise ProtocolError(f"'{sender}' said nothing under '{topic}'")
        if record.scope != scope:
            raise Refused("other-run", f"the server shows what '{sender}' said under '{topic}' in another run")
        if not isinstance(record.body, kind):
            raise ProtocolError(f"'{sender}' said '{record.body.kind}' under '{topic}'")
        return record.body

    def get_all(self, scope: str, senders: Iterable[str], topic: str, kind: type[B]) -> dict[str, B]:
        """:meth:`get` for each of ``senders``, in their order."""
        return {name: self.get(scope, name, topic, kind) for name in senders}

    def digest(self, sender: str, topic: str) -> str:
        """SHA-256 of a record's bytes: for transcripts."""
        return self._digests[sender, topic]


def check_opens(scope: str, round: str, name: str, committed: Any, salt: str, digest: bytes) -> None:
    """Raise :class:`Refused` (``commitment``) unless what ``name`` revealed opens its commitment ``committed``."""
    if commitment(bytes.fromhex(scope), round, name, bytes.fromhex(salt), digest).hex() != committed.commitment:
        raise Refused("commitment", f"what '{name}' revealed in '{round}' is not what it had committed to")


def derive_run_id(
    manifest: Manifest, session: str, commits: dict[str, msg.NonceCommit], reveals: dict[str, msg.NonceReveal]
) -> bytes:
    """Digest of ``focal/run/v2``, manifest hash and nonces of custodians and founders in manifest order,
    after every nonce was found to open its commitment."""
    nonces = list[bytes]()
    for member in manifest.openers:
        nonce = bytes.fromhex(reveals[member.name].nonce)
        check_opens(
            session,
            "nonce",
            member.name,
            commits[member.name],
            reveals[member.name].salt,
            hashlib.sha256(nonce).digest(),
        )
        nonces.append(nonce)
    return framing.digest(b"focal/run/v2", manifest.hash, *nonces)
