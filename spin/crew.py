"""The actors of a run: started once, kept for all iterations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.util.actor_pool import ActorPool

from spin.cluster import Shares
from spin.config import RunConfig
from spin.model import Policy
from spin.workers import Generator, TrainingJob, TrainingWorker


class Crew:
    """Generation actors and training workers. Starting returns at once: imports go on while the driver does other things."""

    def __init__(self, config: RunConfig, shares: Shares, stop_ids: tuple[int, ...]) -> None:
        world = config.training.workers
        self.generators = [
            Generator.options(num_cpus=shares.generator_cpus, num_gpus=shares.generator_gpus).remote(config, stop_ids)  # type: ignore[attr-defined]
            for _ in range(config.generation.replicas)
        ]
        self.trainers = [
            TrainingWorker.options(num_cpus=shares.trainer_cpus, num_gpus=shares.trainer_gpus).remote(config, rank, world)  # type: ignore[attr-defined]
            for rank in range(world)
        ]
        host, port = ray.get(self.trainers[0].address.remote())
        self._started = [trainer.start.remote(host, port) for trainer in self.trainers]
        self._loading: list[Any] = []

    def warm(self, policy: Policy) -> None:
        """Let the engines start on `policy` while the trainers work."""
        self._loading = [generator.load.remote(policy) for generator in self.generators]

    def ready(self, policy: Policy, token_budget: int | None) -> int:
        """Wait until the trainers are up; raises what kept one from it. Returns the token budget that all of them use: the one given, or rank 0's finding."""
        ray.get(self._started)
        first = ray.get(self.trainers[0].token_budget.remote(policy, token_budget))
        ray.get([trainer.token_budget.remote(policy, first) for trainer in self.trainers])
        return first

    def on_generators(self, call: Callable[[Any, Any], Any], jobs: list[Any]) -> Iterator[Any]:
        """Results as they finish, in any order. `call(actor, job)` makes the remote call; a free engine takes the next job."""
        ray.get(self._loading)
        return _each(self.generators, call, jobs)

    def memory(self) -> dict[str, float]:
        """Peak memory so far in GiB of the largest engine and of the largest trainer, of the process and (on a GPU) of the device."""
        peaks: dict[str, float] = {}
        for name, actors in (("engine", self.generators), ("trainer", self.trainers)):
            for kind, value in ((kind, value) for found in ray.get([actor.memory.remote() for actor in actors]) for kind, value in found.items()):
                key = f"peak_{kind}_gib_{name}"
                peaks[key] = max(value, peaks.get(key, 0.0))
        return peaks

    def on_trainers(self, call: Callable[[Any, Any], Any], jobs: list[Any]) -> Iterator[Any]:
        """As `on_generators`, on the training workers one by one: nothing collective."""
        return _each(self.trainers, call, jobs)

    def train(self, job: TrainingJob) -> Iterator[dict[str, Any]]:
        """One training stage on all workers; yields what rank 0 reports."""
        streams = [trainer.train.options(num_returns="streaming").remote(job) for trainer in self.trainers]
        for event in streams[0]:
            yield ray.get(event)
        for stream in streams[1:]:
            for event in stream:
                ray.get(event)


def _each(actors: list[Any], call: Callable[[Any, Any], Any], jobs: list[Any]) -> Iterator[Any]:
    pool = ActorPool(actors)
    for job in jobs:
        pool.submit(call, job)
    while pool.has_next():
        yield pool.get_next_unordered()
