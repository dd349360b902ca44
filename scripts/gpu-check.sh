#!/usr/bin/env bash
# Check FOCAL on this machine's GPU and write docs/gpu.md; without a usable GPU say so, and succeed. Below six minutes.
#
#   WHEELS=folder   a machine without a network that has a Python with torch, timm and lightning: what else FOCAL needs
#                   comes from the wheels in this folder, into a temporary one. Nothing is installed on the machine, and
#                   nothing fetched. On one with a network fill it by make gpu-wheels WHEELS=folder
#   PYTHON=path     that Python (default: python3); OpenFHE has wheels for 3.10 and 3.12
#   without WHEELS  the .venv of make setup
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Without a network these are built for where it will run, which is Python 3.12 on Ubuntu 24.04; pinned in
# constraints.txt.
needed='openfhe|cffi|pycparser|cryptography|pydantic|pydantic_core|annotated-types|typing-inspection'
needed+='|PyNaCl|pyzmq|msgpack|typer|openpyxl|et_xmlfile|pydicom|pylibjpeg|pylibjpeg-openjpeg'

if [ "${1:-}" = wheels ]; then
    if [ -z "${WHEELS:-}" ]; then echo 'focal: name a folder: make gpu-wheels WHEELS=folder' >&2; exit 1; fi
    mapfile -t pins < <(grep -iE "^($needed)==" constraints.txt | grep -v '"3.10"' | sed 's/ *;.*//')
    platforms=()
    for glibc in 39 34 28 27 17 12 5; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
    exec .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --implementation cp --python-version 3.12 --abi cp312 --abi abi3 --abi none \
        "${platforms[@]}" --platform manylinux2014_x86_64 --platform any --dest "$WHEELS" "${pins[@]}"
fi

if [ -n "${WHEELS:-}" ]; then
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
        echo 'GPU check: skipped, the torch of this Python finds no usable GPU (or there is no torch).' \
            'Nothing was measured, and docs/gpu.md is as it was'
        exit 0
    fi
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile \
        --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH=$PWD:$site
    "$python" -m focal.ckks.native || echo 'focal: no native kernels here; the protocol is slower without them'
else
    bash scripts/setup.sh
    python=.venv/bin/python
fi
OMP_NUM_THREADS=4 "$python" -m focal bench gpu
