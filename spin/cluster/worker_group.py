"""The actors of one role: start them, replace them, and give them tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from spin.cluster.placement import PlacementGroups, Role
from spin.cluster.recovery import WorkersLost, to_workers_lost
from spin.cluster.task_pool import MakeCall, TaskPool


class WorkerGroup:
    """The actors of one role."""

    def __init__(
        self,
        role: Role,
        actor_class: Any,
        count: int,
        placement: PlacementGroups,
        on_death: Callable[[WorkersLost], None] | None,
        arguments: Callable[[int], tuple[Any, ...]],
    ) -> None:
        """Start the actors; returns at once, before they are up.

        Args:
            role: what the actors do; `placement` has a slot for each.
            actor_class: the Ray actor class.
            count: how many actors.
            placement: the reserved placement groups.
            on_death: replaces the actors after a loss, or raises. None: Ray restarts them.
            arguments: returns the constructor's arguments of an actor, from its number.
        """
        self.role = role
        self._actor_class = actor_class
        self._count = count
        self._placement = placement
        self._on_death = on_death
        self._arguments = arguments
        self.workers: list[Any] = []
        self.active: list[Any] = []
        """The workers that get tasks."""
        self.start()

    def start(self) -> None:
        """Start all actors of the group."""
        self.workers = []
        for number in range(self._count):
            options = self._placement.actor_options(self.role, number)
            self.workers.append(self._actor_class.options(**options).remote(*self._arguments(number)))
        self.active = self.workers

    def replace(self) -> None:
        """Kill all actors of the group and start new ones."""
        for worker in self.workers:
            ray.kill(worker)
        self.start()

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method on all workers; returns the object references."""
        return [getattr(worker, method).remote(*arguments) for worker in self.workers]

    def make_task_pool(self, call: MakeCall, places: int = 1) -> TaskPool:
        """Return a pool that gives tasks to the active workers, at most `places` at a time each."""
        if self._on_death is None:
            return TaskPool(self.active, call, None, places)
        return TaskPool(self.active, call, self._replace_lost)

    def _replace_lost(self, error: Exception) -> list[Any]:
        assert self._on_death is not None
        self._on_death(to_workers_lost(error))
        return self.active
