#!/usr/bin/env bash
# Make .venv: find a fitting Python, install the project and its pinned dependencies, check that OpenFHE loads. Safe to repeat and to interrupt.
#
#   find-python.sh -> python -m venv .venv -> pip install -e '.[dev]' (constraints.txt) -> import openfhe -> stamp
#
# The stamp (a digest of interpreter, folder, kind of torch and all that is installed from: pyproject.toml, constraints.txt, C sources, this
# script) is written last, so that a complete .venv costs a fraction of a second and an incomplete one is finished. A .venv of another
# interpreter, folder or kind is rebuilt. The native kernels are compiled by pip (setup.py); without a C compiler they are left out.
#
# TORCH=cpu takes torch's wheels for machines without a GPU from the index that TORCH_INDEX names. A .venv made so
# stays so; TORCH=cuda makes it anew with the usual wheels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME # they would leak other packages into the environment
venv=$PWD/.venv
stamp=$venv/.focal-setup

stop() {
    printf 'focal set-up: %s.\n' "$*" >&2
    exit 1
}

base_of_venv() { # the interpreter that a complete .venv of this very folder was built from; nothing otherwise
    if grep -qsF "$venv" "$venv/bin/activate"; then "$venv/bin/python" -E scripts/probe_python.py 2>/dev/null || true; fi
}

if command -v flock >/dev/null; then # two set-ups at a time would install over each other
    exec 9<pyproject.toml
    flock 9
fi

had=$(sed -n 3p "$stamp" 2>/dev/null || true)
kind=${TORCH:-${had:-cuda}}
case $kind in
cuda) wheels=() ;;
cpu)  # a local version is newer than the same without, and satisfies the same pin
    mapfile -t wheels < <(sed -nE 's/^(torch|torchvision)==.*/&+cpu/p' constraints.txt)
    ;;
*) stop "TORCH=$kind is neither cpu nor cuda" ;;
esac

have=$(base_of_venv)
if [ -n "${PYTHON:-}" ] || [ "${have:0:1}" != / ]; then python=$(bash scripts/find-python.sh); else python=$have; fi
sources=(pyproject.toml constraints.txt setup.py scripts/setup.sh focal/ckks/native/{*.[ch],build.py})
digest=$({ printf '%s\n' "$python" "$venv" "$kind" && cat "${sources[@]}"; } | sha256sum)
if [ "$have" = "$python" ] && [ "$(sed -n 1p "$stamp" 2>/dev/null)" = "$digest" ]; then
    sed -n 2p "$stamp"
    exit 0
fi

if [ "$kind" = cpu ]; then
    if [ -z "${TORCH_INDEX:-}" ]; then stop "TORCH=cpu needs TORCH_INDEX: set it to the address of a package index with CPU wheels of torch"; fi
    wheels+=(--extra-index-url "$TORCH_INDEX")
fi
started=$SECONDS
if [ "$have" != "$python" ] || [ "${had:-cuda}" != "$kind" ]; then
    printf 'focal set-up: creating .venv with %s\n' "$python"
    "$python" -m venv --clear "$venv" || stop "$python could not create $venv; check that the folder is writable and the disk is not full"
fi
printf '\n\n%s\n' "$kind" >"$stamp" # incomplete, and of this kind
size=' (the first time about 3 GB are fetched and 6 GB written)'
if [ "$kind" = cpu ]; then size=''; fi
printf 'focal set-up: installing into .venv%s\n' "$size"
quiet=()
if [ -n "${CI:-}" ] || [ ! -t 1 ]; then quiet=(--quiet); fi
"$venv/bin/python" -m pip install ${quiet[@]+"${quiet[@]}"} --disable-pip-version-check --constraint constraints.txt ${wheels[@]+"${wheels[@]}"} --editable '.[dev]' ||
    stop "pip could not install the packages (its message is above); check network, disk space and pip's settings, then run 'make setup' again"

# OMP_NUM_THREADS: several OpenMP runtimes meet in one process here, and idle threads of one spin (read when openfhe is imported).
if ! error=$(OMP_NUM_THREADS=1 "$venv/bin/python" -c 'import openfhe' 2>&1); then
    stop "openfhe is installed but does not load with $python (${error##*$'\n'}); try another interpreter: make setup PYTHON=/path/to/python3.10"
fi
kernels=$("$venv/bin/python" -c 'from focal.ckks import native; print(native.description)')
printf 'focal set-up: native kernels: %s\n' "$kernels"
summary=$("$venv/bin/python" -c '
from importlib.metadata import version
from platform import python_version
print("Python", python_version() + "".join(", " + name + " " + version(name) for name in ("openfhe", "torch", "timm", "lightning", "pyzmq")))')
printf '%s\nfocal set-up: .venv is ready (%s)\n%s\n' "$digest" "$summary" "$kind" >"$stamp"
printf 'focal set-up: .venv is ready after %d s (%s)\n' $((SECONDS - started)) "$summary"
