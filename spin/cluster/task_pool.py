"""A queue of tasks for actors of one kind; a task runs again when its actor is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError

from spin.cluster.recovery import LOST, MAX_ATTEMPTS, too_many_deaths

MakeCall = Callable[[Any, Any], Any]
"""Starts the remote call of a task: (actor, task) to Ray's object reference."""


class TaskPool:
    """Tasks and their remote calls; the owner waits for one of `pending`, then calls `collect`."""

    def __init__(
        self,
        actors: Iterable[Any],
        call: MakeCall,
        replace_actors: Callable[[Exception], Iterable[Any]] | None,
    ) -> None:
        """Make a pool over `actors`.

        Args:
            actors: the actors that are idle now.
            call: starts the remote call of a task.
            replace_actors: receives the error of a lost actor and returns new ones in place of all.
                If None, Ray restarts the lost actor, which takes tasks once it answers a ping, and
                the task goes to the next idle actor; after MAX_ATTEMPTS losses by the same task
                `collect` raises the last error.
        """
        self._idle = list(actors)
        self._call = call
        self._replace_actors = replace_actors
        self._waiting: deque[Any] = deque()
        self._running: dict[Any, tuple[Any, Any]] = {}
        """Actor and task of each remote call."""
        self._restarting: dict[Any, Any] = {}
        """The actor behind each ping."""
        self._losses: dict[str, int] = {}

    def add(self, task: Any) -> None:
        """Append a task to the queue."""
        self._waiting.append(task)
        self._start_calls()

    @property
    def pending(self) -> list[Any]:
        """Remote calls in flight, pings included."""
        return [*self._running, *self._restarting]

    @property
    def busy(self) -> bool:
        """True while a task is waiting or running."""
        return bool(self._waiting or self._running)

    def collect(self, ready: Any) -> tuple[Any, Any] | None:
        """Return the task and the result of a call that is ready.

        Returns None when there is no result: an actor is back after a restart, or an actor was
        lost and its task is in the queue again.
        """
        # A ping was answered: the actor is back.
        if ready in self._restarting:
            actor = self._restarting.pop(ready)
            ray.get(ready)
            self._idle.append(actor)
            self._start_calls()
            return None

        # A task ended: pass its result on, or put the task back into the queue.
        actor, task = self._running.pop(ready)
        try:
            result = ray.get(ready)
        except LOST as error:
            self._handle_loss(actor, task, error)
            self._start_calls()
            return None
        self._idle.append(actor)
        self._start_calls()
        return task, result

    def _start_calls(self) -> None:
        while self._idle and self._waiting:
            actor = self._idle.pop()
            task = self._waiting.popleft()
            self._running[self._call(actor, task)] = (actor, task)

    def _handle_loss(self, actor: Any, task: Any, error: Exception) -> None:
        self._waiting.appendleft(task)
        if self._replace_actors is not None:
            # All actors are replaced, so the tasks that run on the others start again too.
            self._waiting.extendleft(running for _, running in self._running.values())
            self._running = {}
            self._idle = list(self._replace_actors(error))
            return
        # Tasks need not be hashable.
        key = repr(task)
        self._losses[key] = self._losses.get(key, 0) + 1
        if self._losses[key] >= MAX_ATTEMPTS:
            raise too_many_deaths(error) from error
        self._restarting[actor.ping.remote()] = actor


def run_tasks(pool: TaskPool, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield each task with its result, in the order in which they finish."""
    for task in tasks:
        pool.add(task)
    while pool.busy:
        [ready], _ = ray.wait(pool.pending, num_returns=1)
        done = pool.collect(ready)
        if done is not None:
            yield done


def surviving_results(calls: list[Any]) -> list[Any]:
    """Return the results of remote calls, without those of actors that died."""
    results = []
    for call in calls:
        with suppress(RayActorError):
            results.append(ray.get(call))
    return results
