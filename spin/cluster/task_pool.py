"""A queue of tasks for actors of one kind; a task runs again when its actor is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError

from spin.cluster.recovery import LOST, MAX_ATTEMPTS, too_many_deaths
from spin.interrupts import raise_if_interrupted

MakeCall = Callable[[Any, Any], Any]
"""Starts the remote call of a task: (actor, task) to Ray's object reference."""


class TaskPool:
    """Tasks and their remote calls; the owner waits for one of `pending`, then calls `collect`."""

    def __init__(
        self,
        actors: Iterable[Any],
        call: MakeCall,
        replace_actors: Callable[[Exception], Iterable[Any]] | None,
        places: int = 1,
    ) -> None:
        """Make a pool over `actors`.

        Args:
            actors: the actors; none of them is at work.
            call: starts the remote call of a task.
            replace_actors: receives the error of a lost actor and returns new ones in place of all.
                If None, Ray restarts the lost actor, which takes tasks once it answers a ping, and
                its tasks go to other actors; after MAX_ATTEMPTS losses without a result in between
                `collect` raises the last error.
            places: the most tasks that an actor has at a time.
        """
        self._actors = list(actors)
        self._call = call
        self._replace_actors = replace_actors
        self._places = places
        self._waiting: deque[Any] = deque()
        self._running: dict[Any, tuple[Any, Any]] = {}
        """Actor and task of each remote call."""
        self._restarting: dict[Any, Any] = {}
        """The actor behind each ping."""
        self._losses = 0
        """Actors lost since the last result."""

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
            self._actors.append(actor)
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
        self._losses = 0
        self._start_calls()
        return task, result

    def _start_calls(self) -> None:
        while self._waiting and self._actors:
            # The actor with the fewest tasks is the first that has a place.
            at_work = [running for running, _ in self._running.values()]
            counts = [sum(running is actor for running in at_work) for actor in self._actors]
            fewest = min(counts)
            if fewest == self._places or not self._has_enough_for_all(counts):
                return
            actor = self._actors[counts.index(fewest)]
            task = self._waiting.popleft()
            self._running[self._call(actor, task)] = (actor, task)

    def _has_enough_for_all(self, counts: list[int]) -> bool:
        """Return True if an actor may get one more task than it has.

        An idle actor may. Another one may if enough tasks wait to give every actor as many, so that
        the last tasks do not gather at one actor while another is idle.
        """
        fewest = min(counts)
        if fewest == 0:
            return True
        # An actor that restarts has none.
        counts = counts + [0] * len(self._restarting)
        return len(self._waiting) >= sum(max(0, fewest + 1 - count) for count in counts)

    def _handle_loss(self, actor: Any, task: Any, error: Exception) -> None:
        if self._replace_actors is not None:
            # All actors are replaced, so the tasks that run on the others start again too.
            self._waiting.extendleft(running for _, running in self._running.values())
            self._waiting.appendleft(task)
            self._running = {}
            self._actors = list(self._replace_actors(error))
            return
        # The actor's other tasks are lost with it. Their calls are forgotten: one death is handled
        # once.
        lost = [task]
        for call, (running_actor, running_task) in list(self._running.items()):
            if running_actor is actor:
                del self._running[call]
                lost.append(running_task)
        self._waiting.extendleft(reversed(lost))
        self._actors = [other for other in self._actors if other is not actor]
        self._losses += 1
        if self._losses >= MAX_ATTEMPTS:
            raise too_many_deaths(error) from error
        self._restarting[actor.ping.remote()] = actor


def run_tasks(pool: TaskPool, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield each task with its result, in the order in which they finish.

    Raises KeyboardInterrupt within a second after a signal, in other threads than the main one too.
    """
    for task in tasks:
        pool.add(task)
    while pool.busy:
        ready, _ = ray.wait(pool.pending, num_returns=1, timeout=1.0)
        raise_if_interrupted()
        for call in ready:
            done = pool.collect(call)
            if done is not None:
                yield done


def surviving_results(calls: list[Any]) -> list[Any]:
    """Return the results of remote calls, without those of actors that died."""
    results = []
    for call in calls:
        with suppress(RayActorError):
            results.append(ray.get(call))
    return results
