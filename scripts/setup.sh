#!/usr/bin/env bash
# Make .venv if it is missing or older than the pinned requirements. With an NVIDIA GPU, install the
# GPU engine; otherwise install the pinned CPU packages.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
digest=$(cat requirements/cpu.txt pyproject.toml scripts/setup.sh | sha256sum | cut -d' ' -f1)
[ "$(cat .venv/spin-stamp 2>/dev/null || true)" = "$digest" ] && exit 0
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: $python is older than Python 3.11; set PYTHON to a newer one" >&2; exit 2; }
[ -x .venv/bin/python ] || "$python" -m venv .venv
if nvidia-smi >/dev/null 2>&1; then
    echo "setup: installing the GPU engine and the development tools into .venv"
    .venv/bin/pip install --quiet -e '.[vllm,dev]'
else
    echo "setup: installing the pinned CPU packages into .venv (a few minutes)"
    .venv/bin/pip install --quiet --no-deps -r requirements/cpu.txt || {
        echo "setup: the install failed. Where no configured index offers torch==2.13.0+cpu, set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index (see PyTorch's install page) and run again" >&2
        exit 1
    }
    .venv/bin/pip install --quiet --no-deps --no-build-isolation -e .
fi
echo "$digest" > .venv/spin-stamp
