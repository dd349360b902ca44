"""Errors a person can act on: what happened, who or what is concerned, and the way out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class FocalError(Exception):
    """A problem that is reported in one or two lines, without a traceback.

    ``message`` names the party and the file; ``hint`` is the way out. Use it for everything that a user,
    a file or another party can cause; programming mistakes stay ordinary exceptions.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message

    def __reduce__(self) -> Any:
        # by what it holds: the arguments of its kinds differ, and a worker's error is raised again by its driver
        return _again, (type(self), self.args, self.__dict__)


class ConfigError(FocalError):
    """A configuration file that cannot be used: names the file, the field and what is allowed."""


class LeftOut(FocalError):
    """The others go on without this party."""


class ProtocolError(FocalError):
    """Another party sent something that the protocol forbids. Nothing of it was used."""


class Refused(ProtocolError):
    """This party was asked for something that it must not do; ``reason`` is a stable short name for it."""

    def __init__(self, reason: str, message: str, *, hint: str = "") -> None:
        super().__init__(f"refused ({reason}): {message}", hint=hint)
        self.reason = reason


class Told(Refused):
    """A refusal in the server's words: nobody here has looked at what they say, of whomever."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, f"the server says: {message}")


@contextlib.contextmanager
def refusing(reason: str) -> Iterator[None]:
    """What is wrong with what others gave is no plain error of one's own: nobody must wait for this member."""
    try:
        yield
    except ProtocolError:
        raise
    except FocalError as e:
        raise Refused(reason, e.message, hint=e.hint) from None


def _again(kind: type[FocalError], args: tuple[Any, ...], state: dict[str, Any]) -> FocalError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error
