"""Errors that a person can act on survive the way from one process to another."""

from __future__ import annotations

import pickle

import pytest

from focal.errors import ConfigError, FocalError, Refused
from focal.net.store import DiskError


@pytest.mark.parametrize(
    "error",
    [
        FocalError("what", hint="the way out"),
        ConfigError("a file"),
        DiskError("/disk: is full", hint="free space"),
        Refused("upload", "'north' sent something else", hint="ask there"),
    ],
)
def test_an_error_from_another_process_says_the_same(error: FocalError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)
