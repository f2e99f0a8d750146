#!/usr/bin/env bash
# Makes or mends the virtual environment: locked dependencies, and the build of torch that fits this machine.
# Owns only $VENV. Variables: PYTHON (interpreter), VENV (folder), TORCH (auto, cpu or default),
# TORCH_INDEX_URL (a package index that has CPU builds of torch).
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
TORCH=${TORCH:-auto}
LOCK=requirements.lock
EXTRAS=web,worker,quantized,stack,s3,tracing,dev
CLIENT_EXTRAS=numpy,parquet,postgres,qdrant,s3,where,lancedb,faiss,milvus
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    if [[ -n ${PYTHON:-} ]]; then
        is_new_enough "$PYTHON" || fail "PYTHON=$PYTHON does not run as Python 3.11 or newer"
        printf '%s\n' "$PYTHON"
        return
    fi
    # A name on PATH may be a shim that only prints an error, so each one is run.
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python3.14 python; do
        if is_new_enough "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer was not found; install it, or name it: make setup PYTHON=/path/to/python3.11"
}

make_venv() {
    if is_new_enough "$VENV/bin/python" && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    local python
    python=$(find_python)
    say "making $VENV with $("$python" -V)"
    # A half-made or outdated environment is replaced, never mixed with a new one.
    "$python" -m venv --clear "$VENV" ||
        fail "'$python -m venv' failed; on Debian and Ubuntu install the package python3-venv (as root), then try again"
}

wants_cpu_torch() {
    case $TORCH in
        cpu) return 0 ;;
        default) return 1 ;;
        auto) [[ $(uname -s) == Linux ]] && ! nvidia-smi -L >/dev/null 2>&1 ;;
        *) fail "TORCH=$TORCH is none of auto, cpu, default" ;;
    esac
}

has_torch() { "$VENV/bin/python" -c "
import importlib.metadata as m, sys
sys.exit(m.version('torch').split('+')[0] != '$1')" >/dev/null 2>&1; }

install_torch() {
    local version index=()
    version=$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' "$LOCK")
    has_torch "$version" && return
    [[ -n ${TORCH_INDEX_URL:-} ]] && index=(--extra-index-url "$TORCH_INDEX_URL")
    if wants_cpu_torch; then
        say "installing the CPU build of torch $version"
        pip_install ${index[@]+"${index[@]}"} "torch==$version+cpu" 2>"$VENV/torch-cpu.log" && return
        say "the package index has no CPU build of torch $version, so its default build is installed: several GB with CUDA."
        say "to avoid that, stop now and run: make setup TORCH_INDEX_URL=<an index that has CPU builds of torch>"
    fi
    pip_install ${index[@]+"${index[@]}"} "torch==$version"
}

pip_install() { "$VENV/bin/python" -m pip install --constraint "$LOCK" "$@"; }

make_venv
install_torch
say "installing the locked dependencies ($EXTRAS): one to several minutes the first time"
pip_install --quiet --editable ".[$EXTRAS]" --editable "./client[$CLIENT_EXTRAS]"
"$VENV/bin/python" -m pip check >/dev/null || fail "the installed packages contradict each other; see: $VENV/bin/pip check"
say "ready"
