#!/usr/bin/env bash
# Lint, import order, types and tests; arguments go to pytest (-m "not slow" for the quick ones).
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports
.venv/bin/mypy
.venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile "$@"  # a run waits as much as it computes: two at once take two thirds of the time
