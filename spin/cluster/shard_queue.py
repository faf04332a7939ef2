"""The ordered, bounded queue of shards between generation and training.

The trainers take shards by number, in order, and wait for one that is not there; generation may run only so far ahead of them. What lies in the queue is
a number: the shard itself is a finished file that the ledger knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray


class ShardQueue:
    """Finished shards by number. All of them stay takeable: a trainer that was started again begins at the first."""

    def __init__(self, ahead: int) -> None:
        """`ahead`: how many shards beyond the one that the trainers ask for may be begun."""
        self._ahead = ahead
        self._there: set[int] = set()
        self._asked = 0
        self._changed = asyncio.Condition()

    async def put(self, shard: int) -> None:
        """The shard is finished."""
        async with self._changed:
            self._there.add(shard)
            self._changed.notify_all()

    async def take(self, shard: int) -> None:
        """Wait until the shard is finished."""
        async with self._changed:
            self._asked = max(self._asked, shard)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: shard in self._there)

    async def room(self, shard: int) -> None:
        """Wait until the shard may be begun."""
        async with self._changed:
            await self._changed.wait_for(lambda: shard <= self._asked + self._ahead)


def open_queue(ahead: int) -> Any:
    """A queue as an actor beside the driver, so that it lives as long."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    return ray.remote(ShardQueue).options(num_cpus=0, max_concurrency=1000, scheduling_strategy=here).remote(ahead)


def arriving(queue: Any, paths: list[Path]) -> Iterator[Path]:
    """Each path in its turn, once its shard is finished. Without a queue, all are."""
    for shard, path in enumerate(paths):
        if queue is not None:
            ray.get(queue.take.remote(shard))
        yield path
