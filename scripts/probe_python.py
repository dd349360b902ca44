"""Run by a candidate interpreter: does OpenFHE have a wheel that works with it?

    python -E scripts/probe_python.py [3.10|3.12]

OpenFHE's wheels call themselves py3-none-any, but each holds one compiled extension, and pip installs it happily on
an interpreter that cannot load it. So the question is asked before anything is installed: version, machine, C
library, the symbol version of libstdc++, and what `venv` needs. The limits are those of the wheels 1.6.1.0
(`objdump -T` on every library in them).

Exit status and the one line printed:
    0  the interpreter that a virtual environment should be built from (behind links, shims and other environments)
    3  right version, but this is missing
    4  another version than the one asked for, or one without a wheel

Written so that every Python since 2.7 can run it: any of them may be the candidate.
"""

import ctypes
import os
import platform
import sys

GLIBC = {(3, 10): (2, 34), (3, 12): (2, 38)}
GLIBCXX_3_4_32 = (b"_ZSt21ios_base_library_initv", b"GLIBCXX_3.4.32")  # a symbol that exists in this version only
INSTEAD = "install Python 3.10 instead ('uv python install 3.10' or 'pyenv install 3.10')"


def missing(version):
    """What keeps an interpreter of this version from loading OpenFHE, as (what, the way out);
    None when nothing does."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64" or sys.maxsize < 2**32:
        return "is not a 64-bit Linux program on x86_64, and OpenFHE has wheels for nothing else", "use such a machine"
    have = tuple(int(x) for x in platform.libc_ver()[1].split(".")[:2]) if platform.libc_ver()[0] == "glibc" else (0, 0)
    if have < GLIBC[version]:
        way_out = "use a newer Linux, as Debian 12 or Ubuntu 22.04" if version == (3, 10) else INSTEAD
        return "finds no glibc %d.%d or newer, which OpenFHE needs" % GLIBC[version], way_out
    try:
        ctypes.CDLL("libgomp.so.1")
        cxx = ctypes.CDLL("libstdc++.so.6")
    except OSError as e:
        return "cannot load " + str(e).split(":")[0], "install it (Debian, Ubuntu: apt install libgomp1 libstdc++6)"
    if version == (3, 12) and not has_symbol(cxx, *GLIBCXX_3_4_32):
        return "finds a libstdc++ without GLIBCXX_3.4.32, which OpenFHE needs", INSTEAD
    from importlib.util import find_spec  # not in 2.7

    if not (find_spec("venv") and find_spec("ensurepip")):
        return (
            "lacks the venv and ensurepip modules",
            "install them (Debian, Ubuntu: apt install python%d.%d-venv)" % version,
        )
    return None


def has_symbol(library, symbol, version):
    """Whether an open library has `symbol` in exactly this symbol version (dlvsym(3))."""
    dlvsym = ctypes.CDLL(None).dlvsym
    dlvsym.restype, dlvsym.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
    return bool(dlvsym(library._handle, symbol, version))


def main(wanted):
    """Print the one line; return the exit status."""
    version = tuple(sys.version_info[:2])
    name = ".".join(str(x) for x in sys.version_info[:3])
    if version not in GLIBC or (wanted and wanted != "%d.%d" % version):
        print("is Python " + name + ", and OpenFHE has wheels for Python 3.10 and 3.12 only; install Python 3.10")
        return 4
    problem = missing(version)
    if problem:
        print("is Python " + name + " but " + problem[0] + "; " + problem[1])
        return 3
    print(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
