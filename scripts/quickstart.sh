#!/usr/bin/env bash
# The main job on the built-in task: sets up .venv when missing, then runs or continues it. Arguments are overrides.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec .venv/bin/spin run experiment=quickstart "$@"
