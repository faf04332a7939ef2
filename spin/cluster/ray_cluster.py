"""Ray for the length of a run: a cluster of its own, or one that exists."""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from spin.cluster.environment import TOKEN
from spin.cluster.node_check import check_nodes
from spin.cluster.placement import PlacementGroups, reserve_placement
from spin.cluster.ray_folder import ray_folder
from spin.cluster.ray_watch import RayRestart, list_children, watched
from spin.config.run import RunConfig
from spin.errors import ConfigError, single_line
from spin.interrupts import cancel_abort, handle_interrupts, raise_if_interrupted, was_interrupted
from spin.run_dir.paths import RunLayout
from spin.run_dir.store import RunStore

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
"""Arguments of `ray.init` that keep its lines off the terminal."""

CLIENT_TRIES = 5
"""Number of times that the driver asks the server of Ray Client for a process of its own."""


def join_cluster(config: RunConfig) -> None:
    """Join the cluster at `cluster.address`.

    Raises:
        ConfigError: There is no such cluster, or it does not accept this process.
    """
    address = config.cluster.address
    assert address is not None
    check_port(address)
    try:
        # Ray Client prints advice of its own.
        with warnings.catch_warnings(action="ignore"), interrupted_by_sigterm():
            _join(address)
    except (ConnectionError, RuntimeError) as error:
        raise ConfigError(
            f"cluster.address={address}: {single_line(str(error))[:400]}; expected auto on a node of the "
            "cluster, HEAD:6379 or ray://HEAD:10001 (its ports), the same Ray and Python, and where the cluster wants "
            f"a token, that in {TOKEN}"
        ) from error


def check_port(address: str) -> None:
    """Raise ConfigError when nothing listens at an address; Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"cluster.address={address}: no Ray cluster answers ({error}); start one with scripts/cluster.sh head, "
            "or leave cluster.address out"
        ) from error


def _join(address: str) -> None:
    """Join a cluster; through ray:// try several times.

    The server of Ray Client forks a process for each client while its own gRPC threads run. On a
    busy head this process crashes now and then (ray-project/ray#63202; scripts/cluster.sh prevents
    it), or takes longer than the client waits.
    """
    tries = CLIENT_TRIES if address.startswith("ray://") else 1
    for left in reversed(range(tries)):
        try:
            ray.init(address=address, **QUIET)
            return
        except ConnectionError:
            if left == 0:
                raise


@contextmanager
def started(
    config: RunConfig, native_log: Path, needed: list[str], print_line: Callable[[str], None], store: RunStore
) -> Iterator[PlacementGroups]:
    """Run Ray inside the context, and reserve the places of the actors.

    Args:
        config: Config of the run.
        native_log: File that receives what Ray's C++ core writes to stderr of the driver, since the
            terminal belongs to the run. It lies in the run directory.
        needed: Paths that every node must have, beside the run directory.
        print_line: Prints a line for the user.
        store: Store of the run directory.

    Raises:
        ConfigError: A node does not have what the run needs, or the actors do not fit.
    """
    environment = dict(os.environ)
    terminal = os.dup(2)
    stream = sys.stderr
    restart = RayRestart(environment, terminal, RunLayout(native_log.parent).ledger)
    with native_log.open("ab") as log, os.fdopen(terminal, "w", buffering=1) as kept:
        os.dup2(log.fileno(), 2)
        sys.stderr = kept
        try:
            if config.cluster.address is None:
                # Leave in this order: Ray, without a restart for this planned end, then its files.
                kept_logs = RunLayout(native_log.parent).ray_logs
                with ray_folder(kept_logs) as folder, watched(restart) as ready:
                    start_local(config, restart, folder)
                    ready.set()
                    yield reserve_placement(config, print_line)
            else:
                try:
                    join_cluster(config)
                    check_nodes(native_log.parent, needed, store)
                    yield reserve_placement(config, print_line)
                finally:
                    ray.shutdown()
        finally:
            sys.stderr = stream
            os.dup2(terminal, 2)


def start_local(config: RunConfig, restart: RayRestart, folder: Path) -> None:
    """Start a Ray of this run alone; a start that misses Ray's time limit is tried again.

    Args:
        config: Config of the run.
        restart: Starts the run again.
        folder: Where Ray keeps its files.
    """
    cluster = config.cluster
    try:
        # Without "local", Ray would join a cluster that it finds on this machine.
        with interrupted_by_sigterm():
            ray.init(
                address="local",
                num_cpus=cluster.cpus,
                num_gpus=cluster.gpus,
                include_dashboard=False,
                _temp_dir=str(folder),
                **QUIET,
            )
    except Exception as error:  # Ray raises a plain Exception
        # On a busy machine the raylet may need more than the 30 s that Ray gives it.
        if "timed out during startup" not in str(error):
            raise
        restart.restart("Ray did not start within 30 s", list_children())


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt inside and after the context, in which Ray starts.

    Ray sets a handler of its own, which raises SystemExit.
    """
    try:
        # Inside: a signal that is handled while an error of Ray leaves the context is caught too.
        try:
            yield
        finally:
            handle_interrupts()
            if was_interrupted():
                cancel_abort()
    except SystemExit as error:
        raise KeyboardInterrupt from error
    raise_if_interrupted()
