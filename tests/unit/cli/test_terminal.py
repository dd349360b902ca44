"""Words of others on a terminal: they are shown as they are, and steer nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from drawn import spoiled
from parties import identities, manifest_of
from rich.console import Console
from summaries import summary

from focal.cli import common
from focal.cli.progress import Bars
from focal.config import printable
from focal.errors import ConfigError, FocalError
from focal.manifest import Manifest
from focal.net.answers import fault as answered
from focal.protocols.common.progress import Reporter
from focal.protocols.start import run_role
from focal.reading import read
from focal.reporting.table import print_results

MARKUP = "[red]all is well[/red] \\[bold] [link=http://example.org]x[/link]"
CODES = "\x1b[2J\x1b]0;all is well\x07 \x9b1m \u202etxt.exe\u2066 \u2028x"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal that understands colours is sent."""
    out = io.StringIO()
    monkeypatch.setattr(
        common, "console", Console(file=out, force_terminal=True, color_system="standard", width=200, highlight=False)
    )
    return out


def test_what_counts_as_steering() -> None:
    assert printable(CODES) == "?[2J?]0;all is well? ?1m ?txt.exe? ?x"
    assert printable("é ü 漢字 עברית العربية 👁 a\u00a0b") == "é ü 漢字 עברית العربية 👁 a\u00a0b"
    assert printable("one\ntwo\tthree\r", keep="\n") == "one\ntwo?three?"


@pytest.mark.parametrize("kind", ["say", "warn"])
def test_markup_of_others_is_text(terminal: io.StringIO, kind: str) -> None:
    with Bars() as board:
        board.show({"event": kind, "party": "hospital-a", "phase": "keys", "text": MARKUP})
        board.show({"event": "phase", "party": "hospital-a", "phase": "keys"})
        board.show({"event": "waiting", "party": "hospital-a", "phase": "keys", "names": [MARKUP], "topic": "t"})
    assert (
        terminal.getvalue().count(MARKUP) >= 2
        and "\x1b[31m" not in terminal.getvalue()
        and "\x1b]8;" not in terminal.getvalue()
    )


def test_a_result_shows_names_as_they_are(terminal: io.StringIO) -> None:
    named = summary(dataset=MARKUP)
    print_results(named, common.console)
    assert MARKUP in terminal.getvalue() and "\x1b[31m" not in terminal.getvalue()


def test_lines_of_commands_and_parties_hold_no_codes(terminal: io.StringIO, tmp_path: Path) -> None:
    common.say(CODES)
    events: list[dict[str, Any]] = []
    report = Reporter("a", tmp_path / "events.jsonl", events.append)
    report.say(CODES)
    report.warn(f"one\n{CODES}")
    report.error(CODES)
    told = "".join(e["text"] for e in events) + terminal.getvalue() + answered("name", ConfigErrorLike(CODES)).message
    assert printable(told, keep="\n") == told


class ConfigErrorLike(FocalError):
    """An error that quotes somebody."""


def test_a_fault_of_the_server_is_clean_and_bounded() -> None:
    fault = answered("name", FocalError(CODES * 500, hint="x"))
    assert len(fault.message) == 2000 and printable(fault.message) == fault.message


@pytest.mark.parametrize("character", ["\x1b", "\x9b", "\u202e", "\u2028", "\x00"], ids=ascii)
def test_no_text_of_a_manifest_may_steer_a_terminal(
    tmp_path: Path, character: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every name and every key in it; the error is readable too."""
    good = json.loads(manifest_of(identities(), signatures={"north": "ab"}).model_dump_json(exclude_none=True))
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(good))
    read(Manifest, path)
    for bad in spoiled(good, character):
        path.write_text(json.dumps(bad))
        with pytest.raises(ConfigError) as e:
            read(Manifest, path)
        assert printable(str(e.value), keep="\n") == str(e.value)
    assert run_role("server", path, tmp_path / "none.json", lambda event: None) == 1
    err = capsys.readouterr().err
    assert printable(err, keep="\n") == err
