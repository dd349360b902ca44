"""A view of a finished run holds what that party got, and no file of anybody else's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from consortium import cli, finished, said

from focal.attacks.ciphertexts import Read
from focal.attacks.view import OUTSIDER, View
from focal.errors import FocalError

MEMBERS = ("server", "custodian-1", "custodian-2", "hospital-a", "hospital-b", "hospital-c")


def files_of(view: View) -> set[str]:
    """Whose folders a view's files lie in."""
    paths = [path for held in (view.received, view.owned) for path in held.paths()]
    return {path.relative_to(finished().folder / "parties").parts[0] for path in paths}


@pytest.mark.parametrize("party", MEMBERS)
def test_a_view_never_contains_another_partys_files(party: str) -> None:
    assert files_of(View.of(finished().folder, party)) <= {party, "server"}  # the server's: blobs that it sends out


@pytest.mark.parametrize("party", MEMBERS[1:])
def test_what_comes_from_the_server_is_what_it_would_send(party: str) -> None:
    view = View.of(finished().folder, party)
    stored = finished().folder / "parties" / "server"
    from_server = [p for p in [*view.received.paths(), *view.owned.paths()] if p.is_relative_to(stored)]
    assert all(p.parent.parent == stored / "blobs" for p in from_server)
    assert len(from_server) < len(View.of(finished().folder, "server").received.paths())


def test_an_institution_has_nobodys_uploads_and_the_server_has_all() -> None:
    server, hospital = (View.of(finished().folder, name) for name in ("server", "hospital-a"))
    lists = Read(server).lists
    for chunk in lists["hospital-b"].chunks:
        assert server.blob(chunk)
        with pytest.raises(FocalError, match="cannot fetch"):
            hospital.blob(chunk)
    assert any(name.endswith("rows.npz") for name in hospital.owned)
    assert not any("rows" in name for name in server.owned)


def test_an_outsider_has_the_stored_bytes_and_owns_nothing() -> None:
    view = View.of(finished().folder, OUTSIDER)
    assert len(view.owned) == 0 and len(view.received) == len(View.of(finished().folder, "server").received)


def test_a_coalition_has_what_its_members_have() -> None:
    one, other = (View.of(finished().folder, name) for name in ("server", "hospital-a"))
    both = View.pooled([one, other])
    assert both.parties == ("server", "hospital-a")
    assert set(both.received) == set(one.received) | set(other.received)
    assert files_of(both) == {"server", "hospital-a"}


@pytest.mark.parametrize("party", ["server", "custodian-2", OUTSIDER])
def test_uploads_are_read_by_whoever_is_sent_them(party: str) -> None:
    read = Read(View.of(finished().folder, party))
    uploaded = read.uploaded("hospital-b")
    seen = uploaded.signals()
    assert seen.shape == (read.lists["hospital-b"].rows, 5 * 32) and np.isfinite(seen).all()
    assert len(read.encryption_key()[1]) == len(read.scheme.extended)


def test_a_party_that_is_none_is_named() -> None:
    with pytest.raises(FocalError, match="no party 'hospital-x'"):
        View.of(finished().folder, "hospital-x")


def test_what_can_be_attacked_is_listed_and_what_cannot_is_said(tmp_path: Path) -> None:
    shown = said(cli("attack", "--list"))
    assert "fedsgd.imprint" in shown and "focal-blind.server" in shown
    alone = said(cli("attack", "focal", "--as", "server,hospital-b", "--list"))
    assert "focal-blind.server-and-hospital" in alone and "focal-blind.membership" not in alone
    assert "no method or attack 'fedprox'" in said(cli("attack", "fedprox", "--list"))
    assert "no party 'hospital-x'" in said(cli("attack", "--as", "hospital-x", "--list"))
    (tmp_path / "mine.yaml").write_text("name: mine\nwho: [server]\nknows: {labls: true}\n")
    assert "labls" in said(cli("attack", "--threat", tmp_path / "mine.yaml"))
