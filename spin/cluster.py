"""Ray start-up from the config, and what each actor may ask for."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray

from spin.config import RunConfig
from spin.errors import ConfigError
from spin.groups import Placement

SERVERS = ("raylet", "gcs_server")
RESTARTS = 3
"""How often one command starts again when Ray itself died."""


@dataclass(frozen=True)
class Shares:
    """Resources of one generation actor and of one training worker."""

    generator_cpus: float
    generator_gpus: float
    trainer_cpus: float
    trainer_gpus: float


def start(config: RunConfig) -> Shares:
    """Join the cluster at `cluster.address`, or start one of this machine's own. Raises ConfigError when the actors would not fit."""
    # Set before ray starts: its worker processes inherit them. Local rings need no token, and a nice of 15 starves beside other work.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    cluster = config.cluster
    if cluster.address is None:
        ray.init(num_cpus=cluster.cpus, num_gpus=cluster.gpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    else:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    return shares(config, ray.cluster_resources())


@contextmanager
def started(config: RunConfig, native_log: Path) -> Iterator[Shares]:
    """The cluster for the length of a `with`. What Ray's C++ core writes to the driver's stderr goes to `native_log`: the terminal is the run's own."""
    environment = dict(os.environ)
    terminal = os.dup(2)
    stream = sys.stderr
    with native_log.open("ab") as log, os.fdopen(terminal, "w", buffering=1) as kept:
        os.dup2(log.fileno(), 2)
        sys.stderr = kept
        try:
            shares = start(config)
            with watched(environment, terminal) if config.cluster.address is None else nullcontext():
                yield shares
        finally:
            ray.shutdown()
            sys.stderr = stream
            os.dup2(terminal, 2)


@contextmanager
def watched(environment: dict[str, str], terminal: int) -> Iterator[None]:
    """See that the raylet and the GCS, children of this process, live. When one dies, the same command starts again in this very process.

    Ray itself does not recover: its driver hangs, or is ended after a minute without a word, and leaves agents behind. Everything that is finished is
    on disk at any instant, so that starting again loses what a kill of the driver would.
    """
    done = threading.Event()
    servers = [child for child in psutil.Process().children() if child.name() in SERVERS and child.status() != psutil.STATUS_ZOMBIE]

    def watch() -> None:
        everyone: set[psutil.Process] = set()
        while not done.wait(1.0):
            dead = [name for name, server in names if not server.is_running() or server.status() == psutil.STATUS_ZOMBIE]
            if dead and not done.is_set():
                _start_again(dead[0], everyone, environment, terminal)
            everyone.update(psutil.Process().children(recursive=True))

    names = [(server.name(), server) for server in servers]
    watcher = threading.Thread(target=watch, daemon=True, name="ray-watch")
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()  # Ray is about to be shut down, which is no death


def _start_again(server: str, everyone: set[psutil.Process], environment: dict[str, str], terminal: int) -> None:
    """Kill what is left of Ray, then become the same command again, RESTARTS times at most."""
    for process in everyone:
        with suppress(psutil.Error):
            process.kill()
    os.dup2(terminal, 2)
    times = int(environment.get("SPIN_RAY_RESTARTS", "0")) + 1
    if times > RESTARTS:
        os.write(2, f"spin: Ray's {server} died {times} times; the same command continues the run, Ray's logs may say why\n".encode())
        os._exit(1)
    os.write(2, f"spin: warning: Ray's {server} died; starting again from what is finished\n".encode())
    os.execve(sys.executable, sys.orig_argv, {**environment, "SPIN_RAY_RESTARTS": str(times)})


def shares(config: RunConfig, resources: dict[str, float]) -> Shares:
    """Divide the cluster between the actors. They take turns on a CPU, so each asks for a part of one when there are too few."""
    generators, trainers = config.generation.replicas, config.training.workers + (config.cluster.placement is Placement.split)
    cpus = min(1.0, resources.get("CPU", 1.0) / (generators + trainers))
    gpus = resources.get("GPU", 0.0)
    if gpus == 0:
        return Shares(cpus, 0, cpus, 0)
    wanted = generators * config.generation.tensor_parallel_size + trainers
    if wanted <= gpus:
        return Shares(cpus, config.generation.tensor_parallel_size, cpus, 1)
    if generators == trainers == config.generation.tensor_parallel_size == 1:
        return Shares(cpus, 0.5, cpus, 0.5)
    raise ConfigError(
        f"{wanted:g} GPUs wanted (generation.replicas × tensor_parallel_size + training.workers), {gpus:g} found; "
        "lower one of the three (1 engine and 1 trainer may share one GPU)"
    )
