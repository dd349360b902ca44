"""Benchmarks: what a person can mend is skipped with a line, a mistake of ours is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from focal import configs
from focal.bench import everything, sockets
from focal.bench.result import Result
from focal.errors import ConfigError, FocalError


def test_only_what_a_person_can_mend_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def raising(error: Exception) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(everything, "split", fail)
        everything.everything(None, None, tmp_path, tmp_path, said.append, fail)

    for name in ("head", "interactive"):
        monkeypatch.setattr(everything, name, lambda *_: Result("measured", {}))
    for error in (FocalError("no images"), ConfigError("uses ${FOCAL_DATA}, which is not set")):
        said.clear()
        raising(error)
        assert [line for line in said if "skipped" in line] == [
            f"{what}: skipped ({error})" for what in ("joint steps over sockets", "retina64", "retina128")
        ]
    with pytest.raises(ValueError, match="shapes"):
        raising(ValueError("shapes do not fit"))


def test_joint_steps_are_those_of_an_interactive_configuration(tmp_path: Path) -> None:
    with pytest.raises(FocalError, match="demo.yaml is of protocol blind"):
        sockets.split(configs.find("demo"), tmp_path, steps=2)
    assert not list(tmp_path.iterdir())
