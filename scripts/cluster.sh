#!/usr/bin/env bash
# A Ray cluster by hand, with the environment that spin expects. On rented machines with a scheduler
# of their own (Slurm, Kubernetes), use Ray's way for that.
#
#   scripts/cluster.sh head [PORT]           on one machine; prints the commands for the others
#   scripts/cluster.sh worker HEAD:PORT      on each of the others
#   scripts/cluster.sh stop                  on each: ends every Ray process of this machine
#
# ADDRESS is this machine's own, as the others reach it. Default of a head: 127.0.0.1, a cluster of
# this machine alone; of a worker: the address from which it reaches the head. More words go to
# `ray start`: --num-cpus=1.
#
# Ray listens on all of a machine's networks, and who may talk to it may run any code there. So the
# head makes a secret, ~/.ray/auth_token (RAY_AUTH_TOKEN_PATH names another file). Every other machine
# needs it in the same place, as does the one that runs spin, readable by its owner alone.
# RAY_AUTH_MODE=disabled goes without: on a network that nobody else reaches.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
[ -x "$bin/ray" ] || bin=$(dirname "$(command -v ray)")
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token} RAY_worker_niceness=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
# The server behind ray:// forks while its gRPC threads run. With gRPC's fork handlers, the new process
# crashes now and then (ray-project/ray#63202); it executes another program at once and needs none.
export GRPC_ENABLE_FORK_SUPPORT=0
address=${ADDRESS:-127.0.0.1}
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
role=${1:-}
shift || true

refuse() {
    echo "cluster.sh: $1" >&2
    exit 2
}

# Prints the owner and the mode of a file or folder.
owner_and_mode() { stat --format '%u %a' "$1"; }

# Make the secret if there is none; refuse one that other users can read.
prepare_token() {
    [ "$RAY_AUTH_MODE" = disabled ] || [ -n "${RAY_AUTH_TOKEN:-}" ] && return
    if [ ! -s "$token" ]; then
        [ "$role" = head ] || refuse "$token is missing; copy the head's to it, with mode 600"
        (
            umask 077
            mkdir -p "$(dirname "$token")"
            # Complete when it has its name, as a copy may be waiting for it.
            od -An -tx1 -N32 /dev/urandom | tr -d ' \n' >"$token.tmp"
            mv "$token.tmp" "$token"
        )
    fi
    [ "$(owner_and_mode "$token")" = "$UID 600" ] || refuse "$token has owner and mode $(owner_and_mode "$token");\
 expected $UID 600: other users may know the secret, so delete it on every machine and start the head again"
    case $(stat --format %A "$(dirname "$token")") in
        d????w* | d???????w*) refuse "$(dirname "$token") can be changed by other users; run chmod 700 on it" ;;
    esac
    [ -n "${RAY_AUTH_TOKEN_PATH:-}" ] || chmod 700 "$(dirname "$token")"
}

# Ray lets every user write into its session, so put it in a folder that only this user may enter.
prepare_folder() {
    export RAY_TMPDIR=${RAY_TMPDIR:-/tmp/spin-cluster-$UID}
    (umask 077 && mkdir -p "$RAY_TMPDIR")
    [ "$(owner_and_mode "$RAY_TMPDIR")" = "$UID 700" ] || refuse "RAY_TMPDIR=$RAY_TMPDIR has owner and mode $(owner_and_mode "$RAY_TMPDIR"); expected $UID 700"
}

# Start Ray. Its own text is shown only if it fails: it names commands without the secret and the
# settings of this script. With --block, Ray stays in the foreground and prints what it likes.
start_ray() {
    if [[ " $* " == *" --block "* ]]; then
        exec "$bin/ray" start --temp-dir="$RAY_TMPDIR/ray" --disable-usage-stats "$@"
    fi
    local output
    output=$("$bin/ray" start --temp-dir="$RAY_TMPDIR/ray" --disable-usage-stats "$@" 2>&1) || {
        echo "$output" >&2
        refuse "Ray did not start; its own words are above. \"scripts/cluster.sh stop\" ends a cluster that runs here"
    }
}

print_next_steps() {
    echo "The head of the cluster runs at $address:$port."
    if [[ $address == 127.* ]]; then
        echo "It is a cluster of this machine alone. For others, stop it and set ADDRESS=<this machine's address>."
    else
        if [ "$RAY_AUTH_MODE" != disabled ]; then
            echo "On every other machine, first copy the secret $token to ~/.ray/auth_token, with mode 600."
        fi
        echo "On every other machine:  bash scripts/cluster.sh worker $address:$port"
    fi
    echo "Start a run:             spin run experiment=quickstart cluster.address=$address:$port"
    echo "End, on each machine:    bash scripts/cluster.sh stop"
}

case $role in
    head)
        port=6379
        if [[ ${1:-} =~ ^[0-9]+$ ]]; then
            port=$1
            shift
        fi
        prepare_token
        prepare_folder
        start_ray --head --node-ip-address="$address" --port="$port" --dashboard-host="$address" "$@"
        print_next_steps
        ;;
    worker)
        [ $# -gt 0 ] || refuse "worker: expected HEAD:PORT, as the head printed it"
        head=$1
        shift
        prepare_token
        prepare_folder
        # Without --node-ip-address, Ray takes the address from which it reaches the head.
        if [ -n "${ADDRESS:-}" ] || [[ $head == 127.* ]]; then
            set -- --node-ip-address="$address" "$@"
        fi
        start_ray --address="$head" "$@"
        echo "This machine is part of the cluster of $head. \"scripts/cluster.sh stop\" ends it here."
        ;;
    stop) exec "$bin/ray" stop --force ;;
    *) refuse "expected head, worker or stop; found '$role'" ;;
esac
