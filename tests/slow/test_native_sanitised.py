"""The tests of the C kernels (test_native.py) once more, with kernels that watch every access to memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE
from places import ROOT

from focal.ckks import native
from focal.ckks.native import build

COMPILER = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)

SANITISED = """
import sys; sys.path[:0] = {paths!r}
import numpy as np, test_native as t
from focal.ckks import ring
import importlib
module = importlib.import_module("_sanitised")
for variant in t.Library.variants(module):
    library = t.Library(module, variant)
    for width in range(1, 9): t.test_bytes_and_back(library, width)
    t.test_what_ends_too_soon_is_not_read(library)
    for q in (97, (1 << 46) - 21, (1 << 60) - 93, (1 << 61) - 1):
        t.test_sums_and_products_are_those_of_integers(library, q, 257)
    t.test_signs_and_lanes_that_do_not_fit_are_refused(library)
    for n in (16, 48): t.test_sums_with_signs_are_numpys(library, None, n)
    for q in t.scheme(1 << 14).moduli[:2]: t.test_residues_of_words_are_those_of_integers(library, q)
    for n in (1 << 8, 1 << 9, 1 << 13):
        t.test_transforms_at_the_ends_of_every_arithmetic(library, None, (1 << 46) - 3407871, n)
    for kind in ("encrypted", "edges"): t.test_polynomials_are_openfhes(library, 1 << 14, kind)
    t.test_threads_share_everything(library)
    print(variant)
"""


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_the_sanitisers_find_nothing(tmp_path: Path) -> None:
    """Reads and writes past an end, uses after a free, and what C leaves undefined, over every kernel."""
    runtime = subprocess.run(
        [str(COMPILER), "-print-file-name=libasan.so"], capture_output=True, text=True
    ).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip("the compiler has no libasan")
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
    assert build.build(tmp_path, "_sanitised", ("FOCAL_EMULATE_IFMA",), flags)
    tests = ROOT / "tests/unit/ckks"
    paths = [str(tmp_path), str(tests), str(ROOT / "tests/support")]
    env = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "FOCAL_NATIVE": "0"}
    command = [sys.executable, "-c", SANITISED.format(paths=paths)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == [v for v in native.VARIANTS if v in done.stdout] and "ifma" in done.stdout
