"""A run whose server and custodians have no more than bare focal, and its audit there."""

from __future__ import annotations

from pathlib import Path

from bare import BARE, bare
from consortium import Consortium, said


def test_server_and_custodians_run_and_a_run_is_audited_without_an_extra(tmp_path: Path) -> None:
    with Consortium("bare") as c:
        c.start("server", *c.custodians, prelude=BARE)
        c.start(*c.institutions)
        c.finish()
        assert "every digest is the same" in said(bare("audit", c.run.folder, cwd=tmp_path))
    manifest = c.run.manifest_file
    checked = said(bare("manifest", "check", manifest, cwd=tmp_path))
    assert "answers every refresh last" in checked and c.manifest.hash.hex() in checked
    made = bare("keys", "new", "--name", "late", "--out", tmp_path, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    added = bare(
        "manifest", "add", manifest, "--role", "custodian", "--public", tmp_path / "late.public.json", cwd=tmp_path
    )
    assert "late (custodian)" in said(added)
