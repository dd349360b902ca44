#!/usr/bin/env bash
# Print the path of a Python that OpenFHE has a working wheel for; else say in one sentence what to install, and exit 1.
#
#   PYTHON=/path/to/python   only this one is considered
#   otherwise                3.10 before 3.12, each of them in:
#                            PATH > pyenv > uv > FOCAL_PYTHON_DIRS (/usr/local/bin:/usr/bin)
#
# Every candidate is run (probe_python.py): a pyenv shim exists for each version that was ever installed and fails for
# all but the active one, so being found means nothing. The whole PATH is walked, because such a shim may stand in front
# of a good interpreter.
set -uo pipefail

probe=${BASH_SOURCE[0]%/*}/probe_python.py
limit=()
if command -v timeout >/dev/null; then limit=(timeout 20); fi # one that waits for something must not hang the set-up

run_probe() { # python [version] -> its line on stdout, its status
    ${limit[@]+"${limit[@]}"} "$1" -E "$probe" "${@:2}" 2>/dev/null </dev/null
}

stop() {
    printf 'focal set-up: %s.\n' "$*" >&2
    exit 1
}

candidates() { # version -> paths, best first
    local dir dirs uv
    IFS=: read -ra dirs <<<"$PATH"
    for dir in "${dirs[@]}"; do printf '%s\n' "$dir/python$1"; done
    for dir in "${dirs[@]}"; do printf '%s\n' "$dir/python3" "$dir/python"; done
    printf '%s\n' "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$1".*/bin/"python$1"
    for uv in uv "${HOME:-}/.local/bin/uv" "${HOME:-}/.cargo/bin/uv"; do
        if command -v "$uv" >/dev/null; then
            UV_PYTHON_DOWNLOADS=never UV_PYTHON_PREFERENCE=only-managed \
                "$uv" python find --system "$1" 2>/dev/null </dev/null
        fi
    done
    IFS=: read -ra dirs <<<"${FOCAL_PYTHON_DIRS-/usr/local/bin:/usr/bin}"
    for dir in ${dirs[@]+"${dirs[@]}"}; do printf '%s\n' "$dir/python$1"; done
}

if [ -n "${PYTHON:-}" ]; then
    line=$(run_probe "$PYTHON")
    case $? in
    0) printf '%s\n' "$line" && exit 0 ;;
    3 | 4) stop "PYTHON=$PYTHON $line, or leave PYTHON unset" ;;
    *) stop "PYTHON=$PYTHON does not run; name a Python 3.10, or leave PYTHON unset" ;;
    esac
fi

almost=
for version in 3.10 3.12; do
    declare -A seen=()
    while IFS= read -r python; do
        if [ ! -x "$python" ] || [ -d "$python" ] || [ -n "${seen[$python]:-}" ]; then continue; fi
        seen[$python]=1
        line=$(run_probe "$python" "$version")
        case $? in
        0) printf '%s\n' "$line" && exit 0 ;;
        3) almost=${almost:-"$python $line, or name another with PYTHON=/path/to/python3.10"} ;;
        esac
    done < <(candidates "$version")
done
stop "${almost:-"no Python found that OpenFHE has a wheel for: install Python 3.10 (with 'uv python install 3.10', \
'pyenv install 3.10' or 'apt install python3.10 python3.10-venv'; 3.12 does on Ubuntu 24.04 and later), \
or name one with PYTHON=/path/to/python3.10"}"
