#!/usr/bin/env bash
# A Ray cluster by hand, with the environment that spin expects; on rented machines with a scheduler of their own (Slurm, Kubernetes), use Ray's way for that.
#
#   scripts/cluster.sh head [PORT]           on one machine; prints the address for the others
#   scripts/cluster.sh worker HEAD:PORT      on each of the others
#   scripts/cluster.sh stop                  on each: ends every Ray process of this machine
#
# ADDRESS is this machine's own, as the others reach it (default: 127.0.0.1: a cluster of this machine alone). More words go to `ray start`: --num-cpus=1.
#
# Ray listens on all of a machine's networks, and who may talk to it may run any code there. So the head makes a secret, ~/.ray/auth_token, which every
# other machine needs in the same place, as does the one that runs spin. RAY_AUTH_MODE=disabled goes without: on a network that nobody else reaches.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
[ -x "$bin/ray" ] || bin=$(dirname "$(command -v ray)")
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token} RAY_worker_niceness=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
address=${ADDRESS:-127.0.0.1}
role=${1:-}
shift || true
case $role in
    head)
        port=6379
        if [[ ${1:-} =~ ^[0-9]+$ ]]; then port=$1; shift; fi
        [ "$RAY_AUTH_MODE" = disabled ] || "$bin/ray" get-auth-token --generate >/dev/null
        exec "$bin/ray" start --head --node-ip-address="$address" --port="$port" --dashboard-host="$address" --disable-usage-stats "$@"
        ;;
    worker)
        [ $# -gt 0 ] || { echo "cluster.sh worker: expected HEAD:PORT, as the head printed it" >&2; exit 2; }
        head=$1; shift
        exec "$bin/ray" start --address="$head" --node-ip-address="$address" --disable-usage-stats "$@"
        ;;
    stop) exec "$bin/ray" stop --force ;;
    *) echo "cluster.sh: expected head, worker or stop; found '${role}'" >&2; exit 2 ;;
esac
