"""Jobs for actors of one kind: each on whichever is free, and again when its actor is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError
from rich.text import Text

from spin.cluster.actors import LIVES
from spin.errors import OutOfMemory

LOST = (RayActorError, OutOfMemoryError, OutOfMemory)
"""What a call ends with when its actor died, or when memory was out there."""


class WorkersLost(RuntimeError):
    """Training workers died or ran out of memory; after `Crew.revive` the stage can go on."""

    def __init__(self, reason: str, out_of_memory: bool) -> None:
        super().__init__(reason)
        self.out_of_memory = out_of_memory


class TaskPool:
    """Jobs and the calls in flight. `pending` is what to wait for, `collect` takes one of these that is ready."""

    def __init__(
        self,
        actors: Iterable[Any],
        call: Callable[[Any, Any], Any],
        restart_workers: Callable[[Exception], Iterable[Any]] | None,
    ) -> None:
        """`call(actor, job)` makes the remote call.

        `revive` is told of a loss and returns new actors for all; None: Ray starts a lost actor again, which takes jobs once it answers a ping; its job
        goes to the next free one. Then a job that cost LIVES actors their life raises what the last one died of.
        """
        self._idle, self._call, self._revive = list(actors), call, restart_workers
        self._todo: deque[Any] = deque()
        self._flying: dict[Any, tuple[Any, Any]] = {}
        self._returning: dict[Any, Any] = {}
        self._deaths: dict[Any, int] = {}

    def add(self, job: Any) -> None:
        """One more job, the last in the row."""
        self._todo.append(job)
        self._launch()

    @property
    def pending(self) -> list[Any]:
        """What is in flight."""
        return [*self._flying, *self._returning]

    @property
    def busy(self) -> bool:
        """Whether a job is not done yet."""
        return bool(self._todo or self._flying)

    def _launch(self) -> None:
        while self._idle and self._todo:
            actor, job = self._idle.pop(), self._todo.popleft()
            self._flying[self._call(actor, job)] = (actor, job)

    def collect(self, ready: Any) -> tuple[Any, Any] | None:
        """The job and the result of a call that is ready; None when there is none: an actor came back, or was lost and the job is in the row again."""
        if ready in self._returning:
            actor = self._returning.pop(ready)
            ray.get(ready)
            self._idle.append(actor)
            self._launch()
            return None
        actor, job = self._flying.pop(ready)
        try:
            result = ray.get(ready)
        except LOST as error:
            self._lost(actor, job, error)
            self._launch()
            return None
        self._idle.append(actor)
        self._launch()
        return job, result

    def _lost(self, actor: Any, job: Any, error: Exception) -> None:
        self._todo.appendleft(job)
        if self._revive is not None:
            self._todo.extendleft(job for _, job in self._flying.values())
            self._flying = {}
            self._idle = list(self._revive(error))
            return
        key = repr(job)
        self._deaths[key] = self._deaths.get(key, 0) + 1
        if self._deaths[key] >= LIVES:
            raise too_many_deaths(error) from error
        self._returning[actor.ping.remote()] = actor


def too_many_deaths(error: Exception) -> RuntimeError:
    """What a generation actor's last death means for the run."""
    died = f"a generation actor died {LIVES} times at the same call ({first_line(error)})"
    return RuntimeError(f"{died}; if memory was short, lower generation.kv_cache_gib; Ray's logs may say more")


def run_tasks(pool: TaskPool, jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Each job with its result, as they finish."""
    for job in jobs:
        pool.add(job)
    while pool.busy:
        [ready], _ = ray.wait(pool.pending, num_returns=1)
        done = pool.collect(ready)
        if done is not None:
            yield done


def surviving_results(calls: list[Any]) -> list[Any]:
    """What actors answer; of one that died there is none: it has neither memory nor anything else."""
    found = []
    for call in calls:
        with suppress(RayActorError):
            found.append(ray.get(call))
    return found


def to_workers_lost(error: Exception) -> WorkersLost:
    """A loss, as what drives a stage is told of it."""
    return WorkersLost(first_line(error), isinstance(error, OutOfMemoryError | OutOfMemory))


def first_line(error: Exception) -> str:
    """The first line of what an error, or its cause on the actor, says; without the colours that Ray gives it."""
    cause = getattr(error, "cause", None) or error
    return Text.from_ansi(str(cause).strip().splitlines()[0]).plain
