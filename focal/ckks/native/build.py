"""How the library is compiled: cffi writes a Python module around native.h, setuptools calls the compiler.

``pip install`` does it (setup.py), and so does ``python -m focal.ckks.native.build`` in a checkout, in place. It is optional: where
there is no C compiler, installation goes on without, and OpenFHE and numpy compute everything.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

import cffi

HERE = Path(__file__).resolve().parent
MODULE = "focal.ckks.native._kernels"
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-Wno-psabi", "-Wno-unknown-pragmas")
"""``-ffp-contract=off``: quotients in doubles count on every rounding where it is written."""


def builder(
    module: str = MODULE, macros: tuple[str, ...] = (), flags: tuple[str, ...] = (), folder: str = "focal/ckks/native"
) -> cffi.FFI:
    """What setup.py hands to setuptools. ``folder``: where the C files are, for the compiler."""
    made = cffi.FFI()
    made.cdef(re.sub(r"/\*.*?\*/", "", (HERE / "native.h").read_text(), flags=re.S))
    made.set_source(
        module,
        '#include <stddef.h>\n#include <stdint.h>\n#include "native.h"',
        sources=[f"{folder}/{path.name}" for path in sorted(HERE.glob("*.c")) if path.stem != "_kernels"],
        depends=[f"{folder}/{path.name}" for path in sorted(HERE.glob("*.h"))],
        include_dirs=[folder],
        define_macros=[(name, None) for name in macros],
        extra_compile_args=[*FLAGS, *flags],
        extra_link_args=list(flags),
        optional=True,
    )
    return made


def build(into: Path, module: str, macros: tuple[str, ...] = (), flags: tuple[str, ...] = ()) -> Path | None:
    """Compile the library as the Python module ``module`` into the folder ``into``; ``None`` when the compiler fails, which has said why."""
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(builder(module, macros, flags, str(HERE)).compile(tmpdir=scratch))
        if not made.exists():
            return None
        fresh = into / f".{made.name}"  # a running process keeps the library that it has open
        shutil.copy(made, fresh)
        return fresh.replace(into / made.name)


def main() -> int:
    made = build(HERE, "_kernels")
    print(f"built {made}" if made else "the native kernels were not built (the compiler's message is above); focal runs without them, slower")
    return 0 if made else 1


if __name__ == "__main__":
    sys.exit(main())
