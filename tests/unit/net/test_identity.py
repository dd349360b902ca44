"""Keys, signatures, sealed messages, commitments: each works for its own purpose and for no other."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgpack
import pytest
from parties import SCOPE, identities, manifest_of

from focal import framing
from focal.errors import FocalError, ProtocolError
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.net.encoding import encode
from focal.net.identity import (
    MANIFEST_DOMAIN,
    RECORD_DOMAIN,
    Identity,
    check_signatures,
    commitment,
    open_record,
    sign_manifest,
    verify,
)
from focal.runs.pooling import DOMAIN as POOLED_DOMAIN

PEOPLE = identities()
MANIFEST = manifest_of(PEOPLE)
NORTH, SOUTH = PEOPLE["north"], PEOPLE["south"]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_save_and_load_give_the_same_keys_in_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "north.json"
    NORTH.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Identity.load(path)
    assert again.member("institution", rows=40) == MANIFEST.member("north")
    assert (again.seal_secret, again.curve_secret) == (NORTH.seal_secret, NORTH.curve_secret)
    with pytest.raises(FocalError, match="not overwritten"):
        SOUTH.save(path)
    assert Identity.load(path).name == "north"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_key_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "north.json"
    NORTH.save(path)
    os.chmod(path, mode)
    with pytest.raises(FocalError) as e:
        Identity.load(path)
    assert f"chmod 600 {path}" in str(e.value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"name": "north"}',
        b'{"version": 2, "name": "north", "sign": "0", "seal": "", "curve": ""}',
    ],
)
def test_malformed_key_file_is_named(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "north.json"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(FocalError, match="north.json"):
        Identity.load(path)


def test_malformed_key_file_error_shows_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "north.json"
    NORTH.save(path)
    secret = NORTH.seal_secret.hex()
    path.write_text(path.read_text().replace(secret, secret[:-1]))
    with pytest.raises(FocalError, match="seal") as e:
        Identity.load(path)
    assert secret[:-1] not in str(e.value)
    assert secret not in repr(NORTH)


def test_missing_key_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FocalError, match="focal keys new"):
        Identity.load(tmp_path / "none.json")


def test_bad_curve_key_in_file(tmp_path: Path) -> None:
    path = tmp_path / "north.json"
    NORTH.save(path)
    path.write_text(path.read_text().replace(NORTH.curve_secret.decode(), " " * 40))
    with pytest.raises(FocalError, match="north.json"):
        Identity.load(path)


def test_signature_names_its_member() -> None:
    member = MANIFEST.member("north")
    signature = NORTH.sign(b"hello")
    verify(member, b"hello", signature)
    for message, bad in [
        (b"hellp", signature),
        (b"hello", flipped(signature, 0)),
        (b"hello", flipped(signature, 63)),
        (b"hello", b""),
    ]:
        with pytest.raises(ProtocolError, match="'north'"):
            verify(member, message, bad)
    with pytest.raises(ProtocolError, match="'south'"):
        verify(MANIFEST.member("south"), b"hello", signature)


def test_sealed_message_opens_for_its_reader_sender_and_context_only() -> None:
    north, south = MANIFEST.member("north"), MANIFEST.member("south")
    box = NORTH.seal(south, b"share", b"run/release")
    assert SOUTH.unseal(north, box, b"run/release") == b"share"
    assert b"share" not in box
    with pytest.raises(ProtocolError, match="'north'.*another purpose"):
        SOUTH.unseal(north, box, b"run/moments")
    with pytest.raises(ProtocolError, match="'west'"):
        SOUTH.unseal(MANIFEST.member("west"), box, b"run/release")
    with pytest.raises(ProtocolError, match="'north'"):
        PEOPLE["west"].unseal(north, box, b"run/release")
    for bad in (b"", box[:10], box[:-1], flipped(box, 0), flipped(box, len(box) - 1), flipped(box, 30)):
        with pytest.raises(ProtocolError, match="'north'"):
            SOUTH.unseal(north, bad, b"run/release")


def test_sealed_message_reflected_by_the_server_is_refused() -> None:
    """A NaCl box has one key for both directions: without the binding, north would take its own words for south's."""
    south = MANIFEST.member("south")
    box = NORTH.seal(south, b"share", b"ctx")
    with pytest.raises(ProtocolError, match="'south'.*another purpose"):
        NORTH.unseal(south, box, b"ctx")


def test_record_opens_with_its_author() -> None:
    data = NORTH.sign_record(SCOPE, "finished", msg.Finished())
    record = open_record(MANIFEST, data)
    assert (record.sender, record.scope, record.topic, record.body) == ("north", SCOPE, "finished", msg.Finished())
    assert NORTH.sign_record(SCOPE, "finished", msg.Finished()) == data


def test_record_of_a_stranger_or_under_another_name_is_refused() -> None:
    stranger = Identity.new("stranger")
    with pytest.raises(ProtocolError, match="'stranger' is not a member"):
        open_record(MANIFEST, stranger.sign_record(SCOPE, "finished", msg.Finished()))
    impostor = Identity.new("north")
    with pytest.raises(ProtocolError, match="'north'"):
        open_record(MANIFEST, impostor.sign_record(SCOPE, "finished", msg.Finished()))


def test_a_flipped_bit_in_any_byte_of_a_record_is_noticed() -> None:
    data = NORTH.sign_record(SCOPE, "nonce", msg.NonceCommit(commitment="ab" * 32))
    for at in range(len(data)):
        with pytest.raises(ProtocolError):
            open_record(MANIFEST, flipped(data, at))


def test_signature_for_another_purpose_does_not_make_a_record() -> None:
    record = encode(msg.Record(scope=SCOPE, sender="north", topic="finished", body=msg.Finished()))
    data = msgpack.packb({"record": record, "signature": NORTH.sign(record)})
    with pytest.raises(ProtocolError, match="signature of 'north'"):
        open_record(MANIFEST, data)


def test_a_manifests_signature_is_good_for_nothing_else() -> None:
    """The bytes of a manifest begin with a domain of their own, as those of records and of pooled counts do:
    none begins with another."""
    signed = sign_manifest(MANIFEST, NORTH)
    bare = MANIFEST.model_copy(update={"signatures": {"north": NORTH.sign(MANIFEST.canonical()).hex()}})
    check_signatures(signed, need_all=False)
    with pytest.raises(FocalError, match="'north' is not valid"):
        check_signatures(bare, need_all=False)
    assert (
        verify(
            MANIFEST.member("north"), MANIFEST_DOMAIN + MANIFEST.canonical(), bytes.fromhex(signed.signatures["north"])
        )
        is None
    )
    domains = [MANIFEST_DOMAIN, RECORD_DOMAIN, framing.framed(POOLED_DOMAIN)]
    assert not any(a.startswith(b) for a in domains for b in domains if a is not b)


def test_commitment_binds_every_part_without_ambiguity() -> None:
    salt, digest = b"s" * 32, b"d" * 32
    base = commitment(b"scope", "keys/1", "custodian-1", salt, digest)
    assert len(base) == 32
    others = [
        commitment(b"scopf", "keys/1", "custodian-1", salt, digest),
        commitment(b"scope", "keys/2", "custodian-1", salt, digest),
        commitment(b"scope", "keys/1", "custodian-2", salt, digest),
        commitment(b"scope", "keys/1", "custodian-1", b"t" * 32, digest),
        commitment(b"scope", "keys/1", "custodian-1", salt, b"e" * 32),
        commitment(b"scop", "ekeys/1", "custodian-1", salt, digest),
        commitment(b"scope", "keys/1c", "ustodian-1", salt, digest),
        commitment(b"scope", "keys/", "1custodian-1", salt, digest),
    ]
    assert len({base, *others}) == 1 + len(others)
    with pytest.raises(ValueError, match="32 bytes"):
        commitment(b"scope", "keys/1", "custodian-1", b"short", digest)


def test_the_signed_bytes_are_made_once_for_all_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = MANIFEST
    for person in PEOPLE.values():
        manifest = sign_manifest(manifest, person)
    made, canonical = [], Manifest.canonical
    monkeypatch.setattr(Manifest, "canonical", lambda self: made.append(0) or canonical(self))
    check_signatures(manifest)
    assert len(made) == 1


def test_manifest_signatures_are_checked_by_name() -> None:
    manifest = MANIFEST
    for person in PEOPLE.values():
        manifest = sign_manifest(manifest, person)
    check_signatures(manifest)
    assert manifest.hash == MANIFEST.hash

    partly = sign_manifest(sign_manifest(MANIFEST, NORTH), SOUTH)
    check_signatures(partly, need_all=False)
    with pytest.raises(FocalError) as missing:
        check_signatures(partly)
    assert all(f"'{n}'" in str(missing.value) for n in ("server", "west", "custodian-1", "custodian-2"))
    assert "'north'" not in str(missing.value)

    changed = manifest_of(PEOPLE, dataset="other", signatures=manifest.signatures)
    with pytest.raises(FocalError) as wrong:
        check_signatures(changed, need_all=False)
    assert all(f"'{n}'" in str(wrong.value) for n in PEOPLE)

    for bad in ("zz", "", "00" * 64):
        with pytest.raises(FocalError, match="'north' is not valid"):
            check_signatures(manifest_of(PEOPLE, signatures={**manifest.signatures, "north": bad}))
    with pytest.raises(FocalError, match="'stranger' is not valid"):
        check_signatures(manifest_of(PEOPLE, signatures={**manifest.signatures, "stranger": "00" * 64}))


def test_only_the_keys_in_the_manifest_may_sign_it() -> None:
    with pytest.raises(FocalError, match="'north' is not the one in the manifest"):
        sign_manifest(MANIFEST, Identity.new("north"))
    with pytest.raises(FocalError, match="'stranger' is not a member"):
        sign_manifest(MANIFEST, Identity.new("stranger"))
