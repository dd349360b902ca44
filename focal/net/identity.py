"""Who says what: one private file per member, and what its keys are used for.

::

    Ed25519  sign ---> records, manifest      everybody can check who said it
    X25519   seal ---> boxes for one member   the server relays them and sees nothing of them
    CURVE    dial ---> the ZeroMQ connection  the server knows who is calling

The public halves stand in the manifest (:class:`focal.manifest.Member`); the private halves stay in a file that only
its owner can read. Every use has its own domain: a signature or box made for one purpose is refused for another.
"""

from __future__ import annotations

import hmac
import json
import os
import stat
from pathlib import Path
from typing import Annotated, Any, Literal

import zmq
from nacl.bindings import crypto_scalarmult_base
from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey
from nacl.secret import SecretBox
from nacl.signing import SigningKey, VerifyKey
from pydantic import Field, ValidationError

from focal import framing
from focal.config import Hex32, Model, Name
from focal.errors import FocalError, ProtocolError
from focal.files import private_write
from focal.manifest import Manifest, Member
from focal.net.encoding import decode, encode
from focal.net.messages import Body, Record, Signed
from focal.reading import explain

RECORD_DOMAIN = b"focal/record/v2"
MANIFEST_DOMAIN = b"focal/manifest-signature/v2"
SEAL_DOMAIN = b"focal/seal/v1"
GROUP_DOMAIN = b"focal/group-seal/v1"
COMMIT_DOMAIN = b"focal/commit/v1"
SALT_BYTES = 32


class _File(Model):
    """The private file of one member."""

    version: Literal[1] = 1
    name: Name
    sign: Hex32
    """Ed25519 seed."""
    seal: Hex32
    """X25519 secret key."""
    curve: Annotated[str, Field(min_length=40, max_length=40)]
    """CurveZMQ secret key (Z85)."""


class Identity:
    """A member's private keys. Made once by ``focal keys new``, never sent anywhere."""

    def __init__(self, name: str, sign: bytes, seal: bytes, curve: bytes) -> None:
        self.name = name
        self._sign = SigningKey(sign)
        self._seal = PrivateKey(seal)
        self.curve_secret = curve
        """CurveZMQ secret key (Z85, 40 bytes)."""
        self.curve_public: bytes = zmq.curve_public(curve)
        """CurveZMQ public key (Z85, 40 bytes)."""

    def __repr__(self) -> str:
        return f"Identity({self.name!r})"

    @classmethod
    def new(cls, name: str) -> Identity:
        """Draw fresh keys for ``name``."""
        return cls(name, bytes(SigningKey.generate()), bytes(PrivateKey.generate()), zmq.curve_keypair()[1])

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read a private file. Raises :class:`FocalError` when it is unreadable, malformed or readable by others."""
        try:
            with open(path, "rb") as f:
                mode = stat.S_IMODE(os.fstat(f.fileno()).st_mode)
                raw = f.read(1 << 16)
        except OSError as e:
            raise FocalError(
                f"{path}: the key file cannot be read ({e.strerror})", hint="make one: focal keys new NAME"
            ) from None
        if mode & 0o077:
            raise FocalError(
                f"{path}: other users may read these private keys (mode {mode:03o})", hint=f"chmod 600 {path}"
            )
        try:
            file = _File.model_validate(json.loads(raw))
            return cls(file.name, bytes.fromhex(file.sign), bytes.fromhex(file.seal), file.curve.encode())
        except ValidationError as e:  # never show the values: they are secret
            fields = ", ".join(sorted({".".join(map(str, x["loc"])) or "(whole file)" for x in e.errors()}))
            reason = f"wrong: {fields}"
        except (ValueError, zmq.ZMQError) as e:
            reason = "not JSON" if isinstance(e, ValueError) else "wrong: curve"
        raise FocalError(
            f"{path}: is no key file of focal ({reason})",
            hint="restore it from your backup, or make new keys: focal keys new NAME",
        )

    def save(self, path: Path) -> None:
        """Write the private file, 0600. Refuses to overwrite: a lost key cannot be had back."""
        if path.exists():
            raise FocalError(
                f"{path}: exists already and is not overwritten",
                hint="choose another name, or move the old key file away",
            )
        file = _File(
            name=self.name, sign=bytes(self._sign).hex(), seal=self.seal_secret.hex(), curve=self.curve_secret.decode()
        )
        private_write(path, json.dumps(file.model_dump(), indent=2).encode() + b"\n")

    @property
    def seal_secret(self) -> bytes:
        """X25519 secret key (32 bytes): pairwise masks are derived from it."""
        return bytes(self._seal)

    def member(self, role: Literal["server", "institution", "custodian"], **extra: Any) -> Member:
        """The public entry for the manifest; ``extra`` is what the role needs (``endpoint``,
        ``rows`` or ``verify``)."""
        return Member(
            name=self.name,
            role=role,
            sign=bytes(self._sign.verify_key).hex(),
            seal=bytes(self._seal.public_key).hex(),
            curve=self.curve_public.decode(),
            **extra,
        )

    def entry(self, manifest: Manifest) -> Member:
        """This identity's entry in ``manifest``. Raises :class:`FocalError` when name or keys are not those listed."""
        for m in manifest.members:
            if m.name == self.name:
                mine = (
                    bytes(self._sign.verify_key).hex(),
                    bytes(self._seal.public_key).hex(),
                    self.curve_public.decode(),
                )
                if (m.sign, m.seal, m.curve) == mine:
                    return m
                raise FocalError(
                    f"the key file of '{self.name}' is not the one in the manifest",
                    hint="use the key file whose entry was added to the manifest",
                )
        raise FocalError(
            f"'{self.name}' is not a member of the manifest ({', '.join(m.name for m in manifest.members)})"
        )

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature (64 bytes). The caller's message begins with its own domain."""
        return self._sign.sign(message).signature

    def sign_record(self, scope: str, topic: str, body: Body) -> bytes:
        """An encoded :class:`Signed` record of this member, ready to post. The same record gives the same bytes."""
        record = encode(Record(scope=scope, sender=self.name, topic=topic, body=body))
        return encode(Signed(record=record, signature=self.sign(RECORD_DOMAIN + record)))

    def seal(self, to: Member, data: bytes, context: bytes) -> bytes:
        """Encrypt ``data`` to one member, authenticated as from this one (NaCl box, random nonce; 72 bytes longer).

        A box key is the same in both directions, so a binding of sender, recipient and ``context`` goes inside:
        a box that is reflected, forwarded or presented under another context does not open.
        """
        binding = _binding(bytes(self._seal.public_key), bytes.fromhex(to.seal), context)
        try:
            return bytes(Box(self._seal, PublicKey(bytes.fromhex(to.seal))).encrypt(binding + data))
        except CryptoError:
            raise ProtocolError(f"the sealing key of '{to.name}' is no usable X25519 key") from None

    def unseal(self, sender: Member, data: bytes, context: bytes) -> bytes:
        """Open what ``sender`` sealed to this member under ``context``; :class:`ProtocolError` names the sender."""
        try:
            plain = Box(self._seal, PublicKey(bytes.fromhex(sender.seal))).decrypt(data)
        except (CryptoError, ValueError):
            raise ProtocolError(
                f"a sealed message from '{sender.name}' to '{self.name}' does not open: it was altered or is not for us"
            ) from None
        binding = _binding(bytes.fromhex(sender.seal), crypto_scalarmult_base(self.seal_secret), context)
        if not hmac.compare_digest(plain[: len(binding)], binding):
            raise ProtocolError(f"a sealed message from '{sender.name}' to '{self.name}' was made for another purpose")
        return plain[len(binding) :]


def seal_for_group(key: bytes, data: bytes, context: bytes) -> bytes:
    """Encrypt ``data`` under a key that a group shares (NaCl secretbox, random nonce), bound to ``context``."""
    return bytes(SecretBox(framing.digest(GROUP_DOMAIN, key, context)).encrypt(data))


def open_for_group(key: bytes, data: bytes, context: bytes, sender: str) -> bytes:
    """Open what was sealed for the group under ``context``; :class:`ProtocolError` names ``sender``."""
    try:
        return SecretBox(framing.digest(GROUP_DOMAIN, key, context)).decrypt(data)
    except (CryptoError, ValueError):
        raise ProtocolError(
            f"what '{sender}' sealed for the group does not open: it was altered or is of another run"
        ) from None


def read_public(path: Path, **entry: Any) -> Member:
    """A member from its ``NAME.public.json`` and what its role needs.
    Raises :class:`FocalError` naming file and field."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise FocalError(
            f"{path}: cannot be read as a public identity ({e})", hint="it is the NAME.public.json of: focal keys new"
        ) from None
    if not isinstance(found, dict):
        raise FocalError(f"{path}: is no public identity", hint="it is the NAME.public.json of: focal keys new")
    try:
        return Member.model_validate({**found, **entry})
    except ValidationError as e:
        raise explain(e, path) from None


def verify(member: Member, message: bytes, signature: bytes) -> None:
    """Check an Ed25519 signature; :class:`ProtocolError` names the member."""
    try:
        VerifyKey(bytes.fromhex(member.sign)).verify(message, signature)
    except (CryptoError, ValueError, TypeError):
        raise ProtocolError(f"a signature of '{member.name}' is not valid") from None


def open_record(manifest: Manifest, data: bytes) -> Record:
    """Decode a signed record; its sender must be a member and have signed it. :class:`ProtocolError` otherwise."""
    signed: Signed = decode(Signed, data)
    record: Record = decode(Record, signed.record)
    for m in manifest.members:
        if m.name == record.sender:
            verify(m, RECORD_DOMAIN + signed.record, signed.signature)
            return record
    raise ProtocolError(f"a record's sender '{record.sender}' is not a member of the manifest")


def commitment(scope: bytes, round: str, sender: str, salt: bytes, digest: bytes) -> bytes:
    """H(run id || round || sender || salt || message digest), every part with its length,
    so that one input has one reading.

    Args:
        scope: run id (or session before there is one), 32 bytes.
        salt: 32 random bytes, kept until the reveal: they hide ``digest``.
        digest: SHA-256 of the message that is revealed later.

    Returns:
        32 bytes.
    """
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a commitment's salt has {SALT_BYTES} bytes, not {len(salt)}")
    return framing.digest(COMMIT_DOMAIN, scope, round.encode(), sender.encode(), salt, digest)


def sign_manifest(manifest: Manifest, identity: Identity) -> Manifest:
    """The manifest with this member's signature added. Raises :class:`FocalError` when it
    is not a member with these keys."""
    identity.entry(manifest)
    signature = identity.sign(MANIFEST_DOMAIN + manifest.canonical()).hex()
    return manifest.model_copy(update={"signatures": {**manifest.signatures, identity.name: signature}})


def check_signatures(manifest: Manifest, need_all: bool = True) -> None:
    """Raise :class:`FocalError` naming every member whose signature is wrong or (with ``need_all``) missing.
    A clinic agrees by coming: what it uploads is signed under a run of this very manifest."""
    members, signed = {m.name: m for m in manifest.members}, MANIFEST_DOMAIN + manifest.canonical()
    wrong = [
        name for name, signature in manifest.signatures.items() if not _signed(members.get(name), signed, signature)
    ]
    missing = [m.name for m in manifest.members if m.name not in manifest.signatures and not m.clinic]
    missing = missing if need_all else []
    problems = [f"the signature of {_names(wrong)} is not valid for these bytes"] if wrong else []
    problems += [f"{_names(missing)} has not signed"] if missing else []
    if problems:
        raise FocalError(
            f"manifest '{manifest.name}': {'; '.join(problems)}",
            hint="each of them: focal manifest sign, then share the file again",
        )


def _signed(member: Member | None, message: bytes, signature: str) -> bool:
    try:
        if member is not None:
            verify(member, message, bytes.fromhex(signature))
            return True
    except (ProtocolError, ValueError):
        pass
    return False


def _names(names: list[str]) -> str:
    return ", ".join(f"'{n}'" for n in names)


def _binding(sender: bytes, recipient: bytes, context: bytes) -> bytes:
    return framing.digest(SEAL_DOMAIN, sender, recipient, context)
