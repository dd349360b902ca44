"""The ``focal`` command: what a person types, and what they see while it runs.

::

    common      the command itself and shared options; say()
    progress    bars
    runs        a run on this machine, and what is done with a finished one: mostly calls of ``import focal``
    parties     one party of a run on several machines
    manifest    what a consortium agrees on and signs
    data        a data set, before anything is trained on it
    bench       measurements
    attacks     what each party's view is worth to an attacker

Nothing that a command needs is imported before it is given: ``focal --help`` is a matter of typer alone.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NoReturn

from focal.cli import attacks, bench, data, manifest, parties, runs  # noqa: F401  their commands
from focal.cli.common import app, resumable
from focal.errors import FocalError


def _give_a_home() -> None:
    """In containers a user may have neither HOME nor an entry in passwd: libraries that look for their settings at home
    (matplotlib) end with a traceback there. They and this command's children get an empty folder until its end."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.mkdtemp(prefix="focal-home-")
        atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)


def main() -> NoReturn:
    """Entry point. Errors that a person can act on are one or two lines, never a traceback."""
    _give_a_home()
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        with resumable():
            app()
    except FocalError as e:
        from focal.config import printable

        print(f"error: {printable(str(e), keep=chr(10))}", file=sys.stderr)
        sys.exit(1)
    except OSError as e:  # a folder that cannot be written, a full disk
        if e.filename is None or isinstance(e, BrokenPipeError):
            raise
        from focal.config import printable

        print(f"error: {printable(f'{e.filename}: {e.strerror}')}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)
