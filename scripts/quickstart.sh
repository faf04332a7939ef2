#!/usr/bin/env bash
# Start or continue the quickstart on the built-in model and data; make .venv first if it is missing.
# Arguments are overrides of the config.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec .venv/bin/spin run experiment=quickstart "$@"
