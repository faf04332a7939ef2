"""Ray: a cluster of this machine's own, or one that is there; whether its nodes see what they need; and what happens when Ray itself dies."""

from __future__ import annotations

import os
import socket
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from spin import __version__
from spin.cluster.environment import TOKEN
from spin.cluster.placement import PlacementGroups, reserve_placement
from spin.config.run import RunConfig
from spin.errors import ConfigError, single_line
from spin.run_dir.store import RunStore

SERVERS = ("raylet", "gcs_server")


NODE_SECONDS = 60
"""Seconds that a node has to answer; it starts a Python process first."""


RESTARTS = 3
"""How often one command starts again when Ray itself died."""


def start(config: RunConfig) -> None:
    """Join the cluster at `cluster.address`, or start one on this machine.

    Raises:
        ConfigError: There is no such cluster, or it does not accept this process.
    """
    cluster = config.cluster
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if cluster.address is None:
        # Without "local", Ray would join a cluster that it finds on this machine.
        ray.init(address="local", num_cpus=cluster.cpus, num_gpus=cluster.gpus, include_dashboard=False, **quiet)
        return
    check_port(cluster.address)
    try:
        # Ray Client prints advice of its own.
        with warnings.catch_warnings(action="ignore"):
            _join(cluster.address, quiet)
    except (ConnectionError, RuntimeError) as error:
        raise ConfigError(
            f"cluster.address={cluster.address}: {single_line(str(error))[:400]}; expected auto on a node of the "
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


def _join(address: str, quiet: dict[str, Any]) -> None:
    """Join a cluster; through ray:// try twice.

    The server of Ray Client starts a process for each client. On a busy head this takes longer
    than the client waits.
    """
    try:
        ray.init(address=address, **quiet)
    except ConnectionError:
        if not address.startswith("ray://"):
            raise
        ray.init(address=address, **quiet)


@ray.remote(num_cpus=0)
def _find_problem(token: str, text: str, paths: list[str], version: str, store: RunStore) -> str | None:
    """Return what a run needs and the node that runs this does not have; None if it has all."""
    # The package.
    try:
        from spin import __version__
    except ImportError:
        return "does not have spin installed"
    if __version__ != version:
        return f"has spin {__version__}, not {version}"

    # The run directory.
    store.fetch(Path(token))
    if not Path(token).exists() or Path(token).read_text() != text:
        run_dir = store.remote.url if store.remote else Path(token).parent
        return f"does not see {run_dir}"

    # The model and other paths.
    for path in paths:
        store.fetch(Path(path))
        if not Path(path).exists():
            return f"does not see {path}"
    return None


def check_nodes(run_dir: Path, paths: list[str], store: RunStore) -> None:
    """Check that every node of the cluster has what a run needs.

    Args:
        run_dir: The run directory as this machine sees it.
        paths: Files or folders that must exist on every node.
        store: The store of the run directory.

    Raises:
        ConfigError: A node does not see the run directory or a path, has another version of spin,
            or does not answer.
    """
    # Write a token that no other run directory has.
    token = run_dir / "seen"
    text = uuid.uuid4().hex
    token.write_text(text)
    store.publish(token)
    try:
        # Ask all nodes at once.
        calls = {}
        for node in ray.nodes():
            if node["Alive"]:
                on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task = _find_problem.options(scheduling_strategy=on_node)
                calls[task.remote(str(token), text, paths, __version__, store)] = node["NodeManagerHostname"]
        for call, name in calls.items():
            try:
                problem = ray.get(call, timeout=NODE_SECONDS)
            except RayError as error:
                last_line = str(error).strip().splitlines()[-1]
                problem = f"does not answer ({last_line}); is the same Python with spin installed there?"
            if problem:
                raise ConfigError(
                    f"cluster node {name} {problem}; expected the same files and packages on every node: run_dir and "
                    "the model on storage that all mount"
                )
    finally:
        store.delete(token)


@contextmanager
def started(
    config: RunConfig, native_log: Path, needed: list[str], say: Callable[[str], None], store: RunStore
) -> Iterator[PlacementGroups]:
    """The cluster for the length of a `with`. What Ray's C++ core writes to the driver's stderr goes to `native_log`: the terminal is the run's own.

    `needed`: paths that every node must see, beside the folder of `native_log`. Raises ConfigError when one does not, or when the actors do not fit.
    """
    environment = dict(os.environ)
    terminal = os.dup(2)
    stream = sys.stderr
    with native_log.open("ab") as log, os.fdopen(terminal, "w", buffering=1) as kept:
        os.dup2(log.fileno(), 2)
        sys.stderr = kept
        try:
            with watched(environment, terminal) if config.cluster.address is None else nullcontext():
                start(config)
                if config.cluster.address is not None:
                    check_nodes(native_log.parent, needed, store)
                yield reserve_placement(config, say)
        finally:
            ray.shutdown()
            sys.stderr = stream
            os.dup2(terminal, 2)


@contextmanager
def watched(environment: dict[str, str], terminal: int) -> Iterator[None]:
    """See that the raylet and the GCS, children of this process, live once they are there. When one dies, the same command starts again in this very process.

    Ray itself does not recover: its driver hangs, or is ended after a minute without a word, and leaves agents behind. Everything that is finished is
    on disk at any instant, so that starting again loses what a kill of the driver would.
    """
    done = threading.Event()

    def watch() -> None:
        everyone: set[psutil.Process] = set()
        servers: dict[str, psutil.Process] = {}
        while not done.wait(1.0 if len(servers) == len(SERVERS) else 0.2):
            dead = [name for name, server in servers.items() if _gone(server)]
            if dead and not done.is_set():
                _start_again(dead[0], everyone, environment, terminal)
            with suppress(psutil.Error):  # one that ends just now
                everyone.update(psutil.Process().children(recursive=True))
                servers |= {child.name(): child for child in psutil.Process().children() if child.name() in SERVERS}

    watcher = threading.Thread(target=watch, daemon=True, name="ray-watch")
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()  # Ray is about to be shut down, which is no death


def _gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _start_again(server: str, everyone: set[psutil.Process], environment: dict[str, str], terminal: int) -> None:
    """Kill what is left of Ray, then become the same command again, RESTARTS times at most."""
    for process in everyone:
        with suppress(psutil.Error):
            process.kill()
    os.dup2(terminal, 2)
    times = int(environment.get("SPIN_RAY_RESTARTS", "0")) + 1
    if times > RESTARTS:
        os.write(
            2,
            f"spin: Ray's {server} died {times} times; the same command continues the run, Ray's logs may say why\n".encode(),
        )
        os._exit(1)
    os.write(2, f"spin: warning: Ray's {server} died; starting again from what is finished\n".encode())
    os.execve(sys.executable, sys.orig_argv, {**environment, "SPIN_RAY_RESTARTS": str(times)})
