#!/usr/bin/env bash
# Check style, import rules and types, then run the tests. Arguments are for pytest: -m "not slow"
# runs the quick tests only.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports
.venv/bin/mypy
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet
# Several processes: a run waits as long as it computes, so two at once take two thirds of the time.
.venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile "$@"
