"""The actors of a run: started once, kept for all iterations, and started again when one dies.

generator dies   Ray starts it again and repeats its call, which names the policy, so that it cannot answer with an older one
trainer dies     all trainers start again (they share a process group); shards in flight are scored again, a training stage
                 goes on from its last saved state
out of memory    as a death, once, with half the token budget, where that was found and not given
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayTaskError

from spin.cluster.actors import LIVES, Generator, TrainingWorker
from spin.cluster.placement import WAIT_NOTICE_SECONDS, PlacementGroups
from spin.cluster.task_pool import (
    LOST,
    TaskPool,
    WorkersLost,
    run_tasks,
    surviving_results,
    to_workers_lost,
    too_many_deaths,
)
from spin.config.groups import Placement
from spin.config.run import RunConfig
from spin.errors import OutOfMemory
from spin.models.packing import Group
from spin.models.policy import Policy
from spin.run_dir.store import RunStore
from spin.training.job import TrainingJob

ABSENT_SECONDS = 120
"""How long the other engines wait for one: longer than it takes to start on a GPU, shorter than anybody's patience with a node that is gone."""


ASK_SECONDS = 1.0
"""How often who waits for the trainers looks whether their state is wanted."""


@dataclass
class Budget:
    """The tokens of a forward pass of all trainers; `automatic`: found from memory, and never halved yet."""

    tokens: int
    automatic: bool


class BackgroundWork(Protocol):
    """Work that goes on while the trainers train, driven by who waits for these."""

    def pending(self) -> list[Any]:
        """What to wait for."""

    def collect(self, ready: Any) -> None:
        """Take one of these that is ready."""


class WorkerGroups:
    """Generation actors and training workers. Starting returns at once: imports go on while the driver does other things."""

    def __init__(
        self,
        config: RunConfig,
        placement: PlacementGroups,
        stop_ids: tuple[int, ...],
        say: Callable[[str], None],
        halved: Callable[[int], None],
        store: RunStore,
    ) -> None:
        """`say` tells the person of a restart; `halved` is told of a smaller token budget, so that a resume keeps to it."""
        self._config, self._places, self._say, self._halved = config, placement, say, halved
        self._store = store
        self.generators = [
            Generator.options(**placement.engine(number)).remote(config, stop_ids, store)  # type: ignore[attr-defined]
            for number in range(config.generation.replicas)
        ]
        self.present = self.generators
        """Those that get work."""
        self._loading: list[Any] = []
        self._budget: Budget | None = None
        self._deaths = 0
        self._scorer: Any = None
        self._awake = "engines"
        self._start_trainers()
        if config.cluster.placement is Placement.split:
            self._start_scorer()

    def _start_scorer(self) -> None:
        """Start the worker that scores while the others train; like each of them, it asks for imports at once and for weights later."""
        self._scorer = TrainingWorker.options(**self._places.scorer()).remote(self._config, 0, 1, self._store)  # type: ignore[attr-defined]
        self._scorer.start.remote(("", 0))

    def _start_trainers(self) -> None:
        """Start the training workers."""
        world = self._config.training.workers
        self.trainers = [
            TrainingWorker.options(**self._places.trainer(rank)).remote(self._config, rank, world, self._store)  # type: ignore[attr-defined]
            for rank in range(world)
        ]
        address = self.trainers[0].address.remote()
        self._started = [trainer.start.remote(address) for trainer in self.trainers]

    def preload(self, policy: Policy) -> None:
        """Let the engines start on `policy` while the trainers work."""
        self._loading = [generator.load.remote(policy) for generator in self.generators]

    def _swap_devices(self, side: str) -> None:
        """Where engines and trainers share the devices: let ``engines`` or ``trainers`` have their memory; the others give it back first."""
        if self._config.cluster.placement is not Placement.colocated or self._awake == side:
            return
        ray.get(self._loading)
        surviving_results(
            [trainer.release.remote() for trainer in self.trainers]
            if side == "engines"
            else [generator.sleep.remote() for generator in self.present]
        )
        self._awake = side

    def ready(self, policy: Policy, known: Budget | None) -> Budget:
        """Wait until the trainers are up and the model was found whole; raises what kept one from it.

        Returns the token budget of all: the one given, or rank 0's finding.
        """
        self._budget = known
        while True:
            try:
                self._wait_for_trainers()
                self._swap_devices("trainers")
                if self._budget is None:
                    self._budget = Budget(ray.get(self.trainers[0].find_budget.remote(policy)), automatic=True)
                self._tell_budget()
                ray.get([trainer.check.remote(policy) for trainer in self.trainers])
                return self._budget
            except RayActorError as error:
                self._replace_workers(to_workers_lost(error))

    def restart_workers(self, lost: WorkersLost) -> None:
        """Start all training workers again. Raises what happened when it happened LIVES times in a row, or when less memory was not enough."""
        self._replace_workers(lost)
        while True:
            try:
                self._wait_for_trainers()
                self._tell_budget()
                return
            except RayActorError as error:
                self._replace_workers(to_workers_lost(error))

    def _wait_for_trainers(self) -> None:
        """Until all are up; where their node is gone that may take until it is back, which is said."""
        _, waiting = ray.wait(
            self._started,
            num_returns=len(self._started),
            timeout=WAIT_NOTICE_SECONDS if self._deaths else ABSENT_SECONDS,
        )
        if waiting:
            self._say(
                f"warning: {len(waiting)} of {len(self._started)} training workers are not up: waiting for room for them on the cluster"
            )
        ray.get(self._started)

    def _tell_budget(self) -> None:
        assert self._budget is not None
        ray.get([trainer.set_budget.remote(self._budget.tokens) for trainer in self.trainers])
        self._tell_scorer()

    def _tell_scorer(self) -> None:
        if self._scorer is not None and self._budget is not None:
            self._scorer.set_budget.remote(self._budget.tokens)

    def _replace_workers(self, lost: WorkersLost, scorer: bool = False) -> None:
        """New trainers for lost ones, or a new scorer, with less to hold when memory was out."""
        self._deaths += 1
        given = self._config.training.micro_batch_tokens
        if lost.out_of_memory and self._budget is not None:
            if given or not self._budget.automatic:
                raise OutOfMemory(
                    f"{lost}; lower training.micro_batch_tokens (now {given or self._budget.tokens}), or set training.gradient_checkpointing=true"
                )
            self._budget = Budget(self._budget.tokens // 2, automatic=False)
            self._halved(self._budget.tokens)
            self._say(
                f"warning: {lost}; once more with half the token budget ({self._budget.tokens:,} tokens a forward pass)"
            )
        elif self._deaths >= LIVES:
            advice = "if memory was short, lower training.micro_batch_tokens; Ray's logs may say more"
            raise RuntimeError(f"training workers died {LIVES} times in a row ({lost}); {advice}")
        else:
            self._say(f"warning: a training worker died ({lost}); starting again")
        if scorer:
            ray.kill(self._scorer)
            self._start_scorer()
            self._tell_scorer()  # it alone: the trainers are busy, and may be waiting for what it scores
            return
        for trainer in self.trainers:
            ray.kill(trainer)
        self._start_trainers()

    def on_generators(self, call: Callable[[Any, Any], Any], jobs: list[Any]) -> Iterator[Any]:
        """Each job with its result as they finish, in any order. `call(actor, job)` makes the remote call; a free engine takes the next job."""
        yield from run_tasks(self.generator_pool(call), jobs)

    def generator_pool(self, call: Callable[[Any, Any], Any]) -> TaskPool:
        """The engines, as they are up."""
        ray.get(self._loading)
        self._swap_devices("engines")
        return TaskPool(self.present, call, None)

    def scorer_pool(self, call: Callable[[Any, Any], Any], policy: Policy) -> TaskPool:
        """The worker that scores beside training; it begins to load `policy`, under which it will."""
        self._scorer.check.remote(policy)
        return TaskPool([self._scorer], call, self._restarted_scorer)

    def _restarted_scorer(self, error: Exception) -> list[Any]:
        """A new scorer for one that was lost, under the same rules as a trainer."""
        self._replace_workers(to_workers_lost(error), scorer=True)
        return [self._scorer]

    def memory(self) -> dict[str, float]:
        """Peak memory so far in GiB of the largest engine and of the largest trainer, of the process and (on a GPU) of the device."""
        peaks: dict[str, float] = {}
        for name, actors in (("engine", self.present), ("trainer", self.trainers)):
            for kind, value in (
                (kind, value)
                for found in surviving_results([actor.memory.remote() for actor in actors])
                for kind, value in found.items()
            ):
                key = f"peak_{kind}_gib_{name}"
                peaks[key] = max(value, peaks.get(key, 0.0))
        return peaks

    def on_trainers(self, call: Callable[[Any, Any], Any], jobs: list[Any]) -> Iterator[Any]:
        """As `on_generators`, on the training workers one by one: nothing collective."""
        self._swap_devices("trainers")
        for result in run_tasks(TaskPool(self.trainers, call, self._restarted_trainers), jobs):
            self._deaths = 0
            yield result

    def _restarted_trainers(self, error: Exception) -> list[Any]:
        self.restart_workers(to_workers_lost(error))
        return self.trainers

    def logps(self, policy: Policy, groups: list[Group]) -> list[list[float]]:
        """Completion log-probabilities under a policy, group by group."""
        [(_, found)] = self.on_trainers(lambda actor, _: actor.logps.remote(policy, groups), [None])
        return found

    def probe(self, policy: Policy, prompts: list[list[int]]) -> dict[int, list[tuple[list[int], float]]]:
        """Of each engine, a short answer to each prompt under `policy`, with its log-probability.

        An engine that is gone, and does not answer ABSENT_SECONDS after the others, gets no work before the next call of this.
        """
        ray.get(self._loading)
        self._swap_devices("engines")
        answers: dict[int, list[tuple[list[int], float]]] = {}
        deaths = [0] * len(self.generators)
        asked = {generator.probe.remote(policy, prompts): number for number, generator in enumerate(self.generators)}
        patience = math.inf
        while asked and time.monotonic() < patience:
            ready, _ = ray.wait(list(asked), num_returns=1, timeout=WAIT_NOTICE_SECONDS)
            if not ready:
                if (
                    answers and self._places.short()
                ):  # there is no room for those that are missing, and nobody knows until when
                    break
                continue
            number = asked.pop(ready[0])
            try:
                found = ray.get(ready[0])
            except RayActorError as error:
                deaths[number] += 1
                if deaths[number] == LIVES:
                    raise too_many_deaths(error) from error
                asked[self.generators[number].ping.remote()] = number
                continue
            if found is None:  # it is back
                asked[self.generators[number].probe.remote(policy, prompts)] = number
                continue
            answers[number] = found
            patience = min(patience, time.monotonic() + ABSENT_SECONDS)
        for number in asked.values():
            self._say(
                f"warning: engine {number} does not answer (its node may be gone); going on with {len(answers)} of {len(self.generators)}"
            )
        self.present = [self.generators[number] for number in sorted(answers)]
        return answers

    def train(
        self, job: TrainingJob, background: BackgroundWork | None, wanted: Callable[[], bool]
    ) -> Iterator[dict[str, Any]]:
        """One training stage on all workers, and what goes on beside it; yields what rank 0 reports, its outcome last. Once `wanted`, its state is saved.

        Raises WorkersLost when a trainer is gone.
        """
        self._swap_devices("trainers")
        first, *others = [trainer.train.remote(job) for trainer in self.trainers]
        news, asked = self.trainers[0].watch.remote(), None
        try:
            while True:
                meanwhile = background.pending() if background is not None else []
                done, _ = ray.wait([news, *others, *meanwhile], num_returns=1, timeout=ASK_SECONDS)
                if wanted() and not asked:
                    asked = self.trainers[0].save.remote()
                if not done:
                    continue
                [ready] = done
                if background is not None and ready in meanwhile:
                    background.collect(ready)
                    continue
                if ready != news:  # it ended before rank 0: well, or with an error that rank 0 would wait for
                    ray.get(ready)
                    others.remove(ready)
                    continue
                events = ray.get(news)
                for event in filter(None, events):
                    yield event
                    self._deaths = 0
                if events[-1] is None:
                    break
                news = self.trainers[0].watch.remote()
            outcome, *_ = ray.get([first, *others])
            yield outcome
        except LOST as error:
            raise to_workers_lost(error) from error
        except RayTaskError:
            for other in others:  # rank 0 may only have noticed that another one died
                try:
                    ray.get(other, timeout=5)
                except RayActorError as error:
                    raise to_workers_lost(error) from error
                except (ray.exceptions.GetTimeoutError, RayTaskError):
                    continue
            raise
