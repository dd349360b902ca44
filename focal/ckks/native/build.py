"""How the library is compiled: cffi writes a Python module around native.h, setuptools calls the compiler.

``pip install`` does it (setup.py), and so does ``python -m focal.ckks.native`` in a checkout, in place. It is optional:
where there is no C compiler, installation goes on without, and OpenFHE and numpy compute everything.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FOLDER = "focal/ckks/native"
MODULE = FOLDER.replace("/", ".") + "._kernels"
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-Wno-psabi", "-Wno-unknown-pragmas")
"""``-ffp-contract=off``: quotients in doubles count on every rounding where it is written."""
PREAMBLE = """
#include <stddef.h>
#include <stdint.h>
#include "native.h"
const char *focal_made_from(void) { return "%s"; }
"""


def digest() -> str:
    """Of all that the library is made from. It is compiled in: one that was made from anything else is not used."""
    files = sorted(p for p in HERE.iterdir() if p.suffix in (".c", ".h") and p.stem != "_kernels")
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in (*files, HERE / "build.py"))).hexdigest()


def builder(
    module: str = MODULE,
    macros: Sequence[str] = (),
    flags: Sequence[str] = (),
    folder: str = FOLDER,
) -> Any:
    """The cffi.FFI that setup.py hands to setuptools. ``folder``: where the C files are, for the compiler."""
    import cffi  # its parser takes longer to import than everything that uses the library

    made = cffi.FFI()
    made.cdef(re.sub(r"/\*.*?\*/", "", (HERE / "native.h").read_text(), flags=re.S))
    made.set_source(
        module,
        PREAMBLE % digest(),
        sources=[f"{folder}/{path.name}" for path in sorted(HERE.glob("*.c")) if path.stem != "_kernels"],
        depends=[f"{folder}/{path.name}" for path in sorted(HERE.glob("*.h"))],
        include_dirs=[folder],
        define_macros=[(name, None) for name in macros],
        extra_compile_args=[*FLAGS, *flags],
        extra_link_args=list(flags),
        optional=True,
        py_limited_api=False,  # one name for the file, however it is made
    )
    return made


def build(into: Path, module: str, macros: Sequence[str] = (), flags: Sequence[str] = ()) -> Path | None:
    """Compile the library as the Python module ``module`` into the folder ``into``.

    ``None`` when the compiler fails, which has said why.
    """
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(builder(module, macros, flags, str(HERE)).compile(tmpdir=scratch))
        if not made.exists():
            return None
        fresh = into / f".{made.name}"  # a running process keeps the library that it has open
        shutil.copy(made, fresh)
        return fresh.replace(into / made.name)


def main() -> int:
    """Compile in place, and say so; the exit status."""
    made = build(HERE, "_kernels")
    failed = "the native kernels were not built (the compiler's message is above); focal runs without them, slower"
    print(f"built {made}" if made else failed)
    return 0 if made else 1
