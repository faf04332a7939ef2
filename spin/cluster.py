"""Ray start-up from the config, and what each actor may ask for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from spin.config import RunConfig
from spin.errors import ConfigError


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
    terminal = os.dup(2)
    stream = sys.stderr
    with native_log.open("ab") as log, os.fdopen(terminal, "w", buffering=1) as kept:
        os.dup2(log.fileno(), 2)
        sys.stderr = kept
        try:
            yield start(config)
        finally:
            ray.shutdown()
            sys.stderr = stream
            os.dup2(terminal, 2)


def shares(config: RunConfig, resources: dict[str, float]) -> Shares:
    """Divide the cluster between the actors. They take turns on a CPU, so each asks for a part of one when there are too few."""
    generators, trainers = config.generation.replicas, config.training.workers
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
