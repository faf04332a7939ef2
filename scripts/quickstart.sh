#!/usr/bin/env bash
# Start or continue the quick start: four methods on the built-in model and data, and one table. Makes
# .venv first if it is missing. Arguments are those of spin compare.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec .venv/bin/spin compare settings=quickstart "$@"
